//go:build !linux

package bed

import "syscall"

// attributes leave a process in the group of the test, so that what ends the group from the terminal ends it too.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
