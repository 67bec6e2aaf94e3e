package media

import "time"

// Keep lets the history grow, up to so many packets, so that what came within a time is still there. Call it before the first
// Add.
func (h *History) Keep(d time.Duration, packets int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keep, h.most = d, packets
}

// expireLocked makes room for a packet that comes now: it lets go of what is old, grows where it may, and else lets go of what
// does not fit.
func (h *History) expireLocked(now time.Time) {
	for h.first < h.next {
		oldest := h.slotLocked(h.first + 1)
		full := h.next-h.first == uint64(len(h.slots))
		young := now.Sub(h.zero)-oldest.arrival < h.keep
		if full && young && len(h.slots) < h.most {
			h.growLocked()
			return
		}
		// From the newest key frame on it is wanted by who begins.
		wanted := young || h.size <= historySpare || h.keyFrame == h.first+1
		if wanted && !full {
			return
		}
		h.dropLocked()
	}
}

// growLocked doubles the ring.
func (h *History) growLocked() {
	n := uint64(len(h.slots))
	slots := make([]slot, 2*n)
	for position := h.first; position < h.next; position++ {
		slots[position%(2*n)] = h.slots[position%n]
	}
	h.slots, h.index = slots, make([]uint64, 2*n)
	newest := h.slotLocked(h.first + 1).seq
	for position := h.first; position < h.next; position++ {
		delta := int16(h.slotLocked(position+1).seq - newest)
		late := delta <= 0 && delta > -seenWindow // as in Add
		if !late {
			newest += uint16(delta)
		}
		h.noteLocked(position, late)
	}
}

// Room is how many packets the history holds at most, as it is now.
func (h *History) Room() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.slots)
}
