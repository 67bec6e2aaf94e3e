package media

import (
	"net"
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
