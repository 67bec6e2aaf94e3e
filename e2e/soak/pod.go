//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// pod is a media server and its sidecar.
type pod struct {
	name, cluster   string
	url, admin, sfu string
	state           string
	server, sidecar *process
	samples         map[string][]sample // by process
}

// process is a program that is started again and again.
type process struct {
	binary, arg string
	env         []string
	log         string
	cmd         *exec.Cmd // nil while it does not run
	starts      int
}

func (p *process) start() error {
	file, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // the process has its own
	p.cmd = exec.Command(p.binary, p.arg)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = file, file
	// Nothing is left behind where this process is killed itself.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.starts++
	return p.cmd.Start()
}

// kill is SIGKILL, end SIGTERM; both wait for the end.
func (p *process) kill() { p.signal(syscall.SIGKILL) }
func (p *process) end()  { p.signal(syscall.SIGTERM) }

func (p *process) signal(s os.Signal) {
	if p == nil || p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(s)
	stuck := time.AfterFunc(30*time.Second, func() { _ = p.cmd.Process.Kill() })
	_ = p.cmd.Wait()
	stuck.Stop()
	p.cmd = nil
}

// freeze stops the process for a while, as a machine without time for it does.
func (p *process) freeze(ctx context.Context, d time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGSTOP)
	sleep(ctx, d)
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
}

func newPods(binary, dir string) ([]*pod, error) {
	const ports = 4
	free, err := freePorts(clusters * perPods * ports)
	if err != nil {
		return nil, err
	}
	var pods []*pod
	var static []string
	for i := range clusters * perPods {
		static = append(static, fmt.Sprintf("127.0.0.1:%d", free[i*ports]))
	}
	for i := range clusters * perPods {
		p := free[i*ports : (i+1)*ports]
		n := &pod{
			cluster: string(rune('a' + i/perPods)), samples: map[string][]sample{},
			url: fmt.Sprintf("http://127.0.0.1:%d", p[1]), admin: fmt.Sprintf("http://127.0.0.1:%d", p[2]),
			sfu: fmt.Sprintf("http://127.0.0.1:%d", p[3]),
		}
		n.name = fmt.Sprintf("%s-%d", n.cluster, i%perPods)
		own := filepath.Join(dir, n.name)
		n.state = filepath.Join(own, "state.json")
		if err := os.MkdirAll(own, 0o700); err != nil {
			return nil, err
		}
		n.server = &process{binary: binary, arg: "sfu", log: filepath.Join(dir, n.name+"-sfu.log"), env: []string{
			fmt.Sprintf("SIDESTREAM_SFU_LISTEN=127.0.0.1:%d", p[3]), "SIDESTREAM_SFU_MEDIA_LISTEN=127.0.0.1:0",
			"SIDESTREAM_SFU_LOOPBACK=true", "SIDESTREAM_LOG_FORMAT=text",
		}}
		n.sidecar = &process{binary: binary, arg: "run", log: filepath.Join(dir, n.name+".log"), env: []string{
			"SIDESTREAM_NODE_ID=" + n.name, "SIDESTREAM_CLUSTER=" + n.cluster, "SIDESTREAM_STATE_DIR=" + own,
			"SIDESTREAM_ADAPTER_URL=" + n.sfu, "SIDESTREAM_PEER_SECURITY=plaintext",
			"SIDESTREAM_PEER_STATIC=" + strings.Join(static, ","),
			fmt.Sprintf("SIDESTREAM_PEER_LISTEN=127.0.0.1:%d", p[0]),
			fmt.Sprintf("SIDESTREAM_GATEWAY_LISTEN=127.0.0.1:%d", p[1]),
			fmt.Sprintf("SIDESTREAM_ADMIN_LISTEN=127.0.0.1:%d", p[2]),
			"SIDESTREAM_SFU_LOOPBACK=true", "SIDESTREAM_LOG_FORMAT=text",
		}}
		pods = append(pods, n)
	}
	return pods, nil
}

// freePorts finds TCP ports below those that the system gives to connections, which nobody uses now.
func freePorts(n int) ([]int, error) {
	var ports []int
	for port := 20000; len(ports) < n && port < 30000; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		_ = l.Close()
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("fewer than %d free ports", n)
	}
	return ports, nil
}

// status is what a soak reads of /api/status.
type status struct {
	Node    string
	Streams []struct {
		Stream, Origin string
		Holders        []struct{ Node, Cluster string }
	}
	Relays []relay
}

type relay struct {
	Stream, State, Parent, LastError string
	Session                          *struct{ Location string }
}

// published is what a built-in media server says of a stream.
type published struct {
	ID, Session string
	Readers     int
	Relayed     bool
}

func (n *pod) status(ctx context.Context) (s status, err error) {
	return s, get(ctx, n.admin+"/api/status", &s)
}

func (n *pod) streams(ctx context.Context) ([]published, error) {
	var list struct{ Streams []published }
	err := get(ctx, n.sfu+"/api/streams", &list)
	return list.Streams, err
}

var web = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(ctx context.Context, address string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", address, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
