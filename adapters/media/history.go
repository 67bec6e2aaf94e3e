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
	slots []slot    // a ring: position p is in slots[p % len]
	first uint64    // position of the oldest packet kept
	next  uint64    // position of the packet to come
	size  int       // bytes kept
	open  *chunk    // that takes the next packet, up to full
	full  uint32    // bytes of it in use
	zero  time.Time // that the slots count arrivals from
	index []uint64  // by sequence number modulo its length: position + 1, 0 for none

	newest   uint16 // sequence number
	frame    uint64 // position of the first packet with the timestamp of that
	stamp    uint32
	keyFrame uint64 // position + 1 of the first packet of the newest key frame, 0 for none
	keyStamp uint32
	keySeq   uint16

	keep time.Duration // how long a packet should stay, with room for at most so many
	most int
}

// slot is one packet kept. There are hundreds for each stream, so it is small.
type slot struct {
	in        *chunk
	arrival   time.Duration // since zero
	from, to  uint32        // bytes of the chunk
	stamp     uint32
	seq       uint16
	recovered bool
	keyFrame  bool
}

func (s *slot) raw() []byte { return s.in.bytes[s.from:s.to] }

// chunk has the bytes of packets that came one after another, so that a packet takes no more memory than it has bytes.
type chunk struct{ bytes []byte }

const chunkSize = 8 << 10

// chunks are those that nobody uses now: a track that lets go of a group of pictures lends its memory to the others.
var chunks = sync.Pool{New: func() any { return &chunk{bytes: make([]byte, chunkSize)} }}

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
	h.storeLocked(s, p.raw)
	if h.zero.IsZero() {
		h.zero = p.Arrival
	}
	s.seq, s.stamp = p.Header.SequenceNumber, p.Header.Timestamp
	s.arrival, s.recovered, s.keyFrame = p.Arrival.Sub(h.zero), p.Recovered, p.KeyFrame
	// What comes late begins neither a frame nor a key frame newer than the one there is. A number far back is a new source.
	delta := int16(s.seq - h.newest)
	late := position > 0 && delta <= 0 && delta > -seenWindow
	h.noteLocked(position, late)
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

// noteLocked has a packet found by its number. One that comes late does not hide a newer one of its source.
func (h *History) noteLocked(position uint64, late bool) {
	seq := h.slotLocked(position + 1).seq
	noted := &h.index[int(seq)%len(h.index)]
	if late && h.keptLocked(*noted) {
		if ahead := h.slotLocked(*noted).seq - seq; ahead > 0 && ahead < seenWindow {
			return
		}
	}
	*noted = position + 1
}

// storeLocked copies a packet's bytes into the open chunk, or where that has no room, into a new one.
func (h *History) storeLocked(s *slot, raw []byte) {
	n := uint32(len(raw))
	if h.open == nil || h.full+n > uint32(len(h.open.bytes)) {
		if h.first == h.next-1 { // nothing else is kept, in that chunk neither
			h.open.free()
		}
		h.full = 0
		if n > chunkSize {
			h.open = &chunk{bytes: make([]byte, n)}
		} else {
			h.open = chunks.Get().(*chunk)
		}
	}
	s.in, s.from, s.to = h.open, h.full, h.full+n
	h.full += n
	h.size += copy(s.raw(), raw)
}

// free is called by whoever had the chunk for himself.
func (c *chunk) free() {
	if c != nil && len(c.bytes) == chunkSize {
		chunks.Put(c)
	}
}

// dropLocked lets go of the oldest packet, and of its chunk when that was the last in it.
func (h *History) dropLocked() {
	s := h.slotLocked(h.first + 1)
	h.size -= int(s.to - s.from)
	h.first++
	switch {
	case h.first == h.next: // the next packet may have the whole chunk
		h.full = 0
	case h.slotLocked(h.first+1).in != s.in:
		s.in.free()
	}
	s.in = nil
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
	if h.copyLocked(p, s) != nil {
		return Overrun // cannot be: it was parsed before it was stored
	}
	return Read
}

// copyLocked makes p its own copy of a stored packet.
func (h *History) copyLocked(p *Packet, s *slot) error {
	p.Arrival, p.Recovered, p.KeyFrame = h.zero.Add(s.arrival), s.recovered, s.keyFrame
	return p.parse(append(p.raw[:0], s.raw()...))
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
	return s.seq == seq && h.copyLocked(p, s) == nil
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
		if h.copyLocked(&all[len(all)-1], s) != nil {
			all = all[:len(all)-1] // cannot be: it was parsed before it was stored
		}
	}
	return all, h.next
}
