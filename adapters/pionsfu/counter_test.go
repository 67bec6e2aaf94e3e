package pionsfu

import (
	"mime"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// only leaves one video codec in an offer.
func only(t *testing.T, codec string) string {
	t.Helper()
	pc, err := media.Transport{Loopback: true}.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.GracefulClose() //nolint:errcheck // never connected
	transceiver, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo,
		webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range transceiver.Receiver().GetParameters().Codecs {
		if c.MimeType == codec {
			if err := transceiver.SetCodecPreferences([]webrtc.RTPCodecParameters{c}); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	offer, err := pc.CreateOffer(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := pc.SetLocalDescription(offer); err != nil {
		t.Fatal(err)
	}
	<-webrtc.GatheringCompletePromise(pc)
	return pc.LocalDescription().SDP
}

// A player whose offer fits nothing, and that says so, gets an offer of what there is, answers it, and plays.
func counterOffer(t *testing.T) {
	s := run(t, Config{})
	publisher := s.publishRaw(t, "s24", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	offer := only(t, webrtc.MimeTypeH264)
	s.post(t, "/whep/s24", offer).want(t, http.StatusUnprocessableEntity) // nobody asked for more
	before := time.Now()
	a := s.post(t, "/whep/s24", offer, "Prefer", "respond-async, Counter-Offer")
	if a.StatusCode != http.StatusNotAcceptable {
		t.Fatalf("%s %s", a.Status, a.body)
	}
	kind, parameters, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil || kind != contentSDP {
		t.Errorf("Content-Type %q", a.Header.Get("Content-Type"))
	}
	until, err := http.ParseTime(parameters["valid-until"])
	if err != nil || until.Sub(before).Round(2*time.Second) != counterTime {
		t.Errorf("valid until %q: %v", parameters["valid-until"], err)
	}
	if !strings.Contains(a.body, "a=sendonly") || !strings.Contains(a.body, "VP8/90000") || strings.Contains(a.body, "H264") {
		t.Errorf("offer:\n%s", a.body)
	}
	path := a.location(t)
	s.patch(t, path, "a=end-of-candidates\r\n", "If-Match", a.Header.Get("ETag")).want(t, http.StatusUnprocessableEntity)
	patch := func(body string) answered {
		return s.do(t, http.MethodPatch, path, body, "Content-Type", contentSDP)
	}
	patch("nonsense").want(t, http.StatusBadRequest)
	patch(playOffer(t)).want(t, http.StatusUnprocessableEntity) // two sections

	pc, err := media.Transport{Loopback: true}.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.GracefulClose() //nolint:errcheck // the test is over
	packets := make(chan struct{}, 1000)
	pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		for {
			if _, _, err := track.ReadRTP(); err != nil {
				return
			}
			select {
			case packets <- struct{}{}:
			default:
			}
		}
	})
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: a.body}); err != nil {
		t.Fatal(err)
	}
	answer, err := pc.CreateAnswer(nil)
	if err != nil {
		t.Fatal(err)
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(answer); err != nil {
		t.Fatal(err)
	}
	<-gathered
	patched := patch(pc.LocalDescription().SDP)
	patched.want(t, http.StatusNoContent)
	if patched.body != "" {
		t.Errorf("204 with %q", patched.body)
	}
	timeout := time.After(patience)
	for range 100 {
		select {
		case <-packets:
		case <-timeout:
			t.Fatal("no packets")
		}
	}
	patch(pc.LocalDescription().SDP).want(t, http.StatusUnprocessableEntity)
	s.patch(t, path, fragment(pc.LocalDescription().SDP), "If-Match", a.Header.Get("ETag")).want(t, http.StatusNoContent)
	s.patch(t, path, fragment(publishOffer(t)), "If-Match", "*").want(t, http.StatusUnprocessableEntity)
	s.do(t, http.MethodDelete, path, "").want(t, http.StatusOK)
	patch(pc.LocalDescription().SDP).want(t, http.StatusNotFound)
}

// What no offer could mend is refused as ever, and publishers get no counter-offer.
func counterOfferRefused(t *testing.T) {
	s := run(t, Config{})
	publisher := s.publishRaw(t, "s24", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	prefer := []string{"Prefer", "counter-offer"}
	s.post(t, "/whep/s24", "nonsense", prefer...).want(t, http.StatusBadRequest)
	s.post(t, "/whep/nobody", only(t, webrtc.MimeTypeH264), prefer...).want(t, http.StatusConflict)
	s.post(t, "/whip/s24x", playOffer(t), prefer...).want(t, http.StatusUnprocessableEntity)
	s.post(t, "/whep/s24", playOffer(t), prefer...).want(t, http.StatusCreated) // it can be answered
	three := s.post(t, "/whep/s24", publishOffer(t), prefer...)                 // a wrong direction is no reason to give up
	if three.StatusCode != http.StatusNotAcceptable {
		t.Errorf("%s %s", three.Status, three.body)
	}
	s.do(t, http.MethodDelete, three.location(t), "").want(t, http.StatusOK)
}
