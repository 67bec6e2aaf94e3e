package media

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"

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
	socket *socket
	remote netip.AddrPort

	// What follows belongs to whoever holds Conn.reading.
	in      *srtp.Context
	header  rtp.Header
	sources map[uint32]*source

	mu     sync.Mutex // guards what follows
	out    *srtp.Context
	packet rtp.Packet
	sent   rtp.Header
	buffer [maxPacket + 100]byte // with room for what encryption adds
}

// decide makes the short way where there can be one. It is called when DTLS is done, and before pion makes its own
// contexts of the keys.
func (c *Conn) decide(k *keys, ice *webrtc.ICETransport) {
	if ice.Role() != webrtc.ICERoleControlling {
		return // the far end may move to another path, of which only pion would know
	}
	pair, err := ice.GetSelectedCandidatePair()
	if err != nil || pair == nil || pair.Local.Protocol != webrtc.ICEProtocolUDP || pair.Remote.Protocol != webrtc.ICEProtocolUDP {
		return
	}
	port := pair.Local.Port
	switch pair.Local.Typ {
	case webrtc.ICECandidateTypeHost:
	case webrtc.ICECandidateTypeSrflx, webrtc.ICECandidateTypePrflx:
		port = pair.Local.RelatedPort
	default:
		return
	}
	addr, err := netip.ParseAddr(pair.Remote.Address)
	if err != nil || addr.Zone() != "" {
		return
	}
	var s *socket
	if sockets := c.sockets.Load(); sockets != nil {
		for _, candidate := range *sockets {
			local := candidate.LocalAddr().(*net.UDPAddr)
			if uint16(local.Port) != port || (local.IP.To4() != nil) != addr.Is4() {
				continue
			}
			if s != nil {
				return // the same port at two addresses
			}
			s = candidate
		}
	}
	if s == nil {
		return
	}
	in, out, err := k.contexts()
	if err != nil {
		return
	}
	c.direct.Store(&direct{
		socket: s, remote: netip.AddrPortFrom(addr, pair.Remote.Port), in: in, out: out, sources: make(map[uint32]*source),
	})
}

// open takes a packet that came by a socket, and says whether it was one for the short way. The slice is decrypted in place.
func (c *Conn) open(s *socket, from netip.AddrPort, b []byte, together *burst) bool {
	d := c.direct.Load()
	if d == nil || d.socket != s || d.remote != from || !isRTP(b) {
		return false
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	ssrc := binary.BigEndian.Uint32(b[8:])
	raw, err := d.in.DecryptRTP(b, b, &d.header)
	if err != nil {
		// Pion may have taken the first packets of a source, and know its rollover counter.
		_, known := d.in.ROC(ssrc)
		return known
	}
	src := d.sources[ssrc]
	if src == nil {
		if len(d.sources) >= maxSources {
			return true
		}
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
	if _, err := d.socket.WriteToAddrPort(encrypted, d.remote); err != nil {
		return 0, err
	}
	return len(payload), nil
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
	_, _ = d.socket.WriteToAddrPort(encrypted, d.remote)
}
