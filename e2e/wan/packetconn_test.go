package wan

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// running has a network run until the test ends.
func running(t testing.TB) *Network {
	t.Helper()
	n := NewNetwork()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	return n
}

// socket is a UDP socket without a kernel, so that time can be synctest's.
type socket struct {
	address  netip.AddrPort
	peers    map[netip.AddrPort]*socket
	in       chan datagram
	deadline deadline
	closed   chan struct{}
	once     sync.Once
}

type datagram struct {
	data []byte
	from netip.AddrPort
}

// sockets returns sockets at these ports that reach each other.
func sockets(ports ...uint16) []*socket {
	peers := make(map[netip.AddrPort]*socket)
	var all []*socket
	for _, p := range ports {
		s := &socket{
			address: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p), peers: peers,
			in: make(chan datagram, 10_000), closed: make(chan struct{}),
		}
		peers[s.address] = s
		all = append(all, s)
	}
	return all
}

func (s *socket) ReadFrom(p []byte) (int, net.Addr, error) {
	passed := s.deadline.passed()
	if isClosed(passed) {
		return 0, nil, os.ErrDeadlineExceeded
	}
	select {
	case d := <-s.in:
		return copy(p, d.data), net.UDPAddrFromAddrPort(d.from), nil
	case <-passed:
		return 0, nil, os.ErrDeadlineExceeded
	case <-s.closed:
		return 0, nil, net.ErrClosed
	}
}

func (s *socket) WriteTo(p []byte, to net.Addr) (int, error) {
	if isClosed(s.closed) {
		return 0, net.ErrClosed
	}
	s.peers[to.(*net.UDPAddr).AddrPort()].in <- datagram{bytes.Clone(p), s.address}
	return len(p), nil
}

func (s *socket) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *socket) LocalAddr() net.Addr                { return net.UDPAddrFromAddrPort(s.address) }
func (s *socket) SetDeadline(t time.Time) error      { return s.SetReadDeadline(t) }
func (s *socket) SetReadDeadline(t time.Time) error  { s.deadline.set(t); return nil }
func (s *socket) SetWriteDeadline(t time.Time) error { return nil }

// byPort finds the link to a remote by its port.
func byPort(links map[uint16]Link) func(netip.AddrPort) Link {
	return func(remote netip.AddrPort) Link { return links[remote.Port()] }
}

// One socket is near to one remote, far from the second, and not delayed to the third; both ways to the nanosecond.
func TestPacketConnDistances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		s := sockets(1, 2, 3, 4)
		near := Link{
			Out: NewDirection(1, Params{Delay: 20 * time.Millisecond}),
			In:  NewDirection(1, Params{Delay: 30 * time.Millisecond}),
		}
		far := NewLink(2, Params{Delay: 100 * time.Millisecond})
		c := n.PacketConn(s[0], byPort(map[uint16]Link{2: near, 3: far}))
		defer c.Close()

		// Out: the remotes read their sockets.
		for i, want := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 0} {
			remote := s[i+1]
			if _, err := c.WriteTo([]byte("ping"), remote.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			buffer := make([]byte, 100)
			n, _, err := remote.ReadFrom(buffer)
			if err != nil || string(buffer[:n]) != "ping" {
				t.Fatalf("%q, %v", buffer[:n], err)
			}
			if took := time.Since(begin); took != want {
				t.Errorf("to %v: %v, want %v", remote.address, took, want)
			}
		}

		// In: all three are sent at once, and arrive by their distance.
		start := time.Now()
		for i, remote := range s[1:] {
			if _, err := remote.WriteTo(fmt.Appendf(nil, "pong %d", i), c.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []struct {
			after time.Duration
			data  string
			port  uint16
		}{{0, "pong 2", 4}, {30 * time.Millisecond, "pong 0", 2}, {100 * time.Millisecond, "pong 1", 3}} {
			buffer := make([]byte, 100)
			n, from, err := c.ReadFromAddrPort(buffer)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(buffer[:n]); got != want.data || from.Port() != want.port || time.Since(start) != want.after {
				t.Errorf("%q from %v after %v, want %+v", got, from, time.Since(start), want)
			}
		}
		if c := near.In.Counters(); c.Packets != 1 || c.Bytes != 6+28 {
			t.Errorf("counters %+v", c)
		}
	})
}

func TestPacketConnReadDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		s := sockets(1, 2)
		c := n.PacketConn(s[0], byPort(map[uint16]Link{2: NewLink(1, Params{Delay: 50 * time.Millisecond})}))
		defer c.Close()
		start := time.Now()
		if _, err := s[1].WriteTo([]byte("late"), c.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 100)
		if err := c.SetReadDeadline(start.Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.ReadFrom(buffer); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 20*time.Millisecond {
			t.Errorf("%v after %v, want a timeout after 20ms", err, time.Since(start))
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if n, _, err := c.ReadFrom(buffer); err != nil || string(buffer[:n]) != "late" || time.Since(start) != 50*time.Millisecond {
			t.Errorf("%q, %v after %v, want the packet after 50ms", buffer[:n], err, time.Since(start))
		}

		// A deadline that is set while somebody reads interrupts them, as pion does it to stop.
		go func() {
			time.Sleep(time.Second)
			_ = c.SetReadDeadline(time.Now())
		}()
		if _, _, err := c.ReadFrom(buffer); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v, want a timeout", err)
		}
	})
}

func TestPacketConnClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		s := sockets(1, 2)
		c := n.PacketConn(s[0], byPort(map[uint16]Link{2: NewLink(1, Params{Delay: 50 * time.Millisecond})}))
		if _, err := c.WriteTo([]byte("never arrives"), s[1].LocalAddr()); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Millisecond)
			_ = c.Close()
		}()
		if _, _, err := c.ReadFrom(make([]byte, 100)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v, want closed", err)
		}
		if _, err := c.WriteTo([]byte("x"), s[1].LocalAddr()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v, want closed", err)
		}
		time.Sleep(time.Second)
		if len(s[1].in) != 0 {
			t.Error("a packet has left a closed socket")
		}
	})
}

// A cut that comes and goes, and a change of the delay, under traffic.
func TestPacketConnChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		s := sockets(1, 2)
		link := NewLink(1, Params{Delay: 50 * time.Millisecond})
		c := n.PacketConn(s[0], func(netip.AddrPort) Link { return link })
		defer c.Close()
		start := time.Now()
		var got []time.Duration
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 7 {
				if _, _, err := s[1].ReadFrom(make([]byte, 10)); err != nil {
					t.Error(err)
				}
				got = append(got, time.Since(start))
			}
		}()
		for i := range 10 { // each 10 ms
			switch i {
			case 3:
				link.Set(Params{Cut: true})
			case 6:
				link.Set(Params{Delay: 20 * time.Millisecond})
			}
			if _, err := c.WriteTo([]byte{byte(i)}, s[1].LocalAddr()); err != nil {
				t.Error(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		<-done
		var want []time.Duration
		for _, ms := range []time.Duration{50, 60, 70, 80, 90, 100, 110} {
			want = append(want, ms*time.Millisecond)
		}
		if !slices.Equal(got, want) {
			t.Errorf("arrivals at %v, want %v", got, want)
		}
		if c := link.Out.Counters(); c.CutOff != 3 || c.Packets != 7 {
			t.Errorf("counters %+v", c)
		}
	})
}

func TestNetworkEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork()
		ctx, cancel := context.WithCancel(t.Context())
		s := sockets(1, 2)
		c := n.PacketConn(s[0], byPort(map[uint16]Link{2: NewLink(1, Params{Delay: 50 * time.Millisecond})}))
		defer c.Close()
		near, far := net.Pipe()
		conn := n.Conn(near, NewLink(1, Params{Delay: time.Second}))
		send := func(data string) {
			if _, err := c.WriteTo([]byte(data), s[1].LocalAddr()); err != nil {
				t.Error(err)
			}
		}
		send("before it runs")
		time.Sleep(time.Second)
		if len(s[1].in) != 0 {
			t.Error("a packet passed a network that does not run")
		}
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		send("under way")
		time.Sleep(25 * time.Millisecond)
		if len(s[1].in) != 1 {
			t.Errorf("%d packets have arrived, want 1", len(s[1].in))
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
		send("after its end")
		time.Sleep(time.Second)
		if len(s[1].in) != 1 {
			t.Error("a packet passed a network that has ended")
		}
		for what, err := range map[string]error{
			"read":     second(conn.Read(make([]byte, 1))),
			"write":    second(conn.Write(make([]byte, 1))),
			"far read": second(far.Read(make([]byte, 1))),
			"new": second(n.Conn(near, NewLink(1, Params{})).
				Read(make([]byte, 1))),
		} {
			if err == nil {
				t.Errorf("%s: the connection lives on", what)
			}
		}
		if err := n.Run(t.Context()); err == nil {
			t.Error("a network ran twice")
		}
	})
}

func second(_ int, err error) error { return err }

func udp(t testing.TB) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Without impairment a packet goes straight through: no goroutine, no allocation, no copy.
func TestPacketConnUnimpaired(t *testing.T) {
	n := NewNetwork() // need not even run
	remote := udp(t)
	link := NewLink(1, Params{})
	c := n.PacketConn(udp(t), func(netip.AddrPort) Link { return link })
	to := remote.LocalAddr().(*net.UDPAddr).AddrPort()
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	before := runtime.NumGoroutine()
	buffer := make([]byte, 1500)
	ping, pong := []byte("ping"), []byte("pong")
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := c.WriteToAddrPort(ping, to); err != nil {
			t.Fatal(err)
		}
		if n, _, err := remote.ReadFromUDPAddrPort(buffer); err != nil || string(buffer[:n]) != "ping" {
			t.Fatalf("%q, %v", buffer[:n], err)
		}
		if _, err := remote.WriteToUDPAddrPort(pong, local); err != nil {
			t.Fatal(err)
		}
		if n, from, err := c.ReadFromAddrPort(buffer); err != nil || string(buffer[:n]) != "pong" || from != to {
			t.Fatalf("%q from %v, %v", buffer[:n], from, err)
		}
	})
	if allocs > 0 {
		t.Errorf("%v allocations per packet there and back", allocs)
	}
	if now := runtime.NumGoroutine(); now > before {
		t.Errorf("%d goroutines, before %d", now, before)
	}
}

// The same over real sockets: the distance is right within what a loaded machine can promise.
func TestPacketConnOverSockets(t *testing.T) {
	n := running(t)
	remote := udp(t)
	const oneWay = 40 * time.Millisecond
	link := NewLink(1, Params{Delay: oneWay})
	c := n.PacketConn(udp(t), func(netip.AddrPort) Link { return link })
	go func() { // echoes
		buffer := make([]byte, 1500)
		for {
			n, from, err := remote.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			_, _ = remote.WriteToUDPAddrPort(buffer[:n], from)
		}
	}()
	const count = 100
	go func() {
		for i := range count {
			b := binary.BigEndian.AppendUint64(nil, uint64(i))
			b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixNano()))
			_, _ = c.WriteTo(b, remote.LocalAddr())
			time.Sleep(time.Millisecond) // paces traffic; nothing is waited for
		}
	}()
	var trips []time.Duration
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1500)
	for i := range count {
		if _, _, err := c.ReadFromAddrPort(buffer); err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint64(buffer); got != uint64(i) {
			t.Fatalf("packet %d arrived as %d", got, i)
		}
		trips = append(trips, time.Since(time.Unix(0, int64(binary.BigEndian.Uint64(buffer[8:])))))
	}
	slices.Sort(trips)
	if trips[0] < 2*oneWay || trips[0] > 2*oneWay+10*time.Millisecond {
		t.Errorf("the fastest round trip took %v, want %v", trips[0], 2*oneWay)
	}
	t.Logf("round trips from %v, median %v, to %v; want %v", trips[0], trips[count/2], trips[count-1], 2*oneWay)
}

// BenchmarkPacketConn sends 20,000 packets a second each way over 50 ms and reports how exactly they arrive.
func BenchmarkPacketConn(b *testing.B) {
	n := NewNetwork()
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	defer func() { cancel(); <-done }()

	const rate, oneWay = 20_000, 50 * time.Millisecond
	link := NewLink(1, Params{Delay: oneWay})
	remote := udp(b)
	local := udp(b)
	for _, c := range []*net.UDPConn{remote, local} {
		_ = c.SetReadBuffer(4 << 20)
	}
	c := n.PacketConn(local, func(netip.AddrPort) Link { return link })
	to, back := remote.LocalAddr().(*net.UDPAddr).AddrPort(), c.LocalAddr().(*net.UDPAddr).AddrPort()
	start := time.Now()
	receive := func(read func([]byte) (int, netip.AddrPort, error)) (late []time.Duration) {
		buffer := make([]byte, 1500)
		for len(late) < b.N {
			if _, _, err := read(buffer); err != nil {
				break
			}
			sent := time.Duration(binary.BigEndian.Uint64(buffer))
			late = append(late, time.Since(start)-sent-oneWay)
		}
		slices.Sort(late)
		return late
	}
	send := func(write func([]byte, netip.AddrPort) (int, error), to netip.AddrPort) {
		packet := make([]byte, 1200)
		for i := range b.N {
			if wait := time.Until(start.Add(time.Duration(i) * time.Second / rate)); wait > 300*time.Microsecond {
				time.Sleep(wait)
			}
			binary.BigEndian.PutUint64(packet, uint64(time.Since(start)))
			_, _ = write(packet, to)
		}
	}
	limit := start.Add(time.Duration(b.N)*time.Second/rate + 5*time.Second)
	_ = remote.SetReadDeadline(limit)
	_ = c.SetReadDeadline(limit)
	b.ReportAllocs()
	var out, in []time.Duration
	var all sync.WaitGroup
	all.Go(func() { out = receive(remote.ReadFromUDPAddrPort) })
	all.Go(func() { in = receive(c.ReadFromAddrPort) })
	all.Go(func() { send(c.WriteToAddrPort, to) })
	all.Go(func() { send(remote.WriteToUDPAddrPort, back) })
	all.Wait()
	for name, late := range map[string][]time.Duration{"out": out, "in": in} {
		if len(late) == 0 {
			b.Fatalf("nothing arrived: %s", name)
		}
		b.ReportMetric(float64(late[len(late)/2].Microseconds()), name+"-p50-µs")
		b.ReportMetric(float64(late[len(late)*99/100].Microseconds()), name+"-p99-µs")
		b.ReportMetric(float64(b.N-len(late)), name+"-lost")
	}
}
