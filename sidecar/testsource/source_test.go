package testsource

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"
	"github.com/pion/webrtc/v4/pkg/media/samplebuilder"
	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server takes one publication by WHIP and depacketises it.
type server struct {
	endpoint adapters.Endpoint
	frames   chan frame
	packets  chan rtp.Header // of audio
	deleted  atomic.Int32

	mu   sync.Mutex
	pc   *webrtc.PeerConnection
	ssrc webrtc.SSRC // of video
}

// frame is one as it arrived.
type frame struct {
	data      []byte
	timestamp uint32
	at        time.Time
}

func newServer(t *testing.T) *server {
	s := &server{frames: make(chan frame, 1000), packets: make(chan rtp.Header, 1000)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /whip/{stream}", s.publish)
	mux.HandleFunc("DELETE /session", func(w http.ResponseWriter, _ *http.Request) {
		s.deleted.Add(1)
		w.WriteHeader(http.StatusOK)
	})
	ts := httptest.NewServer(mux)
	t.Cleanup(func() {
		ts.Close()
		if pc := s.connection(); pc != nil {
			_ = pc.GracefulClose()
		}
	})
	u, err := url.Parse(ts.URL + "/whip/demo")
	if err != nil {
		t.Fatal(err)
	}
	s.endpoint = adapters.Endpoint{URL: u}
	return s
}

func (s *server) connection() *webrtc.PeerConnection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pc
}

func (s *server) publish(w http.ResponseWriter, r *http.Request) {
	answer, err := s.answer(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/sdp")
	w.Header().Set("Location", "/session")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, answer)
}

func (s *server) answer(offer io.Reader) (string, error) {
	var engine webrtc.MediaEngine
	if err := media.RegisterCodecs(&engine); err != nil {
		return "", err
	}
	var settings webrtc.SettingEngine
	settings.SetIncludeLoopbackCandidate(true)
	pc, err := webrtc.NewAPI(webrtc.WithMediaEngine(&engine), webrtc.WithSettingEngine(settings)).
		NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	s.pc = pc
	s.mu.Unlock()
	pc.OnTrack(s.read)
	sdp, err := io.ReadAll(offer)
	if err != nil {
		return "", err
	}
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: string(sdp)}); err != nil {
		return "", err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	answer, err := pc.CreateAnswer(nil)
	if err != nil {
		return "", err
	}
	if err := pc.SetLocalDescription(answer); err != nil {
		return "", err
	}
	<-gathered
	return pc.LocalDescription().SDP, nil
}

func (s *server) read(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
	if track.Kind() == webrtc.RTPCodecTypeAudio {
		for {
			p, _, err := track.ReadRTP()
			if err != nil {
				return
			}
			s.packets <- p.Header
		}
	}
	s.mu.Lock()
	s.ssrc = track.SSRC()
	s.mu.Unlock()
	var depacketizer rtp.Depacketizer = &codecs.VP8Packet{}
	if track.Codec().MimeType == webrtc.MimeTypeH264 {
		depacketizer = &codecs.H264Packet{}
	}
	builder := samplebuilder.New(200, depacketizer, 90000)
	for {
		p, _, err := track.ReadRTP()
		if err != nil {
			return
		}
		builder.Push(p)
		for sample := builder.Pop(); sample != nil; sample = builder.Pop() {
			s.frames <- frame{data: sample.Data, timestamp: sample.PacketTimestamp, at: time.Now()}
		}
	}
}

// askForKeyFrame sends what a viewer's browser sends.
func (s *server) askForKeyFrame(t *testing.T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(s.ssrc)}}); err != nil {
		t.Error(err)
	}
}

// next waits for a frame.
func (s *server) next(t *testing.T) frame {
	t.Helper()
	select {
	case f := <-s.frames:
		return f
	case <-time.After(15 * time.Second):
		t.Fatal("no frame arrives")
		return frame{}
	}
}

// publishing runs Publish until the test ends; done closes when it has returned.
func publishing(t *testing.T, source *Source, s *server) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- source.Publish(ctx, &whip.Client{}, s.endpoint) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-result
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func TestPublishH264(t *testing.T) {
	source, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	source.begin = 270 // a second before the clip begins anew
	s := newServer(t)
	stop := publishing(t, source, s)

	const count = 60
	var first, last frame
	var begin, previous Stamp
	slowest := time.Duration(0)
	for i := range count {
		f := s.next(t)
		stamp, ok := ParseStamp(f.data)
		if !ok {
			t.Fatalf("frame %d has no stamp", i)
		}
		if i == 0 {
			first, begin = f, stamp
		} else {
			if stamp.Frame != previous.Frame+1 {
				t.Errorf("frame %d follows frame %d", stamp.Frame, previous.Frame)
			}
			if ticks := f.timestamp - last.timestamp; ticks != videoTicks {
				t.Errorf("frame %d is %d ticks behind the one before", i, ticks)
			}
		}
		slowest = max(slowest, f.at.Sub(stamp.Sent))
		last, previous = f, stamp
	}
	// Paced by absolute moments: 59 intervals last what they should, whatever each of them did.
	if got, want := previous.Sent.Sub(begin.Sent), (count-1)*time.Second/FrameRate; (got - want).Abs() > 60*time.Millisecond {
		t.Errorf("%d frames took %v, want %v", count, got, want)
	}
	t.Logf("slowest frame: %v (the builder holds each until the next begins); first timestamp %d", slowest, first.timestamp)

	var audio *rtp.Header
	for range 60 {
		h := <-s.packets
		if audio != nil && (h.SequenceNumber != audio.SequenceNumber+1 || h.Timestamp != audio.Timestamp+audioTicks) {
			t.Errorf("audio packet %d at %d follows %d at %d", h.SequenceNumber, h.Timestamp, audio.SequenceNumber, audio.Timestamp)
		}
		audio = &h
	}

	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Publish returned %v, want the context's error", err)
	}
	if n := s.deleted.Load(); n != 1 {
		t.Errorf("the session was deleted %d times", n)
	}
	if st := source.Stats(); st.Frames < count || st.KeyFrames < 4 || st.Packets < 120 || st.Jumps != 0 {
		t.Errorf("stats: %+v", st)
	}
}

func TestKeyFrameOnRequest(t *testing.T) {
	for _, codec := range []string{"h264", "vp8"} {
		t.Run(codec, func(t *testing.T) {
			source, err := New(Options{Codec: codec})
			if err != nil {
				t.Fatal(err)
			}
			s := newServer(t)
			publishing(t, source, s)

			var previous *frame
			sinceKey, asked, jumps := 0, false, uint64(0)
			for i := 0; jumps == 0; i++ {
				f := s.next(t)
				if previous != nil && f.timestamp-previous.timestamp != videoTicks {
					t.Errorf("frame %d is %d ticks behind the one before", i, f.timestamp-previous.timestamp)
				}
				previous = &f
				switch {
				case !isKey(codec, f.data):
					sinceKey++
				case asked && sinceKey < KeyFrameDistance-1:
					jumps = source.Stats().Jumps
				case i > 2*KeyFrameDistance && asked:
					t.Fatalf("asked for a key frame; it came %d frames after the one before, as ever", sinceKey+1)
				default:
					sinceKey = 0
				}
				if !asked && sinceKey == keyFrameGap {
					s.askForKeyFrame(t)
					asked = true
				}
			}
			if jumps != 1 {
				t.Errorf("%d jumps, want 1", jumps)
			}
		})
	}
}

func isKey(codec string, data []byte) bool {
	if codec == "vp8" {
		return data[0]&1 == 0
	}
	for nal := range nalUnits(data) {
		if nalType(nal) == nalIDR {
			return true
		}
	}
	return false
}

func TestPublishFailsWithTheSession(t *testing.T) {
	source, err := New(Options{Codec: "vp8"})
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t)
	result := make(chan error, 1)
	go func() { result <- source.Publish(t.Context(), &whip.Client{}, s.endpoint) }()
	s.next(t)
	if err := s.connection().GracefulClose(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-result:
		if err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Publish returned %v; the server closed the connection", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Publish goes on without a connection")
	}
}

func TestPublishRefused(t *testing.T) {
	source, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(http.NotFoundHandler())
	defer ts.Close()
	u, err := url.Parse(ts.URL)
	if err != nil {
		t.Fatal(err)
	}
	err = source.Publish(t.Context(), &whip.Client{HTTP: ts.Client()}, adapters.Endpoint{URL: u})
	if refused, ok := errors.AsType[*whip.StatusError](err); !ok || refused.Code != http.StatusNotFound {
		t.Errorf("Publish returned %v, want the server's 404", err)
	}
}
