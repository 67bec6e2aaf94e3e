package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidestream-dev/sidestream/sidecar/cascade"
	"github.com/sidestream-dev/sidestream/sidecar/console"
)

// explainCommand says where a stream is on its way to each node, and why it goes no further.
func explainCommand(environ []string, stdout io.Writer) *cobra.Command {
	var at string
	q := question{environ: environ}
	cmd := q.command("explain STREAM", "Say why a stream is where it is, or is not: one sidecar asks all others", cobra.ExactArgs(1),
		func(cmd *cobra.Command, args []string) error {
			var e cascade.Explanation
			if err := q.ask(cmd.Context(), "/api/explain?"+url.Values{"stream": {args[0]}, "at": {at}}.Encode(), &e); err != nil {
				return err
			}
			if at != "" && len(e.Accounts) == 0 {
				return fmt.Errorf("no node of a cluster %q is known here", at)
			}
			return q.print(stdout, e, func() error { return printExplanation(stdout, e) })
		})
	cmd.Flags().StringVar(&at, "at", "", "the cluster that is asked about; all of them without it")
	return cmd
}

var marks = map[cascade.State]string{cascade.OK: "\u2713", cascade.Waiting: "\u2026", cascade.Failed: "\u2717"}

func printExplanation(w io.Writer, e cascade.Explanation) error {
	for i, a := range e.Accounts {
		if i > 0 {
			fmt.Fprintln(w)
		}
		verdict := "it plays here"
		switch a.State {
		case cascade.Failed:
			verdict = "fails at: " + a.Stage
		case cascade.Waiting:
			verdict = "waits at: " + a.Stage
		}
		fmt.Fprintf(w, "%s  %s  %s\n", orDash(a.Cluster), a.Node, verdict)
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, s := range a.Stages {
			took := ""
			if s.TookMs > 0 {
				took = fmt.Sprintf(" (%.0f ms)", s.TookMs)
			}
			fmt.Fprintf(table, "  %s\t%s\t%s%s\n", marks[s.State], s.Name, s.Text, took)
			if s.Hint != "" {
				fmt.Fprintf(table, "\t\t%s\n", s.Hint)
			}
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// askCascade reads what all nodes say of themselves.
func askCascade(ctx context.Context, q *question) (c cascade.Cascade, err error) {
	return c, q.ask(ctx, console.Path+"api/cascade", &c)
}

// streamRow is a stream at all nodes.
type streamRow struct {
	Stream  string         `json:"stream"`
	Origin  string         `json:"origin"` // cluster
	Epoch   uint64         `json:"epoch"`
	Held    []string       `json:"held"` // clusters
	Viewers map[string]int `json:"viewers"`
	Tracks  []string       `json:"tracks,omitempty"`
	Bytes   uint64         `json:"bytes"` // that relays carried
}

func streamRows(c cascade.Cascade) []streamRow {
	rows := map[string]*streamRow{}
	of := func(name string) *streamRow {
		if rows[name] == nil {
			rows[name] = &streamRow{Stream: name, Viewers: map[string]int{}}
		}
		return rows[name]
	}
	for _, n := range c.Nodes {
		if n.Report == nil {
			continue
		}
		for _, p := range n.Report.Published {
			r := of(p.Stream)
			if p.Counts {
				r.Origin, r.Epoch, r.Tracks = n.Cluster, p.Epoch, p.Tracks
			}
			r.Held = append(r.Held, n.Cluster)
			r.Viewers[n.Cluster] += max(p.Viewers, 0)
		}
		for _, l := range n.Report.Relays {
			r := of(l.Stream)
			r.Viewers[n.Cluster] += max(l.Viewers, 0)
			r.Bytes += l.Bytes
			if l.State == "live" {
				r.Held = append(r.Held, n.Cluster)
			}
		}
	}
	list := []streamRow{}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		r := rows[name]
		slices.Sort(r.Held)
		r.Held = slices.Compact(r.Held)
		list = append(list, *r)
	}
	return list
}

func streamsCommand(environ []string, stdout io.Writer) *cobra.Command {
	q := question{environ: environ}
	return q.command("streams", "Show the streams of the whole mesh: where they are published, who has them, who watches", cobra.NoArgs,
		func(cmd *cobra.Command, _ []string) error {
			c, err := askCascade(cmd.Context(), &q)
			if err != nil {
				return err
			}
			rows := streamRows(c)
			return q.print(stdout, rows, func() error { return printStreams(stdout, rows, q.wide()) })
		})
}

func printStreams(w io.Writer, rows []streamRow, wide bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	header := "STREAM\tORIGIN\tHELD BY\tVIEWERS"
	if wide {
		header += "\tEPOCH\tCODECS\tRELAYED"
	}
	fmt.Fprintln(table, header)
	for _, r := range rows {
		viewers := 0
		for _, n := range r.Viewers {
			viewers += n
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d", r.Stream, orDash(r.Origin), orDash(strings.Join(r.Held, ",")), viewers)
		if wide {
			fmt.Fprintf(table, "\t%d\t%s\t%s", r.Epoch, orDash(strings.Join(r.Tracks, ",")), amount(r.Bytes))
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

// relayRow is a relay and the node that runs it.
type relayRow struct {
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	cascade.Relay
}

func relayRows(c cascade.Cascade) []relayRow {
	rows := []relayRow{}
	for _, n := range c.Nodes {
		if n.Report == nil {
			continue
		}
		for _, r := range n.Report.Relays {
			rows = append(rows, relayRow{n.Node, n.Cluster, r})
		}
	}
	slices.SortFunc(rows, func(a, b relayRow) int {
		return cmp.Or(cmp.Compare(a.Stream, b.Stream), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Node, b.Node))
	})
	return rows
}

func relaysCommand(environ []string, stdout io.Writer) *cobra.Command {
	q := question{environ: environ}
	return q.command("relays", "Show the relays of the whole mesh: what is carried where, from whom, and how well", cobra.NoArgs,
		func(cmd *cobra.Command, _ []string) error {
			c, err := askCascade(cmd.Context(), &q)
			if err != nil {
				return err
			}
			rows := relayRows(c)
			return q.print(stdout, rows, func() error { return printRelays(stdout, c, rows, q.wide()) })
		})
}

func printRelays(w io.Writer, c cascade.Cascade, rows []relayRow, wide bool) error {
	clusters := map[string]string{}
	for _, n := range c.Nodes {
		clusters[n.Node] = n.Cluster
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	header := "STREAM\tCLUSTER\tNODE\tSTATE\tFROM\tRTT\tLOST\tVIEWERS\tCARRIED"
	if wide {
		header += "\tREPAIRED\tNACKS\tADDED\tCHANGES\tWHY"
	}
	fmt.Fprintln(table, header)
	for _, r := range rows {
		lost := "-"
		if r.Packets > 0 {
			lost = fmt.Sprintf("%.2f %%", 100*float64(r.Lost)/float64(r.Packets+r.Lost))
		}
		from := r.Parent
		if cluster := clusters[r.Parent]; cluster != "" {
			from = cluster
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s", r.Stream, r.Cluster, r.Node, r.State, orDash(from),
			rtt(time.Duration(r.RTTMs*float64(time.Millisecond))), lost, r.Viewers, amount(r.Bytes))
		if wide {
			fmt.Fprintf(table, "\t%d\t%d\t%.2f ms\t%d\t%s", r.Repaired, r.NACKs, r.AddedMs, r.Changes, orDash(cmp.Or(r.LastError, r.Why)))
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

// topCommand shows streams and relays again and again.
func topCommand(environ []string, stdout io.Writer) *cobra.Command {
	var every time.Duration
	var times int
	q := question{environ: environ}
	cmd := q.command("top", "Show the streams and relays of the whole mesh, live; Ctrl-C ends it", cobra.NoArgs,
		func(cmd *cobra.Command, _ []string) error {
			if every < time.Second {
				return fmt.Errorf("--every is %s: a second at least", every)
			}
			for i := 0; times == 0 || i < times; i++ {
				if i > 0 {
					select {
					case <-cmd.Context().Done():
						return nil
					case <-time.After(every):
					}
				}
				c, err := askCascade(cmd.Context(), &q)
				if cmd.Context().Err() != nil {
					return nil
				}
				if err != nil {
					return err
				}
				if times != 1 {
					fmt.Fprint(stdout, "\x1b[H\x1b[2J") // to the top of an empty screen
				}
				if err := printTop(stdout, c, q.wide()); err != nil {
					return err
				}
			}
			return nil
		})
	cmd.Flags().DurationVar(&every, "every", 2*time.Second, "how often")
	cmd.Flags().IntVar(&times, "times", 0, "end after so many (0: at Ctrl-C)")
	return cmd
}

func printTop(w io.Writer, c cascade.Cascade, wide bool) error {
	well, carried, saved := 0, uint64(0), uint64(0)
	for _, n := range c.Nodes {
		if n.Report != nil {
			carried, saved = carried+n.Report.Carried, saved+n.Report.Saved
			if n.Report.Ready && !n.Report.Draining {
				well++
			}
		}
	}
	fmt.Fprintf(w, "%s  %d of %d nodes ready  came from other clusters %s  did not have to %s\n\n",
		c.At.Local().Format(time.TimeOnly), well, len(c.Nodes), amount(carried), amount(saved))
	if err := printStreams(w, streamRows(c), wide); err != nil {
		return err
	}
	fmt.Fprintln(w)
	return printRelays(w, c, relayRows(c), wide)
}

// amount is a number of bytes for people.
func amount(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	v, i := float64(n), 0
	for v >= 1000 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
