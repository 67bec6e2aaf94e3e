package catalogue

import (
	"cmp"
	"slices"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// NodeID names one pod, its server and its sidecar: the pod's UID, else a persisted random one.
type NodeID string

// Node is a sidecar as it introduces itself.
type Node struct {
	ID          NodeID
	Incarnation uint64 // counted up at each start of the same node
	Cluster     string // what a viewer is near to
}

// Condition is what a node says of itself. Of a node that said nothing, it is ready and does not drain.
type Condition struct {
	Ready    bool // it can serve media now
	Draining bool // it is about to leave
}

var usual = Condition{Ready: true}

// Hold is a node's word that a stream, of one epoch, can be had from it by a path.
type Hold struct {
	Stream adapters.StreamID
	// Epoch tells which publication of the name this is (see Publication).
	Epoch uint64
	// Path lists the nodes from the origin to the holder, origin first, holder last. A path of one node is an origin's.
	Path []NodeID
	// Delay adds up the round trips along the path as its nodes measured them: 0 at the origin. It is a hint by which
	// children choose; nothing depends on its truth.
	Delay time.Duration
	// Priority and Oldest are the publication's, by its origin's policy (see Publication).
	Priority int32
	Oldest   bool
	// Tracks are what the origin's server said of the publication; empty where it does not say.
	Tracks []adapters.Track
}

// Origin is the node to whose server the publisher speaks.
func (h Hold) Origin() NodeID {
	if len(h.Path) == 0 {
		return ""
	}
	return h.Path[0]
}

// Holder is the node that announces the hold.
func (h Hold) Holder() NodeID {
	if len(h.Path) == 0 {
		return ""
	}
	return h.Path[len(h.Path)-1]
}

// Parent is whom the holder pulls from, "" at the origin.
func (h Hold) Parent() NodeID {
	if len(h.Path) < 2 {
		return ""
	}
	return h.Path[len(h.Path)-2]
}

// Through says whether the stream passes a node on its way to the holder, or ends there.
func (h Hold) Through(id NodeID) bool { return slices.Contains(h.Path, id) }

// Publication is which publication of its name the hold is of.
func (h Hold) Publication() Publication {
	return Publication{Epoch: h.Epoch, Origin: h.Origin(), Priority: h.Priority, Oldest: h.Oldest}
}

func (h Hold) equal(o Hold) bool {
	return h.Stream == o.Stream && h.Epoch == o.Epoch && h.Delay == o.Delay && h.Priority == o.Priority &&
		h.Oldest == o.Oldest && slices.Equal(h.Path, o.Path) && slices.Equal(h.Tracks, o.Tracks)
}

// Publication tells one publication of a name from another. All that settles a conflict is its origin's word, so that
// every node comes to the same winner, whatever its own policy is.
type Publication struct {
	Epoch  uint64
	Origin NodeID
	// Priority is 0 unless the origin's policy is "priority".
	Priority int32
	// Oldest says that the origin's policy is "oldest": the publication yields to those before it, and to none after it.
	Oldest bool
}

// Beats says which of two publications of one name all nodes turn to: the one of higher priority; else one marked Oldest;
// else, of two marked so, the one of the lower epoch, of others that of the higher, where epoch 0, an unknown age, always
// loses; else that of the smaller origin. It is a strict total order.
func (p Publication) Beats(q Publication) bool {
	return cmp.Or(
		cmp.Compare(q.Priority, p.Priority),
		first(p.Oldest, q.Oldest),
		first(p.Epoch > 0, q.Epoch > 0),
		p.compareAge(q),
		cmp.Compare(p.Origin, q.Origin),
	) < 0
}

// Replaces says whether a publication that its origin itself announces ends another of the same origin: an origin has one of a
// name at a time, and its epochs grow.
func (p Publication) Replaces(q Publication) bool {
	return p != q && p.Origin == q.Origin && p.Epoch >= q.Epoch
}

// compareAge is for publications that are both marked Oldest, or both not.
func (p Publication) compareAge(q Publication) int {
	if p.Oldest {
		return cmp.Compare(p.Epoch, q.Epoch)
	}
	return cmp.Compare(q.Epoch, p.Epoch)
}

// first orders what has a property before what has not.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
