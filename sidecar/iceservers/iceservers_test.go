package iceservers

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const turn = "turn:turn.example.org:3478?transport=udp"

// links reads what a client would.
func links(t *testing.T, s *Servers) []string {
	t.Helper()
	var out []string
	for _, server := range whip.ICEServers(http.Header{"Link": s.Links(t.Context())}) {
		out = append(out, fmt.Sprint(strings.Join(server.URLs, " "), " ", server.Username, " ", server.Credential))
	}
	return out
}

func newServers(t *testing.T, o Options) *Servers {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStatic(t *testing.T) {
	s := newServers(t, Options{URLs: []string{turn}, Username: "u", Credential: `p"\,;`})
	if got := links(t, s); !slices.Equal(got, []string{turn + ` u p"\,;`}) {
		t.Errorf("%q", got)
	}
	if got := links(t, newServers(t, Options{})); got != nil {
		t.Errorf("%q", got)
	}
}

// The credentials are those of draft-uberti-behave-turn-rest, and good for the time that was set.
func TestSecret(t *testing.T) {
	if got := sign("north", "12334939:mbzrxpgjys"); got != "Iq7YXkRon8YXJfdN1Ke9EZOw1UE=" {
		// printf 12334939:mbzrxpgjys | openssl dgst -sha1 -hmac north -binary | base64
		t.Errorf("password %s", got)
	}
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		s := newServers(t, Options{URLs: []string{turn}, SecretFile: file, TTL: time.Hour})
		if got := links(t, s); got != nil { // it is not there yet
			t.Errorf("%q", got)
		}
		if err := os.WriteFile(file, []byte("0123456789abcdef\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		first, second := links(t, s), links(t, s)
		if slices.Equal(first, second) {
			t.Errorf("two sessions have the same credentials: %q", first)
		}
		f := strings.Fields(first[0])
		expiry, _, _ := strings.Cut(f[1], ":")
		if want := strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10); expiry != want || f[2] != sign("0123456789abcdef", f[1]) {
			t.Errorf("%q, want until %s", f, want)
		}
	})
}

// service is STUNner's; it answers by a function, and counts.
func service(t *testing.T, answer http.HandlerFunc) (at *url.URL, asked *atomic.Int32) {
	asked = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL + "/ice?service=turn&namespace=media")
	if err != nil {
		t.Fatal(err)
	}
	return at, asked
}

func TestSTUNner(t *testing.T) {
	at, asked := service(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path != "/ice" || q.Get("service") != "turn" || q.Get("namespace") != "media" || q.Get("ttl") != "7200" || q.Get("username") == "" {
			t.Errorf("asked for %s", r.URL)
		}
		_, _ = w.Write([]byte(`{"iceServers":[
			{"username":"1:a","credential":"c","urls":["` + turn + `","turns:turn.example.org:443?transport=tcp","javascript:alert(1)"]},
			{"urls":"stun:stun.example.org"},
			{"username":"x\r\nSet-Cookie: y","credential":"c","urls":["turn:evil"]}],"iceTransportPolicy":"relay"}`))
	})
	registry := prometheus.NewRegistry()
	s := newServers(t, Options{AuthURL: at, TTL: 2 * time.Hour, Registerer: registry})
	defer s.CloseIdleConnections()
	for range 3 {
		got := strings.Join(links(t, s), "|")
		if !strings.Contains(got, turn) || !strings.Contains(got, "turns:turn.example.org:443?transport=tcp") ||
			!strings.Contains(got, "stun:stun.example.org") || strings.Contains(got, "javascript") || strings.Contains(got, "evil") {
			t.Errorf("%q", got)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times for three sessions in a moment", n)
	}
	if n := testutil.ToFloat64(s.results.WithLabelValues(resultGiven)); n != 3 {
		t.Errorf("%v counted", n)
	}
}

// A service that fails costs one session a second at most, the next ones nothing, and none of them its play.
func TestServiceFails(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"error":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"garbage":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"no server":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"iceServers":[]}`)) },
		"very large": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxAnswer+1)) },
		"slow":       func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			at, asked := service(t, answer)
			s := newServers(t, Options{AuthURL: at, URLs: []string{turn}, Username: "u", Credential: "p"})
			defer s.CloseIdleConnections()
			for range 3 {
				if got := links(t, s); !slices.Equal(got, []string{turn + " u p"}) { // the fallback
					t.Errorf("%q", got)
				}
			}
			if n := asked.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
			if n := testutil.ToFloat64(s.results.WithLabelValues(resultFailed)); n != 3 {
				t.Errorf("%v counted", n)
			}
		})
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// What the service said goes on to be used while it fails, as long as a session can still make use of it.
func TestStaleCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		works := true
		at, _ := url.Parse("http://auth/ice")
		s := newServers(t, Options{AuthURL: at, TTL: time.Hour, HTTP: &http.Client{Transport: transport(
			func(*http.Request) (*http.Response, error) {
				w := httptest.NewRecorder()
				if !works {
					w.WriteHeader(http.StatusBadGateway)
				}
				_, _ = w.WriteString(`{"iceServers":[{"username":"u","credential":"p","urls":["` + turn + `"]}]}`)
				return w.Result(), nil
			})}})
		want := []string{turn + " u p"}
		if got := links(t, s); !slices.Equal(got, want) {
			t.Fatalf("%q", got)
		}
		works = false
		time.Sleep(20 * time.Minute)
		if got := links(t, s); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		time.Sleep(20 * time.Minute)
		if got := links(t, s); got != nil {
			t.Errorf("%q", got)
		}
		works = true
		time.Sleep(failedTime)
		if got := links(t, s); !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	})
}

func TestGoneClient(t *testing.T) {
	at, _ := service(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := newServers(t, Options{AuthURL: at})
	defer s.CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := s.Links(ctx); got != nil {
		t.Errorf("%q", got)
	}
}

func TestURLs(t *testing.T) {
	for u, good := range map[string]bool{
		turn: true, "stun:a": true, "turns:[2001:db8::1]:443?transport=tcp": true,
		"": false, "turn:": false, "turn://a": false, "http://a": false, "turn:u@a": false, "turn:a b": false, "turn:a>": false, "turn:ä": false,
	} {
		if _, err := New(Options{URLs: []string{u}}); (err == nil) != good {
			t.Errorf("%q: %v", u, err)
		}
	}
}
