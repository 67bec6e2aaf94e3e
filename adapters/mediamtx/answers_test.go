package mediamtx

import (
	"net/http"
	"testing"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
)

func TestAnswers(t *testing.T) {
	adaptertest.RunAnswers(t, adaptertest.Answers{
		Secret: "topsecret",
		New: func(t testing.TB, baseURL string) adapters.Adapter {
			a, err := New(Config{
				BaseURL: "http://10.0.0.7:8889", APIURL: baseURL, API: adapters.Credentials{User: "u", Password: "topsecret"},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(a.CloseIdleConnections)
			return a
		},
		Many: func(n int) http.Handler {
			api := newRecorded(t)
			many(api, n)
			return api
		},
	})
}
