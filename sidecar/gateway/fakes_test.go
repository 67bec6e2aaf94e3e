package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	offer   = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"
	bearer  = "Bearer viewer"
	sidecar = "Bearer sidecar"
)

// server is a small media server without media: POST /live/{stream}/whip and whep open sessions, whose URLs end in a
// number; everything else is written down and answered 200.
type server struct {
	*httptest.Server

	mu       sync.Mutex
	streams  map[string]bool
	sessions map[string]bool // by path
	seen     []seen
	next     int

	intercept func(w http.ResponseWriter, r *http.Request) bool // true: it has answered

	// knobs, set before the first request
	waits    bool   // plays of unknown names are accepted
	absolute bool   // Locations are absolute
	answer   string // SDP
}

type seen struct {
	Method, Path, Query, Host, Body string
	Header                          http.Header
}

func newServer(t *testing.T, streams ...string) *server {
	s := &server{streams: map[string]bool{}, sessions: map[string]bool{}, answer: "v=0\r\n"}
	for _, name := range streams {
		s.streams[name] = true
	}
	s.Server = httptest.NewServer(http.HandlerFunc(s.handle))
	t.Cleanup(s.Close)
	return s
}

func (s *server) handle(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.seen = append(s.seen, seen{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Host, string(body), r.Header.Clone()})
	intercept := s.intercept
	s.mu.Unlock()
	if intercept != nil && intercept(w, r) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path := r.URL.EscapedPath()
	w.Header().Set("Server", "fake")
	switch want, ok := match(r); {
	case ok && !want.Publish && !s.streams[string(want.ID)] && !s.waits:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":"no stream is available"}`)
	case ok:
		s.next++
		session := fmt.Sprintf("%s/%d", path, s.next)
		s.sessions[session] = true
		location := session + "?secret=a%2Fb"
		if s.absolute {
			location = "http://" + r.Host + location
		}
		w.Header().Set("Location", location)
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Content-Type", "application/sdp")
		w.Header().Add("Link", `<`+session+`/events>; rel="urn:ietf:params:whep:ext:core:server-sent-events"; events="a,b"`)
		w.Header().Add("Link", `<turn:turn.example.org>; rel="ice-server"; username="a,<b>"; credential="c"`)
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, s.answer)
	case strings.HasSuffix(path, "/events") && r.Method == http.MethodPost:
		w.Header().Set("Location", "events/1")
		w.WriteHeader(http.StatusCreated)
	case strings.Contains(path, "/whep/") || strings.Contains(path, "/whip/"):
		switch {
		case !s.sessions[path]:
			w.WriteHeader(http.StatusNotFound)
		case r.Method == http.MethodDelete:
			delete(s.sessions, path)
		case r.Method == http.MethodPatch:
			w.WriteHeader(http.StatusNoContent)
		}
	default:
		w.Header().Set("X-Answer", "other")
		_, _ = io.WriteString(w, "other")
	}
}

// set has another function see each request first.
func (s *server) set(intercept func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intercept = intercept
}

func (s *server) publish(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[name] = true
}

func (s *server) end(session string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, session)
}

// requests yields what came since the last call.
func (s *server) requests() []seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.seen
	s.seen = nil
	return out
}

func match(r *http.Request) (adapters.Request, bool) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/live/")
	if !ok || r.Method != http.MethodPost {
		return adapters.Request{}, false
	}
	if id, ok := strings.CutSuffix(rest, "/whep"); ok {
		return adapters.Request{ID: adapters.StreamID(id)}, true
	}
	if id, ok := strings.CutSuffix(rest, "/whip"); ok {
		return adapters.Request{ID: adapters.StreamID(id), Publish: true}, true
	}
	return adapters.Request{}, false
}

// adapter knows the server.
type adapter struct {
	base   *url.URL
	traits adapters.Traits
	open   bool // the server asks for no credentials
}

func (a adapter) Name() string            { return "fake" }
func (a adapter) Traits() adapters.Traits { return a.traits }
func (a adapter) Ingest(id adapters.StreamID) adapters.Endpoint {
	return adapters.Endpoint{URL: a.base.JoinPath("live", url.PathEscape(string(id)), "whip")}
}

func (a adapter) Egress(id adapters.StreamID) adapters.Endpoint {
	to := adapters.Endpoint{URL: a.base.JoinPath("live", string(id), "whep")}
	if !a.open {
		to.Header = http.Header{"Authorization": {sidecar}}
	}
	return to
}
func (a adapter) Match(r *http.Request) (adapters.Request, bool) { return match(r) }
func (a adapter) Missing(status int, _ http.Header, body []byte) bool {
	return status == http.StatusNotFound && bytes.Contains(body, []byte("no stream"))
}

func (a adapter) Watch(ctx context.Context, _ func([]adapters.Stream)) error {
	<-ctx.Done()
	return ctx.Err()
}

// relays is the answer to every Acquire, and counts what is held.
type relays struct {
	acquire func(ctx context.Context, id adapters.StreamID) error
	carries bool                    // there is something to hold
	yield   func(published bool)    // done, where there is something to end; nil: there is not
	ended   func(adapters.StreamID) // when it is ended

	mu       sync.Mutex
	cond     *sync.Cond
	acquired int
	held     int
	waiting  int
}

func newRelays(acquire func(ctx context.Context, id adapters.StreamID) error) *relays {
	r := &relays{acquire: acquire}
	r.cond = sync.NewCond(&r.mu)
	return r
}

func (r *relays) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	r.cond.Broadcast()
}

func (r *relays) Acquire(ctx context.Context, id adapters.StreamID) (func(), error) {
	r.change(func() { r.waiting++ })
	err := r.acquire(ctx, id)
	r.change(func() { r.waiting-- })
	if err != nil {
		return nil, fmt.Errorf("acquire %s: %w", id, err)
	}
	r.change(func() { r.acquired++; r.held++ })
	return sync.OnceFunc(func() { r.change(func() { r.held-- }) }), nil
}

func (r *relays) Hold(context.Context, adapters.StreamID) (func(), error) {
	if !r.carries {
		return nil, nil
	}
	r.change(func() { r.held++ })
	return sync.OnceFunc(func() { r.change(func() { r.held-- }) }), nil
}

func (r *relays) Yield(_ context.Context, id adapters.StreamID) (func(bool), bool) {
	if r.yield == nil {
		return nil, false
	}
	r.ended(id)
	return r.yield, true
}

// holding is how many relays are held now.
func (r *relays) holding() (held int) {
	r.change(func() { held = r.held })
	return held
}

// await blocks until a state is reached, for the test's time at most.
func (r *relays) await(t *testing.T, what string, reached func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { r.change(func() {}) })
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for !reached() {
		if ctx.Err() != nil {
			t.Fatalf("%s: never (acquired %d, held %d, waiting %d)", what, r.acquired, r.held, r.waiting)
		}
		r.cond.Wait()
	}
}

// node is a gateway between a server and its callers.
type node struct {
	*Gateway
	public, peer *httptest.Server
	log          *bytes.Buffer
	registry     *prometheus.Registry
	gone         chan struct{} // an item when the client of a request at the public port has gone
}

func newNode(t *testing.T, s *server, change func(*Options)) *node {
	t.Helper()
	n := &node{log: &bytes.Buffer{}, registry: prometheus.NewRegistry(), gone: make(chan struct{}, 1000)}
	base, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Adapter: adapter{base: base}, Target: base, NodeID: "node-1", CountTime: 10 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(&locked{w: n.log}, nil)), Registerer: n.registry,
	}
	if change != nil {
		change(&o)
	}
	n.Gateway = New(o)
	n.public = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stop := context.AfterFunc(r.Context(), func() { n.gone <- struct{}{} })
		defer stop()
		n.Gateway.ServeHTTP(w, r)
	}))
	n.peer = httptest.NewServer(n.PeerHandler())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		n.public.Close()
		n.peer.Close()
		cancel()
		if err := <-ended; err != context.Canceled {
			t.Errorf("Run: %v", err)
		}
	})
	return n
}

type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// answer is what came back, read to the end.
type answer struct {
	Status int
	Header http.Header
	Body   string
}

var client = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableKeepAlives: true},
	Timeout:       20 * time.Second,
}

// do sends a request; header holds names and values by turns.
func do(t *testing.T, method, to, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, to, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/sdp")
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(got)}
}

// metric is the value of a counter or gauge, the sum over its labels that hold all words.
func (n *node) metric(t *testing.T, name string, words ...string) float64 {
	t.Helper()
	families, err := n.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			for _, word := range words {
				if !strings.Contains(fmt.Sprint(m.GetLabel()), `value:"`+word+`"`) {
					continue series
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}
