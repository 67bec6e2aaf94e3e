//go:build linux

package world

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// pods are two in each region.
func (w *world) pods() (all []*pod) {
	w.Helper()
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, r := range w.regions {
		for _, name := range []string{"sfu-0", "sfu-1"} {
			group.Go(func() {
				p := r.run(name)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, p)
			})
		}
	}
	group.Wait()
	if w.Failed() {
		w.FailNow()
	}
	w.connected(all...)
	return all
}

// holder is the pod whose server has the publisher.
func (w *world) holder(pods []*pod) (origin *pod) {
	w.Helper()
	w.poll("the stream is published and known everywhere", func(ctx context.Context) error {
		for _, p := range pods {
			streams, err := p.published(ctx)
			if err != nil {
				return err
			}
			if len(streams) == 1 && !streams[0].Relayed {
				origin = p
			}
		}
		if origin == nil {
			return errors.New("no server has it")
		}
		for _, p := range pods {
			if st, err := p.node(ctx); err != nil || len(st.Streams) != 1 {
				return errors.Join(err, errors.New(p.name+" in "+p.Name+" does not know it"))
			}
		}
		return nil
	})
	return origin
}

// rates are the bytes a second that come into each region, over a while.
func (w *world) rates(d time.Duration) map[string]float64 {
	before := map[string]uint64{}
	for name := range w.regions {
		before[name] = w.into(name)
	}
	began := time.Now()
	select {
	case <-w.Context().Done():
	case <-time.After(d):
	}
	rates := map[string]float64{}
	for name := range w.regions {
		rates[name] = float64(w.into(name)-before[name]) / time.Since(began).Seconds()
	}
	return rates
}

// What is published in Singapore is played in Germany and in the west of the United States: it crosses once for each, however many
// watch at however many pods, and not at all while nobody does.
func TestOnDemand(t *testing.T) {
	w := newWorld(t)
	pods := w.pods()
	source, _ := w.regions[singapore].publish()
	origin := w.holder(pods)
	if origin.Name != singapore {
		t.Fatalf("the publisher is in %s", origin.Name)
	}

	const quiet = 5_000 // bytes a second of heartbeats and news among six pods, at most
	idle := w.rates(3 * time.Second)
	for name, rate := range idle {
		if rate > quiet {
			t.Errorf("nobody watches, and %.0f bytes a second come into %s", rate, name)
		}
	}
	t.Logf("nobody watches: bytes a second into %v", rounded(idle))

	var viewers []*viewer
	for _, name := range []string{germany, usWest, singapore} {
		for i := range 4 {
			viewers = append(viewers, w.regions[name].watch(i))
		}
	}
	for _, v := range viewers {
		v.frames(60)
	}
	began := time.Now()
	rested := w.rest("all watch", origin, viewers, pods...)
	if rested > 5*time.Second {
		t.Errorf("a region had two copies for %v", rested)
	}
	sent, since := source.Stats().Bytes, time.Now()
	rates := w.rates(5 * time.Second)
	one := float64(source.Stats().Bytes-sent) / time.Since(since).Seconds()
	t.Logf("one copy at rest %v after the last viewer had seen two seconds; a copy has %.0f bytes a second, into regions come %v",
		rested.Round(10*time.Millisecond), one, rounded(rates))
	for name, rate := range rates {
		if name == singapore {
			continue // reports of those who receive come back here
		}
		if rate < one*0.9 || rate > one*1.5 {
			t.Errorf("%.1f copies come into %s", rate/one, name)
		}
	}
	for _, v := range viewers {
		v.frames(60)
		if s := v.Seen(); s.Missing > 0 || s.Repeated > 0 || s.Sessions != 1 {
			t.Errorf("a viewer in %s misses %d frames, had %d twice, in %d sessions", v.Name, s.Missing, s.Repeated, s.Sessions)
		}
	}
	t.Logf("in %v twelve viewers saw all frames, of an age of %v in germany", time.Since(began).Round(time.Second), viewers[0].Seen().Age.Round(time.Millisecond))

	for _, v := range viewers {
		v.leave()
	}
	w.rest("all have left", origin, nil, pods...)
	idle = w.rates(3 * time.Second)
	for name, rate := range idle {
		if rate > quiet {
			t.Errorf("all have left, and %.0f bytes a second come into %s", rate, name)
		}
	}
	t.Logf("all have left: bytes a second into %v", rounded(idle))
}

func rounded(rates map[string]float64) map[string]int {
	out := map[string]int{}
	for name, rate := range rates {
		out[name] = int(rate)
	}
	return out
}
