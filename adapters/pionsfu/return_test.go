package pionsfu

import (
	"net/http"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
)

// vanish ends a publisher's connection without a DELETE.
func (s *sfu) vanish(t *testing.T, p *rawPublisher, stream adapters.StreamID) {
	t.Helper()
	if err := p.session.PeerConnection().Close(); err != nil {
		t.Fatal(err)
	}
	s.wait(t, "the publisher to be gone", func(r *registry) bool { return r.streams[stream] == nil || r.streams[stream].away })
}

// A publisher that is lost and comes back finds its viewers where it left them: numbers go on by one, timestamps by the time that
// has passed.
func TestPublisherReturns(t *testing.T) {
	t.Parallel()
	for name, codecs := range map[string][]webrtc.RTPCodecCapability{
		"video": {video(webrtc.MimeTypeVP8, "")},
		"audio": {{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			s := run(t, Config{PublisherGrace: time.Minute})
			payload := keyFrames[webrtc.MimeTypeVP8]
			publisher := s.publishRaw(t, "stream", codecs...)
			stop := publisher.keepSending(t, payload)
			player := s.playRaw(t, "stream", webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo)
			var last *rtp.Packet
			for range 50 {
				last = player.next(t)
			}
			stop()
			s.vanish(t, publisher, "stream")
			streams, _ := s.registry.snapshot()
			if len(streams) != 1 || streams[0].Readers != 1 {
				t.Fatalf("while it waits: %+v", streams)
			}

			back := s.publishRaw(t, "stream", codecs...)
			defer back.keepSending(t, payload)()
			began := last.PayloadType
			for jumps := 0; jumps == 0; {
				packet := player.next(t)
				if packet.SequenceNumber != last.SequenceNumber+1 || packet.SSRC != last.SSRC || packet.PayloadType != began {
					t.Fatalf("%+v follows %+v", packet.Header, last.Header)
				}
				switch passed := packet.Timestamp - last.Timestamp; {
				case passed == 3000:
				case passed > 0 && passed < 90000*uint32(patience/time.Second):
					jumps++
				default:
					t.Fatalf("timestamps go on by %d", passed)
				}
				last = packet
			}
			for range 200 { // what is behind goes on alike
				packet := player.next(t)
				if packet.SequenceNumber != last.SequenceNumber+1 || packet.Timestamp != last.Timestamp+3000 {
					t.Fatalf("%+v follows %+v", packet.Header, last.Header)
				}
				last = packet
			}
			streams, _ = s.registry.snapshot()
			if len(streams) != 1 || streams[0].Readers != 1 || streams[0].Session != s.sessionOf("stream") {
				t.Errorf("afterwards: %+v", streams)
			}
			// Its end is the end.
			s.do(t, http.MethodDelete, back.session.Location().Path, "").want(t, http.StatusOK)
			s.wait(t, "everybody to be gone", func(r *registry) bool { return len(r.sessions) == 0 && len(r.streams) == 0 })
		})
	}
}

func (s *sfu) sessionOf(stream adapters.StreamID) string {
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	return s.registry.streams[stream].id
}

// Viewers of a publisher that does not come back within its time are let go of, as are those who cannot go on with what comes.
func TestPublisherDoesNotReturn(t *testing.T) {
	t.Parallel()
	gone := func(r *registry) bool {
		for _, session := range r.sessions {
			if !session.publish {
				return false
			}
		}
		return true
	}
	for name, test := range map[string]struct {
		grace time.Duration
		then  func(t *testing.T, s *sfu)
	}{
		"in time":    {100 * time.Millisecond, func(*testing.T, *sfu) {}},
		"no grace":   {0, func(*testing.T, *sfu) {}},
		"by another": {time.Minute, func(t *testing.T, s *sfu) { s.publishRaw(t, "stream", video(webrtc.MimeTypeVP8, ""), opus) }},
		"as another": {time.Minute, func(t *testing.T, s *sfu) {
			p := s.publishRaw(t, "stream", video(webrtc.MimeTypeH264, "packetization-mode=1;profile-level-id=42e01f"))
			t.Cleanup(p.keepSending(t, keyFrames[webrtc.MimeTypeH264]))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := run(t, Config{PublisherGrace: test.grace})
			publisher := s.publishRaw(t, "stream", video(webrtc.MimeTypeVP8, ""))
			stop := publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])
			s.playRaw(t, "stream", webrtc.RTPCodecTypeVideo).next(t)
			stop()
			s.vanish(t, publisher, "stream")
			test.then(t, s)
			s.wait(t, "the viewer to be gone", gone)
		})
	}
}

var opus = webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}

// A name is its publisher's while that is well. Of several who come for one that is in doubt, or away, the first is waited for; one
// that does not connect leaves the name to the next, or ends the wait where that is over.
func TestSuccession(t *testing.T) {
	publish := func(r *registry) *session {
		t.Helper()
		s, err := r.reserve("stream", true)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	refused := func(r *registry) {
		t.Helper()
		if _, err := r.reserve("stream", true); err != errPublished {
			t.Errorf("a second publisher: %v", err)
		}
	}
	adopt := func(s *session) *session { s.publication = s.follows; return s }

	r := newRegistry(10, 10)
	first := publish(r)
	r.connect(first)
	refused(r)
	first.doubt.Store(true)
	second := adopt(publish(r))
	refused(r)
	r.remove(second) // does not connect
	third := adopt(publish(r))
	r.connect(third)
	if !isClosed(first.replaced) || r.streams["stream"] != third || isClosed(third.publication.ended) {
		t.Error("the third has not taken over from the first")
	}
	r.remove(first)
	if r.streams["stream"] != third {
		t.Error("the first's end is the third's")
	}
	if !r.suspend(third) {
		t.Error("the third is not waited for")
	}
	fourth := adopt(publish(r))
	r.expire(third)
	if isClosed(third.publication.ended) {
		t.Error("the fourth is not waited for")
	}
	r.remove(fourth)
	if !isClosed(third.publication.ended) || len(r.streams) != 0 {
		t.Error("nobody comes, and it does not end")
	}
	r.expire(third)

	// What goes another way ends what was there, once.
	fifth := publish(r)
	r.connect(fifth)
	fifth.doubt.Store(true)
	sixth := publish(r)
	r.connect(sixth)
	if !isClosed(fifth.publication.ended) || isClosed(sixth.publication.ended) || r.streams["stream"] != sixth {
		t.Error("the sixth has not replaced the fifth")
	}
	r.remove(fifth)
	r.remove(sixth)
	if !isClosed(sixth.publication.ended) || len(r.streams) != 0 || len(r.sessions) != 0 {
		t.Error("something is left")
	}
}
