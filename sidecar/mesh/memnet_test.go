package mesh

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// network is an in-memory network with latency, for synctest bubbles: hosts are names, and a host can be frozen (nothing
// arrives from it or at it any more, and nobody is told) or cut (its connections break).
type network struct {
	mu        sync.Mutex
	latency   time.Duration
	vary      func() time.Duration // nil: latency; else that of one direction of a new connection. Called under mu
	listeners map[string]*memListener
	conns     map[*memConn]struct{}
	frozen    map[string]bool
	dials     map[string]int
}

func newNetwork(latency time.Duration) *network {
	return &network{
		latency: latency, listeners: map[string]*memListener{}, conns: map[*memConn]struct{}{},
		frozen: map[string]bool{}, dials: map[string]int{},
	}
}

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

func (n *network) listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		t.Fatalf("listen %s: in use", addr)
	}
	l := &memListener{network: n, addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	n.listeners[addr] = l
	return l
}

// dialFrom is a host's DialFunc.
func (n *network) dialFrom(host string) DialFunc {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		n.mu.Lock()
		n.dials[addr]++
		l, latency := n.listeners[addr], n.latency
		lost := n.frozen[host] || n.frozen[hostOf(addr)]
		n.mu.Unlock()
		if lost {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		select {
		case <-time.After(2 * latency):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if l == nil {
			return nil, errors.New("connection refused")
		}
		near, far := n.pipe(host+":1", addr)
		select {
		case l.conns <- far:
			return near, nil
		case <-l.done:
			return nil, errors.New("connection refused")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (n *network) pipe(a, b string) (near, far *memConn) {
	ab, ba := newMemPipe(n), newMemPipe(n)
	near = &memConn{network: n, local: a, remote: b, in: ba, out: ab}
	far = &memConn{network: n, local: b, remote: a, in: ab, out: ba}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.vary != nil {
		ab.latency, ba.latency = n.vary(), n.vary()
	}
	n.conns[near], n.conns[far] = struct{}{}, struct{}{}
	return near, far
}

// freeze stops all that a host sends and receives.
func (n *network) freeze(host string, frozen bool) {
	n.mu.Lock()
	n.frozen[host] = frozen
	var touched []*memConn
	for c := range n.conns {
		if hostOf(c.local) == host || hostOf(c.remote) == host {
			touched = append(touched, c)
		}
	}
	n.mu.Unlock()
	for _, c := range touched {
		c.in.setFrozen(frozen)
	}
}

// cut breaks all connections of a host, and lets new ones be made.
func (n *network) cut(host string) {
	n.mu.Lock()
	var touched []*memConn
	for c := range n.conns {
		if hostOf(c.local) == host {
			touched = append(touched, c)
		}
	}
	n.mu.Unlock()
	for _, c := range touched {
		_ = c.Close()
	}
}

// open counts the connections between two hosts.
func (n *network) open(a, b string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for c := range n.conns {
		if hostOf(c.local) == a && hostOf(c.remote) == b {
			count++
		}
	}
	return count
}

func (n *network) dialled(addr string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[addr]
}

type memListener struct {
	network *network
	addr    string
	conns   chan net.Conn
	once    sync.Once
	done    chan struct{}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.network.mu.Lock()
		defer l.network.mu.Unlock()
		if l.network.listeners[l.addr] == l {
			delete(l.network.listeners, l.addr)
		}
	})
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr(l.addr) }

// memBuffer is how much one direction holds before its writer waits.
const memBuffer = 64 << 10

// memPipe is one direction of a connection.
type memPipe struct {
	latency time.Duration
	mu      sync.Mutex
	changed chan struct{}
	chunks  []memChunk
	size    int
	closed  bool // by the writer
	gone    bool // by the reader
	frozen  bool
}

type memChunk struct {
	at   time.Time
	data []byte
}

func newMemPipe(n *network) *memPipe {
	return &memPipe{latency: n.latency, changed: make(chan struct{})}
}

func (p *memPipe) touch() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *memPipe) setFrozen(frozen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = frozen
	p.touch()
}

func (p *memPipe) close(reader bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.gone = p.gone || reader
	p.touch()
}

func (p *memPipe) read(b []byte, deadline *memDeadline) (int, error) {
	for {
		p.mu.Lock()
		if p.gone {
			p.mu.Unlock()
			return 0, net.ErrClosed
		}
		var wait <-chan time.Time
		if !p.frozen {
			if len(p.chunks) > 0 {
				head := &p.chunks[0]
				if late := time.Until(head.at); late > 0 {
					wait = time.After(late)
				} else {
					n := copy(b, head.data)
					head.data = head.data[n:]
					p.size -= n
					if len(head.data) == 0 {
						p.chunks = p.chunks[1:]
					}
					p.touch()
					p.mu.Unlock()
					return n, nil
				}
			} else if p.closed {
				p.mu.Unlock()
				return 0, io.EOF
			}
		}
		changed := p.changed
		p.mu.Unlock()
		over, moved := deadline.channels()
		select {
		case <-changed:
		case <-wait:
		case <-moved:
		case <-over:
			return 0, os.ErrDeadlineExceeded
		}
	}
}

func (p *memPipe) write(b []byte, deadline *memDeadline) (int, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return 0, io.ErrClosedPipe
		}
		if p.size < memBuffer {
			p.chunks = append(p.chunks, memChunk{at: time.Now().Add(p.latency), data: append([]byte(nil), b...)})
			p.size += len(b)
			p.touch()
			p.mu.Unlock()
			return len(b), nil
		}
		changed := p.changed
		p.mu.Unlock()
		over, moved := deadline.channels()
		select {
		case <-changed:
		case <-moved:
		case <-over:
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// memDeadline is a deadline that can be moved while somebody waits for it.
type memDeadline struct {
	mu    sync.Mutex
	at    time.Time
	moved chan struct{}
}

func (d *memDeadline) set(at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = at
	if d.moved != nil {
		close(d.moved)
		d.moved = nil
	}
}

func (d *memDeadline) channels() (over <-chan time.Time, moved <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moved == nil {
		d.moved = make(chan struct{})
	}
	if !d.at.IsZero() {
		over = time.After(time.Until(d.at))
	}
	return over, d.moved
}

type memConn struct {
	network       *network
	local, remote string
	in, out       *memPipe
	reads, writes memDeadline
}

func (c *memConn) Read(b []byte) (int, error)  { return c.in.read(b, &c.reads) }
func (c *memConn) Write(b []byte) (int, error) { return c.out.write(b, &c.writes) }

func (c *memConn) Close() error {
	c.network.mu.Lock()
	delete(c.network.conns, c)
	c.network.mu.Unlock()
	c.in.close(true)
	c.out.close(false)
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return memAddr(c.local) }
func (c *memConn) RemoteAddr() net.Addr { return memAddr(c.remote) }

func (c *memConn) SetDeadline(t time.Time) error {
	c.reads.set(t)
	c.writes.set(t)
	return nil
}

func (c *memConn) SetReadDeadline(t time.Time) error  { c.reads.set(t); return nil }
func (c *memConn) SetWriteDeadline(t time.Time) error { c.writes.set(t); return nil }
