package mediamtx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/poll"
)

// recorded is a control API that gives answers which a real one gave. Which version that was, the files' names tell.
type recorded struct {
	mu      sync.Mutex
	paths   []map[string]any
	session map[string]map[string]any
	asked   []string
	kicked  []string
	// answer, where it is set, answers instead.
	answer func(w http.ResponseWriter, r *http.Request) (done bool)
}

func readItems(t testing.TB, name string) []map[string]any {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + "-v1.20.1.json")
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Items []map[string]any }
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func newRecorded(t testing.TB) *recorded {
	t.Helper()
	a := &recorded{paths: readItems(t, "paths"), session: map[string]map[string]any{}}
	for _, s := range readItems(t, "webrtcsessions") {
		a.session[s["id"].(string)] = s
	}
	return a
}

func (a *recorded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, r.URL.Path)
	if a.answer != nil && a.answer(w, r) {
		return
	}
	element := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	missing := func(what string) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprintf(w, `{"status":"error","error":"%s not found"}`, what)
	}
	switch path := r.URL.Path; {
	case path == "/v3/paths/list":
		list(w, r, a.paths)
	case path == "/v3/webrtcsessions/list":
		var all []map[string]any
		for _, id := range slices.Sorted(maps.Keys(a.session)) {
			all = append(all, a.session[id])
		}
		list(w, r, all)
	case strings.HasPrefix(path, "/v3/webrtcsessions/get/"):
		if s, ok := a.session[element]; ok {
			_ = json.NewEncoder(w).Encode(s)
			return
		}
		missing("session")
	case strings.HasPrefix(path, "/v3/paths/get/"):
		for _, p := range a.paths {
			if p["name"] == strings.TrimPrefix(path, "/v3/paths/get/") {
				_ = json.NewEncoder(w).Encode(p)
				return
			}
		}
		missing("path")
	case strings.Contains(path, "/kick/") && r.Method == http.MethodPost:
		a.kicked = append(a.kicked, path)
		_, _ = w.Write([]byte(`{"status":"ok"}`))
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte("404 page not found"))
	}
}

func list(w http.ResponseWriter, r *http.Request, items []map[string]any) {
	size, _ := strconv.Atoi(r.FormValue("itemsPerPage"))
	number, _ := strconv.Atoi(r.FormValue("page"))
	pages := (len(items) + size - 1) / size
	begin, end := min(number*size, len(items)), min((number+1)*size, len(items))
	_ = json.NewEncoder(w).Encode(map[string]any{"itemCount": len(items), "pageCount": pages, "items": items[begin:end]})
}

func (a *recorded) adapter(t testing.TB) *Adapter {
	t.Helper()
	server := httptest.NewServer(a)
	adapter, err := New(Config{
		BaseURL: "http://10.0.0.7:8889", APIURL: server.URL, API: adapters.Credentials{User: "u", Password: "topsecret"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { adapter.CloseIdleConnections(); server.Close() })
	return adapter
}

// first is the first report of a Watch, or why there was none.
func first(t testing.TB, a *Adapter) ([]adapters.Stream, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var streams []adapters.Stream
	err := a.Watch(ctx, func(s []adapters.Stream) { streams = s; cancel() })
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return streams, err
}

func when(t testing.TB, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestRecordedAnswers(t *testing.T) {
	video, opus := adapters.Track{Kind: "video", MIME: "video/H264"}, adapters.Track{Kind: "audio", MIME: "audio/opus"}
	api := newRecorded(t)
	got, err := first(t, api.adapter(t))
	if err != nil {
		t.Fatal(err)
	}
	want := []adapters.Stream{
		{
			ID: "live/show", Session: "40bc6c2a-eb58-4739-8692-5ee6916e7ea3", Relayed: true, Readers: 2,
			Since: when(t, "2026-11-25T23:35:49.549331897Z"), Tracks: []adapters.Track{video, opus},
		},
		{
			ID: "studio/aac", Session: "334718bb-6c17-458d-bbf9-55e4606a514a", Since: when(t, "2026-11-25T23:35:49.43867069Z"),
			Tracks: []adapters.Track{video}, Lacks: "MediaMTX gives no MPEG-4 Audio track by WHEP",
		},
		{
			ID: "studio/alaw", Session: "a3222802-765d-4ad5-87ce-a28c57caeba3", Since: when(t, "2026-11-25T23:35:49.44403098Z"),
			Tracks: []adapters.Track{{Kind: "audio", MIME: "audio/PCMA"}},
		},
		{
			ID: "studio/only-aac", Session: "3a856d4c-dfe6-44e4-91b0-a5f4cf7030b6", Since: when(t, "2026-11-25T23:35:49.431619736Z"),
			Lacks: "MediaMTX gives no MPEG-4 Audio track by WHEP, so that it cannot be played so at all",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Versions before v1.16 say "ready" only, and list tracks by their names.
func TestEarlierVersions(t *testing.T) {
	api := newRecorded(t)
	for _, p := range api.paths {
		for _, later := range []string{"online", "onlineTime", "available", "availableTime", "tracks2"} {
			delete(p, later)
		}
	}
	for _, s := range api.session {
		delete(s, "userAgent")
	}
	got, err := first(t, api.adapter(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || !got[0].Relayed || len(got[0].Tracks) != 2 || got[1].Lacks == "" ||
		!got[0].Since.Equal(when(t, "2026-11-25T23:35:49.5493271Z")) {
		t.Errorf("got %+v", got)
	}
}

func TestPathsWithoutPublication(t *testing.T) {
	api := newRecorded(t)
	for i, change := range []map[string]any{
		{"online": false}, {"source": nil}, {"source": map[string]any{"type": "redirect", "id": ""}},
	} {
		for key, value := range change {
			api.paths[i][key] = value
		}
	}
	api.paths[3]["readers"] = []map[string]any{{"type": "hidden", "id": "x"}, {"type": "hlsSession", "id": "y"}}
	got, err := first(t, api.adapter(t))
	if err != nil || len(got) != 1 || got[0].ID != "studio/only-aac" || got[0].Readers != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A session that is gone when it is looked at was somebody's, nobody knows whose: a relay's must not seem a publisher's.
func TestSessionGoneMeanwhile(t *testing.T) {
	api := newRecorded(t)
	clear(api.session)
	got, err := first(t, api.adapter(t))
	if err != nil || len(got) != 3 || got[0].ID != "studio/aac" {
		t.Errorf("got %+v, %v; want the streams of RTSP", got, err)
	}
}

// many makes an inventory of n streams, each with a session of its own, every third of them ours.
func many(api *recorded, n int) {
	api.paths, api.session = nil, map[string]map[string]any{}
	for i := range n {
		id, query := fmt.Sprintf("session-%05d", i), ""
		if i%3 == 0 {
			query = "sidestream=relay"
		}
		api.session[id] = map[string]any{"id": id, "query": query}
		api.paths = append(api.paths, map[string]any{
			"name": fmt.Sprintf("live/%05d", i), "ready": true, "source": map[string]any{"type": "webRTCSession", "id": id},
		})
	}
}

func TestThousandsOfStreams(t *testing.T) {
	api := newRecorded(t)
	const n = 4321
	many(api, n)
	adapter := api.adapter(t)
	got, err := first(t, adapter)
	if err != nil || len(got) != n {
		t.Fatalf("%d streams, %v; want %d", len(got), err, n)
	}
	for i, s := range got {
		if s.ID != adapters.StreamID(fmt.Sprintf("live/%05d", i)) || s.Relayed != (i%3 == 0) {
			t.Fatalf("stream %d is %+v", i, s)
		}
	}
	if len(api.asked) != 10 {
		t.Errorf("asked %d times; want 5 pages of paths and 5 of sessions", len(api.asked))
	}
}

// A list that changes between two of its pages is read again, so that no stream seems to have ended.
func TestListChangesBetweenPages(t *testing.T) {
	api := newRecorded(t)
	many(api, 2500)
	all := api.paths
	api.answer = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v3/paths/list" && r.FormValue("page") == "1" && len(api.paths) == len(all) {
			api.paths = all[1:] // the first goes, and what would begin the second page is now on the first
		}
		return false
	}
	got, err := first(t, api.adapter(t))
	if err != nil || len(got) != 2499 {
		t.Errorf("%d streams, %v; want 2499", len(got), err)
	}
}

// What is known of a session is not asked again.
func TestSessionsAreAskedOnce(t *testing.T) {
	api := newRecorded(t)
	w := watch{adapter: api.adapter(t), ours: map[string]bool{}}
	for range 3 {
		if _, err := w.list(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	lookups := slices.DeleteFunc(slices.Clone(api.asked), func(path string) bool { return path == "/v3/paths/list" })
	if len(lookups) != 1 {
		t.Errorf("asked for sessions: %q; want one look", lookups)
	}
	api.paths = api.paths[1:]
	if _, err := w.list(t.Context()); err != nil || len(w.ours) != 0 {
		t.Errorf("remembers %v of sessions that are gone (%v)", w.ours, err)
	}
}

func TestBadAnswers(t *testing.T) {
	status := func(code int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
			return true
		}
	}
	for name, test := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		final  bool
		words  string
	}{
		"no rights":     {status(401, `{"status":"error","error":"authentication error"}`), true, `permission "api"`},
		"no API v3":     {status(404, "404 page not found"), true, "no control API v3"},
		"garbage":       {status(200, "<html>"), true, "not that of MediaMTX"},
		"other JSON":    {status(200, `{"streams":[]}`), true, "not that of MediaMTX"},
		"other types":   {status(200, `{"itemCount":"1","pageCount":1,"items":{}}`), true, "not that of MediaMTX"},
		"endless pages": {status(200, `{"itemCount":1,"pageCount":1000000,"items":[]}`), true, "more than 100 pages"},
		"bad request":   {status(400, `{"error":"invalid page"}`), true, "invalid page"},
		"overload":      {status(503, ""), false, "503"},
	} {
		t.Run(name, func(t *testing.T) {
			api := newRecorded(t)
			api.answer = test.answer
			_, err := first(t, api.adapter(t))
			final := (*poll.Final)(nil)
			if err == nil || errors.As(err, &final) != test.final || !strings.Contains(err.Error(), test.words) {
				t.Errorf("Watch: %v; want an error with %q, final: %t", err, test.words, test.final)
			}
			if strings.Contains(fmt.Sprint(err), "topsecret") {
				t.Errorf("the password shows: %v", err)
			}
			if len(api.asked) != 1 {
				t.Errorf("asked %d times", len(api.asked))
			}
		})
	}
}

func TestEnd(t *testing.T) {
	for name, test := range map[string]struct {
		stream adapters.Stream
		change func(*recorded)
		kicked string
		fails  bool
	}{
		"WHIP":          {adapters.Stream{ID: "live/show", Session: "40bc6c2a-eb58-4739-8692-5ee6916e7ea3"}, nil, "/v3/webrtcsessions/kick/40bc6c2a-eb58-4739-8692-5ee6916e7ea3", false},
		"RTSP":          {adapters.Stream{ID: "studio/aac", Session: "334718bb-6c17-458d-bbf9-55e4606a514a"}, nil, "/v3/rtspsessions/kick/334718bb-6c17-458d-bbf9-55e4606a514a", false},
		"gone":          {adapters.Stream{ID: "nothing", Session: "x"}, nil, "", false},
		"taken over":    {adapters.Stream{ID: "live/show", Session: "before"}, nil, "", false},
		"not published": {adapters.Stream{ID: "live/show"}, func(a *recorded) { a.paths[0]["source"] = nil }, "", false},
		"static": {
			adapters.Stream{ID: "live/show"},
			func(a *recorded) { a.paths[0]["source"] = map[string]any{"type": "rtspSource", "id": ""} }, "", true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			api := newRecorded(t)
			if test.change != nil {
				test.change(api)
			}
			err := api.adapter(t).End(t.Context(), test.stream)
			if (err != nil) != test.fails || strings.Join(api.kicked, " ") != test.kicked {
				t.Errorf("End: %v, kicked %q; want %q", err, api.kicked, test.kicked)
			}
		})
	}
}

// The words are MediaMTX' own: of v1.20.1, and of versions before v1.12.
func TestMissing(t *testing.T) {
	a := newRecorded(t).adapter(t)
	for body, want := range map[string]bool{
		`{"status":"error","error":"no stream is available on path 'x'"}`: true,
		`{"status":"error","error":"no one is publishing to path 'x'"}`:   true,
		`{"status":"error","error":"session not found"}`:                  false,
		"404 page not found": false, "": false,
	} {
		if got := a.Missing(http.StatusNotFound, nil, []byte(body)); got != want {
			t.Errorf("404 %s: missing %t", body, got)
		}
	}
	if a.Missing(http.StatusBadRequest, nil, []byte(`{"error":"no stream is available on path 'x'"}`)) {
		t.Error("a 400 is taken for missing")
	}
}

func TestMatch(t *testing.T) {
	a, err := New(Config{BaseURL: "https://media.example/base/"})
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]adapters.Request{
		"/base/a/whip":                                {ID: "a", Publish: true},
		"/base/a/b%20c/whep":                          {ID: "a/b c"},
		"/base/whip/whip?jwt=x":                       {ID: "whip", Publish: true},
		"/base/a/whip/whep":                           {ID: "a/whip"},
		"/base/a%252Fb/whep":                          {ID: "a%2Fb"},
		"/base/" + strings.Repeat("x", 255) + "/whep": {ID: adapters.StreamID(strings.Repeat("x", 255))},
		"/base/whip":                                  {}, "/base/a/whip/": {},
		"/a/whip": {}, "/base/a/whip/0b9e": {}, "/base/a/publish": {}, "/base/a/": {},
		// What no stream can be called is for the gateway to refuse.
		"/base/../x/whip": {ID: "../x", Publish: true}, "/base/a//whip": {ID: "a/", Publish: true},
		"/base/a%00/whip": {ID: "a\x00", Publish: true},
		"/base/" + strings.Repeat("x", 1000) + "/whep": {ID: adapters.StreamID(strings.Repeat("x", 1000))},
	} {
		u, err := url.ParseRequestURI(at)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := a.Match(&http.Request{Method: http.MethodPost, URL: u})
		if ok != (want.ID != "") || ok && got != want {
			t.Errorf("POST %s: %+v, %t; want %+v", at, got, ok, want)
		}
	}
}

func TestOccupied(t *testing.T) {
	a, err := New(Config{BaseURL: "http://a"})
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]bool{
		`{"error":"someone is already publishing to path 'x'"}`: true, `{"error":"invalid SDP"}`: false, "<html>": false, "": false,
	} {
		if got := a.Occupied(http.StatusBadRequest, nil, []byte(body)); got != want {
			t.Errorf("%s: %t", body, got)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []Config{
		{}, {BaseURL: "rtsp://a"}, {BaseURL: "http://u:topsecret@a"}, {BaseURL: "http://a", APIURL: "a:9997"}, {BaseURL: "http://a\n"},
	} {
		if _, err := New(c); err == nil || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%q: %v", c.BaseURL, err)
		}
	}
	a, err := New(Config{BaseURL: "http://[fd00::1]:8889"})
	if err != nil || a.api.String() != "http://[fd00::1]:9997" {
		t.Errorf("control API at %s, %v", a.api.String(), err)
	}
}

func FuzzAnswers(f *testing.F) {
	for _, name := range []string{"paths", "webrtcsessions"} {
		text, err := os.ReadFile("testdata/" + name + "-v1.20.1.json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		var p page[path]
		if json.Unmarshal(answer, &p) != nil {
			return
		}
		for _, item := range p.Items {
			if s, ok := item.stream(); ok && s.Readers < 0 {
				t.Errorf("%+v", s)
			}
		}
	})
}
