package mesh

import (
	"errors"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

func TestAwake(t *testing.T) {
	began := time.Now()
	at := func(d time.Duration) time.Time { return began.Add(d) }
	a := newAwake(began)
	if !a.since(at(0)).IsZero() {
		t.Error("slept before it began")
	}
	for d := time.Duration(0); d < 10*time.Second; d += awakeTick {
		if slept := a.tick(at(d)); slept > 0 || !a.since(at(d+awakeTick)).IsZero() {
			t.Fatalf("slept for %v at %v", slept, d)
		}
	}
	last := 10*time.Second - awakeTick
	if got := a.since(at(last + 4*time.Second)); !got.Equal(at(last + 4*time.Second)) {
		t.Errorf("who asks before the first tick is told %v", got.Sub(began))
	}
	if slept := a.tick(at(last + 4*time.Second)); slept != 4*time.Second {
		t.Errorf("slept for %v", slept)
	}
	if slept := a.tick(at(last + 4*time.Second + awakeTick)); slept != 0 {
		t.Errorf("slept again for %v", slept)
	}
	if got := a.since(at(last + 4*time.Second + awakeTick)); !got.Equal(at(last + 4*time.Second)) {
		t.Errorf("awake since %v", got.Sub(began))
	}
}

// A node that slept waits a heartbeat's period before it gives others up, connected or not; one that was awake does not.
func TestASleeperGivesNobodyUp(t *testing.T) {
	for _, tt := range []struct {
		name   string
		sleeps time.Duration
		lost   time.Duration // at the latest, after the last word
	}{
		{"awake", 0, lostAfter(relatedPeriod)},
		{"asleep", 4 * time.Second, 4*time.Second + awakeTick + 2*relatedPeriod},
		{"asleep until just after the deadline", lostAfter(relatedPeriod) + 10*time.Millisecond, 2600 * time.Millisecond},
	} {
		for _, linked := range []bool{true, false} {
			t.Run(tt.name, func(t *testing.T) {
				book := newBook(catalogue.Node{ID: "a", Cluster: "a"})
				m := New(Options{Catalogue: book, Security: Plaintext()})
				l := m.newLink(nil, true, &pb.Hello{Node: "b", Cluster: "b", Process: []byte("b")}, "")
				if err := m.keep(l); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				l.promised, l.heard = relatedPeriod, began
				if !linked {
					l.end(errBroken)
					m.remove(l, errBroken)
				}
				m.look(began)
				for now := began.Add(max(awakeTick, tt.sleeps)); ; now = now.Add(awakeTick / 5) {
					m.look(now)
					m.expire(now)
					gone := len(book.forgotten()) > 0 || linked && errors.Is(l.why, errLost)
					after := now.Sub(began)
					if gone && after < tt.sleeps+relatedPeriod {
						t.Errorf("given up after %v, of which %v asleep", after, tt.sleeps)
					}
					if !gone && after > tt.lost+awakeTick {
						t.Errorf("not given up after %v", after)
					}
					if gone || after > time.Minute {
						return
					}
				}
			})
		}
	}
}
