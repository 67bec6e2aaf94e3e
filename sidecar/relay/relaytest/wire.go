package relaytest

import (
	"strings"
	"sync"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
)

// wire is a track of a source's that can send what no honest one would.
type wire struct {
	*webrtc.TrackLocalStaticRTP

	mu          sync.Mutex
	writer      webrtc.TrackLocalWriter // nil while it is not bound
	ssrc        uint32
	payloadType uint8
}

func newWire(codec webrtc.RTPCodecCapability) (*wire, error) {
	track, err := webrtc.NewTrackLocalStaticRTP(codec, strings.ToLower(codec.MimeType[:5]), "source")
	return &wire{TrackLocalStaticRTP: track}, err
}

// Bind implements webrtc.TrackLocal.
func (w *wire) Bind(ctx webrtc.TrackLocalContext) (webrtc.RTPCodecParameters, error) {
	codec, err := w.TrackLocalStaticRTP.Bind(ctx)
	if err != nil {
		return codec, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writer, w.ssrc, w.payloadType = ctx.WriteStream(), uint32(ctx.SSRC()), uint8(codec.PayloadType)
	return codec, nil
}

// Unbind implements webrtc.TrackLocal.
func (w *wire) Unbind(ctx webrtc.TrackLocalContext) error {
	w.mu.Lock()
	w.writer = nil
	w.mu.Unlock()
	return w.TrackLocalStaticRTP.Unbind(ctx)
}

// write sends a packet, or what tamper makes of it. One that cannot be written is one that is lost, which is for the Sink to
// notice.
func (w *wire) write(p *rtp.Packet, tamper func(webrtc.RTPCodecType, *rtp.Packet) []*rtp.Packet) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writer == nil {
		return
	}
	p.SSRC, p.PayloadType = w.ssrc, w.payloadType
	packets := []*rtp.Packet{p}
	if tamper != nil {
		packets = tamper(w.Kind(), p)
	}
	for _, p := range packets {
		_, _ = w.writer.WriteRTP(&p.Header, p.Payload)
	}
}
