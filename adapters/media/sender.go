package media

import (
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"
)

const (
	ownHistory = 512 // packets a Sender keeps where it was given no History: more than a second at 2 Mbit/s
	maxSplices = 8
	maxAge     = 1 << 14 // sequence numbers further back than this are not asked for, and no history reaches there
	maxResends = 128     // packets sent again for one NACK
	resendMin  = 10 * time.Millisecond
	guardSlots = 256
	// What is sent again is paid for by what is sent, byte by byte, with so many bytes in hand: whoever asks for everything all the time
	// doubles what goes to it, and no more.
	resendBytes = 512 << 10

	probePadding = 224 // bytes
)

// SenderOptions describe a track to be sent.
type SenderOptions struct {
	Kind         webrtc.RTPCodecType
	Codec        webrtc.RTPCodecCapability
	ID, StreamID string // of the MediaStreamTrack and the MediaStream (RFC 8830)
	// Extensions are the header extensions of the packets that come in, URI by id. Those that PassedExtensions names and
	// the far end knows go on.
	Extensions map[uint8]string
	// History answers the far end's NACKs. Where it is nil the Sender keeps its own; one that is shared is filled by
	// whoever shares it, before it gives the packet to the Sender.
	History *History
	// Congestion has each packet numbered for Conn.Bandwidth, where the far end offers to report by these numbers.
	Congestion bool
	// OnKeyFrameRequest is called for each PLI and FIR; it must not block.
	OnKeyFrameRequest func()
}

// Sender is one track that goes out: a webrtc.TrackLocal to be added to the Conn's connection, and a Sink for the packets
// to be sent. Sequence numbers and timestamps stay those of the packets.
type Sender struct {
	conn    *Conn
	options SenderOptions
	own     bool // the history is this sender's

	mu          sync.Mutex
	writer      webrtc.TrackLocalWriter
	ssrc        uint32
	payloadType uint8
	rtxSSRC     uint32
	rtxType     uint8
	rtxSequence uint16
	extensions  []extensionPair
	negotiated  []webrtc.RTPHeaderExtensionParameter
	congestion  uint8                 // id of the header extension with transport-wide numbers; 0: none
	number      [2]byte               // of that
	numbered    *[guardSlots]numbered // without RTX, by sequence number; nil: nothing was sent
	renamed     bool                  // packets before renamedAt have extensions by other ids
	renamedAt   uint16
	header      rtp.Header
	bound       bool

	offset   uint16 // added to sequence numbers
	splices  []splice
	last     uint16 // sequence number sent last
	sending  bool
	splicing bool

	resent  *[guardSlots]resend // nil: nothing was
	spent   int                 // bytes sent again that are not paid for
	packet  Packet
	scratch []byte

	stats   SenderStats
	reports [8]sentReport // a ring, newest at next-1
	next    int
}

var (
	_ webrtc.TrackLocal = (*Sender)(nil)
	_ Sink              = (*Sender)(nil)
)

type extensionPair struct{ from, to uint8 }

// splice marks where the offset changed: from sequence number from on, as sent, packets carry the offset, until there
// the one before.
type splice struct{ from, before, offset uint16 }

type resend struct {
	seq uint16
	at  time.Time
}

// numbered is the transport-wide number that a packet went out by.
type numbered struct {
	seq    uint16
	sent   bool
	number [2]byte
}

type sentReport struct {
	middle uint32 // of the NTP timestamp
	at     time.Time
}

// NewSender makes a track to be added to the Conn's connection.
func (c *Conn) NewSender(o SenderOptions) *Sender {
	s := &Sender{conn: c, options: o}
	if o.History == nil {
		s.options.History, s.own = NewHistory(ownHistory), true
	}
	return s
}

// ID implements webrtc.TrackLocal.
func (s *Sender) ID() string { return s.options.ID }

// RID implements webrtc.TrackLocal.
func (s *Sender) RID() string { return "" }

// StreamID implements webrtc.TrackLocal.
func (s *Sender) StreamID() string { return s.options.StreamID }

// Kind implements webrtc.TrackLocal.
func (s *Sender) Kind() webrtc.RTPCodecType { return s.options.Kind }

// Bind implements webrtc.TrackLocal; pion calls it once negotiation is done.
func (s *Sender) Bind(ctx webrtc.TrackLocalContext) (webrtc.RTPCodecParameters, error) {
	codec, ok := MatchCodec(s.options.Codec, ctx.CodecParameters())
	if !ok {
		return webrtc.RTPCodecParameters{}, errors.New("the far end does not take " + s.options.Codec.MimeType)
	}
	s.mu.Lock()
	s.bound = true
	s.writer, s.ssrc, s.payloadType = ctx.WriteStream(), uint32(ctx.SSRC()), uint8(codec.PayloadType)
	s.rtxSSRC, s.rtxType, s.rtxSequence = 0, 0, uint16(rand.Uint32())
	if rtx := uint32(ctx.SSRCRetransmission()); rtx != 0 {
		for _, c := range ctx.CodecParameters() {
			if apt, ok := associated(c); ok && apt == s.payloadType {
				s.rtxSSRC, s.rtxType = rtx, uint8(c.PayloadType)
			}
		}
	}
	s.negotiated = ctx.HeaderExtensions()
	s.congestion = 0
	for _, ext := range s.negotiated {
		if ext.URI == sdp.TransportCCURI && s.options.Congestion {
			s.congestion = uint8(ext.ID)
		}
	}
	s.mapExtensionsLocked()
	ssrc, rtx := s.ssrc, s.rtxSSRC
	s.mu.Unlock()

	s.conn.mu.Lock()
	s.conn.senders[ssrc] = s
	if rtx != 0 {
		s.conn.senders[rtx] = s
	}
	s.conn.mu.Unlock()
	return codec, nil
}

func (s *Sender) mapExtensionsLocked() {
	s.extensions = s.extensions[:0]
	for _, ext := range s.negotiated {
		if !slices.Contains(PassedExtensions(), ext.URI) {
			continue
		}
		for id, uri := range s.options.Extensions {
			if uri == ext.URI {
				s.extensions = append(s.extensions, extensionPair{from: id, to: uint8(ext.ID)})
			}
		}
	}
}

// SetExtensions says that packets to be sent from now on have other header extensions, URI by id, than the options said. Where
// that differs, what was sent before is sent again without them.
func (s *Sender) SetExtensions(extensions map[uint8]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maps.Equal(extensions, s.options.Extensions) {
		return
	}
	s.options.Extensions = extensions
	s.mapExtensionsLocked()
	s.renamed, s.renamedAt = true, s.last+1
}

// Unbind implements webrtc.TrackLocal.
func (s *Sender) Unbind(webrtc.TrackLocalContext) error {
	s.mu.Lock()
	ssrc, rtx := s.ssrc, s.rtxSSRC
	s.writer = nil
	s.mu.Unlock()
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	delete(s.conn.senders, ssrc)
	delete(s.conn.senders, rtx)
	return nil
}

// PayloadType is what was negotiated; false before that.
func (s *Sender) PayloadType() (payloadType uint8, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.payloadType, s.bound
}

// Splice makes the next packet follow the last one sent, whatever its own sequence number: what lies between was left
// out on purpose, and the far end shall not ask for it.
func (s *Sender) Splice() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.splicing = s.sending
}

// Packet sends a packet at once. Before the connection is up packets are dropped. Safe for concurrent use.
func (s *Sender) Packet(p *Packet) {
	if s.own {
		s.options.History.Add(p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer == nil {
		return
	}
	seq := p.Header.SequenceNumber + s.offset
	if s.splicing {
		s.splicing = false
		seq = s.last + 1
		if len(s.splices) == maxSplices {
			s.splices = append(s.splices[:0], s.splices[1:]...)
		}
		offset := seq - p.Header.SequenceNumber
		s.splices = append(s.splices, splice{from: seq, before: s.offset, offset: offset})
		s.offset = offset
	} else if s.beforeSpliceLocked(seq) {
		return // late: there is no number for it any more
	}
	if !s.sending || int16(seq-s.last) > 0 {
		s.last = seq
	}
	s.sending = true
	// One cycle is soon gone through: a splice must not be taken for one that is still to come.
	for len(s.splices) > 0 && s.last-s.splices[0].from >= maxAge {
		s.splices = append(s.splices[:0], s.splices[1:]...)
	}
	s.fillLocked(p, seq)
	if p.burst != nil {
		p.burst.hold(s.conn)
	}
	if n, err := s.writeLocked(p.Payload, fresh); err != nil {
		s.stats.Errors++
		return
	} else if n == 0 {
		return // pion drops packets silently until the connection is up
	}
	s.stats.Packets++
	s.stats.Bytes += uint64(len(p.Payload))
	s.spent = max(s.spent-len(p.Payload), 0)
}

// A writing is what is written.
type writing int

const (
	fresh writing = iota
	probing
	repeated // as it was: s.number is that of the first time
)

// writeLocked sends the header that was filled in, and a payload.
func (s *Sender) writeLocked(payload []byte, w writing) (int, error) {
	if s.congestion != 0 {
		if w != repeated {
			size := len(payload) + s.header.MarshalSize() + int(s.header.PaddingSize)
			binary.BigEndian.PutUint16(s.number[:], s.conn.outgoing.send(time.Now(), size, w == probing))
			s.noteNumberLocked()
		}
		profile := s.header.ExtensionProfile
		if !s.header.Extension {
			profile = rtp.ExtensionProfileOneByte
		}
		if s.congestion > 14 {
			profile = rtp.ExtensionProfileTwoByte
		}
		// It can fail only on lengths.
		_ = s.header.SetExtensionWithProfile(s.congestion, s.number[:], profile)
	}
	if s.conn.loses() {
		s.stats.Dropped++
		return len(payload), nil
	}
	d := s.conn.direct.Load()
	if d == nil {
		s.conn.settling.RLock()
		defer s.conn.settling.RUnlock()
		d = s.conn.direct.Load()
	}
	if d != nil {
		return d.write(&s.header, payload)
	}
	return s.writer.WriteRTP(&s.header, payload)
}

// noteNumberLocked keeps the number of a packet that may be sent again as it was.
func (s *Sender) noteNumberLocked() {
	if s.rtxSSRC != 0 {
		return
	}
	if s.numbered == nil {
		s.numbered = new([guardSlots]numbered)
	}
	seq := s.header.SequenceNumber
	s.numbered[seq%guardSlots] = numbered{seq: seq, sent: true, number: s.number}
}

// asItWasLocked says whether a packet can be sent again without RTX: to the bit as it was, for which s.number is made that of the first
// time. SRTP encrypts it by the same nonce, which must never be used for anything else (RFC 7714, section 8.4).
func (s *Sender) asItWasLocked(seq uint16) bool {
	if s.renamed && int16(seq-s.renamedAt) < 0 && s.packet.Header.Extension {
		return false
	}
	if s.congestion == 0 {
		return true
	}
	if s.numbered == nil {
		return false
	}
	n := &s.numbered[seq%guardSlots]
	s.number = n.number
	return n.sent && n.seq == seq
}

// beforeSpliceLocked says whether a sequence number, reckoned with the offset of now, lies before the last splice.
func (s *Sender) beforeSpliceLocked(seq uint16) bool {
	if len(s.splices) == 0 {
		return false
	}
	from := s.splices[len(s.splices)-1].from
	age := int16(from - seq)
	return age > 0 && age < seenWindow
}

// fillLocked makes the header to be sent of the one that came in.
func (s *Sender) fillLocked(p *Packet, seq uint16) {
	h := &s.header
	h.Version = 2
	h.Padding, h.PaddingSize = p.Header.Padding, p.Header.PaddingSize
	h.Marker = p.Header.Marker
	h.PayloadType, h.SSRC = s.payloadType, s.ssrc
	h.SequenceNumber, h.Timestamp = seq, p.Header.Timestamp
	h.CSRC = h.CSRC[:0]
	h.Extension, h.ExtensionProfile, h.Extensions = false, 0, h.Extensions[:0]
	if !p.Header.Extension || len(s.extensions) == 0 {
		return
	}
	if s.renamed && int16(seq-s.renamedAt) < 0 {
		if s.renamed = s.last-s.renamedAt < maxAge; s.renamed {
			return
		}
	}
	profile := uint16(rtp.ExtensionProfileOneByte)
	for _, pair := range s.extensions {
		if n := len(p.Header.GetExtension(pair.from)); n > 16 || n > 0 && pair.to > 14 {
			profile = rtp.ExtensionProfileTwoByte // RFC 8285, section 4.3
		}
	}
	for _, pair := range s.extensions {
		if payload := p.Header.GetExtension(pair.from); len(payload) > 0 {
			// It can fail only on lengths, which the profile was chosen for.
			_ = h.SetExtensionWithProfile(pair.to, payload, profile)
		}
	}
}

// SenderReport hands on what the source said of its clocks, with this sender's own counts (RFC 3550, section 6.4.1), so
// that audio and video stay in step after any number of hops.
func (s *Sender) SenderReport(r SenderReport) {
	s.mu.Lock()
	if s.writer == nil {
		s.mu.Unlock()
		return
	}
	report := &rtcp.SenderReport{
		SSRC: s.ssrc, NTPTime: r.NTP, RTPTime: r.RTP,
		PacketCount: uint32(s.stats.Packets), OctetCount: uint32(s.stats.Bytes),
	}
	s.reports[s.next%len(s.reports)] = sentReport{middle: uint32(r.NTP >> 16), at: time.Now()}
	s.next++
	s.mu.Unlock()
	s.conn.writeRTCP(report)
}

func (s *Sender) receiveRTCP(ssrc uint32, p rtcp.Packet) {
	s.mu.Lock()
	own := s.ssrc == ssrc
	s.mu.Unlock()
	if !own {
		return // about RTX
	}
	switch p := p.(type) {
	case *rtcp.TransportLayerNack:
		if p.MediaSSRC == ssrc {
			s.resend(p.Nacks)
		}
	case *rtcp.PictureLossIndication:
		if p.MediaSSRC == ssrc {
			s.keyFrameRequested()
		}
	case *rtcp.FullIntraRequest:
		for _, entry := range p.FIR {
			if entry.SSRC == ssrc {
				s.keyFrameRequested()
			}
		}
	case *rtcp.ReceiverReport:
		s.reception(p.Reports)
	case *rtcp.SenderReport:
		s.reception(p.Reports)
	}
}

func (s *Sender) keyFrameRequested() {
	s.mu.Lock()
	s.stats.KeyFrameRequests++
	s.mu.Unlock()
	if s.options.OnKeyFrameRequest != nil {
		s.options.OnKeyFrameRequest()
	}
}

// reception reads what the far end says of our packets; the round trip comes of the report it names (RFC 3550, section
// 6.4.1). The NTP time of that is the source's, so the time it was sent at is looked up.
func (s *Sender) reception(blocks []rtcp.ReceptionReport) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range blocks {
		if b.SSRC != s.ssrc {
			continue
		}
		s.stats.Lost = b.TotalLost
		if b.LastSenderReport == 0 {
			continue
		}
		for _, sent := range s.reports {
			if sent.middle == b.LastSenderReport && !sent.at.IsZero() {
				if rtt := now.Sub(sent.at) - time.Duration(b.Delay)*time.Second/65536; rtt > 0 {
					s.stats.RoundTrip = rtt
				}
			}
		}
	}
}

// resend answers a NACK: by RTX where that was negotiated (RFC 4588), else by the packet as it was. A packet is not sent
// again while the answer to an earlier request may still be on its way.
func (s *Sender) resend(pairs []rtcp.NackPair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer == nil {
		return
	}
	s.stats.NACKs++
	now := time.Now()
	guard := max(s.stats.RoundTrip/2, resendMin)
	budget := maxResends
	for _, pair := range pairs {
		for bit := -1; bit < 16; bit++ {
			if bit >= 0 && pair.LostPackets&(1<<bit) == 0 {
				continue
			}
			if budget == 0 {
				return
			}
			budget--
			s.resendOneLocked(pair.PacketID+uint16(bit+1), now, guard)
		}
	}
}

func (s *Sender) resendOneLocked(seq uint16, now time.Time, guard time.Duration) {
	if s.resent == nil {
		s.resent = new([guardSlots]resend)
	}
	g := &s.resent[seq%guardSlots]
	if g.seq == seq && !g.at.IsZero() && now.Sub(g.at) < guard {
		return
	}
	if s.spent > resendBytes {
		s.stats.Unanswered++
		return
	}
	payload := s.againLocked(seq)
	if payload == nil {
		s.stats.Unanswered++
		return
	}
	*g = resend{seq: seq, at: now}
	s.spent += len(payload)
	w := fresh
	if s.rtxSSRC == 0 {
		w = repeated
	}
	if _, err := s.writeLocked(payload, w); err != nil {
		s.stats.Errors++
		return
	}
	s.stats.Resent++
}

// Probe sends a packet of padding by RTX, which receivers drop, and says how many bytes that is: 0 where that cannot be. Together
// with BeginProbe and EndProbe it tells whether the path carries more.
func (s *Sender) Probe() (bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer == nil || s.rtxSSRC == 0 || s.congestion == 0 || !s.sending {
		return 0
	}
	h := &s.header
	*h = rtp.Header{
		Version: 2, Padding: true, PaddingSize: probePadding, SSRC: s.rtxSSRC, PayloadType: s.rtxType,
		SequenceNumber: s.rtxSequence, Timestamp: h.Timestamp, CSRC: h.CSRC[:0], Extensions: h.Extensions[:0],
	}
	s.rtxSequence++
	if _, err := s.writeLocked(nil, probing); err != nil {
		return 0
	}
	s.stats.Probes++
	return h.MarshalSize() + probePadding
}

// againLocked makes a packet that was sent ready to be sent again; nil where it is not kept any more.
func (s *Sender) againLocked(seq uint16) (payload []byte) {
	offset, ok := s.offsetOf(seq)
	if !ok || !s.options.History.Sequence(seq-offset, &s.packet) {
		return nil
	}
	if s.rtxSSRC == 0 && !s.asItWasLocked(seq) {
		return nil
	}
	s.fillLocked(&s.packet, seq)
	payload = s.packet.Payload
	if s.rtxSSRC != 0 {
		if len(payload) == 0 {
			return nil // padding is not worth repeating, and RTX cannot carry it
		}
		s.scratch = binary.BigEndian.AppendUint16(s.scratch[:0], seq)
		s.scratch = append(s.scratch, payload...)
		payload = s.scratch
		s.header.SSRC, s.header.PayloadType, s.header.SequenceNumber = s.rtxSSRC, s.rtxType, s.rtxSequence
		s.rtxSequence++
	}
	return payload
}

// offsetOf is the offset under which a sequence number was sent; false where so many splices have come since that it is
// forgotten.
func (s *Sender) offsetOf(seq uint16) (offset uint16, ok bool) {
	for i := len(s.splices) - 1; i >= 0; i-- {
		if int16(seq-s.splices[i].from) >= 0 {
			return s.splices[i].offset, true
		}
	}
	switch len(s.splices) {
	case 0:
		return s.offset, true
	case maxSplices:
		return 0, false
	default:
		return s.splices[0].before, true
	}
}

// SenderStats counts since the Sender was made.
type SenderStats struct {
	Packets, Bytes   uint64 // Bytes are of payload
	Resent           uint64 // packets sent again
	NACKs            uint64 // NACK packets received
	Unanswered       uint64 // packets asked for that were not kept any more, or of which too many were asked for
	KeyFrameRequests uint64
	Lost             uint32        // as the far end reports it
	RoundTrip        time.Duration // 0: not known
	Errors           uint64        // writes that failed
	Probes           uint64        // packets sent by Probe
	Dropped          uint64        // thrown away by Conn.SetLoss
}

// Stats counts what has gone out.
func (s *Sender) Stats() SenderStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}
