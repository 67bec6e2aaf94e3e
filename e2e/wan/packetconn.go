package wan

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// PacketConn is a UDP socket some of whose remotes are far away. It fits where pion takes a socket of its own
// (webrtc.NewICEUDPMux), with pion's methods that allocate no addresses.
//
// What this socket sends is delayed by the network's Run; what it receives, by the call that reads. A packet whose link
// does nothing to it takes the same path as without emulation: no copy, no hand-over. Closing loses what is under way.
type PacketConn struct {
	network  *Network
	socket   net.PacketConn
	udp      *net.UDPConn // socket, where it is one
	classify func(remote netip.AddrPort) Link

	reading sync.Mutex // one reader at a time: it also is the clock of what has not arrived yet

	mu       sync.Mutex
	arriving transit
	deadline time.Time // of reads, as the caller set it
	armed    time.Time // of reads, as the socket has it
	closed   bool
}

// PacketConn wraps a socket. classify names the link to a remote (IPv4 addresses come unmapped); it is called for every
// packet, also concurrently, and should take no time. The caller uses the returned conn instead of the socket, which
// Close closes.
func (n *Network) PacketConn(socket net.PacketConn, classify func(remote netip.AddrPort) Link) *PacketConn {
	udp, _ := socket.(*net.UDPConn)
	return &PacketConn{network: n, socket: socket, udp: udp, classify: classify}
}

// LocalAddr is the socket's.
func (c *PacketConn) LocalAddr() net.Addr { return c.socket.LocalAddr() }

// Close closes the socket. Packets under way are lost.
func (c *PacketConn) Close() error {
	err := c.socket.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.arriving.clear()
	return err
}

// ReadFrom is [net.PacketConn]'s.
func (c *PacketConn) ReadFrom(p []byte) (int, net.Addr, error) {
	n, address, err := c.ReadFromAddrPort(p)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(address), nil
}

// ReadFromAddrPort is ReadFrom without an allocation for the address.
func (c *PacketConn) ReadFromAddrPort(p []byte) (int, netip.AddrPort, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	for {
		first, err := c.arrived()
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		if first != nil {
			n, address := copy(p, first.data), first.address
			first.free()
			return n, address, nil
		}
		n, address, err := c.receive(p)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue // the caller's deadline, or a packet that arrives now
		}
		if err != nil {
			return n, address, err
		}
		now := time.Now()
		arrival, ok := c.link(address).In.Admit(now, wireSize(n, address))
		if !ok {
			continue
		}
		if !arrival.After(now) {
			return n, address, nil
		}
		c.delay(newPacket(p[:n], address, arrival))
	}
}

// arrived returns the first delayed packet whose time has come. Where there is none it has the socket wake up for the
// next one, or at the caller's deadline.
func (c *PacketConn) arrived() (*packet, error) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.deadline.IsZero() && !c.deadline.After(now) {
		return nil, os.ErrDeadlineExceeded
	}
	if first := c.arriving.due(now); first != nil {
		return first, nil
	}
	return nil, c.arm()
}

// arm sets the socket's deadline to what comes first. The caller holds mu.
func (c *PacketConn) arm() error {
	until := c.arriving.next()
	if until.IsZero() || (!c.deadline.IsZero() && c.deadline.Before(until)) {
		until = c.deadline
	}
	if until.Equal(c.armed) {
		return nil
	}
	c.armed = until
	return c.socket.SetReadDeadline(until)
}

func (c *PacketConn) delay(p *packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		p.free()
		return
	}
	c.arriving.add(p)
}

func (c *PacketConn) receive(p []byte) (int, netip.AddrPort, error) {
	if c.udp != nil {
		return c.udp.ReadFromUDPAddrPort(p)
	}
	n, from, err := c.socket.ReadFrom(p)
	return n, addrPort(from), err
}

// WriteTo is [net.PacketConn]'s. A packet that the link loses has been written for all that the caller can know.
func (c *PacketConn) WriteTo(p []byte, to net.Addr) (int, error) {
	address := addrPort(to)
	if !address.IsValid() {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: to, Err: net.InvalidAddrError("not an IP address and port")}
	}
	return c.WriteToAddrPort(p, address)
}

// WriteToAddrPort is WriteTo without an allocation for the address. Errors of packets that leave later are lost, as
// those of UDP mostly are.
func (c *PacketConn) WriteToAddrPort(p []byte, to netip.AddrPort) (int, error) {
	now := time.Now()
	arrival, ok := c.link(to).Out.Admit(now, wireSize(len(p), to))
	if ok && !arrival.After(now) {
		return c.transmit(p, to)
	}
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return 0, &net.OpError{Op: "write", Net: "udp", Source: c.LocalAddr(), Err: net.ErrClosed}
	}
	if ok {
		later := newPacket(p, to, arrival)
		later.to = c
		c.network.send(later)
	}
	return len(p), nil
}

// release sends a packet whose time has come.
func (c *PacketConn) release(p *packet) {
	_, _ = c.transmit(p.data, p.address)
	p.free()
}

func (c *PacketConn) transmit(p []byte, to netip.AddrPort) (int, error) {
	if c.udp != nil {
		return c.udp.WriteToUDPAddrPort(p, to)
	}
	return c.socket.WriteTo(p, net.UDPAddrFromAddrPort(to))
}

func (c *PacketConn) link(remote netip.AddrPort) Link {
	return c.classify(netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port()))
}

// SetDeadline is [net.PacketConn]'s.
func (c *PacketConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline is [net.PacketConn]'s.
func (c *PacketConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return c.arm()
}

// SetWriteDeadline is [net.PacketConn]'s.
func (c *PacketConn) SetWriteDeadline(t time.Time) error { return c.socket.SetWriteDeadline(t) }

// wireSize adds the headers of IP and UDP, so that a rate means the same whatever carries the packets.
func wireSize(n int, remote netip.AddrPort) int {
	if remote.Addr().Unmap().Is4() {
		return n + 20 + 8
	}
	return n + 40 + 8
}

func addrPort(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort()
	}
	return netip.AddrPort{}
}
