package probe

import (
	"context"
	"net/http"
	"regexp"
	"strings"

	"github.com/pion/webrtc/v4"
)

// offer is what an ordinary publisher of sound and picture offers. Nobody is there to connect.
func (p *Probe) offer() (string, error) {
	pc, err := p.connect(webrtc.Configuration{}, connecting{})
	if err != nil {
		return "", err
	}
	defer pc.GracefulClose() //nolint:errcheck // never connected
	for _, codec := range []webrtc.RTPCodecCapability{
		{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2},
		{MimeType: p.fact().main.mime, ClockRate: 90000, SDPFmtpLine: p.fact().main.format},
	} {
		track, err := webrtc.NewTrackLocalStaticRTP(codec, codec.MimeType[:5], "probe")
		if err != nil {
			return "", err
		}
		init := webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly}
		if _, err := pc.AddTransceiverFromTrack(track, init); err != nil {
			return "", err
		}
	}
	offer, err := pc.CreateOffer(nil)
	if err != nil {
		return "", err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(offer); err != nil {
		return "", err
	}
	<-gathered
	return pc.LocalDescription().SDP, nil
}

// post posts an offer as it is, and ends the session where that makes one.
func (p *Probe) post(ctx context.Context, purpose, offer string) (answer, bool) {
	ep := p.endpoint(true, p.name(purpose), true)
	a, err := p.ask(ctx, http.MethodPost, ep.URL, with(ep.Header, "Content-Type", contentSDP), offer)
	if err != nil {
		return a, false
	}
	if at, err := ep.URL.Parse(a.header.Get("Location")); err == nil && a.ok() {
		_, _ = p.ask(context.WithoutCancel(ctx), http.MethodDelete, at, ep.Header, "") // it also ends by itself
	}
	return a, true
}

var (
	videoCodecs = regexp.MustCompile(`(?i)a=rtpmap:(\d+) (VP8|VP9|H264|AV1|H265|rtx|ulpfec|red)/`)
	msid        = regexp.MustCompile(`a=msid:\S+`)
)

// tryOffers looks at how the server answers offers (RFC 9725, sections 4.2 and 4.4).
func (p *Probe) tryOffers(ctx context.Context) {
	if p.target.publish == "" {
		return
	}
	p.say("offering what ought to be refused, and looking at answers")
	offer, err := p.offer()
	if err != nil {
		p.note("offer.direction", Skip, "%s", why(err))
		return
	}
	plain, ok := p.post(ctx, "offer", offer)
	if !ok || !plain.ok() {
		p.note("offer.direction", Skip, "an ordinary offer: %s", plain)
		return
	}
	p.noteAnswer(string(plain.body), len(regexp.MustCompile(`(?m)^m=`).FindAllString(offer, -1)))

	wrong, _ := p.post(ctx, "offer-direction", strings.ReplaceAll(offer, "a=sendonly", "a=recvonly"))
	switch sections := strings.Count(string(plain.body), "a=recvonly"); {
	case sections == 0:
		p.note("offer.direction", Warn, "the answer to who sends is not recvonly (RFC 9725, section 4.2)")
	case wrong.status/100 != 4:
		p.note("offer.direction", Warn, "the answer is recvonly; a publisher that only receives: %s", wrong)
	default:
		p.note("offer.direction", OK, "the answer is recvonly; a publisher that only receives: %s", wrong)
	}

	n := 0
	two := msid.ReplaceAllStringFunc(offer, func(s string) string {
		if n++; n > 1 {
			return s + "-other"
		}
		return s
	})
	p.noteRefused(ctx, "offer.streams", "tracks of two MediaStreams", "offer-streams", two)
	p.noteRefused(ctx, "offer.partial", "a picture in a codec that nobody knows", "offer-partial",
		videoCodecs.ReplaceAllString(offer, "a=rtpmap:$1 X-PROBE/"))

	active, ok := p.post(ctx, "offer-setup", strings.ReplaceAll(offer, "a=setup:actpass", "a=setup:active"))
	switch passive := strings.Contains(string(active.body), "a=setup:passive"); {
	case !ok:
	case active.ok() && passive:
		p.note("offer.setup", OK, "who opens DTLS (setup:active) is answered setup:passive")
	case active.status/100 == 4:
		p.note("offer.setup", OK, "who opens DTLS (setup:active): %s", active)
	default:
		p.note("offer.setup", Fail, "who opens DTLS (setup:active) is answered %s, and not setup:passive: such publishers cannot connect", active)
	}
}

// noteRefused says whether an offer is refused that is to be.
func (p *Probe) noteRefused(ctx context.Context, id, what, purpose, offer string) {
	switch a, ok := p.post(ctx, purpose, offer); {
	case !ok:
	case a.status == http.StatusBadRequest || a.status == http.StatusUnprocessableEntity:
		p.note(id, OK, "%s: %s", what, a)
	case a.status/100 == 4:
		p.note(id, OK, "%s: %s; RFC 9725, section 4.4, has 422 or 400", what, a)
	default:
		p.note(id, Warn, "%s: %s; RFC 9725, section 4.4, has 422 or 400", what, a)
	}
}

// noteAnswer looks at the answer to an ordinary offer of so many sections.
func (p *Probe) noteAnswer(sdp string, sections int) {
	candidates := strings.Count(sdp, "a=candidate:")
	switch {
	case candidates == 0:
		p.note("offer.candidates", Warn, "the answer has no candidates: clients find the server only by TURN, or not at all")
	case strings.Contains(sdp, "a=ice-options:trickle") && !strings.Contains(sdp, "a=end-of-candidates"):
		p.note("offer.candidates", Warn, "%d candidates in the answer, and the server says that it trickles more, which WHIP has no way for", candidates)
	default:
		p.note("offer.candidates", OK, "%d candidates in the answer", candidates)
	}
	switch {
	case !strings.Contains(sdp, "a=group:BUNDLE") || strings.Count(sdp, "a=rtcp-mux\r\n") < sections:
		p.note("offer.bundle", Fail, "the answer does not bundle all on one port (RFC 9725, section 4.4.1)")
	case strings.Count(sdp, "a=rtcp-mux-only") < sections:
		p.note("offer.bundle", OK, "all on one port; rtcp-mux-only is not said in each section")
	default:
		p.note("offer.bundle", OK, "all on one port, rtcp-mux-only")
	}
	if strings.Contains(sdp, "a=ice-lite") {
		p.note("offer.lite", Warn, "ICE-lite: only for servers that clients reach directly; behind TURN it may fail")
	} else {
		p.note("offer.lite", OK, "full ICE")
	}
}
