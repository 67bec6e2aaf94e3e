package catalogue

import (
	"cmp"
	"slices"

	"github.com/tidwall/btree"

	"github.com/sidestream-dev/sidestream/adapters"
)

// maxLog bounds the changes of which a State can tell one by one.
const maxLog = 4096

// index is all holds by stream, and what follows from them. Its maps are copied in no time and share what does not change,
// so that a State is a copy of it.
type index struct {
	self    Node
	export  Names
	roster  *roster // nil when out of date
	rows    btree.Map[adapters.StreamID, *Row]
	tallies btree.Map[NodeID, tally]
	pulls   btree.Map[string, adapters.StreamID] // what is pulled from this node, by child and stream
	own     []Hold                               // by stream

	// log names the streams in the order of their changes, version counts these. The copies share what lies behind the log:
	// it is only ever appended to.
	log     []adapters.StreamID
	version uint64
}

// tally counts the holds that bind a node to others.
type tally struct {
	children int // of which it is the parent
	ties     int // between it and this node
}

// change replaces a node's hold of a stream; one without a path is none.
func (x *index) change(node NodeID, before, after Hold) {
	if b, a := before.Parent(), after.Parent(); b != a {
		x.count(node, b, before.Stream, -1)
		x.count(node, a, after.Stream, 1)
	}
	row, _ := x.rows.Get(after.Stream)
	if row = row.with(node, after); row == nil {
		x.rows.Delete(after.Stream)
	} else {
		x.rows.Set(row.holds[0].Stream, row)
	}
	if len(x.log) >= 2*maxLog {
		x.log = append(make([]adapters.StreamID, 0, 2*maxLog), x.log[maxLog:]...)
	}
	x.log = append(x.log, after.Stream)
	x.version++
}

// count takes notice that a node pulls a stream from a parent, or does so no longer.
func (x *index) count(child, parent NodeID, stream adapters.StreamID, n int) {
	if parent == "" {
		return
	}
	x.add(parent, tally{children: n})
	switch x.self.ID {
	case child:
		x.add(parent, tally{ties: n})
	case parent:
		x.add(child, tally{ties: n})
		if n > 0 {
			x.pulls.Set(pullKey(child, stream), stream)
		} else {
			x.pulls.Delete(pullKey(child, stream))
		}
	}
}

func (x *index) add(id NodeID, n tally) {
	t, _ := x.tallies.Get(id)
	t.children += n.children
	t.ties += n.ties
	if t == (tally{}) {
		x.tallies.Delete(id)
	} else {
		x.tallies.Set(id, t)
	}
}

// pullKey orders by child, then by stream; neither name ends where the other begins, as a stream's holds no NUL.
func pullKey(child NodeID, stream adapters.StreamID) string {
	return string(child) + "\x00" + string(stream)
}

func (x *index) snapshot() *State {
	s := &State{*x}
	s.rows, s.tallies, s.pulls = *x.rows.Copy(), *x.tallies.Copy(), *x.pulls.Copy()
	return s
}

// roster is the nodes that are alive. It never changes.
type roster struct {
	nodes   []Node // by id
	members []Node // of the own cluster, by id
	owners  []Node // of those, who may own streams
	places  map[NodeID]place
}

type place struct {
	Node
	Condition
	near bool
}

func newRoster(self Node, peers map[NodeID]*holder, conditions map[NodeID]Condition) *roster {
	r := &roster{nodes: make([]Node, 0, len(peers)+1), places: make(map[NodeID]place, len(peers)+1)}
	r.nodes = append(r.nodes, self)
	for _, p := range peers {
		r.nodes = append(r.nodes, p.Node)
	}
	slices.SortFunc(r.nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	for _, n := range r.nodes {
		condition, ok := conditions[n.ID]
		if !ok {
			condition = usual
		}
		near := n.Cluster == self.Cluster
		r.places[n.ID] = place{Node: n, Condition: condition, near: near}
		if near {
			r.members = append(r.members, n)
		}
	}
	r.owners = slices.DeleteFunc(slices.Clone(r.members), func(n Node) bool { return r.places[n.ID].Draining })
	if len(r.owners) == 0 {
		r.owners = r.members
	}
	return r
}

// Row is all that is known of one stream at one moment. It never changes; neither may callers change what it returns. A nil
// Row is that of a stream that nobody holds.
type Row struct {
	holds   []Hold // by holder
	holders []Hold // those of the winner; not empty, nor holds
	fans    []int  // how many of the holders have each of them as their parent
}

// with is the row with a node's hold replaced, nil where none is left.
func (r *Row) with(node NodeID, h Hold) *Row {
	i, held := r.find(node)
	holds := make([]Hold, 0, len(r.Holds())+1)
	holds = append(holds, r.Holds()[:i]...)
	if len(h.Path) > 0 {
		holds = append(holds, h)
	}
	if held {
		i++
	}
	holds = append(holds, r.Holds()[i:]...)
	if len(holds) == 0 {
		return nil
	}
	next := &Row{holds: holds}
	next.elect()
	return next
}

// elect finds the winner and its holders. An origin knows best which publication it has: what others hold of an earlier one
// of the same origin is about to end, and wins nothing, whatever its epoch or priority.
func (r *Row) elect() {
	var best Publication
	found, all := false, true
	for _, h := range r.holds {
		switch p := h.Publication(); {
		case found && p == best:
		case r.Outdated(p):
			all = false
		case !found:
			best, found = p, true
		default:
			all = false
			if p.Beats(best) {
				best = p
			}
		}
	}
	r.holders = r.holds
	if !all {
		r.holders = slices.DeleteFunc(slices.Clone(r.holds), func(h Hold) bool { return h.Publication() != best })
		r.holders = slices.Clip(r.holders)
	}
	r.fans = make([]int, len(r.holders))
	for _, h := range r.holders {
		if i, ok := search(r.holders, h.Parent()); ok {
			r.fans[i]++
		}
	}
}

// Outdated says whether a publication's own origin announces that it has another now.
func (r *Row) Outdated(p Publication) bool {
	h, ok := r.Hold(p.Origin)
	return ok && len(h.Path) == 1 && h.Publication().Replaces(p)
}

func search(holds []Hold, holder NodeID) (int, bool) {
	return slices.BinarySearchFunc(holds, holder, func(h Hold, id NodeID) int { return cmp.Compare(h.Holder(), id) })
}

func (r *Row) find(holder NodeID) (int, bool) { return search(r.Holds(), holder) }

// Holds are all holds of the stream, by holder, also those of publications that others beat.
func (r *Row) Holds() []Hold {
	if r == nil {
		return nil
	}
	return r.holds
}

// Hold is a node's hold of the stream.
func (r *Row) Hold(node NodeID) (Hold, bool) {
	if i, ok := r.find(node); ok {
		return r.holds[i], true
	}
	return Hold{}, false
}

// Winner is the publication that all nodes turn to; false where nobody holds any.
func (r *Row) Winner() (Publication, bool) {
	if r == nil {
		return Publication{}, false
	}
	return r.holders[0].Publication(), true
}

// Holders are the holds of the winning publication, by holder.
func (r *Row) Holders() []Hold {
	if r == nil {
		return nil
	}
	return r.holders
}

// Fan is how many of the Holders pull from the one at a place among them.
func (r *Row) Fan(i int) int { return r.fans[i] }

// Children are the nodes that announce to pull the stream from a node, whichever publication of it.
func (r *Row) Children(parent NodeID) []NodeID {
	var children []NodeID
	for _, h := range r.Holds() {
		if h.Parent() == parent {
			children = append(children, h.Holder())
		}
	}
	return children
}
