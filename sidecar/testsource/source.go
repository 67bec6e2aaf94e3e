// Package testsource is a publisher for demos, tests and measurements: it plays a short embedded clip in a circle, with a
// clock and frame counter in the picture and a beep with each second's flash, to any server that speaks WHIP. To its
// receivers it is a live encoder: time never jumps, and a key frame comes when one is asked for.
package testsource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	// connecting bounds the time from the server's answer to the first packet.
	connecting = 20 * time.Second
	// mtu bounds an RTP packet, so that it fits into tunnels with SRTP and lower headers on top.
	mtu = 1200
)

// Options are a source's settings. The zero value is H264 at the clip's own bitrate, about 560 kbit/s.
type Options struct {
	Codec string // "h264" (default) or "vp8"
	// Bitrate of the video in bits per second, reached by padding; nothing is taken away. H264 only. 0: no padding.
	Bitrate int
	Logger  *slog.Logger // nil discards
}

// Source publishes the clip. It may publish many streams at once, each a live one of its own.
type Source struct {
	clip    *Clip
	bitrate int
	begin   int // the first frame's place in the clip, a key frame
	logger  *slog.Logger

	frames, keyFrames, jumps, packets, bytes atomic.Uint64
}

// Stats count what a source has sent in all its publications.
type Stats struct {
	Frames    uint64
	KeyFrames uint64
	Jumps     uint64 // to a key frame because one was asked for
	Packets   uint64 // RTP, video and audio
	Bytes     uint64 // of those, with RTP headers
}

// New returns a source.
func New(o Options) (*Source, error) {
	if o.Codec == "" {
		o.Codec = "h264"
	}
	clip, err := LoadClip(o.Codec)
	if err != nil {
		return nil, err
	}
	if o.Bitrate != 0 && o.Codec != "h264" {
		return nil, fmt.Errorf("make test source: %s cannot be padded to a bitrate", o.Codec)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Source{clip: clip, bitrate: o.Bitrate, logger: o.Logger}, nil
}

// Stats returns what has been sent so far.
func (s *Source) Stats() Stats {
	return Stats{
		Frames: s.frames.Load(), KeyFrames: s.keyFrames.Load(), Jumps: s.jumps.Load(),
		Packets: s.packets.Load(), Bytes: s.bytes.Load(),
	}
}

// Publish sends the clip to a WHIP endpoint until ctx ends, and returns its error, or until the session fails, and says
// why. It never tries again by itself. The session is deleted at the server before it returns.
func (s *Source) Publish(ctx context.Context, client *whip.Client, ep adapters.Endpoint) (err error) {
	p := &publication{source: s, head: playhead{clip: s.clip, skipped: s.begin}}
	session, err := client.Publish(ctx, ep, p.addTracks)
	if err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx)
	var listeners sync.WaitGroup
	defer listeners.Wait()
	defer func() {
		fail(nil)
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if closeErr := session.Close(bounded); closeErr != nil {
			s.logger.Warn("session not deleted", "error", closeErr)
		}
	}()
	listeners.Go(func() { fail(session.Wait(ctx)) })
	// Interceptors work only while RTCP is read. The session's end ends the reading.
	listeners.Go(func() { p.listen(p.video) })
	listeners.Go(func() { p.listen(p.audio) })

	bounded, cancel := context.WithTimeout(ctx, connecting)
	defer cancel()
	if err := session.Connected(bounded); err != nil {
		return err
	}
	s.logger.Info("publishing test source", "codec", s.clip.Codec, "session", session.Location().Redacted())
	return p.play(ctx)
}

// publication is one stream of a source.
type publication struct {
	source *Source
	video  *lane
	audio  *lane

	head   playhead
	wish   atomic.Bool // somebody asks for a key frame
	sent   uint64      // frames
	budget int         // bytes that the bitrate has left to be padded
	unit   []byte      // reused
}

// lane is one track: its packets, continuous in sequence and time.
type lane struct {
	track      *webrtc.TrackLocalStaticRTP
	sender     *webrtc.RTPSender
	packetizer rtp.Packetizer
}

// addTracks may be called again with another connection, when the server does not take the first one.
func (p *publication) addTracks(pc *webrtc.PeerConnection) (err error) {
	video := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}
	payloader := rtp.Payloader(&codecs.VP8Payloader{EnablePictureID: true})
	if p.source.clip.Codec == "h264" {
		video = webrtc.RTPCodecCapability{
			MimeType: webrtc.MimeTypeH264, ClockRate: 90000,
			SDPFmtpLine: "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
		}
		payloader = &codecs.H264Payloader{}
	}
	if p.video, err = addLane(pc, video, "video", payloader); err != nil {
		return err
	}
	audio := webrtc.RTPCodecCapability{
		MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2, SDPFmtpLine: "minptime=10;useinbandfec=1",
	}
	p.audio, err = addLane(pc, audio, "audio", &codecs.OpusPayloader{})
	return err
}

func addLane(pc *webrtc.PeerConnection, codec webrtc.RTPCodecCapability, id string, payloader rtp.Payloader) (*lane, error) {
	track, err := webrtc.NewTrackLocalStaticRTP(codec, id, "sidestream-test-source")
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", id, err)
	}
	transceiver, err := pc.AddTransceiverFromTrack(track, webrtc.RTPTransceiverInit{
		Direction: webrtc.RTPTransceiverDirectionSendonly,
	})
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", id, err)
	}
	// Only what is sent is offered, so that a server cannot choose something else.
	if err := transceiver.SetCodecPreferences(only(codec, transceiver.Sender().GetParameters().Codecs)); err != nil {
		return nil, fmt.Errorf("offer %s as %s: %w", id, codec.MimeType, err)
	}
	return &lane{
		track: track, sender: transceiver.Sender(),
		packetizer: rtp.NewPacketizer(mtu, 0, 0, payloader, rtp.NewRandomSequencer(), codec.ClockRate),
	}, nil
}

// only keeps the codec and its retransmission format (RFC 4588).
func only(codec webrtc.RTPCodecCapability, all []webrtc.RTPCodecParameters) []webrtc.RTPCodecParameters {
	at := slices.IndexFunc(all, func(c webrtc.RTPCodecParameters) bool {
		return strings.EqualFold(c.MimeType, codec.MimeType) && c.SDPFmtpLine == codec.SDPFmtpLine
	})
	if at < 0 {
		at = slices.IndexFunc(all, func(c webrtc.RTPCodecParameters) bool { return strings.EqualFold(c.MimeType, codec.MimeType) })
	}
	if at < 0 {
		return nil // pion's own order: the server will say what it does not like
	}
	kept := []webrtc.RTPCodecParameters{all[at]}
	apt := "apt=" + strconv.Itoa(int(all[at].PayloadType))
	for _, c := range all {
		if strings.EqualFold(c.MimeType, webrtc.MimeTypeRTX) && c.SDPFmtpLine == apt {
			kept = append(kept, c)
		}
	}
	return kept
}

// listen hears what receivers say until the connection ends.
func (p *publication) listen(l *lane) {
	for {
		reports, _, err := l.sender.ReadRTCP()
		if err != nil {
			return
		}
		for _, r := range reports {
			switch r.(type) {
			case *rtcp.PictureLossIndication, *rtcp.FullIntraRequest:
				p.wish.Store(true)
			}
		}
	}
}

// play sends frame by frame, each at its own moment since the beginning, so that nothing adds up.
func (p *publication) play(ctx context.Context) error {
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var frames, sounds int64
	for {
		nextFrame := time.Duration(frames) * time.Second / FrameRate
		nextSound := time.Duration(sounds) * time.Second / AudioRate
		timer.Reset(time.Until(start.Add(min(nextFrame, nextSound))))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
		var err error
		if nextSound <= nextFrame {
			sounds++
			err = p.send(p.audio, p.head.sound(), audioTicks)
		} else {
			frames++
			err = p.send(p.video, p.frame(time.Now()), videoTicks)
		}
		if err != nil {
			return fmt.Errorf("send test source: %w", err)
		}
	}
}

// frame makes the next access unit.
func (p *publication) frame(now time.Time) []byte {
	frame, jumped := p.head.frame(&p.wish)
	s := p.source
	s.frames.Add(1)
	if frame.Key {
		s.keyFrames.Add(1)
	}
	if jumped {
		s.jumps.Add(1)
	}
	if s.clip.Codec != "h264" {
		return frame.Data
	}
	p.unit = p.stamped(p.unit[:0], frame.Data, Stamp{Frame: p.sent, Sent: now})
	p.sent++
	return p.unit
}

// stamped puts the stamp, and the padding that the bitrate asks for, where the standard wants such messages: behind the
// parameter sets and before the slice.
func (p *publication) stamped(b, unit []byte, stamp Stamp) []byte {
	for nal := range nalUnits(unit) {
		if t := nalType(nal); t == nalSlice || t == nalIDR {
			b = stamp.appendNAL(b)
			if p.source.bitrate > 0 {
				p.budget += p.source.bitrate/8/FrameRate - len(unit) - stampSize
				before := len(b)
				b = appendFiller(b, p.budget)
				p.budget -= len(b) - before
			}
		}
		b = append(append(b, startCode...), nal...)
	}
	return b
}

func (p *publication) send(l *lane, payload []byte, ticks uint32) error {
	for _, packet := range l.packetizer.Packetize(payload, ticks) {
		p.source.packets.Add(1)
		p.source.bytes.Add(uint64(packet.MarshalSize())) //nolint:gosec // a size
		// A connection that has just been closed: the session says why.
		if err := l.track.WriteRTP(packet); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			return err
		}
	}
	return nil
}
