package media

import (
	"encoding/binary"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/sdp/v3"
	"github.com/pion/transport/v4/packetio"
	"github.com/pion/webrtc/v4"
)

// taker keeps the sequence numbers and payload types it is given.
type taker struct {
	sequences []uint16
	types     []uint8
	payloads  [][]byte
}

func (k *taker) Packet(p *Packet) {
	k.sequences = append(k.sequences, p.Header.SequenceNumber)
	k.types = append(k.types, p.Header.PayloadType)
	k.payloads = append(k.payloads, slices.Clone(p.Payload))
}
func (k *taker) SenderReport(SenderReport) {}

func bareTrack(c *Conn, ssrc uint32, rid string, sink Sink) *Track {
	codec := func(mime string, pt webrtc.PayloadType, fmtp string) webrtc.RTPCodecParameters {
		return webrtc.RTPCodecParameters{PayloadType: pt, RTPCodecCapability: webrtc.RTPCodecCapability{
			MimeType: mime, ClockRate: 90000, SDPFmtpLine: fmtp, RTCPFeedback: []webrtc.RTCPFeedback{{Type: webrtc.TypeRTCPFBNACK}},
		}}
	}
	parameters := webrtc.RTPParameters{Codecs: []webrtc.RTPCodecParameters{
		codec(webrtc.MimeTypeVP8, 96, ""), codec(webrtc.MimeTypeRTX, 97, "apt=96"),
		codec(webrtc.MimeTypeVP9, 98, ""), codec(webrtc.MimeTypeRTX, 99, "apt=98"),
	}}
	t := newTrack(c, ssrc, webrtc.RTPCodecTypeVideo, "0", parameters.Codecs[0], parameters)
	t.rid, t.sink = rid, sink
	c.tracks[ssrc] = t
	return t
}

func rawPacket(t *testing.T, payloadType uint8, seq uint16, payload ...byte) []byte {
	t.Helper()
	raw, err := (&rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: payloadType, SequenceNumber: seq, SSRC: 1}, Payload: payload}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A publisher probes for bandwidth by RTX of any of its streams, also of one that nobody takes.
func TestRTXOfIgnoredTrack(t *testing.T) {
	c := NewConn(Transport{}, nil)
	ignored := bareTrack(c, 1, "", nil)
	s := &source{conn: c, ssrc: 2, resolved: true, rtx: true, mid: "0"}
	s.receive(rawPacket(t, 97, 1, 0, 7, 0x10, 0))
	if n := ignored.Stats().Packets; n != 0 {
		t.Errorf("%d packets of an ignored track", n)
	}
}

// Without ssrc-groups, as of simulcast, an RTX stream belongs to the layer it names, or the one that asked.
func TestRTXFindsItsLayer(t *testing.T) {
	c := NewConn(Transport{}, nil)
	var low, high taker
	bareTrack(c, 1, "l", &low)
	early := &source{conn: c, ssrc: 3, resolved: true, rtx: true, mid: "0"}
	if early.receive(rawPacket(t, 97, 1, 0, 11, 0x10, 1)); early.track != nil {
		t.Error("the first layer gets the repairs of one that has not come yet")
	}
	bareTrack(c, 2, "h", &high)
	lowSource := &source{conn: c, ssrc: 1, resolved: true, track: c.tracks[1]}
	highSource := &source{conn: c, ssrc: 2, resolved: true, track: c.tracks[2]}
	for _, seq := range []uint16{10, 11, 13} {
		lowSource.receive(rawPacket(t, 96, seq, 0x10, 1))
	}
	for _, seq := range []uint16{10, 11, 12, 13} {
		highSource.receive(rawPacket(t, 96, seq, 0x10, 1))
	}
	s := &source{conn: c, ssrc: 3, resolved: true, rtx: true, mid: "0", repairID: 4}
	s.receive(rawPacket(t, 97, 1, 0, 11, 0x10, 1)) // nobody asked: a probe that tells nothing
	if s.track != nil {
		t.Fatal("an RTX stream was given to a layer by chance")
	}
	s.receive(rawPacket(t, 97, 2, 0, 12, 0x10, 1))
	if s.track != c.tracks[1] {
		t.Error("the layer that misses the packet does not get the repair")
	}
	if d := cmp.Diff([]uint16{10, 11, 13, 12}, low.sequences); d != "" {
		t.Errorf("lower layer (-want +got)\n%s", d)
	}

	named := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 97, SequenceNumber: 9}, Payload: []byte{0, 14, 0x10, 1}}
	if err := named.SetExtension(4, []byte("h")); err != nil {
		t.Fatal(err)
	}
	raw, err := named.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	s = &source{conn: c, ssrc: 4, resolved: true, rtx: true, mid: "0", repairID: 4}
	s.receive(raw)
	if d := cmp.Diff([]uint16{10, 11, 12, 13, 14}, high.sequences); d != "" {
		t.Errorf("upper layer (-want +got)\n%s", d)
	}
}

// What was lost before a change of codec is repaired as what it was, and does not change the codec back.
func TestRepairAfterCodecSwitch(t *testing.T) {
	c := NewConn(Transport{}, nil)
	var got taker
	track := bareTrack(c, 1, "", &got)
	s := &source{conn: c, ssrc: 1, resolved: true, track: track}
	repair := &source{conn: c, ssrc: 2, resolved: true, rtx: true, mid: "0"}
	s.receive(rawPacket(t, 96, 10, 0x10, 1))
	s.receive(rawPacket(t, 98, 13, 0x08))
	repair.receive(rawPacket(t, 97, 1, 0, 11, 0x10, 1))
	repair.receive(rawPacket(t, 97, 2, 0, 14, 0x10, 1)) // newer than any, and yet no word from the publisher's encoder
	s.receive(rawPacket(t, 96, 12, 0x10, 1))            // without RTX it comes as it was
	if mime := track.Codec().MimeType; mime != webrtc.MimeTypeVP9 {
		t.Errorf("codec %s, want VP9", mime)
	}
	s.receive(rawPacket(t, 98, 15, 0x08))
	if d := cmp.Diff([]uint8{96, 98, 96, 96, 96, 98}, got.types); d != "" {
		t.Errorf("payload types (-want +got)\n%s", d)
	}
	// What is not understood is ignored, but it has come.
	s.receive(rawPacket(t, 50, 16, 1))
	s.receive(rawPacket(t, 98, 17, 0x08))
	if lost := track.Stats().Lost; lost != 0 || len(got.types) != 7 {
		t.Errorf("%d lost and %d taken, want 0 and 7", lost, len(got.types))
	}
}

func TestMalformedPaddingIsDropped(t *testing.T) {
	c := NewConn(Transport{}, nil)
	var got taker
	s := &source{conn: c, ssrc: 1, resolved: true, track: bareTrack(c, 1, "", &got), twccID: 3}
	s.receive(rawPacket(t, 96, 10, 0x10, 1))
	bad := rawPacket(t, 96, 11, 0x10, 0)
	bad[0] |= 0x20 // padding, of length 0
	s.receive(bad)
	if d := cmp.Diff([]uint16{10}, got.sequences); d != "" {
		t.Errorf("taken (-want +got)\n%s", d)
	}
}

func TestReceiverReport(t *testing.T) {
	c := NewConn(Transport{}, nil)
	track := bareTrack(c, 1, "", &taker{})
	now := time.Unix(1000, 0)
	track.reportDueLocked(now)
	report := func(first, last uint16) rtcp.ReceptionReport {
		for seq := first; seq != last+1; seq++ {
			if seq%4 != 0 {
				track.losses.arrived(seq, now, false)
			}
		}
		now = now.Add(reportInterval)
		return track.reportDueLocked(now).Reports[0]
	}
	// The sender report came after the packet with which the receiver report is sent.
	track.heard, track.heardAt = SenderReport{NTP: 1 << 32}, now.Add(reportInterval+time.Millisecond)
	got := []rtcp.ReceptionReport{report(65533, 65535), report(0, 63), report(30001, 30203)}
	want := []rtcp.ReceptionReport{
		{SSRC: 1, LastSequenceNumber: 65535, LastSenderReport: 1 << 16},
		{SSRC: 1, LastSequenceNumber: 1<<16 | 63, TotalLost: 16, FractionLost: 64, LastSenderReport: 1 << 16, Delay: 65470},
		{SSRC: 1, LastSequenceNumber: 30203, TotalLost: 66, FractionLost: 63, LastSenderReport: 1 << 16, Delay: 131006},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("reports (-want +got)\n%s", d)
	}
}

// Requests for a key frame: the first at once, another soon, and then one a second, however many are asked for.
func TestKeyFrameRequestsAreSpaced(t *testing.T) {
	track := bareTrack(NewConn(Transport{}, nil), 1, "", &taker{})
	begun := time.Now()
	var sent []time.Duration
	for at := time.Duration(0); at < 4*time.Second; at += 10 * time.Millisecond {
		track.mu.Lock()
		track.wanted = true
		if track.keyFrameDueLocked(begun.Add(at)) {
			sent = append(sent, at)
		}
		track.mu.Unlock()
	}
	want := []time.Duration{0, keyFrameGap, keyFrameInterval, 2 * keyFrameInterval, 3 * keyFrameInterval}
	if !slices.Equal(sent, want) {
		t.Errorf("sent after %s; want %s", sent, want)
	}
}

// Sound goes on while the picture stands still: what the picture lost is asked for again, and so is a key frame.
func TestSilentVideoIsReminded(t *testing.T) {
	c := NewConn(Transport{}, nil)
	track := bareTrack(c, 1, "", &taker{})
	video := &source{conn: c, ssrc: 1, resolved: true, track: track}
	video.receive(rawPacket(t, 96, 10, 0x10, 1))
	video.receive(rawPacket(t, 96, 12, 0x10, 1))
	track.RequestKeyFrame()
	now := time.Now()
	for range 100 {
		now = now.Add(20 * time.Millisecond)
		c.sweep(now, nil)
	}
	stats := track.Stats()
	if stats.NACKs < 3 || stats.PLIs < 2 || stats.PLIs > 4 {
		t.Errorf("%d NACKs and %d key frame requests in two seconds", stats.NACKs, stats.PLIs)
	}
}

func TestKeyFramesAreCountedByFrame(t *testing.T) {
	c := NewConn(Transport{}, nil)
	track := bareTrack(c, 1, "", &taker{})
	s := &source{conn: c, ssrc: 1, resolved: true, track: track}
	for seq := range uint16(3) {
		s.receive(rawPacket(t, 96, seq, 0x10, 0)) // partitions of one frame
	}
	if n := track.Stats().KeyFrames; n != 1 {
		t.Errorf("%d key frames, want 1", n)
	}
}

// recorder keeps what a Sender writes.
type recorder struct {
	headers  []rtp.Header
	payloads [][]byte
	down     bool
}

func (r *recorder) WriteRTP(h *rtp.Header, payload []byte) (int, error) {
	if r.down {
		return 0, nil // as pion does before the connection is up
	}
	r.headers, r.payloads = append(r.headers, *h), append(r.payloads, slices.Clone(payload))
	return 12 + len(payload), nil
}
func (r *recorder) Write([]byte) (int, error) { return 0, nil }

// Long after a splice a NACK still gets the packet that was sent under the number.
func TestResendLongAfterSplice(t *testing.T) {
	var out recorder
	s := NewConn(Transport{}, nil).NewSender(SenderOptions{})
	s.writer, s.ssrc = &out, 1
	payload := make([]byte, 4)
	send := func(i uint32) {
		binary.BigEndian.PutUint32(payload, i)
		s.Packet(testPacket(t, uint16(i), i, payload...))
	}
	i := uint32(0)
	for ; i < 100; i++ {
		send(i)
	}
	s.Splice()
	i += 7
	for ; i < 70000; i++ {
		send(i)
		if i%1000 != 0 {
			continue
		}
		out.headers, out.payloads = out.headers[:0], out.payloads[:0]
		seq := uint16(i - 7 - 50) // as sent
		s.receiveRTCP(1, &rtcp.TransportLayerNack{MediaSSRC: 1, Nacks: []rtcp.NackPair{{PacketID: seq}}})
		if len(out.payloads) != 1 {
			t.Fatalf("packet %d: %d answers to a NACK", i, len(out.payloads))
		}
		if got := binary.BigEndian.Uint32(out.payloads[0]); got != i-50 || out.headers[0].SequenceNumber != seq {
			t.Fatalf("packet %d: number %d carries %d, want %d", i, out.headers[0].SequenceNumber, got, i-50)
		}
	}
}

// So many splices that the oldest are forgotten: rather no answer than a wrong one.
func TestResendBeforeForgottenSplice(t *testing.T) {
	var out recorder
	s := NewConn(Transport{}, nil).NewSender(SenderOptions{})
	s.writer, s.ssrc = &out, 1
	sent := map[uint16]byte{}
	for i := range uint16(60) {
		if i%5 == 0 {
			s.Splice()
		}
		s.Packet(testPacket(t, i/5*10+i%5, uint32(i), byte(i)))
		sent[out.headers[i].SequenceNumber] = byte(i)
	}
	out.headers, out.payloads = nil, nil
	for seq := range sent {
		s.receiveRTCP(1, &rtcp.TransportLayerNack{MediaSSRC: 1, Nacks: []rtcp.NackPair{{PacketID: seq}}})
	}
	if len(out.headers) == 0 {
		t.Fatal("no NACK was answered")
	}
	for i, h := range out.headers {
		if out.payloads[i][0] != sent[h.SequenceNumber] {
			t.Errorf("number %d carries %d, want %d", h.SequenceNumber, out.payloads[i][0], sent[h.SequenceNumber])
		}
	}
}

func TestSenderCountsWhatGoesOut(t *testing.T) {
	out := recorder{down: true}
	s := NewConn(Transport{}, nil).NewSender(SenderOptions{})
	s.writer, s.ssrc = &out, 1
	s.Packet(testPacket(t, 1, 1, 1))
	out.down = false
	s.Packet(testPacket(t, 2, 1, 1))
	if stats := s.Stats(); stats.Packets != 1 || stats.Bytes != 1 {
		t.Errorf("%d packets and %d bytes, want one of each", stats.Packets, stats.Bytes)
	}
}

func TestHistoryOutOfOrder(t *testing.T) {
	type packet struct {
		seq   uint16
		stamp uint32
		key   bool
	}
	for _, tt := range []struct {
		name    string
		packets []packet
		want    uint64
	}{
		{"begins with packets that tell nothing", []packet{{1, 1, false}, {2, 2, false}, {3, 2, true}}, 1},
		{"a late packet comes in between", []packet{{1, 1, false}, {3, 2, false}, {2, 1, false}, {4, 2, true}}, 1},
		{"the first packet comes last", []packet{{1, 1, false}, {3, 2, false}, {4, 2, false}, {5, 3, false}, {2, 2, true}}, 1},
		{"an older one comes late", []packet{{1, 1, false}, {3, 1, false}, {4, 2, true}, {5, 2, false}, {2, 1, true}}, 2},
		{"a long time after the last", []packet{{1, 1, true}, {20001, 2, false}, {40001, 3, true}}, 2},
		{"another source", []packet{{40000, 1, true}, {30000, 2, true}}, 1},
	} {
		h := NewHistory(64)
		for _, p := range tt.packets {
			in := testPacket(t, p.seq, p.stamp, 1)
			in.KeyFrame = p.key
			h.Add(in)
		}
		if got, ok := h.KeyFrame(); !ok || got != tt.want {
			t.Errorf("%s: key frame at %d, %v, want %d", tt.name, got, ok, tt.want)
		}
	}

	// A very late packet does not hide a newer one with the same place in the index.
	h := NewHistory(8)
	for _, seq := range []uint16{0, 20, 12} {
		h.Add(testPacket(t, seq, 1, byte(seq)))
	}
	var p Packet
	if !h.Sequence(20, &p) || p.Payload[0] != 20 {
		t.Error("a newer packet is hidden by a late one")
	}
}

// Two video sections have the same payload types; which one a track belongs to is said by its SSRC, or else by the
// header extension. At the end pion lets go of an SSRC while packets still come: that makes no new track.
func TestTwoVideoSections(t *testing.T) {
	for _, tt := range []struct {
		name    string
		rewrite func(string) string
	}{
		{"declared", nil},
		{"named in packets", func(sdp string) string {
			return regexp.MustCompile(`a=(ssrc|ssrc-group):.*\r\n`).ReplaceAllString(sdp, "")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			mids := map[string]int{}
			arrived := make(chan struct{}, 16)
			from := NewConn(Transport{Loopback: true}, nil)
			to := NewConn(Transport{Loopback: true}, func(track *Track) Sink {
				mu.Lock()
				defer mu.Unlock()
				mids[track.MID()]++
				arrived <- struct{}{}
				return &taker{}
			})
			var pcs []*webrtc.PeerConnection
			for _, c := range []*Conn{from, to} {
				pc, err := c.NewPeerConnection(webrtc.Configuration{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = pc.GracefulClose() })
				pcs = append(pcs, pc)
			}
			var senders []*Sender
			for _, id := range []string{"first", "second"} {
				s := from.NewSender(SenderOptions{
					Kind: webrtc.RTPCodecTypeVideo, Codec: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8}, ID: id, StreamID: id,
				})
				if _, err := pcs[0].AddTransceiverFromTrack(s, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly}); err != nil {
					t.Fatal(err)
				}
				senders = append(senders, s)
			}
			connect(t, pcs[0], pcs[1], tt.rewrite)
			midID := extensionID(pcs[0].GetTransceivers()[0].Sender().GetParameters().RTPParameters, sdp.SDESMidURI)
			if midID == 0 {
				t.Fatal("no mid extension")
			}
			for i, s := range senders {
				p := videoPacket(t, i)
				if err := p.Header.SetExtension(midID, []byte(pcs[0].GetTransceivers()[i].Mid())); err != nil {
					t.Fatal(err)
				}
				s.mu.Lock()
				s.extensions = []extensionPair{{midID, midID}}
				s.mu.Unlock()
				for n := range uint16(20) {
					p.Header.SequenceNumber += n
					s.Packet(p)
				}
			}
			for range senders {
				select {
				case <-arrived:
				case <-time.After(10 * time.Second):
					t.Fatal("a track did not arrive")
				}
			}
			if err := pcs[1].GracefulClose(); err != nil {
				t.Fatal(err)
			}
			for ssrc := range to.tracks {
				again := to.tapFor(packetio.RTPBufferPacket, ssrc)
				if _, err := again.Write(rawPacket(t, senders[0].payloadType, 9, 0x10, 1)); err != nil {
					t.Error(err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if d := cmp.Diff(map[string]int{"0": 1, "1": 1}, mids); d != "" {
				t.Errorf("tracks by section (-want +got)\n%s", d)
			}
		})
	}
}
