package media

import (
	"time"

	"github.com/pion/rtcp"
)

const (
	// maxMissing bounds what is asked for again at one time: more is an outage, which a key frame mends better.
	maxMissing  = 512
	maxRequests = 10              // how often one packet is asked for
	giveUpAfter = 2 * time.Second // later than this nobody wants it
	minRetry    = 20 * time.Millisecond
	maxJump     = 3000 // sequence numbers further apart than this are a new beginning (RFC 3550, appendix A.1)
	seenWindow  = 4096 // how far back duplicates are known
	seenWords   = seenWindow / 64
	headroom    = 1 << 16 // a cycle below the first number, so that what comes out of order right at the start has one
	maxPairs    = 64      // packet id and bitmask pairs in one NACK: 17 packets each at best

	// What is asked for once more is paid for by what comes, one packet in so many: where answers do not come because there is
	// too much on the way already, or come later than they ever did, asking must not make it more.
	retryPrice = 8
	maxCredit  = 128 * retryPrice
)

// losses follows the sequence numbers of one track: which packets are new, which are missing, and which of those to ask
// for now. It is a pure state machine; time comes in.
type losses struct {
	started bool
	highest uint64 // extended sequence number
	seen    [seenWords]uint64
	missing []missing // ascending

	base     uint64 // first extended sequence number since the last new beginning
	before   uint64 // packets expected until then
	received uint64 // in all, without duplicates

	credit int // packets that have come and not paid for a request yet

	lost, repaired, requested, duplicates, restarts uint64

	roundTrip time.Duration // smoothed, from request to repair
}

type missing struct {
	seq      uint64
	since    time.Time
	asked    time.Time
	requests int
}

// arrived takes a sequence number and says whether the packet is new, and how it counts: duplicates and packets from
// before the last new beginning are not.
func (l *losses) arrived(seq uint16, now time.Time, retransmission bool) (fresh bool) {
	if !l.started {
		l.begin(seq)
		return true
	}
	delta := int64(int16(seq - uint16(l.highest)))
	switch {
	case delta > maxJump || delta <= -seenWindow:
		if retransmission {
			return false
		}
		l.restarts++
		l.begin(seq)
		return true
	case delta > 0:
		for s := l.highest + 1; s < l.highest+uint64(delta); s++ {
			l.clear(s)
			l.lost++
			if len(l.missing) < maxMissing {
				l.missing = append(l.missing, missing{seq: s, since: now})
			}
		}
		l.highest += uint64(delta)
		l.mark(l.highest)
		l.received++
		l.credit = min(l.credit+1, maxCredit)
		return true
	default:
		s := l.highest - uint64(-delta)
		if s < l.base || l.has(s) {
			l.duplicates++
			return false
		}
		l.mark(s)
		l.received++
		l.lost--
		for i := range l.missing {
			m := &l.missing[i]
			if m.seq != s {
				continue
			}
			if m.requests > 0 {
				l.repaired++
				if m.requests == 1 { // else it is not known which request was answered (RFC 6298, section 3)
					l.measure(now.Sub(m.asked))
				}
			}
			l.missing = append(l.missing[:i], l.missing[i+1:]...)
			break
		}
		return true
	}
}

func (l *losses) begin(seq uint16) {
	l.before = l.expected()
	l.started, l.highest = true, headroom|uint64(seq)
	l.base = l.highest
	l.credit = maxCredit
	l.received++
	l.missing = l.missing[:0]
	clear(l.seen[:])
	l.mark(l.highest)
}

func (l *losses) mark(s uint64)     { l.seen[s/64%seenWords] |= 1 << (s % 64) }
func (l *losses) clear(s uint64)    { l.seen[s/64%seenWords] &^= 1 << (s % 64) }
func (l *losses) has(s uint64) bool { return l.seen[s/64%seenWords]&(1<<(s%64)) != 0 }

// misses says whether a packet has been asked for and not come.
func (l *losses) misses(seq uint16) bool {
	for i := range l.missing {
		if uint16(l.missing[i].seq) == seq && l.missing[i].requests > 0 {
			return true
		}
	}
	return false
}

func (l *losses) measure(d time.Duration) {
	if l.roundTrip == 0 {
		l.roundTrip = d
		return
	}
	l.roundTrip += (d - l.roundTrip) / 8
}

// due lists the packets to ask for now: each at once when its gap is noticed, then again after the time that an answer
// takes and a half more, longer each time. rtt is that of the path, 0 where it is unknown. No answer comes sooner: what
// seems to was only out of order.
func (l *losses) due(now time.Time, rtt time.Duration, pairs []rtcp.NackPair) []rtcp.NackPair {
	if len(l.missing) == 0 {
		return pairs
	}
	if rtt = max(rtt, l.roundTrip); rtt == 0 {
		rtt = assumedRTT
	}
	wait := max(rtt+rtt/2, minRetry)
	kept := l.missing[:0]
	for _, m := range l.missing {
		if m.requests >= maxRequests || now.Sub(m.since) > giveUpAfter || l.highest-m.seq >= seenWindow {
			continue // it stays lost
		}
		price := min(m.requests, 1) * retryPrice
		if (m.requests == 0 || now.Sub(m.asked) >= wait*time.Duration(m.requests)) && len(pairs) <= maxPairs && price <= l.credit {
			if grown := appendPair(pairs, uint16(m.seq)); len(grown) <= maxPairs {
				l.credit -= price
				pairs = grown
				m.asked = now
				m.requests++
				l.requested++
			}
		}
		kept = append(kept, m)
	}
	l.missing = kept
	return pairs
}

// appendPair adds an ascending sequence number to the pairs of a generic NACK (RFC 4585, section 6.2.1).
func appendPair(pairs []rtcp.NackPair, seq uint16) []rtcp.NackPair {
	if n := len(pairs); n > 0 {
		last := &pairs[n-1]
		if d := seq - last.PacketID; d >= 1 && d <= 16 {
			last.LostPackets |= 1 << (d - 1)
			return pairs
		}
	}
	return append(pairs, rtcp.NackPair{PacketID: seq})
}

// expected counts the packets that should have come (RFC 3550, appendix A.3).
func (l *losses) expected() uint64 {
	if !l.started {
		return 0
	}
	return l.before + l.highest - l.base + 1
}
