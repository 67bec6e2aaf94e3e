//go:build linux

// Command experiment measures what a cascade is for: a viewer in Germany behind a last mile that loses packets watches a stream
// of Singapore, directly over the long path, and from the nearest edge; in a counting player and, where there is one, in a
// browser, all at once. Publisher, servers and viewers are in network namespaces, joined by emulated links. It is what
// `make experiment` runs, as root; nothing is asserted, figures are printed as a table for docs/experiment.md, and a plot.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/e2e/inside"
	"github.com/sidestream-dev/sidestream/e2e/wan"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "experiment:", err)
		os.Exit(1)
	}
}

const stream = "show"

// options are what is measured.
type options struct {
	binary       string
	length       time.Duration
	bitrate      int
	loss, across float64 // shares: of the last mile, and between the clusters
	far, near    time.Duration
	between      time.Duration
	seeds        []uint64
	plot         string
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("experiment", flag.ContinueOnError)
	var o options
	flags.StringVar(&o.binary, "binary", "bin/sidestream", "the program to measure")
	flags.DurationVar(&o.length, "length", time.Minute, "of each measurement")
	flags.IntVar(&o.bitrate, "bitrate", 2_000_000, "of the video, in bits per second")
	loss := flags.Float64("loss", 1, "percent of packets that the last mile loses, each way")
	across := flags.Float64("across", 0, "percent of packets lost between the clusters, each way")
	flags.DurationVar(&o.far, "far", 200*time.Millisecond, "round trip from the viewer to Singapore")
	flags.DurationVar(&o.near, "near", 40*time.Millisecond, "round trip from the viewer to the edge")
	flags.DurationVar(&o.between, "between", 160*time.Millisecond, "round trip from the edge to Singapore")
	seeds := flags.String("seeds", "1,2,3", "of losses, one measurement each")
	flags.StringVar(&o.plot, "plot", "", "a file to write the first measurement to, as a drawing")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.loss, o.across = *loss/100, *across/100
	for field := range strings.SplitSeq(*seeds, ",") {
		seed, err := strconv.ParseUint(strings.TrimSpace(field), 10, 64)
		if err != nil {
			return fmt.Errorf("-seeds: %w", err)
		}
		o.seeds = append(o.seeds, seed)
	}
	if err := wan.Realtime(true); err != nil {
		fmt.Fprintln(os.Stderr, "Delays will be exact only on a machine with time to spare:", err)
	}
	defer wan.Realtime(false) //nolint:errcheck // the end
	e := &experiment{options: o, network: wan.NewNetwork()}
	return e.run(ctx, stdout)
}

// experiment is one run: two servers, and for each seed viewers of both.
type experiment struct {
	options
	network *wan.Network
	dir     string
}

func (e *experiment) run(ctx context.Context, stdout io.Writer) (err error) {
	if e.dir, err = os.MkdirTemp("", "sidestream-experiment-"); err != nil {
		return err
	}
	defer os.RemoveAll(e.dir) //nolint:errcheck // best effort
	var ending sync.WaitGroup
	defer ending.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ending.Go(func() { _ = e.network.Run(ctx) })

	origin, err := e.network.Host("singapore")
	if err != nil {
		return err
	}
	edge, err := e.network.Host("germany")
	if err != nil {
		return err
	}
	origin.Join(edge, wan.NewLink(1, wan.Params{Delay: e.between / 2, Loss: e.across}))
	for _, h := range []*wan.Host{origin, edge} {
		end, err := e.node(h, origin, edge)
		if err != nil {
			return err
		}
		defer end()
	}
	publisher, err := inside.NewPublisher(origin, e.bitrate, func(int) string { return at(origin, "whip") })
	if err != nil {
		return err
	}
	var publishing sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	publishing.Go(func() { publisher.Run(running) })
	defer publishing.Wait()
	defer stop()

	if err := known(ctx, edge); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%g %% loss on the last mile, %g %% between the clusters; %v to Singapore, %v to the edge, %v between them; %d kbit/s, %v each.\n\n",
		100*e.loss, 100*e.across, e.far, e.near, e.between, e.bitrate/1000, e.length)
	fmt.Fprintln(stdout, "| seed | viewer | path | frames | freezes | frozen, s | longest, ms | round trip, ms | packets lost | NACKs | jitter buffer, ms | age of frames p50 / p99, ms |")
	fmt.Fprintln(stdout, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for i, seed := range e.seeds {
		results, err := e.measure(ctx, seed, origin, edge)
		if err != nil {
			return fmt.Errorf("seed %d: %w", seed, err)
		}
		for _, r := range results {
			r.print(stdout, seed)
		}
		if i == 0 && e.plot != "" {
			if err := plot(e.plot, results); err != nil {
				return err
			}
		}
	}
	return nil
}

// known waits until the edge knows of the stream.
func known(ctx context.Context, edge *wan.Host) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		var status struct{ Streams []struct{ Stream string } }
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:18090/api/status", edge.IPv4), http.NoBody)
		if err != nil {
			return err
		}
		resp, err := inside.HTTP(edge).Do(req)
		if err == nil {
			err = json.NewDecoder(resp.Body).Decode(&status)
			_ = resp.Body.Close()
		}
		if err == nil && len(status.Streams) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the edge to know of the stream: %w", errors.Join(ctx.Err(), err))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func at(h *wan.Host, protocol string) string {
	return fmt.Sprintf("http://%s:18080/%s/%s", h.IPv4, protocol, stream)
}

// node runs a sidecar with the built-in server until it is ended.
func (e *experiment) node(h, origin, edge *wan.Host) (end func(), err error) {
	binary, err := filepath.Abs(e.binary)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(e.dir, h.Name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the process has its own
	cmd := exec.Command(binary, "run")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(),
		"SIDESTREAM_CLUSTER="+h.Name, "SIDESTREAM_STATE_DIR="+filepath.Join(e.dir, h.Name), "SIDESTREAM_PEER_SECURITY=plaintext",
		fmt.Sprintf("SIDESTREAM_POD_IP=%s", h.IPv4), fmt.Sprintf("SIDESTREAM_PEER_STATIC=%s:18443,%s:18443", origin.IPv4, edge.IPv4))
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		stuck := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		stuck.Stop()
	}, nil
}

// measure has viewers of both paths at once, each in a host of its own.
func (e *experiment) measure(ctx context.Context, seed uint64, origin, edge *wan.Host) ([]*result, error) {
	var results []*result
	var mu sync.Mutex
	var group sync.WaitGroup
	var errs []error
	watch := func(viewer, path string, from *wan.Host, rtt time.Duration, number uint64, with func(context.Context, *wan.Host, string, *result) error) error {
		h, err := e.network.Host(fmt.Sprintf("%s-%s-%d", viewer, path, seed))
		if err != nil {
			return err
		}
		link := wan.NewLink(seed<<8|number, wan.Params{Delay: rtt / 2, Loss: e.loss})
		h.Join(from, link)
		r := &result{viewer: viewer, path: path, mile: link.In}
		results = append(results, r)
		group.Go(func() {
			defer h.Close() //nolint:errcheck // the process's end ends it too
			if err := with(ctx, h, at(from, "whep"), r); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%s, %s: %w", viewer, path, err))
			}
		})
		return nil
	}
	// The same seed for the same path's place: player and browser lose alike, not the same packets.
	begun := errors.Join(
		watch("player", "direct", origin, e.far, 1, e.count), watch("player", "edge", edge, e.near, 2, e.count))
	if browser := findBrowser(); browser != "" {
		in := func(ctx context.Context, h *wan.Host, address string, r *result) error {
			return e.browse(ctx, browser, h, address, r)
		}
		begun = errors.Join(begun, watch("Chromium", "direct", origin, e.far, 3, in), watch("Chromium", "edge", edge, e.near, 4, in))
	}
	group.Wait()
	return results, errors.Join(append(errs, begun)...)
}

// result is what one viewer saw.
type result struct {
	viewer, path string
	frames       int
	freezes      int
	frozen       time.Duration
	longest      time.Duration
	roundTrip    time.Duration
	mile         *wan.Direction // to the viewer
	lost         uint64         // packets there
	nacks        int            // 0: it does not say
	buffer       time.Duration  // 0: it has none
	ages         []time.Duration
	gaps         []time.Duration // the longest in each second, where it is known
}

func (r *result) print(w io.Writer, seed uint64) {
	ms := func(d time.Duration) string {
		if d == 0 {
			return ""
		}
		return strconv.FormatInt(d.Milliseconds(), 10)
	}
	nacks, age := "", ""
	if r.nacks > 0 {
		nacks = strconv.Itoa(r.nacks)
	}
	if n := len(r.ages); n > 0 {
		slices.Sort(r.ages)
		age = ms(r.ages[n/2]) + " / " + ms(r.ages[n*99/100])
	}
	fmt.Fprintf(w, "| %d | %s | %s | %d | %d | %.1f | %s | %s | %d | %s | %s | %s |\n", seed, r.viewer, r.path, r.frames, r.freezes,
		r.frozen.Seconds(), ms(r.longest), ms(r.roundTrip), r.lost, nacks, ms(r.buffer), age)
}

func endpoint(address string) adapters.Endpoint { return adapters.Endpoint{URL: mustParse(address)} }
