// Package gateway is the HTTP front door of a pod: everything goes on to the media server beside it, as it came, and on
// the way the gateway sees who plays what. A play that the server answers with "no such stream" is held while the
// stream is fetched from another node; session URLs get the node's name in front, so that every replica of every
// cluster can pass them on; peers pull streams through a handler of their own. To WHIP and WHEP it adds what the server
// lacks: CORS, TURN servers, limits, a choice among the nodes of the cluster, tokens. It decides nothing about where a
// stream comes from, that is behind Relays, and carries no media.
package gateway

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/sidestream-dev/sidestream/adapters"
)

// PullTokenHeader carries a pull token; Authorization stays the media server's.
const PullTokenHeader = "Sidestream-Pull-Token"

// The defaults of Options.
const (
	DefaultHoldTimeout  = 10 * time.Second
	DefaultMaxBody      = 256 << 10
	DefaultMaxHeld      = 1000
	DefaultMaxPulls     = 64
	DefaultPollInterval = 30 * time.Second
	DefaultSessionAge   = 6 * time.Hour
	DefaultCountTime    = 10 * time.Second
)

// Relays brings streams of other nodes into the server beside the gateway.
type Relays interface {
	// Acquire blocks until the stream can be played here and keeps it so until release is called, once. Where nobody
	// holds the name the error is adapters.ErrNoStream, at once; so it is, or a release that does nothing, where the
	// stream is published here.
	Acquire(ctx context.Context, id adapters.StreamID) (release func(), err error)
	// Hold keeps what brings the stream here, where something does, until release is called, once. It blocks only while
	// that ends, until the stream is here anew; where nothing brings it, release is nil and the error too.
	Hold(ctx context.Context, id adapters.StreamID) (release func(), err error)
	// Yield ends what brings the stream here, if anything does, for a publisher at this node, and blocks until the server has
	// the name free. Nothing brings the stream here again before done is called, once, with whether the publisher was taken;
	// then it is for the server's report of that publication to say. ok is false where nothing was to be ended.
	Yield(ctx context.Context, id adapters.StreamID) (done func(published bool), ok bool)
}

// Forwarder says how another node's PeerHandler is reached: the peer port's base URL and what may dial it. It is false
// for a node that is not known here.
type Forwarder func(node string) (base *url.URL, via http.RoundTripper, ok bool)

// Options are what a gateway stands between. Adapter, Target and NodeID are needed, the rest has defaults.
type Options struct {
	Adapter adapters.Adapter
	// Target is where the media server listens, by the pod's IP rather than loopback, which many servers trust. Only
	// scheme and host are used: paths are the server's own.
	Target *url.URL
	// NodeID stands in session URLs: letters, digits, dots, dashes and underscores.
	NodeID string
	Relays Relays // nil: no stream is fetched
	// Readers is how many play a stream from the server, -1 where the server does not say; then the gateway's own
	// sessions are the demand. nil: it never says.
	Readers func(id adapters.StreamID) int
	// Unfit is why a stream that is published elsewhere cannot be brought here whatever is tried; nil error: nothing is known
	// against it. nil: nothing ever is.
	Unfit   func(id adapters.StreamID) error
	Forward Forwarder // nil: no other node is known
	Tokens  *Tokens   // nil: every pull is refused
	// PodIP is added to answers for pullers whose candidates lack it. The zero value adds nothing.
	PodIP netip.Addr
	// PublicBaseURL makes session URLs absolute: how viewers reach the cluster's gateways. nil: they are paths.
	PublicBaseURL *url.URL
	// TrustedProxies are whose X-Forwarded fields are believed and continued; all others' are replaced.
	TrustedProxies []netip.Prefix
	// Origins are the web origins whose pages may publish and play where the server does not say: "https://example.org", "*"
	// for every one; nil: every one.
	Origins []string
	Limits  Limits
	Rates   Rates
	// Stream is what the server reported last of a stream; nil: nothing is known. Inventory says that the server reports the
	// publications that it has, so that what it does not report has ended.
	Stream    func(id adapters.StreamID) (adapters.Stream, bool)
	Inventory bool
	// Placement says what becomes of a new session that another node of the cluster had better have, and Loads what those
	// other nodes have to do.
	Placement Placement
	Loads     func() []NodeLoad // nil: there are none
	// Playing is how many play from the server by its own count, by whatever protocol; nil: only what came through here.
	Playing  func() int
	Draining func() bool // nil: never
	// ICEServers yields what goes with a session's answer where the server has none: values of Link fields with the relation
	// ice-server. It must bound how long it takes. nil: none.
	ICEServers func(ctx context.Context) []string
	// Authorize checks the bearer token ("" where there is none) of who wants to open a session, before the server sees
	// anything of it. Its error is a *adapters.DeniedError, or says why the token cannot be checked now. nil: the server alone decides.
	Authorize func(ctx context.Context, token string, want adapters.Request) error
	// SessionKey seals session URLs where Authorize is set; sessions outlive the process where it does. nil: a random one.
	SessionKey []byte
	// OpenPath says which of the server's other paths are passed on where Authorize is set. nil: none.
	OpenPath func(path string) bool
	// AccessLog writes a line for each WHIP and WHEP request. What is passed on besides is logged at level debug.
	AccessLog bool

	HoldTimeout  time.Duration     // how long a viewer's POST waits for a stream
	MaxBody      int64             // of offers and of requests on session URLs
	MaxHeld      int               // viewers that wait at once
	MaxPulls     int               // pulls being answered at once
	PollInterval time.Duration     // how often viewers' sessions are looked at
	SessionAge   time.Duration     // how long a viewer's session is demand at most
	CountTime    time.Duration     // in which a new viewer shows in the server's count of readers
	Transport    http.RoundTripper // to the media server; nil: a suitable one
	Logger       *slog.Logger      // nil: discard
	Registerer   prometheus.Registerer
	Tracer       trace.Tracer // nil: no traces
}

// Gateway is the front door of one pod. It is itself the viewers' and publishers' handler.
type Gateway struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	demand  *demand
	cors    *cors
	seal    *seal // nil: session URLs are not sealed
	pulls   atomic.Int64
	// how often who may ask
	paces, pullPaces paces
	health           health

	sessions  *sessions
	telling   sync.Mutex // orders what an adapter is told of the sessions
	placed    placed
	through   http.RoundTripper // for what is not WHIP or WHEP: without a bound on how long an answer takes
	proxyLog  *log.Logger
	proxyBufs bufferPool
	// held viewers, and the size of their offers
	held, heldBytes atomic.Int64
	// misuse bounds the log lines that strangers can cause.
	misuse *rate.Limiter
}

// New makes a gateway. Its handlers serve at once; demand of viewers at servers that do not count their readers is
// kept only while Run runs.
func New(o Options) *Gateway {
	setDefault(&o.HoldTimeout, DefaultHoldTimeout)
	setDefault(&o.MaxBody, DefaultMaxBody)
	setDefault(&o.MaxHeld, DefaultMaxHeld)
	setDefault(&o.MaxPulls, DefaultMaxPulls)
	setDefault(&o.PollInterval, DefaultPollInterval)
	setDefault(&o.SessionAge, DefaultSessionAge)
	setDefault(&o.CountTime, DefaultCountTime)
	if o.Transport == nil {
		o.Transport = NewTransport()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{
		o:        o,
		log:      o.Logger,
		metrics:  newMetrics(o.Registerer),
		demand:   newDemand(),
		cors:     newCORS(o.Origins),
		paces:    newPaces(o.Rates),
		misuse:   rate.NewLimiter(1, 5),
		through:  o.Transport,
		proxyLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	g.pullPaces = newPaces(o.Rates)
	g.sessions = newSessions(o.Limits, g.metrics)
	if o.Authorize != nil {
		g.seal = newSeal(o.SessionKey)
	}
	if t, ok := o.Transport.(*http.Transport); ok && t.ResponseHeaderTimeout > 0 {
		patient := t.Clone() // a long poll may take longer than any offer
		patient.ResponseHeaderTimeout = 0
		g.through = patient
	}
	return g
}

func setDefault[T int | int64 | time.Duration](value *T, to T) {
	if *value <= 0 {
		*value = to
	}
}

// NewTransport dials the media server. Idle connections end before a server's own patience does (Node's is 5 s),
// because a POST that meets a connection just closed cannot be sent again. No proxy of the environment is in between.
func NewTransport() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       2 * time.Second,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		DisableCompression:    true,
	}
}

// Run looks after sessions until ctx ends, and returns its error.
func (g *Gateway) Run(ctx context.Context) error {
	var keepers sync.WaitGroup
	defer func() {
		g.demand.close()
		keepers.Wait()
		for _, t := range []http.RoundTripper{g.o.Transport, g.through} {
			if t, ok := t.(interface{ CloseIdleConnections() }); ok {
				t.CloseIdleConnections()
			}
		}
	}()
	keepers.Go(func() { g.audit(ctx) })
	for {
		for _, v := range g.demand.take() {
			keepers.Go(func() { g.keep(ctx, v) })
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.demand.wake:
		}
	}
}

// Ready says why viewers cannot be served now: the media server does not answer. Whatever HTTP answer it gives is fine.
func (g *Gateway) Ready(ctx context.Context) error {
	u := url.URL{Scheme: g.o.Target.Scheme, Host: g.o.Target.Host, Path: "/"}
	req, err := http.NewRequestWithContext(ctx, http.MethodOptions, u.String(), nil)
	if err != nil {
		return fmt.Errorf("ask media server %s: %w", g.o.Target.Host, err)
	}
	resp, err := g.o.Transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask media server %s: %w", g.o.Target.Host, err)
	}
	discard(resp)
	return nil
}

// ServeHTTP serves viewers and publishers.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &recorder{ResponseWriter: w, kind: kindOther, cors: g.cors, origin: r.Header.Get("Origin")}
	defer g.finish(rec, r, time.Now())
	g.public(rec, r)
}

func (g *Gateway) public(w *recorder, r *http.Request) {
	if _, ok := r.Header[PullTokenHeader]; ok {
		// Pulls come through the peer port only, where peers prove themselves.
		g.metrics.refused("pull_token")
		if g.misuse.Allow() {
			g.log.Warn("pull token at the public port", "from", r.RemoteAddr, "path", r.URL.Path)
		}
		g.refuse(w, r, http.StatusForbidden, "Pull tokens are not for this port",
			"Send the request without "+PullTokenHeader+"; sidecars pull through the peer port.")
		return
	}
	if r.Method == http.MethodConnect || !strings.HasPrefix(r.URL.Path, "/") {
		g.refuse(w, r, http.StatusBadRequest, "Not a request for this server", "Ask for a path that begins with a slash.")
		return
	}
	if ownWellKnown(r.URL.Path) {
		g.wellKnown(w, r)
		return
	}
	if r.Method == http.MethodOptions && g.preflight(w, r) {
		return
	}
	if reserved(r.URL.Path) {
		w.kind = kindSession
		g.session(w, r)
		return
	}
	want, matched := g.o.Adapter.Match(r)
	switch {
	case matched && r.Method == http.MethodPost:
		g.endpoint(w, r, want, false)
	case g.seal != nil && (g.o.OpenPath == nil || !g.o.OpenPath(r.URL.Path)):
		g.metrics.refused("closed")
		g.refuse(w, r, http.StatusForbidden, "Closed", "Only publishing and playing are open here, with a token, and what "+
			"follows of them by the URLs in their answers.")
	case isSDP(r.Header):
		g.open(w, r)
	default:
		p := g.passage(w, r, g.o.Target)
		p.transport = g.through
		p.serve(w, r)
	}
}

// open passes on a request that may open a session, or belong to one by the server's own URL, and of which the adapter
// knows nothing.
func (g *Gateway) open(w *recorder, r *http.Request) {
	r, ok := g.buffered(w, r)
	if !ok {
		return
	}
	p := g.passage(w, r, g.o.Target)
	p.opens = r.Method == http.MethodPost
	p.rename = g.renamer(w, adapters.Request{})
	if p.opens {
		p.transport = roundTripper(g.send)
	}
	p.serve(w, r)
}

// session passes on a request on a session URL: to the server, or to the gateway of the node that it names. A new session
// may be opened at that node so, too.
func (g *Gateway) session(w *recorder, r *http.Request) {
	node, path, ok := parseSession(r.URL.EscapedPath())
	if !ok {
		g.refuse(w, r, http.StatusNotFound, "No such session", "This is not a session URL of this service; use the one in "+
			"the Location field of the answer that opened the session.")
		return
	}
	if node == g.o.NodeID {
		g.ownSession(w, r, path)
		return
	}
	w.kind = kindForward
	if want, opens := g.o.Adapter.Match(withPath(r, path)); opens {
		w.stream = want.ID
		if !g.authorized(w, r, want) {
			return
		}
	}
	base, via, ok := g.forward(node)
	if !ok {
		g.refuse(w, r, http.StatusNotFound, "No such session", "The node that served this session is not known here; it may "+
			"have ended. Open a new session.")
		return
	}
	if r, ok = g.buffered(w, r); !ok {
		return
	}
	p := g.passage(w, r, base)
	p.transport = via
	p.inSession = true
	p.rename = g.ofOthers
	p.serve(w, r)
}

func (g *Gateway) forward(node string) (base *url.URL, via http.RoundTripper, ok bool) {
	if g.o.Forward == nil {
		return nil, nil, false
	}
	return g.o.Forward(node)
}

// ofOthers makes a session URL of another node, as that one's peer port gives it, one of this gateway.
func (g *Gateway) ofOthers(u *url.URL) string {
	if !reserved(u.Path) {
		return ""
	}
	return g.absolute(u.RequestURI())
}

// ownSession passes on a request on one of the own server's sessions, or serves one that opens a session and names this
// node, as a peer that has placed it here sends it.
func (g *Gateway) ownSession(w *recorder, r *http.Request, path string) {
	var of adapters.Request
	sealed := false
	if g.seal != nil {
		var inner string
		if of, inner, sealed = g.seal.open(path); sealed {
			path = inner
		}
	}
	r = withPath(r, path)
	want, opens := g.o.Adapter.Match(r)
	switch {
	case opens && !sealed:
		g.endpoint(w, r, want, true)
		return
	case opens || g.seal != nil && !sealed:
		g.refuse(w, r, http.StatusNotFound, "No such session", "Use the URL in the Location field of the answer that opened "+
			"the session.")
		return
	}
	w.stream = of.ID
	if w.stream == "" {
		w.stream = g.sessions.streamOf(path)
	}
	r, ok := g.buffered(w, r)
	if !ok {
		return
	}
	p := g.passage(w, r, g.o.Target)
	p.inSession = true
	p.rename = g.renamer(w, of)
	if sealed {
		p.header = replaceCredentials(g.credentials(of))
	}
	p.serve(w, r)
}

// renamer names the node in front of a URL of its server. A peer gets a path: its viewer reaches this session from there.
func (g *Gateway) renamer(w *recorder, of adapters.Request) func(*url.URL) string {
	return func(u *url.URL) string {
		prefix := SessionPrefix + g.o.NodeID
		if g.seal != nil {
			prefix += g.seal.element(of, u.EscapedPath())
		}
		path, ok := format(prefix, u)
		if !ok {
			return ""
		}
		if w.peer {
			return path
		}
		return g.absolute(path)
	}
}

// absolute puts the public base URL before a path, where there is one.
func (g *Gateway) absolute(path string) string {
	if g.o.PublicBaseURL == nil {
		return path
	}
	return strings.TrimRight(g.o.PublicBaseURL.String(), "/") + path
}
