//go:build linux

package main

import (
	"context"
	"errors"
	"os"
	"time"
)

// deed is what was done. Viewers of the pods that were hit have sessions of their own to lose.
type deed struct {
	what string
	hit  []*pod
}

func (d deed) String() string {
	for i, p := range d.hit {
		if i == 0 {
			d.what += ":"
		}
		d.what += " " + p.name
	}
	return d.what
}

// deeds are what a step can do; each says what it did, and returns when all processes run again.
var deeds = []func(context.Context, *soak) (deed, error){
	killParent, killParent, killSidecar, killSidecar, killServer, killServer, killPod, killWithState, killAtOnce, freeze,
	publisherReturns, publisherReturns, publisherMoves, restart,
}

func (s *soak) anyPod() *pod { return s.pods[s.random.IntN(len(s.pods))] }

// parent is a pod that has children now, and is not the origin; any pod, where there is none.
func (s *soak) parent(ctx context.Context) *pod {
	var parents []*pod
	for _, p := range s.pods {
		st, err := p.status(ctx)
		if err != nil {
			continue
		}
		for _, r := range st.Relays {
			for _, q := range s.pods {
				if q.name == r.Parent && q != s.source.pod {
					parents = append(parents, q)
				}
			}
		}
	}
	i := s.random.IntN(1 << 20)
	if len(parents) == 0 {
		return s.pods[i%len(s.pods)]
	}
	return parents[i%len(parents)]
}

// away is for how long something stays dead.
func (s *soak) away(ctx context.Context) {
	if s.random.IntN(2) == 0 {
		s.pause(ctx, 0, 200*time.Millisecond)
		return
	}
	s.pause(ctx, 200*time.Millisecond, 8*time.Second)
}

func killParent(ctx context.Context, s *soak) (deed, error) {
	p := s.parent(ctx)
	p.sidecar.kill()
	p.server.kill()
	s.away(ctx)
	return deed{"kill parent", []*pod{p}}, errors.Join(p.server.start(), p.sidecar.start())
}

func killSidecar(ctx context.Context, s *soak) (deed, error) {
	p := s.anyPod()
	p.sidecar.kill()
	s.away(ctx)
	return deed{"kill sidecar", []*pod{p}}, p.sidecar.start()
}

func killServer(ctx context.Context, s *soak) (deed, error) {
	p := s.anyPod()
	p.server.kill()
	s.away(ctx)
	return deed{"kill server", []*pod{p}}, p.server.start()
}

func killPod(ctx context.Context, s *soak) (deed, error) {
	p := s.anyPod()
	p.server.kill()
	p.sidecar.kill()
	s.away(ctx)
	// In whichever order they come up.
	if s.random.IntN(2) == 0 {
		return deed{"kill pod", []*pod{p}}, errors.Join(p.server.start(), p.sidecar.start())
	}
	err := p.sidecar.start()
	s.pause(ctx, 0, 2*time.Second)
	return deed{"kill pod", []*pod{p}}, errors.Join(err, p.server.start())
}

func killWithState(ctx context.Context, s *soak) (deed, error) {
	p := s.anyPod()
	p.sidecar.kill()
	what, err := "lose state", os.Remove(p.state)
	if s.random.IntN(2) == 0 {
		what, err = "break state", os.WriteFile(p.state, []byte(`{"node":"`), 0o600)
	}
	s.away(ctx)
	return deed{what, []*pod{p}}, errors.Join(err, p.sidecar.start())
}

// killAtOnce kills several sidecars, and perhaps the publisher with them.
func killAtOnce(ctx context.Context, s *soak) (deed, error) {
	var killed []*pod
	for _, p := range s.pods {
		if s.random.IntN(2) == 0 {
			p.sidecar.kill()
			killed = append(killed, p)
		}
	}
	s.away(ctx)
	var err error
	for _, p := range killed {
		err = errors.Join(err, p.sidecar.start())
	}
	return deed{"kill many", killed}, err
}

// freeze lets a sidecar stand still for so long that all others give it up.
func freeze(ctx context.Context, s *soak) (deed, error) {
	p := s.anyPod()
	p.sidecar.freeze(ctx, time.Second+time.Duration(s.random.Int64N(int64(4*time.Second))))
	return deed{"freeze sidecar", []*pod{p}}, nil
}

func publisherReturns(ctx context.Context, s *soak) (deed, error) {
	p := s.source.pod
	s.source.stop()
	s.away(ctx)
	s.source.start(p)
	return deed{"publisher returns", []*pod{p}}, nil
}

func publisherMoves(ctx context.Context, s *soak) (deed, error) {
	s.source.stop()
	s.away(ctx)
	p := s.anyPod()
	s.source.start(p)
	return deed{"publisher moves", []*pod{p}}, nil
}

// restart ends a sidecar in order.
func restart(ctx context.Context, s *soak) (deed, error) {
	p := s.anyPod()
	p.sidecar.end()
	s.away(ctx)
	return deed{"restart sidecar", []*pod{p}}, p.sidecar.start()
}
