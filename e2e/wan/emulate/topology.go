//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

const help = `  set A B KEY=VALUE...     change the link between two hosts, both ways; what is not named stays
  set A to B KEY=VALUE...  the same, one way
  cut A B, cut A to B      let nothing pass
  heal A B, heal A to B    end a cut
  links                    what the links are like
  counters                 what has become of the packets
  help                     this list
A and B are hosts, or * for all. Keys:
  rtt, delay, jitter       such as 80ms; rtt is both ways together, delay one way
  loss                     such as 1%
  burst, length            share lost in bursts, such as 0.5%; mean packets in a burst, such as 8
  rate, queue              bits per second, such as 20M (0: no limit); bytes that may wait (200 ms of the rate)
  reorder, by              share held back, such as 1%, and how long, such as 20ms
`

// way is one direction between two hosts.
type way struct{ from, to string }

// topology knows what the hosts are joined by.
type topology struct {
	names []string
	ways  map[way]*wan.Direction
}

// do follows a command.
func (t topology) do(command string, stdout io.Writer) error {
	fields := strings.Fields(command)
	if len(fields) == 0 {
		return nil
	}
	var err error
	switch verb := fields[0]; verb {
	case "set", "cut", "heal":
		err = t.change(verb, fields[1:])
	case "links":
		err = t.links(stdout)
	case "counters":
		err = t.counters(stdout)
	case "help":
		_, err = io.WriteString(stdout, help)
	default:
		err = errors.New("there is no such command; try help")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// change does all of a command that changes links, or nothing.
func (t topology) change(verb string, fields []string) error {
	ways, settings, err := t.subject(fields)
	if err != nil {
		return err
	}
	if (verb == "set") != (len(settings) > 0) {
		return errors.New("set wants keys and values, cut and heal none")
	}
	oneWay := len(fields) > 1 && fields[1] == "to"
	changed := make([]wan.Params, len(ways))
	for i, w := range ways {
		p := t.ways[w].Params()
		switch verb {
		case "cut":
			p.Cut = true
		case "heal":
			p.Cut = false
		}
		if slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, "rate=") }) {
			p.Queue = 0 // what fits the new rate, unless it is said
		}
		for _, setting := range settings {
			if oneWay && strings.HasPrefix(setting, "rtt=") {
				return errors.New("a round trip goes both ways; give the delay")
			}
			if p, err = with(p, setting); err != nil {
				return err
			}
		}
		if err := p.Validate(); err != nil {
			return err
		}
		changed[i] = p
	}
	for i, w := range ways {
		t.ways[w].Set(changed[i])
	}
	return nil
}

// subject reads "A B rest" or "A to B rest".
func (t topology) subject(fields []string) (ways []way, rest []string, err error) {
	oneWay := len(fields) > 1 && fields[1] == "to"
	if oneWay {
		fields = slices.Delete(slices.Clone(fields), 1, 2)
	}
	if len(fields) < 2 {
		return nil, nil, errors.New("two hosts are wanted")
	}
	for _, name := range fields[:2] {
		if name != "*" && !slices.Contains(t.names, name) {
			return nil, nil, fmt.Errorf("there is no host %s", name)
		}
	}
	matches := func(w way) bool {
		return (fields[0] == "*" || fields[0] == w.from) && (fields[1] == "*" || fields[1] == w.to)
	}
	for _, w := range t.all() {
		if matches(w) || !oneWay && matches(way{w.to, w.from}) {
			ways = append(ways, w)
		}
	}
	if len(ways) == 0 {
		return nil, nil, errors.New("a host has no link to itself")
	}
	return ways, fields[2:], nil
}

// all is every way, in the order of the hosts.
func (t topology) all() (ways []way) {
	for _, from := range t.names {
		for _, to := range t.names {
			if from != to {
				ways = append(ways, way{from, to})
			}
		}
	}
	return ways
}

// with is the parameters with one of them changed.
func with(p wan.Params, setting string) (wan.Params, error) {
	key, value, _ := strings.Cut(setting, "=")
	var err error
	switch key {
	case "rtt":
		p.Delay, err = time.ParseDuration(value)
		p.Delay /= 2
	case "delay":
		p.Delay, err = time.ParseDuration(value)
	case "jitter":
		p.Jitter, err = time.ParseDuration(value)
	case "loss":
		p.Loss, err = share(value)
	case "burst":
		p.BurstLoss, err = share(value)
	case "length":
		p.BurstLength, err = strconv.ParseFloat(value, 64)
	case "rate":
		p.Rate, err = rate(value)
	case "queue":
		p.Queue, err = strconv.Atoi(value)
	case "reorder":
		p.Reorder, err = share(value)
	case "by":
		p.ReorderBy, err = time.ParseDuration(value)
	default:
		err = errors.New("there is no such key; try help")
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", setting, err)
	}
	return p, nil
}

func share(s string) (float64, error) {
	number, ok := strings.CutSuffix(s, "%")
	if !ok && s != "0" {
		return 0, errors.New("a percentage such as 1% is wanted")
	}
	v, err := strconv.ParseFloat(number, 64)
	return v / 100, err
}

func rate(s string) (int64, error) {
	factor := 1.0
	for unit, f := range map[string]float64{"k": 1e3, "M": 1e6, "G": 1e9} {
		if number, ok := strings.CutSuffix(s, unit); ok {
			s, factor = number, f
			break
		}
	}
	v, err := strconv.ParseFloat(s, 64)
	return int64(v * factor), err
}

func (t topology) links(stdout io.Writer) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FROM\tTO\tDELAY\tJITTER\tLOSS\tBURST\tLENGTH\tRATE\tQUEUE\tREORDER\tBY\tSTATE")
	for _, w := range t.all() {
		p := t.ways[w].Params()
		state := "open"
		if p.Cut {
			state = "cut"
		}
		fmt.Fprintf(table, "%s\t%s\t%v\t%v\t%.4g%%\t%.4g%%\t%.4g\t%d\t%d\t%.4g%%\t%v\t%s\n", w.from, w.to, p.Delay, p.Jitter,
			100*p.Loss, 100*p.BurstLoss, p.BurstLength, p.Rate, p.Queue, 100*p.Reorder, p.ReorderBy, state)
	}
	return table.Flush()
}

func (t topology) counters(stdout io.Writer) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FROM\tTO\tPASSED\tBYTES\tLOST\tBURST\tOVERFLOW\tCUT OFF\tREORDERED")
	for _, w := range t.all() {
		c := t.ways[w].Counters()
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n",
			w.from, w.to, c.Packets, c.Bytes, c.Lost, c.BurstLost, c.Overflow, c.CutOff, c.Reordered)
	}
	return table.Flush()
}
