package e2e

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// Two sidecars check tokens in front of servers whose own tokens nobody but the sidecars knows, and name TURN servers that
// these know nothing of.
func TestTokens(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	const secret = "0123456789abcdef0123456789abcdef"
	dir := t.TempDir()
	for name, text := range map[string]string{"jwt": secret, "turn": "another secret, of TURN"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	settings := []string{
		"SIDESTREAM_JWT_KEY_FILE=" + filepath.Join(dir, "jwt"), "SIDESTREAM_JWT_OPEN_PATHS=/readyz",
		"SIDESTREAM_TURN_URLS=turn:turn.example.org:3478?transport=udp", "SIDESTREAM_TURN_SECRET_FILE=" + filepath.Join(dir, "turn"),
		"SIDESTREAM_SFU_PUBLISH_TOKEN=inside-publish", "SIDESTREAM_SFU_PLAY_TOKEN=inside-play",
	}
	sites := startSitesWith(ctx, t, map[int][]string{0: settings, 1: settings}, "singapore", "germany")
	bearer := func(claim, streams string) http.Header {
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
			"exp": time.Now().Add(time.Hour).Unix(), claim: streams,
		}).SignedString([]byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		return http.Header{"Authorization": {"Bearer " + token}}
	}
	at := func(i int, path string, header http.Header) adapters.Endpoint {
		return adapters.Endpoint{URL: endpoint(t, sites[i].url+path).URL, Header: header}
	}
	source, err := testsource.New(testsource.Options{})
	if err != nil {
		t.Fatal(err)
	}
	publishing, stop := context.WithCancel(ctx)
	published := make(chan error, 1)
	go func() {
		published <- source.Publish(publishing, newClient(), at(0, "/whip/live/show", bearer("publish", "live/*")))
	}()
	sites[1].until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })

	for name, header := range map[string]http.Header{
		"401": nil, "403": bearer("publish", "live/*"), "401 ": {"Authorization": {"Bearer inside-play"}},
	} {
		err := player.New(newClient()).Run(ctx, at(1, "/whep/live/show", header))
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(name)) {
			t.Errorf("want %s: %v", name, err)
		}
	}
	p := player.New(newClient())
	watching, leave := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() { watched <- p.Run(watching, at(1, "/whep/live/show", bearer("play", "live/show"))) }()
	if err := p.Wait(ctx, func(r player.Report) bool { return r.Stamped >= 50 }); err != nil {
		t.Fatal(err)
	}
	if r := p.Report(); r.Missing > 0 {
		t.Errorf("%d of %d frames missing", r.Missing, r.Stamped)
	}
	leave()
	<-watched
	// Its session has ended with it: DELETE went through with the server's own credentials.
	sites[1].until(ctx, t, "the viewer is gone", func(st siteStatus) bool { return len(st.Streams) == 1 && st.Streams[0].Readers <= 0 })
	stop()
	<-published
	for path, want := range map[string]int{"/readyz": http.StatusNoContent, "/api/streams": http.StatusForbidden} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, sites[0].url+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, resp.Status, want)
		}
	}
}
