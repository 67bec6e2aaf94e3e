package planner

import (
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

const (
	// SequenceStep is how often an origin counts its sequence up.
	SequenceStep = 200 * time.Millisecond

	// memoryTime is for how long a distance counts that nobody can have from this node any more. In that time every node has
	// heard what this one withdrew.
	memoryTime = 5 * time.Second
)

// Sequence is an origin's for all its publications: it grows with each start of the origin, and with the time that it has run.
func Sequence(incarnation uint64, running time.Duration) uint64 {
	return incarnation<<32 | uint64(max(running, 0)/SequenceStep)&(1<<32-1)
}

// Feasibility is what a node remembers of the streams that it handed on, so that no loop can form: the feasibility condition
// of RFC 8966, section 3.5.1, with the number of hops from the origin as the metric. A node that has the stream by way of this
// one has a sequence no newer than this one gave out, at a greater depth; so that a parent with a newer one, or with the same
// at less than the least depth that was given out with it, does not have the stream from here. The zero value remembers
// nothing. It is for one goroutine at a time.
type Feasibility struct {
	told map[adapters.StreamID]*distance
}

type distance struct {
	publication catalogue.Publication
	sequence    uint64 // the highest that was handed on
	depth       int    // the least of this node that was handed on with it
	idle        time.Time
}

// Accepts says whether a parent may be taken that is so many hops from the origin and has this sequence of it.
func (f *Feasibility) Accepts(stream adapters.StreamID, p catalogue.Publication, sequence uint64, depth int) bool {
	d := f.told[stream]
	return d == nil || d.publication != p || sequence > d.sequence || sequence == d.sequence && depth < d.depth
}

// Told records what this node hands on: the sequence as it has it, and its own depth.
func (f *Feasibility) Told(stream adapters.StreamID, p catalogue.Publication, sequence uint64, depth int) {
	if f.told == nil {
		f.told = map[adapters.StreamID]*distance{}
	}
	d := f.told[stream]
	switch {
	case d == nil, d.publication != p, sequence > d.sequence:
		f.told[stream] = &distance{publication: p, sequence: sequence, depth: depth}
	case sequence == d.sequence:
		d.depth = min(d.depth, depth)
	}
}

// Forget drops the memory of streams for which this node has had neither source nor children for five seconds: nobody can have
// them from here any more. An origin that lost its state, and counts from the beginning again, is taken then at the latest.
// It says when to call it again, if there is a memory that will be dropped.
func (f *Feasibility) Forget(now time.Time, needed func(adapters.StreamID) bool) (next time.Time) {
	for stream, d := range f.told {
		switch {
		case needed(stream):
			d.idle = time.Time{}
			continue
		case d.idle.IsZero():
			d.idle = now
		case now.Sub(d.idle) >= memoryTime:
			delete(f.told, stream)
			continue
		}
		if at := d.idle.Add(memoryTime); next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}
