//go:build linux

// Command failover measures how long a viewer's picture stands still when the node that its server has the stream from is
// killed: three sidecars as processes in network namespaces, an origin far away and two nodes of one cluster, each with a
// viewer. Again and again the one that pulls for the cluster is killed with SIGKILL, and the other one's viewer is watched. Then a
// sidecar alone is killed, whose media server goes on, and it is told when media is back once it has been started again.
// It is what `make bench-failover` runs, as root; nothing is asserted, figures are printed.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("failover", flag.ContinueOnError)
	binary := flags.String("binary", "bin/sidestream", "the program to measure")
	kills := flags.Int("kills", 20, "for each round trip")
	trips := flags.String("rtt", "40ms,200ms", "round trips between origin and cluster")
	loss := flags.Float64("loss", 0, "percent of packets lost between them")
	standby := flags.String("standby", "off,on", "without and with warm standby")
	seed := flags.Uint64("seed", 1, "of losses and of the times of kills")
	restarts := flags.Bool("restarts", false, "only kill sidecars whose media server goes on")
	role := flags.String("role", "", "for the bench itself: \"publish\", \"play\", \"replay\" or \"get\" at the URL that follows")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch *role {
	case "publish":
		return publish(ctx, flags.Arg(0))
	case "play":
		return play(ctx, flags.Arg(0), stdin, stdout)
	case "replay":
		return replay(ctx, flags.Arg(0), stdin, stdout)
	case "get":
		return fetch(ctx, flags.Arg(0), stdout)
	}
	if err := wan.Realtime(true); err != nil {
		fmt.Fprintln(stdout, "Delays will be exact only on a machine with time to spare:", err)
	}
	defer wan.Realtime(false) //nolint:errcheck // the end
	if *restarts {
		return measureRestarts(ctx, stdout, *binary, *trips, *kills, *seed, *loss/100)
	}
	fmt.Fprintf(stdout, "Freeze at a viewer whose parent node is killed, %d kills each.\n\n", *kills)
	fmt.Fprintf(stdout, "%9s %7s %7s %7s %7s %7s %14s %9s\n",
		"rtt", "standby", "p50", "p95", "max", "min", "missing frames", "sessions")
	for field := range strings.SplitSeq(*trips, ",") {
		rtt, err := time.ParseDuration(strings.TrimSpace(field))
		if err != nil {
			return fmt.Errorf("-rtt: %w", err)
		}
		for warm := range strings.SplitSeq(*standby, ",") {
			b := &bench{
				binary: *binary, random: rand.New(rand.NewPCG(*seed, uint64(rtt))), rtt: rtt, loss: *loss / 100, warm: warm == "on",
			}
			result, err := b.run(ctx, *kills)
			if err != nil {
				return fmt.Errorf("at %s, standby %s: %w", rtt, warm, err)
			}
			result.print(stdout, rtt, warm)
		}
	}
	fmt.Fprintln(stdout)
	return measureRestarts(ctx, stdout, *binary, *trips, *kills, *seed, *loss/100)
}

// freezes are what the viewers saw.
type freezes struct {
	longest []time.Duration
	missing []int
	lost    int // viewers whose session ended
}

func (f freezes) print(w io.Writer, rtt time.Duration, warm string) {
	if len(f.longest) == 0 {
		return
	}
	slices.Sort(f.longest)
	slices.Sort(f.missing)
	at := func(part int) time.Duration {
		return f.longest[min(len(f.longest)*part/100, len(f.longest)-1)].Round(time.Millisecond)
	}
	fmt.Fprintf(w, "%9s %7s %7s %7s %7s %7s %6d, max %3d %9s\n", rtt, warm, at(50), at(95), at(100), at(0),
		f.missing[len(f.missing)/2], f.missing[len(f.missing)-1], fmt.Sprintf("%d lost", f.lost))
}

type bench struct {
	binary string
	random *rand.Rand
	rtt    time.Duration
	loss   float64
	warm   bool // with a second copy
	dir    string
}

// member is a node of the cluster with its viewer.
type member struct {
	host *wan.Host
	node *process
	view *viewer
}

func (b *bench) run(ctx context.Context, kills int) (f freezes, err error) {
	network := wan.NewNetwork()
	var ending sync.WaitGroup
	defer ending.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ending.Go(func() { _ = network.Run(ctx) })
	if b.dir, err = os.MkdirTemp("", "sidestream-failover-"); err != nil {
		return f, err
	}
	defer os.RemoveAll(b.dir) //nolint:errcheck // best effort

	var hosts []*wan.Host
	for _, name := range []string{"origin", "near-1", "near-2"} {
		h, err := network.Host(name)
		if err != nil {
			return f, err
		}
		defer h.Close() //nolint:errcheck // the process's end ends it too
		hosts = append(hosts, h)
	}
	far := wan.Params{Delay: b.rtt / 2, Loss: b.loss}
	for i, near := range hosts[1:] {
		hosts[0].Join(near, wan.NewLink(uint64(i+1), far))
	}
	hosts[1].Join(hosts[2], wan.NewLink(9, wan.Params{Delay: 500 * time.Microsecond}))

	var running []*process
	defer func() {
		for _, p := range running {
			p.kill()
		}
	}()
	begin := func(h *wan.Host, env []string, name string, args ...string) (*process, error) {
		p, err := start(h, env, filepath.Join(b.dir, "log"), name, args...)
		if err == nil {
			running = append(running, p)
		}
		return p, err
	}
	self, err := os.Executable()
	if err != nil {
		return f, err
	}
	node := func(h *wan.Host, cluster string) (*process, error) {
		return begin(h, b.environment(h, cluster, hosts), b.binary, "run")
	}
	if _, err := node(hosts[0], "far"); err != nil {
		return f, err
	}
	members := []*member{{host: hosts[1]}, {host: hosts[2]}}
	for _, m := range members {
		if m.node, err = node(m.host, "near"); err != nil {
			return f, err
		}
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return f, err
	}
	if _, err := begin(hosts[0], nil, self, "-role", "publish", address(hosts[0])+"/whip/show"); err != nil {
		return f, err
	}
	watch := func(m *member) error {
		p, err := begin(m.host, nil, self, "-role", "play", address(m.host)+"/whep/show")
		if err != nil {
			return err
		}
		m.view = &viewer{process: p, lines: bufio.NewScanner(p.out)}
		_, err = m.view.flowing(ctx)
		return err
	}
	for _, m := range members {
		if err := watch(m); err != nil {
			return f, err
		}
	}
	for range kills {
		// The heartbeats' phase is part of the answer.
		settle := 2 * time.Second
		if b.warm {
			settle += 3 * time.Second // until the second copy is there
		}
		if err := pause(ctx, settle+time.Duration(b.random.IntN(1000))*time.Millisecond); err != nil {
			return f, err
		}
		parent, child := members[0], members[1]
		before, err := child.view.report(true)
		if err != nil {
			return f, err
		}
		parent.node.kill()
		parent.view.kill()
		if err := pause(ctx, 5*time.Second); err != nil {
			return f, err
		}
		after, err := child.view.report(false)
		if err != nil || after.Last == before.Last {
			f.lost++
			child.view.kill()
			if err := watch(child); err != nil {
				return f, err
			}
		} else {
			f.longest, f.missing = append(f.longest, after.Freeze), append(f.missing, after.Missing-before.Missing)
		}
		if parent.node, err = node(parent.host, "near"); err != nil {
			return f, err
		}
		if err := watch(parent); err != nil {
			return f, err
		}
		slices.Reverse(members)
	}
	return f, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func address(h *wan.Host) string { return fmt.Sprintf("http://%s:18080", h.IPv4) }

func (b *bench) environment(h *wan.Host, cluster string, hosts []*wan.Host) []string {
	var peers []string
	for _, other := range hosts {
		if other != h {
			peers = append(peers, fmt.Sprintf("%s:18443", other.IPv4))
		}
	}
	standby := ""
	if b.warm {
		standby = "*"
	}
	return []string{
		"SIDESTREAM_RELAY_STANDBY=" + standby,
		"SIDESTREAM_CLUSTER=" + cluster,
		"SIDESTREAM_STATE_DIR=" + filepath.Join(b.dir, h.Name),
		"SIDESTREAM_PEER_SECURITY=plaintext",
		"SIDESTREAM_PEER_STATIC=" + strings.Join(peers, ","),
		fmt.Sprintf("SIDESTREAM_PEER_LISTEN=%s:18443", h.IPv4),
		fmt.Sprintf("SIDESTREAM_GATEWAY_LISTEN=%s:18080", h.IPv4),
		fmt.Sprintf("SIDESTREAM_ADMIN_LISTEN=%s:18090", h.IPv4),
		fmt.Sprintf("SIDESTREAM_SFU_LISTEN=%s:8800", h.IPv4),
		fmt.Sprintf("SIDESTREAM_SFU_MEDIA_LISTEN=%s:8801", h.IPv4),
	}
}

// process is a program in a host.
type process struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  io.ReadCloser
	once sync.Once
}

func start(h *wan.Host, env []string, log, name string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(name, args...)}
	p.cmd.Env = append(os.Environ(), env...)
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if len(args) > 0 && args[0] == "-role" {
		if p.out, err = p.cmd.StdoutPipe(); err != nil {
			return nil, err
		}
	}
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // the process has its own
	p.cmd.Stderr = file
	return p, h.Start(p.cmd)
}

// kill ends the process as a machine does that is switched off, but for its connections, which the kernel closes.
func (p *process) kill() {
	p.once.Do(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
}

// viewer is a process of the role "play".
type viewer struct {
	*process
	lines *bufio.Scanner
}

// report asks what the viewer saw. With forget, the longest freeze is measured anew from now on.
func (v *viewer) report(forget bool) (r player.Report, err error) {
	if _, err := fmt.Fprintln(v.in, forget); err != nil {
		return r, err
	}
	if !v.lines.Scan() {
		return r, errors.New("the viewer has ended")
	}
	return r, json.Unmarshal(v.lines.Bytes(), &r)
}

// flowing waits until a second of video has come.
func (v *viewer) flowing(ctx context.Context) (r player.Report, err error) {
	deadline := time.Now().Add(20 * time.Second)
	for r.Stamped < 30 {
		if r, err = v.report(false); err != nil {
			return r, err
		}
		if time.Now().After(deadline) {
			return r, errors.New("nothing comes to a viewer within 20 s")
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return r, err
		}
	}
	return r, nil
}

func endpoint(at string) (adapters.Endpoint, *whip.Client, error) {
	u, err := url.Parse(at)
	return adapters.Endpoint{URL: u}, &whip.Client{NewPeerConnection: media.Transport{}.NewPeerConnection}, err
}

func publish(ctx context.Context, at string) error {
	to, client, err := endpoint(at)
	if err != nil {
		return err
	}
	source, err := testsource.New(testsource.Options{Bitrate: 2_000_000})
	if err != nil {
		return err
	}
	return source.Publish(ctx, client, to)
}

// play answers each line on stdin by a report.
func play(ctx context.Context, at string, stdin io.Reader, stdout io.Writer) error {
	from, client, err := endpoint(at)
	if err != nil {
		return err
	}
	p := player.New(client)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- retry(ctx, p, from) }()
	reports := json.NewEncoder(stdout)
	for lines := bufio.NewScanner(stdin); lines.Scan(); {
		select {
		case err := <-done:
			return err
		default:
		}
		if err := reports.Encode(p.Report()); err != nil {
			return err
		}
		if lines.Text() == "true" {
			p.Forget()
		}
	}
	cancel()
	return <-done
}

// retry plays until a session has been opened and has ended.
func retry(ctx context.Context, p *player.Player, from adapters.Endpoint) error {
	for {
		err := p.Run(ctx, from)
		if p.Report().Location != "" || ctx.Err() != nil {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}
