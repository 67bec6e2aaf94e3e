package media

import "slices"

// A burst is what one system call took from the network. What becomes of its packets leaves together too: each connection that
// they go out by holds them until the last of the burst has gone through. A packet that came alone is not held. It belongs
// to the goroutine that reads the socket.
type burst struct {
	conns []*Conn
	later []Waker
}

// Waker wants to know when something has come.
type Waker interface {
	// Wake must not block.
	Wake()
}

// Later wakes w when all that came together with the packet has been taken, once; at once where it came alone.
func (p *Packet) Later(w Waker) {
	switch b := p.burst; {
	case b == nil:
		w.Wake()
	case !slices.Contains(b.later, w):
		b.later = append(b.later, w)
	}
}

// hold lets a connection keep the packets that it is given until the burst ends.
func (b *burst) hold(c *Conn) {
	if !slices.Contains(b.conns, c) {
		b.conns = append(b.conns, c)
		c.holds.Add(1)
	}
}

// end sends what is held, and wakes who waits.
func (b *burst) end() {
	for i, c := range b.conns {
		c.holds.Add(-1)
		c.flush()
		b.conns[i] = nil
	}
	b.conns = b.conns[:0]
	for i, w := range b.later {
		w.Wake()
		b.later[i] = nil
	}
	b.later = b.later[:0]
}
