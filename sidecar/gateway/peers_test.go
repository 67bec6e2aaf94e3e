package gateway

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
)

func TestPulls(t *testing.T) {
	s := newServer(t, "a/ü")
	s.answer = "v=0\r\nm=audio 9 x\r\na=candidate:1 1 udp 5 203.0.113.7 8801 typ host\r\n"
	tokens := NewTokens(nil)
	n := newNode(t, s, func(o *Options) { o.Tokens, o.PodIP = tokens, netip.MustParseAddr("10.0.0.7") })
	pull := n.peer.URL + "/whep/a/%C3%BC"
	got := do(t, "POST", pull, offer, PullTokenHeader, tokens.Issue("child-9", "a/ü"), "Authorization", bearer, "Cookie", "c=1",
		"Accept-Encoding", "gzip")
	if got.Status != 201 || !strings.Contains(got.Body, "10.0.0.7 8801 typ host\r\n") || !strings.HasPrefix(got.Body, s.answer) {
		t.Fatalf("%+v", got)
	}
	location := got.Header.Get("Location")
	if want := pullPrefix + "node-1/" + base64.RawURLEncoding.EncodeToString([]byte("a/ü")) + "/live/a/%C3%BC/whep/1?secret=a%2Fb"; location != want {
		t.Errorf("Location %q, want %q", location, want)
	}
	if got := do(t, "PATCH", n.peer.URL+location, "a=x", "Authorization", bearer); got.Status != 204 {
		t.Errorf("PATCH %+v", got)
	}
	for _, want := range []int{200, 404} {
		if got := do(t, "DELETE", n.peer.URL+location, "", PullTokenHeader, "stale"); got.Status != want {
			t.Errorf("DELETE %d, want %d", got.Status, want)
		}
	}
	for i, r := range s.requests() {
		if r.Header.Get("Authorization") != sidecar || r.Header.Get("Cookie") != "" || r.Header.Get(PullTokenHeader) != "" {
			t.Errorf("request %d with %v", i, r.Header)
		}
		if i == 0 && (r.Path != "/live/a/%C3%BC/whep" || r.Query != "" || r.Body != offer || "http://"+r.Host != s.URL) {
			t.Errorf("the server saw %+v", r)
		}
	}
	for _, want := range []string{"child=child-9", "stream=a/ü", "outcome=opened", "status=201"} {
		if !strings.Contains(n.log.String(), want) {
			t.Errorf("audit line lacks %s: %s", want, n.log)
		}
	}
	if n.metric(t, "sidestream_gateway_pulls_total", "opened") != 1 {
		t.Error("the pull is not counted")
	}
}

func TestPullKeepsChildsCredentialsOut(t *testing.T) {
	s := newServer(t, "demo")
	tokens := NewTokens(nil)
	n := newNode(t, s, func(o *Options) {
		a := o.Adapter.(adapter)
		a.open = true
		o.Adapter, o.Tokens = a, tokens
	})
	got := do(t, "POST", n.peer.URL+"/whep/demo", offer, PullTokenHeader, tokens.Issue("child", "demo"), "Authorization", bearer)
	if got.Status != 201 {
		t.Fatalf("%+v", got)
	}
	do(t, "DELETE", n.peer.URL+got.Header.Get("Location"), "", "Authorization", bearer)
	for _, r := range s.requests() {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s came with %v", r.Method, r.Header)
		}
	}
}

func TestPullsRefused(t *testing.T) {
	s := newServer(t, "demo")
	clock := time.Now()
	tokens := NewTokens(func() time.Time { return clock })
	n := newNode(t, s, func(o *Options) { o.Tokens = tokens })
	good := tokens.Issue("child", "demo")
	clock = clock.Add(-2 * TokenLife)
	stale := tokens.Issue("child", "demo")
	clock = clock.Add(2 * TokenLife)
	for name, tt := range map[string]struct {
		method, path, token, contentType, body string
		status                                 int
		outcome                                string
	}{
		"no token":       {"POST", "/whep/demo", "", "application/sdp", offer, 403, "bad_token"},
		"nonsense":       {"POST", "/whep/demo", "nonsense", "application/sdp", offer, 403, "bad_token"},
		"other stream":   {"POST", "/whep/demo2", good, "application/sdp", offer, 403, "bad_token"},
		"other issuer":   {"POST", "/whep/demo", NewTokens(nil).Issue("child", "demo"), "application/sdp", offer, 403, "bad_token"},
		"expired":        {"POST", "/whep/demo", stale, "application/sdp", offer, 403, "bad_token"},
		"no name":        {"POST", "/whep/", good, "application/sdp", offer, 400, "bad_name"},
		"dotted":         {"POST", "/whep/%2e%2e/demo", good, "application/sdp", offer, 400, "bad_name"},
		"method":         {"GET", "/whep/demo", good, "", "", 405, "bad_method"},
		"type":           {"POST", "/whep/demo", good, "text/plain", offer, 415, "bad_body"},
		"size":           {"POST", "/whep/demo", good, "application/sdp", strings.Repeat("x", 300<<10), 413, "bad_body"},
		"another path":   {"POST", "/live/demo/whep", good, "application/sdp", offer, 404, ""},
		"other node":     {"DELETE", SessionPrefix + "node-2/live/demo/whep/1", "", "", "", 404, ""},
		"other parent":   {"DELETE", pullPrefix + "node-2/ZGVtbw/live/demo/whep/1", "", "", "", 404, ""},
		"no stream":      {"DELETE", pullPrefix + "node-1/Li4/live/demo/whep/1", "", "", "", 404, ""},
		"credentials":    {"POST", pullPrefix + "node-1/ZGVtbw/live/other/whep", "", "application/sdp", offer, 404, ""},
		"dots in a pull": {"DELETE", pullPrefix + "node-1/ZGVtbw/live/%2e%2e/secret", "", "", "", 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := n.metric(t, "sidestream_gateway_pulls_total", tt.outcome)
			header := []string{"Content-Type", tt.contentType}
			if tt.token != "" {
				header = append(header, PullTokenHeader, tt.token)
			}
			do(t, tt.method, n.peer.URL+tt.path, tt.body, header...).problem(t, tt.status)
			if got := s.requests(); len(got) > 0 {
				t.Errorf("server saw %+v", got)
			}
			if tt.outcome != "" && n.metric(t, "sidestream_gateway_pulls_total", tt.outcome) != before+1 {
				t.Errorf("not counted as %s", tt.outcome)
			}
		})
	}
	if strings.Contains(n.log.String(), good) || strings.Contains(n.log.String(), stale) {
		t.Error("a token is in the log")
	}
	do(t, "POST", newNode(t, s, nil).peer.URL+"/whep/demo", offer, PullTokenHeader, good).problem(t, 403)
}

func TestTooManyPulls(t *testing.T) {
	s := newServer(t, "demo")
	inside, let := make(chan struct{}), make(chan struct{})
	s.set(func(http.ResponseWriter, *http.Request) bool { inside <- struct{}{}; <-let; return false })
	tokens := NewTokens(nil)
	n := newNode(t, s, func(o *Options) { o.Tokens, o.MaxPulls = tokens, 1 })
	first := make(chan int)
	token := tokens.Issue("child", "demo")
	go func() {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", n.peer.URL+"/whep/demo", strings.NewReader(offer))
		req.Header = http.Header{"Content-Type": {"application/sdp"}, PullTokenHeader: {token}}
		resp, err := client.Do(req)
		if err != nil {
			first <- 0
			return
		}
		resp.Body.Close()
		first <- resp.StatusCode
	}()
	<-inside
	got := do(t, "POST", n.peer.URL+"/whep/demo", offer, PullTokenHeader, token)
	got.problem(t, 503)
	if got.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	close(let)
	if got := <-first; got != 201 {
		t.Errorf("the first pull: %d", got)
	}
}

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := NewTokens(nil)
		token := tokens.Issue("child", "demo")
		if child, err := tokens.Verify(token, "demo"); child != "child" || err != nil {
			t.Errorf("%q, %v", child, err)
		}
		if a, b := tokens.Issue("ab", "c"), tokens.Issue("a", "bc"); a[:43] == b[:43] {
			t.Error("child and stream run together")
		}
		for i := range token {
			for _, c := range []byte{'A', 'B', '_', '=', 0} {
				if forged := token[:i] + string(c) + token[i+1:]; forged != token {
					if _, err := tokens.Verify(forged, "demo"); !errors.Is(err, ErrToken) {
						t.Fatalf("byte %d as %q: %v", i, c, err)
					}
				}
			}
			if _, err := tokens.Verify(token[:i], "demo"); !errors.Is(err, ErrToken) {
				t.Fatalf("the first %d bytes: %v", i, err)
			}
		}
		for _, stream := range []adapters.StreamID{"", "demo2", "dem"} {
			if _, err := tokens.Verify(token, stream); !errors.Is(err, ErrToken) {
				t.Errorf("stream %q: %v", stream, err)
			}
		}
		if _, err := tokens.Verify(strings.Repeat("A", 1<<20), "demo"); !errors.Is(err, ErrToken) {
			t.Error(err)
		}
		time.Sleep(TokenLife - 2*time.Second)
		if _, err := tokens.Verify(token, "demo"); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		if _, err := tokens.Verify(token, "demo"); !errors.Is(err, ErrTokenExpired) {
			t.Errorf("after a minute: %v", err)
		}
	})
}

var testIP = netip.MustParseAddr("10.0.0.7")

func TestAddCandidate(t *testing.T) {
	const head = "v=0\r\nm=video 9 x 96\r\na=mid:0\r\n"
	const added = "a=candidate:sidestream0 1 udp 2130706431 10.0.0.7 "
	for name, tt := range map[string]struct{ in, ip, want string }{
		"public only": {
			head + "a=candidate:1 1 udp 9 203.0.113.7 8801 typ host\r\na=end-of-candidates\r\n", "10.0.0.7",
			head + "a=candidate:1 1 udp 9 203.0.113.7 8801 typ host\r\n" + added + "8801 typ host\r\na=end-of-candidates\r\n",
		},
		"own address is there": {
			head + "a=candidate:1 1 udp 9 203.0.113.7 8801 typ host\r\na=candidate:2 1 UDP 8 10.0.0.7 8801 typ host\r\n", "10.0.0.7", "",
		},
		"own address by TCP only": {
			head + "a=candidate:1 1 tcp 9 10.0.0.7 8800 typ host tcptype passive\r\na=candidate:2 1 udp 8 203.0.113.7 8801 typ host\r\n",
			"10.0.0.7",
			head + "a=candidate:1 1 tcp 9 10.0.0.7 8800 typ host tcptype passive\r\na=candidate:2 1 udp 8 203.0.113.7 8801 typ host\r\n" +
				added + "8801 typ host\r\n",
		},
		"behind translation": {
			head + "a=candidate:1 1 udp 9 203.0.113.7 40000 typ srflx raddr 0.0.0.0 rport 8801 generation 0\r\n", "10.0.0.7",
			head + "a=candidate:1 1 udp 9 203.0.113.7 40000 typ srflx raddr 0.0.0.0 rport 8801 generation 0\r\n" + added + "8801 typ host\r\n",
		},
		"name": {
			head + "a=candidate:1 1 udp 9 x.local 8801 typ host\r\n", "10.0.0.7",
			head + "a=candidate:1 1 udp 9 x.local 8801 typ host\r\n" + added + "8801 typ host\r\n",
		},
		"two ports, one twice, line feeds": {
			"m=a\na=candidate:1 1 udp 9 1.2.3.4 1 typ host\na=candidate:2 1 udp 9 1.2.3.5 2 typ host\na=candidate:3 1 udp 9 1.2.3.6 1 typ host\n", "10.0.0.7",
			"m=a\na=candidate:1 1 udp 9 1.2.3.4 1 typ host\na=candidate:2 1 udp 9 1.2.3.5 2 typ host\na=candidate:3 1 udp 9 1.2.3.6 1 typ host\n" +
				added + "1 typ host\n" + "a=candidate:sidestream1 1 udp 2130706431 10.0.0.7 2 typ host\n",
		},
		"two sections": {
			head + "a=candidate:1 1 udp 9 1.2.3.4 1 typ host\r\nm=audio 9 x\r\na=candidate:1 1 udp 9 1.2.3.4 2 typ host\r\n", "10.0.0.7",
			head + "a=candidate:1 1 udp 9 1.2.3.4 1 typ host\r\n" + added + "1 typ host\r\nm=audio 9 x\r\n" +
				"a=candidate:1 1 udp 9 1.2.3.4 2 typ host\r\n" + added + "2 typ host\r\n",
		},
		"no last line end": {
			head + "a=candidate:1 1 udp 9 1.2.3.4 1 typ host", "10.0.0.7",
			head + "a=candidate:1 1 udp 9 1.2.3.4 1 typ host\r\n" + added + "1 typ host\r\n",
		},
		"IPv6": {
			head + "a=candidate:1 1 udp 9 1.2.3.4 1 typ host\r\n", "fd00::7",
			head + "a=candidate:1 1 udp 9 1.2.3.4 1 typ host\r\na=candidate:sidestream0 1 udp 2130706431 fd00::7 1 typ host\r\n",
		},
		"relay only":    {head + "a=candidate:1 1 udp 9 1.2.3.4 1 typ relay raddr 0.0.0.0 rport 0\r\n", "10.0.0.7", ""},
		"TCP only":      {head + "a=candidate:1 1 tcp 9 1.2.3.4 1 typ host tcptype passive\r\n", "10.0.0.7", ""},
		"RTCP only":     {head + "a=candidate:1 2 udp 9 1.2.3.4 1 typ host\r\n", "10.0.0.7", ""},
		"none":          {head, "10.0.0.7", ""},
		"nonsense":      {"a=candidate:\r\na=candidate:1 1 udp x typ\r\na=candidate:1 1 udp 9 a 99999 typ host\r\n\r\n\n", "10.0.0.7", ""},
		"empty":         {"", "10.0.0.7", ""},
		"no pod IP":     {head + "a=candidate:1 1 udp 9 1.2.3.4 1 typ host\r\n", "", ""},
		"mapped pod IP": {head + "a=candidate:1 1 udp 9 10.0.0.7 1 typ host\r\n", "::ffff:10.0.0.7", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.want == "" {
				tt.want = tt.in
			}
			ip, _ := netip.ParseAddr(tt.ip)
			got := addCandidate([]byte(tt.in), ip)
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(string(got), string(addCandidate(got, ip))); diff != "" {
				t.Errorf("a second time (-once +twice)\n%s", diff)
			}
		})
	}
}
