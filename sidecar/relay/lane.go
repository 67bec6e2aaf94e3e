package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	videoHistory = 512 // packets: two seconds at 2 Mbit/s
	audioHistory = 128
	// A stream of more than that keeps a time, up to so many packets.
	historyTime = time.Second
	historyMost = 4096

	// What was kept while the local server connected goes out in bursts: a receive buffer of Linux' default size holds
	// 92 packets of full size, and other streams want room in it too.
	burstPackets  = 32
	burstInterval = 5 * time.Millisecond

	// One cycle of sequence numbers; extended ones begin there, so that there are some below the first.
	cycle = 1 << 16

	// For so many sequence numbers behind a seam, what comes late is looked at: is it from before?
	seamWindow = 1 << 12

	// Behind a seam, packets wait for one that may be missing before them until there are so many, or for so long.
	seekPackets = 32
	seekTime    = 50 * time.Millisecond

	// Flowing video is silent after four times the longest of the recent intervals between frames, within these bounds; it does
	// not flow where that was longer than the sparse one.
	silenceMin     = 150 * time.Millisecond
	silenceMax     = 300 * time.Millisecond
	silenceFactor  = 4
	sparseInterval = 150 * time.Millisecond
)

// lane is the way of one kind of media through the relay. Its upper end is the feed that is current; its lower end, a
// Sender into the local server, stays the same for as long as the lane. Packets go through in the goroutine that reads the
// feed's connection.
//
// Until the lane is open, packets are only kept; once it is, what has come since the last key frame goes out first, so
// that the picture does not have to wait for the next one.
type lane struct {
	kind    webrtc.RTPCodecType
	history *media.History      // of what goes out, by the numbers it has there; answers the local server's NACKs too
	newest  *atomic.Int64       // when the last packet came, in Unix nanoseconds; shared by the session's lanes
	report  func(step string)   // records a step
	froze   func(time.Duration) // records how long nothing came while the source changed; nil: nobody wants to know

	// What is published; fixed before out is made, which is before the lane opens.
	codec      webrtc.RTPCodecParameters
	extensions map[uint8]string
	out        *media.Sender

	outlet atomic.Pointer[outlet] // on the way to out; nil: packets go there at once. What it points to is guarded by mu

	track   atomic.Pointer[media.Track] // of the current feed; nil: not come yet
	renewed atomic.Uint64               // times that the source began to send under another SSRC
	started chan struct{}               // closed with the first packet sent on

	mu      sync.Mutex // guards what follows
	current *feed
	next    *feed         // takes over at the end of the frame that is under way
	over    chan struct{} // closed when it has
	through bool          // packets go straight on
	opened  bool
	flowing bool   // at is set
	at      uint64 // position in the history of the next packet to send
	heard   *media.SenderReport
	spare   *spare // of a second copy; nil: there is none

	// What a spare has filled in up to a number may still come by the current feed.
	filled   bool
	filledTo uint16

	seenPacket, seenKeyFrame bool

	past  media.TrackStats // of the tracks before the current one
	delay delay

	keyAt    time.Time // when a key frame came last
	brokeOff time.Time // when the last packet of the source before came; zero once the current one has sent one
	last     edge
	arrival  time.Time // of the last packet
	frameAt  time.Time // of the newest frame's first packet
	interval time.Duration
}

// edge is the newest packet of a lane, by sequence number.
type edge struct {
	sequence  uint16
	timestamp uint32
	marker    bool
	ok        bool
}

// feed is a source's track on its way into a lane: kept until the lane's seam is known, then sent on by the lane's numbers.
type feed struct {
	lane       *lane
	track      *media.Track
	fail       func(error) // the source cannot be gone on with
	codec      webrtc.RTPCodecParameters
	extensions map[uint8]string
	descriptor uint8 // id of the dependency descriptor

	// What follows is guarded by the lane.
	payloadType uint8
	kept        *media.History // nil once packets go straight to the lane
	done        bool           // another feed has taken over
	heard       *media.SenderReport

	moved   bool // numbers change
	shift   media.Shift
	highest uint64 // extended sequence number, as it came
	started bool
	exact   bool
	from    uint16 // exact: what was lost since then is filled in
	seeking bool   // the first packet behind the seam has not come
	before  uint64 // the highest extended sequence number that lies before the seam
	first   uint64 // the first that lies behind it
	held    []held // what seems to lie behind it, while that is not sure
	after   edge   // where the lane ended
	late    bool   // it came when the source had taken over: its first packet does that for it

	filled atomic.Uint64 // holes of another feed's that this one has filled: packets, or frames
}

var _ media.Sink = (*feed)(nil)

type held struct {
	extended uint64
	packet   *media.Packet
}

func newLane(kind webrtc.RTPCodecType, newest *atomic.Int64, report func(string)) *lane {
	l := &lane{
		kind: kind, history: media.NewHistory(historyOf(kind)), newest: newest, report: report, started: make(chan struct{}),
	}
	l.history.Keep(historyTime, historyMost)
	return l
}

func historyOf(kind webrtc.RTPCodecType) int {
	if kind == webrtc.RTPCodecTypeVideo {
		return videoHistory
	}
	return audioHistory
}

// newFeed makes a feed of a track that has the lane's codec.
func (l *lane) newFeed(t *media.Track, fail func(error)) (*feed, error) {
	codec := t.Codec()
	if l.codec.MimeType != "" && !sameCodec(l.codec.RTPCodecCapability, codec.RTPCodecCapability) {
		return nil, fmt.Errorf("%w: it sends %s in place of %s", ErrCodecDiffers, codec.MimeType, l.codec.MimeType)
	}
	f := &feed{
		lane: l, track: t, fail: fail, codec: codec, extensions: t.Extensions(),
		payloadType: uint8(codec.PayloadType),
	}
	for id, uri := range f.extensions {
		if uri == media.DependencyDescriptor {
			f.descriptor = id
		}
	}
	return f, nil
}

// begin makes the lane's first feed the current one. Its numbers are those that go out.
func (l *lane) begin(f *feed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out == nil {
		l.codec, l.extensions = f.codec, f.extensions
	} else {
		l.out.SetExtensions(f.extensions)
	}
	l.current = f
	l.track.Store(f.track)
}

// Packet implements media.Sink.
func (f *feed) Packet(p *media.Packet) {
	l := f.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.Header.PayloadType != f.payloadType && !f.followLocked(p.Header.PayloadType) || f.done {
		return
	}
	if l.current == f {
		l.newest.Store(p.Arrival.UnixNano())
	}
	if l.current == f && f.kept == nil {
		l.takeLocked(f, p)
		return
	}
	if f.late {
		f.joinLocked(p)
		return
	}
	if f.kept == nil {
		f.kept = media.NewHistory(historyOf(l.kind))
		if l.spare != nil && l.spare.feed == f {
			f.kept.Keep(historyTime, historyMost)
		}
	}
	f.kept.Add(p)
	if l.spare != nil && l.spare.feed == f {
		l.spareCameLocked(p)
	}
}

// joinLocked lets a feed take over by itself, whose other tracks have done so: at once, or at a key frame. Timestamps go on by
// the time of arrival.
func (f *feed) joinLocked(p *media.Packet) {
	l := f.lane
	if l.kind == webrtc.RTPCodecTypeVideo && !p.KeyFrame {
		f.track.RequestKeyFrame()
		return
	}
	f.late = false
	f.moved, f.seeking = true, true
	passed := max(ticks(p.Arrival.Sub(l.arrival), l.codec.ClockRate), uint32(tolerance(l.codec.ClockRate))+1)
	f.shift.Timestamp = l.last.timestamp + passed - p.Header.Timestamp
	l.switchLocked(f)
	f.kept = nil
	l.takeLocked(f, p)
}

// SenderReport implements media.Sink. The last one is kept for the moment when the lane opens, or the feed takes over.
func (f *feed) SenderReport(r media.SenderReport) {
	l := f.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	f.heard = &r
	if l.current == f && !f.seeking && f.kept == nil {
		f.reportLocked()
	}
}

// reportLocked hands on what the source said of its clocks, by the timestamps that go out.
func (f *feed) reportLocked() {
	if f.heard == nil {
		return
	}
	l := f.lane
	l.heard = &media.SenderReport{NTP: f.heard.NTP, RTP: f.heard.RTP + f.shift.Timestamp}
	if l.through {
		l.out.SenderReport(*l.heard)
	}
}

// followLocked says whether packets of another payload type can go on as if nothing had happened.
func (f *feed) followLocked(payloadType uint8) bool {
	codec := f.track.Codec()
	if uint8(codec.PayloadType) == payloadType && sameCodec(f.lane.codec.RTPCodecCapability, codec.RTPCodecCapability) {
		f.payloadType = payloadType
		return true
	}
	f.fail(fmt.Errorf("%w: its %s changed from %s to %s", ErrCodecDiffers, f.lane.kind, f.lane.codec.MimeType, codec.MimeType))
	return false
}

// takeLocked takes the current feed's next packet, and says whether it was one to be sent.
func (l *lane) takeLocked(f *feed, p *media.Packet) bool {
	if f.seeking {
		return l.seekLocked(f, p)
	}
	if f.moved && !f.placeLocked(p) {
		return false
	}
	if l.filled && l.hasFilledLocked(p.Header.SequenceNumber) || l.spare != nil && !l.guardLocked(f, p) {
		return false
	}
	position := l.history.Add(p)
	if !l.brokeOff.IsZero() {
		if l.froze != nil {
			l.froze(time.Since(l.brokeOff))
		}
		l.brokeOff = time.Time{}
	}
	l.noteLocked(p)
	if l.through {
		l.sendLocked(p, position)
		l.delay.sample(p)
		if l.next != nil && l.endsLocked() {
			l.switchLocked(l.next)
		}
		return true
	}

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
	case !l.opened || l.flowing:
		// Kept; flush sends it.
	case l.kind == webrtc.RTPCodecTypeAudio:
		l.at = l.history.Head() - 1
		l.flowing = true
		l.advanceLocked(burstPackets)
	case p.KeyFrame:
		l.advanceLocked(burstPackets)
	}
	return true
}

// noteLocked keeps what the next seam, and the watch for silence, must know of a packet.
func (l *lane) noteLocked(p *media.Packet) {
	h := &p.Header
	l.arrival = p.Arrival
	if p.KeyFrame {
		l.keyAt = p.Arrival
	}
	if l.last.ok && int16(h.SequenceNumber-l.last.sequence) <= 0 {
		return
	}
	if !l.last.ok || h.Timestamp != l.last.timestamp {
		if !l.frameAt.IsZero() {
			l.interval = max(p.Arrival.Sub(l.frameAt), l.interval-l.interval/16)
		}
		l.frameAt = p.Arrival
	}
	l.last = edge{sequence: h.SequenceNumber, timestamp: h.Timestamp, marker: h.Marker, ok: true}
	if l.spare != nil {
		l.spare.reached(h.Timestamp, p.Arrival, l.codec.ClockRate)
	}
}

// placeLocked gives a packet the lane's numbers, and says whether it lies behind the seam.
func (f *feed) placeLocked(p *media.Packet) bool {
	l := f.lane
	extended := f.extendLocked(p.Header.SequenceNumber)
	timestamp := p.Header.Timestamp + f.shift.Timestamp
	if f.exact {
		p.Shift(f.codec.MimeType, f.descriptor, f.shift)
		if extended > f.first {
			return true
		}
		seq := p.Header.SequenceNumber
		return int16(seq-f.from) >= 0 && !l.history.Has(seq)
	}
	late := f.after.ok && int32(timestamp-f.after.timestamp) <= tolerance(l.codec.ClockRate)
	if extended < f.first || late && extended < f.first+seamWindow {
		return false
	}
	p.Shift(f.codec.MimeType, f.descriptor, f.shift)
	return true
}

// seekLocked looks for the first packet behind the seam, among those that may come out of order: no number shall be left out.
func (l *lane) seekLocked(f *feed, p *media.Packet) (sent bool) {
	extended := f.extendLocked(p.Header.SequenceNumber)
	timestamp := p.Header.Timestamp + f.shift.Timestamp
	if f.after.ok && int32(timestamp-f.after.timestamp) <= tolerance(l.codec.ClockRate) {
		f.before = max(f.before, extended)
	} else {
		f.held = append(f.held, held{extended, p.Clone()})
	}
	if len(f.held) == 0 {
		return false
	}
	slices.SortFunc(f.held, func(a, b held) int { return cmp.Compare(a.extended, b.extended) })
	first := f.held[0]
	if f.before > 0 && first.extended > f.before+1 && len(f.held) < seekPackets && p.Arrival.Sub(first.packet.Arrival) < seekTime {
		return false
	}
	f.first = first.extended
	if f.before > 0 {
		f.first = f.before + 1
	}
	f.seeking = false
	f.shift.Sequence = f.after.sequence + 1 - uint16(f.first)
	if f.kept == nil {
		f.reportLocked()
	}
	for _, h := range f.held {
		sent = l.takeLocked(f, h.packet) || sent
	}
	f.held = nil
	return sent
}

// extendLocked tells sequence numbers of one cycle from those of another.
func (f *feed) extendLocked(seq uint16) uint64 {
	if !f.started {
		f.started, f.highest = true, cycle|uint64(seq)
	}
	extended := f.highest + uint64(int64(int16(seq-uint16(f.highest))))
	f.highest = max(f.highest, extended)
	return extended
}

// requestKeyFrame passes a wish on to the source; media.Track merges wishes and spaces them.
func (l *lane) requestKeyFrame() {
	if t := l.track.Load(); t != nil {
		t.RequestKeyFrame()
	}
}

// tellClock hands on what the source has said of its clocks, if it has.
func (l *lane) tellClock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.heard != nil {
		l.out.SenderReport(*l.heard)
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
	if l.through {
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
			l.sendLocked(&p, l.at)
			l.at++
		case media.Overrun: // the group of pictures has outgrown the history
			l.flowing = false
			l.requestKeyFrame()
			return false
		case media.Future:
			l.through = true
			if l.heard != nil {
				l.out.SenderReport(*l.heard)
			}
			close(l.started)
			return false
		}
	}
	return true
}

// patience is when the lane's last packet came, and for how long none may come before flowing video counts as silent; 0 where it
// does not flow, or comes too seldom to tell.
func (l *lane) patience() (last time.Time, patience time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.through || l.interval > sparseInterval || l.interval == 0 {
		return l.arrival, 0
	}
	return l.arrival, min(max(l.interval*silenceFactor, silenceMin), silenceMax)
}

// windows copies what went out last and what has come of a feed that has not taken over, both in order of sequence number.
func (l *lane) windows(f *feed, before, after []media.Packet) (_, _ []media.Packet) {
	before, _ = l.history.All(before)
	l.mu.Lock()
	kept := f.kept
	l.mu.Unlock()
	if kept == nil {
		return inOrder(before), nil
	}
	after, _ = kept.All(after)
	return inOrder(before), inOrder(after)
}

// exactly lets a feed take over at once that is packed as the current one is.
func (l *lane) exactly(ctx context.Context, f *feed, s seam) error {
	l.mu.Lock()
	f.moved, f.exact, f.from, f.shift = true, true, s.from, s.shift
	// Nothing of it has been looked at yet, so the end of the lane says which cycle it counts from.
	end := l.last.sequence - s.shift.Sequence
	f.started, f.highest = true, cycle|uint64(end)
	f.first = f.highest
	l.switchLocked(f)
	l.mu.Unlock()
	return l.catchUp(ctx, f)
}

// aligned lets a feed take over, at the end of the frame that the lane is at, whose timestamps are known to lie as shift says.
// It fails with errBrokeOff where that end does not come.
func (l *lane) aligned(ctx context.Context, f *feed, shift media.Shift, flows func() bool) error {
	l.mu.Lock()
	f.moved, f.seeking, f.shift = true, true, shift
	l.mu.Unlock()
	if err := l.takeOver(ctx, f, flows); err != nil {
		return err
	}
	return l.catchUp(ctx, f)
}

// atKeyFrame lets a feed take over at a key frame that it keeps, whose first packet has the sequence number first.
func (l *lane) atKeyFrame(ctx context.Context, f *feed, first uint16, shift media.Shift, flows func() bool) error {
	l.mu.Lock()
	f.moved, f.shift = true, shift
	f.started, f.highest = true, cycle|uint64(first)
	f.first = f.highest
	l.mu.Unlock()
	err := l.takeOver(ctx, f, flows)
	if errors.Is(err, errBrokeOff) {
		// The rest of the frame is given up. To leave out a number would let the far end wait for it.
		l.mu.Lock()
		l.switchLocked(f)
		l.mu.Unlock()
	} else if err != nil {
		return err
	}
	return l.catchUp(ctx, f)
}

// errBrokeOff says that the old source ended in the middle of a frame, while its end was waited for.
var errBrokeOff = errors.New("the old source broke off")

// takeOver makes a feed the current one at the end of a frame. Where the current feed still flows, as flows says, that is waited
// for.
func (l *lane) takeOver(ctx context.Context, f *feed, flows func() bool) error {
	over := make(chan struct{})
	l.mu.Lock()
	if l.endsLocked() {
		l.switchLocked(f)
		l.mu.Unlock()
		return nil
	}
	l.next, l.over = f, over
	l.mu.Unlock()
	began := time.Now()
	tick := time.NewTicker(alignTick)
	defer tick.Stop()
	for {
		broken := !flows() // it takes the lock
		l.mu.Lock()
		switch {
		case l.current == f:
			l.mu.Unlock()
			return nil
		case broken:
			l.next, l.over = nil, nil
			l.mu.Unlock()
			return errBrokeOff
		case time.Since(began) > boundaryPatience: // a publisher that does not mark the ends of frames
			l.switchLocked(f)
		}
		l.mu.Unlock()
		select {
		case <-over:
		case <-tick.C:
		case <-ctx.Done():
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.current == f {
				return nil
			}
			l.next, l.over = nil, nil
			return context.Cause(ctx)
		}
	}
}

// endsLocked says whether the lane ends with a whole frame, or packets of sound without a hole: what came out of order behind
// a seam would be too late.
func (l *lane) endsLocked() bool {
	if !l.last.ok {
		return true
	}
	if l.kind == webrtc.RTPCodecTypeAudio {
		return l.history.Has(l.last.sequence-1) && l.history.Has(l.last.sequence-2) || l.history.Head() < 3
	}
	if !l.last.marker {
		return false
	}
	var p media.Packet
	for seq := l.last.sequence; ; seq-- {
		switch {
		case seq == l.last.sequence+1, !l.history.Sequence(seq, &p):
			return false
		case p.Header.Timestamp != l.last.timestamp:
			return true
		}
	}
}

// switchLocked makes a feed the current one.
func (l *lane) switchLocked(f *feed) {
	old := l.current
	if old != nil {
		old.done = true
		l.brokeOff = l.arrival
	}
	if l.spare != nil {
		l.spare.renew()
	}
	if t := l.track.Load(); t != nil {
		l.past = l.past.Plus(t.Stats())
	}
	if f.kept == nil {
		f.kept = media.NewHistory(historyOf(l.kind))
	}
	f.after = l.last
	if f.moved && !f.exact && !f.seeking {
		f.shift.Sequence = l.last.sequence + 1 - uint16(f.first)
	}
	l.current = f
	l.track.Store(f.track)
	if l.out != nil {
		if o := l.outlet.Load(); o != nil && old != nil && !maps.Equal(old.extensions, f.extensions) {
			o.flush() // what waits has its extensions by the old ids
		}
		l.out.SetExtensions(f.extensions)
	}
	l.interval, l.frameAt = 0, time.Time{}
	if l.next != nil {
		close(l.over)
		l.next, l.over = nil, nil
	}
}

// catchUp sends what was kept of a feed that has taken over. When it returns without error, packets go straight on.
func (l *lane) catchUp(ctx context.Context, f *feed) error {
	tick := time.NewTicker(burstInterval)
	defer tick.Stop()
	packets, at := f.kept.All(nil)
	packets = inOrder(packets)
	sent := 0
	for i := range packets {
		l.mu.Lock()
		if l.takeLocked(f, &packets[i]) {
			sent++
		}
		l.mu.Unlock()
		if sent < burstPackets {
			continue
		}
		sent = 0
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	var p media.Packet
	for {
		l.mu.Lock()
		switch f.kept.At(at, &p) {
		case media.Read:
			at++
			l.takeLocked(f, &p)
		case media.Overrun:
			at = f.kept.Head()
			l.requestKeyFrame()
		case media.Future:
			f.kept = nil
			if !f.seeking {
				f.reportLocked()
			}
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
	}
}

// finish completes the frame in whose middle the lane broke off, of another copy's packets.
func (l *lane) finish(mime string, broken, whole []media.Packet) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.finishLocked(mime, broken, whole)
}

func (l *lane) finishLocked(mime string, broken, whole []media.Packet) bool {
	payloads, ok := media.Rest(mime, broken, whole)
	if !ok {
		return false
	}
	now := time.Now()
	for i, payload := range payloads {
		p, err := media.NewPacket(rtp.Header{
			Version: 2, Marker: i == len(payloads)-1, PayloadType: uint8(l.codec.PayloadType),
			SequenceNumber: l.last.sequence + 1, Timestamp: l.last.timestamp,
		}, payload)
		if err != nil {
			return false // cannot be: there is nothing in the header that could be wrong
		}
		p.Arrival = now
		position := l.history.Add(p)
		l.noteLocked(p)
		l.sendLocked(p, position)
	}
	l.last.marker = true
	return true
}

// sameCodec says whether packets of one codec can take the place of the other's without new negotiation. Profile and
// level are labels that servers put on as they please.
func sameCodec(a, b webrtc.RTPCodecCapability) bool {
	return strings.EqualFold(a.MimeType, b.MimeType) && a.ClockRate == b.ClockRate &&
		max(a.Channels, 1) == max(b.Channels, 1)
}
