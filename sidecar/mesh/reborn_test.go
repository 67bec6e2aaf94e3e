package mesh

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// A node that has lost its memory begins at the first incarnation again. Whoever remembers it tells it so, and it goes on as a
// later one, whoever dials, and whether the connection of the process before is seen to end or not.
func TestANodeWithoutMemoryIsTakenIn(t *testing.T) {
	for _, tt := range []struct {
		name        string
		incarnation uint64 // of the process before
		dials       bool   // the new one, not its peer
		frozen      bool   // the old one's connection is not closed
		pause       time.Duration
	}{
		{"at once", 7, true, false, 0},
		{"at once, dialled", 7, false, false, 0},
		{"when it was forgotten", 7, true, false, time.Minute},
		{"when it was forgotten, dialled", 7, false, false, time.Minute},
		{"of its first incarnation", 1, true, false, time.Second},
		{"behind a half open connection", 7, true, true, 0},
		{"behind a half open connection, of its first incarnation", 1, false, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(10 * time.Millisecond)
				a := net.member(t, hostA, config{id: "a"})
				old := net.member(t, hostB, config{id: "b", incarnation: tt.incarnation})
				old.book.publish(1, "before")
				a.SetPeers(at(addrB))
				a.book.hears(t, "b", 1, "before")
				net.freeze(hostB, true)
				if !tt.frozen {
					net.cut(hostB)
				}
				time.Sleep(tt.pause)

				b := net.member(t, hostC, config{id: "b"})
				b.book.publish(2, "after")
				began := time.Now()
				if tt.dials {
					b.SetPeers(at(addrA))
				} else {
					a.SetPeers(at(addrC))
				}
				a.book.hears(t, "b", 2, "after")
				// A distant node's heartbeats would be waited for twelve seconds.
				if took := time.Since(began); took > 8*time.Second {
					t.Errorf("taken in after %v", took)
				}
				if s := a.status("b"); s.Incarnation != tt.incarnation+1 || b.book.Self().Incarnation != tt.incarnation+1 {
					t.Errorf("known as incarnation %d, and says %d itself", s.Incarnation, b.book.Self().Incarnation)
				}
				time.Sleep(time.Minute)
				a.book.hears(t, "b", 2, "after")
				net.freeze(hostB, false)
			})
		})
	}
}

// Who comes with the id of a process that lives does not drive it out, and is not told how to.
func TestTwoProcessesDoNotOutgrowEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(10 * time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b", incarnation: 5})
		b.book.publish(1, "true")
		a.SetPeers(at(addrB))
		a.book.hears(t, "b", 1, "true")
		second := net.member(t, hostC, config{id: "b"})
		second.book.publish(2, "false")
		second.SetPeers(at(addrA))
		time.Sleep(2 * time.Minute)
		a.book.hears(t, "b", 1, "true")
		if got := a.book.forgotten(); len(got) > 0 {
			t.Errorf("the one that lives was forgotten: %v", got)
		}
		if got := second.book.Self().Incarnation; got != 1 {
			t.Errorf("the other one goes on as incarnation %d", got)
		}
		if n := a.counted(t, "sidestream_mesh_refused_total", "stale"); n == 0 {
			t.Error("nothing was reported")
		}
	})
}

// What a peer says of incarnations is bounded.
func TestAbsurdIncarnationsAreNotBelieved(t *testing.T) {
	b := newBook(catalogue.Node{ID: "a", Incarnation: 1, Cluster: "a"})
	m := New(Options{Catalogue: b, Security: Plaintext(), Outgrow: b.outgrow})
	if m.outgrow(maxOutgrow+1) || b.Self().Incarnation != 1 {
		t.Errorf("incarnation %d", b.Self().Incarnation)
	}
	if !m.outgrow(4) || !m.outgrow(3) || b.Self().Incarnation != 5 {
		t.Errorf("incarnation %d", b.Self().Incarnation)
	}
	m.o.Outgrow = nil
	if m.outgrow(9) {
		t.Error("outgrown without a way to do so")
	}
}

// The memory of nodes that are gone is bounded, and the later of two processes is remembered.
func TestFormerProcessesAreBounded(t *testing.T) {
	m := New(Options{Catalogue: newBook(catalogue.Node{ID: "a", Cluster: "a"}), Security: Plaintext()})
	for i, id := range many(maxFormer+10, "n") {
		m.remember(m.newLink(nil, true, &pb.Hello{Node: id, Incarnation: uint64(i), Process: []byte(id)}, ""))
	}
	if len(m.former) > maxFormer {
		t.Errorf("%d are remembered", len(m.former))
	}
	m.remember(m.newLink(nil, true, &pb.Hello{Node: "b", Incarnation: 2, Process: []byte("x")}, ""))
	m.remember(m.newLink(nil, true, &pb.Hello{Node: "b", Incarnation: 1, Process: []byte("y")}, ""))
	if got := m.former["b"]; got.incarnation != 2 || string(got.process) != "x" {
		t.Errorf("remembered: %+v", got)
	}
}
