// Command hop measures what a viewer sees of a stream that crosses one long path that loses packets: a publisher, the server beside
// it, the path, a relay, the server beside that, and the viewer, in real time. The second server is the built-in one, one that does
// with packets as MediaMTX does, or a real MediaMTX where its binary is given. It is what `make bench-hop` runs; nothing is asserted,
// figures are printed.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "hop:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("hop", flag.ContinueOnError)
	var o options
	flags.DurationVar(&o.rtt, "rtt", 160*time.Millisecond, "round trip of the path")
	loss := flags.Float64("loss", 1, "percent of packets that the path loses, each way")
	flags.DurationVar(&o.length, "length", 25*time.Second, "of each measurement")
	flags.IntVar(&o.bitrate, "bitrate", 2_000_000, "of the video, in bits per second")
	flags.BoolVar(&o.plain, "plain", false, "send packets on as they come, whatever the server is known to want")
	flags.StringVar(&o.mediamtx, "mediamtx", os.Getenv("MEDIAMTX_BIN"), "a MediaMTX binary, to be measured too")
	edges := flags.String("edges", "", "servers behind the path: "+strings.Join(edgeNames, ", ")+"; default: all there are")
	seeds := flags.String("seeds", "1,2,3", "of losses, one measurement each")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.loss = *loss / 100
	names := slices.Clone(edgeNames)
	if *edges != "" {
		names = strings.Split(*edges, ",")
	} else if o.mediamtx == "" {
		names = names[:2]
	}
	if err := wan.Realtime(true); err != nil {
		fmt.Fprintln(stdout, "Delays will be exact only on a machine with time to spare:", err)
	}
	defer wan.Realtime(false) //nolint:errcheck // the end
	fmt.Fprintf(stdout, "Path of %s and %g %% loss each way, %d kbit/s, %s each. Lateness is against the best frame, or sound.\n\n",
		o.rtt, *loss, o.bitrate/1000, o.length)
	fmt.Fprintf(stdout, "%-9s %4s | %6s %5s %5s %5s %5s | %8s %8s | %6s %5s %5s %7s %6s | %s\n", "edge", "seed",
		"frames", "p50", "p95", "max", "lost", "repaired", "residual", "sounds", "p95", "max", ">200 ms", "filled", "lip sync: p95, max")
	for _, name := range names {
		for field := range strings.SplitSeq(*seeds, ",") {
			seed, err := strconv.ParseUint(strings.TrimSpace(field), 10, 64)
			if err != nil {
				return fmt.Errorf("-seeds: %w", err)
			}
			result, err := o.measure(ctx, strings.TrimSpace(name), seed)
			if err != nil {
				return fmt.Errorf("%s, seed %d: %w", name, seed, err)
			}
			result.print(stdout, name, seed)
		}
	}
	return nil
}

// result is what came of one measurement.
type result struct {
	frames     []time.Duration // lateness
	lost       int
	sounds     []time.Duration // lateness
	skews      []time.Duration // of sound against the picture
	packets    uint64
	repaired   uint64
	unrepaired uint64
	filled     uint64
}

func (r *result) print(w io.Writer, name string, seed uint64) {
	late := 0
	for _, d := range r.sounds {
		if d > 200*time.Millisecond {
			late++
		}
	}
	ms := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	fine := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds()*1000, 'f', 1, 64) }
	fmt.Fprintf(w, "%-9s %4d | %6d %5s %5s %5s %5d | %8d %7.3f%% | %6d %5s %5s %7d %6d | %s, %s ms\n", name, seed,
		len(r.frames), ms(at(r.frames, 50)), ms(at(r.frames, 95)), ms(at(r.frames, 100)), r.lost,
		r.repaired, 100*float64(r.unrepaired)/float64(max(r.packets, 1)),
		len(r.sounds), ms(at(r.sounds, 95)), ms(at(r.sounds, 100)), late, r.filled, fine(at(r.skews, 95)), fine(at(r.skews, 100)))
}

// at is a percentile.
func at(values []time.Duration, percent int) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.SortedFunc(slices.Values(values), cmp.Compare[time.Duration])
	return sorted[min(len(sorted)*percent/100, len(sorted)-1)]
}
