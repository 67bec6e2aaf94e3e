package pionsfu

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// listen subscribes to events of a session and hands over each; the stream ends with the test.
func (s *sfu) listen(t *testing.T, player *rawPlayer, names ...string) <-chan whip.Event {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events, ended := make(chan whip.Event, 100), make(chan struct{})
	go func() {
		defer close(ended)
		_ = player.session.Events(ctx, names, func(e whip.Event) { events <- e })
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return events
}

func next(t *testing.T, events <-chan whip.Event) whip.Event {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(patience):
		t.Fatal("no event")
		return whip.Event{}
	}
}

// Before a server leaves it sends away those who hear it, and waits until they have gone.
func reconnectOnDrain(t *testing.T) {
	for overflow, want := range map[string]string{
		"":                        `{}`,
		"https://west.example/a/": `{"url":"https://west.example/a/whep/e2%20live"}`,
	} {
		s := run(t, Config{OverflowURL: overflow})
		publisher := s.publishRaw(t, "e2 live", video(webrtc.MimeTypeVP8, ""))
		stop := publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])
		player := s.playRaw(t, "e2 live", webrtc.RTPCodecTypeVideo)
		events := s.listen(t, player, whip.EventReconnect)
		deaf := s.playRaw(t, "e2 live", webrtc.RTPCodecTypeVideo)
		s.wait(t, "the subscription", func(*registry) bool {
			n := 0
			for _, session := range s.registry.sessions {
				session.mu.Lock()
				n += session.movable
				session.mu.Unlock()
			}
			return n == 1
		})
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			s.Drain(context.Background())
		}()
		if e := next(t, events); e.Name != whip.EventReconnect || string(e.Data) != want {
			t.Errorf("%s %s; want %s", e.Name, e.Data, want)
		}
		a := s.post(t, "/whep/e2%20live", playOffer(t))
		if overflow == "" {
			a.want(t, http.StatusCreated) // there is nowhere else to go
		} else if a.StatusCode != http.StatusTemporaryRedirect {
			t.Errorf("a new viewer is answered %s", a.Status)
		}
		select {
		case <-drained:
			t.Error("it does not wait for the viewer")
		default:
		}
		deaf.next(t)
		s.do(t, http.MethodDelete, player.session.Location().Path, "").want(t, http.StatusOK)
		<-drained
		s.SetDraining(false)
		s.post(t, "/whep/e2%20live", playOffer(t)).want(t, http.StatusCreated)
		stop()
	}
}

func redirectsForLoad(t *testing.T) {
	s := run(t, Config{MaxSessions: 1, OverflowURL: "https://west.example/"})
	first := s.publish(t, "s14").location(t)
	a := s.post(t, "/whip/s14%2Fa?x=1", publishOffer(t))
	if want := "https://west.example/whip/s14%2Fa?redirected=&x=1"; a.StatusCode != http.StatusTemporaryRedirect ||
		a.Header.Get("Location") != want {
		t.Errorf("%s to %q; want %q", a.Status, a.Header.Get("Location"), want)
	}
	// Two that are full do not send clients to and fro, and a relay stays.
	s.post(t, "/whip/other?redirected=", publishOffer(t)).want(t, http.StatusServiceUnavailable)
	s.post(t, "/whip/other?"+markRelay, publishOffer(t)).want(t, http.StatusServiceUnavailable)
	s.do(t, http.MethodDelete, first, "").want(t, http.StatusOK)
	s.publish(t, "other")
}

// The first event tells that the stream flows, never that it does not, each has one line of data, and the streams end with
// the session.
func eventStream(t *testing.T) {
	s := run(t, Config{})
	publisher := s.publishRaw(t, "e1", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	player := s.playRaw(t, "e1", webrtc.RTPCodecTypeVideo)
	path := player.session.Location().Path
	a := s.do(t, http.MethodPost, path+"/events", `["inactive","active","viewercount"]`, "Content-Type", "application/json")
	a.want(t, http.StatusCreated)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+a.location(t), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	stream, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if kind := stream.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Errorf("Content-Type %q", kind)
	}
	lines := bufio.NewScanner(stream.Body)
	var got []string
	for len(got) < 5 && lines.Scan() {
		if line := lines.Text(); line != "" && !strings.HasPrefix(line, ":") {
			got = append(got, line)
		}
		if len(got) == 4 {
			s.do(t, http.MethodDelete, path, "").want(t, http.StatusOK)
			break
		}
	}
	want := "event: active|data: {}|event: viewercount|data: {\"viewercount\":1}"
	if joined := strings.Join(got, "|"); joined != want {
		t.Errorf("events %q; want %q", joined, want)
	}
	for lines.Scan() {
		if lines.Text() != "" {
			t.Errorf("after the session: %q", lines.Text())
		}
	}
	s.do(t, http.MethodGet, a.location(t), "").want(t, http.StatusNotFound)
}

func viewerCount(t *testing.T) {
	s := run(t, Config{})
	publisher := s.publishRaw(t, "e3", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	events := s.listen(t, s.playRaw(t, "e3", webrtc.RTPCodecTypeVideo), whip.EventViewerCount)
	for n := 1; n <= 3; n++ {
		var data map[string]int
		if e := next(t, events); e.Name != whip.EventViewerCount || json.Unmarshal(e.Data, &data) != nil || len(data) != 1 ||
			data["viewercount"] != n {
			t.Fatalf("%s %s; want %d", e.Name, e.Data, n)
		}
		if n < 3 {
			s.playRaw(t, "e3", webrtc.RTPCodecTypeVideo)
		}
	}
}

func liteICE(t *testing.T) {
	s := run(t, Config{ICELite: true})
	h := s.clients(t)
	publisher := h.Publish(t, "s11")
	publisher.WaitConnected()
	h.Play(t, "s11").WaitFrames(10)
	a := s.publish(t, "lite")
	if n := strings.Count(a.body, "a=ice-lite"); n != 1 {
		t.Errorf("%d × ice-lite in the answer:\n%s", n, a.body)
	}
	p := s.patch(t, a.location(t), fragment(publishOffer(t)), "If-Match", "*")
	p.want(t, http.StatusOK)
	if f, err := whip.ParseFragment([]byte(p.body)); err != nil || !f.Lite {
		t.Errorf("after a restart it is not lite any more: %v\n%s", err, p.body)
	}
}
