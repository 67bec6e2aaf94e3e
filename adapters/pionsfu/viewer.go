package pionsfu

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	// batch is how many packets of one track go out before the other has its turn, so that a burst of video does not hold
	// up audio.
	batch = 32
	// A viewer begins with a key frame that lies no further back than this, and gets what has come since faster than in real
	// time. Bursts are broken up: more at once would overflow the receive buffer of an ordinary viewer.
	joinAge      = time.Second
	joinPackets  = 448 // half a megabyte
	joinSpeed    = 4
	burst        = 64
	burstSpacing = 5 * time.Millisecond
	// lookAgain is how often a viewer's layer is chosen anew.
	lookAgain = 250 * time.Millisecond
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
	mid    string
	codec  *webrtc.RTPCodecParameters // what the viewer was promised
	sender *media.Sender
	out    output // sender, except in tests

	layer     *layer
	choice    atomic.Pointer[string] // the layer that the viewer wants; nil: which is best
	asked     atomic.Pointer[layer]  // whom its key frame requests go to: layer, or the one that is to be next
	chosen    time.Time              // when the layers were looked at last
	next      *layer                 // takes over at a key frame that begins at nextSince or later; nil: none
	nextSince uint64
	shift     media.Shift // of the layer's numbers
	edge      edge        // with simulcast
	path      pathway     // to the far end, with simulcast
	ladder    ladder      // likewise
	paced     time.Time   // when the next packet may go; zero: at once

	cursor  uint64 // position in the layer's history that comes next
	waiting bool   // for a key frame that begins at since or later
	since   uint64
	join    join
	sent    bool
	first   uint64 // position of the last beginning, and its sequence number
	number  uint16
	report  *media.SenderReport // passed on last
	source  *source
	packet  media.Packet

	skips, switches atomic.Uint64
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
		if err := t.SetCodecPreferences(withRepair(taken, among)); err != nil {
			return fmt.Errorf("prefer %s: %w", taken.MimeType, err)
		}
		l := v.addLane(f, codec, taken.RTPCodecCapability)
		l.mid = t.Mid()
		if _, err := pc.AddTrack(l.sender); err != nil {
			return fmt.Errorf("add %s: %w", f.kind, err)
		}
	}
	v.order()
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

// propose adds a sender for each feed, with the codec that carries it.
func (v *viewer) propose(pc *webrtc.PeerConnection) error {
	for _, f := range v.source.feeds {
		codec := f.codec.Load()
		l := v.addLane(f, codec, codec.RTPCodecCapability)
		t, err := pc.AddTransceiverFromTrack(l.sender, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
		if err != nil {
			return fmt.Errorf("add %s: %w", f.kind, err)
		}
		among := t.Sender().GetParameters().Codecs
		taken, ok := media.MatchCodec(codec.RTPCodecCapability, among)
		if !ok {
			return fmt.Errorf("offer %s: there is no payload type for it", codec.MimeType)
		}
		if err := t.SetCodecPreferences(withRepair(taken, among)); err != nil {
			return fmt.Errorf("prefer %s: %w", taken.MimeType, err)
		}
	}
	// The sections are numbered as the feeds are.
	for i, l := range v.lanes {
		l.mid = strconv.Itoa(i)
	}
	v.order()
	return nil
}

// withRepair is a codec, and what repairs it.
func withRepair(taken webrtc.RTPCodecParameters, among []webrtc.RTPCodecParameters) []webrtc.RTPCodecParameters {
	preferred := []webrtc.RTPCodecParameters{taken}
	for _, c := range among {
		if strings.EqualFold(c.MimeType, webrtc.MimeTypeRTX) && c.SDPFmtpLine == fmt.Sprintf("apt=%d", taken.PayloadType) {
			preferred = append(preferred, c)
		}
	}
	return preferred
}

// addLane makes the lane of a feed, and its sender.
func (v *viewer) addLane(f *feed, codec *webrtc.RTPCodecParameters, taken webrtc.RTPCodecCapability) *lane {
	l := newLane(f, codec)
	options := media.SenderOptions{
		Congestion: v.source.layered(),
		Kind:       f.kind, Codec: taken, ID: f.kind.String(), StreamID: "sidestream",
		Extensions: l.layer.extensions(), OnKeyFrameRequest: func() { l.asked.Load().RequestKeyFrame() },
	}
	if len(f.layers) == 1 {
		options.History = l.layer.history // else what goes out is no layer's, and kept for this viewer alone
	}
	l.sender = v.session.conn.NewSender(options)
	l.out = l.sender
	l.path = pathTo{v.session.conn, l.sender}
	v.lanes = append(v.lanes, l)
	return l
}

// order puts the lanes as they go out.
func (v *viewer) order() {
	// Sound goes first: what is little does not wait for what is much.
	slices.SortStableFunc(v.lanes, func(a, b *lane) int { return cmp.Compare(a.feed.kind, b.feed.kind) })
	for _, l := range v.lanes {
		if v.lanes[0].feed.kind == webrtc.RTPCodecTypeAudio {
			l.ladder.sound = soundRoom
		}
	}
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
	pace := time.NewTimer(0)
	defer pace.Stop()
	for {
		more, due, err := v.pump()
		if err != nil {
			return err
		}
		var idle <-chan struct{}
		if more {
			idle = closed
		}
		var paced <-chan time.Time
		if !due.IsZero() {
			pace.Reset(time.Until(due))
			paced = pace.C
		}
		select {
		case <-v.session.lost.c:
			return errLost
		case <-v.session.deleted.c:
			return errDeleted
		case <-v.source.ended:
			return errSourceGone
		case <-ctx.Done():
			return ctx.Err()
		case <-v.wakeup:
		case <-idle:
		case <-paced:
		}
	}
}

// pump sends what there is of every track, up to a batch of each, and says whether there may be more, and when what is held back is
// due.
func (v *viewer) pump() (more bool, due time.Time, err error) {
	v.session.conn.Hold()
	defer v.session.conn.Release()
	for _, l := range v.lanes {
		moved, err := l.pump()
		if err != nil {
			return false, due, err
		}
		more = more || moved
		for _, at := range []time.Time{l.join.due, l.paced, l.ladder.probe(l.path, time.Now())} {
			if !at.IsZero() && (due.IsZero() || at.Before(due)) {
				due = at
			}
		}
	}
	return more, due, nil
}

// closed is ready at once.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// newLane makes a lane that begins with the layer that is best now.
func newLane(f *feed, codec *webrtc.RTPCodecParameters) *lane {
	l := &lane{feed: f, codec: codec}
	l.take(f.layers[max(choose(f.standings(time.Now()), -1, "", 0, false), 0)])
	return l
}

// take makes a layer the lane's.
func (l *lane) take(next *layer) {
	l.layer, l.source, l.report = next, next.source.Load(), nil
	l.asked.Store(next)
}

// begin puts the lane at the live edge, or for video at a key frame: one that has just come, else the next, which it
// asks for.
func (l *lane) begin() {
	l.cursor, l.sent = l.layer.history.Head(), false
	if l.feed.kind != webrtc.RTPCodecTypeVideo {
		return
	}
	l.waiting, l.since = true, l.cursor
	if l.findKeyFrame() {
		return
	}
	l.layer.RequestKeyFrame()
}

// findKeyFrame ends the wait where the newest key frame will do.
func (l *lane) findKeyFrame() bool {
	h := l.layer.history
	position, ok := h.KeyFrame()
	head := h.Head()
	now := time.Now()
	if ok && position < l.since {
		ok = head-position <= joinPackets && h.At(position, &l.packet) == media.Read && now.Sub(l.packet.Arrival) <= joinAge
	}
	if !ok {
		l.cursor = head
		return false
	}
	l.cursor, l.waiting = position, false
	if h.At(position, &l.packet) == media.Read {
		l.join = join{behind: true, began: now, first: l.packet.Arrival, head: head}
	}
	return true
}

// join is how a viewer catches up with what had come before it did.
type join struct {
	behind bool
	began  time.Time
	first  time.Time // arrival of the first packet
	head   uint64    // the position that was to come next when it began
	sent   int
	due    time.Time // of the next packet; zero: it is not held back
}

// hold says whether the packet at a position, which arrived at a time, has to wait, and notes until when.
func (j *join) hold(position uint64, arrival, now time.Time) bool {
	due := j.began.Add(max(arrival.Sub(j.first)/joinSpeed, time.Duration(j.sent/burst)*burstSpacing))
	if position >= j.head && !due.After(now) {
		*j = join{}
		return false
	}
	if due.After(now) {
		j.due = due
		return true
	}
	j.sent++
	j.due = time.Time{}
	return false
}

// pump sends what there is, up to a batch, and says whether there may be more.
func (l *lane) pump() (more bool, err error) {
	if now := l.feed.codec.Load(); now != l.codec {
		if !sameCodec(now, l.codec) {
			return false, errNewCodec
		}
		l.codec = now
	}
	if len(l.feed.layers) > 1 {
		l.lookAround(time.Now())
	}
	if now := l.layer.source.Load(); now != l.source {
		if l.source != nil && l.sender != nil {
			l.sender.SetExtensions(now.track.Extensions())
		}
		l.source = now
		if l.waiting {
			l.layer.RequestKeyFrame()
		}
	}
	if l.waiting && !l.findKeyFrame() {
		return false, nil
	}
	l.paced = time.Time{}
	for range batch {
		switch l.layer.history.At(l.cursor, &l.packet) {
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
		if l.join.behind && l.join.hold(l.cursor, l.packet.Arrival, time.Now()) {
			l.passReport()
			return false, nil
		}
		if l.ladder.pacer.rate > 0 {
			if l.paced = l.ladder.pacer.hold(len(l.packet.Payload), time.Now()); !l.paced.IsZero() {
				l.passReport()
				return false, nil
			}
		}
		l.send()
		l.cursor++
		if l.next != nil && l.edge.marker && l.switchOver() {
			break
		}
	}
	l.passReport()
	return true, nil
}

// lookAround decides now and then which layer the viewer is to have, and asks that for a key frame. A layer that has died is
// left at once, others at the end of a frame.
func (l *lane) lookAround(now time.Time) {
	if now.Sub(l.chosen) >= lookAgain {
		l.chosen = now
		wanted := ""
		if choice := l.choice.Load(); choice != nil {
			wanted = *choice
		}
		all := l.feed.standings(now)
		have := slices.Index(l.feed.layers, l.layer)
		room, limited := l.ladder.room(l.path, now)
		if wanted == "" {
			l.ladder.consider(all, have, room, now)
		}
		switch to := l.feed.layers[choose(all, have, wanted, room, limited)]; {
		case to == l.layer:
			l.next = nil
			l.asked.Store(l.layer)
		case to != l.next:
			l.next, l.nextSince = to, to.history.Head()
			l.asked.Store(to)
		}
		if l.next != nil {
			l.next.RequestKeyFrame()
		}
	}
	if l.next != nil && (l.edge.marker || !l.edge.ok || !l.layer.alive(now)) {
		l.switchOver()
	}
}

// switchOver lets the next layer take over where it has a key frame, and says whether it did.
func (l *lane) switchOver() bool {
	next := l.next
	position, ok := next.history.KeyFrame()
	if !ok || next.history.At(position, &l.packet) != media.Read {
		return false
	}
	old := next.history.Head()-position > joinPackets
	if l.edge.ok {
		old = l.packet.Arrival.Before(l.edge.arrival) // the viewer has seen what it shows
	}
	if position < l.nextSince && old {
		return false
	}
	if l.edge.ok {
		l.shift = l.edge.follow(&l.packet, l.pictures(), l.layer.report.Load(), next.report.Load(), l.shift, l.codec.ClockRate)
	}
	l.ladder.moved(next.rate.bits.Load() > l.layer.rate.bits.Load(), time.Now())
	l.take(next)
	l.next = nil
	l.switches.Add(1)
	l.cursor, l.waiting, l.sent, l.join = position, false, false, join{}
	l.edge.marker = false
	return true
}

// pictures are the numbers of pictures in the packet at hand.
func (l *lane) pictures() media.Pictures { return l.packet.Pictures(l.codec.MimeType, l.descriptor()) }

// descriptor is the id of the dependency descriptor among the publisher's header extensions, 0 for none.
func (l *lane) descriptor() uint8 {
	if l.source == nil {
		return 0
	}
	return l.source.descriptor()
}

func (l *lane) send() {
	seq := l.packet.Header.SequenceNumber
	if !l.sent {
		l.sent, l.first, l.number = true, l.cursor, seq
	} else if l.cursor-l.first < reorder && int16(seq-l.number) < 0 {
		return // from before the beginning, late
	}
	if len(l.feed.layers) > 1 {
		l.packet.Shift(l.codec.MimeType, l.descriptor(), l.shift)
		l.note()
	}
	l.out.Packet(&l.packet)
}

// note keeps what another layer must know to go on.
func (l *lane) note() {
	h := &l.packet.Header
	if l.edge.ok && int16(h.SequenceNumber-l.edge.sequence) <= 0 {
		return
	}
	l.edge = edge{
		sequence: h.SequenceNumber, timestamp: h.Timestamp, pictures: l.pictures(), marker: h.Marker,
		arrival: l.packet.Arrival, ok: true,
	}
}

// passReport hands on the publisher's clocks, when they are news and there is something for them to explain.
func (l *lane) passReport() {
	if report := l.layer.report.Load(); report != nil && report != l.report && l.sent {
		l.report = report
		l.out.SenderReport(media.SenderReport{NTP: report.NTP, RTP: report.RTP + l.shift.Timestamp})
	}
}
