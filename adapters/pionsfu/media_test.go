package pionsfu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// rawPublisher sends RTP packets of the test's making: payloads that carry their number.
type rawPublisher struct {
	t       testing.TB
	session *whip.Session
	tracks  []*webrtc.TrackLocalStaticRTP
	seq     uint16
}

func (s *sfu) publishRaw(t testing.TB, stream string, codecs ...webrtc.RTPCodecCapability) *rawPublisher {
	t.Helper()
	p := &rawPublisher{t: t}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	session, err := s.clients(t).Client.Publish(ctx, s.adapter(t).Ingest(adapters.StreamID(stream)),
		func(pc *webrtc.PeerConnection) error {
			p.tracks = nil
			for _, codec := range codecs {
				track, err := webrtc.NewTrackLocalStaticRTP(codec, codec.MimeType[:5], "raw")
				if err != nil {
					return err
				}
				if _, err := pc.AddTransceiverFromTrack(track, webrtc.RTPTransceiverInit{
					Direction: webrtc.RTPTransceiverDirectionSendonly,
				}); err != nil {
					return err
				}
				p.tracks = append(p.tracks, track)
			}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	p.session = session
	t.Cleanup(func() { _ = session.Close(context.Background()) })
	if err := session.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	return p
}

// send sends one frame of one packet on each track.
func (p *rawPublisher) send(payload []byte) {
	p.seq++
	for _, track := range p.tracks {
		packet := &rtp.Packet{
			Header:  rtp.Header{Version: 2, SequenceNumber: p.seq, Timestamp: uint32(p.seq) * 3000, Marker: true},
			Payload: payload,
		}
		if err := track.WriteRTP(packet); err != nil {
			p.t.Errorf("send: %v", err)
		}
	}
}

// rawPlayer takes whatever comes.
type rawPlayer struct {
	session *whip.Session
	packets chan *rtp.Packet
	group   sync.WaitGroup

	mu     sync.Mutex
	codecs []webrtc.RTPCodecParameters
}

func (s *sfu) playRaw(t testing.TB, stream string, kinds ...webrtc.RTPCodecType) *rawPlayer {
	t.Helper()
	p, err := s.tryPlayRaw(t, stream, nil, kinds...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (s *sfu) tryPlayRaw(
	t testing.TB, stream string, codecs []webrtc.RTPCodecParameters, kinds ...webrtc.RTPCodecType,
) (*rawPlayer, error) {
	t.Helper()
	p := &rawPlayer{packets: make(chan *rtp.Packet, 10000)}
	over := make(chan struct{}) // nobody takes packets any more
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	session, err := s.clients(t).Client.Play(ctx, s.adapter(t).Egress(adapters.StreamID(stream)),
		func(pc *webrtc.PeerConnection) error {
			pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
				p.group.Add(1)
				defer p.group.Done()
				p.mu.Lock()
				p.codecs = append(p.codecs, track.Codec())
				p.mu.Unlock()
				for {
					packet, _, err := track.ReadRTP()
					if err != nil {
						return
					}
					select {
					case p.packets <- packet:
					case <-over:
						return
					}
				}
			})
			for _, kind := range kinds {
				transceiver, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{
					Direction: webrtc.RTPTransceiverDirectionRecvonly,
				})
				if err != nil {
					return err
				}
				if codecs != nil && kind == webrtc.RTPCodecTypeVideo {
					if err := transceiver.SetCodecPreferences(codecs); err != nil {
						return err
					}
				}
			}
			return nil
		})
	if err != nil {
		return nil, err
	}
	p.session = session
	t.Cleanup(func() {
		close(over)
		_ = session.Close(context.Background())
		p.group.Wait()
	})
	return p, session.Connected(ctx)
}

func video(mime, fmtp string) webrtc.RTPCodecCapability {
	return webrtc.RTPCodecCapability{MimeType: mime, ClockRate: 90000, SDPFmtpLine: fmtp}
}

// Payloads that each begin a key frame of their codec.
var keyFrames = map[string][]byte{
	webrtc.MimeTypeVP8:  {0x10, 0x00, 0x00, 0x00},
	webrtc.MimeTypeVP9:  {0x0a, 0x00, 0x00, 0x00},
	webrtc.MimeTypeH264: {0x65, 0x88, 0x84, 0x01},
	webrtc.MimeTypeH265: {0x26, 0x01, 0xaf, 0x01},
	webrtc.MimeTypeAV1:  {0x18, 0x0a, 0x01, 0x02},
}

// Whatever the codec, a viewer gets it under its own name, as the only one in the answer, byte for byte.
func TestCodecs(t *testing.T) {
	for name, codec := range map[string]webrtc.RTPCodecCapability{
		"VP8":         video(webrtc.MimeTypeVP8, ""),
		"VP9":         video(webrtc.MimeTypeVP9, "profile-id=0"),
		"VP9-2":       video(webrtc.MimeTypeVP9, "profile-id=2"),
		"H264":        video(webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"),
		"H264-mode-0": video(webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42e01f"),
		"H264-high":   video(webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=64001f"),
		"H265":        video(webrtc.MimeTypeH265, ""),
		"AV1":         video(webrtc.MimeTypeAV1, ""),
		"Opus":        {MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2},
		"PCMU":        {MimeType: webrtc.MimeTypePCMU, ClockRate: 8000},
		"PCMA":        {MimeType: webrtc.MimeTypePCMA, ClockRate: 8000},
		"G722":        {MimeType: webrtc.MimeTypeG722, ClockRate: 8000},
		"multiopus": {
			MimeType: "audio/multiopus", ClockRate: 48000, Channels: 6,
			SDPFmtpLine: "channel_mapping=0,4,1,2,3,5;coupled_streams=2;minptime=10;num_streams=4;useinbandfec=1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := run(t, Config{})
			publisher := s.publishRaw(t, "codec", codec)
			stop := publisher.keepSending(t, keyFrames[codec.MimeType])
			defer stop()
			player := s.playRaw(t, "codec", webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo)
			last := uint32(0)
			for range 20 {
				packet := player.next(t)
				number := binary.BigEndian.Uint32(packet.Payload[4:])
				if !bytes.HasPrefix(packet.Payload, keyFrames[codec.MimeType]) || len(packet.Payload) != 100 {
					t.Fatalf("payload was changed: %x", packet.Payload)
				}
				if last != 0 && number != last+1 {
					t.Errorf("packet %d after %d", number, last)
				}
				if packet.Timestamp != uint32(packet.SequenceNumber)*3000 {
					t.Errorf("sequence %d has timestamp %d", packet.SequenceNumber, packet.Timestamp)
				}
				last = number
			}
			player.mu.Lock()
			got := player.codecs[0]
			player.mu.Unlock()
			if !strings.EqualFold(got.MimeType, codec.MimeType) || got.Channels != codec.Channels {
				t.Errorf("viewer has %s with %d channels; sent was %s", got.MimeType, got.Channels, codec.MimeType)
			}
			if mode := regexp.MustCompile(`packetization-mode=\d`).FindString; mode(got.SDPFmtpLine) != mode(codec.SDPFmtpLine) {
				t.Errorf("viewer has %q; sent was %q", got.SDPFmtpLine, codec.SDPFmtpLine)
			}
			if streams, _ := s.registry.snapshot(); len(streams) != 1 || len(streams[0].Tracks) != 1 ||
				!strings.EqualFold(streams[0].Tracks[0].MIME, codec.MimeType) {
				t.Errorf("reported is %+v", streams)
			}
		})
	}
}

// keepSending sends numbered packets until stop, which waits.
func (p *rawPublisher) keepSending(t testing.TB, prefix []byte) (stop func()) {
	t.Helper()
	if prefix == nil {
		prefix = make([]byte, 4)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		for n := uint32(1); ; n++ {
			p.send(append(binary.BigEndian.AppendUint32(bytes.Clone(prefix), n), make([]byte, 92)...))
			select {
			case <-ticker.C:
			case <-end:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(end); <-ended })
}

func (p *rawPlayer) next(t testing.TB) *rtp.Packet {
	t.Helper()
	select {
	case packet := <-p.packets:
		return packet
	case <-time.After(patience):
		t.Fatal("no packet")
		return nil
	}
}

// The answer to a viewer has the stream's codec with its RTX and nothing else.
func TestAnswerHasOneCodec(t *testing.T) {
	s := run(t, Config{})
	publisher := s.publishRaw(t, "one", video(webrtc.MimeTypeVP9, "profile-id=0"))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP9])()
	a := s.post(t, "/whep/one", playOffer(t))
	a.want(t, http.StatusCreated)
	_, section, _ := strings.Cut(a.body, "m=video")
	names := regexp.MustCompile(`a=rtpmap:(\d+) (\w+)`).FindAllStringSubmatch(section, -1)
	if len(names) != 2 || names[0][2] != "VP9" || names[1][2] != "rtx" {
		t.Fatalf("codecs %q in:\n%s", names, a.body)
	}
	for _, line := range []string{
		"a=fmtp:" + names[1][1] + " apt=" + names[0][1], "a=ssrc-group:FID ", "a=rtcp-fb:" + names[0][1] + " nack pli",
	} {
		if !strings.Contains(section, line) {
			t.Errorf("no %q in:\n%s", line, section)
		}
	}
	if !strings.Contains(a.body, "a=inactive") {
		t.Errorf("audio, which the stream lacks, is not inactive:\n%s", a.body)
	}
}

func TestViewerWithoutTheCodecIsTold(t *testing.T) {
	s := run(t, Config{})
	publisher := s.publishRaw(t, "h265", video(webrtc.MimeTypeH265, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeH265])()
	_, err := s.tryPlayRaw(t, "h265", []webrtc.RTPCodecParameters{
		{RTPCodecCapability: video(webrtc.MimeTypeVP8, ""), PayloadType: 96},
	}, webrtc.RTPCodecTypeVideo)
	var refused *whip.StatusError
	if !errors.As(err, &refused) || refused.Code != http.StatusUnprocessableEntity ||
		!strings.Contains(refused.Problem.Detail, "video/H265") {
		t.Errorf("a viewer with VP8 only: %v", err)
	}
	if _, err := s.tryPlayRaw(t, "h265", nil, webrtc.RTPCodecTypeAudio); !errors.As(err, &refused) {
		t.Errorf("a viewer who wants audio only of a stream without any: %v", err)
	}
}

// A viewer may want less than there is.
func TestAudioOnlyViewer(t *testing.T) {
	s := run(t, Config{})
	s.clients(t).Publish(t, "both").WaitConnected()
	player := s.playRaw(t, "both", webrtc.RTPCodecTypeAudio)
	for range 10 {
		if packet := player.next(t); packet.Payload[0] != 0xfc {
			t.Fatalf("no audio packet: %x", packet.Payload)
		}
	}
}

// A publisher that changes its codec in mid-stream: its viewers, who were promised another one, are let go, and new ones
// get the new one.
func TestPublisherChangesCodec(t *testing.T) {
	s := run(t, Config{})
	h := s.clients(t)
	var vp8, h264 *webrtc.TrackLocalStaticRTP
	var sender *webrtc.RTPSender
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	session, err := h.Client.Publish(ctx, h.Adapter.Ingest("switch"), func(pc *webrtc.PeerConnection) (err error) {
		if vp8, err = webrtc.NewTrackLocalStaticRTP(video(webrtc.MimeTypeVP8, ""), "video", "raw"); err != nil {
			return err
		}
		h264, err = webrtc.NewTrackLocalStaticRTP(
			video(webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"), "video", "raw")
		if err != nil {
			return err
		}
		sender, err = pc.AddTrack(vp8)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(context.Background()) //nolint:errcheck // the test is over
	if err := session.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	publisher := &rawPublisher{t: t, tracks: []*webrtc.TrackLocalStaticRTP{vp8}}
	stop := publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])
	first := s.playRaw(t, "switch", webrtc.RTPCodecTypeVideo)
	first.next(t)
	stop()
	if err := sender.ReplaceTrack(h264); err != nil {
		t.Fatal(err)
	}
	publisher.tracks[0] = h264
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeH264])()
	if err := first.session.Wait(ctx); ctx.Err() != nil {
		t.Fatalf("the viewer of the old codec is still there: %v", err)
	}
	second := s.playRaw(t, "switch", webrtc.RTPCodecTypeVideo)
	if packet := second.next(t); !bytes.HasPrefix(packet.Payload, keyFrames[webrtc.MimeTypeH264]) {
		t.Errorf("new viewer got %x", packet.Payload)
	}
}

// Many viewers, whole frames for each, one key frame request a second for all.
func TestFanOut(t *testing.T) {
	t.Parallel()
	s := run(t, Config{})
	h := s.clients(t)
	publisher := h.Publish(t, "fan")
	publisher.WaitConnected()
	begun := time.Now()
	var players []*adaptertest.Player
	for range 10 {
		players = append(players, h.Play(t, "fan"))
	}
	for _, player := range players {
		player.WaitFrames(20)
		player.WaitAudio(20)
		if stats := player.Stats(); stats.Damaged != 0 || stats.KeyFrames == 0 {
			t.Errorf("%+v", stats)
		}
	}
	if n, limit := publisher.KeyFrameRequests(), 2+int(time.Since(begun)/time.Second); n > limit {
		t.Errorf("the publisher was asked for %d key frames; want at most %d", n, limit)
	}
}

// The first thing that a viewer gets of video is a key frame, asked for at once where none has just been.
func TestViewerBeginsWithKeyFrame(t *testing.T) {
	t.Parallel()
	s := run(t, Config{})
	h := s.clients(t)
	publisher := h.Publish(t, "late")
	publisher.WaitConnected()
	h.Play(t, "late").WaitFrames(60) // beyond what may be sent from the past
	player := h.Play(t, "late")
	player.WaitFrames(1)
	stats := player.Stats()
	if stats.KeyFrames != 1 || stats.Damaged != 0 {
		t.Errorf("first frames: %+v", stats)
	}
	if stats.First > 2*time.Second {
		t.Errorf("the first frame took %s", stats.First)
	}
}

func TestPublisherLeaves(t *testing.T) {
	s := run(t, Config{})
	h := s.clients(t)
	publisher := h.Publish(t, "leave")
	publisher.WaitConnected()
	player := h.Play(t, "leave")
	player.WaitFrames(1)
	publisher.Close()
	if took := player.WaitEnded(); took > 2*time.Second {
		t.Errorf("its viewer's session lasted %s longer", took)
	}
}

func TestRunEndsSessions(t *testing.T) {
	s := run(t, Config{})
	h := s.clients(t)
	h.Publish(t, "end").WaitConnected()
	player := h.Play(t, "end")
	player.WaitFrames(1)
	s.stop()
	player.WaitEnded()
	if n := len(s.registry.sessions); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("Run could be called again")
	}
}

// cuttable is a client's socket that can fall silent, as a machine does that loses its network.
type cuttable struct {
	net.PacketConn
	cut      atomic.Bool
	dropNext atomic.Int64 // media packets to lose on arrival
}

func (c *cuttable) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.cut.Load() {
		return len(b), nil
	}
	return c.PacketConn.WriteTo(b, to)
}

func (c *cuttable) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.PacketConn.ReadFrom(b)
		if err == nil && c.cut.Load() {
			continue
		}
		if err == nil && isMedia(b[:n]) && c.dropNext.Load() > 0 {
			c.dropNext.Add(-1)
			continue
		}
		return n, from, err
	}
}

// cuttableClients is clients whose one socket can be cut.
func (s *sfu) cuttableClients(t testing.TB) (adaptertest.Harness, *cuttable) {
	t.Helper()
	socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cuttable{PacketConn: socket}
	mux := newMuxOf(c)
	h := s.clients(t)
	h.Client = &whip.Client{NewPeerConnection: media.Transport{UDPMux: mux, Loopback: true}.NewPeerConnection}
	t.Cleanup(func() { _ = mux.Close() })
	return h, c
}

func newMuxOf(c net.PacketConn) ice.UDPMux {
	return ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: c})
}

// Losses on the way to a viewer are repaired from the history that all viewers share.
func TestLossIsRepaired(t *testing.T) {
	t.Parallel()
	s := run(t, Config{})
	s.clients(t).Publish(t, "loss").WaitConnected()
	h, socket := s.cuttableClients(t)
	player := h.Play(t, "loss")
	player.WaitFrames(5)
	for range 5 {
		socket.dropNext.Store(3)
		player.WaitFrames(player.Stats().Frames + 10)
	}
	stats := player.Stats()
	if stats.Damaged != 0 {
		t.Errorf("%+v; want no damaged frames", stats)
	}
	if totals, _, _, _ := s.registry.totals(); totals.resent < 5 || totals.nacksIn == 0 {
		t.Errorf("sent again %d packets after %d NACKs", totals.resent, totals.nacksIn)
	}
}

// A publisher without a network is gone within seconds, and so is a viewer.
func lostSessionIsGone(t *testing.T) {
	s := run(t, Config{})
	h := s.clients(t)
	cut, socket := s.cuttableClients(t)
	publisher := cut.Publish(t, "vanish")
	publisher.WaitConnected()
	player := h.Play(t, "vanish")
	player.WaitFrames(1)
	cutViewer, viewerSocket := s.cuttableClients(t)
	other := h.Publish(t, "stays")
	other.WaitConnected()
	lost := cutViewer.Play(t, "stays")
	lost.WaitFrames(1)
	s.do(t, http.MethodGet, lost.Session.Location().Path, "").want(t, http.StatusNoContent)

	begun := time.Now()
	socket.cut.Store(true)
	viewerSocket.cut.Store(true)
	s.wait(t, "the vanished publisher and viewer to be gone", func(r *registry) bool {
		return len(r.streams) == 1 && r.streams["stays"] != nil && r.streams["stays"].publication.readers == 0
	})
	took := time.Since(begun)
	t.Logf("gone after %s", took)
	if took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	s.do(t, http.MethodGet, lost.Session.Location().Path, "").want(t, http.StatusNotFound)
	s.do(t, http.MethodGet, publisher.Session.Location().Path, "").want(t, http.StatusNotFound)
	player.WaitEnded()
	h.Publish(t, "vanish").WaitConnected() // the name is free
}

// A thousand offers that nobody follows up: bounded, refused in words, and freed again.
func TestHalfOpenSessionsAreBounded(t *testing.T) {
	s := run(t, Config{MaxHalfOpen: 20, ConnectTimeout: time.Second})
	offer := publishOffer(t)
	created, refused := 0, 0
	for n := range 1000 {
		switch a := s.post(t, "/whip/half-"+itoa(uint16(n)), offer); a.StatusCode {
		case http.StatusCreated:
			created++
		case http.StatusServiceUnavailable:
			refused++
			a.want(t, http.StatusServiceUnavailable)
		default:
			t.Fatalf("%s %s", a.Status, a.body)
		}
		s.registry.mu.Lock()
		sessions := len(s.registry.sessions)
		s.registry.mu.Unlock()
		if sessions > 20 {
			t.Fatalf("%d sessions", sessions)
		}
	}
	if created < 20 || refused == 0 {
		t.Errorf("%d created, %d refused", created, refused)
	}
	s.wait(t, "all of them to be freed", func(r *registry) bool {
		return len(r.sessions) == 0 && r.halfOpen == 0 && len(r.streams) == 0
	})
}

// The publisher's clocks reach the viewers as they are.
func TestSenderReportsPassOn(t *testing.T) {
	s := run(t, Config{})
	publisher := s.publishRaw(t, "clock", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	reports := make(chan *rtcp.SenderReport, 100)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	session, err := s.clients(t).Client.Play(ctx, s.adapter(t).Egress("clock"), func(pc *webrtc.PeerConnection) error {
		transceiver, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo, webrtc.RTPTransceiverInit{
			Direction: webrtc.RTPTransceiverDirectionRecvonly,
		})
		pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
			for {
				if _, _, err := track.ReadRTP(); err != nil {
					return
				}
			}
		})
		go func() {
			for {
				packets, _, err := transceiver.Receiver().ReadRTCP()
				if err != nil {
					return
				}
				for _, p := range packets {
					if report, ok := p.(*rtcp.SenderReport); ok {
						reports <- report
					}
				}
			}
		}()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(context.Background()) //nolint:errcheck // the test is over
	var sent *rtcp.SenderReport
	for _, sender := range publisher.session.PeerConnection().GetSenders() {
		sent = &rtcp.SenderReport{
			SSRC: uint32(sender.GetParameters().Encodings[0].SSRC), NTPTime: 0x1234567890abcdef, RTPTime: 4711, PacketCount: 1,
		}
	}
	again := time.NewTicker(50 * time.Millisecond) // pion sends its own in between
	defer again.Stop()
	for {
		select {
		case <-again.C:
			if err := publisher.session.PeerConnection().WriteRTCP([]rtcp.Packet{sent}); err != nil {
				t.Fatal(err)
			}
		case got := <-reports:
			if got.NTPTime == sent.NTPTime && got.RTPTime == sent.RTPTime && got.SSRC != sent.SSRC && got.PacketCount > 1 {
				return
			}
		case <-ctx.Done():
			t.Fatal("the report did not come through")
		}
	}
}
