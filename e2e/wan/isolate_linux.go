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

// Isolate moves this process, and all that it will start, to a network namespace of its own in which each address of the
// IPv4 prefixes is this machine's: any number of programs can listen on the same port, each at its address. Nothing else
// can be reached from there. A connection that is not bound to an address comes from the one that it goes to.
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
	errs := []error{request(fd, syscall.RTM_NEWLINK, 0, up(lo))}
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
