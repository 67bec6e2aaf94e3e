package pionsfu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/sidestream-dev/sidestream/adapters"
)

func TestListStreams(t *testing.T) {
	s := run(t, Config{})
	list := func() (l streamList) {
		a := s.do(t, http.MethodGet, "/api/streams", "")
		a.want(t, http.StatusOK)
		if err := json.Unmarshal([]byte(a.body), &l); err != nil {
			t.Fatalf("%v: %q", err, a.body)
		}
		return l
	}
	if got := list(); got.Streams == nil || len(got.Streams) != 0 {
		t.Errorf("an idle server lists %+v; want an empty list", got)
	}
	s.publish(t, "half-open")
	h := s.clients(t)
	for _, id := range []adapters.StreamID{"b", "a/1"} {
		h.Publish(t, id).WaitConnected()
	}
	h.Play(t, "b").WaitFrames(1)
	h.Play(t, "a/1").WaitFrames(1)
	var got []string
	for _, stream := range list().Streams {
		got = append(got, stream.ID)
		if stream.Readers != 1 || len(stream.Tracks) != 2 || stream.Session == "" || stream.Since.IsZero() {
			t.Errorf("%+v", stream)
		}
	}
	if want := []string{"a/1", "b"}; !cmp.Equal(got, want) {
		t.Errorf("streams %q; want %q: what has not connected is none", got, want)
	}
	s.do(t, http.MethodPost, "/api/streams", "").want(t, http.StatusMethodNotAllowed)
}

// A watcher that reads nothing holds up nobody, and a thousand changes do not make a thousand lines.
func TestWatchIsConflated(t *testing.T) {
	s := run(t, Config{})
	s.clients(t).Publish(t, "busy").WaitConnected()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/api/streams", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "application/x-ndjson")
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	publication := s.registry.streams["busy"].publication
	for n := range 1000 {
		s.registry.mu.Lock()
		publication.readers = n + 1
		s.registry.changeLocked()
		s.registry.mu.Unlock()
	}
	lines := 0
	for scanner := bufio.NewScanner(response.Body); scanner.Scan(); lines++ {
		var l streamList
		if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		if len(l.Streams) == 1 && l.Streams[0].Readers == 1000 {
			break
		}
	}
	if lines > 100 {
		t.Errorf("%d lines", lines)
	}
}

func TestWatchEndsWithTheServer(t *testing.T) {
	s := run(t, Config{})
	a := s.adapter(t)
	reported, ended := make(chan struct{}, 10), make(chan error, 1)
	go func() {
		ended <- a.Watch(context.Background(), func([]adapters.Stream) { reported <- struct{}{} })
	}()
	<-reported
	s.stop()
	select {
	case err := <-ended:
		if err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v; want the reason", err)
		}
	case <-time.After(patience):
		t.Fatal("Watch goes on without a server")
	}
}

func TestWatchSaysWhyNot(t *testing.T) {
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"other server": {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }, "is this a pionsfu?"},
		"refused": {func(w http.ResponseWriter, _ *http.Request) {
			adapters.WriteProblem(w, http.StatusUnauthorized, "", "Bring a token.")
		}, "401 Unauthorized: Bring a token."},
		"garbage": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentLines)
			w.Write([]byte("{]\n"))
		}, "read streams"},
	} {
		t.Run(name, func(t *testing.T) {
			web := httptest.NewServer(test.handler)
			defer web.Close()
			a, err := NewAdapter(AdapterConfig{BaseURL: web.URL})
			if err != nil {
				t.Fatal(err)
			}
			defer a.client.CloseIdleConnections()
			err = a.Watch(t.Context(), func(s []adapters.Stream) { t.Errorf("reported %v", s) })
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v; want %q in it", err, test.want)
			}
		})
	}
}

func TestNewAdapter(t *testing.T) {
	for _, bad := range []string{"", "localhost:8800", "ftp://host", "http://", "://"} {
		if _, err := NewAdapter(AdapterConfig{BaseURL: bad}); err == nil {
			t.Errorf("%q is taken for an address", bad)
		}
	}
	a, err := NewAdapter(AdapterConfig{BaseURL: "http://sfu:8800/media/", PlayToken: "p"})
	if err != nil {
		t.Fatal(err)
	}
	ep := a.Egress("a b/c?d#e%2F")
	if got, want := ep.URL.String(), "http://sfu:8800/media/whep/a%20b/c%3Fd%23e%252F"; got != want {
		t.Errorf("%s; want %s", got, want)
	}
	if got := ep.Header.Get("Authorization"); got != "Bearer p" {
		t.Errorf("Authorization %q", got)
	}
	if got := a.Ingest("x").Header; len(got) != 0 {
		t.Errorf("header %v without a token", got)
	}
}

func TestMetrics(t *testing.T) {
	metrics := prometheus.NewPedanticRegistry()
	s := run(t, Config{Registerer: metrics})
	h := s.clients(t)
	publisher := h.Publish(t, "metrics")
	publisher.WaitConnected()
	player := h.Play(t, "metrics")
	player.WaitFrames(5)
	s.post(t, "/whep/none", playOffer(t)).want(t, http.StatusConflict)
	s.publish(t, "connecting")

	gather := func() map[string]float64 {
		families, err := metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]float64)
		for _, family := range families {
			for _, m := range family.Metric {
				name := strings.TrimPrefix(family.GetName(), namespace)
				for _, label := range m.Label {
					name += "," + label.GetValue()
				}
				values[name] = value(m)
			}
		}
		return values
	}
	now := gather()
	for name, want := range map[string]float64{
		"sessions,publish": 1, "sessions,play": 1, "sessions,connecting": 1, "refused_total,unpublished": 1,
		"viewer_tracks,h264,only,wide": 1, "viewer_tracks,opus,only,wide": 1,
	} {
		if now[name] != want {
			t.Errorf("%s is %v; want %v", name, now[name], want)
		}
	}
	for _, name := range []string{
		"packets_total,in", "packets_total,out", "payload_bytes_total,in", "payload_bytes_total,out",
		"key_frame_requests_total,out",
	} {
		if now[name] == 0 {
			t.Errorf("%s is 0", name)
		}
	}
	player.Close()
	publisher.Close()
	s.wait(t, "both to be buried", func(r *registry) bool { return len(r.ending) == 0 })
	after := gather()
	if after["sessions,publish"] != 0 || after["sessions,play"] != 0 {
		t.Errorf("sessions %v", after)
	}
	for name, before := range now {
		if strings.Contains(name, "_total") && after[name] < before {
			t.Errorf("%s fell from %v to %v", name, before, after[name])
		}
	}
	if _, err := New(Config{UDPAddr: "127.0.0.1:0", Registerer: metrics}); err == nil {
		t.Error("two servers share one registry")
	}
}

func value(m *dto.Metric) float64 {
	if m.Gauge != nil {
		return m.Gauge.GetValue()
	}
	return m.Counter.GetValue()
}
