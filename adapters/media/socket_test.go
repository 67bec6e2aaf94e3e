package media

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/transport/v4/stdnet"
	"github.com/pion/webrtc/v4"
)

func testSocket(t *testing.T) *socket {
	t.Helper()
	machine, err := stdnet.NewNet()
	if err != nil {
		t.Fatal(err)
	}
	u, err := network{machine, NewConn(Transport{}, nil)}.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	return u.(*socket)
}

// Packets that are held go out together, and come out one by one at whoever reads them, by this package or otherwise.
func TestSocketHolds(t *testing.T) {
	for _, tt := range []struct {
		name  string
		whole bool // the kernel does not cut packets
		sizes []int
	}{
		{"a frame", false, []int{1200, 1200, 1200, 1200, 700}},
		{"all sizes", false, []int{100, 1200, 1200, 1300, 12, 12, 900, 1500, 1500}},
		{"one by one", true, []int{1200, 1200, 700}},
		{"more than one call takes", false, slicesOf(100, 1100)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from, to := testSocket(t), testSocket(t)
			setWhole(from, tt.whole)
			plain, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			for _, receiver := range []interface {
				net.PacketConn
				SetReadDeadline(time.Time) error
			}{to, plain} {
				addr := receiver.LocalAddr().(*net.UDPAddr).AddrPort()
				var sent [][]byte
				from.conn.holds.Add(1)
				for i, size := range tt.sizes {
					b := bytes.Repeat([]byte{byte(i)}, size)
					b[0], b[1] = 0x80, 96
					sent = append(sent, b)
					if n, err := from.WriteToAddrPort(b, addr); n != size || err != nil {
						t.Fatalf("write: %d, %v", n, err)
					}
				}
				from.conn.holds.Add(-1)
				from.conn.flush()
				_ = receiver.SetReadDeadline(time.Now().Add(10 * time.Second))
				buffer := make([]byte, 2000)
				for i, want := range sent {
					var n int
					var source netip.AddrPort
					if s, ok := receiver.(*socket); ok {
						n, source, err = s.ReadFromAddrPort(buffer)
					} else {
						n, source, err = plain.ReadFromUDPAddrPort(buffer)
					}
					if err != nil {
						t.Fatalf("packet %d: %v", i, err)
					}
					if !bytes.Equal(buffer[:n], want) || source.Port() != from.LocalAddr().(*net.UDPAddr).AddrPort().Port() {
						t.Fatalf("packet %d of %d bytes from %s, want %d bytes", i, n, source, len(want))
					}
				}
			}
		})
	}
}

func slicesOf(n, size int) []int {
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = size
	}
	return sizes
}

// A connection takes the short way where its far end is the DTLS client, and pion's otherwise; packets come through either.
func TestShortWay(t *testing.T) {
	for _, tt := range []struct {
		name    string
		rewrite func(string) string
		short   bool
	}{
		{"far end active", nil, true},
		{"far end passive", func(sdp string) string { return strings.Replace(sdp, "a=setup:actpass", "a=setup:active", 1) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := make(counter, 5000)
			from, to := NewConn(Transport{Loopback: true}, nil), NewConn(Transport{Loopback: true}, func(*Track) Sink { return c })
			fromPC, err := from.NewPeerConnection(webrtc.Configuration{})
			if err != nil {
				t.Fatal(err)
			}
			defer fromPC.GracefulClose()
			toPC, err := to.NewPeerConnection(webrtc.Configuration{})
			if err != nil {
				t.Fatal(err)
			}
			defer toPC.GracefulClose()
			video := from.NewSender(SenderOptions{
				Kind: webrtc.RTPCodecTypeVideo, Codec: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000},
				ID: "video", StreamID: "test",
			})
			if _, err := fromPC.AddTrack(video); err != nil {
				t.Fatal(err)
			}
			connect(t, fromPC, toPC, tt.rewrite)
			// Around a wrap of sequence numbers, so that both ends must have counted rollovers alike.
			came := 0
			for seq := 0; came < 80 && seq < 5000; seq++ {
				p := videoPacket(t, seq)
				p.Header.SequenceNumber = uint16(65500 + seq)
				video.Packet(p)
				select {
				case <-c:
					came++
				case <-time.After(100 * time.Millisecond):
				}
			}
			if came < 80 {
				t.Errorf("%d packets came through", came)
			}
			if short := from.direct.Load() != nil; short != tt.short {
				t.Errorf("short way: %t, want %t", short, tt.short)
			}
			if to.direct.Load() != nil {
				t.Error("the far end, which may be told to change its path, takes the short way")
			}
		})
	}
}

// counter is a Sink.
type counter chan struct{}

func (c counter) Packet(*Packet)            { c <- struct{}{} }
func (c counter) SenderReport(SenderReport) {}

// What is old is let go of, and a stream of many packets is kept as long as one of few.
func TestHistoryKeepsBySeconds(t *testing.T) {
	for _, perSecond := range []int{50, 300, 3000} {
		h := NewHistory(512)
		h.Keep(historyTime, 8192)
		start := time.Unix(1000, 0)
		n := 4 * perSecond
		for i := range n {
			p, err := NewPacket(rtp.Header{Version: 2, SequenceNumber: uint16(i), Timestamp: uint32(i)}, make([]byte, 1100))
			if err != nil {
				t.Fatal(err)
			}
			p.Arrival = start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
			p.KeyFrame = i%perSecond == 0
			h.Add(p)
		}
		if !h.Has(uint16(n - perSecond)) {
			t.Errorf("%d packets/s: one of a second ago is gone", perSecond)
		}
		if perSecond > 50 && h.Has(uint16(n-2*perSecond)) {
			t.Errorf("%d packets/s: one of two seconds ago is kept", perSecond)
		}
		if got := int(h.next - h.first); got > 3*perSecond/2+64 {
			t.Errorf("%d packets/s: %d kept", perSecond, got)
		}
		if position, ok := h.KeyFrame(); !ok || position != uint64(n-perSecond) {
			t.Errorf("%d packets/s: key frame at %d, %t", perSecond, position, ok)
		}
	}
}

// Histories lend each other memory: each still has its own packets, whatever their size, and no more memory than it needs.
func TestHistoryMemory(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const most = 64
	histories := []*History{NewHistory(most), NewHistory(most), NewHistory(most)}
	for i := range 20_000 {
		h := histories[random.IntN(len(histories))]
		size := random.IntN(1200)
		if random.IntN(200) == 0 {
			size = random.IntN(4 * chunkSize)
		}
		p, err := NewPacket(rtp.Header{Version: 2, SequenceNumber: uint16(h.next), SSRC: uint32(i)},
			bytes.Repeat([]byte{byte(i)}, size))
		if err != nil {
			t.Fatal(err)
		}
		p.Arrival = time.Unix(1000, 0).Add(time.Duration(i) * time.Millisecond)
		h.Add(p)
	}
	for _, h := range histories {
		all, _ := h.All(nil)
		if len(all) != most {
			t.Fatalf("%d packets", len(all))
		}
		size, in := 0, map[*chunk]bool{}
		for i, p := range all {
			if rest := bytes.Trim(p.Payload, string([]byte{byte(p.Header.SSRC)})); len(rest) > 0 {
				t.Fatalf("packet %d holds bytes of another", i)
			}
			size += len(p.raw)
			s := h.slotLocked(h.first + uint64(i) + 1)
			in[s.in] = true
		}
		if size != h.size {
			t.Errorf("%d bytes counted, %d kept", h.size, size)
		}
		taken := 0
		for c := range in {
			taken += len(c.bytes)
		}
		if taken > size*5/4+2*chunkSize {
			t.Errorf("%d bytes taken for %d", taken, size)
		}
	}
}
