package broadcastbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/poll"
)

const secret = "topsecret"

// recorded gives answers which a real server gave. Which version that was, the files' names tell.
type recorded struct {
	mu     sync.Mutex
	asked  []string
	answer http.HandlerFunc // where it is set, it answers instead
}

func (a *recorded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, r.URL.Path)
	file, admin := "status", strings.HasPrefix(r.URL.Path, "/api/admin/")
	switch {
	case admin && r.Header.Get("Authorization") != "Bearer "+secret:
		http.Error(w, "Authorization was invalid", http.StatusUnauthorized)
		return
	case a.answer != nil:
		a.answer(w, r)
		return
	case r.URL.Path == pathAdmin:
		file = "admin-status"
	case r.URL.Path == pathProfiles:
		file = "profiles"
	case r.URL.Path != pathStatus:
		http.NotFound(w, r)
		return
	}
	text, err := os.ReadFile("testdata/" + file + "-9f43de2.json")
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(text)
}

func serve(t testing.TB, h http.Handler, token string) *Adapter {
	t.Helper()
	server := httptest.NewServer(h)
	a, err := New(Config{BaseURL: server.URL, AdminToken: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.CloseIdleConnections(); server.Close() })
	return a
}

// first is the first report of a Watch, or why there was none.
func first(t testing.TB, a *Adapter) (streams []adapters.Stream, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	reported := false
	err = a.Watch(ctx, func(s []adapters.Stream) { streams, reported = s, true; cancel() })
	if reported {
		err = nil
	}
	return streams, err
}

func when(t testing.TB, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestRecordedAnswers(t *testing.T) {
	const began = "2026-11-26T01:19:41.735365672Z"
	left := adapters.Stream{ID: "left", Readers: 1, Waiting: true}
	show := adapters.Stream{
		ID: "live/show", Session: began, Since: when(t, began), Readers: 1,
		Tracks: []adapters.Track{{Kind: "audio", MIME: "audio/opus"}, {Kind: "video"}},
	}
	for name, test := range map[string]struct {
		token string
		want  []adapters.Stream
		asked []string
	}{
		"public": {"", []adapters.Stream{left, show}, []string{pathStatus}},
		"admin": {
			secret,
			[]adapters.Stream{left, show, {ID: "nobody", Readers: 1, Waiting: true}},
			[]string{pathProfiles, pathAdmin},
		},
	} {
		t.Run(name, func(t *testing.T) {
			api := &recorded{}
			got, err := first(t, serve(t, api, test.token))
			if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
				t.Errorf("%v %s", err, diff)
			}
			if diff := cmp.Diff(test.asked, api.asked); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A name that is reserved at the server is published by its token, and known by it.
func TestReservedName(t *testing.T) {
	a := serve(t, &recorded{}, secret)
	if got := a.Ingest("kept").Header.Get("Authorization"); got != "Bearer a2VwdA==" {
		t.Errorf("before the server was asked: %q", got)
	}
	if _, err := first(t, a); err != nil {
		t.Fatal(err)
	}
	const token = "Bearer c471cf02-304f-425c-842e-8873f60e811b"
	if got := a.Ingest("kept").Header.Get("Authorization"); got != token {
		t.Errorf("published with %q", got)
	}
	if got := a.Egress("kept").Header.Get("Authorization"); got != "Bearer a2VwdA==" {
		t.Errorf("played with %q", got)
	}
	for path, want := range map[string]adapters.StreamID{pathPublish: "kept", pathPlay: "c471cf02-304f-425c-842e-8873f60e811b"} {
		r := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: path}, Header: http.Header{"Authorization": {token}}}
		if got, ok := a.Match(r); !ok || got.ID != want {
			t.Errorf("POST %s: %+v, %t", path, got, ok)
		}
	}
}

// The publications of a name, of which the page says nothing but what they have sent so far.
func TestPublicationsAreTold(t *testing.T) {
	start := when(t, "2026-11-26T01:00:00Z")
	at := func(packets uint64, plays int) session {
		s := session{StreamKey: "show", StreamStart: &start, AudioTracks: []track{}, VideoTracks: []track{}}
		if packets > 0 {
			s.VideoTracks = []track{{PacketsReceived: packets}}
		}
		for range plays {
			s.Sessions = append(s.Sessions, struct {
				ID string `json:"id"`
			}{"x"})
		}
		return s
	}
	l, now := ledger{}, start
	var told []string
	for _, s := range [][]session{
		{at(0, 1)}, {at(10, 1)}, {at(20, 0)}, {at(20, 0)}, {at(0, 2)}, {at(5, 2)}, {at(3, 2)}, {at(0, 0)}, {}, {at(1, 0)},
	} {
		now = now.Add(time.Second)
		line := "none"
		for _, s := range l.streams(s, now) {
			line = fmt.Sprintf("%s of %s, %d", s.Session, s.Since.Format(time.TimeOnly), s.Readers)
			if s.Waiting {
				line = "waiting"
			}
		}
		told = append(told, line)
	}
	want := []string{
		"waiting",
		"2026-11-26T01:00:00Z of 01:00:00, 1",
		"2026-11-26T01:00:00Z of 01:00:00, 0",
		"2026-11-26T01:00:00Z of 01:00:00, 0",
		"waiting",
		"2026-11-26T01:00:00Z/2 of 01:00:06, 2",
		"2026-11-26T01:00:00Z/3 of 01:00:07, 2",
		"none", "none",
		"2026-11-26T01:00:00Z of 01:00:00, 0",
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Error(diff)
	}
}

func TestBadAnswers(t *testing.T) {
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}
	}
	for name, test := range map[string]struct {
		token  string
		answer http.HandlerFunc
		final  bool
		words  string
	}{
		"wrong token":      {"wrong", nil, true, "FRONTEND_ADMIN_TOKEN"},
		"status disabled":  {"", status(503, "Status Service Unavailable\n"), true, "DISABLE_STATUS"},
		"overload":         {"", status(503, ""), false, "503"},
		"the frontend":     {"", status(200, "<!doctype html>"), true, "not that of Broadcast Box v2"},
		"another version":  {"", status(200, `[{"streamKey":"a","firstSeenEpoch":1,"whepSessions":[]}]`), true, "lacks one of"},
		"without a name":   {"", status(200, `[{"streamStart":"2026-11-26T01:00:00Z","audioTracks":[],"videoTracks":[],"sessions":[]}]`), true, "entry 0"},
		"nothing":          {"", status(200, ""), true, "not that of Broadcast Box v2"},
		"no admin API":     {secret, status(404, "404 page not found"), true, "404"},
		"admin API breaks": {secret, status(500, ""), false, "500"},
	} {
		t.Run(name, func(t *testing.T) {
			api := &recorded{answer: test.answer}
			_, err := first(t, serve(t, api, test.token))
			final := (*poll.Final)(nil)
			if err == nil || errors.As(err, &final) != test.final || !strings.Contains(err.Error(), test.words) {
				t.Errorf("Watch: %v; want an error with %q, final: %t", err, test.words, test.final)
			}
			if len(api.asked) != 1 {
				t.Errorf("asked %q", api.asked)
			}
		})
	}
	if got, err := first(t, serve(t, &recorded{answer: status(200, "null\n")}, "")); err != nil || len(got) != 0 {
		t.Errorf("a server without streams: %v, %v", got, err)
	}
}

func TestAnswers(t *testing.T) {
	many := func(n int) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != pathAdmin {
				return // no profile was ever made
			}
			all := make([]map[string]any, 0, n)
			for i := range n {
				all = append(all, map[string]any{
					"streamKey": adaptertest.ManyName(n - i), "streamStart": "2026-11-26T01:00:00Z", "sessions": []any{},
					"audioTracks": []any{}, "videoTracks": []any{map[string]any{"rid": "Video", "packetsReceived": 1}},
				})
			}
			_ = json.NewEncoder(w).Encode(all)
		})
	}
	adaptertest.RunAnswers(t, adaptertest.Answers{
		Secret: secret, Many: many,
		New: func(t testing.TB, baseURL string) adapters.Adapter {
			a, err := New(Config{BaseURL: baseURL, AdminToken: secret})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(a.CloseIdleConnections)
			return a
		},
	})
}

func TestTokens(t *testing.T) {
	for name, want := range map[adapters.StreamID]string{
		"show": "c2hvdw==", "a/b": "YS9i", "Käse": "S8Okc2U=", "a b": "a%20b",
	} {
		if got := bearer(name); got != want {
			t.Errorf("%s is sent as %q; want %q", name, got, want)
		}
	}
	for authorization, want := range map[string]adapters.StreamID{
		"Bearer show": "show", "Bearer my_show-1": "my_show-1", "Bearer QUJD": "ABC", "Bearer S8Okc2U=": "Käse", "Bearer YSBi": "a_b",
		"Bearer a b": "a_b", "Bearer a/b.": "", "Bearer ": "", "": "", "Basic c2hvdw==": "", "bearer show": "", "Bearer Käse": "",
	} {
		if got := nameOf(authorization); got != want {
			t.Errorf("%q is taken for %q; want %q", authorization, got, want)
		}
	}
}

func FuzzTokens(f *testing.F) {
	f.Add("show")
	f.Add("a/b c")
	f.Fuzz(func(t *testing.T, name string) {
		id := adapters.StreamID(name)
		if id.Validate() != nil {
			return
		}
		got := nameOf("Bearer " + bearer(id))
		if strings.Contains(name, " ") {
			if got != "" {
				t.Errorf("%q, which the server cannot name, becomes %q", id, got)
			}
			return
		}
		if got != id {
			t.Errorf("%q comes back as %q", id, got)
		}
	})
}

func TestMatch(t *testing.T) {
	a, err := New(Config{BaseURL: "https://media.example/base/"})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]adapters.Request{
		"/base/api/whip": {ID: "show", Publish: true}, "/base/api/whip/": {ID: "show", Publish: true}, "/base/api/whep": {ID: "show"},
		"/base/api/whep/x": {ID: "show"}, "/base/api/whip/profile": {}, "/api/whip": {}, "/base/api/whipper": {}, "/base/api/status": {},
	} {
		r := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: path}, Header: http.Header{"Authorization": {"Bearer show"}}}
		got, ok := a.Match(r)
		if ok != (want.ID != "") || ok && got != want {
			t.Errorf("POST %s: %+v, %t; want %+v", path, got, ok, want)
		}
	}
	r := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: "/base/api/whip"}, Header: http.Header{}}
	if got, ok := a.Match(r); ok {
		t.Errorf("without a token it is %+v", got)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, at := range []string{"", "rtsp://a", "http://u:topsecret@a", "http://a?b=c", "http://a\n"} {
		if _, err := New(Config{BaseURL: at}); err == nil || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%q: %v", at, err)
		}
	}
}
