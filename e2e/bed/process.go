package bed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Process is one program of a cluster. It is run again when it ends by itself, as an operator's pod would be.
type Process struct {
	name string // cluster/program
	path string
	args []string
	dir  string // its working directory
	log  string
	// ready says whether the process does its work; nil where it does as soon as it runs.
	ready func(ctx context.Context) error

	mu      sync.Mutex
	wanted  bool
	kill    context.CancelFunc // of the present run; nil while there is none
	pid     int
	deaths  int           // since it was last wanted, by itself
	changed chan struct{} // closed at the next change of the above
}

// change alters the state and tells those who wait.
func (p *Process) change(alter func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	alter()
	close(p.changed)
	p.changed = make(chan struct{})
}

// LogFile is where the process writes.
func (p *Process) LogFile() string { return p.log }

// PID is the process's id, 0 while it is down. It changes with each start.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Stop kills the process, as a crash of its machine would, and returns when it has gone. It stays down until Start.
func (p *Process) Stop(ctx context.Context) error {
	p.change(func() {
		p.wanted = false
		if p.kill != nil {
			p.kill()
		}
	})
	for {
		p.mu.Lock()
		down, changed := p.kill == nil, p.changed
		p.mu.Unlock()
		if down {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stop %s: %w", p.name, ctx.Err())
		case <-changed:
		}
	}
}

// Start has the process run and returns when it does its work.
func (p *Process) Start(ctx context.Context) error {
	p.change(func() {
		if !p.wanted {
			p.wanted, p.deaths = true, 0
		}
	})
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		p.mu.Lock()
		up, deaths := p.pid != 0, p.deaths
		p.mu.Unlock()
		err := errors.New("it does not run")
		if up && p.ready == nil {
			return nil
		}
		if up {
			if err = p.ready(ctx); err == nil {
				return nil
			}
		}
		if deaths >= 5 {
			return fmt.Errorf("start %s: it ended %d times:\n%s", p.name, deaths, p.tail())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w (%w):\n%s", p.name, ctx.Err(), err, p.tail())
		case <-poll.C:
		}
	}
}

// Restart is Stop and Start.
func (p *Process) Restart(ctx context.Context) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	return p.Start(ctx)
}

// tail is the end of the log.
func (p *Process) tail() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// Memory is the process's resident memory in bytes, 0 where the system does not tell.
func (p *Process) Memory() int64 {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID()), "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kib, _ := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// run has the process run whenever it is wanted, until ctx ends and it is gone.
func (p *Process) run(ctx context.Context) error {
	// The kernel kills a process when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG): keep that thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return fmt.Errorf("run %s: %w", p.name, err)
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("run %s: %w", p.name, err)
	}
	defer log.Close()
	for {
		p.mu.Lock()
		wanted, changed := p.wanted, p.changed
		p.mu.Unlock()
		if !wanted {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
			continue
		}
		err := p.once(ctx, log)
		if ctx.Err() != nil {
			return nil
		}
		p.mu.Lock()
		wanted, changed = p.wanted, p.changed
		p.mu.Unlock()
		if !wanted {
			continue
		}
		fmt.Fprintf(log, "bed: %s ended by itself (%v) and is run again\n", p.name, err)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// once runs the process until it ends or is killed.
func (p *Process) once(ctx context.Context, log io.Writer) error {
	ctx, kill := context.WithCancel(ctx)
	defer kill()
	cmd := exec.CommandContext(ctx, p.path, p.args...)
	cmd.Dir = p.dir
	cmd.Env = []string{"HOME=" + p.dir, "TMPDIR=" + p.dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes()
	stopped := false
	p.change(func() {
		// Stop may have come since run looked.
		if stopped = !p.wanted; !stopped {
			p.kill = kill
		}
	})
	if stopped {
		return nil
	}
	err := cmd.Start()
	if err == nil {
		p.change(func() { p.pid = cmd.Process.Pid })
		err = cmd.Wait()
	}
	p.change(func() {
		p.kill, p.pid = nil, 0
		if p.wanted {
			p.deaths++
		}
	})
	return err
}
