package probe

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/testframes"
)

// enough frames, and packets of sound, to believe in a stream.
const enough = 50

// tryMedia publishes the test clip and plays it. What follows makes sense only where that works; it says so.
func (p *Probe) tryMedia(ctx context.Context) bool {
	name := p.name("clip")
	c, err := clip()
	if err != nil {
		p.note("media.frames", Fail, "%s", why(err))
		return false
	}
	if p.target.publish == "" {
		p.tryPlayOnly(ctx, name)
		return false
	}
	p.say("publishing the test clip")
	b, err := p.publish(ctx, publishing{name: name, content: c})
	if code := refusal(err); code == 400 || code == 406 || code == 415 || code == 422 {
		// It may not take H264.
		vp8, _ := testframes.Of(webrtc.MimeTypeVP8)
		if again, againErr := p.publish(ctx, publishing{name: name, content: synthetic(vp8)}); againErr == nil {
			p.note("codec.h264", Warn, "not taken: %s", why(err))
			b, err, c = again, nil, synthetic(vp8)
		}
	}
	if err != nil {
		p.note("access.publish", Fail, "%s", why(err))
		if code := refusal(err); code/100 == 3 {
			p.noteRedirect(code, "")
		}
		return false
	}
	defer b.close() //nolint:errcheck // other steps look at that
	p.noteOpened(b.log)
	p.candidates(b.session.PeerConnection().RemoteDescription().SDP, b.session.Location().Hostname())
	took, connected := p.connected(ctx, b.session.Connected)
	if !connected {
		p.note("access.publish", OK, "offer taken after %s", ms(b.opened))
		p.note("media.connect", Fail, "the offer was taken, and then no connection came about: are the server's UDP ports open, and its "+
			"candidates addresses that can be reached from here?")
		return false
	}
	p.note("access.publish", OK, "offer taken after %s, connected %s later", ms(b.opened), ms(took))
	p.note("media.connect", OK, "publisher after %s", ms(b.opened+took))
	p.learn(func(f *facts) {
		f.publishes = true
		f.main = c
		if c.mime == webrtc.MimeTypeH264 {
			h264, _ := testframes.Of(webrtc.MimeTypeH264)
			f.main = synthetic(h264)
		}
	})
	if p.target.play == "" {
		if b.wait(ctx, p.bounds.wait, func() bool { return b.received != 0 }) {
			p.note("media.frames", OK, "the server reports the packets that it gets; it cannot be played, so no more can be told")
			p.learn(func(f *facts) { f.whole = true })
		} else {
			p.note("media.frames", Warn, "the server takes packets and reports nothing of them; it cannot be played, so no more can be told")
		}
		return true
	}
	p.say("playing it")
	v, err := p.playSoon(ctx, playing{name: name, content: c})
	if err != nil {
		p.note("access.play", Fail, "of what is published: %s", why(err))
		return true
	}
	defer v.close() //nolint:errcheck // other steps look at that
	if took, connected = p.connected(ctx, v.session.Connected); !connected {
		p.note("access.play", OK, "offer taken after %s", ms(v.opened))
		p.note("media.connect", Fail, "a publisher connects and a viewer does not")
		return true
	}
	p.note("access.play", OK, "offer taken after %s, connected %s later", ms(v.opened), ms(took))
	p.note("media.connect", OK, "publisher after %s, viewer after %s", ms(b.opened), ms(v.opened+took))
	if e, is := v.log.first(func(e exchange) bool { return e.status == 406 }); is {
		p.note("session.counter", Warn, "%d: a play is answered by the server's own offer, which relays answer and most players in "+
			"browsers do not", e.status)
	} else {
		p.note("session.counter", OK, "a play is answered by an answer")
	}
	p.learn(func(f *facts) { f.plays = true })
	v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) >= enough && v.soundCount >= enough })
	v.look(func() {
		p.noteFrames(v)
		if v.soundCount >= enough {
			p.note("media.audio", OK, "%s, %d packets", strings.TrimPrefix(v.audioCodec, "audio/"), v.soundCount)
		} else {
			p.note("media.audio", Fail, "%d packets of Opus came in the time of %d", v.soundCount, enough)
		}
		p.noteLatency(b, v)
	})
	return true
}

// noteFrames says how the clip came; the viewer's lock is held.
func (p *Probe) noteFrames(v *viewer) {
	whole, lost, damaged := len(v.frames), v.missing(), v.damaged
	switch {
	case whole == 0 && v.packets == 0:
		p.note("media.frames", Fail, "nothing of the video came")
	case whole == 0:
		p.note("media.frames", Fail, "%d packets of %s came, and no frame as it was published: is it transcoded?", v.packets, v.codec)
	case whole < enough || lost+damaged > whole/10:
		p.note("media.frames", Fail, "%d frames whole, %d missing, %d damaged", whole, lost, damaged)
	case lost+damaged > 0 || v.repeated > 0:
		p.note("media.frames", Warn, "%d frames whole, %d missing, %d damaged, %d repeated", whole, lost, damaged, v.repeated)
	default:
		p.note("media.frames", OK, "%d frames of the test clip, none missing, the first after %s", whole, ms(v.firstFrame))
	}
	if whole >= enough && lost+damaged <= whole/10 {
		id := "codec." + shortName(v.codec)
		if known(id) {
			p.note(id, OK, "%d frames whole, the first key frame after %s", whole, ms(v.firstKey))
		}
		p.learn(func(f *facts) {
			f.whole = true
			f.codecs = append(f.codecs, v.codec)
		})
	}
}

func (p *Probe) noteLatency(b *publisher, v *viewer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, s := range v.frames {
		if sent, ok := b.frames[n]; ok {
			v.ages = append(v.ages, s.at.Sub(sent.at))
		}
	}
	if len(v.ages) == 0 {
		return
	}
	slices.Sort(v.ages)
	p.note("media.latency", OK, "%s at the median, %s at p99, from here to the server and back",
		ms(v.ages[len(v.ages)/2]), ms(v.ages[len(v.ages)*99/100]))
}

// tryPlayOnly plays what the operator says is there.
func (p *Probe) tryPlayOnly(ctx context.Context, name adapters.StreamID) {
	p.say("playing %s", name)
	v, err := p.play(ctx, playing{name: name})
	if err != nil {
		p.note("access.play", Fail, "%s", why(err))
		return
	}
	defer v.close() //nolint:errcheck // it is not what is looked at
	p.noteOpened(v.log)
	p.candidates(v.session.PeerConnection().RemoteDescription().SDP, v.session.Location().Hostname())
	took, connected := p.connected(ctx, v.session.Connected)
	if !connected {
		p.note("media.connect", Fail, "the play was taken, and then no connection came about")
		return
	}
	p.note("access.play", OK, "offer taken after %s, connected %s later", ms(v.opened), ms(took))
	p.note("media.connect", OK, "viewer after %s", ms(v.opened+took))
	v.wait(ctx, p.bounds.wait, func() bool { return v.foreign >= enough })
	v.look(func() {
		if v.foreign < enough {
			p.note("media.frames", Fail, "%d frames came in the time of %d", v.foreign, enough)
			return
		}
		p.note("media.frames", OK, "%d frames of %s, the first after %s", v.foreign, v.codec, ms(v.firstFrame))
		p.learn(func(f *facts) { f.plays, f.whole = true, true })
	})
}

// connected waits until a session is.
func (p *Probe) connected(ctx context.Context, wait func(context.Context) error) (time.Duration, bool) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, p.bounds.wait)
	defer cancel()
	err := wait(ctx)
	return time.Since(began), err == nil
}

// candidates looks at the addresses that the server names for media.
func (p *Probe) candidates(answer, host string) {
	var private, public, loopback, tcp, other int
	for line := range strings.Lines(answer) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "a=candidate:")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) < 8 || fields[1] != "1" {
			continue
		}
		at, err := netip.ParseAddr(fields[4])
		switch {
		case !strings.EqualFold(fields[2], "udp"):
			tcp++
		case err != nil:
			other++
		case at.IsLoopback():
			loopback++
		case at.IsPrivate() || at.IsLinkLocalUnicast():
			private++
		default:
			public++
		}
	}
	text := fmt.Sprintf("%d of private addresses, %d public, %d loopback, %d names, %d TCP", private, public, loopback, other, tcp)
	switch {
	case private+public+loopback+other == 0 && tcp > 0:
		p.note("media.candidates", Fail, "%s: relays need UDP", text)
	case private+public+loopback+other == 0:
		p.note("media.candidates", Warn, "none in the answer: it can be reached only where its packets come first")
	case private == 0 && public > 0:
		p.note("media.candidates", Warn, "%s: peers in a pod network cannot use them; the gateway adds the pod's address for them", text)
	case private+public == 0 && loopback > 0:
		p.note("media.candidates", Warn, "%s: nobody outside the machine can use them", text)
	default:
		p.note("media.candidates", OK, "%s", text)
	}
}

// tryCodecs publishes and plays every codec that has not been tried.
func (p *Probe) tryCodecs(ctx context.Context) {
	for _, c := range testframes.Codecs() {
		id := "codec." + shortName(c.MIME)
		if p.fact().main.mime == c.MIME || ctx.Err() != nil {
			continue
		}
		p.say("publishing and playing %s", c.MIME)
		p.tryCodec(ctx, id, synthetic(c))
	}
	if ctx.Err() != nil {
		return
	}
	// Nobody here can make frames of it.
	h265 := content{
		mime: webrtc.MimeTypeH265, payloader: synthetic(testframes.Codecs()[0]).payloader, audio: stampedAudio,
		frame: func(uint32, bool) ([]byte, bool) { return nil, false },
	}
	b, err := p.publish(ctx, publishing{name: p.name("h265"), content: h265})
	if err != nil {
		p.note("codec.h265", Warn, "not taken: %s", why(err))
		return
	}
	if refused(b) {
		p.note("codec.h265", Warn, "not taken: the answer refuses its section")
	} else {
		p.note("codec.h265", OK, "taken by the answer; not tried with media")
		p.learn(func(f *facts) { f.codecs = append(f.codecs, h265.mime) })
	}
	_ = b.close()
}

func (p *Probe) tryCodec(ctx context.Context, id string, c content) {
	name := p.name(strings.TrimPrefix(id, "codec."))
	b, err := p.publish(ctx, publishing{name: name, content: c})
	if err != nil {
		p.note(id, Warn, "not taken: %s", why(err))
		return
	}
	defer b.close() //nolint:errcheck // other steps look at that
	if refused(b) {
		p.note(id, Warn, "not taken: the answer refuses its section")
		return
	}
	if p.target.play == "" {
		p.note(id, OK, "taken by the answer; the server cannot be played")
		p.learn(func(f *facts) { f.codecs = append(f.codecs, c.mime) })
		return
	}
	v, err := p.playSoon(ctx, playing{name: name, content: c})
	if err != nil {
		p.note(id, Fail, "can be published and not played: %s", why(err))
		return
	}
	defer v.close() //nolint:errcheck // other steps look at that
	v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) >= enough/2 && v.keys > 0 })
	v.look(func() {
		whole, bad := len(v.frames), v.missing()+v.damaged
		switch {
		case !strings.EqualFold(v.codec, c.mime) && v.codec != "":
			p.note(id, Fail, "comes out as %s", v.codec)
		case whole == 0:
			p.note(id, Fail, "can be published, and no frame of it comes out")
		case v.keys == 0 || bad > whole/10:
			p.note(id, Fail, "%d frames whole, %d key frames, %d missing or damaged", whole, v.keys, bad)
		default:
			p.note(id, OK, "%d frames whole, %d missing or damaged, the first key frame after %s", whole, bad, ms(v.firstKey))
			p.learn(func(f *facts) { f.codecs = append(f.codecs, c.mime) })
		}
	})
}

// refused says whether the answer refuses the video (RFC 3264, section 6).
func refused(b *publisher) bool {
	description := b.session.PeerConnection().RemoteDescription().SDP
	_, video, found := strings.Cut(description, "m=video ")
	if !found {
		return true
	}
	video, _, _ = strings.Cut(video, "\nm=")
	return strings.HasPrefix(video, "0 ") || strings.Contains(video, "a=inactive")
}

// trySimulcast offers three layers.
func (p *Probe) trySimulcast(ctx context.Context) {
	p.say("publishing with simulcast")
	name, c := p.name("simulcast"), p.fact().main
	b, err := p.publish(ctx, publishing{name: name, content: c, simulcast: true})
	if err != nil {
		p.note("codec.simulcast", Warn, "an offer with simulcast is refused: %s", why(err))
		return
	}
	defer b.close() //nolint:errcheck // other steps look at that
	if !strings.Contains(b.session.PeerConnection().RemoteDescription().SDP, "a=simulcast:recv") {
		p.note("codec.simulcast", Skip, "the answer takes one layer: publishers send one, and relays carry one")
		return
	}
	if p.target.play == "" {
		p.note("codec.simulcast", OK, "the answer takes the layers")
		return
	}
	v, err := p.playSoon(ctx, playing{name: name, content: c})
	if err != nil {
		p.note("codec.simulcast", Fail, "published with simulcast it cannot be played: %s", why(err))
		return
	}
	defer v.close() //nolint:errcheck // other steps look at that
	if v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) >= enough/2 }) {
		p.note("codec.simulcast", OK, "the answer takes the layers, and a viewer gets one of them whole; so would a relay")
	} else {
		p.note("codec.simulcast", Fail, "the answer takes the layers, and a viewer gets nothing")
	}
}

// shortURI is an extension's name without what all have in common.
func shortURI(uri string) string {
	switch uri {
	case media.AbsCaptureTime:
		return "abs-capture-time"
	case uriAudioLevel:
		return "audio level"
	case uriOrientation:
		return "video orientation"
	case uriPlayoutDelay:
		return "playout delay"
	}
	return uri
}
