package media

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/interceptor/pkg/twcc"
	"github.com/pion/rtcp"
	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"
)

const (
	twccInterval   = 100 * time.Millisecond
	rttInterval    = time.Second
	maxTracks      = 16 // on one connection: audio, video, and simulcast layers
	maxSources     = 64 // SSRCs that one connection may make us remember
	assumedRTT     = 100 * time.Millisecond
	lookupInterval = 100 * time.Millisecond // between attempts to make sense of an SSRC; each asks pion for everything
	receiverSender = 1                      // SSRC of feedback; RFC 3550 asks only that it differs from others
)

// Conn is the media side of one PeerConnection: packets come in as Tracks and go out by Senders. Make the connection by
// NewPeerConnection and close that; a Conn needs no closing of its own.
type Conn struct {
	transport Transport
	onTrack   func(*Track) Sink

	mu      sync.Mutex
	pc      *webrtc.PeerConnection
	ice     *webrtc.ICETransport // asked for once: DTLSTransport hands it out under the lock that its Stop holds
	tracks  map[uint32]*Track    // by SSRC; owned by the reading goroutine, read by others under mu
	senders map[uint32]*Sender
	sources int
	sockets atomic.Pointer[[]*socket] // changed under mu
	direct  atomic.Pointer[direct]    // nil: there is no short way
	holds   atomic.Int32              // bursts that keep packets here
	// settling is held by who sends pion's way, so that it is not between his look at direct and his sending that the short way is
	// made: the two would encrypt by the same keys.
	settling sync.RWMutex

	outgoing outgoing

	malformed, unknown, forged atomic.Uint64
	loss                       atomic.Uint32 // part of the RTP packets sent that are thrown away, of 1 << 32

	rttAsked atomic.Int64 // Unix nanoseconds
	pathRTT  atomic.Int64 // as ICE measures it; 0: not known

	// reading is held by the goroutine that reads RTP: that of the socket, or pion's. What follows belongs to it.
	reading   sync.Mutex
	burst     *burst // nil: the packet came alone
	recorder  *twcc.Recorder
	twccSent  time.Time
	packet    Packet
	startTime time.Time
	swept     time.Time
	sweeping  []*Track
}

// NewConn makes a Conn for one connection. onTrack is called for each track that comes in, before its first packet, and
// says who takes its packets; a nil Sink ignores the track, and a nil onTrack all. It is called in the goroutine that
// reads the connection and must not block.
func NewConn(t Transport, onTrack func(*Track) Sink) *Conn {
	return &Conn{
		transport: t, onTrack: onTrack,
		tracks: make(map[uint32]*Track), senders: make(map[uint32]*Sender),
		startTime: time.Now(),
	}
}

// NewPeerConnection makes the connection itself, with every codec of RegisterCodecs. It may be called again after the
// former one was closed: answering a WHEP counter-offer takes a new connection. The caller closes it.
func (c *Conn) NewPeerConnection(config webrtc.Configuration) (*webrtc.PeerConnection, error) {
	engine := &webrtc.MediaEngine{}
	if err := RegisterCodecs(engine); err != nil {
		return nil, err
	}
	t := c.transport
	own := t.Net == nil && t.UDPMux == nil
	shared := len(t.Ports) > 0 && t.UDPMux != nil
	if own {
		machine, err := addresses.get()
		if err != nil {
			return nil, fmt.Errorf("list the machine's addresses: %w", err)
		}
		t.Net = network{machine, c}
	}
	s, err := t.settings()
	if err != nil {
		return nil, err
	}
	s.BufferFactory = c.tapFor
	k := &keys{}
	if own || shared {
		k.attach(&s)
	}
	pc, err := newPeerConnection(config, s, engine, &interceptor.Registry{})
	if err != nil {
		return nil, fmt.Errorf("make connection: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pc, c.ice = pc, pc.SCTP().Transport().ICETransport()
	c.sources = 0
	c.recorder = nil // transport-wide sequence numbers begin anew
	clear(c.tracks)
	clear(c.senders)
	c.direct.Store(nil)
	if own || shared {
		ice := c.ice
		pc.SCTP().Transport().OnStateChange(func(state webrtc.DTLSTransportState) {
			switch state {
			case webrtc.DTLSTransportStateConnected:
				c.decide(k, ice)
			case webrtc.DTLSTransportStateClosed, webrtc.DTLSTransportStateFailed:
				if d := c.direct.Load(); d != nil {
					d.move(nil)
				}
			}
		})
		if shared {
			ice.OnSelectedCandidatePairChange(func(*webrtc.ICECandidatePair) { c.follow(ice) })
		}
	}
	return pc, nil
}

// Bandwidth is how many bits a second the path to the far end carries, by what that says of the packets of Senders that ask for
// it; 0 where nothing is known. At least so many, unless limited is set, where lately more was sent than came through.
func (c *Conn) Bandwidth() (bits int64, limited bool) { return c.outgoing.now(time.Now()) }

// BeginProbe says that what Sender.Probe sends from now on until EndProbe is to be measured: whether more comes through than is
// being sent.
func (c *Conn) BeginProbe() { c.outgoing.begin() }

// EndProbe ends what BeginProbe began. Bandwidth tells of it once the far end has.
func (c *Conn) EndProbe() { c.outgoing.end(time.Now()) }

// SetLoss throws away a part of the RTP packets that are sent from now on, retransmissions too, as a bad network would: from 0
// for none to just below 1. The senders count them as sent.
func (c *Conn) SetLoss(part float64) { c.loss.Store(uint32(min(max(part, 0)*(1<<32), math.MaxUint32))) }

// Loss is what SetLoss set, to a millionth.
func (c *Conn) Loss() float64 { return math.Round(float64(c.loss.Load())/(1<<32)*1e6) / 1e6 }

// loses says whether a packet is to be thrown away.
func (c *Conn) loses() bool {
	part := c.loss.Load()
	return part > 0 && rand.Uint32() < part
}

// Tracks lists what has come in so far.
func (c *Conn) Tracks() []*Track {
	c.mu.Lock()
	defer c.mu.Unlock()
	tracks := make([]*Track, 0, len(c.tracks))
	for _, t := range c.tracks {
		tracks = append(tracks, t)
	}
	return tracks
}

// ConnStats counts what came to a connection and was of no use.
type ConnStats struct {
	Malformed uint64 // RTP and RTCP packets that could not be read
	Unknown   uint64 // RTP packets of a source, or of a payload type, that nothing was negotiated for
	Forged    uint64 // RTP packets that came before, or that nobody with the keys has sent; seen on the short way only
}

// Stats counts since the Conn was made.
func (c *Conn) Stats() ConnStats {
	return ConnStats{Malformed: c.malformed.Load(), Unknown: c.unknown.Load(), Forged: c.forged.Load()}
}

// RTT is the round trip of the path as ICE measures it; 0 before the first measurement.
func (c *Conn) RTT() time.Duration {
	c.mu.Lock()
	ice := c.ice
	c.mu.Unlock()
	if ice == nil {
		return 0
	}
	stats, ok := ice.GetSelectedCandidatePairStats()
	if !ok {
		return 0
	}
	return time.Duration(stats.CurrentRoundTripTime * float64(time.Second))
}

// source is one SSRC that somebody sends to us.
type source struct {
	conn     *Conn
	ssrc     uint32
	resolved bool
	tried    time.Time
	known    bool   // counted against maxSources
	track    *Track // nil: ignored, or not known yet
	twccID   uint8

	// What follows is set on an RTX stream.
	rtx      bool
	mid      string
	original uint32 // SSRC that it repairs, where the remote description says so
	repairID uint8  // header extension with the rid of the layer that it repairs
}

// receive takes one decrypted RTP packet, in the goroutine that reads the connection, which holds Conn.reading. The slice is
// the reader's again afterwards.
func (s *source) receive(raw []byte) {
	c := s.conn
	now := time.Now()
	p := &c.packet
	if p.parse(raw) != nil {
		c.malformed.Add(1)
		return
	}
	if !s.resolved {
		c.resolve(s, p, now)
	}
	if s.rtx && s.track == nil {
		s.track = c.repaired(s, p)
	}
	if s.twccID != 0 {
		c.recordArrival(s, p, now)
	}
	if s.track == nil || s.track.sink == nil {
		if !s.resolved {
			c.unknown.Add(1)
		}
		return
	}
	if s.rtx {
		payloadType, ok := s.track.repairs(p.Header.PayloadType)
		if !ok {
			c.unknown.Add(1)
			return
		}
		if raw, ok = restore(raw, s.track.ssrc, payloadType); !ok {
			return
		}
		if p.parse(raw) != nil {
			c.malformed.Add(1)
			return
		}
	}
	p.Arrival, p.Recovered, p.burst = now, s.rtx, c.burst
	s.track.receive(p)
	if now.Sub(c.swept) >= minRetry {
		c.swept = now
		c.sweep(now, s.track)
	}
}

// sweep sends what is due for the other tracks: a picture may stand still, and what was lost of it be waited for, while
// sound goes on.
func (c *Conn) sweep(now time.Time, except *Track) {
	c.sweeping = c.sweeping[:0]
	c.mu.Lock()
	for _, t := range c.tracks {
		if t != except && t.sink != nil {
			c.sweeping = append(c.sweeping, t)
		}
	}
	c.mu.Unlock()
	for _, t := range c.sweeping {
		t.remind(now)
	}
}

// recordArrival keeps the arrival time for transport-wide feedback, and sends that when it is due.
func (c *Conn) recordArrival(s *source, p *Packet, now time.Time) {
	ext := p.Header.GetExtension(s.twccID)
	if len(ext) < 2 {
		return
	}
	if c.recorder == nil {
		c.recorder = twcc.NewRecorder(receiverSender)
	}
	c.recorder.Record(s.ssrc, uint16(ext[0])<<8|uint16(ext[1]), now.Sub(c.startTime).Microseconds())
	if now.Sub(c.twccSent) >= twccInterval {
		c.twccSent = now
		if feedback := c.recorder.BuildFeedbackPacket(); len(feedback) > 0 {
			c.writeRTCP(feedback...)
		}
	}
}

// resolve finds out what an SSRC carries from its first packet and what was negotiated. It leaves the source unresolved
// where negotiation has not finished, or knows nothing of the payload type.
func (c *Conn) resolve(s *source, p *Packet, now time.Time) {
	if now.Sub(s.tried) < lookupInterval {
		return
	}
	c.mu.Lock()
	if !s.known {
		if c.sources >= maxSources {
			s.resolved = true
			c.mu.Unlock()
			return
		}
		s.known = true
		c.sources++
	}
	pc := c.pc
	c.mu.Unlock()
	if pc == nil || pc.CurrentRemoteDescription() == nil {
		return
	}
	s.tried = now

	// A payload type may stand in several media sections: what names one goes before (RFC 8843, section 9.2).
	var transceiver *webrtc.RTPTransceiver
	var parameters webrtc.RTPParameters
	var codec webrtc.RTPCodecParameters
	best := 0
	for _, t := range pc.GetTransceivers() {
		receiver := t.Receiver()
		if receiver == nil {
			continue
		}
		candidate := receiver.GetParameters()
		i := slices.IndexFunc(candidate.Codecs, func(codec webrtc.RTPCodecParameters) bool {
			return uint8(codec.PayloadType) == p.Header.PayloadType
		})
		if i < 0 {
			continue
		}
		fit := 1
		original, declared := declares(receiver, s.ssrc)
		if declared {
			fit = 3
		} else if mid := extensionText(p, candidate, sdp.SDESMidURI); mid != "" && mid == t.Mid() {
			fit = 2
		}
		if fit > best {
			best, transceiver, parameters, codec, s.original = fit, t, candidate, candidate.Codecs[i], original
		}
	}
	if transceiver == nil {
		return
	}
	s.resolved = true
	s.twccID = extensionID(parameters, sdp.TransportCCURI)
	if sameMIME(codec.MimeType, webrtc.MimeTypeRTX) {
		s.rtx, s.mid, s.repairID = true, transceiver.Mid(), extensionID(parameters, sdp.SDESRepairRTPStreamIDURI)
		return
	}
	s.track = c.newTrack(s.ssrc, extensionText(p, parameters, sdp.SDESRTPStreamIDURI), transceiver, codec, parameters)
}

// declares says whether the remote description gives a section this SSRC, and which one it repairs if it is for RTX.
func declares(receiver *webrtc.RTPReceiver, ssrc uint32) (original uint32, ok bool) {
	for _, t := range receiver.Tracks() {
		switch ssrc {
		case uint32(t.SSRC()):
			return 0, true
		case uint32(t.RtxSSRC()):
			return uint32(t.SSRC()), true
		}
	}
	return 0, false
}

func extensionID(parameters webrtc.RTPParameters, uri string) uint8 {
	for _, ext := range parameters.HeaderExtensions {
		if ext.URI == uri {
			return uint8(ext.ID)
		}
	}
	return 0
}

func extensionText(p *Packet, parameters webrtc.RTPParameters, uri string) string {
	if id := extensionID(parameters, uri); id != 0 {
		return string(p.Header.GetExtension(id))
	}
	return ""
}

// repaired finds the track whose losses an RTX stream makes good: by the ssrc-group of the remote description, by the
// layer that the packet names, else by the only track there is, or the only one that misses the packet (RFC 4588,
// section 5.3). It is nil while none is found; the first repair may come before the first original.
func (c *Conn) repaired(s *source, p *Packet) *Track {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.original != 0 {
		return c.tracks[s.original]
	}
	rid := p.Header.GetExtension(s.repairID)
	var only, missing *Track
	candidates, missed := 0, 0
	for _, t := range c.tracks {
		if t.mid != s.mid || len(rid) > 0 && t.rid != string(rid) {
			continue
		}
		only, candidates = t, candidates+1
		if len(p.Payload) >= 2 && t.losses.misses(binary.BigEndian.Uint16(p.Payload)) {
			missing, missed = t, missed+1
		}
	}
	switch {
	case candidates == 1 && (only.rid == "" || len(rid) > 0): // another layer may be still to come
		return only
	case missed == 1:
		return missing
	default:
		return nil
	}
}

// newTrack makes the track of an SSRC and asks who takes it; nil is nobody. pion may let go of an SSRC and find it again,
// at renegotiation and at the end: the track stays the same then.
func (c *Conn) newTrack(ssrc uint32, rid string, transceiver *webrtc.RTPTransceiver,
	codec webrtc.RTPCodecParameters, parameters webrtc.RTPParameters,
) *Track {
	c.mu.Lock()
	t, full := c.tracks[ssrc], len(c.tracks) >= maxTracks
	if t == nil && !full {
		t = newTrack(c, ssrc, transceiver.Kind(), transceiver.Mid(), codec, parameters)
		t.rid = rid
		c.tracks[ssrc] = t
		c.mu.Unlock()
		if c.onTrack != nil {
			t.attach(c.onTrack(t))
		}
	} else {
		c.mu.Unlock()
	}
	if t == nil || t.sink == nil {
		return nil
	}
	return t
}

// receiveRTCP takes one RTCP packet that is addressed to an SSRC, in the goroutine that reads RTCP.
func (c *Conn) receiveRTCP(ssrc uint32, raw []byte) {
	packets, err := rtcp.Unmarshal(raw)
	if err != nil {
		c.malformed.Add(1)
		return
	}
	// Not where RTP is read: the answer comes from ICE's own loop, which may be waiting for the one who reads its socket.
	if now := time.Now().UnixNano(); now-c.rttAsked.Load() >= int64(rttInterval) {
		c.rttAsked.Store(now)
		c.pathRTT.Store(int64(c.RTT()))
	}
	c.mu.Lock()
	sender, track := c.senders[ssrc], c.tracks[ssrc]
	c.mu.Unlock()
	for _, p := range packets {
		if sender != nil {
			sender.receiveRTCP(ssrc, p)
		}
		if feedback, ok := p.(*rtcp.TransportLayerCC); ok && feedback.MediaSSRC == ssrc {
			c.outgoing.report(time.Now(), feedback)
		}
		if report, ok := p.(*rtcp.SenderReport); ok && track != nil && report.SSRC == ssrc {
			track.receiveReport(report)
		}
	}
}

// flush sends what is held.
func (c *Conn) flush() {
	if d := c.direct.Load(); d != nil {
		d.flush()
	}
	if sockets := c.sockets.Load(); sockets != nil {
		for _, s := range *sockets {
			s.flush()
		}
	}
}

// Hold lets the connection keep what it is given to send until as many calls of Release have come, where it has the short way,
// so that it leaves in few system calls. Keep it for no longer than it takes to hand over what there is.
func (c *Conn) Hold() { c.holds.Add(1) }

// Release ends what Hold began.
func (c *Conn) Release() {
	if c.holds.Add(-1) == 0 {
		c.flush()
	}
}

// changeSockets replaces the list of sockets, which others may be going through.
func (c *Conn) changeSockets(change func([]*socket) []*socket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var sockets []*socket
	if old := c.sockets.Load(); old != nil {
		sockets = slices.Clone(*old)
	}
	sockets = change(sockets)
	c.sockets.Store(&sockets)
}

func (c *Conn) writeRTCP(packets ...rtcp.Packet) {
	d := c.direct.Load()
	if d == nil {
		c.settling.RLock()
		defer c.settling.RUnlock()
		d = c.direct.Load()
	}
	if d != nil {
		d.writeRTCP(packets)
		return
	}
	c.mu.Lock()
	pc := c.pc
	c.mu.Unlock()
	if pc != nil {
		// Feedback that cannot be sent is feedback lost: the connection's own state says the rest.
		_ = pc.WriteRTCP(packets)
	}
}

func sameMIME(a, b string) bool { return strings.EqualFold(a, b) }
