package main

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// As in the package relay.
const (
	claimTimeout = 300 * time.Millisecond
	claimAgain   = time.Second
	leaseTime    = 5 * time.Second
	missingTime  = time.Second
	serverTime   = time.Second
	steadyTime   = 10 * time.Second
	doubtTime    = time.Minute
	stepTimeout  = 10 * time.Second
	holdTime     = 10 * time.Second
	soonTime     = 700 * time.Millisecond
	quietTime    = 2 * time.Second
	quietAgain   = 500 * time.Millisecond
	moveTimeout  = 20 * time.Second
	graceTime    = 15 * time.Second
	returnTime   = 8 * time.Second
	goneTime     = 2 * time.Second
	overdueTime  = 650 * time.Millisecond
	doubtAgain   = 50 * time.Millisecond
	pauseAgain   = 250 * time.Millisecond
	silenceTime  = 300 * time.Millisecond // as a session has it
	lostTime     = 10 * time.Second       // likewise: without a source
)

var (
	errSilent     = errors.New("it has fallen silent")
	errCodec      = errors.New("codec differs")
	errParent     = errors.New("the parent's server closed the session")
	errTransport  = errors.New("the connection to the parent's server is lost")
	errServer     = errors.New("the own server refused")
	errMissing    = errors.New("the parent has no source")
	errAway       = errors.New("the parent does not answer")
	errGrant      = errors.New("refused grant")
	errInfeasible = errors.New("it has not heard the origin since this node has")
	errCancelled  = errors.New("cancelled")
)

// entry is a stream that is, or was a moment ago, wanted or carried here.
type entry struct {
	stream     int
	held       int
	demand     planner.Demand
	lastDemand time.Duration
	decision   planner.Decision
	claim      planner.Claim
	asking     bool
	run        *run
	failures   map[NodeID]*failure
	retry      pauses
	failed     int
	refused    bool // by the own server, since a relay was live
	retryAt    time.Duration
	backward   time.Duration
	due        alarm
}

type failure struct {
	pauses      pauses
	until       time.Duration
	missing     bool
	gone        bool
	publication catalogue.Publication
}

// pauses grow, as those of the backoff package do.
type pauses struct{ first, most, next time.Duration }

func (b *pauses) pause(w *world) time.Duration {
	if b.next == 0 {
		b.next = b.first
	}
	d := b.next
	b.next = min(2*b.next, b.most)
	return time.Duration(float64(d) * (0.7 + 0.6*w.rand.Float64()))
}

func (b *pauses) reset() { b.next = 0 }

// run is one attempt to relay a stream, or one relay.
type run struct {
	s           *sidecar
	e           *entry
	stream      int
	parent      NodeID
	incarnation uint64
	outside     bool
	publication catalogue.Publication
	path        []NodeID
	delay       time.Duration
	tracks      []adapters.Track
	seen        bool
	before      catalogue.Publication
	sequence    uint64
	granted     bool
	session     *session // at the parent's server; nil before it was opened
	location    string
	relayed     int // at the own server
	stopping    string
	withdrawn   bool
	dark        bool // it was live, and has no source for the moment
	darkAt      time.Duration
	moving      bool
	next        *run        // that takes over, where moving
	abort       func(error) // of a change to it
	below       uint64
	lost        bool          // its session's source has ended
	over        bool          // it carries nothing any more
	flowing     bool          // media comes in
	lastPacket  time.Duration // while it does not: when it did last
	since       time.Duration
	liveAt      time.Duration // -1: it is not
	reported    bool
	deadSince   time.Duration // of the transport; -1: it works
}

func (r *run) live() bool { return r != nil && r.liveAt >= 0 && !r.withdrawn && !r.dark }

func (r *run) ending() bool { return r != nil && (r.stopping != "" || r.withdrawn) }

// claimAnswer and grant are what the mesh carries.
type (
	claimAnswer relay.Claim
	grant       struct {
		path     []NodeID
		of       catalogue.Publication
		sequence uint64
		refused  error
	}
	flow struct {
		age      time.Duration
		known    bool
		sequence uint64
	}
)

func (p *sidecar) local(d time.Duration) time.Time { return p.node.clock(d) }

func (p *sidecar) virtual(t time.Time) time.Duration { return t.Sub(p.node.clock(0)) }

func (p *sidecar) streams() []int { return slices.Sorted(maps.Keys(p.entries)) }

// touch lets the manager look at a stream again.
func (p *sidecar) touch(stream int) {
	p.touched[stream] = struct{}{}
	p.wake()
}

func (p *sidecar) wake() {
	p.plan.ring(&p.w.queue, p.w.now+p.w.draw(p.w.think), func() {
		if p.alive && !p.ended {
			p.reconcile()
		}
	})
}

// reported takes the manager's part of what the media server reports.
func (p *sidecar) reported(streams []adapters.Stream) {
	server := make(map[int]adapters.Stream, len(streams))
	for _, s := range streams {
		i := p.w.index(s.ID)
		server[i] = s
		if before, ok := p.server[i]; !ok || before.Readers != s.Readers || before.Session != s.Session {
			p.touch(i)
		}
	}
	for i := range p.server {
		if _, ok := server[i]; !ok {
			p.touched[i] = struct{}{}
			p.wake()
		}
	}
	p.server = server
	for _, i := range p.streams() {
		r := p.entries[i].run
		if !r.live() {
			continue
		}
		if _, ok := server[i]; ok {
			r.reported = true
		} else if r.reported {
			p.stop(p.entries[i], "dropped")
			p.touch(i)
		}
	}
}

// acquire holds a viewer's play until there is an outcome; false where there is one already.
func (p *sidecar) acquire(stream int) bool {
	id := p.w.names[stream]
	state, _ := p.catalogue.Snapshot()
	if _, ok := state.Origin(id); ok || p.ended || !p.swept {
		return false
	}
	e := p.entries[stream]
	if e == nil || e.run == nil {
		if _, held := state.Winner(id); !held {
			return false
		}
	}
	if e != nil && e.run.live() {
		return false
	}
	e = p.entry(stream)
	e.held++
	p.touch(stream)
	at := p.node.server.spots[stream]
	at.asks++
	ask := at.asks
	p.w.after(holdTime, func() {
		if p.alive && at.asked && at.asks == ask {
			p.outcome(e)
		}
	})
	return true
}

// outcome lets the play that waits go on.
func (p *sidecar) outcome(e *entry) {
	at := p.node.server.spots[e.stream]
	if at.asked {
		at.answered()
		p.unhold(e.stream)
	}
}

func (p *sidecar) unhold(stream int) {
	if e := p.entries[stream]; e != nil && e.held > 0 {
		e.held--
		e.lastDemand = p.w.now
		p.touch(stream)
	}
}

// claim answers a node of the own cluster, as the stream's owner.
func (p *sidecar) claim(from NodeID, stream int, epoch uint64) relay.Claim {
	state, _ := p.catalogue.Snapshot()
	return p.claims.Claim(p.local(p.w.now), state, from, p.w.names[stream], epoch)
}

// grant lets a child pull.
func (p *sidecar) grant(child NodeID, stream int) (grant, error) {
	state, _ := p.catalogue.Snapshot()
	own, err := planner.Source(state, child, p.w.names[stream])
	if err != nil {
		return grant{}, err
	}
	sequence, ok := p.handOn(state, own)
	if !ok {
		return grant{}, adapters.ErrNoStream
	}
	if own.Through(child) {
		p.w.watch.fail(p.w.now, "%s lets %s pull what it has by %v", p.self.ID, child, own.Path)
	}
	return grant{path: own.Path, of: own.Publication(), sequence: sequence}, nil
}

// flows are the streams that a child announces to pull from here, for a heartbeat to it.
func (p *sidecar) flows(child NodeID) map[int]flow {
	state, _ := p.catalogue.Snapshot()
	pulls := state.Pulls(child)
	if len(pulls) == 0 {
		return nil
	}
	flows := make(map[int]flow, len(pulls))
	for _, id := range pulls {
		own, ok := state.Own(id)
		if theirs, _ := state.Hold(child, id); !ok || theirs.Publication() != own.Publication() {
			continue
		}
		sequence, ok := p.handOn(state, own)
		if !ok {
			continue
		}
		i := p.w.index(id)
		f := flow{sequence: sequence}
		if len(own.Path) > 1 {
			f.age, f.known = p.w.now-p.entries[i].run.packet(), true
		}
		flows[i] = f
	}
	return flows
}

// handOn is the sequence that goes with the own hold to a child, and remembers that it does.
func (p *sidecar) handOn(state *catalogue.State, own catalogue.Hold) (uint64, bool) {
	if len(own.Path) == 1 {
		return planner.Sequence(p.self.Incarnation, p.w.now-p.began), true
	}
	e := p.entries[p.w.index(own.Stream)]
	if e == nil || !e.run.live() || e.run.publication != own.Publication() {
		return 0, false
	}
	r := e.run
	h, ok := state.Hold(r.parent, own.Stream)
	if ok && p.w.now >= e.backward && slices.Equal(h.Path, r.path[:len(r.path)-1]) && h.Publication() == r.publication {
		if f, ok := p.flow(r.parent, e.stream); ok {
			r.sequence = f.sequence
		}
	}
	sequence := r.sequence
	if r.below > 0 && sequence >= r.below {
		sequence = r.below - 1
	}
	p.feasible.Told(own.Stream, r.publication, sequence, len(r.path)-1)
	return sequence, true
}

// flow is what a parent said last of a stream.
func (p *sidecar) flow(parent NodeID, stream int) (flow, bool) {
	l := p.link(parent)
	if l == nil {
		return flow{}, false
	}
	f, ok := l.flows[stream]
	f.age += p.w.now - l.flowsAt
	return f, ok
}

func (p *sidecar) entry(stream int) *entry {
	e := p.entries[stream]
	if e == nil {
		e = &entry{
			stream: stream, failures: map[NodeID]*failure{}, lastDemand: p.w.now,
			retry: pauses{first: 100 * time.Millisecond, most: 5 * time.Second},
		}
		p.entries[stream] = e
	}
	return e
}

// reconcile plans for the streams that something has changed for, and applies the plan.
func (p *sidecar) reconcile() {
	p.believeDoubts()
	state := p.learn()
	p.follow(state)
	if p.stale {
		p.publish()
		state = p.learn()
	}
	now := p.local(p.w.now)
	p.claims.Observe(now, state)

	in := planner.Input{
		State: state, Now: now, RTT: p.RTT, FanOut: p.w.fanOut, Avoid: p.avoid, Gone: p.gone, Gapless: true,
		Relays: map[adapters.StreamID]planner.Relay{}, Claims: map[adapters.StreamID]planner.Claim{},
	}
	for _, i := range p.work() {
		e := p.raise(state, i)
		if e == nil {
			continue
		}
		id := p.w.names[i]
		switch {
		case !e.demand.Any() && !e.demand.Lingering:
			p.stop(e, "unwanted")
			e.decision = planner.Decision{Stream: id}
			if p.idle(e) {
				delete(p.entries, i)
			}
		case !e.run.ending():
			in.Wants = append(in.Wants, planner.Want{Stream: id, Demand: e.demand})
			in.Claims[id] = e.claim
			if r := e.run; r != nil && r.moving {
				if h, ok := state.Hold(r.next.parent, id); !ok || h.Through(p.self.ID) {
					r.next.abort(errCancelled)
				}
			}
			if r := e.run; r != nil && r.dark && !r.moving {
				if p.w.now >= r.darkAt+graceTime {
					p.stop(e, "lost")
					continue
				}
				p.lookAgain(e, r.darkAt+graceTime)
			}
			if e.run != nil && !e.run.dark {
				in.Relays[id] = p.relay(e, state)
			}
		}
		if e.demand.Lingering {
			p.lookAgain(e, e.lastDemand+p.w.linger)
		}
		for _, f := range e.failures {
			if f.gone {
				p.lookAgain(e, f.until)
			}
		}
	}
	for _, d := range planner.Plan(in) {
		e := p.entries[p.w.index(d.Stream)]
		if d.Action == planner.Ask && d.Owner == p.self.ID {
			e.claim = p.claimed(d.Epoch, p.claim(d.Owner, e.stream, d.Epoch))
			in.Claims[d.Stream] = e.claim
			in.Wants = []planner.Want{{Stream: d.Stream, Demand: e.demand}}
			d = planner.Plan(in)[0]
		}
		if d.Action == planner.Run && d.Hold.Through(p.self.ID) {
			p.w.watch.fail(p.w.now, "%s is to take %s from %s, which has it by %v", p.self.ID, d.Stream, d.Parent, d.Hold.Path)
		}
		e.decision = d
		p.apply(e)
		if !d.Until.IsZero() {
			p.lookAgain(e, p.virtual(d.Until))
		}
		p.lookAgain(e, e.retryAt)
	}
	p.publish()
	next := p.feasible.Forget(now, func(id adapters.StreamID) bool {
		row := state.Row(id)
		_, held := row.Hold(p.self.ID)
		return held || len(row.Children(p.self.ID)) > 0
	})
	if !next.IsZero() {
		p.forgetting.ring(&p.w.queue, p.virtual(next), p.wake)
	}
}

func (p *sidecar) avoid(id adapters.StreamID, parent NodeID) time.Time {
	if e := p.entries[p.w.index(id)]; e != nil && e.failures[parent] != nil {
		return p.local(e.failures[parent].until)
	}
	return time.Time{}
}

// relay is what runs for an entry, as the planner knows it.
func (p *sidecar) relay(e *entry, state *catalogue.State) planner.Relay {
	r := e.run
	relay := planner.Relay{
		Parent: r.parent, Publication: r.publication, Outside: r.outside, Live: r.live(), Since: p.local(r.since),
	}
	h, holds := state.Hold(r.parent, p.w.names[e.stream])
	r.seen = r.seen || holds && h.Publication() == r.publication
	relay.Early = !r.seen && h.Publication() == r.before
	if holds || !r.live() {
		return relay
	}
	if quiet := max(r.packet(), r.liveAt) + quietTime; p.w.now < quiet {
		p.lookAgain(e, quiet)
		return relay
	}
	f, told := p.flow(r.parent, e.stream)
	relay.Quiet = !told || !f.known || f.age < quietTime
	p.lookAgain(e, p.w.now+quietAgain)
	return relay
}

// packet is when the last packet came from the parent.
func (r *run) packet() time.Duration {
	if r.flowing {
		return r.s.w.now
	}
	return r.lastPacket
}

// learn takes notice of what the catalogue knows now.
func (p *sidecar) learn() *catalogue.State {
	state, _ := p.catalogue.Snapshot()
	changed, ok := state.Changed(p.seen)
	p.all = p.all || !ok
	for _, id := range changed {
		p.touched[p.w.index(id)] = struct{}{}
	}
	p.seen = state
	return state
}

// work is what is to be looked at, in the order of streams.
func (p *sidecar) work() []int {
	if p.all {
		for i := range p.server {
			p.touched[i] = struct{}{}
		}
		for i := range p.entries {
			p.touched[i] = struct{}{}
		}
	}
	streams := slices.Sorted(maps.Keys(p.touched))
	clear(p.touched)
	p.all = false
	return streams
}

func (p *sidecar) lookAgain(e *entry, at time.Duration) {
	if at > p.w.now {
		e.due.ring(&p.w.queue, at, func() {
			if p.alive {
				p.touch(e.stream)
			}
		})
	}
}

// believeDoubts ends the catalogue's doubts when their time has come.
func (p *sidecar) believeDoubts() {
	doubts := p.catalogue.Doubts()
	for id := range p.doubts {
		if !slices.Contains(doubts, id) {
			delete(p.doubts, id)
			p.touched[p.w.index(id)] = struct{}{}
		}
	}
	for _, id := range doubts {
		since, ok := p.doubts[id]
		if !ok {
			since = p.w.now
			p.doubts[id] = since
		}
		if p.w.now-since < doubtTime {
			p.believing.ring(&p.w.queue, since+doubtTime, func() {
				if p.alive {
					p.wake()
				}
			})
			continue
		}
		p.catalogue.Believe(id)
		p.touched[p.w.index(id)] = struct{}{}
		p.changed()
		p.left = slices.DeleteFunc(p.left, func(other adapters.StreamID) bool { return other == id })
	}
}

func (p *sidecar) occupied(e *entry) bool {
	id := p.w.names[e.stream]
	_, reported := p.server[e.stream]
	_, doubt := p.doubts[id]
	return reported && doubt && (e.refused || slices.Contains(p.left, id))
}

// follow lets the holds of live relays follow their parents'.
func (p *sidecar) follow(state *catalogue.State) {
	if p.all {
		for _, e := range p.entries {
			p.followOne(state, e)
		}
		return
	}
	for i := range p.touched {
		if e := p.entries[i]; e != nil {
			p.followOne(state, e)
		}
	}
}

func (p *sidecar) followOne(state *catalogue.State, e *entry) {
	r := e.run
	if !r.live() {
		return
	}
	h, ok := state.Hold(r.parent, p.w.names[e.stream])
	if !ok || h.Publication() != r.publication || h.Through(p.self.ID) || len(h.Path) >= catalogue.MaxPath {
		return
	}
	if own := r.path[:len(r.path)-1]; !slices.Equal(own, h.Path) {
		r.path = append(slices.Clip(h.Path), p.self.ID)
		r.delay = p.delay(h)
		p.stale = true
	}
	if !slices.Equal(r.tracks, h.Tracks) {
		r.tracks = h.Tracks
		p.stale = true
	}
}

func (p *sidecar) delay(parent catalogue.Hold) time.Duration {
	rtt, _ := p.RTT(parent.Holder())
	return parent.Delay + rtt
}

// publish announces what is live, and so withdraws what is not any more.
func (p *sidecar) publish() {
	if !p.stale {
		return
	}
	p.stale = false
	var holds []catalogue.Hold
	for i, e := range p.entries {
		if r := e.run; r.live() {
			holds = append(holds, catalogue.Hold{
				Stream: p.w.names[i], Epoch: r.publication.Epoch, Path: r.path, Delay: r.delay,
				Priority: r.publication.Priority, Oldest: r.publication.Oldest, Tracks: r.tracks,
			})
		}
	}
	if err := p.catalogue.SetCarried(holds); err != nil {
		p.w.watch.fail(p.w.now, "%s: %v", p.self.ID, err)
	}
	p.w.mark("%s carries other holds", p.self.ID)
	p.changed()
}

// raise finds out why a stream is wanted.
func (p *sidecar) raise(state *catalogue.State, i int) *entry {
	id := p.w.names[i]
	_, published := state.Origin(id)
	s, reported := p.server[i]
	played := reported && s.Readers > 0
	e := p.entries[i]
	if e == nil && (!played || published) {
		return nil
	}
	if e == nil {
		e = p.entry(i)
	}
	if e.demand.Any() {
		e.lastDemand = p.w.now
	}
	d := planner.Demand{Viewers: e.held, Children: len(state.Children(id, p.self.ID))}
	if played {
		d.Viewers += max(s.Readers-d.Children, 0)
	}
	if d.Any() {
		e.lastDemand = p.w.now
	} else {
		d.Lingering = p.w.now-e.lastDemand < p.w.linger
	}
	e.demand = d
	return e
}

func (p *sidecar) idle(e *entry) bool {
	for parent, f := range e.failures {
		if p.w.now < f.until {
			p.lookAgain(e, f.until)
			continue
		}
		delete(e.failures, parent)
	}
	return e.run == nil && !e.asking && e.held == 0 && len(e.failures) == 0
}

func (p *sidecar) running() int {
	n := 0
	for _, e := range p.entries {
		if e.run != nil {
			n++
		}
	}
	return n
}

// apply does what the entry's decision says.
func (p *sidecar) apply(e *entry) {
	d := e.decision
	nobody := d.Why == planner.WhyNobody || d.Why == planner.WhyOnlyUs || d.Why == planner.WhyQuiet || d.Why == planner.WhyTurned
	waits := e.run != nil && e.run.dark && nobody
	switch {
	case e.run == nil || waits || !d.Drop && d.Action != planner.Nothing:
	case d.Drop && (d.Action != planner.Nothing || nobody) && d.End != planner.WhyLoop && e.run.live():
		p.w.mark("%s: relay of %s leaves its source %s: %s", p.self.ID, p.w.names[e.stream], e.run.parent, d.End)
		p.darken(e, e.run)
		if waits = nobody; waits {
			e.run.darkAt = p.w.now + returnTime - graceTime
			p.lookAgain(e, p.w.now+returnTime)
		}
	default:
		p.stop(e, "drop")
	}
	settled := false
	switch d.Action {
	case planner.Nothing:
		settled = !waits
	case planner.Ask:
		if !e.asking {
			e.asking = true
			p.ask(e, d.Owner, d.Epoch)
		}
	case planner.Run:
		r := e.run
		switch {
		case r != nil && !r.ending() && r.moving:
			if !d.Outside && r.next.outside {
				r.next.abort(errCancelled)
			}
		case r != nil && !r.ending() && !r.dark && r.parent == d.Parent && r.publication == d.Hold.Publication():
		case r != nil && !r.ending() && (r.live() || r.dark):
			if p.w.now >= e.retryAt {
				p.move(e)
			}
		case r != nil && !r.ending():
			p.stop(e, "moved")
		case r != nil || p.w.now < e.retryAt || p.occupied(e):
		case p.running() >= p.w.maxRelays:
			settled, p.full = true, true
		default:
			p.begin(e)
		}
	case planner.Wait:
		settled = e.run == nil && p.refused(e)
	}
	if settled || e.run.live() {
		p.outcome(e)
	}
}

// refused says whether everybody who announces the stream said a moment ago that they have no source for it.
func (p *sidecar) refused(e *entry) bool {
	state, _ := p.catalogue.Snapshot()
	for _, h := range state.Holders(p.w.names[e.stream]) {
		if h.Through(p.self.ID) {
			continue
		}
		f := e.failures[h.Holder()]
		if f == nil || !f.missing || f.publication != h.Publication() || p.w.now >= f.until {
			return false
		}
	}
	return true
}

// ask claims the right to pull.
func (p *sidecar) ask(e *entry, owner NodeID, epoch uint64) {
	answered := func(f *frame) {
		if !p.alive {
			return
		}
		e.asking = false
		p.touch(e.stream)
		if f != nil && (f.claim.Granted || f.claim.Holder != "") {
			e.claim = p.claimed(epoch, relay.Claim(f.claim))
			return
		}
		silent := []NodeID{owner}
		if e.claim.Epoch == epoch && p.local(p.w.now).Before(e.claim.Until) {
			silent = append(slices.Clip(e.claim.Silent), owner)
		}
		e.claim = planner.Claim{Epoch: epoch, Silent: silent, Until: p.local(p.w.now + leaseTime)}
	}
	p.put(owner, claimTimeout, &frame{kind: kindClaim, stream: e.stream, epoch: epoch}, answered)
}

func (p *sidecar) claimed(epoch uint64, c relay.Claim) planner.Claim {
	claim := planner.Claim{Epoch: epoch, Granted: c.Granted, Holder: c.Holder, Until: p.local(p.w.now + claimAgain)}
	if c.Granted {
		claim.Until = p.local(p.w.now + leaseTime)
	}
	return claim
}

// put asks a node something. What it answers comes later; nil: nothing came.
func (p *sidecar) put(id NodeID, bound time.Duration, f *frame, answered func(*frame)) {
	q := &question{answer: answered}
	l := p.link(id)
	if l == nil {
		p.w.after(0, func() { q.resolve(nil) })
		return
	}
	p.relate(id)
	l.probe()
	f.question = q
	l.asked = append(l.asked, q)
	l.say(f)
	p.w.after(bound, func() { q.resolve(nil) })
}

func (p *sidecar) newRun(e *entry) *run {
	d := e.decision
	return &run{
		s: p, e: e, stream: e.stream, parent: d.Parent, outside: d.Outside, publication: d.Hold.Publication(),
		delay: p.delay(d.Hold), tracks: d.Hold.Tracks, since: p.w.now, liveAt: -1, deadSince: -1,
	}
}

// begin begins a relay as the decision says.
func (p *sidecar) begin(e *entry) {
	r := p.newRun(e)
	e.run = r
	if r.outside {
		p.w.pulls[pulled{r.stream, p.node.cluster}]++
	}
	p.w.mark("%s: pulls %s from %s: %s", p.self.ID, p.w.names[e.stream], r.parent, e.decision.Why)
	r.ask(func(err error) bool { return r.over }, r.end, func() {
		p.catalogue.Carry(p.w.names[r.stream])
		p.changed()
		p.remember()
		r.granted = true
	}, r.publish)
}

// ask asks the parent for the stream and plays it from its server. over says that nobody waits for it any more.
func (r *run) ask(over func(error) bool, failed func(error), granted, flows func()) {
	p := r.s
	p.put(r.parent, pullTimeout, &frame{kind: kindPull, stream: r.stream}, func(f *frame) {
		switch {
		case !p.alive || over(nil):
		case f == nil:
			failed(errAway)
		case f.grant.refused != nil:
			failed(errMissing)
		default:
			if err := r.accept(f.grant); err != nil {
				failed(err)
				return
			}
			r.publication, r.sequence = f.grant.of, f.grant.sequence
			r.path = append(slices.Clip(f.grant.path), p.self.ID)
			granted()
			r.open(over, failed, flows)
		}
	})
}

// accept says why a grant cannot be used.
func (r *run) accept(g grant) error {
	switch {
	case len(g.path) == 0 || g.path[len(g.path)-1] != r.parent, slices.Contains(g.path, r.s.self.ID),
		len(g.path) >= catalogue.MaxPath, r.publication.Beats(g.of):
		return errGrant
	}
	if err := r.s.catalogue.Observe(g.of.Epoch); err != nil {
		return err
	}
	if g.sequence != 0 && !r.s.feasible.Accepts(r.s.w.names[r.stream], g.of, g.sequence, len(g.path)-1) {
		return errInfeasible
	}
	if r.e.run != r && r.e.run.live() {
		r.e.run.below = g.sequence
	}
	state, _ := r.s.catalogue.Snapshot()
	h, _ := state.Hold(r.parent, r.s.w.names[r.stream])
	at, _ := state.Node(r.parent)
	r.before, r.incarnation = h.Publication(), at.Incarnation
	return nil
}

// open plays the stream from the parent's server.
func (r *run) open(over func(error) bool, failed func(error), flows func()) {
	p, w := r.s, r.s.w
	parent := w.find(r.parent)
	here, there := p.node.i, parent.i
	fail := func(d time.Duration, err error) {
		w.after(d, func() {
			if p.alive && !over(nil) {
				failed(err)
			}
		})
	}
	if w.wires[here][there].control || w.wires[there][here].control || !parent.up {
		fail(stepTimeout, errAway)
		return
	}
	w.after(w.latency(here, there), func() {
		switch {
		case over(nil) || !p.alive:
			return
		case parent.sidecar == nil || parent.id != r.parent:
			fail(w.latency(there, here), errAway)
			return
		}
		r.session = parent.server.spots[r.stream].open(r)
		if r.session == nil {
			fail(w.latency(there, here), errMissing)
			return
		}
		began := w.now
		var try func()
		try = func() {
			switch {
			case over(nil) || !p.alive:
			case !r.session.open:
				failed(errParent)
			case !r.connected() || !r.session.at.flows():
				if w.now-began > stepTimeout {
					failed(errTransport)
					return
				}
				w.after(500*time.Millisecond, try)
			default:
				flows()
			}
		}
		w.after(w.latency(there, here)+w.draw(w.connect), try)
	})
}

// move begins to take what a live relay carries from another parent, as the decision says.
func (p *sidecar) move(e *entry) {
	r, next := e.run, p.newRun(e)
	p.w.mark("%s: relay of %s changes from %s to %s: %s", p.self.ID, p.w.names[e.stream], r.parent, next.parent, e.decision.Why)
	r.moving, r.next = true, next
	moved := func(err error) {
		if next.over || !p.alive {
			return
		}
		next.over = true
		p.moved(e, r, next, err)
	}
	next.abort = moved
	p.w.after(moveTimeout, func() { moved(errAway) })
	next.ask(func(error) bool { return next.over }, moved, func() {}, func() {
		if p.w.chance(0.02) {
			moved(errCodec)
			return
		}
		moved(nil)
	})
}

// moved records how a change of parent ended.
func (p *sidecar) moved(e *entry, r, next *run, err error) {
	r.moving, r.next, r.below = false, nil, 0
	p.touch(e.stream)
	if e.run != r || r.ending() || r.over || p.ended {
		p.w.hangUp(next.session, p, true)
		return
	}
	if err != nil {
		p.w.hangUp(next.session, p, true)
		p.w.mark("%s: relay of %s cannot change to %s: %v", p.self.ID, p.w.names[e.stream], next.parent, err)
		switch {
		case errors.Is(err, errCodec):
			p.stop(e, "moved")
		case !errors.Is(err, errCancelled):
			p.blame(e, next, err)
		}
		return
	}
	p.w.hangUp(r.session, p, true)
	r.parent, r.outside, r.publication, r.path, r.delay = next.parent, next.outside, next.publication, next.path, next.delay
	r.tracks, r.sequence, r.since = next.tracks, next.sequence, next.since
	r.reported, r.seen, r.before, r.incarnation = false, false, next.before, next.incarnation
	r.lost, r.deadSince = false, -1
	r.session = next.session
	r.session.child = r
	p.w.mark("%s: relay of %s has changed to %s by %v", p.self.ID, p.w.names[e.stream], r.parent, r.path)
	p.relight(r)
	p.publish()
	p.w.watchTransport(r)
	if p.w.begun != nil {
		p.w.begun(r)
	}
}

// relight announces a relay again that has a source again, or another one.
func (p *sidecar) relight(r *run) {
	p.stale = true
	r.dark = false
	p.w.watch.turned(p.w, p.node.server.spots[r.stream])
	p.outcome(r.e)
}

// suspect finds out whether a stream that has fallen silent is lost or paused, again and again until it flows.
func (r *run) suspect(since time.Duration) {
	p, w := r.s, r.s.w
	if !p.alive || r.over || r.flowing || r.lastPacket != since {
		return
	}
	again := pauseAgain
	if !r.dark && !r.moving && !r.lost {
		l := p.link(r.parent)
		f, told := p.flow(r.parent, r.stream)
		state, _ := p.catalogue.Snapshot()
		at, known := state.Node(r.parent)
		switch {
		case known && at.Incarnation != r.incarnation, l == nil, w.now-l.heard > overdueTime, told && f.known && w.now-f.age > since+overdueTime/4:
			p.lose(r, errSilent)
		case l.heard > since:
		default:
			again = doubtAgain
		}
	}
	w.after(again, func() { r.suspect(since) })
}

// lose withdraws the hold of a relay that has lost its source, and lets another one be looked for.
func (p *sidecar) lose(r *run, err error) {
	e := r.e
	if !r.live() || r.ending() {
		return
	}
	p.w.mark("%s: relay of %s has lost its source %s: %v", p.self.ID, p.w.names[r.stream], r.parent, err)
	p.darken(e, r)
	p.blame(e, r, err)
	if f := e.failures[r.parent]; errors.Is(err, errSilent) {
		f.gone, f.until = true, max(f.until, p.w.now+goneTime)
	}
	p.publish()
}

// darken withdraws the hold of a live relay that has no source any more, while what it publishes stays.
func (p *sidecar) darken(e *entry, r *run) {
	if r.outside {
		e.claim = planner.Claim{Epoch: r.publication.Epoch, Granted: true, Until: p.local(p.w.now + leaseTime)}
	}
	r.dark, r.darkAt, p.stale = true, p.w.now, true
	p.touch(e.stream)
	p.w.watch.turned(p.w, p.node.server.spots[e.stream])
}

// regain announces a relay again whose source flows again by itself.
func (p *sidecar) regain(r *run) {
	if !p.alive || !r.dark || r.moving || r.ending() || r.e.run != r {
		return
	}
	p.w.mark("%s: relay of %s flows again from %s", p.self.ID, p.w.names[r.stream], r.parent)
	p.relight(r)
	p.touch(r.stream)
	p.publish()
}

// gone says whether a node was found to be gone for a stream, though it may still be announced.
func (p *sidecar) gone(id adapters.StreamID, parent NodeID) bool {
	e := p.entries[p.w.index(id)]
	if e == nil || e.failures[parent] == nil {
		return false
	}
	f := e.failures[parent]
	return f.gone && p.w.now < f.until
}

// closed is the end of the session at the parent's server.
func (c *session) closed(why error) {
	r := c.child
	switch {
	case r == nil || r.over || !r.s.alive || r.session != c:
	case r.liveAt < 0 || r.withdrawn:
		if r.e.run == r { // else it is a change under way, which notices by itself
			r.end(why)
		}
	default:
		p, w := r.s, r.s.w
		r.lost = true
		w.watch.turned(w, p.node.server.spots[r.stream])
		p.lose(r, why)
		var over func()
		over = func() {
			switch {
			case r.over || r.session != c || !p.alive:
			case r.moving:
				w.after(200*time.Millisecond, over)
			default:
				r.end(why)
			}
		}
		w.after(lostTime, over)
	}
}

// connected says whether media can come from the parent's server.
func (r *run) connected() bool {
	w, here, there := r.s.w, r.s.node.i, r.session.at.server.node.i
	return r.session.open && !w.wires[there][here].media && !w.wires[here][there].media
}

// publish publishes into the own server, and is live a moment later.
func (r *run) publish() {
	p, w := r.s, r.s.w
	at := p.node.server.spots[r.stream]
	if at.published != 0 {
		r.end(errServer)
		return
	}
	r.relayed = w.newSession()
	r.location = "/whip/x/" + strconv.Itoa(r.relayed)
	at.turn(func() { at.relayed, at.relay, at.left = r.relayed, r, 0 })
	w.after(w.draw(span{0, 50 * time.Millisecond}), func() {
		if r.over || r.stopping != "" || !p.alive {
			return
		}
		r.liveAt, r.e.refused = w.now, false
		w.mark("%s: %s from %s is live by %v", p.self.ID, w.names[r.stream], r.parent, r.path)
		p.stale = true
		p.catalogue.Located(w.names[r.stream], r.location)
		p.publish()
		p.touch(r.stream)
		p.outcome(r.e)
		w.watch.turned(w, at)
		w.watchTransport(r)
		if w.begun != nil {
			w.begun(r)
		}
	})
}

// stop ends the entry's relay. Its hold counts no more from now on, and what is next waits until it has ended.
func (p *sidecar) stop(e *entry, why string) {
	r := e.run
	if r == nil || r.stopping != "" {
		return
	}
	p.w.mark("%s: stops %s from %s: %s, %s", p.self.ID, p.w.names[e.stream], r.parent, why, e.decision.Why)
	p.withdraw(e, r)
	r.stopping = why
	r.finish(errCancelled)
}

// withdraw takes back the hold of a live relay. The right to pull is kept for a moment longer than it, as the owner does.
func (p *sidecar) withdraw(e *entry, r *run) {
	if !r.live() {
		r.withdrawn = r.withdrawn || r.dark
		return
	}
	if r.outside {
		e.claim = planner.Claim{Epoch: r.publication.Epoch, Granted: true, Until: p.local(p.w.now + leaseTime)}
	}
	r.withdrawn, p.stale = true, true
}

// end is the session's own end.
func (r *run) end(why error) {
	if r.over {
		return
	}
	r.s.w.mark("%s: relay of %s from %s fails: %v", r.s.self.ID, r.s.w.names[r.stream], r.parent, why)
	r.s.withdraw(r.e, r)
	r.s.publish()
	r.finish(why)
}

// finish frees both sides, and then lets the manager know.
func (r *run) finish(why error) {
	if r.over {
		return
	}
	p, w := r.s, r.s.w
	r.over = true
	at := p.node.server.spots[r.stream]
	w.watch.turned(w, at)
	w.hangUp(r.session, p, true)
	if r.next != nil {
		r.next.over = true
		w.hangUp(r.next.session, p, true)
	}
	freed := w.draw(w.close)
	if !r.granted {
		freed = 0
	}
	w.after(freed/2, func() {
		if at.relay == r && at.relayed != 0 {
			at.turn(func() { at.relayed, at.relay = 0, nil })
		}
	})
	w.after(freed, func() {
		if p.alive {
			p.finished(r, why)
		}
	})
}

// hangUp ends a child's session at its parent's server, which learns it at once or notices late.
func (w *world) hangUp(c *session, child *sidecar, told bool) {
	if c == nil || c.child == nil {
		return
	}
	c.child = nil
	here, there := child.node.i, c.at.server.node.i
	if told && !w.wires[here][there].control && !w.chance(0.05) {
		w.after(w.latency(here, there), c.done)
		return
	}
	w.after(w.draw(span{5 * time.Second, 30 * time.Second}), c.done)
}

// abandon is what becomes of a relay whose process is killed.
func (r *run) abandon() {
	if r.over {
		if at := r.s.node.server.spots[r.stream]; at.relay == r && at.relayed != 0 {
			r.leaveBehind()
		}
		return
	}
	r.over = true
	r.s.w.hangUp(r.session, r.s, false)
	if r.next != nil {
		r.next.over = true
		r.s.w.hangUp(r.next.session, r.s, false)
	}
	r.leaveBehind()
	r.s.w.watch.turned(r.s.w, r.s.node.server.spots[r.stream])
}

func (r *run) leaveBehind() {
	at := r.s.node.server.spots[r.stream]
	if at.relay != r || at.relayed == 0 {
		return
	}
	session := at.relayed
	at.turn(func() { at.left, at.relayed, at.relay = session, 0, nil })
	r.s.w.after(r.s.w.draw(span{time.Second, 30 * time.Second}), func() {
		if at.left == session {
			at.turn(func() { at.left = 0 })
		}
	})
}

// finished records how a relay ended. Its hold is withdrawn before anything else is tried.
func (p *sidecar) finished(r *run, why error) {
	e := r.e
	p.withdraw(e, r)
	e.run = nil
	p.all, p.full = p.all || p.full, false
	p.publish()
	p.touch(e.stream)
	if r.granted {
		p.catalogue.Located(p.w.names[e.stream], r.location)
		p.catalogue.Uncarry(p.w.names[e.stream])
		p.changed()
	}
	w := p.w
	if r.stopping != "" {
		if r.stopping == "dropped" {
			if w.now-r.liveAt >= steadyTime {
				e.retry.reset()
			}
			e.retryAt = w.now + e.retry.pause(w)
		}
		return
	}
	p.blame(e, r, why)
}

// blame makes the parent wait for its next turn, and from the second failure in a row on all others too.
func (p *sidecar) blame(e *entry, r *run, why error) {
	w := p.w
	f := e.failures[r.parent]
	if f == nil {
		f = &failure{pauses: pauses{first: 250 * time.Millisecond, most: 15 * time.Second}}
		e.failures[r.parent] = f
	}
	if r.liveAt >= 0 && w.now-r.liveAt >= steadyTime {
		f.pauses.reset()
		e.retry.reset()
		e.failed = 0
	}
	f.gone = false
	if errors.Is(why, errInfeasible) {
		f.missing, f.until = false, w.now+soonTime
		e.backward = w.now + 2*soonTime
		return
	}
	e.failed++
	if errors.Is(why, errServer) {
		e.refused = true
		e.retryAt = w.now + max(e.retry.pause(w), serverTime)
		return
	}
	f.missing, f.publication = errors.Is(why, errMissing), r.publication
	if f.missing {
		f.until = w.now + missingTime
	} else {
		f.until = w.now + f.pauses.pause(w)
	}
	if e.failed > 1 {
		e.retryAt = w.now + e.retry.pause(w)
	}
}

// drain withdraws all holds.
func (p *sidecar) drain() {
	p.ended = true
	for _, i := range p.streams() {
		p.stop(p.entries[i], "drained")
		p.outcome(p.entries[i])
	}
	p.publish()
}

// relateAll tells the mesh on which nodes media depends here.
func (p *sidecar) relateAll() {
	state, _ := p.catalogue.Snapshot()
	before, now := p.related, state.Related()
	if slices.Equal(before, now) {
		return
	}
	p.related = now
	for _, ids := range [][]NodeID{before, now} {
		for _, id := range ids {
			p.renewPeriod(id)
		}
	}
}

// find finds the node that has, or had, an id.
func (w *world) find(id NodeID) *node { return w.ids[id] }
