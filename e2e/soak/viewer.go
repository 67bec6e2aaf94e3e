//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

func newClient() *whip.Client {
	return &whip.Client{
		HTTP:              &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection,
	}
}

func endpoint(address string) adapters.Endpoint {
	u, _ := url.Parse(address) // one that this program has made
	return adapters.Endpoint{URL: u}
}

// viewer plays at a pod, and comes again when it is turned away or its session ends, as people do.
type viewer struct {
	pod    *pod
	cancel context.CancelFunc
	done   chan struct{}
	log    *slog.Logger

	mu      sync.Mutex
	past    int // frames of sessions that have ended
	current *player.Player
	opened  int
	err     error
	odd     []string
}

const comeAgain = 250 * time.Millisecond

func newViewer(p *pod, dir string) (*viewer, error) {
	file, err := os.Create(filepath.Join(dir, p.name+"-viewer.log"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	v := &viewer{pod: p, cancel: cancel, done: make(chan struct{}), log: slog.New(slog.NewTextHandler(file, nil))}
	go func() {
		defer close(v.done)
		defer file.Close() //nolint:errcheck // it tells what happened, and no more
		for ctx.Err() == nil {
			v.play(ctx)
			sleep(ctx, comeAgain)
		}
	}()
	return v, nil
}

func (v *viewer) play(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := player.New(newClient())
	v.mu.Lock()
	v.current = p
	v.mu.Unlock()
	v.log.Info("plays")
	// A picture that stands still for so long makes people press the button again.
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		for frames := -1; ; {
			sleep(ctx, 15*time.Second)
			now := p.Report().Frames
			if ctx.Err() != nil || now == frames {
				cancel()
				return
			}
			frames = now
		}
	}()
	err := p.Run(ctx, endpoint(v.pod.url+"/whep/"+stream))
	cancel()
	<-stuck
	v.mu.Lock()
	defer v.mu.Unlock()
	r := p.Report()
	if r.Location != "" {
		v.opened++
	}
	v.past, v.current, v.err = v.past+r.Frames, nil, err
	v.log.Info("played", "session", r.Location, "frames", r.Frames, "connected", r.Connected, "first", r.FirstFrame, "error", err)
	if refused, ok := errors.AsType[*whip.StatusError](err); ok {
		switch refused.Code {
		case http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable:
		case http.StatusBadGateway: // the media server does not run
			if refused.RetryAfter == 0 {
				v.odd = append(v.odd, err.Error())
			}
		default:
			v.odd = append(v.odd, err.Error())
		}
	}
}

// frames counts those of all sessions.
func (v *viewer) frames() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.current == nil {
		return v.past
	}
	return v.past + v.current.Report().Frames
}

// mark notes when so many frames have come, in the background.
func (v *viewer) mark(ctx context.Context, frames int) (marked <-chan time.Time) {
	at := make(chan time.Time, 1)
	go func() {
		defer close(at)
		for v.frames() < frames {
			if ctx.Err() != nil {
				return
			}
			sleep(ctx, 50*time.Millisecond)
		}
		at <- time.Now()
	}()
	return at
}

func (v *viewer) sessions() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.opened
}

// playing says whether the viewer has a session now.
func (v *viewer) playing() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current != nil && v.current.Report().Connected > 0
}

// last is how the last session ended.
func (v *viewer) last() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return fmt.Sprintf("its last session: %v", v.err)
}

// oddities are what it was told that it should not have been, since the last call.
func (v *viewer) oddities() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	odd := v.odd
	v.odd = nil
	return odd
}

func (v *viewer) stop() {
	v.cancel()
	<-v.done
}

// publisher sends the test clip to one pod at a time, and comes again when its session ends.
type publisher struct {
	pod    *pod // nil: to none
	cancel context.CancelFunc
	done   chan struct{}
}

func newPublisher() *publisher { return &publisher{} }

func (p *publisher) start(to *pod) {
	ctx, cancel := context.WithCancel(context.Background())
	p.pod, p.cancel, p.done = to, cancel, make(chan struct{})
	go func() {
		defer close(p.done)
		for ctx.Err() == nil {
			source, err := testsource.New(testsource.Options{})
			if err == nil {
				_ = source.Publish(ctx, newClient(), endpoint(to.url+"/whip/"+stream))
			}
			sleep(ctx, comeAgain)
		}
	}()
}

func (p *publisher) stop() {
	if p.pod != nil {
		p.cancel()
		<-p.done
		p.pod = nil
	}
}
