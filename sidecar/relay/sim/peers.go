package main

import (
	"slices"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// peer is a node that is alive, as far as a sidecar can tell: the package mesh says how links are chosen and parted with.
type peer struct {
	node     catalogue.Node
	links    []*link
	primary  *link
	deadline time.Duration
	told     time.Duration // -1: never
}

// target is a node that is dialled whenever it is not connected.
type target struct {
	node    *node
	id      NodeID // who answered there last
	next    time.Duration
	pause   time.Duration
	dialing bool
	alarm   alarm
}

// peer finds a node that is alive, nil where it is not known.
func (p *sidecar) peer(id NodeID) *peer {
	i, ok := p.findPeer(id)
	if !ok {
		return nil
	}
	return p.peers[i]
}

func (p *sidecar) findPeer(id NodeID) (int, bool) {
	return slices.BinarySearchFunc(p.peers, id, func(q *peer, id NodeID) int {
		return strings.Compare(string(q.node.ID), string(id))
	})
}

// link is the connection by which a node is asked.
func (p *sidecar) link(id NodeID) *link {
	if q := p.peer(id); q != nil {
		return q.primary
	}
	return nil
}

// RTT is the measured round trip to a node.
func (p *sidecar) RTT(id NodeID) (time.Duration, bool) {
	l := p.link(id)
	if l == nil {
		return 0, false
	}
	return l.srtt, l.measured
}

// pursue dials a target where that is due.
func (p *sidecar) pursue(t *target) {
	t.alarm.ring(&p.w.queue, t.next, func() {
		if !p.alive || t.dialing {
			return
		}
		if q := p.peer(t.id); q != nil && q.primary != nil {
			return // until its link ends
		}
		if p.w.now < t.next {
			p.pursue(t)
			return
		}
		p.dial(t)
	})
}

// attempted plans the next attempt after one that has failed, or after a link that has ended.
func (p *sidecar) attempted(t *target) {
	t.dialing = false
	t.pause = min(max(2*t.pause, 250*time.Millisecond), 15*time.Second)
	t.next = p.w.now + t.pause/2 + time.Duration(p.w.rand.Int64N(int64(t.pause)))
	p.pursue(t)
}

// dial opens a connection: TCP and TLS take a round trip each, then each side says hello, and the dialler confirms.
func (p *sidecar) dial(t *target) {
	w := p.w
	t.dialing = true
	p.connections++
	connection := p.connections
	here, there := p.node.i, t.node.i
	fail := func() { w.after(greetTimeout, func() { p.attempted(t) }) }
	passes := func() bool { return !w.wires[here][there].control && !w.wires[there][here].control }
	if !passes() || !t.node.up {
		fail()
		return
	}
	trip := w.latency(here, there) + w.latency(there, here)
	q := t.node.sidecar
	if q == nil {
		w.after(trip, func() { p.attempted(t) })
		return
	}
	hello := trip*2 + w.latency(here, there)
	w.after(hello, func() {
		if !passes() || !q.alive || !p.alive {
			fail()
			return
		}
		accepted := q.check(p)
		clock := q.catalogue.Clock()
		q.observe(p.catalogue.Clock())
		w.after(w.latency(there, here), func() {
			if !passes() || !p.alive {
				fail()
				return
			}
			p.observe(clock)
			t.id = q.self.ID
			mine := p.newLink(q, true, connection)
			if !accepted || !p.check(q) || !p.keep(mine) {
				p.attempted(t)
				return
			}
			mine.target = t
			theirs := q.newLink(p, false, connection)
			mine.other, theirs.other = theirs, mine
			mine.arrival = w.now + w.latency(here, there)
			w.at(mine.arrival, func() {
				switch {
				case !q.alive:
					theirs.ended = true
					w.reset(mine, t.node.up)
				case !q.keep(theirs):
					theirs.ended = true
					w.reset(mine, true)
				default:
					theirs.begin()
				}
			})
			mine.begin()
		})
	})
}

// conditions takes what a peer says of itself, if the link is the one to be believed.
func (p *sidecar) conditions(l *link) {
	if p.link(l.node.ID) == l {
		p.catalogue.SetCondition(l.node.ID, l.condition)
		p.changed()
		p.w.tell(p, l.node.ID)
	}
}

func (p *sidecar) observe(clock uint64) {
	if err := p.catalogue.Observe(clock); err != nil {
		p.w.watch.fail(p.w.now, "%s: observe clock: %v", p.self.ID, err)
	}
}

// check says whether a node that introduces itself may stay.
func (p *sidecar) check(q *sidecar) bool {
	known := p.peer(q.self.ID)
	if known == nil {
		return true
	}
	return !slices.ContainsFunc(known.links, func(l *link) bool {
		return l.node.Incarnation > q.self.Incarnation || l.node.Incarnation == q.self.Incarnation && l.peer != q
	})
}

// keep takes a link whose handshake is done.
func (p *sidecar) keep(l *link) bool {
	i, ok := p.findPeer(l.node.ID)
	if ok {
		for _, o := range p.peers[i].links {
			switch {
			case o.node.Incarnation < l.node.Incarnation:
			case o.node.Incarnation > l.node.Incarnation, o.peer != l.peer:
				return false
			case l.dialled && (o.dialled || !l.dialledBySmaller()):
				return false
			case !l.dialled && !o.dialled && o.connection > l.connection:
				return false
			}
		}
	} else {
		p.peers = slices.Insert(p.peers, i, &peer{node: l.node, told: -1})
	}
	q := p.peers[i]
	if l.node.Incarnation > q.node.Incarnation {
		q.node = l.node
	}
	q.links = append(q.links, l)
	p.targets[l.peer.node.i].id = l.node.ID
	l.wanted = p.period(l.node.ID)
	p.choose(q)
	if p.announcements[q.node.Cluster] == nil {
		p.refresh()
	}
	return true
}

// begin says the first words of a link.
func (l *link) begin() {
	if l.ended {
		return
	}
	l.begun = true
	l.beat(true)
	l.announce()
	l.watchDeadline()
}

func (p *sidecar) choose(q *peer) {
	q.primary = nil
	for _, l := range q.links {
		if !l.ended && (q.primary == nil || l.better(q.primary)) {
			q.primary = l
		}
	}
	if q.primary == nil {
		return
	}
	for _, l := range slices.Clone(q.links) {
		switch {
		case l == q.primary || l.ended:
		case l.node.Incarnation < q.primary.node.Incarnation, l.dialled == q.primary.dialled, q.node.ID < p.self.ID:
			p.w.after(0, func() { l.end(whySuperseded) })
		default:
			p.w.after(supersededFor, func() { l.end(whySuperseded) })
		}
	}
}

// remove takes a link away that has ended, and its node where nothing can be hoped for any more.
func (p *sidecar) remove(l *link) {
	if t := l.target; t != nil {
		if p.w.now-l.since >= steadyAfter {
			t.pause = 0
		}
		p.attempted(t)
	}
	q := p.peer(l.node.ID)
	if q == nil || !slices.Contains(q.links, l) {
		return
	}
	q.links = slices.DeleteFunc(q.links, func(o *link) bool { return o == l })
	before := q.primary
	p.choose(q)
	p.w.watch.connected(p)
	if q.primary == nil {
		if before != nil {
			q.deadline = l.deadline()
		}
		q.deadline = min(q.deadline, l.deadline())
	}
	if q.primary != nil {
		if q.primary != before && q.primary.received != nil {
			p.believe(q.primary)
		}
		return
	}
	switch l.why {
	case whyGoodbye, whyStale, whyClosing:
		p.forget(q, false)
	case whyLost:
		p.forget(q, true)
	default:
		p.revisit(q)
		p.watchPeer(q)
	}
}

// watchPeer gives a node up that did not come back.
func (p *sidecar) watchPeer(q *peer) {
	p.w.at(q.deadline, func() {
		if p.alive && p.peer(q.node.ID) == q && len(q.links) == 0 && p.w.now >= q.deadline {
			p.forget(q, true)
		}
	})
}

// forget gives a node up, and tells all others where this one is the first to see it.
func (p *sidecar) forget(q *peer, tell bool) {
	i, ok := p.findPeer(q.node.ID)
	if !ok || p.peers[i] != q {
		return
	}
	p.peers = slices.Delete(p.peers, i, i+1)
	for _, l := range q.links {
		l.end(whyLost)
	}
	p.w.mark("%s: %s is gone", p.self.ID, q.node.ID)
	p.catalogue.Forget(q.node.ID)
	p.changed()
	p.w.tell(p, q.node.ID)
	p.revisit(q)
	if !tell || q.told >= 0 && p.w.now-q.told < toldFor {
		return
	}
	for _, other := range slices.Clone(p.peers) {
		for _, l := range other.links {
			l.say(&frame{kind: kindObituary, node: q.node.ID, incarn: q.node.Incarnation})
		}
	}
}

// mourn takes another node's word that a node has died: that node is asked.
func (p *sidecar) mourn(from *link, id NodeID, incarnation uint64) {
	q := p.peer(id)
	if q == nil || incarnation < q.node.Incarnation || id == from.node.ID {
		return
	}
	q.told = p.w.now
	if q.primary == nil {
		q.deadline = min(q.deadline, q.told+lostAfter(relatedPeriod))
		p.revisit(q)
		p.watchPeer(q)
	}
	for _, l := range q.links {
		l.probe()
	}
}

// revisit dials a node soon that was connected a moment ago.
func (p *sidecar) revisit(q *peer) {
	soon := p.w.now + p.w.draw(span{0, 200 * time.Millisecond})
	for _, t := range p.targets {
		if t != nil && t.id == q.node.ID {
			if t.next < soon {
				t.next = soon
			}
			p.pursue(t)
		}
	}
}

// relate makes a node related for a while.
func (p *sidecar) relate(id NodeID) {
	p.relatedUntil[id] = p.w.now + relatedFor
	p.renewPeriod(id)
	p.w.after(relatedFor, func() {
		if p.alive {
			p.renewPeriod(id)
		}
	})
}

func (p *sidecar) renewPeriod(id NodeID) {
	if q := p.peer(id); q != nil {
		for _, l := range q.links {
			l.setPeriod(p.period(id))
		}
	}
}

func (p *sidecar) period(id NodeID) time.Duration {
	if _, ok := slices.BinarySearch(p.related, id); ok || p.w.now < p.relatedUntil[id] {
		return relatedPeriod
	}
	return distantPeriod
}

// believe takes what a link has said, if that link is the one to be believed.
func (p *sidecar) believe(l *link) {
	if p.link(l.node.ID) != l {
		return
	}
	p.catalogue.SetCondition(l.node.ID, l.condition)
	if err := p.catalogue.SetPeer(l.node, l.received.holds); err != nil {
		p.w.watch.fail(p.w.now, "%s: holds of %s: %v", p.self.ID, l.node.ID, err)
	}
	p.changed()
	p.w.tell(p, l.node.ID)
}

// announce keeps the announcements up to date with the own holds.
func (p *sidecar) announce() {
	p.announcing.ring(&p.w.queue, p.w.now+p.w.draw(p.w.think), func() {
		if p.alive {
			p.refresh()
		}
	})
}

// refresh makes the announcements anew, and sends them to those who do not know them.
func (p *sidecar) refresh() {
	var clusters []string
	news := false
	for _, q := range p.peers {
		cluster := q.node.Cluster
		if slices.Contains(clusters, cluster) {
			continue
		}
		clusters = append(clusters, cluster)
		before := p.announcements[cluster]
		holds := p.catalogue.Announcement(cluster)
		if before == nil || !same(before.holds, holds) && !slices.EqualFunc(before.holds, holds, sameHold) {
			news = true
			p.announced++
			p.w.mark("%s tells %s of %d holds", p.self.ID, cluster, len(holds))
			p.announcements[cluster] = &announcement{sequence: p.announced, holds: holds}
		}
	}
	for _, q := range p.peers {
		if !news {
			return
		}
		for _, l := range q.links {
			l.announce()
		}
	}
}

// same says whether two slices are one.
func same(a, b []catalogue.Hold) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }
