// Package mesh is how sidecars talk to each other. A Mesh keeps one connection to every peer it has heard of, tells
// them what this node holds, tells the catalogue what they hold for as long as their heartbeats come, asks them for
// claims and pulls and answers their questions by a Handler. It decides nothing: what to pull, and from whom, is the
// planner's business, and media does not pass here. The sidecar's main package makes one Mesh and one Port, the peer
// port at which gRPC and the peers' HTTP meet.
package mesh

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/discovery"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

// The periods of heartbeats: with the nodes on which media depends, and with all others.
const (
	relatedPeriod = 500 * time.Millisecond
	distantPeriod = 5 * time.Second
)

const (
	// questionTimeout bounds Claim and Pull where the caller's context does not.
	questionTimeout = 5 * time.Second
	// relatedFor is how long a claim or a pull makes two nodes related before SetRelated has to say so.
	relatedFor = 10 * time.Second
	// farewell bounds how long a Mesh that ends waits for its last words to reach the peers.
	farewell = time.Second
	// maxTargets bounds the addresses that are dialled, maxPeers the nodes that are linked.
	maxTargets = 4096
	maxPeers   = 1024
)

// ErrNotConnected says that the node which was to be asked has no connection to this one now.
var ErrNotConnected = errors.New("not connected")

// RefusedError is a parent's answer to a pull that it does not grant. A Handler returns one to give its reason to the
// child, which gets it from Pull.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "pull refused: " + e.Reason }

// Claim is the answer of a stream's owner within a cluster: granted for 5 s, or held by another node already.
type Claim struct {
	Granted bool
	Holder  catalogue.NodeID // who has it, where it is not granted; may be empty
}

// Grant is a parent's permission to pull one stream once.
type Grant struct {
	Token string             // for the header Sidestream-Pull-Token
	Path  []catalogue.NodeID // the parent's current path, origin first, parent last
	// Epoch, Priority and Oldest are the publication's, whose origin is the first of the path.
	Epoch    uint64
	Priority int32
	Oldest   bool
	Sequence uint64 // the origin's, as the parent has it; 0 where it does not say
	// URL is where to POST the WHEP offer. The asking side fills it in: a parent does not know by which address it is
	// reached.
	URL string
}

// Flow is how a stream stands at a node, as its children are told twice a second.
type Flow struct {
	Age      time.Duration // of the last packet
	Known    bool          // whether Age is: an origin does not see into its server
	Sequence uint64        // the origin's, as the node has it
}

// Load is how many sessions a node serves, and may; 0 is no bound.
type Load struct {
	Plays, Publications       int
	MaxPlays, MaxPublications int
	URL                       string // where viewers and publishers reach this very node; "": they do not
}

// PeerLoad is the load of a peer.
type PeerLoad struct {
	Node catalogue.NodeID
	Load
	At time.Time // when it said so
}

// Handler answers what peers ask of this node. Its methods are called concurrently, and must return at once: the peer's
// other frames, heartbeats among them, wait meanwhile.
type Handler interface {
	// Claim is asked of the node that owns the stream within the cluster.
	Claim(from catalogue.NodeID, stream adapters.StreamID, epoch uint64) Claim
	// Grant lets a child pull a stream, or says by a *RefusedError why it may not. Other errors are logged here, and the
	// child learns only that there was one.
	Grant(child catalogue.NodeID, stream adapters.StreamID) (Grant, error)
}

// knowledge is what a Mesh needs of the catalogue.
type knowledge interface {
	Self() catalogue.Node
	SetPeer(n catalogue.Node, holds []catalogue.Hold) error
	SetCondition(id catalogue.NodeID, c catalogue.Condition)
	Forget(id catalogue.NodeID)
	Observe(clock uint64) error
	Clock() uint64
	Announcement(cluster string) []catalogue.Hold
	Snapshot() (*catalogue.State, <-chan struct{})
}

// Options are a Mesh's parts.
type Options struct {
	Catalogue knowledge    // a *catalogue.Catalogue; required
	Security  *Security    // required
	Listener  net.Listener // a Port's GRPC; nil: this node is not dialled. Closed when Run ends
	// Address is the host:port of the own peer port as others reach it. Without a host (":18443") they take the IP that
	// the connection comes from.
	Address string
	// Namespace is the node's, of Kubernetes; "": none. Nodes of different ones do not join.
	Namespace string
	// ClusterFingerprint is the same at all nodes of the cluster, and at those of another cluster it is not: so it is seen
	// when two clusters have one name. Empty: not known.
	ClusterFingerprint []byte
	Handler            Handler // nil: claims and pulls are refused
	Version            string
	Features           []string
	// Datagrams is a UDP socket at the number of the own peer port, by which it is found out whether UDP passes between the peers,
	// in packets as large as those of media. Closed when Run ends. nil: it is not found out.
	Datagrams net.PacketConn
	// Flows says how each stream stands that a child pulls from here. It goes into the heartbeats to related nodes, and is
	// called from the links' goroutines. nil says nothing.
	Flows func(child catalogue.NodeID) map[adapters.StreamID]Flow
	// Outgrow gives this node an incarnation later than this one, as Catalogue.Self tells it from then on: a peer remembers by it
	// an earlier process of the same node, which has gone, and this process does not. nil: it keeps the one that it has, and is
	// refused there.
	Outgrow func(incarnation uint64)
	// Load is what this node has to do, for the heartbeats to nodes of its cluster; it is called from the links' goroutines.
	// nil says nothing, and no session is placed here.
	Load       func() Load
	Dial       DialFunc              // nil: the machine's network
	Registerer prometheus.Registerer // nil: no metrics
	Tracer     trace.Tracer          // nil: questions of peers are not traced
	Logger     *slog.Logger          // nil: no logs
}

// Mesh is one node's connections to its peers. Its methods may be called concurrently, before, during and after Run.
type Mesh struct {
	o         Options
	self      catalogue.Node
	process   []byte
	log       *slog.Logger
	metrics   *metrics
	awake     *awake
	datagrams *datagrams

	wakeTargets  signal
	wakeDeadline signal
	wakeAnnounce signal

	// applying orders what the catalogue is told of a peer. It is taken before mu.
	applying sync.Mutex

	mu            sync.Mutex
	peers         map[catalogue.NodeID]*peer
	former        map[catalogue.NodeID]former
	targets       map[string]*target
	announcements map[string]*announcement // by the cluster that they are for
	related       map[catalogue.NodeID]struct{}
	relatedUntil  map[catalogue.NodeID]time.Time // by a claim or pull
	ready         bool
	draining      bool
	connections   uint64 // opened by this node
	announced     uint64 // the last announcement's sequence
	refusals      map[refusalKey]refusalNote
	reported      map[string]struct{} // conditions of peers that were logged
	closing       bool
	greeting      int            // accepted streams in their handshake
	tasks         sync.WaitGroup // of links and targets; Add only while not closed, under mu
}

// New makes a Mesh that does nothing before Run.
func New(o Options) *Mesh {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Dial = dialOr(o.Dial)
	self := o.Catalogue.Self()
	m := &Mesh{
		o:             o,
		self:          self,
		process:       []byte(rand.Text()),
		log:           o.Logger,
		metrics:       newMetrics(o.Registerer),
		awake:         newAwake(time.Now()),
		wakeTargets:   newSignal(),
		wakeDeadline:  newSignal(),
		wakeAnnounce:  newSignal(),
		peers:         map[catalogue.NodeID]*peer{},
		former:        map[catalogue.NodeID]former{},
		targets:       map[string]*target{},
		announcements: map[string]*announcement{},
		related:       map[catalogue.NodeID]struct{}{},
		relatedUntil:  map[catalogue.NodeID]time.Time{},
		refusals:      map[refusalKey]refusalNote{},
		reported:      map[string]struct{}{},
		ready:         true,
	}
	m.datagrams = &datagrams{mesh: m, conn: o.Datagrams, asked: map[[datagramNonce]byte]*link{}}
	if o.Datagrams != nil {
		m.o.Features = append(slices.Clone(o.Features), datagramsFeature)
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(collector{m})
	}
	return m
}

// Run connects, announces and listens until ctx ends, says goodbye to the peers, and returns ctx's error; or it returns
// why it cannot go on. It may be called once.
func (m *Mesh) Run(ctx context.Context) error {
	if m.o.Security == nil {
		return fmt.Errorf("run mesh: %w", errNoSecurity)
	}
	if _, _, err := splitAddress(m.o.Address); err != nil {
		return fmt.Errorf("run mesh: own address: %w", err)
	}
	if err := (&pb.Frame{Body: &pb.Frame_Hello{Hello: m.hello(0)}}).Validate(); err != nil {
		return fmt.Errorf("run mesh: introduce this node: %w", err)
	}
	loops, stopLoops := context.WithCancel(ctx)
	defer stopLoops()
	// Links outlive ctx by their goodbye, after which each ends by itself.
	links, stopLinks := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLinks()

	var tasks sync.WaitGroup
	tasks.Go(func() { m.announce(loops) })
	tasks.Go(func() { m.watchDeadlines(loops) })
	tasks.Go(func() { m.runTargets(loops, links) })
	if m.o.Datagrams != nil {
		tasks.Go(m.datagrams.serve)
		tasks.Go(func() { m.datagrams.ask(loops) })
		context.AfterFunc(loops, func() { _ = m.o.Datagrams.Close() })
	}
	var failed error
	var served chan error
	server := m.newServer()
	if m.o.Listener != nil {
		served = make(chan error, 1)
		tasks.Go(func() { served <- server.Serve(m.o.Listener) })
	}
	select {
	case <-ctx.Done():
		failed = ctx.Err()
	case err := <-served:
		failed = ctx.Err()
		if failed == nil {
			failed = fmt.Errorf("serve peers: %w", err)
		}
	}

	stopLoops()
	m.sayGoodbye()
	// The last frames leave while the streams end by themselves; a peer that does not play along is cut off.
	graceful := make(chan struct{})
	tasks.Go(func() { server.GracefulStop(); close(graceful) })
	bound := time.NewTimer(farewell)
	defer bound.Stop()
	select {
	case <-graceful:
	case <-bound.C:
	}
	server.Stop()
	tasks.Wait()
	m.tasks.Wait()
	return failed
}

// SetPeers takes the full set of addresses that discovery announces. It only adds knowledge: an address that is no
// longer announced ends no live connection, and is dialled again for some minutes after its node was heard last.
func (m *Mesh) SetPeers(peers []discovery.Peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	announced := make(map[string]discovery.Peer, len(peers))
	for _, p := range peers {
		if p.Addr.IsValid() {
			addr := netip.AddrPortFrom(p.Addr.Addr().Unmap(), p.Addr.Port())
			announced[addr.String()] = p
		}
	}
	now := time.Now()
	for addr, t := range m.targets {
		p, ok := announced[addr]
		if t.announced && !ok {
			t.dropped = now
		}
		t.announced = ok
		if ok {
			t.cluster = p.Cluster
		}
	}
	// In the order of addresses, so that the same ones are left out at every call when there are too many.
	for _, addr := range slices.Sorted(maps.Keys(announced)) {
		if _, ok := m.targets[addr]; ok {
			continue
		}
		t := m.addTarget(addr)
		if t == nil {
			m.log.Error("too many peers announced; the rest is not dialled", "announced", len(announced), "dialled", maxTargets)
			break
		}
		t.announced, t.cluster = true, announced[addr].Cluster
	}
	m.wakeTargets.raise()
}

// SetRelated takes the full set of nodes on which media depends, parents, children and claim owners: their heartbeats come
// every 500 ms instead of every 5 s. It is enough that one of two nodes says so.
func (m *Mesh) SetRelated(nodes []catalogue.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := make(map[catalogue.NodeID]struct{}, len(nodes))
	for _, id := range nodes {
		next[id] = struct{}{}
	}
	m.related = next
	m.renewPeriods()
}

// SetReady tells the peers, and the catalogue, whether this node can serve media now. A new Mesh is ready.
func (m *Mesh) SetReady(ready bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ready != ready {
		m.ready = ready
		m.tellCondition()
	}
}

// SetDraining tells the peers, and the catalogue, whether this node is about to leave, so that its children look for another
// parent.
func (m *Mesh) SetDraining(draining bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining != draining {
		m.draining = draining
		m.tellCondition()
	}
}

// Claim asks a stream's owner within the cluster whether this node may pull it from outside. The own node is asked
// directly. ctx bounds the wait; 5 s do where it does not.
func (m *Mesh) Claim(ctx context.Context, owner catalogue.NodeID, stream adapters.StreamID, epoch uint64) (_ Claim, err error) {
	if owner == m.self.ID {
		return m.answerClaim(owner, stream, epoch), nil
	}
	ctx, span := questionSpan(ctx, "claim", owner, stream)
	defer func() { tracing.End(span, err) }()
	answer, _, err := m.ask(ctx, owner, func(request uint64) *pb.Frame {
		return &pb.Frame{Body: &pb.Frame_ClaimRequest{ClaimRequest: &pb.ClaimRequest{
			Request: request, Stream: string(stream), Epoch: epoch, Trace: traceFrame(ctx),
		}}}
	})
	if err != nil {
		return Claim{}, fmt.Errorf("claim %s of %s: %w", stream, owner, err)
	}
	claim := answer.GetClaimAnswer()
	if claim == nil {
		return Claim{}, fmt.Errorf("claim %s of %s: answered something else", stream, owner)
	}
	span.SetAttributes(tracing.Granted.Bool(claim.GetGranted()))
	return Claim{Granted: claim.GetGranted(), Holder: catalogue.NodeID(claim.GetHolder())}, nil
}

// Pull asks a parent to let this node pull a stream from it. A parent that does not grant it is a *RefusedError. ctx bounds
// the wait; 5 s do where it does not.
func (m *Mesh) Pull(ctx context.Context, parent catalogue.NodeID, stream adapters.StreamID) (_ Grant, err error) {
	ctx, span := questionSpan(ctx, "grant", parent, stream)
	defer func() { tracing.End(span, err) }()
	answer, from, err := m.ask(ctx, parent, func(request uint64) *pb.Frame {
		return &pb.Frame{Body: &pb.Frame_PullRequest{PullRequest: &pb.PullRequest{
			Request: request, Stream: string(stream), Trace: traceFrame(ctx),
		}}}
	})
	if err != nil {
		return Grant{}, fmt.Errorf("pull %s from %s: %w", stream, parent, err)
	}
	pull := answer.GetPullAnswer()
	if pull.GetGrant() == nil {
		return Grant{}, fmt.Errorf("pull %s from %s: %w", stream, parent, &RefusedError{Reason: pull.GetRefused()})
	}
	if from.address == "" {
		return Grant{}, fmt.Errorf("pull %s from %s: it has not told the address of its peer port", stream, parent)
	}
	u := url.URL{Scheme: m.o.Security.Scheme(), Host: from.address, Path: "/whep/" + string(stream)}
	grant := grantFrom(pull.GetGrant())
	grant.URL = u.String()
	return grant, nil
}

// RTT is the smoothed round trip to a node; false before the first measurement.
func (m *Mesh) RTT(id catalogue.NodeID) (time.Duration, bool) {
	l := m.link(id)
	if l == nil {
		return 0, false
	}
	return l.roundTrip()
}

// Address is the host:port of a node's peer port, also while the connection to it is being renewed: where it was dialled,
// else the one that it told.
func (m *Mesh) Address(id catalogue.NodeID) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[id]
	if p == nil {
		return "", false
	}
	return p.address, p.address != ""
}

// PacketAge is how old the last packet of a stream is at its parent, by the parent's last heartbeat; false where it has
// not said so.
func (m *Mesh) PacketAge(parent catalogue.NodeID, stream adapters.StreamID) (time.Duration, bool) {
	f, at, ok := m.flow(parent, stream)
	if !ok || !f.Known {
		return 0, false
	}
	return f.Age + time.Since(at), true
}

// Heard is when a node was heard last, or when this process woke, if that is later; false where there is no connection to it.
func (m *Mesh) Heard(id catalogue.NodeID) (time.Time, bool) {
	l := m.link(id)
	if l == nil {
		return time.Time{}, false
	}
	return later(l.lastHeard(), m.Awake()), true
}

// Loads are those of the nodes of the own cluster that are connected, ready and not about to leave, as they said last.
func (m *Mesh) Loads() []PeerLoad {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []PeerLoad
	for id, p := range m.peers {
		if p.primary == nil || p.node.Cluster != m.self.Cluster {
			continue
		}
		if load, at, ok := p.primary.peerLoad(); ok {
			all = append(all, PeerLoad{Node: id, Load: load, At: at})
		}
	}
	return all
}

// Sequence is the origin's sequence of a stream as its parent told it last; false where it has not said so on this
// connection.
func (m *Mesh) Sequence(parent catalogue.NodeID, stream adapters.StreamID) (uint64, bool) {
	f, _, ok := m.flow(parent, stream)
	return f.Sequence, ok
}

func (m *Mesh) flow(parent catalogue.NodeID, stream adapters.StreamID) (f Flow, at time.Time, ok bool) {
	l := m.link(parent)
	if l == nil {
		return Flow{}, time.Time{}, false
	}
	return l.flow(stream)
}

// ask puts a question to a node and waits for the answer. A question that was under way on a connection which another
// one has replaced is put again: both questions may be answered twice without harm.
func (m *Mesh) ask(
	ctx context.Context, id catalogue.NodeID, question func(request uint64) *pb.Frame,
) (answer *pb.Frame, from *link, err error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	m.relate(id)
	var last *link
	for {
		l := m.link(id)
		if l == nil || l == last {
			return nil, nil, ErrNotConnected
		}
		// Until now its heartbeats may have been those of a distant node: viewers wait for the answer, and it must not take
		// as long as these to see that there will be none.
		l.probe()
		m.wakeDeadline.raise()
		answer, err := l.ask(ctx, question)
		if !errors.Is(err, ErrNotConnected) {
			return answer, l, err
		}
		last = l
	}
}

// relate makes a node related for a while.
func (m *Mesh) relate(id catalogue.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for other, until := range m.relatedUntil {
		if !now.Before(until) {
			delete(m.relatedUntil, other)
		}
	}
	m.relatedUntil[id] = now.Add(relatedFor)
	m.renewPeriods()
}

// renewPeriods tells every link how often this node wants to hear from its peer. The caller holds mu.
func (m *Mesh) renewPeriods() {
	now := time.Now()
	for id, p := range m.peers {
		for _, l := range p.links {
			l.setPeriod(m.period(id, now))
		}
	}
}

// period is how often this node wants to hear from another. The caller holds mu.
func (m *Mesh) period(id catalogue.NodeID, now time.Time) time.Duration {
	if _, ok := m.related[id]; ok || now.Before(m.relatedUntil[id]) {
		return relatedPeriod
	}
	return distantPeriod
}

// tellCondition tells everyone at once, by a heartbeat, and the own catalogue. The caller holds mu.
func (m *Mesh) tellCondition() {
	m.o.Catalogue.SetCondition(m.self.ID, catalogue.Condition{Ready: m.ready, Draining: m.draining})
	for _, p := range m.peers {
		for _, l := range p.links {
			l.beat()
		}
	}
}

func (m *Mesh) answerClaim(from catalogue.NodeID, stream adapters.StreamID, epoch uint64) Claim {
	if m.o.Handler == nil {
		return Claim{}
	}
	return m.o.Handler.Claim(from, stream, epoch)
}

// hello introduces this node.
func (m *Mesh) hello(connection uint64) *pb.Hello {
	host, port, _ := splitAddress(m.o.Address) // Run has seen that it is one
	m.mu.Lock()
	defer m.mu.Unlock()
	return &pb.Hello{
		Node:        string(m.self.ID),
		Incarnation: m.o.Catalogue.Self().Incarnation,
		Cluster:     m.self.Cluster,
		Version:     m.o.Version,
		Features:    m.o.Features,
		Clock:       m.o.Catalogue.Clock(),
		Ready:       m.ready,
		Draining:    m.draining,
		Host:        host,
		Port:        port,
		Process:     m.process,
		Connection:  connection,

		Namespace:          m.o.Namespace,
		ClusterFingerprint: m.o.ClusterFingerprint,
	}
}

// splitAddress splits Options.Address. A host that means "every interface" is none.
func splitAddress(addr string) (host string, port uint32, err error) {
	if addr == "" {
		return "", 0, nil
	}
	host, digits, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = ""
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return "", 0, err
	}
	return host, uint32(n), nil
}

// signal wakes one loop. Raised twice before the loop looks, it wakes it once.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}
