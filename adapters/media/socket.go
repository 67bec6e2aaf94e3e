package media

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/transport/v4"
	"github.com/pion/transport/v4/stdnet"
)

const socketBuffer = 1 << 20

// machine knows this machine's addresses. The list takes a page of memory and some system calls, so that connections opened
// within a second share one.
type machine struct {
	mu    sync.Mutex
	net   *stdnet.Net
	since time.Time
}

var addresses machine

func (m *machine) get() (*stdnet.Net, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.net != nil && time.Since(m.since) < time.Second {
		return m.net, nil
	}
	n, err := stdnet.NewNet()
	if err != nil {
		return nil, err
	}
	m.net, m.since = n, time.Now()
	return n, nil
}

// network is the machine's own, with sockets that take and send packets in batches.
type network struct {
	*stdnet.Net
	conn *Conn
}

// ListenUDP implements transport.Net; pion opens the sockets of host candidates by it.
func (n network) ListenUDP(network string, addr *net.UDPAddr) (transport.UDPConn, error) {
	u, err := net.ListenUDP(network, addr)
	if err != nil {
		return nil, err
	}
	if addr != nil && addr.Zone != "" {
		return u, nil // what is said of addresses below does not hold for scoped ones
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return u, nil //nolint:nilerr // it works without batches too
	}
	// Best effort, the kernel has its own limit: what comes while the reader does not run waits here and nowhere else.
	_ = u.SetReadBuffer(socketBuffer)
	s := &socket{UDPConn: u, conn: n.conn}
	s.batch.init(raw)
	n.conn.changeSockets(func(sockets []*socket) []*socket { return append(sockets, s) })
	return s, nil
}

// socket is the UDP socket of one candidate. It takes what has arrived in one system call, and keeps media packets while the
// Conn holds them, to send them in one (UDP_SEGMENT where the kernel has that). One goroutine may read at a time.
type socket struct {
	*net.UDPConn
	conn *Conn

	batch batch // what comes in

	mu    sync.Mutex
	queue queue // what goes out
}

// ReadFromAddrPort implements ice.AddrPortReaderWriter.
func (s *socket) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	return s.batch.read(s.UDPConn, s, b)
}

func (s *socket) open(_ netip.AddrPort, b []byte, together *burst) bool {
	return s.conn.open(b, together)
}

// opener takes packets for the short way, and says which were.
type opener interface {
	open(from netip.AddrPort, b []byte, together *burst) bool
}

// WriteToAddrPort implements ice.AddrPortReaderWriter. Errors of packets that are held go unseen: they are lost packets.
func (s *socket) WriteToAddrPort(b []byte, addr netip.AddrPort) (int, error) {
	if s.conn.holds.Load() > 0 && isRTP(b) {
		s.mu.Lock()
		// The last who held may have flushed in between.
		queued := s.conn.holds.Load() > 0 && s.queue.add(&s.batch, b, addr)
		s.mu.Unlock()
		if queued {
			return len(b), nil
		}
	}
	return s.WriteToUDPAddrPort(b, addr)
}

// flush sends what is held.
func (s *socket) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.flush(&s.batch)
}

// Close implements net.Conn.
func (s *socket) Close() error {
	s.conn.changeSockets(func(sockets []*socket) []*socket {
		return slices.DeleteFunc(sockets, func(other *socket) bool { return other == s })
	})
	return s.UDPConn.Close()
}

// isRTP tells RTP from STUN, DTLS and RTCP (RFC 7983, section 7, and RFC 5761, section 4).
func isRTP(b []byte) bool {
	if len(b) < 12 || b[0]>>6 != 2 {
		return false
	}
	kind := b[1] & 0x7f
	return kind < 64 || kind > 95
}
