package pionsfu

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 15 * time.Second

// sfu is a running Server with its HTTP listener.
type sfu struct {
	*Server
	url  string
	stop func() // ends Run and waits for it; HTTP goes on
}

func run(t testing.TB, c Config) *sfu {
	t.Helper()
	if c.UDPAddr == "" {
		c.UDPAddr = "127.0.0.1:0"
	}
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	stop := func() {
		cancel()
		err := <-ended
		ended <- err
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
	web := httptest.NewServer(server)
	t.Cleanup(func() {
		stop()
		web.Close()
	})
	s := &sfu{Server: server, url: web.URL, stop: stop}
	<-server.started
	return s
}

// wait waits until something is true of the registry, which is looked at under its lock.
func (s *sfu) wait(t testing.TB, what string, done func(*registry) bool) {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		s.registry.mu.Lock()
		is, changed := done(s.registry), s.registry.changed
		s.registry.mu.Unlock()
		if is {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			t.Fatalf("waited %s in vain for: %s", patience, what)
		}
	}
}

func serve(t testing.TB, h http.Handler) (url string) {
	web := httptest.NewServer(h)
	t.Cleanup(web.Close)
	return web.URL
}

func itoa(n uint16) string { return strconv.Itoa(int(n)) }

// adapter speaks to the server with its tokens.
func (s *sfu) adapter(t testing.TB) *Adapter {
	t.Helper()
	a, err := NewAdapter(AdapterConfig{
		BaseURL:      s.url,
		PublishToken: s.config.PublishToken, PlayToken: s.config.PlayToken, APIToken: s.config.APIToken,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.client.CloseIdleConnections)
	return a
}

// clients publishes and plays over loopback only.
func (s *sfu) clients(t testing.TB) adaptertest.Harness {
	return adaptertest.Harness{
		Adapter: s.adapter(t),
		Client:  &whip.Client{NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection},
	}
}
