package media

import (
	"fmt"
	"strings"
	"sync"
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
	receiverSender = 1 // the SSRC under which feedback is sent where nothing is sent (RFC 3550 asks only that it differs)
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

	// What follows belongs to the goroutine that reads RTP.
	recorder  *twcc.Recorder
	twccSent  time.Time
	packet    Packet
	rttAsked  time.Time
	pathRTT   time.Duration // as ICE measures it; 0: not known
	startTime time.Time
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
	s, err := c.transport.settings()
	if err != nil {
		return nil, err
	}
	s.BufferFactory = c.tapFor
	pc, err := newPeerConnection(config, s, engine, &interceptor.Registry{})
	if err != nil {
		return nil, fmt.Errorf("make connection: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pc, c.ice = pc, pc.SCTP().Transport().ICETransport()
	c.sources = 0
	clear(c.tracks)
	clear(c.senders)
	return pc, nil
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
	known    bool   // counted against maxSources
	track    *Track // nil: ignored
	rtx      bool
	twccID   uint8
}

// receive takes one decrypted RTP packet, in the goroutine that reads the connection. The slice is the reader's again
// afterwards.
func (s *source) receive(raw []byte) {
	c := s.conn
	if len(raw) < 12 {
		return
	}
	if !s.resolved {
		c.resolve(s, raw[1]&0x7f)
		if !s.resolved {
			return
		}
	}
	now := time.Now()
	p := &c.packet
	if s.twccID != 0 {
		if p.Header.Extensions = p.Header.Extensions[:0]; p.parse(raw) == nil {
			c.recordArrival(s, p, now)
		}
	}
	if s.track == nil {
		return
	}
	if s.rtx {
		var ok bool
		if raw, ok = restore(raw, s.track.ssrc, s.track.PayloadType()); !ok {
			return
		}
	}
	if s.rtx || s.twccID == 0 {
		if p.parse(raw) != nil {
			return
		}
	}
	p.Arrival, p.Recovered = now, s.rtx
	s.track.receive(p)
	if now.Sub(c.rttAsked) >= rttInterval {
		c.rttAsked = now
		c.pathRTT = c.RTT()
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

// resolve finds out what an SSRC carries from the payload type of its first packet and what was negotiated. It leaves
// the source unresolved where negotiation has not finished.
func (c *Conn) resolve(s *source, payloadType uint8) {
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
	if pc == nil || pc.CurrentRemoteDescription() == nil || pc.CurrentLocalDescription() == nil {
		return
	}
	for _, transceiver := range pc.GetTransceivers() {
		receiver := transceiver.Receiver()
		if receiver == nil {
			continue
		}
		parameters := receiver.GetParameters()
		for _, codec := range parameters.Codecs {
			if uint8(codec.PayloadType) != payloadType {
				continue
			}
			s.resolved = true
			for _, ext := range parameters.HeaderExtensions {
				if ext.URI == sdp.TransportCCURI {
					s.twccID = uint8(ext.ID)
				}
			}
			if apt, ok := associated(codec); ok {
				s.rtx = true
				s.track = c.repaired(receiver, s.ssrc, apt)
				// The first repair may come before the first original; then look again.
				s.resolved = s.track != nil
				return
			}
			s.track = c.newTrack(transceiver, receiver, s.ssrc, codec, parameters)
			return
		}
	}
}

// repaired finds the track whose losses the RTX stream of an SSRC makes good: by the ssrc-group of the remote description
// where there is one, else by the payload type it repairs.
func (c *Conn) repaired(receiver *webrtc.RTPReceiver, ssrc uint32, apt uint8) *Track {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range receiver.Tracks() {
		if uint32(t.RtxSSRC()) == ssrc {
			return c.tracks[uint32(t.SSRC())]
		}
	}
	for _, t := range c.tracks {
		if t.PayloadType() == apt {
			return t
		}
	}
	return nil
}

func (c *Conn) newTrack(transceiver *webrtc.RTPTransceiver, receiver *webrtc.RTPReceiver, ssrc uint32,
	codec webrtc.RTPCodecParameters, parameters webrtc.RTPParameters,
) *Track {
	t := newTrack(c, ssrc, transceiver.Kind(), transceiver.Mid(), codec, parameters)
	for _, remote := range receiver.Tracks() {
		if uint32(remote.SSRC()) == ssrc {
			t.rid = remote.RID()
		}
	}
	c.mu.Lock()
	full := len(c.tracks) >= maxTracks
	if !full {
		c.tracks[ssrc] = t
	}
	c.mu.Unlock()
	if full || c.onTrack == nil {
		return nil
	}
	if t.sink = c.onTrack(t); t.sink == nil {
		return nil
	}
	return t
}

// receiveRTCP takes one RTCP packet that is addressed to an SSRC, in the goroutine that reads RTCP.
func (c *Conn) receiveRTCP(ssrc uint32, raw []byte) {
	packets, err := rtcp.Unmarshal(raw)
	if err != nil {
		return
	}
	c.mu.Lock()
	sender, track := c.senders[ssrc], c.tracks[ssrc]
	c.mu.Unlock()
	for _, p := range packets {
		if sender != nil {
			sender.receiveRTCP(ssrc, p)
		}
		if report, ok := p.(*rtcp.SenderReport); ok && track != nil && report.SSRC == ssrc {
			track.receiveReport(report)
		}
	}
}

func (c *Conn) writeRTCP(packets ...rtcp.Packet) {
	c.mu.Lock()
	pc := c.pc
	c.mu.Unlock()
	if pc != nil {
		// Feedback that cannot be sent is feedback lost: the connection's own state says the rest.
		_ = pc.WriteRTCP(packets)
	}
}

func sameMIME(a, b string) bool { return strings.EqualFold(a, b) }
