// Command sfubench measures what the built-in SFU costs a viewer: beside the fan-out that an ordinary pion programmer writes
// (TrackRemote.Read, TrackLocalStaticRTP.Write, pion's default interceptors), and beside MediaMTX where its binary is found by
// MEDIAMTX_BIN or in PATH, in the same run. It is what `make bench-sfu` runs; nothing is asserted, figures are printed.
//
// Each server is a process of its own and has all its viewers at once. One more process publishes and plays. The servers take
// turns, in short rounds in the order A B C C B A, so that what else the machine does harms all alike; what is printed is the
// median of the rounds. It reads /proc, and so needs Linux.
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
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sfubench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("sfubench", flag.ContinueOnError)
	b := bench{out: stdout}
	flags.IntVar(&b.viewers, "viewers", 100, "viewers of one stream of 1 Mbit/s video and sound")
	flags.DurationVar(&b.duration, "duration", 12*time.Second, "time of measuring per server")
	flags.IntVar(&b.joins, "joins", 40, "viewers that come one after another, for the time to the first key frame")
	flags.IntVar(&b.sessions, "sessions", 1000, "viewers that come evenly within 20 s; 0: none")
	flags.StringVar(&b.cpuProfile, "cpuprofile", "", "write a CPU profile of the built-in SFU to this file")
	flags.StringVar(&b.heapProfile, "memprofile", "", "write a profile of the built-in SFU's memory, with its viewers, to this file")
	k := soak{out: stdout}
	flags.DurationVar(&k.duration, "soak", 0, "instead, let viewers come and go at random for so long, and look whether the memory grows")
	flags.Uint64Var(&k.seed, "seed", uint64(time.Now().UnixNano()), "of the soak")
	asJSON := flags.Bool("json", false, "print JSON")
	role := flags.String("role", "", "for the bench itself: be what is measured, \"sfu\" or \"loop\"")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *role != "" {
		return serve(ctx, *role, b.cpuProfile, b.heapProfile, stdin, stdout)
	}
	if b.viewers < 1 || b.joins < 0 || b.sessions < 0 || b.duration <= 0 {
		return errors.New("give at least one viewer, a time above 0, and no negative numbers")
	}
	if k.duration > 0 {
		k.profile = b.heapProfile
		return k.run(ctx)
	}
	if *asJSON {
		b.out = io.Discard
	}
	result, err := b.run(ctx)
	if err != nil {
		return err
	}
	if *asJSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(result)
	}
	return nil
}
