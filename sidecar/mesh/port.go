package mesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"
)

const (
	handshakeTimeout = 5 * time.Second
	// maxHandshakes bounds the connections that have not said yet what they are. When there are more, the oldest is
	// closed: an honest peer is through long before.
	maxHandshakes = 128
	// warningsPerSecond and warningsAtOnce bound the log lines that strangers can cause.
	warningsPerSecond = 1
	warningsAtOnce    = 20
)

// wrongWay is the answer to what does not speak as this port does.
const wrongWay = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" +
	"This port is for other sidecars: " + sameSecurity + ".\n"

// prefaceHTTP2 begins every HTTP/2 connection (RFC 9113 section 3.4) and no HTTP/1.1 request.
const prefaceHTTP2 = "PRI * HTTP/2.0"

// PortOptions are a Port's parts.
type PortOptions struct {
	Listener   net.Listener          // closed when Run ends
	Security   *Security             // required
	Registerer prometheus.Registerer // nil: no metrics
	Logger     *slog.Logger          // nil: no logs
}

// Port is the one port at which peers reach a node: gRPC and HTTP/1.1 (peers' WHEP) behind one mutual TLS handshake,
// told apart by ALPN (RFC 7301); in plaintext, by the first bytes.
type Port struct {
	listener net.Listener
	security *Security
	log      *slog.Logger
	refused  prometheus.Counter
	limited  prometheus.Counter
	failures *prometheus.CounterVec
	warnings *rate.Limiter
	remotes  *remotes
	grpc     *handover
	http     *handover

	mu      sync.Mutex
	pending []net.Conn // in their handshake, oldest first
	closed  bool
}

// NewPort makes a port that accepts nothing before Run.
func NewPort(o PortOptions) *Port {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Port{
		listener: o.Listener,
		security: o.Security,
		log:      o.Logger,
		refused: promauto.With(o.Registerer).NewCounter(prometheus.CounterOpts{
			Name: "sidestream_mesh_handshakes_refused_total",
			Help: "Connections to the peer port that were refused before they said anything.",
		}),
		limited: promauto.With(o.Registerer).NewCounter(prometheus.CounterOpts{
			Name: "sidestream_mesh_handshakes_limited_total",
			Help: "Connections to the peer port that were closed unheard, because too many came from their address.",
		}),
		failures: newTLSFailures(o.Registerer),
		warnings: rate.NewLimiter(warningsPerSecond, warningsAtOnce),
		remotes:  newRemotes(),
		grpc:     newHandover(o.Listener.Addr()),
		http:     newHandover(o.Listener.Addr()),
	}
}

// GRPC yields the connections that speak HTTP/2: it is a Mesh's listener.
func (p *Port) GRPC() net.Listener { return p.grpc }

// HTTP yields the connections that speak HTTP/1.1, for an http.Server, whose requests have their TLS field set.
func (p *Port) HTTP() net.Listener { return p.http }

// Run accepts connections until ctx ends or the listener breaks, and closes the listener and both its parts. The
// connections that were handed over belong to those who took them.
func (p *Port) Run(ctx context.Context) error {
	if p.security == nil {
		p.close()
		return errNoSecurity
	}
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	stop := context.AfterFunc(ctx, p.close)
	defer func() {
		cancel()
		stop()
		p.close()
		tasks.Wait()
	}()
	tasks.Go(func() { p.security.watch(ctx) })
	var pause time.Duration
	for {
		conn, err := p.listener.Accept()
		if ctx.Err() != nil {
			if conn != nil {
				_ = conn.Close()
			}
			return ctx.Err()
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept peers %s: %w", p.listener.Addr(), err)
		}
		if err != nil {
			// Too many open files, most likely: it passes, and the port must still be there then.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			p.log.Warn("peer connection not accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		if !p.remotes.allow(conn.RemoteAddr(), time.Now()) {
			p.limited.Inc()
			_ = conn.Close()
			p.warn(ctx, "too many connections from one address; some are closed unheard", "remote", conn.RemoteAddr())
			continue
		}
		if p.begin(conn) {
			tasks.Go(func() { p.greet(ctx, conn) })
		}
	}
}

// greet makes the handshake and hands the connection to whom it is for.
func (p *Port) greet(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, to, err := p.handshake(ctx, raw)
	p.end(raw)
	if err == nil {
		err = to.give(ctx, conn)
	}
	if err == nil {
		return
	}
	f := faultOf(err)
	if f != nil {
		p.failures.WithLabelValues(f.reason).Inc()
		err = f
		if f.reason == faultPlaintext {
			_ = raw.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(raw, wrongWay)
		}
	}
	_ = raw.Close()
	switch {
	case f != nil:
		p.refused.Inc()
	case errors.Is(err, io.EOF), p.isClosed():
		// A probe that only looks whether the port is open, or the end of Run.
		p.log.Debug("peer connection refused", "remote", raw.RemoteAddr(), "error", err)
		return
	case errors.Is(err, net.ErrClosed):
		// Made room for a younger one: a flood is not to flood the log too.
		p.refused.Inc()
		p.log.Debug("peer connection refused", "remote", raw.RemoteAddr(), "error", err)
		return
	default:
		p.refused.Inc()
	}
	p.warn(ctx, "peer connection refused", "remote", raw.RemoteAddr(), "error", err)
}

// warn logs what strangers cause, as long as they do not cause much.
func (p *Port) warn(ctx context.Context, message string, args ...any) {
	level := slog.LevelDebug
	if p.warnings.Allow() {
		level = slog.LevelWarn
	}
	p.log.Log(ctx, level, message, args...)
}

func (p *Port) handshake(ctx context.Context, raw net.Conn) (net.Conn, *handover, error) {
	if p.security.plaintext() {
		return p.sniff(ctx, raw)
	}
	conn := tls.Server(raw, p.security.serverConfig())
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol == alpnGRPC {
		return conn, p.grpc, nil // its hello says more
	}
	if err := p.security.strange(state.PeerCertificates[0]); err != nil {
		return nil, nil, &fault{reason: faultName, text: err.Error(), err: err}
	}
	return conn, p.http, nil
}

// sniff reads just as much as tells the two protocols apart.
func (p *Port) sniff(ctx context.Context, raw net.Conn) (net.Conn, *handover, error) {
	stop := context.AfterFunc(ctx, func() { _ = raw.SetReadDeadline(time.Unix(1, 0)) })
	head := make([]byte, 0, len(prefaceHTTP2))
	for len(head) < cap(head) && bytes.HasPrefix([]byte(prefaceHTTP2), head) {
		n, err := raw.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if err != nil {
			stop()
			return nil, nil, err
		}
	}
	if !stop() {
		return nil, nil, ctx.Err()
	}
	if speaksTLS(head) {
		return nil, nil, errSpeaksTLS
	}
	conn := &readAhead{Conn: raw, head: head}
	if string(head) == prefaceHTTP2 {
		return conn, p.grpc, nil
	}
	return conn, p.http, nil
}

// begin notes a connection that starts its handshake; false when the port is closed.
func (p *Port) begin(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = conn.Close()
		return false
	}
	if len(p.pending) >= maxHandshakes {
		_ = p.pending[0].Close()
		p.pending = slices.Delete(p.pending, 0, 1)
	}
	p.pending = append(p.pending, conn)
	return true
}

func (p *Port) end(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.pending, conn); i >= 0 {
		p.pending = slices.Delete(p.pending, i, i+1)
	}
}

func (p *Port) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

func (p *Port) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	_ = p.listener.Close()
	_ = p.grpc.Close()
	_ = p.http.Close()
	for _, conn := range p.pending {
		_ = conn.Close()
	}
}

// handover is a net.Listener whose connections come from a Port.
type handover struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newHandover(addr net.Addr) *handover {
	return &handover{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handover) give(ctx context.Context, conn net.Conn) error {
	select {
	case h.conns <- conn:
		return nil
	case <-h.done:
		return net.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("nobody takes the connection: %w", ctx.Err())
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }

// readAhead gives back what was read from a connection to see what it speaks.
type readAhead struct {
	net.Conn
	head []byte
}

func (c *readAhead) Read(b []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.head)
	c.head = c.head[n:]
	return n, nil
}
