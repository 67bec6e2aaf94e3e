package catalogue

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sidestream-dev/sidestream/adapters"
)

// State is a catalogue at one moment. It never changes, so that it can be read without a lock; neither may callers
// change what it returns. A look-up of a stream takes a step per known node.
type State struct {
	self    *holder
	nodes   []*holder // by id, the own one among them
	members []Node    // of the own cluster, by id
	streams func() []adapters.StreamID
}

func newState(own *holder, peers map[NodeID]*holder) *State {
	s := &State{self: own, nodes: make([]*holder, 0, len(peers)+1)}
	s.nodes = append(s.nodes, own)
	for _, p := range peers {
		s.nodes = append(s.nodes, p)
	}
	slices.SortFunc(s.nodes, func(a, b *holder) int { return strings.Compare(string(a.ID), string(b.ID)) })
	s.members = s.Nodes(own.Cluster)
	s.streams = sync.OnceValue(func() []adapters.StreamID {
		names := map[adapters.StreamID]struct{}{}
		for _, n := range s.nodes {
			for id := range n.holds {
				names[id] = struct{}{}
			}
		}
		return slices.Sorted(maps.Keys(names))
	})
	return s
}

// Self is the node whose catalogue this is.
func (s *State) Self() Node { return s.self.Node }

// Node finds a node that is alive, this one included.
func (s *State) Node(id NodeID) (Node, bool) {
	n := s.find(id)
	if n == nil {
		return Node{}, false
	}
	return n.Node, true
}

func (s *State) find(id NodeID) *holder {
	i, ok := slices.BinarySearchFunc(s.nodes, id, func(n *holder, id NodeID) int {
		return strings.Compare(string(n.ID), string(id))
	})
	if !ok {
		return nil
	}
	return s.nodes[i]
}

// Nodes are the nodes of a cluster, by id.
func (s *State) Nodes(cluster string) []Node {
	var nodes []Node
	for _, n := range s.nodes {
		if n.Cluster == cluster {
			nodes = append(nodes, n.Node)
		}
	}
	return nodes
}

// Members are the nodes of the own cluster, by id, this one included.
func (s *State) Members() []Node { return s.members }

// Near says whether a node is alive and of the own cluster.
func (s *State) Near(id NodeID) bool {
	n, ok := s.Node(id)
	return ok && n.Cluster == s.self.Cluster
}

// Streams are the names that anybody holds, sorted.
func (s *State) Streams() []adapters.StreamID { return s.streams() }

// Holds are all holds of a stream, by holder, also those of publications that others beat.
func (s *State) Holds(id adapters.StreamID) []Hold {
	var holds []Hold
	for _, n := range s.nodes {
		if h, ok := n.holds[id]; ok {
			holds = append(holds, h)
		}
	}
	return holds
}

// Winner is the publication of a name that all nodes turn to; false where nobody holds any.
func (s *State) Winner(id adapters.StreamID) (Publication, bool) {
	var best Publication
	found := false
	for _, n := range s.nodes {
		h, ok := n.holds[id]
		if !ok {
			continue
		}
		if p := h.Publication(); !found || p.Beats(best) {
			best, found = p, true
		}
	}
	return best, found
}

// Holders are the holds of the winning publication of a name, by holder.
func (s *State) Holders(id adapters.StreamID) []Hold {
	var holds []Hold
	var best Publication
	for _, n := range s.nodes {
		h, ok := n.holds[id]
		if !ok {
			continue
		}
		p := h.Publication()
		if len(holds) == 0 || p.Beats(best) {
			best, holds = p, holds[:0]
		}
		if p == best {
			holds = append(holds, h)
		}
	}
	return holds
}

// Hold is a node's hold of a stream.
func (s *State) Hold(node NodeID, id adapters.StreamID) (Hold, bool) {
	n := s.find(node)
	if n == nil {
		return Hold{}, false
	}
	h, ok := n.holds[id]
	return h, ok
}

// Own is this node's own hold of a stream: an origin's publication or what a relay carries.
func (s *State) Own(id adapters.StreamID) (Hold, bool) {
	h, ok := s.self.holds[id]
	return h, ok
}

// Origin is the publication of a name at the own server, whether or not another beats it.
func (s *State) Origin(id adapters.StreamID) (Hold, bool) {
	h, ok := s.self.holds[id]
	return h, ok && len(h.Path) == 1
}

// Origins are all publications at the own server, by name.
func (s *State) Origins() []Hold {
	var origins []Hold
	for _, h := range s.self.holds {
		if len(h.Path) == 1 {
			origins = append(origins, h)
		}
	}
	slices.SortFunc(origins, func(a, b Hold) int { return strings.Compare(string(a.Stream), string(b.Stream)) })
	return origins
}

// Superseded are the publications at the own server that another node's publication of the same name beats.
func (s *State) Superseded() []Hold {
	return slices.DeleteFunc(s.Origins(), func(h Hold) bool {
		best, _ := s.Winner(h.Stream)
		return best.Origin == s.self.ID
	})
}

// Children are the nodes that announce to pull a stream from a node, whichever publication of it.
func (s *State) Children(id adapters.StreamID, parent NodeID) []NodeID {
	var children []NodeID
	for _, n := range s.nodes {
		if h, ok := n.holds[id]; ok && h.Parent() == parent {
			children = append(children, n.ID)
		}
	}
	return children
}
