// Package planner decides which relays a node should run and from which parents: a pure function from what the node
// knows of the mesh, what is wanted here and what runs already. It reads no clock, starts nothing and asks nobody; the
// relay manager calls it at every change and does what it says.
package planner

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

const (
	// DefaultFanOut bounds the children that a node should have for one stream.
	DefaultFanOut = 8

	hopCost     = 5 * time.Millisecond   // what a hop costs beside its round trip
	loadCost    = 250 * time.Microsecond // what each pull costs that a parent serves already, of whichever stream
	unknownCost = time.Second            // of a parent that was not measured yet
	minGain     = 10 * time.Millisecond
	minGainPart = 5                // a fifth of the present cost
	minStay     = 30 * time.Second // before a relay changes to a cheaper parent
	maxSilent   = 2                // owners that may stay silent before a node pulls unasked
)

// Demand is why a node wants a stream.
type Demand struct {
	Viewers   int  `json:"viewers"` // who plays it from the own server, or waits to
	Children  int  `json:"children"`
	Pinned    bool `json:"pinned"`
	Lingering bool `json:"lingering"` // none of these any more, but a moment ago
}

// Any says whether there is a reason now; lingering is none.
func (d Demand) Any() bool { return d.Viewers > 0 || d.Children > 0 || d.Pinned }

// Want is a stream that is wanted here.
type Want struct {
	Stream adapters.StreamID
	Demand Demand
}

// Relay is a relay that runs here.
type Relay struct {
	Parent      catalogue.NodeID
	Publication catalogue.Publication
	Outside     bool // the parent is of another cluster
	Live        bool // media flows, and the own hold says so
	// Quiet: nothing came for a while, and the parent does not say that its source is paused.
	Quiet bool
	Since time.Time // when it was begun
	Early bool      // the parent has granted the publication, and has not announced it yet
}

// Claim is what is known of the right to pull a stream for the own cluster. The zero value: nobody was asked.
type Claim struct {
	Epoch   uint64
	Granted bool
	Holder  catalogue.NodeID   // to whom it was granted instead
	Silent  []catalogue.NodeID // owners that did not answer
	Until   time.Time          // when all this is out of date
}

// Input is all that a plan follows from.
type Input struct {
	State  *catalogue.State
	Now    time.Time
	Wants  []Want
	Relays map[adapters.StreamID]Relay
	Claims map[adapters.StreamID]Claim
	// Avoid is until when a parent that failed is not to be tried again; nil: none failed.
	Avoid func(stream adapters.StreamID, parent catalogue.NodeID) time.Time
	// Gone says of a holder that nothing comes from it any more, though it is still announced: it does not count, nor who has
	// the stream by way of it. nil: none is.
	Gone func(stream adapters.StreamID, holder catalogue.NodeID) bool
	// RTT is the measured round trip to a node; nil: none was measured.
	RTT    func(catalogue.NodeID) (time.Duration, bool)
	FanOut int // 0: DefaultFanOut
	// Gapless says that a relay changes its parent without a gap, so that a cheaper one is worth the change.
	Gapless bool

	near, far []candidate // room for those of one stream
}

// Action is what to do for a stream.
type Action int

// The actions. All but Nothing leave the relay that runs as it is, unless the decision says Drop.
const (
	Nothing Action = iota // run no relay
	Run                   // run a relay from Parent; where one runs from there at that publication already, it goes on
	Ask                   // ask Owner for the right to pull
	Wait                  // for what Why says, at the latest Until
)

func (a Action) String() string {
	return [...]string{"nothing", "run", "ask", "wait"}[a]
}

// Reason says why, in words for people. The set of reasons is closed.
type Reason string

// The reasons of a plan.
const (
	WhyOrigin     Reason = "published here"
	WhySuperseded Reason = "published here, and superseded by a later publication elsewhere"
	WhyNobody     Reason = "nobody holds it"
	WhyOnlyUs     Reason = "all who hold it have it from this node"
	WhyNear       Reason = "a node of this cluster holds it"
	WhyPull       Reason = "this node pulls it for the cluster"
	WhyUnasked    Reason = "the owners of the pull are silent"
	WhyYield      Reason = "another node of this cluster pulls it too, and ranks lower"
	WhyAsk        Reason = "no node of this cluster holds it; the owner grants the pull"
	WhyGranted    Reason = "the pull was granted to another node of this cluster"
	WhyCheaper    Reason = "a cheaper parent"
	WhyDrain      Reason = "the parent is about to leave"
	WhyGone       Reason = "the parent is lost, or holds another publication"
	WhyPause      Reason = "the parent holds nothing for the moment; what flows goes on"
	WhyOrphan     Reason = "the parent no longer holds it and there is no other; what flows goes on"
	WhyAhead      Reason = "the relay is ahead of what was announced"
	WhyLoop       Reason = "the parent has it from this node"
	WhyLost       Reason = "the parent was lost, or holds nothing any more, before media flowed"
	WhyTurned     Reason = "the parent has turned to another publication"
	WhyQuiet      Reason = "nothing comes any more, and the parent holds nothing"
	WhyAvoid      Reason = "every parent failed lately"
	WhyUnfit      Reason = "the media server here does not take it" // by the caller, who plans for what it takes only
)

// Decision is what to do for one stream.
type Decision struct {
	Stream adapters.StreamID
	Action Action
	Why    Reason
	// Parent is whom to Run from, or the node that is waited for.
	Parent catalogue.NodeID
	// Hold is the parent's, as it was announced; of the zero value where the parent is kept although it holds nothing.
	Hold    catalogue.Hold
	Outside bool             // the parent is of another cluster
	Epoch   uint64           // of the claim to Ask for
	Owner   catalogue.NodeID // whom to Ask
	Until   time.Time        // when to plan again, if nothing happens before
	Drop    bool             // the relay that runs must end now
	End     Reason           // why it must
}

// Plan decides for each wanted stream, in the order of the wants. The decision for one stream depends on no other, so
// that a caller may plan again only for those that a change touches.
//
// A holder is near if it is of the own cluster, else far. Only holders of the winning publication count, and none whose
// path passes this node. A holder that drains or is not ready counts only where all do. The senior is the one puller of
// the cluster that stays if there are several: one that is fit for it, of those the one with no other node of the cluster
// in its path (an origin, or who pulls straight from outside), of several the lowest ranked.
//
//	published  who holds it         what runs here             decision
//	---------  -------------------  -------------------------  ------------------------------------------------
//	here       any                  any                        nothing
//	no         nobody               nothing                    nothing
//	no         nobody               a relay                    goes on: media flows though the control is lost
//	no         only through us      nothing, or a loop         nothing
//	no         near                 nothing                    run from the senior's tree: cheapest with room
//	no         near                 a relay from near          goes on; gapless: a cheaper one
//	no         near                 from far, not live yet     run from near
//	no         near                 from far, we are senior    goes on; gapless: a cheaper far one
//	no         near                 from far, other is senior  run from near, in the senior's tree
//	no         near, all failed     nothing                    wait
//	no         far                  nothing, nobody asked      ask the owner; it is silent: the next; then pull
//	no         far                  nothing, granted to other  wait for that node's hold
//	no         far                  nothing, granted           run: cheapest with room
//	no         far, all failed      nothing                    wait
//	no         far                  from far                   goes on; gapless: a cheaper one
//	no         far                  from far, parent is lost   run from another far one; none: goes on
//	no         far                  from near, parent is lost  as nothing; what flows goes on meanwhile
//	no         near or far          live, parent paused        goes on: the parent looks for another parent itself
//	no         near or far          live, parent drains        as if the parent were lost, where another is not
//	any        any                  quiet, parent holds none   ends; then as nothing
//	any        any                  live, parent turned back   ends; then as nothing
//	any        any                  connects to a lost parent  ends; then as nothing
//	elsewhere  near or far          of a beaten publication    as nothing; what flows goes on meanwhile
//
// A parent is lost when its heartbeat is; it is paused when it lives and announces no hold; it has turned back when it holds a
// publication that the relay's beats: what it sends is of that now, because the relay's is gone. While a relay runs whose
// parent is lost, other holders that have the stream by way of that parent are no better and do not count.
func Plan(in Input) []Decision {
	in.setDefaults()
	decisions := make([]Decision, len(in.Wants))
	for i, w := range in.Wants {
		decisions[i] = in.decide(w.Stream)
	}
	return decisions
}

func (in *Input) setDefaults() {
	if in.FanOut <= 0 {
		in.FanOut = DefaultFanOut
	}
	if in.Avoid == nil {
		in.Avoid = func(adapters.StreamID, catalogue.NodeID) time.Time { return time.Time{} }
	}
	if in.RTT == nil {
		in.RTT = func(catalogue.NodeID) (time.Duration, bool) { return 0, false }
	}
}

// candidate is a holder from which a stream could be taken.
type candidate struct {
	catalogue.Hold
	near bool
	full bool // it has as many children for the stream as it should; this node does not count
	cost time.Duration
}

func (in *Input) decide(stream adapters.StreamID) Decision {
	d := Decision{Stream: stream}
	self := in.State.Self().ID
	relay, runs := in.Relays[stream]
	row := in.State.Row(stream)
	best, held := row.Winner()
	if own, ok := row.Hold(self); ok && len(own.Path) == 1 {
		d.Why = WhyOrigin
		if best.Origin != self {
			d.Why = WhySuperseded
		}
		if runs {
			d.end(d.Why)
		}
		return d
	}
	if runs {
		h, holds := row.Hold(relay.Parent)
		switch {
		case holds && h.Through(self):
			d.end(WhyLoop)
		case holds && relay.Live && !relay.Early && relay.Publication == best && h.Publication() != best:
			d.end(WhyTurned)
		case !holds && !relay.Live:
			d.end(WhyLost)
		case !holds && relay.Quiet:
			d.end(WhyQuiet)
		}
	}
	runs = runs && !d.Drop
	switch {
	case runs && !held:
		return d.keep(relay, WhyOrphan)
	case runs && relay.Publication.Beats(best) && !row.Outdated(relay.Publication):
		return d.keep(relay, WhyAhead)
	case !held:
		d.Why = WhyNobody
		return d
	}

	current := runs && relay.Publication == best
	_, alive := in.State.Node(relay.Parent)
	lost := current && !alive
	senior := Senior(in.State, stream, row.Holders())
	in.gather(&d, row, relay, current, lost, senior)
	near, far := in.near, in.far
	runs = runs && !d.Drop
	current = current && runs
	if current && relay.Live && !lost {
		if _, holds := row.Hold(relay.Parent); !holds {
			return d.keep(relay, WhyPause)
		}
	}
	// A node that drains does not move what flows here: that ends with it.
	leads := current && relay.Live && (senior == self || relay.Outside && in.State.Condition(self).Draining)
	if len(near) > 0 && !leads {
		return in.fromNear(d, relay, current, runs, senior, near)
	}
	switch {
	case len(far) == 0 && runs:
		return d.keep(relay, WhyOrphan)
	case len(far) == 0:
		d.Why = WhyOnlyUs
		if d.Drop {
			d.Why = d.End
		}
		return d
	case current && relay.Outside:
		return in.choose(d, relay, true, far, WhyPull)
	}
	return in.claim(d, relay, runs, best, far)
}

func (d *Decision) end(why Reason) { d.Drop, d.End = true, why }

// gather finds the holders that count, near and far.
func (in *Input) gather(
	d *Decision, row *catalogue.Row, relay Relay, current, lost bool, senior catalogue.NodeID,
) {
	self := in.State.Self().ID
	own, _ := row.Hold(self)
	in.near, in.far = in.near[:0], in.far[:0]
	leave := current && relay.Live && in.State.Condition(relay.Parent).Draining && !in.State.Condition(self).Draining
	fit, free := false, false // whether there is one that is fit, and one that does not hang on a parent that drains
	for _, h := range row.Holders() {
		switch {
		case h.Holder() == self:
		case h.Through(self):
			if current && h.Holder() == relay.Parent {
				d.end(WhyLoop)
			}
		case in.counts(h, relay, lost, senior) && in.State.Fit(h.Holder()):
			fit = true
			free = free || leave && !h.Through(relay.Parent)
		}
	}
	for i, h := range row.Holders() {
		id := h.Holder()
		switch {
		case id == self, h.Through(self), !in.counts(h, relay, lost, senior):
			continue
		case free && h.Through(relay.Parent):
			continue // it drains as well, or must look for another parent itself
		case fit && !in.State.Fit(id) && (!current || id != relay.Parent):
			continue
		}
		fan := row.Fan(i)
		if own.Parent() == id && own.Publication() == h.Publication() {
			fan--
		}
		c := candidate{Hold: h, near: in.State.Near(id), full: fan >= in.FanOut, cost: in.cost(h)}
		if c.near {
			in.near = append(in.near, c)
		} else {
			in.far = append(in.far, c)
		}
	}
}

// counts says whether a holder can be a parent at all. Of two pullers of a cluster one yields also when the heartbeat of the
// parent of both is lost: it may be for a long time that only the control is.
func (in *Input) counts(h catalogue.Hold, relay Relay, lost bool, senior catalogue.NodeID) bool {
	if in.Gone != nil && slices.ContainsFunc(h.Path, func(id catalogue.NodeID) bool { return in.Gone(h.Stream, id) }) {
		return false
	}
	yields := relay.Live && relay.Outside && h.Holder() == senior
	return len(h.Path) < catalogue.MaxPath && (!lost || !h.Through(relay.Parent) || yields)
}

// keep lets the relay go on though its parent holds nothing that could be chosen.
func (d Decision) keep(r Relay, why Reason) Decision {
	d.Action, d.Why, d.Parent, d.Outside = Run, why, r.Parent, r.Outside
	p := r.Publication
	d.Hold = catalogue.Hold{
		Stream: d.Stream, Epoch: p.Epoch, Priority: p.Priority, Oldest: p.Oldest, Path: []catalogue.NodeID{p.Origin, r.Parent},
	}
	if p.Origin == r.Parent {
		d.Hold.Path = d.Hold.Path[:1]
	}
	return d
}

// fromNear takes the stream from a node of the own cluster. Those that have it by way of the senior come first: it will
// not move, so that several that yield at once cannot wait for each other.
func (in *Input) fromNear(
	d Decision, relay Relay, current, runs bool, senior catalogue.NodeID, near []candidate,
) Decision {
	why := WhyNear
	if current && relay.Outside && relay.Live {
		why = WhyYield
	}
	if current && !relay.Outside && slices.ContainsFunc(near, func(c candidate) bool { return c.Holder() == relay.Parent }) {
		return in.choose(d, relay, true, near, why)
	}
	if current && relay.Live && in.State.Condition(relay.Parent).Draining {
		why = WhyDrain
	}
	tree := slices.DeleteFunc(slices.Clone(near), func(c candidate) bool { return in.entry(c.Hold) != senior })
	if len(tree) > 0 {
		if c := in.choose(d, relay, false, tree, why); c.Action == Run {
			return c
		}
	}
	return in.choose(d, relay, false, near, why).unless(relay, runs)
}

// unless lets a relay that runs go on where there is nothing but waiting.
func (d Decision) unless(relay Relay, runs bool) Decision {
	if d.Action != Wait || !runs {
		return d
	}
	until := d.Until
	d = d.keep(relay, WhyAvoid)
	d.Until = until
	return d
}

// claim finds out whether this node may pull for its cluster, and does.
func (in *Input) claim(d Decision, relay Relay, runs bool, best catalogue.Publication, far []candidate) Decision {
	c := in.Claims[d.Stream]
	if c.Epoch != best.Epoch || !in.Now.Before(c.Until) {
		c = Claim{}
	}
	self := in.State.Self().ID
	why := WhyPull
	switch {
	case c.Granted || c.Holder == self:
	case c.Holder != "" && in.Gone != nil && in.Gone(d.Stream, c.Holder):
		why = WhyUnasked // whoever answered does not know yet; two copies for a moment do less harm than none
	case c.Holder != "" && in.State.Near(c.Holder) && !in.State.Condition(c.Holder).Draining:
		d.Action, d.Why, d.Parent, d.Until = Wait, WhyGranted, c.Holder, c.Until
		return d
	case len(c.Silent) >= maxSilent:
		why = WhyUnasked
	default:
		if id := owner(d.Stream, in.State.Owners(), c.Silent); id != "" {
			d.Action, d.Why, d.Owner, d.Epoch = Ask, WhyAsk, id, best.Epoch
			return d
		}
		why = WhyUnasked
	}
	return in.choose(d, relay, false, far, why).unless(relay, runs)
}

// choose takes the cheapest parent with room that did not fail lately. With stay, the relay already runs where the
// candidates are from: it leaves a parent among them only for a good reason, and where none is better, not at all.
func (in *Input) choose(d Decision, relay Relay, stay bool, from []candidate, why Reason) Decision {
	var best, present *candidate
	var until time.Time
	for i := range from {
		c := &from[i]
		if stay && c.Holder() == relay.Parent {
			present = c
		} else if t := in.Avoid(d.Stream, c.Holder()); in.Now.Before(t) {
			if until.IsZero() || t.Before(until) {
				until = t
			}
			continue
		}
		if best == nil || c.compare(best) < 0 {
			best = c
		}
	}
	switch {
	case best == nil && stay:
		why = WhyOrphan
		if !until.IsZero() {
			why = WhyAvoid
		}
		d = d.keep(relay, why)
		d.Until = until
		return d
	case best == nil:
		d.Action, d.Why, d.Until = Wait, WhyAvoid, until
		return d
	case present != nil && in.Gapless && best.better(present):
		if rest := relay.Since.Add(minStay); in.Now.Before(rest) {
			best, d.Until = present, rest
		} else {
			why = WhyCheaper
		}
	case present != nil:
		best = present
	case stay && in.State.Condition(relay.Parent).Draining:
		why = WhyDrain
	case stay:
		why = WhyGone
	}
	d.Action, d.Why, d.Parent, d.Hold, d.Outside = Run, why, best.Holder(), best.Hold, !best.near
	return d
}

// better says whether a parent is worth leaving one that works for.
func (c *candidate) better(present *candidate) bool {
	gain := present.cost - c.cost
	return !c.full && gain >= minGain && gain*minGainPart >= present.cost
}

// compare orders parents: those with room first, then by cost, then so that all ties are broken the same way.
func (c *candidate) compare(o *candidate) int {
	if c.full != o.full {
		if o.full {
			return -1
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(c.cost, o.cost), cmp.Compare(len(c.Path), len(o.Path)), cmp.Compare(c.Holder(), o.Holder()),
	)
}

// cost is what a stream by this parent is behind its publisher, the round trip to the parent and the path before it, and
// something for what the parent has to do already, so that trees spread.
func (in *Input) cost(h catalogue.Hold) time.Duration {
	rtt, ok := in.RTT(h.Holder())
	if !ok {
		rtt = unknownCost
	}
	return rtt + h.Delay + time.Duration(len(h.Path)-1)*hopCost + time.Duration(in.State.Load(h.Holder()))*loadCost
}

// entry is the first node of the own cluster in a path: who brings the stream in.
func (in *Input) entry(h catalogue.Hold) catalogue.NodeID {
	for _, id := range h.Path {
		if in.State.Near(id) {
			return id
		}
	}
	return ""
}

// Senior is, of the holders that bring a stream into the own cluster, the one that stays: who is ready and does not drain
// comes first, then who has no other node of the cluster in its path, then who ranks lowest. It is "" where no near node
// holds the stream.
func Senior(s *catalogue.State, stream adapters.StreamID, holders []catalogue.Hold) catalogue.NodeID {
	var best catalogue.NodeID
	var unfit, detour int
	for _, h := range holders {
		id := h.Holder()
		if !s.Near(id) || h.Parent() != "" && s.Near(h.Parent()) {
			continue
		}
		u, around := 0, 0
		if !s.Fit(id) {
			u = 1
		}
		for _, n := range h.Path[:len(h.Path)-1] {
			if s.Near(n) {
				around++
			}
		}
		if best == "" || cmp.Or(cmp.Compare(u, unfit), cmp.Compare(around, detour), rank(stream, id).compare(rank(stream, best))) < 0 {
			best, unfit, detour = id, u, around
		}
	}
	return best
}

// ErrRefused says that a node is no parent for a child that asked.
var ErrRefused = errors.New("refused")

// Source is the hold by which a node may hand a stream on to a child: the parent's side of the plan. It wraps
// adapters.ErrNoStream where the node has no source itself, and ErrRefused where the child is in its path, the publication
// that it has is superseded, or the child is of another cluster and the stream may not leave this one.
func Source(s *catalogue.State, child catalogue.NodeID, stream adapters.StreamID) (catalogue.Hold, error) {
	h, ok := s.Own(stream)
	if !ok {
		return catalogue.Hold{}, fmt.Errorf("hand on %s to %s: %w", stream, child, adapters.ErrNoStream)
	}
	if !s.Near(child) && !s.Exports(stream) {
		return catalogue.Hold{}, fmt.Errorf("hand on %s to %s: it may not leave the cluster: %w", stream, child, ErrRefused)
	}
	if h.Through(child) {
		return catalogue.Hold{}, fmt.Errorf("hand on %s to %s: it has the stream from that node: %w", stream, child, ErrRefused)
	}
	if best, _ := s.Winner(stream); best != h.Publication() {
		return catalogue.Hold{}, fmt.Errorf("hand on %s to %s: the publication here is superseded by one at %s: %w",
			stream, child, best.Origin, ErrRefused)
	}
	if len(h.Path) >= catalogue.MaxPath {
		return catalogue.Hold{}, fmt.Errorf("hand on %s to %s: the path is too long: %w", stream, child, ErrRefused)
	}
	return h, nil
}
