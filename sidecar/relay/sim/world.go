package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// NodeID is the one word that everything here uses of the catalogue's.
type NodeID = catalogue.NodeID

// options are what a world is made of. Times are drawn from the ranges, evenly.
type options struct {
	clusters, perCluster int
	streams              int
	fanOut               int
	linger               time.Duration
	think                span // from a change to what a node does of it
	near, far            span // one-way delay of a pair, drawn once for each
	jitter               float64
	connect              span          // a session's, from its answer until media flows
	report               span          // from what happens at a media server to what it reports
	close                span          // a session's way from DELETE to being gone
	offsets              time.Duration // by which nodes' clocks differ at most
	maxRelays            int
	real                 bool // names are as long as they are in Kubernetes
}

type span struct{ least, most time.Duration }

// world is a number of nodes, the network between them and the time in which they live. What it draws comes from one
// source, so that the same seed and the same options make the same history.
type world struct {
	queue
	options
	rand    *rand.Rand
	nodes   []*node
	ids     map[NodeID]*node // all that ever were
	names   []adapters.StreamID
	indices map[adapters.StreamID]int
	members map[string][]*node
	wires   [][]wire // from, to
	meter   *meter   // nil: bytes are not counted
	watch   *watch
	news    func(p *sidecar, from NodeID) // called when a sidecar has heard something, where it is not nil
	begun   func(r *run)                  // likewise, when a relay is live
	session int                           // the last one's name, at any server
	quietAt time.Duration
	pulls   map[pulled]int // begun from outside a cluster
}

// wire is one direction between two nodes.
type wire struct {
	delay time.Duration
	slow  time.Duration // what comes to that for the moment
	// What does not pass now: what sidecars say, what flows between media servers.
	control, media bool
}

func newWorld(seed uint64, o options) *world {
	w := &world{options: o, rand: rand.New(rand.NewPCG(seed, 4)), watch: newWatch(), ids: map[NodeID]*node{}, indices: map[adapters.StreamID]int{}, members: map[string][]*node{}, pulls: map[pulled]int{}}
	for i := range o.streams {
		name := adapters.StreamID(fmt.Sprintf("stream-%d", i))
		if o.real {
			name = adapters.StreamID(fmt.Sprintf("studio/camera-%05d", i))
		}
		w.names = append(w.names, name)
		w.indices[name] = i
	}
	for c := range o.clusters {
		for i := range o.perCluster {
			cluster, id := fmt.Sprintf("cluster-%c", 'a'+c), fmt.Sprintf("%c%d", 'a'+c, i)
			if o.real {
				cluster, id = fmt.Sprintf("eu-central-%d", c), fmt.Sprintf("%08x-9dc0-41d1-b245-5ffdce74fad2", w.rand.Uint32())
			}
			n := newNode(w, len(w.nodes), cluster, id)
			w.nodes = append(w.nodes, n)
			w.members[n.cluster] = append(w.members[n.cluster], n)
		}
	}
	distance := make([]time.Duration, o.clusters*o.clusters)
	for i := range distance {
		distance[i] = w.draw(o.far)
	}
	w.wires = make([][]wire, len(w.nodes))
	for i, from := range w.nodes {
		w.wires[i] = make([]wire, len(w.nodes))
		for j, to := range w.nodes {
			if from.cluster == to.cluster {
				w.wires[i][j].delay = w.draw(o.near)
				continue
			}
			a, b := i/o.perCluster, j/o.perCluster
			w.wires[i][j].delay = distance[min(a, b)*o.clusters+max(a, b)] + w.draw(o.near)
		}
	}
	return w
}

func (w *world) draw(s span) time.Duration {
	if s.most <= s.least {
		return s.least
	}
	return s.least + time.Duration(w.rand.Int64N(int64(s.most-s.least)))
}

func (w *world) chance(p float64) bool { return w.rand.Float64() < p }

// latency is how long the next word takes from one node to another.
func (w *world) latency(from, to int) time.Duration {
	l := &w.wires[from][to]
	d := l.delay + l.slow
	return d + time.Duration(w.jitter*w.rand.Float64()*float64(d))
}

// longest is the most that a word takes between two nodes, in either direction.
func (w *world) longest(a, b int) time.Duration {
	d := max(w.wires[a][b].delay+w.wires[a][b].slow, w.wires[b][a].delay+w.wires[b][a].slow)
	return d + time.Duration(w.jitter*float64(d))
}

// mark notes that something happened that a quiet world would not do.
func (w *world) mark(format string, args ...any) {
	w.quietAt = w.now
	w.watch.note(w.now, format, args...)
}

func (w *world) newSession() int {
	w.session++
	return w.session
}

// cut lets nothing pass from one node to another, or only what sidecars say, or only media; until it is mended.
func (w *world) cut(from, to int, control, media bool) {
	l := &w.wires[from][to]
	l.control, l.media = l.control || control, l.media || media
	w.rewired(from, to)
	if media {
		w.feelAll()
	}
}

// mend ends a cut: what waited at connections that both sides still have comes now.
func (w *world) mend(from, to int) {
	l := &w.wires[from][to]
	if !l.control && !l.media {
		return
	}
	media := l.media
	l.control, l.media = false, false
	w.rewired(from, to)
	if media {
		w.feelAll()
	}
	p := w.nodes[from].sidecar
	if p == nil {
		return
	}
	for _, q := range p.peers {
		for _, l := range q.links {
			if l.peer.node.i == to && !l.ended {
				l.flush()
			}
		}
	}
}

// slow lets what passes from one node to another take longer.
func (w *world) slow(from, to int, by time.Duration) {
	if w.wires[from][to].slow != by {
		w.wires[from][to].slow = by
		w.rewired(from, to)
	}
}

func (w *world) feelAll() {
	for i := range w.names {
		w.feel(i)
	}
}

func (w *world) rewired(from, to int) {
	if a, b := w.nodes[from].cluster, w.nodes[to].cluster; a == b {
		w.watch.look(w, a)
	}
	for _, end := range []*node{w.nodes[from], w.nodes[to]} {
		if end.sidecar == nil {
			continue
		}
		for _, stream := range end.sidecar.streams() {
			if r := end.sidecar.entries[stream].run; r != nil && r.liveAt >= 0 && !r.over {
				w.watchTransport(r)
			}
		}
	}
}

// watchTransport ends a relay some seconds after its connection to the parent's server is lost for good.
func (w *world) watchTransport(r *run) {
	switch {
	case r.connected():
		r.deadSince = -1
		return
	case r.deadSince >= 0:
		return
	}
	since := w.now
	r.deadSince = since
	w.after(w.draw(span{3 * time.Second, 15 * time.Second}), func() {
		if r.deadSince == since && !r.over && r.s.alive {
			r.session.closed(errTransport)
		}
	})
}

func (w *world) index(id adapters.StreamID) int { return w.indices[id] }

func (w *world) tell(p *sidecar, from NodeID) {
	if w.news != nil {
		w.news(p, from)
	}
}
