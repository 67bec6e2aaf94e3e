package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/pion/webrtc/v4"
	"golang.org/x/sync/errgroup"

	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

const (
	rounds    = 4                      // of each server
	settle    = 400 * time.Millisecond // from a server's turn to the measuring
	frameRate = 30                     // of the source
	within    = 20 * time.Second       // in which many sessions come
	joinPause = 137 * time.Millisecond // spreads joins over the group of pictures
)

// shape is what is published: a key frame every two seconds, as encoders do that wait for requests.
var shape = relaytest.Shape{
	Video: webrtc.MimeTypeH264, Audio: true, Exact: true, BitsPerSecond: 1_000_000, GOP: 2 * time.Second,
}

type bench struct {
	out                     io.Writer
	viewers, joins          int
	sessions                int
	duration                time.Duration
	cpuProfile, heapProfile string
}

// errDone ends the source when all is measured.
var errDone = errors.New("done")

func (b bench) run(ctx context.Context) (result Result, err error) {
	source, err := relaytest.NewSource(nil, shape)
	if err != nil {
		return result, err
	}
	subjects, err := b.start(ctx)
	for _, s := range subjects {
		defer s.stop()
	}
	if err != nil {
		return result, err
	}
	defer func() {
		for _, s := range subjects {
			closeMany(ctx, s.viewers)
		}
	}()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return source.Run(ctx) })
	group.Go(func() error {
		if err := b.measure(ctx, group, source, subjects, &result); err != nil {
			return err
		}
		return errDone
	})
	if err := group.Wait(); !errors.Is(err, errDone) {
		return result, err
	}
	return result, nil
}

func (b bench) measure(
	ctx context.Context, group *errgroup.Group, source *relaytest.Source, subjects []*subject, result *Result,
) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	defer client.CloseIdleConnections()
	fmt.Fprint(b.out, header)
	counts := make(map[string]*counts)
	for _, s := range subjects {
		counts[s.role] = newCounts()
		source.Mute(func(name string) bool { return name != s.role })
		group.Go(func() error { return source.Publish(ctx, s.role, s.publish) })
		if err := b.fill(ctx, client, s, counts[s.role]); err != nil {
			return fmt.Errorf("fill the %s: %w", s.role, err)
		}
		source.Mute(func(string) bool { return true })
	}
	turns := make(map[string][]turn)
	for i := range rounds {
		order := slices.Clone(subjects)
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			t, err := b.turn(ctx, source, s, counts[s.role])
			if err != nil {
				return err
			}
			turns[s.role] = append(turns[s.role], t)
		}
	}
	for _, s := range subjects {
		row := summarise(s, b.viewers, turns[s.role])
		result.Rows = append(result.Rows, row)
		fmt.Fprintln(b.out, row)
	}
	if b.heapProfile != "" {
		subjects[0].poke()
	}
	for _, s := range subjects {
		source.Mute(func(name string) bool { return name != s.role })
		starts, err := b.join(ctx, client, s)
		if err != nil {
			return fmt.Errorf("join the %s: %w", s.role, err)
		}
		result.Joins = append(result.Joins, starts)
	}
	source.Mute(func(string) bool { return true })
	result.compare()
	if b.sessions > 0 {
		for _, s := range subjects {
			closeMany(ctx, s.viewers)
			s.viewers = nil
		}
		flood, err := b.flood(ctx, client, subjects[0])
		if err != nil {
			return err
		}
		result.Flood = flood
	}
	fmt.Fprint(b.out, result)
	return nil
}

func newCounts() *counts { return &counts{} }

func (b bench) start(ctx context.Context) (subjects []*subject, err error) {
	ours, err := start(ctx, roleSFU, b.cpuProfile, b.heapProfile)
	if err != nil {
		return nil, err
	}
	subjects = append(subjects, ours)
	loop, err := start(ctx, roleLoop, "", "")
	if err != nil {
		return subjects, err
	}
	subjects = append(subjects, loop)
	other, err := startMediaMTX(ctx)
	if other != nil {
		subjects = append(subjects, other)
	}
	return subjects, err
}

// fill opens the server's viewers, once its stream is there.
func (b bench) fill(ctx context.Context, client *http.Client, s *subject, c *counts) error {
	for deadline := time.Now().Add(arrival); ; {
		first, err := open(ctx, client, s.play, c)
		if err == nil {
			s.viewers = append(s.viewers, first)
			break
		}
		if time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	var err error
	if s.idle, err = s.memory(); err != nil {
		return err
	}
	more, err := openMany(ctx, client, s.play, b.viewers-1, c)
	s.viewers = append(s.viewers, more...)
	return err
}

// turn is one round of one server.
type turn struct {
	cores, mbits, through float64
	latency               Latency
	memory                memory
}

func total(viewers []*viewer) (bytes, whole uint64) {
	for _, v := range viewers {
		bytes += v.bytes.Load()
		whole += v.whole.Load()
	}
	return bytes, whole
}

func (b bench) turn(ctx context.Context, source *relaytest.Source, s *subject, c *counts) (t turn, err error) {
	source.Mute(func(name string) bool { return name != s.role })
	if err := pause(ctx, settle); err != nil {
		return t, err
	}
	c.measure(true)
	bytesBefore, wholeBefore := total(s.viewers)
	before, err := s.cpu()
	if err != nil {
		return t, err
	}
	began := time.Now()
	if err := pause(ctx, b.duration/rounds); err != nil {
		return t, err
	}
	after, err := s.cpu()
	if err != nil {
		return t, err
	}
	took := time.Since(began).Seconds()
	bytesAfter, wholeAfter := total(s.viewers)
	latencies := c.measure(false)
	if t.memory, err = s.memory(); err != nil {
		return t, err
	}
	if bytesAfter == bytesBefore {
		return t, fmt.Errorf("nothing came through the %s", s.role)
	}
	t.cores = (after - before).Seconds() / took
	t.mbits = float64(bytesAfter-bytesBefore) * 8 / 1e6 / took
	t.through = float64(wholeAfter-wholeBefore) / (took * frameRate * float64(len(s.viewers)))
	t.latency = Latency{P50: quantile(latencies, .5), P99: quantile(latencies, .99)}
	return t, nil
}

// join takes the time from a viewer's POST to its first key frame, with all the others there.
func (b bench) join(ctx context.Context, client *http.Client, s *subject) (Starts, error) {
	var took []time.Duration
	for range b.joins {
		if err := pause(ctx, joinPause); err != nil {
			return Starts{}, err
		}
		began := time.Now()
		v, err := open(ctx, client, s.play, newCounts())
		if err != nil {
			return Starts{}, err
		}
		key, err := v.firstKey(ctx)
		v.close(ctx)
		if err != nil {
			return Starts{}, err
		}
		took = append(took, key.Sub(began))
	}
	return Starts{Server: s.role, Count: b.joins, Median: quantile(took, .5), P95: quantile(took, .95)}, nil
}

// flood opens many sessions evenly within a time, while nothing is sent.
func (b bench) flood(ctx context.Context, client *http.Client, s *subject) (Flood, error) {
	result := Flood{Sessions: b.sessions}
	began := time.Now()
	before, err := s.cpu()
	if err != nil {
		return result, err
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	var viewers []*viewer
	tick := time.NewTicker(within / time.Duration(b.sessions))
	defer tick.Stop()
	for range b.sessions {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		group.Go(func() {
			v, err := open(ctx, client, s.play, newCounts())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				result.Errors++
				result.LastError = err.Error()
				return
			}
			viewers = append(viewers, v)
		})
	}
	group.Wait()
	result.Took = time.Since(began)
	after, err := s.cpu()
	if err != nil {
		return result, err
	}
	result.CPU = (after - before) / time.Duration(b.sessions)
	closeMany(ctx, viewers)
	return result, ctx.Err()
}

func summarise(s *subject, viewers int, turns []turn) Row {
	of := func(value func(turn) float64) float64 {
		var values []float64
		for _, t := range turns {
			values = append(values, value(t))
		}
		return median(values)
	}
	cores := of(func(t turn) float64 { return t.cores })
	least, most := turns[0].cores, turns[0].cores
	for _, t := range turns {
		least, most = min(least, t.cores), max(most, t.cores)
	}
	return Row{
		Server: s.role, Viewers: viewers, Cores: cores, Spread: most / least, ViewersPerCore: float64(viewers) / cores,
		Mbits:          of(func(t turn) float64 { return t.mbits }),
		Through:        of(func(t turn) float64 { return t.through }),
		BytesPerViewer: (of(func(t turn) float64 { return float64(t.memory) }) - float64(s.idle)) / float64(viewers),
		Latency: Latency{
			P50: time.Duration(of(func(t turn) float64 { return float64(t.latency.P50) })),
			P99: time.Duration(of(func(t turn) float64 { return float64(t.latency.P99) })),
		},
	}
}
