package media

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/ice/v4"
)

// Port is one UDP socket that many connections share, to be put under an ice.UDPMux and named in Transport.Ports. What comes is
// taken in batches, RTP of connections that have the short way does not go by the mux, and what such a connection sends does not
// wait for others that send. One goroutine may read at a time: the mux's.
type Port struct {
	*net.UDPConn
	batch batch

	mu    sync.RWMutex
	conns map[netip.AddrPort]*Conn // those with a short way, by where their far ends are
}

var _ ice.AddrPortReaderWriter = (*Port)(nil)

// NewPort makes a port of a socket, which it closes.
func NewPort(u *net.UDPConn) *Port {
	p := &Port{UDPConn: u, conns: make(map[netip.AddrPort]*Conn)}
	p.batch.plain.Store(true)
	if raw, err := u.SyscallConn(); err == nil { // it works without batches too
		p.batch.plain.Store(false)
		p.batch.init(raw)
	}
	return p
}

// SetWriteDeadline does nothing. Pion interrupts writes that may be stuck when a connection is closed, by a deadline on the socket,
// which is everybody's: what others write at that moment would be lost, among it the words by which their own viewers learn that
// they are closed. Writing UDP does not block for long.
func (p *Port) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline sets the deadline of reads.
func (p *Port) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// ReadFromAddrPort implements ice.AddrPortReaderWriter.
func (p *Port) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	return p.batch.read(p.UDPConn, p, b)
}

// WriteToAddrPort implements ice.AddrPortReaderWriter.
func (p *Port) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return p.WriteToUDPAddrPort(b, to)
}

// open gives a packet to the connection that it is of.
func (p *Port) open(from netip.AddrPort, b []byte, together *burst) bool {
	if !isRTP(b) {
		return false
	}
	p.mu.RLock()
	c := p.conns[from]
	p.mu.RUnlock()
	return c != nil && c.open(b, together)
}

func (p *Port) join(at netip.AddrPort, c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[at] = c
}

func (p *Port) leave(at netip.AddrPort, c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns[at] == c {
		delete(p.conns, at)
	}
}

// local is the address that the port listens at.
func (p *Port) local() netip.AddrPort {
	at := p.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}
