package planner

import (
	"bytes"
	"crypto/sha256"
	"slices"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// Rank orders nodes for a stream by rendezvous hashing, lowest rank first: the first is the owner, who grants the pull,
// the second is asked where it is silent. All nodes compute the same order, and one that comes or goes moves only the
// streams that it ranks first for.
func Rank(stream adapters.StreamID, nodes []catalogue.NodeID) []catalogue.NodeID {
	type ranked struct {
		id  catalogue.NodeID
		sum [sha256.Size]byte
	}
	order := make([]ranked, len(nodes))
	for i, id := range nodes {
		order[i] = ranked{id: id, sum: weight(stream, id)}
	}
	slices.SortFunc(order, func(a, b ranked) int { return bytes.Compare(a.sum[:], b.sum[:]) })
	ids := make([]catalogue.NodeID, len(order))
	for i, r := range order {
		ids[i] = r.id
	}
	return ids
}

// owner is the first of the nodes by Rank that is not among those passed over, "" where none is left.
func owner(stream adapters.StreamID, nodes []catalogue.Node, passed []catalogue.NodeID) catalogue.NodeID {
	var best catalogue.NodeID
	var least [sha256.Size]byte
	for _, n := range nodes {
		if slices.Contains(passed, n.ID) {
			continue
		}
		if sum := weight(stream, n.ID); best == "" || bytes.Compare(sum[:], least[:]) < 0 {
			best, least = n.ID, sum
		}
	}
	return best
}

// weight hashes the two names apart: a stream's name holds no NUL.
func weight(stream adapters.StreamID, id catalogue.NodeID) [sha256.Size]byte {
	b := make([]byte, 0, len(stream)+1+len(id))
	b = append(b, stream...)
	b = append(b, 0)
	b = append(b, id...)
	return sha256.Sum256(b)
}
