package adaptertest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

const (
	// mostQuestions bounds how often an adapter asks before it says that an answer cannot be understood: who watches again is
	// the sidecar, with a pause.
	mostQuestions = 10
	manyStreams   = 3000
	// mostForMany bounds the questions that many streams take; what is asked for each stream would be a storm.
	mostForMany = 100
	// answerPatience bounds how long a bad answer may take to be told.
	answerPatience = 20 * time.Second
)

// Answers is an adapter that is tried against servers which are not what they should be. It needs no real server.
type Answers struct {
	// New makes the adapter for a server at an address, with Secret as its credentials; the test's end frees it.
	New    func(t testing.TB, baseURL string) adapters.Adapter
	Secret string
	// Many answers as a server does that has n streams; their names are any. Nil leaves that out.
	Many func(n int) http.Handler
}

// RunAnswers checks that Watch tells what is wrong with a server that answers garbage, belongs to somebody else, refuses the
// credentials or has another API: by one error, soon, without the credentials in it, without a report, and without asking again
// and again; and that it is not overwhelmed by thousands of streams.
func RunAnswers(t *testing.T, a Answers) {
	body := func(status int, kind, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			_, _ = w.Write([]byte(text))
		}
	}
	const page, document = "text/html", "application/json"
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		words   string
	}{
		"a page":             {body(200, page, "<!doctype html><title>Welcome</title>"), ""},
		"nothing":            {body(200, document, ""), ""},
		"cut off":            {body(200, document, `[{"name": "sho`), ""},
		"another object":     {body(200, document, `{"videos": {"a": 1}}`), ""},
		"another list":       {body(200, document, `[1, "two", null]`), ""},
		"deeply nested":      {body(200, document, strings.Repeat("[", 1<<20)), ""},
		"wrong credentials":  {body(401, document, `{"error": "no"}`), "401"},
		"forbidden":          {body(403, document, `{"error": "no"}`), "403"},
		"another version":    {body(404, page, "404 page not found"), "404"},
		"failing":            {body(500, page, "panic"), "500"},
		"overloaded":         {body(503, page, ""), "503"},
		"hangs up":           {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ""},
		"redirects for ever": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.String(), http.StatusFound) }, ""},
		"answers without an end": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", document)
			for chunk := []byte(strings.Repeat(" ", 1<<20)); r.Context().Err() == nil; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Referer() == "" { // not a step of a redirect
					asked.Add(1)
				}
				test.handler(w, r)
			}))
			t.Cleanup(server.Close)
			adapter := a.New(t, server.URL)
			ctx, cancel := context.WithTimeout(t.Context(), answerPatience)
			defer cancel()
			err := adapter.Watch(ctx, func(s []adapters.Stream) { t.Errorf("reports %d streams", len(s)) })
			switch {
			case err == nil || ctx.Err() != nil:
				t.Fatalf("Watch: %v; want an error, soon", err)
			case !strings.Contains(err.Error(), test.words):
				t.Errorf("Watch: %v; want %q in it", err, test.words)
			case a.Secret != "" && strings.Contains(err.Error(), a.Secret):
				t.Errorf("Watch: %v: the credentials show", err)
			case len(err.Error()) > 2000:
				t.Errorf("Watch's error has %d bytes: %.200s", len(err.Error()), err)
			}
			if n := asked.Load(); n > mostQuestions {
				t.Errorf("asked %d times", n)
			}
		})
	}
	t.Run("silent", func(t *testing.T) { a.testSilent(t) })
	t.Run("many streams", func(t *testing.T) {
		if a.Many == nil {
			t.Skip("not tried: the server has no list that it could be made to tell")
		}
		a.testMany(t)
	})
}

// testSilent ends the Watch of a server that never answers.
func (a Answers) testSilent(t *testing.T) {
	asked := make(chan struct{})
	var once sync.Once
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(asked) })
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	adapter := a.New(t, server.URL)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- adapter.Watch(ctx, func(s []adapters.Stream) { t.Errorf("reports %d streams", len(s)) })
	}()
	timeout := time.NewTimer(answerPatience)
	defer timeout.Stop()
	select {
	case <-asked:
	case <-timeout.C:
		t.Fatal("the server is not asked")
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v; want the context's error", err)
		}
	case <-timeout.C:
		t.Fatal("Watch goes on though its context has ended")
	}
}

// testMany watches a server with thousands of streams: each is reported once, in an order that stays.
func (a Answers) testMany(t *testing.T) {
	var asked atomic.Int64
	many := a.Many(manyStreams)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		many.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	adapter := a.New(t, server.URL)
	var before []adapters.Stream
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), answerPatience)
		var streams []adapters.Stream
		err := adapter.Watch(ctx, func(s []adapters.Stream) { streams = s; cancel() })
		cancel()
		if len(streams) != manyStreams {
			t.Fatalf("%d streams are reported, %v; want %d", len(streams), err, manyStreams)
		}
		names := make(map[adapters.StreamID]bool, len(streams))
		for _, s := range streams {
			names[s.ID] = true
		}
		if len(names) != len(streams) {
			t.Errorf("%d of %d streams are reported twice", len(streams)-len(names), len(streams))
		}
		same := func(x, y adapters.Stream) bool { return x.ID == y.ID }
		if before != nil && !slices.EqualFunc(before, streams, same) {
			t.Error("the order of the streams changes by itself")
		}
		before = streams
	}
	if n := asked.Load(); n > mostForMany {
		t.Errorf("asked %d times for %d streams, twice; want at most %d", n, manyStreams, mostForMany)
	}
}

// ManyName is the name of one of many streams.
func ManyName(i int) string { return fmt.Sprintf("many/%05d", i) }
