package main

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

const (
	writePause = 500 * time.Millisecond
	drainTime  = 20 * time.Second
)

// sidecar is one process of a node: the real catalogue, planner and claims, and around them what the packages mesh and
// relay do with goroutines and sockets. Where they decide something, this does the same.
type sidecar struct {
	w         *world
	node      *node
	self      catalogue.Node
	alive     bool
	swept     bool
	began     time.Duration
	catalogue *catalogue.Catalogue
	claims    *relay.Claims

	// The mesh's.
	peers         []*peer // by id
	targets       []*target
	connections   uint64
	announced     uint64
	announcements map[string]*announcement // by cluster
	announcing    alarm
	related       []NodeID
	relating      alarm
	draining      bool
	relatedUntil  map[NodeID]time.Duration

	// The manager's.
	entries               map[int]*entry
	server                map[int]adapters.Stream
	doubts                map[adapters.StreamID]time.Duration
	left                  []adapters.StreamID
	feasible              planner.Feasibility
	stale                 bool
	ended                 bool
	touched               map[int]struct{}
	seen                  *catalogue.State
	all, full             bool
	plan                  alarm
	believing, forgetting alarm

	persist   alarm
	persisted time.Duration
}

func newSidecar(n *node) *sidecar {
	p := &sidecar{
		w: n.w, node: n, alive: true, began: n.w.now,
		self:          catalogue.Node{ID: n.id, Incarnation: n.incarnation, Cluster: n.cluster},
		claims:        relay.NewClaims(),
		announcements: map[string]*announcement{}, relatedUntil: map[NodeID]time.Duration{},
		entries: map[int]*entry{}, server: map[int]adapters.Stream{}, doubts: map[adapters.StreamID]time.Duration{},
		touched: map[int]struct{}{},
	}
	p.catalogue = catalogue.New(p.self)
	p.catalogue.SetPolicy(n.policy)
	if err := p.catalogue.Restore(n.record); err != nil {
		p.w.watch.fail(p.w.now, "%s: %v", p.self.ID, err)
	}
	p.targets = make([]*target, len(n.w.nodes))
	for i, o := range n.w.nodes {
		if o != n {
			p.targets[i] = &target{node: o}
		}
	}
	return p
}

// start begins to dial, and to watch the server once what was left behind there is deleted.
func (p *sidecar) start() {
	w := p.w
	p.left = p.catalogue.Doubts()
	for _, t := range p.targets {
		if t != nil {
			t.next = w.now + w.draw(span{0, 20 * time.Millisecond})
			p.pursue(t)
		}
	}
	w.after(w.draw(span{5 * time.Millisecond, 500 * time.Millisecond}), func() {
		if !p.alive {
			return
		}
		for _, left := range p.catalogue.Left() {
			at := p.node.server.spots[w.index(left.Stream)]
			if at.left != 0 && strings.HasSuffix(left.Location, "/"+strconv.Itoa(at.left)) {
				at.turn(func() { at.left = 0 })
			}
		}
		p.swept = true
		p.served(p.node.server.streams())
	})
	w.watch.connected(p)
}

// served takes what the media server reports.
func (p *sidecar) served(streams []adapters.Stream) {
	if err := p.catalogue.SetLocal(streams); err != nil {
		p.w.watch.fail(p.w.now, "%s: %v", p.self.ID, err)
	}
	p.reported(streams)
	p.changed()
}

// changed lets all look who follow the catalogue: the manager, the mesh and the disk.
func (p *sidecar) changed() {
	p.announce()
	p.wake()
	p.relating.ring(&p.w.queue, p.w.now+p.w.draw(p.w.think), func() {
		if p.alive {
			p.relateAll()
		}
	})
	p.persist.ring(&p.w.queue, max(p.w.now+5*time.Millisecond, p.persisted+writePause), func() {
		if p.alive {
			p.remember()
		}
	})
}

func (p *sidecar) remember() {
	p.persisted = p.w.now
	p.node.record = p.catalogue.Record()
}

// die ends the process. Where the kernel goes on, it closes the connections.
func (p *sidecar) die(told bool) {
	p.alive = false
	for _, q := range p.peers {
		for _, l := range slices.Clone(q.links) {
			if told {
				l.end(whyBroken)
			}
			l.ended = true
		}
	}
	for _, at := range p.node.server.spots {
		if at.asked {
			at.asked = false
			at.tryAgain(time.Second)
		}
	}
	for _, stream := range p.streams() {
		if r := p.entries[stream].run; r != nil {
			r.abandon()
		}
	}
	p.w.watch.connected(p)
}

// leave ends the process as it should be ended: it says that it is about to, lets the children go elsewhere, ends the relays,
// and says goodbye.
func (p *sidecar) leave(done func()) {
	if p.draining {
		return
	}
	p.w.mark("%s leaves", p.self.ID)
	p.draining = true
	p.catalogue.SetCondition(p.self.ID, catalogue.Condition{Ready: true, Draining: true})
	p.changed()
	for _, q := range p.peers {
		for _, l := range q.links {
			l.beat(false)
		}
	}
	began := p.w.now
	var wait func()
	wait = func() {
		switch {
		case !p.alive:
			return
		case p.parental() && p.w.now-began < drainTime:
		case !p.ended:
			p.drain()
		case p.running() == 0:
			p.goodbye()
			done()
			return
		}
		p.w.after(20*time.Millisecond, wait)
	}
	wait()
}

// parental says whether a node announces to pull anything from this one.
func (p *sidecar) parental() bool {
	state, _ := p.catalogue.Snapshot()
	return state.Load(p.self.ID) > 0
}

// goodbye parts with the peers.
func (p *sidecar) goodbye() {
	for _, q := range p.peers {
		for _, l := range q.links {
			l.say(&frame{kind: kindGoodbye})
		}
	}
	p.remember()
	p.die(false)
	if p.node.sidecar == p {
		p.node.sidecar = nil
	}
}
