package janus

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/janus/janustest"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

func TestMain(m *testing.M) {
	os.Exit(janustest.Main(func() int {
		goleak.VerifyTestMain(m) // exits
		return 0
	}))
}

const patience = 15 * time.Second

// run runs an adapter until the test ends or stop is called.
func run(t testing.TB, c Config) (a *Adapter, stop func()) {
	t.Helper()
	c.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = func() {
		cancel()
		err := <-ended
		ended <- err
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return a, stop
}

// harness publishes and plays without leaving anything idle behind.
func harness(t testing.TB, a *Adapter) adaptertest.Harness {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	address, _ := netip.ParseAddr(janustest.Host()) // none outside, where nothing real runs
	return adaptertest.Harness{
		Adapter: a, Patience: patience, Address: address, OneCodec: true,
		Client: &whip.Client{HTTP: client, NewPeerConnection: media.Transport{}.NewPeerConnection},
	}
}

func TestAdapter(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]struct {
		server janustest.Options
		config Config
	}{
		"names": {
			janustest.Options{APISecret: "secret", AdminKey: "key", AdminSecret: "admin"},
			Config{APISecret: "secret", AdminKey: "key", AdminSecret: "admin", PublishToken: "publish"},
		},
		"numbers": {janustest.Options{Numbers: true}, Config{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := janustest.Start(t, o.server)
			o.config.BaseURL = server.URL
			if o.config.AdminSecret != "" {
				o.config.AdminURL = server.AdminURL
			}
			a, _ := run(t, o.config)
			h := harness(t, a)
			h.Names = []adapters.StreamID{"a/b/c", "per cent%2Fslash?", "whip", "session/x", "1234"}
			unreachable, err := New(Config{BaseURL: "http://127.0.0.1:1"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unreachable.Close() })
			h.Unreachable = unreachable
			h.Stranger = func(id adapters.StreamID) adapters.Endpoint { // by the gateway
				ep := a.Ingest(id)
				ep.Header.Set(secretHeader, a.outside)
				ep.Header.Set("Authorization", "Bearer publish")
				return ep
			}
			h.Restart = func(testing.TB) { server.Restart() }
			if o.config.APISecret != "" {
				o.config.APISecret = "wrong"
				h.Denied, _ = run(t, o.config)
			}
			if name == "names" { // as most run it
				h.Server = "Janus " + versionOf(t, server.URL)
			}
			adaptertest.Run(t, h)
		})
	}
}

// versionOf is what a Janus says of itself.
func versionOf(t *testing.T, base string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(base + "/info")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var info struct {
		Version string `json:"version_string"`
	}
	if err := json.NewDecoder(response.Body).Decode(&info); err != nil {
		t.Fatal(err)
	}
	return info.Version
}
