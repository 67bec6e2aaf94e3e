package media

import "time"

// Keep lets the history grow, up to so many packets, so that what came within a time is still there. Call it before the first
// Add.
func (h *History) Keep(d time.Duration, packets int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keep, h.most = d, packets
}

// growLocked makes room where the packet that is the next to be overwritten, now, is younger than it may be.
func (h *History) growLocked(now time.Time) {
	n := uint64(len(h.slots))
	if h.next < n || int(n) >= h.most || now.Sub(h.slots[h.next%n].arrival) >= h.keep {
		return
	}
	slots := make([]slot, 2*n)
	h.index = make([]uint64, 2*n)
	for position := h.next - n; position < h.next; position++ {
		s := h.slots[position%n]
		slots[position%(2*n)] = s
		noted := &h.index[int(s.seq)%len(h.index)]
		if *noted == 0 || int16(s.seq-slots[(*noted-1)%(2*n)].seq) >= 0 {
			*noted = position + 1
		}
	}
	h.slots = slots
}

// Room is how many packets the history holds at most, as it is now.
func (h *History) Room() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.slots)
}
