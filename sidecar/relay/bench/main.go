// Command bench measures what it costs to relay a stream: our relay beside the loop that an ordinary pion programmer
// writes (TrackRemote.Read, TrackLocalStaticRTP.Write, pion's default interceptors), in the same run, each as a process
// of its own. It is what `make bench` runs; nothing is asserted, figures are printed.
//
// One process generates the streams and takes them again. Both relays hold all their streams at once and take turns at
// carrying them, in short rounds in the order A B B A, so that what else the machine does harms both alike; what is
// printed is the median of the rounds.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// comparedAt is the number of streams at which the last line compares, if it was measured.
const comparedAt = 20

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	streams := flags.String("streams", "1,10,20,50", "numbers of streams of 2 Mbit/s to measure at")
	duration := flags.Duration("duration", 12*time.Second, "time of measuring per number of streams and relay")
	starts := flags.Int("starts", 10, "repetitions of the time to first frame")
	asJSON := flags.Bool("json", false, "print JSON")
	role := flags.String("role", "", "for the bench itself: be what is measured, \"relay\", \"loop\" or \"floor\"")
	profile := flags.String("cpuprofile", "", "write a CPU profile of our relay, at the last number of streams, to this file")
	heap := flags.String("memprofile", "", "write a profile of our relay's memory, at the last number of streams, to this file")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *role != "" {
		return serve(ctx, *role, *profile, *heap, stdin, stdout)
	}
	var sizes []int
	for field := range strings.SplitSeq(*streams, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 1 {
			return fmt.Errorf("-streams %q: not a list of positive numbers", *streams)
		}
		sizes = append(sizes, n)
	}

	if !*asJSON {
		fmt.Fprint(stdout, header)
	}
	var result Result
	for i, n := range sizes {
		m := measurement{streams: n, duration: *duration}
		if i == len(sizes)-1 {
			m.profile, m.heap = *profile, *heap
		}
		rows, err := m.run(ctx)
		if err != nil {
			return fmt.Errorf("measure %d streams: %w", n, err)
		}
		result.Rows = append(result.Rows, rows...)
		if !*asJSON {
			for _, row := range rows {
				fmt.Fprintln(stdout, row)
			}
		}
	}
	var err error
	if result.Direct, err = measureDirect(ctx, min(*duration, 4*time.Second)); err != nil {
		return fmt.Errorf("measure the direct path: %w", err)
	}
	result.compare(sizes)
	if result.Floor, err = measureFloor(ctx, result.RatioStreams, min(*duration, 4*time.Second)); err != nil {
		return fmt.Errorf("measure the floor: %w", err)
	}
	if *starts > 0 {
		if result.Cold, result.Warm, err = measureStarts(ctx, *starts); err != nil {
			return fmt.Errorf("measure starts: %w", err)
		}
	}
	if *asJSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(result)
	}
	fmt.Fprint(stdout, result)
	return nil
}
