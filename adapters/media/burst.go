package media

import "slices"

// A burst is what one system call took from the network. What becomes of its packets leaves together too: each connection that
// they go out by holds them until the last of the burst has gone through. A packet that came alone is not held. It belongs
// to the goroutine that reads the socket.
type burst struct{ conns []*Conn }

// hold lets a connection keep the packets that it is given until the burst ends.
func (b *burst) hold(c *Conn) {
	if !slices.Contains(b.conns, c) {
		b.conns = append(b.conns, c)
		c.holds.Add(1)
	}
}

// end sends what is held.
func (b *burst) end() {
	for i, c := range b.conns {
		c.holds.Add(-1)
		c.flush()
		b.conns[i] = nil
	}
	b.conns = b.conns[:0]
}
