package media

import (
	"encoding/binary"
	"iter"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/ice/v4"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLosses(t *testing.T) {
	start := time.Unix(1000, 0)
	type step struct {
		seq    uint16
		fresh  bool
		at     time.Duration
		wanted []uint16 // asked for after it
	}
	for _, tt := range []struct {
		name  string
		steps []step
		lost  uint64
	}{
		{"in order", []step{{10, true, 0, nil}, {11, true, 1, nil}, {12, true, 2, nil}}, 0},
		{"duplicate", []step{{10, true, 0, nil}, {10, false, 1, nil}}, 0},
		{"wrap", []step{{65535, true, 0, nil}, {0, true, 1, nil}, {2, true, 2, []uint16{1}}}, 1},
		{"gap asked for at once, and not again too soon", []step{
			{10, true, 0, nil},
			{13, true, 0, []uint16{11, 12}},
			{14, true, 10 * time.Millisecond, nil},
			{15, true, 151 * time.Millisecond, []uint16{11, 12}},
		}, 2},
		{"repaired", []step{{10, true, 0, nil}, {12, true, 0, []uint16{11}}, {11, true, 40 * time.Millisecond, nil}, {11, false, 0, nil}}, 0},
		{"a jump is a new beginning", []step{{10, true, 0, nil}, {30000, true, 0, nil}, {30001, true, 0, nil}}, 0},
		{"before the beginning", []step{{10, true, 0, nil}, {9, false, 0, nil}}, 0},
		{"reordering is no measure of the path", []step{
			{10, true, 0, nil},
			{12, true, 0, []uint16{11}},
			{11, true, time.Millisecond, nil},
			{14, true, 2 * time.Millisecond, []uint16{13}},
			{15, true, 100 * time.Millisecond, nil},
			{16, true, 153 * time.Millisecond, []uint16{13}},
		}, 1},
		{"far back and late", []step{
			{10, true, 0, nil},
			{3000, true, 0, slices.Collect(upTo(11, 522))},
			{3010, true, 1, nil},
			{5, false, 0, nil},
			{4009, true, 2, nil},
			{11, true, 3, nil},
			{4010, true, 4, nil},
		}, 3995},
		{"given up", []step{{10, true, 0, nil}, {12, true, 0, []uint16{11}}, {13, true, 3 * time.Second, nil}}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l losses
			for i, s := range tt.steps {
				now := start.Add(s.at)
				if fresh := l.arrived(s.seq, now, false); fresh != s.fresh {
					t.Errorf("step %d: %d fresh = %v, want %v", i, s.seq, fresh, s.fresh)
				}
				if d := cmp.Diff(s.wanted, sequences(l.due(now, 100*time.Millisecond, nil))); d != "" {
					t.Errorf("step %d: asked for (-want +got)\n%s", i, d)
				}
			}
			if l.lost != tt.lost {
				t.Errorf("lost = %d, want %d", l.lost, tt.lost)
			}
		})
	}
}

func upTo(first, last uint16) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for seq := first; seq <= last && yield(seq); seq++ {
		}
	}
}

func sequences(pairs []rtcp.NackPair) []uint16 {
	var all []uint16
	for _, p := range pairs {
		all = append(all, p.PacketList()...)
	}
	return all
}

// Whatever order packets come in, each is fresh once, and what is still missing at the end is exactly what never came.
func TestLossesAccount(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		first := uint16(random.Uint32())
		var order []uint16
		dropped := map[uint16]bool{}
		const n = 2000
		for i := range uint16(n) {
			if i > 0 && i < n-1 && random.IntN(20) == 0 {
				dropped[first+i] = true
				continue
			}
			order = append(order, first+i)
			if random.IntN(10) == 0 {
				order = append(order, first+i)
			}
		}
		for i := 2; i < len(order); i++ {
			if j := i - random.IntN(2); j > 0 && random.IntN(5) == 0 {
				order[i], order[j] = order[j], order[i]
			}
		}
		var l losses
		fresh := map[uint16]int{}
		for _, seq := range order {
			if l.arrived(seq, time.Unix(0, 0), false) {
				fresh[seq]++
			}
		}
		for seq, times := range fresh {
			if times != 1 || dropped[seq] {
				t.Fatalf("seed %d: %d came fresh %d times", seed, seq, times)
			}
		}
		if int(l.lost) != len(dropped) || len(fresh) != n-len(dropped) {
			t.Fatalf("seed %d: lost %d and fresh %d, want %d and %d", seed, l.lost, len(fresh), len(dropped), n-len(dropped))
		}
	}
}

func TestLossesBounded(t *testing.T) {
	var l losses
	now := time.Unix(0, 0)
	seq := uint16(0)
	for range 1000 {
		seq += 2999
		l.arrived(seq, now, false)
		if pairs := l.due(now, 0, nil); len(pairs) > maxPairs {
			t.Fatalf("%d pairs in one NACK", len(pairs))
		}
		now = now.Add(time.Millisecond)
	}
	if len(l.missing) > maxMissing {
		t.Errorf("%d missing remembered", len(l.missing))
	}
}

func TestRestoreUndoesRTX(t *testing.T) {
	want := rtp.Packet{
		Header: rtp.Header{
			Version: 2, Marker: true, PayloadType: 102, SequenceNumber: 4711, Timestamp: 99, SSRC: 5, CSRC: []uint32{},
		},
		Payload: []byte{1, 2, 3},
	}
	if err := want.SetExtension(3, []byte{7}); err != nil {
		t.Fatal(err)
	}
	rtx := want
	rtx.PayloadType, rtx.SequenceNumber, rtx.SSRC = 103, 8, 6
	rtx.Payload = append([]byte{4711 >> 8, 4711 & 0xff}, want.Payload...)
	raw, err := rtx.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	restored, ok := restore(raw, 5, 102)
	if !ok {
		t.Fatal("not restored")
	}
	wantRaw, _ := want.Marshal()
	if d := cmp.Diff(wantRaw, restored); d != "" {
		t.Errorf("restored (-want +got)\n%s", d)
	}
	if _, ok := restore(raw[:13], 5, 102); ok {
		t.Error("a truncated packet was restored")
	}
}

func TestKeyFrame(t *testing.T) {
	for _, tt := range []struct {
		name, mime string
		payload    []byte
		want       bool
	}{
		{"H264 IDR", webrtc.MimeTypeH264, []byte{0x65, 0}, true},
		{"H264 SPS", webrtc.MimeTypeH264, []byte{0x67, 0}, true},
		{"H264 slice", webrtc.MimeTypeH264, []byte{0x41, 0}, false},
		{"H264 STAP-A with SPS", webrtc.MimeTypeH264, []byte{0x78, 0, 2, 0x09, 0x10, 0, 1, 0x67}, true},
		{"H264 STAP-A cut off", webrtc.MimeTypeH264, []byte{0x78, 0, 200, 0x09}, false},
		{"H264 FU-A start", webrtc.MimeTypeH264, []byte{0x7c, 0x85}, true},
		{"H264 FU-A middle", webrtc.MimeTypeH264, []byte{0x7c, 0x05}, false},
		{"H265 VPS", webrtc.MimeTypeH265, []byte{0x40, 1, 0}, true},
		{"H265 PPS, which comes with any picture", webrtc.MimeTypeH265, []byte{0x44, 1, 0}, false},
		{"H265 trailing", webrtc.MimeTypeH265, []byte{0x02, 1, 0}, false},
		{"H265 FU start of IDR", webrtc.MimeTypeH265, []byte{0x62, 1, 0x93}, true},
		{"VP8 key", webrtc.MimeTypeVP8, []byte{0x10, 0x00}, true},
		{"VP8 inter", webrtc.MimeTypeVP8, []byte{0x10, 0x01}, false},
		{"VP8 key with picture id", webrtc.MimeTypeVP8, []byte{0x90, 0x80, 0x81, 0x02, 0x00}, true},
		{"VP8 not the first packet", webrtc.MimeTypeVP8, []byte{0x00, 0x00}, false},
		{"VP9 key", webrtc.MimeTypeVP9, []byte{0x08}, true},
		{"VP9 inter", webrtc.MimeTypeVP9, []byte{0x48}, false},
		{"VP9 upper layer", webrtc.MimeTypeVP9, []byte{0x28, 0x02}, false},
		{"AV1 new sequence", webrtc.MimeTypeAV1, []byte{0x18}, true},
		{"AV1 inter", webrtc.MimeTypeAV1, []byte{0x10}, false},
		{"empty", webrtc.MimeTypeVP8, nil, false},
	} {
		if got := KeyFrame(tt.mime, tt.payload); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func FuzzKeyFrame(f *testing.F) {
	f.Add([]byte{0x78, 0, 2, 0x09, 0x10, 0, 1, 0x67})
	f.Add([]byte{0xff, 0xff, 0xff})
	f.Fuzz(func(_ *testing.T, payload []byte) {
		for _, mime := range []string{
			webrtc.MimeTypeH264, webrtc.MimeTypeH265, webrtc.MimeTypeVP8, webrtc.MimeTypeVP9, webrtc.MimeTypeAV1, webrtc.MimeTypeOpus,
		} {
			KeyFrame(mime, payload)
		}
		restore(slices.Clone(payload), 1, 2)
		var p Packet
		_ = p.parse(payload)
	})
}

func testPacket(t testing.TB, seq uint16, timestamp uint32, payload ...byte) *Packet {
	t.Helper()
	raw, err := (&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: seq, Timestamp: timestamp}, Payload: payload}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p := &Packet{}
	if err := p.parse(raw); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestHistory(t *testing.T) {
	h := NewHistory(5) // becomes 8
	for seq := range uint16(20) {
		p := testPacket(t, 65530+seq, uint32(seq/3), byte(seq))
		p.KeyFrame = seq == 16 // the middle packet of its frame
		if pos := h.Add(p); pos != uint64(seq) {
			t.Fatalf("packet %d at position %d", seq, pos)
		}
	}
	var p Packet
	for _, tt := range []struct {
		position uint64
		want     Reading
	}{{0, Overrun}, {11, Overrun}, {12, Read}, {19, Read}, {20, Future}} {
		if got := h.At(tt.position, &p); got != tt.want {
			t.Errorf("position %d: %v, want %v", tt.position, got, tt.want)
		} else if got == Read && p.Payload[0] != byte(tt.position) {
			t.Errorf("position %d holds %d", tt.position, p.Payload[0])
		}
	}
	if !h.Sequence(13, &p) || p.Payload[0] != 19 { // 65530 + 19 wraps to 13
		t.Error("the newest packet is not found by its sequence number")
	}
	if h.Sequence(65530, &p) {
		t.Error("an overwritten packet is found")
	}
	if pos, ok := h.KeyFrame(); !ok || pos != 15 {
		t.Errorf("key frame at %d, %v; want the first packet of its frame, 15", pos, ok)
	}
}

// link is a connection between two Conns over UDP sockets, one of which may lose packets.
type link struct {
	from, to         *Conn
	fromPC, toPC     *webrtc.PeerConnection
	video, audio     *Sender
	keyFrameRequests atomic.Int64
}

func newLink(t *testing.T, sink func(*Track) Sink, drop func([]byte) bool) *link {
	t.Helper()
	l := &link{from: NewConn(lossy(t, drop), nil), to: NewConn(Transport{Loopback: true}, sink)}
	var err error
	if l.fromPC, err = l.from.NewPeerConnection(webrtc.Configuration{}); err != nil {
		t.Fatal(err)
	}
	if l.toPC, err = l.to.NewPeerConnection(webrtc.Configuration{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pc := range []*webrtc.PeerConnection{l.fromPC, l.toPC} {
			if err := pc.GracefulClose(); err != nil {
				t.Error(err)
			}
		}
	})
	l.video = l.from.NewSender(SenderOptions{
		Kind: webrtc.RTPCodecTypeVideo, Codec: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8}, ID: "v", StreamID: "s",
		Extensions:        map[uint8]string{9: extVideoOrientation},
		OnKeyFrameRequest: func() { l.keyFrameRequests.Add(1) },
	})
	l.audio = l.from.NewSender(SenderOptions{
		Kind: webrtc.RTPCodecTypeAudio, Codec: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus}, ID: "a", StreamID: "s",
	})
	for _, s := range []*Sender{l.video, l.audio} {
		if _, err := l.fromPC.AddTransceiverFromTrack(s, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly}); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, l.fromPC, l.toPC, nil)
	return l
}

// byLoopback leaves the candidates of 127.0.0.1 alone, where there are such: which of a machine's paths is taken does not vary then.
func byLoopback(sdp string) string {
	const candidate, loopback = "a=candidate:", " 127.0.0.1 "
	lines := strings.SplitAfter(sdp, "\n")
	if !strings.Contains(sdp, loopback) {
		return sdp
	}
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool {
		return strings.HasPrefix(line, candidate) && !strings.Contains(line, loopback)
	}), "")
}

// connect negotiates, with the offer rewritten as another client would have put it, and waits for the connection.
func connect(t *testing.T, from, to *webrtc.PeerConnection, rewrite func(sdp string) string) {
	t.Helper()
	connected := make(chan struct{})
	connect := sync.OnceFunc(func() { close(connected) })
	from.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		if state == webrtc.PeerConnectionStateConnected {
			connect()
		}
	})
	negotiate(t, from, to, nil, rewrite)
	select {
	case <-connected:
	case <-time.After(10 * time.Second):
		t.Fatal("not connected")
	}
}

// negotiate lets one connection offer and the other answer.
func negotiate(t *testing.T, from, to *webrtc.PeerConnection, o *webrtc.OfferOptions, rewrite func(sdp string) string) {
	t.Helper()
	offer, err := from.CreateOffer(o)
	if err != nil {
		t.Fatal(err)
	}
	gathered := webrtc.GatheringCompletePromise(from)
	if err = from.SetLocalDescription(offer); err != nil {
		t.Fatal(err)
	}
	<-gathered
	offer = *from.LocalDescription()
	offer.SDP = byLoopback(offer.SDP)
	if rewrite != nil {
		offer.SDP = rewrite(offer.SDP)
	}
	if err = to.SetRemoteDescription(offer); err != nil {
		t.Fatal(err)
	}
	answer, err := to.CreateAnswer(nil)
	if err != nil {
		t.Fatal(err)
	}
	gathered = webrtc.GatheringCompletePromise(to)
	if err = to.SetLocalDescription(answer); err != nil {
		t.Fatal(err)
	}
	<-gathered
	answer = *to.LocalDescription()
	answer.SDP = byLoopback(answer.SDP)
	if err = from.SetRemoteDescription(answer); err != nil {
		t.Fatal(err)
	}
}

// lossy is a transport whose packets of media go through a filter.
func lossy(t *testing.T, drop func([]byte) bool) Transport {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	mux := newTestMux(&filteredConn{UDPConn: conn, drop: drop})
	t.Cleanup(func() { _ = mux.Close() })
	return Transport{Loopback: true, UDPMux: mux}
}

type filteredConn struct {
	*net.UDPConn
	drop func([]byte) bool
}

func (c *filteredConn) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.drop != nil && len(b) > 0 && b[0]>>6 == 2 && c.drop(b) {
		return len(b), nil
	}
	return c.UDPConn.WriteTo(b, to)
}

// collector keeps what arrives.
type collector struct {
	mu      sync.Mutex
	track   *Track
	got     map[uint16][]byte
	late    int
	rotated int
	reports []SenderReport
	changed chan struct{}
}

func newCollector() *collector {
	return &collector{got: map[uint16][]byte{}, changed: make(chan struct{}, 1)}
}

func (c *collector) Packet(p *Packet) {
	c.mu.Lock()
	c.got[p.Header.SequenceNumber] = slices.Clone(p.Payload)
	if p.Recovered {
		c.late++
	}
	for id, uri := range c.track.Extensions() {
		if uri == extVideoOrientation && len(p.Header.GetExtension(id)) == 1 && p.Header.GetExtension(id)[0] == 1 {
			c.rotated++
		}
	}
	c.mu.Unlock()
	c.tell()
}

func (c *collector) SenderReport(r SenderReport) {
	c.mu.Lock()
	c.reports = append(c.reports, r)
	c.mu.Unlock()
	c.tell()
}

func (c *collector) tell() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *collector) wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		c.mu.Lock()
		ok := done()
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-c.changed:
		case <-deadline:
			t.Fatalf("no %s after 10 s", what)
		}
	}
}

// videoPackets makes n packets of frames of three, with a rotation extension, the first packet a key frame.
func videoPacket(t testing.TB, i int) *Packet {
	t.Helper()
	payload := make([]byte, 1000)
	payload[0], payload[1] = 0x10, 1
	if i == 0 {
		payload[1] = 0
	}
	binary.BigEndian.PutUint32(payload[10:], uint32(i))
	out := rtp.Packet{Header: rtp.Header{
		Version: 2, SequenceNumber: uint16(65000 + i), Timestamp: uint32(i / 3 * 3000), Marker: i%3 == 2,
	}, Payload: payload}
	if err := out.SetExtension(9, []byte{1}); err != nil {
		t.Fatal(err)
	}
	raw, err := out.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p := &Packet{}
	if err := p.parse(raw); err != nil {
		t.Fatal(err)
	}
	return p
}

// Over a link that loses every tenth packet of media everything arrives, by RTX, once, with its extensions.
func TestLossRepaired(t *testing.T) {
	video := newCollector()
	var n atomic.Int64
	l := newLink(t, func(track *Track) Sink {
		if track.Kind() == webrtc.RTPCodecTypeAudio {
			return nil
		}
		video.track = track
		return video
	}, func(b []byte) bool {
		return b[1]&0x7f < 64 || b[1]&0x7f > 95 /* not RTCP */ && n.Add(1)%10 == 5
	})
	const total = 1500
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range total {
		l.video.Packet(videoPacket(t, i))
		<-tick.C
	}
	// What follows shows the last losses, and more packets give the chance to ask again.
	extra := total
	video.wait(t, "complete stream", func() bool {
		for i := range total {
			if _, ok := video.got[uint16(65000+i)]; !ok {
				l.video.Packet(videoPacket(t, extra))
				extra++
				return false
			}
		}
		return true
	})
	stats, sent := video.track.Stats(), l.video.Stats()
	if stats.Repaired < total/20 || sent.Resent < total/20 {
		t.Errorf("repaired %d, sent again %d: too few for one loss in ten", stats.Repaired, sent.Resent)
	}
	if sent.Resent > sent.Packets/2 {
		t.Errorf("%d of %d sent again: a storm", sent.Resent, sent.Packets)
	}
	video.mu.Lock()
	defer video.mu.Unlock()
	if video.late == 0 {
		t.Error("nothing came by RTX")
	}
	if video.rotated < total {
		t.Errorf("%d of %d packets carry the rotation", video.rotated, total)
	}
	for i := range total {
		if got := binary.BigEndian.Uint32(video.got[uint16(65000+i)][10:]); got != uint32(i) {
			t.Fatalf("packet %d carries %d", i, got)
		}
	}
}

func TestKeyFrameRequestAndSenderReport(t *testing.T) {
	video := newCollector()
	l := newLink(t, func(track *Track) Sink {
		video.track = track
		return video
	}, nil)
	for i := 1; i < 40; i++ {
		l.video.Packet(videoPacket(t, i))
	}
	video.wait(t, "packet", func() bool { return len(video.got) > 0 })
	for range 50 {
		video.track.RequestKeyFrame()
	}
	// The first request goes at once; the other 49 wait.
	deadline := time.Now().Add(5 * time.Second)
	for l.keyFrameRequests.Load() == 0 && time.Now().Before(deadline) {
		l.video.Packet(videoPacket(t, 100))
	}
	if got := l.keyFrameRequests.Load(); got != 1 {
		t.Errorf("%d key frame requests arrived, want 1", got)
	}
	want := SenderReport{NTP: 0x1234_5678_9abc_def0, RTP: 4711}
	l.video.SenderReport(want)
	video.wait(t, "sender report", func() bool { return len(video.reports) > 0 })
	if d := cmp.Diff([]SenderReport{want}, video.reports); d != "" {
		t.Errorf("sender reports (-want +got)\n%s", d)
	}
}

// A splice leaves no gap, and a NACK after it is still answered with the right packet.
func TestSplice(t *testing.T) {
	video := newCollector()
	var lose atomic.Bool
	l := newLink(t, func(track *Track) Sink {
		video.track = track
		return video
	}, func([]byte) bool { return lose.Swap(false) })
	send := func(from, to int) {
		for i := from; i < to; i++ {
			l.video.Packet(videoPacket(t, i))
		}
	}
	send(0, 50)
	l.video.Splice()
	send(400, 430)
	lose.Store(true)
	send(430, 480)
	// What follows shows the last losses: so many packets at once may overflow a socket.
	next := 480
	video.wait(t, "spliced stream", func() bool {
		for i := range 130 {
			if _, ok := video.got[uint16(65000+i)]; !ok {
				l.video.Packet(videoPacket(t, next))
				next++
				return false
			}
		}
		return true
	})
	video.mu.Lock()
	defer video.mu.Unlock()
	for i := range 130 {
		want := i
		if i >= 50 {
			want = i + 350
		}
		if got := int(binary.BigEndian.Uint32(video.got[uint16(65000+i)][10:])); got != want {
			t.Fatalf("number %d carries packet %d, want %d", i, got, want)
		}
	}
	if lost := video.track.Stats().Lost; lost > 50 {
		t.Errorf("%d lost: the splice counts as a gap", lost)
	}
}

func BenchmarkSender(b *testing.B) {
	c := NewConn(Transport{}, nil)
	s := c.NewSender(SenderOptions{Extensions: map[uint8]string{9: extVideoOrientation}})
	s.writer, s.extensions = discard{}, []extensionPair{{9, 4}}
	p := videoPacket(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		p.Header.SequenceNumber++
		s.Packet(p)
	}
}

func BenchmarkTrack(b *testing.B) {
	c := NewConn(Transport{}, nil)
	track := newTrack(c, 1, webrtc.RTPCodecTypeVideo, "0", webrtc.RTPCodecParameters{
		RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000},
	}, webrtc.RTPParameters{})
	track.sink = NewConn(Transport{}, nil).NewSender(SenderOptions{})
	s := &source{conn: c, ssrc: 1, resolved: true, track: track}
	raw := videoPacket(b, 1).raw
	b.ReportAllocs()
	for b.Loop() {
		binary.BigEndian.PutUint16(raw[2:], binary.BigEndian.Uint16(raw[2:])+1)
		s.receive(raw)
	}
}

type discard struct{}

func (discard) WriteRTP(_ *rtp.Header, b []byte) (int, error) { return len(b), nil }
func (discard) Write(b []byte) (int, error)                   { return len(b), nil }

func newTestMux(conn net.PacketConn) ice.UDPMux {
	return ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: conn})
}
