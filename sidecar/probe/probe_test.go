package probe

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/webrtc/v4"
	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/adapters/testframes"
)

var update = flag.Bool("update", false, "write golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil { //nolint:gosec // a test's
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// builtIn is a running built-in server, behind whatever stands before it.
func builtIn(t *testing.T, c pionsfu.Config, before func(http.Handler) http.Handler) string {
	t.Helper()
	c.UDPAddr = "127.0.0.1:0"
	server, err := pionsfu.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	var handler http.Handler = server
	if before != nil {
		handler = before(server)
	}
	web := httptest.NewServer(handler)
	t.Cleanup(func() {
		web.Close()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	for {
		w := httptest.NewRecorder()
		server.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", http.NoBody))
		if w.Code == http.StatusNoContent {
			return web.URL
		}
		time.Sleep(time.Millisecond)
	}
}

// probeOf is one of a server with the built-in server's addresses, ready for single steps.
func probeOf(t *testing.T, base string, o Options) *Probe {
	t.Helper()
	o.Publish, o.Play, o.Base = base+"/whip/{stream}", base+"/whep/{stream}", ""
	o.Transport = &http.Transport{DisableKeepAlives: true}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	h264, _ := testframes.Of(webrtc.MimeTypeH264)
	p.facts.publishes, p.facts.plays, p.facts.whole, p.facts.main = true, true, true, synthetic(h264)
	return p
}

// The built-in server is as its adapter says, and nothing is left there.
func TestBuiltInServer(t *testing.T) {
	base := builtIn(t, pionsfu.Config{}, nil)
	var progress []string
	p, err := New(Options{
		Base: base, Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 3 * time.Minute,
		Progress: func() func(string) {
			var mu sync.Mutex
			return func(s string) { mu.Lock(); defer mu.Unlock(); progress = append(progress, s) }
		}(),
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", &text)
	var verdicts strings.Builder
	for _, c := range r.Checks {
		fmt.Fprintf(&verdicts, "%s %s\n", c.ID, c.Verdict)
	}
	fmt.Fprintf(&verdicts, "origin %t\nedge %t\non demand %t\n", r.Origin.Able, r.Edge.Able, r.OnDemand.Able)
	golden(t, "pionsfu.golden", verdicts.String())
	if !slices.Contains(r.Settings, "SIDESTREAM_ADAPTER_NAME=pionsfu") {
		t.Errorf("settings %q", r.Settings)
	}
	if len(progress) < 5 {
		t.Errorf("progress %q", progress)
	}

	adapter, err := pionsfu.NewAdapter(pionsfu.AdapterConfig{BaseURL: base})
	if err != nil {
		t.Fatal(err)
	}
	agrees(t, adapter.Traits(), r.Traits)
	response, err := (&http.Client{Transport: p.transport}).Get(base + "/api/streams")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if left, _ := io.ReadAll(response.Body); bytes.Contains(left, []byte("sidestream-probe")) {
		t.Errorf("left at the server: %s", left)
	}
}

// agrees compares what an adapter declares with what was measured.
func agrees(t *testing.T, declared, measured adapters.Traits) {
	t.Helper()
	for _, codec := range measured.Codecs {
		if !slices.ContainsFunc(declared.Codecs, func(d string) bool { return strings.EqualFold(d, codec) }) {
			t.Errorf("%s passes and is not declared", codec)
		}
	}
	for _, uri := range measured.Extensions {
		if !slices.Contains(declared.Extensions, uri) {
			t.Errorf("%s passes and is not declared", uri)
		}
	}
	declared.Codecs, declared.Extensions, measured.Codecs, measured.Extensions = nil, nil, nil, nil
	declared.Aliases, declared.MaxHold, measured.MaxHold = false, 0, 0
	if diff := cmp.Diff(declared, measured); diff != "" {
		t.Errorf("traits (-declared +measured):\n%s", diff)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	base := builtIn(t, pionsfu.Config{PublishToken: "in", PlayToken: "out"}, nil)
	p := probeOf(t, base, Options{PublishToken: "in", PlayToken: "out"})
	p.tryOpen(t.Context())
	p.trySession(t.Context())
	p.want(t, map[string]Verdict{"access.open": OK, "access.session": OK, "delete.publisher": OK})

	p = probeOf(t, base, Options{PublishToken: "wrong"})
	p.facts = facts{}
	r, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := r.Check("access.publish"); c.Verdict != Fail || !strings.Contains(c.Text, "401") || r.CanCascade() {
		t.Errorf("with a wrong token: %+v, can cascade %t", c, r.CanCascade())
	}
}

// want checks verdicts.
func (p *Probe) want(t *testing.T, want map[string]Verdict) {
	t.Helper()
	for id, v := range want {
		if got := p.checked(id); got.Verdict != v {
			t.Errorf("%s is %q: %s; want %q", id, got.Verdict, got.Text, v)
		}
	}
}

// answerAll answers requests of a method, the n-th of each path counted from 1, in the server's place.
func answerAll(method string, with func(w http.ResponseWriter, r *http.Request, n int) bool) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		var mu sync.Mutex
		seen := map[string]int{}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == method {
				mu.Lock()
				seen[r.URL.Path]++
				n := seen[r.URL.Path]
				mu.Unlock()
				if with(w, r, n) {
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}
}

func status(code int) func(http.ResponseWriter, *http.Request, int) bool {
	return func(w http.ResponseWriter, _ *http.Request, _ int) bool { w.WriteHeader(code); return true }
}

func on(prefix string, then func(http.ResponseWriter, *http.Request, int) bool) func(http.ResponseWriter, *http.Request, int) bool {
	return func(w http.ResponseWriter, r *http.Request, n int) bool {
		return strings.HasPrefix(r.URL.Path, prefix) && then(w, r, n)
	}
}

// The built-in server behind something that spoils its signalling.
func TestSignallingFaults(t *testing.T) {
	t.Parallel()
	session := (*Probe).trySession
	for name, tt := range map[string]struct {
		before func(http.Handler) http.Handler
		step   func(*Probe, context.Context)
		want   map[string]Verdict
	}{
		"redirect 301": {
			answerAll(http.MethodPost, func(w http.ResponseWriter, r *http.Request, _ int) bool {
				w.Header().Set("Location", r.URL.Path)
				w.WriteHeader(http.StatusMovedPermanently)
				return true
			}),
			func(p *Probe, ctx context.Context) { p.tryMedia(ctx) },
			map[string]Verdict{"access.publish": Fail, "access.redirect": Fail},
		},
		"redirect 307": {
			answerAll(http.MethodPost, func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if r.URL.RawQuery != "" {
					return false
				}
				w.Header().Set("Location", r.URL.Path+"?again")
				w.WriteHeader(http.StatusTemporaryRedirect)
				return true
			}),
			func(p *Probe, ctx context.Context) { p.tryMedia(ctx) },
			map[string]Verdict{"access.publish": OK, "access.redirect": OK, "media.frames": OK},
		},
		"takes everything": {
			answerAll(http.MethodPost, status(http.StatusCreated)), (*Probe).tryHTTP,
			map[string]Verdict{"http.type": Fail, "http.malformed": Fail},
		},
		"fails at everything": {
			answerAll(http.MethodPost, status(http.StatusInternalServerError)), (*Probe).tryHTTP,
			map[string]Verdict{"http.type": Warn, "http.malformed": Warn},
		},
		"no OPTIONS": {
			answerAll(http.MethodOptions, status(http.StatusMethodNotAllowed)), (*Probe).tryHTTP,
			map[string]Verdict{"http.options": Warn, "http.cors": Warn, "http.type": OK, "http.problem": OK},
		},
		"no GET": {
			answerAll(http.MethodGet, status(http.StatusMethodNotAllowed)), (*Probe).tryHTTP, map[string]Verdict{"http.get": Warn},
		},
		"no PATCH": {
			answerAll(http.MethodPatch, status(http.StatusMethodNotAllowed)), session,
			map[string]Verdict{"session.trickle": Warn, "session.restart": Warn, "delete.publisher": OK},
		},
		"any PATCH": {
			answerAll(http.MethodPatch, status(http.StatusNoContent)), session,
			map[string]Verdict{"session.trickle": OK, "session.ifmatch": Warn, "session.restart": Warn},
		},
		"restart of nothing": {
			answerAll(http.MethodPatch, func(w http.ResponseWriter, _ *http.Request, _ int) bool {
				w.Header().Set("Content-Type", contentFrag)
				_, _ = io.WriteString(w, "a=ice-ufrag:nobody\r\na=ice-pwd:nobodynobodynobodynobody\r\n")
				return true
			}), session,
			map[string]Verdict{"session.restart": Fail},
		},
		"restart ends the session": {
			func(next http.Handler) http.Handler {
				return answerAll(http.MethodPatch, func(w http.ResponseWriter, r *http.Request, _ int) bool {
					if r.Header.Get("If-Match") == "*" {
						end := r.Clone(r.Context())
						end.Method, end.Body = http.MethodDelete, http.NoBody
						next.ServeHTTP(httptest.NewRecorder(), end)
					}
					w.WriteHeader(http.StatusUnprocessableEntity)
					return true
				})(next)
			}, session,
			map[string]Verdict{"session.restart": Fail},
		},
		"no DELETE": {
			answerAll(http.MethodDelete, status(http.StatusMethodNotAllowed)), session,
			map[string]Verdict{"delete.publisher": Fail, "delete.viewer": Warn},
		},
		"DELETE of nothing": {
			answerAll(http.MethodDelete, func(w http.ResponseWriter, _ *http.Request, n int) bool {
				if n > 1 {
					w.WriteHeader(http.StatusOK)
				}
				return n > 1
			}), session,
			map[string]Verdict{"delete.publisher": OK, "delete.again": Warn},
		},
		"missing is 500": {
			answerAll(http.MethodPost, on("/whep/", status(http.StatusInternalServerError))), (*Probe).tryMissing,
			map[string]Verdict{"stream.missing": Warn, "stream.wait": Skip},
		},
		"missing is 403": {
			answerAll(http.MethodPost, on("/whep/", status(http.StatusForbidden))), (*Probe).tryMissing,
			map[string]Verdict{"stream.missing": Fail},
		},
		"a name only once": {
			answerAll(http.MethodPost, on("/whip/", func(w http.ResponseWriter, _ *http.Request, n int) bool {
				if n > 1 {
					w.WriteHeader(http.StatusConflict)
				}
				return n > 1
			})), (*Probe).tryLife,
			map[string]Verdict{"stream.second": OK, "stream.again": Fail, "stream.end": OK},
		},
		"ended is not missing": {
			func(next http.Handler) http.Handler {
				var mu sync.Mutex
				ended := false
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					ended = ended || r.Method == http.MethodDelete
					gone := ended && r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/whep/")
					mu.Unlock()
					if gone {
						w.WriteHeader(http.StatusServiceUnavailable)
						return
					}
					next.ServeHTTP(w, r)
				})
			},
			(*Probe).tryLife,
			map[string]Verdict{"stream.second": OK, "stream.end": Fail, "stream.readers": Warn},
		},
		"the second ends the first": {
			func(next http.Handler) http.Handler {
				var mu sync.Mutex
				first := ""
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, "/whip/") {
						next.ServeHTTP(w, r)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if first != "" {
						next.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodDelete, first, http.NoBody))
						w.WriteHeader(http.StatusConflict)
						return
					}
					next.ServeHTTP(w, r)
					first = w.Header().Get("Location")
				})
			},
			(*Probe).tryLife,
			map[string]Verdict{"stream.second": Fail},
		},
		"the second takes over": {
			func(next http.Handler) http.Handler {
				var mu sync.Mutex
				first := ""
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, "/whip/") {
						next.ServeHTTP(w, r)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					if first != "" {
						next.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodDelete, first, http.NoBody))
					}
					next.ServeHTTP(w, r)
					first = w.Header().Get("Location")
				})
			},
			(*Probe).tryLife,
			map[string]Verdict{"stream.second": Warn, "stream.readers": Warn, "stream.again": OK},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := probeOf(t, builtIn(t, pionsfu.Config{}, tt.before), Options{})
			p.facts.missing = http.StatusConflict
			p.bounds.wait, p.bounds.quiet = 5*time.Second, 1500*time.Millisecond
			tt.step(p, t.Context())
			p.want(t, tt.want)
		})
	}
}

// A server that spoils media.
func TestMediaFaults(t *testing.T) {
	t.Parallel()
	details := (*Probe).tryDetails
	clipped := func(p *Probe, ctx context.Context) { p.tryMedia(ctx) }
	for name, tt := range map[string]struct {
		faults faults
		step   func(*Probe, context.Context)
		want   map[string]Verdict
		traits adapters.Traits
	}{
		"none": {faults{asksJoins: true}, clipped, map[string]Verdict{"media.frames": OK, "media.audio": OK}, adapters.Traits{}},
		"does nothing but forward": {
			faults{bare: true, noPLI: true},
			details,
			map[string]Verdict{
				"repair.publisher": Warn, "repair.viewer": Fail, "repair.rtx": Warn, "repair.order": OK, "repair.audio": OK,
				"clock.reports": Warn, "extensions": Warn, "key.join": Warn, "key.request": Warn, "key.rate": OK,
			},
			adapters.Traits{IgnoresPLI: true},
		},
		"makes everything anew": {
			faults{rawIDs: true, holds: 60, renumber: true, flood: true},
			details,
			map[string]Verdict{
				"repair.order": Warn, "repair.audio": Warn, "clock.reports": OK, "clock.lipsync": Warn, "extensions": Fail,
				"key.rate": Warn,
			},
			adapters.Traits{InOrder: true, FillAudio: true},
		},
		"swallows key frames": {
			faults{asksJoins: true, swallow: true}, details, map[string]Verdict{"key.join": Fail, "repair.viewer": OK}, adapters.Traits{},
		},
		"loses":      {faults{loses: 5}, clipped, map[string]Verdict{"media.frames": Fail, "access.play": OK}, adapters.Traits{}},
		"transcodes": {faults{transcode: true}, clipped, map[string]Verdict{"media.frames": Fail}, adapters.Traits{}},
		"no sound":   {faults{noAudio: true}, clipped, map[string]Verdict{"media.audio": Fail, "media.frames": OK}, adapters.Traits{}},
		"no picture": {faults{noVideo: true}, clipped, map[string]Verdict{"media.frames": Fail}, adapters.Traits{}},
		"deaf": {faults{deaf: true}, func(p *Probe, ctx context.Context) {
			c, _ := testframes.Of(webrtc.MimeTypeVP8)
			p.tryCodec(ctx, "codec.vp8", synthetic(c))
		}, map[string]Verdict{"codec.vp8": Fail}, adapters.Traits{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := probeOf(t, newFake(t, tt.faults).web.URL, Options{})
			p.bounds.wait, p.bounds.quiet, p.bounds.hold = 5*time.Second, 1500*time.Millisecond, 1800*time.Millisecond
			tt.step(p, t.Context())
			p.want(t, tt.want)
			got := p.facts.traits
			got.Extensions, got.MaxHold = nil, 0
			if diff := cmp.Diff(tt.traits, got); diff != "" {
				t.Errorf("traits (-want +got):\n%s", diff)
			}
		})
	}
}

// A server that cannot carry anything is neither origin nor edge, and the report says why.
func TestCannotCascade(t *testing.T) {
	t.Parallel()
	p := probeOf(t, newFake(t, faults{deaf: true}).web.URL, Options{})
	p.facts = facts{}
	p.bounds.wait = 2 * time.Second
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.tryMedia(ctx)
	r := p.summarize(ctx, time.Now())
	if r.CanCascade() || r.OnDemand.Able || len(r.Settings) > 0 || !strings.Contains(r.Origin.Why, "nothing of the video") {
		t.Errorf("%+v %+v %+v %q", r.Origin, r.Edge, r.OnDemand, r.Settings)
	}
	p = probeOf(t, "http://127.0.0.1:1", Options{})
	p.facts = facts{}
	if r, err := p.Run(t.Context()); err != nil || r.CanCascade() || r.Check("access.publish").Verdict != Fail {
		t.Errorf("nobody there: %v, %+v", err, r.Check("access.publish"))
	}
}

// Time bounds everything, and sessions end with it.
func TestTimeout(t *testing.T) {
	t.Parallel()
	base := builtIn(t, pionsfu.Config{}, nil)
	p := probeOf(t, base, Options{Timeout: time.Nanosecond})
	p.facts = facts{}
	r, err := p.Run(t.Context())
	if err != nil || r.CanCascade() {
		t.Errorf("no time at all: %v, %+v", err, r)
	}
	if c := r.Check("key.join"); c.Verdict != Skip || !strings.Contains(c.Text, "the time was over") {
		t.Errorf("key.join %+v", c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := probeOf(t, base, Options{}).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestName(t *testing.T) {
	t.Parallel()
	base := builtIn(t, pionsfu.Config{}, nil)
	other := probeOf(t, base, Options{})
	b, err := other.publish(t.Context(), publishing{name: "taken", content: other.facts.main})
	if err != nil {
		t.Fatal(err)
	}
	defer b.close() //nolint:errcheck // the test is over
	if err := b.session.Connected(t.Context()); err != nil {
		t.Fatal(err)
	}
	v, err := other.playSoon(t.Context(), playing{name: "taken", content: other.facts.main})
	if err != nil {
		t.Fatal(err)
	}
	_ = v.close()
	p := probeOf(t, base, Options{Stream: "taken"})
	p.facts = facts{}
	r, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := r.Check("access.publish"); c.Verdict != Fail || !strings.Contains(c.Text, "somebody publishes taken") {
		t.Errorf("access.publish %+v", c)
	}
	if b.session.PeerConnection().ConnectionState() != webrtc.PeerConnectionStateConnected {
		t.Error("the one who publishes it was disturbed")
	}
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"nothing":              {},
		"both":                 {Base: "http://a", Publish: "http://a/{stream}"},
		"no placeholder":       {Publish: "http://a/whip"},
		"two placeholders":     {Publish: "http://a/{stream}/{stream}"},
		"no scheme":            {Publish: "a/{stream}"},
		"other scheme":         {Publish: "ftp://a/{stream}"},
		"host":                 {Publish: "http://{stream}/whip"},
		"base with a template": {Base: "http://a/{stream}"},
		"base with a query":    {Base: "http://a/?b"},
		"no name to play":      {Play: "http://a/{stream}"},
		"bad name":             {Base: "http://a", Stream: "a//b"},
		"time":                 {Base: "http://a", Timeout: -1},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for name, o := range map[string]Options{
		"header": {Publish: "http://a/api/whip", Header: http.Header{"Authorization": {"Bearer {stream}"}}},
		"token":  {Publish: "http://a/api/whip", Token: "{stream}"},
		"name":   {Publish: "http://a/w/key", Stream: "key"},
	} {
		if _, err := New(o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFill(t *testing.T) {
	for _, tt := range []struct {
		template string
		name     adapters.StreamID
		want     string
	}{
		{"http://a/whip/{stream}", "a/b c%", "http://a/whip/a/b%20c%25"},
		{"http://a/{stream}/whip?x=y", "ä", "http://a/%C3%A4/whip?x=y"},
		{"http://a/whip?stream={stream}", "a/b&c", "http://a/whip?stream=a%2Fb%26c"},
		{"http://a/whip", "a", "http://a/whip"},
	} {
		if got, err := fill(tt.template, tt.name); err != nil || got.String() != tt.want {
			t.Errorf("fill(%q, %q) = %v, %v; want %s", tt.template, tt.name, got, err, tt.want)
		}
	}
}

func TestEndpoint(t *testing.T) {
	p, err := New(Options{
		Publish: "http://a/api/whip", Play: "http://a/api/whep", Token: "all", PlayToken: "out",
		Header: http.Header{"X-Key": {"{stream}"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		publish, credentials bool
		want                 http.Header
	}{
		{true, true, http.Header{"Authorization": {"Bearer all"}, "X-Key": {"s"}}},
		{false, true, http.Header{"Authorization": {"Bearer out"}, "X-Key": {"s"}}},
		{true, false, http.Header{}},
	} {
		if diff := cmp.Diff(tt.want, p.endpoint(tt.publish, "s", tt.credentials).Header); diff != "" {
			t.Errorf("publish %t (-want +got):\n%s", tt.publish, diff)
		}
	}
}

func TestGuess(t *testing.T) {
	for publish, want := range map[string]string{
		"https://a/x/{stream}/whip":                       "mediamtx",
		"https://a/api/whip":                              "broadcastbox",
		"https://a/whip/{stream}":                         "",
		"https://a/rtc/v1/whip/?app=live&stream={stream}": "",
		"https://a/some/{stream}":                         "",
	} {
		if got := guess(publish, ""); got.adapter != want {
			t.Errorf("%s is taken for %+v", publish, got)
		}
	}
	if got := guess("https://a/some/{stream}", ""); got.name != "" {
		t.Errorf("unknown addresses are taken for %s", got.name)
	}
}

func TestLocations(t *testing.T) {
	for name, tt := range map[string]struct {
		at, location string
		want         Verdict
	}{
		"relative":   {"https://a/whip/x", "/session/MI4M5UKWZZZ3445VAVEPDLGZNE", OK},
		"absolute":   {"https://a/whip/x", "https://b/session/MI4M5UKWZZZ3445VAVEPDLGZNE", OK},
		"short":      {"https://a/whip/x", "/session/7", Warn},
		"downgraded": {"https://a/whip/x", "http://a/session/MI4M5UKWZZZ3445VAVEPDLGZNE", Fail},
	} {
		p := probeOf(t, "http://a", Options{})
		u, err := url.Parse(tt.at)
		if err != nil {
			t.Fatal(err)
		}
		p.noteOpened(&recorder{seen: []exchange{{http.MethodPost, u, 201, http.Header{"Location": {tt.location}}}}})
		if got := p.checked("http.location"); got.Verdict != tt.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestCandidates(t *testing.T) {
	const line = "a=candidate:1 1 %s 2130706431 %s 5000 typ host\r\n"
	for name, tt := range map[string]struct {
		answer string
		want   Verdict
	}{
		"private":  {fmt.Sprintf(line, "udp", "10.0.0.1"), OK},
		"public":   {fmt.Sprintf(line, "udp", "203.0.113.1"), Warn},
		"loopback": {fmt.Sprintf(line, "UDP", "127.0.0.1"), Warn},
		"TCP":      {fmt.Sprintf(line, "tcp", "10.0.0.1"), Fail},
		"none":     {"", Warn},
		"nonsense": {"a=candidate:1 1\r\na=candidate:\r\n", Warn},
	} {
		p := probeOf(t, "http://a", Options{})
		p.candidates("v=0\r\n"+tt.answer, "a")
		if got := p.checked("media.candidates"); got.Verdict != tt.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestNTP(t *testing.T) {
	at := time.Date(2026, 11, 26, 1, 2, 3, 987654321, time.UTC)
	for _, d := range []time.Duration{0, time.Millisecond, -time.Millisecond, 700 * time.Millisecond, -time.Hour} {
		if got := ntpBetween(ntp(at), ntp(at.Add(d))); (got - d).Abs() > time.Microsecond {
			t.Errorf("%s apart are read as %s", d, got)
		}
	}
}

// The report for people, in each of its forms.
func TestText(t *testing.T) {
	p := probeOf(t, "https://media.example", Options{Token: "secret"})
	p.prefix = "sidestream-probe-abcdefgh"
	p.facts = facts{
		publishes: true, plays: true, whole: true, missing: 404, codecs: []string{"video/H264"}, firstKey: 2 * time.Second,
		traits: adapters.Traits{InOrder: true, MaxHold: 1280 * time.Millisecond, FillAudio: true, DropsReadersOnReplace: true},
	}
	p.note("access.publish", OK, "offer taken after 7 ms, connected 4 ms later")
	p.note("access.play", OK, "offer taken after 7 ms, connected 3 ms later")
	p.note("media.audio", OK, "opus, 101 packets")
	p.note("media.frames", OK, "50 frames of the test clip, none missing, the first after 81 ms")
	p.note("codec.vp8", Warn, "not taken: the answer refuses its section")
	p.note("repair.viewer", Fail, "the server sends nothing again (NACK)")
	p.note("stream.missing", OK, "a play of what nobody publishes: 404 Not Found, after 4 ms")
	r := p.summarize(t.Context(), time.Now())
	r.Took = 12 * time.Second
	var able bytes.Buffer
	if err := r.WriteText(&able); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.golden", able.String())

	p.checks, p.facts = map[string]Check{}, facts{}
	p.note("access.publish", Fail, "401 Unauthorized")
	r = p.summarize(t.Context(), time.Now())
	var unable bytes.Buffer
	if err := r.WriteText(&unable); err != nil {
		t.Fatal(err)
	}
	if text := unable.String(); !strings.Contains(text, "edge       it cannot be published to: 401 Unauthorized\n") ||
		!strings.Contains(text, "further checks were not tried") ||
		strings.Contains(text, "Settings") {
		t.Errorf("report:\n%s", text)
	}
}
