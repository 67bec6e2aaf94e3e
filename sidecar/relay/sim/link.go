package main

import (
	"slices"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// As in the package mesh.
const (
	relatedPeriod = 500 * time.Millisecond
	distantPeriod = 5 * time.Second
	relatedFor    = 10 * time.Second
	toldFor       = 5 * time.Second
	supersededFor = 5 * time.Second
	steadyAfter   = 10 * time.Second
	greetTimeout  = 10 * time.Second
	pullTimeout   = 5 * time.Second
	beatMemory    = 16
	buffered      = 16 // words that a connection takes while its way is cut
)

func lostAfter(period time.Duration) time.Duration { return period * 5 / 2 }

// reason is why a link ended.
type reason string

const (
	whyBroken     reason = "broken"
	whyLost       reason = "heartbeat lost"
	whyGoodbye    reason = "goodbye"
	whySuperseded reason = "superseded"
	whyClosing    reason = "leaving"
	whyStale      reason = "stale"
)

// link is one end of a connection between two sidecars.
type link struct {
	own, peer  *sidecar
	target     *target // that it was dialled by; nil: it was accepted
	other      *link
	node       catalogue.Node // who is there
	dialled    bool
	connection uint64
	since      time.Duration
	begun      bool // the handshake is done
	ended      bool
	why        reason

	arrival  time.Duration // of the last word that was sent: the next one comes no sooner
	stalled  []*frame      // words on a way that is cut
	dirty    bool          // more was to be said than the connection takes
	sent     *announcement
	received *announcement // nil before the first

	wanted, theirs, promised time.Duration
	heard                    time.Duration
	condition                catalogue.Condition
	probeNow                 bool
	probed                   time.Duration // -1: not
	probedAt                 uint64
	sequence                 uint64
	beats                    [beatMemory]time.Duration
	beaten                   time.Duration
	echo                     uint64
	echoAt                   time.Duration
	srtt                     time.Duration
	measured                 bool
	beatAlarm, lossAlarm     alarm
	asked                    []*question
	flows                    map[int]flow // of what is pulled from the peer, as it said at flowsAt
	flowsAt                  time.Duration
}

// frame is one word. Which fields count follows from its kind.
type frame struct {
	kind kind
	beat heartbeat
	// of holds
	base, next *announcement
	// of questions and answers
	question *question
	stream   int
	epoch    uint64
	claim    claimAnswer
	grant    grant
	node     NodeID // of obituaries
	incarn   uint64
}

type kind int

const (
	kindHeartbeat kind = iota
	kindHolds
	kindClaim
	kindClaimAnswer
	kindPull
	kindPullAnswer
	kindObituary
	kindGoodbye
)

type heartbeat struct {
	sequence, clock uint64
	period, wanted  time.Duration
	ready, draining bool
	flows           map[int]flow // by stream
	probe           bool
	echo            uint64
	echoAge         time.Duration
}

// announcement is what the peers of one cluster are told; it never changes.
type announcement struct {
	sequence uint64
	holds    []catalogue.Hold // by stream
}

// question waits for its answer, at one end of a link.
type question struct {
	answer func(f *frame) // nil: there will be none
	done   bool
}

func (p *sidecar) newLink(peer *sidecar, dialled bool, connection uint64) *link {
	now := p.w.now
	return &link{
		own: p, peer: peer, node: peer.self, dialled: dialled, connection: connection, since: now,
		wanted: distantPeriod, theirs: distantPeriod, promised: distantPeriod, heard: now, probed: -1, probeNow: true,
		condition: catalogue.Condition{Ready: true, Draining: peer.draining},
	}
}

func (l *link) dialledBySmaller() bool { return l.dialled == (l.own.self.ID < l.node.ID) }

func (l *link) better(o *link) bool {
	switch {
	case l.node.Incarnation != o.node.Incarnation:
		return l.node.Incarnation > o.node.Incarnation
	case l.dialled != o.dialled:
		return l.dialledBySmaller()
	}
	return l.connection > o.connection
}

// say sends a word after those that were sent before.
func (l *link) say(f *frame) {
	if l.ended {
		return
	}
	w := l.own.w
	if w.wires[l.own.node.i][l.peer.node.i].control {
		if len(l.stalled) < buffered {
			l.stalled = append(l.stalled, f)
			return
		}
		if f.kind != kindHeartbeat && f.kind != kindHolds {
			l.stalled = append(l.stalled, f)
		}
		l.dirty = l.dirty || f.kind == kindHolds
		return
	}
	l.post(f, 0)
}

func (l *link) post(f *frame, late time.Duration) {
	w := l.own.w
	if w.meter != nil {
		w.meter.count(l, f)
	}
	l.arrival = max(l.arrival, w.now+w.latency(l.own.node.i, l.peer.node.i)+late)
	w.at(l.arrival, func() { l.other.hear(f) })
}

// flush sends what waited while the way was cut.
func (l *link) flush() {
	late := l.own.w.draw(span{0, 2 * time.Second}) // until TCP tries again
	for _, f := range l.stalled {
		l.post(f, late)
	}
	l.stalled = nil
	if l.dirty {
		l.dirty = false
		l.announce()
	}
}

// hear takes a word from the peer.
func (l *link) hear(f *frame) {
	if l.ended {
		// What a closed connection is sent is answered by a reset.
		l.own.w.reset(l.other, l.own.node.up)
		return
	}
	l.heard = l.own.w.now
	switch f.kind {
	case kindHeartbeat:
		l.hearBeat(&f.beat)
	case kindHolds:
		l.hearHolds(f)
	case kindClaim:
		l.own.relate(l.node.ID)
		c := l.own.claim(l.node.ID, f.stream, f.epoch)
		l.say(&frame{kind: kindClaimAnswer, question: f.question, claim: claimAnswer(c)})
	case kindPull:
		l.own.relate(l.node.ID)
		g, err := l.own.grant(l.node.ID, f.stream)
		g.refused = err
		l.say(&frame{kind: kindPullAnswer, question: f.question, grant: g})
	case kindClaimAnswer, kindPullAnswer:
		l.asked = slices.DeleteFunc(l.asked, func(q *question) bool { return q == f.question })
		f.question.resolve(f)
	case kindObituary:
		l.own.mourn(l, f.node, f.incarn)
	case kindGoodbye:
		l.end(whyGoodbye)
	}
}

func (q *question) resolve(f *frame) {
	if !q.done {
		q.done = true
		q.answer(f)
	}
}

// reset tells the sender of a word that there is no connection any more.
func (w *world) reset(l *link, answered bool) {
	from, to := l.peer.node.i, l.own.node.i
	if l.ended || !answered || w.wires[from][to].control {
		return
	}
	w.after(w.latency(from, to), func() { l.end(whyBroken) })
}

// end closes this end; the other one learns it, where the network lets it.
func (l *link) end(why reason) {
	if l.ended {
		return
	}
	l.ended, l.why = true, why
	l.stalled = nil
	for _, q := range l.asked {
		q.resolve(nil)
	}
	l.asked = nil
	w := l.own.w
	if o := l.other; o != nil && !o.ended && !w.wires[l.own.node.i][l.peer.node.i].control {
		l.arrival = max(l.arrival, w.now+w.latency(l.own.node.i, l.peer.node.i))
		w.at(l.arrival, func() { o.end(whyBroken) })
	}
	if l.own.alive {
		l.own.remove(l)
	}
}

// deadline is when the peer counts as lost if nothing more is heard.
func (l *link) deadline() time.Duration {
	d := l.heard + lostAfter(l.promised)
	if l.probed >= 0 {
		d = min(d, l.probed+lostAfter(relatedPeriod))
	}
	return d
}

func (l *link) watchDeadline() {
	l.lossAlarm.ring(&l.own.w.queue, l.deadline(), func() {
		switch {
		case l.ended:
		case l.own.w.now >= l.deadline():
			l.end(whyLost)
		default:
			l.watchDeadline()
		}
	})
}

func (l *link) setPeriod(wanted time.Duration) {
	if l.wanted != wanted {
		l.wanted = wanted
		l.beat(true)
	}
}

func (l *link) probe() {
	if l.probed < 0 {
		l.probed, l.probedAt = l.own.w.now, l.sequence+1
		l.beat(true)
		l.watchDeadline()
	}
}

// beat sends a heartbeat at once.
func (l *link) beat(probe bool) {
	if l.ended {
		return
	}
	l.probeNow = l.probeNow || probe
	w := l.own.w
	l.wanted = l.own.period(l.node.ID)
	l.sequence++
	l.beats[l.sequence%beatMemory] = w.now
	l.beaten = w.now
	period := min(l.wanted, l.theirs)
	f := &frame{kind: kindHeartbeat, beat: heartbeat{
		sequence: l.sequence, clock: l.own.catalogue.Clock(), period: period, wanted: l.wanted, probe: l.probeNow,
		ready: true, draining: l.own.draining,
	}}
	if l.echo != 0 {
		f.beat.echo, f.beat.echoAge = l.echo, w.now-l.echoAt
	}
	if period < distantPeriod {
		f.beat.flows = l.own.flows(l.node.ID)
	}
	l.probeNow = false
	l.say(f)
	l.keepBeating()
}

func (l *link) keepBeating() {
	l.beatAlarm.ring(&l.own.w.queue, l.beaten+min(l.wanted, l.theirs), func() {
		switch {
		case l.ended:
		case l.own.w.now >= l.beaten+min(l.wanted, l.theirs):
			l.beat(false)
		default:
			l.keepBeating()
		}
	})
}

func (l *link) hearBeat(b *heartbeat) {
	w := l.own.w
	if err := l.own.catalogue.Observe(b.clock); err != nil {
		w.watch.fail(w.now, "%s: clock of %s: %v", l.own.self.ID, l.node.ID, err)
	}
	if c := (catalogue.Condition{Ready: b.ready, Draining: b.draining}); c != l.condition {
		l.condition = c
		l.own.conditions(l)
	}
	l.promised = b.period
	if len(b.flows) > 0 || len(l.flows) > 0 {
		l.flows, l.flowsAt = b.flows, w.now
	}
	answer := b.probe
	if b.wanted != l.theirs {
		l.theirs = b.wanted
		answer = true
	}
	l.echo, l.echoAt = b.sequence, w.now
	if b.echo != 0 {
		if l.probed >= 0 && b.echo >= l.probedAt {
			l.probed = -1
		}
		if l.sequence-b.echo < beatMemory {
			rtt := w.now - l.beats[b.echo%beatMemory] - b.echoAge
			if l.measured {
				rtt = l.srtt + (rtt-l.srtt)/8
			}
			l.srtt, l.measured = rtt, true
		}
	}
	l.watchDeadline()
	if answer {
		l.beat(false)
	}
}

// announce brings the peer up to date.
func (l *link) announce() {
	if l.ended || l.dirty || !l.begun {
		return
	}
	a := l.own.announcements[l.node.Cluster]
	if a == nil || a == l.sent {
		return
	}
	if l.own.w.wires[l.own.node.i][l.peer.node.i].control && len(l.stalled) >= buffered {
		l.dirty = true
		return
	}
	f := &frame{kind: kindHolds, base: l.sent, next: a}
	l.sent = a
	l.say(f)
}

func (l *link) hearHolds(f *frame) {
	if f.base != l.received {
		l.own.w.watch.fail(l.own.w.now, "%s: holds of %s out of order", l.own.self.ID, l.node.ID)
	}
	l.received = f.next
	l.own.believe(l)
	l.own.w.watch.connected(l.own)
}

func sameHold(a, b catalogue.Hold) bool {
	return a.Stream == b.Stream && a.Epoch == b.Epoch && a.Priority == b.Priority && a.Oldest == b.Oldest &&
		a.Delay == b.Delay && slices.Equal(a.Path, b.Path) && slices.Equal(a.Tracks, b.Tracks)
}
