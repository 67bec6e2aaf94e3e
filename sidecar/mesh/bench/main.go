// Command bench measures what a mesh of many nodes costs one sidecar, and how fast news travels in it. It is what
// `make bench-mesh` runs; nothing is asserted, figures are printed. It needs Linux, for its /proc.
//
// Two real sidecars are measured side by side, each as a process of its own: one with the built-in media server, idle, in
// its process, and one beside a media server elsewhere, which the bench plays, with its share of the streams. They do not
// know each other. All other nodes are meshes with their catalogues in the bench's own process: real ones, over TCP and
// mutual TLS on loopback, with distance between their clusters (e2e/wan). In large meshes only some of them, the
// watchers, are connected with everyone, the others with the watchers and the two sidecars: a process cannot hold both
// ends of 45,000 connections. For the two that are measured it makes no difference.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// options say what is measured.
type options struct {
	streams  int           // in the mesh, whatever its size
	rest     time.Duration // windows of measuring
	churn    time.Duration
	rate     int           // publications that come and go each second
	distance time.Duration // one way, for each step from cluster to cluster
	crashes  int           // of each kind, at once
	watchers int           // 0: a full mesh up to 64 nodes, 12 beyond
	binary   string        // the sidecar
	profiles string        // a directory for the sidecars' profiles; "": none
	dir      string        // for certificates and state
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var o options
	nodes := flags.String("nodes", "50,100,300", "sizes of the mesh to measure at")
	flags.IntVar(&o.streams, "streams", 2000, "streams in the mesh")
	flags.DurationVar(&o.rest, "rest", 15*time.Second, "time of measuring at rest")
	flags.DurationVar(&o.churn, "churn", 10*time.Second, "time of measuring while publications come and go")
	flags.IntVar(&o.rate, "rate", 10, "publications that come and go each second, in the whole mesh")
	flags.DurationVar(&o.distance, "distance", 20*time.Millisecond, "one way, for each step on the ring of clusters; 0: none")
	flags.IntVar(&o.crashes, "crashes", 3, "nodes that crash with children, and without; 0: no crashes, drains and departures")
	flags.IntVar(&o.watchers, "watchers", 0, "nodes of the bench that are connected with everyone; 0: all in small meshes, else 12")
	flags.StringVar(&o.binary, "binary", "", "the sidecar; built if not given")
	flags.StringVar(&o.profiles, "profiles", "", "write profiles of the sidecars to this directory; costs them CPU time")
	asJSON := flags.Bool("json", false, "print JSON")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	var sizes []int
	for field := range strings.SplitSeq(*nodes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if least := 2*max(o.crashes, 0) + 4; err != nil || n < least {
			return fmt.Errorf("-nodes %q: not a list of numbers, each at least %d", *nodes, least)
		}
		sizes = append(sizes, n)
	}
	if o.streams < 1 || o.rate < 1 || o.rest <= 0 || o.churn <= 0 || o.distance < 0 || o.crashes < 0 || o.watchers < 0 {
		return errors.New("-streams, -rate, -rest and -churn must be positive, -distance, -crashes and -watchers not negative")
	}

	dir, err := os.MkdirTemp("", "sidestream-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.dir = dir
	if o.binary == "" {
		if o.binary, err = build(ctx, dir); err != nil {
			return err
		}
	}
	if o.profiles != "" {
		if err := os.MkdirAll(o.profiles, 0o755); err != nil {
			return err
		}
	}

	var results []Result
	for _, n := range sizes {
		r, err := measure(ctx, n, o)
		if err != nil {
			return fmt.Errorf("measure a mesh of %d nodes: %w", n, err)
		}
		results = append(results, r)
		if !*asJSON {
			fmt.Fprint(stdout, r)
		}
	}
	if *asJSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(results)
	}
	fmt.Fprint(stdout, footer)
	return nil
}

// build makes the sidecar as it is in the image.
func build(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "sidestream")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary,
		"github.com/sidestream-dev/sidestream/sidecar")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the sidecar: %w\n%s", err, out)
	}
	return binary, nil
}
