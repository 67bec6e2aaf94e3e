package main

import (
	"fmt"
	"slices"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// rest says what does not hold though all is quiet.
func (w *world) rest() error {
	for _, n := range w.nodes {
		if n.sidecar == nil {
			continue
		}
		for _, o := range w.nodes {
			if o.sidecar == nil || o == n {
				continue
			}
			if err := n.sidecar.agrees(o.sidecar); err != nil {
				return err
			}
		}
	}
	for i := range w.names {
		if err := w.restOf(i); err != nil {
			return fmt.Errorf("%s: %w", w.names[i], err)
		}
	}
	return nil
}

// agrees says whether a sidecar knows of another what that one tells.
func (p *sidecar) agrees(o *sidecar) error {
	l := p.link(o.self.ID)
	if l == nil || l.peer != o {
		return fmt.Errorf("%s is not connected to %s", p.self.ID, o.self.ID)
	}
	state, _ := p.catalogue.Snapshot()
	told := o.catalogue.Announcement(p.self.Cluster)
	for _, h := range told {
		known, ok := state.Hold(o.self.ID, h.Stream)
		if !ok || !sameHold(known, h) {
			return fmt.Errorf("%s tells %s %v of %s, which has %v", o.self.ID, p.self.ID, h.Path, h.Stream, known.Path)
		}
	}
	for _, id := range state.Streams() {
		_, ok := state.Hold(o.self.ID, id)
		if ok && !slices.ContainsFunc(told, func(h catalogue.Hold) bool { return h.Stream == id }) {
			return fmt.Errorf("%s believes that %s holds %s", p.self.ID, o.self.ID, id)
		}
	}
	return nil
}

// restOf is rest for one stream: there is one winner, and one tree of true paths below it with one entry into each cluster
// that wants it; and nobody else relays anything.
func (w *world) restOf(i int) error {
	id := w.names[i]
	var winner catalogue.Publication
	published := false
	for _, n := range w.nodes {
		if n.sidecar == nil || n.server.spots[i].published == 0 {
			continue
		}
		state, _ := n.sidecar.catalogue.Snapshot()
		h, ok := state.Origin(id)
		if !ok {
			return fmt.Errorf("%s does not announce its publication", n.id)
		}
		if p := h.Publication(); !published || precedes(p, winner) {
			winner, published = p, true
		}
	}
	pullers := map[string][]NodeID{}
	demand := map[string]bool{}
	for _, n := range w.nodes {
		if n.sidecar == nil {
			continue
		}
		state, _ := n.sidecar.catalogue.Snapshot()
		if got, ok := state.Winner(id); ok != published || got != winner {
			return fmt.Errorf("%s turns to %v, and the winner is %v", n.id, got, winner)
		}
		at := n.server.spots[i]
		var r *run
		if e := n.sidecar.entries[i]; e != nil {
			r = e.run
		}
		if at.wants && at.published == 0 {
			demand[n.cluster] = true
			if published && (!r.live() || !at.playing) {
				return fmt.Errorf("%s wants it and has none", n.id)
			}
		}
		if r == nil {
			continue
		}
		var path []NodeID
		for up := at; up != nil; up = up.above() {
			if path = append(path, up.server.node.id); len(path) > len(w.nodes) {
				return fmt.Errorf("%s is in a circle", n.id)
			}
		}
		slices.Reverse(path)
		switch children := state.Children(id, n.id); {
		case at.published != 0:
			return fmt.Errorf("%s relays what is published there", n.id)
		case !at.flows():
			return fmt.Errorf("%s relays from %s and nothing flows", n.id, r.parent)
		case r.publication != winner:
			return fmt.Errorf("%s relays %v, and the winner is %v", n.id, r.publication, winner)
		case !at.wants && len(children) == 0:
			return fmt.Errorf("%s relays without demand", n.id)
		case !slices.Equal(path, r.path):
			return fmt.Errorf("%s announces path %v, and it is %v", n.id, r.path, path)
		}
		if parent := w.find(r.parent); parent.cluster != n.cluster {
			pullers[n.cluster] = append(pullers[n.cluster], n.id)
		}
	}
	for cluster := range w.members {
		most, least := 1, 0
		switch {
		case !published || w.find(winner.Origin).cluster == cluster:
			most = 0
		case demand[cluster]:
			least = 1
		}
		if got := pullers[cluster]; len(got) < least || len(got) > most {
			return fmt.Errorf("%s, winner %v: pulled by %v", cluster, winner, got)
		}
	}
	return nil
}

// precedes is the rule by which conflicts are settled, once more.
func precedes(p, q catalogue.Publication) bool {
	switch {
	case p.Priority != q.Priority:
		return p.Priority > q.Priority
	case p.Oldest != q.Oldest:
		return p.Oldest
	case p.Epoch == q.Epoch:
		return p.Origin < q.Origin
	case p.Epoch == 0 || q.Epoch == 0:
		return q.Epoch == 0
	case p.Oldest:
		return p.Epoch < q.Epoch
	}
	return p.Epoch > q.Epoch
}
