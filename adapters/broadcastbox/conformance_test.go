package broadcastbox_test

import (
	"net/http"
	"testing"

	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/broadcastbox"
	"github.com/sidestream-dev/sidestream/adapters/broadcastbox/broadcastboxtest"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func adapter(t testing.TB, c broadcastbox.Config) *broadcastbox.Adapter {
	t.Helper()
	a, err := broadcastbox.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.CloseIdleConnections)
	return a
}

func loopback() *whip.Client {
	return &whip.Client{
		HTTP:              &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection,
	}
}

func TestAdapter(t *testing.T) {
	broadcastboxtest.Binary(t)
	for name, token := range map[string]string{"public": "", "admin": "admin-token"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := broadcastboxtest.Start(t, broadcastboxtest.Options{AdminToken: token})
			t.Logf("Broadcast Box %s", server.Version)
			h := adaptertest.Harness{
				Adapter:     adapter(t, server.Config()),
				Client:      loopback(),
				Names:       []adapters.StreamID{"a/b/c", "per-cent%2Fslash?", "demo", "QUJD", "whip"},
				Unreachable: adapter(t, broadcastbox.Config{BaseURL: "http://127.0.0.1:1"}),
			}
			h.Restart = func(testing.TB) { server.Down(); server.Up() }
			h.Waiting = token != ""
			if token != "" {
				h.Server = "Broadcast Box " + server.Version
			}
			adaptertest.Run(t, h)
		})
	}
}
