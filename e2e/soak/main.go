//go:build linux

// Command soak kills things at random for as long as it is told, and looks after each time whether all is well again: three
// clusters of two pods each, media server and sidecar as processes of their own, a publisher, and a viewer at each pod. It is what
// `make soak` runs; the same seed does the same things in the same order. It fails if a viewer does not see frames again in time,
// is told anything but that it shall come again, if a session is left at a media server, a cluster pulls the stream twice, or a
// process grows.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

const (
	clusters = 3
	perPods  = 2
	stream   = "show"

	// Within these times after all processes run again, every viewer must see frames, and nothing may be left of what was.
	flowBound = 30 * time.Second
	restBound = 40 * time.Second
	// flowing is so many frames: a second.
	flowing = 30
)

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	binary := flags.String("binary", "bin/sidestream", "the program to kill")
	duration := flags.Duration("duration", 30*time.Minute, "for which")
	seed := flags.Uint64("seed", 1, "of what is done, and when")
	keep := flags.Bool("keep", false, "keep the logs also if all is well")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sidestream-soak-")
	if err != nil {
		return err
	}
	s := &soak{random: rand.New(rand.NewPCG(*seed, 0)), out: out, took: map[string][]time.Duration{}}
	began := time.Now()
	err = s.run(ctx, *binary, dir, began.Add(*duration))
	s.print(time.Since(began))
	switch {
	case err != nil && ctx.Err() == nil:
		return fmt.Errorf("%w; logs are in %s", err, dir)
	case len(s.wrong) > 0:
		return fmt.Errorf("%d times something was wrong; logs are in %s; -seed %d repeats it", len(s.wrong), dir, *seed)
	case *keep:
		fmt.Fprintln(out, "logs:", dir)
		return nil
	}
	return os.RemoveAll(dir)
}

// soak is one run.
type soak struct {
	random  *rand.Rand
	out     io.Writer
	pods    []*pod
	viewers []*viewer
	source  *publisher

	steps int
	took  map[string][]time.Duration // until all viewers saw frames again, by what was done
	wrong []string
}

func (s *soak) run(ctx context.Context, binary, dir string, until time.Time) (err error) {
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	if s.pods, err = newPods(binary, dir); err != nil {
		return err
	}
	defer func() {
		for _, p := range s.pods {
			p.sidecar.kill()
			p.server.kill()
		}
	}()
	for _, p := range s.pods {
		if err := errors.Join(p.server.start(), p.sidecar.start()); err != nil {
			return err
		}
	}
	s.source = newPublisher()
	defer s.source.stop()
	s.source.start(s.pods[0])
	for _, p := range s.pods {
		v, err := newViewer(p, dir)
		if err != nil {
			return err
		}
		defer v.stop()
		s.viewers = append(s.viewers, v)
	}
	s.settle(ctx, deed{"begin", s.pods}, time.Now())
	for ctx.Err() == nil && time.Now().Before(until) {
		if err := s.step(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// complain notes what is wrong.
func (s *soak) complain(format string, args ...any) {
	text := fmt.Sprintf("step %d: ", s.steps) + fmt.Sprintf(format, args...)
	s.wrong = append(s.wrong, text)
	fmt.Fprintln(s.out, "WRONG:", text)
}

// pause waits between the least and the most.
func (s *soak) pause(ctx context.Context, least, most time.Duration) {
	sleep(ctx, least+time.Duration(s.random.Int64N(int64(most-least))))
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// step does one thing, and looks whether all is well after it.
func (s *soak) step(ctx context.Context) error {
	s.steps++
	do := deeds[s.random.IntN(len(deeds))]
	if s.random.IntN(3) == 0 {
		s.pause(ctx, 0, 2*time.Second) // some things happen while others are not over yet
	} else {
		s.pause(ctx, 500*time.Millisecond, 3*time.Second)
	}
	done, err := do(ctx, s)
	if err != nil {
		return err
	}
	s.settle(ctx, done, time.Now())
	return nil
}

// settle waits until all is well again.
func (s *soak) settle(ctx context.Context, done deed, since time.Time) {
	what := done.String()
	bounded, cancel := context.WithTimeout(ctx, flowBound)
	defer cancel()
	marks := make([]<-chan time.Time, len(s.viewers))
	for i, v := range s.viewers {
		marks[i] = v.mark(bounded, v.frames()+flowing)
	}
	var all, elsewhere time.Duration
	for i, v := range s.viewers {
		at, ok := <-marks[i]
		if ctx.Err() != nil {
			continue
		}
		if !ok {
			s.complain("%s: the viewer at %s sees nothing for %s; %s", what, v.pod.name, flowBound, v.last())
			s.dump(ctx)
			continue
		}
		all = max(all, at.Sub(since))
		if !slices.Contains(done.hit, v.pod) {
			elsewhere = max(elsewhere, at.Sub(since))
		}
	}
	if ctx.Err() != nil {
		return
	}
	for _, v := range s.viewers {
		for _, odd := range v.oddities() {
			s.complain("%s: the viewer at %s was told %s", what, v.pod.name, odd)
		}
	}
	s.took[done.what] = append(s.took[done.what], all)
	s.took[done.what+elsewhereMark] = append(s.took[done.what+elsewhereMark], elsewhere)
	rested := s.rest(ctx, what)
	fmt.Fprintf(s.out, "%s %4d %-44s frames elsewhere after %4.1f s, everywhere after %4.1f s, at rest after %4.1f s\n",
		time.Now().Format(time.TimeOnly), s.steps, what, elsewhere.Seconds(), all.Seconds(), rested.Seconds())
	for _, p := range s.pods {
		p.measure(ctx)
	}
	for _, p := range s.pods {
		for _, grown := range p.grown() {
			s.complain("%s: %s", p.name, grown)
		}
	}
}

// dump shows what each node says of itself.
func (s *soak) dump(ctx context.Context) {
	for _, p := range s.pods {
		st, err := p.status(ctx)
		streams, _ := p.streams(ctx)
		fmt.Fprintf(s.out, "  %s: %+v (%v); server %+v\n", p.name, st, err, streams)
	}
}

// elsewhereMark ends the row of viewers whose own pod was not hit.
const elsewhereMark = ", elsewhere"

func (s *soak) print(took time.Duration) {
	fmt.Fprintf(s.out, "\n%d steps in %s. Until every viewer had seen a second of video again, after all processes ran:\n\n",
		s.steps, took.Round(time.Second))
	fmt.Fprintf(s.out, "%-32s %6s %8s %8s %8s\n", "", "times", "p50", "p95", "max")
	var kinds []string
	for kind := range s.took {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		all := slices.Sorted(slices.Values(s.took[kind]))
		at := func(part int) string {
			return fmt.Sprintf("%.1f s", all[min(len(all)*part/100, len(all)-1)].Seconds())
		}
		fmt.Fprintf(s.out, "%-32s %6d %8s %8s %8s\n", kind, len(all), at(50), at(95), at(100))
	}
	var sessions int
	for _, v := range s.viewers {
		sessions += v.sessions()
	}
	fmt.Fprintf(s.out, "\n%d viewers had %d sessions; %d times something was wrong.\n", len(s.viewers), sessions, len(s.wrong))
	for _, p := range s.pods {
		fmt.Fprintf(s.out, "%s: %s\n", p.name, p.summary())
	}
}
