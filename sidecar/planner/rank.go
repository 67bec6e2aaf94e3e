package planner

import (
	"cmp"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// Rank orders nodes for a stream by rendezvous hashing, lowest rank first: the first is the owner, who grants the pull,
// the second is asked where it is silent. All nodes compute the same order, and one that comes or goes moves only the
// streams that it ranks first for.
func Rank(stream adapters.StreamID, nodes []catalogue.NodeID) []catalogue.NodeID {
	order := make([]ranked, len(nodes))
	for i, id := range nodes {
		order[i] = rank(stream, id)
	}
	slices.SortFunc(order, ranked.compare)
	ids := make([]catalogue.NodeID, len(order))
	for i, r := range order {
		ids[i] = r.id
	}
	return ids
}

// owner is the first of the nodes by Rank that is not among those passed over, "" where none is left.
func owner(stream adapters.StreamID, nodes []catalogue.Node, passed []catalogue.NodeID) catalogue.NodeID {
	var best ranked
	for _, n := range nodes {
		if slices.Contains(passed, n.ID) {
			continue
		}
		if r := rank(stream, n.ID); best.id == "" || r.compare(best) < 0 {
			best = r
		}
	}
	return best.id
}

// ranked is a node with its rank for a stream.
type ranked struct {
	id     catalogue.NodeID
	weight uint64
}

func (r ranked) compare(o ranked) int {
	return cmp.Or(cmp.Compare(r.weight, o.weight), cmp.Compare(r.id, o.id))
}

// rank hashes the two names apart: a stream's name holds no NUL.
func rank(stream adapters.StreamID, id catalogue.NodeID) ranked {
	var room [128]byte
	b := append(room[:0], stream...)
	b = append(b, 0)
	b = append(b, id...)
	return ranked{id: id, weight: xxhash.Sum64(b)}
}
