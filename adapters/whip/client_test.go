package whip

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/logging"
	"github.com/pion/stun/v4"
	"github.com/pion/turn/v5"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
)

func TestPublishDeliversPackets(t *testing.T) {
	f := newFake(t, nil)
	s, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	connected(t, s)
	wantPackets(t, f.packets, 50)
	if got, want := s.Location().String(), f.http.URL+"/session/"; !strings.HasPrefix(got, want) {
		t.Errorf("Location %s is not below %s", got, want)
	}
	closeSession(t, s)
	if err := s.Wait(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Wait after Close: %v", err)
	}
	if n := f.open(); n != 0 {
		t.Errorf("%d sessions left", n)
	}
}

func TestPlayDeliversPackets(t *testing.T) {
	f := newFake(t, nil)
	packets := make(chan struct{}, 1000)
	s, err := f.client().Play(t.Context(), f.endpoint("/whep/a"), player(packets))
	if err != nil {
		t.Fatal(err)
	}
	connected(t, s)
	wantPackets(t, packets, 50)
	closeSession(t, s)
}

func TestDefaultHTTPClientAndSetup(t *testing.T) {
	f := newFake(t, nil)
	t.Cleanup(defaultHTTP.CloseIdleConnections)
	s, err := new(Client).Play(t.Context(), f.endpoint("/whep/a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	connected(t, s)
	closeSession(t, s)
	offer := f.of(http.MethodPost)[0].body
	for _, want := range []string{"m=audio", "m=video", "a=recvonly"} {
		if !strings.Contains(offer, want) {
			t.Errorf("offer without %s", want)
		}
	}
	if _, err := new(Client).Publish(t.Context(), f.endpoint("/whip/a"), nil); err == nil {
		t.Error("publish of nothing is accepted")
	}
	if _, err := new(Client).Play(t.Context(), adapters.Endpoint{}, nil); err == nil {
		t.Error("play from nowhere is accepted")
	}
}

func TestC1FullICEActpass(t *testing.T) {
	f := newFake(t, nil)
	s, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	closeSession(t, s)
	post := f.of(http.MethodPost)[0]
	if got := post.header.Get("Content-Type"); got != "application/sdp" {
		t.Errorf("Content-Type %q", got)
	}
	for _, want := range []string{
		"a=setup:actpass", "a=ice-options:trickle", "a=rtcp-mux", "a=sendonly", "a=group:BUNDLE", "a=candidate:",
	} {
		if !strings.Contains(post.body, want) {
			t.Errorf("offer without %s", want)
		}
	}
	if strings.Contains(post.body, "a=ice-lite") {
		t.Error("offer of a lite agent")
	}
}

// slowSTUN is a STUN server that answers once it is released, with the address that the request came from.
type slowSTUN struct {
	url     string
	release func()
}

func newSlowSTUN(t *testing.T) slowSTUN {
	t.Helper()
	checkLeaks(t)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDP(buf)
			if err != nil {
				return
			}
			select {
			case <-released:
			case <-t.Context().Done():
				return
			}
			request := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
			if request.Decode() != nil {
				continue
			}
			answer, err := stun.Build(stun.NewTransactionIDSetter(request.TransactionID), stun.BindingSuccess,
				&stun.XORMappedAddress{IP: from.IP, Port: from.Port}, stun.Fingerprint)
			if err == nil {
				_, _ = conn.WriteToUDP(answer.Raw, from)
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		serving.Wait()
	})
	return slowSTUN{"stun:" + conn.LocalAddr().String(), sync.OnceFunc(func() { close(released) })}
}

// with makes connections that use an ICE server, whatever the media server says.
func with(urls ...string) func(webrtc.Configuration) (*webrtc.PeerConnection, error) {
	return func(c webrtc.Configuration) (*webrtc.PeerConnection, error) {
		c.ICEServers = append(c.ICEServers, webrtc.ICEServer{URLs: urls})
		return media.Transport{Loopback: true}.NewPeerConnection(c)
	}
}

func TestC2OneAggregatedPatchWithETag(t *testing.T) {
	stunServer := newSlowSTUN(t)
	f := newFake(t, func(f *fake) {
		// What connects must have come by PATCH.
		f.deaf = func(*http.Request) bool { return true }
		f.intercept = func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
			if r.Method == http.MethodPost {
				stunServer.release()
			}
			return false
		}
	})
	c := f.client()
	c.NewPeerConnection = with(stunServer.url)
	c.bounds.aggregate = 10 * time.Second
	s, err := c.Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	defer closeSession(t, s)
	offer := f.of(http.MethodPost)[0].body
	if !strings.Contains(offer, "typ host") || strings.Contains(offer, "typ srflx") {
		t.Errorf("offer should hold host candidates and none of STUN:\n%s", offer)
	}
	patches := f.of(http.MethodPatch)
	if len(patches) != 1 {
		t.Fatalf("%d PATCHes, want 1", len(patches))
	}
	p := patches[0]
	if got := p.header.Get("Content-Type"); got != "application/trickle-ice-sdpfrag" {
		t.Errorf("Content-Type %q", got)
	}
	if got := p.header.Get("If-Match"); got != `"first"` {
		t.Errorf("If-Match %q", got)
	}
	if got := p.header.Get("Authorization"); got != "Bearer secret" {
		t.Errorf("Authorization %q", got)
	}
	if got := s.Location().Path; p.path != got {
		t.Errorf("PATCH to %s, want %s", p.path, got)
	}
	fragment, err := ParseFragment([]byte(p.body))
	if err != nil {
		t.Fatal(err)
	}
	if len(fragment.Media) != 1 || fragment.Media[0].MID != "0" || !fragment.Media[0].EndOfCandidates {
		t.Errorf("fragment %+v", fragment)
	}
	if ufrag, pwd := fragment.Credentials(); !strings.Contains(offer, "a=ice-ufrag:"+ufrag+"\r\n") ||
		!strings.Contains(offer, "a=ice-pwd:"+pwd+"\r\n") {
		t.Errorf("credentials %q %q are not of the offer", ufrag, pwd)
	}
	for _, candidate := range fragment.AllCandidates() {
		if strings.Contains(offer, candidate) || !strings.Contains(candidate, "typ srflx") {
			t.Errorf("candidate %q is not news", candidate)
		}
	}
	connected(t, s)
	wantPackets(t, f.packets, 10)
}

func TestC2NothingTrickledWhenOfferHoldsAll(t *testing.T) {
	f := newFake(t, func(f *fake) { f.etag = "" })
	s, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	connected(t, s)
	closeSession(t, s)
	if body := f.of(http.MethodPost)[0].body; !strings.Contains(body, "a=end-of-candidates") {
		t.Errorf("offer lacks candidates:\n%s", body)
	}
	for _, method := range []string{http.MethodOptions, http.MethodPatch} {
		if n := len(f.of(method)); n != 0 {
			t.Errorf("%d %s requests, want none", n, method)
		}
	}
}

func TestC2PatchOnlyWhenAllowed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		created http.Header // of the 201
		options http.Header // of the answer to OPTIONS, which is 405 without
		asked   int
		patches int
	}{
		{"ETag", http.Header{"Etag": {`"first"`}}, nil, 0, 1},
		{"Accept-Patch", http.Header{"Accept-Patch": {"application/x, Application/trickle-ice-sdpfrag;a=b"}}, nil, 0, 1},
		{
			"Accept-Patch of something else",
			http.Header{"Accept-Patch": {"application/json"}, "Etag": {`"first"`}},
			nil,
			1, 0,
		},
		{"OPTIONS allows", nil, http.Header{"Allow": {"OPTIONS, PATCH", "DELETE"}}, 1, 1},
		{"OPTIONS allows other origins", nil, http.Header{"Access-Control-Allow-Methods": {"POST, PATCH"}}, 1, 1},
		{"OPTIONS does not allow", nil, http.Header{"Allow": {"OPTIONS, DELETE"}}, 1, 0},
		{"OPTIONS says nothing", nil, http.Header{}, 1, 0},
		{"OPTIONS is refused", nil, nil, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stunServer := newSlowSTUN(t)
			f := newFake(t, func(f *fake) {
				f.header, f.etag = tt.created, tt.created.Get("ETag")
				f.deaf = func(*http.Request) bool { return true }
				f.intercept = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
					switch {
					case r.Method == http.MethodPost:
						stunServer.release()
					case r.Method == http.MethodOptions && tt.options != nil:
						for name, values := range tt.options {
							w.Header()[name] = values
						}
						return true
					}
					return false
				}
			})
			c := f.client()
			c.NewPeerConnection = with(stunServer.url)
			c.bounds.aggregate = 10 * time.Second
			s, err := c.Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
			if err != nil {
				t.Fatal(err)
			}
			closeSession(t, s)
			if n := len(f.of(http.MethodOptions)); n != tt.asked {
				t.Errorf("asked %d times, want %d", n, tt.asked)
			}
			patches := f.of(http.MethodPatch)
			if len(patches) != tt.patches {
				t.Errorf("%d PATCHes, want %d", len(patches), tt.patches)
			}
			for _, p := range patches {
				if got := p.header.Get("If-Match"); got != f.etag {
					t.Errorf("If-Match %q, want %q", got, f.etag)
				}
			}
		})
	}
}

// A STUN server that never answers holds up neither the offer nor a session that connects without it.
func TestC2OfferIsEarly(t *testing.T) {
	stunServer := newSlowSTUN(t)
	f := newFake(t, nil)
	c := f.client()
	c.NewPeerConnection = with(stunServer.url)
	begin := time.Now()
	s, err := c.Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	connected(t, s)
	// Pion waits five seconds for the STUN server.
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("connected after %s", took)
	}
	closeSession(t, s)
}

func TestC3ETagIsKeptForARestart(t *testing.T) {
	f := newFake(t, func(f *fake) { f.etag = `"generation-1"` })
	s, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	defer closeSession(t, s)
	if s.ETag() != `"generation-1"` {
		t.Errorf("ETag %q", s.ETag())
	}
}

func TestC4RedirectKeepsAuthorization(t *testing.T) {
	for _, code := range []int{http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			target := newFake(t, nil)
			front := newFake(t, func(f *fake) {
				f.intercept = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
					w.Header().Set("Location", target.http.URL+r.URL.Path)
					w.WriteHeader(code)
					return true
				}
			})
			s, err := front.client().Publish(t.Context(), front.endpoint("/whip/a"), publisher(t))
			if err != nil {
				t.Fatal(err)
			}
			connected(t, s)
			closeSession(t, s)
			first, second := front.of(http.MethodPost)[0], target.of(http.MethodPost)[0]
			if got := second.header.Get("Authorization"); got != "Bearer secret" {
				t.Errorf("Authorization %q", got)
			}
			if got := second.header.Get("Content-Type"); got != ContentTypeSDP {
				t.Errorf("Content-Type %q", got)
			}
			if diff := cmp.Diff(first.body, second.body); diff != "" || first.body == "" {
				t.Errorf("offer differs (-first +second):\n%s", diff)
			}
			if len(front.of(http.MethodDelete)) != 0 || len(target.of(http.MethodDelete)) != 1 {
				t.Error("DELETE did not go to the session's own server")
			}
		})
	}
}

func TestC4RefusesOtherRedirects(t *testing.T) {
	for _, code := range []int{300, 301, 302, 303, 304, 399} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			f := newFake(t, func(f *fake) {
				f.intercept = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
					w.Header().Set("Location", "/whip/b")
					w.WriteHeader(code)
					return true
				}
			})
			_, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
			var refusal *StatusError
			if !errors.As(err, &refusal) || refusal.Code != code || !strings.Contains(err.Error(), "307") {
				t.Errorf("error %v", err)
			}
			if n := len(f.seen); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestC4RedirectsAreBounded(t *testing.T) {
	for name, location := range map[string]string{
		"loop": "/whip/a", "nowhere": "", "another scheme": "ftp://127.0.0.1/whip/a", "no URL": "http://[",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, func(f *fake) {
				f.intercept = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
					if location != "" {
						w.Header().Set("Location", location)
					}
					w.WriteHeader(http.StatusTemporaryRedirect)
					return true
				}
			})
			if _, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t)); err == nil {
				t.Error("no error")
			}
			if n := len(f.seen); n > maxRedirects+1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestC4NoAuthorizationFromHTTPSToHTTP(t *testing.T) {
	target := newFake(t, nil)
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			t.Error("no Authorization on the first request")
		}
		w.Header().Set("Location", target.http.URL+r.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	defer front.Close()
	c := &Client{HTTP: front.Client()}
	defer c.HTTP.CloseIdleConnections()
	s, err := c.Publish(t.Context(), adapters.Endpoint{
		URL:    parseURL(t, front.URL+"/whip/a"),
		Header: http.Header{"Authorization": {"Bearer secret"}, "X-Token": {"secret"}},
	}, publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	closeSession(t, s)
	if len(target.seen) != 2 {
		t.Errorf("%d requests, want POST and DELETE", len(target.seen))
	}
	for _, r := range target.seen {
		if r.header.Get("Authorization") != "" || r.header.Get("X-Token") != "" {
			t.Errorf("%s told the secret in the clear", r.method)
		}
	}
}

func TestC5UnknownCodesByClass(t *testing.T) {
	codeOf := func(code int) func(*fake) {
		return func(f *fake) {
			f.intercept = func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				if r.Method != http.MethodPost {
					return false
				}
				if code/100 != 2 {
					w.WriteHeader(code)
					return true
				}
				if err := f.post(recode{w, code}, r, string(body)); err != nil {
					t.Error(err)
				}
				return true
			}
		}
	}
	for _, code := range []int{200, 299} {
		f := newFake(t, codeOf(code))
		s, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
		if err != nil {
			t.Fatal(err)
		}
		closeSession(t, s)
	}
	for _, code := range []int{400, 401, 406, 499, 503, 599} {
		f := newFake(t, codeOf(code))
		_, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
		var refusal *StatusError
		if !errors.As(err, &refusal) || refusal.Code != code || refusal.Op != "publish" {
			t.Errorf("%d: error %v", code, err)
		}
		if n := len(f.seen); n != 1 {
			t.Errorf("%d: %d requests, want the POST alone", code, n)
		}
	}
}

// recode is a ResponseWriter that answers with another code.
type recode struct {
	http.ResponseWriter
	code int
}

func (r recode) WriteHeader(int) { r.ResponseWriter.WriteHeader(r.code) }

func TestC6RetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, tt := range []struct {
		name, value, date string
		want              time.Duration
	}{
		{"none", "", "", 0},
		{"seconds", "120", "", 2 * time.Minute},
		{"blanks", " 3 ", "", 3 * time.Second},
		{"negative", "-3", "", 0},
		{"huge", "99999999999999999", "", maxRetryAfter},
		{"overflow", "99999999999999999999999", "", 0},
		{"nonsense", "soon", "", 0},
		{"date", at(30 * time.Second), "", 30 * time.Second},
		{"date by the server's clock", at(time.Hour + 30*time.Second), at(time.Hour), 30 * time.Second},
		{"past", at(-time.Hour), "", 0},
		{"far", at(1000 * time.Hour), "", maxRetryAfter},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{"Retry-After": {tt.value}, "Date": {tt.date}}
			if got := retryAfter(h, now); got != tt.want {
				t.Errorf("retryAfter = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestC6StatusErrorTellsProblemAndRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		name, kind, body string
		want             Problem
		text             string
	}{
		{
			"problem", "application/problem+json; charset=utf-8",
			`{"type":"about:blank","title":"no such stream","detail":"publish\n it first","status":409}`,
			Problem{Type: "about:blank", Title: "no such stream", Detail: "publish  it first"},
			"409 Conflict: no such stream: publish  it first (retry after 7s)",
		},
		{"broken problem", "application/problem+json", `{"title":1`, Problem{}, "409 Conflict (retry after 7s)"},
		{"text", "text/plain", " not there\r\n", Problem{Detail: "not there"}, "409 Conflict: not there (retry"},
		{
			"long text", "text/plain", strings.Repeat("ä", maxBody),
			Problem{Detail: strings.Repeat("ä", maxText/2)},
			"409 Conflict: ää",
		},
		{
			"error in JSON", "application/json", `{"status":"error","error":"no stream is available"}`,
			Problem{Detail: "no stream is available"},
			"409 Conflict: no stream is available (retry",
		},
		{"other JSON", "application/json", `{"error":{"code":3}}`, Problem{}, "409 Conflict (retry after 7s)"},
		{"page", "text/html", "<html>", Problem{}, "409 Conflict (retry after 7s)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, func(f *fake) {
				f.intercept = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
					w.Header().Set("Content-Type", tt.kind)
					w.Header().Set("Retry-After", "7")
					w.WriteHeader(http.StatusConflict)
					_, _ = io.WriteString(w, tt.body)
					return true
				}
			})
			ep := f.endpoint("/whep/a")
			ep.URL.RawQuery = "token=secret"
			_, err := f.client().Play(t.Context(), ep, nil)
			var refusal *StatusError
			if !errors.As(err, &refusal) {
				t.Fatalf("error %v", err)
			}
			want := &StatusError{
				Op: "play", URL: f.http.URL + "/whep/a", Code: 409, Problem: tt.want, RetryAfter: 7 * time.Second,
			}
			if diff := cmp.Diff(want, refusal); diff != "" {
				t.Errorf("StatusError (-want +got):\n%s", diff)
			}
			if !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "secret") {
				t.Errorf("Error() = %q", err)
			}
		})
	}
}

func TestC8DeleteWithoutIfMatch(t *testing.T) {
	f := newFake(t, nil)
	s, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	var closers sync.WaitGroup
	for range 3 {
		closers.Go(func() { closeSession(t, s) })
	}
	closers.Wait()
	deletes := f.of(http.MethodDelete)
	if len(deletes) != 1 {
		t.Fatalf("%d DELETEs, want 1", len(deletes))
	}
	if d := deletes[0]; d.path != s.Location().Path || d.header.Get("Authorization") != "Bearer secret" ||
		len(d.header.Values("If-Match")) != 0 || len(d.body) != 0 {
		t.Errorf("DELETE %+v", d)
	}
}

func TestC8CloseTellsTheTruth(t *testing.T) {
	for code, wantErr := range map[int]bool{200: false, 204: false, 404: false, 410: false, 401: true, 500: true} {
		f := newFake(t, func(f *fake) {
			f.intercept = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if r.Method == http.MethodDelete {
					w.WriteHeader(code)
					return true
				}
				return false
			}
		})
		s, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
		if err != nil {
			t.Fatal(err)
		}
		first := s.Close(t.Context())
		if (first != nil) != wantErr {
			t.Errorf("%d: Close: %v", code, first)
		}
		if again := s.Close(t.Context()); again != first {
			t.Errorf("%d: Close again: %v, first %v", code, again, first)
		}
		if s.PeerConnection().ConnectionState() != webrtc.PeerConnectionStateClosed {
			t.Errorf("%d: connection is not closed", code)
		}
	}
}

func TestC8CloseIsBounded(t *testing.T) {
	f := newFake(t, func(f *fake) {
		f.intercept = func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
			if r.Method == http.MethodDelete {
				<-r.Context().Done()
				return true
			}
			return false
		}
	})
	for _, tt := range []struct {
		name        string
		ctx, ownEnd time.Duration
	}{{"by ctx", 50 * time.Millisecond, time.Hour}, {"by itself", time.Hour, 50 * time.Millisecond}} {
		c := f.client()
		c.bounds.request = tt.ownEnd
		s, err := c.Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), tt.ctx)
		if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: Close: %v", tt.name, err)
		}
		cancel()
		if s.PeerConnection().ConnectionState() != webrtc.PeerConnectionStateClosed {
			t.Errorf("%s: connection is not closed", tt.name)
		}
	}
}

// newTURN returns the URL of a TURN server that knows the user "us,er" with the password `pass"word`.
func newTURN(t *testing.T) webrtc.ICEServer {
	t.Helper()
	checkLeaks(t)
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := webrtc.ICEServer{
		URLs:     []string{"turn:" + conn.LocalAddr().String() + "?transport=udp"},
		Username: "us,er", Credential: `pass"word`,
	}
	quiet := logging.NewDefaultLoggerFactory()
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	s, err := turn.NewServer(turn.ServerConfig{
		Realm:         "test",
		LoggerFactory: quiet,
		AuthHandler: func(a *turn.RequestAttributes) (string, []byte, bool) {
			return a.Username, turn.GenerateAuthKey(server.Username, a.Realm, server.Credential.(string)),
				a.Username == server.Username
		},
		PacketConnConfigs: []turn.PacketConnConfig{{
			PacketConn: conn,
			RelayAddressGenerator: &turn.RelayAddressGeneratorStatic{
				RelayAddress: net.IPv4(127, 0, 0, 1), Address: "127.0.0.1",
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return server
}

func TestC9ICEServersOfAnswerApplied(t *testing.T) {
	server := newTURN(t)
	f := newFake(t, func(f *fake) {
		f.header = http.Header{"Link": FormatICEServerLink(server)}
		// The first session cannot connect, as from a place that only TURN leads out of.
		f.deaf = func(*http.Request) bool { return len(f.of(http.MethodPost)) == 1 }
	})
	c := f.client()
	c.bounds.direct = 100 * time.Millisecond
	s, err := c.Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	connected(t, s)
	wantPackets(t, f.packets, 10)
	closeSession(t, s)
	posts := f.of(http.MethodPost)
	if len(posts) != 2 || strings.Contains(posts[0].body, "typ relay") || !strings.Contains(posts[1].body, "typ relay") {
		t.Errorf("%d offers; the second should hold a relay candidate", len(posts))
	}
	if n := len(f.of(http.MethodDelete)); n != 2 {
		t.Errorf("%d DELETEs, want one for each session", n)
	}
}

func TestC9DirectConnectionIsKept(t *testing.T) {
	f := newFake(t, func(f *fake) {
		f.header = http.Header{"Link": {`<stun:127.0.0.1:9>; rel="ice-server"`}}
	})
	s, err := f.client().Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	connected(t, s)
	closeSession(t, s)
	if n := len(f.of(http.MethodPost)); n != 1 {
		t.Errorf("%d offers, want 1", n)
	}
}

func TestC9RelayOnlyOffersAgainAtOnce(t *testing.T) {
	server := newTURN(t)
	f := newFake(t, func(f *fake) { f.header = http.Header{"Link": FormatICEServerLink(server)} })
	c := f.client()
	c.bounds.direct = time.Hour
	c.NewPeerConnection = func(config webrtc.Configuration) (*webrtc.PeerConnection, error) {
		config.ICETransportPolicy = webrtc.ICETransportPolicyRelay
		return media.Transport{Loopback: true}.NewPeerConnection(config)
	}
	s, err := c.Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	connected(t, s)
	wantPackets(t, f.packets, 10)
	closeSession(t, s)
}

func TestC9ICEServersFromOptions(t *testing.T) {
	server := newTURN(t)
	for _, code := range []int{http.StatusOK, http.StatusMethodNotAllowed} {
		f := newFake(t, func(f *fake) {
			f.header = http.Header{"Link": FormatICEServerLink(server)}
			f.intercept = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				if r.Method != http.MethodOptions {
					return false
				}
				if code == http.StatusOK {
					w.Header()["Link"] = FormatICEServerLink(server)
				}
				w.WriteHeader(code)
				return true
			}
		})
		c := f.client()
		c.AskICEServers = true
		s, err := c.Publish(t.Context(), f.endpoint("/whip/a"), publisher(t))
		if err != nil {
			t.Fatal(err)
		}
		connected(t, s)
		closeSession(t, s)
		posts := f.of(http.MethodPost)
		if len(posts) != 1 || strings.Contains(posts[0].body, "typ relay") != (code == http.StatusOK) {
			t.Errorf("OPTIONS %d: %d offers, the first:\n%s", code, len(posts), posts[0].body)
		}
	}
}

func TestC10NoAuthorizationWithoutToken(t *testing.T) {
	f := newFake(t, nil)
	for _, header := range []http.Header{nil, {"Authorization": {""}}} {
		ep := f.endpoint("/whip/a")
		ep.Header = header
		s, err := f.client().Publish(t.Context(), ep, publisher(t))
		if err != nil {
			t.Fatal(err)
		}
		closeSession(t, s)
	}
	for _, r := range f.seen {
		if _, ok := r.header["Authorization"]; ok {
			t.Errorf("%s has an Authorization header", r.method)
		}
	}
}

func TestUserinfoIsSentToTheSessionToo(t *testing.T) {
	f := newFake(t, func(f *fake) {
		f.header = http.Header{}
	})
	ep := f.endpoint("/whip/a")
	ep.URL.User, ep.Header = url.UserPassword("u", "p"), nil
	s, err := f.client().Publish(t.Context(), ep, publisher(t))
	if err != nil {
		t.Fatal(err)
	}
	closeSession(t, s)
	for _, r := range f.seen {
		if got, want := r.header.Get("Authorization"), "Basic "+base64.StdEncoding.EncodeToString([]byte("u:p")); got != want {
			t.Errorf("%s with Authorization %q, want %q", r.method, got, want)
		}
	}
}

func TestC11CounterOffer(t *testing.T) {
	for _, etag := range []string{"", `"c"`} {
		f := newFake(t, func(f *fake) {
			f.counter, f.etag = true, etag
			f.header = http.Header{"Content-Type": {`application/sdp; valid-until="Sun, 22 Nov 2026 12:00:00 GMT"`}}
		})
		packets := make(chan struct{}, 1000)
		setups := 0
		receive := player(packets)
		s, err := f.client().Play(t.Context(), f.endpoint("/whep/a"), func(pc *webrtc.PeerConnection) error {
			setups++
			return receive(pc)
		})
		if err != nil {
			t.Fatal(err)
		}
		connected(t, s)
		wantPackets(t, packets, 50)
		closeSession(t, s)
		if setups != 2 {
			t.Errorf("%d setups, want 2", setups)
		}
		patch := f.of(http.MethodPatch)[0]
		if patch.header.Get("Content-Type") != ContentTypeSDP || patch.header.Get("If-Match") != etag ||
			patch.path != s.Location().Path || !strings.Contains(patch.body, "a=recvonly") {
			t.Errorf("PATCH %+v", patch)
		}
		if n := len(f.of(http.MethodDelete)); n != 1 {
			t.Errorf("%d DELETEs, want 1", n)
		}
	}
}

func TestC12LocationAgainstFinalURL(t *testing.T) {
	for location, want := range map[string]string{
		"../s/1?x=y#z": "/deep/s/1", "/s/2": "/s/2", "3": "/deep/whip/3", "": "",
	} {
		target := newFake(t, func(f *fake) {
			f.intercept = func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				if r.Method == http.MethodDelete {
					return true
				}
				f.header = http.Header{"Location": {location}}
				r.URL.Path = "/whip/a"
				if err := f.post(w, r, string(body)); err != nil {
					t.Error(err)
				}
				return true
			}
		})
		front := newFake(t, func(f *fake) {
			f.intercept = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
				w.Header().Set("Location", target.http.URL+"/deep/whip/a")
				w.WriteHeader(http.StatusTemporaryRedirect)
				return true
			}
		})
		s, err := front.client().Publish(t.Context(), front.endpoint("/whip/a"), publisher(t))
		if want == "" {
			if err == nil {
				t.Error("answer without Location is accepted")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		closeSession(t, s)
		if got := s.Location(); got.Host != parseURL(t, target.http.URL).Host || got.Path != want || got.Fragment != "" {
			t.Errorf("Location %s resolved to %s", location, got)
		}
		if d := target.of(http.MethodDelete); len(d) != 1 || d[0].path != want {
			t.Errorf("Location %s: DELETEs %+v", location, d)
		}
	}
}

// Whatever goes wrong once the server has opened a session, the session is deleted there.
func TestFailureDeletesSession(t *testing.T) {
	// after opens a session of the fake's own, then lets the test spoil the answer.
	after := func(f *fake, w http.ResponseWriter, r *http.Request, body []byte, spoil func(*httptest.ResponseRecorder)) bool {
		rec := httptest.NewRecorder()
		if err := f.post(rec, r, string(body)); err != nil {
			f.t.Error(err)
		}
		spoil(rec)
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
		return true
	}
	body := func(text string) func(*httptest.ResponseRecorder) {
		return func(r *httptest.ResponseRecorder) {
			r.Body.Reset()
			r.Body.WriteString(text)
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(*httptest.ResponseRecorder)
		play  bool
	}{
		{"wrong content type", func(r *httptest.ResponseRecorder) { r.Header().Set("Content-Type", "text/html") }, false},
		{"no content type", func(r *httptest.ResponseRecorder) { r.Header().Set("Content-Type", "") }, false},
		{"empty answer", body(""), false},
		{"garbage", body("v=0\r\nthis is no SDP"), false},
		{"SDP without media", body("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"), false},
		{"cut answer", func(r *httptest.ResponseRecorder) { r.Body.Truncate(r.Body.Len() / 3) }, false},
		{"huge answer", func(r *httptest.ResponseRecorder) { r.Body.WriteString(strings.Repeat("a=x\r\n", maxBody)) }, false},
		{"body shorter than told", func(r *httptest.ResponseRecorder) { r.Header().Set("Content-Length", "100000") }, false},
		{"garbage counter-offer", func(r *httptest.ResponseRecorder) {
			r.Code = http.StatusNotAcceptable
			body("nonsense")(r)
		}, true},
		{"huge counter-offer", func(r *httptest.ResponseRecorder) {
			r.Code = http.StatusNotAcceptable
			body(strings.Repeat("a=x\r\n", maxBody))(r)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, nil)
			f.intercept = func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				return r.Method == http.MethodPost && after(f, w, r, body, tt.spoil)
			}
			// Not the test's context: its end would free a body that was left open.
			ctx := context.WithoutCancel(t.Context())
			var err error
			if tt.play {
				_, err = f.client().Play(ctx, f.endpoint("/whep/a"), nil)
			} else {
				_, err = f.client().Publish(ctx, f.endpoint("/whip/a"), publisher(t))
			}
			if err == nil {
				t.Error("no error")
			} else if huge := strings.HasPrefix(tt.name, "huge"); huge != strings.Contains(err.Error(), "larger than") {
				t.Errorf("error %v", err)
			}
			wantDeleted(t, f)
		})
	}
}

func wantDeleted(t *testing.T, f *fake) {
	t.Helper()
	deletes := f.of(http.MethodDelete)
	if len(deletes) != 1 || deletes[0].header.Get("Authorization") != "Bearer secret" {
		t.Errorf("DELETEs %+v, want one with Authorization", deletes)
	}
	if n := f.open(); n != 0 {
		t.Errorf("%d sessions left at the server", n)
	}
}

func TestRefusedPatch(t *testing.T) {
	for _, tt := range []struct {
		code  int
		fails bool
	}{
		{http.StatusMethodNotAllowed, false},
		{http.StatusUnprocessableEntity, false},
		{http.StatusNotImplemented, false},
		{http.StatusNotFound, true},
		{http.StatusPreconditionFailed, true},
		{http.StatusInternalServerError, true},
		{http.StatusFound, true},
	} {
		for _, counter := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d counter %t", tt.code, counter), func(t *testing.T) {
				stunServer := newSlowSTUN(t)
				f := newFake(t, func(f *fake) {
					f.counter = counter
					f.deaf = func(*http.Request) bool { return true }
					f.intercept = func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
						switch r.Method {
						case http.MethodPost:
							stunServer.release()
						case http.MethodPatch:
							w.WriteHeader(tt.code)
							return true
						}
						return false
					}
				})
				c := f.client()
				c.NewPeerConnection = with(stunServer.url)
				c.bounds.aggregate = 10 * time.Second
				s, err := c.Play(t.Context(), f.endpoint("/whep/a"), nil)
				if tt.fails || counter { // an answer to a counter-offer has to arrive
					var refusal *StatusError
					if !errors.As(err, &refusal) || refusal.Code != tt.code {
						t.Fatalf("error %v", err)
					}
					wantDeleted(t, f)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				closeSession(t, s)
			})
		}
	}
}

// At each step a server may hang, and the caller give up. The session is deleted if the server had opened one.
func TestCancelDeletesSession(t *testing.T) {
	hang := func(r *http.Request) { <-r.Context().Done() }
	for _, tt := range []struct {
		name    string
		at      string // the request during which the caller gives up
		opened  bool
		counter bool
		handle  func(f *fake, w http.ResponseWriter, r *http.Request, body []byte)
	}{
		{"OPTIONS", http.MethodOptions, false, false, func(_ *fake, _ http.ResponseWriter, r *http.Request, _ []byte) {
			hang(r)
		}},
		{"POST", http.MethodPost, false, false, func(_ *fake, _ http.ResponseWriter, r *http.Request, _ []byte) { hang(r) }},
		{"answer", http.MethodPost, true, false, func(f *fake, w http.ResponseWriter, r *http.Request, body []byte) {
			rec := httptest.NewRecorder()
			if err := f.post(rec, r, string(body)); err != nil {
				f.t.Error(err)
			}
			w.Header().Set("Content-Type", ContentTypeSDP)
			w.Header().Set("Location", rec.Header().Get("Location"))
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, "v=0\r\n")
			_ = http.NewResponseController(w).Flush()
			hang(r)
		}},
		{"late answer", http.MethodPost, true, false, func(f *fake, w http.ResponseWriter, r *http.Request, body []byte) {
			<-f.givenUp
			if err := f.post(w, r, string(body)); err != nil {
				f.t.Error(err)
			}
		}},
		{"PATCH", http.MethodPatch, true, false, func(_ *fake, _ http.ResponseWriter, r *http.Request, _ []byte) { hang(r) }},
		{"counter-answer", http.MethodPatch, true, true, func(_ *fake, _ http.ResponseWriter, r *http.Request, _ []byte) {
			hang(r)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stunServer := newSlowSTUN(t)
			f := newFake(t, nil)
			f.counter, f.givenUp = tt.counter, make(chan struct{})
			f.deaf = func(*http.Request) bool { return true }
			f.intercept = func(w http.ResponseWriter, r *http.Request, body []byte) bool {
				if r.Method == tt.at {
					tt.handle(f, w, r, body)
					return true
				}
				if r.Method == http.MethodPost {
					stunServer.release()
				}
				return false
			}
			c := f.client()
			c.NewPeerConnection = with(stunServer.url)
			c.AskICEServers = tt.at == http.MethodOptions
			reading := make(chan struct{})
			if tt.name == "answer" {
				c.HTTP.Transport = signalRead{c.HTTP.Transport, sync.OnceFunc(func() { close(reading) })}
			}
			c.bounds.aggregate = 10 * time.Second
			ctx, cancel := context.WithCancel(t.Context())
			var giveUp sync.WaitGroup
			giveUp.Go(func() {
				f.await(tt.at)
				if tt.name == "answer" {
					<-reading // before that, the client knows of no session
				}
				cancel()
				close(f.givenUp)
			})
			_, err := c.Play(ctx, f.endpoint("/whep/a"), nil)
			giveUp.Wait()
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			if tt.opened {
				wantDeleted(t, f)
			} else if n := len(f.of(http.MethodDelete)); n != 0 {
				t.Errorf("%d DELETEs of nothing", n)
			}
		})
	}
}

// signalRead calls a function when the body of an answer begins to be read.
type signalRead struct {
	http.RoundTripper
	signal func()
}

func (s signalRead) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := s.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = signallingBody{res.Body, s.signal}
	}
	return res, err
}

type signallingBody struct {
	io.ReadCloser
	signal func()
}

func (b signallingBody) Read(p []byte) (int, error) {
	b.signal()
	return b.ReadCloser.Read(p)
}

func TestCancelWhileGathering(t *testing.T) {
	stunServer := newSlowSTUN(t)
	f := newFake(t, func(f *fake) { f.deaf = func(*http.Request) bool { return true } })
	for _, c := range []*Client{f.client(), f.client()} {
		c.NewPeerConnection = with(stunServer.url)
		c.bounds.aggregate = time.Hour
		opened := len(f.of(http.MethodPost))
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		if opened > 0 {
			c.bounds.gather = time.Hour // the second gives up before the offer, the first after the answer
		}
		if _, err := c.Publish(ctx, f.endpoint("/whip/a"), publisher(t)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		cancel()
	}
	if n := len(f.of(http.MethodPost)); n != 1 {
		t.Errorf("%d offers, want 1", n)
	}
	wantDeleted(t, f)
}

func TestHangingPatchIsBounded(t *testing.T) {
	stunServer := newSlowSTUN(t)
	f := newFake(t, func(f *fake) {
		f.deaf = func(*http.Request) bool { return true }
		f.intercept = func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
			stunServer.release()
			if r.Method == http.MethodPatch {
				<-r.Context().Done()
			}
			return r.Method == http.MethodPatch
		}
	})
	c := f.client()
	c.NewPeerConnection = with(stunServer.url)
	c.bounds.request = 200 * time.Millisecond
	c.bounds.aggregate = 10 * time.Second
	if _, err := c.Publish(t.Context(), f.endpoint("/whip/a"), publisher(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	wantDeleted(t, f)
}

func TestFailuresBeforeThePost(t *testing.T) {
	f := newFake(t, nil)
	broken := errors.New("broken")
	if _, err := f.client().Play(t.Context(), f.endpoint("/whep/a"),
		func(*webrtc.PeerConnection) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("failed setup: %v", err)
	}
	c := f.client()
	c.NewPeerConnection = func(webrtc.Configuration) (*webrtc.PeerConnection, error) { return nil, broken }
	if _, err := c.Play(t.Context(), f.endpoint("/whep/a"), nil); !errors.Is(err, broken) {
		t.Errorf("failed NewPeerConnection: %v", err)
	}
	if _, err := f.client().Play(t.Context(), f.endpoint("/whep/a"),
		func(*webrtc.PeerConnection) error { return nil }); err == nil {
		t.Error("offer without media is accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.client().Play(ctx, f.endpoint("/whep/a"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	if len(f.seen) != 0 {
		t.Errorf("%d requests", len(f.seen))
	}

	gone := f.endpoint("/whep/a")
	gone.URL.Host, gone.URL.RawQuery = "127.0.0.1:1", "token=secret"
	_, err := f.client().Play(t.Context(), gone, nil)
	if err == nil || strings.Contains(err.Error(), "secret") || strings.Count(err.Error(), "127.0.0.1:1/") != 1 {
		t.Errorf("nobody there: %v", err)
	}
}

func TestSecondSetupFails(t *testing.T) {
	f := newFake(t, func(f *fake) { f.counter = true })
	broken, calls := errors.New("broken"), 0
	_, err := f.client().Play(t.Context(), f.endpoint("/whep/a"), func(pc *webrtc.PeerConnection) error {
		if calls++; calls > 1 {
			return broken
		}
		return receiveBoth(pc)
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	wantDeleted(t, f)
}

func TestWaitTellsTheEnd(t *testing.T) {
	t.Run("closed by the server", func(t *testing.T) {
		f := newFake(t, nil)
		packets := make(chan struct{}, 1)
		s, err := f.client().Play(t.Context(), f.endpoint("/whep/a"), player(packets))
		if err != nil {
			t.Fatal(err)
		}
		wantPackets(t, packets, 1) // then both sides have ended their handshakes
		f.mu.Lock()
		server := f.sessions[s.Location().Path]
		f.mu.Unlock()
		server.free()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := s.Wait(ctx); !errors.Is(err, ErrClosed) {
			t.Errorf("Wait: %v", err)
		}
		closeSession(t, s)
	})
	t.Run("never connected", func(t *testing.T) {
		f := newFake(t, func(f *fake) { f.deaf = func(*http.Request) bool { return true } })
		c := f.client()
		c.NewPeerConnection = func(config webrtc.Configuration) (*webrtc.PeerConnection, error) {
			var settings webrtc.SettingEngine
			settings.SetICETimeouts(200*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond)
			return webrtc.NewAPI(webrtc.WithSettingEngine(settings)).NewPeerConnection(config)
		}
		s, err := c.Play(t.Context(), f.endpoint("/whep/a"), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := s.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait with a short context: %v", err)
		}
		cancel()
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := s.Connected(ctx); !errors.Is(err, ErrFailed) {
			t.Errorf("Connected: %v", err)
		}
		if err := s.Wait(ctx); !errors.Is(err, ErrFailed) {
			t.Errorf("Wait: %v", err)
		}
		closeSession(t, s)
	})
}
