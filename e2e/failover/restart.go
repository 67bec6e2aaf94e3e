//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// restarts are what became of a sidecar that was killed and started again, beside a media server that lived on.
type restarts struct {
	took    []time.Duration // from the start of the process to new media at a viewer who comes again and again
	orphans int             // times that the server had anything but one publication of the new process
	twice   int             // times that the origin still had two readers when ten seconds had passed
}

func (r restarts) print(w io.Writer, rtt time.Duration) {
	if len(r.took) == 0 {
		return
	}
	slices.Sort(r.took)
	at := func(part int) time.Duration {
		return r.took[min(len(r.took)*part/100, len(r.took)-1)].Round(time.Millisecond)
	}
	fmt.Fprintf(w, "%9s %7s %7s %7s %7s %9d %11d\n", rtt, at(50), at(95), at(100), at(0), r.orphans, r.twice)
}

// measureRestarts prints a row for each round trip.
func measureRestarts(ctx context.Context, out io.Writer, binary, trips string, kills int, seed uint64, loss float64) error {
	fmt.Fprintf(out, "Until media flows again when a sidecar that was killed is started again, %d kills each.\n\n", kills)
	fmt.Fprintf(out, "%9s %7s %7s %7s %7s %9s %11s\n", "rtt", "p50", "p95", "max", "min", "orphans", "two copies")
	for field := range strings.SplitSeq(trips, ",") {
		rtt, err := time.ParseDuration(strings.TrimSpace(field))
		if err != nil {
			return fmt.Errorf("-rtt: %w", err)
		}
		b := &bench{binary: binary, random: rand.New(rand.NewPCG(seed, uint64(rtt))), rtt: rtt, loss: loss}
		result, err := b.restart(ctx, kills)
		if err != nil {
			return fmt.Errorf("sidecar killed at %s: %w", rtt, err)
		}
		result.print(out, rtt)
	}
	return nil
}

// restart kills the sidecar of a relaying node again and again, whose media server is a process of its own, and starts it again.
func (b *bench) restart(ctx context.Context, kills int) (r restarts, err error) {
	network := wan.NewNetwork()
	var ending sync.WaitGroup
	defer ending.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ending.Go(func() { _ = network.Run(ctx) })
	if b.dir, err = os.MkdirTemp("", "sidestream-failover-"); err != nil {
		return r, err
	}
	defer os.RemoveAll(b.dir) //nolint:errcheck // best effort
	var hosts []*wan.Host
	for _, name := range []string{"origin", "near"} {
		h, err := network.Host(name)
		if err != nil {
			return r, err
		}
		defer h.Close() //nolint:errcheck // the process's end ends it too
		hosts = append(hosts, h)
	}
	origin, near := hosts[0], hosts[1]
	origin.Join(near, wan.NewLink(1, wan.Params{Delay: b.rtt / 2, Loss: b.loss}))
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
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
	server := fmt.Sprintf("http://%s:8800", near.IPv4)
	sidecar := func() (*process, error) {
		env := append(b.environment(near, "near", hosts), "SIDESTREAM_ADAPTER_URL="+server)
		return begin(near, env, b.binary, "run")
	}
	if _, err := begin(origin, b.environment(origin, "far", hosts), b.binary, "run"); err != nil {
		return r, err
	}
	if _, err := begin(near, b.environment(near, "near", hosts), b.binary, "sfu"); err != nil {
		return r, err
	}
	node, err := sidecar()
	if err != nil {
		return r, err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return r, err
	}
	if _, err := begin(origin, nil, self, "-role", "publish", address(origin)+"/whip/show"); err != nil {
		return r, err
	}
	p, err := begin(near, nil, self, "-role", "replay", address(near)+"/whep/show")
	if err != nil {
		return r, err
	}
	view := &viewer{process: p, lines: bufio.NewScanner(p.out)}
	before, err := view.flowing(ctx)
	if err != nil {
		return r, err
	}
	session := ""
	for range kills {
		if err := pause(ctx, time.Second+time.Duration(b.random.IntN(1000))*time.Millisecond); err != nil {
			return r, err
		}
		if before, err = view.report(false); err != nil {
			return r, err
		}
		node.kill()
		if err := pause(ctx, time.Duration(b.random.IntN(3000))*time.Millisecond); err != nil {
			return r, err
		}
		began := time.Now()
		if node, err = sidecar(); err != nil {
			return r, err
		}
		// The server may show what it has of the publication that ended: only what was sent later counts.
		missed := uint64(time.Since(began)/(time.Second/30)) + 1
		after := before
		for after.Last <= before.Last+missed {
			if time.Since(began) > 20*time.Second {
				return r, errors.New("no media within 20 s after the sidecar was started again")
			}
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				return r, err
			}
			if after, err = view.report(false); err != nil {
				return r, err
			}
		}
		r.took = append(r.took, time.Since(began))
		published, err := b.streams(begin, near, self, server)
		if err != nil {
			return r, err
		}
		if len(published) != 1 || published[0].Session == session || !published[0].Relayed {
			r.orphans++
		} else {
			session = published[0].Session
		}
		if err := pause(ctx, 10*time.Second-min(time.Since(began), 10*time.Second)); err != nil {
			return r, err
		}
		if published, err = b.streams(begin, origin, self, fmt.Sprintf("http://%s:8800", origin.IPv4)); err != nil {
			return r, err
		}
		if len(published) != 1 || published[0].Readers != 1 {
			r.twice++
		}
	}
	return r, nil
}

// published is what a built-in media server says of a stream.
type published struct {
	Session string
	Readers int
	Relayed bool
}

// streams asks a media server within its host.
func (b *bench) streams(
	begin func(*wan.Host, []string, string, ...string) (*process, error), h *wan.Host, self, server string,
) ([]published, error) {
	p, err := begin(h, nil, self, "-role", "get", server+"/api/streams")
	if err != nil {
		return nil, err
	}
	var list struct{ Streams []published }
	err = json.NewDecoder(p.out).Decode(&list)
	p.kill()
	return list.Streams, err
}

// fetch is the role "get".
func fetch(ctx context.Context, at string, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	_, err = io.Copy(out, resp.Body)
	return err
}

// replay is the role "replay": it plays again whenever its session ends, and answers each line on stdin by a report of the session
// that there is.
func replay(ctx context.Context, at string, stdin io.Reader, stdout io.Writer) error {
	from, client, err := endpoint(at)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	current := player.New(client)
	var playing sync.WaitGroup
	defer playing.Wait()
	defer cancel()
	playing.Go(func() {
		for ctx.Err() == nil {
			playOnce(ctx, current, from)
			_ = pause(ctx, 50*time.Millisecond)
			mu.Lock()
			current = player.New(client)
			mu.Unlock()
		}
	})
	reports := json.NewEncoder(stdout)
	for lines := bufio.NewScanner(stdin); lines.Scan(); {
		mu.Lock()
		p := current
		mu.Unlock()
		if err := reports.Encode(p.Report()); err != nil {
			return err
		}
	}
	return nil
}

// playOnce plays until the session ends, or nothing comes for two seconds: a viewer presses the button again then.
func playOnce(ctx context.Context, p *player.Player, from adapters.Endpoint) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		for frames := -1; ; {
			if pause(ctx, 2*time.Second) != nil {
				return
			}
			now := p.Report().Frames
			if now == frames {
				cancel()
				return
			}
			frames = now
		}
	})
	_ = p.Run(ctx, from)
}
