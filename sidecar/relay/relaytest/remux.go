package relaytest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"

	"github.com/pion/interceptor"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/transport/v4"
	"github.com/pion/webrtc/v4"
	"github.com/pion/webrtc/v4/pkg/media/samplebuilder"

	"github.com/sidestream-dev/sidestream/adapters"
)

// reorder is how many packets a Remux waits for one that is missing, as MediaMTX does.
const reorder = 64

// Remux is a server that does with packets as MediaMTX does: it puts frames together, drops those that miss a packet, and packs
// each anew for every viewer, with sequence numbers, timestamps and picture ids of its own. It does not hear key frame requests,
// and viewers begin wherever the stream is.
type Remux struct {
	*server
	mtu    uint16
	strict bool

	mu      sync.Mutex
	streams map[string]*remuxed
}

// remuxed is a stream that is published.
type remuxed struct {
	mu     sync.Mutex
	codecs map[webrtc.RTPCodecType]webrtc.RTPCodecCapability
	plays  map[*remuxPlay]struct{}
	taken  map[webrtc.RTPCodecType]Taken // by a strict server
}

// remuxPlay is a viewer.
type remuxPlay struct {
	outputs map[webrtc.RTPCodecType]*remuxOutput
}

// remuxOutput is one track of a viewer's.
type remuxOutput struct {
	track     *webrtc.TrackLocalStaticRTP
	payloader rtp.Payloader
	sequence  uint16
	offset    uint32
}

// NewRemux makes a server that listens, and packs into payloads of mtu bytes; Run serves. n is nil for the machine's
// loopback.
func NewRemux(n transport.Net, mtu uint16) (*Remux, error) {
	srv, err := newServer(n, func(m *webrtc.MediaEngine, r *interceptor.Registry) error {
		return errors.Join(webrtc.ConfigureNack(m, r), webrtc.ConfigureRTCPReports(r))
	})
	if err != nil {
		return nil, err
	}
	s := &Remux{server: srv, mtu: mtu, streams: make(map[string]*remuxed)}
	srv.accept = s.accept
	return s, nil
}

// Ingest is where a stream is published to.
func (s *Remux) Ingest(name string) adapters.Endpoint { return s.Endpoint("whip/" + name) }

// Egress is where a stream is played from.
func (s *Remux) Egress(name string) adapters.Endpoint { return s.Endpoint("whep/" + name) }

func (s *Remux) accept(path string, p *peer) error {
	way, name, _ := strings.Cut(path, "/")
	s.mu.Lock()
	stream := s.streams[name]
	if stream == nil && way == "whip" {
		stream = &remuxed{
			codecs: make(map[webrtc.RTPCodecType]webrtc.RTPCodecCapability), plays: make(map[*remuxPlay]struct{}),
			taken: make(map[webrtc.RTPCodecType]Taken),
		}
		s.streams[name] = stream
	}
	s.mu.Unlock()
	switch {
	case stream == nil:
		return fmt.Errorf("no stream %q", name)
	case way == "whip":
		p.pc.OnTrack(func(t *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
			stream.mu.Lock()
			stream.codecs[t.Kind()] = t.Codec().RTPCodecCapability
			stream.mu.Unlock()
			p.do(func() { stream.read(s, t) })
			if s.strict && t.Kind() == webrtc.RTPCodecTypeVideo {
				p.do(func() { p.askByClock(t) })
			}
		})
		return nil
	default:
		return stream.play(p)
	}
}

func (r *remuxed) play(p *peer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	play := &remuxPlay{outputs: make(map[webrtc.RTPCodecType]*remuxOutput)}
	for kind, codec := range r.codecs {
		track, err := webrtc.NewTrackLocalStaticRTP(codec, kind.String(), "remux")
		if err != nil {
			return err
		}
		sender, err := p.pc.AddTrack(track)
		if err != nil {
			return err
		}
		p.do(func() { // interceptors work only while somebody reads
			for {
				if _, _, err := sender.ReadRTCP(); err != nil {
					return
				}
			}
		})
		out := &remuxOutput{track: track, sequence: uint16(rand.Uint32()), offset: rand.Uint32()}
		switch codec.MimeType {
		case webrtc.MimeTypeH264:
			out.payloader = &codecs.H264Payloader{}
		case webrtc.MimeTypeVP8:
			out.payloader = &codecs.VP8Payloader{EnablePictureID: true}
		case webrtc.MimeTypeVP9:
			out.payloader = &codecs.VP9Payloader{}
		default:
			out.payloader = &codecs.OpusPayloader{}
		}
		play.outputs[kind] = out
	}
	p.do(func() {
		select {
		case <-p.ended:
			return
		case <-p.connected:
		}
		r.mu.Lock()
		r.plays[play] = struct{}{}
		r.mu.Unlock()
		<-p.ended
		r.mu.Lock()
		delete(r.plays, play)
		r.mu.Unlock()
	})
	return nil
}

func (r *remuxed) read(s *Remux, t *webrtc.TrackRemote) {
	var depacketizer rtp.Depacketizer
	switch t.Codec().MimeType {
	case webrtc.MimeTypeH264:
		depacketizer = &codecs.H264Packet{}
	case webrtc.MimeTypeVP8:
		depacketizer = &codecs.VP8Packet{}
	case webrtc.MimeTypeVP9:
		depacketizer = &codecs.VP9Packet{}
	}
	if s.strict {
		r.readStrict(s, t, depacketizer)
		return
	}
	var builder *samplebuilder.SampleBuilder
	if depacketizer != nil {
		builder = samplebuilder.New(reorder, depacketizer, t.Codec().ClockRate)
	}
	for {
		packet, _, err := t.ReadRTP()
		if err != nil {
			return
		}
		if builder == nil {
			r.write(s, t.Kind(), packet.Payload, packet.Timestamp)
			continue
		}
		builder.Push(packet)
		for sample := builder.Pop(); sample != nil; sample = builder.Pop() {
			r.write(s, t.Kind(), sample.Data, sample.PacketTimestamp)
		}
	}
}

func (r *remuxed) write(s *Remux, kind webrtc.RTPCodecType, frame []byte, timestamp uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for play := range r.plays {
		out := play.outputs[kind]
		if out == nil {
			continue
		}
		payloads := out.payloader.Payload(s.mtu, frame)
		for i, payload := range payloads {
			// A packet that cannot be written is one that is lost, which is for the viewer to notice.
			_ = out.track.WriteRTP(&rtp.Packet{
				Header: rtp.Header{
					Version: 2, Marker: i == len(payloads)-1 && kind == webrtc.RTPCodecTypeVideo,
					SequenceNumber: out.sequence, Timestamp: timestamp + out.offset,
				},
				Payload: payload,
			})
			out.sequence++
		}
	}
}
