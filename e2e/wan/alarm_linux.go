package wan

import (
	"os"
	"syscall"
	"time"
	"unsafe"
)

// alarm wakes a goroutine at a moment, within some ten microseconds on a machine with time to spare. The runtime's own
// timers round up to a millisecond when the process is idle, since that is the unit of epoll_wait; a timer of the kernel
// that becomes readable does not wait for it.
type alarm struct {
	file *os.File
	raw  syscall.RawConn
	next struct{ interval, value syscall.Timespec }
	arm  func(fd uintptr)
}

func newAlarm() (*alarm, error) {
	const monotonic = 1
	fd, _, errno := syscall.Syscall(syscall.SYS_TIMERFD_CREATE, monotonic, syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("timerfd_create", errno)
	}
	a := &alarm{file: os.NewFile(fd, "timer")}
	a.arm = func(fd uintptr) {
		_, _, _ = syscall.RawSyscall6(syscall.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&a.next)), 0, 0, 0)
	}
	var err error
	a.raw, err = a.file.SyscallConn()
	return a, err
}

// set has the alarm go off then, or at once if that has passed. What was set before is forgotten. Calls must not overlap.
func (a *alarm) set(at time.Time) {
	a.next.value = syscall.NsecToTimespec(max(int64(time.Until(at)), 1))
	_ = a.raw.Control(a.arm) // fails when the alarm is closed
}

// wait returns true when the alarm has gone off and false when it is closed.
func (a *alarm) wait() bool {
	var times [8]byte
	_, err := a.file.Read(times[:])
	return err == nil
}

func (a *alarm) close() error { return a.file.Close() }
