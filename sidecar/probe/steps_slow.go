package probe

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/logging"
)

// socket is the UDP side of a client whose cable can be pulled.
type socket struct {
	*net.UDPConn
	cut atomic.Bool
}

// WriteTo implements net.PacketConn.
func (s *socket) WriteTo(b []byte, to net.Addr) (int, error) {
	if s.cut.Load() {
		return len(b), nil
	}
	return s.UDPConn.WriteTo(b, to)
}

// ReadFrom implements net.PacketConn.
func (s *socket) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := s.UDPConn.ReadFrom(b)
		if err != nil || !s.cut.Load() {
			return n, from, err
		}
	}
}

// socket opens one towards the server; the caller closes the mux after its connections.
func (p *Probe) socket(ctx context.Context, publish bool) (*socket, ice.UDPMux, error) {
	ep := p.endpoint(publish, "x", true)
	own, err := localAddress(ctx, ep.URL)
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 0)))
	if err != nil {
		return nil, nil, err
	}
	s := &socket{UDPConn: conn}
	silent := &logging.DefaultLoggerFactory{Writer: io.Discard}
	return s, ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: s, Logger: silent.NewLogger("ice")}), nil
}

// until polls until something is so, and says how long that took.
func (p *Probe) until(ctx context.Context, so func() bool) (time.Duration, bool) {
	began := time.Now()
	for !so() {
		if time.Since(began) > p.bounds.vanish || ctx.Err() != nil {
			return time.Since(began), false
		}
		sleep(ctx, min(10*p.bounds.retry, time.Second))
	}
	return time.Since(began), ctx.Err() == nil
}

// tryVanish publishes, pulls the cable, and waits until the name is one that nobody publishes: plays of it are refused again,
// or where such plays wait, another may publish it.
func (p *Probe) tryVanish(ctx context.Context) {
	const id = "stream.vanish"
	p.say("letting a publisher vanish")
	f, name := p.fact(), p.name("vanish")
	s, mux, err := p.socket(ctx, true)
	if err != nil {
		p.note(id, Skip, "%s", why(err))
		return
	}
	defer mux.Close() //nolint:errcheck // nobody uses it any more
	b, err := p.publish(ctx, publishing{name: name, content: f.main, socket: mux})
	if err != nil {
		p.note(id, Skip, "%s", why(err))
		return
	}
	defer b.close() //nolint:errcheck // it may be gone
	if _, ok := p.connected(ctx, b.session.Connected); !ok {
		p.note(id, Skip, "its media cannot be reached from the address that leads to its HTTP port")
		return
	}
	free := func() bool {
		next, err := p.publish(ctx, publishing{name: name, content: f.main})
		if err == nil {
			_ = next.close()
		}
		return err == nil
	}
	if f.missing != 0 && f.plays {
		free = func() bool {
			v, err := p.play(ctx, playing{name: name, content: f.main})
			if err == nil {
				_ = v.close()
			}
			return refusal(err) == f.missing
		}
		if v, err := p.playSoon(ctx, playing{name: name, content: f.main}); err == nil {
			v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) > 0 })
			_ = v.close()
		}
	}
	if free() {
		p.note(id, Skip, "from outside it is not to be seen here whether a name is published")
		return
	}
	s.cut.Store(true)
	took, gone := p.until(ctx, free)
	if gone {
		p.note(id, OK, "a publisher that vanishes is believed in for %.0f s", took.Seconds())
	} else {
		p.note(id, Warn, "a publisher that vanishes is believed in for more than %.0f s", took.Seconds())
	}
}

// tryViewerVanish plays, pulls the cable, and waits until the session's address is one of nobody.
func (p *Probe) tryViewerVanish(ctx context.Context) {
	f := p.fact()
	if !f.plays || !f.publishes {
		return
	}
	p.say("letting a viewer vanish")
	name := p.name("viewer")
	b, err := p.publish(ctx, publishing{name: name, content: f.main})
	if err != nil {
		p.note("stream.viewer-vanish", Skip, "%s", why(err))
		return
	}
	defer b.close() //nolint:errcheck // other steps look at that
	ep := p.endpoint(false, name, true)
	// A session that is there and one that is not must differ, in the answer to something harmless.
	status := func(v *viewer) int {
		h := with(ep.Header, "Content-Type", contentFrag)
		if tag := v.session.ETag(); tag != "" {
			h.Set("If-Match", tag)
		}
		a, err := p.ask(ctx, http.MethodPatch, v.session.Location(), h, "a=end-of-candidates\r\n")
		if err != nil {
			return 0
		}
		return a.status
	}
	known, err := p.playSoon(ctx, playing{name: name, content: f.main})
	if err != nil {
		p.note("stream.viewer-vanish", Skip, "%s", why(err))
		return
	}
	known.wait(ctx, p.bounds.wait, func() bool { return len(known.frames) > 0 })
	alive := status(known)
	_ = known.close()
	dead := status(known)
	if alive == dead || alive == 0 || dead == 0 {
		p.note("stream.viewer-vanish", Skip, "a session that is there and one that is not look the same from outside")
		return
	}
	s, mux, err := p.socket(ctx, false)
	if err != nil {
		p.note("stream.viewer-vanish", Skip, "%s", why(err))
		return
	}
	defer mux.Close() //nolint:errcheck // nobody uses it any more
	v, err := p.playSoon(ctx, playing{name: name, content: f.main, socket: mux})
	if err != nil {
		p.note("stream.viewer-vanish", Skip, "%s", why(err))
		return
	}
	defer v.close() //nolint:errcheck // it may be gone
	v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) > 0 })
	s.cut.Store(true)
	took, gone := p.until(ctx, func() bool { return status(v) == dead })
	if gone {
		p.note("stream.viewer-vanish", OK, "a viewer that vanishes is counted for %.0f s", took.Seconds())
	} else {
		p.note("stream.viewer-vanish", Warn, "a viewer that vanishes is counted for more than %.0f s: streams are fetched for nobody", took.Seconds())
	}
}

// tryHalfOpen offers and never connects, and waits until another may publish the name.
func (p *Probe) tryHalfOpen(ctx context.Context) {
	p.say("leaving an offer half open")
	s, mux, err := p.socket(ctx, true)
	if err != nil {
		p.note("stream.half-open", Skip, "%s", why(err))
		return
	}
	defer mux.Close() //nolint:errcheck // nobody uses it any more
	s.cut.Store(true)
	name, c := p.name("half"), p.fact().main
	b, err := p.publish(ctx, publishing{name: name, content: c, socket: mux})
	if err != nil {
		p.note("stream.half-open", Skip, "%s", why(err))
		return
	}
	defer b.close() //nolint:errcheck // it may be gone
	var last string
	took, free := p.until(ctx, func() bool {
		next, err := p.publish(ctx, publishing{name: name, content: c})
		if err != nil {
			last = fmt.Sprintf(" (%s)", why(err))
			return false
		}
		_ = next.close()
		return true
	})
	switch {
	case !free:
		p.note("stream.half-open", Warn, "a publisher that offers and never connects blocks the name for more than %.0f s%s", took.Seconds(), last)
	case last == "":
		p.note("stream.half-open", OK, "a publisher that offers and never connects does not block the name")
	default:
		p.note("stream.half-open", Warn, "a publisher that offers and never connects blocks the name for %.0f s%s", took.Seconds(), last)
	}
}
