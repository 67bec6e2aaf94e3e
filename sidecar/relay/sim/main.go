// Command sim simulates whole meshes in virtual time: many nodes with the real catalogue, planner, claims and feasibility
// condition, and between them a network with distance, on which words are late and come out of order, connections break, and
// parts are cut off and heal. It is what `make sim` runs: it prints how soon the nodes agree after a change, and what that
// costs them. Its tests let random things happen to random meshes, and check what must hold.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
)

func main() {
	if err := command(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

const maxNodes = 1000

func command(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("sim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	seed := flags.Uint64("seed", 1, "of all that is random; times and bytes are the same again, processor and memory nearly")
	meshes := flags.String("meshes", "3x5/200,3x5/2000,5x10/200,5x10/2000,10x10/200,10x10/2000,10x30/2000",
		"clusters x nodes in each / streams, of each mesh to measure; above 200 nodes only costs and publications")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q: there are flags only", flags.Args())
	}
	var sizes []size
	for field := range strings.SplitSeq(*meshes, ",") {
		s, err := parseSize(field)
		if err != nil {
			return fmt.Errorf("-meshes %q: %w", *meshes, err)
		}
		sizes = append(sizes, s)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	return tables(stdout, measureAll(*seed, sizes))
}

type size struct{ clusters, perCluster, streams int }

func parseSize(text string) (size, error) {
	mesh, streams, _ := strings.Cut(text, "/")
	clusters, perCluster, _ := strings.Cut(mesh, "x")
	var s size
	var err error
	for _, n := range []struct {
		to   *int
		text string
		most int
	}{{&s.clusters, clusters, 100}, {&s.perCluster, perCluster, 100}, {&s.streams, streams, 10_000}} {
		if *n.to, err = strconv.Atoi(n.text); err != nil || *n.to < 1 || *n.to > n.most {
			return size{}, fmt.Errorf("%q is not of the form 3x5/200: clusters, nodes in each, streams", text)
		}
	}
	if s.clusters < 2 || s.clusters*s.perCluster > maxNodes {
		return size{}, fmt.Errorf("%q: there must be two clusters or more, and no more than %d nodes", text, maxNodes)
	}
	return s, nil
}

// measureAll measures as many meshes at a time as there are processors, the largest first.
func measureAll(seed uint64, sizes []size) []*figures {
	all := make([]*figures, len(sizes))
	next := make(chan int, len(sizes))
	for i := range sizes {
		next <- len(sizes) - 1 - i
	}
	close(next)
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(sizes)) {
		wg.Go(func() {
			for i := range next {
				s := sizes[i]
				all[i] = measure(seed, s.clusters, s.perCluster, s.streams)
			}
		})
	}
	wg.Wait()
	return all
}

// tables prints the figures as two tables.
func tables(to io.Writer, all []*figures) error {
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, args ...any) { fmt.Fprintf(table, format, args...) }
	line("How soon the nodes know, in virtual milliseconds, p50/p99 over nodes. Publish, move and drain: beyond the one-way delay.\n")
	line("mesh\tstreams\tpublish\tmove\tdrain\tcrash, related\tall\tof an idle node\tmedia again\theal\tnever\t\n")
	for _, f := range all {
		line("%dx%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", f.clusters, f.perCluster, f.streams,
			f.publish, f.move, f.drain, f.related, f.all, f.idle, f.again, f.heal, f.unaware)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	line("\nWhat one node sends and needs. Wire: with gRPC, HTTP/2, TLS, TCP and IP, and an acknowledgement for each frame. The\n" +
		"processor's share is that of catalogue, planner and claims, and of the simulation; not that of the network.\n")
	line("mesh\tstreams\trelays\tframes/s\tkB/s\ton the wire\tchurn\ton the wire\tcore at rest\tchurn\tcatalogue\tand sets by peer\t\n")
	for _, f := range all {
		line("%dx%d\t%d\t%d\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%.2f %%\t%.2f %%\t%.1f MB\t%.1f MB\t\n",
			f.clusters, f.perCluster, f.streams, f.relays/(f.clusters*f.perCluster),
			f.atRest.frames, f.atRest.payload/1e3, f.atRest.wire/1e3, f.inChurn.payload/1e3, f.inChurn.wire/1e3,
			100*f.atRest.cpu, 100*f.inChurn.cpu, float64(f.catalogue)/1e6, float64(f.sets)/1e6)
	}
	return table.Flush()
}

func (s sample) String() string {
	if len(s) == 0 {
		return "-"
	}
	return fmt.Sprintf("%d/%d", s.at(0.5).Milliseconds(), s.at(0.99).Milliseconds())
}
