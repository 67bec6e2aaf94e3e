package media

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/protocol/extension"
	"github.com/pion/dtls/v3/pkg/protocol/handshake"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
	"github.com/pion/transport/v4/packetio"
	"github.com/pion/webrtc/v4"
)

// far is where the far end of the connections below is.
var far = netip.MustParseAddrPort("127.0.0.1:9")

// shortWay makes a connection with the short way, whose source 1 goes to a sink, and what its far end encrypts by.
func shortWay(t *testing.T, sink Sink) (c *Conn, port *Port, out *srtp.Context) {
	t.Helper()
	keys, salt, profile := make([]byte, 16), make([]byte, 12), srtp.ProtectionProfileAeadAes128Gcm
	in, err := srtp.CreateContext(keys, salt, profile, srtp.SRTPReplayProtection(replayWindow))
	if err != nil {
		t.Fatal(err)
	}
	if out, err = srtp.CreateContext(keys, salt, profile); err != nil {
		t.Fatal(err)
	}
	transport := sharedPort(t)
	port = transport.Ports[0]
	c = NewConn(transport, nil)
	d := &direct{conn: c, in: in, sources: map[uint32]*source{}}
	d.sources[1] = &source{conn: c, ssrc: 1, resolved: true, track: bareTrack(c, 1, "", sink)}
	d.move(&route{via: port, remote: far})
	c.settle(d)
	return c, port, out
}

// A source whose first packets pion has taken, with a rollover counter that only pion knows, stays pion's: its packets go on as
// they came.
func TestSourceThatPionKnows(t *testing.T) {
	c, port, out := shortWay(t, &taker{})
	out.SetROC(2, 1)
	raw := rawPacket(t, 96, 7, 0x10, 0)
	raw[11] = 2
	encrypted, err := out.EncryptRTP(nil, raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	given := bytes.Clone(encrypted)
	if port.open(far, given, nil) || !bytes.Equal(given, encrypted) {
		t.Error("pion does not get the packet as it came")
	}
	if stats := c.Stats(); stats != (ConnStats{}) {
		t.Errorf("%+v", stats)
	}
}

// Who has no keys makes nothing grow.
func TestForgedHeaders(t *testing.T) {
	c, port, _ := shortWay(t, &taker{})
	h := rtp.Header{Version: 2, PayloadType: 96}
	for range 1000 {
		h.Extension, h.ExtensionProfile = true, rtp.ExtensionProfileTwoByte
		h.Extensions = append(h.Extensions, rtp.Extension{})
	}
	raw := []byte{0x90, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0x10, 0x00, 1000 >> 8, 1000 & 0xff}
	for range 2000 {
		raw = append(raw, 1, 0) // an extension of no bytes
	}
	port.open(far, append(raw, make([]byte, 32)...), nil)
	if got := c.Stats().Forged; got != 1 {
		t.Fatalf("%d forged", got)
	}
	if n := cap(c.direct.Load().header.Extensions); n > 0 {
		t.Errorf("room for %d extensions is kept", n)
	}
}

// What has come by the short way does not come again by pion's, which does not know that it is a replay: not from another of the
// far end's addresses, and not when it is so old that it looks like a new beginning.
func TestReplayByPionsWay(t *testing.T) {
	k := &taker{}
	c, port, out := shortWay(t, k)
	old := rawPacket(t, 96, 100, 0x10, 0)
	for _, seq := range []uint16{100, 101, 20_000, 20_001} {
		encrypted, err := out.EncryptRTP(nil, rawPacket(t, 96, seq, 0x10, 0), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !port.open(far, encrypted, nil) {
			t.Fatal("a packet is not taken")
		}
	}
	came := len(k.payloads)
	if _, err := c.tapFor(packetio.RTPBufferPacket, 1).Write(old); err != nil { // as pion writes it when it has opened it
		t.Fatal(err)
	}
	if n, stats := len(k.payloads), c.Stats(); came != 4 || n != came || stats != (ConnStats{}) {
		t.Errorf("%d packets went on, then %d; %+v", came, n-came, stats)
	}
}

// A socket of the connection's own takes what the far end sends from wherever it sends: there is one window for replays.
func TestFarEndElsewhere(t *testing.T) {
	k := &taker{}
	c, _, out := shortWay(t, k)
	s := &socket{conn: c}
	encrypted, err := out.EncryptRTP(nil, rawPacket(t, 96, 7, 0x10, 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"127.0.0.1:9", "127.0.0.2:9", "[::1]:10"} {
		if !s.open(netip.MustParseAddrPort(from), bytes.Clone(encrypted), nil) {
			t.Errorf("a packet from %s goes to pion", from)
		}
	}
	if forged := c.Stats().Forged; len(k.payloads) != 1 || forged != 2 {
		t.Errorf("%d packets went on, %d are counted", len(k.payloads), forged)
	}
}

// slowWriter is pion's way, on which a packet is.
type slowWriter struct{ began, end chan struct{} }

func (w slowWriter) WriteRTP(*rtp.Header, []byte) (int, error) {
	close(w.began)
	<-w.end
	return 1, nil
}
func (w slowWriter) Write([]byte) (int, error) { return 0, nil }

// The short way is not made while a packet is about to go pion's: pion makes its own contexts of the same keys next, and each nonce
// is to be used once.
func TestSettlesBetweenPackets(t *testing.T) {
	c := NewConn(Transport{}, nil)
	s := c.NewSender(SenderOptions{})
	w := slowWriter{make(chan struct{}), make(chan struct{})}
	s.writer, s.ssrc = w, 1
	var group sync.WaitGroup
	group.Go(func() { s.Packet(testPacket(t, 1, 1, 1)) })
	<-w.began
	settled := make(chan struct{})
	group.Go(func() {
		c.settle(&direct{conn: c})
		close(settled)
	})
	for waits := false; !waits; runtime.Gosched() {
		select {
		case <-settled:
			t.Error("the short way is there while a packet goes pion's")
			waits = true
		default:
			if waits = !c.settling.TryRLock(); !waits {
				c.settling.RUnlock()
			}
		}
	}
	close(w.end)
	group.Wait()
	if c.direct.Load() == nil {
		t.Error("there is no short way")
	}
}

// A path that has been closed stays closed, whoever hears late of a better one.
func TestPathIsClosedForGood(t *testing.T) {
	c, port, _ := shortWay(t, &taker{})
	d := c.direct.Load()
	d.move(nil)
	d.move(&route{via: port, remote: far})
	if len(port.conns) > 0 || d.path.Load() != nil {
		t.Errorf("it is open again: the port knows %d far ends", len(port.conns))
	}
}

// While ICE looks for another path, the one that there was stays, and so does the connection.
func TestNoPathAtPresent(t *testing.T) {
	c, _, _ := shortWay(t, &taker{})
	pc, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.GracefulClose()
	c.pc = pc
	c.follow(pc.SCTP().Transport().ICETransport())
	if state := pc.ConnectionState(); state == webrtc.PeerConnectionStateClosed || c.direct.Load().path.Load() == nil {
		t.Errorf("the connection is %s", state)
	}
}

// The secrets of a handshake are kept until it is decided what they are used for, and no longer.
func TestSecretsAreForgotten(t *testing.T) {
	suite := uint16(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
	k := &keys{}
	k.hello(handshake.MessageServerHello{CipherSuiteID: &suite, Extensions: []extension.Extension{
		&extension.UseSRTP{ProtectionProfiles: []extension.SRTPProtectionProfile{dtls.SRTP_AEAD_AES_128_GCM}},
	}})
	secret := bytes.Repeat([]byte{7}, 48)
	line := "CLIENT_RANDOM " + hex.EncodeToString(make([]byte, 32)) + " " + hex.EncodeToString(secret) + "\n"
	if _, err := k.Write([]byte(line)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.contexts(); err != nil {
		t.Fatal(err)
	}
	kept := k.masterSecret
	pc, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.GracefulClose()
	NewConn(Transport{}, nil).decide(k, pc.SCTP().Transport().ICETransport())
	if k.masterSecret != nil || slices.Contains(kept, 7) {
		t.Error("the secret is still there")
	}
	if _, _, err := k.contexts(); !errors.Is(err, errNoKeys) {
		t.Errorf("contexts: %v", err)
	}
}

// What is sent again without RTX has the sequence number, and so the nonce, that it had: it must be the same to the bit.
func TestSentAgainAsItWas(t *testing.T) {
	var out recorder
	s := NewConn(Transport{}, nil).NewSender(SenderOptions{Extensions: map[uint8]string{3: AbsCaptureTime}})
	s.writer, s.ssrc, s.congestion = &out, 1, 4
	s.negotiated = []webrtc.RTPHeaderExtensionParameter{{URI: AbsCaptureTime, ID: 5}}
	s.mapExtensionsLocked()
	marshal := func(i int) []byte {
		return must((&rtp.Packet{Header: out.headers[i], Payload: out.payloads[i]}).Marshal())
	}
	sent := map[uint16][]byte{}
	send := func(seq uint16) {
		h := rtp.Header{Version: 2, SequenceNumber: seq, Timestamp: 1}
		if err := h.SetExtension(3, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		s.Packet(must(NewPacket(h, []byte{1, byte(seq)})))
		sent[seq] = marshal(len(out.headers) - 1)
	}
	for seq := range uint16(400) {
		send(seq)
	}
	ask := func(seq uint16) (answers int) {
		out.headers, out.payloads = nil, nil
		s.receiveRTCP(1, &rtcp.TransportLayerNack{MediaSSRC: 1, Nacks: []rtcp.NackPair{{PacketID: seq}}})
		for i := range out.headers {
			if again := marshal(i); !bytes.Equal(again, sent[seq]) {
				t.Errorf("sent % x, and again % x", sent[seq], again)
			}
		}
		return len(out.headers)
	}
	if n := ask(390); n != 1 {
		t.Errorf("%d answers", n)
	}
	if n := ask(100); n != 0 { // nobody knows its number any more
		t.Errorf("%d answers long after", n)
	}
	s.SetExtensions(map[uint8]string{7: AbsCaptureTime})
	if n := ask(391); n != 0 {
		t.Errorf("%d answers by other ids", n)
	}
}
