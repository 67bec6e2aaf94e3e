package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/discovery"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// What discovery says, or does not say any more, ends no link and forgets nobody, whatever it is and for however long.
func TestDiscoveryThatMisbehaves(t *testing.T) {
	for name, report := range map[string]func(second int) []discovery.Peer{
		"flaps every second": func(second int) []discovery.Peer {
			if second%2 == 1 {
				return nil
			}
			return at(addrB, addrC, "10.0.0.9:1")
		},
		"slices deleted by mistake": func(second int) []discovery.Peer {
			if second > 60 {
				return nil
			}
			return at(addrB, addrC, "10.0.0.9:1")
		},
		"half of them at a time": func(second int) []discovery.Peer {
			return at([]string{addrB, addrC, "10.0.0.9:1"}[second%3])
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(10 * time.Millisecond)
				var log diary
				a := net.member(t, hostA, config{id: "a", options: func(o *Options) { o.Logger = log.logger() }})
				b, c := net.member(t, hostB, config{id: "b"}), net.member(t, hostC, config{id: "c"})
				for second := range 3 {
					a.SetPeers(report(second))
					time.Sleep(time.Second)
				}
				a.book.hears(t, "b", 0)
				a.book.hears(t, "c", 0)
				since := map[catalogue.NodeID]time.Time{"b": a.status("b").Since, "c": a.status("c").Since}
				for second := range 3600 {
					a.SetPeers(report(second))
					time.Sleep(time.Second)
				}
				for id, when := range since {
					if s := a.status(id); !s.Connected || s.Since != when {
						t.Errorf("the link to %s: %+v", id, s)
					}
				}
				if got := slices.Concat(a.book.forgotten(), b.book.forgotten(), c.book.forgotten()); len(got) > 0 {
					t.Errorf("forgotten: %v", got)
				}
				if n := net.dialled(addrB) + net.dialled(addrC); n != 2 {
					t.Errorf("dialled %d times", n)
				}
				// The address at which nobody is: its back-off goes on over all reports, and its trouble is one line.
				if n := net.dialled("10.0.0.9:1"); n > 450 {
					t.Errorf("a dead address was dialled %d times in an hour", n)
				}
				if n := log.count("peer not connected"); n > 1 {
					t.Errorf("%d lines about a dead address", n)
				}
				// A connection that breaks meanwhile is renewed, announced or not.
				net.cut(hostB)
				time.Sleep(5 * time.Second)
				if !a.status("b").Connected || len(a.book.forgotten()) > 0 {
					t.Error("not renewed")
				}
			})
		})
	}
}

// Endpoints that always read ready, with pods behind them that never answer: one waits for the other side, one refuses.
func TestDeadPodsBehindReadyEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(10 * time.Millisecond)
		var log diary
		a := net.member(t, hostA, config{id: "a", options: func(o *Options) { o.Logger = log.logger() }})
		b := net.member(t, hostB, config{id: "b"})
		announced := []string{addrB}
		for i := range 50 {
			host := fmt.Sprintf("10.1.0.%d", i)
			announced = append(announced, host+":1")
			if i%2 == 0 {
				net.freeze(host, true)
			}
		}
		a.SetPeers(at(announced...))
		a.book.hears(t, "b", 0)
		since := a.status("b").Since
		time.Sleep(time.Hour)
		for _, addr := range announced[1:] {
			if n := net.dialled(addr); n < 100 || n > 500 {
				t.Errorf("%s was dialled %d times in an hour", addr, n)
			}
		}
		if n := log.count("peer not connected"); n != 50 {
			t.Errorf("%d lines about 50 dead addresses", n)
		}
		if s := a.status("b"); !s.Connected || s.Since != since || len(b.book.forgotten()) > 0 {
			t.Errorf("the link to one that lives: %+v", s)
		}
		if got := a.gauge(t, "sidestream_mesh_conditions", unreachable); got != 50 {
			t.Errorf("%v addresses are shown as not reachable", got)
		}
		b.book.publish(1, "x")
		a.book.hears(t, "b", 1, "x")
	})
}

// A connection of which only one direction works is not one: both sides notice, and make another.
func TestHalfOpenConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(10 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		net.member(t, hostC, config{id: "c"})
		a.SetPeers(at(addrB, addrC))
		a.book.hears(t, "b", 0)
		b.book.hears(t, "a", 0)
		a.book.hears(t, "c", 0)
		since := a.status("c").Since
		old := a.link("b")
		// What b sends on this connection does not arrive any more; what a sends does.
		net.mu.Lock()
		for conn := range net.conns {
			if hostOf(conn.local) == hostA && conn.remote == addrB {
				defer conn.in.setFrozen(false)
				conn.in.setFrozen(true)
			}
		}
		net.mu.Unlock()
		began := time.Now()
		<-old.done
		if took := time.Since(began); took > lostAfter(distantPeriod) {
			t.Errorf("noticed after %v", took)
		}
		time.Sleep(30 * time.Second)
		if s := a.status("b"); !s.Connected || a.links("b") != 1 || b.links("a") != 1 {
			t.Errorf("not connected anew: %+v, %d and %d links", s, a.links("b"), b.links("a"))
		}
		b.book.publish(3, "x")
		a.book.hears(t, "b", 3, "x")
		if s := a.status("c"); s.Since != since {
			t.Error("another link was touched")
		}
	})
}

// Two clusters of one name: said, shown, and nothing is cut.
func TestTwoClustersOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		var log diary
		print := func(text string) func(*Options) {
			return func(o *Options) { o.ClusterFingerprint, o.Logger = []byte(text), log.logger() }
		}
		a := net.member(t, hostA, config{id: "a", cluster: "germany", options: print("one")})
		b := net.member(t, hostB, config{id: "b", cluster: "germany", options: print("two")})
		c := net.member(t, hostC, config{id: "c", cluster: "germany"}) // does not know
		a.SetPeers(at(addrB, addrC))
		a.book.hears(t, "b", 0)
		b.book.hears(t, "a", 0)
		a.book.hears(t, "c", 0)
		for n, other := range map[*node]catalogue.NodeID{a: "b", b: "a"} {
			if s := n.status(other); !s.Connected || !slices.Equal(s.Conditions, []string{clusterNameShared}) {
				t.Errorf("%s: %+v", n.self.ID, s)
			}
			if got := n.gauge(t, "sidestream_mesh_conditions", clusterNameShared); got != 1 {
				t.Errorf("%s: the metric says %v", n.self.ID, got)
			}
		}
		if s := a.status("c"); len(s.Conditions) > 0 || c.status("a").Conditions != nil {
			t.Errorf("with one that has no fingerprint: %+v", s)
		}
		for range 5 {
			net.cut(hostB)
			time.Sleep(time.Minute)
		}
		if n := log.count("level=ERROR", "two clusters have the same name", "SIDESTREAM_CLUSTER"); n != 2 {
			t.Errorf("%d errors in the log of two nodes", n)
		}
	})
}

func TestDiscoveryNamesAnotherCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		var log diary
		a := net.member(t, hostA, config{id: "a", options: func(o *Options) { o.Logger = log.logger() }})
		b := net.member(t, hostB, config{id: "b", cluster: "germany"})
		announced := []discovery.Peer{{Addr: netip.MustParseAddrPort(addrB), Cluster: "kind-germany"}}
		b.SetPeers(at(addrA)) // whoever dials
		a.book.hears(t, "b", 0)
		a.SetPeers(announced)
		for range 3 {
			net.cut(hostB)
			time.Sleep(time.Minute)
		}
		if s := a.status("b"); !s.Connected || s.Cluster != "germany" || !slices.Equal(s.Conditions, []string{clusterMismatch}) {
			t.Errorf("status: %+v", s)
		}
		if n := log.count("level=WARN", "discovery names another cluster"); n != 1 {
			t.Errorf("%d warnings", n)
		}
		announced[0].Cluster = "germany"
		a.SetPeers(announced)
		if s := a.status("b"); len(s.Conditions) > 0 || a.gauge(t, "sidestream_mesh_conditions", clusterMismatch) != 0 {
			t.Errorf("after it was set right: %+v", s)
		}
	})
}

// A peer that lies is seen in the status and in the metric of conditions, for a while.
func TestLiesAreShown(t *testing.T) {
	for _, tt := range []struct {
		name      string
		frames    []*pb.Frame
		condition string
	}{
		{"someone else's id", []*pb.Frame{helloFrame(func(h *pb.Hello) { h.Node = "b" })}, "refused-identity"},
		{"the node's own id", []*pb.Frame{helloFrame(func(h *pb.Hello) { h.Node = "a" })}, "refused-identity"},
		{"an absurd clock", []*pb.Frame{helloFrame(func(h *pb.Hello) { h.Clock = 1 << 40 })}, "refused-clock"},
		{"an absurd clock later", []*pb.Frame{helloFrame(nil), confirmFrame(), heartbeatFrame(func(h *pb.Heartbeat) { h.Clock = 1 << 40 })}, "refused-clock"},
		{"an endless catalogue", func() []*pb.Frame {
			frames := []*pb.Frame{helloFrame(nil), confirmFrame()}
			for i := range catalogue.MaxHolds/1000 + 1 {
				frames = append(frames, holdsFrame(1, 0, func(h *pb.Holds) { h.More = true }, many(1000, fmt.Sprint("s", i))...))
			}
			return frames
		}(), "refused-holds"},
		{"a namespace that is none", []*pb.Frame{helloFrame(func(h *pb.Hello) { h.Namespace = "a.b" })}, "refused-frame"},
		{"a fingerprint without end", []*pb.Frame{helloFrame(func(h *pb.Hello) { h.ClusterFingerprint = make([]byte, 65) })}, "refused-frame"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(time.Millisecond)
				a := net.member(t, hostA, config{id: "a"})
				net.member(t, hostB, config{id: "b"})
				a.SetPeers(at(addrB))
				a.book.hears(t, "b", 0)
				s := net.stranger(t, hostC, addrA)
				for i, f := range tt.frames {
					if s.send(f) != nil {
						break
					}
					if i == 0 && len(tt.frames) > 1 {
						if _, err := s.recv(); err != nil {
							t.Fatal(err)
						}
					}
				}
				_ = refusedWith(s)
				time.Sleep(time.Second)
				shown := func() []PeerStatus {
					return slices.DeleteFunc(a.Peers(), func(s PeerStatus) bool { return !slices.Contains(s.Conditions, tt.condition) })
				}
				if got := shown(); len(got) != 1 || got[0].Connected || got[0].Error == "" || !strings.HasPrefix(got[0].Address, hostC) {
					t.Errorf("status: %+v", a.Peers())
				}
				if got := a.gauge(t, "sidestream_mesh_conditions", tt.condition); got != 1 {
					t.Errorf("the metric says %v", got)
				}
				if s := a.status("b"); !s.Connected || len(s.Conditions) > 0 {
					t.Errorf("the true one: %+v", s)
				}
				time.Sleep(refusalShown)
				if got := shown(); len(got) > 0 {
					t.Errorf("still shown: %+v", got)
				}
			})
		})
	}
}

// An epoch that cannot be is not believed, the peer's other holds are; it is shown for as long as it is announced.
func TestAnAbsurdEpochIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		known := catalogue.New(catalogue.Node{ID: "a", Incarnation: 1, Cluster: "near"})
		a := net.member(t, hostA, config{id: "a", options: func(o *Options) { o.Catalogue = known }})
		b := net.member(t, hostB, config{id: "b"})
		b.SetPeers(at(addrA))
		b.book.mu.Lock()
		b.book.own = []catalogue.Hold{
			{Stream: "absurd", Epoch: 1 << 40, Path: []catalogue.NodeID{"b"}}, {Stream: "good", Epoch: 1, Path: []catalogue.NodeID{"b"}},
		}
		b.book.touch()
		b.book.mu.Unlock()
		time.Sleep(time.Second)
		state, _ := known.Snapshot()
		if len(state.Holders("good")) != 1 || len(state.Holders("absurd")) != 0 {
			t.Error("the wrong one is believed")
		}
		if s := a.status("b"); !s.Connected || !slices.Equal(s.Conditions, []string{holdsDoubted}) || !strings.Contains(s.Error, "too far ahead") {
			t.Errorf("status: %+v", s)
		}
		if a.gauge(t, "sidestream_mesh_conditions", holdsDoubted) != 1 || a.counted(t, "sidestream_mesh_refused_total", "holds") != 1 {
			t.Error("no metric shows it")
		}
		b.book.publish(2, "good")
		time.Sleep(time.Second)
		if s := a.status("b"); len(s.Conditions) > 0 || s.Error != "" {
			t.Errorf("still shown: %+v", s)
		}
	})
}

// The status as the console and others read it.
func TestStatusInJSON(t *testing.T) {
	got, err := json.Marshal(PeerStatus{
		ID: "b", Cluster: "germany", Address: "10.0.0.1:1", LastSeen: time.Unix(0, 0).UTC(), RTT: 2 * time.Millisecond, Error: "words",
		Conditions: []string{unreachable},
	})
	want := `{"id":"b","cluster":"germany","address":"10.0.0.1:1","connected":false,"dialled":false,` +
		`"lastSeen":"1970-01-01T00:00:00Z","rtt":2000000,"related":false,"ready":false,"draining":false,"holds":0,` +
		`"error":"words","conditions":["unreachable"]}`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}

// Every condition has a row in the manual.
func TestConditionsAreDocumented(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range conditions {
		if !strings.Contains(string(manual), "`"+c+"`") {
			t.Errorf("docs/operations.md has nothing on %s", c)
		}
	}
}

// Refusals that are remembered are bounded, whatever strangers call themselves.
func TestRefusalsAreBounded(t *testing.T) {
	m := New(Options{Catalogue: newBook(catalogue.Node{ID: "a"})})
	why := &refusal{reason: "identity", err: errImpostor}
	for i := range 1000 {
		m.noteRefusal(catalogue.Node{ID: catalogue.NodeID(fmt.Sprint(i))}, "10.0.0.1:1", why)
	}
	if got := m.Peers(); len(got) != maxRefusals {
		t.Errorf("%d are remembered", len(got))
	}
}

// Who sends without end is read slowly, then cut, and not let in again at once; the others do not notice.
func TestAFloodIsHeldBackAndCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		a.SetPeers(at(addrB))
		a.book.hears(t, "b", 0)
		s := net.stranger(t, hostC, addrA)
		join(t, s)
		began, sent := time.Now(), 0
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		seen := make(chan bool, 1)
		go func() {
			time.Sleep(5 * time.Second)
			seen <- slices.Contains(a.status("s").Conditions, flooding)
		}()
		for ctx.Err() == nil {
			sent++
			if err := s.send(heartbeatFrame(func(h *pb.Heartbeat) { h.Sequence = uint64(sent) })); err != nil {
				break
			}
		}
		err := refusedWith(s)
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("ended with %v", err)
		}
		took := time.Since(began)
		if took < floodFor || took > floodFor+2*time.Second {
			t.Errorf("cut after %v", took)
		}
		// What is in buffers comes on top.
		if bound := frameBurst + frameRate*int(took.Seconds()+1) + 2*window/16; sent > bound {
			t.Errorf("%d frames got through, more than %d: the sender was not held back", sent, bound)
		}
		if !<-seen {
			t.Error("the status did not show it")
		}
		time.Sleep(time.Second)
		if n := a.counted(t, "sidestream_mesh_refused_total", "rate"); n != 1 {
			t.Errorf("%v refusals", n)
		}
		if a.counted(t, "sidestream_mesh_frames_delayed_total", "") == 0 || a.gauge(t, "sidestream_mesh_conditions", "refused-rate") != 1 {
			t.Error("no metric shows it")
		}
		again := net.stranger(t, hostC, addrA)
		if err := again.send(helloFrame(nil)); err != nil {
			t.Fatal(err)
		}
		if err := refusedWith(again); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a moment later: %v", err)
		}
		time.Sleep(floodFor)
		join(t, net.stranger(t, hostC, addrA))
		b.book.publish(2, "x")
		a.book.hears(t, "b", 2, "x")
		if got := a.book.forgotten(); slices.Contains(got, "b") {
			t.Error("somebody else was forgotten")
		}
	})
}

// An honest node is never held back: its largest full set at once, and then as much as the busiest of nodes says.
func TestAnHonestNodeIsNotHeldBack(t *testing.T) {
	var names []adapters.StreamID
	for i := range catalogue.MaxHolds {
		names = append(names, adapters.StreamID(fmt.Sprintf("studio/camera-%05d-%s", i, strings.Repeat("x", 60))))
	}
	b := newBook(catalogue.Node{ID: "a", Cluster: "germany"})
	b.publish(1, names...)
	p, now := newPace(), time.Now()
	take := func(f *pb.Frame) {
		t.Helper()
		if wait, err := p.take(f, now); wait > 0 || err != nil {
			t.Fatalf("held back for %v, %v", wait, err)
		}
	}
	for _, f := range pieces(nil, &announcement{sequence: 1, holds: b.own}) {
		take(f)
	}
	for i := range uint64(2000) { // everything starts at once: a claim, a pull and an update for each
		take(&pb.Frame{Body: &pb.Frame_ClaimRequest{ClaimRequest: &pb.ClaimRequest{Request: i, Stream: string(names[i])}}})
		take(&pb.Frame{Body: &pb.Frame_PullRequest{PullRequest: &pb.PullRequest{Request: i, Stream: string(names[i])}}})
		for _, f := range pieces(&announcement{sequence: i + 1, holds: b.own[:i]}, &announcement{sequence: i + 2, holds: b.own[:i+1]}) {
			take(f)
		}
	}
	for range 60 * 500 { // 500 frames a second for a minute
		now = now.Add(2 * time.Millisecond)
		take(heartbeatFrame(nil))
	}
}

// The connections of one address are bounded before they cost a handshake.
func TestHandshakesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a"})
		net.member(t, hostB, config{id: "b"})
		a.SetPeers(at(addrB))
		a.book.hears(t, "b", 0)
		dial := net.dialFrom(hostC)
		for range remoteBurst + 100 {
			conn, err := dial(t.Context(), addrA)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
		}
		synctest.Wait()
		// Meanwhile the bucket got some back: each dial took 2 ms.
		if n := a.counted(t, "sidestream_mesh_handshakes_limited_total", ""); n < 30 || n > 100 {
			t.Errorf("%v of 100 too many were closed", n)
		}
		if s := a.status("b"); !s.Connected {
			t.Error("a link was touched")
		}
	})
}

func TestRemotes(t *testing.T) {
	r, now := newRemotes(), time.Now()
	allowed := func(addr string, n int) int {
		count := 0
		for range n {
			if r.allow(memAddr(addr), now) {
				count++
			}
		}
		return count
	}
	if n := allowed("10.0.0.1:1", 2*remoteBurst); n != remoteBurst {
		t.Errorf("%d allowed at once", n)
	}
	if n := allowed("[::ffff:10.0.0.1]:9", 1); n != 0 {
		t.Error("another form of the address is another one")
	}
	if n := allowed("10.0.0.2:1", 1); n != 1 {
		t.Error("one address is refused for another")
	}
	if n := allowed("[fd00:0:0:1::1]:1", remoteBurst) + allowed("[fd00:0:0:1:ffff::2%eth0]:1", 1); n != remoteBurst {
		t.Errorf("%d of one network", n)
	}
	now = now.Add(time.Second)
	if n := allowed("10.0.0.1:1", 2*remoteBurst); n != remoteRate {
		t.Errorf("%d a second later", n)
	}
	for i := range 3 * maxRemotes {
		allowed(fmt.Sprintf("10.%d.%d.%d:1", 1+i>>16, i>>8&255, i&255), 1)
		now = now.Add(time.Microsecond)
	}
	if len(r.seen) > maxRemotes {
		t.Errorf("%d addresses are remembered", len(r.seen))
	}
	if n := allowed("a name", 1); n != 1 {
		t.Error("what is no address is refused")
	}
}

// The rate of all handshakes together is go-grpc-middleware's to ask for.
func TestCallsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(0)
		a := net.member(t, hostA, config{id: "a"})
		b := net.member(t, hostB, config{id: "b"})
		a.SetPeers(at(addrB))
		a.book.hears(t, "b", 0)
		// One connection may make calls one after the other, without a handshake of TLS for each.
		client := pb.NewMeshServiceClient(net.channel(t, hostC, addrA))
		refused := 0
		for range callBurst + 100 {
			call, err := client.Exchange(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_ = call.CloseSend()
			if _, err := call.Recv(); status.Code(err) == codes.ResourceExhausted {
				refused++
			}
		}
		if refused == 0 || a.counted(t, "sidestream_mesh_refused_total", "handshakes") != float64(refused) {
			t.Errorf("%d refused, %v counted", refused, a.counted(t, "sidestream_mesh_refused_total", "handshakes"))
		}
		if s := a.status("b"); !s.Connected {
			t.Error("a link was touched")
		}
		time.Sleep(time.Minute)
		b.book.publish(1, "x")
		a.book.hears(t, "b", 1, "x")
	})
}

func TestConditionsAreAllKnown(t *testing.T) {
	for _, err := range []error{
		&fault{reason: faultExpired}, &fault{reason: faultAuthority}, &fault{reason: faultName}, &fault{reason: faultPlaintext},
		&fault{reason: faultOther}, &refusal{reason: "identity", err: errForeign}, &turnedAway{}, errLost, errors.New("anything"),
		&refusal{reason: reasonOf(errFlood), err: errFlood}, &refusal{reason: reasonOf(errors.New("x")), err: errFlood},
		&refusal{reason: reasonOf(errStale), err: errStale}, &refusal{reason: reasonOf(catalogue.ErrJump), err: errStale},
	} {
		if c := conditionOf(err); !slices.Contains(conditions, c) {
			t.Errorf("%v: %q is not documented", err, c)
		}
	}
	for _, err := range []error{nil, errClosing, errGoodbye, errSuperseded} {
		if c := conditionOf(err); c != "" {
			t.Errorf("%v: %q", err, c)
		}
	}
}
