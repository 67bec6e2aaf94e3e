package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// member starts a node at a host of the in-memory network.
func (n *network) member(t *testing.T, host string, c config) *node {
	t.Helper()
	c.listener = n.listen(t, host+":1")
	c.dial = n.dialFrom(host)
	return start(t, c)
}

const (
	hostA, hostB, hostC = "10.0.0.1", "10.0.0.2", "10.0.0.3"
	addrA, addrB, addrC = hostA + ":1", hostB + ":1", hostC + ":1"
)

func TestHoldsReachEveryone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(20 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		a.book.publish(1, "one", "two")
		a.SetPeers(at(addrB)) // one of the two knows the other
		b.book.hears(t, "a", 1, "one", "two")
		a.book.hears(t, "b", 0) // the empty set is known too

		a.book.publish(2, "two", "three")
		began := time.Now()
		b.book.hears(t, "a", 2, "two", "three")
		if took := time.Since(began); took != 20*time.Millisecond {
			t.Errorf("an update took %v on a network of 20 ms", took)
		}
		if b.book.Clock() != 2 {
			t.Error("the clock does not travel")
		}

		// Somebody late gets the full set, from both.
		b.book.publish(7, "four")
		c := net.member(t, hostC, config{id: "c"})
		c.SetPeers(at(addrA, addrB))
		c.book.hears(t, "a", 2, "two", "three")
		c.book.hears(t, "b", 7, "four")
		a.book.publish(8)
		c.book.hears(t, "a", 8)
		b.book.hears(t, "a", 8)
	})
}

func TestOtherClustersHearOnlyWhatIsForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a", cluster: "east"})
		b := net.member(t, hostB, config{id: "b", cluster: "east"})
		c := net.member(t, hostC, config{id: "c", cluster: "west"})
		a.SetPeers(at(addrB, addrC))
		a.book.mu.Lock()
		a.book.own = []catalogue.Hold{
			{Stream: "origin", Epoch: 1, Path: []catalogue.NodeID{"a"}},
			{Stream: "relay", Epoch: 1, Path: []catalogue.NodeID{"x", "a"}, Delay: 80 * time.Millisecond, Priority: -3},
		}
		a.book.touch()
		a.book.mu.Unlock()
		b.book.hears(t, "a", 1, "origin", "relay")
		c.book.hears(t, "a", 1, "origin")
		b.book.mu.Lock()
		defer b.book.mu.Unlock()
		want := catalogue.Hold{
			Stream: "relay", Epoch: 1, Path: []catalogue.NodeID{"x", "a"}, Delay: 80 * time.Millisecond, Priority: -3,
		}
		if d := cmp.Diff(want, b.book.peers["a"].holds["relay"]); d != "" {
			t.Error(d)
		}
	})
}

// Both nodes dial each other, at about the same moment, and every connection has another latency in each direction: one
// link must remain, and neither side may be without a link, or lose anything that the other says, on the way.
func TestOneLinkPerPair(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random, latencies := rand.New(rand.NewPCG(seed, 0)), rand.New(rand.NewPCG(seed, 1))
				net := newNetwork(10 * time.Millisecond)
				net.vary = func() time.Duration { return time.Duration(latencies.IntN(150)) * time.Millisecond }
				a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
				first, second := a, b
				if seed%2 == 1 {
					first, second = b, a
				}
				first.SetPeers(at(addrA, addrB))
				time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
				second.SetPeers(at(addrA, addrB))
				// Meanwhile something changes all the time, and then stays: what was last must be known, whichever link it took.
				until := uint64(20 + random.IntN(600))
				var last uint64
				linked := map[*node]bool{}
				for step := range uint64(2000) {
					time.Sleep(time.Millisecond)
					if step < until && step%10 == 0 {
						last = step
						a.book.publish(step, "from-a", adapters.StreamID(fmt.Sprintf("a-%d", step)))
						b.book.publish(step, adapters.StreamID(fmt.Sprintf("b-%d", step)))
					}
					synctest.Wait()
					for n, other := range map[*node]catalogue.NodeID{a: "b", b: "a"} {
						has := n.link(other) != nil
						if linked[n] && !has {
							t.Fatalf("%s is without a link", n.self.ID)
						}
						linked[n] = has
					}
				}
				a.book.hears(t, "b", last, adapters.StreamID(fmt.Sprintf("b-%d", last)))
				b.book.hears(t, "a", last, "from-a", adapters.StreamID(fmt.Sprintf("a-%d", last)))
				time.Sleep(supersededGrace + time.Second)
				if x, y := a.links("b"), b.links("a"); x != 1 || y != 1 {
					t.Errorf("%d links at a, %d at b", x, y)
				}
				if n := net.open(hostA, hostB) + net.open(hostB, hostA); n != 2 {
					t.Errorf("%d ends of connections", n)
				}
				if sa, sb := a.status("b"), b.status("a"); sa.Dialled == sb.Dialled {
					t.Errorf("dialled by a: %v, by b: %v", sa.Dialled, sb.Dialled)
				}
				if got := append(a.book.forgotten(), b.book.forgotten()...); len(got) > 0 {
					t.Errorf("forgotten on the way: %v", got)
				}
				a.book.hears(t, "b", last, adapters.StreamID(fmt.Sprintf("b-%d", last)))
				b.book.hears(t, "a", last, "from-a", adapters.StreamID(fmt.Sprintf("a-%d", last)))
			})
		})
	}
}

// Both connections are in their handshake at once: the one of the smaller id is the one that stays.
func TestTheSmallerIDsLinkStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(50 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		a.SetPeers(at(addrB))
		b.SetPeers(at(addrA))
		a.book.hears(t, "b", 0)
		b.book.hears(t, "a", 0)
		time.Sleep(10 * time.Second)
		if !a.status("b").Dialled || b.status("a").Dialled {
			t.Error("the link that the smaller id dialled is not the one that stays")
		}
		if got := append(a.book.forgotten(), b.book.forgotten()...); len(got) > 0 {
			t.Errorf("forgotten on the way: %v", got)
		}
	})
}

func TestTwoAddressesOfOneNodeMakeOneLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		net.mu.Lock()
		net.listeners["10.9.9.9:1"] = net.listeners[addrB] // another address of the same host
		net.mu.Unlock()
		a.SetPeers(at(addrB, "10.9.9.9:1"))
		a.book.hears(t, "b", 0)
		time.Sleep(time.Minute)
		if a.links("b") != 1 || b.links("a") != 1 {
			t.Errorf("%d and %d links", a.links("b"), b.links("a"))
		}
		if n := net.dialled(addrB) + net.dialled("10.9.9.9:1"); n > 4 {
			t.Errorf("dialled %d times in a minute", n)
		}
	})
}

func TestOwnAddressIsDialledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a"})
		a.SetPeers(at(addrA))
		time.Sleep(4 * time.Minute)
		if n := net.dialled(addrA); n != 1 {
			t.Errorf("dialled itself %d times", n)
		}
		if peers := a.Peers(); len(peers) > 0 {
			t.Errorf("knows itself as a peer: %v", peers)
		}
		if n := a.counted(t, "sidestream_mesh_refused_total", ""); n != 0 {
			t.Errorf("reported %v refusals", n)
		}
	})
}

func TestHeartbeatsLost(t *testing.T) {
	for _, tt := range []struct {
		name           string
		related        bool
		least, longest time.Duration
	}{
		{"related", true, 700 * time.Millisecond, 1500 * time.Millisecond},
		{"distant", false, 7 * time.Second, 13 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(50 * time.Millisecond)
				a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
				a.SetPeers(at(addrB))
				a.book.hears(t, "b", 0)
				if tt.related {
					b.SetRelated([]catalogue.NodeID{"a"}) // it is enough that one of the two says so
				}
				time.Sleep(time.Minute)
				if len(a.book.forgotten()) > 0 {
					t.Fatal("lost while nothing was wrong")
				}
				if got := a.status("b").Related; got != tt.related {
					t.Errorf("related: %v", got)
				}
				net.freeze(hostB, true)
				began := time.Now()
				a.book.until(t, "b is lost", func() bool { return len(a.book.forgotten()) > 0 })
				if took := time.Since(began); took < tt.least || took > tt.longest {
					t.Errorf("lost after %v, want %v to %v", took, tt.least, tt.longest)
				}
				if n := a.counted(t, "sidestream_mesh_heartbeats_lost_total", ""); n != 1 {
					t.Errorf("%v losses counted", n)
				}
				// And it comes back, although nobody announces anything new.
				net.freeze(hostB, false)
				a.book.hears(t, "b", 0)
			})
		})
	}
}

// Two nodes that found each other by two connections, of which one was closed at once: when the other breaks with its
// node, what counts is how often that one was heard, not what the closed one was promised.
func TestADeathAfterTwoConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(10 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b", dies: true})
		a.SetPeers(at(addrB))
		b.SetPeers(at(addrA))
		a.book.hears(t, "b", 0)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if x, y := net.dialled(addrA), net.dialled(addrB); x == 0 || y == 0 {
			t.Fatalf("dialled %d and %d times: this test needs both", x, y)
		}
		a.SetRelated([]catalogue.NodeID{"b"})
		time.Sleep(2 * time.Second)
		net.freeze(hostB, true)
		net.cut(hostA)
		began := time.Now()
		a.book.until(t, "b is lost", func() bool { return len(a.book.forgotten()) > 0 })
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("lost after %v", took)
		}
		net.freeze(hostB, false)
	})
}

// Who is asked something and has died is not waited for as long as a distant node's heartbeats would take to tell.
func TestADeathIsSeenWhenSomethingIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(50 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		a.SetPeers(at(addrB))
		a.book.hears(t, "b", 0)
		time.Sleep(time.Minute)
		net.freeze(hostB, true)
		began := time.Now()
		if _, err := a.Pull(t.Context(), "b", "x"); err == nil {
			t.Error("answered")
		}
		a.book.until(t, "b is lost", func() bool { return len(a.book.forgotten()) > 0 })
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("lost after %v", took)
		}
		net.freeze(hostB, false)
		a.book.hears(t, "b", 0)
		b.book.hears(t, "a", 0)
	})
}

func TestHeartbeatPeriods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(80 * time.Millisecond)
		a := net.member(t, hostA, config{id: "a", options: func(o *Options) {
			o.Flows = func(child catalogue.NodeID) map[adapters.StreamID]Flow {
				return map[adapters.StreamID]Flow{
					"for-" + adapters.StreamID(child): {Age: 700 * time.Millisecond, Known: true, Sequence: 7},
					"published":                       {Sequence: 1<<32 + 9},
				}
			}
		}})
		b := net.member(t, hostB, config{id: "b"})
		a.SetPeers(at(addrB))
		b.book.hears(t, "a", 0)
		time.Sleep(30 * time.Second)
		heartbeats := func() float64 { return b.counted(t, "sidestream_mesh_frames_total", "heartbeat") }
		before := heartbeats()
		time.Sleep(time.Minute)
		if n := heartbeats() - before; n < 22 || n > 26 { // both directions, every 5 s
			t.Errorf("%v heartbeats in a minute at rest", n)
		}
		for n, other := range map[*node]catalogue.NodeID{a: "b", b: "a"} {
			if rtt, ok := n.RTT(other); !ok || rtt.Round(time.Millisecond) != 160*time.Millisecond {
				t.Errorf("%s measured %v, %v on a path of 160 ms", n.self.ID, rtt, ok)
			}
		}
		if _, ok := b.PacketAge("a", "for-b"); ok {
			t.Error("packet ages go to a node that does not depend on them")
		}
		a.SetRelated([]catalogue.NodeID{"b"})
		time.Sleep(10 * time.Second)
		before = heartbeats()
		time.Sleep(time.Minute)
		if n := heartbeats() - before; n < 235 || n > 245 {
			t.Errorf("%v heartbeats in a minute with a related node", n)
		}
		if age, ok := b.PacketAge("a", "for-b"); !ok || age < 700*time.Millisecond || age > 1300*time.Millisecond {
			t.Errorf("packet age %v, %v", age, ok)
		}
		if seq, ok := b.Sequence("a", "for-b"); !ok || seq != 7 {
			t.Errorf("sequence %d, %v", seq, ok)
		}
		if age, ok := b.PacketAge("a", "published"); ok {
			t.Errorf("packet age %v of what the node cannot see", age)
		}
		if seq, ok := b.Sequence("a", "published"); !ok || seq != 1<<32+9 {
			t.Errorf("sequence %d, %v", seq, ok)
		}
		if _, ok := b.Sequence("a", "other"); ok {
			t.Error("a sequence of a stream that is not pulled")
		}
		a.SetRelated(nil)
		time.Sleep(10 * time.Second)
		before = heartbeats()
		time.Sleep(time.Minute)
		if n := heartbeats() - before; n > 26 {
			t.Errorf("%v heartbeats in a minute when no longer related", n)
		}
	})
}

// a depends on c and sees its death at once; b has no dealings with c, and learns of it from a.
func TestADeathIsToldToAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(50 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		c := net.member(t, hostC, config{id: "c"})
		a.SetPeers(at(addrB, addrC))
		b.SetPeers(at(addrC))
		c.book.publish(1, "s")
		a.book.hears(t, "c", 1, "s")
		b.book.hears(t, "c", 1, "s")
		a.SetRelated([]catalogue.NodeID{"c"})
		time.Sleep(21 * time.Second) // b heard c a second ago, and would wait for 11 more
		net.freeze(hostC, true)
		began := time.Now()
		b.book.until(t, "c is lost", func() bool { return len(b.book.forgotten()) > 0 })
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("b heard after %v", took)
		}
		if len(a.book.forgotten()) == 0 {
			t.Error("a, who depends on it, has not noticed yet")
		}
	})
}

func TestAFalseObituaryChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(50 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		net.member(t, hostC, config{id: "c"})
		a.SetPeers(at(addrB, addrC))
		b.SetPeers(at(addrC))
		b.book.hears(t, "c", 0)
		a.book.hears(t, "b", 0)
		for range 20 {
			a.mu.Lock()
			for _, l := range a.peers["b"].links {
				l.tellDeath(catalogue.Node{ID: "c", Incarnation: 1})
			}
			a.mu.Unlock()
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		if got := b.book.forgotten(); len(got) > 0 {
			t.Errorf("b believed a and forgot %v", got)
		}
	})
}

func TestGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(50 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		c := net.member(t, hostC, config{id: "c"})
		b.SetPeers(at(addrA, addrC)) // b dials one and is dialled by neither: both ends must hear
		c.SetPeers(at(addrA))
		a.book.hears(t, "b", 0)
		a.book.hears(t, "c", 0)
		c.book.hears(t, "b", 0)
		time.Sleep(time.Second)
		stopped := make(chan time.Duration)
		began := time.Now()
		go func() {
			_ = b.stop()
			stopped <- time.Since(began)
		}()
		for _, n := range []*node{a, c} {
			n.book.until(t, "b left", func() bool { return len(n.book.forgotten()) > 0 })
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("%s heard after %v", n.self.ID, took)
			}
		}
		if took := <-stopped; took > 2*farewell {
			t.Errorf("leaving took %v", took)
		}
		if n := a.counted(t, "sidestream_mesh_heartbeats_lost_total", ""); n != 0 {
			t.Error("a goodbye was counted as a loss")
		}
	})
}

func TestABrokenConnectionIsRenewedWithoutForgetting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(50 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		a.SetPeers(at(addrB))
		a.book.hears(t, "b", 0)
		b.book.hears(t, "a", 0)
		a.SetPeers(nil) // discovery only adds
		time.Sleep(10 * time.Second)
		if !a.status("b").Connected {
			t.Fatal("the connection did not outlive its announcement")
		}
		net.cut(hostB)
		time.Sleep(100 * time.Millisecond)
		if _, ok := a.Address("b"); !ok {
			t.Error("the address is gone with the connection")
		}
		time.Sleep(2 * time.Second)
		if !a.status("b").Connected || !b.status("a").Connected {
			t.Error("not connected again")
		}
		if got := append(a.book.forgotten(), b.book.forgotten()...); len(got) > 0 {
			t.Errorf("forgotten: %v", got)
		}
		b.book.publish(3, "s")
		a.book.hears(t, "b", 3, "s")
	})
}

func TestAnAddressIsDialledAsLongAsItIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a"})
		a.SetPeers(at(addrB))
		time.Sleep(time.Hour)
		if n := net.dialled(addrB); n < 150 || n > 600 {
			t.Errorf("dialled %d times in an hour", n)
		}
		if got := a.Peers(); len(got) != 1 || got[0].Error == "" || got[0].Address != addrB || got[0].Connected {
			t.Errorf("the status says %+v", got)
		}
		b := net.member(t, hostB, config{id: "b"})
		began := time.Now()
		a.book.hears(t, "b", 0)
		if took := time.Since(began); took > 25*time.Second {
			t.Errorf("found after %v", took)
		}
		_ = b.stop()
		a.SetPeers(nil)
		time.Sleep(forgottenAfter + time.Minute)
		before := net.dialled(addrB)
		time.Sleep(time.Hour)
		if n := net.dialled(addrB) - before; n > 0 {
			t.Errorf("an address that is neither announced nor was alive lately was dialled %d times", n)
		}
	})
}

func TestRestartWithHigherIncarnation(t *testing.T) {
	for _, frozen := range []bool{false, true} {
		t.Run(fmt.Sprintf("old connection half open %v", frozen), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(10 * time.Millisecond)
				a, old := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b", incarnation: 4})
				old.book.publish(1, "before")
				a.SetPeers(at(addrB))
				a.book.hears(t, "b", 1, "before")
				if frozen {
					net.freeze(hostB, true)
				} else {
					net.cut(hostB)
				}
				// The same node comes up at another address, before anybody has missed it.
				b := net.member(t, hostC, config{id: "b", incarnation: 5})
				b.book.publish(2, "after")
				b.SetPeers(at(addrA))
				began := time.Now()
				a.book.hears(t, "b", 2, "after")
				if took := time.Since(began); took > time.Second {
					t.Errorf("replaced after %v", took)
				}
				if addr, _ := a.Address("b"); addr != addrC {
					t.Errorf("its address is %s", addr)
				}
				if s := a.status("b"); s.Incarnation != 5 {
					t.Errorf("status says incarnation %d", s.Incarnation)
				}
				// The old process thaws, and finds that it has no place any more.
				net.freeze(hostB, false)
				old.SetPeers(at(addrA))
				time.Sleep(time.Minute)
				a.book.hears(t, "b", 2, "after")
				if got := a.book.forgotten(); len(got) > 0 {
					t.Errorf("forgotten on the way: %v", got)
				}
				if a.links("b") != 1 {
					t.Errorf("%d links", a.links("b"))
				}
			})
		})
	}
}

func TestAnotherProcessWithTheSameIDIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(10 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		b.book.publish(1, "true")
		a.SetPeers(at(addrB))
		a.book.hears(t, "b", 1, "true")
		liar := net.member(t, hostC, config{id: "b"})
		liar.book.publish(2, "false")
		liar.SetPeers(at(addrA, addrB)) // also to the node whose id it took
		time.Sleep(2 * time.Minute)
		a.book.hears(t, "b", 1, "true")
		if got := a.book.forgotten(); len(got) > 0 {
			t.Errorf("the true one was forgotten: %v", got)
		}
		for _, n := range []*node{a, b} {
			if n.counted(t, "sidestream_mesh_refused_total", "identity") == 0 {
				t.Errorf("%s reported nothing", n.addr)
			}
		}
	})
}

func TestClaimAndPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(50 * time.Millisecond)
		handler := func(self catalogue.NodeID) Handler {
			return answers{
				claim: func(from catalogue.NodeID, stream adapters.StreamID, epoch uint64) Claim {
					return Claim{Granted: stream == "free", Holder: catalogue.NodeID(fmt.Sprintf("%s-%s-%d", self, from, epoch))}
				},
				grant: func(child catalogue.NodeID, stream adapters.StreamID) (Grant, error) {
					switch stream {
					case "looping":
						return Grant{}, &RefusedError{Reason: "you are in my path"}
					case "broken":
						return Grant{}, errors.New("a secret of the node")
					}
					return Grant{Token: "for-" + string(child), Path: []catalogue.NodeID{"o", self}, Epoch: 9}, nil
				},
			}
		}
		a := net.member(t, hostA, config{id: "a", handler: handler("a")})
		b := net.member(t, hostB, config{id: "b", handler: handler("b")})
		a.SetPeers(at(addrB)) // the dialler asks, and is asked
		a.book.hears(t, "b", 0)
		b.book.hears(t, "a", 0)
		for _, tt := range []struct {
			asks, asked *node
		}{{a, b}, {b, a}} {
			me, other := tt.asks.self.ID, tt.asked.self.ID
			began := time.Now()
			claim, err := tt.asks.Claim(t.Context(), other, "free", 3)
			want := Claim{Granted: true, Holder: catalogue.NodeID(fmt.Sprintf("%s-%s-3", other, me))}
			if err != nil || claim != want {
				t.Errorf("%s claims: %+v, %v, want %+v", me, claim, err, want)
			}
			if took := time.Since(began); took != 100*time.Millisecond {
				t.Errorf("a claim took %v on a round trip of 100 ms", took)
			}
			grant, err := tt.asks.Pull(t.Context(), other, "dir/stream one")
			if err != nil {
				t.Fatal(err)
			}
			wantGrant := Grant{
				Token: "for-" + string(me), Path: []catalogue.NodeID{"o", other}, Epoch: 9,
				URL: "http://" + tt.asked.addr + "/whep/dir/stream%20one",
			}
			if d := cmp.Diff(wantGrant, grant); d != "" {
				t.Error(d)
			}
			_, err = tt.asks.Pull(t.Context(), other, "looping")
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Reason != "you are in my path" {
				t.Errorf("a pull that is refused: %v", err)
			}
			_, err = tt.asks.Pull(t.Context(), other, "broken")
			if !errors.As(err, &refused) || refused.Reason != "internal error" {
				t.Errorf("a pull that fails at the parent: %v", err)
			}
			if !tt.asks.status(other).Related || !tt.asked.status(me).Related {
				t.Error("who pulls and who claims is not related")
			}
		}
		if claim, err := a.Claim(t.Context(), "a", "free", 1); err != nil || !claim.Granted || claim.Holder != "a-a-1" {
			t.Errorf("a claim at the own node: %+v, %v", claim, err)
		}
		if _, err := a.Claim(t.Context(), "z", "free", 1); !errors.Is(err, ErrNotConnected) {
			t.Errorf("a claim at a stranger: %v", err)
		}

		// An owner that does not answer costs the caller what its context allows, and leaves nothing behind.
		net.freeze(hostB, true)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := a.Claim(ctx, "b", "free", 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a claim that is not answered: %v", err)
		}
		if l := a.link("b"); len(l.asked) != 0 {
			t.Errorf("%d questions left behind", len(l.asked))
		}
		// And one whose node is lost meanwhile ends with it.
		if _, err := a.Claim(t.Context(), "b", "free", 1); !errors.Is(err, ErrNotConnected) {
			t.Errorf("a claim at a node that died: %v", err)
		}
	})
}

func TestReadyAndDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(10 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		a.SetReady(false)
		b.SetPeers(at(addrA))
		b.book.hears(t, "a", 0)
		if s := b.status("a"); s.Ready || s.Draining || s.Version != "test" {
			t.Errorf("after the handshake: %+v", s)
		}
		believed := func(n *node, want catalogue.Condition) {
			t.Helper()
			n.book.mu.Lock()
			defer n.book.mu.Unlock()
			if got := n.book.conditions["a"]; got != want {
				t.Errorf("%s believes %+v of a, want %+v", n.self.ID, got, want)
			}
		}
		believed(a, catalogue.Condition{})
		believed(b, catalogue.Condition{})
		a.SetReady(true)
		a.SetDraining(true)
		time.Sleep(10*time.Millisecond + time.Microsecond) // one way, and no more
		if s := b.status("a"); !s.Ready || !s.Draining {
			t.Errorf("after the change: %+v", s)
		}
		believed(a, catalogue.Condition{Ready: true, Draining: true})
		believed(b, catalogue.Condition{Ready: true, Draining: true})
	})
}
