package wan

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

const (
	schedOther      = 0
	schedRoundRobin = 2
)

// Realtime has the kernel run this process before all ordinary ones, or like them again. On a machine with more to do than
// it can, distances are exact only so: a process that waits for its turn keeps packets waiting with it. It takes root, and
// the process should leave most of a processor to others, as a [Network] does. What [Host.Start] starts is ordinary.
func Realtime(on bool) error {
	policy := schedOther
	if on {
		policy = schedRoundRobin
	}
	for changed := true; changed; { // threads that have been started by others meanwhile
		changed = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("change scheduling: %w", err)
		}
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil || scheduling(id) == policy {
				continue
			}
			if err := schedule(id, policy); err == syscall.ESRCH { //nolint:errorlint // it is the number
				continue // it has ended
			} else if err != nil {
				return fmt.Errorf("change scheduling: %w", err)
			}
			changed = true
		}
	}
	return nil
}

// ordinarily calls f on a thread that is scheduled like any other, which a process started by it inherits. The caller has
// locked the thread.
func ordinarily(f func() error) error {
	const self = 0
	if policy := scheduling(self); policy == schedRoundRobin {
		if err := schedule(self, schedOther); err != nil {
			return fmt.Errorf("change scheduling: %w", err)
		}
		defer schedule(self, policy) //nolint:errcheck // it was allowed before
	}
	return f()
}

func scheduling(thread int) int {
	policy, _, _ := syscall.RawSyscall(syscall.SYS_SCHED_GETSCHEDULER, uintptr(thread), 0, 0)
	return int(policy)
}

func schedule(thread, policy int) error {
	priority := int32(0)
	if policy == schedRoundRobin {
		priority = 1
	}
	_, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETSCHEDULER, uintptr(thread), uintptr(policy), uintptr(unsafe.Pointer(&priority)))
	if errno != 0 {
		return errno
	}
	return nil
}
