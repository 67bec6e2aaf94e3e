package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

func TestHealth(t *testing.T) {
	var draining atomic.Bool
	s := newServer(t, "demo")
	n := newNode(t, s, func(o *Options) {
		o.Limits.Plays = 1
		o.Draining = draining.Load
		o.Authorize = func(context.Context, string, adapters.Request) error { return nil } // other paths are closed
	})
	check := func(when string, status int, words string) {
		t.Helper()
		got := do(t, http.MethodGet, n.public.URL+HealthPath, "")
		if got.Status != status || !strings.Contains(got.Body, words) || got.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v %q", when, got.Status, got.Header, got.Body)
		}
		if status != http.StatusOK {
			got.problem(t, status)
		}
		if head := do(t, http.MethodHead, n.public.URL+HealthPath, ""); head.Status != status || head.Body != "" {
			t.Errorf("%s: HEAD %d %q", when, head.Status, head.Body)
		}
	}
	check("at first", http.StatusOK, "ok")
	for _, seen := range s.requests() {
		if seen.Method != http.MethodOptions || seen.Path != "/" {
			t.Errorf("the server saw %+v", seen)
		}
	}
	draining.Store(true)
	check("draining", http.StatusServiceUnavailable, "about to leave")
	draining.Store(false)
	check("it stays", http.StatusOK, "ok")

	opened := do(t, http.MethodPost, n.public.URL+"/live/demo/whep", offer)
	if opened.Status != http.StatusCreated {
		t.Fatalf("play: %d %s", opened.Status, opened.Body)
	}
	check("full", http.StatusServiceUnavailable, "no room")
	if left := do(t, http.MethodDelete, n.public.URL+opened.Header.Get("Location"), ""); left.Status != http.StatusOK {
		t.Fatalf("leave: %d %s", left.Status, left.Body)
	}
	check("room again", http.StatusOK, "ok")

	for path, status := range map[string]int{"/.well-known/sidestream": 404, "/.well-known/sidestream/x": 404, HealthPath + "/": 404} {
		do(t, http.MethodGet, n.public.URL+path, "").problem(t, status)
	}
	posted := do(t, http.MethodPost, n.public.URL+HealthPath, offer)
	if posted.problem(t, http.StatusMethodNotAllowed); posted.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("%v", posted.Header)
	}
	if n.metric(t, "sidestream_gateway_requests_total", "health", "5xx") != 4 {
		t.Error("checks are not counted")
	}
}

func TestHealthWithoutServer(t *testing.T) {
	s := newServer(t)
	n := newNode(t, s, nil)
	s.Close()
	got := do(t, http.MethodGet, n.public.URL+HealthPath, "")
	if got.problem(t, http.StatusServiceUnavailable); strings.Contains(got.Body, "127.0.0.1") {
		t.Errorf("strangers are told the server's address: %s", got.Body)
	}
}

// A node without room is as good as one with it where another of the cluster takes its sessions.
func TestHealthOfPlacement(t *testing.T) {
	others := []NodeLoad{{Node: "b", Load: Load{Plays: 1, MaxPlays: 2}}}
	g := New(Options{Limits: Limits{Plays: 1}, Playing: func() int { return 1 }, Loads: func() []NodeLoad { return others }})
	if !g.full() {
		t.Error("not full, though sessions stay here")
	}
	g.o.Placement = PlaceForward
	if g.full() {
		t.Error("full, though another node has room")
	}
	if others[0].Plays = 2; !g.full() {
		t.Error("not full, though no node has room")
	}
}

// Whoever asks how often: the media server is asked once a second, and a caller that leaves spoils nothing.
func TestHealthAsksSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		asked := 0
		ask := func(ctx context.Context) error {
			asked++
			if asked == 2 {
				<-ctx.Done() // it hangs
			}
			return ctx.Err()
		}
		gone, leave := context.WithCancel(t.Context())
		leave()
		for range 100 {
			if err := h.fresh(gone, ask); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(healthFresh)
		for range 100 {
			if err := h.fresh(gone, ask); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
		}
		time.Sleep(healthFresh)
		if err := h.fresh(gone, ask); err != nil || asked != 3 {
			t.Errorf("%v, asked %d times", err, asked)
		}
	})
}
