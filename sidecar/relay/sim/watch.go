package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// watch sees what must not happen at any time, and keeps what happened last. A nil one does not look.
type watch struct {
	verbose  bool
	events   []string // the last ones
	failures []string
	overlaps map[pulled]time.Duration // since when
	whole    map[string]time.Duration // since when all of a cluster is connected; absent: it is not
	loops    map[int]bool
	circles  int
}

type pulled struct {
	stream  int
	cluster string
}

const (
	keptEvents = 400
	// An overlap of two pullers lasts no longer.
	overlapMost = 5 * time.Second
)

func newWatch() *watch {
	return &watch{
		overlaps: map[pulled]time.Duration{}, whole: map[string]time.Duration{}, loops: map[int]bool{},
	}
}

func (v *watch) note(now time.Duration, format string, args ...any) {
	if v == nil || !v.verbose {
		return
	}
	if len(v.events) >= 2*keptEvents {
		v.events = append(v.events[:0], v.events[keptEvents:]...)
	}
	v.events = append(v.events, fmt.Sprintf("%10.3f  ", now.Seconds())+fmt.Sprintf(format, args...))
}

func (v *watch) fail(now time.Duration, format string, args ...any) {
	if v == nil {
		panic(fmt.Sprintf(format, args...))
	}
	v.note(now, "FAILURE: "+format, args...)
	if len(v.failures) < 10 {
		v.failures = append(v.failures, fmt.Sprintf("at %.3f s: ", now.Seconds())+fmt.Sprintf(format, args...))
	}
}

func (v *watch) err() error {
	if len(v.failures) == 0 {
		return nil
	}
	return fmt.Errorf("%s", strings.Join(v.failures, "; "))
}

// turned looks at a stream after something has changed of it at one server.
func (v *watch) turned(w *world, at *spot) {
	w.feel(at.stream)
	if v == nil {
		return
	}
	v.overlap(w, at.stream, at.server.node.cluster)
	v.loop(w, at)
}

// feel lets the relays of a stream notice whether media comes in.
func (w *world) feel(stream int) {
	for _, n := range w.nodes {
		r := n.server.spots[stream].relay
		if r == nil || r.liveAt < 0 {
			continue
		}
		switch flows := !r.over && n.server.spots[stream].flows(); {
		case flows && !r.flowing:
			r.flowing = true
			r.s.regain(r)
		case !flows && r.flowing:
			since := w.now
			r.flowing, r.lastPacket = false, since
			w.after(silenceTime, func() { r.suspect(since) })
		}
	}
}

// overlap watches that of two pullers of one cluster one yields.
func (v *watch) overlap(w *world, stream int, cluster string) {
	key := pulled{stream, cluster}
	if w.pullers(stream, cluster) < 2 {
		delete(v.overlaps, key)
		return
	}
	if _, ok := v.overlaps[key]; ok {
		return
	}
	since := w.now
	v.overlaps[key] = since
	var check func()
	check = func() {
		if began, ok := v.overlaps[key]; !ok || began != since {
			return
		}
		whole, ok := v.whole[cluster]
		switch due := max(since, whole) + overlapMost; {
		case !ok:
			w.after(time.Second, check)
		case w.now < due:
			w.at(due, check)
		default:
			v.fail(w.now, "%s is pulled for %s by two nodes since %.3f s", w.names[stream], cluster, since.Seconds())
		}
	}
	w.after(overlapMost, check)
}

// pullers counts who pulls the same publication of a stream for a cluster: of two publications, the nodes of a cluster may know
// different ones while others are cut off. What a node pulls that drains does not count: it does not move, and ends with the
// node.
func (w *world) pullers(stream int, cluster string) int {
	most := 0
	for _, o := range w.members[cluster] {
		of, ok := o.puller(stream)
		if !ok {
			continue
		}
		n := 0
		for _, other := range w.members[cluster] {
			if same, ok := other.puller(stream); ok && same == of {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// puller says what a node pulls for its cluster.
func (n *node) puller(stream int) (catalogue.Publication, bool) {
	r := n.server.spots[stream].relay
	if n.sidecar == nil || n.sidecar.draining || !r.live() || !r.outside {
		return catalogue.Publication{}, false
	}
	return r.publication, true
}

// loop watches that nodes which send in a circle do not do so for longer than it takes to tell.
func (v *watch) loop(w *world, at *spot) {
	if v.loops[at.stream] {
		return
	}
	circle := circleOf(w, at)
	if circle == nil {
		return
	}
	since := w.now
	v.loops[at.stream] = true
	v.circles++
	bound := w.think.most
	for _, a := range circle {
		for _, b := range circle {
			bound = max(bound, w.longest(a.server.node.i, b.server.node.i)+w.think.most)
		}
	}
	v.note(w.now, "LOOP of %s: %v", w.names[at.stream], idsOf(circle))
	w.after(bound, func() {
		v.loops[at.stream] = false
		if circleOf(w, at) != nil {
			v.fail(w.now, "%s goes in a circle of %v since %.3f s", w.names[at.stream], idsOf(circle), since.Seconds())
		}
	})
}

// circleOf is the circle that a server is part of.
func circleOf(w *world, at *spot) []*spot {
	circle := []*spot{at}
	for up := at.above(); up != nil && len(circle) <= len(w.nodes); up = up.above() {
		if up == at {
			return circle
		}
		circle = append(circle, up)
	}
	return nil
}

func idsOf(spots []*spot) []NodeID {
	var ids []NodeID
	for _, s := range spots {
		ids = append(ids, s.server.node.id)
	}
	return ids
}

// connected looks whether all sidecars of a cluster are connected to each other, by links as they are within a cluster.
func (v *watch) connected(p *sidecar) { v.look(p.w, p.node.cluster) }

func (v *watch) look(w *world, cluster string) {
	if v == nil {
		return
	}
	if !w.connected(cluster) {
		delete(v.whole, cluster)
		return
	}
	if _, ok := v.whole[cluster]; !ok {
		v.whole[cluster] = w.now
	}
}

func (w *world) connected(cluster string) bool {
	nodes := w.members[cluster]
	for _, a := range nodes {
		if a.sidecar == nil {
			continue
		}
		for _, b := range nodes {
			if b == a || b.sidecar == nil {
				continue
			}
			if wire := w.wires[a.i][b.i]; wire.control || wire.media || wire.slow > 0 {
				return false
			}
			l := a.sidecar.link(b.id)
			if l == nil || l.peer != b.sidecar || l.received == nil || l.other.ended || len(l.stalled) > 0 {
				return false
			}
		}
	}
	return true
}
