package janus

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
)

func TestAnswers(t *testing.T) {
	t.Parallel()
	adaptertest.RunAnswers(t, adaptertest.Answers{
		Secret: "topsecret",
		New: func(t testing.TB, baseURL string) adapters.Adapter {
			a, _ := run(t, Config{BaseURL: baseURL, APISecret: "topsecret"})
			return a
		},
	})
}

// With thousands of empty rooms Janus is asked no more than with one.
func TestThousandsOfRooms(t *testing.T) {
	t.Parallel()
	const rooms = 5000
	list := make([]map[string]any, 0, rooms)
	for i := range rooms {
		list = append(list, map[string]any{"room": adaptertest.ManyName(i), "num_participants": 0, "max_publishers": 1})
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	server := newFake(t, func(r *http.Request, request map[string]any) (string, bool) {
		return fmt.Sprintf(`{"janus":"success","plugindata":{"plugin":"janus.plugin.videoroom","data":{"videoroom":"success","list":%s}}}`, text),
			requestOf(request) == "list"
	})
	a, _ := run(t, Config{BaseURL: server.URL})
	a.until(t, "ready", func(s state) bool { return s.ready })
	server.mu.Lock()
	defer server.mu.Unlock()
	if n := len(server.seen); n > 40 {
		t.Errorf("asked %d times", n)
	}
}
