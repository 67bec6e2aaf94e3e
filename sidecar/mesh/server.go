package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/auth"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/ratelimit"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/validator"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

const (
	maxMessage = 4 << 20
	maxHeaders = 16 << 10
	bufferSize = 4 << 10
	// window is how much of one direction may be under way: a full set of thousands of streams takes a few round trips, and a
	// peer that is read slowly costs no more than this. Without a fixed size grpc-go measures the way anew at each message, by
	// a ping and its answer: at rest, two thirds of all that is sent and received.
	window = 256 << 10
	// A stream is all that a peer needs of a connection; a second one is for a health probe.
	maxStreams = 4
	// maxGreeting bounds the streams that have not finished their handshake.
	maxGreeting = 256
	// The heartbeats see a dead peer much sooner. Keepalive ends the transport of one that went away before its
	// handshake.
	keepaliveTime    = 20 * time.Second
	keepaliveTimeout = 10 * time.Second
)

func (m *Mesh) newServer() *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(m.o.Security.acceptCredentials()),
		grpc.ChainUnaryInterceptor(m.unaryInterceptors()...),
		grpc.ChainStreamInterceptor(m.streamInterceptors()...),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(greetTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.ReadBufferSize(bufferSize),
		grpc.WriteBufferSize(bufferSize),
		grpc.WaitForHandlers(true),
	)
	pb.RegisterMeshServiceServer(server, &service{mesh: m})
	healthpb.RegisterHealthServer(server, health.NewServer())
	return server
}

// The order is that of go-grpc-middleware's own example: metrics see everything, recovery is next to the handler.
func (m *Mesh) streamInterceptors() []grpc.StreamServerInterceptor {
	return []grpc.StreamServerInterceptor{
		m.metrics.server.StreamServerInterceptor(),
		logging.StreamServerInterceptor(m.callLogger(), m.loggingOptions()...),
		selector.StreamServerInterceptor(ratelimit.StreamServerInterceptor(m.calls()), exceptHealth),
		selector.StreamServerInterceptor(auth.StreamServerInterceptor(m.authorise), exceptHealth),
		validator.StreamServerInterceptor(),
		recovery.StreamServerInterceptor(recovery.WithRecoveryHandlerContext(m.recovered)),
	}
}

func (m *Mesh) unaryInterceptors() []grpc.UnaryServerInterceptor {
	return []grpc.UnaryServerInterceptor{
		m.metrics.server.UnaryServerInterceptor(),
		logging.UnaryServerInterceptor(m.callLogger(), m.loggingOptions()...),
		selector.UnaryServerInterceptor(auth.UnaryServerInterceptor(m.authorise), exceptHealth),
		validator.UnaryServerInterceptor(),
		recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(m.recovered)),
	}
}

func (m *Mesh) clientInterceptors() []grpc.StreamClientInterceptor {
	return []grpc.StreamClientInterceptor{
		m.metrics.client.StreamClientInterceptor(),
		logging.StreamClientInterceptor(m.callLogger(), m.loggingOptions()...),
	}
}

func (m *Mesh) calls() calls {
	return calls{limiter: rate.NewLimiter(callRate, callBurst), refused: m.metrics.refused.WithLabelValues("handshakes")}
}

func (m *Mesh) callLogger() logging.Logger {
	return logging.LoggerFunc(func(ctx context.Context, level logging.Level, message string, fields ...any) {
		m.log.Log(ctx, slog.Level(level), message, fields...)
	})
}

// A call is a link, whose beginning and end the Mesh itself logs with what it knows of the peer.
func (m *Mesh) loggingOptions() []logging.Option {
	return []logging.Option{
		logging.WithLogOnEvents(logging.FinishCall),
		logging.WithLevels(func(codes.Code) logging.Level { return logging.LevelDebug }),
	}
}

// exceptHealth leaves out the health service, which says nothing of the mesh.
var exceptHealth = selector.MatchFunc(func(_ context.Context, call interceptors.CallMeta) bool {
	return call.Service != healthpb.Health_ServiceDesc.ServiceName
})

// authorise lets in whoever has proved in the TLS handshake that it belongs to the mesh.
func (m *Mesh) authorise(ctx context.Context) (context.Context, error) {
	if m.o.Security.plaintext() {
		return ctx, nil
	}
	remote, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := remote.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil, status.Error(codes.Unauthenticated, "the peer has no certificate of this mesh")
	}
	return ctx, nil
}

func (m *Mesh) recovered(_ context.Context, p any) error {
	m.log.Error("call made this node panic", "panic", p, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "internal error")
}

// service is the dialled side of the RPC.
type service struct {
	pb.UnimplementedMeshServiceServer
	mesh *Mesh
}

// Exchange carries one link. It returns when the link ends; the two goroutines of the link end with it, and Run waits
// for them.
func (s *service) Exchange(call grpc.BidiStreamingServer[pb.ExchangeRequest, pb.ExchangeResponse]) error {
	m := s.mesh
	stream := acceptedStream{call}
	l, err := m.greet(stream)
	if err != nil || l == nil {
		return statusOf(err)
	}
	if err := m.keep(l); err != nil {
		return statusOf(err)
	}
	writing := make(chan struct{})
	m.tasks.Go(l.read)
	m.tasks.Go(func() { l.write(); close(writing) })
	select {
	case <-l.done:
	case <-call.Context().Done():
		l.end(fmt.Errorf("%w: %w", errBroken, call.Context().Err()))
	}
	m.remove(l, l.why)
	select {
	case <-writing: // so that nothing is sent after this call
	case <-time.After(farewell): // it hangs in a peer that does not read; the end of the call frees it
	}
	return statusOf(l.why)
}

// greet makes the dialled side's part of the handshake, within its bound. A nil link without an error is a dialler that
// has thought better of it.
func (m *Mesh) greet(stream acceptedStream) (*link, error) {
	m.mu.Lock()
	full := m.greeting >= maxGreeting
	if !full && !m.closing {
		m.greeting++
	}
	closing := m.closing
	m.mu.Unlock()
	switch {
	case closing:
		return nil, errClosing
	case full:
		m.metrics.refused.WithLabelValues("handshakes").Inc()
		return nil, errFull
	}
	defer func() {
		m.mu.Lock()
		m.greeting--
		m.mu.Unlock()
	}()

	type result struct {
		link *link
		err  error
	}
	done := make(chan result, 1)
	// A receive cannot be bounded, only left behind: it ends with the call.
	m.tasks.Go(func() {
		l, err := m.welcome(stream)
		done <- result{l, err}
	})
	bound := time.NewTimer(greetTimeout)
	defer bound.Stop()
	select {
	case r := <-done:
		return r.link, r.err
	case <-bound.C:
		m.metrics.refused.WithLabelValues("handshakes").Inc()
		return nil, status.Error(codes.DeadlineExceeded, "handshake timed out")
	}
}

func (m *Mesh) welcome(stream acceptedStream) (*link, error) {
	remote := remoteAddress(stream.Context())
	log := m.log.With("remote", remote)
	var who catalogue.Node
	refuse := func(r *refusal) error {
		m.metrics.refused.WithLabelValues(r.reason).Inc()
		level := slog.LevelWarn
		if !m.noteRefusal(who, remote, r) {
			level = slog.LevelDebug // said a moment ago
		}
		log.Log(stream.Context(), level, "peer refused", "reason", r.reason, "error", r.err)
		return r
	}
	first, err := stream.recv()
	if err != nil {
		if r := refusedInput(err, false); r != nil {
			return nil, refuse(r)
		}
		return nil, err
	}
	theirs := first.GetHello()
	if theirs == nil {
		return nil, refuse(&refusal{reason: "order", err: errors.New("the first frame is not a hello")})
	}
	log = log.With("peer", theirs.GetNode(), "peer_cluster", theirs.GetCluster())
	who = catalogue.Node{ID: catalogue.NodeID(theirs.GetNode()), Cluster: theirs.GetCluster()}
	refused := m.admit(stream.Context(), theirs)
	if refused == nil {
		refused = m.check(theirs)
	}
	if refused != nil && !errors.Is(refused, errSelf) {
		return nil, refuse(&refusal{reason: reasonOf(refused), err: refused})
	}
	if err := stream.send(&pb.Frame{Body: &pb.Frame_Hello{Hello: m.hello(0)}}); err != nil {
		return nil, err
	}
	next, err := stream.recv()
	switch {
	case errors.Is(err, io.EOF), refused != nil:
		return nil, nil
	case err != nil:
		return nil, err
	case next.GetRefusal() != nil:
		if r := next.GetRefusal(); r.GetIncarnation() == 0 || !m.outgrow(r.GetIncarnation()) {
			log.Warn("refused by peer", "error", r.GetReason())
		}
		return nil, nil
	case next.GetConfirm() == nil:
		return nil, refuse(&refusal{reason: "order", err: errors.New("the second frame is not a confirmation")})
	}
	return m.newLink(stream, false, theirs, advertised(theirs, remote)), nil
}

// advertised is a dialler's own peer port: at the host that it names, else at the one that it comes from; "" where it
// has none.
func advertised(h *pb.Hello, remote string) string {
	if h.GetPort() == 0 {
		return ""
	}
	if h.GetHost() != "" {
		return joinAddress(h.GetHost(), h.GetPort())
	}
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return ""
	}
	return joinAddress(host, h.GetPort())
}

func remoteAddress(ctx context.Context) string {
	if p, ok := grpcpeer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// acceptedStream is the dialled side's end. What it receives was validated by the interceptor.
type acceptedStream struct {
	grpc.BidiStreamingServer[pb.ExchangeRequest, pb.ExchangeResponse]
}

func (s acceptedStream) send(f *pb.Frame) error { return s.Send(&pb.ExchangeResponse{Frame: f}) }

func (s acceptedStream) recv() (*pb.Frame, error) {
	r, err := s.Recv()
	if err != nil {
		return nil, err
	}
	return r.GetFrame(), nil
}

// reasonOf is the metric's label for a node that was turned away in the handshake.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, errImpostor), errors.Is(err, errForeign):
		return "identity"
	case errors.Is(err, errFlood):
		return "rate"
	case errors.Is(err, errStale), errors.Is(err, errBehind):
		return "stale"
	case errors.Is(err, catalogue.ErrJump):
		return "clock"
	default:
		return "other"
	}
}

// statusOf tells the dialler how its call ended.
func statusOf(err error) error {
	code := codes.Unavailable
	switch {
	case err == nil, errors.Is(err, errGoodbye), errors.Is(err, errClosing) && !isRefusal(err):
		return nil
	case errors.Is(err, errImpostor), errors.Is(err, errForeign):
		code = codes.PermissionDenied
	case errors.Is(err, errStale), errors.Is(err, errBehind), errors.Is(err, catalogue.ErrJump):
		code = codes.FailedPrecondition
	case errors.Is(err, errDuplicate), errors.Is(err, errSuperseded):
		code = codes.AlreadyExists
	case errors.Is(err, errFull), errors.Is(err, errFlood):
		code = codes.ResourceExhausted
	case isRefusal(err):
		code = codes.InvalidArgument
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	s := status.New(code, err.Error())
	if behind, ok := errors.AsType[*behindError](err); ok {
		if more, err := s.WithDetails(&pb.Refusal{Incarnation: behind.former}); err == nil {
			s = more
		}
	}
	return s.Err()
}
