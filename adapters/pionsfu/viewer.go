package pionsfu

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	// batch is how many packets of one track go out before the other has its turn, so that a burst of video does not hold
	// up audio.
	batch = 32
	// burst is how far back, in packets, a key frame may lie for a viewer to begin with it. More at once would overflow the
	// receive buffer of an ordinary viewer.
	burst = 64
	// reorder is how long after a beginning, in packets, something older may still come in late.
	reorder = 2048
)

// viewer passes a publication's packets on to one client. It reads the feeds' histories at its own pace.
type viewer struct {
	session *session
	source  *publication
	lanes   []*lane
	wakeup  chan struct{} // capacity 1
}

// lane is one track on its way to one viewer. It belongs to the viewer's goroutine.
type lane struct {
	feed   *feed
	codec  *webrtc.RTPCodecParameters // what the viewer was promised
	sender *media.Sender
	out    output // sender, except in tests

	cursor  uint64 // position in the feed's history that comes next
	waiting bool   // for a key frame that begins at since or later
	since   uint64
	sent    bool
	first   uint64 // position of the last beginning, and its sequence number
	number  uint16
	report  *media.SenderReport // passed on last
	source  *source
	packet  media.Packet

	skips atomic.Uint64
}

// output is what a lane sends by.
type output interface {
	media.Sink
	Splice()
}

// choose picks from the viewer's offer, for each feed, the codec that carries it and adds a sender for it. It is refused
// where nothing fits.
func (v *viewer) choose(pc *webrtc.PeerConnection) error {
	var unmatched []string
	for _, f := range v.source.feeds {
		codec := f.codec.Load()
		t := transceiverOf(pc, f.kind)
		if t == nil {
			continue // not wanted
		}
		among := t.Receiver().GetParameters().Codecs
		taken, ok := media.MatchCodec(codec.RTPCodecCapability, among)
		if !ok {
			unmatched = append(unmatched, fmt.Sprintf("its %s is %s", f.kind, codec.MimeType))
			continue
		}
		preferred := []webrtc.RTPCodecParameters{taken}
		for _, c := range among {
			if strings.EqualFold(c.MimeType, webrtc.MimeTypeRTX) && c.SDPFmtpLine == fmt.Sprintf("apt=%d", taken.PayloadType) {
				preferred = append(preferred, c)
			}
		}
		if err := t.SetCodecPreferences(preferred); err != nil {
			return fmt.Errorf("prefer %s: %w", taken.MimeType, err)
		}
		sender := v.session.conn.NewSender(media.SenderOptions{
			Kind: f.kind, Codec: taken.RTPCodecCapability, ID: f.kind.String(), StreamID: "sidestream",
			Extensions: f.extensions, History: f.history, OnKeyFrameRequest: f.RequestKeyFrame,
		})
		if _, err := pc.AddTrack(sender); err != nil {
			return fmt.Errorf("add %s: %w", f.kind, err)
		}
		v.lanes = append(v.lanes, &lane{feed: f, codec: codec, sender: sender, out: sender, source: f.source.Load()})
	}
	if len(v.lanes) == 0 || len(unmatched) > 0 {
		if len(unmatched) == 0 {
			unmatched = []string{"it has no track of the kind that is offered"}
		}
		return &refusal{
			http.StatusUnprocessableEntity, "codec", "Stream cannot be played by this client",
			"The offer has no codec that fits the stream: " + strings.Join(unmatched, ", ") + ".",
		}
	}
	// A section for which the stream has no track is answered "inactive".
	for _, t := range pc.GetTransceivers() {
		if t.Sender() == nil {
			if err := t.Stop(); err != nil {
				return fmt.Errorf("stop %s: %w", t.Kind(), err)
			}
		}
	}
	return nil
}

func transceiverOf(pc *webrtc.PeerConnection, kind webrtc.RTPCodecType) *webrtc.RTPTransceiver {
	for _, t := range pc.GetTransceivers() {
		if t.Kind() == kind {
			return t
		}
	}
	return nil
}

// wake never blocks: a viewer that is behind has been woken already.
func (v *viewer) wake() {
	select {
	case v.wakeup <- struct{}{}:
	default:
	}
}

// forward passes packets on until the session ends, and says why it did.
func (v *viewer) forward(ctx context.Context) error {
	for _, l := range v.lanes {
		l.begin()
	}
	v.source.join(v)
	defer v.source.leave(v)
	for {
		more := false
		for _, l := range v.lanes {
			moved, err := l.pump()
			if err != nil {
				return err
			}
			more = more || moved
		}
		var idle <-chan struct{}
		if more {
			idle = closed
		}
		select {
		case <-v.session.lost.c:
			return errLost
		case <-v.session.deleted.c:
			return errDeleted
		case <-v.source.session.removed:
			return errSourceGone
		case <-ctx.Done():
			return ctx.Err()
		case <-v.wakeup:
		case <-idle:
		}
	}
}

// closed is ready at once.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// begin puts the lane at the live edge, or for video at a key frame: one that has just come, else the next, which it
// asks for.
func (l *lane) begin() {
	l.cursor, l.sent = l.feed.history.Head(), false
	if l.feed.kind != webrtc.RTPCodecTypeVideo {
		return
	}
	l.waiting, l.since = true, l.cursor
	if l.findKeyFrame() {
		return
	}
	l.feed.RequestKeyFrame()
}

// findKeyFrame ends the wait where the newest key frame will do.
func (l *lane) findKeyFrame() bool {
	position, ok := l.feed.history.KeyFrame()
	head := l.feed.history.Head()
	if !ok || position < l.since && head-position > burst {
		l.cursor = head
		return false
	}
	l.cursor, l.waiting = position, false
	return true
}

// pump sends what there is, up to a batch, and says whether there may be more.
func (l *lane) pump() (more bool, err error) {
	if now := l.feed.codec.Load(); now != l.codec {
		if !sameCodec(now, l.codec) {
			return false, errNewCodec
		}
		l.codec = now
	}
	if now := l.feed.source.Load(); now != l.source {
		if l.source != nil {
			return false, errNewCodec // another SSRC has other timestamps, which a viewer cannot follow
		}
		l.source = now
		if l.waiting {
			l.feed.RequestKeyFrame()
		}
	}
	if l.waiting && !l.findKeyFrame() {
		return false, nil
	}
	for range batch {
		switch l.feed.history.At(l.cursor, &l.packet) {
		case media.Future:
			l.passReport()
			return false, nil
		case media.Overrun:
			// Too slow: on to where the others are. What lies between is given up, and not to be asked for.
			l.skips.Add(1)
			l.out.Splice()
			l.begin()
			return !l.waiting, nil
		}
		l.send()
		l.cursor++
	}
	l.passReport()
	return true, nil
}

func (l *lane) send() {
	seq := l.packet.Header.SequenceNumber
	if !l.sent {
		l.sent, l.first, l.number = true, l.cursor, seq
	} else if l.cursor-l.first < reorder && int16(seq-l.number) < 0 {
		return // from before the beginning, late
	}
	l.out.Packet(&l.packet)
}

// passReport hands on the publisher's clocks, when they are news and there is something for them to explain.
func (l *lane) passReport() {
	if report := l.feed.report.Load(); report != nil && report != l.report && l.sent {
		l.report = report
		l.out.SenderReport(*report)
	}
}
