package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

const (
	// forgottenAfter is how long an address is dialled that discovery does not announce, after its node was heard or the
	// address was announced last: a source that says something else every second must not make every dial the first one.
	forgottenAfter = 10 * time.Minute
	// lookAgain is when an address is dialled again that led to this node itself, or to one that is connected by another
	// address: it may be somebody else's by then.
	lookAgain = 5 * time.Minute
	// greetTimeout bounds a dial with its handshake.
	greetTimeout = 10 * time.Second
	// steadyAfter is how long a connection must have lasted for the next attempt to come at once.
	steadyAfter = 10 * time.Second
)

// localPort is how package net names the near end of a connection.
var localPort = regexp.MustCompile(`\S+->`)

// target is an address that is dialled whenever its node is not connected. Its fields are guarded by Mesh.mu.
type target struct {
	addr      string
	announced bool
	dropped   time.Time        // when discovery announced it no more
	cluster   string           // as discovery says, "" where it does not
	node      catalogue.NodeID // who answered there last
	heard     time.Time        // when that node was heard last
	next      time.Time        // no attempt before
	err       error            // of the last attempt
	running   bool
	wake      signal
}

// addTarget notes an address; nil when there are too many. The caller holds mu.
func (m *Mesh) addTarget(addr string) *target {
	if len(m.targets) >= maxTargets {
		return nil
	}
	t := &target{addr: addr, wake: newSignal()}
	m.targets[addr] = t
	return t
}

// know notes which node is behind an address, so that it is not dialled while that node is connected. The caller holds
// mu.
func (m *Mesh) know(addr string, id catalogue.NodeID) {
	if t := m.targets[addr]; t != nil {
		t.node, t.heard, t.err = id, time.Now(), nil
	}
}

// revisit dials a node again that was connected a moment ago, whether or not it is announced. The caller holds mu.
func (m *Mesh) revisit(p *peer) {
	now := time.Now()
	if p.address != "" && m.targets[p.address] == nil {
		if t := m.addTarget(p.address); t != nil {
			t.node = p.node.ID
		}
	}
	for _, t := range m.targets {
		if t.node != p.node.ID {
			continue
		}
		t.heard = now
		// Both sides see a connection break at the same time; it is enough that one of them dials.
		if soon := now.Add(rand.N(200 * time.Millisecond)); t.next.Before(soon) {
			t.next = soon
		}
		t.wake.raise()
	}
	m.wakeTargets.raise()
}

// runTargets gives each target its goroutine.
func (m *Mesh) runTargets(ctx, links context.Context) {
	for {
		m.mu.Lock()
		for _, t := range m.targets {
			if !t.running && ctx.Err() == nil {
				t.running = true
				m.tasks.Go(func() { m.pursue(ctx, links, t) })
			}
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-m.wakeTargets:
		}
	}
}

// pursue dials an address for as long as there is a reason to.
func (m *Mesh) pursue(ctx, links context.Context, t *target) {
	pauses := &backoff.ExponentialBackOff{
		InitialInterval: 250 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 15 * time.Second,
	}
	pauses.Reset()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		wait, wanted := m.attempt(t, time.Now())
		if !wanted {
			return
		}
		if wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
			case <-t.wake:
			case <-timer.C:
			}
			continue
		}
		began := time.Now()
		err := m.dial(ctx, links, t)
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		if now.Sub(began) >= steadyAfter || errors.Is(err, errSelf) || errors.Is(err, errDuplicate) || errors.Is(err, errOutgrown) {
			pauses.Reset()
		}
		m.attempted(t, err, now, pauses.NextBackOff())
	}
}

// attempt says how long to wait before the address is dialled, or that it is not to be dialled any more.
func (m *Mesh) attempt(t *target, now time.Time) (wait time.Duration, wanted bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.peers[t.node]; p != nil && p.primary != nil {
		t.heard = now
		if p.address == t.addr {
			return lookAgain, true // until its link ends, which wakes
		}
	}
	if !t.announced && now.Sub(t.heard) > forgottenAfter && now.Sub(t.dropped) > forgottenAfter {
		delete(m.targets, t.addr)
		return 0, false
	}
	return t.next.Sub(now), true
}

// attempted notes how an attempt ended.
func (m *Mesh) attempted(t *target, err error, now time.Time, pause time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case errors.Is(err, errSelf), errors.Is(err, errDuplicate):
		m.log.Debug("peer address needs no connection", "address", t.addr, "reason", err)
		t.err = nil
		t.next = now.Add(lookAgain + rand.N(time.Minute))
		return
	case errors.Is(err, errGoodbye), errors.Is(err, errSuperseded), errors.Is(err, errOutgrown):
		t.err = nil
	case errors.Is(err, errLost), errors.Is(err, errBroken):
		t.err = err // was logged where the link ended
	default:
		m.metrics.dialsFailed.Inc()
		// The same trouble at every attempt is one line, also where it names the port that this side had.
		if t.err == nil || localPort.ReplaceAllString(t.err.Error(), "") != localPort.ReplaceAllString(err.Error(), "") {
			m.log.Warn("peer not connected", "address", t.addr, "peer_cluster", t.cluster, "error", err)
		}
		t.err = err
	}
	t.next = now.Add(pause)
}

// dial connects to an address, and stays while the connection lasts. It returns why it did not come about, or why it
// ended.
func (m *Mesh) dial(ctx, links context.Context, t *target) error {
	trouble := &trouble{}
	conn, err := grpc.NewClient("passthrough:///"+t.addr, m.dialOptions(trouble)...)
	if err != nil {
		return fmt.Errorf("dial %s: %w", t.addr, err)
	}
	defer func() { _ = conn.Close() }()
	call, cancel := context.WithCancelCause(links)
	defer cancel(nil)
	give := func(why error) func() { return func() { cancel(why) } }
	bound := time.AfterFunc(greetTimeout, give(errors.New("handshake timed out")))
	defer bound.Stop()
	ended := context.AfterFunc(ctx, give(errClosing))
	defer ended()

	l, err := m.introduce(call, conn, t)
	if err != nil {
		if f := trouble.fault(); f != nil {
			m.metrics.tlsFailures.WithLabelValues(f.reason).Inc()
			return f
		}
		if cause := context.Cause(call); cause != nil {
			err = cause
		}
		return err
	}
	bound.Stop()
	ended()

	var tasks sync.WaitGroup
	reading := make(chan struct{})
	tasks.Go(func() { l.read(); close(reading) })
	tasks.Go(l.write)
	<-l.done
	m.remove(l, l.why)
	if l.saidLast() {
		// Until the other side has read the last word, and ends the call: cancelling could overtake it.
		_ = l.stream.(*dialledStream).CloseSend()
		select {
		case <-reading:
		case <-time.After(farewell):
		}
	}
	cancel(l.why)
	tasks.Wait()
	return l.why
}

// introduce makes the dialler's part of the handshake.
func (m *Mesh) introduce(ctx context.Context, conn *grpc.ClientConn, t *target) (*link, error) {
	call, err := pb.NewMeshServiceClient(conn).Exchange(ctx)
	if err != nil {
		return nil, plain(err)
	}
	stream := &dialledStream{call}
	m.mu.Lock()
	m.connections++
	connection := m.connections
	m.mu.Unlock()
	// A failed send is io.EOF; the reason is what is received.
	if err := stream.send(&pb.Frame{Body: &pb.Frame_Hello{Hello: m.hello(connection)}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, plain(err)
	}
	first, err := stream.recv()
	if r := refusedInput(err, true); r != nil {
		return nil, m.turnAway(stream, r)
	}
	if err != nil {
		if remembered := behind(err); remembered > 0 && m.outgrow(remembered) {
			return nil, errOutgrown
		}
		return nil, plain(err)
	}
	theirs := first.GetHello()
	if theirs == nil {
		r := &refusal{reason: "order", err: errors.New("the node that was dialled did not say hello")}
		return nil, m.turnAway(stream, r)
	}
	theirs.Connection = connection
	err = m.admit(call.Context(), theirs)
	if err == nil {
		err = m.check(theirs)
	}
	if err != nil {
		if errors.Is(err, errSelf) {
			_ = call.CloseSend()
			return nil, err
		}
		return nil, m.turnAway(stream, &refusal{reason: reasonOf(err), err: err})
	}
	m.mu.Lock()
	t.node = catalogue.NodeID(theirs.GetNode())
	m.mu.Unlock()
	l := m.newLink(stream, true, theirs, t.addr)
	if err := m.keep(l); err != nil {
		_ = call.CloseSend()
		return nil, err
	}
	if err := stream.send(&pb.Frame{Body: &pb.Frame_Confirm{Confirm: &pb.Confirm{}}}); err != nil {
		l.end(fmt.Errorf("%w: %w", errBroken, err))
	}
	return l, nil
}

// turnAway ends a handshake with a peer that says what it should not.
func (m *Mesh) turnAway(stream *dialledStream, r *refusal) error {
	m.metrics.refused.WithLabelValues(r.reason).Inc()
	_ = stream.send(refusalFrame(r))
	_ = stream.CloseSend()
	for { // until it has been read, or the handshake's bound
		if _, err := stream.recv(); err != nil && !isRefusal(err) {
			return r
		}
	}
}

func (m *Mesh) dialOptions(trouble *trouble) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(m.o.Security.dialCredentials(trouble)),
		grpc.WithContextDialer(m.o.Dial),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // this is the Mesh's business
		grpc.WithIdleTimeout(0),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		// A link says little: the default buffers are most of what it would cost.
		grpc.WithReadBufferSize(bufferSize),
		grpc.WithWriteBufferSize(bufferSize),
		grpc.WithChainStreamInterceptor(m.clientInterceptors()...),
	}
}

// dialledStream is the dialler's end.
type dialledStream struct {
	grpc.BidiStreamingClient[pb.ExchangeRequest, pb.ExchangeResponse]
}

func (s *dialledStream) send(f *pb.Frame) error { return s.Send(&pb.ExchangeRequest{Frame: f}) }

func (s *dialledStream) recv() (*pb.Frame, error) {
	r, err := s.Recv()
	if err != nil {
		return nil, err
	}
	if err := r.Validate(); err != nil {
		return nil, &refusal{reason: "frame", err: err}
	}
	return r.GetFrame(), nil
}

// turnedAway is what a peer has against this node.
type turnedAway struct{ reason string }

func (e *turnedAway) Error() string { return "refused by the peer: " + e.reason }

// behind is the incarnation by which a peer that refuses this node remembers another process of it; 0: it does not say.
func behind(err error) uint64 {
	for _, detail := range status.Convert(err).Details() {
		if r, ok := detail.(*pb.Refusal); ok {
			return r.GetIncarnation()
		}
	}
	return 0
}

// plain takes grpc-go's wrapping off an error that a person will read.
func plain(err error) error {
	s, ok := status.FromError(err)
	if !ok || s == nil {
		return err
	}
	switch s.Code() {
	case codes.PermissionDenied, codes.FailedPrecondition, codes.InvalidArgument, codes.ResourceExhausted, codes.Unauthenticated:
		return &turnedAway{strings.TrimPrefix(s.Message(), "refused: ")}
	default:
		text := s.Message()
		if quoted, ok := strings.CutPrefix(text, "connection error: desc = "); ok {
			if inner, err := strconv.Unquote(quoted); err == nil {
				text = strings.TrimPrefix(strings.TrimPrefix(inner, "transport: "), "Error while dialing: ")
			}
		}
		return errors.New(text)
	}
}

// joinAddress makes host:port in the one form by which targets are compared.
func joinAddress(host string, port uint32) string {
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}
