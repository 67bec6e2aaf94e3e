package main

import (
	"flag"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	only  = flag.Uint64("seed", 0, "of the one history to repeat; 0: all")
	count = flag.Int("histories", 10_000, "how many to try")
)

// TestHistories lets random things happen to random worlds. A seed repeats one.
func TestHistories(t *testing.T) {
	if *only != 0 {
		report(t, *only)
		return
	}
	histories := uint64(*count)
	if testing.Short() {
		histories /= 20
	}
	var next, failed, loops, loopy atomic.Uint64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				seed := next.Add(1)
				if seed > histories || failed.Load() > 0 {
					return
				}
				w, err := playHistory(seed, false)
				loops.Add(uint64(w.watch.loopsN))
				if w.watch.loopsN > 0 {
					loopy.Store(seed)
				}
				if err != nil {
					t.Errorf("seed %d: %v", seed, err)
					failed.CompareAndSwap(0, seed)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("loops %d, %d", loops.Load(), loopy.Load())
	if seed := failed.Load(); seed != 0 {
		report(t, seed)
	}
}

func report(t *testing.T, seed uint64) {
	w, err := playHistory(seed, true)
	if err == nil {
		t.Logf("seed %d: came to rest after %s", seed, w.now)
		return
	}
	t.Fatalf("seed %d: %v\n%s", seed, err, w.dump())
}
