//go:build !linux

package media

import (
	"net/netip"
	"syscall"
)

// batch reads a socket packet by packet.
type batch struct{}

func (*batch) init(syscall.RawConn) {}

func (*batch) read(s *socket, p []byte) (int, netip.AddrPort, error) {
	for {
		n, from, err := s.ReadFromUDPAddrPort(p)
		if err != nil || !s.conn.open(s, from, p[:n], nil) {
			return n, from, err
		}
	}
}

// queue holds nothing: packets go out at once.
type queue struct{}

func (*queue) add(*batch, []byte, netip.AddrPort) bool { return false }
func (*queue) flush(*batch)                            {}
