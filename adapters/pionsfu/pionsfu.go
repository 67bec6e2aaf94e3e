// Package pionsfu is the built-in media server: a WHIP publisher's packets go, unchanged, to every WHEP viewer of the
// stream. New makes a Server, an http.Handler for signalling whose Run owns sockets and sessions; there is no cascade in
// it and no transcoding. Adapter is how a sidecar knows such a server, over HTTP like any other make.
//
//	POST   /whip/{stream}   publish (RFC 9725)
//	POST   /whep/{stream}   play (draft-ietf-wish-whep)
//	PATCH, DELETE /session/{id}   trickle, restart ICE, end; the address is the Location of the 201
//	POST   /session/{id}/events   subscribe to what happens (WHEP's server-sent events)
//	POST   /session/{id}/layer    choose a layer of simulcast (WHEP's layer selection)
//	GET, PUT, PATCH /session/{id}/loss   throw away some of the packets to a viewer, where the settings let it
//	GET    /api/streams     what is published; with "Accept: application/x-ndjson" a line at every change
//	GET    /api/pc-config   the ICE servers, for clients that cannot read Link
//	GET    /readyz          204 while Run runs
package pionsfu

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/logging"
	"github.com/pion/webrtc/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/pace"
)

// Defaults of Config.
const (
	DefaultUDPAddr        = ":8801"
	DefaultMaxSessions    = 4096
	DefaultMaxHalfOpen    = 256
	DefaultConnectTimeout = 12 * time.Second
)

// Config is what a Server is made of. The zero value works: one UDP port 8801 on every address of the machine, open to
// everybody who reaches it.
type Config struct {
	// UDPAddr is the one address for all media, as host:port; port 0 takes a free one. Without a host there is a socket
	// for each address of the machine, loopback included, so that every address is a candidate of its own. Empty means
	// DefaultUDPAddr.
	UDPAddr string
	// AdvertisedIPs are offered to clients as host candidates, with the UDP port, before the machine's own addresses: the
	// public address of a machine behind a 1:1 NAT.
	AdvertisedIPs []string
	// Transport replaces UDPAddr where it has an UDPMux, which then stays the caller's, or a Net.
	Transport media.Transport

	// PublicURL is put before session addresses, as https://host or with a path; where it is empty, Location is relative
	// to the server. Set it where several servers share one host name and sessions must come back to this one, and where
	// the handler is mounted below a path.
	PublicURL string
	// ICEServers yields what is made known to a client by Link header fields (RFC 9725, section 4.6), and at /api/pc-config. It may
	// take a second. nil: none.
	ICEServers func(context.Context) []webrtc.ICEServer
	// OverflowURL is the base URL of another server: clients are sent there by 307 while this one is full or about to leave.
	OverflowURL string

	// Bearer tokens. An empty PublishToken lets everybody publish, an empty PlayToken lets everybody play. The status API
	// takes APIToken; where that is empty PublishToken, or else PlayToken, and it is open only where all three are empty.
	PublishToken, PlayToken, APIToken string
	// Authorize judges all other tokens of publishers and viewers, "" being none. Its error is an *adapters.DeniedError, or says why
	// it cannot judge now. With it nothing is open; the status API takes the tokens above alone. nil: those above are all.
	Authorize func(ctx context.Context, token string, want adapters.Request) error
	// RatePerAddress bounds how many POSTs, PATCHes and DELETEs one IPv4 address or IPv6 /64 may send in a minute, and at once. 0:
	// no bound. TrustedProxies are those whose X-Forwarded-For is believed.
	RatePerAddress int
	TrustedProxies []netip.Prefix
	// AllowOrigin is the web origin that may call from a browser (CORS). Empty means all.
	AllowOrigin string

	// LaxETags takes PATCHes without, or with another than the right, If-Match: many clients know no better.
	LaxETags bool
	// ICELite leaves it to clients to check connectivity. It is for servers that everybody reaches directly, without TURN.
	ICELite bool
	// TCPAddr is a further address for media, over TCP (RFC 6544), for clients that have no UDP. Empty: none.
	TCPAddr string
	// STUNServer is asked, as host:port, when Run begins, at which address each UDP port is seen from outside; that is advertised,
	// too. Empty: nobody is asked.
	STUNServer string

	// SimulatedLoss lets each viewer's client have a part of the packets to it thrown away, to see what loss does.
	SimulatedLoss bool

	// PublisherGrace is how long a publication whose publisher is lost waits for a publisher to come back. Its viewers see the
	// picture stand still, and then go on. Zero ends it, and their sessions, at once.
	PublisherGrace time.Duration

	// MaxSessions bounds publishers and viewers together, MaxHalfOpen those of them that have not connected yet; a session
	// that does not connect within ConnectTimeout is dropped. Zero means the default.
	MaxSessions, MaxHalfOpen int
	ConnectTimeout           time.Duration

	Logger     *slog.Logger          // nil: discard
	Registerer prometheus.Registerer // nil: no metrics
}

// Server is a single-node SFU. It answers requests with 503 until Run is called.
type Server struct {
	config       Config
	publicURL    string // without a slash at the end
	overflow     *url.URL
	advertised   []advertised // not changed any more when Run has begun
	access       access
	logger       *slog.Logger
	pace         *pace.Pace
	large        chan struct{} // holds who reads a large body
	sockets      []*media.Port // nil where Config.Transport brings its own
	tcp          net.Listener  // nil: none
	certificates []webrtc.Certificate
	registry     *registry
	refused      *prometheus.CounterVec

	launched chan *session
	started  chan struct{} // closed when Run runs
	stopped  chan struct{} // closed when Run begins to end

	ran       atomic.Bool
	mu        sync.Mutex // held where one of the two is closed
	transport media.Transport
	drain     chan struct{}  // closed while the server is about to leave
	inFlight  sync.WaitGroup // requests that may make a session
}

// New checks the configuration and opens the UDP sockets, so that a port that is taken is known at once. Run frees them.
func New(c Config) (*Server, error) {
	if c.UDPAddr == "" {
		c.UDPAddr = DefaultUDPAddr
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = DefaultMaxSessions
	}
	if c.MaxHalfOpen == 0 {
		c.MaxHalfOpen = DefaultMaxHalfOpen
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = DefaultConnectTimeout
	}
	if c.AllowOrigin == "" {
		c.AllowOrigin = "*"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		config: c, publicURL: strings.TrimRight(c.PublicURL, "/"), access: newAccess(c), logger: c.Logger,
		registry: newRegistry(c.MaxSessions, c.MaxHalfOpen),
		pace:     pace.New(c.RatePerAddress), large: make(chan struct{}, largeBodies), drain: make(chan struct{}),
		launched: make(chan *session), started: make(chan struct{}), stopped: make(chan struct{}),
	}
	if u, err := url.Parse(c.PublicURL); err != nil || c.PublicURL != "" && (u.Scheme == "" || u.Host == "") {
		return nil, fmt.Errorf("public URL %q: must be like https://host", c.PublicURL)
	}
	for _, text := range append(c.AdvertisedIPs, c.Transport.AdvertisedIPs...) {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("advertised address: %w", err)
		}
		s.advertised = append(s.advertised, advertised{addr: ip.Unmap()})
	}
	if c.OverflowURL != "" {
		u, err := url.Parse(c.OverflowURL)
		if err != nil || u.Scheme == "" || u.Host == "" {
			return nil, fmt.Errorf("overflow URL %q: must be like https://host", c.OverflowURL)
		}
		s.overflow = u
	}

	// One certificate for the life of the process: making one for each connection costs more than the handshake's own
	// signature.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make DTLS key: %w", err)
	}
	certificate, err := webrtc.GenerateCertificate(key)
	if err != nil {
		return nil, fmt.Errorf("make DTLS certificate: %w", err)
	}
	s.certificates = []webrtc.Certificate{*certificate}

	if s.refused, err = register(c.Registerer, s.registry); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if c.Transport.UDPMux == nil && c.Transport.Net == nil {
		if s.sockets, err = listenUDP(c.UDPAddr); err != nil {
			return nil, fmt.Errorf("listen for media on %s: %w", c.UDPAddr, err)
		}
	}
	if c.TCPAddr != "" {
		if s.tcp, err = net.Listen("tcp", c.TCPAddr); err != nil {
			for _, socket := range s.sockets {
				_ = socket.Close()
			}
			return nil, fmt.Errorf("listen for media on TCP %s: %w", c.TCPAddr, err)
		}
	}
	return s, nil
}

// UDPAddrs are the addresses on which media is received.
func (s *Server) UDPAddrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, socket := range s.sockets {
		addrs = append(addrs, socket.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	return addrs
}

// TCPAddr is the address on which media is received over TCP; nil where it is not.
func (s *Server) TCPAddr() net.Addr {
	if s.tcp == nil {
		return nil
	}
	return s.tcp.Addr()
}

// Run serves until ctx ends, then ends every session, waits for them, closes the sockets and returns ctx's error. It can
// be called once.
func (s *Server) Run(ctx context.Context) error {
	transport := s.config.Transport
	transport.AdvertisedIPs = nil // written into the answer instead, beside the machine's own
	if transport.Logger == nil {
		transport.Logger = s.logger
	}
	if !s.ran.CompareAndSwap(false, true) {
		return errors.New("run pionsfu: has been run before")
	}
	s.askSTUN(ctx)
	s.mu.Lock()
	if s.sockets != nil {
		mux := newMux(s.sockets)
		defer mux.Close() //nolint:errcheck // after the last session there is nobody to tell
		transport.UDPMux, transport.Ports, transport.Loopback = mux, s.sockets, true
	}
	transport.Lite = s.config.ICELite
	if s.tcp != nil {
		mux := newTCPMux(s.tcp)
		defer mux.Close() //nolint:errcheck // likewise
		transport.TCPMux = mux
		if transport.Filter == nil {
			transport.Filter = s.listensAt
		}
	}
	s.transport = transport
	close(s.started)
	s.mu.Unlock()
	s.logger.Info("media server runs", "udp", s.UDPAddrs())

	var sessions sync.WaitGroup
	for ctx.Err() == nil {
		select {
		case session := <-s.launched:
			sessions.Go(func() { s.serve(ctx, session) })
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	close(s.stopped)
	s.mu.Unlock()
	s.inFlight.Wait()
	sessions.Wait()
	return ctx.Err()
}

// begin admits a request that may make a session; the caller calls done after it has been launched or dropped.
func (s *Server) begin() (t media.Transport, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready() {
		return media.Transport{}, nil, errNotRunning
	}
	s.inFlight.Add(1)
	return s.transport, s.inFlight.Done, nil
}

// ready says whether Run runs.
func (s *Server) ready() bool { return isClosed(s.started) && !isClosed(s.stopped) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// launch hands a session over to Run.
func (s *Server) launch(session *session) error {
	select {
	case s.launched <- session:
		return nil
	case <-s.stopped:
		return errNotRunning
	}
}

// newMux shares the ports among all connections. What it has to say is of strangers' packets, one line each: nobody
// wants that.
func newMux(ports []*media.Port) ice.UDPMux {
	silent := (&logging.DefaultLoggerFactory{Writer: io.Discard}).NewLogger("ice")
	muxes := make([]ice.UDPMux, 0, len(ports))
	for _, port := range ports {
		muxes = append(muxes, ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: port, Logger: silent}))
	}
	return ice.NewMultiUDPMuxDefault(muxes...)
}

const (
	tcpReadBuffer  = 64 // packets of one connection
	tcpWriteBuffer = 4 << 20
	tcpFirst       = 10 * time.Second // for the first packet, which tells the session
)

// newTCPMux shares a TCP port among all connections.
func newTCPMux(l net.Listener) ice.TCPMux {
	silent := (&logging.DefaultLoggerFactory{Writer: io.Discard}).NewLogger("ice")
	return ice.NewTCPMuxDefault(ice.TCPMuxParams{
		Listener: l, Logger: silent, ReadBufferSize: tcpReadBuffer, WriteBufferSize: tcpWriteBuffer,
		FirstStunBindTimeout: tcpFirst,
	})
}

// listensAt says whether the server can be reached by TCP at one of the machine's addresses.
func (s *Server) listensAt(ip net.IP) bool {
	at := s.tcp.Addr().(*net.TCPAddr).IP
	return at.IsUnspecified() || at.Equal(ip)
}
