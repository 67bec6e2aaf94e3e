package media

import (
	"sync"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/webrtc/v4"
)

const (
	reportInterval = time.Second
	// Requests for a key frame come one a keyFrameInterval in the long run. Two may come together, but for keyFrameGap: who begins
	// to play asks at once, and again for somebody behind him who has just missed that key frame.
	keyFrameInterval = time.Second
	keyFrameGap      = 150 * time.Millisecond

	jitterFactor = 16
)

// Track is one audio or video track that comes in. Its methods may be called concurrently.
type Track struct {
	conn       *Conn
	sink       Sink // nil: ignored; set under mu by the reading goroutine
	kind       webrtc.RTPCodecType
	mid, rid   string
	ssrc       uint32
	codec      webrtc.RTPCodecParameters
	extensions map[uint8]string
	nack       bool
	codecs     []webrtc.RTPCodecParameters

	mu          sync.Mutex
	payloadType uint8
	losses      losses
	pairs       []rtcp.NackPair
	pathRTT     time.Duration // the connection's, when it was last needed
	packets     uint64
	bytes       uint64
	nacks       uint64
	plis        uint64
	keyFrames   uint64
	jumps       uint64
	keyStamp    uint32 // RTP timestamp of the last one
	last        time.Time

	wanted    bool // a key frame has been asked for and has not come
	asked     time.Time
	paid      time.Time // by when the requests so far are no more than one a keyFrameInterval
	reported  time.Time
	reference report
	jitter    jitter
	bandwidth estimate
	heard     SenderReport
	heardAt   time.Time
}

// report is what the last receiver report said, to tell what was lost since.
type report struct{ expected, received uint64 }

// jitter is the interarrival jitter of RFC 3550, section 6.4.1, in units of the RTP clock.
type jitter struct {
	transit int64
	value   int64 // scaled by jitterFactor
	started bool
}

func newTrack(c *Conn, ssrc uint32, kind webrtc.RTPCodecType, mid string, codec webrtc.RTPCodecParameters, parameters webrtc.RTPParameters) *Track {
	t := &Track{
		conn: c, ssrc: ssrc, kind: kind, mid: mid, codec: codec, codecs: parameters.Codecs,
		payloadType: uint8(codec.PayloadType), extensions: make(map[uint8]string),
	}
	for _, ext := range parameters.HeaderExtensions {
		t.extensions[uint8(ext.ID)] = ext.URI
	}
	for _, feedback := range codec.RTCPFeedback {
		t.nack = t.nack || feedback.Type == webrtc.TypeRTCPFBNACK && feedback.Parameter == ""
	}
	return t
}

func (t *Track) attach(sink Sink) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sink = sink
}

// Kind is audio or video.
func (t *Track) Kind() webrtc.RTPCodecType { return t.kind }

// MID is the identification of the track's media section (RFC 9143).
func (t *Track) MID() string { return t.mid }

// RID is the simulcast layer (RFC 8851), empty without simulcast.
func (t *Track) RID() string { return t.rid }

// SSRC is the source that the track comes from.
func (t *Track) SSRC() uint32 { return t.ssrc }

// Extensions are the header extensions that were negotiated for the track, URI by id. The map must not be changed.
func (t *Track) Extensions() map[uint8]string { return t.extensions }

// Codec is what the track carries now; a publisher may change it in mid-stream.
func (t *Track) Codec() webrtc.RTPCodecParameters {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.codec
}

// PayloadType is the one of the last packet.
func (t *Track) PayloadType() uint8 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.payloadType
}

// RequestKeyFrame asks the publisher for a key frame (PLI, RFC 4585, section 6.3.1), and goes on asking once a second until
// one comes. The first request goes at once; further ones within a second wait, many become one. For audio it does
// nothing.
func (t *Track) RequestKeyFrame() {
	if t.kind != webrtc.RTPCodecTypeVideo {
		return
	}
	t.mu.Lock()
	t.wanted = true
	send := t.keyFrameDueLocked(time.Now())
	t.mu.Unlock()
	if send {
		t.sendPLI()
	}
}

func (t *Track) keyFrameDueLocked(now time.Time) bool {
	if !t.wanted || now.Sub(t.asked) < keyFrameGap || t.paid.Sub(now) > keyFrameInterval {
		return false
	}
	t.asked = now
	if t.paid.Before(now) {
		t.paid = now
	}
	t.paid = t.paid.Add(keyFrameInterval)
	t.plis++
	return true
}

// sendPLI asks for a key frame. A report goes first, as RFC 4585, section 3.1, has it where reduced size was not agreed on: Janus 1.1
// finds by it which track the request is for, and drops one that comes alone.
func (t *Track) sendPLI() {
	t.mu.Lock()
	report := t.reportLocked(time.Now())
	t.mu.Unlock()
	t.conn.writeRTCP(report, &rtcp.PictureLossIndication{SenderSSRC: receiverSender, MediaSSRC: t.ssrc})
}

// receive takes the next packet, in the goroutine that reads the connection.
func (t *Track) receive(p *Packet) {
	now := p.Arrival
	t.mu.Lock()
	fresh := t.losses.arrived(p.Header.SequenceNumber, now, p.Recovered)
	codec, known := t.codecOfLocked(p.Header.PayloadType)
	if !fresh || !known {
		t.mu.Unlock()
		if !known {
			t.conn.unknown.Add(1)
		}
		return
	}
	// A publisher may change its codec. What comes late, from before the change, does not change it back.
	if p.Header.PayloadType != t.payloadType && uint16(t.losses.highest) == p.Header.SequenceNumber && !p.Recovered {
		t.payloadType, t.codec = p.Header.PayloadType, codec
	}
	t.packets++
	t.bytes += uint64(len(p.Payload))
	t.last = now
	if !p.Recovered && t.jitter.arrived(p.Header.Timestamp, now, t.codec.ClockRate) {
		t.jumps++
	}
	if !p.Recovered && t.kind == webrtc.RTPCodecTypeVideo {
		missed := t.losses.lost + t.losses.repaired
		t.bandwidth.packet(now, p.Header.Timestamp, t.codec.ClockRate, len(p.Payload), missed, t.packets)
	}
	p.KeyFrame = t.kind == webrtc.RTPCodecTypeVideo && KeyFrame(codec.MimeType, p.Payload)
	if p.KeyFrame {
		if t.keyFrames == 0 || p.Header.Timestamp != t.keyStamp {
			t.keyFrames++
		}
		t.keyStamp = p.Header.Timestamp
		t.wanted = false
	}
	pli := t.keyFrameDueLocked(now)
	nack := t.nackDueLocked(now)
	receiverReport := t.reportDueLocked(now)
	t.mu.Unlock()

	t.sink.Packet(p)

	t.sendDue(pli, nack)
	if receiverReport != nil {
		t.conn.writeRTCP(receiverReport)
	}
}

// remind asks again for what has been asked for in vain, though nothing of the track has come meanwhile.
func (t *Track) remind(now time.Time) {
	t.mu.Lock()
	pli := t.keyFrameDueLocked(now)
	nack := t.nackDueLocked(now)
	t.mu.Unlock()
	t.sendDue(pli, nack)
}

func (t *Track) sendDue(pli bool, nack *rtcp.TransportLayerNack) {
	if pli {
		t.sendPLI()
	}
	if nack != nil {
		t.conn.writeRTCP(nack)
	}
}

func (t *Track) codecOfLocked(payloadType uint8) (webrtc.RTPCodecParameters, bool) {
	if payloadType == t.payloadType {
		return t.codec, true
	}
	for _, codec := range t.codecs {
		if uint8(codec.PayloadType) == payloadType && !sameMIME(codec.MimeType, webrtc.MimeTypeRTX) {
			return codec, true
		}
	}
	return webrtc.RTPCodecParameters{}, false
}

// repairs is the payload type of the originals that an RTX payload type stands for.
func (t *Track) repairs(payloadType uint8) (uint8, bool) {
	for i := range t.codecs {
		if uint8(t.codecs[i].PayloadType) == payloadType {
			return associated(t.codecs[i])
		}
	}
	return 0, false
}

func (t *Track) nackDueLocked(now time.Time) *rtcp.TransportLayerNack {
	if !t.nack || len(t.losses.missing) == 0 {
		return nil
	}
	t.pathRTT = time.Duration(t.conn.pathRTT.Load())
	t.pairs = t.losses.due(now, t.pathRTT, t.pairs[:0])
	if len(t.pairs) == 0 {
		return nil
	}
	t.nacks++
	return &rtcp.TransportLayerNack{
		SenderSSRC: receiverSender, MediaSSRC: t.ssrc, Nacks: append([]rtcp.NackPair(nil), t.pairs...),
	}
}

// RoundTrip is the time that the answer to a request takes, as far as that is known: 0 before the first loss.
func (t *Track) RoundTrip() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(t.losses.roundTrip, t.pathRTT)
}

func (t *Track) reportDueLocked(now time.Time) *rtcp.ReceiverReport {
	if now.Sub(t.reported) < reportInterval {
		return nil
	}
	first := t.reported.IsZero()
	t.reported = now
	if first {
		return nil
	}
	return t.reportLocked(now)
}

func (t *Track) reportLocked(now time.Time) *rtcp.ReceiverReport {
	current := report{expected: t.losses.expected(), received: t.losses.received}
	expected, received := current.expected-t.reference.expected, current.received-t.reference.received
	t.reference = current
	block := rtcp.ReceptionReport{
		SSRC: t.ssrc, LastSequenceNumber: uint32(t.losses.highest - headroom), Jitter: uint32(t.jitter.value / jitterFactor),
		TotalLost: uint32(min(t.losses.lost, 1<<23-1)), // 24 bits, signed
	}
	if expected > received {
		block.FractionLost = uint8(min((expected-received)*256/expected, 255))
	}
	if !t.heardAt.IsZero() {
		block.LastSenderReport = uint32(t.heard.NTP >> 16)
		block.Delay = uint32(max(now.Sub(t.heardAt), 0) * 65536 / time.Second) // the report may have come after the packet
	}
	return &rtcp.ReceiverReport{SSRC: receiverSender, Reports: []rtcp.ReceptionReport{block}}
}

func (t *Track) receiveReport(r *rtcp.SenderReport) {
	report := SenderReport{NTP: r.NTPTime, RTP: r.RTPTime}
	t.mu.Lock()
	t.heard, t.heardAt = report, time.Now()
	sink := t.sink
	t.mu.Unlock()
	if sink != nil {
		sink.SenderReport(report)
	}
}

// arrived takes the next packet's timestamp, and says whether the publisher's clock jumped.
func (j *jitter) arrived(timestamp uint32, now time.Time, clock uint32) (jumped bool) {
	// Only differences count, so any zero will do, as long as the product fits.
	at := int64(uint32(now.UnixMicro()/1000*int64(clock)/1000 + now.UnixMicro()%1000*int64(clock)/1e6))
	transit := int64(int32(uint32(at) - timestamp))
	if !j.started {
		j.started, j.transit = true, transit
		return false
	}
	d := transit - j.transit
	j.transit = transit
	if d < 0 {
		d = -d
	}
	if d >= int64(clock)*10 { // a jump of the publisher's clock is not jitter
		return true
	}
	j.value += d - (j.value+jitterFactor/2)/jitterFactor
	return false
}

// TrackStats counts since the track began.
type TrackStats struct {
	Packets, Bytes   uint64 // Bytes are of payload
	Lost             uint64 // still missing
	Repaired         uint64 // came after they had been asked for
	NACKs            uint64 // NACK packets sent
	PLIs             uint64 // key frame requests sent
	KeyFrames        uint64
	Jitter           time.Duration
	RoundTrip        time.Duration // of the path: from loss to repair where that was seen, else as ICE measures; 0: unknown
	LastPacket       time.Time
	RequestedPackets uint64 // sequence numbers asked for, repeats included
	Restarts         uint64 // jumps of the sequence numbers that were taken for a new beginning
	ClockJumps       uint64 // jumps of the timestamps by more than ten seconds
	// Bandwidth is how many bits a second the path carries for this track, by what comes, 0 where that is not known: at least so
	// many, unless Limited is set, where lately more was sent than came through.
	Bandwidth int64
	Limited   bool
}

// Plus adds what an earlier track of the same kind counted. What is not counted stays.
func (s TrackStats) Plus(earlier TrackStats) TrackStats {
	s.Packets += earlier.Packets
	s.Bytes += earlier.Bytes
	s.Lost += earlier.Lost
	s.Repaired += earlier.Repaired
	s.NACKs += earlier.NACKs
	s.PLIs += earlier.PLIs
	s.KeyFrames += earlier.KeyFrames
	s.RequestedPackets += earlier.RequestedPackets
	s.Restarts += earlier.Restarts
	s.ClockJumps += earlier.ClockJumps
	return s
}

// Stats counts what has come in.
func (t *Track) Stats() TrackStats {
	pathRTT := t.conn.RTT()
	t.mu.Lock()
	defer t.mu.Unlock()
	s := TrackStats{
		Packets: t.packets, Bytes: t.bytes, Lost: t.losses.lost, Repaired: t.losses.repaired, NACKs: t.nacks,
		PLIs: t.plis, KeyFrames: t.keyFrames, RoundTrip: t.losses.roundTrip, LastPacket: t.last,
		RequestedPackets: t.losses.requested, Restarts: t.losses.restarts, ClockJumps: t.jumps,
	}
	s.Bandwidth, s.Limited = t.bandwidth.now(time.Now())
	if s.RoundTrip == 0 {
		s.RoundTrip = pathRTT
	}
	if t.codec.ClockRate > 0 {
		s.Jitter = time.Duration(t.jitter.value/jitterFactor) * time.Second / time.Duration(t.codec.ClockRate)
	}
	return s
}
