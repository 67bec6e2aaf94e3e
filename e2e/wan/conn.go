package wan

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// closing bounds how long what was written before Close may take to arrive, beyond the link's delay.
const closing = 10 * time.Second

// Conn is a TCP connection over a link: bytes take their time both ways, order and completeness stay. What has been
// written before Close still arrives, and then the end of the stream does.
type Conn struct {
	network *Network
	raw     net.Conn
	link    Link
	out, in *stream

	mu      sync.Mutex
	closed  bool // by the caller
	carried bool // nothing more will be carried out
}

// Conn wraps an open connection and owns it from now on. A zero Link gives the connection back as it is.
func (n *Network) Conn(raw net.Conn, link Link) net.Conn {
	return n.conn(raw, link, time.Time{})
}

// conn has what arrives count as sent not before the given moment.
func (n *Network) conn(raw net.Conn, link Link, notBefore time.Time) net.Conn {
	if link == (Link{}) {
		return raw
	}
	c := &Conn{
		network: n, raw: raw, link: link,
		out: newStream(link.Out, time.Time{}), in: newStream(link.In, notBefore),
	}
	n.attend(c)
	return c
}

// Dialer returns a dial function like dial (nil: a [net.Dialer]'s) over the link to each address. Dialling takes a round
// trip, as the handshake of TCP does, and waits for a cut link to heal.
func (n *Network) Dialer(
	dial func(ctx context.Context, network, address string) (net.Conn, error), classify func(address string) Link,
) func(ctx context.Context, network, address string) (net.Conn, error) {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		link := classify(address)
		if err := link.handshake(ctx); err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		}
		raw, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return n.Conn(raw, link), nil
	}
}

// handshake waits as long as TCP's takes.
func (l Link) handshake(ctx context.Context) error {
	for l.cut() {
		for _, d := range []*Direction{l.Out, l.In} {
			if d == nil {
				continue
			}
			changed := d.change()
			if !d.Params().Cut {
				continue
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
		}
	}
	wait := l.roundTrip()
	if wait == 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Listener wraps a listener: connections that it accepts go over the link to their remote. The remote believes itself
// connected at once; its first bytes are held back by the round trip that the handshake would have cost.
func (n *Network) Listener(l net.Listener, classify func(remote net.Addr) Link) net.Listener {
	return &listener{Listener: l, network: n, classify: classify}
}

type listener struct {
	net.Listener
	network  *Network
	classify func(net.Addr) Link
}

// Accept is [net.Listener]'s.
func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	link := l.classify(raw.RemoteAddr())
	return l.network.conn(raw, link, time.Now().Add(link.roundTrip())), nil
}

// carryOut takes what the caller has written to the connection.
func (c *Conn) carryOut() {
	err := carry(c.raw, c.out)
	c.out.fail(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carried = true
	if c.closed {
		c.release()
		return
	}
	// What the other end still sends can be read until Close.
	if half, ok := c.raw.(interface{ CloseWrite() error }); ok && errors.Is(err, errHalfClosed) {
		_ = half.CloseWrite()
	}
}

// release gives the connection back when both the caller and carryOut have done with it.
func (c *Conn) release() {
	_ = c.raw.Close()
	c.network.forget(c)
}

// carryIn takes what comes from the connection to the caller.
func (c *Conn) carryIn() {
	buffer := make([]byte, piece)
	for {
		n, err := c.raw.Read(buffer)
		if n > 0 {
			if _, err := c.in.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			c.in.finish(err)
			return
		}
	}
}

func carry(to io.Writer, from *stream) error {
	buffer := make([]byte, piece)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return err
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return err
		}
	}
}

// abort ends everything at once.
func (c *Conn) abort() {
	c.out.fail(net.ErrClosed)
	c.in.fail(net.ErrClosed)
	_ = c.raw.Close()
}

// Read is [net.Conn]'s.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // io.EOF is never wrapped by those who return it from Read
		err = c.wrap("read", err)
	}
	return n, err
}

// Write is [net.Conn]'s. It returns when the bytes are in the connection's buffer.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.Write(p)
	if err != nil {
		err = c.wrap("write", err)
	}
	return n, err
}

func (c *Conn) wrap(op string, err error) error {
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return err // it comes from the connection below, which has said all this
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// CloseWrite ends what is sent, behind what is under way; reading goes on.
func (c *Conn) CloseWrite() error {
	c.out.finish(errHalfClosed)
	return nil
}

// Close ends the connection for the caller at once. The other end sees it when all that was written has arrived there.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.wrap("close", net.ErrClosed)
	}
	c.closed = true
	c.in.fail(net.ErrClosed)
	if c.carried {
		c.release()
		return nil
	}
	c.out.finish(io.EOF)
	limit := time.Now().Add(c.link.Out.Params().Delay + closing)
	c.out.readDeadline.set(limit)
	_ = c.raw.SetWriteDeadline(limit)
	return nil
}

// LocalAddr is [net.Conn]'s.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr is [net.Conn]'s.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// SetDeadline is [net.Conn]'s.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline is [net.Conn]'s.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.readDeadline.set(t)
	return nil
}

// SetWriteDeadline is [net.Conn]'s.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.writeDeadline.set(t)
	return nil
}
