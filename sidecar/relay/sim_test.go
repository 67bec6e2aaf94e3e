package relay_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

const (
	simTick   = 100 * time.Millisecond
	simLost   = 25 // ticks after which a silent peer is forgotten
	simSilent = 5  // ticks after which a relay without media ends
	simDoubt  = 50 // ticks after which a server has noticed the end of a relay
	simChaos  = 120
	simQuiet  = 250
)

// sim runs catalogues, planners and claims of several nodes against each other in virtual time, for one stream: messages
// are late, nodes crash with and without their memory, links are cut, publishers come, go and collide. A seed repeats a
// history.
type sim struct {
	*testing.T
	rand  *rand.Rand
	tick  int
	nodes []*simNode
	cut   map[[2]ID]bool
	mail  []simMail
}

type simMail struct {
	at       int
	from, to *simNode
	node     catalogue.Node
	holds    []catalogue.Hold
	clock    uint64
}

type simNode struct {
	catalogue.Node
	catalogue *catalogue.Catalogue
	claims    *relay.Claims
	alive     bool
	wants     bool
	published int // the publication at its server, 0 for none
	relay     *simRelay
	source    int // what its server hands on now: differs with each publication and each relay
	booted    int
	doubt     int // ticks
	left      int // what a relay left behind at the server when the sidecar crashed
	claim     planner.Claim
	asking    int // the tick when the silent owner is given up
	owner     ID
	avoid     map[ID]int
	heard     map[ID]int
	sent      map[ID]*catalogue.State
	feasible  planner.Feasibility
}

type simRelay struct {
	parent      *simNode
	source      int // the parent's when the session was opened
	publication catalogue.Publication
	path        []ID
	sequence    uint64
	outside     bool
	session     int // at the own server
	liveAt      int
	live        bool
	silent      int
}

func newSim(t *testing.T, seed uint64) *sim {
	s := &sim{T: t, rand: rand.New(rand.NewPCG(seed, 7)), cut: map[[2]ID]bool{}}
	for _, cluster := range []string{"a", "b", "c"} {
		for i := range 3 {
			n := &simNode{Node: catalogue.Node{ID: ID(fmt.Sprint(cluster, i)), Cluster: cluster}}
			s.nodes = append(s.nodes, n)
			s.boot(n, catalogue.Record{})
		}
	}
	return s
}

func (s *sim) now() time.Time { return time.Unix(0, 0).Add(time.Duration(s.tick) * simTick) }

func (s *sim) boot(n *simNode, r catalogue.Record) {
	n.Incarnation++
	n.alive, n.catalogue, n.claims = true, catalogue.New(n.Node), relay.NewClaims()
	n.booted, n.doubt = s.tick, 0
	n.claim, n.relay, n.asking = planner.Claim{}, nil, 0
	n.avoid, n.heard, n.sent = map[ID]int{}, map[ID]int{}, map[ID]*catalogue.State{}
	n.feasible = planner.Feasibility{}
	if err := n.catalogue.Restore(r); err != nil {
		s.Fatal(err)
	}
	s.serve(n)
}

// serve lets the node's server report.
func (s *sim) serve(n *simNode) {
	var streams []adapters.Stream
	for _, session := range []int{n.published, n.source, n.left} {
		if session != 0 {
			streams = append(streams, adapters.Stream{ID: "x", Session: fmt.Sprint(session)})
			break
		}
	}
	if err := n.catalogue.SetLocal(streams); err != nil {
		s.Fatal(err)
	}
}

func (s *sim) publish(n *simNode) {
	n.published = s.rand.Int()
	n.source = n.published
	if n.alive {
		s.serve(n)
	}
}

func (s *sim) unpublish(n *simNode) {
	if n.published == 0 {
		return
	}
	n.published, n.source = 0, 0
	if n.alive {
		s.serve(n)
	}
}

func (s *sim) linked(a, b *simNode) bool {
	return a.alive && b.alive && !s.cut[[2]ID{a.ID, b.ID}] && !s.cut[[2]ID{b.ID, a.ID}]
}

// chaos lets one thing happen.
func (s *sim) chaos() {
	n := s.nodes[s.rand.IntN(len(s.nodes))]
	other := s.nodes[s.rand.IntN(len(s.nodes))]
	switch s.rand.IntN(12) {
	case 0, 1, 2:
		n.wants = !n.wants
	case 3:
		if n.published == 0 {
			s.publish(n)
		}
	case 4:
		s.unpublish(n)
	case 5: // the sidecar crashes, its server goes on without the relay
		s.crash(n)
	case 6: // the pod crashes
		s.crash(n)
		s.unpublish(n)
	case 7, 8:
		s.restart(n)
	case 9:
		s.cut[[2]ID{n.ID, other.ID}] = true
	case 10:
		for _, m := range s.nodes {
			if m.Cluster != n.Cluster {
				s.cut[[2]ID{n.ID, m.ID}] = true
			}
		}
	case 11:
		clear(s.cut)
	}
}

func (s *sim) restart(n *simNode) {
	s.crash(n)
	r := n.catalogue.Record()
	if s.rand.IntN(2) == 0 {
		r = catalogue.Record{}
	}
	s.boot(n, r)
}

func (s *sim) crash(n *simNode) {
	n.alive = false
	if r := n.relay; r != nil {
		if r.live {
			n.left = r.session
		}
		n.relay, n.source = nil, n.published
	}
}

// flows says whether media reaches a node's server.
func (s *sim) flows(n *simNode, hops int) bool {
	switch {
	case n.published != 0:
		return true
	case n.relay == nil || !n.relay.live || hops > len(s.nodes):
		return false
	}
	return n.relay.parent.source == n.relay.source && s.flows(n.relay.parent, hops+1)
}

func (s *sim) step() {
	s.tick++
	var later []simMail
	for _, m := range s.mail {
		switch {
		case m.at > s.tick:
			later = append(later, m)
		case s.linked(m.from, m.to):
			if m.to.catalogue.SetPeer(m.node, m.holds) == nil {
				m.to.heard[m.node.ID] = s.tick
			}
			if err := m.to.catalogue.Observe(m.clock); err != nil {
				s.Error(err)
			}
		}
	}
	s.mail = later
	for _, i := range s.rand.Perm(len(s.nodes)) {
		if n := s.nodes[i]; n.alive {
			if n.left != 0 && (s.rand.IntN(10) == 0 || n.doubt > simDoubt/2) {
				n.left = 0
				s.serve(n)
			}
			if n.doubt++; len(n.catalogue.Doubts()) == 0 {
				n.doubt = 0
			}
			if n.doubt > simDoubt {
				n.catalogue.Believe("x")
			}
			s.media(n)
			s.plan(n)
		}
	}
	for _, n := range s.nodes {
		if !n.alive {
			continue
		}
		for id, at := range n.heard {
			if s.tick-at > simLost {
				n.catalogue.Forget(id)
				delete(n.heard, id)
			}
		}
		s.announce(n)
	}
}

func (s *sim) announce(n *simNode) {
	state, _ := n.catalogue.Snapshot()
	for _, to := range s.nodes {
		if to == n || !s.linked(n, to) || state == n.sent[to.ID] && s.tick%5 != 0 {
			continue
		}
		n.sent[to.ID] = state
		s.mail = append(s.mail, simMail{
			at: s.tick + 1 + (int(n.ID[1])+int(to.ID[1]))%3, from: n, to: to,
			node: n.Node, holds: n.catalogue.Announcement(to.Cluster), clock: n.catalogue.Clock(),
		})
	}
}

// media lets the node's session connect, fall silent or end.
func (s *sim) media(n *simNode) {
	r := n.relay
	if r == nil {
		return
	}
	switch {
	case r.parent.source != r.source, !r.live && n.published != 0: // the server has a publisher of that name
		s.end(n, 2)
	case !r.live && s.tick >= r.liveAt:
		r.live = true
		n.source = s.rand.Int()
		r.session = n.source
		s.serve(n)
		r.locate(n)
		s.carry(n)
	case r.live && !s.flows(n, 0):
		if r.silent++; r.silent > simSilent {
			s.end(n, 2)
		}
	}
}

// end ends the node's relay; its parent is avoided for some ticks.
func (s *sim) end(n *simNode, avoid int) {
	r := n.relay
	n.avoid[r.parent.ID] = s.tick + avoid
	if r.live {
		r.locate(n)
	}
	if r.live && r.outside {
		n.claim = planner.Claim{Epoch: r.publication.Epoch, Granted: true, Until: s.now().Add(5 * time.Second)}
	}
	n.relay, n.source = nil, n.published
	s.carry(n)
	n.catalogue.Uncarry("x")
	s.serve(n)
}

func (r *simRelay) locate(n *simNode) { n.catalogue.Located("x", fmt.Sprint("/whip/x/", r.session)) }

func (s *sim) carry(n *simNode) {
	var holds []catalogue.Hold
	if r := n.relay; r != nil && r.live {
		holds = append(holds, catalogue.Hold{Stream: "x", Epoch: r.publication.Epoch, Path: r.path})
	}
	if err := n.catalogue.SetCarried(holds); err != nil {
		s.Error(err)
	}
}

func (s *sim) plan(n *simNode) {
	state, _ := n.catalogue.Snapshot()
	if r := n.relay; r != nil && r.live {
		if h, ok := state.Hold(r.parent.ID, "x"); ok && h.Publication() == r.publication && !h.Through(n.ID) &&
			len(h.Path) < catalogue.MaxPath {
			r.path = append(slices.Clone(h.Path), n.ID)
			s.carry(n)
			state, _ = n.catalogue.Snapshot()
		}
	}
	if r := n.relay; r != nil && r.live && s.tick%5 == 0 && s.linked(n, r.parent) {
		if h, ok := state.Hold(r.parent.ID, "x"); ok && h.Publication() == r.publication && slices.Equal(h.Path, r.path[:len(r.path)-1]) {
			s.hear(n, r)
		}
	}
	_, held := state.Own("x")
	n.feasible.Forget(s.now(), func(adapters.StreamID) bool { return held || len(state.Children("x", n.ID)) > 0 })
	n.claims.Observe(s.now(), state)
	if !n.wants && len(state.Children("x", n.ID)) == 0 {
		if n.relay != nil {
			s.end(n, 0)
		}
		return
	}
	in := planner.Input{
		State: state, Now: s.now(), Wants: []planner.Want{{Stream: "x"}}, FanOut: 2,
		Claims: map[adapters.StreamID]planner.Claim{"x": n.claim}, Relays: map[adapters.StreamID]planner.Relay{},
		Avoid: func(_ adapters.StreamID, id ID) time.Time {
			return time.Unix(0, 0).Add(time.Duration(n.avoid[id]) * simTick)
		},
	}
	if r := n.relay; r != nil {
		in.Relays["x"] = planner.Relay{Parent: r.parent.ID, Publication: r.publication, Outside: r.outside, Live: r.live}
	}
	d := planner.Plan(in)[0]
	if n.relay != nil && (d.Drop || d.Action == planner.Nothing) {
		s.end(n, 0)
	}
	switch d.Action {
	case planner.Ask:
		s.ask(n, d)
	case planner.Run:
		if r := n.relay; r != nil {
			if r.parent.ID != d.Parent || r.publication != d.Hold.Publication() {
				s.end(n, 0)
			}
			return
		}
		s.pull(n, d)
	}
}

func (s *sim) node(id ID) *simNode {
	return s.nodes[slices.IndexFunc(s.nodes, func(n *simNode) bool { return n.ID == id })]
}

func (s *sim) ask(n *simNode, d planner.Decision) {
	owner := s.node(d.Owner)
	if s.linked(n, owner) {
		n.asking = 0
		state, _ := owner.catalogue.Snapshot()
		c := owner.claims.Claim(s.now(), state, n.ID, "x", d.Epoch)
		if c.Granted || c.Holder != "" {
			n.claim = planner.Claim{Epoch: d.Epoch, Granted: c.Granted, Holder: c.Holder, Until: s.now().Add(time.Second)}
			if c.Granted {
				n.claim.Until = s.now().Add(5 * time.Second)
			}
			return
		}
	}
	switch {
	case n.asking == 0 || n.owner != d.Owner:
		n.asking, n.owner = s.tick+3, d.Owner
	case s.tick >= n.asking:
		silent := []ID{d.Owner}
		if n.claim.Epoch == d.Epoch && s.now().Before(n.claim.Until) {
			silent = append(slices.Clone(n.claim.Silent), d.Owner)
		}
		n.claim = planner.Claim{Epoch: d.Epoch, Silent: silent, Until: s.now().Add(5 * time.Second)}
		n.asking = 0
	}
}

func (s *sim) pull(n *simNode, d planner.Decision) {
	parent := s.node(d.Parent)
	if s.tick-n.booted <= simDoubt && len(n.catalogue.Doubts()) > 0 {
		return // as the manager does
	}
	fail := func() { n.avoid[d.Parent] = s.tick + 3 + s.rand.IntN(4) }
	if !s.linked(n, parent) || parent.source == 0 {
		fail()
		return
	}
	state, _ := parent.catalogue.Snapshot()
	h, err := planner.Source(state, n.ID, "x")
	if err != nil || d.Hold.Publication().Beats(h.Publication()) {
		fail()
		return
	}
	sequence := s.handOn(parent, h)
	if !n.feasible.Accepts("x", h.Publication(), sequence, len(h.Path)-1) {
		n.avoid[d.Parent] = s.tick + 5
		return
	}
	if h.Through(n.ID) {
		s.Fatalf("tick %d: %s is granted a path through itself: %v", s.tick, n.ID, h.Path)
	}
	n.relay = &simRelay{
		parent: parent, source: parent.source, publication: h.Publication(), path: append(slices.Clone(h.Path), n.ID),
		sequence: sequence, outside: d.Outside, liveAt: s.tick + 1 + s.rand.IntN(3),
	}
	n.catalogue.Carry("x")
}

// handOn is the sequence that a node gives out with its own hold.
func (s *sim) handOn(n *simNode, own catalogue.Hold) uint64 {
	if len(own.Path) == 1 {
		return planner.Sequence(n.Incarnation, time.Duration(s.tick-n.booted)*simTick)
	}
	n.feasible.Told("x", own.Publication(), n.relay.sequence, len(own.Path)-1)
	return n.relay.sequence
}

// hear lets a relay hear its parent's heartbeat.
func (s *sim) hear(n *simNode, r *simRelay) {
	state, _ := r.parent.catalogue.Snapshot()
	own, ok := state.Own("x")
	if ok && own.Publication() == r.publication && slices.Contains(state.Children("x", r.parent.ID), n.ID) {
		r.sequence = s.handOn(r.parent, own)
	}
}

// rest checks what must hold once all is quiet.
func (s *sim) rest() error {
	var winner catalogue.Publication
	publishers := 0
	for _, n := range s.nodes {
		if !n.alive || n.published == 0 {
			continue
		}
		publishers++
		state, _ := n.catalogue.Snapshot()
		h, ok := state.Origin("x")
		if !ok {
			return fmt.Errorf("%s does not announce its publication", n.ID)
		}
		if winner.Origin == "" || h.Publication().Beats(winner) {
			winner = h.Publication()
		}
	}
	pullers := map[string][]ID{}
	demand := map[string]bool{}
	for _, n := range s.nodes {
		if !n.alive {
			continue
		}
		state, _ := n.catalogue.Snapshot()
		if got, _ := state.Winner("x"); got != winner {
			return fmt.Errorf("%s turns to %v, and the winner is %v", n.ID, got, winner)
		}
		r := n.relay
		if n.wants && n.published == 0 {
			demand[n.Cluster] = true
			if publishers > 0 && (r == nil || !r.live) {
				return fmt.Errorf("%s wants it and has none", n.ID)
			}
		}
		if r == nil {
			continue
		}
		switch children := state.Children("x", n.ID); {
		case n.published != 0:
			return fmt.Errorf("%s relays what is published there", n.ID)
		case !s.flows(n, 0):
			return fmt.Errorf("%s relays from %s and nothing flows", n.ID, r.parent.ID)
		case r.publication != winner:
			return fmt.Errorf("%s relays %v, and the winner is %v", n.ID, r.publication, winner)
		case !n.wants && len(children) == 0:
			return fmt.Errorf("%s relays without demand", n.ID)
		}
		var path []ID
		for at := n; ; at = at.relay.parent {
			path = append([]ID{at.ID}, path...)
			if at.relay == nil {
				break
			}
		}
		if !slices.Equal(path, r.path) {
			return fmt.Errorf("%s announces path %v, and it is %v", n.ID, r.path, path)
		}
		if r.parent.Cluster != n.Cluster {
			pullers[n.Cluster] = append(pullers[n.Cluster], n.ID)
		}
	}
	for cluster := range demand {
		want := 1
		if publishers == 0 || winner.Origin[:1] == ID(cluster) {
			want = 0
		}
		if len(pullers[cluster]) != want {
			return fmt.Errorf("cluster %s, winner %v: pulled by %v", cluster, winner, pullers[cluster])
		}
		delete(pullers, cluster)
	}
	for cluster, ids := range pullers { // for children elsewhere
		if len(ids) > 1 {
			return fmt.Errorf("cluster %s, without viewers: pulled by %v", cluster, ids)
		}
	}
	return nil
}

func (s *sim) dump() {
	for _, n := range s.nodes {
		state, _ := n.catalogue.Snapshot()
		r := "no relay"
		if n.relay != nil {
			r = fmt.Sprintf("from %s live %v path %v of %v", n.relay.parent.ID, n.relay.live, n.relay.path, n.relay.publication)
		}
		s.Logf("%s alive %v wants %v publishes %v: %s; claim %+v; avoids %v", n.ID, n.alive, n.wants, n.published != 0, r,
			n.claim, slices.Sorted(maps.Keys(n.avoid)))
		for _, h := range state.Holds("x") {
			s.Logf("    %s: %d %v", h.Holder(), h.Epoch, h.Path)
		}
	}
}

func TestHistories(t *testing.T) {
	histories := uint64(200)
	if testing.Short() {
		histories = 50
	}
	for seed := range histories {
		s := newSim(t, seed)
		for range simChaos {
			if s.rand.IntN(4) == 0 {
				s.chaos()
			}
			s.step()
		}
		clear(s.cut)
		for _, n := range s.nodes {
			if !n.alive && n.published != 0 {
				s.restart(n) // a sidecar beside a server that goes on is started again
			}
		}
		for range simQuiet {
			s.step()
		}
		if err := s.rest(); err != nil {
			s.dump()
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
