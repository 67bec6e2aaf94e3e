package generic

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
)

func TestAnswers(t *testing.T) {
	adaptertest.RunAnswers(t, adaptertest.Answers{
		Secret: "topsecret",
		New: func(t testing.TB, baseURL string) adapters.Adapter {
			c := builtIn(baseURL)
			c.API = adapters.Credentials{Token: "topsecret"}
			a, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(a.CloseIdleConnections)
			return a
		},
		Many: func(n int) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				list := make([]map[string]any, 0, n)
				for i := range n {
					list = append(list, map[string]any{"id": adaptertest.ManyName(n - i), "tracks": []any{}})
				}
				_ = json.NewEncoder(w).Encode(map[string]any{"streams": list})
			})
		},
	})
}
