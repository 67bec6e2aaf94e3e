package pionsfu

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
			a, err := NewAdapter(AdapterConfig{BaseURL: baseURL, APIToken: "topsecret"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(a.client.CloseIdleConnections)
			return a
		},
		Many: func(n int) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				list := make([]map[string]any, 0, n)
				for i := range n {
					list = append(list, map[string]any{"id": adaptertest.ManyName(i), "tracks": []any{}})
				}
				w.Header().Set("Content-Type", contentLines)
				_ = json.NewEncoder(w).Encode(map[string]any{"streams": list})
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})
		},
	})
}
