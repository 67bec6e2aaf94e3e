//go:build linux

package world

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// container is a program in a pod. It is started again when it ends by itself, as Kubernetes does.
type container struct {
	spec corev1.Container
	root string
	host *wan.Host
	env  []string
	user uint32
	log  *os.File

	mu      sync.Mutex
	cmd     *exec.Cmd // nil while it does not run
	starts  int
	ended   bool          // for good
	changed chan struct{} // closed at the next change of the above
}

// backOff is how long Kubernetes waits at least before it starts a container again.
const backOff = time.Second

// run starts the program again and again until ctx ends or the container is ended, and kills it then.
func (c *container) run(ctx context.Context) {
	for ctx.Err() == nil {
		cmd := exec.Command("/sidestream", c.spec.Args...)
		cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = c.env, "/", c.log, c.log
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.root, Credential: &syscall.Credential{Uid: c.user, Gid: c.user}}
		c.mu.Lock()
		if c.ended {
			c.mu.Unlock()
			return
		}
		err := c.host.Start(cmd)
		if err == nil {
			c.cmd = cmd
			c.starts++
		}
		c.note()
		c.mu.Unlock()
		if err == nil {
			kill := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
			err = cmd.Wait()
			kill()
		}
		fmt.Fprintln(c.log, "kubelet: the container ended:", err)
		c.mu.Lock()
		c.cmd = nil
		c.note()
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(backOff):
		}
	}
}

// note tells those who wait. The caller holds mu.
func (c *container) note() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// signal sends one to the program, if it runs.
func (c *container) signal(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd != nil {
		_ = c.cmd.Process.Signal(s)
	}
}

// end ends the program for good, and waits for that.
func (c *container) end(s syscall.Signal) {
	c.mu.Lock()
	c.ended = true
	cmd := c.cmd
	c.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(s)
	stuck := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	for {
		c.mu.Lock()
		gone, changed := c.cmd != cmd, c.changed
		c.mu.Unlock()
		if gone {
			return
		}
		<-changed
	}
}
