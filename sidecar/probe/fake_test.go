package probe

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// faults are what a fake server does wrong.
type faults struct {
	bare      bool // no NACKs either way, no sender reports
	noPLI     bool // viewers' requests for key frames are dropped
	asksJoins bool // a viewer who comes makes it ask the publisher
	swallow   bool // and the key frame goes to nobody
	flood     bool // it asks the publisher for key frames all the time
	rawIDs    bool // header extensions go on by number
	holds     int  // packets that wait for one that is missing
	renumber  bool // the time of sound counts packets
	noVideo   bool
	noAudio   bool
	transcode bool // frames are changed
	loses     int  // each so many-th packet of video
	deaf      bool // viewers get nothing, ever
}

// fake is a server such as one writes in an afternoon: it forwards packets by pion's own tracks.
type fake struct {
	t      *testing.T
	faults faults
	web    *httptest.Server

	mu       sync.Mutex
	streams  map[string]*fakeStream
	sessions map[string]func()
	group    sync.WaitGroup
}

type fakeStream struct {
	mu     sync.Mutex
	pc     *webrtc.PeerConnection
	video  uint32
	codecs map[webrtc.RTPCodecType]webrtc.RTPCodecCapability
	out    map[webrtc.RTPCodecType][]*webrtc.TrackLocalStaticRTP
	joined int
}

func newFake(t *testing.T, f faults) *fake {
	t.Helper()
	s := &fake{t: t, faults: f, streams: map[string]*fakeStream{}, sessions: map[string]func(){}}
	s.web = httptest.NewServer(s)
	t.Cleanup(func() {
		s.web.Close()
		s.mu.Lock()
		sessions := s.sessions
		s.sessions = map[string]func(){}
		s.mu.Unlock()
		for _, end := range sessions {
			end()
		}
		s.group.Wait()
	})
	return s
}

func (s *fake) connect() (*webrtc.PeerConnection, error) {
	if !s.faults.bare {
		return media.Transport{Loopback: true}.NewPeerConnection(webrtc.Configuration{})
	}
	engine := &webrtc.MediaEngine{}
	if err := media.RegisterCodecs(engine); err != nil {
		return nil, err
	}
	var settings webrtc.SettingEngine
	settings.SetIncludeLoopbackCandidate(true)
	return webrtc.NewAPI(webrtc.WithMediaEngine(engine), webrtc.WithInterceptorRegistry(&interceptor.Registry{}),
		webrtc.WithSettingEngine(settings)).NewPeerConnection(webrtc.Configuration{})
}

func (s *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, publish := strings.CutPrefix(r.URL.Path, "/whip/")
	name, play := strings.CutPrefix(name, "/whep/")
	switch {
	case r.Method == http.MethodDelete:
		s.mu.Lock()
		end := s.sessions[r.URL.Path]
		delete(s.sessions, r.URL.Path)
		s.mu.Unlock()
		if end == nil {
			http.NotFound(w, r)
			return
		}
		end()
	case r.Method == http.MethodPost && (publish || play):
		body, _ := io.ReadAll(r.Body)
		pc, err := s.connect()
		if err == nil {
			open := s.play
			if publish {
				open = s.publish
			}
			err = open(pc, name, string(body))
		}
		if err != nil {
			if pc != nil {
				_ = pc.GracefulClose()
			}
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		s.mu.Lock()
		at := fmt.Sprintf("/session/%032d", len(s.sessions)+int(time.Now().UnixNano()%1e9))
		s.sessions[at] = sync.OnceFunc(func() {
			if publish {
				s.mu.Lock()
				if st := s.streams[name]; st != nil && st.pc == pc {
					delete(s.streams, name)
				}
				s.mu.Unlock()
			}
			_ = pc.GracefulClose()
		})
		s.mu.Unlock()
		w.Header().Set("Location", at)
		w.Header().Set("Content-Type", "application/sdp")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, pc.LocalDescription().SDP)
	default:
		http.Error(w, "", http.StatusMethodNotAllowed)
	}
}

func answerTo(pc *webrtc.PeerConnection, offer string) error {
	answer, err := pc.CreateAnswer(nil)
	if err != nil {
		return err
	}
	done := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(answer); err != nil {
		return err
	}
	<-done
	return nil
}

func (s *fake) publish(pc *webrtc.PeerConnection, name, offer string) error {
	st := &fakeStream{
		pc: pc, codecs: map[webrtc.RTPCodecType]webrtc.RTPCodecCapability{},
		out: map[webrtc.RTPCodecType][]*webrtc.TrackLocalStaticRTP{},
	}
	pc.OnTrack(func(track *webrtc.TrackRemote, r *webrtc.RTPReceiver) {
		s.group.Add(1)
		defer s.group.Done()
		s.forward(st, track)
	})
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offer}); err != nil {
		return err
	}
	s.mu.Lock()
	s.streams[name] = st
	s.mu.Unlock()
	return answerTo(pc, offer)
}

func (s *fake) forward(st *fakeStream, track *webrtc.TrackRemote) {
	video := track.Kind() == webrtc.RTPCodecTypeVideo
	st.mu.Lock()
	st.codecs[track.Kind()] = track.Codec().RTPCodecCapability
	if video {
		st.video = uint32(track.SSRC())
	}
	st.mu.Unlock()
	if s.faults.flood && video {
		s.group.Go(func() {
			for st.ask() == nil {
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	var waiting []*rtp.Packet
	var next uint16
	var clock uint32
	for n := 0; ; n++ {
		p, _, err := track.ReadRTP()
		if err != nil {
			return
		}
		if n == 0 {
			next, clock = p.SequenceNumber, p.Timestamp
		}
		waiting = append(waiting, p)
		if s.faults.holds > 0 && p.SequenceNumber != next && len(waiting) < s.faults.holds {
			continue
		}
		for _, p := range waiting {
			next = p.SequenceNumber + 1
			if !video && s.faults.renumber {
				p.Timestamp = clock
				clock += audioTicks
			}
			s.emit(st, track, p, n)
		}
		waiting = waiting[:0]
	}
}

func (s *fake) emit(st *fakeStream, track *webrtc.TrackRemote, p *rtp.Packet, n int) {
	video := track.Kind() == webrtc.RTPCodecTypeVideo
	f := s.faults
	switch {
	case f.deaf, video && f.noVideo, !video && f.noAudio, video && f.loses > 0 && n%f.loses == 0:
		return
	case video && f.transcode && len(p.Payload) > 40:
		p.Payload[40] ^= 1
	}
	if !f.rawIDs {
		p.Extension, p.Extensions = false, nil
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if video && f.swallow && st.joined > 1 && media.KeyFrame(track.Codec().MimeType, p.Payload) {
		return
	}
	for _, out := range st.out[track.Kind()] {
		_ = out.WriteRTP(p)
	}
}

func (st *fakeStream) ask() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.pc.ConnectionState() == webrtc.PeerConnectionStateClosed {
		return io.ErrClosedPipe
	}
	return st.pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: st.video}})
}

func (s *fake) play(pc *webrtc.PeerConnection, name, offer string) error {
	s.mu.Lock()
	st := s.streams[name]
	s.mu.Unlock()
	if st == nil {
		return fmt.Errorf("nobody publishes %s", name)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.codecs) < 2 {
		return fmt.Errorf("%s has no media yet", name)
	}
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offer}); err != nil {
		return err
	}
	for kind, codec := range st.codecs {
		track, err := webrtc.NewTrackLocalStaticRTP(codec, kind.String(), "fake")
		if err != nil {
			return err
		}
		sender, err := pc.AddTrack(track)
		if err != nil {
			return err
		}
		st.out[kind] = append(st.out[kind], track)
		s.group.Go(func() {
			for {
				packets, _, err := sender.ReadRTCP()
				if err != nil {
					return
				}
				for _, p := range packets {
					if _, ok := p.(*rtcp.PictureLossIndication); ok && !s.faults.noPLI {
						_ = st.ask()
					}
				}
			}
		})
	}
	st.joined++
	if s.faults.asksJoins {
		pc.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
			if state == webrtc.PeerConnectionStateConnected {
				_ = st.ask()
			}
		})
	}
	return answerTo(pc, offer)
}
