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

// Hold is a node's word that a stream, of one epoch, can be had from it by a path.
type Hold struct {
	Stream adapters.StreamID
	// Epoch tells which publication of the name this is; of two, the higher wins.
	Epoch uint64
	// Path lists the nodes from the origin to the holder, origin first, holder last. A path of one node is an origin's.
	Path []NodeID
	// Delay adds up the round trips along the path as its nodes measured them: 0 at the origin. It is a hint by which
	// children choose; nothing depends on its truth.
	Delay time.Duration
	// Priority is the origin's, for the conflict policy of that name.
	Priority int32
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
func (h Hold) Publication() Publication { return Publication{Epoch: h.Epoch, Origin: h.Origin()} }

func (h Hold) equal(o Hold) bool {
	return h.Stream == o.Stream && h.Epoch == o.Epoch && h.Delay == o.Delay && h.Priority == o.Priority &&
		slices.Equal(h.Path, o.Path) && slices.Equal(h.Tracks, o.Tracks)
}

// Publication tells one publication of a name from another.
type Publication struct {
	Epoch  uint64
	Origin NodeID
}

// Beats says which of two publications of one name all nodes turn to: the higher epoch's, of equal epochs the smaller
// origin's.
func (p Publication) Beats(q Publication) bool {
	return cmp.Or(cmp.Compare(q.Epoch, p.Epoch), cmp.Compare(p.Origin, q.Origin)) < 0
}
