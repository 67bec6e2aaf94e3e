package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

const (
	// maxQueue bounds the questions and answers that wait to be sent on one link, maxAsked the questions that wait for
	// their answers, maxDeaths the deaths that wait to be told. All else that is sent is the state at that moment.
	maxQueue  = 256
	maxAsked  = 256
	maxDeaths = 256
	// beatMemory is how many own heartbeats are remembered for the round trip of their echoes.
	beatMemory = 16
	// blockedFor is how long a peer may leave a frame unread.
	blockedFor = 15 * time.Second
)

var (
	errBroken  = errors.New("connection broken")
	errBlocked = errors.New("the peer does not read")
)

// lostAfter is how long nothing may be heard of a node that promised heartbeats of this period.
func lostAfter(period time.Duration) time.Duration { return period * 5 / 2 }

// refusal is why a peer is turned away that says what no honest node would say.
type refusal struct {
	reason string // a label of the metric
	err    error
}

func (r *refusal) Error() string { return "refused: " + r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func isRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

// frameStream is either end of the RPC.
type frameStream interface {
	send(*pb.Frame) error
	recv() (*pb.Frame, error) // frames are valid
}

// link is one connection to a node whose handshake is done. Its reader and its writer are two goroutines; what others
// want of it they note under its mutex, and wake the writer. Nothing in it grows with what a slow peer has not read yet:
// sets of holds are sent as they are at that moment, and the queues are bounded.
type link struct {
	mesh       *Mesh
	stream     frameStream
	dialled    bool // by this node
	node       catalogue.Node
	process    []byte
	connection uint64
	version    string
	namespace  string
	// Of the peer's cluster, empty where it has none.
	fingerprint []byte
	address     string
	datagrams   netip.AddrPort // where they are answered; the zero value: nowhere, or behind a name
	since       time.Time
	log         *slog.Logger
	wake        signal
	done        chan struct{}

	pace       pace          // the reader's
	assembling *assembly     // the reader's: the set whose pieces are coming in
	reported   bool          // the reader's: that some of the peer's holds are not believed
	sent       *announcement // the writer's: what the peer knows, once pieces are sent
	pieces     []*pb.Frame   // the writer's: of the set that is being sent

	passage passage // of datagrams; guarded by datagrams.mu

	mu sync.Mutex // taken after Mesh.mu
	// Why the link ended, once done is closed.
	why error
	// The last frame to send, and why the link ends after it.
	final    *pb.Frame
	finalWhy error
	queue    []*pb.Frame
	deaths   map[catalogue.NodeID]uint64 // incarnations
	asked    map[uint64]chan *pb.Frame
	requests uint64
	writing  time.Time // when the frame that is being written was begun; zero: none is

	superseded time.Time // when this side closes the link if the other has not; zero: it is not superseded

	wanted    time.Duration // how often this node wants to hear from the peer
	theirs    time.Duration // how often the peer wants to hear from this node
	promised  time.Duration // how often the peer's heartbeats come
	heard     time.Time
	beatNow   bool
	probeNow  bool
	probed    time.Time // when the peer was asked whether it has died; zero: it was not, or has answered
	probedAt  uint64    // the sequence of that heartbeat
	sequence  uint64    // of own heartbeats
	beats     [beatMemory]time.Time
	beaten    time.Time // when the last own heartbeat was sent
	echo      uint64    // the peer's last heartbeat
	echoAt    time.Time
	srtt      time.Duration
	measured  bool
	ready     bool
	draining  bool
	doubted   error                      // why not all of holds is believed
	flooding  bool                       // it sends so much that it is read slowly
	flows     map[adapters.StreamID]Flow // of what this node pulls from the peer, as it said at flowsAt
	flowsAt   time.Time
	load      *pb.Load // as the peer said it at loadAt; nil: it says nothing
	loadAt    time.Time
	holds     map[adapters.StreamID]catalogue.Hold // nil before the first full set
	holdsSeen uint64                               // the sequence of holds
}

// assembly is a set of holds whose pieces have not all come.
type assembly struct {
	sequence, base uint64
	holds          map[adapters.StreamID]catalogue.Hold
	withdrawn      map[adapters.StreamID]struct{}
}

func (m *Mesh) newLink(stream frameStream, dialled bool, h *pb.Hello, address string) *link {
	now := time.Now()
	node := catalogue.Node{
		ID: catalogue.NodeID(h.GetNode()), Incarnation: h.GetIncarnation(), Cluster: h.GetCluster(),
	}
	var datagrams netip.AddrPort
	if m.o.Datagrams != nil && slices.Contains(h.GetFeatures(), datagramsFeature) {
		datagrams, _ = netip.ParseAddrPort(address)
	}
	return &link{
		datagrams: datagrams,
		mesh:      m, stream: stream, dialled: dialled, node: node,
		process: h.GetProcess(), connection: h.GetConnection(), version: h.GetVersion(),
		namespace: h.GetNamespace(), fingerprint: h.GetClusterFingerprint(),
		address: address, since: now, pace: newPace(),
		log:  m.log.With("peer", node.ID, "peer_cluster", node.Cluster),
		wake: newSignal(), done: make(chan struct{}),
		deaths: map[catalogue.NodeID]uint64{}, asked: map[uint64]chan *pb.Frame{},
		wanted: distantPeriod, theirs: distantPeriod, promised: distantPeriod,
		heard: now, probeNow: true, // so that the round trip is known at once
		ready: h.GetReady(), draining: h.GetDraining(),
	}
}

// dialledBySmaller says whether the node with the smaller id opened the link: that one stays of two.
func (l *link) dialledBySmaller() bool {
	return l.dialled == (l.mesh.self.ID < l.node.ID)
}

// better says which of two links to a node both ends choose.
func (l *link) better(o *link) bool {
	switch {
	case l.node.Incarnation != o.node.Incarnation:
		return l.node.Incarnation > o.node.Incarnation
	case l.dialled != o.dialled:
		return l.dialledBySmaller()
	default:
		return l.connection > o.connection
	}
}

// end closes the link to both of its goroutines. Only the first reason counts.
func (l *link) end(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == nil {
		l.why = why
		close(l.done)
	}
}

func (l *link) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// leave sends a last frame, and then ends.
func (l *link) leave(last *pb.Frame, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.final == nil {
		l.final, l.finalWhy = last, why
		l.wake.raise()
	}
}

// refuse turns the peer away, and says why to it and to whoever reads the log.
func (l *link) refuse(r *refusal) {
	l.mesh.metrics.refused.WithLabelValues(r.reason).Inc()
	l.log.Warn("peer refused", "reason", r.reason, "error", r.err)
	if l.dialled {
		l.leave(refusalFrame(r), r)
		return
	}
	l.mesh.noteRefusal(l.node, l.address, r)
	l.end(r) // the status of the call says it
}

func refusalFrame(r *refusal) *pb.Frame {
	text := r.err.Error()
	refused := &pb.Refusal{Reason: text[:min(len(text), pb.MaxText)]}
	if behind, ok := errors.AsType[*behindError](r); ok {
		refused.Incarnation = behind.former
	}
	return &pb.Frame{Body: &pb.Frame_Refusal{Refusal: refused}}
}

// supersede lets the link live until then, unless the peer closes it before.
func (l *link) supersede(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.superseded.IsZero() {
		l.superseded = until
	}
}

// overdue says when the link has to be looked at again, or why it ends now. woke is when this process woke last: what the peer
// said before may still have to be read, and its next heartbeat comes within a period.
func (l *link) overdue(now, woke time.Time) (time.Time, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := later(l.deadlineLocked(), woke.Add(l.promised+relatedPeriod))
	if !now.Before(due) {
		return due, errLost
	}
	if !l.writing.IsZero() {
		blocked := l.writing.Add(blockedFor)
		if !now.Before(blocked) {
			return blocked, errBlocked
		}
		due = earlier(due, blocked)
	}
	if !l.superseded.IsZero() {
		if !now.Before(l.superseded) {
			return l.superseded, errSuperseded
		}
		due = earlier(due, l.superseded)
	}
	return due, nil
}

// deadline is when the peer counts as lost if nothing more is heard.
func (l *link) deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadlineLocked()
}

func (l *link) lastHeard() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard
}

func (l *link) deadlineLocked() time.Time {
	d := l.heard.Add(lostAfter(l.promised))
	if !l.probed.IsZero() {
		d = earlier(d, l.probed.Add(lostAfter(relatedPeriod)))
	}
	return d
}

// setPeriod says how often the peer is to be heard.
func (l *link) setPeriod(wanted time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wanted != wanted {
		l.wanted = wanted
		l.probeNow = true // so that the peer's next heartbeat, with its new promise, comes at once
		l.wake.raise()
	}
}

// beat sends a heartbeat at once.
func (l *link) beat() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beatNow = true
	l.wake.raise()
}

// probe asks the peer whether it is alive.
func (l *link) probe() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.probed.IsZero() {
		l.probed, l.probedAt = time.Now(), l.sequence+1
		l.probeNow = true
		l.wake.raise()
	}
}

// tellDeath says that a node's heartbeat is lost.
func (l *link) tellDeath(n catalogue.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.deaths[n.ID]; ok || len(l.deaths) < maxDeaths {
		l.deaths[n.ID] = n.Incarnation
		l.wake.raise()
	}
}

// enqueue sends a question or an answer after those that wait; false when too many do.
func (l *link) enqueue(f *pb.Frame) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.enqueueLocked(f)
}

func (l *link) enqueueLocked(f *pb.Frame) bool {
	if len(l.queue) >= maxQueue {
		return false
	}
	l.queue = append(l.queue, f)
	l.wake.raise()
	return true
}

// ask sends a question and waits for its answer.
func (l *link) ask(ctx context.Context, question func(request uint64) *pb.Frame) (*pb.Frame, error) {
	answer := make(chan *pb.Frame, 1)
	l.mu.Lock()
	l.requests++
	request := l.requests
	if len(l.asked) >= maxAsked || !l.enqueueLocked(question(request)) {
		l.mu.Unlock()
		return nil, errors.New("too many questions wait for their answers")
	}
	l.asked[request] = answer
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.asked, request)
		l.mu.Unlock()
	}()
	select {
	case f := <-answer:
		return f, nil
	case <-l.done:
		return nil, ErrNotConnected
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *link) answered(request uint64, f *pb.Frame) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if answer, ok := l.asked[request]; ok {
		delete(l.asked, request)
		answer <- f
	}
}

func (l *link) roundTrip() (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.srtt, l.measured
}

func (l *link) flow(stream adapters.StreamID) (f Flow, at time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, ok = l.flows[stream]
	return f, l.flowsAt, ok
}

// condition is what the peer says of its own state.
func (l *link) condition() catalogue.Condition {
	l.mu.Lock()
	defer l.mu.Unlock()
	return catalogue.Condition{Ready: l.ready, Draining: l.draining}
}

// set is the full set of what the peer holds.
func (l *link) set() []catalogue.Hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.holds))
}

// complete says whether the peer has told a full set on this link.
func (l *link) complete() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holds != nil
}

// read takes the peer's frames until the link ends.
func (l *link) read() {
	defer func() {
		// The recovery interceptor sees only the goroutine of the call; what a frame makes the node do happens here.
		if r := recover(); r != nil {
			l.log.Error("peer's frame made this node panic", "panic", r, "stack", string(debug.Stack()))
			l.end(fmt.Errorf("%w: internal error", errBroken))
		}
	}()
	for {
		f, err := l.stream.recv()
		if l.ended() {
			return
		}
		bad := refusedInput(err, l.dialled)
		if err != nil && bad == nil {
			l.endReading(err)
			return
		}
		l.mesh.metrics.frame("in", f)
		l.mu.Lock()
		l.heard = time.Now()
		leaving := l.final != nil
		l.mu.Unlock()
		slow := l.slow(f)
		if leaving {
			continue // until the peer has read the last word
		}
		if bad == nil {
			errors.As(slow, &bad)
		}
		if bad != nil {
			l.refuse(bad)
			continue
		}
		if err := l.handle(f); err != nil {
			var r *refusal
			if errors.As(err, &r) {
				l.refuse(r)
				continue
			}
			l.end(err)
			return
		}
	}
}

// endReading says why there are no more frames.
func (l *link) endReading(err error) {
	if errors.Is(err, io.EOF) {
		l.end(fmt.Errorf("%w: closed by the peer", errBroken))
		return
	}
	l.end(fmt.Errorf("%w: %w", errBroken, err))
}

// refusedInput is not nil where a stream broke because what came in could not be a frame. On the dialled side these codes
// come from grpc-go and the validator here, never from the network; on the dialling one they may be the peer's.
func refusedInput(err error, dialled bool) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	if dialled {
		return nil
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.Internal, codes.ResourceExhausted, codes.Unimplemented:
		return &refusal{reason: "frame", err: errors.New(status.Convert(err).Message())}
	default:
		return nil
	}
}

// handle does what a frame asks for.
func (l *link) handle(f *pb.Frame) error {
	switch body := f.GetBody().(type) {
	case *pb.Frame_Heartbeat:
		return l.handleHeartbeat(body.Heartbeat, time.Now())
	case *pb.Frame_Holds:
		return l.handleHolds(body.Holds)
	case *pb.Frame_ClaimRequest:
		return l.handleClaim(body.ClaimRequest)
	case *pb.Frame_PullRequest:
		return l.handlePull(body.PullRequest)
	case *pb.Frame_ClaimAnswer:
		l.answered(body.ClaimAnswer.GetRequest(), f)
	case *pb.Frame_PullAnswer:
		l.answered(body.PullAnswer.GetRequest(), f)
	case *pb.Frame_Obituary:
		l.mesh.mourn(l, body.Obituary)
	case *pb.Frame_Goodbye:
		return errGoodbye
	case *pb.Frame_Refusal:
		l.log.Warn("refused by peer", "error", body.Refusal.GetReason())
		return fmt.Errorf("%w: refused by the peer: %s", errBroken, body.Refusal.GetReason())
	case *pb.Frame_Hello, *pb.Frame_Confirm:
		return &refusal{reason: "order", err: errors.New("handshake in the middle of the stream")}
	}
	return nil // a newer version's
}

func (l *link) handleHeartbeat(b *pb.Heartbeat, now time.Time) error {
	if err := l.mesh.o.Catalogue.Observe(b.GetClock()); err != nil {
		return &refusal{reason: "clock", err: err}
	}
	if l.hear(b, now) {
		l.mesh.applyCondition(l)
	}
	return nil
}

// hear takes a heartbeat, and says whether the peer's own state has changed.
func (l *link) hear(b *pb.Heartbeat, now time.Time) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.deadlineLocked()
	changed = l.ready != b.GetReady() || l.draining != b.GetDraining()
	l.ready, l.draining = b.GetReady(), b.GetDraining()
	l.promised = clampPeriod(b.GetPeriodMs())
	if theirs := clampPeriod(b.GetWantedPeriodMs()); theirs != l.theirs {
		l.theirs = theirs
		l.beatNow = true
	}
	l.echo, l.echoAt = b.GetSequence(), now
	if b.GetProbe() {
		l.beatNow = true
	}
	if len(b.GetPacketAges()) > 0 || len(l.flows) > 0 {
		l.flows, l.flowsAt = flowsFrom(b.GetPacketAges()), now
	}
	l.load, l.loadAt = b.GetLoad(), now
	l.handleEcho(b, now)
	if l.beatNow {
		l.wake.raise()
	}
	if l.deadlineLocked().Before(before) {
		l.mesh.wakeDeadline.raise()
	}
	return changed
}

// peerLoad is what the peer has to do; false where it takes no sessions for others, now or ever.
func (l *link) peerLoad() (Load, time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.load == nil || !l.ready || l.draining {
		return Load{}, time.Time{}, false
	}
	return loadFrom(l.load), l.loadAt, true
}

// handleEcho takes the round trip from an echo: the time since the heartbeat was sent, less what the peer kept it.
func (l *link) handleEcho(b *pb.Heartbeat, now time.Time) {
	echo := b.GetEchoSequence()
	if echo == 0 || echo > l.sequence {
		return
	}
	if !l.probed.IsZero() && echo >= l.probedAt {
		l.probed = time.Time{}
	}
	if l.sequence-echo >= beatMemory {
		return
	}
	rtt := now.Sub(l.beats[echo%beatMemory]) - time.Duration(min(b.GetEchoAgeUs(), 1<<40))*time.Microsecond
	if rtt < 0 {
		return
	}
	if l.measured {
		rtt = l.srtt + (rtt-l.srtt)/8 // RFC 6298 section 2
	}
	l.srtt, l.measured = rtt, true
	l.mesh.metrics.rtt(l.node.Cluster, rtt)
}

// clampPeriod keeps a peer from being asked for, or asking for, more than a node would.
func clampPeriod(ms uint32) time.Duration {
	return min(max(time.Duration(ms)*time.Millisecond, relatedPeriod), distantPeriod)
}

func (l *link) handleClaim(r *pb.ClaimRequest) error {
	l.mesh.relate(l.node.ID)
	span := l.answerSpan("claim", r.GetTrace(), r.GetStream())
	claim := l.mesh.answerClaim(l.node.ID, adapters.StreamID(r.GetStream()), r.GetEpoch())
	span.SetAttributes(tracing.Granted.Bool(claim.Granted))
	span.End()
	return l.answer(&pb.Frame{Body: &pb.Frame_ClaimAnswer{ClaimAnswer: &pb.ClaimAnswer{
		Request: r.GetRequest(), Granted: claim.Granted, Holder: string(claim.Holder),
	}}})
}

func (l *link) handlePull(r *pb.PullRequest) error {
	l.mesh.relate(l.node.ID)
	answer := &pb.PullAnswer{Request: r.GetRequest()}
	span := l.answerSpan("grant", r.GetTrace(), r.GetStream())
	grant, err := l.grant(adapters.StreamID(r.GetStream()))
	tracing.End(span, err)
	if err != nil {
		text := err.Error()
		answer.Result = &pb.PullAnswer_Refused{Refused: text[:min(len(text), pb.MaxText)]}
	} else {
		answer.Result = &pb.PullAnswer_Grant{Grant: grantFrame(grant)}
	}
	return l.answer(&pb.Frame{Body: &pb.Frame_PullAnswer{PullAnswer: answer}})
}

// grant asks the Handler. The error's text is for the peer.
func (l *link) grant(stream adapters.StreamID) (Grant, error) {
	if l.mesh.o.Handler == nil {
		return Grant{}, errors.New("this node hands on no streams")
	}
	grant, err := l.mesh.o.Handler.Grant(l.node.ID, stream)
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		return Grant{}, errors.New(refused.Reason)
	case err != nil:
		l.log.Warn("pull not granted", "stream", stream, "error", err)
		return Grant{}, errors.New("internal error")
	}
	return grant, nil
}

func (l *link) answer(f *pb.Frame) error {
	if !l.enqueue(f) {
		return &refusal{reason: "flood", err: errors.New("the peer asks and does not read the answers")}
	}
	return nil
}

// handleHolds takes a piece of a set of holds, and with the last one believes the set.
func (l *link) handleHolds(h *pb.Holds) error {
	a, err := l.assemble(h)
	if err != nil {
		return err
	}
	if h.GetMore() {
		return nil
	}
	l.assembling = nil
	if err := l.take(a); err != nil {
		return err
	}
	err = l.mesh.apply(l)
	l.mu.Lock()
	l.doubted = err
	l.mu.Unlock()
	switch {
	case errors.Is(err, catalogue.ErrSelf), errors.Is(err, catalogue.ErrStale):
		return &refusal{reason: "identity", err: err}
	case err != nil && !l.reported:
		l.reported = true
		l.mesh.metrics.refused.WithLabelValues("holds").Inc()
		l.log.Warn("holds of a peer not believed", "error", err)
	}
	return nil
}

func (l *link) assemble(h *pb.Holds) (*assembly, error) {
	refused := func(format string, args ...any) error {
		return &refusal{reason: "holds", err: fmt.Errorf(format, args...)}
	}
	a := l.assembling
	switch {
	case a == nil:
		l.mu.Lock()
		seen := l.holdsSeen
		l.mu.Unlock()
		if h.GetBase() != 0 && h.GetBase() != seen {
			return nil, refused("holds: update of sequence %d, but %d was the last", h.GetBase(), seen)
		}
		a = &assembly{
			sequence: h.GetSequence(), base: h.GetBase(),
			holds: map[adapters.StreamID]catalogue.Hold{}, withdrawn: map[adapters.StreamID]struct{}{},
		}
		l.assembling = a
	case a.sequence != h.GetSequence() || a.base != h.GetBase():
		return nil, refused("holds: a piece of another set among those of sequence %d", a.sequence)
	}
	for _, p := range h.GetHolds() {
		hold := holdFrom(p)
		if hold.Holder() != l.node.ID {
			return nil, refused("stream %q: the path ends in %s and not in the peer itself", hold.Stream, hold.Holder())
		}
		if _, twice := a.holds[hold.Stream]; twice {
			return nil, refused("stream %q is announced twice", hold.Stream)
		}
		a.holds[hold.Stream] = hold
	}
	for _, s := range h.GetWithdrawn() {
		a.withdrawn[adapters.StreamID(s)] = struct{}{}
	}
	if len(a.holds) > catalogue.MaxHolds || len(a.withdrawn) > catalogue.MaxHolds {
		return nil, refused("the peer announces more than %d streams", catalogue.MaxHolds)
	}
	return a, nil
}

// take makes an assembled set the link's.
func (l *link) take(a *assembly) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.base == 0 {
		l.holds = a.holds
	} else {
		for s := range a.withdrawn {
			delete(l.holds, s)
		}
		maps.Copy(l.holds, a.holds)
	}
	l.holdsSeen = a.sequence
	if len(l.holds) > catalogue.MaxHolds {
		return &refusal{reason: "holds", err: fmt.Errorf("the peer announces more than %d streams", catalogue.MaxHolds)}
	}
	return nil
}

// write sends what is due until the link ends.
func (l *link) write() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		f, wait := l.next(time.Now())
		if f == nil {
			timer.Reset(wait)
			select {
			case <-l.done:
				return
			case <-l.wake:
			case <-timer.C:
			}
			continue
		}
		if l.ended() {
			return
		}
		if err := l.sendNow(f); err != nil {
			// The reader learns the reason by the stream's status, which says more than a failed write does.
			select {
			case <-l.done:
			case <-time.After(time.Second):
				l.end(fmt.Errorf("%w: %w", errBroken, err))
			}
			return
		}
		l.mesh.metrics.frame("out", f)
		l.mu.Lock()
		last, why := f == l.final, l.finalWhy
		l.mu.Unlock()
		if last {
			l.end(why)
			return
		}
	}
}

func (l *link) sendNow(f *pb.Frame) error {
	l.mu.Lock()
	l.writing = time.Now()
	l.mu.Unlock()
	err := l.stream.send(f)
	l.mu.Lock()
	l.writing = time.Time{}
	l.mu.Unlock()
	return err
}

// next is the frame that is due most, or nil and how long nothing is due if nobody wakes the writer.
func (l *link) next(now time.Time) (*pb.Frame, time.Duration) {
	l.mu.Lock()
	if l.final != nil {
		l.mu.Unlock()
		return l.final, 0
	}
	if len(l.queue) > 0 {
		f := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		l.mu.Unlock()
		return f, 0
	}
	for id, incarnation := range l.deaths {
		delete(l.deaths, id)
		l.mu.Unlock()
		return &pb.Frame{Body: &pb.Frame_Obituary{Obituary: &pb.Obituary{Node: string(id), Incarnation: incarnation}}}, 0
	}
	due := l.beaten.Add(min(l.wanted, l.theirs)).Sub(now)
	if l.beatNow || l.probeNow || due <= 0 {
		l.mu.Unlock()
		return l.heartbeat(now), 0
	}
	l.mu.Unlock()
	if f := l.nextPiece(); f != nil {
		return f, 0
	}
	return nil, due
}

// heartbeat makes the next one.
func (l *link) heartbeat(now time.Time) *pb.Frame {
	m := l.mesh
	m.mu.Lock()
	l.mu.Lock()
	ready, draining := m.ready, m.draining
	l.wanted = m.period(l.node.ID, now) // under both locks, so that what setPeriod says meanwhile is not undone
	related := min(l.wanted, l.theirs) < distantPeriod
	l.mu.Unlock()
	m.mu.Unlock()
	clock := m.o.Catalogue.Clock()
	var load *pb.Load
	if m.o.Load != nil && l.node.Cluster == m.self.Cluster {
		load = loadFrame(m.o.Load())
	}
	var flows []*pb.PacketAge
	if related && m.o.Flows != nil {
		flows = flowFrames(m.o.Flows(l.node.ID))
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.sequence++
	l.beats[l.sequence%beatMemory] = now
	l.beaten = now
	b := &pb.Heartbeat{
		Sequence: l.sequence, Clock: clock, Ready: ready, Draining: draining,
		PeriodMs:       uint32(min(l.wanted, l.theirs).Milliseconds()),
		WantedPeriodMs: uint32(l.wanted.Milliseconds()),
		Probe:          l.probeNow,
		PacketAges:     flows,
		Load:           load,
	}
	if l.echo != 0 {
		b.EchoSequence = l.echo
		b.EchoAgeUs = uint64(now.Sub(l.echoAt).Microseconds())
	}
	l.beatNow, l.probeNow = false, false
	return &pb.Frame{Body: &pb.Frame_Heartbeat{Heartbeat: b}}
}
