package relay_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// gapless lets relays change their source.
func gapless(b *bed, o *relay.ManagerOptions) {
	b.gapless = true
	o.NewSource = func(relay.Spec) relay.Source { return relay.Source{} }
}

// wantChanges checks that there has been one session, and which sources it was given: of the same publication or another one.
func (b *bed) wantChanges(same ...bool) {
	b.Helper()
	s := b.last()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.sessions) != 1 || s.freed {
		b.Errorf("%d sessions, the last freed: %t", len(b.sessions), s.freed)
	}
	if len(s.sources) != len(same) {
		b.Fatalf("%d changes of source, want %d", len(s.sources), len(same))
	}
	for i, source := range s.sources {
		if source.Same != same[i] {
			b.Errorf("change %d is to the same publication: %t", i, source.Same)
		}
	}
}

func TestMovesWithoutGap(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		defer b.play()()
		b.peer("c1", "5 e1 c1")
		b.catalogue.SetCondition("b1", catalogue.Condition{Ready: true, Draining: true})
		b.wantPulls("b1", "c1")
		b.wantOwn("5 e1 c1 a1")
		b.wantChanges(true)
		b.catalogue.Forget("c1") // its heartbeat is lost, and b1 is all there is
		b.wantOwn("5 e1 b1 a1")
		b.wantChanges(true, true)
		b.catalogue.SetCondition("b1", catalogue.Condition{Ready: true})
		b.peer("d1", "6 d1") // another publication has won
		synctest.Wait()
		after(time.Second)
		b.wantOwn("6 d1 a1")
		b.wantChanges(true, true, false)
	})
}

// A source that is lost, is looked for elsewhere; its hold is withdrawn meanwhile.
func TestLostSourceIsReplaced(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		defer b.play()()
		s := b.last()
		s.flow(relay.FlowLost)
		b.wantOwn("")
		if status := b.status(); status.LastError == "" || status.State != relay.StateRetrying && status.State != relay.StateConnecting {
			b.Errorf("%+v", status)
		}
		b.setPull("c1", func(stream adapters.StreamID) (relay.Grant, error) {
			if own := b.own(stream); own != "" {
				b.Errorf("a parent is asked while %q is announced", own)
			}
			return relay.Grant{Path: []ID{"e1", "c1"}, Epoch: 5}, nil
		})
		b.peer("c1", "5 e1 c1")
		after(time.Second)
		b.wantOwn("5 e1 c1 a1")
		b.wantChanges(true)
		if n := b.count("sidestream_relay_source_losses_total", ""); n != 1 {
			b.Errorf("%v losses", n)
		}
	})
}

// Viewers of a publisher that returns in time keep what they have.
func TestPublisherReturns(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.peer("b1", "5 b1")
		defer b.play()()
		b.last().flow(relay.FlowLost)
		b.peer("b1")
		after(5 * time.Second)
		b.wantOwn("")
		b.peer("b1", "6 b1")
		after(time.Second)
		b.wantOwn("6 b1 a1")
		b.wantChanges(false)
		b.play()()
	})
}

// What falls silent is lost where its parent is not heard, or says that it flows there; else it is paused.
func TestSilence(t *testing.T) {
	for _, test := range []struct {
		name  string
		heard func(p *peers)
		lost  bool
	}{
		{"the parent is not connected", func(p *peers) { p.heard["b1"] = time.Time{} }, true},
		{"nothing was heard for a while", func(p *peers) { p.heard["b1"] = time.Now().Add(-time.Second) }, true},
		{"it flows there", func(p *peers) { p.ages["b1"] = 0 }, true},
		{"paused", func(p *peers) { p.ages["b1"] = time.Hour }, false},
		{"an origin, which does not know", func(*peers) {}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			run(t, gapless, func(b *bed) {
				b.locked(func() { b.peers.heard, b.peers.ages = map[ID]time.Time{}, map[ID]time.Duration{} })
				b.peer("b1", "5 e1 b1")
				defer b.play()()
				b.peer("c1", "5 e1 c1")
				s := b.last()
				b.locked(func() { test.heard(b.peers) })
				s.flow(relay.FlowSilent)
				after(time.Second)
				if test.lost {
					b.wantOwn("5 e1 c1 a1")
					b.wantChanges(true)
					return
				}
				b.wantOwn("5 e1 b1 a1")
				b.wantChanges()
			})
		})
	}
}

// What flows again by itself is announced again.
func TestSilenceEnds(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.locked(func() { b.peers.heard = map[ID]time.Time{"b1": {}} })
		b.peer("b1", "5 e1 b1")
		defer b.play()()
		s := b.last()
		s.flow(relay.FlowSilent)
		b.wantOwn("")
		s.flow(relay.FlowOn)
		b.wantOwn("5 e1 b1 a1")
		b.wantChanges()
	})
}

// A parent that cannot be changed to is left for a while; one with another codec is published anew.
func TestChangeRefused(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		defer b.play()()
		s := b.last()
		b.locked(func() { s.refuses = errors.New("no room") })
		b.peer("c1", "5 e1 c1")
		b.catalogue.SetCondition("b1", catalogue.Condition{Ready: true, Draining: true})
		b.wantOwn("5 e1 b1 a1")
		b.wantPulls("b1", "c1")
		b.locked(func() { s.refuses = relay.ErrCodecDiffers })
		after(2 * time.Second)
		b.wantOwn("5 e1 c1 a1")
		if sessions, _, _ := b.made(); sessions != 2 {
			b.Errorf("%d sessions", sessions)
		}
	})
}

// Without any source the relay ends when its time is over, whether the session knows or not.
func TestNoOtherSource(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		defer b.play()()
		s := b.last()
		b.locked(func() { s.last = time.Now() })
		b.peer("b1")
		after(2 * time.Second)
		b.wantOwn("")
		if s.isFreed() {
			b.Error("it ended at once")
		}
		after(20 * time.Second)
		if !s.isFreed() {
			b.Error("it did not end")
		}
	})
}

// A parent of the own cluster that fell silent is not waited for until its heartbeat is lost.
func TestSilentNearParent(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.locked(func() {
			b.peers.heard, b.peers.answer = map[ID]time.Time{"a2": {}}, relay.Claim{Granted: true}
			b.peers.silent["a2"] = true
		})
		b.peer("b1", "5 b1")
		b.peer("a2", "5 b1 a2")
		defer b.play()()
		b.wantOwn("5 b1 a2 a1")
		b.last().flow(relay.FlowSilent)
		b.wantOwn("")
		after(400 * time.Millisecond)
		b.wantOwn("5 b1 a1")
		b.wantChanges(true)
		t.Logf("%+v", b.status())
	})
}

// What goes in a circle is cut at once, or packets would go round in it.
func TestLoopIsCut(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		defer b.play()()
		s := b.last()
		b.peer("c1", "5 e1 c1")
		b.peer("b1", "5 e1 a1 b1")
		b.wantOwn("")
		after(freeTime)
		if !s.isFreed() {
			b.Error("it goes on")
		}
		after(connectTime)
		b.wantOwn("5 e1 c1 a1")
	})
}

// A change under way is given up when the next parent has the stream from this node, or has lost it.
func TestChangeIsGivenUp(t *testing.T) {
	for name, holds := range map[string][]string{"it has it from here": {"5 e1 b1 a1 c1"}, "it has lost it": nil} {
		t.Run(name, func(t *testing.T) {
			run(t, gapless, func(b *bed) {
				b.peer("b1", "5 e1 b1")
				defer b.play()()
				s := b.last()
				b.locked(func() { s.changing = time.Minute })
				b.peer("c1", "5 e1 c1")
				b.catalogue.SetCondition("b1", catalogue.Condition{Ready: true, Draining: true})
				b.wantPulls("b1", "c1")
				b.locked(func() { s.changing = 0 })
				b.peer("c1", holds...)
				b.wantOwn("5 e1 b1 a1")
				b.peer("d1", "5 e1 d1")
				b.wantOwn("5 e1 d1 a1")
				b.wantChanges(true)
				if status := b.status(); status.LastError != "" {
					b.Errorf("last error %q", status.LastError)
				}
			})
		})
	}
}

// While a change is under way only older sequences are handed on than that by which the next parent was accepted: of two
// nodes that would change to each other one does not.
func TestSequencesAreHeldBack(t *testing.T) {
	run(t, gapless, func(b *bed) {
		grant := func(sequence uint64, path ...ID) func(adapters.StreamID) (relay.Grant, error) {
			return func(adapters.StreamID) (relay.Grant, error) {
				return relay.Grant{Epoch: 5, Path: path, Sequence: sequence}, nil
			}
		}
		handedOn := func(want uint64) {
			b.Helper()
			g, err := b.manager.Grant("d1", "x")
			if err != nil || g.Sequence != want {
				b.Errorf("sequence %d is handed on, want %d: %v", g.Sequence, want, err)
			}
		}
		b.peer("b1", "5 e1 b1")
		b.setPull("b1", grant(100, "e1", "b1"))
		defer b.play()()
		s := b.last()
		b.locked(func() {
			s.changing = 2 * time.Second
			b.peers.sequences = map[ID]uint64{"b1": 110}
		})
		b.setPull("c1", grant(105, "e1", "c1"))
		b.peer("c1", "5 e1 c1")
		b.catalogue.SetCondition("b1", catalogue.Condition{Ready: true, Draining: true})
		b.wantPulls("b1", "c1")
		handedOn(104)
		after(2 * time.Second)
		b.wantOwn("5 e1 c1 a1")
		b.locked(func() { b.peers.sequences["c1"] = 120 })
		handedOn(120)
		// Now b1 is to be changed to, and is never ahead: what is handed on stands still until it is.
		b.setPull("b1", grant(119, "e1", "b1"))
		b.catalogue.SetCondition("b1", catalogue.Condition{Ready: true})
		b.catalogue.SetCondition("c1", catalogue.Condition{Ready: true, Draining: true})
		b.wantPulls("b1", "c1", "b1")
		b.locked(func() { b.peers.sequences["c1"] = 130 })
		handedOn(120)
		b.setPull("b1", grant(125, "e1", "b1"))
		after(soon + 2*time.Second)
		b.wantOwn("5 e1 b1 a1")
	})
}

// What is far from the origin waits as long as what is near: its parent holds nothing any more and is waiting itself, and the
// publisher may return.
func TestQuietWaitsForThePublisher(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		defer b.play()()
		after(time.Minute)
		s := b.last()
		b.locked(func() { s.last = time.Now() })
		b.peer("b1")
		after(3 * time.Second)
		b.wantOwn("")
		b.wantChanges() // the session is there
		b.locked(func() { s.last = time.Time{} })
		b.peer("b1", "9 e1 b1")
		after(time.Second)
		b.wantOwn("9 e1 b1 a1")
		b.wantChanges(false)

		b.locked(func() { s.last = time.Now() })
		b.peer("b1")
		b.peer("c1", "9 e1 b1 a1 c1") // who has it from here is no help
		after(3 * time.Second)
		b.wantOwn("")
		b.wantChanges(false)
		after(8 * time.Second) // and it does not return
		b.wantOwn("")
		if !s.isFreed() {
			b.Error("the session is still there")
		}
	})
}

// What falls silent when its parent was killed is lost, though another process of that parent is heard already.
func TestSilentParentIsReborn(t *testing.T) {
	run(t, gapless, func(b *bed) {
		b.locked(func() { b.peers.ages = map[ID]time.Duration{} })
		b.peer("b1", "5 e1 b1")
		defer b.play()()
		b.peer("c1", "5 e1 c1")
		s := b.last()
		if err := b.catalogue.SetPeer(catalogue.Node{ID: "b1", Cluster: "b", Incarnation: 9}, nil); err != nil {
			b.Fatal(err)
		}
		after(100 * time.Millisecond)
		b.wantOwn("5 e1 b1 a1") // its media goes on
		b.wantChanges()
		s.flow(relay.FlowSilent)
		after(100 * time.Millisecond)
		b.wantOwn("5 e1 c1 a1")
		b.wantChanges(true)
	})
}
