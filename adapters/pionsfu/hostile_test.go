package pionsfu

import (
	"crypto/rand"
	"net"
	"testing"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// unharmed takes packets of a viewer who has done nothing wrong: none is missing.
func unharmed(t *testing.T, p *rawPlayer, packets int) {
	t.Helper()
	last := p.next(t).SequenceNumber
	for range packets {
		now := p.next(t).SequenceNumber
		if now != last+1 {
			t.Fatalf("a viewer who does nothing has %d after %d", now, last)
		}
		last = now
	}
}

// Whatever strangers send to the media port, and however much, viewers get their packets, and nothing is kept of it.
func TestGarbageOnThePort(t *testing.T) {
	t.Parallel()
	s := run(t, Config{})
	publisher := s.publishRaw(t, "stream", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	player := s.playRaw(t, "stream", webrtc.RTPCodecTypeVideo)
	player.next(t)
	stranger, err := net.Dial("udp4", s.UDPAddrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	begins := [][]byte{
		{22, 254, 253, 0, 0}, // a DTLS handshake record (RFC 6347, section 4.1)
		{20, 254, 253},
		{23, 254, 253, 0, 1},
		{0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42}, // a STUN binding request (RFC 8489, section 5)
		{0, 1, 255, 255, 0x21, 0x12, 0xa4, 0x42},
		{0x80, 96, 0, 1},
		{0x90, 96, 0, 1},
		{0x80, 200, 0, 6},
		{},
		{64, 1},
	}
	for i := range 5000 {
		b := make([]byte, 1+i%1400)
		_, _ = rand.Read(b)
		copy(b, begins[i%len(begins)])
		_, _ = stranger.Write(b)
		if i%100 == 0 {
			player.next(t) // as fast as the machine is
		}
	}
	unharmed(t, player, 300)
	s.wait(t, "two sessions", func(r *registry) bool { return len(r.sessions) == 2 })
}

// A viewer that asks for everything all the time gets it once more at most, and the publisher hears of one request a second.
func TestFeedbackFlood(t *testing.T) {
	t.Parallel()
	s := run(t, Config{})
	publisher := s.publishRaw(t, "stream", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	flooding := s.playRaw(t, "stream", webrtc.RTPCodecTypeVideo)
	other := s.playRaw(t, "stream", webrtc.RTPCodecTypeVideo)
	other.next(t)
	began := time.Now()
	pc := flooding.session.PeerConnection()
	for range 300 {
		p := flooding.next(t)
		var pairs []rtcp.NackPair
		for i := range uint16(60) {
			pairs = append(pairs, rtcp.NackPair{PacketID: p.SequenceNumber - 17*i, LostPackets: 0xffff})
		}
		for range 10 {
			_ = pc.WriteRTCP([]rtcp.Packet{
				&rtcp.TransportLayerNack{MediaSSRC: p.SSRC, Nacks: pairs},
				&rtcp.PictureLossIndication{MediaSSRC: p.SSRC},
				&rtcp.FullIntraRequest{MediaSSRC: p.SSRC, FIR: []rtcp.FIREntry{{SSRC: p.SSRC}}},
			})
		}
	}
	unharmed(t, other, 300)
	totals, _, _, _ := s.registry.totals()
	if totals.nacksIn == 0 || totals.plisIn == 0 {
		t.Errorf("nothing came: %+v", totals)
	}
	// What may be in hand, of packets of 100 bytes, and as much as was sent.
	if most := uint64(512<<10/100) + totals.packetsOut; totals.resent > most {
		t.Errorf("%d packets were sent again; at most %d should be", totals.resent, most)
	}
	if most := 3 + uint64(time.Since(began)/time.Second); totals.plisOut > most {
		t.Errorf("the publisher was asked %d times in %s", totals.plisOut, time.Since(began))
	}
}

// A viewer that never says a word about what it gets, gets it.
func TestViewerWithoutReports(t *testing.T) {
	t.Parallel()
	s := run(t, Config{})
	publisher := s.publishRaw(t, "stream", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	engine := &webrtc.MediaEngine{}
	if err := media.RegisterCodecs(engine); err != nil {
		t.Fatal(err)
	}
	silent := s.clients(t)
	silent.Client.NewPeerConnection = func(c webrtc.Configuration) (*webrtc.PeerConnection, error) {
		var settings webrtc.SettingEngine
		settings.SetIncludeLoopbackCandidate(true)
		return webrtc.NewAPI(webrtc.WithMediaEngine(engine), webrtc.WithSettingEngine(settings),
			webrtc.WithInterceptorRegistry(&interceptor.Registry{})).NewPeerConnection(c)
	}
	packets := make(chan *rtp.Packet, 10000)
	session, err := silent.Client.Play(t.Context(), silent.Adapter.Egress("stream"), func(pc *webrtc.PeerConnection) error {
		pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
			for {
				packet, _, err := track.ReadRTP()
				if err != nil {
					return
				}
				packets <- packet
			}
		})
		_, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo,
			webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &rawPlayer{session: session, packets: packets}
	unharmed(t, p, 1000)
	if err := session.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A publisher that calls what it sends by names of layers which it did not declare is heard for those that it did.
func TestPublisherLiesAboutLayers(t *testing.T) {
	t.Parallel()
	s := run(t, Config{})
	p := s.simulcast(t, "simulcast", "l", "h")
	player := s.playRaw(t, "simulcast", webrtc.RTPCodecTypeVideo)
	l := &layered{t: t, p: p}
	l.until(player, "h")
	var publisher *session
	s.registry.mu.Lock()
	for _, session := range s.registry.sessions {
		if session.publish {
			publisher = session
		}
	}
	s.registry.mu.Unlock()
	lie := p.tracks[0]
	for i := range 300 {
		h := rtp.Header{Version: 2, Marker: true, SequenceNumber: uint16(i), Timestamp: uint32(i)}
		_ = h.SetExtension(p.ids[sdp.SDESMidURI], []byte(p.mid))
		_ = h.SetExtension(p.ids[sdp.SDESRTPStreamIDURI], []byte("z"))
		if err := lie.WriteRTP(&rtp.Packet{Header: h, Payload: make([]byte, 100)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		l.next(player)
	}
	if n := len(publisher.conn.Tracks()); n > 16 {
		t.Errorf("%d tracks are kept", n)
	}
	streams, _ := s.registry.snapshot()
	if len(streams) != 1 || len(streams[0].Tracks) != 2 {
		t.Errorf("reported is %+v", streams)
	}
}
