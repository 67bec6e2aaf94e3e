package relay

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	videoHistory = 512 // packets: two seconds at 2 Mbit/s
	audioHistory = 128

	// What was kept while the local server connected goes out in bursts: a receive buffer of Linux' default size holds
	// 92 packets of full size, and other streams want room in it too.
	burstPackets  = 32
	burstInterval = 5 * time.Millisecond
)

// lane is the way of one kind of media through the relay. Its upper end is whatever track comes from the parent; its
// lower end, a Sender into the local server, stays the same for as long as the lane. Packets go through in the goroutine
// that reads the parent's connection.
//
// Until the lane is open, packets are only kept; once it is, what has come since the last key frame goes out first, so
// that the picture does not have to wait for the next one.
type lane struct {
	kind    webrtc.RTPCodecType
	history *media.History    // of what came in; answers the local server's NACKs too
	last    *atomic.Int64     // when the last packet came, in Unix nanoseconds; shared by the session's lanes
	report  func(step string) // records a step
	fail    func(err error)   // ends the session

	// What is published; fixed before out is made, which is before the lane opens.
	codec      webrtc.RTPCodecParameters
	extensions map[uint8]string
	out        *media.Sender

	track       atomic.Pointer[media.Track] // nil: not come yet
	payloadType atomic.Uint32               // of the track's packets

	through atomic.Bool   // packets go straight on
	started chan struct{} // closed with the first packet sent on

	mu      sync.Mutex // guards what follows, and the way to through
	opened  bool
	flowing bool   // at is set
	at      uint64 // position in the history of the next packet to send
	heard   *media.SenderReport

	seenPacket, seenKeyFrame bool
}

func newLane(kind webrtc.RTPCodecType, last *atomic.Int64, report func(string), fail func(error)) *lane {
	size := audioHistory
	if kind == webrtc.RTPCodecTypeVideo {
		size = videoHistory
	}
	return &lane{
		kind: kind, history: media.NewHistory(size), last: last, report: report, fail: fail, started: make(chan struct{}),
	}
}

// attach takes the parent's track as the lane's source.
func (l *lane) attach(t *media.Track) error {
	codec := t.Codec()
	if l.codec.MimeType != "" && !sameCodec(l.codec.RTPCodecCapability, codec.RTPCodecCapability) {
		return fmt.Errorf("its answer promised %s and it sends %s", l.codec.MimeType, codec.MimeType)
	}
	l.codec, l.extensions = codec, t.Extensions()
	l.payloadType.Store(uint32(codec.PayloadType))
	l.track.Store(t)
	return nil
}

// Packet implements media.Sink.
func (l *lane) Packet(p *media.Packet) {
	if uint32(p.Header.PayloadType) != l.payloadType.Load() && !l.follow(p.Header.PayloadType) {
		return
	}
	l.last.Store(p.Arrival.UnixNano())
	if l.through.Load() {
		l.history.Add(p)
		l.out.Packet(p)
		return
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.history.Add(p)
	if !l.seenPacket {
		l.seenPacket = true
		if l.kind == webrtc.RTPCodecTypeVideo && !p.KeyFrame {
			// Many servers begin with one anyway; then this wish stays free for the first viewer's.
			l.requestKeyFrame()
		}
	}
	if p.KeyFrame && !l.seenKeyFrame {
		l.seenKeyFrame = true
		l.report(StepFirstKeyFrame)
	}
	switch {
	case l.through.Load(): // flush came to the end in between
		l.out.Packet(p)
	case !l.opened || l.flowing:
		// Kept; flush sends it.
	case l.kind == webrtc.RTPCodecTypeAudio:
		l.at = l.history.Head() - 1
		l.flowing = true
		l.advanceLocked(burstPackets)
	case p.KeyFrame:
		l.advanceLocked(burstPackets)
	}
}

// SenderReport implements media.Sink. The last one is kept for the moment when the lane opens.
func (l *lane) SenderReport(r media.SenderReport) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = &r
	if l.through.Load() {
		l.out.SenderReport(r)
	}
}

// follow says whether packets of another payload type can go on as if nothing had happened; if not, the session ends.
func (l *lane) follow(payloadType uint8) bool {
	t := l.track.Load()
	codec := t.Codec()
	if uint8(codec.PayloadType) == payloadType && sameCodec(l.codec.RTPCodecCapability, codec.RTPCodecCapability) {
		l.payloadType.Store(uint32(payloadType))
		return true
	}
	l.fail(fmt.Errorf("its %s changed from %s to %s", l.kind, l.codec.MimeType, codec.MimeType))
	return false
}

// requestKeyFrame passes a wish on to the parent; media.Track merges wishes and spaces them.
func (l *lane) requestKeyFrame() {
	if t := l.track.Load(); t != nil {
		t.RequestKeyFrame()
	}
}

// open lets packets into the local server, which is connected now, and returns once they flow by themselves or wait for
// the parent: for its first audio packet, or a key frame.
func (l *lane) open(ctx context.Context) error {
	l.mu.Lock()
	l.opened = true
	l.mu.Unlock()
	if l.kind == webrtc.RTPCodecTypeAudio {
		return nil // what was said before anybody listened is not worth catching up with
	}
	tick := time.NewTicker(burstInterval)
	defer tick.Stop()
	for {
		l.mu.Lock()
		more := l.advanceLocked(burstPackets)
		l.mu.Unlock()
		if !more {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// advanceLocked sends up to n of the kept packets, beginning with the newest key frame, and says whether there are more.
// When there are none, packets go straight on from now on.
func (l *lane) advanceLocked(n int) (more bool) {
	if l.through.Load() {
		return false
	}
	if !l.flowing {
		if l.at, l.flowing = l.history.KeyFrame(); !l.flowing {
			if l.seenPacket {
				l.requestKeyFrame()
			}
			return false
		}
	}
	var p media.Packet
	for range n {
		switch l.history.At(l.at, &p) {
		case media.Read:
			l.at++
			l.out.Packet(&p)
		case media.Overrun: // the group of pictures has outgrown the history
			l.flowing = false
			l.requestKeyFrame()
			return false
		case media.Future:
			l.through.Store(true)
			if l.heard != nil {
				l.out.SenderReport(*l.heard)
			}
			close(l.started)
			return false
		}
	}
	return true
}

// sameCodec says whether packets of one codec can take the place of the other's without new negotiation. Profile and
// level are labels that servers put on as they please.
func sameCodec(a, b webrtc.RTPCodecCapability) bool {
	return strings.EqualFold(a.MimeType, b.MimeType) && a.ClockRate == b.ClockRate &&
		max(a.Channels, 1) == max(b.Channels, 1)
}
