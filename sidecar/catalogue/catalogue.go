// Package catalogue keeps what a node knows of who holds which stream, at which epoch and by which path: what its own
// server and relays hold, and what its peers announced. It is state behind one mutex: it starts no goroutines, reads no
// clock and decides nothing. The mesh fills in what peers say and reads what to tell them, whoever watches the server
// beside the node fills in what that one reports, relays fill in what they carry; the planner decides from a Snapshot.
package catalogue

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// The bounds to what a node believes, so that a peer that lies cannot exhaust it.
const (
	MaxHolds    = 10_000  // of one node
	MaxPath     = 16      // nodes in a path
	MaxPeers    = 4096    // nodes that announce holds
	MaxTracks   = 64      // tracks in a hold
	MaxName     = 253     // bytes in a node's id or a cluster's name
	MaxJump     = 1 << 32 // by which a clock or an epoch may be ahead of what was seen before
	maxBindings = 2 * MaxHolds
	maxSessions = 8 // own publications of one name that are remembered
)

// Errors that callers tell apart.
var (
	ErrSelf  = errors.New("a peer uses this node's own id")
	ErrStale = errors.New("a later incarnation of the node is known")
	ErrJump  = errors.New("the clock is too far ahead")
	ErrLimit = errors.New("too many")
)

// Catalogue is one node's knowledge. Its methods may be called concurrently. It keeps the slices that it is given, and
// gives out what it keeps: callers do not change either.
//
// Epochs are a Lamport clock over all names: a publication that appears gets 1 + the highest epoch ever seen, bound to
// its stream and the server's session, so that a restarted sidecar that Restores its Record goes on with the same one. A
// publication that the first SetLocal finds without a record has an unknown age: it gets epoch 0, which loses against
// every other, until a peer is heard to hold a publication of this node's with the epoch that it had before: as long as
// its relays go on, so does the publication.
type Catalogue struct {
	mu      sync.Mutex
	self    Node
	policy  Policy
	clock   uint64 // the highest epoch ever seen
	started bool   // a first SetLocal was seen

	local    []adapters.Stream // as reported last, without names that nobody publishes
	bindings map[adapters.StreamID]binding
	carriers map[adapters.StreamID]*carrier
	tells    bool // the server's sessions were seen to be marked as ours, or to match the locations that it hands out
	carried  map[adapters.StreamID]Hold

	own        *holder
	peers      map[NodeID]*holder
	known      map[NodeID]Node // peers that were forgotten: incarnation and cluster
	conditions map[NodeID]Condition
	// What each other cluster is told, and what all of them are; nil when out of date.
	told    map[string][]Hold
	outside []Hold

	index   index  // of all holds
	dirty   bool   // the index has changed since the last touch
	state   *State // nil when out of date
	changed chan struct{}
}

// Policy is what the owner of a cluster decides about its streams.
type Policy struct {
	// Priority and Oldest go into the publications at the own server (see Publication).
	Priority int32
	Oldest   bool
	// Export are the streams that may leave the cluster, Import those of other clusters that are taken notice of here.
	Export, Import Names
}

// binding is the epoch that was given to one publication at the local server.
type binding struct {
	session string
	epoch   uint64 // 0: found at start, without a record
}

// carrier is what is known of the publications that own relays make, or made, of one name.
type carrier struct {
	active    bool
	located   bool     // the location of the newest is known
	reported  bool     // the server has reported the newest
	unsettled bool     // ended, and the server has not reported since
	locations []string // of their WHIP sessions
	sessions  []string // that the server reported while one of them was active
	pending   []string // likewise, while the newest one's location is not known: a publisher's may be among them
}

// holder is one node and its holds.
type holder struct {
	Node
	holds map[adapters.StreamID]Hold
}

func newHolder(n Node) *holder { return &holder{Node: n, holds: map[adapters.StreamID]Hold{}} }

// New makes a catalogue that knows of nobody but self.
func New(self Node) *Catalogue {
	return &Catalogue{
		self:       self,
		bindings:   map[adapters.StreamID]binding{},
		carriers:   map[adapters.StreamID]*carrier{},
		carried:    map[adapters.StreamID]Hold{},
		own:        newHolder(self),
		peers:      map[NodeID]*holder{},
		known:      map[NodeID]Node{},
		conditions: map[NodeID]Condition{},
		index:      index{self: self},
		changed:    make(chan struct{}),
	}
}

// SetPolicy sets what applies from now on: it is called before anything else becomes known.
func (c *Catalogue) SetPolicy(p Policy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.policy, c.told = p, nil
	c.index.export = p.Export
	c.settle(nil)
	c.touch()
}

// Self is the node whose catalogue this is.
func (c *Catalogue) Self() Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.self
}

// Outgrow makes this node's incarnation a later one than that of a process before it, which others remember and this one does
// not. Where it is one already, nothing changes.
func (c *Catalogue) Outgrow(incarnation uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.self.Incarnation > incarnation {
		return
	}
	c.self.Incarnation = incarnation + 1
	c.own.Node, c.index.self = c.self, c.self
	c.remap()
	c.flush()
}

// Clock is the highest epoch ever seen: peers are told it, so that their next publication's epoch is higher.
func (c *Catalogue) Clock() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clock
}

// Observe takes over a peer's clock. A clock that is ahead by more than MaxJump is refused with ErrJump: it would let
// one mistaken peer use up all epochs.
func (c *Catalogue) Observe(clock uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.observe(clock)
}

func (c *Catalogue) observe(clock uint64) error {
	if clock > c.clock && clock-c.clock > MaxJump {
		return fmt.Errorf("observe clock %d at %d: %w", clock, c.clock, ErrJump)
	}
	c.clock = max(c.clock, clock)
	return nil
}

// SetLocal takes the full set of streams that the own server reports. Each is an origin's publication, except what own
// relays publish there (see Carry), what an own relay that has ended left behind, and names that nobody publishes. What
// cannot be announced is left out, and the error says so; the rest counts.
func (c *Catalogue) SetLocal(streams []adapters.Stream) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var bad refusals
	c.local = c.local[:0]
	seen := make(map[adapters.StreamID]bool, len(streams))
	for _, s := range streams {
		if s.Waiting || seen[s.ID] {
			continue
		}
		if err := s.ID.Validate(); err != nil {
			bad.add(err)
			continue
		}
		seen[s.ID] = true
		c.local = append(c.local, s)
	}
	slices.SortFunc(c.local, func(a, b adapters.Stream) int { return cmp.Compare(a.ID, b.ID) })
	c.settle(&bad)
	c.started = true
	for id, o := range c.carriers {
		if o.active {
			continue
		}
		if _, published := c.own.holds[id]; published || !seen[id] {
			delete(c.carriers, id)
			c.touch() // the record has changed
		}
		o.unsettled = false
	}
	for id, b := range c.bindings {
		if b.session == "" && !seen[id] {
			delete(c.bindings, id) // the next of that name is another publication, and cannot be told from this one
		}
	}
	c.forgetBindings(seen)
	return bad.err("local streams")
}

// forgetBindings keeps the memory of publications that are gone within its bound: the oldest go first.
func (c *Catalogue) forgetBindings(present map[adapters.StreamID]bool) {
	excess := len(c.bindings) - maxBindings
	if excess <= 0 {
		return
	}
	gone := make([]adapters.StreamID, 0, len(c.bindings))
	for id := range c.bindings {
		if !present[id] {
			gone = append(gone, id)
		}
	}
	slices.SortFunc(gone, func(a, b adapters.StreamID) int {
		if x, y := c.bindings[a].epoch, c.bindings[b].epoch; x != y {
			if x < y {
				return -1
			}
			return 1
		}
		return strings.Compare(string(a), string(b))
	})
	for _, id := range gone[:min(excess, len(gone))] {
		delete(c.bindings, id)
	}
}

// SetCarried takes the full set of what own relays carry and can hand on: each path ends in this node. A name that is
// published at the own server is not carried, whatever is said here. What is malformed is left out, and the error says
// so.
func (c *Catalogue) SetCarried(holds []Hold) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var bad refusals
	c.carried = make(map[adapters.StreamID]Hold, len(holds))
	for _, h := range holds {
		if err := c.check(h, c.self.ID); err != nil {
			bad.add(err)
			continue
		}
		if o := c.carriers[h.Stream]; o == nil || !o.active {
			c.carry(h.Stream)
		}
		c.clock = max(c.clock, h.Epoch)
		c.carried[h.Stream] = h
	}
	c.settle(&bad)
	return bad.err("carried streams")
}

// Carry says that a relay is about to publish the stream into the own server: until Uncarry, and until the server stops
// to report what that relay published, it is not an origin's.
func (c *Catalogue) Carry(id adapters.StreamID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carry(id)
	c.settle(nil)
	c.touch() // the record has changed
}

func (c *Catalogue) carry(id adapters.StreamID) {
	o := c.carriers[id]
	if o == nil {
		o = &carrier{}
		c.carriers[id] = o
	}
	o.active, o.located, o.reported, o.unsettled = true, false, false, false
	if c.bindings[id].session == "" {
		delete(c.bindings, id) // else the relay's publication could be taken for the one that was bound
	}
}

// Located tells the location of the WHIP session by which a relay publishes the stream. Where the server's sessions are
// known to match its locations, a publisher that takes the name over from the relay is recognised by it.
func (c *Catalogue) Located(id adapters.StreamID, location string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.carriers[id]
	if o == nil || location == "" {
		return
	}
	if !o.located {
		c.touch() // the record has changed
	}
	o.located = true
	if !slices.Contains(o.locations, location) {
		o.locations = lastFew(append(o.locations, location))
	}
	c.settle(nil)
	if !c.tells {
		o.sessions = lastFew(append(o.sessions, o.pending...))
	}
	o.pending = nil
}

// Uncarry says that the relay's publication of the stream has ended. Where it was not Located, the server never took it:
// what was reported meanwhile is a publisher's.
func (c *Catalogue) Uncarry(id adapters.StreamID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.carriers[id]
	if o == nil || !o.active {
		return
	}
	o.reported = o.reported || !o.located
	o.pending = nil
	o.active, o.unsettled = false, true
	if len(o.locations)+len(o.sessions) == 0 {
		delete(c.carriers, id)
	}
	delete(c.carried, id)
	c.settle(nil)
	c.touch()
}

// Strays are those of the streams that a sidecar's relay publishes, and no relay that is known here: a process before this one left
// them behind, of which nothing is remembered.
func (c *Catalogue) Strays(streams []adapters.Stream) []adapters.Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	var strays []adapters.Stream
	for _, s := range streams {
		if s.Relayed && c.carriers[s.ID] == nil {
			strays = append(strays, s)
		}
	}
	return strays
}

// Doubts are the names of which it is not known whether what the server reports is a publisher's, or what an own relay
// left behind: until then it counts as the latter.
func (c *Catalogue) Doubts() []adapters.StreamID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var doubts []adapters.StreamID
	for id, o := range c.carriers {
		if !o.active {
			doubts = append(doubts, id)
		}
	}
	slices.Sort(doubts)
	return doubts
}

// Believe ends a doubt: so much time has gone by that the server must have noticed the end of all that own relays left
// behind there, but for sessions whose location says that they are theirs.
func (c *Catalogue) Believe(id adapters.StreamID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.carriers[id]
	if o == nil || o.active {
		return
	}
	o.sessions, o.pending, o.reported, o.unsettled = nil, nil, true, false
	c.settle(nil)
}

// settle finds out which local streams are origins' publications, binds their epochs, and replaces the own holds.
func (c *Catalogue) settle(bad *refusals) {
	holds := make(map[adapters.StreamID]Hold, len(c.local)+len(c.carried))
	maps.Copy(holds, c.carried)
	var unbound []adapters.Stream
	for _, s := range c.local {
		session := sessionOf(s)
		if c.mine(s, session) {
			continue
		}
		if b, ok := c.bindings[s.ID]; !ok || b.session != session {
			unbound = append(unbound, s)
			continue
		}
		c.publish(holds, s)
	}
	for _, s := range unbound {
		if _, carried := holds[s.ID]; !carried && len(holds) >= MaxHolds {
			bad.add(fmt.Errorf("stream %q: %w streams: at most %d are announced", s.ID, ErrLimit, MaxHolds))
			continue
		}
		epoch := c.remembered(s.ID)
		if c.started {
			c.clock++
			epoch = c.clock
		}
		c.bindings[s.ID] = binding{session: sessionOf(s), epoch: epoch}
		c.publish(holds, s)
	}
	for _, h := range holds {
		c.put(c.own, h)
	}
	for id := range c.own.holds {
		if _, ok := holds[id]; !ok {
			c.drop(c.own, id)
		}
	}
	if c.dirty {
		c.index.own = slices.SortedFunc(maps.Values(holds), func(a, b Hold) int { return cmp.Compare(a.Stream, b.Stream) })
		c.told = nil
	}
	c.flush()
}

// remembered is the highest epoch at which a peer holds a publication of this node's: 0 where none does.
func (c *Catalogue) remembered(id adapters.StreamID) uint64 {
	var epoch uint64
	row, _ := c.index.rows.Get(id)
	for _, h := range row.Holds() {
		if len(h.Path) > 1 && h.Origin() == c.self.ID {
			epoch = max(epoch, h.Epoch)
		}
	}
	return epoch
}

func (c *Catalogue) publish(holds map[adapters.StreamID]Hold, s adapters.Stream) {
	holds[s.ID] = Hold{
		Stream: s.ID, Epoch: c.bindings[s.ID].epoch, Path: []NodeID{c.self.ID},
		Priority: c.policy.Priority, Oldest: c.policy.Oldest,
		Tracks: slices.Clone(s.Tracks[:min(len(s.Tracks), MaxTracks)]),
	}
}

// mine says whether what the server reports is, or may be, an own relay's publication. To take a publisher for a relay
// costs that publisher its viewers elsewhere; to take a relay for an origin makes every node turn from the true origin
// to a copy of it, which then ends: in doubt it is ours.
func (c *Catalogue) mine(s adapters.Stream, session string) bool {
	o := c.carriers[s.ID]
	if o == nil {
		return s.Relayed
	}
	if s.Relayed || s.Session != "" && slices.ContainsFunc(o.locations, func(l string) bool { return names(l, s.Session) }) {
		c.tells, o.reported = true, true
		return true
	}
	if b, ok := c.bindings[s.ID]; ok && session != "" && b.session == session {
		return false // found to be a publisher's before
	}
	switch {
	case slices.Contains(o.sessions, session), slices.Contains(o.pending, session) && !o.located:
		return true
	case c.tells && o.located && s.Session != "":
		return false
	case o.active && !o.located:
		o.pending, o.reported = lastFew(append(o.pending, session)), true
		return true
	case o.active, o.unsettled && !o.reported:
		o.reported = true
		o.sessions = lastFew(append(o.sessions, session))
		return true
	}
	return false
}

// sessionOf is what tells this publication of a name from the next.
func sessionOf(s adapters.Stream) string {
	if s.Session == "" && !s.Since.IsZero() {
		return "since " + s.Since.UTC().Format(time.RFC3339Nano)
	}
	return s.Session
}

// names says whether a WHIP location is of the session that a server calls by this name.
func names(location, session string) bool {
	if location == session {
		return true
	}
	u, err := url.Parse(location)
	if err != nil {
		return false
	}
	path := strings.TrimSuffix(u.Path, "/")
	return strings.HasSuffix(path, "/"+session)
}

func lastFew(s []string) []string { return s[max(0, len(s)-maxSessions):] }

// SetPeer takes the full set of holds that a peer announces. A lower incarnation than one that is known is refused with
// ErrStale, the own id with ErrSelf. Single holds that are malformed, absurd or too many are left out, and the error says
// so; the rest counts.
func (c *Catalogue) SetPeer(n Node, holds []Hold) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch before, ok := c.node(n.ID); {
	case n.ID == "" || len(n.ID) > MaxName || len(n.Cluster) > MaxName:
		return fmt.Errorf("peer %.64q of cluster %.64q: the names must be there, and not longer than %d bytes",
			n.ID, n.Cluster, MaxName)
	case n.ID == c.self.ID:
		return fmt.Errorf("peer %s of cluster %s: %w", n.ID, n.Cluster, ErrSelf)
	case ok && before.Incarnation > n.Incarnation:
		return fmt.Errorf("peer %s: incarnation %d after %d: %w", n.ID, n.Incarnation, before.Incarnation, ErrStale)
	}
	p := c.peers[n.ID]
	if p == nil && len(c.peers) >= MaxPeers {
		return fmt.Errorf("peer %s: %w peers: at most %d are known", n.ID, ErrLimit, MaxPeers)
	}
	if p == nil {
		p = newHolder(n)
		c.peers[n.ID] = p
		delete(c.known, n.ID)
		c.remap()
	} else if p.Node != n {
		p.Node = n
		c.remap()
	}
	var bad refusals
	remembered := false
	seen := make(map[adapters.StreamID]struct{}, min(len(holds), MaxHolds))
	for i, h := range holds {
		if len(seen) >= MaxHolds {
			bad.addAll(len(holds)-i, fmt.Errorf("%w holds: at most %d are believed", ErrLimit, MaxHolds))
			break
		}
		before, ok := p.holds[h.Stream]
		same := ok && before.equal(h)
		var err error
		if !same {
			err = c.check(h, n.ID)
		}
		if _, twice := seen[h.Stream]; err == nil && twice {
			err = fmt.Errorf("stream %q is announced twice", h.Stream)
		}
		if err == nil && !same {
			err = c.observe(h.Epoch)
		}
		if err != nil {
			bad.add(err)
			continue
		}
		if n.Cluster != c.self.Cluster && !c.policy.Import.Allows(h.Stream) {
			continue
		}
		seen[h.Stream] = struct{}{}
		if !same {
			c.put(p, c.intern(h))
		}
		if b, ok := c.bindings[h.Stream]; ok && b.epoch == 0 && h.Origin() == c.self.ID && h.Epoch > 0 {
			c.bindings[h.Stream] = binding{session: b.session, epoch: h.Epoch}
			remembered = true
		}
	}
	if len(seen) < len(p.holds) {
		for id := range p.holds {
			if _, ok := seen[id]; !ok {
				c.drop(p, id)
			}
		}
	}
	c.flush()
	if remembered {
		c.settle(nil)
	}
	return bad.err("peer " + string(n.ID))
}

// SetCondition takes what a node, also this one, says of its own state. What is said of a node that is not known yet counts
// when it is; Forget drops it.
func (c *Catalogue) SetCondition(id NodeID, condition Condition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, ok := c.conditions[id]
	if !ok {
		before = usual
	}
	if before == condition {
		return
	}
	if condition == usual {
		delete(c.conditions, id)
	} else if ok || len(c.conditions) <= MaxPeers {
		c.conditions[id] = condition
	}
	c.remap()
	c.flush()
}

// Forget drops what a peer announced: its heartbeat is lost. Its incarnation and cluster are remembered.
func (c *Catalogue) Forget(id NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conditions, id)
	p, ok := c.peers[id]
	if !ok {
		return
	}
	for stream := range p.holds {
		c.drop(p, stream)
	}
	delete(c.peers, id)
	if len(c.known) >= MaxPeers {
		for other := range c.known {
			delete(c.known, other)
			break
		}
	}
	c.known[id] = p.Node
	c.remap()
	c.flush()
}

// node finds a node that is known, or was.
func (c *Catalogue) node(id NodeID) (Node, bool) {
	if p, ok := c.peers[id]; ok {
		return p.Node, true
	}
	n, ok := c.known[id]
	return n, ok
}

// check says why a node's hold cannot be true.
func (c *Catalogue) check(h Hold, holder NodeID) error {
	if err := h.Stream.Validate(); err != nil {
		return err
	}
	switch {
	case len(h.Path) == 0 || h.Holder() != holder:
		return fmt.Errorf("stream %q: the path does not end in its holder %s", h.Stream, holder)
	case len(h.Path) > MaxPath:
		return fmt.Errorf("stream %q: %w nodes in its path: %d", h.Stream, ErrLimit, len(h.Path))
	case len(h.Tracks) > MaxTracks:
		return fmt.Errorf("stream %q: %w tracks: %d", h.Stream, ErrLimit, len(h.Tracks))
	case h.Delay < 0:
		return fmt.Errorf("stream %q: the delay is negative", h.Stream)
	}
	for i, id := range h.Path {
		if id == "" || len(id) > MaxName || slices.Contains(h.Path[:i], id) {
			return fmt.Errorf("stream %q: the path holds an empty, overlong or repeated node", h.Stream)
		}
	}
	for _, t := range h.Tracks {
		if len(t.Kind)+len(t.MIME)+len(t.RID) > MaxName {
			return fmt.Errorf("stream %q: a track's names are too long", h.Stream)
		}
	}
	return nil
}

// put makes a hold one of the holder's, and drop takes one from it.
func (c *Catalogue) put(p *holder, h Hold) {
	before, ok := p.holds[h.Stream]
	if ok && before.equal(h) {
		return
	}
	p.holds[h.Stream] = h
	c.change(p, before, h)
}

func (c *Catalogue) drop(p *holder, id adapters.StreamID) {
	before := p.holds[id]
	delete(p.holds, id)
	c.change(p, before, Hold{Stream: id})
}

func (c *Catalogue) change(p *holder, before, after Hold) {
	c.index.change(p.ID, before, after)
	c.dirty = true
	if before.Parent() == c.self.ID || after.Parent() == c.self.ID {
		delete(c.told, p.Cluster)
	}
}

// intern lets a hold share the names that are known already: every peer brings its own copies of the same ones.
func (c *Catalogue) intern(h Hold) Hold {
	row, _ := c.index.rows.Get(h.Stream)
	for _, other := range row.Holds() {
		h.Stream = other.Stream
		if slices.Equal(h.Tracks, other.Tracks) {
			h.Tracks = other.Tracks
			break
		}
	}
	path := make([]NodeID, len(h.Path))
	for i, id := range h.Path {
		path[i] = id
		if p := c.peers[id]; p != nil {
			path[i] = p.ID
		} else if id == c.self.ID {
			path[i] = c.self.ID
		}
	}
	h.Path = path
	return h
}

// remap says that the nodes, or their conditions, have changed.
func (c *Catalogue) remap() {
	c.index.roster, c.told = nil, nil
	c.dirty = true
}

// flush wakes those who wait for a change, if there is one.
func (c *Catalogue) flush() {
	if c.dirty {
		c.touch()
	}
}

func (c *Catalogue) touch() {
	c.dirty, c.state = false, nil
	close(c.changed)
	c.changed = make(chan struct{})
}

// Announcement is what a peer of a cluster is told, in the order of names: all holds within the own cluster; outside only
// the origins here, what this node pulls for its cluster, and what somebody there pulls from it all the same, as far as the
// policy lets them leave. While that does not change it is the same slice.
func (c *Catalogue) Announcement(cluster string) []Hold {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cluster == c.self.Cluster {
		return slices.Clip(c.index.own[:min(len(c.index.own), MaxHolds)])
	}
	if c.told == nil {
		c.told = map[string][]Hold{}
		c.outside = slices.DeleteFunc(slices.Clone(c.index.own), func(h Hold) bool {
			return c.inside(h) || !c.policy.Export.Allows(h.Stream)
		})
	}
	told, ok := c.told[cluster]
	if !ok {
		told = c.outside
		more := slices.DeleteFunc(slices.Clone(c.index.own), func(h Hold) bool {
			return !c.inside(h) || !c.pulled(h.Stream, cluster) || !c.policy.Export.Allows(h.Stream)
		})
		if len(more) > 0 {
			told = slices.SortedFunc(slices.Values(append(more, told...)), func(a, b Hold) int { return cmp.Compare(a.Stream, b.Stream) })
		}
		told = slices.Clip(told[:min(len(told), MaxHolds)])
		c.told[cluster] = told
	}
	return told
}

// inside says whether an own hold is of what another node of the cluster pulls, or is the origin of.
func (c *Catalogue) inside(h Hold) bool {
	parent, ok := c.node(h.Parent())
	return ok && parent.Cluster == c.self.Cluster
}

// pulled says whether a node of a cluster announces to pull a stream from here. It may have begun when this node pulled the
// stream for its own cluster, and must go on to learn by which path it comes.
func (c *Catalogue) pulled(id adapters.StreamID, cluster string) bool {
	row, _ := c.index.rows.Get(id)
	return slices.ContainsFunc(row.Holds(), func(h Hold) bool {
		child := c.peers[h.Holder()]
		return h.Parent() == c.self.ID && child != nil && child.Cluster == cluster
	})
}

// Snapshot is the state as it stands, which never changes, and a channel that is closed at the next change.
func (c *Catalogue) Snapshot() (*State, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == nil {
		if c.index.roster == nil {
			c.index.roster = newRoster(c.self, c.peers, c.conditions)
		}
		c.state = c.index.snapshot()
	}
	return c.state, c.changed
}

// refusals collects what was left out of a set, without growing with it.
type refusals struct {
	first error
	count int
}

func (r *refusals) add(err error) { r.addAll(1, err) }

func (r *refusals) addAll(n int, err error) {
	if r == nil {
		return
	}
	if r.first == nil {
		r.first = err
	}
	r.count += n
}

func (r *refusals) err(subject string) error {
	switch {
	case r.count == 0:
		return nil
	case r.count == 1:
		return fmt.Errorf("%s: left out: %w", subject, r.first)
	}
	return fmt.Errorf("%s: %d left out, of which the first: %w", subject, r.count, r.first)
}
