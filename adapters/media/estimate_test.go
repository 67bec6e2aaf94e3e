package media

import (
	"math/rand/v2"
	"testing"
	"time"
)

// path is a link that carries so many bits a second, with a queue before it.
type path struct {
	bits   float64
	queue  time.Duration // longest
	delay  time.Duration
	jitter time.Duration
	loss   float64
	busy   time.Duration
}

// pass says when a packet comes out, false for never.
func (p *path) pass(random *rand.Rand, at time.Duration, bytes int) (time.Duration, bool) {
	p.busy = max(p.busy, at)
	if p.busy-at > p.queue || random.Float64() < p.loss {
		return 0, false
	}
	p.busy += time.Duration(float64(bytes*8) / p.bits * float64(time.Second))
	out := p.busy + p.delay
	if p.jitter > 0 {
		out += time.Duration(random.Int64N(int64(p.jitter)))
	}
	return out, true
}

// A path that is too narrow is noticed, and about how wide it is; one that is wide enough is not blamed, whatever else it does.
func TestEstimate(t *testing.T) {
	const second = 90000
	for name, test := range map[string]struct {
		path    path
		bits    float64 // sent
		keyEach int     // frames
		limited bool
		low     float64 // bounds of the estimate
		high    float64
	}{
		"wide": {path{bits: 10e6, queue: time.Second}, 2e6, 60, false, 2e6, 3.5e6},
		"wide, with jitter": {
			path{bits: 10e6, queue: time.Second, jitter: 8 * time.Millisecond}, 2e6, 60, false, 1.5e6, 3.5e6,
		},
		"wide, with one packet in fifty lost": {path{bits: 10e6, queue: time.Second, loss: 0.02}, 2e6, 60, false, 1.5e6, 3.5e6},
		"wide enough":                         {path{bits: 4e6, queue: time.Second}, 2e6, 60, false, 1.5e6, 3.5e6},
		"half too narrow":                     {path{bits: 1e6, queue: 300 * time.Millisecond}, 2e6, 60, true, 0.4e6, 1.1e6},
		"a little too narrow":                 {path{bits: 1.8e6, queue: time.Second}, 2e6, 60, true, 1.2e6, 2e6},
		"one packet in five lost":             {path{bits: 10e6, queue: time.Second, loss: 0.2}, 2e6, 60, true, 1e6, 1.9e6},
		"a queue without end":                 {path{bits: 1.6e6, queue: time.Hour}, 2e6, 60, true, 1e6, 1.7e6},
		"without a queue":                     {path{bits: 1e6, queue: 20 * time.Millisecond}, 2e6, 60, true, 0.3e6, 1.1e6},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(10) {
				random := rand.New(rand.NewPCG(seed, 3))
				link := test.path
				link.delay = 20 * time.Millisecond
				var e estimate
				base := random.Uint32()
				start := time.Unix(1_800_000_000, 0)
				var missed, came uint64
				limited := 0
				frames := 0
				var sum float64
				newest := time.Duration(0)
				for frame := range 30 * 20 {
					size := test.bits / 8 / 30 * (0.8 + 0.4*random.Float64())
					if frame%test.keyEach == 0 {
						size *= 4
					}
					at := time.Duration(frame) * time.Second / 30
					for ; size > 0; size -= 1200 {
						out, ok := link.pass(random, at, int(min(size, 1200)))
						at += 200 * time.Microsecond
						if !ok {
							missed++
							continue
						}
						came++
						newest = max(newest, out) // packets do not overtake one another here
						e.packet(start.Add(newest), base+uint32(frame)*(second/30), second, int(min(size, 1200)), missed, came)
					}
					if frame < 30*10 {
						continue
					}
					frames++
					bits, is := e.now(start.Add(newest))
					sum += float64(bits)
					if is {
						limited++
					}
				}
				if part := float64(limited) / float64(frames); test.limited && part < 0.9 || !test.limited && part > 0.05 {
					t.Errorf("seed %d: limited for %.0f %% of the time; want %t", seed, 100*part, test.limited)
				}
				if mean := sum / float64(frames); mean < test.low || mean > test.high {
					t.Errorf("seed %d: %.2f Mbit/s; want %.2f to %.2f", seed, mean/1e6, test.low/1e6, test.high/1e6)
				}
			}
		})
	}
}

func BenchmarkEstimate(b *testing.B) {
	b.ReportAllocs()
	var e estimate
	now := time.Unix(1_800_000_000, 0)
	for i := range b.N {
		now = now.Add(4 * time.Millisecond)
		e.packet(now, uint32(i/8)*3000, 90000, 1200, 0, uint64(i))
	}
}
