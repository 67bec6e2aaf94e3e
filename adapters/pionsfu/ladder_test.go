package pionsfu

import (
	"testing"
	"time"
)

// stretch is a path of a known width that shows it only to who tries.
type stretch struct {
	bits, shows int64
	limited     bool
	probes      int
	running     bool
	sent        int
	deaf        bool // has no RTX
}

func (s *stretch) Bandwidth() (int64, bool) { return s.shows, s.limited }
func (s *stretch) BeginProbe()              { s.running, s.sent = true, 0 }

func (s *stretch) EndProbe() {
	s.running = false
	s.probes++
	if tried := int64(s.sent) * 8 * int64(time.Second) / int64(probeTime); tried <= s.bits {
		s.shows = max(s.shows, tried)
	}
}

func (s *stretch) Probe() int {
	if s.deaf {
		return 0
	}
	s.sent += 250
	return 250
}

// climb runs a ladder for a time, as a lane does, and gives the layer that it ends with.
func climb(l *ladder, p *stretch, layers []standing, have int, d time.Duration) (int, time.Duration) {
	now := time.Unix(1_800_000_000, 0)
	for end := now.Add(d); now.Before(end); now = now.Add(lookAgain) {
		room, _ := l.room(p, now)
		l.consider(layers, have, room, now)
		for at := now; l.goal > 0 && at.Before(now.Add(lookAgain)); at = at.Add(probeStep) {
			l.probe(p, at)
		}
		var limited bool
		room, limited = l.room(p, now)
		if to := choose(layers, have, "", room, limited); to != have {
			l.moved(layers[to].bits > layers[have].bits, now)
			have = to
			p.shows = layers[have].bits * 3 / 2 // what is sent bounds what is seen
			p.limited = layers[have].bits > p.bits
			if p.limited {
				p.shows = p.bits * 85 / 100
			}
		}
	}
	return have, now.Sub(time.Unix(1_800_000_000, 0))
}

func TestLadder(t *testing.T) {
	layers := []standing{{"l", true, 100_000}, {"m", true, 500_000}, {"h", true, 1_500_000}}
	for name, test := range map[string]struct {
		path   stretch
		ladder ladder
		have   int
		want   int
		least  int // probes
		most   int
	}{
		"never limited: the best, untried":    {stretch{bits: 1 << 30, shows: 150_000}, ladder{}, 0, 2, 0, 0},
		"nothing is known":                    {stretch{bits: 1 << 30}, ladder{}, 0, 2, 0, 0},
		"it was limited, and is wide":         {stretch{bits: 1 << 30, shows: 150_000}, ladder{narrow: true}, 0, 2, 2, 3},
		"there is room for the one between":   {stretch{bits: 1_000_000, shows: 150_000}, ladder{narrow: true}, 0, 1, 2, 12},
		"there is no room at all":             {stretch{bits: 200_000, shows: 150_000}, ladder{narrow: true}, 0, 0, 3, 12},
		"more was sent than came":             {stretch{bits: 800_000, shows: 700_000, limited: true}, ladder{}, 2, 1, 1, 12},
		"what it has fits, though not easily": {stretch{bits: 520_000, shows: 510_000, limited: true}, ladder{}, 1, 1, 0, 12},
		"not even the lowest fits":            {stretch{bits: 50_000, shows: 42_000, limited: true}, ladder{}, 2, 0, 0, 12},
	} {
		t.Run(name, func(t *testing.T) {
			have, _ := climb(&test.ladder, &test.path, layers, test.have, 2*time.Minute)
			if have != test.want {
				t.Errorf("it ends with %s; want %s", layers[have].rid, layers[test.want].rid)
			}
			if test.path.probes < test.least || test.path.probes > test.most {
				t.Errorf("%d probes; want %d to %d", test.path.probes, test.least, test.most)
			}
			if test.path.running {
				t.Error("a probe has no end")
			}
		})
	}
	blind := stretch{bits: 1 << 30, shows: 150_000, deaf: true}
	if have, _ := climb(&ladder{narrow: true}, &blind, layers, 0, time.Minute); have != 2 {
		t.Errorf("where nothing can be tried, it ends with %s", layers[have].rid)
	}
}

// What is held back goes out at the pace's rate, but for what may go at once.
func TestPacer(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	free := pacer{}
	for range 1000 {
		if due := free.hold(1200, now); !due.IsZero() {
			t.Fatal("a pacer without a rate holds back")
		}
	}
	p := pacer{rate: 1_000_000}
	sent, began := 0, now
	for now.Sub(began) < 10*time.Second {
		if due := p.hold(1200, now); due.IsZero() {
			sent += 1200
		} else if now = due; due.Sub(began) > time.Minute {
			t.Fatal("it holds back too long")
		}
	}
	if bits := sent * 8; bits < 9_500_000 || bits > 10_300_000 {
		t.Errorf("%d bits in ten seconds of a million each", bits)
	}
}
