package wan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// isolatedVariable is set in a program that [Isolate] has started anew, and in those that it starts.
const isolatedVariable = "WAN_ISOLATED"

// linkName is of the interface there that is not loopback.
const linkName = "wan0"

// Isolate moves this process, and all that it will start, to a network namespace of its own in which each address of the
// IPv4 prefixes is this machine's: any number of programs can listen on the same port, each at its address. Nothing else
// can be reached from there. A connection that is not bound to an address comes from the one that it goes to. The first address
// of the prefixes is that of an interface, the others are nobody's.
//
// A process cannot move as a whole: it starts itself anew, with the same id, arguments and environment, so that what was
// done before the call is done again. Isolate returns nil in the program that was started anew, or one that it started.
// Where the machine does not allow it (it takes root) the error is [errors.ErrUnsupported], and nothing has changed.
func Isolate(local ...netip.Prefix) error {
	if os.Getenv(isolatedVariable) != "" {
		return nil
	}
	if setnsNumber == 0 {
		return fmt.Errorf("isolate process: %w", errors.ErrUnsupported)
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("isolate process: %w", err)
	}
	err = elsewhere(func() error {
		return os.NewSyscallError("unshare", syscall.Unshare(syscall.CLONE_NEWNET))
	}, func() error {
		if err := allLocal(local); err != nil {
			return err
		}
		return os.NewSyscallError("exec", syscall.Exec(program, os.Args, append(os.Environ(), isolatedVariable+"=1")))
	})
	return privileged(fmt.Errorf("isolate process: %w", err))
}

// allLocal brings up loopback, and has it take all addresses of the prefixes.
func allLocal(prefixes []netip.Prefix) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer syscall.Close(fd) //nolint:errcheck // nothing could be done
	errs := []error{request(fd, syscall.RTM_NEWLINK, 0, up(lo)), newLink(fd, prefixes)}
	for _, p := range prefixes {
		errs = append(errs, request(fd, syscall.RTM_NEWROUTE, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL,
			syscall.RtMsg{
				Family: syscall.AF_INET, Dst_len: uint8(p.Bits()), Table: syscall.RT_TABLE_LOCAL,
				Protocol: syscall.RTPROT_STATIC, Scope: syscall.RT_SCOPE_HOST, Type: syscall.RTN_LOCAL,
			},
			attribute{syscall.RTA_DST, p.Masked().Addr().AsSlice()}, number(syscall.RTA_OIF, uint32(lo.Index))))
	}
	return errors.Join(errs...)
}

// newLink makes an interface beside loopback, with the first address of the prefixes: programs such as browsers, and
// others that use ICE, do not take loopback for a network. It leads nowhere: a pair whose other end nobody has.
func newLink(fd int, prefixes []netip.Prefix) error {
	const (
		create   = syscall.NLM_F_CREATE | syscall.NLM_F_EXCL
		linkInfo = 18 // IFLA_LINKINFO
		infoKind = 1  // IFLA_INFO_KIND
	)
	err := request(fd, syscall.RTM_NEWLINK, create, syscall.IfInfomsg{},
		attribute{syscall.IFLA_IFNAME, []byte(linkName + "\x00")}, nested(linkInfo, attribute{infoKind, []byte("veth\x00")}))
	if err != nil {
		return err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range interfaces {
		if i.Flags&net.FlagBroadcast == 0 {
			continue // not of the pair
		}
		errs = append(errs, request(fd, syscall.RTM_NEWLINK, 0, up(&i)))
		if i.Name == linkName && len(prefixes) > 0 {
			raw := prefixes[0].Masked().Addr().Next().AsSlice()
			errs = append(errs, request(fd, syscall.RTM_NEWADDR, create,
				syscall.IfAddrmsg{Family: syscall.AF_INET, Prefixlen: uint8(8 * len(raw)), Index: uint32(i.Index)},
				attribute{syscall.IFA_LOCAL, raw}, attribute{syscall.IFA_ADDRESS, raw}))
		}
	}
	return errors.Join(errs...)
}
