package catalogue

import (
	"slices"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
)

// State is a catalogue at one moment. It never changes, so that it can be read without a lock; neither may callers
// change what it returns. One State shares with the next what is the same in both.
type State struct{ index }

// Self is the node whose catalogue this is.
func (s *State) Self() Node { return s.self }

// Node finds a node that is alive, this one included.
func (s *State) Node(id NodeID) (Node, bool) {
	p, ok := s.roster.places[id]
	return p.Node, ok
}

// Condition is what a node, also this one, says of itself. One that is not known is ready and does not drain.
func (s *State) Condition(id NodeID) Condition {
	if p, ok := s.roster.places[id]; ok {
		return p.Condition
	}
	return usual
}

// Fit says whether a node is ready and does not drain.
func (s *State) Fit(id NodeID) bool { return s.Condition(id) == usual }

// Nodes are the nodes of a cluster, by id.
func (s *State) Nodes(cluster string) []Node {
	return slices.DeleteFunc(slices.Clone(s.roster.nodes), func(n Node) bool { return n.Cluster != cluster })
}

// Members are the nodes of the own cluster, by id, this one included.
func (s *State) Members() []Node { return s.roster.members }

// Owners are those of the members that may own streams within the cluster, by id: all that do not drain, or all if all do.
func (s *State) Owners() []Node { return s.roster.owners }

// Near says whether a node is alive and of the own cluster.
func (s *State) Near(id NodeID) bool { return s.roster.places[id].near }

// Exports says whether the policy lets a stream leave the own cluster.
func (s *State) Exports(id adapters.StreamID) bool { return s.export.Allows(id) }

// Load is how many pulls the nodes announce from one, of all streams.
func (s *State) Load(id NodeID) int {
	t, _ := s.tallies.Get(id)
	return t.children
}

// Related are the parents and children of this node, by id.
func (s *State) Related() []NodeID {
	var nodes []NodeID
	s.tallies.Scan(func(id NodeID, t tally) bool {
		if t.ties > 0 {
			nodes = append(nodes, id)
		}
		return true
	})
	return nodes
}

// Pulls are the streams that a child announces to pull from this node, sorted.
func (s *State) Pulls(child NodeID) []adapters.StreamID {
	var streams []adapters.StreamID
	prefix := pullKey(child, "")
	s.pulls.Ascend(prefix, func(key string, id adapters.StreamID) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		streams = append(streams, id)
		return true
	})
	return streams
}

// Changed are the streams of which any hold differs from an earlier State of the same catalogue, sorted. It is false where
// that cannot be told one by one, or the nodes or their conditions have changed: then anything may differ.
func (s *State) Changed(since *State) (streams []adapters.StreamID, ok bool) {
	if since == nil || since.roster != s.roster || s.version-since.version > uint64(len(s.log)) {
		return nil, false
	}
	streams = slices.Clone(s.log[len(s.log)-int(s.version-since.version):])
	slices.Sort(streams)
	return slices.Compact(streams), true
}

// Streams are the names that anybody holds, sorted.
func (s *State) Streams() []adapters.StreamID { return s.rows.Keys() }

// Row is what is known of a stream, nil where nobody holds it.
func (s *State) Row(id adapters.StreamID) *Row {
	row, _ := s.rows.Get(id)
	return row
}

// Holds are all holds of a stream, by holder, also those of publications that others beat.
func (s *State) Holds(id adapters.StreamID) []Hold { return s.Row(id).Holds() }

// Winner is the publication of a name that all nodes turn to; false where nobody holds any.
func (s *State) Winner(id adapters.StreamID) (Publication, bool) { return s.Row(id).Winner() }

// Holders are the holds of the winning publication of a name, by holder.
func (s *State) Holders(id adapters.StreamID) []Hold { return s.Row(id).Holders() }

// Hold is a node's hold of a stream.
func (s *State) Hold(node NodeID, id adapters.StreamID) (Hold, bool) { return s.Row(id).Hold(node) }

// Own is this node's own hold of a stream: an origin's publication or what a relay carries.
func (s *State) Own(id adapters.StreamID) (Hold, bool) { return s.Hold(s.self.ID, id) }

// Origin is the publication of a name at the own server, whether or not another beats it.
func (s *State) Origin(id adapters.StreamID) (Hold, bool) {
	h, ok := s.Own(id)
	if !ok || len(h.Path) != 1 {
		return Hold{}, false
	}
	return h, true
}

// Origins are all publications at the own server, by name.
func (s *State) Origins() []Hold {
	return slices.DeleteFunc(slices.Clone(s.own), func(h Hold) bool { return len(h.Path) != 1 })
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
	return s.Row(id).Children(parent)
}
