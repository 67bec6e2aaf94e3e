package pionsfu

import (
	"testing"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
)

func TestAdapter(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]Config{
		"open":   {},
		"tokens": {PublishToken: "publish", PlayToken: "play", APIToken: "api"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := run(t, config)
			h := server.clients(t)
			h.Names = []adapters.StreamID{"a/b/c", "per cent%2Fslash?", "whip", "session/x"}
			unreachable, err := NewAdapter(AdapterConfig{BaseURL: "http://127.0.0.1:1"})
			if err != nil {
				t.Fatal(err)
			}
			h.Unreachable = unreachable
			if name == "tokens" {
				h.Server = "the built-in SFU"
				denied, err := NewAdapter(AdapterConfig{
					BaseURL: server.url, PublishToken: "wrong", PlayToken: "wrong", APIToken: "wrong",
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(denied.client.CloseIdleConnections)
				h.Denied = denied
			}
			adaptertest.Run(t, h)
		})
	}
}
