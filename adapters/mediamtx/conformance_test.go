package mediamtx_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx/mediamtxtest"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func adapter(t testing.TB, c mediamtx.Config) *mediamtx.Adapter {
	t.Helper()
	a, err := mediamtx.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.CloseIdleConnections)
	return a
}

func TestAdapter(t *testing.T) {
	for name, users := range map[string]bool{"open": false, "users": true} {
		t.Run(name, func(t *testing.T) {
			server := mediamtxtest.Start(t, mediamtxtest.Options{Users: users})
			t.Logf("MediaMTX %s", server.Version)
			h := adaptertest.Harness{
				Adapter:     adapter(t, server.Config()),
				Client:      &whip.Client{NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection},
				Names:       []adapters.StreamID{"a/b/c", "per cent%2Fslash?", "whip", "a/whip", "v3/whep/x"},
				Unreachable: adapter(t, mediamtx.Config{BaseURL: "http://127.0.0.1:1", APIURL: "http://127.0.0.1:1"}),
			}
			h.Restart = func(testing.TB) { server.Down(); server.Up() }
			if users {
				denied := server.Config()
				denied.Publish.Password, denied.Play.Password, denied.API.Password = "wrong", "wrong", "wrong"
				h.Denied = adapter(t, denied)
			}
			adaptertest.Run(t, h)
		})
	}
}
