package media

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
	"github.com/pion/webrtc/v4"
)

const maxPacket = 1500

// direct is the short way between a socket and the tracks of a connection: packets are decrypted in the goroutine that reads
// the socket, and encrypted into what goes out, without pion's layers between, each with a goroutine and a buffer of its
// own. There is one where the connection runs over a socket of ours and the keys are known; it is decided before anything
// has been encrypted, and for good: two contexts with the same keys must not both encrypt. What the short way does not take
// goes pion's.
type direct struct {
	conn *Conn
	path atomic.Pointer[route] // nil: closed

	// What follows belongs to whoever holds Conn.reading.
	in      *srtp.Context
	header  rtp.Header
	sources map[uint32]*source

	mu     sync.Mutex // guards what follows
	out    *srtp.Context
	packet rtp.Packet
	sent   rtp.Header
	buffer [maxPacket + 100]byte // with room for what encryption adds
	queue  queue                 // to go out by a Port
	queued *Port

	moving sync.Mutex // held while the path changes
	closed bool       // for good; guarded by moving
}

// route is where packets go and come from.
type route struct {
	via interface {
		opener
		WriteToAddrPort(b []byte, to netip.AddrPort) (int, error)
	}
	remote netip.AddrPort
}

// decide makes the short way where there can be one. It is called when DTLS is done, and before pion makes its own
// contexts of the keys.
func (c *Conn) decide(k *keys, ice *webrtc.ICETransport) {
	defer k.forget()
	shared := len(c.transport.Ports) > 0
	if !shared && ice.Role() != webrtc.ICERoleControlling {
		return // the far end may move to another path
	}
	p, _ := c.pathOf(ice)
	if p == nil {
		return
	}
	in, out, err := k.contexts()
	if err != nil {
		return
	}
	d := &direct{conn: c, in: in, out: out, sources: make(map[uint32]*source)}
	d.move(p)
	c.settle(d)
	// It may have moved meanwhile. A pair that is chosen later is followed; the connection cannot be closed from here, where pion
	// holds the lock that closing waits for.
	if p, _ := c.pathOf(ice); shared && p != nil {
		d.move(p)
	}
}

// settle makes the short way the connection's, when nobody is about to send pion's way any more.
func (c *Conn) settle(d *direct) {
	c.settling.Lock()
	defer c.settling.Unlock()
	c.direct.Store(d)
}

// follow goes where the far end has moved to. One that has moved to where only pion could follow is lost: pion would encrypt by the
// same keys anew.
func (c *Conn) follow(ice *webrtc.ICETransport) {
	d := c.direct.Load()
	if d == nil || d.path.Load() == nil {
		return
	}
	p, chosen := c.pathOf(ice)
	if p != nil {
		d.move(p)
	}
	if p != nil || !chosen {
		return
	}
	c.mu.Lock()
	pc := c.pc
	c.mu.Unlock()
	_ = pc.Close() // an error means that it is closed already
}

// pathOf is the path that ICE has chosen, if it has at present, where that goes by a socket of ours.
func (c *Conn) pathOf(ice *webrtc.ICETransport) (path *route, chosen bool) {
	pair, err := ice.GetSelectedCandidatePair()
	if err != nil || pair == nil {
		return nil, false // none has been found, or a restart looks for another
	}
	return c.pathBy(pair), true
}

// pathBy is the path of a pair of candidates, nil where that does not go by a socket of ours.
func (c *Conn) pathBy(pair *webrtc.ICECandidatePair) *route {
	if pair.Local.Protocol != webrtc.ICEProtocolUDP || pair.Remote.Protocol != webrtc.ICEProtocolUDP {
		return nil
	}
	address, port := pair.Local.Address, pair.Local.Port
	switch pair.Local.Typ {
	case webrtc.ICECandidateTypeHost:
	case webrtc.ICECandidateTypeSrflx, webrtc.ICECandidateTypePrflx:
		address, port = pair.Local.RelatedAddress, pair.Local.RelatedPort
	default:
		return nil
	}
	addr, err := netip.ParseAddr(pair.Remote.Address)
	if err != nil || addr.Zone() != "" {
		return nil
	}
	remote := netip.AddrPortFrom(addr.Unmap(), pair.Remote.Port)
	for _, p := range c.transport.Ports {
		if local := p.local(); local.Port() == port && local.Addr().String() == address {
			return &route{via: p, remote: remote}
		}
	}
	var s *socket
	if sockets := c.sockets.Load(); sockets != nil {
		for _, candidate := range *sockets {
			local := candidate.LocalAddr().(*net.UDPAddr)
			if uint16(local.Port) != port || (local.IP.To4() != nil) != addr.Is4() {
				continue
			}
			if s != nil {
				return nil // the same port at two addresses
			}
			s = candidate
		}
	}
	if s == nil {
		return nil
	}
	return &route{via: s, remote: remote}
}

// move changes the path; nil ends it for good.
func (d *direct) move(to *route) {
	d.moving.Lock()
	defer d.moving.Unlock()
	if d.closed {
		return
	}
	d.closed = to == nil
	from := d.path.Load()
	if from != nil {
		if p, ok := from.via.(*Port); ok {
			p.leave(from.remote, d.conn)
		}
	}
	if to != nil {
		if p, ok := to.via.(*Port); ok {
			p.join(to.remote, d.conn)
		}
	}
	d.path.Store(to)
}

// open takes a packet that came by a socket, and says whether it was one for the short way. The slice is decrypted in place. Whoever
// has the keys is the far end, wherever he sends from: what pion would take from his other addresses could have been here before.
func (c *Conn) open(b []byte, together *burst) bool {
	d := c.direct.Load()
	if d == nil || d.path.Load() == nil || !isRTP(b) {
		return false
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	ssrc := binary.BigEndian.Uint32(b[8:])
	src, into := d.sources[ssrc], b
	if src == nil {
		if len(d.sources) >= maxSources {
			c.unknown.Add(1)
			return true
		}
		// Pion may have taken the first packets of a source, and know its rollover counter. It gets the packet as it came then:
		// decryption that fails leaves nothing of it.
		into = nil
	}
	header := d.header
	raw, err := d.in.DecryptRTP(into, b, &d.header)
	if err != nil {
		d.header = header // it does not grow for those without keys
		if src != nil {
			c.forged.Add(1)
		}
		return src != nil
	}
	if src == nil {
		src = &source{conn: c, ssrc: ssrc}
		d.sources[ssrc] = src
	}
	c.burst = together
	src.receive(raw)
	c.burst = nil
	return true
}

// write sends an RTP packet, and gives the size of its payload.
func (d *direct) write(h *rtp.Header, payload []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.packet.Header, d.packet.Payload = *h, payload
	d.packet.PaddingSize = h.PaddingSize
	buffer := d.buffer[:]
	if size := d.packet.MarshalSize(); size > maxPacket {
		buffer = make([]byte, size+len(d.buffer)-maxPacket)
	}
	n, err := d.packet.MarshalTo(buffer)
	if err != nil {
		return 0, err
	}
	encrypted, err := d.out.EncryptRTP(buffer, buffer[:n], &d.sent)
	if err != nil {
		return 0, err
	}
	if err := d.sendLocked(encrypted); err != nil {
		return 0, err
	}
	return len(payload), nil
}

// sendLocked sends an encrypted packet, or keeps it while the connection holds those it sends.
func (d *direct) sendLocked(b []byte) error {
	to := d.path.Load()
	if to == nil {
		return net.ErrClosed
	}
	if p, ok := to.via.(*Port); ok && d.conn.holds.Load() > 0 {
		if d.queued != p {
			d.flushLocked()
		}
		d.queued = p
		if d.queue.add(&p.batch, b, to.remote) {
			return nil
		}
	}
	_, err := to.via.WriteToAddrPort(b, to.remote)
	return err
}

// flush sends what is kept.
func (d *direct) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushLocked()
}

func (d *direct) flushLocked() {
	if d.queued != nil {
		d.queue.flush(&d.queued.batch)
	}
}

// writeRTCP sends RTCP packets.
func (d *direct) writeRTCP(packets []rtcp.Packet) {
	raw, err := rtcp.Marshal(packets)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	encrypted, err := d.out.EncryptRTCP(nil, raw, nil)
	if err != nil {
		return
	}
	// Feedback that cannot be sent is feedback lost: the connection's own state says the rest.
	if to := d.path.Load(); to != nil {
		_, _ = to.via.WriteToAddrPort(encrypted, to.remote)
	}
}
