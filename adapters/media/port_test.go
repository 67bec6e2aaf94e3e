package media

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/logging"
	"github.com/pion/srtp/v3"
	"github.com/pion/webrtc/v4"
)

// sharedPort is a server's transport: one port for all connections.
func sharedPort(t *testing.T) Transport {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	port := NewPort(socket)
	mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{
		UDPConn: port, Logger: (&logging.DefaultLoggerFactory{Writer: io.Discard}).NewLogger("ice"),
	})
	t.Cleanup(func() { _ = mux.Close() })
	return Transport{UDPMux: mux, Ports: []*Port{port}, Loopback: true}
}

func newVideo(t *testing.T, c *Conn, pc *webrtc.PeerConnection) *Sender {
	t.Helper()
	video := c.NewSender(SenderOptions{
		Kind: webrtc.RTPCodecTypeVideo, Codec: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000},
		ID: "video", StreamID: "test",
	})
	if _, err := pc.AddTrack(video); err != nil {
		t.Fatal(err)
	}
	return video
}

// passes sends packets until enough have come.
func passes(t *testing.T, from *Sender, seq *int, held *Conn, came counter) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for got := 0; got < 40; {
		if time.Now().After(deadline) {
			t.Fatalf("%d packets came through", got)
		}
		if held != nil {
			held.Hold()
		}
		for range 4 {
			p := videoPacket(t, *seq)
			p.Header.SequenceNumber = uint16(65500 + *seq)
			*seq++
			from.Packet(p)
		}
		if held != nil {
			held.Release()
		}
		for timeout := time.After(100 * time.Millisecond); ; {
			select {
			case <-came:
				got++
				continue
			case <-timeout:
			}
			break
		}
	}
}

// Connections that share a port have the short way in both directions, follow a far end that moves, and leave nothing behind.
func TestSharedPort(t *testing.T) {
	transport := sharedPort(t)
	active := func(sdp string) string { return strings.Replace(sdp, "a=setup:actpass", "a=setup:active", 1) }

	in := make(counter, 5000)
	publisher, ingest := NewConn(Transport{Loopback: true}, nil), NewConn(transport, func(*Track) Sink { return in })
	publisherPC, err := publisher.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer publisherPC.GracefulClose()
	ingestPC, err := ingest.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer ingestPC.GracefulClose()
	video := newVideo(t, publisher, publisherPC)
	connect(t, publisherPC, ingestPC, active)
	seq := 0
	passes(t, video, &seq, nil, in)

	out := make(counter, 5000)
	player, egress := NewConn(Transport{Loopback: true}, func(*Track) Sink { return out }), NewConn(transport, nil)
	playerPC, err := player.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer playerPC.GracefulClose()
	if _, err := playerPC.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo,
		webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
		t.Fatal(err)
	}
	egressPC, err := egress.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer egressPC.GracefulClose()
	sender := newVideo(t, egress, egressPC)
	connect(t, playerPC, egressPC, active)
	seq = 0
	passes(t, sender, &seq, egress, out)

	port := transport.Ports[0]
	for name, c := range map[string]*Conn{"ingest": ingest, "egress": egress} {
		if c.direct.Load() == nil {
			t.Errorf("%s has no short way", name)
		}
	}
	remotes := func() int {
		port.mu.RLock()
		defer port.mu.RUnlock()
		return len(port.conns)
	}
	if n := remotes(); n != 2 {
		t.Errorf("the port knows %d far ends", n)
	}

	// With new candidates, the far end has another address.
	before := *egress.direct.Load().path.Load()
	negotiate(t, playerPC, egressPC, &webrtc.OfferOptions{ICERestart: true}, nil)
	for deadline := time.Now().Add(10 * time.Second); egress.direct.Load().path.Load().remote == before.remote; {
		if time.Now().After(deadline) {
			t.Fatal("it does not follow")
		}
		time.Sleep(10 * time.Millisecond)
	}
	passes(t, sender, &seq, egress, out)

	_ = ingestPC.GracefulClose()
	_ = egressPC.GracefulClose()
	if n := remotes(); n != 0 {
		t.Errorf("the port knows %d far ends at the end", n)
	}
	sender.Packet(videoPacket(t, 0)) // is lost, and hurts nobody
}

// What came before, or was never sent by who has the keys, goes nowhere, and is counted.
func TestReplays(t *testing.T) {
	transport := sharedPort(t)
	port, far := transport.Ports[0], netip.MustParseAddrPort("127.0.0.1:9")
	keys, salt := make([]byte, 16), make([]byte, 12)
	in, err := srtp.CreateContext(keys, salt, srtp.ProtectionProfileAeadAes128Gcm, srtp.SRTPReplayProtection(replayWindow))
	if err != nil {
		t.Fatal(err)
	}
	out, err := srtp.CreateContext(keys, salt, srtp.ProtectionProfileAeadAes128Gcm)
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(transport, nil)
	k := &taker{}
	d := &direct{conn: c, in: in, sources: map[uint32]*source{}}
	d.sources[1] = &source{conn: c, ssrc: 1, resolved: true, track: bareTrack(c, 1, "", k)}
	d.move(&route{via: port, remote: far})
	c.direct.Store(d)
	var packets [][]byte
	for i := range 100 {
		encrypted, err := out.EncryptRTP(nil, rawPacket(t, 96, uint16(i), 0x10, 0), nil)
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, encrypted)
		if !port.open(far, append([]byte{}, encrypted...), nil) {
			t.Fatal("a packet is not taken")
		}
	}
	for _, encrypted := range packets {
		if !port.open(far, append([]byte{}, encrypted...), nil) {
			t.Fatal("a replay goes on to others")
		}
		forged := append([]byte{}, encrypted...)
		forged[len(forged)-1]++
		port.open(far, forged, nil)
	}
	// Of a thousand sources more, some are remembered and the others counted.
	for i := range 1000 {
		raw := rawPacket(t, 96, 7, 0x10, 0)
		binary.BigEndian.PutUint32(raw[8:], uint32(i+2))
		encrypted, err := out.EncryptRTP(nil, raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		port.open(far, encrypted, nil)
	}
	if n, unknown := len(d.sources), c.Stats().Unknown; n != maxSources || unknown != 1000 {
		t.Errorf("%d sources are remembered, %d packets counted", n, unknown)
	}
	if port.open(netip.MustParseAddrPort("127.0.0.1:10"), packets[0], nil) {
		t.Error("a packet is taken from a stranger")
	}
	if got := c.Stats().Forged; got != 200 {
		t.Errorf("%d are counted", got)
	}
	if len(k.payloads) != 100 {
		t.Errorf("%d packets went on", len(k.payloads))
	}
}

// nowhere is where pion would write.
type nowhere struct{ webrtc.TrackLocalWriter }

// A packet that goes out by a shared port makes no garbage.
func TestSendingAllocatesNothing(t *testing.T) {
	transport := sharedPort(t)
	out, err := srtp.CreateContext(make([]byte, 16), make([]byte, 12), srtp.ProtectionProfileAeadAes128Gcm)
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(transport, nil)
	d := &direct{conn: c, out: out}
	d.move(&route{via: transport.Ports[0], remote: netip.MustParseAddrPort("127.0.0.1:9")})
	c.direct.Store(d)
	s := c.NewSender(SenderOptions{Kind: webrtc.RTPCodecTypeVideo, History: NewHistory(1), Congestion: true})
	s.writer, s.ssrc, s.payloadType, s.congestion, s.bound = nowhere{}, 1, 96, 4, true
	p := videoPacket(t, 0)
	frame := func() {
		c.Hold()
		for range 4 {
			p.Header.SequenceNumber++
			s.Packet(p)
		}
		c.Release()
	}
	for range 100 {
		frame()
	}
	if n := testing.AllocsPerRun(500, frame); n >= 1 {
		t.Errorf("%v allocations for a frame", n)
	}
	if stats := s.Stats(); stats.Errors > 0 || stats.Packets == 0 {
		t.Errorf("%+v", stats)
	}
}
