package relaytest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/transport/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// Shape is what a Source plays.
type Shape struct {
	Video string // MIME type, webrtc.MimeTypeH264 or MimeTypeVP8; empty: none
	Audio bool   // Opus, 50 packets a second
	// BitsPerSecond of the video; 0: 2 Mbit/s.
	BitsPerSecond int
	// GOP is the distance of key frames, each as large as five others; 0: a second.
	GOP time.Duration
	// Silent plays are accepted, connected, and never sent anything.
	Silent bool
	// Exact answers name the one codec that is sent; else, as many servers do, all that the offer and pion agree on.
	Exact bool
	// VideoAfter lets video begin so much later than audio.
	VideoAfter time.Duration
	// SwitchAfter, if set, changes the video from H264 to VP8 after so many frames.
	SwitchAfter int
	// Tamper, if set, is given each packet as it would be sent, and gives those to be sent in its place. It is called by one
	// goroutine for each session, and may change its argument.
	Tamper func(kind webrtc.RTPCodecType, p *rtp.Packet) []*rtp.Packet
}

const (
	frameRate   = 30
	audioPeriod = 20 * time.Millisecond
	packetSize  = 1150
	stampSize   = 17
)

// stamp ends each payload: what the Sink tells frames, losses and latency by.
type stamp struct {
	sent         int64 // Unix nanoseconds
	frame        uint32
	index, count uint16
	key          bool
}

func (s stamp) put(payload []byte) {
	b := payload[len(payload)-stampSize:]
	binary.BigEndian.PutUint64(b, uint64(s.sent))
	binary.BigEndian.PutUint32(b[8:], s.frame)
	binary.BigEndian.PutUint16(b[12:], s.index)
	binary.BigEndian.PutUint16(b[14:], s.count)
	b[16] = 0
	if s.key {
		b[16] = 1
	}
}

func readStamp(payload []byte) (stamp, bool) {
	if len(payload) < stampSize {
		return stamp{}, false
	}
	b := payload[len(payload)-stampSize:]
	return stamp{
		sent: int64(binary.BigEndian.Uint64(b)), frame: binary.BigEndian.Uint32(b[8:]),
		index: binary.BigEndian.Uint16(b[12:]), count: binary.BigEndian.Uint16(b[14:]), key: b[16] == 1,
	}, true
}

// SentAt is when a Source sent a packet with the payload; false for one that is not a Source's.
func SentAt(payload []byte) (time.Time, bool) {
	s, ok := readStamp(payload)
	return time.Unix(0, s.sent), ok
}

// Source plays a generated stream to whoever asks, each from a beginning of its own.
type Source struct {
	*server
	shape    Shape
	muted    atomic.Pointer[func(name string) bool]
	requests atomic.Int64
	sent     atomic.Uint64
	sessions atomic.Int64
}

// NewSource makes a source that listens; Run serves. n is nil for the machine's loopback.
func NewSource(n transport.Net, shape Shape) (*Source, error) {
	srv, err := newServer(n, func(m *webrtc.MediaEngine, r *interceptor.Registry) error {
		return webrtc.ConfigureNack(m, r)
	})
	if err != nil {
		return nil, err
	}
	s := &Source{server: srv, shape: shape}
	srv.accept = s.accept
	return s, nil
}

// Hook is called for each offer before it is answered; an error refuses it. Set it before Run.
func (s *Source) Hook(hook func(r *http.Request) error) { s.hook = hook }

// Mute stops sending to the plays whose name it says yes to, until the next call; nil lets all flow. Streams resume
// with a key frame.
func (s *Source) Mute(names func(name string) bool) { s.muted.Store(&names) }

// Sent counts the packets sent, on all sessions.
func (s *Source) Sent() uint64 { return s.sent.Load() }

// KeyFrameRequests counts those received.
func (s *Source) KeyFrameRequests() int { return int(s.requests.Load()) }

// Publish sends the stream to a WHIP server until ctx ends or the connection does.
func (s *Source) Publish(ctx context.Context, name string, to adapters.Endpoint) error {
	var p *play
	client := &whip.Client{NewPeerConnection: s.api.NewPeerConnection}
	session, err := client.Publish(ctx, to, func(pc *webrtc.PeerConnection) (err error) {
		p, err = s.newPlay(name, bare(pc))
		return err
	})
	if err != nil {
		return err
	}
	return p.use(ctx, session, p.begin)
}

func (s *Source) accept(name string, peer *peer) error {
	p, err := s.newPlay(name, peer)
	if err != nil {
		return err
	}
	p.begin()
	return nil
}

func (s *Source) newPlay(name string, peer *peer) (*play, error) {
	p := &play{source: s, name: name, peer: peer, shape: s.shape, offset: s.sessions.Add(1)}
	pc := peer.pc
	add := func(codec webrtc.RTPCodecCapability) (*output, error) {
		track, err := newWire(codec)
		if err != nil {
			return nil, err
		}
		sender, err := pc.AddTrack(track)
		if err != nil {
			return nil, err
		}
		if s.shape.Exact {
			for _, t := range pc.GetTransceivers() {
				if t.Sender() != sender {
					continue
				}
				if err := t.SetCodecPreferences([]webrtc.RTPCodecParameters{{RTPCodecCapability: codec}}); err != nil {
					return nil, err
				}
			}
		}
		return &output{
			track: track, sender: sender, clock: codec.ClockRate,
			sequence: uint16(rand.Uint32()), base: rand.Uint32(),
		}, nil
	}
	var err error
	if s.shape.Video != "" {
		if p.video, err = add(videoCodec(s.shape.Video)); err != nil {
			return nil, err
		}
	}
	if s.shape.Audio {
		p.audio, err = add(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2})
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *play) begin() {
	for _, o := range []*output{p.video, p.audio} {
		if o != nil {
			p.do(func() { p.readRTCP(o) })
		}
	}
	p.do(p.send)
}

func videoCodec(mime string) webrtc.RTPCodecCapability {
	c := webrtc.RTPCodecCapability{MimeType: mime, ClockRate: 90000}
	if mime == webrtc.MimeTypeH264 {
		c.SDPFmtpLine = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"
	}
	return c
}

// play is one session, of a viewer or of a publication.
type play struct {
	*peer
	source       *Source
	name         string
	video, audio *output
	offset       int64 // spreads sessions over the frame interval

	keyFrameWanted atomic.Bool
	shape          Shape
	frame          uint32
	sinceKey       int
	payload        [packetSize]byte
}

// output is one track of a play.
type output struct {
	track    *wire
	sender   *webrtc.RTPSender
	clock    uint32
	sequence uint16
	base     uint32 // timestamp at the beginning
	packets  uint32
	octets   uint32
	next     uint32 // number of the next audio packet
}

func (p *play) readRTCP(o *output) {
	for {
		packets, _, err := o.sender.ReadRTCP()
		if err != nil {
			return
		}
		for _, packet := range packets {
			if _, ok := packet.(*rtcp.PictureLossIndication); ok {
				p.source.requests.Add(1)
				p.keyFrameWanted.Store(true)
			}
		}
	}
}

// send paces frames and audio packets by one clock until the session ends.
func (p *play) send() {
	select {
	case <-p.ended:
		return
	case <-p.connected:
	}
	if p.shape.Silent {
		return
	}
	const period = time.Second / frameRate
	begin := time.Now()
	phase := period * time.Duration(p.offset*7%30) / 30
	frameDue, audioDue, reportDue := phase+p.shape.VideoAfter, phase/2, 100*time.Millisecond
	timer := time.NewTimer(0)
	defer timer.Stop()
	muted := false
	for {
		next := reportDue
		if p.video != nil {
			next = min(next, frameDue)
		}
		if p.audio != nil {
			next = min(next, audioDue)
		}
		timer.Reset(next - time.Since(begin))
		select {
		case <-p.ended:
			return
		case <-timer.C:
		}
		if mute := p.source.muted.Load(); mute != nil && *mute != nil && (*mute)(p.name) {
			muted = true
		} else if muted {
			muted = false
			p.keyFrameWanted.Store(true)
		}
		now := time.Since(begin)
		if p.video != nil && frameDue <= now {
			if !muted {
				p.sendFrame(frameDue)
			}
			frameDue += period
		}
		if p.audio != nil && audioDue <= now {
			if !muted {
				p.sendAudio(audioDue)
			}
			audioDue += audioPeriod
		}
		if reportDue <= now {
			if !muted {
				p.report(begin, p.video)
				p.report(begin, p.audio)
			}
			reportDue += time.Second
		}
	}
}

func (p *play) sendFrame(at time.Duration) {
	bits, gop := p.shape.BitsPerSecond, p.shape.GOP
	if bits == 0 {
		bits = 2_000_000
	}
	if gop == 0 {
		gop = time.Second
	}
	const keyWeight = 5
	frames := max(int(gop*frameRate/time.Second), 1)
	size := bits / 8 * frames / frameRate / (frames - 1 + keyWeight) // over one group of pictures
	key := p.sinceKey == 0 || p.sinceKey >= frames || p.keyFrameWanted.Swap(false)
	if key {
		size *= keyWeight
		p.sinceKey = 0
	}
	p.sinceKey++
	if p.shape.SwitchAfter > 0 && int(p.frame) == p.shape.SwitchAfter {
		p.switchCodec()
	}

	count := (size + packetSize - 1) / packetSize
	parameterSets := key && p.shape.Video == webrtc.MimeTypeH264
	if parameterSets {
		count++
	}
	for i := range count {
		payload := p.payload[:max(min(packetSize, size), 64)]
		if parameterSets && i == 0 {
			payload = p.payload[:64]
		} else {
			size -= len(payload)
		}
		first := i == 0 || parameterSets && i == 1
		p.codecHeader(payload, key, parameterSets && i == 0, first, i == count-1)
		stamp{
			sent: time.Now().UnixNano(), frame: p.frame, index: uint16(i), count: uint16(count), key: key,
		}.put(payload)
		p.write(p.video, at, i == count-1, payload)
	}
	p.frame++
}

// codecHeader writes as much of the codec as a relay or server looks at.
func (p *play) codecHeader(payload []byte, key, parameterSet, first, last bool) {
	clear(payload[:4])
	if p.shape.Video == webrtc.MimeTypeVP8 {
		if first {
			payload[0] = 0x10 // RFC 7741: start of partition 0
			if !key {
				payload[1] = 1 // section 9.1 of RFC 6386: not a key frame
			}
		}
		return
	}
	const sps, idr, slice, fuA = 0x67, 0x65, 0x61, 0x7c
	if parameterSet {
		payload[0] = sps
		return
	}
	kind := byte(slice)
	if key {
		kind = idr
	}
	payload[0], payload[1] = fuA, kind&0x1f // RFC 6184, section 5.8
	if first {
		payload[1] |= 0x80
	}
	if last {
		payload[1] |= 0x40
	}
}

func (p *play) switchCodec() {
	track, err := newWire(videoCodec(webrtc.MimeTypeVP8))
	if err == nil {
		err = p.video.sender.ReplaceTrack(track)
	}
	if err != nil {
		panic(fmt.Sprintf("relaytest: switch codec: %v", err)) // the offer was not as the test thinks
	}
	p.video.track = track
	p.shape.Video = webrtc.MimeTypeVP8
}

func (p *play) sendAudio(at time.Duration) {
	payload := p.payload[:80]
	payload[0] = 0xfc // RFC 6716, section 3.1: CELT, 20 ms, stereo
	stamp{sent: time.Now().UnixNano(), frame: p.audio.next, count: 1}.put(payload)
	p.audio.next++
	p.write(p.audio, at, false, payload)
}

func (o *output) timestamp(at time.Duration) uint32 {
	return o.base + uint32(at*time.Duration(o.clock)/time.Second)
}

func (p *play) write(o *output, at time.Duration, marker bool, payload []byte) {
	o.track.write(&rtp.Packet{
		Header: rtp.Header{
			Version: 2, Marker: marker, SequenceNumber: o.sequence, Timestamp: o.timestamp(at),
		},
		Payload: payload,
	}, p.shape.Tamper)
	p.source.sent.Add(1)
	o.sequence++
	o.packets++
	o.octets += uint32(len(payload))
}

// report ties the track's clock to the wall clock, exactly.
func (p *play) report(begin time.Time, o *output) {
	if o == nil || o.packets == 0 {
		return
	}
	now := time.Now()
	_ = p.pc.WriteRTCP([]rtcp.Packet{&rtcp.SenderReport{
		SSRC: uint32(o.sender.GetParameters().Encodings[0].SSRC), NTPTime: ntp(now), RTPTime: o.timestamp(now.Sub(begin)),
		PacketCount: o.packets, OctetCount: o.octets,
	}})
}

// ntp is a time in the format of RFC 3550, section 4.
func ntp(t time.Time) uint64 {
	const since1900 = 2208988800
	return uint64(t.Unix()+since1900)<<32 | uint64(t.Nanosecond())<<32/1e9
}

func fromNTP(n uint64) time.Time {
	const since1900 = 2208988800
	return time.Unix(int64(n>>32)-since1900, int64(n&0xffffffff)*1e9>>32)
}
