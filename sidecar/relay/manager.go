package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

const (
	defaultLinger    = 15 * time.Second
	defaultMaxRelays = 256

	claimTimeout = 300 * time.Millisecond // after which an owner counts as silent
	claimAgain   = time.Second            // a node whose claim was granted to another asks again after this
	pullTimeout  = 5 * time.Second
	missingTime  = time.Second            // for which a parent without a source is remembered
	serverTime   = time.Second            // in which the local server reports a publisher that took a stream over
	rememberTime = time.Second            // for which a relay waits at most until it is remembered
	steadyTime   = 10 * time.Second       // a relay that lived this long starts its backoff afresh
	doubtTime    = time.Minute            // in which a server notices that a publisher, or a relay, is gone
	soonTime     = 700 * time.Millisecond // after which a parent has heard the origin again
	quietTime    = 2 * time.Second        // without a packet, after which a relay is quiet
	quietAgain   = 500 * time.Millisecond // after which it is looked at again
	moveTimeout  = 20 * time.Second       // for a change of parent
	graceTime    = 15 * time.Second       // without a source that may be used
	returnTime   = 8 * time.Second        // for which what is quiet is kept, where nobody else has it
	goneTime     = 2 * time.Second        // for which a parent that fell silent is not believed to hold the stream

	// A parent says every half a second how old its last packet is. Where a stream has fallen silent here, it is waited for
	// that, and no longer.
	overdueTime = 650 * time.Millisecond
	doubtAgain  = 50 * time.Millisecond
	pauseAgain  = 250 * time.Millisecond
)

// Errors of Acquire beside adapters.ErrNoStream and the context's.
var (
	ErrFull  = errors.New("as many relays run here as may")
	ErrEnded = errors.New("the relays of this node have ended")
)

var (
	errPending = errors.New("not decided yet")
	errOver    = errors.New("the session ended")
	errGrant   = errors.New("refused grant")
	errSilent  = errors.New("it has fallen silent")

	// errInfeasible: the parent may have the stream from this node. A moment later that is known.
	errInfeasible = errors.New("it has not heard the origin since this node has")
)

// Grant is a parent's leave to pull a stream from it.
type Grant struct {
	Token string
	Path  []catalogue.NodeID // from the origin to the parent, as it is now
	// Epoch, Priority and Oldest are the publication's, whose origin is the first of the path.
	Epoch    uint64
	Priority int32
	Oldest   bool
	Sequence uint64 // the origin's, as the parent has it; 0: the parent does not say
	URL      string // where to POST the WHEP offer, with the token
}

// Publication is which one is granted. The path is not empty.
func (g Grant) Publication() catalogue.Publication {
	return catalogue.Publication{Epoch: g.Epoch, Origin: g.Path[0], Priority: g.Priority, Oldest: g.Oldest}
}

// Flow is how a stream stands at this node, for a child that pulls it from here.
type Flow struct {
	Age      time.Duration // of the last packet
	Known    bool          // the age is known: an origin does not see into its server
	Sequence uint64        // the origin's, as this node has it
}

// peers is what the manager asks of other nodes.
type peers interface {
	// Claim asks an owner for the right to pull a stream for the own cluster.
	Claim(ctx context.Context, owner catalogue.NodeID, stream adapters.StreamID, epoch uint64) (Claim, error)
	// Pull asks a parent for a stream. The error wraps adapters.ErrNoStream where the parent has no source for it.
	Pull(ctx context.Context, parent catalogue.NodeID, stream adapters.StreamID) (Grant, error)
	// RTT is the measured round trip to a node. Like PacketAge and Sequence, it must not wait for the manager.
	RTT(id catalogue.NodeID) (time.Duration, bool)
	// PacketAge is how old a stream's last packet is at a parent, and Sequence the sequence of the stream's origin, by what the
	// parent said last; false where that says nothing of the stream.
	PacketAge(parent catalogue.NodeID, stream adapters.StreamID) (time.Duration, bool)
	Sequence(parent catalogue.NodeID, stream adapters.StreamID) (uint64, bool)
	// Heard is when a node was heard last; false where there is no connection to it.
	Heard(id catalogue.NodeID) (time.Time, bool)
}

// Runner carries one stream from a parent into the local server, once. Session is one.
type Runner interface {
	// Run blocks until the session has ended and has freed all it took, at both servers. It bounds each step until media
	// flows. A *SessionError of the local server's side is not held against the parent.
	Run(ctx context.Context) error
	// Live is closed once media flows into the local server.
	Live() <-chan struct{}
	// Ended is closed when media flows no longer, or never will, before what was taken is freed.
	Ended() <-chan struct{}
	// LastPacket is when the last packet came from the parent, zero before the first.
	LastPacket() time.Time
	// Change takes the stream from another source from now on, while what is published stays. If it fails, the source that
	// there was goes on.
	Change(ctx context.Context, to Source) (how string, err error)
	// Source is how the source stands; the channel is closed when that changes.
	Source() (SourceState, <-chan struct{})
	// Standby keeps a second copy beside what flows, until ctx ends, it is lost, or it has become the source, which it says.
	Standby(ctx context.Context, from Source) (tookOver bool, err error)
	// Joined says that there are more viewers at the local server than before.
	Joined()
	// Location is the URL of the WHIP session at the local server, "" before there is one.
	Location() string
	Status() SessionStatus
}

// Spec is what a session is made for.
type Spec struct {
	Stream adapters.StreamID
	Parent catalogue.NodeID
	Grant  Grant
}

// ManagerOptions configure a Manager. Catalogue, Peers and NewSession are required.
type ManagerOptions struct {
	Catalogue  *catalogue.Catalogue
	Peers      peers
	NewSession func(Spec) Runner
	// NewSource makes the source that a live session is given in place of the one that it has. Where it is nil, a relay that
	// changes its parent ends and begins anew.
	NewSource func(Spec) Source
	// Remember, where there is one, returns when the catalogue's Record is safe from a crash. It is asked before a relay
	// publishes, so that a process that comes after does not take what was left behind for a publisher's.
	Remember func(context.Context)
	// Accept says which of a publication's tracks the local server does not take, by a *adapters.CodecError; nil: it takes all.
	Accept func([]adapters.Track) error
	// Awake is since when this process has run without a pause; nil: always. What did not come in a pause is not missed.
	Awake      func() time.Time
	Pins       catalogue.Names // streams that are carried without viewers
	Standby    catalogue.Names // streams of which a relay keeps a second copy, by another way; NewSource is required
	Linger     time.Duration   // for which a relay goes on when nobody wants it any more; 0: 15 s
	MaxRelays  int             // 0: 256
	FanOut     int             // children that a parent should have for a stream; 0: planner.DefaultFanOut
	Registerer prometheus.Registerer
	Tracer     trace.Tracer // nil: no traces
	Logger     *slog.Logger // nil: discard
}

// Manager runs the relays that are wanted at this node: it brings demand, what the catalogue knows and what failed before
// the planner, does what that says, retries with backoff, and lets plays wait until their stream is here. A relay's hold
// is announced while it is live, and withdrawn before another parent is looked for.
type Manager struct {
	o       ManagerOptions
	claims  *Claims
	metrics *managerMetrics
	began   time.Time
	kick    chan struct{} // holds one item while there may be something to do

	mu       sync.Mutex
	entries  map[adapters.StreamID]*entry
	server   map[adapters.StreamID]adapters.Stream // as the local server reported last
	doubts   map[adapters.StreamID]time.Time       // since when a name is one of the catalogue's doubts
	left     []adapters.StreamID                   // doubts from the process before
	feasible planner.Feasibility
	runs     int  // relays and attempts
	live     int  // of those, whose hold is announced
	stale    bool // the holds differ from what is announced
	ended    bool

	// What is to be planned again: streams that something touched, or all; and each entry when it is due.
	seen    *catalogue.State // at the last plan
	touched map[adapters.StreamID]struct{}
	all     bool
	full    bool      // a stream waits for another's relay to end
	due     time.Time // no entry is due before; zero: none is
}

// entry is a stream that is, or was a moment ago, wanted or carried here.
type entry struct {
	id         adapters.StreamID
	held       int // plays that acquired it and did not release it yet
	demand     planner.Demand
	lastDemand time.Time
	decision   planner.Decision
	due        time.Time // when to plan again if nothing happens before; zero: never
	claim      planner.Claim
	asking     bool
	run        *run // what runs, or is about to end
	second     second
	failures   map[catalogue.NodeID]*failure
	retry      *backoff.ExponentialBackOff // from the second failure on, whichever the parent
	failed     int
	refused    bool // the local server did not take the last relay
	unfit      unfit
	told       catalogue.Publication // of which people were told that it cannot be carried here
	retryAt    time.Time
	lastErr    error
	backward   time.Time // until when the sequence that is handed on stays as it is
	yielding   int       // publishers at this node, for whom no relay is begun
	yieldUntil time.Time // until when none is, after that

	waiting int           // of those held, who wait for the outcome
	outcome error         // nil, errPending, or why there is no stream
	changed chan struct{} // closed when the outcome is known
	cause   trace.Span    // of the first of those who wait; nil: it is not traced, or nobody waits
}

// failure is how a parent failed for one stream.
type failure struct {
	backoff     *backoff.ExponentialBackOff
	until       time.Time
	missing     bool // it has no source
	gone        bool // nothing came from it any more
	publication catalogue.Publication
}

// run is one attempt to relay a stream, or one relay.
type run struct {
	parent      catalogue.NodeID
	incarnation uint64 // the parent's, as it granted
	outside     bool
	publication catalogue.Publication
	path        []catalogue.NodeID // ends in this node; nil until the parent has granted
	delay       time.Duration
	tracks      []adapters.Track
	sequence    uint64 // the origin's, as the parent told it last
	session     Runner // nil until granted
	cancel      context.CancelFunc
	over        chan struct{} // closed when it has ended
	stopping    string        // why it is being ended, "" if it is not
	why         planner.Reason
	since       time.Time
	liveAt      time.Time
	withdrawn   bool // it was live, and its hold counts no more
	dark        bool // it was live, and has no source for the moment: its hold counts no more until it has
	darkAt      time.Time
	moving      bool             // another source is about to take over
	next        catalogue.NodeID // whose it is
	abort       context.CancelFunc
	// below is the sequence by which that one was accepted, 0 where there is none: until it has taken over only older ones are
	// handed on, so that what was feasible still is then. Else two nodes could move to each other.
	below    uint64
	reported bool                  // the local server has reported the stream since it is live
	seen     bool                  // the parent has announced the publication
	before   catalogue.Publication // what it announced when it granted
	span     trace.Span            // until it is live
}

func (r *run) live() bool { return r != nil && !r.liveAt.IsZero() && !r.withdrawn && !r.dark }

// ending says whether nothing can be done with it but wait for its end.
func (r *run) ending() bool { return r != nil && (r.stopping != "" || r.withdrawn) }

// NewManager makes a manager that does nothing until it is Run. The sequence of this node's publications begins with it.
func NewManager(o ManagerOptions) *Manager {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Awake == nil {
		o.Awake = func() time.Time { return time.Time{} }
	}
	o.Linger = cmp.Or(o.Linger, defaultLinger)
	o.MaxRelays = cmp.Or(o.MaxRelays, defaultMaxRelays)
	return &Manager{
		o:       o,
		claims:  NewClaims(),
		metrics: newManagerMetrics(o.Registerer),
		began:   time.Now(),
		kick:    make(chan struct{}, 1),
		entries: map[adapters.StreamID]*entry{},
		doubts:  map[adapters.StreamID]time.Time{},
		touched: map[adapters.StreamID]struct{}{},
	}
}

// Run runs relays until ctx ends; it returns when all of them have ended. It is called once.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	// What runs is ended by hand, so that holds are withdrawn first.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	m.mu.Lock()
	m.left = m.o.Catalogue.Doubts()
	m.mu.Unlock()
	for ctx.Err() == nil {
		_, changed := m.o.Catalogue.Snapshot()
		next, start := m.reconcile(base)
		for _, f := range start {
			wg.Go(f)
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-m.kick:
		case <-timer.C:
		}
	}
	m.drain()
	cancel()
	wg.Wait()
	return ctx.Err()
}

// drain withdraws all holds and lets nobody wait any longer.
func (m *Manager) drain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
	for _, e := range m.entries {
		m.stop(e, endDrained)
		m.settle(e, ErrEnded)
	}
	m.publish()
}

// touch has a stream planned again.
func (m *Manager) touch(id adapters.StreamID) { m.touched[id] = struct{}{} }

func (m *Manager) wake() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Report takes the full set of streams that the local server reports: who plays a relayed stream there is demand for it.
func (m *Manager) Report(streams []adapters.Stream) {
	server := make(map[adapters.StreamID]adapters.Stream, len(streams))
	for _, s := range streams {
		if s.ID.Validate() == nil {
			server[s.ID] = s
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wake()
	for id, s := range server {
		if before, ok := m.server[id]; !ok || before.Readers != s.Readers || before.Waiting != s.Waiting {
			m.touch(id)
		}
	}
	for id := range m.server {
		if _, ok := server[id]; !ok {
			m.touch(id)
		}
	}
	before := m.server
	m.server = server
	for id, e := range m.entries {
		r := e.run
		if r != nil && r.session != nil && server[id].Readers > max(before[id].Readers, 0) {
			r.session.Joined()
		}
		if !r.live() {
			continue
		}
		if s, ok := server[id]; ok && !s.Waiting {
			r.reported = true
		} else if r.reported {
			// The server has lost what the relay publishes: it was restarted, or ended it. The connection to it would notice
			// seconds later.
			m.stop(e, endDropped)
		}
	}
}

// Acquire makes sure that the local server has the stream, and blocks until media flows, ctx ends, or it is clear that
// there is none: adapters.ErrNoStream at once where nobody holds the name. However many acquire a stream, it is pulled
// once. The stream stays wanted until release is called, and for the linger time after that; where the server counts its
// readers, release can be called as soon as the play is among them. The caller calls release once or more often.
func (m *Manager) Acquire(ctx context.Context, id adapters.StreamID) (release func(), err error) {
	began := time.Now()
	release, result, err := m.acquire(ctx, id)
	m.metrics.acquired(result, began)
	if err != nil {
		return nil, fmt.Errorf("acquire %s: %w", id, err)
	}
	return release, nil
}

func (m *Manager) acquire(ctx context.Context, id adapters.StreamID) (release func(), result string, err error) {
	if err := id.Validate(); err != nil {
		return nil, resultMissing, fmt.Errorf("%w: %w", adapters.ErrNoStream, err)
	}
	state, _ := m.o.Catalogue.Snapshot()
	if _, ok := state.Origin(id); ok {
		return func() {}, resultOrigin, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return nil, resultMissing, ErrEnded
	}
	if e := m.entries[id]; e == nil || e.run == nil {
		if _, held := state.Winner(id); !held {
			return nil, resultMissing, adapters.ErrNoStream
		}
	}
	// Where nothing of it is demanded yet, the next plan tells people.
	refused := m.unfit(state, id, time.Now())
	e := m.entry(id)
	e.held++
	m.touch(id)
	unhold := sync.OnceFunc(func() {
		e.held--
		e.lastDemand = time.Now()
		m.touch(id)
		m.wake()
	})
	release = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		unhold()
	}
	switch {
	case e.run.live():
		return release, resultLive, nil
	case refused != nil:
		m.turnDown(e, state, refused, time.Now())
		unhold()
		return nil, resultUnfit, refused
	}
	m.wake()
	waits := tracing.Of(ctx)
	for {
		changed := e.changed
		e.waiting++
		if e.cause == nil {
			e.cause = waits
		}
		m.mu.Unlock()
		var over error
		select {
		case <-changed:
		case <-ctx.Done():
			over = ctx.Err()
		}
		m.mu.Lock()
		if e.waiting--; e.waiting == 0 {
			e.cause = nil
		}
		switch outcome := e.outcome; {
		case outcome == nil:
			e.run.follow(waits)
			return release, resultLive, nil
		case errors.Is(outcome, errPending) && over == nil:
			continue
		case errors.Is(outcome, errPending):
			unhold()
			if e.lastErr != nil {
				over = fmt.Errorf("%w; before that: %w", over, e.lastErr)
			}
			return nil, resultTimeout, over
		case errors.Is(outcome, ErrFull):
			unhold()
			return nil, resultFull, outcome
		case e.decision.Why == planner.WhyUnfit:
			unhold()
			return nil, resultUnfit, outcome
		default:
			unhold()
			return nil, resultMissing, outcome
		}
	}
}

// Claim answers a node of the own cluster that wants to pull a stream, as the stream's owner.
func (m *Manager) Claim(from catalogue.NodeID, stream adapters.StreamID, epoch uint64) Claim {
	state, _ := m.o.Catalogue.Snapshot()
	c := m.claims.Claim(time.Now(), state, from, stream, epoch)
	m.metrics.answers.WithLabelValues(c.label()).Inc()
	return c
}

// Grant is this node's leave for a child to pull what is held here, without a token and a URL; or the error says why not, as
// planner.Source has it.
func (m *Manager) Grant(child catalogue.NodeID, stream adapters.StreamID) (Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	state, _ := m.o.Catalogue.Snapshot()
	own, err := planner.Source(state, child, stream)
	if err != nil {
		return Grant{}, err
	}
	sequence, ok := m.handOn(state, own)
	if !ok {
		return Grant{}, fmt.Errorf("hand on %s to %s: it is about to be withdrawn: %w", stream, child, adapters.ErrNoStream)
	}
	return Grant{Path: own.Path, Epoch: own.Epoch, Priority: own.Priority, Oldest: own.Oldest, Sequence: sequence}, nil
}

// Flows are the streams that a child announces to pull from here, as far as there is a source for them. What it returns is
// for the child: it must be called for each heartbeat to a child, and without a lock that RTT, PacketAge or Sequence take.
func (m *Manager) Flows(child catalogue.NodeID) map[adapters.StreamID]Flow {
	m.mu.Lock()
	defer m.mu.Unlock()
	state, _ := m.o.Catalogue.Snapshot()
	pulls := state.Pulls(child)
	if len(pulls) == 0 {
		return nil
	}
	now := time.Now()
	flows := make(map[adapters.StreamID]Flow, len(pulls))
	for _, id := range pulls {
		own, ok := state.Own(id)
		if theirs, _ := state.Hold(child, id); !ok || theirs.Publication() != own.Publication() {
			continue
		}
		sequence, ok := m.handOn(state, own)
		if !ok {
			continue
		}
		f := Flow{Sequence: sequence}
		if len(own.Path) > 1 {
			last := m.entries[id].run.session.LastPacket()
			f.Age, f.Known = now.Sub(last), !last.IsZero()
		}
		flows[id] = f
	}
	return flows
}

// handOn is the sequence that goes with the node's own hold to a child, and remembers that it does; false where the hold
// counts no more.
func (m *Manager) handOn(state *catalogue.State, own catalogue.Hold) (uint64, bool) {
	if len(own.Path) == 1 {
		return planner.Sequence(m.o.Catalogue.Self().Incarnation, time.Since(m.began)), true
	}
	e := m.entries[own.Stream]
	if e == nil || !e.run.live() || e.run.publication != own.Publication() {
		return 0, false
	}
	r := e.run
	// What the parent says belongs to the path that it announces.
	h, ok := state.Hold(r.parent, e.id)
	if ok && !time.Now().Before(e.backward) && slices.Equal(h.Path, r.path[:len(r.path)-1]) && h.Publication() == r.publication {
		if sequence, ok := m.o.Peers.Sequence(r.parent, e.id); ok {
			r.sequence = sequence
		}
	}
	sequence := r.sequence
	if r.below > 0 && sequence >= r.below {
		sequence = r.below - 1
	}
	m.feasible.Told(e.id, r.publication, sequence, len(r.path)-1)
	return sequence, true
}

func (m *Manager) entry(id adapters.StreamID) *entry {
	e := m.entries[id]
	if e == nil {
		e = &entry{
			id: id, failures: map[catalogue.NodeID]*failure{}, retry: newBackoff(100*time.Millisecond, 5*time.Second),
			outcome: errPending, changed: make(chan struct{}),
		}
		m.entries[id] = e
	}
	return e
}

func newBackoff(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = first, most, 2, 0.3
	return b
}

// settle records what those who wait for a stream are told, and tells them when it is known.
func (m *Manager) settle(e *entry, outcome error) {
	e.outcome = outcome
	if e.waiting > 0 && !errors.Is(outcome, errPending) {
		close(e.changed)
		e.changed = make(chan struct{})
	}
}

// reconcile plans again what has been touched or is due, and applies the plan. It returns when to plan again if nothing
// happens before, and what is to be run in goroutines.
func (m *Manager) reconcile(ctx context.Context) (next time.Time, start []func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	next = earlier(next, m.believe(now))
	state := m.learn()
	m.follow(state)
	if m.stale {
		m.publish()
		state = m.learn()
	}
	m.claims.Observe(now, state)
	m.collect(now)

	in := planner.Input{
		State: state, Now: now, Avoid: m.avoid, Gone: m.gone, RTT: m.o.Peers.RTT, FanOut: m.o.FanOut,
		Gapless: m.o.NewSource != nil,
		Relays:  map[adapters.StreamID]planner.Relay{}, Claims: map[adapters.StreamID]planner.Claim{},
	}
	for _, id := range m.streams(state) {
		e := m.raise(state, id, now)
		if e == nil {
			continue
		}
		e.due = time.Time{}
		switch {
		case !e.demand.Any() && !e.demand.Lingering:
			m.stop(e, endUnwanted)
			e.decision = planner.Decision{Stream: id}
			if m.idle(e, now) {
				delete(m.entries, id)
			}
		case m.turned(e, state, now):
		case !e.run.ending():
			in.Wants = append(in.Wants, planner.Want{Stream: id, Demand: e.demand})
			in.Claims[id] = e.claim
			// What has no source is planned for as if nothing ran. The session ends by itself when it finds none; that it has
			// one, which may not be used, it does not know.
			if r := e.run; r != nil && r.moving {
				if h, ok := state.Hold(r.next, id); !ok || h.Through(state.Self().ID) {
					r.abort() // it has lost the stream meanwhile, or has it from this node
				}
			}
			if r := e.run; r != nil && r.dark && !r.moving {
				if over := r.darkAt.Add(graceTime); !now.Before(over) {
					m.stop(e, endLost)
					continue
				}
				m.wait(e, now, r.darkAt.Add(graceTime))
			}
			if e.run != nil && !e.run.dark {
				in.Relays[id] = m.relay(e, state, now)
			}
		}
		if e.demand.Lingering {
			m.wait(e, now, e.lastDemand.Add(m.o.Linger))
		}
		for _, f := range e.failures {
			if f.gone {
				m.wait(e, now, f.until) // who was thought to be gone may count again
			}
		}
	}
	clear(m.touched)
	m.all = false
	for _, d := range planner.Plan(in) {
		e := m.entries[d.Stream]
		if d.Action == planner.Ask && d.Owner == state.Self().ID {
			_, span := tracing.Child(e.traced(ctx), "claim", trace.WithAttributes(tracing.Peer.String(string(d.Owner))))
			e.claim = m.claimed(d.Epoch, m.claims.Claim(now, state, d.Owner, d.Stream, d.Epoch), now)
			span.SetAttributes(tracing.Granted.Bool(e.claim.Granted))
			span.End()
			in.Claims[d.Stream] = e.claim
			in.Wants = []planner.Want{{Stream: d.Stream, Demand: e.demand}}
			d = planner.Plan(in)[0]
		}
		e.decision = d
		for _, f := range []func(){m.apply(ctx, e, state, now), m.standBy(ctx, e, in)} {
			if f != nil {
				start = append(start, f)
			}
		}
		m.wait(e, now, d.Until)
		m.wait(e, now, e.retryAt)
		m.wait(e, now, e.yieldUntil)
	}
	m.publish()
	m.count()
	next = earlier(next, m.due)
	self := state.Self().ID
	return earlier(next, m.feasible.Forget(now, func(id adapters.StreamID) bool {
		row := state.Row(id)
		_, held := row.Hold(self)
		return held || len(row.Children(self)) > 0
	})), start
}

// learn takes notice of what the catalogue knows now.
func (m *Manager) learn() *catalogue.State {
	state, _ := m.o.Catalogue.Snapshot()
	changed, ok := state.Changed(m.seen)
	m.all = m.all || !ok
	for _, id := range changed {
		m.touch(id)
	}
	m.seen = state
	return state
}

// collect touches the entries that are due.
func (m *Manager) collect(now time.Time) {
	if m.due.IsZero() || now.Before(m.due) {
		return
	}
	m.due = time.Time{}
	for id, e := range m.entries {
		switch {
		case e.due.IsZero():
		case now.Before(e.due):
			m.due = earlier(m.due, e.due)
		default:
			m.touch(id)
		}
	}
}

// wait makes an entry due at a time, if that is to come.
func (m *Manager) wait(e *entry, now, until time.Time) {
	if until.After(now) {
		e.due = earlier(e.due, until)
		m.due = earlier(m.due, until)
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// earlier of two times; zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// streams are those to plan for again, sorted.
func (m *Manager) streams(state *catalogue.State) []adapters.StreamID {
	if m.all {
		for id := range m.entries {
			m.touch(id)
		}
		for id := range m.server {
			m.touch(id)
		}
		if len(m.o.Pins) > 0 {
			for _, id := range state.Streams() {
				m.touch(id)
			}
		}
	}
	return slices.Sorted(maps.Keys(m.touched))
}

// relay is what runs for an entry, as the planner knows it.
func (m *Manager) relay(e *entry, state *catalogue.State, now time.Time) planner.Relay {
	r := e.run
	relay := planner.Relay{
		Parent: r.parent, Publication: r.publication, Outside: r.outside, Live: r.live(), Since: r.since,
	}
	h, holds := state.Hold(r.parent, e.id)
	r.seen = r.seen || holds && h.Publication() == r.publication
	relay.Early = !r.seen && h.Publication() == r.before
	if holds || !r.live() {
		return relay
	}
	last := r.session.LastPacket()
	last = later(later(last, r.liveAt), m.o.Awake())
	if quiet := last.Add(quietTime); now.Before(quiet) {
		m.wait(e, now, quiet)
		return relay
	}
	age, told := m.o.Peers.PacketAge(r.parent, e.id)
	relay.Quiet = !told || age < quietTime
	m.wait(e, now, now.Add(quietAgain))
	return relay
}

// believe ends the catalogue's doubts when their time has come.
func (m *Manager) believe(now time.Time) (next time.Time) {
	doubts := m.o.Catalogue.Doubts()
	for id := range m.doubts {
		if !slices.Contains(doubts, id) {
			delete(m.doubts, id)
			m.touch(id)
		}
	}
	for _, id := range doubts {
		since, ok := m.doubts[id]
		switch {
		case !ok:
			m.doubts[id] = now
			next = earlier(next, now.Add(doubtTime))
		case now.Sub(since) < doubtTime:
			next = earlier(next, since.Add(doubtTime))
		default:
			m.o.Catalogue.Believe(id)
			m.touch(id)
			m.left = slices.DeleteFunc(m.left, func(other adapters.StreamID) bool { return other == id })
		}
	}
	return next
}

// occupied says whether the server still has what may be a relay's of the process before, and may be a publisher's: to
// publish there would be refused, or push that publisher out. Where it was refused, another attempt would only make the doubt
// last longer.
func (m *Manager) occupied(e *entry) bool {
	s, reported := m.server[e.id]
	_, doubt := m.doubts[e.id]
	return reported && !s.Waiting && doubt && (e.refused || slices.Contains(m.left, e.id))
}

// follow lets the holds of live relays follow their parents'.
func (m *Manager) follow(state *catalogue.State) {
	if m.all {
		for id, e := range m.entries {
			m.followOne(state, id, e.run)
		}
		return
	}
	for id := range m.touched {
		if e := m.entries[id]; e != nil {
			m.followOne(state, id, e.run)
		}
	}
}

func (m *Manager) followOne(state *catalogue.State, id adapters.StreamID, r *run) {
	if !r.live() {
		return
	}
	self := state.Self().ID
	h, ok := state.Hold(r.parent, id)
	if !ok || h.Publication() != r.publication || h.Through(self) || len(h.Path) >= catalogue.MaxPath {
		return
	}
	if own := r.path[:len(r.path)-1]; !slices.Equal(own, h.Path) {
		r.path = append(slices.Clip(h.Path), self)
		r.delay = m.delay(h)
		m.stale = true
	}
	if !slices.Equal(r.tracks, h.Tracks) {
		r.tracks = h.Tracks
		m.stale = true
	}
}

// delay is the path's to this node by way of a parent's hold.
func (m *Manager) delay(parent catalogue.Hold) time.Duration {
	rtt, _ := m.o.Peers.RTT(parent.Holder())
	return parent.Delay + rtt
}

// publish announces what is live, and so withdraws what is not any more.
func (m *Manager) publish() {
	if !m.stale {
		return
	}
	m.stale = false
	holds := make([]catalogue.Hold, 0, m.live)
	for id, e := range m.entries {
		if r := e.run; r.live() {
			holds = append(holds, catalogue.Hold{
				Stream: id, Epoch: r.publication.Epoch, Path: r.path, Delay: r.delay,
				Priority: r.publication.Priority, Oldest: r.publication.Oldest, Tracks: r.tracks,
			})
		}
	}
	if err := m.o.Catalogue.SetCarried(holds); err != nil {
		m.o.Logger.Error("relay cannot be announced", "error", err)
	}
}

// raise finds out why a stream is wanted. It gives the stream's entry, nil where there is none and need be none.
func (m *Manager) raise(state *catalogue.State, id adapters.StreamID, now time.Time) *entry {
	row := state.Row(id)
	_, published := state.Origin(id)
	_, held := row.Winner()
	pinned := held && !published && m.o.Pins.Lists(id)
	s, reported := m.server[id]
	played := reported && (s.Readers > 0 || s.Waiting)
	e := m.entries[id]
	if e == nil && !pinned && (!played || published) {
		return nil
	}
	if e == nil {
		e = m.entry(id)
	}
	if published {
		e.yieldUntil = time.Time{} // the publisher has come; when it goes, what others publish is wanted
	}
	if e.demand.Any() {
		e.lastDemand = now // so it was until now
	}
	d := planner.Demand{Viewers: e.held, Children: len(row.Children(state.Self().ID)), Pinned: pinned}
	if played {
		readers := max(s.Readers, 0)
		if s.Waiting {
			readers = max(readers, 1)
		}
		d.Viewers += max(readers-d.Children, 0)
	}
	if d.Any() {
		e.lastDemand = now
	} else {
		d.Lingering = now.Sub(e.lastDemand) < m.o.Linger
	}
	e.demand = d
	return e
}

// idle says whether nothing is left to remember of an entry.
func (m *Manager) idle(e *entry, now time.Time) bool {
	for parent, f := range e.failures {
		if now.Before(f.until) {
			m.wait(e, now, f.until)
			continue
		}
		delete(e.failures, parent)
	}
	m.wait(e, now, e.yieldUntil)
	return e.run == nil && e.second.run == nil && !e.asking && e.held == 0 && e.yielding == 0 && !now.Before(e.yieldUntil) &&
		len(e.failures) == 0
}

func (m *Manager) avoid(stream adapters.StreamID, parent catalogue.NodeID) time.Time {
	if e := m.entries[stream]; e != nil && e.failures[parent] != nil {
		return e.failures[parent].until
	}
	return time.Time{}
}

// apply does what the entry's decision says.
func (m *Manager) apply(ctx context.Context, e *entry, state *catalogue.State, now time.Time) (start func()) {
	d := e.decision
	// What has lost its source waits for a while: its publisher may return, and its viewers are still here.
	nobody := d.Why == planner.WhyNobody || d.Why == planner.WhyOnlyUs || d.Why == planner.WhyQuiet || d.Why == planner.WhyTurned
	waits := e.run != nil && e.run.dark && nobody
	switch {
	case e.run == nil || waits || !d.Drop && d.Action != planner.Nothing:
	case d.Drop && (d.Action != planner.Nothing || nobody) && d.End != planner.WhyLoop && m.o.NewSource != nil && e.run.live():
		// Its source is one no longer; what it publishes can have another.
		m.darken(e, e.run)
		if waits = nobody; waits {
			// No longer than its parent waits for the publisher, who may want to come back by this node.
			e.run.darkAt = now.Add(returnTime - graceTime)
			m.wait(e, now, now.Add(returnTime))
		}
		m.o.Logger.Warn("relay leaves its source", "stream", e.id, "parent", e.run.parent, "why", d.End)
	default:
		m.stop(e, endOf(d.End))
	}
	outcome := errPending
	switch d.Action {
	case planner.Nothing:
		outcome = adapters.ErrNoStream
		if d.Why == planner.WhyOrigin || d.Why == planner.WhySuperseded {
			outcome = nil
		} else if waits {
			outcome = errPending
		}
	case planner.Ask:
		if !e.asking {
			e.asking = true
			ctx := e.traced(ctx)
			start = func() { m.ask(ctx, e, d.Owner, d.Epoch) }
		}
	case planner.Run:
		r := e.run
		switch {
		case r != nil && !r.ending() && r.moving:
			// It goes on when that has ended; but what is in the cluster meanwhile is not fetched from outside.
			if !d.Outside && !state.Near(r.next) {
				r.abort()
			}
		case r != nil && !r.ending() && !r.dark && r.parent == d.Parent && r.publication == d.Hold.Publication():
			r.why = d.Why
		case r != nil && !r.ending() && m.o.NewSource != nil && (r.live() || r.dark):
			if !now.Before(e.retryAt) {
				start = m.move(ctx, e, now)
			}
		case r != nil && !r.ending():
			m.o.Logger.Info("relay changes its parent", "stream", e.id, "parent", r.parent, "next", d.Parent, "why", d.Why)
			m.stop(e, endMoved)
		case r != nil || e.yielding > 0 || now.Before(e.yieldUntil) || now.Before(e.retryAt) || m.occupied(e):
			// It goes on when that has ended.
		case m.runs >= m.o.MaxRelays:
			outcome = ErrFull
			m.full = true
		default:
			start = m.start(ctx, e, now)
		}
	case planner.Wait:
		if e.run == nil && m.refused(e, state, now) {
			outcome = adapters.ErrNoStream
		}
	}
	if e.run.live() {
		outcome = nil
	}
	m.settle(e, outcome)
	return start
}

// refused says whether everybody who announces the stream said a moment ago that they have no source for it.
func (m *Manager) refused(e *entry, state *catalogue.State, now time.Time) bool {
	self := state.Self().ID
	for _, h := range state.Holders(e.id) {
		if h.Through(self) {
			continue
		}
		f := e.failures[h.Holder()]
		if f == nil || !f.missing || f.publication != h.Publication() || !now.Before(f.until) {
			return false
		}
	}
	return true
}

func (m *Manager) count() {
	m.metrics.live.Set(float64(m.live))
	m.metrics.connecting.Set(float64(m.runs - m.live))
}

// start begins a relay as the decision says.
func (m *Manager) start(ctx context.Context, e *entry, now time.Time) func() {
	d := e.decision
	ctx, cancel := context.WithCancel(ctx)
	r := &run{
		parent: d.Parent, outside: d.Outside, publication: d.Hold.Publication(), delay: m.delay(d.Hold),
		tracks: d.Hold.Tracks, cancel: cancel, over: make(chan struct{}), why: d.Why, since: now,
	}
	ctx, r.span = m.begin(e.traced(ctx), "relay", e, r)
	e.run = r
	m.runs++
	m.metrics.starts.Inc()
	return func() {
		defer cancel()
		err := m.carry(ctx, e, r)
		m.finish(e, r, err)
	}
}

// move begins to take what a live relay carries from another parent, as the decision says.
func (m *Manager) move(ctx context.Context, e *entry, now time.Time) func() {
	d, r := e.decision, e.run
	next := &run{
		parent: d.Parent, outside: d.Outside, publication: d.Hold.Publication(), delay: m.delay(d.Hold),
		tracks: d.Hold.Tracks, why: d.Why, since: now,
	}
	ctx, cancel := context.WithCancel(ctx)
	r.moving, r.next, r.abort = true, d.Parent, cancel
	before, session := r.publication, r.session
	ctx, span := m.begin(ctx, "change of parent", e, next, trace.WithLinks(trace.Link{SpanContext: r.span.SpanContext()}))
	m.o.Logger.Info("relay changes its parent", "stream", e.id, "parent", r.parent, "next", d.Parent, "why", d.Why)
	return func() {
		defer cancel()
		how, err := m.transfer(ctx, e.id, session, before, next)
		span.SetAttributes(tracing.Outcome.String(how))
		tracing.End(span, err)
		m.moved(e, r, next, how, err)
	}
}

// transfer asks the next parent for the stream and gives it to the session as its source.
func (m *Manager) transfer(
	ctx context.Context, stream adapters.StreamID, session Runner, before catalogue.Publication, next *run,
) (how string, err error) {
	ctx, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	grant, err := m.grant(ctx, stream, next)
	if err != nil {
		return "", err
	}
	next.publication, next.sequence = grant.Publication(), grant.Sequence
	next.path = append(slices.Clip(grant.Path), m.o.Catalogue.Self().ID)
	source := m.o.NewSource(Spec{Stream: stream, Parent: next.parent, Grant: grant})
	source.Same = next.publication == before
	return session.Change(ctx, source)
}

// moved records how a change of parent ended.
func (m *Manager) moved(e *entry, r, next *run, how string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wake()
	r.moving, r.below = false, 0
	m.touch(e.id)
	if e.run != r || r.ending() || m.ended {
		return
	}
	switch {
	case errors.Is(err, ErrCodecDiffers):
		m.stop(e, endMoved)
	case errors.Is(err, context.Canceled):
		m.o.Logger.Info("relay does not change its parent after all", "stream", e.id, "parent", r.parent, "next", next.parent)
	case err != nil:
		m.blame(e, next, err)
		m.o.Logger.Warn("relay could not change its parent", "stream", e.id, "parent", r.parent, "next", next.parent, "error", err)
	default:
		r.parent, r.outside, r.publication, r.path, r.delay = next.parent, next.outside, next.publication, next.path, next.delay
		r.tracks, r.sequence, r.why, r.since = next.tracks, next.sequence, next.why, next.since
		r.reported, r.seen, r.before, r.incarnation = false, false, next.before, next.incarnation
		m.relight(e, r)
		m.publish()
		m.o.Logger.Info("relay has changed its parent", "stream", e.id, "parent", r.parent, "epoch", r.publication.Epoch,
			"path", r.path, "how", how, "why", r.why)
	}
	m.count()
}

// relight announces a relay again that has a source again, or another one.
func (m *Manager) relight(e *entry, r *run) {
	m.stale = true
	if !r.dark {
		return
	}
	r.dark = false
	m.live++
	m.settle(e, nil)
}

// watch follows how a live session's source stands, until the session has ended.
func (m *Manager) watch(e *entry, r *run, session Runner, ended <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		state, changed := session.Source()
		timer.Stop()
		switch state.Flow {
		case FlowLost:
			m.lose(e, r, &SessionError{Side: Parent, Step: "relay", Err: errors.New(state.Error)})
		case FlowSilent:
			if again := m.suspect(e, r, state.Since); again > 0 {
				timer.Reset(again)
			}
		case FlowOn:
			m.regain(e, r)
		}
		select {
		case <-changed:
		case <-timer.C:
		case <-session.Ended():
			m.silence(e, r)
			return
		case <-ended:
			return
		}
	}
}

// suspect finds out whether a stream that has fallen silent is lost or paused. It asks to be called again after a while, or
// not at all.
func (m *Manager) suspect(e *entry, r *run, since time.Time) (again time.Duration) {
	m.mu.Lock()
	parent, incarnation, dark := r.parent, r.incarnation, r.dark || r.moving
	m.mu.Unlock()
	if dark {
		return pauseAgain
	}
	state, _ := m.o.Catalogue.Snapshot()
	if at, ok := state.Node(parent); ok && at.Incarnation != incarnation {
		m.lose(e, r, fmt.Errorf("%w, and another process of the parent is there", errSilent))
		return pauseAgain
	}
	now := time.Now()
	if now.Sub(m.o.Awake()) < overdueTime {
		return doubtAgain // it was this node that fell silent
	}
	heard, connected := m.o.Peers.Heard(parent)
	age, told := m.o.Peers.PacketAge(parent, e.id)
	switch {
	case !connected, now.Sub(heard) > overdueTime:
		m.lose(e, r, fmt.Errorf("%w, and the parent is not heard of", errSilent))
		return pauseAgain
	case told && now.Add(-age).After(since.Add(overdueTime/4)):
		m.lose(e, r, fmt.Errorf("%w, and flows at the parent", errSilent))
		return pauseAgain
	case heard.After(since):
		return pauseAgain // its source is paused, or looks for another one itself
	default:
		return doubtAgain
	}
}

// lose withdraws the hold of a relay that has lost its source, and lets another one be looked for.
func (m *Manager) lose(e *entry, r *run, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !r.live() || r.ending() || m.o.NewSource == nil {
		return
	}
	defer m.wake()
	m.darken(e, r)
	m.blame(e, r, err)
	if f := e.failures[r.parent]; errors.Is(err, errSilent) {
		// Its hold stands until its heartbeat counts as lost.
		f.gone, f.until = true, later(f.until, time.Now().Add(goneTime))
	}
	m.publish()
	m.count()
	m.o.Logger.Warn("relay has lost its source", "stream", e.id, "parent", r.parent, "error", err)
}

// darken withdraws the hold of a live relay that has no source any more, while what it publishes stays. The right to pull is
// kept for a moment longer.
func (m *Manager) darken(e *entry, r *run) {
	if r.outside {
		e.claim = planner.Claim{Epoch: r.publication.Epoch, Granted: true, Until: time.Now().Add(leaseTime)}
	}
	r.dark, r.darkAt, m.stale = true, time.Now(), true
	m.live--
	m.settle(e, errPending)
	m.touch(e.id)
	m.metrics.losses.Inc()
}

// regain announces a relay again whose source flows again by itself.
func (m *Manager) regain(e *entry, r *run) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !r.dark || r.moving || r.ending() || e.run != r {
		return
	}
	defer m.wake()
	m.relight(e, r)
	m.touch(e.id)
	m.publish()
	m.count()
}

// gone says whether a node was found to be gone for a stream, though it may still be announced.
func (m *Manager) gone(stream adapters.StreamID, parent catalogue.NodeID) bool {
	e := m.entries[stream]
	if e == nil || e.failures[parent] == nil {
		return false
	}
	f := e.failures[parent]
	return f.gone && time.Now().Before(f.until)
}

// stop ends the entry's relay. Its hold counts no more from now on, and what is next waits until it has ended.
func (m *Manager) stop(e *entry, why string) {
	r := e.run
	if r == nil || r.stopping != "" {
		return
	}
	m.withdraw(e, r)
	r.stopping = why
	r.cancel()
	m.miss(e, false)
	e.second.stop()
	m.settle(e, errPending)
}

// withdraw takes back the hold of a live relay. The right to pull is kept for a moment longer than it, as the owner does.
func (m *Manager) withdraw(e *entry, r *run) {
	if !r.live() {
		return
	}
	if r.outside {
		e.claim = planner.Claim{Epoch: r.publication.Epoch, Granted: true, Until: time.Now().Add(leaseTime)}
	}
	r.withdrawn, m.stale = true, true
	m.live--
	m.settle(e, errPending)
}

// ask claims the right to pull.
func (m *Manager) ask(ctx context.Context, e *entry, owner catalogue.NodeID, epoch uint64) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	c, err := m.o.Peers.Claim(ctx, owner, e.id, epoch)

	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wake()
	now := time.Now()
	e.asking = false
	m.touch(e.id)
	if err == nil && (c.Granted || c.Holder != "") {
		m.metrics.claims.WithLabelValues(c.label()).Inc()
		e.claim = m.claimed(epoch, c, now)
		return
	}
	if err == nil {
		err = errors.New("it is not of this node's cluster")
	}
	m.metrics.claims.WithLabelValues(claimSilent).Inc()
	m.o.Logger.Warn("owner of a pull is passed over", "stream", e.id, "owner", owner, "error", err)
	silent := []catalogue.NodeID{owner}
	if e.claim.Epoch == epoch && now.Before(e.claim.Until) {
		silent = append(slices.Clip(e.claim.Silent), owner)
	}
	e.claim = planner.Claim{Epoch: epoch, Silent: silent, Until: now.Add(leaseTime)}
}

// claimed is what an owner's answer means for the plan, and for how long.
func (m *Manager) claimed(epoch uint64, c Claim, now time.Time) planner.Claim {
	claim := planner.Claim{Epoch: epoch, Granted: c.Granted, Holder: c.Holder, Until: now.Add(claimAgain)}
	if c.Granted {
		claim.Until = now.Add(leaseTime)
	}
	return claim
}

// carry pulls the stream from the parent until that ends.
func (m *Manager) carry(ctx context.Context, e *entry, r *run) error {
	session, err := m.pull(ctx, e, r)
	if err != nil {
		return err
	}
	m.o.Catalogue.Carry(e.id)
	if m.o.Remember != nil {
		bounded, cancel := context.WithTimeout(ctx, rememberTime)
		m.o.Remember(bounded)
		cancel()
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-session.Live():
			m.announce(e, r)
		case <-ended:
			return
		}
		m.watch(e, r, session, ended)
	})
	err = session.Run(ctx)
	close(ended)
	wg.Wait()
	if err == nil {
		err = errOver
	}
	return err
}

// pull asks the parent for the stream and makes a session of what it grants.
func (m *Manager) pull(ctx context.Context, e *entry, r *run) (Runner, error) {
	grant, err := m.grant(ctx, e.id, r)
	if err != nil {
		return nil, err
	}
	session := m.o.NewSession(Spec{Stream: e.id, Parent: r.parent, Grant: grant})
	m.mu.Lock()
	defer m.mu.Unlock()
	r.publication, r.sequence = grant.Publication(), grant.Sequence
	r.path = append(slices.Clip(grant.Path), m.o.Catalogue.Self().ID)
	r.session = session
	return session, nil
}

// grant asks a parent for the stream.
func (m *Manager) grant(ctx context.Context, stream adapters.StreamID, r *run) (Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	grant, err := m.o.Peers.Pull(ctx, r.parent, stream)
	if err == nil {
		err = m.accept(stream, grant, r)
	}
	if err != nil {
		return Grant{}, &GrantError{Stream: stream, Parent: r.parent, Err: err}
	}
	return grant, nil
}

// GrantError says that a parent did not let a stream be pulled, or that what it granted cannot be used.
type GrantError struct {
	Stream adapters.StreamID
	Parent catalogue.NodeID
	Err    error
}

func (e *GrantError) Error() string {
	return fmt.Sprintf("pull %s from %s: %v", e.Stream, e.Parent, e.Err)
}
func (e *GrantError) Unwrap() error { return e.Err }

// Failure is where an attempt to carry a stream ended.
type Failure struct {
	Side Side   `json:"side"`
	Step string `json:"step"`           // of a SessionError, or "grant"
	Code int    `json:"code,omitempty"` // of the HTTP answer that was no; 0: there was none
}

// failureOf places an error; nil where it has no place.
func failureOf(err error) *Failure {
	f := &Failure{}
	if refused, ok := errors.AsType[*whip.StatusError](err); ok {
		f.Code = refused.Code
	}
	if s, ok := errors.AsType[*SessionError](err); ok {
		f.Side, f.Step = s.Side, s.Step
		return f
	}
	if _, ok := errors.AsType[*GrantError](err); ok {
		f.Side, f.Step = Parent, "grant"
		return f
	}
	return nil
}

// usable says why a grant cannot be used, whatever this node has told others.
func (m *Manager) usable(g Grant, r *run) error {
	switch {
	case len(g.Path) == 0 || g.Path[len(g.Path)-1] != r.parent:
		return fmt.Errorf("%w: its path does not end in the parent", errGrant)
	case slices.Contains(g.Path, m.o.Catalogue.Self().ID):
		return fmt.Errorf("%w: the parent has the stream from this node", errGrant)
	case len(g.Path) >= catalogue.MaxPath:
		return fmt.Errorf("%w: its path has %d nodes", errGrant, len(g.Path))
	case r.publication.Beats(g.Publication()) && !g.Publication().Replaces(r.publication):
		return fmt.Errorf("%w: epoch %d of %s is superseded", errGrant, g.Epoch, g.Path[0])
	}
	if err := m.o.Catalogue.Observe(g.Epoch); err != nil {
		return fmt.Errorf("%w: %w", errGrant, err)
	}
	return nil
}

// accept says why a grant cannot be used for what is announced.
func (m *Manager) accept(stream adapters.StreamID, g Grant, r *run) error {
	if err := m.usable(g, r); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if g.Sequence != 0 && !m.feasible.Accepts(stream, g.Publication(), g.Sequence, len(g.Path)-1) {
		return errInfeasible
	}
	if e := m.entries[stream]; e != nil && e.run != r && e.run.live() {
		e.run.below = g.Sequence
	}
	state, _ := m.o.Catalogue.Snapshot()
	h, _ := state.Hold(r.parent, stream)
	at, _ := state.Node(r.parent)
	r.before, r.incarnation = h.Publication(), at.Incarnation
	return nil
}

// announce announces a relay whose media flows.
func (m *Manager) announce(e *entry, r *run) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wake()
	if r.stopping != "" {
		return
	}
	r.liveAt = time.Now()
	e.refused = false
	m.live++
	m.stale = true
	m.touch(e.id)
	m.o.Catalogue.Located(e.id, r.session.Location())
	m.publish()
	m.settle(e, nil)
	m.count()
	m.metrics.untilLive.Observe(r.liveAt.Sub(r.since).Seconds())
	m.o.Logger.Info("relay is announced", "stream", e.id, "parent", r.parent, "epoch", r.publication.Epoch, "path", r.path,
		"after", r.liveAt.Sub(r.since), "why", r.why, tracing.Attr(r.span))
	r.span.End()
}

// silence withdraws the hold of a relay whose media has ended, while what it took is freed.
func (m *Manager) silence(e *entry, r *run) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.withdraw(e, r)
	m.publish()
	m.count()
}

// finish records how a relay ended. Its hold is withdrawn before anything else is tried.
func (m *Manager) finish(e *entry, r *run, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wake()
	m.withdraw(e, r)
	tracing.End(r.span, err) // again, if it was live: that does nothing
	e.run = nil
	close(r.over)
	m.runs--
	m.miss(e, false)
	e.second.stop()
	m.touch(e.id)
	m.all, m.full = m.all || m.full, false
	m.publish()
	if r.session != nil {
		m.o.Catalogue.Located(e.id, r.session.Location())
		m.o.Catalogue.Uncarry(e.id)
	}
	m.settle(e, cmp.Or(m.over(), errPending))
	m.count()
	if r.stopping != "" {
		if r.stopping == endDropped {
			now := time.Now()
			if now.Sub(r.liveAt) >= steadyTime {
				e.retry.Reset()
			}
			e.retryAt = now.Add(e.retry.NextBackOff())
		}
		m.metrics.ends.WithLabelValues(r.stopping).Inc()
		m.o.Logger.Info("relay ended", "stream", e.id, "parent", r.parent, "why", r.stopping)
		return
	}
	m.fail(e, r, err)
}

func (m *Manager) over() error {
	if m.ended {
		return ErrEnded
	}
	return nil
}

// fail records a relay that failed.
func (m *Manager) fail(e *entry, r *run, err error) {
	end := m.blame(e, r, err)
	m.metrics.ends.WithLabelValues(end).Inc()
	m.o.Logger.Warn("relay failed", "stream", e.id, "parent", r.parent, "error", err,
		"retry", e.retryAt, "parent avoided until", e.failures[r.parent].until, tracing.Attr(r.span))
}

// blame makes the parent wait for its next turn, and from the second failure in a row on all others too. Where the local
// server failed, the parent is not to blame; but a publisher may have taken the name over there, and must have the time
// to be reported before the relay would take it back.
func (m *Manager) blame(e *entry, r *run, err error) (end string) {
	now := time.Now()
	e.lastErr = err
	f := e.failures[r.parent]
	if f == nil {
		f = &failure{backoff: newBackoff(250*time.Millisecond, 15*time.Second)}
		e.failures[r.parent] = f
	}
	if !r.liveAt.IsZero() && now.Sub(r.liveAt) >= steadyTime {
		f.backoff.Reset()
		e.retry.Reset()
		e.failed = 0
	}
	f.gone = false
	end = endFailed
	if errors.Is(err, errInfeasible) {
		// Where both hear the origin in the same rhythm, the parent would never have a newer sequence than this node has handed
		// on: so it hands on no newer one until it has asked again.
		f.missing, f.until, end = false, now.Add(soonTime), endInfeasible
		e.backward = now.Add(2 * soonTime)
	} else if at, ok := errors.AsType[*SessionError](err); ok && at.Side == LocalServer {
		e.failed++
		e.refused = true
		e.refusedCodec(r.publication, err, now)
		e.retryAt = now.Add(max(e.retry.NextBackOff(), serverTime))
	} else {
		e.failed++
		f.missing, f.publication = errors.Is(err, adapters.ErrNoStream), r.publication
		if f.missing {
			f.until, end = now.Add(missingTime), endRefused
		} else {
			f.until = now.Add(f.backoff.NextBackOff())
		}
		if e.failed > 1 {
			e.retryAt = now.Add(e.retry.NextBackOff())
		}
	}
	return end
}

// The states of a stream at this node.
const (
	StateIdle       = "idle"
	StateAsking     = "asking"
	StateWaiting    = "waiting"
	StateRetrying   = "retrying"
	StateConnecting = "connecting"
	StateLive       = "live"
	StateStopping   = "stopping"
	StateRefused    = "refused" // the local server does not take it
)

// Status is how one stream stands at this node.
type Status struct {
	Stream    adapters.StreamID  `json:"stream"`
	State     string             `json:"state"`
	Why       planner.Reason     `json:"why,omitempty"` // of the plan
	Demand    planner.Demand     `json:"demand"`
	Parent    catalogue.NodeID   `json:"parent,omitempty"` // of the relay, or who is waited for
	Owner     catalogue.NodeID   `json:"owner,omitempty"`  // who is asked for the right to pull
	Path      []catalogue.NodeID `json:"path,omitempty"`
	Epoch     uint64             `json:"epoch"`
	Since     time.Time          `json:"since,omitzero"`     // when the relay was begun
	LiveSince time.Time          `json:"liveSince,omitzero"` // when its media flowed first
	LastError string             `json:"lastError,omitempty"`
	Failure   *Failure           `json:"failure,omitempty"` // where LastError comes from
	NextRetry time.Time          `json:"nextRetry,omitzero"`
	Standby   *SecondStatus      `json:"standby,omitempty"` // where a second copy is wanted
	Session   *SessionStatus     `json:"session,omitempty"`
}

// Share says who is served by a relay's bytes, and whether they come over a way between clusters.
type Share struct {
	Crosses bool // the parent is in another cluster
	Foreign bool // the origin is
	Viewers int  // at this node
}

// spared is how many more copies would cross if each viewer played at the origin's cluster.
func (s Share) spared() int {
	switch {
	case !s.Foreign:
		return 0
	case s.Crosses:
		return max(s.Viewers-1, 0)
	}
	return s.Viewers
}

// Share is that of a stream's relay as it runs now.
func (m *Manager) Share(id adapters.StreamID) Share {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[id]
	if e == nil || e.run == nil {
		return Share{}
	}
	state, _ := m.o.Catalogue.Snapshot()
	origin, known := state.Node(e.run.publication.Origin)
	// Not the demand: plays are held until the server has surely counted them, and so are in it twice for a while.
	viewers := max(e.held, m.server[id].Readers-e.demand.Children)
	return Share{
		Crosses: e.run.outside, Foreign: known && origin.Cluster != state.Self().Cluster, Viewers: viewers,
	}
}

// Status lists the streams that are wanted or carried here, by name.
func (m *Manager) Status() []Status {
	now := time.Now()
	m.mu.Lock()
	list := make([]Status, 0, len(m.entries))
	sessions := make([]Runner, 0, len(m.entries))
	for _, id := range slices.Sorted(maps.Keys(m.entries)) {
		e := m.entries[id]
		d := e.decision
		s := Status{
			Stream: id, State: StateIdle, Why: d.Why, Demand: e.demand, Parent: d.Parent, Owner: d.Owner, Epoch: d.Hold.Epoch,
		}
		if e.lastErr != nil {
			s.LastError, s.Failure = e.lastErr.Error(), failureOf(e.lastErr)
		}
		switch d.Action {
		case planner.Ask:
			s.State, s.Epoch = StateAsking, d.Epoch
		case planner.Wait:
			s.State, s.NextRetry = StateWaiting, d.Until
		case planner.Nothing:
			if d.Why == planner.WhyUnfit {
				s.State = StateRefused
			}
		case planner.Run:
			if now.Before(e.retryAt) {
				s.State, s.NextRetry = StateRetrying, e.retryAt
			}
		}
		var session Runner
		if r := e.run; r != nil {
			s.State, s.Parent, s.Path, s.Epoch = StateConnecting, r.parent, r.path, r.publication.Epoch
			s.Since, s.LiveSince, s.NextRetry = r.since, r.liveAt, time.Time{}
			switch {
			case r.stopping != "":
				s.State = StateStopping
			case r.live():
				s.State = StateLive
			}
			session = r.session
		}
		s.Standby = e.second.status()
		list = append(list, s)
		sessions = append(sessions, session)
	}
	m.mu.Unlock()
	for i, session := range sessions {
		if session != nil {
			status := session.Status()
			list[i].Session = &status
		}
	}
	return list
}
