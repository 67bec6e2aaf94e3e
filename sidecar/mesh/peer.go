package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// supersededGrace is how long the side that should not close a superseded link waits for the other one to do it.
const supersededGrace = 5 * time.Second

// maxFormer bounds the processes that are remembered, maxOutgrow the incarnations of which a peer is believed: no node was
// started more often than that.
const (
	maxFormer  = 4 * maxPeers
	maxOutgrow = 1 << 20
)

// toldFor is how long a death that another node has told of is not told again.
const toldFor = 5 * time.Second

// Why a link ended, or was not begun. The texts go to peers as well.
var (
	errSelf       = errors.New("this is the node itself")
	errImpostor   = errors.New("another process uses the same node id")
	errStale      = errors.New("a later incarnation of the node is connected")
	errBehind     = errors.New("another process of the node was connected, of no earlier incarnation")
	errDuplicate  = errors.New("the nodes are connected already")
	errSuperseded = errors.New("another connection of the same two nodes took its place")
	errLost       = errors.New("heartbeat lost")
	errGoodbye    = errors.New("the node said goodbye")
	errClosing    = errors.New("this node is leaving")
	errFull       = errors.New("too many peers")
	errOutgrown   = errors.New("this node has taken a later incarnation")
)

// peer is a node that is alive, as far as this one can tell. Its fields are guarded by Mesh.mu.
//
// Two nodes may have several links for a moment. All of them work; one is the primary, chosen so that both ends come to
// the same choice: of the later incarnation, else dialled by the smaller id, else opened later. The others are closed only
// by the side that knows that the other side has the primary too, so that there is no moment without a link. Only the
// primary's holds are believed: what two links bring of the same node may come out of order.
type peer struct {
	node    catalogue.Node
	links   []*link
	primary *link // nil while there is no link
	address string
	// deadline is when the node is lost, while there is no link.
	deadline time.Time
	told     time.Time // when another node told of its death
	heard    time.Time // when its last link that ended was heard last
}

// link is the connection by which a node is asked and measured.
func (m *Mesh) link(id catalogue.NodeID) *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.peers[id]; p != nil {
		return p.primary
	}
	return nil
}

// check says why a node that introduces itself is turned away, before either side keeps the connection.
func (m *Mesh) check(h *pb.Hello) error {
	if h.GetNode() == string(m.self.ID) {
		if bytes.Equal(h.GetProcess(), m.process) {
			return errSelf
		}
		return fmt.Errorf("node id %s is this node's: %w", h.GetNode(), errImpostor)
	}
	if err := m.o.Catalogue.Observe(h.GetClock()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	id := catalogue.NodeID(h.GetNode())
	if m.flooded(id, time.Now()) {
		return errFlood
	}
	if p := m.peers[id]; p != nil {
		for _, o := range p.links {
			switch {
			case o.ended():
				continue
			case o.node.Incarnation > h.GetIncarnation():
				m.doubt(o)
				return fmt.Errorf("incarnation %d after %d: %w", h.GetIncarnation(), o.node.Incarnation, errStale)
			case o.node.Incarnation == h.GetIncarnation() && !bytes.Equal(o.process, h.GetProcess()):
				m.doubt(o)
				return fmt.Errorf("node id %s, incarnation %d: %w", h.GetNode(), h.GetIncarnation(), errImpostor)
			}
		}
	}
	return m.former[id].check(h)
}

// doubt asks a peer whether it is alive after all: another process says that it is that node, and need not wait until a
// distant node's heartbeat is lost. The caller holds mu.
func (m *Mesh) doubt(l *link) {
	l.probe()
	m.wakeDeadline.raise()
}

// former is a process of a node, as it is remembered when it has gone: the latest of that node. While it is connected, another
// that comes with the same id is refused. When it is not, and a process without a memory comes in its place, that one is told by
// which incarnation it is remembered: what is said of an earlier incarnation counts nowhere.
type former struct {
	incarnation uint64
	process     []byte
}

// behindError turns away a process that must come again with a later incarnation.
type behindError struct{ former, incarnation uint64 }

func (e *behindError) Error() string {
	return fmt.Sprintf("incarnation %d after %d: %v", e.incarnation, e.former, errBehind)
}

func (e *behindError) Unwrap() error { return errBehind }

func (f former) check(h *pb.Hello) error {
	if f.process == nil || f.incarnation < h.GetIncarnation() || bytes.Equal(f.process, h.GetProcess()) {
		return nil
	}
	return &behindError{former: f.incarnation, incarnation: h.GetIncarnation()}
}

// remember keeps what is known of a process that has come. The caller holds mu.
func (m *Mesh) remember(l *link) {
	if l.node.Incarnation < m.former[l.node.ID].incarnation {
		return
	}
	if _, ok := m.former[l.node.ID]; !ok && len(m.former) >= maxFormer {
		for id := range m.former {
			if m.peers[id] == nil {
				delete(m.former, id)
				break
			}
		}
	}
	m.former[l.node.ID] = former{incarnation: l.node.Incarnation, process: l.process}
}

// outgrow takes a peer's word that it remembers an earlier process of this node, and says whether that means anything here.
func (m *Mesh) outgrow(remembered uint64) bool {
	own := m.o.Catalogue.Self().Incarnation
	switch {
	case m.o.Outgrow == nil || remembered > maxOutgrow:
		return false
	case remembered < own: // another peer has said so meanwhile
		return true
	}
	m.log.Warn("a peer remembers an earlier process of this node, which this one does not; going on as a later one",
		"incarnation", own, "remembered", remembered)
	m.o.Outgrow(remembered)
	return true
}

// keep takes a link whose handshake is done: the dialler before it confirms, the other side when it was confirmed.
func (m *Mesh) keep(l *link) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing {
		return errClosing
	}
	p := m.peers[l.node.ID]
	if p == nil {
		if len(m.peers) >= maxPeers {
			return errFull
		}
		p = &peer{node: l.node}
	}
	for _, o := range p.links {
		switch {
		case o.ended(), o.node.Incarnation < l.node.Incarnation:
			continue
		case o.node.Incarnation > l.node.Incarnation:
			return errStale
		case !bytes.Equal(o.process, l.process):
			return errImpostor
		case l.dialled && (o.dialled || !l.dialledBySmaller()):
			// A node opens no second link to a process to which it has one, nor one that could not be the primary.
			return errDuplicate
		case !l.dialled && !o.dialled && o.connection > l.connection:
			return errSuperseded
		}
	}
	if err := m.former[l.node.ID].check(&pb.Hello{Incarnation: l.node.Incarnation, Process: l.process}); err != nil {
		return err
	}
	m.peers[l.node.ID] = p
	m.remember(l)
	if l.node.Incarnation > p.node.Incarnation || l.node.Cluster != p.node.Cluster {
		p.node = l.node
	}
	p.links = append(p.links, l)
	if len(p.links) == 1 {
		m.log.Info("peer connected", "peer", l.node.ID, "peer_cluster", l.node.Cluster, "address", l.address,
			"dialled", l.dialled, "incarnation", l.node.Incarnation, "version", l.version)
	}
	m.report(l)
	m.forgive(l)
	l.setPeriod(m.period(l.node.ID, time.Now()))
	m.choose(p)
	m.know(l.address, l.node.ID)
	m.wakeAnnounce.raise() // the first of a cluster
	m.wakeDeadline.raise()
	return nil
}

// choose finds the primary anew and parts with the links that it makes superfluous. The caller holds mu.
func (m *Mesh) choose(p *peer) {
	p.primary = nil
	for _, l := range p.links {
		if !l.ended() && (p.primary == nil || l.better(p.primary)) {
			p.primary = l
		}
	}
	if p.primary == nil {
		return
	}
	p.address = p.primary.address
	for _, l := range p.links {
		if l == p.primary {
			continue
		}
		switch {
		case l.node.Incarnation < p.primary.node.Incarnation, l.dialled == p.primary.dialled:
			l.end(errSuperseded)
		case p.node.ID < m.self.ID:
			// The primary was dialled by the peer, who therefore has it: this side, the larger id, closes.
			l.end(errSuperseded)
		default:
			// The peer may not have seen yet that the primary is confirmed. It closes when it has.
			l.supersede(time.Now().Add(supersededGrace))
		}
	}
}

// remove takes a link away that has ended, and its node where nothing can be hoped for any more.
func (m *Mesh) remove(l *link, why error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[l.node.ID]
	if p == nil {
		return
	}
	i := slices.Index(p.links, l)
	if i < 0 {
		return
	}
	p.links = slices.Delete(p.links, i, i+1)
	if heard := l.lastHeard(); heard.After(p.heard) {
		p.heard = heard
	}
	before := p.primary
	m.choose(p)
	if p.primary == nil {
		// What a link that ended long ago was promised counts no more; of several that end together, the shortest promise.
		if before != nil {
			p.deadline = l.deadline()
		}
		p.deadline = earlier(p.deadline, l.deadline())
	}
	if p.primary != nil {
		m.log.Debug("peer connection ended, another one goes on", "peer", p.node.ID, "error", why)
		if p.primary != before && p.primary.complete() {
			m.fallBack(p.primary)
		}
		return
	}
	switch {
	case errors.Is(why, errGoodbye):
		m.forget(p, why, false)
	case errors.Is(why, errLost):
		m.metrics.lost.Inc()
		m.forget(p, why, true)
	case errors.Is(why, errClosing), isRefusal(why):
		m.forget(p, why, false)
	default:
		m.log.Info("peer connection ended, to be renewed", "peer", p.node.ID, "peer_cluster", p.node.Cluster, "error", why)
		m.revisit(p)
		m.wakeDeadline.raise()
	}
}

// forget gives a node up: its holds are gone, and where this node is the first to see it, all others are told. The caller
// holds applying and mu.
func (m *Mesh) forget(p *peer, why error, tell bool) {
	now := time.Now()
	delete(m.peers, p.node.ID)
	for _, l := range p.links {
		l.end(why)
	}
	m.o.Catalogue.Forget(p.node.ID)
	m.revisit(p)
	m.log.Info("peer gone", "peer", p.node.ID, "peer_cluster", p.node.Cluster, "error", why)
	if !tell || now.Sub(p.told) < toldFor {
		return
	}
	for _, other := range m.peers {
		for _, l := range other.links {
			l.tellDeath(p.node)
		}
	}
}

// mourn takes another node's word that a node has died: a hint, so that node itself is asked at once.
func (m *Mesh) mourn(from *link, o *pb.Obituary) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[catalogue.NodeID(o.GetNode())]
	if p == nil || o.GetIncarnation() < p.node.Incarnation || p.node.ID == from.node.ID {
		return
	}
	p.told = time.Now()
	if p.primary == nil {
		p.deadline = earlier(p.deadline, p.told.Add(lostAfter(relatedPeriod)))
		m.revisit(p)
	}
	for _, l := range p.links {
		l.probe()
	}
	m.wakeDeadline.raise()
}

// apply tells the catalogue what a link's full set is now, if that link is the one to be believed.
func (m *Mesh) apply(l *link) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	if !m.believed(l) {
		return nil
	}
	m.o.Catalogue.SetCondition(l.node.ID, l.condition())
	return m.o.Catalogue.SetPeer(l.node, l.set())
}

// applyCondition tells the catalogue what a link's peer says of its own state, if that link is the one to be believed.
func (m *Mesh) applyCondition(l *link) {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.believed(l) {
		m.o.Catalogue.SetCondition(l.node.ID, l.condition())
	}
}

func (m *Mesh) believed(l *link) bool { return m.link(l.node.ID) == l }

// fallBack believes the set of a link that has become the primary because a better one ended. The caller holds applying
// and mu.
func (m *Mesh) fallBack(l *link) {
	m.o.Catalogue.SetCondition(l.node.ID, l.condition())
	if err := m.o.Catalogue.SetPeer(l.node, l.set()); err != nil {
		l.log.Warn("holds of a peer not believed", "error", err)
	}
}

// watchDeadlines ends links whose heartbeat is lost, and gives up nodes that did not come back.
func (m *Mesh) watchDeadlines(ctx context.Context) {
	timer := time.NewTimer(distantPeriod)
	defer timer.Stop()
	tick := time.NewTicker(awakeTick)
	defer tick.Stop()
	for {
		m.look(time.Now())
		timer.Reset(max(time.Until(m.expire(time.Now())), time.Millisecond))
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				due = m.look(time.Now())
			case <-timer.C:
				due = true
			case <-m.wakeDeadline:
				due = true
			}
		}
	}
}

// look notices that this process has slept.
func (m *Mesh) look(now time.Time) (slept bool) {
	d := m.awake.tick(now)
	if d == 0 {
		return false
	}
	m.metrics.sleeps.Inc()
	m.log.Warn("this process stood still; peers are not given up for what was not heard of them meanwhile", "for", d)
	return true
}

// expire does what is due, and says when to look again.
func (m *Mesh) expire(now time.Time) time.Time {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	next := now.Add(distantPeriod)
	woke := m.awake.since(now)
	for _, p := range m.peers {
		if len(p.links) == 0 {
			// They may have given this node up meanwhile, and need a moment to come back.
			if due := later(p.deadline, woke.Add(lostAfter(relatedPeriod))); now.Before(due) {
				next = earlier(next, due)
				continue
			}
			m.metrics.lost.Inc()
			m.forget(p, errLost, true)
			continue
		}
		for _, l := range p.links {
			due, why := l.overdue(now, woke)
			if why != nil {
				l.end(why)
				continue
			}
			next = earlier(next, due)
		}
	}
	return next
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
