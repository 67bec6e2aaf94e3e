package media

import (
	"net"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func setWhole(s *socket, whole bool) { s.queue.whole = whole }

// Where the kernel turns out to have no batches, others may be sending.
func TestPlainSocket(t *testing.T) {
	s := testSocket(t)
	s.batch.receive = func(uintptr) bool {
		s.batch.failed = unix.EPERM
		return true
	}
	var group sync.WaitGroup
	group.Go(func() {
		for range 100 {
			s.conn.Hold()
			_, _ = s.WriteToAddrPort(rawPacket(t, 96, 1, 0), far)
			s.conn.Release()
		}
	})
	at := s.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := s.WriteToUDPAddrPort([]byte{0}, at); err != nil {
		t.Fatal(err)
	}
	if n, _, err := s.ReadFromAddrPort(make([]byte, 1500)); n != 1 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	group.Wait()
}

// What is held when nobody holds any more would wait for the next who does.
func TestNothingIsHeldForLong(t *testing.T) {
	s := testSocket(t)
	to := s.LocalAddr().(*net.UDPAddr).AddrPort()
	packet := rawPacket(t, 96, 1, 0)
	var group sync.WaitGroup
	for range 200 {
		s.mu.Lock()
		s.conn.holds.Add(1)
		group.Go(func() { _, _ = s.WriteToAddrPort(packet, to) })
		for range 100 {
			runtime.Gosched() // until it waits for the lock
		}
		s.conn.holds.Add(-1) // and whoever held has flushed
		s.mu.Unlock()
		group.Wait()
		if s.queue.out != nil {
			t.Fatal("a packet is held, and nobody holds")
		}
	}
}
