package mesh

import (
	"cmp"
	"slices"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// PeerStatus is what is known of one peer, or of an address at which none has answered.
type PeerStatus struct {
	ID          catalogue.NodeID // "" where nobody has answered
	Incarnation uint64
	Cluster     string
	Address     string // host:port of its peer port
	Version     string
	Connected   bool
	Dialled     bool          // by this node
	Since       time.Time     // when it was connected; zero when it is not
	LastSeen    time.Time     // when anything was heard of it
	RTT         time.Duration // smoothed; 0 before the first measurement
	Related     bool          // its heartbeats come every 500 ms
	Ready       bool
	Draining    bool
	Holds       int
	Error       string // why an address is not connected
}

// Peers is the state of the mesh as this node sees it, by cluster, id and address.
func (m *Mesh) Peers() []PeerStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []PeerStatus
	for _, p := range m.peers {
		s := PeerStatus{
			ID: p.node.ID, Incarnation: p.node.Incarnation, Cluster: p.node.Cluster, Address: p.address,
			LastSeen: p.heard,
		}
		if p.primary != nil {
			s.Connected = true
			p.primary.describe(&s)
		} else if t := m.targets[p.address]; t != nil && t.err != nil {
			s.Error = t.err.Error()
		}
		all = append(all, s)
	}
	for addr, t := range m.targets {
		if t.err != nil && m.peers[t.node] == nil {
			all = append(all, PeerStatus{
				ID: t.node, Cluster: t.cluster, Address: addr, LastSeen: t.heard, Error: t.err.Error(),
			})
		}
	}
	slices.SortFunc(all, func(a, b PeerStatus) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Address, b.Address))
	})
	return all
}

func (l *link) describe(s *PeerStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Version = l.version
	s.Dialled = l.dialled
	s.Since = l.since
	s.LastSeen = l.heard
	s.RTT = l.srtt
	s.Related = min(l.wanted, l.theirs) < distantPeriod
	s.Ready = l.ready
	s.Draining = l.draining
	s.Holds = len(l.holds)
}

// sayGoodbye tells every peer that this node leaves, and waits for a moment until it is said.
func (m *Mesh) sayGoodbye() {
	m.mu.Lock()
	m.closing = true
	var links []*link
	for _, p := range m.peers {
		links = append(links, p.links...)
	}
	m.mu.Unlock()
	for _, l := range links {
		l.leave(&pb.Frame{Body: &pb.Frame_Goodbye{Goodbye: &pb.Goodbye{}}}, errClosing)
	}
	bound := time.NewTimer(farewell)
	defer bound.Stop()
	for _, l := range links {
		select {
		case <-l.done:
		case <-bound.C:
			bound.Reset(0)
			l.end(errClosing)
		}
	}
}

// saidLast says whether the link ended by a last frame from this side.
func (l *link) saidLast() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.final != nil
}
