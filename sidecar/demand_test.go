package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// scripted answers one Acquire after another; the last answer stands.
type scripted struct {
	answers []error
	held    int
	most    int
}

func (s *scripted) Acquire(context.Context, adapters.StreamID) (func(), error) {
	err := s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
	if err != nil {
		return nil, err
	}
	s.held++
	s.most = max(s.most, s.held)
	return func() { s.held-- }, nil
}

// ask sends a request as somebody at an address, who stays for a while.
func ask(t *testing.T, relays acquirer, from, path string, stays time.Duration) *httptest.ResponseRecorder {
	t.Helper()
	h := &hooks{relays: relays, pod: netip.MustParseAddr("10.0.0.7"), logger: slog.New(slog.DiscardHandler)}
	mux := http.NewServeMux()
	mux.Handle("/demand/{stream...}", h)
	ctx, cancel := context.WithTimeout(t.Context(), stays)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	r.RemoteAddr = from
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	if n := h.count.Load(); n != 0 {
		t.Errorf("%d hooks are counted after the end", n)
	}
	return w
}

func TestHooks(t *testing.T) {
	none := fmt.Errorf("acquire: %w", adapters.ErrNoStream)
	vp8 := &adapters.CodecError{MIME: "video/VP8"}
	for name, test := range map[string]struct {
		answers    []error
		from, path string
		status     int
		body       string
		held       bool
	}{
		"live":             {[]error{nil}, "127.0.0.1:1", "/demand/live/show", 200, "live\n", true},
		"by IPv6":          {[]error{nil}, "[::1]:1", "/demand/live/show", 200, "live\n", true},
		"from the pod":     {[]error{nil}, "10.0.0.7:1", "/demand/show", 200, "live\n", true},
		"mapped":           {[]error{nil}, "[::ffff:10.0.0.7]:1", "/demand/show", 200, "live\n", true},
		"published later":  {[]error{none, none, nil}, "127.0.0.1:1", "/demand/show", 200, "waiting: acquire: no such stream\nlive\n", true},
		"from elsewhere":   {[]error{nil}, "10.0.0.8:1", "/demand/show", 403, "SIDESTREAM_POD_IP", false},
		"no name":          {[]error{nil}, "127.0.0.1:1", "/demand/", 400, "empty", false},
		"overlong":         {[]error{nil}, "127.0.0.1:1", "/demand/" + strings.Repeat("x", 1000), 400, "1000 bytes", false},
		"cannot be played": {[]error{vp8}, "127.0.0.1:1", "/demand/show", 415, "video/VP8", false},
		"not any more":     {[]error{nil, nil, vp8}, "127.0.0.1:1", "/demand/show", 200, "live\nthe media server does not take video/VP8\n", true},
		"the node ends":    {[]error{relay.ErrEnded}, "127.0.0.1:1", "/demand/show", 200, relay.ErrEnded.Error(), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				relays := &scripted{answers: test.answers}
				w := ask(t, relays, test.from, test.path, time.Minute)
				if w.Code != test.status || !strings.Contains(w.Body.String(), test.body) {
					t.Errorf("%d %q; want %d %q", w.Code, w.Body, test.status, test.body)
				}
				if relays.held != 0 || (relays.most > 0) != test.held || relays.most > 2 {
					t.Errorf("held %d at the end, %d at most", relays.held, relays.most)
				}
			})
		})
	}
}
