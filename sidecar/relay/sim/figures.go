package main

import (
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// figures are what is measured of one mesh.
type figures struct {
	clusters, perCluster, streams int
	relays                        int // at rest, in all

	publish, move, drain sample // at each node, beyond the one-way delay to it
	related, all, idle   sample // nodes that learn of a crash: those with a stream in common with it, all, all of an idle one
	again                sample // children of a crashed node that have the media of another parent
	heal                 sample // nodes that have heard all that the others on the far side hold
	unaware              int    // nodes that did not learn in time
	atRest, inChurn      costs
	catalogue, sets      int // bytes of heap
}

// costs are one node's.
type costs struct {
	frames, payload, wire float64 // that it sends in a second
	cpu                   float64 // of a core, for all that is not the network
}

type sample []time.Duration

func (s *sample) add(d time.Duration) { *s = append(*s, d) }

// at is the value below which that part of a sample lies.
func (s sample) at(part float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[min(int(part*float64(len(s))), len(s)-1)]
}

// meshOptions are of a mesh as it would be: regions of the world 5 to 120 ms apart, one way.
func meshOptions(clusters, perCluster, streams int) options {
	return options{
		clusters: clusters, perCluster: perCluster, streams: streams, fanOut: 8, linger: 15 * time.Second,
		think: span{100 * time.Microsecond, 2 * time.Millisecond},
		near:  span{200 * time.Microsecond, 600 * time.Microsecond}, far: span{5 * time.Millisecond, 120 * time.Millisecond},
		jitter: 0.02, connect: span{150 * time.Millisecond, 600 * time.Millisecond},
		report: span{0, 20 * time.Millisecond}, close: span{10 * time.Millisecond, 100 * time.Millisecond},
		offsets: time.Hour, maxRelays: 1 << 20, real: true,
	}
}

// bench is a mesh that is measured.
type bench struct {
	*world
	*figures
	spare int // the next stream that was kept back for what is published while it is measured
}

const spareStreams = 60

func newBench(seed uint64, clusters, perCluster, streams int) *bench {
	alone.RLock()
	defer alone.RUnlock()
	w := newWorld(seed, meshOptions(clusters, perCluster, streams+spareStreams))
	w.watch = nil // it is for histories
	return &bench{
		world: w, figures: &figures{clusters: clusters, perCluster: perCluster, streams: streams}, spare: streams,
	}
}

// alone is held for reading by each mesh that is simulated, and for writing by one that measures the machine.
var alone sync.RWMutex

// step lets time go by, in which other meshes may be simulated, unless this one has the machine for itself.
func (b *bench) step(until time.Duration) {
	if b.meter == nil {
		alone.RLock()
		defer alone.RUnlock()
	}
	b.world.run(until)
}

// run lets much time go by.
func (b *bench) run(until time.Duration) {
	for b.now < until {
		b.step(min(until, b.now+time.Second))
	}
}

// measure takes all figures of a mesh; of one with more than 200 nodes only what it costs, and how soon a publication is
// known.
func measure(seed uint64, clusters, perCluster, streams int) *figures {
	b := newBench(seed, clusters, perCluster, streams)
	large := len(b.nodes) > 200
	b.start()
	times := 2
	if streams < 50*len(b.nodes) {
		times = 4
	}
	if large {
		times = 0
	}
	for range times {
		b.crash(&b.idle, nil, nil)
	}
	b.fill()
	b.atRest = b.cost(5*time.Second, func() {})
	b.inChurn = b.cost(10*time.Second, b.change)
	for range times {
		b.crash(&b.all, &b.related, &b.again)
	}
	for range times {
		b.leave()
	}
	if !large {
		b.partition()
	}
	b.weigh()
	return b.figures
}

func (b *bench) start() {
	for _, n := range b.nodes {
		b.after(b.draw(span{0, 2 * time.Second}), n.boot)
	}
	b.run(b.now + 8*time.Second)
}

// coarse lets the nodes say much at once rather than little often, where nothing is measured. It gives what ends that.
func (b *bench) coarse() (end func()) {
	think, report := b.think, b.report
	b.think, b.report = span{500 * time.Millisecond, time.Second}, span{500 * time.Millisecond, time.Second}
	return func() { b.think, b.report = think, report }
}

// fill publishes all streams and lets each be watched in two other clusters, every fourth of them by two nodes in one.
func (b *bench) fill() {
	fine := b.coarse()
	for i := range b.streams {
		from := b.nodes[b.rand.IntN(len(b.nodes))]
		b.after(b.draw(span{0, 20 * time.Millisecond}), from.server.spots[i].publish)
		watch := func(cluster int) {
			to := b.nodes[cluster*b.perCluster+b.rand.IntN(b.perCluster)]
			b.after(4*time.Second+b.draw(span{0, time.Second}), to.server.spots[i].want)
		}
		first, watched := 1+b.rand.IntN(b.clusters-1), 0
		for c := 0; c < b.clusters-1 && watched < 2; c++ {
			watch((from.i/b.perCluster + 1 + (first+c)%(b.clusters-1)) % b.clusters)
			watched++
		}
		if i%4 == 0 {
			watch((from.i/b.perCluster + 1 + first%(b.clusters-1)) % b.clusters)
		}
	}
	b.run(b.now + 15*time.Second)
	fine()
	b.run(b.now + 5*time.Second)
	for _, n := range b.nodes {
		b.relays += n.sidecar.running()
	}
}

// cost runs for a time and measures what that takes.
func (b *bench) cost(d time.Duration, with func()) costs {
	alone.Lock()
	defer alone.Unlock()
	b.meter = newMeter()
	runtime.GC()
	before, end := processorTime(), b.now+d
	with()
	b.world.run(end)
	used, m := processorTime()-before, b.meter
	b.meter = nil
	per := float64(len(b.nodes)) * (b.now - end + d).Seconds()
	return costs{
		frames: float64(m.frames) / per, payload: float64(m.payload) / per, wire: float64(m.wire()) / per,
		cpu: used.Seconds() / per,
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// change lets new streams be published and move, and viewers come and go, for some ten seconds.
func (b *bench) change() {
	for end := b.now + 9*time.Second; b.now < end && b.spare < len(b.names); b.spare++ {
		at := b.nodes[b.rand.IntN(len(b.nodes))].server.spots[b.spare]
		to := b.nodes[b.rand.IntN(len(b.nodes))].server.spots[b.spare]
		b.announce(at, nil, &b.publish)
		if to != at {
			b.announce(to, at.unpublish, &b.move)
		}
		for range 2 {
			s := b.nodes[b.rand.IntN(len(b.nodes))].server.spots[b.rand.IntN(b.streams)]
			if s.wants {
				s.leave()
			} else {
				s.want()
			}
		}
	}
}

// announce lets a stream be published and watches how the news spreads.
func (b *bench) announce(at *spot, before func(), into *sample) {
	began := b.now
	if before != nil {
		before()
	}
	at.publish()
	from := at.server.node
	b.until(600*time.Millisecond, func(p *sidecar) bool {
		state, _ := p.catalogue.Snapshot()
		best, _ := state.Winner(at.name())
		return best.Origin == from.id
	}, func(p *sidecar) {
		into.add(b.now - began - b.wires[from.i][p.node.i].delay)
	}, from)
}

// until watches for something that every node is to know, but some, for some time.
func (b *bench) until(most time.Duration, knows func(p *sidecar) bool, learnt func(p *sidecar), but ...*node) {
	end := b.now + most
	pending := map[*sidecar]bool{}
	for _, n := range b.nodes {
		if n.sidecar != nil && !slices.Contains(but, n) {
			pending[n.sidecar] = true
		}
	}
	b.news = func(p *sidecar, _ NodeID) {
		if pending[p] && knows(p) {
			delete(pending, p)
			learnt(p)
		}
	}
	step := most / 60
	for b.now < end && len(pending) > 0 {
		b.step(min(b.now+step, end))
	}
	b.news = nil
	b.unaware += len(pending)
}

// crash takes a node away and watches who learns it when.
func (b *bench) crash(all, related, again *sample) {
	n := b.nodes[b.rand.IntN(len(b.nodes))]
	id := n.id
	state, _ := n.sidecar.catalogue.Snapshot()
	near := state.Related()
	orphans := map[*spot]bool{}
	for _, o := range b.nodes {
		for _, at := range o.server.spots {
			if up := at.above(); up != nil && up.server.node == n && b.held(at.name(), n) {
				orphans[at] = true
			}
		}
	}
	wanted := make([]*spot, 0)
	for _, at := range n.server.spots {
		if at.wants {
			wanted = append(wanted, at)
		}
	}
	var published []*spot
	for _, at := range n.server.spots {
		if at.published != 0 {
			published = append(published, at)
		}
	}
	began := b.now
	n.vanish()
	b.begun = func(r *run) {
		at := r.s.node.server.spots[r.stream]
		if again != nil && orphans[at] {
			delete(orphans, at)
			again.add(b.now - began)
		}
	}
	most := 14 * time.Second
	if len(near) > 0 {
		most = 6 * time.Second
	}
	b.until(most, func(p *sidecar) bool { return p.peer(id) == nil }, func(p *sidecar) {
		if slices.Contains(near, p.self.ID) {
			related.add(b.now - began)
		}
		all.add(b.now - began)
	})
	b.run(max(b.now, began+most))
	b.begun = nil
	n.boot()
	for _, at := range published {
		at.publish()
	}
	for _, at := range wanted {
		at.want()
	}
	b.run(b.now + 6*time.Second)
}

// held says whether a stream can be had though a node has gone.
func (b *bench) held(id adapters.StreamID, gone *node) bool {
	state, _ := gone.sidecar.catalogue.Snapshot()
	best, ok := state.Winner(id)
	return ok && best.Origin != gone.id
}

// leave lets a node say that it is about to leave, and watches who learns it when.
func (b *bench) leave() {
	n := b.nodes[b.rand.IntN(len(b.nodes))]
	id := n.id
	but := []*node{n}
	for _, o := range b.nodes {
		if o.sidecar == nil || o.sidecar.link(id) == nil {
			but = append(but, o)
		}
	}
	began := b.now
	n.sidecar.leave(n.boot)
	b.until(2*time.Second, func(p *sidecar) bool {
		state, _ := p.catalogue.Snapshot()
		return state.Condition(id).Draining
	}, func(p *sidecar) {
		b.drain.add(b.now - began - b.wires[n.i][p.node.i].delay)
	}, but...)
	b.run(b.now + 10*time.Second)
}

// partition cuts the first cluster off for 20 seconds, in which things change, and watches how long it takes until each
// node has heard everything of all on the other side.
func (b *bench) partition() {
	here := b.members[b.nodes[0].cluster]
	across := func(each func(i, j int)) {
		for _, a := range here {
			for _, o := range b.nodes {
				if o.cluster != a.cluster {
					each(a.i, o.i)
					each(o.i, a.i)
				}
			}
		}
	}
	fine := b.coarse()
	across(func(i, j int) { b.cut(i, j, true, true) })
	b.run(b.now + 20*time.Second)
	fine()
	missing := map[NodeID]int{}
	heard := map[[2]NodeID]bool{}
	across(func(i, _ int) { missing[b.nodes[i].id]++ })
	began := b.now
	b.news = func(p *sidecar, from NodeID) {
		l := p.link(from)
		key := [2]NodeID{p.self.ID, from}
		if l == nil || l.received == nil || heard[key] || (l.peer.node.cluster == here[0].cluster) == (p.node.cluster == here[0].cluster) {
			return
		}
		heard[key] = true
		if missing[p.self.ID]--; missing[p.self.ID] == 0 {
			b.heal.add(b.now - began)
		}
	}
	across(b.mend)
	for b.now < began+time.Minute && len(heard) < 2*len(here)*(len(b.nodes)-len(here)) {
		b.run(b.now + 100*time.Millisecond)
	}
	b.news = nil
}

// weigh measures what one node's knowledge takes: the catalogue, and the sets of holds that the mesh keeps for each peer.
// All comes from frames, as it would, so that nothing is shared with the simulation.
func (b *bench) weigh() {
	p := b.nodes[0].sidecar
	if p == nil {
		return
	}
	type said struct {
		node  catalogue.Node
		frame []byte
	}
	var all []said
	for _, q := range p.peers {
		if q.primary == nil || q.primary.received == nil {
			continue
		}
		frame, err := proto.Marshal(holdsFrame(nil, q.primary.received))
		if err == nil {
			all = append(all, said{q.node, frame})
		}
	}
	own := p.catalogue.Announcement(p.self.Cluster)
	alone.Lock()
	defer alone.Unlock()
	before := heap()
	known := catalogue.New(p.self)
	sets := make([]map[adapters.StreamID]catalogue.Hold, 0, len(all))
	for _, s := range all {
		var f pb.Holds
		if proto.Unmarshal(s.frame, &f) != nil {
			continue
		}
		set := make(map[adapters.StreamID]catalogue.Hold, len(f.GetHolds()))
		holds := make([]catalogue.Hold, 0, len(f.GetHolds()))
		for _, h := range f.GetHolds() {
			hold := holdFrom(h)
			set[hold.Stream] = hold
			holds = append(holds, hold)
		}
		sets = append(sets, set)
		_ = known.SetPeer(s.node, holds)
	}
	_ = known.SetCarried(own)
	state, _ := known.Snapshot()
	with := heap()
	runtime.KeepAlive(sets)
	sets = nil
	without := heap()
	runtime.KeepAlive(known)
	runtime.KeepAlive(state)
	b.figures.catalogue, b.figures.sets = max(without-before, 0), max(with-without, 0)
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func holdFrom(p *pb.Hold) catalogue.Hold {
	h := catalogue.Hold{
		Stream: adapters.StreamID(p.GetStream()), Epoch: p.GetEpoch(), Priority: p.GetPriority(), Oldest: p.GetOldest(),
		Delay: time.Duration(p.GetDelayUs()) * time.Microsecond,
	}
	for _, id := range p.GetPath() {
		h.Path = append(h.Path, NodeID(id))
	}
	for _, t := range p.GetTracks() {
		h.Tracks = append(h.Tracks, adapters.Track{Kind: t.GetKind(), MIME: t.GetMime(), RID: t.GetRid()})
	}
	return h
}
