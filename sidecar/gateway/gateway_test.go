package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
)

// problem fails the test unless an answer is a problem with words.
func (a answer) problem(t *testing.T, status int) {
	t.Helper()
	var p adapters.Problem
	if err := json.Unmarshal([]byte(a.Body), &p); err != nil || a.Header.Get("Content-Type") != adapters.ProblemType {
		t.Fatalf("%d %v %q is not a problem: %v", a.Status, a.Header, a.Body, err)
	}
	if a.Status != status || p.Status != status || p.Title == "" || p.Detail == "" {
		t.Fatalf("problem %d %+v, want %d", a.Status, p, status)
	}
}

func TestPassesOn(t *testing.T) {
	s := newServer(t)
	n := newNode(t, s, nil)
	for name, tt := range map[string]struct {
		method, path string
		header       []string
		want         seen
		absent       []string // header fields that must not arrive
		status       int
	}{
		"plain": {
			method: "GET", path: "/index.html", status: 200,
			want: seen{Path: "/index.html", Header: http.Header{
				"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"live.example.org"},
			}},
		},
		"escaped path and query": {
			method: "GET", path: "/a%2Fb/%C3%BC//c;d/?q=1;2&r=%zz", status: 200,
			want: seen{Path: "/a%2Fb/%C3%BC//c;d/", Query: "q=1;2&r=%zz"},
		},
		"authorization and hop by hop": {
			method: "GET", path: "/x", status: 200,
			header: []string{"Authorization", bearer, "Connection", "X-Hop", "X-Hop", "1", "Proxy-Authorization", "x"},
			want:   seen{Path: "/x", Header: http.Header{"Authorization": {bearer}}},
			absent: []string{"X-Hop", "Proxy-Authorization"},
		},
		"forged address": {
			method: "GET", path: "/x", status: 200,
			header: []string{"X-Forwarded-For", "127.0.0.9", "X-Forwarded-Proto", "https", "Forwarded", "for=1.2.3.4"},
			want:   seen{Path: "/x", Header: http.Header{"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}}},
			absent: []string{"Forwarded"},
		},
		"the server says which methods": {
			method: "PUT", path: "/live/demo/whep", status: 404, want: seen{Path: "/live/demo/whep"},
		},
		"preflight": {
			method: "OPTIONS", path: "/live/demo/whep", header: []string{"Origin", "https://example.org"}, status: 404,
			want: seen{Path: "/live/demo/whep", Header: http.Header{"Origin": {"https://example.org"}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.set(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == "GET" {
					return false
				}
				w.WriteHeader(http.StatusNotFound)
				return true
			})
			got := do(t, tt.method, n.public.URL+tt.path, "", append(tt.header, "Host", "live.example.org")...)
			if got.Status != tt.status {
				t.Errorf("status %d, want %d", got.Status, tt.status)
			}
			requests := s.requests()
			if len(requests) != 1 {
				t.Fatalf("server saw %+v", requests)
			}
			r := requests[0]
			if r.Method != tt.method || r.Path != tt.want.Path || r.Query != tt.want.Query || r.Host != "live.example.org" {
				t.Errorf("server saw %+v, want %+v", r, tt.want)
			}
			for field, values := range tt.want.Header {
				if diff := cmp.Diff(values, r.Header[field]); diff != "" {
					t.Errorf("%s (-want +got)\n%s", field, diff)
				}
			}
			for _, field := range tt.absent {
				if r.Header.Get(field) != "" {
					t.Errorf("%s arrived: %s", field, r.Header.Get(field))
				}
			}
		})
	}
}

func TestTrustedProxyIsContinued(t *testing.T) {
	s := newServer(t)
	n := newNode(t, s, func(o *Options) { o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	do(t, "GET", n.public.URL+"/x", "", "X-Forwarded-For", "192.0.2.7", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "a.example")
	h := s.requests()[0].Header
	if h.Get("X-Forwarded-For") != "192.0.2.7, 127.0.0.1" || h.Get("X-Forwarded-Proto") != "https" || h.Get("X-Forwarded-Host") != "a.example" {
		t.Errorf("server saw %v", h)
	}
}

func TestEventsAreFlushed(t *testing.T) {
	s := newServer(t)
	more := make(chan struct{})
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "event: active\n\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-more:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "event: inactive\n\n")
		return true
	})
	n := newNode(t, s, nil)
	req, _ := http.NewRequestWithContext(t.Context(), "GET", n.public.URL+SessionPrefix+"node-1/live/demo/whep/1/events/1", nil)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := bufio.NewReader(resp.Body)
	if line, err := events.ReadString('\n'); err != nil || line != "event: active\n" {
		t.Fatalf("%q, %v", line, err)
	}
	close(more) // only now: the first event came while the answer was open
	if rest, err := io.ReadAll(events); err != nil || string(rest) != "\nevent: inactive\n\n" {
		t.Fatalf("%q, %v", rest, err)
	}
}

func TestSessions(t *testing.T) {
	s := newServer(t, "demo")
	n := newNode(t, s, nil)
	for _, kind := range []string{"whep", "whip"} {
		opened := do(t, "POST", n.public.URL+"/live/demo/"+kind, offer, "Authorization", bearer)
		if opened.Status != 201 || opened.Body != "v=0\r\n" || opened.Header.Get("ETag") != `"1"` {
			t.Fatalf("%+v", opened)
		}
		location := opened.Header.Get("Location")
		own := strings.TrimPrefix(location, SessionPrefix+"node-1")
		if own == location || !strings.HasSuffix(own, "?secret=a%2Fb") {
			t.Fatalf("Location %q", location)
		}
		path, _, _ := strings.Cut(own, "?")
		wantLinks := []string{
			`<` + SessionPrefix + `node-1` + path + `/events>; rel="urn:ietf:params:whep:ext:core:server-sent-events"; events="a,b"`,
			`<turn:turn.example.org>; rel="ice-server"; username="a,<b>"; credential="c"`,
		}
		if diff := cmp.Diff(wantLinks, opened.Header["Link"]); diff != "" {
			t.Errorf("Link (-want +got)\n%s", diff)
		}
		s.requests()

		fragment := do(t, "PATCH", n.public.URL+location, "a=ice-ufrag:x\r\n", "Authorization", bearer, "If-Match", `"1"`,
			"Content-Type", "application/trickle-ice-sdpfrag")
		if fragment.Status != 204 {
			t.Errorf("PATCH %+v", fragment)
		}
		r := s.requests()[0]
		if r.Path != path || r.Query != "secret=a%2Fb" || r.Body != "a=ice-ufrag:x\r\n" || r.Header.Get("Authorization") != bearer ||
			r.Header.Get("If-Match") != `"1"` {
			t.Errorf("server saw %+v", r)
		}

		// An extension's own answer is renamed too, also where its Location is relative to the session.
		events := do(t, "POST", n.public.URL+SessionPrefix+"node-1"+path+"/events", `["active"]`, "Content-Type", "application/json")
		if want := SessionPrefix + "node-1" + path + "/events/1"; events.Status != 201 || events.Header.Get("Location") != want {
			t.Errorf("events %d at %q, want %q", events.Status, events.Header.Get("Location"), want)
		}

		// DELETE tells the truth, also by another gateway of the same node: nothing is remembered.
		again := newNode(t, s, nil)
		for _, want := range []int{200, 404} {
			if got := do(t, "DELETE", again.public.URL+location, ""); got.Status != want {
				t.Errorf("DELETE %d, want %d", got.Status, want)
			}
		}
	}
}

// looking counts how often it is told to look.
type looking struct {
	adapters.Adapter
	looks *int
}

func (l looking) Look() { *l.looks++ }

// A publication that passes makes an adapter that polls look at once; nothing else does.
func TestPublishMakesAdapterLook(t *testing.T) {
	s := newServer(t, "demo")
	target, _ := url.Parse(s.URL)
	looks := 0
	n := New(Options{Adapter: looking{adapter{base: target}, &looks}, Target: target, NodeID: "a"})
	for _, step := range []struct {
		path, kind string
		want       int
	}{
		{"/live/demo/whep", "application/sdp", 0},
		{"/live/demo/whip", "application/sdp", 1},
		{"/other", "text/plain", 1},
	} {
		r := httptest.NewRequest(http.MethodPost, step.path, strings.NewReader(offer)).WithContext(t.Context())
		r.Header.Set("Content-Type", step.kind)
		n.ServeHTTP(httptest.NewRecorder(), r)
		if looks != step.want {
			t.Errorf("POST %s: told to look %d times in all; want %d", step.path, looks, step.want)
		}
	}
	s.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusUnauthorized); return true })
	r := httptest.NewRequest(http.MethodPost, "/live/demo/whip", strings.NewReader(offer)).WithContext(t.Context())
	r.Header.Set("Content-Type", "application/sdp")
	n.ServeHTTP(httptest.NewRecorder(), r)
	if looks != 1 {
		t.Error("told to look after a publication that was refused")
	}
	n.o.Transport.(*http.Transport).CloseIdleConnections()
}

func TestAbsoluteSessionURLs(t *testing.T) {
	public, _ := url.Parse("https://germany.example.org/live/")
	for _, absolute := range []bool{false, true} {
		s := newServer(t, "demo")
		s.absolute = absolute
		n := newNode(t, s, func(o *Options) { o.PublicBaseURL = public })
		got := do(t, "POST", n.public.URL+"/live/demo/whep", offer).Header.Get("Location")
		if want := "https://germany.example.org/live" + SessionPrefix + "node-1/live/demo/whep/1?secret=a%2Fb"; got != want {
			t.Errorf("Location %q, want %q", got, want)
		}
	}
}

func TestLocationsOfOthers(t *testing.T) {
	s := newServer(t)
	n := newNode(t, s, nil)
	for name, tt := range map[string]struct {
		method, location string
		status           int
		want             string
	}{
		"redirect":               {"POST", "/live/x/whep", 307, "/live/x/whep"},
		"redirect to the inside": {"POST", s.URL + "/live/x/whep?a=1", 307, "/live/x/whep?a=1"},
		"redirect elsewhere":     {"POST", "https://other.example.org/x", 308, "https://other.example.org/x"},
		"session elsewhere":      {"POST", "https://other.example.org/x", 201, "https://other.example.org/x"},
		"counter-offer":          {"POST", "/s/1", 406, SessionPrefix + "node-1/s/1"},
		"climbing":               {"POST", "../../../../s/1", 201, SessionPrefix + "node-1/s/1"},
		"hidden climbing":        {"POST", "/s/%2e%2e/1", 201, "/s/%2e%2e/1"},
		"ours already":           {"POST", SessionPrefix + "x/s", 201, SessionPrefix + "x/s"},
		"no URL":                 {"POST", "http://[", 201, "http://["},
		"not a session":          {"GET", "/elsewhere", 201, "/elsewhere"},
	} {
		t.Run(name, func(t *testing.T) {
			s.set(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Location", tt.location)
				w.WriteHeader(tt.status)
				return true
			})
			body := ""
			if tt.method == "POST" {
				body = offer
			}
			got := do(t, tt.method, n.public.URL+"/live/demo/whip", body)
			if got.Status != tt.status || got.Header.Get("Location") != tt.want {
				t.Errorf("%d %q, want %q", got.Status, got.Header.Get("Location"), tt.want)
			}
		})
	}
}

func TestSessionsOfOtherNodes(t *testing.T) {
	far := newServer(t, "demo")
	public, _ := url.Parse("https://singapore.example.org")
	farNode := newNode(t, far, func(o *Options) { o.NodeID = "node-2"; o.PublicBaseURL = public })
	near := newServer(t)
	base, _ := url.Parse(farNode.peer.URL)
	dead, _ := url.Parse("http://127.0.0.1:1")
	nearBase, _ := url.Parse("https://germany.example.org/base")
	nearNode := newNode(t, near, func(o *Options) {
		o.PublicBaseURL = nearBase
		o.Forward = func(node string) (*url.URL, http.RoundTripper, bool) {
			switch node {
			case "node-2":
				return base, client.Transport, true
			case "node-3":
				return dead, client.Transport, true
			}
			return nil, nil, false
		}
	})

	location := do(t, "POST", farNode.public.URL+"/live/demo/whep", offer).Header.Get("Location")
	path := strings.TrimPrefix(location, public.String())
	far.requests()
	if got := do(t, "PATCH", nearNode.public.URL+path, "a=x", "Authorization", bearer, "X-Forwarded-For", "1.2.3.4",
		"Host", "germany.example.org"); got.Status != 204 {
		t.Errorf("PATCH %+v", got)
	}
	r := far.requests()[0]
	if r.Path != "/live/demo/whep/1" || r.Query != "secret=a%2Fb" || r.Header.Get("Authorization") != bearer || r.Body != "a=x" ||
		r.Header.Get("X-Forwarded-For") != "127.0.0.1, 127.0.0.1" || r.Header.Get("X-Forwarded-Host") != "germany.example.org" {
		t.Errorf("server saw %+v", r)
	}
	events := do(t, "POST", nearNode.public.URL+SessionPrefix+"node-2/live/demo/whep/1/events", "[]", "Content-Type", "application/json")
	if want := nearBase.String() + SessionPrefix + "node-2/live/demo/whep/1/events/1"; events.Header.Get("Location") != want {
		t.Errorf("events at %q, want %q", events.Header.Get("Location"), want)
	}
	for _, want := range []int{200, 404} {
		if got := do(t, "DELETE", nearNode.public.URL+path, ""); got.Status != want {
			t.Errorf("DELETE %d, want %d", got.Status, want)
		}
	}
	do(t, "DELETE", nearNode.public.URL+SessionPrefix+"node-9/live/demo/whep/1", "").problem(t, 404)
	do(t, "DELETE", nearNode.public.URL+SessionPrefix+"node-3/live/demo/whep/1", "").problem(t, 502)
	do(t, "DELETE", newNode(t, near, nil).public.URL+path, "").problem(t, 404)
	// A peer port passes nothing on to third nodes, so that no two gateways play ball.
	do(t, "DELETE", nearNode.peer.URL+path, "").problem(t, 404)
	if got := near.requests(); len(got) > 0 {
		t.Errorf("the near server saw %+v", got)
	}
}

// TestHostileURLs sends what no client library would.
func TestHostileURLs(t *testing.T) {
	s := newServer(t, "demo")
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("led elsewhere") }))
	defer trap.Close()
	elsewhere := strings.TrimPrefix(trap.URL, "http://")
	n := newNode(t, s, func(o *Options) {
		o.Forward = func(node string) (*url.URL, http.RoundTripper, bool) {
			t.Errorf("node %q was asked for", node)
			return nil, nil, false
		}
	})
	for _, target := range []string{
		"/_sidestream", "/_sidestream/", "/_sidestream/node-1", "/_sidestream//live", "/_sidestream/./live", "/_sidestream/../live/x",
		"/_sidestream/node-1//" + elsewhere + "/x", "/_sidestream/node-1/%2F" + elsewhere,
		"/_sidestream/node-1/../../etc", "/_sidestream/node-1/a/%2e%2e/b", "/_sidestream/node-1/a/..%2fb", "/_sidestream/node-1/a%5c..%5cb",
		`/_sidestream/node-1/a\b`, "/_sidestream/node-1/a%00b", "/_sidestream/node-1/a%0d%0ab", "/_sidestream/node%2D1/a",
		"/_sidestream/node-1/_sidestream/node-1/a", "/_sidestream/node-1/%5fsidestream/node-1/a", "/%5Fsidestream/node-1/a",
		"/_sidestream/no@de:80/a", "/_sidestream/" + elsewhere + "/a", "/_sidestream/" + strings.Repeat("a", 600) + "/x",
		"/_sidestream-pull/node-1/ZGVtbw/live/demo/whep/1", "/_sidestream-pull/",
	} {
		status := raw(t, n.public, "POST "+target+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		if status != 404 && status != 400 {
			t.Errorf("%s: %d", target, status)
		}
		if got := s.requests(); len(got) > 0 {
			t.Errorf("%s reached the server: %+v", target, got)
		}
	}
	// What is the server's own goes there, wherever the request says it wants to go.
	for _, line := range []string{"GET http://" + elsewhere + "/x HTTP/1.1\r\nHost: " + elsewhere, "GET //" + elsewhere + "/x HTTP/1.1\r\nHost: x"} {
		if status := raw(t, n.public, line+"\r\nConnection: close\r\n\r\n"); status != 200 || len(s.requests()) != 1 {
			t.Errorf("%s: %d", line, status)
		}
	}
	for _, line := range []string{"CONNECT " + elsewhere + " HTTP/1.1\r\nHost: " + elsewhere, "GET * HTTP/1.1\r\nHost: x"} {
		if status := raw(t, n.public, line+"\r\nConnection: close\r\n\r\n"); status != 400 || len(s.requests()) != 0 {
			t.Errorf("%s: %d", line, status)
		}
	}
}

// raw sends bytes and yields the answer's status.
func raw(t *testing.T, to *httptest.Server, request string) int {
	t.Helper()
	conn, err := net.Dial("tcp", to.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestBodies(t *testing.T) {
	s := newServer(t, "demo")
	n := newNode(t, s, nil)
	location := do(t, "POST", n.public.URL+"/live/demo/whep", offer).Header.Get("Location")
	s.requests()
	candidates := strings.Repeat("a=candidate:1 1 udp 1 192.0.2.1 1 typ host\r\n", 1000)
	for _, url := range []string{"/live/demo/whep", "/live/demo/whip", "/live/demo/whep/1", location} {
		for name, body := range map[string]string{"300 KiB": strings.Repeat("x", 300<<10), "1,000 candidates": candidates} {
			method := "POST"
			if strings.Contains(url, "/1") {
				method = "PATCH"
			}
			got := do(t, method, n.public.URL+url, body, "Origin", "https://example.org")
			got.problem(t, 413)
			if got.Header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%s of %s: a page cannot read why", method, name)
			}
		}
	}
	if got := s.requests(); len(got) > 0 {
		t.Errorf("server saw %d requests", len(got))
	}
	// What is no offer is the server's own affair, however large.
	if got := do(t, "PUT", n.public.URL+"/upload", strings.Repeat("x", 300<<10), "Content-Type", "video/mp4"); got.Status != 200 {
		t.Errorf("upload %d", got.Status)
	}
	if got := s.requests(); len(got) != 1 || len(got[0].Body) != 300<<10 {
		t.Errorf("server saw %d requests", len(got))
	}
	if got := raw(t, n.public, "POST /live/demo/whep HTTP/1.1\r\nHost: x\r\nContent-Type: application/sdp\r\n"+
		"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nnonsense\r\n"); got != 400 {
		t.Errorf("broken body %d", got)
	}
}

func TestPullTokenStaysOutside(t *testing.T) {
	s := newServer(t, "demo")
	tokens := NewTokens(nil)
	n := newNode(t, s, func(o *Options) { o.Tokens = tokens })
	for _, path := range []string{"/live/demo/whep", "/whep/demo", "/x", SessionPrefix + "node-1/live/demo/whep/1"} {
		do(t, "POST", n.public.URL+path, offer, PullTokenHeader, tokens.Issue("child", "demo")).problem(t, 403)
	}
	if got := s.requests(); len(got) > 0 {
		t.Errorf("server saw %+v", got)
	}
	if got := n.metric(t, "sidestream_gateway_refusals_total", "pull_token"); got != 4 {
		t.Errorf("%v refusals counted", got)
	}
	if !strings.Contains(n.log.String(), "pull token at the public port") {
		t.Errorf("no audit line: %s", n.log)
	}
}

func TestServerDown(t *testing.T) {
	s := newServer(t)
	n := newNode(t, s, nil)
	if err := n.Ready(t.Context()); err != nil {
		t.Errorf("ready: %v", err)
	}
	if got := s.requests(); len(got) != 1 || got[0].Method != "OPTIONS" {
		t.Errorf("readiness asked %+v", got)
	}
	s.Close()
	if err := n.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "ask media server") {
		t.Errorf("ready: %v", err)
	}
	do(t, "GET", n.public.URL+"/x", "").problem(t, 502)
	got := do(t, "POST", n.public.URL+"/live/demo/whep", offer)
	got.problem(t, 502)
	if got.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestNothingGivenNothingMissed(t *testing.T) {
	target, _ := url.Parse("http://127.0.0.1:1")
	n := New(Options{Adapter: adapter{base: target}, Target: target, NodeID: "a"})
	w := httptest.NewRecorder()
	n.ServeHTTP(w, httptest.NewRequest("GET", "/x", nil).WithContext(t.Context()))
	if w.Code != 502 {
		t.Errorf("status %d", w.Code)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Run(ctx); err != context.Canceled {
		t.Errorf("Run: %v", err)
	}
	registry := prometheus.NewRegistry()
	newMetrics(registry)
	if _, err := registry.Gather(); err != nil {
		t.Error(err)
	}
}
