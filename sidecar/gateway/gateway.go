// Package gateway is the HTTP front door of a pod: everything goes on to the media server beside it, as it came, and on
// the way the gateway sees who plays what. A play that the server answers with "no such stream" is held while the
// stream is fetched from another node; session URLs get the node's name in front, so that every replica of every
// cluster can pass them on; peers pull streams through a handler of their own. It decides nothing about where a stream
// comes from, that is behind Relays, and carries no media.
package gateway

import (
	"context"
	"fmt"
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
)

// Relays brings streams of other nodes into the server beside the gateway.
type Relays interface {
	// Acquire blocks until the stream can be played here and keeps it so until release is called, once. Where nobody
	// holds the name the error is adapters.ErrNoStream, at once; so it is, or a release that does nothing, where the
	// stream is published here.
	Acquire(ctx context.Context, id adapters.StreamID) (release func(), err error)
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
	HoldTimeout    time.Duration     // how long a viewer's POST waits for a stream
	MaxBody        int64             // of offers and of requests on session URLs
	MaxHeld        int               // viewers that wait at once
	MaxPulls       int               // pulls being answered at once
	PollInterval   time.Duration     // how often viewers' sessions are looked at
	SessionAge     time.Duration     // how long a viewer's session is demand at most
	Transport      http.RoundTripper // to the media server; nil: a suitable one
	Logger         *slog.Logger      // nil: discard
	Registerer     prometheus.Registerer
}

// Gateway is the front door of one pod. It is itself the viewers' and publishers' handler.
type Gateway struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	demand  *demand
	pulls   atomic.Int64
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
	if o.Transport == nil {
		o.Transport = NewTransport()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Gateway{
		o:       o,
		log:     o.Logger,
		metrics: newMetrics(o.Registerer),
		demand:  newDemand(),
		misuse:  rate.NewLimiter(1, 5),
	}
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

// Run looks after viewers' sessions until ctx ends, and returns its error.
func (g *Gateway) Run(ctx context.Context) error {
	var keepers sync.WaitGroup
	defer func() {
		g.demand.close()
		keepers.Wait()
		if t, ok := g.o.Transport.(interface{ CloseIdleConnections() }); ok {
			t.CloseIdleConnections()
		}
	}()
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
	rec := &recorder{ResponseWriter: w, kind: kindOther}
	defer g.metrics.answered(rec)
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
	if reserved(r.URL.Path) {
		w.kind = kindSession
		g.session(w, r)
		return
	}
	want, matched := g.o.Adapter.Match(r)
	if matched && want.ID.Validate() != nil {
		matched = false // the server's own words are the best answer to such a name
	}
	switch {
	case matched && !want.Publish && r.Method == http.MethodPost:
		w.kind = kindPlay
		g.play(w, r, want.ID)
		if looker, ok := g.o.Adapter.(adapters.Looker); ok && g.o.Adapter.Traits().IgnoresPLI && sessionOpened(w.status) {
			looker.Look() // so that a key frame is asked for when the viewer has come
		}
	case matched && want.Publish && r.Method == http.MethodPost:
		w.kind = kindPublish
		g.open(w, r)
		if looker, ok := g.o.Adapter.(adapters.Looker); ok && sessionOpened(w.status) {
			looker.Look() // so that the stream is known with its first media
		}
	case isSDP(r.Header):
		g.open(w, r)
	default:
		g.passage(r, g.o.Target).serve(w, r)
	}
}

// open passes on a request that may open a session, or belong to one by the server's own URL.
func (g *Gateway) open(w http.ResponseWriter, r *http.Request) {
	r, ok := g.buffered(w, r)
	if !ok {
		return
	}
	p := g.passage(r, g.o.Target)
	p.opens = r.Method == http.MethodPost
	p.rename = g.sessionURL
	p.serve(w, r)
}

// session passes on a request on a session URL: to the server, or to the gateway of the node that it names.
func (g *Gateway) session(w *recorder, r *http.Request) {
	node, path, ok := parseSession(r.URL.EscapedPath())
	if !ok {
		g.refuse(w, r, http.StatusNotFound, "No such session", "This is not a session URL of this service; use the one in "+
			"the Location field of the answer that opened the session.")
		return
	}
	if node == g.o.NodeID {
		g.ownSession(w, r, path, g.sessionURL, false)
		return
	}
	w.kind = kindForward
	var (
		base *url.URL
		via  http.RoundTripper
	)
	if ok = g.o.Forward != nil; ok {
		base, via, ok = g.o.Forward(node)
	}
	if !ok {
		g.refuse(w, r, http.StatusNotFound, "No such session", "The node that served this session is not known here; it may "+
			"have ended. Open a new session.")
		return
	}
	if r, ok = g.buffered(w, r); !ok {
		return
	}
	p := g.passage(r, base)
	p.transport = via
	p.inSession = true
	p.rename = func(u *url.URL) string {
		if !reserved(u.Path) {
			return ""
		}
		return g.absolute(u.RequestURI())
	}
	p.serve(w, r)
}

// ownSession passes on a request on one of the own server's sessions.
func (g *Gateway) ownSession(w http.ResponseWriter, r *http.Request, path string, rename func(*url.URL) string, peer bool) {
	r = withPath(r, path)
	if _, opens := g.o.Adapter.Match(r); opens {
		g.refuse(w, r, http.StatusNotFound, "No such session", "Sessions are opened at the server's own URL, not through one "+
			"of another session.")
		return
	}
	r, ok := g.buffered(w, r)
	if !ok {
		return
	}
	p := g.passage(r, g.o.Target)
	p.inSession = true
	p.rename = rename
	p.trusted = p.trusted || peer
	p.serve(w, r)
}

// sessionURL names the node in front of a URL of its server.
func (g *Gateway) sessionURL(u *url.URL) string {
	path, ok := formatSession(g.o.NodeID, u)
	if !ok {
		return ""
	}
	return g.absolute(path)
}

// absolute puts the public base URL before a path, where there is one.
func (g *Gateway) absolute(path string) string {
	if g.o.PublicBaseURL == nil {
		return path
	}
	return strings.TrimRight(g.o.PublicBaseURL.String(), "/") + path
}
