package planner

import (
	"slices"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// The reasons of a plan for a second copy.
const (
	WhySecond   Reason = "a second copy, by a way of its own"
	WhyNoSecond Reason = "no other way shares nothing with the first copy's but the origin"
	WhyNotFirst Reason = "the first copy is not of the publication that counts"
	WhyLeaves   Reason = "this node is about to leave"
)

// Second is what a second copy of a stream that is relayed here is planned from.
type Second struct {
	Relay Relay              // of the first copy, which is live
	Path  []catalogue.NodeID // of the first copy, from the origin to its parent
	// Parent is where the second copy comes from now, "" where there is none.
	Parent catalogue.NodeID
}

// Standby decides from which parent a second copy of a stream should come, beside the relay that runs: one whose path shares no node
// with the first copy's but the origin, which may itself be the parent. It wants no claim: the second copy is one on purpose, is
// not announced, and each node takes it for itself. Of several parents it is the cheapest with room that did not fail
// lately, as in.Avoid has it; one that serves is kept as long as it can. The action is Run, Wait, or Nothing where there is no
// such parent; Why says which. Wants, Relays and Claims of the input are not looked at.
func Standby(in Input, stream adapters.StreamID, s Second) Decision {
	in.setDefaults()
	d := Decision{Stream: stream, Why: WhyNoSecond}
	return in.standby(d, s)
}

func (in *Input) standby(d Decision, s Second) Decision {
	row := in.State.Row(d.Stream)
	self := in.State.Self().ID
	if len(s.Path) == 0 || s.Path[len(s.Path)-1] != s.Relay.Parent {
		return d
	}
	// What is not announced any more may only be heard of no more; its packets tell.
	present, holds := row.Hold(s.Parent)
	serves := s.Parent != "" && s.Parent != s.Relay.Parent && (!holds || in.apart(present, s))
	leaving := in.State.Condition(self).Draining
	if serves && (!holds || leaving || in.State.Fit(s.Parent)) {
		return in.second(d, s.Parent, present)
	}
	best, _ := row.Winner()
	switch {
	case leaving:
		d.Why = WhyLeaves
		return d
	case s.Relay.Publication != best:
		d.Why = WhyNotFirst
		return d
	}
	var choice *candidate
	var until time.Time
	for i, h := range row.Holders() {
		id := h.Holder()
		if !in.State.Fit(id) || id == self || !in.apart(h, s) {
			continue
		}
		if t := in.Avoid(d.Stream, id); in.Now.Before(t) {
			until = sooner(until, t)
			continue
		}
		c := &candidate{Hold: h, near: in.State.Near(id), full: row.Fan(i) >= in.FanOut, cost: in.cost(h)}
		if choice == nil || c.compare(choice) < 0 {
			choice = c
		}
	}
	switch {
	case choice != nil:
		return in.second(d, choice.Holder(), choice.Hold)
	case serves:
		return in.second(d, s.Parent, present) // though it is about to leave
	case !until.IsZero():
		d.Action, d.Why, d.Until = Wait, WhyAvoid, until
	}
	return d
}

func (in *Input) second(d Decision, parent catalogue.NodeID, h catalogue.Hold) Decision {
	d.Action, d.Why, d.Parent, d.Hold, d.Outside = Run, WhySecond, parent, h, !in.State.Near(parent)
	return d
}

// apart says whether a holder can give the second copy.
func (in *Input) apart(h catalogue.Hold, s Second) bool {
	return h.Publication() == s.Relay.Publication && h.Holder() != s.Relay.Parent && !h.Through(in.State.Self().ID) &&
		in.counts(h, Relay{}, false, "") && Disjoint(s.Path, h.Path)
}

// Disjoint says whether two paths from one origin have nothing else in common.
func Disjoint(a, b []catalogue.NodeID) bool {
	if len(a) == 0 || len(b) == 0 || a[0] != b[0] {
		return false
	}
	return !slices.ContainsFunc(a[1:], func(id catalogue.NodeID) bool { return slices.Contains(b, id) })
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
