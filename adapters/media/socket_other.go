//go:build !linux

package media

import (
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
)

// batch reads a socket packet by packet.
type batch struct{ plain atomic.Bool }

func (*batch) init(syscall.RawConn) {}

func (*batch) read(u *net.UDPConn, to opener, p []byte) (int, netip.AddrPort, error) {
	for {
		n, from, err := u.ReadFromUDPAddrPort(p)
		if err != nil || !to.open(from, p[:n], nil) {
			return n, from, err
		}
	}
}

// queue holds nothing: packets go out at once.
type queue struct{}

func (*queue) add(*batch, []byte, netip.AddrPort) bool { return false }
func (*queue) flush(*batch)                            {}
