package generic

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/adapters/poll"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// builtIn describes the built-in SFU as a stranger would describe any server.
func builtIn(at string) Config {
	return Config{
		BaseURL: at, Publish: "/whip/{stream}", Play: "/whep/{stream}",
		MissingStatus: []int{http.StatusConflict}, MissingBody: "stream",
		Inventory: "/api/streams",
		Query:     ".streams[] | {name: .id, session, since, readers, tracks: [.tracks[].mime]}",
		Traits:    adapters.Traits{DropsReadersOnReplace: true},
	}
}

func TestAdapter(t *testing.T) {
	server, err := pionsfu.New(pionsfu.Config{UDPAddr: "127.0.0.1:0", PublishToken: "publish", PlayToken: "play"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	web := httptest.NewServer(server)
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		web.Close()
	})
	adapter := func(c Config, publish, play string) *Adapter {
		c.PublishCredentials, c.PlayCredentials = adapters.Credentials{Token: publish}, adapters.Credentials{Token: play}
		c.API = c.PublishCredentials
		a, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.CloseIdleConnections)
		return a
	}
	adaptertest.Run(t, adaptertest.Harness{
		Server:      "the built-in SFU, described by settings",
		Adapter:     adapter(builtIn(web.URL), "publish", "play"),
		Denied:      adapter(builtIn(web.URL), "wrong", "wrong"),
		Unreachable: adapter(builtIn("http://127.0.0.1:1"), "", ""),
		Client:      &whip.Client{NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection},
		Names:       []adapters.StreamID{"a/b/c", "per cent%2Fslash?", "whip", "{stream}", "a&b=c+d"},
	})
}

func TestTemplates(t *testing.T) {
	names := []string{"show", "a/b", "Käse", "per cent%2F?", "a&b=c+d#e", "{stream}"}
	for text, others := range map[string][]string{
		"/whip/{stream}":                         {"/whep/a", "/whip", "/x/whip/a"},
		"/{stream}/whip":                         {"/a/whep", "/whip/", "/a/whip/b"},
		"/live/{stream}/whip":                    {"/a/b/whip", "/live/whip"},
		"/app/{stream}?direction=whip":           {"/app/a", "/app/a?direction=whep", "/app/a?direction="},
		"/rtc/v1/whip/?app=live&stream={stream}": {"/rtc/v1/whip/?app=x&stream=a", "/rtc/v1/whip/?app=live", "/rtc/v1/whip?app=live&stream=a"},
		"/x%20y/{stream}":                        {"/x/a"},
	} {
		a, err := New(Config{BaseURL: "http://10.0.0.7:80/base/", Publish: text})
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		for _, name := range names {
			ep := a.Ingest(adapters.StreamID(name))
			onWire, err := url.ParseRequestURI(ep.URL.RequestURI())
			if err != nil {
				t.Fatal(err)
			}
			for _, query := range []string{"", "token=x"} { // which a publisher may add
				r := *onWire
				r.RawQuery = strings.Trim(r.RawQuery+"&"+query, "&")
				got, ok := a.Match(&http.Request{Method: http.MethodPost, URL: &r})
				if want := (adapters.Request{ID: adapters.StreamID(name), Publish: true}); !ok || got != want {
					t.Errorf("%s: POST %s: %+v, %t; want %+v", text, &r, got, ok, want)
				}
			}
		}
		for _, other := range others {
			u, err := url.Parse("/base" + other)
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := a.Match(&http.Request{Method: http.MethodPost, URL: u}); ok {
				t.Errorf("%s: POST %s matches as %+v", text, other, got)
			}
		}
		if ep := a.Egress("a"); ep.URL != nil {
			t.Errorf("plays at %s, which was not given", ep.URL)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{BaseURL: "http://a", Publish: "/whip/{stream}", Play: "/whep/{stream}"}
	for word, change := range map[string]func(*Config){
		"must be like":           func(c *Config) { c.BaseURL = "a:80" },
		"neither":                func(c *Config) { c.Publish, c.Play = "", "" },
		"path to publish":        func(c *Config) { c.Publish = "/whip" },
		"path to play":           func(c *Config) { c.Play = "whep/{stream}" },
		"{stream} once":          func(c *Config) { c.Play = "/{stream}/{stream}" },
		"whole element":          func(c *Config) { c.Play = "/x-{stream}" },
		"whole value":            func(c *Config) { c.Play = "/x?a=b{stream}" },
		"has no expression":      func(c *Config) { c.Inventory = "/api" },
		"expression for":         func(c *Config) { c.Inventory, c.Query = "/api", ".[" },
		"function not defined":   func(c *Config) { c.Inventory, c.Query = "/api", "nonsense" },
		"address of the invento": func(c *Config) { c.Inventory, c.Query = "ftp://x/api", "." },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%+v: %v; want an error with %q", c, err, word)
		}
	}
}

func TestInventory(t *testing.T) {
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		query, document string
		want            []adapters.Stream
		fails           string
	}{
		"names": {`.[] | {name: .}`, `["b","a","b"]`, []adapters.Stream{{ID: "a", Readers: -1}, {ID: "b", Readers: -1}}, ""},
		"array": {`[.[] | {name: .}]`, `["a"]`, []adapters.Stream{{ID: "a", Readers: -1}}, ""},
		"all": {
			`.s | to_entries[] | {name: .key, session: .value.id, since: "2026-11-01T00:00:00Z", readers: .value.n,
				tracks: [(if .value.v then "video/" + .value.v else null end), "audio/opus"], waiting: false, relayed: true}`,
			`{"s":{"x":{"id":"i","n":3,"v":"H264"},"y":{"id":"j","n":0}}}`,
			[]adapters.Stream{
				{
					ID: "x", Session: "i", Since: at, Readers: 3, Relayed: true,
					Tracks: []adapters.Track{{Kind: "video", MIME: "video/H264"}, {Kind: "audio", MIME: "audio/opus"}},
				},
				{ID: "y", Session: "j", Since: at, Relayed: true, Tracks: []adapters.Track{{Kind: "audio", MIME: "audio/opus"}}},
			},
			"",
		},
		"nothing":  {`.[]`, `[]`, nil, ""},
		"no name":  {`.[]`, `[{"session":"x"}]`, nil, "no name"},
		"misspelt": {`.[]`, `[{"name":"x","reader":1}]`, nil, "reader"},
		"not one":  {`.[]`, `["x"]`, nil, "no stream"},
		"number":   {`.[] | {name: .}`, `[1]`, nil, "no stream"},
		"track":    {`{name: "x", tracks: ["h264"]}`, `{}`, nil, "video/H264"},
		"fails":    {`.streams[]`, `[1]`, nil, "expression fails"},
		"error":    {`error("so")`, `1`, nil, "so"},
		"no JSON":  {`.[]`, `<html>`, nil, "no JSON"},
		"halts":    {`halt`, `1`, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := newQuery(test.query)
			if err != nil {
				t.Fatal(err)
			}
			got, err := q.streams(t.Context(), []byte(test.document))
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Fatalf("got %+v, %v; want an error with %q", got, err, test.fails)
				}
				return
			}
			if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got)\n%s", err, diff)
			}
		})
	}
}

// An expression without end ends with its context.
func TestEndlessExpression(t *testing.T) {
	q, err := newQuery(`def f: f; f`)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := q.streams(ctx, []byte("1")); err == nil {
		t.Error("no error")
	}
	q, err = newQuery(`range(1e9) | {name: tostring}`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.streams(t.Context(), []byte("1")); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a billion streams: %v", err)
	}
}

func TestBadAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		code  int
		body  string
		final bool
		words string
	}{
		"no rights": {401, "", true, "a token"},
		"not there": {404, "", true, "is the address right"},
		"garbage":   {200, "<html>", true, "no JSON"},
		"overload":  {503, "", false, "503"},
	} {
		t.Run(name, func(t *testing.T) {
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(test.code)
				_, _ = w.Write([]byte(test.body))
			}))
			defer web.Close()
			c := builtIn(web.URL)
			c.API.Token, c.Inventory = "topsecret", "/api?key=topsecret"
			a, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			defer a.CloseIdleConnections()
			err = a.Watch(t.Context(), func(s []adapters.Stream) { t.Errorf("reports %v", s) })
			final := (*poll.Final)(nil)
			if errors.As(err, &final) != test.final || !strings.Contains(fmt.Sprint(err), test.words) ||
				strings.Contains(fmt.Sprint(err), "topsecret") {
				t.Errorf("Watch: %v; want an error with %q, final: %t", err, test.words, test.final)
			}
		})
	}
}

// Without an inventory the server is only knocked at.
func TestNoInventory(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	a, err := New(Config{BaseURL: web.URL, Publish: "/{stream}"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.CloseIdleConnections()
	var reports int
	err = a.Watch(t.Context(), func(s []adapters.Stream) {
		if reports++; len(s) != 0 {
			t.Errorf("reports %v", s)
		}
		a.CloseIdleConnections()
		web.Close()
	})
	if reports != 1 || err == nil {
		t.Errorf("%d reports, then %v; want one, and an error when the server is gone", reports, err)
	}
}

func FuzzTemplate(f *testing.F) {
	f.Add("/whip/{stream}", "a/b")
	f.Add("/{stream}/whip?x=y", "per cent%2F?")
	f.Add("/x?a=b&s={stream}", "a&b=c")
	f.Fuzz(func(t *testing.T, text, name string) {
		a, err := New(Config{BaseURL: "http://a", Play: text})
		if err != nil || adapters.StreamID(name).Validate() != nil {
			return
		}
		ep := a.Egress(adapters.StreamID(name))
		u, err := url.ParseRequestURI(ep.URL.RequestURI())
		if err != nil {
			t.Fatalf("%q with %q: %v", text, name, err)
		}
		got, ok := a.Match(&http.Request{Method: http.MethodPost, URL: u})
		if want := (adapters.Request{ID: adapters.StreamID(name)}); !ok || got != want {
			t.Errorf("%q with %q is %s, and read as %+v", text, name, ep.URL, got)
		}
	})
}
