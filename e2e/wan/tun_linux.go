package wan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"
)

const (
	tunName  = "wan0"
	tunPath  = "/dev/net/tun"
	tunMTU   = 1500
	tunQueue = 10_000 // packets that wait to be read, so that a machine that is busy for a moment loses none

	addressNoDAD = 0x02 // IFA_F_NODAD: nobody else could have the address
)

// newTUN makes a network interface whose packets are read and written at the file, with these addresses and all routes,
// in the network namespace of the calling thread.
func newTUN(addresses ...netip.Addr) (*os.File, error) {
	fd, err := syscall.Open(tunPath, syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, privileged(fmt.Errorf("open %s: %w", tunPath, err))
	}
	request := struct {
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{flags: syscall.IFF_TUN | syscall.IFF_NO_PI}
	copy(request.name[:], tunName)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TUNSETIFF, uintptr(unsafe.Pointer(&request))); errno != 0 {
		_ = syscall.Close(fd)
		return nil, privileged(fmt.Errorf("make interface %s: %w", tunName, errno))
	}
	// Only now: the runtime could not wait for a device that has no interface.
	file := os.NewFile(uintptr(fd), tunPath)
	if err := configure(addresses); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("configure interface %s: %w", tunName, err)
	}
	return file, nil
}

// configure brings up loopback and our interface, which all traffic to others leaves by.
func configure(addresses []netip.Addr) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	tun, err := net.InterfaceByName(tunName)
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer syscall.Close(fd) //nolint:errcheck // nothing could be done
	errs := []error{
		request(fd, syscall.RTM_NEWLINK, 0, up(lo)),
		request(fd, syscall.RTM_NEWLINK, 0, up(tun),
			number(syscall.IFLA_MTU, tunMTU), number(syscall.IFLA_TXQLEN, tunQueue)),
	}
	const add = syscall.NLM_F_CREATE | syscall.NLM_F_EXCL
	for _, a := range addresses {
		family, raw := uint8(syscall.AF_INET), a.AsSlice()
		if a.Is6() {
			family = syscall.AF_INET6
		}
		errs = append(errs,
			request(fd, syscall.RTM_NEWADDR, add,
				syscall.IfAddrmsg{Family: family, Prefixlen: uint8(a.BitLen()), Flags: addressNoDAD, Index: uint32(tun.Index)},
				attribute{syscall.IFA_LOCAL, raw}, attribute{syscall.IFA_ADDRESS, raw}),
			request(fd, syscall.RTM_NEWROUTE, add,
				syscall.RtMsg{
					Family: family, Table: syscall.RT_TABLE_MAIN, Protocol: syscall.RTPROT_STATIC,
					Scope: syscall.RT_SCOPE_UNIVERSE, Type: syscall.RTN_UNICAST,
				},
				number(syscall.RTA_OIF, uint32(tun.Index))),
		)
	}
	return errors.Join(errs...)
}

// up is what an interface is to be.
func up(i *net.Interface) syscall.IfInfomsg {
	return syscall.IfInfomsg{Index: int32(i.Index), Flags: syscall.IFF_UP, Change: syscall.IFF_UP}
}

// attribute is one of a netlink message.
type attribute struct {
	kind  uint16
	value []byte
}

func number(kind uint16, value uint32) attribute {
	return attribute{kind, binary.NativeEndian.AppendUint32(nil, value)}
}

// nested is an attribute that holds others.
func nested(kind uint16, attributes ...attribute) attribute {
	return attribute{kind, appendAttributes(nil, attributes)}
}

func appendAttributes(message []byte, attributes []attribute) []byte {
	const align = 4
	for _, a := range attributes {
		message = binary.NativeEndian.AppendUint16(message, uint16(syscall.SizeofRtAttr+len(a.value)))
		message = binary.NativeEndian.AppendUint16(message, a.kind)
		message = append(message, a.value...)
		for len(message)%align != 0 {
			message = append(message, 0)
		}
	}
	return message
}

// request sends a netlink message and waits for its acknowledgement (RFC 3549 section 2.3.2).
func request(fd int, kind, flags uint16, body any, attributes ...attribute) error {
	message := make([]byte, syscall.NLMSG_HDRLEN)
	message, err := binary.Append(message, binary.NativeEndian, body)
	if err != nil {
		return err
	}
	message = appendAttributes(message, attributes)
	if _, err := binary.Encode(message, binary.NativeEndian, syscall.NlMsghdr{
		Len: uint32(len(message)), Type: kind, Flags: syscall.NLM_F_REQUEST | syscall.NLM_F_ACK | flags,
	}); err != nil {
		return err
	}
	if err := syscall.Sendto(fd, message, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	answer := make([]byte, os.Getpagesize())
	n, _, err := syscall.Recvfrom(fd, answer, 0)
	if err != nil {
		return os.NewSyscallError("recvfrom", err)
	}
	messages, err := syscall.ParseNetlinkMessage(answer[:n])
	if err != nil {
		return err
	}
	for _, m := range messages {
		if m.Header.Type != syscall.NLMSG_ERROR || len(m.Data) < 4 {
			continue
		}
		if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
			return fmt.Errorf("netlink request %d: %w", kind, syscall.Errno(-code))
		}
	}
	return nil
}
