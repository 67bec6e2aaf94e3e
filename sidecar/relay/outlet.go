package relay

import (
	"time"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	// A key frame of hundreds of packets would overflow a receive buffer of Linux' default size, which holds 92 of full size, and
	// other streams want room in it too. So many packets may go out at once; then so many in each interval, or that part of what
	// waits, so that what waits cannot grow for ever.
	paceInterval = 2 * time.Millisecond
	pacePackets  = 16
	paceShare    = 8
	paceEach     = paceInterval / pacePackets

	// What comes after a packet that is missing waits for it: for as long as a repair may take that has to be asked for twice,
	// where it is video, once where it is sound, which is worse late than missing. Repairs come a round trip after they were asked
	// for; the second request goes half a round trip after the first would have been answered.
	videoRepair = 5 // halves of a round trip
	audioRepair = 2
	repairSlack = 40 * time.Millisecond
	// noticedBy is how many packets behind a gap tell when it was noticed.
	noticedBy = 16
	// unknownTrip stands for a round trip that was not measured yet.
	unknownTrip = 100 * time.Millisecond

	// maxJump and lateWindow tell late packets from those of a source that counts anew (RFC 3550, appendix A.1).
	maxJump    = 3000
	lateWindow = 4096
)

// sender is what an outlet sends by: a media.Sender.
type sender interface {
	Packet(p *media.Packet)
	// Splice makes the next packet follow the last one, whatever its number.
	Splice()
}

// outlet is the lower end of a lane: it sends packets on as the local server can take them. A burst is spread out. Where the
// server wants packets in order, what follows a missing one waits for it, for a bounded time; then what is missing is given up,
// the numbers close up, and of video the rest of a frame is left out that is not whole. Nothing waits where nothing is missing.
//
// What waits stands in the lane's history, so that waiting costs no memory. Time is that of arrival; only drain, which sends what
// waits for its turn, and gives up what does not come, is called by the clock. The caller guards it.
type outlet struct {
	to      sender
	history *media.History
	video   bool
	inOrder bool
	maxHold time.Duration        // 0: as long as repair takes
	trip    func() time.Duration // round trip to whom missing packets are asked for; 0: not known
	lost    func()               // a picture was given up
	wake    func()               // drain is wanted soon; nil: bursts are not spread out
	fill    *filler              // nil: holes stay

	now    time.Time
	due    time.Time // when drain will be called; zero: it will not
	tokens int
	filled time.Time // tokens are counted until then

	at, end uint64 // positions of what waits for its turn; where there is no order

	begun        bool
	next, newest uint16 // the number to be sent next, the newest that has come
	waits        bool   // for next, since then
	since        time.Time
	hold         time.Duration
	spliced      bool   // numbers close up at the next packet
	leaves       bool   // the frame of this timestamp is left out
	leftStamp    uint32 //
	last         edge   // of what was sent or left out

	packet media.Packet
	stats  outletStats
}

// outletStats counts what an outlet did.
type outletStats struct {
	waited  uint64 // packets that had to wait for one before them
	late    uint64 // that came after they were given up
	givenUp uint64 // numbers
	left    uint64 // packets of frames that were not whole
	paced   uint64 // packets that waited for their turn
	filled  uint64 // empty packets in the place of missing sound
}

// take sends a packet that stands in the history at a position, or lets it wait.
func (o *outlet) take(p *media.Packet, position uint64) {
	if p.Arrival.After(o.now) {
		o.now = p.Arrival
	}
	if o.inOrder {
		o.order(p)
		return
	}
	if o.at == o.end {
		o.at, o.end = position, position
		if o.turn() {
			o.at, o.end = position+1, position+1
			o.send(p)
			return
		}
	}
	o.end = position + 1
	o.stats.paced++
	o.wakeBy(o.now.Add(paceInterval))
}

// wakeBy has drain called at a time, or soon.
func (o *outlet) wakeBy(t time.Time) {
	if o.wake != nil && (o.due.IsZero() || t.Before(o.due)) {
		o.due = t
		o.wake()
	}
}

// turn says whether a packet may go out now.
func (o *outlet) turn() bool {
	if o.wake == nil || !o.video {
		return true
	}
	if o.tokens < burstPackets {
		if n := int(o.now.Sub(o.filled) / paceEach); n > 0 {
			o.tokens = min(o.tokens+n, burstPackets)
			o.filled = o.filled.Add(time.Duration(n) * paceEach)
		}
	}
	if o.tokens <= 0 {
		return false
	}
	if o.tokens == burstPackets {
		o.filled = o.now
	}
	o.tokens--
	return true
}

// drain sends what waits and may go out by now, and says when to call again; zero where nothing waits.
func (o *outlet) drain(now time.Time) (again time.Time) {
	if now.After(o.now) {
		o.now = now
	}
	o.tokens += o.backlog() / paceShare
	if o.inOrder {
		o.forward(nil)
	}
	for o.at < o.end && o.turn() {
		o.sendWaiting()
	}
	switch {
	case o.backlog() > 0:
		o.due = now.Add(paceInterval)
	case o.waits:
		o.due = o.since.Add(o.hold)
	default:
		o.due = time.Time{}
	}
	return o.due
}

// flush sends all that waits, and gives up what is missing between.
func (o *outlet) flush() {
	for o.at < o.end {
		o.sendWaiting()
	}
	for o.begun && o.more() {
		if p := o.waiting(nil); p != nil {
			o.next++
			o.emit(p)
		} else {
			o.giveUp()
		}
	}
	o.waits = false
}

// backlog counts what waits for its turn.
func (o *outlet) backlog() int {
	if !o.inOrder {
		return int(o.end - o.at)
	}
	if o.waits || !o.begun {
		return 0
	}
	return int(o.newest - o.next + 1)
}

func (o *outlet) sendWaiting() {
	position := o.at
	o.at++
	switch o.history.At(position, &o.packet) {
	case media.Read:
		o.send(&o.packet)
	case media.Overrun: // it was more than is kept
		o.at = o.end
		o.lost()
	case media.Future:
		o.at = o.end
	}
}

// order takes the next packet where packets go out in order.
func (o *outlet) order(p *media.Packet) {
	seq := p.Header.SequenceNumber
	d := int16(seq - o.next)
	switch {
	case !o.begun:
		o.begin(p)
	case d > maxJump || d < -lateWindow:
		o.flush()
		o.spliced = true
		o.begin(p)
	case d < 0:
		o.stats.late++
		return
	}
	if int16(seq-o.newest) > 0 {
		o.newest = seq
	}
	if seq != o.next {
		o.stats.waited++
	}
	o.forward(p)
}

// begin lets the numbers begin with a packet, or with those of its frame that came after it.
func (o *outlet) begin(p *media.Packet) {
	seq := p.Header.SequenceNumber
	o.begun, o.waits, o.next, o.newest = true, false, seq, seq
	if !o.video {
		return
	}
	for range burstPackets {
		if !o.history.Sequence(o.next-1, &o.packet) || o.packet.Header.Timestamp != p.Header.Timestamp {
			return
		}
		o.next--
	}
}

// more says whether anything has come that was not sent.
func (o *outlet) more() bool { return int16(o.newest-o.next) >= 0 }

// waiting is the packet to be sent next, nil where it is missing. p, which may be nil, is one that has just come.
func (o *outlet) waiting(p *media.Packet) *media.Packet {
	if p != nil && p.Header.SequenceNumber == o.next {
		return p
	}
	if o.history.Sequence(o.next, &o.packet) {
		return &o.packet
	}
	return nil
}

// forward sends what follows without a gap, and what is behind a gap that was waited for long enough.
func (o *outlet) forward(p *media.Packet) {
	for o.begun && o.more() {
		q := o.waiting(p)
		if q == nil {
			if !o.patient() {
				o.giveUp()
				continue
			}
			return
		}
		o.waits = false
		if !o.turn() {
			o.stats.paced++
			o.wakeBy(o.now.Add(paceInterval))
			return
		}
		o.next++
		o.emit(q)
	}
}

// patient says whether the packet to be sent next, which is missing, is waited for any longer.
func (o *outlet) patient() bool {
	if !o.waits {
		o.waits, o.since = true, o.noticed()
		trip := unknownTrip
		if o.trip != nil {
			if t := o.trip(); t > 0 {
				trip = t
			}
		}
		if o.video {
			o.hold = trip*videoRepair/2 + repairSlack
		} else {
			o.hold = trip*audioRepair/2 + repairSlack
		}
		if o.maxHold > 0 {
			o.hold = min(o.hold, o.maxHold)
		}
		o.wakeBy(o.since.Add(o.hold))
	}
	return o.now.Sub(o.since) < o.hold && int(o.newest-o.next) < o.history.Room()*3/4
}

// noticed is when the first packet came that lies behind the gap: it may be that another one was waited for then. The first by
// number may have been late itself.
func (o *outlet) noticed() time.Time {
	first, seq := o.now, o.after()
	for range noticedBy {
		if o.history.Sequence(seq, &o.packet) && o.packet.Arrival.Before(first) {
			first = o.packet.Arrival
		}
		if seq == o.newest {
			break
		}
		seq++
	}
	return first
}

// after is the number of the first packet behind the gap: that behind the newest, where the history has none of them any more. The
// newest itself may be gone, when a source that counts anew has put another packet in its place.
func (o *outlet) after() uint16 {
	seq := o.next + 1
	for seq != o.newest+1 && !o.history.Has(seq) {
		seq++
	}
	return seq
}

// giveUp passes over what is missing.
func (o *outlet) giveUp() {
	seq := o.after()
	missing := seq - o.next
	o.stats.givenUp += uint64(missing)
	o.next, o.waits, o.spliced = seq, false, true
	if !o.video {
		return
	}
	if !o.history.Sequence(seq, &o.packet) {
		o.lost()
		return
	}
	p := &o.packet
	other := !o.last.ok || p.Header.Timestamp != o.last.timestamp
	// It begins a frame where it says so; or where the end of the frame before it is all that can be missing.
	begins := other && (p.KeyFrame || missing == 1 && o.last.ok && !o.last.marker)
	if !begins && !(o.leaves && p.Header.Timestamp == o.leftStamp) {
		o.leaves, o.leftStamp = true, p.Header.Timestamp
	}
	o.lost()
}

// emit sends the next packet in order, but for one of a frame that is left out.
func (o *outlet) emit(p *media.Packet) {
	o.last = edge{sequence: p.Header.SequenceNumber, timestamp: p.Header.Timestamp, marker: p.Header.Marker, ok: true}
	if o.leaves && p.Header.Timestamp == o.leftStamp {
		o.stats.left++
		return
	}
	o.leaves = false
	if o.spliced {
		o.spliced = false
		if o.fill == nil { // which numbers packets itself
			o.to.Splice()
		}
	}
	o.send(p)
}

func (o *outlet) send(p *media.Packet) {
	if o.fill != nil {
		o.fill.send(p, o.to)
		return
	}
	o.to.Packet(p)
}
