package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
)

// A name that no stream can have is refused with the reason, and one that is odd survives.
func TestNames(t *testing.T) {
	s := newServer(t)
	n := newNode(t, s, nil)
	long := strings.Repeat("x", 255)
	for name, status := range map[string]int{
		"demo": 201, "a%20b": 201, "100%25": 201, "%252F": 201, "K%C3%A4se": 201, "%F0%9F%8E%A5": 201, "a%3Fb%23c": 201, "a+b&c=d": 201,
		"a/b%2Fc": 201, "...": 201, long: 201, "a;b": 201, "%22q%22": 201,
		long + "x": 400, strings.Repeat("y", 1000): 400, "%2e%2e": 400, "a/../b": 400, "a//b": 400, "%00": 400, "a%0Ab": 400, "%FF": 400, "": 400,
	} {
		for _, kind := range []string{"whip", "whep"} {
			id, err := url.PathUnescape(name)
			if err != nil {
				t.Fatal(err)
			}
			s.publish(id)
			s.requests()
			got := do(t, "POST", n.public.URL+"/live/"+name+"/"+kind, offer)
			if status == 400 {
				got.problem(t, 400)
				if !strings.Contains(got.Body, "stream name") || len(s.requests()) != 0 {
					t.Errorf("%s: %s", name, got.Body)
				}
				continue
			}
			if got.Status != status {
				t.Errorf("%s: %+v", name, got)
				continue
			}
			if sent := s.requests(); len(sent) != 1 || sent[0].Path != "/live/"+name+"/"+kind {
				t.Errorf("%s: the server saw %+v", name, sent)
			}
			if got := do(t, "DELETE", n.public.URL+got.Header.Get("Location"), ""); got.Status != 200 {
				t.Errorf("DELETE %s: %d", name, got.Status)
			}
		}
	}
}

// FuzzNames: whatever the path, what reaches the server as an endpoint is a stream's name, the same that its adapter reads.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"demo", "a/../b", "a%2fb", "%00", "a//b", "ü", "..", "%2e%2e", strings.Repeat("x", 300), "a\\b"} {
		f.Add(seed)
	}
	base, _ := url.Parse("http://server")
	f.Fuzz(func(t *testing.T, name string) {
		u := &url.URL{Scheme: "http", Host: "gateway", Path: "/live/" + name + "/whep"}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u.String(), strings.NewReader(offer))
		if err != nil || !strings.HasPrefix(r.URL.Path, "/") {
			return
		}
		r.RemoteAddr = "192.0.2.1:1"
		reached := ""
		g := New(Options{Adapter: adapter{base: base}, Target: base, NodeID: "a", Transport: transport(func(r *http.Request) *http.Response {
			reached = r.URL.Path
			resp := status(201)
			resp.Header.Set("Location", "/s/1")
			return resp
		})})
		w := &recorder{ResponseWriter: discardWriter{}}
		g.public(w, r)
		want, matched := match(&http.Request{Method: http.MethodPost, URL: u})
		switch valid := matched && want.ID.Validate() == nil; {
		case valid && (w.status != 201 || reached != u.Path):
			t.Errorf("%q: %d at %q", name, w.status, reached)
		case matched && !valid && (w.status != 400 || reached != ""):
			t.Errorf("%q: %d at %q", name, w.status, reached)
		}
	})
}

type discardWriter struct{}

func (discardWriter) Header() http.Header         { return http.Header{} }
func (discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (discardWriter) WriteHeader(int)             {}

func TestCORS(t *testing.T) {
	const page = "https://page.example"
	for name, tt := range map[string]struct {
		origins []string
		server  http.Header // what the server says itself
		status  int         // of its answer to a preflight
		want    string      // Access-Control-Allow-Origin
		methods bool        // and of the preflight, whether methods are allowed
	}{
		"every page":           {status: 404, want: "*", methods: true},
		"listed":               {origins: []string{"https://a", page}, status: 401, want: page, methods: true},
		"not listed":           {origins: []string{"https://a"}, status: 405, want: ""},
		"none":                 {origins: []string{"none"}, status: 405, want: ""},
		"server has its own":   {server: http.Header{"Access-Control-Allow-Origin": {"https://b"}}, status: 200, want: "https://b"},
		"server knows OPTIONS": {status: 200, want: "*", methods: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "demo")
			n := newNode(t, s, func(o *Options) { o.Origins = tt.origins })
			s.set(func(w http.ResponseWriter, r *http.Request) bool {
				for field, values := range tt.server {
					w.Header()[field] = values
				}
				if r.Method == http.MethodOptions {
					w.WriteHeader(tt.status)
				}
				return r.Method == http.MethodOptions
			})
			preflight := do(t, "OPTIONS", n.public.URL+"/live/demo/whep", "", "Origin", page, "Access-Control-Request-Method", "POST",
				"Access-Control-Request-Headers", "authorization,x-special")
			h := preflight.Header
			if preflight.Status/100 != 2 || h.Get("Access-Control-Allow-Origin") != tt.want || len(h["Access-Control-Allow-Origin"]) > 1 ||
				tt.methods != strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST") ||
				tt.methods && h.Get("Access-Control-Allow-Headers") != "authorization,x-special" {
				t.Errorf("preflight %+v", preflight)
			}
			opened := do(t, "POST", n.public.URL+"/live/demo/whep", offer, "Origin", page)
			h = opened.Header
			if opened.Status != 201 || h.Get("Access-Control-Allow-Origin") != tt.want || len(h["Access-Control-Allow-Origin"]) > 1 {
				t.Errorf("%+v", opened)
			}
			if tt.want != "" && !strings.Contains(h.Get("Access-Control-Expose-Headers"), "Location") {
				t.Errorf("exposed: %s", h.Get("Access-Control-Expose-Headers"))
			}
			session := do(t, "OPTIONS", n.public.URL+opened.Header.Get("Location"), "", "Origin", page, "Access-Control-Request-Method", "DELETE")
			if allowed := strings.Contains(session.Header.Get("Access-Control-Allow-Methods"), "DELETE"); session.Status != 204 ||
				allowed != (name != "not listed" && name != "none") {
				t.Errorf("preflight of a session %+v", session)
			}
			// What the gateway knows nothing of stays as it is.
			if h := do(t, "GET", n.public.URL+"/page", "", "Origin", page).Header; tt.server == nil && h.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("page: %v", h)
			}
		})
	}
}

func TestExposedFieldsAreNotDoubled(t *testing.T) {
	for has, want := range map[string]string{
		"":                           "Location, Link, ETag, Retry-After, Accept-Patch, WWW-Authenticate",
		"*":                          "*",
		"location, X-A, Link , ETag": "location, X-A, Link , ETag, Retry-After, Accept-Patch, WWW-Authenticate",
		"Location,Link,ETag,Retry-After,Accept-Patch,WWW-Authenticate": "Location,Link,ETag,Retry-After,Accept-Patch,WWW-Authenticate",
	} {
		h := http.Header{"Access-Control-Allow-Origin": {"https://x"}}
		if has != "" {
			h.Set("Access-Control-Expose-Headers", has)
		}
		newCORS(nil).answer(h, "https://x")
		if got := h.Get("Access-Control-Expose-Headers"); got != want || h.Get("Access-Control-Allow-Origin") != "https://x" {
			t.Errorf("%q becomes %q", has, got)
		}
	}
}

func TestLimits(t *testing.T) {
	for name, tt := range map[string]struct {
		limits Limits
		first  []string // opened before; "ADDRESS path"
		next   string
		full   string
	}{
		"plays":                  {Limits{Plays: 1}, []string{"1.1.1.1 a/whep"}, "2.2.2.2 b/whep", fullPlays},
		"plays, a publisher":     {Limits{Plays: 1}, []string{"1.1.1.1 a/whep"}, "1.1.1.1 b/whip", ""},
		"publications":           {Limits{Publications: 1}, []string{"1.1.1.1 a/whip"}, "2.2.2.2 b/whip", fullPublications},
		"stream":                 {Limits{PerStream: 2}, []string{"1.1.1.1 a/whep", "1.1.1.1 a/whep"}, "2.2.2.2 a/whep", fullStream},
		"another stream":         {Limits{PerStream: 1}, []string{"1.1.1.1 a/whep"}, "1.1.1.1 b/whep", ""},
		"address":                {Limits{PerAddress: 2}, []string{"1.1.1.1 a/whep", "1.1.1.1 a/whip"}, "1.1.1.1 b/whep", fullAddress},
		"another address":        {Limits{PerAddress: 1}, []string{"1.1.1.1 a/whep"}, "1.1.1.2 a/whep", ""},
		"IPv6 of one subscriber": {Limits{PerAddress: 1}, []string{"2001:db8::1 a/whep"}, "2001:db8::2 a/whep", fullAddress},
		"IPv6 of another":        {Limits{PerAddress: 1}, []string{"2001:db8::1 a/whep"}, "2001:db8:0:1::1 a/whep", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "a", "b")
			n := newNode(t, s, func(o *Options) {
				o.Limits, o.TrustedProxies = tt.limits, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			})
			post := func(from string) answer {
				addr, path, _ := strings.Cut(from, " ")
				return do(t, "POST", n.public.URL+"/live/"+path, offer, "X-Forwarded-For", "9.9.9.9, "+addr)
			}
			var location string
			for _, from := range tt.first {
				got := post(from)
				if location = got.Header.Get("Location"); got.Status != 201 {
					t.Fatalf("%s: %+v", from, got)
				}
			}
			s.requests()
			got := post(tt.next)
			if tt.full == "" {
				if got.Status != 201 {
					t.Errorf("%+v", got)
				}
				return
			}
			got.problem(t, 503)
			_, path, _ := strings.Cut(tt.next, " ")
			id, _, _ := strings.Cut(path, "/")
			if bound := n.Bound(adapters.StreamID(id)); (bound == "") == (tt.full == fullPlays || tt.full == fullStream) {
				t.Errorf("%s: explain says %q", tt.full, bound)
			}
			if got.Header.Get("Retry-After") == "" || len(s.requests()) != 0 {
				t.Errorf("%+v", got)
			}
			if n.metric(t, "sidestream_gateway_refusals_total", tt.full) != 1 {
				t.Error("not counted")
			}
			// A session that ends makes room; one that the server refuses takes none.
			do(t, "DELETE", n.public.URL+location, "")
			s.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(401); return true })
			for range 3 {
				if got := post(tt.next); got.Status != 401 {
					t.Errorf("%+v", got)
				}
			}
			s.set(nil)
			if got := post(tt.next); got.Status != 201 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// The table of sessions is kept by what the server reports, where nobody said goodbye.
func TestSessionsThatEndedWithoutAWord(t *testing.T) {
	began := time.Now()
	table := newSessions(Limits{}, newMetrics(nil))
	open := func(path string, publish bool, at time.Duration) {
		s, full := table.admit(adapters.Request{ID: adapters.StreamID(path[:1]), Publish: publish}, netip.Prefix{})
		if full != "" {
			t.Fatal(full)
		}
		table.opened(s, path, nil)
		s.since = began.Add(at)
	}
	open("a/play1", false, 0)
	open("a/play2", false, time.Second)
	open("a/new", false, 50*time.Second)
	open("a/publisher", true, 0)
	open("b/play", false, 0)
	open("b/publisher", true, 0)
	open("c/play", false, 0)
	reports := map[adapters.StreamID]adapters.Stream{
		"a": {ID: "a", Readers: 2}, "b": {ID: "b", Waiting: true, Readers: -1}, "c": {ID: "c", Readers: -1},
	}
	reported := func(id adapters.StreamID) (adapters.Stream, bool) { s, ok := reports[id]; return s, ok }
	over := func(at time.Duration) (paths []string) {
		for _, s := range table.over(began.Add(at), time.Hour, true, reported) {
			paths = append(paths, s.path)
		}
		return paths
	}
	if got := over(settleTime - time.Second); got != nil {
		t.Errorf("too soon: %q", got)
	}
	// Nobody publishes b any more, though its viewer may wait.
	if got := over(time.Minute); !cmp.Equal(got, []string{"b/publisher"}) {
		t.Errorf("%q", got)
	}
	reports["a"] = adapters.Stream{ID: "a", Readers: 1}
	if got := over(time.Minute); !cmp.Equal(got, []string{"a/play1"}) {
		t.Errorf("%q", got)
	}
	delete(reports, "a")
	if got := over(time.Minute); !cmp.Equal(len(got), 2) { // the publisher and play2; the new one may be about to show
		t.Errorf("%q", got)
	}
	if got := over(2 * time.Hour); len(got) != 3 {
		t.Errorf("%q", got)
	}
	if plays, publications := table.counts(); plays != 0 || publications != 0 || len(table.byPath)+len(table.byAddress)+len(table.byStream) != 0 {
		t.Errorf("%d plays, %d publications, %+v", plays, publications, table)
	}
}

// A client that leaves before the answer leaves no session behind.
func TestClientGoneBeforeTheAnswer(t *testing.T) {
	for _, kind := range []string{"whep", "whip"} {
		s := newServer(t, "demo")
		n := newNode(t, s, nil)
		came, answerNow := make(chan struct{}), make(chan struct{})
		s.set(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				close(came)
				<-answerNow
			}
			return false
		})
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan struct{})
		go func() {
			defer close(left)
			req, _ := http.NewRequestWithContext(ctx, "POST", n.public.URL+"/live/demo/"+kind, strings.NewReader(offer))
			req.Header.Set("Content-Type", "application/sdp")
			req.Header.Set("Authorization", bearer)
			if resp, err := client.Do(req); err == nil {
				resp.Body.Close()
			}
		}()
		<-came
		leave()
		<-left
		<-n.gone // the gateway notices by itself, a moment later
		close(answerNow)
		n.public.Close() // waits for the handler
		requests := s.requests()
		last := requests[len(requests)-1]
		if last.Method != "DELETE" || last.Path != "/live/demo/"+kind+"/1" || last.Query != "secret=a%2Fb" || last.Header.Get("Authorization") != bearer {
			t.Errorf("the server saw %+v", requests)
		}
		if n.metric(t, "sidestream_gateway_abandoned_total") != 1 || n.metric(t, "sidestream_gateway_requests_total", "4xx") != 1 {
			t.Error("not counted")
		}
		if plays, publications := n.sessions.counts(); plays+publications != 0 {
			t.Errorf("%d plays and %d publications are still counted", plays, publications)
		}
	}
}

// What brings a stream here is kept while a play of it is under way, and until the server can count its viewer.
func TestPlayHoldsWhatIsThere(t *testing.T) {
	s := newServer(t, "demo")
	r := newRelays(nil)
	r.carries = true
	n := newNode(t, s, func(o *Options) { o.Relays, o.Readers, o.CountTime = r, counted(1), time.Hour })
	s.set(func(http.ResponseWriter, *http.Request) bool {
		if got := r.holding(); got != 1 {
			t.Errorf("%d held while the server is asked", got)
		}
		return false
	})
	got := do(t, "POST", n.public.URL+"/live/demo/whep", offer)
	if got.Status != 201 || r.holding() != 1 {
		t.Fatalf("%+v, %d held", got, r.holding())
	}
	s.set(nil)
	do(t, "DELETE", n.public.URL+got.Header.Get("Location"), "")
	r.await(t, "released", func() bool { return r.held == 0 })

	s.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(401); return true })
	do(t, "POST", n.public.URL+"/live/demo/whep", offer)
	r.await(t, "released", func() bool { return r.held == 0 })
}

// A publisher whose name a relay has gets it; where the server refuses the publisher for another reason the relay goes on.
func TestPublisherTakesARelaysName(t *testing.T) {
	for name, tt := range map[string]struct {
		before, after int // the server's answers
		relayed       bool
		words         string // of an adapter that knows its server's words
		ends          bool
		status        int
		published     bool
	}{
		"taken over":             {before: 409, after: 201, relayed: true, ends: true, status: 201, published: true},
		"no relay of ours":       {before: 409, after: 409, status: 409},
		"not allowed":            {before: 401, after: 401, relayed: true, status: 401},
		"refused all the same":   {before: 409, after: 409, relayed: true, ends: true, status: 409},
		"server has other words": {before: 400, after: 201, words: "name taken", relayed: true, ends: true, status: 201, published: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			ended := false
			s.set(func(w http.ResponseWriter, _ *http.Request) bool {
				code := tt.before
				if ended {
					code = tt.after
				}
				if code == 201 {
					return false
				}
				w.WriteHeader(code)
				_, _ = w.Write([]byte("name taken"))
				return true
			})
			r := newRelays(nil)
			var told []bool
			if tt.relayed {
				r.yield = func(published bool) { told = append(told, published) }
				r.ended = func(id adapters.StreamID) { ended = id == "demo" }
			}
			n := newNode(t, s, func(o *Options) {
				o.Relays = r
				if tt.words != "" {
					o.Adapter = wordy{o.Adapter, tt.words}
				}
			})
			got := do(t, "POST", n.public.URL+"/live/demo/whip", offer, "Authorization", bearer)
			if got.Status != tt.status || ended != tt.ends || tt.status != 201 && got.Body != "name taken" {
				t.Errorf("%+v, ended %t", got, ended)
			}
			if tt.ends && !cmp.Equal(told, []bool{tt.published}) {
				t.Errorf("told %v", told)
			}
		})
	}
}

// wordy is an adapter that knows its server's words for a name that is taken.
type wordy struct {
	adapters.Adapter
	words string
}

func (a wordy) Occupied(_ int, _ http.Header, body []byte) bool {
	return strings.Contains(string(body), a.words)
}

func TestICEServers(t *testing.T) {
	s := newServer(t, "demo")
	n := newNode(t, s, func(o *Options) {
		o.ICEServers = func(context.Context) []string {
			return []string{`<turn:a>; rel="ice-server"`, `<turn:b>; rel="ice-server"`}
		}
	})
	// This server has its own.
	if got := do(t, "POST", n.public.URL+"/live/demo/whep", offer).Header["Link"]; len(got) != 2 || !strings.Contains(got[1], "turn.example.org") {
		t.Errorf("%q", got)
	}
	s.set(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Location", "/s/1")
		w.WriteHeader(http.StatusCreated)
		return true
	})
	for _, kind := range []string{"whip", "whep"} {
		if got := do(t, "POST", n.public.URL+"/live/demo/"+kind, offer).Header["Link"]; len(got) != 2 || got[0] != `<turn:a>; rel="ice-server"` {
			t.Errorf("%q", got)
		}
	}
	// They are for sessions only.
	s.set(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(404); return true })
	if got := do(t, "POST", n.public.URL+"/live/demo/whip", offer).Header["Link"]; got != nil {
		t.Errorf("%q", got)
	}
}

// Tokens are checked before the server sees anything, and the server gets the sidecar's own credentials.
func TestAuthorize(t *testing.T) {
	s := newServer(t, "demo")
	key := []byte("0123456789abcdef0123456789abcdef")
	options := func(o *Options) {
		o.SessionKey = key
		o.OpenPath = func(path string) bool { return path == "/page" }
		o.Authorize = func(_ context.Context, token string, want adapters.Request) error {
			switch token {
			case "good":
				return nil
			case "narrow":
				return &adapters.DeniedError{Known: true, Reason: "not this one"}
			case "later":
				return errors.New("no keys")
			}
			return &adapters.DeniedError{Reason: "no token"}
		}
	}
	n := newNode(t, s, options)
	for token, status := range map[string]int{"": 401, "bad": 401, "narrow": 403, "later": 503} {
		for _, path := range []string{"/live/demo/whep", "/live/demo/whip", SessionPrefix + "node-1/live/demo/whep"} {
			got := do(t, "POST", n.public.URL+path, offer, "Authorization", "Bearer "+token)
			got.problem(t, status)
			if challenge := got.Header.Get("WWW-Authenticate"); (challenge == "") != (status == 503) {
				t.Errorf("%s: %q", token, challenge)
			}
		}
	}
	for _, r := range []string{"GET /", "POST /api/v1", "GET /live/demo/whep/1", "PATCH /live/demo/whep/1", "OPTIONS /live/demo/whep", "PUT /live/demo/whep"} {
		method, path, _ := strings.Cut(r, " ")
		do(t, method, n.public.URL+path, "x").problem(t, 403)
	}
	if got := do(t, "OPTIONS", n.public.URL+"/live/demo/whep", "", "Origin", "https://a", "Access-Control-Request-Method", "POST"); got.Status != 204 {
		t.Errorf("preflight %+v", got)
	}
	if got := s.requests(); len(got) != 0 {
		t.Fatalf("the server saw %+v", got)
	}
	if got := do(t, "GET", n.public.URL+"/page", ""); got.Status != 200 {
		t.Errorf("an open page: %d", got.Status)
	}
	s.requests()

	got := do(t, "POST", n.public.URL+"/live/demo/whep", offer, "Authorization", "Bearer good", "Cookie", "a=b")
	if got.Status != 201 {
		t.Fatalf("%+v", got)
	}
	if r := s.requests()[0]; r.Header.Get("Authorization") != sidecar || r.Header.Get("Cookie") != "" {
		t.Errorf("the server saw %v", r.Header)
	}
	for field, values := range got.Header {
		if strings.Contains(strings.Join(values, ""), "sidecar") {
			t.Errorf("%s tells the sidecar's credentials: %q", field, values)
		}
	}
	// The URL of a session is the right to it, at a gateway that comes after, too; nobody makes one for another path.
	location := got.Header.Get("Location")
	after := newNode(t, s, options)
	for _, forged := range []string{
		SessionPrefix + "node-1/live/demo/whep/1", strings.Replace(location, "/whep/1", "/whep/2", 1), strings.Replace(location, "~", "~A", 1),
		SessionPrefix + "node-1/~/live/demo/whep/1", strings.Replace(location, "/live/demo/whep/1", "/api", 1),
	} {
		do(t, "DELETE", after.public.URL+forged, "", "Authorization", "Bearer good").problem(t, 404)
	}
	do(t, "DELETE", newNode(t, s, func(o *Options) { options(o); o.SessionKey = []byte("another") }).public.URL+location, "").problem(t, 404)
	if got := s.requests(); len(got) != 0 {
		t.Errorf("the server saw %+v", got)
	}
	if got := do(t, "PATCH", after.public.URL+location, "a=x"); got.Status != 204 {
		t.Errorf("PATCH %+v", got)
	}
	if got := do(t, "DELETE", after.peer.URL+location, ""); got.Status != 200 { // from another node
		t.Errorf("DELETE %+v", got)
	}
	for _, r := range s.requests() {
		if r.Header.Get("Authorization") != sidecar || r.Path != "/live/demo/whep/1" || r.Query != "secret=a%2Fb" {
			t.Errorf("the server saw %+v", r)
		}
	}
}

func FuzzSeal(f *testing.F) {
	s := newSeal([]byte("key"))
	f.Add("/~AAAA/x", "demo", "/whep/1")
	f.Add(s.element(adapters.Request{ID: "demo"}, "/whep/1")+"/whep/1", "a/b", "/x%2Fy")
	f.Fuzz(func(t *testing.T, sealed, name, path string) {
		if of, inner, ok := s.open(sealed); ok && s.element(of, inner)+inner != sealed {
			t.Errorf("%q opens as %+v %q", sealed, of, inner)
		}
		if !cleanPath(path) {
			return
		}
		want := adapters.Request{ID: adapters.StreamID(name), Publish: len(name)%2 == 0}
		if got, inner, ok := s.open(s.element(want, path) + path); !ok || got != want || inner != path {
			t.Errorf("%+v %q comes back as %+v %q, %t", want, path, got, inner, ok)
		}
	})
}

// observer is told what the gateway saw.
type observer struct {
	adapters.Adapter
	seen chan []adapters.Stream
}

func (o observer) Observe(seen []adapters.Stream) { o.seen <- seen }

func TestPublicationsThatPass(t *testing.T) {
	s := newServer(t, "demo")
	seen := make(chan []adapters.Stream, 10)
	n := newNode(t, s, func(o *Options) { o.Adapter = observer{o.Adapter, seen} })
	do(t, "POST", n.public.URL+"/live/demo/whep", offer) // a play is none
	got := do(t, "POST", n.public.URL+"/live/a/b/whip", offer)
	now := <-seen
	if len(now) != 1 || now[0].ID != "a/b" || now[0].Session != "/live/a/b/whip/2" || now[0].Since.IsZero() || now[0].Readers != -1 {
		t.Errorf("%+v", now)
	}
	do(t, "DELETE", n.public.URL+got.Header.Get("Location"), "")
	if now := <-seen; len(now) != 0 {
		t.Errorf("%+v", now)
	}
	if len(seen) != 0 {
		t.Errorf("told more often: %+v", <-seen)
	}
}

func TestShownPaths(t *testing.T) {
	for path, want := range map[string]string{
		"/whep/demo": "/whep/demo", "/_sidestream/a/whep/secret": "/_sidestream/a/#", "/_sidestream-pull/a/ZGVtbw/whep/secret": "/_sidestream-pull/a/#",
		"/" + strings.Repeat("x", 5000): "/" + strings.Repeat("x", maxLogged-1), "/_sidestream/" + strings.Repeat("x", 5000): "/_sidestream/xxx",
	} {
		if got := shown(path); !strings.HasPrefix(got, want) || strings.Contains(got, "secret") || len(got) > 2*maxLogged {
			t.Errorf("%.40s is shown as %s", path, got)
		}
	}
}

func TestAccessLog(t *testing.T) {
	s := newServer(t, "demo")
	n := newNode(t, s, func(o *Options) { o.AccessLog = true })
	location := do(t, "POST", n.public.URL+"/live/demo/whep?token=secret", offer, "Authorization", bearer).Header.Get("Location")
	do(t, "DELETE", n.public.URL+location, "", "Authorization", bearer)
	do(t, "GET", n.public.URL+"/page?token=secret", "")
	n.public.Close()
	lines := strings.Split(strings.TrimSpace(n.log.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %s", len(lines), n.log)
	}
	for i, want := range [][]string{
		{"kind=play", "method=POST", "path=/live/demo/whep ", "stream=demo", "status=201", "remote=127.0.0.1", "took="},
		{"kind=session", "method=DELETE", "path=/_sidestream/node-1/#", "stream=demo", "status=200"},
	} {
		for _, word := range want {
			if !strings.Contains(lines[i], word) {
				t.Errorf("line lacks %s: %s", word, lines[i])
			}
		}
	}
	for _, never := range []string{"secret", "viewer", "whep/1"} {
		if strings.Contains(n.log.String(), never) {
			t.Errorf("the log tells %q: %s", never, n.log)
		}
	}
}

// placing is a cluster of gateways, each with a server of its own.
type placing struct {
	servers []*server
	nodes   []*node
	loads   []NodeLoad // of each, as the others see it
	mu      sync.Mutex
}

func newPlacing(t *testing.T, policy Placement, limits ...Limits) *placing {
	p := &placing{}
	for i, l := range limits {
		s := newServer(t, "demo")
		name := string(rune('a' + i))
		p.servers = append(p.servers, s)
		p.loads = append(p.loads, NodeLoad{Node: name, At: time.Now(), Load: Load{MaxPlays: l.Plays, MaxPublications: l.Publications}})
		p.nodes = append(p.nodes, newNode(t, s, func(o *Options) {
			o.NodeID, o.Limits, o.Placement, o.AccessLog = name, l, policy, true
			o.Loads = func() []NodeLoad {
				p.mu.Lock()
				defer p.mu.Unlock()
				others := append([]NodeLoad{}, p.loads[:i]...)
				return append(others, p.loads[i+1:]...)
			}
			o.Forward = func(node string) (*url.URL, http.RoundTripper, bool) {
				j := int(node[0] - 'a')
				if j < 0 || j >= len(p.nodes) {
					return nil, nil, false
				}
				base, _ := url.Parse(p.nodes[j].peer.URL)
				return base, client.Transport, true
			}
		}))
	}
	return p
}

// Full nodes pass new sessions on to others of the cluster, whose sessions they are from then on, and say so when all are full.
func TestPlacementForwards(t *testing.T) {
	for _, kind := range []string{"whep", "whip"} {
		p := newPlacing(t, PlaceForward, Limits{Plays: 1, Publications: 1}, Limits{Plays: 1, Publications: 1}, Limits{Plays: 1, Publications: 1})
		var locations []string
		for range 3 {
			got := do(t, "POST", p.nodes[0].public.URL+"/live/demo/"+kind+"?q=a%2Fb", offer, "Authorization", bearer, "X-Forwarded-For", "6.6.6.6")
			if got.Status != 201 || got.Body != "v=0\r\n" {
				t.Fatalf("%+v", got)
			}
			locations = append(locations, got.Header.Get("Location"))
		}
		for i, s := range p.servers {
			requests := s.requests()
			if len(requests) != 1 || requests[0].Path != "/live/demo/"+kind || requests[0].Query != "q=a%2Fb" || requests[0].Body != offer ||
				requests[0].Header.Get("Authorization") != bearer || strings.Contains(requests[0].Header.Get("X-Forwarded-For"), "6.6.6.6") {
				t.Errorf("server %d saw %+v", i, requests)
			}
			if want := SessionPrefix + string(rune('a'+i)) + "/live/demo/" + kind + "/1?secret=a%2Fb"; locations[i] != want {
				t.Errorf("session %d at %s, want %s", i, locations[i], want)
			}
		}
		got := do(t, "POST", p.nodes[0].public.URL+"/live/demo/"+kind, offer)
		got.problem(t, 503)
		if got.Header.Get("Retry-After") == "" {
			t.Errorf("%+v", got)
		}
		// The one in the middle goes, and with its room it is found again, though the loads are old.
		if got := do(t, "DELETE", p.nodes[2].public.URL+locations[1], ""); got.Status != 200 {
			t.Errorf("DELETE %+v", got)
		}
		p.mu.Lock()
		for i := range p.loads {
			p.loads[i].At = p.loads[i].At.Add(time.Second)
		}
		p.mu.Unlock()
		if got := do(t, "POST", p.nodes[0].public.URL+"/live/demo/"+kind, offer); got.Status != 201 ||
			!strings.HasPrefix(got.Header.Get("Location"), SessionPrefix+"b/") {
			t.Errorf("%+v", got)
		}
		if n := p.nodes[0].metric(t, "sidestream_gateway_placed_total", "forwarded"); n != 3 {
			t.Errorf("%v counted", n)
		}
	}
}

// A node that does not answer costs the client nothing.
func TestPlacementSurvivesADeadNode(t *testing.T) {
	p := newPlacing(t, PlaceForward, Limits{}, Limits{})
	p.loads[1].Node = "b"
	p.nodes[1].peer.Close()
	p.nodes[0].o.Draining = func() bool { return true }
	if got := do(t, "POST", p.nodes[0].public.URL+"/live/demo/whep", offer); got.Status != 201 ||
		!strings.HasPrefix(got.Header.Get("Location"), SessionPrefix+"a/") || got.Body != "v=0\r\n" {
		t.Errorf("%+v", got)
	}
	if n := p.nodes[0].metric(t, "sidestream_gateway_placed_total", "failed"); n != 1 {
		t.Errorf("%v counted", n)
	}
}

// A redirect leads to the other node, also by way of any other gateway.
func TestPlacementRedirects(t *testing.T) {
	p := newPlacing(t, PlaceRedirect, Limits{Plays: 1}, Limits{}, Limits{})
	p.loads[2].Plays = 5
	do(t, "POST", p.nodes[0].public.URL+"/live/demo/whep", offer)
	got := do(t, "POST", p.nodes[0].public.URL+"/live/demo/whep?q=1", offer)
	if want := SessionPrefix + "b/live/demo/whep?q=1"; got.Status != 307 || got.Header.Get("Location") != want {
		t.Fatalf("%+v", got)
	}
	for i, at := range []int{0, 1, 2} {
		opened := do(t, "POST", p.nodes[at].public.URL+got.Header.Get("Location"), offer)
		if opened.Status != 201 || !strings.HasPrefix(opened.Header.Get("Location"), SessionPrefix+"b/") {
			t.Errorf("by node %d: %+v", at, opened)
		}
		if requests := p.servers[1].requests(); len(requests) != 1 || requests[0].Path != "/live/demo/whep" || requests[0].Query != "q=1" {
			t.Errorf("%d: the server saw %+v", i, requests)
		}
	}
	at, _ := url.Parse("https://b.example.org/base/")
	p.loads[1].URL = at
	if got := do(t, "POST", p.nodes[0].public.URL+"/live/demo/whep", offer); got.Header.Get("Location") !=
		"https://b.example.org/base"+SessionPrefix+"b/live/demo/whep" {
		t.Errorf("%+v", got)
	}
}

func TestBetter(t *testing.T) {
	at := func(node string, plays, limit int) NodeLoad {
		return NodeLoad{Node: node, Load: Load{Plays: plays, MaxPlays: limit}}
	}
	for name, tt := range map[string]struct {
		self   Load
		full   bool
		others []NodeLoad
		want   string
	}{
		"nobody else":           {Load{Plays: 100}, true, nil, ""},
		"full":                  {Load{}, true, []NodeLoad{at("c", 9, 0), at("b", 7, 0)}, "b"},
		"of equals the smaller": {Load{}, true, []NodeLoad{at("c", 7, 0), at("b", 7, 0)}, "b"},
		"others are full":       {Load{}, true, []NodeLoad{at("b", 1, 1)}, ""},
		"about the same":        {Load{Plays: 14}, false, []NodeLoad{at("b", 10, 0)}, ""},
		"clearly fewer":         {Load{Plays: 15}, false, []NodeLoad{at("b", 10, 0)}, "b"},
		"a tenth":               {Load{Plays: 110}, false, []NodeLoad{at("b", 100, 0)}, ""},
		"more than a tenth":     {Load{Plays: 111}, false, []NodeLoad{at("b", 100, 0)}, "b"},
		"fewer but no room":     {Load{Plays: 50}, false, []NodeLoad{at("b", 10, 10), at("c", 20, 30)}, "c"},
	} {
		got, _ := better(tt.self, tt.full, tt.others, false)
		if got.Node != tt.want {
			t.Errorf("%s: %q, want %q", name, got.Node, tt.want)
		}
	}
}

// What is placed before a node tells its load again counts.
func TestPlacedSince(t *testing.T) {
	var p placed
	l := NodeLoad{Node: "b", At: time.Unix(1, 0)}
	p.sent(l, false)
	p.sent(l, false)
	p.sent(l, true)
	if got := p.add([]NodeLoad{l})[0]; got.Plays != 2 || got.Publications != 1 || l.Plays != 0 {
		t.Errorf("%+v", got)
	}
	l.At = time.Unix(2, 0)
	if got := p.add([]NodeLoad{l})[0]; got.sessions() != 0 {
		t.Errorf("%+v", got)
	}
}

// Pulls are refused whose answer could not lead to a connection, and nothing is left of them at the server.
func TestUselessAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		good   bool
	}{
		"public address only":  {"v=0\r\nm=audio 9 x\r\na=candidate:1 1 udp 5 203.0.113.7 8801 typ host\r\n", true},
		"none yet":             {"v=0\r\nm=audio 9 x\r\n", true},
		"TCP only":             {"v=0\r\nm=audio 9 x\r\na=candidate:1 1 tcp 5 203.0.113.7 8801 typ host tcptype passive\r\n", false},
		"ICE lite and nothing": {"v=0\r\na=ice-lite\r\nm=audio 9 x\r\n", false},
		"a TURN server's":      {"v=0\r\nm=audio 9 x\r\na=candidate:1 1 udp 5 203.0.113.7 8801 typ relay raddr 0.0.0.0 rport 0\r\n", true},
		"anything":             {"<html>", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "demo")
			s.answer = tt.answer
			tokens := NewTokens(nil)
			n := newNode(t, s, func(o *Options) { o.Tokens, o.PodIP = tokens, netip.MustParseAddr("10.0.0.7") })
			got := do(t, "POST", n.peer.URL+"/whep/demo", offer, PullTokenHeader, tokens.Issue("child", "demo"))
			requests := s.requests()
			if tt.good {
				if got.Status != 201 || len(requests) != 1 {
					t.Errorf("%+v", got)
				}
				return
			}
			got.problem(t, 502)
			if last := requests[len(requests)-1]; last.Method != "DELETE" || last.Path != "/live/demo/whep/1" || last.Header.Get("Authorization") != sidecar {
				t.Errorf("the server saw %+v", requests)
			}
		})
	}
}
