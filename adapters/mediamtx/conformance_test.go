package mediamtx_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

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

func loopback() *whip.Client {
	return &whip.Client{
		HTTP:              &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection,
	}
}

func TestAdapter(t *testing.T) {
	mediamtxtest.Binary(t)
	for name, users := range map[string]bool{"open": false, "users": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := mediamtxtest.Start(t, mediamtxtest.Options{Users: users})
			t.Logf("MediaMTX %s", server.Version)
			h := adaptertest.Harness{
				Adapter:     adapter(t, server.Config()),
				Client:      loopback(),
				Names:       []adapters.StreamID{"a/b/c", "per cent%2Fslash?", "whip", "a/whip", "v3/whep/x"},
				Unreachable: adapter(t, mediamtx.Config{BaseURL: "http://127.0.0.1:1", APIURL: "http://127.0.0.1:1"}),
			}
			h.Restart = func(testing.TB) { server.Down(); server.Up() }
			if users {
				h.Server = "MediaMTX " + server.Version
				denied := server.Config()
				denied.Publish.Password, denied.Play.Password, denied.API.Password = "wrong", "wrong", "wrong"
				h.Denied = adapter(t, denied)
			}
			adaptertest.Run(t, h)
		})
	}
}

// Where MediaMTX asks an HTTP server who may do what, tokens are shown as they are.
func TestTokens(t *testing.T) {
	asked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Action, Token string }
		if json.NewDecoder(r.Body).Decode(&q) != nil || q.Token != "token-to-"+q.Action {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(asked.Close)
	server := mediamtxtest.Start(t, mediamtxtest.Options{YAML: "authMethod: http\nauthHTTPAddress: " + asked.URL + "\n"})
	c := server.Config()
	c.Publish.Token, c.Play.Token, c.API.Token = "token-to-publish", "token-to-read", "token-to-api"
	h := adaptertest.Harness{Adapter: adapter(t, c), Client: loopback()}
	id := adapters.StreamID("studio/one.show_1")
	h.Publish(t, id).WaitConnected()
	h.Play(t, id).WaitFrames(25)
	if s := watchUntil(t, h.Adapter, id); !s.Relayed || s.Readers != 1 {
		t.Errorf("reported as %+v", s)
	}
	c.Publish.Token = "token-to-read"
	h.Adapter = adapter(t, c)
	if _, err := h.TryPublish(t, "other"); err == nil {
		t.Error("the server takes a publication with the token to read")
	}
}

// watchUntil gives a stream as it is reported once it has a reader.
func watchUntil(t *testing.T, a adapters.Adapter, id adapters.StreamID) (found adapters.Stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	err := a.Watch(ctx, func(streams []adapters.Stream) {
		for _, s := range streams {
			if s.ID == id && s.Readers > 0 {
				found = s
				cancel()
			}
		}
	})
	if found.ID == "" {
		t.Fatalf("not reported: %v", err)
	}
	return found
}

// MediaMTX' names are letters, digits, dots, dashes, underscores and slashes. Others it refuses by words of its own, neither
// cut nor changed on the way.
func TestNames(t *testing.T) {
	server := mediamtxtest.Start(t, mediamtxtest.Options{})
	a := adapter(t, server.Config())
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for name, want := range map[adapters.StreamID]int{
		"a/b.c/d-e_f": http.StatusNotFound, adapters.StreamID(strings.Repeat("x", adapters.MaxStreamID)): http.StatusNotFound,
		"a b": http.StatusBadRequest, "Käse": http.StatusBadRequest, "a%2Fb": http.StatusBadRequest, "a?b#c": http.StatusBadRequest,
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.Egress(name).URL.String(), strings.NewReader("v=0"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", whip.ContentTypeSDP)
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != want || !strings.Contains(string(body), string(name)) ||
			a.Missing(response.StatusCode, response.Header, body) != (want == http.StatusNotFound) {
			t.Errorf("play of %q: %d %s", name, response.StatusCode, body)
		}
	}
}
