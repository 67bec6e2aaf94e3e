package media

import (
	"sync"
	"time"
)

const (
	historyTime  = 1200 * time.Millisecond // packets that are older may go
	historySpare = 128 << 10               // bytes for which it is not worth to let go of anything
)

// History keeps the last packets of one track, in order of arrival, for those who lost them and for those who read
// behind. One writer and many readers may use it at a time.
type History struct {
	mu    sync.RWMutex
	slots []slot   // a ring: position p is in slots[p % len]
	first uint64   // position of the oldest packet kept
	next  uint64   // position of the packet to come
	size  int      // bytes kept
	spare [][]byte // buffers of packets that were let go
	index []uint64 // by sequence number modulo its length: position + 1, 0 for none

	newest   uint16 // sequence number
	frame    uint64 // position of the first packet with the timestamp of that
	stamp    uint32
	keyFrame uint64 // position + 1 of the first packet of the newest key frame, 0 for none
	keyStamp uint32
	keySeq   uint16

	keep time.Duration // how long a packet should stay, with room for at most so many
	most int
}

type slot struct {
	raw       []byte
	seq       uint16
	stamp     uint32
	arrival   time.Time
	recovered bool
	keyFrame  bool
}

// NewHistory makes a history of the given number of packets, rounded up to a power of two: of those, it keeps what came in the
// last second at least, and from the newest key frame on. Memory is taken as packets come.
func NewHistory(packets int) *History {
	n := 1
	for n < packets {
		n *= 2
	}
	return &History{slots: make([]slot, n), index: make([]uint64, n), keep: historyTime}
}

// Add stores a copy of a packet and returns its position: positions count up by one from 0.
func (h *History) Add(p *Packet) (position uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expireLocked(p.Arrival)
	position = h.next
	h.next++
	s := &h.slots[position%uint64(len(h.slots))]
	var buffer []byte
	if n := len(h.spare); n > 0 {
		buffer, h.spare[n-1] = h.spare[n-1][:0], nil
		h.spare = h.spare[:n-1]
	}
	s.raw = append(buffer, p.raw...)
	h.size += len(s.raw)
	s.seq, s.stamp = p.Header.SequenceNumber, p.Header.Timestamp
	s.arrival, s.recovered, s.keyFrame = p.Arrival, p.Recovered, p.KeyFrame
	// What comes late begins neither a frame nor a key frame newer than the one there is. A number far back is a new source.
	delta := int16(s.seq - h.newest)
	late := position > 0 && delta <= 0 && delta > -seenWindow
	index := &h.index[int(s.seq)%len(h.index)]
	if !late || !h.keptLocked(*index) || int16(s.seq-h.slotLocked(*index).seq) >= 0 {
		*index = position + 1
	}
	if !late {
		if h.newest = s.seq; position == 0 || s.stamp != h.stamp {
			h.stamp, h.frame = s.stamp, position
		}
	}
	newer := s.stamp != h.keyStamp && (!late || int16(s.seq-h.keySeq) > 0)
	if p.KeyFrame && (newer || !h.keptLocked(h.keyFrame)) {
		h.keyStamp, h.keySeq, h.keyFrame = s.stamp, s.seq, h.beginLocked(position)+1
	}
	return position
}

// keptLocked says whether a position + 1 that was noted is still in the ring.
func (h *History) keptLocked(noted uint64) bool {
	return noted > h.first && noted <= h.next
}

func (h *History) slotLocked(noted uint64) *slot {
	return &h.slots[(noted-1)%uint64(len(h.slots))]
}

// beginLocked is the position of the first packet of the frame which the packet at a position belongs to.
func (h *History) beginLocked(position uint64) uint64 {
	stamp := h.slotLocked(position + 1).stamp
	if stamp == h.stamp && h.keptLocked(h.frame+1) {
		return h.frame
	}
	// It came late, when others had begun.
	first := position
	for noted := position; h.keptLocked(noted); noted-- {
		if h.slotLocked(noted).stamp == stamp {
			first = noted - 1
		}
	}
	return first
}

// Head is the position that the next packet will have.
func (h *History) Head() uint64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.next
}

// KeyFrame is the position at which the newest key frame begins, where that is still kept.
func (h *History) KeyFrame() (position uint64, ok bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if !h.keptLocked(h.keyFrame) {
		return 0, false
	}
	return h.keyFrame - 1, true
}

// Reading is the outcome of History.At.
type Reading int

const (
	Read    Reading = iota // the packet is there
	Future                 // it has not come yet
	Overrun                // it has been overwritten
)

// At copies the packet at a position into p, which keeps the buffer for the next call.
func (h *History) At(position uint64, p *Packet) Reading {
	h.mu.RLock()
	defer h.mu.RUnlock()
	switch {
	case position >= h.next:
		return Future
	case position < h.first:
		return Overrun
	}
	s := &h.slots[position%uint64(len(h.slots))]
	if p.copyFrom(s.raw, s) != nil {
		return Overrun // cannot be: it was parsed before it was stored
	}
	return Read
}

// Sequence copies the newest packet of a sequence number into p, which keeps the buffer for the next call, and says
// whether it is still kept.
func (h *History) Sequence(seq uint16, p *Packet) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	noted := h.index[int(seq)%len(h.index)]
	if !h.keptLocked(noted) {
		return false
	}
	s := h.slotLocked(noted)
	return s.seq == seq && p.copyFrom(s.raw, s) == nil
}

// Has says whether a packet of the sequence number is still kept.
func (h *History) Has(seq uint16) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	noted := h.index[int(seq)%len(h.index)]
	return h.keptLocked(noted) && h.slotLocked(noted).seq == seq
}

// All copies what is kept, in order of arrival, into packets, which keep their buffers, and gives the position that the next
// packet will have.
func (h *History) All(packets []Packet) (all []Packet, head uint64) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	all = packets[:0]
	for position := h.first; position < h.next; position++ {
		if len(all) < cap(all) {
			all = all[:len(all)+1]
		} else {
			all = append(all, Packet{})
		}
		s := &h.slots[position%uint64(len(h.slots))]
		if all[len(all)-1].copyFrom(s.raw, s) != nil {
			all = all[:len(all)-1] // cannot be: it was parsed before it was stored
		}
	}
	return all, h.next
}
