package relay

import (
	"cmp"
	"slices"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	// A second copy is compared with what goes out this often until it is found alike, and then now and then: a server on its
	// way may have begun to count anew.
	spareAgain = 100 * time.Millisecond
	spareTries = 30 // after so many in vain, no oftener than it is looked at again
	spareCheck = time.Second
	spareFresh = 5 * time.Second

	// A hole is looked at when so many packets have come behind it, or this long after: until then they may be out of order.
	holeOrder   = 3
	holeDoubt   = 10 * time.Millisecond
	holeTime    = 200 * time.Millisecond // for which packets wait behind a hole, at most
	holePackets = 128                    // and how many

	// Of those before a packet that is missing, so many are tried to find one that both copies have.
	spareNeighbours = 8

	// The current feed stands still where nothing of it has come for so long, and for half as long again as it usually is behind
	// the spare, although the spare has gone on.
	standstill = 80 * time.Millisecond
)

// spare is the feed of a second copy of what a lane carries. It is kept, found alike with what goes out, and gives what the current
// feed has lost: single packets where the two are packed alike, else whole frames, before which the current feed's packets wait
// for a moment. All of it is guarded by the lane.
type spare struct {
	feed    *feed
	aligned bool
	seam    seam
	fits    bool // its header extensions' ids do not mean others at the current feed
	tried   time.Time
	tries   int // in vain
	checked time.Time

	newest uint16 // of its numbers, as it came
	came   bool

	ahead time.Time     // when the first packet came that lies behind the lane's end; zero: none has
	stamp uint32        // its timestamp, as it would go out
	lag   time.Duration // for which the lane stayed behind it lately

	quiet bool           // nothing waits behind holes: a third copy is about to take over
	held  []media.Packet // of the current feed, behind a hole, by number as they go out
	since time.Time      // when the hole was seen

	packet, other media.Packet
	before, after []media.Packet
}

// addSpare makes a feed the lane's second copy.
func (l *lane) addSpare(f *feed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare == nil && l.current != f {
		l.spare = &spare{feed: f}
	}
}

// dropSpare ends a second copy's part in the lane, if it has one.
func (l *lane) dropSpare(f *feed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare != nil && l.spare.feed == f {
		l.flushLocked()
		l.spare = nil
	}
}

// quieten lets no packets wait behind holes any more, or again.
func (l *lane) quieten(quiet bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare != nil {
		l.spare.quiet = quiet
		l.flushLocked()
	}
}

// renew has the spare compared anew: another feed is the current one. What waits is of the one before.
func (s *spare) renew() {
	s.held, s.aligned, s.ahead, s.tries = nil, false, time.Time{}, 0
}

// reached notes that the lane has come to a timestamp.
func (s *spare) reached(timestamp uint32, at time.Time, clockRate uint32) {
	if s.ahead.IsZero() || int32(timestamp-s.stamp) < -tolerance(clockRate) {
		return
	}
	s.lag = min(max(at.Sub(s.ahead), s.lag-s.lag/16), silenceMax)
	s.ahead = time.Time{}
}

// spareCameLocked takes notice of a packet of the spare that has been kept.
func (l *lane) spareCameLocked(p *media.Packet) {
	s := l.spare
	if !s.came || int16(p.Header.SequenceNumber-s.newest) > 0 {
		s.came, s.newest = true, p.Header.SequenceNumber
	}
	if !s.aligned || !l.through {
		return
	}
	if stamp := p.Header.Timestamp + s.seam.shift.Timestamp; s.ahead.IsZero() &&
		int32(stamp-l.last.timestamp) > tolerance(l.codec.ClockRate) {
		s.ahead, s.stamp = p.Arrival, stamp
	}
	switch {
	case !s.fits:
	case s.seam.exact:
		seq := p.Header.SequenceNumber + s.seam.shift.Sequence
		if age := int16(l.last.sequence - seq); age > 0 && int(age) < historyOf(l.kind)/2 && !l.history.Has(seq) {
			l.fillLocked(seq)
		}
	case len(s.held) > 0 && p.Header.Marker:
		l.mendLocked()
	}
}

// guardLocked looks at the current feed's next packet, which has the lane's numbers, and fills in what is missing before it. It says
// whether the packet may go on; else it waits.
func (l *lane) guardLocked(f *feed, p *media.Packet) bool {
	s := l.spare
	if !s.aligned || !s.fits || !l.through || !l.last.ok || f.kept != nil {
		l.flushLocked()
		return true
	}
	gap := int(int16(p.Header.SequenceNumber - l.last.sequence))
	if s.seam.exact || l.kind == webrtc.RTPCodecTypeAudio || s.quiet {
		l.flushLocked()
		if s.seam.exact && gap < historyOf(l.kind)/2 {
			for seq := l.last.sequence + 1; gap > 1; gap-- {
				l.fillLocked(seq)
				seq++
			}
		}
		return true
	}
	if gap <= 0 || gap == 1 && len(s.held) == 0 {
		return true
	}
	if len(s.held) == 0 {
		s.since = p.Arrival
	}
	at, found := slices.BinarySearchFunc(s.held, p.Header.SequenceNumber, func(h media.Packet, seq uint16) int {
		return cmp.Compare(int16(h.Header.SequenceNumber-seq), 0)
	})
	if !found {
		s.held = slices.Insert(s.held, at, *p.Clone())
	}
	l.arrival = p.Arrival
	l.releaseLocked()
	waited := p.Arrival.Sub(s.since)
	switch n := len(s.held); {
	case n == 0:
	case n >= holePackets || waited > holeTime:
		l.flushLocked()
	case n == holeOrder || n > holeOrder && p.Header.Marker || waited > holeDoubt && n < holeOrder:
		l.mendLocked()
	}
	return false
}

// passLocked sends a packet that has the lane's numbers.
func (l *lane) passLocked(p *media.Packet) {
	position := l.history.Add(p)
	l.noteLocked(p)
	l.sendLocked(p, position)
}

// releaseLocked sends what waits and follows the lane's end without a hole.
func (l *lane) releaseLocked() {
	s := l.spare
	n := 0
	for n < len(s.held) && int16(s.held[n].Header.SequenceNumber-l.last.sequence) <= 1 {
		if s.held[n].Header.SequenceNumber == l.last.sequence+1 {
			l.sendAgainLocked(&s.held[n])
		}
		n++
	}
	if n > 0 {
		s.held = slices.Delete(s.held, 0, n)
		s.since = l.arrival
	}
}

// sendAgainLocked sends what has waited. The lane is not older for it.
func (l *lane) sendAgainLocked(p *media.Packet) {
	newest := l.arrival
	l.passLocked(p)
	l.arrival = newest
}

// flushLocked sends what waits as it is.
func (l *lane) flushLocked() {
	s := l.spare
	if s == nil || len(s.held) == 0 {
		return
	}
	for i := range s.held {
		l.sendAgainLocked(&s.held[i])
	}
	s.held = nil
}

// fillLocked sends what the spare has of a number that the lane lacks. One that both have before it must be the same in both: what
// the two had in common when they were compared may be no more.
func (l *lane) fillLocked(seq uint16) {
	s := l.spare
	shift := s.seam.shift
	mime := l.codec.MimeType
	for back := uint16(1); ; back++ {
		if back > spareNeighbours {
			return
		}
		if !l.history.Sequence(seq-back, &s.other) || !s.feed.kept.Sequence(seq-back-shift.Sequence, &s.packet) {
			continue
		}
		if s.packet.Header.Timestamp+shift.Timestamp != s.other.Header.Timestamp ||
			media.ContentHash(mime, s.packet.Payload) != media.ContentHash(mime, s.other.Payload) {
			s.aligned = false
			return
		}
		break
	}
	if !s.feed.kept.Sequence(seq-shift.Sequence, &s.packet) {
		return
	}
	s.packet.Shift(mime, s.feed.descriptor, shift)
	position := l.history.Add(&s.packet)
	l.sendLocked(&s.packet, position)
	s.feed.filled.Add(1)
	if !l.filled || int16(seq-l.filledTo) > 0 {
		l.filled, l.filledTo = true, seq
	}
}

// hasFilledLocked says whether a packet that comes by the current feed has gone out, because the spare had it first.
func (l *lane) hasFilledLocked(seq uint16) bool {
	behind := int16(seq - l.filledTo)
	if behind > 0 {
		l.filled = behind < seamWindow
		return false
	}
	return l.history.Has(seq)
}

// mendLocked fills the hole that packets wait behind with the spare's frames: what is missing of the one at which the lane stands,
// and those up to the first that the current feed has from its begin. The current feed's numbers go on from there.
func (l *lane) mendLocked() {
	s, f := l.spare, l.current
	mime, rate := l.codec.MimeType, l.codec.ClockRate
	if f.seeking || f.kept != nil {
		return
	}
	waiting := media.Units(mime, s.held)
	to := slices.IndexFunc(waiting, func(u media.Unit) bool { return u.Begins })
	if to < 0 {
		return
	}
	s.before, _ = l.history.All(s.before)
	s.after, _ = s.feed.kept.All(s.after)
	before, after := inOrder(s.before), inOrder(s.after)
	sent, whole := media.Units(mime, before), media.Units(mime, after)
	if len(sent) == 0 {
		return
	}
	near := func(stamp uint32) int {
		return slices.IndexFunc(whole, func(u media.Unit) bool {
			apart := int32(u.Timestamp + s.seam.shift.Timestamp - stamp)
			return max(apart, -apart) <= tolerance(rate)
		})
	}
	last := sent[len(sent)-1]
	at, until := near(last.Timestamp), near(waiting[to].Timestamp)
	if at < 0 || until <= at {
		return // the spare does not have it yet
	}
	run := after[whole[at].First : whole[until].First+1]
	for i := 1; i < len(run); i++ {
		if run[i].Header.SequenceNumber != run[i-1].Header.SequenceNumber+1 {
			return
		}
	}
	if !last.Whole {
		broken, u, newest := before[last.First:last.First+last.Packets], whole[at], l.arrival
		if !last.Begins || missing(broken) || !u.Whole || !l.finishLocked(mime, broken, after[u.First:u.First+u.Packets]) {
			return
		}
		l.arrival = newest
	}
	shift := s.seam.shift
	for i := whole[at+1].First; i < whole[until].First; i++ {
		p := &after[i]
		shift.Sequence = l.last.sequence + 1 - p.Header.SequenceNumber
		p.Shift(mime, s.feed.descriptor, shift)
		l.sendAgainLocked(p)
	}
	s.feed.filled.Add(1)
	first := &s.held[waiting[to].First].Header
	own := first.SequenceNumber
	if f.moved {
		own -= f.shift.Sequence
	}
	f.moved, f.exact = true, false
	f.first = f.extendLocked(own)
	f.after = l.last
	moved := media.Shift{Sequence: l.last.sequence + 1 - first.SequenceNumber}
	f.shift.Sequence += moved.Sequence
	s.held = slices.Delete(s.held, 0, waiting[to].First)
	for i := range s.held {
		s.held[i].Shift(mime, 0, moved)
	}
	s.since = l.arrival
	l.releaseLocked()
}

// tend compares the spare with what goes out, where that is due, and lets nothing wait for too long. It says whether the two are
// aligned, and whether the current feed stands still while the spare goes on. One goroutine may call it at a time.
func (l *lane) tend(now time.Time) (aligned, still bool) {
	l.mu.Lock()
	s := l.spare
	if s == nil {
		l.mu.Unlock()
		return false, false
	}
	if len(s.held) > 0 && now.Sub(s.since) > holeDoubt {
		if l.mendLocked(); len(s.held) > 0 && now.Sub(s.since) > holeTime {
			l.flushLocked()
		}
	}
	patience := standstill + s.lag*3/2
	still = s.aligned && !s.ahead.IsZero() && now.Sub(s.ahead) > patience && now.Sub(l.arrival) > patience
	again := spareAgain
	if s.tries > spareTries {
		again = spareCheck
	}
	due := !s.aligned && now.Sub(s.tried) >= again || s.aligned && !s.seam.exact && now.Sub(s.tried) >= spareFresh
	if s.aligned && s.seam.exact && now.Sub(s.checked) >= spareCheck {
		s.checked = now
		s.aligned = l.alikeLocked()
	}
	aligned = s.aligned
	if due {
		s.tried = now
	}
	f, current, through := s.feed, l.current, l.through
	l.mu.Unlock()
	if !due || !through || still {
		return aligned, still
	}
	before, after := l.windows(f, nil, nil)
	codec := l.codec.RTPCodecCapability
	found, ok := align(codec.MimeType, codec.ClockRate, f.descriptor, before, after)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare != s || l.current != current || !ok || current == nil {
		s.tries++
		return s.aligned, false
	}
	s.aligned, s.seam, s.checked, s.tries = true, found, now, 0
	s.fits = sameIDs(f.extensions, l.current.extensions)
	return true, false
}

// sameIDs says whether no id stands for one header extension here and for another there.
func sameIDs(a, b map[uint8]string) bool {
	for id, uri := range a {
		if other, ok := b[id]; ok && other != uri {
			return false
		}
	}
	return true
}

// alikeLocked says whether one of the spare's last packets is what went out by its number; where none can be compared, nothing is
// held against it.
func (l *lane) alikeLocked() bool {
	s := l.spare
	for back := range uint16(historyOf(l.kind) / 2) {
		seq := s.newest - back
		if !s.feed.kept.Sequence(seq, &s.packet) || !l.history.Sequence(seq+s.seam.shift.Sequence, &s.other) {
			continue
		}
		mime := l.codec.MimeType
		return s.packet.Header.Timestamp+s.seam.shift.Timestamp == s.other.Header.Timestamp &&
			media.ContentHash(mime, s.packet.Payload) == media.ContentHash(mime, s.other.Payload)
	}
	return true
}

// seamOf is how a spare lies to what goes out now, as far as that is known. The spare is a spare no more then. Where it may take
// over only at the end of a frame, the current feed is left out from now on: it might wake up.
func (l *lane) seamOf(f *feed) (found seam, ok bool) {
	before, after := l.windows(f, nil, nil)
	codec := l.codec.RTPCodecCapability
	found, ok = align(codec.MimeType, codec.ClockRate, f.descriptor, before, after)
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.spare; s != nil && s.feed == f {
		if !ok && s.aligned {
			found, ok = s.seam, true
			found.from = l.last.sequence
		}
		l.spare = nil
	}
	if l.current != nil && !(ok && found.exact) {
		l.current.done = true
	}
	return found, ok
}

// resume lets the current feed go on that seamOf left out.
func (l *lane) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		l.current.done = false
	}
}
