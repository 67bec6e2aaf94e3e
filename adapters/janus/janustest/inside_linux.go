package janustest

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// Inside runs the program anew, with arguments, in a host of its own in which Janus can run, waits for it and gives its
// exit code. What it writes goes to out. In the program that was started so, Host tells the address. Where the machine does not allow it (it takes
// root and /dev/net/tun), the error is [errors.ErrUnsupported].
func Inside(out io.Writer, env []string, arguments ...string) (code int, err error) {
	network := wan.NewNetwork()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = network.Run(ctx) // the context's error
	}()
	defer func() {
		cancel()
		<-ended
	}()
	host, err := network.Host("janus")
	if err != nil {
		return 0, err
	}
	defer host.Close() //nolint:errcheck // the process ends
	program, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(program, arguments...)
	cmd.Env = append(append(os.Environ(), env...), hostVariable+"="+host.IPv4.String())
	cmd.Stdout, cmd.Stderr = out, out
	if err := host.Start(cmd); err != nil {
		return 0, err
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// mortal ends a program with this one.
func mortal() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
