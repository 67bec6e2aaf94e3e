package media

import (
	"sync"
	"time"

	"github.com/pion/rtcp"
)

const (
	sentSlots   = 512                  // packets that may be on their way
	sentGroup   = 5 * time.Millisecond // packets sent within it count as sent together
	arrivalUnit = 64 * time.Millisecond
	probeLast   = time.Second // after the end of a probe nobody waits for its packets any more
	probeLeast  = 5           // packets that must come of a probe to believe it
)

// outgoing says how many bits a second the path to the far end carries, by what that tells of each packet's arrival
// (draft-holmer-rmcat-transport-wide-cc-extensions-01). Times of arrival are by the far end's clock, set so that the first report came
// at once.
type outgoing struct {
	mu       sync.Mutex
	next     uint16       // transport-wide sequence number
	sent     []sentPacket // by number; nil: nothing has been sent
	zero     time.Time    // that the times of sending count from
	estimate estimate

	began        bool
	reference    uint32    // of the last report, in units
	arrivals     time.Time // what that is here
	group        uint32
	missed, came uint64

	probe probe
}

type sentPacket struct {
	at    uint32 // microseconds since zero, modulo 71 minutes
	seq   uint16
	size  uint16 // bytes; 0: reported, or never sent
	probe bool
}

// probe is what came of packets that were sent to see whether more comes through.
type probe struct {
	running     bool
	until       time.Time // zero: being sent
	sent, came  int       // packets
	bytes       int       // that came after the first
	first, last time.Time // arrivals
}

// send notes a packet and gives its number.
func (o *outgoing) send(now time.Time, bytes int, probing bool) uint16 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sent == nil {
		o.sent, o.zero = make([]sentPacket, sentSlots), now
	}
	seq := o.next
	o.next++
	o.sent[seq%sentSlots] = sentPacket{
		at: uint32(now.Sub(o.zero).Microseconds()), seq: seq, size: uint16(min(bytes, 1<<16-1)), probe: probing,
	}
	if probing {
		o.probe.sent++
	}
	return seq
}

// report takes what the far end says of arrivals. What it says of packets that were never sent is passed over.
func (o *outgoing) report(now time.Time, r *rtcp.TransportLayerCC) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sent == nil {
		return
	}
	// The reference has 24 bits; only how far it moves counts.
	moved := time.Duration(int32((r.ReferenceTime-o.reference)<<8)>>8) * arrivalUnit
	if !o.began || moved > time.Minute || moved < -time.Minute {
		o.began, o.arrivals, moved = true, now, 0
	}
	o.reference, o.arrivals = r.ReferenceTime, o.arrivals.Add(moved)
	at, seq, deltas, left := o.arrivals, r.BaseSequenceNumber, r.RecvDeltas, int(r.PacketStatusCount)
	status := func(symbol uint16) {
		if left == 0 {
			return
		}
		left--
		arrived := false
		switch symbol {
		case rtcp.TypeTCCPacketReceivedSmallDelta, rtcp.TypeTCCPacketReceivedLargeDelta:
			if len(deltas) == 0 {
				left = 0 // it says more than it holds
				return
			}
			at = at.Add(time.Duration(deltas[0].Delta) * time.Microsecond)
			deltas, arrived = deltas[1:], true
		}
		o.toldLocked(seq, at, arrived)
		seq++
	}
	for _, chunk := range r.PacketChunks {
		switch c := chunk.(type) {
		case *rtcp.RunLengthChunk:
			for range c.RunLength {
				status(c.PacketStatusSymbol)
			}
		case *rtcp.StatusVectorChunk:
			for _, symbol := range c.SymbolList {
				status(symbol)
			}
		}
	}
	if p := &o.probe; p.running && !p.until.IsZero() && (p.came >= p.sent || now.After(p.until)) {
		o.judgeLocked()
	}
}

// toldLocked takes what became of one packet.
func (o *outgoing) toldLocked(seq uint16, at time.Time, arrived bool) {
	s := &o.sent[seq%sentSlots]
	if s.seq != seq || s.size == 0 {
		return
	}
	if !arrived {
		o.missed++
		return // it may still come, and then count as both: late is hardly better
	}
	o.came++
	if p := &o.probe; s.probe && p.running {
		if p.came++; p.came == 1 {
			p.first = at
		} else {
			p.bytes += int(s.size)
		}
		if at.After(p.last) {
			p.last = at
		}
	}
	if o.came == 1 || s.at-o.group >= uint32(sentGroup.Microseconds()) && int32(s.at-o.group) > 0 {
		o.group = s.at
	}
	o.estimate.deaf = o.probe.running
	o.estimate.packet(at, o.group, 1e6, int(s.size), o.missed, o.came)
	s.size = 0
}

// judgeLocked ends a probe: what came through so fast can come through.
func (o *outgoing) judgeLocked() {
	p := o.probe
	o.probe = probe{}
	span := p.last.Sub(p.first)
	if p.came < probeLeast || p.came*10 < p.sent*9 || span <= 0 {
		return
	}
	o.estimate.prove(float64(p.bytes*8)/span.Seconds(), p.last)
}

// begin starts a probe; end says that all its packets have been sent.
func (o *outgoing) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.probe = probe{running: true}
}

func (o *outgoing) end(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.probe.until = now.Add(probeLast)
}

func (o *outgoing) now(at time.Time) (bits int64, limited bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.estimate.now(at)
}
