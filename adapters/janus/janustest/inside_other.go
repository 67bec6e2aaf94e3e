//go:build !linux

package janustest

import (
	"errors"
	"io"
	"syscall"
)

// Inside is possible on Linux only.
func Inside(io.Writer, []string, ...string) (code int, err error) { return 0, errors.ErrUnsupported }

func mortal() *syscall.SysProcAttr { return nil }
