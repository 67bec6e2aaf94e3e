package bed

import "syscall"

// attributes put a process into a group of its own, and have the kernel kill it when the thread that started it ends,
// which it does with a test that is killed.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
