package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// The built-in server alone publishes its test picture, names its TURN servers, and lets a webhook judge tokens.
func TestSFUAlone(t *testing.T) {
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Token string }
		if json.NewDecoder(r.Body).Decode(&q) != nil || q.Token != "good" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer hook.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	settings, err := config.Decode([]string{
		"SIDESTREAM_SFU_LISTEN=" + address, "SIDESTREAM_SFU_MEDIA_LISTEN=127.0.0.1:0", "SIDESTREAM_TEST_STREAMS=studio/test",
		"SIDESTREAM_TURN_URLS=turn:turn.example:3478", "SIDESTREAM_TURN_USERNAME=u", "SIDESTREAM_TURN_CREDENTIAL=c",
		"SIDESTREAM_JWT_WEBHOOK_URL=" + hook.URL, "SIDESTREAM_SFU_API_TOKEN=api",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := settings.ValidateSFU(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runSFU(ctx, settings, slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path, token string) (int, string) {
		r, err := http.NewRequest(http.MethodGet, "http://"+address+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		a, err := client.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer a.Body.Close()
		body, _ := io.ReadAll(a.Body)
		return a.StatusCode, string(body)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if status, body := get("/api/streams", "api"); status == http.StatusOK && strings.Contains(body, `"id":"studio/test"`) &&
			strings.Contains(body, "video/H264") {
			if strings.Contains(body, `"relayed":true`) {
				t.Errorf("the test picture is taken for a relay: %s", body)
			}
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("no test picture: %d %s", status, body)
		}
	}
	if status, body := get("/api/pc-config?stream=studio/test", "good"); status != http.StatusOK || !strings.Contains(body, "turn:turn.example:3478") {
		t.Errorf("ICE configuration: %d %s", status, body)
	}
	for token, want := range map[string]int{"": 401, "bad": 401, "good": 204} {
		if status, body := get("/whep/studio/test", token); status != want {
			t.Errorf("token %q: %d %s", token, status, body)
		}
	}
}
