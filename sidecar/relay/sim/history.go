package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

const (
	restFor  = 16 * time.Second  // longer than any back-off, so that who still has something to do has done it
	restMost = 240 * time.Second // in which all must have come to rest
)

// newHistoryWorld draws a world.
func newHistoryWorld(seed uint64) *world {
	pick := newWorld(seed, options{})
	r := pick.rand
	o := options{
		clusters: 1 + r.IntN(4), perCluster: 1 + r.IntN(3), streams: 1 + r.IntN(3), fanOut: 1 + r.IntN(4),
		linger:  time.Duration(1+r.IntN(15)) * time.Second,
		think:   span{0, time.Duration(1+r.IntN(20)) * time.Millisecond},
		near:    span{200 * time.Microsecond, 2 * time.Millisecond},
		far:     span{5 * time.Millisecond, time.Duration(10+r.IntN(250)) * time.Millisecond},
		jitter:  r.Float64(),
		connect: span{50 * time.Millisecond, time.Duration(100+r.IntN(3000)) * time.Millisecond},
		report:  span{0, time.Duration(20+r.IntN(1000)) * time.Millisecond},
		close:   span{0, time.Duration(20+r.IntN(1500)) * time.Millisecond},
		offsets: 12 * time.Hour, maxRelays: 256,
	}
	for o.clusters*o.perCluster < 3 {
		o.perCluster++
	}
	w := newWorld(seed, o)
	if w.chance(0.3) {
		for _, n := range w.nodes {
			n.policy.Priority = w.rand.Int32N(3) - 1
		}
	}
	if w.chance(0.3) {
		for _, n := range w.nodes {
			n.policy.Oldest = w.chance(0.5)
		}
	}
	return w
}

// play lets a history happen, and says which property it broke.
func playHistory(seed uint64, verbose bool) (*world, error) {
	w := newHistoryWorld(seed)
	w.watch.verbose = verbose
	for _, n := range w.nodes {
		if w.chance(0.8) {
			w.after(w.draw(span{0, 3 * time.Second}), n.boot)
		}
	}
	w.run(w.draw(span{0, 6 * time.Second}))
	if w.chance(0.2) {
		w.restless()
	}
	events := 10 + w.rand.IntN(60)
	pace := span{0, time.Duration(200+w.rand.IntN(2500)) * time.Millisecond}
	for range events {
		w.chaos()
		w.run(w.now + w.draw(pace))
		if err := w.watch.err(); err != nil {
			return w, err
		}
	}
	w.calm()
	w.mark("all is quiet")
	began := w.now
	for {
		w.run(w.now + time.Second)
		if err := w.watch.err(); err != nil {
			return w, err
		}
		switch rested := w.now - w.quietAt; {
		case rested >= restFor+w.linger && !w.doubtful():
			if err := w.rest(); err != nil {
				return w, err
			}
			return w, w.rush()
		case w.now-began > restMost:
			err := w.rest()
			return w, fmt.Errorf("does not come to rest in %s (%v)", restMost, err)
		}
	}
}

// doubtful says whether a server has not noticed that somebody is gone, or a sidecar waits to see whether what its server has
// is a publisher's.
func (w *world) doubtful() bool {
	return slices.ContainsFunc(w.nodes, func(n *node) bool {
		if slices.ContainsFunc(n.server.spots, (*spot).unaware) {
			return true
		}
		return n.sidecar != nil && slices.ContainsFunc(n.sidecar.catalogue.Doubts(), func(id adapters.StreamID) bool {
			since, ok := n.sidecar.doubts[id]
			return !ok || w.now < since+doubtTime+time.Second
		})
	})
}

// restless lets distances change, again and again, while everybody watches one stream: relays change to cheaper parents, many
// at a time.
func (w *world) restless() {
	w.fanOut = 1 + w.rand.IntN(2)
	w.nodes[w.rand.IntN(len(w.nodes))].server.spots[0].publish()
	for _, n := range w.nodes {
		n.boot()
		n.server.spots[0].want()
	}
	for range 10 + w.rand.IntN(20) {
		for i := range w.wires {
			for j := range w.wires[i] {
				if w.chance(0.3) {
					w.slow(i, j, w.draw(span{0, 400 * time.Millisecond}))
				}
			}
		}
		w.run(w.now + w.draw(span{0, 10 * time.Second}))
	}
}

// rush lets all nodes of a cluster want a stream at once that none of them has, in the quiet world that a history ends with.
// One of them pulls it.
func (w *world) rush() error {
	for i := range w.names {
		for _, first := range w.nodes {
			members := w.members[first.cluster]
			if first != members[0] || !w.connected(first.cluster) {
				continue
			}
			idle := func(n *node) bool {
				if n.sidecar == nil {
					return true
				}
				state, _ := n.sidecar.catalogue.Snapshot()
				best, ok := state.Winner(w.names[i])
				return ok && w.find(best.Origin).cluster != n.cluster && n.server.spots[i].source() == 0 && !n.server.spots[i].wants
			}
			if slices.ContainsFunc(members, func(n *node) bool { return !idle(n) }) {
				continue
			}
			key := pulled{i, first.cluster}
			before := w.pulls[key]
			waiting := 0
			for _, n := range members {
				if n.sidecar != nil {
					n.server.spots[i].want()
					waiting++
				}
			}
			w.run(w.now + 5*time.Second)
			if n := w.pulls[key] - before; waiting > 0 && n != 1 {
				return fmt.Errorf("%s is wanted by %d nodes of %s at once: %d pulls from outside", w.names[i], waiting, first.cluster, n)
			}
			return w.watch.err()
		}
	}
	return nil
}

// chaos lets one thing happen.
func (w *world) chaos() {
	n := w.nodes[w.rand.IntN(len(w.nodes))]
	o := w.nodes[w.rand.IntN(len(w.nodes))]
	at := n.server.spots[w.rand.IntN(len(w.names))]
	switch w.rand.IntN(24) {
	case 0, 1, 2, 3, 4:
		if n.up {
			at.want()
		}
	case 5, 6:
		at.leave()
	case 7, 8:
		if n.up && at.published == 0 {
			at.publish()
		}
	case 9:
		at.unpublish()
	case 10: // the publisher moves
		for _, m := range w.nodes {
			if other := m.server.spots[at.stream]; other.published != 0 && n.up && at.published == 0 {
				if w.chance(0.5) {
					at.publish()
					w.after(w.draw(span{0, 3 * time.Second}), other.unpublish)
				} else {
					other.unpublish()
					w.after(w.draw(span{0, 3 * time.Second}), func() {
						if n.up && at.published == 0 {
							at.publish()
						}
					})
				}
				break
			}
		}
	case 11:
		n.crash()
	case 12: // restarted at once, as the kubelet does
		n.crash()
		if n.up {
			if w.chance(0.3) {
				n.forgetState()
			}
			w.after(w.draw(span{100 * time.Millisecond, 3 * time.Second}), n.boot)
		}
	case 13:
		n.vanish()
	case 14, 15:
		if !n.up && w.chance(0.5) {
			n.rename()
		}
		n.boot()
	case 16:
		if n.sidecar != nil {
			pod, again := w.chance(0.5), w.draw(span{100 * time.Millisecond, 3 * time.Second})
			n.sidecar.leave(func() {
				if pod {
					n.vanish()
				} else {
					w.after(again, n.boot)
				}
			})
		}
	case 17: // one direction of one pair
		if o != n {
			w.mark("from %s to %s nothing passes", n.id, o.id)
			control := w.chance(0.8)
			w.cut(n.i, o.i, control, !control || w.chance(0.5))
		}
	case 18: // a node, or a cluster, is cut off
		whole, media := w.chance(0.5), w.chance(0.5)
		w.mark("%s is cut off, with its cluster: %v, media: %v", n.id, whole, media)
		for _, a := range w.nodes {
			if a != n && !(whole && a.cluster == n.cluster) {
				continue
			}
			for _, b := range w.nodes {
				if b != a && !(whole && b.cluster == a.cluster) {
					w.cut(a.i, b.i, true, media)
					w.cut(b.i, a.i, true, media)
				}
			}
		}
	case 19, 20:
		w.mendAll()
	case 21: // a slow link
		if o != n {
			slow := w.draw(span{0, 900 * time.Millisecond})
			w.mark("from %s to %s it takes %s longer", n.id, o.id, slow)
			w.slow(n.i, o.i, slow)
		}
	case 22: // and all is fast again
		for i := range w.wires {
			for j := range w.wires[i] {
				w.slow(i, j, 0)
			}
		}
	case 23:
		if n.up {
			w.mark("%s: the media server is restarted", n.id)
			n.server.restart()
		}
	}
}

func (w *world) mendAll() {
	w.mark("all links are mended")
	for i := range w.wires {
		for j := range w.wires[i] {
			w.mend(i, j)
		}
	}
}

// calm mends what is broken; pods that have gone stay away.
func (w *world) calm() {
	for i := range w.wires {
		for j := range w.wires[i] {
			w.slow(i, j, 0)
		}
	}
	w.mendAll()
	// Within a cluster a link may stay so slow that who is asked for a claim counts as silent.
	for w.chance(0.3) {
		a := w.nodes[w.rand.IntN(len(w.nodes))]
		members := w.members[a.cluster]
		if b := members[w.rand.IntN(len(members))]; a != b {
			by := w.draw(span{150 * time.Millisecond, 400 * time.Millisecond})
			w.slow(a.i, b.i, by)
			w.slow(b.i, a.i, by)
		}
	}
	for _, n := range w.nodes {
		if n.up && n.sidecar == nil {
			w.after(w.draw(span{0, 5 * time.Second}), n.boot)
		}
	}
}

// dump is the world as it stands, for people.
func (w *world) dump() string {
	var b strings.Builder
	for _, e := range w.watch.events[max(0, len(w.watch.events)-keptEvents):] {
		fmt.Fprintln(&b, e)
	}
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "%s of %s: up %v, sidecar %v\n", n.id, n.cluster, n.up, n.sidecar != nil)
		for i, at := range n.server.spots {
			p := n.sidecar
			line := fmt.Sprintf("    %s: published %d, relayed %d, left %d, wants %v, plays %v, waits %v, readers %d",
				w.names[i], at.published, at.relayed, at.left, at.wants, at.playing, at.asked, len(at.sessions))
			if p == nil {
				fmt.Fprintln(&b, line)
				continue
			}
			if e := p.entries[i]; e != nil {
				line += fmt.Sprintf("; demand %+v, %s: %s", e.demand, e.decision.Action, e.decision.Why)
				if r := e.run; r != nil {
					line += fmt.Sprintf("; from %s live %v %q, path %v of %v", r.parent, r.live(), r.stopping, r.path, r.publication)
				}
			}
			fmt.Fprintln(&b, line)
			state, _ := p.catalogue.Snapshot()
			for _, h := range state.Holds(w.names[i]) {
				fmt.Fprintf(&b, "        %s: %d %v\n", h.Holder(), h.Epoch, h.Path)
			}
		}
	}
	return b.String()
}
