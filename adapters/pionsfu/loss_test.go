package pionsfu

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// simulate sets a viewer's loss at the address that its session would be told.
func (s *sfu) simulate(t *testing.T, session *url.URL, body string) answered {
	t.Helper()
	a := s.do(t, http.MethodPatch, session.Path+"/"+pathLoss, body, "Content-Type", "application/json")
	a.want(t, http.StatusOK)
	return a
}

// A viewer's client sets what is lost on the way to it, and only to it; what was thrown away is counted.
func TestSimulatedLoss(t *testing.T) {
	t.Parallel()
	s := run(t, Config{SimulatedLoss: true})
	publisher := s.publishRaw(t, "stream", video(webrtc.MimeTypeH264, "packetization-mode=1"))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeH264])()
	lossy := s.playRaw(t, "stream", webrtc.RTPCodecTypeVideo)
	other := s.playRaw(t, "stream", webrtc.RTPCodecTypeVideo)
	lossy.next(t)
	if a := s.simulate(t, lossy.session.Location(), `{"loss": 10}`); a.body != "{\"loss\":10}\n" {
		t.Errorf("the answer is %q", a.body)
	}
	number := func(p *rawPlayer) uint16 { return p.next(t).SequenceNumber }
	for missing, last := 0, number(lossy); missing < 3; {
		now := number(lossy)
		if now-last > 1 && now-last < 100 {
			missing++
		}
		last = now
	}
	last := number(other)
	for range 100 {
		now := number(other)
		if now != last+1 {
			t.Fatalf("the other viewer has %d after %d", now, last)
		}
		last = now
	}
	if totals, _, _, _ := s.registry.totals(); totals.dropped == 0 {
		t.Error("nothing is counted")
	}
	if a := s.simulate(t, lossy.session.Location(), `{"loss": 0}`); a.body != "{\"loss\":0}\n" {
		t.Errorf("the answer is %q", a.body)
	}
}

func TestSimulatedLossRequests(t *testing.T) {
	s := run(t, Config{SimulatedLoss: true, PlayToken: "play"})
	publisher := s.publishRaw(t, "stream", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	opened := s.post(t, "/whep/stream", playOffer(t), "Authorization", "Bearer play")
	session := opened.location(t)
	want := `<` + session + `/loss>; rel="` + whip.RelLoss + `"`
	if !slices.Contains(opened.Header.Values("Link"), want) {
		t.Errorf("links are %q; want %q among them", opened.Header.Values("Link"), want)
	}
	ask := func(method, body string, header ...string) answered {
		return s.do(t, method, session+"/loss", body,
			append([]string{"Authorization", "Bearer play", "Content-Type", "application/json"}, header...)...)
	}
	ask(http.MethodGet, "", "Authorization", "").want(t, http.StatusUnauthorized)
	ask(http.MethodPost, `{"loss": 1}`).want(t, http.StatusMethodNotAllowed)
	ask(http.MethodPatch, `{"loss": 1}`, "Content-Type", "text/plain").want(t, http.StatusUnsupportedMediaType)
	ask(http.MethodPatch, `loss`).want(t, http.StatusBadRequest)
	ask(http.MethodPatch, `{"loss": "1"}`).want(t, http.StatusBadRequest)
	ask(http.MethodPatch, `{"loss": 1}`+strings.Repeat(" ", maxExtensionBody)).want(t, http.StatusRequestEntityTooLarge)
	for _, body := range []string{`{}`, `{"loss": -0.1}`, `{"loss": 10.1}`, `{"loss": 1e300}`, `null`} {
		ask(http.MethodPut, body).want(t, http.StatusUnprocessableEntity)
	}
	for _, method := range []string{http.MethodPut, http.MethodPatch} {
		ask(method, `{"loss": 2.5}`).want(t, http.StatusOK)
	}
	if a := ask(http.MethodGet, ""); a.body != "{\"loss\":2.5}\n" {
		t.Errorf("it is %q", a.body)
	}
	a := ask(http.MethodOptions, "", "Origin", "https://page.example", "Access-Control-Request-Method", "PATCH")
	if a.want(t, http.StatusOK); !strings.Contains(a.Header.Get("Access-Control-Allow-Methods"), "PATCH") {
		t.Errorf("a page may %q", a.Header.Get("Access-Control-Allow-Methods"))
	}
	s.do(t, http.MethodGet, "/session/none/loss", "", "Authorization", "Bearer play").want(t, http.StatusNotFound)
}

// Where the settings do not let it, nothing is promised and nothing taken.
func TestSimulatedLossIsOff(t *testing.T) {
	s := run(t, Config{})
	publisher := s.publishRaw(t, "stream", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	opened := s.post(t, "/whep/stream", playOffer(t))
	if links := strings.Join(opened.Header.Values("Link"), ","); strings.Contains(links, whip.RelLoss) {
		t.Errorf("links are %q", links)
	}
	s.do(t, http.MethodPatch, opened.location(t)+"/loss", `{"loss": 1}`, "Content-Type", "application/json").
		want(t, http.StatusNotFound)
}
