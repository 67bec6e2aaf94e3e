package wan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

const (
	// namesDir is where iproute2 looks for network namespaces by name.
	namesDir = "/var/run/netns"
	// namePrefix tells our names there from those of others.
	namePrefix = "wan-"

	// threadNamespace is the network namespace of the thread that opens it.
	threadNamespace = "/proc/thread-self/ns/net"
	nsfsMagic       = 0x6e736673
)

// setnsNumber is the system call's; package syscall is older than it.
var setnsNumber = map[string]uintptr{"amd64": 308, "arm64": 268}[runtime.GOARCH]

// namespace is a network namespace. It lives as long as this process (or one started inside) does, and no longer: what
// stands in namesDir is no mount, which would outlive a crash, but a symbolic link to the open file.
type namespace struct {
	name string
	file *os.File
}

func newNamespace(name string) (*namespace, error) {
	if setnsNumber == 0 {
		return nil, fmt.Errorf("network namespaces on %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	var file *os.File
	err := elsewhere(func() error {
		return syscall.Unshare(syscall.CLONE_NEWNET)
	}, func() (err error) {
		file, err = os.Open(threadNamespace)
		return err
	})
	if err != nil {
		return nil, privileged(fmt.Errorf("make network namespace: %w", err))
	}
	ns := &namespace{file: file}
	if ns.name, err = announce(name, file); err != nil {
		_ = file.Close()
		return nil, err
	}
	return ns, nil
}

// privileged marks an error as one of a machine that does not allow what is wanted, for tests to skip.
func privileged(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("%w: needs root and /dev/net/tun: %w", errors.ErrUnsupported, err)
	}
	return err
}

// announce gives a namespace a name that iproute2 understands.
func announce(name string, file *os.File) (string, error) {
	if err := os.MkdirAll(namesDir, 0o755); err != nil {
		return "", privileged(fmt.Errorf("name network namespace: %w", err))
	}
	sweep()
	target := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd())
	unique := fmt.Sprintf("%s%s-%d", namePrefix, name, os.Getpid())
	for i := 2; ; i++ {
		err := os.Symlink(target, filepath.Join(namesDir, unique))
		if !errors.Is(err, fs.ErrExist) {
			return unique, err
		}
		unique = fmt.Sprintf("%s%s-%d-%d", namePrefix, name, os.Getpid(), i)
	}
}

// sweep removes the names that processes left behind which had no chance to do so.
func sweep() {
	names, _ := filepath.Glob(filepath.Join(namesDir, namePrefix+"*"))
	for _, name := range names {
		if target, err := os.Readlink(name); err != nil || !strings.HasPrefix(target, "/proc/") {
			continue
		}
		var is syscall.Statfs_t
		err := syscall.Statfs(name, &is)
		if errors.Is(err, fs.ErrNotExist) || err == nil && is.Type != nsfsMagic {
			_ = os.Remove(name)
		}
	}
}

// do calls f on a thread inside.
func (ns *namespace) do(f func() error) error {
	return elsewhere(func() error { return setns(ns.file) }, f)
}

// close takes the name away and the namespace, unless processes are left in it.
func (ns *namespace) close() error {
	return errors.Join(os.Remove(filepath.Join(namesDir, ns.name)), ns.file.Close())
}

// elsewhere calls f on a thread that enter has moved to another network namespace, and moves the thread back.
func elsewhere(enter, f func() error) (err error) {
	runtime.LockOSThread()
	home, err := os.Open(threadNamespace)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close() //nolint:errcheck // nothing was written
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { // also when f panics or ends the test
		if back := setns(home); back != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
			return // locked for good: the runtime ends the thread with its goroutine and lends it to no other
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

func setns(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) {
		_, _, errno = syscall.RawSyscall(setnsNumber, fd, syscall.CLONE_NEWNET, 0)
	}); err != nil {
		return os.ErrClosed // what else Control says has no name
	}
	if errno != 0 {
		return os.NewSyscallError("setns", errno)
	}
	return nil
}
