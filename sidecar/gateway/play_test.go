package gateway

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

func counted(n int) func(adapters.StreamID) int { return func(adapters.StreamID) int { return n } }

// slow waits for the end of the hold, as an Acquire does whose pull hangs.
func slow(ctx context.Context, _ adapters.StreamID) error { <-ctx.Done(); return ctx.Err() }

func TestPlays(t *testing.T) {
	refusal := `{"error":"no stream is available"}`
	for name, tt := range map[string]struct {
		here      bool // the server has the stream
		arrives   bool // it is published by Acquire
		acquire   error
		slow      bool
		refuse    int // the server's status for every play
		options   func(*Options)
		status    int
		body      string // "" a problem
		acquires  int
		forwarded int
	}{
		"here":                   {here: true, status: 201, body: "v=0\r\n", forwarded: 1},
		"fetched":                {arrives: true, status: 201, body: "v=0\r\n", acquires: 1, forwarded: 2},
		"nobody holds it":        {acquire: adapters.ErrNoStream, status: 404, body: refusal, forwarded: 1},
		"pull fails":             {acquire: errors.New("broken"), status: 503, forwarded: 1},
		"pull hangs":             {slow: true, status: 503, forwarded: 1, options: func(o *Options) { o.HoldTimeout = 20 * time.Millisecond }},
		"fetched, not served":    {status: 503, acquires: 1, forwarded: 4, options: func(o *Options) { o.HoldTimeout = 500 * time.Millisecond }},
		"no relays":              {status: 404, body: refusal, forwarded: 1, options: func(o *Options) { o.Relays = nil }},
		"not allowed":            {refuse: 401, status: 401, body: "refused", forwarded: 1},
		"not found, other words": {refuse: 404, status: 404, body: "refused", forwarded: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			if tt.here {
				s.publish("a/b")
			}
			if tt.refuse != 0 {
				s.set(func(w http.ResponseWriter, _ *http.Request) bool {
					w.Header().Set("WWW-Authenticate", "Bearer")
					w.WriteHeader(tt.refuse)
					_, _ = io.WriteString(w, "refused")
					return true
				})
			}
			r := newRelays(func(ctx context.Context, id adapters.StreamID) error {
				if id != "a/b" {
					t.Errorf("acquired %q", id)
				}
				if tt.slow {
					return slow(ctx, id)
				}
				if tt.arrives {
					s.publish(string(id))
				}
				return tt.acquire
			})
			n := newNode(t, s, func(o *Options) {
				o.Relays, o.Readers = r, counted(0)
				if tt.options != nil {
					tt.options(o)
				}
			})
			got := do(t, "POST", n.public.URL+"/live/a/b/whep?token=x;y", offer, "Authorization", bearer, "Accept-Encoding", "gzip")
			if tt.body == "" {
				got.problem(t, tt.status)
				if got.Header.Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
			} else if got.Status != tt.status || got.Body != tt.body {
				t.Errorf("%d %q, want %d %q", got.Status, got.Body, tt.status, tt.body)
			}
			if tt.status == 404 && tt.refuse == 0 && got.Header.Get("Server") != "fake" {
				t.Errorf("the server's answer lost its header: %v", got.Header)
			}
			requests := s.requests()
			if len(requests) != tt.forwarded {
				t.Errorf("%d plays were sent, want %d", len(requests), tt.forwarded)
			}
			for _, q := range requests {
				if q.Body != offer || q.Path != "/live/a/b/whep" || q.Query != "token=x;y" || q.Header.Get("Authorization") != bearer ||
					q.Header.Get("Accept-Encoding") != "identity" || q.Header.Get("X-Forwarded-For") != "127.0.0.1" {
					t.Errorf("server saw %+v", q)
				}
			}
			r.await(t, "released", func() bool { return r.held == 0 && r.waiting == 0 })
			r.change(func() {
				if r.acquired != tt.acquires {
					t.Errorf("acquired %d times, want %d", r.acquired, tt.acquires)
				}
			})
			if got := n.metric(t, "sidestream_gateway_requests_total", "play"); got != 1 {
				t.Errorf("%v plays counted", got)
			}
		})
	}
}

// TestReleasedAfterAnswer: where the server counts readers, the relay is held until the answer has been passed on.
// TestStreamEndsWhileAsked: the viewers of a relay that has just ended come back before its end is known; they are held
// until it runs again, or told the server's own words where it does not.
func TestStreamEndsWhileAsked(t *testing.T) {
	for name, tt := range map[string]struct {
		second error // of the second Acquire
		status int
	}{
		"comes again": {status: 201},
		"is no more":  {second: adapters.ErrNoStream, status: 404},
		"cannot come": {second: errors.New("broken"), status: 503},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			asked := 0
			r := newRelays(func(_ context.Context, id adapters.StreamID) error {
				if asked++; asked == 1 {
					return nil // it seems to be here
				}
				if tt.second == nil {
					s.publish(string(id))
				}
				return tt.second
			})
			n := newNode(t, s, func(o *Options) { o.Relays, o.Readers = r, counted(0) })
			got := do(t, "POST", n.public.URL+"/live/demo/whep", offer)
			if got.Status != tt.status || asked != 2 {
				t.Errorf("%d %q after %d, want %d", got.Status, got.Body, asked, tt.status)
			}
			if tt.status == 404 && got.Header.Get("Server") != "fake" {
				t.Errorf("not the server's own words: %v", got.Header)
			}
			r.await(t, "released", func() bool { return r.held == 0 && r.waiting == 0 })
		})
	}
}

func TestReleasedAfterAnswer(t *testing.T) {
	s := newServer(t)
	r := newRelays(func(_ context.Context, id adapters.StreamID) error { s.publish(string(id)); return nil })
	n := newNode(t, s, func(o *Options) { o.Relays, o.Readers = r, counted(1) })
	s.set(func(http.ResponseWriter, *http.Request) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.acquired == 1 && r.held != 1 {
			t.Error("released before the server answered")
		}
		return false
	})
	if got := do(t, "POST", n.public.URL+"/live/demo/whep", offer); got.Status != 201 {
		t.Fatalf("%+v", got)
	}
	r.await(t, "released", func() bool { return r.acquired == 1 && r.held == 0 })
}

func TestViewerGoneWhileHeld(t *testing.T) {
	s := newServer(t)
	r := newRelays(slow)
	n := newNode(t, s, func(o *Options) { o.Relays = r })
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		req, _ := http.NewRequestWithContext(ctx, "POST", n.public.URL+"/live/demo/whep", strings.NewReader(offer))
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		left <- err
	}()
	r.await(t, "held", func() bool { return r.waiting == 1 })
	if got := n.metric(t, "sidestream_gateway_held_viewers"); got != 1 {
		t.Errorf("%v held viewers counted", got)
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	r.await(t, "let go", func() bool { return r.waiting == 0 })
	n.public.Close() // waits for the handler
	if n.metric(t, "sidestream_gateway_held_viewers") != 0 || n.metric(t, "sidestream_gateway_hold_seconds", "gone") != 1 ||
		n.metric(t, "sidestream_gateway_requests_total", "play", "4xx") != 1 {
		t.Error("the viewer is counted wrongly")
	}
}

func TestTooManyHeld(t *testing.T) {
	s := newServer(t)
	r := newRelays(slow)
	n := newNode(t, s, func(o *Options) { o.Relays, o.MaxHeld, o.HoldTimeout = r, 1, time.Minute })
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		defer close(left)
		req, _ := http.NewRequestWithContext(ctx, "POST", n.public.URL+"/live/demo/whep", strings.NewReader(offer))
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	r.await(t, "held", func() bool { return r.waiting == 1 })
	got := do(t, "POST", n.public.URL+"/live/other/whep", offer)
	got.problem(t, 503)
	if got.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	leave()
	<-left

	// So are few viewers with much to keep.
	n.heldBytes.Add(maxHeldBytes)
	do(t, "POST", n.public.URL+"/live/other/whep", offer).problem(t, 503)
	n.heldBytes.Add(-maxHeldBytes)
	n.public.Close()
	if held, bytes := n.held.Load(), n.heldBytes.Load(); held != 0 || bytes != 0 {
		t.Errorf("%d viewers with %d bytes are still held", held, bytes)
	}
}

// TestDemandOfSessions: where the server does not count readers, a session holds its relay until it is over.
func TestDemandOfSessions(t *testing.T) {
	for name, over := range map[string]func(t *testing.T, s *server, n *node, location string){
		"deleted": func(t *testing.T, _ *server, n *node, location string) {
			do(t, "DELETE", n.public.URL+location, "", "Authorization", bearer)
		},
		"deleted by the server's own URL": func(t *testing.T, _ *server, n *node, location string) {
			do(t, "DELETE", n.public.URL+strings.TrimPrefix(location, SessionPrefix+"node-1"), "")
		},
		"deleted through a peer": func(t *testing.T, _ *server, n *node, location string) {
			do(t, "DELETE", n.peer.URL+location, "")
		},
		"unknown to the server": func(_ *testing.T, s *server, _ *node, _ string) { s.end("/live/demo/whep/1") },
		"unknown when it trickles": func(t *testing.T, s *server, n *node, location string) {
			s.end("/live/demo/whep/1")
			do(t, "PATCH", n.public.URL+location, "a=x")
		},
	} {
		for _, here := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				s := newServer(t)
				if here { // a relay of another viewer's brought it
					s.publish("demo")
				}
				r := newRelays(func(_ context.Context, id adapters.StreamID) error { s.publish(string(id)); return nil })
				n := newNode(t, s, func(o *Options) {
					o.Relays = r
					if strings.HasPrefix(name, "unknown to") {
						o.PollInterval = 5 * time.Millisecond
					}
				})
				got := do(t, "POST", n.public.URL+"/live/demo/whep", offer, "Authorization", bearer)
				if got.Status != 201 {
					t.Fatalf("%+v", got)
				}
				r.await(t, "held", func() bool { return r.held == 1 })
				awaitLook(t, s)
				over(t, s, n, got.Header.Get("Location"))
				r.await(t, "released", func() bool { return r.held == 0 })
			})
		}
	}
}

// awaitLook waits until the server was asked about the session, with the viewer's credentials.
func awaitLook(t *testing.T, s *server) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		for _, q := range s.requests() {
			if q.Method == "GET" {
				if q.Path != "/live/demo/whep/1" || q.Header.Get("Authorization") != bearer {
					t.Errorf("asked about %+v", q)
				}
				return
			}
		}
		select {
		case <-deadline:
			t.Fatal("nobody looked at the session")
		case <-tick.C:
		}
	}
}

// transport is a server in the same bubble as the clock.
type transport func(*http.Request) *http.Response

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

func status(code int) *http.Response {
	return &http.Response{StatusCode: code, Header: http.Header{}, Body: http.NoBody}
}

// TestDemandEndsByTime follows one session over hours.
func TestDemandEndsByTime(t *testing.T) {
	for name, tt := range map[string]struct {
		look    func(since time.Duration) int // the server's answer about the session
		readers func(since time.Duration) int
		want    time.Duration // when the relay is let go, to the poll
		most    time.Duration // how much later at most; 0: a poll
	}{
		"too old":            {look: func(time.Duration) int { return 204 }, want: 6 * time.Hour},
		"server never tells": {look: func(time.Duration) int { return 404 }, want: 6 * time.Hour},
		"gone after 10 minutes": {want: 10 * time.Minute, look: func(d time.Duration) int {
			if d >= 10*time.Minute {
				return 404
			}
			return 200
		}},
		"an error is no news": {want: 6 * time.Hour, look: func(d time.Duration) int {
			if d >= time.Minute {
				return 500
			}
			return 200
		}},
		"the server counts in a moment": {look: func(time.Duration) int { return 200 }, want: DefaultCountTime, most: 2 * time.Second, readers: func(d time.Duration) int {
			if d >= 500*time.Millisecond {
				return 1
			}
			return -1
		}},
		"the server counts after all": {want: time.Minute, look: func(time.Duration) int { return 200 }, readers: func(d time.Duration) int {
			if d >= time.Minute {
				return 3
			}
			return -1
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				target, _ := url.Parse("http://server")
				r := newRelays(func(context.Context, adapters.StreamID) error { return nil })
				g := New(Options{
					Adapter: adapter{base: target}, Target: target, NodeID: "a", Relays: r,
					Readers: func(adapters.StreamID) int {
						if tt.readers == nil {
							return -1
						}
						return tt.readers(time.Since(began))
					},
					Transport: transport(func(q *http.Request) *http.Response { return status(tt.look(time.Since(began))) }),
				})
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { _ = g.Run(ctx); close(ended) }()
				v := &viewer{stream: "demo", path: "/s/1"}
				if !g.demand.add(v) {
					t.Fatal("not added")
				}
				synctest.Wait()
				if r.holding() != 1 {
					t.Fatalf("held %d", r.holding())
				}
				time.Sleep(tt.want - time.Second)
				synctest.Wait()
				if r.holding() != 1 {
					t.Errorf("let go before %v", tt.want)
				}
				time.Sleep(cmp.Or(tt.most, DefaultPollInterval+time.Second))
				synctest.Wait()
				if r.holding() != 0 {
					t.Errorf("still held after %v", time.Since(began))
				}
				cancel()
				<-ended
			})
		})
	}
}

// TestDemandIsRenewed: what first held a stream here may end, so every look asks for it again, and holds it once.
func TestDemandIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, _ := url.Parse("http://server")
		r := newRelays(func(context.Context, adapters.StreamID) error { return nil })
		g := New(Options{
			Adapter: adapter{base: target}, Target: target, NodeID: "a", Relays: r,
			Transport: transport(func(*http.Request) *http.Response { return status(200) }),
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { _ = g.Run(ctx); close(ended) }()
		g.demand.add(&viewer{stream: "demo", path: "/s/1"})
		time.Sleep(2*DefaultPollInterval + time.Second)
		synctest.Wait()
		if held := r.holding(); held != 1 || r.acquired != 3 {
			t.Errorf("acquired %d times, held %d times", r.acquired, held)
		}
		cancel()
		<-ended
	})
}

// TestRunReleases: what is held ends with Run, also what it never came to keep.
func TestRunReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, _ := url.Parse("http://server")
		r := newRelays(func(context.Context, adapters.StreamID) error { return nil })
		g := New(Options{
			Adapter: adapter{base: target}, Target: target, NodeID: "a", Relays: r,
			Transport: transport(func(*http.Request) *http.Response { return status(200) }),
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { _ = g.Run(ctx); close(ended) }()
		g.demand.add(&viewer{stream: "kept", path: "/s/1"})
		synctest.Wait()
		if r.holding() != 1 {
			t.Fatalf("held %d", r.holding())
		}
		cancel()
		<-ended
		if r.holding() != 0 {
			t.Errorf("held %d after Run", r.holding())
		}
		if g.demand.add(&viewer{stream: "late"}) {
			t.Error("taken after Run")
		}

		released := false
		d := newDemand()
		d.add(&viewer{release: func() { released = true }})
		d.close()
		if !released {
			t.Error("not released")
		}
	})
}

// TestAcceptsAndWaits: such a server's answer does not tell whether the stream is there, so it is fetched at once, and
// the viewer does not wait for it.
func TestAcceptsAndWaits(t *testing.T) {
	s := newServer(t)
	s.waits = true
	hold := make(chan struct{})
	r := newRelays(func(ctx context.Context, _ adapters.StreamID) error {
		select {
		case <-hold:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	n := newNode(t, s, func(o *Options) {
		a := o.Adapter.(adapter)
		a.traits.AcceptsAndWaits = true
		o.Adapter, o.Relays = a, r
	})
	s.set(func(http.ResponseWriter, *http.Request) bool {
		r.await(t, "fetched while the server is asked", func() bool { return r.waiting == 1 || r.acquired > 0 })
		return false
	})
	got := do(t, "POST", n.public.URL+"/live/demo/whep", offer, "Authorization", bearer)
	if got.Status != 201 {
		t.Fatalf("%+v", got)
	}
	s.set(nil)
	close(hold)
	r.await(t, "held", func() bool { return r.held == 1 })
	do(t, "DELETE", n.public.URL+got.Header.Get("Location"), "")
	r.await(t, "released", func() bool { return r.held == 0 })

	// A play that the server refuses is no demand.
	s.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(401); return true })
	if got := do(t, "POST", n.public.URL+"/live/demo/whep", offer); got.Status != 401 {
		t.Errorf("%+v", got)
	}
	r.await(t, "released", func() bool { return r.held == 0 && r.waiting == 0 })
}

// TestWaitingIsAskedAgain: a stream that nobody published when its viewer came is fetched soon after somebody does.
func TestWaitingIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target, _ := url.Parse("http://server")
		var published atomic.Bool
		r := newRelays(func(context.Context, adapters.StreamID) error {
			if !published.Load() {
				return adapters.ErrNoStream
			}
			return nil
		})
		var looks atomic.Int32
		g := New(Options{
			Adapter: adapter{base: target, traits: adapters.Traits{AcceptsAndWaits: true}}, Target: target, NodeID: "a", Relays: r,
			Transport: transport(func(*http.Request) *http.Response { looks.Add(1); return status(200) }),
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { _ = g.Run(ctx); close(ended) }()
		g.demand.add(&viewer{stream: "demo", path: "/s/1"})
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if got := looks.Load(); got != 1 {
			t.Errorf("%d looks at the session, want 1", got)
		}
		published.Store(true)
		time.Sleep(waitRetry)
		synctest.Wait()
		if r.holding() != 1 {
			t.Errorf("held %d", r.holding())
		}
		cancel()
		<-ended
	})
}
