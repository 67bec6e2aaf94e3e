package main

import (
	"flag"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	only  = flag.Uint64("seed", 0, "of the one history to repeat; 0: all of them")
	count = flag.Uint64("histories", 10_000, "how many to try; a tenth of them with the race detector, a twentieth if short")
)

// TestHistories lets random things happen to random meshes and checks what must hold at all times, and when all is quiet
// again. To repeat one that failed: go test ./sidecar/relay/sim -run TestHistories -seed N.
func TestHistories(t *testing.T) {
	if *only != 0 {
		w, err := playHistory(*only, true)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", *only, err, w.dump())
		}
		t.Logf("seed %d: all holds, after %s", *only, w.now)
		return
	}
	histories := *count
	switch {
	case testing.Short():
		histories /= 20
	case race:
		histories /= 10
	}
	var next, failed, circles, events atomic.Uint64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for failed.Load() == 0 {
				seed := next.Add(1)
				if seed > histories {
					return
				}
				w, err := playHistory(seed, false)
				circles.Add(uint64(w.watch.circles))
				events.Add(w.planned)
				if err != nil {
					failed.CompareAndSwap(0, seed)
				}
			}
		})
	}
	wg.Wait()
	if seed := failed.Load(); seed != 0 {
		w, err := playHistory(seed, true)
		t.Fatalf("seed %d: %v\n%s", seed, err, w.dump())
	}
	t.Logf("%d histories of %d events; %d times nodes sent in a circle, for a moment", histories, events.Load(), circles.Load())
}

// TestSeedRepeats: the same seed makes the same history, else a failure could not be looked at.
func TestSeedRepeats(t *testing.T) {
	for seed := range uint64(20) {
		a, errA := playHistory(seed+1, false)
		b, errB := playHistory(seed+1, true)
		if a.now != b.now || a.planned != b.planned || a.session != b.session || (errA == nil) != (errB == nil) {
			t.Errorf("seed %d: %s, %d events; then %s, %d events", seed+1, a.now, a.planned, b.now, b.planned)
		}
	}
}

func millis(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func TestQueue(t *testing.T) {
	var q queue
	var got []int
	for i, at := range []int{5, 3, 9, 3, 1, 7, 3, 2, 8, 6, 4} {
		q.at(millis(at), func() { got = append(got, at*100+i) })
	}
	q.after(millis(4), func() { q.after(0, func() { got = append(got, -1) }) })
	q.run(millis(8))
	want := []int{104, 207, 301, 303, 306, 410, -1, 500, 609, 705, 808}
	if !slices.Equal(got, want) || q.now != millis(8) {
		t.Errorf("at %s: %v, want %v", q.now, got, want)
	}
	q.run(millis(20))
	if n := len(got); got[n-1] != 902 {
		t.Errorf("the last: %v", got)
	}
}

func TestAlarm(t *testing.T) {
	var q queue
	var a alarm
	rings := 0
	ring := func(at int) { a.ring(&q, millis(at), func() { rings++ }) }
	ring(9)
	ring(5) // sooner
	ring(7) // it rings before
	q.run(millis(6))
	if rings != 1 {
		t.Errorf("%d rings, want one", rings)
	}
	ring(9)
	q.run(millis(20))
	if rings != 2 {
		t.Errorf("%d rings, want two", rings)
	}
}
