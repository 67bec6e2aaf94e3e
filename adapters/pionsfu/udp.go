package pionsfu

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	// With the kernel's default of some 200 kB, key frames of ten publishers that arrive together overflow the one socket.
	socketBuffer = 4 << 20
	portAttempts = 10
)

// listenUDP opens the media port: at one address, or at each of the machine's where none is given. A socket that listens
// on a named address answers from it, which one on the wildcard address does not always do.
func listenUDP(hostport string) ([]*media.Port, error) {
	host, portText, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port %q is no number up to 65535", portText)
	}
	addrs, err := listenAddrs(host)
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		sockets, err := listenAll(addrs, uint16(port))
		if err == nil || port != 0 || attempt == portAttempts || !errors.Is(err, syscall.EADDRINUSE) {
			return sockets, err
		}
	}
}

func listenAddrs(host string) ([]netip.Addr, error) {
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if host != "" {
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return nil, err
		}
		if !addr.IsUnspecified() {
			return []netip.Addr{addr}, nil
		}
	}
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range found {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil || prefix.Addr().IsLinkLocalUnicast() {
			continue // a link-local address is of no use without its zone, which no candidate carries
		}
		addrs = append(addrs, prefix.Addr().Unmap())
	}
	if len(addrs) == 0 {
		return nil, errors.New("the machine has no address")
	}
	return addrs, nil
}

// listenAll listens at the same port of each address. An address that cannot be used (IPv6 that is not up yet) is passed
// over as long as one is left.
func listenAll(addrs []netip.Addr, port uint16) (sockets []*media.Port, err error) {
	var failed error
	for _, addr := range addrs {
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
		if err != nil {
			if failed = err; errors.Is(err, syscall.EADDRINUSE) {
				break
			}
			continue
		}
		// Best effort: the kernel has its own limit.
		_ = socket.SetReadBuffer(socketBuffer)
		_ = socket.SetWriteBuffer(socketBuffer)
		sockets = append(sockets, media.NewPort(socket))
		port = socket.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	}
	if len(sockets) > 0 && !errors.Is(failed, syscall.EADDRINUSE) {
		return sockets, nil
	}
	for _, socket := range sockets {
		_ = socket.Close()
	}
	return nil, failed
}
