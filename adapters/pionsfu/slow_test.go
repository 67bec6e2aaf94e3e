package pionsfu

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// slowSocket is the server's socket, on which sending media to one address can be held up for as long as the test likes.
type slowSocket struct {
	*net.UDPConn

	mu   sync.Mutex
	to   netip.AddrPort
	gate chan struct{} // nil: nobody is held up
	held chan struct{} // closed when somebody is
}

func (s *slowSocket) hold(to netip.AddrPort) (held <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to, s.gate, s.held = to, make(chan struct{}), make(chan struct{})
	return s.held
}

func (s *slowSocket) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil {
		close(s.gate)
		s.gate = nil
	}
}

func (s *slowSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	s.mu.Lock()
	gate := s.gate
	if gate != nil && to.(*net.UDPAddr).AddrPort() == s.to && isMedia(b) {
		select {
		case <-s.held:
		default:
			close(s.held)
		}
	} else {
		gate = nil
	}
	s.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return s.UDPConn.WriteTo(b, to)
}

// noAddrPort hides the methods by which the mux would pass WriteTo by.
type noAddrPort struct{ net.PacketConn }

// isMedia tells RTP from what else shares the port (RFC 7983, section 7; RFC 5761, section 4).
func isMedia(b []byte) bool { return len(b) > 12 && b[0]>>6 == 2 && (b[1]&0x7f < 64 || b[1]&0x7f > 95) }

// A viewer to whom nothing can be sent holds up nobody else; when it can be sent to again it goes on at the live edge,
// with sequence numbers that have no hole.
func TestSlowViewer(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	socket := &slowSocket{UDPConn: conn}
	mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: noAddrPort{socket}})
	t.Cleanup(func() { _ = mux.Close() })
	s := run(t, Config{Transport: media.Transport{UDPMux: mux, Loopback: true}})
	t.Cleanup(socket.release) // before run's, which waits for the sessions

	publisher := s.publishRaw(t, "slow", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	fast := s.playRaw(t, "slow", webrtc.RTPCodecTypeVideo)
	slow := s.playRaw(t, "slow", webrtc.RTPCodecTypeVideo)
	slow.next(t)

	pair, err := slow.session.PeerConnection().SCTP().Transport().ICETransport().GetSelectedCandidatePair()
	if err != nil {
		t.Fatal(err)
	}
	<-socket.hold(netip.AddrPortFrom(netip.MustParseAddr(pair.Local.Address), pair.Local.Port))

	// More than the history holds passes the fast viewer by, whole; the server answers everybody meanwhile.
	number := func(payload []byte) uint32 { return binary.BigEndian.Uint32(payload[4:]) }
	last := number(fast.next(t).Payload)
	for range videoHistory + 200 {
		packet := fast.next(t)
		if n := number(packet.Payload); n != last+1 {
			t.Fatalf("the fast viewer got packet %d after %d", n, last)
		}
		last++
	}
	s.playRaw(t, "slow", webrtc.RTPCodecTypeVideo).next(t)
	if streams, _ := s.registry.snapshot(); streams[0].Readers != 3 {
		t.Errorf("%d readers; want 3", streams[0].Readers)
	}

	socket.release()
	before, jumped := slow.next(t), false
	for !jumped {
		packet := slow.next(t)
		if packet.SequenceNumber != before.SequenceNumber+1 {
			t.Fatalf("the slow viewer got sequence number %d after %d", packet.SequenceNumber, before.SequenceNumber)
		}
		jumped = number(packet.Payload) > number(before.Payload)+500
		before = packet
	}
	if totals, _, _, _ := s.registry.totals(); totals.skips != 1 {
		t.Errorf("%d skips; want 1", totals.skips)
	}
}
