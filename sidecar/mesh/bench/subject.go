package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

const (
	// clockTick is the unit of CPU time in /proc, the same on all machines that Go runs on (proc(5), USER_HZ).
	clockTick = time.Second / 100
	megabyte  = 1 << 20
	startTime = 20 * time.Second
	endTime   = 10 * time.Second
)

// subject is a sidecar that is measured.
type subject struct {
	name    string
	node    catalogue.Node
	place   place        // what is published at its media server, if that is elsewhere
	host    string       // peers that it dials are told to it at this address: so they know who calls
	server  *mediaServer // nil: built-in
	address string       // of its peer port
	admin   string       // base URL
	cmd     *exec.Cmd

	in, out atomic.Int64 // bytes that it has received and sent, at the bench's ends of its connections

	mu   sync.Mutex
	tail []string // of its log
}

// logged is the line by which a sidecar says where it can be reached.
type logged struct {
	Msg, Peers, Admin string
}

// start runs the process until ctx ends, and returns when its ports are open. wait returns when it is gone.
func (s *subject) start(ctx context.Context, o options, certificates, mediaURL string, peers []string) (wait func(), err error) {
	environ := []string{
		"SIDESTREAM_NODE_ID=" + string(s.node.ID),
		"SIDESTREAM_CLUSTER=" + s.node.Cluster,
		"SIDESTREAM_STATE_DIR=" + filepath.Join(o.dir, string(s.node.ID)),
		"SIDESTREAM_PEER_TLS_DIR=" + certificates,
		"SIDESTREAM_PEER_STATIC=" + strings.Join(peers, ","),
		"SIDESTREAM_PEER_LISTEN=127.0.0.1:0",
		"SIDESTREAM_GATEWAY_LISTEN=127.0.0.1:0",
		"SIDESTREAM_ADMIN_LISTEN=127.0.0.1:0",
		"SIDESTREAM_SFU_LISTEN=127.0.0.1:0",
		"SIDESTREAM_SFU_MEDIA_LISTEN=127.0.0.1:0",
	}
	if mediaURL != "" {
		environ = append(environ, "SIDESTREAM_ADAPTER_URL="+mediaURL)
	}
	if o.profiles != "" {
		environ = append(environ, "SIDESTREAM_ADMIN_PROFILE=true")
	}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SIDESTREAM_") {
			environ = append(environ, v)
		}
	}
	s.cmd = exec.CommandContext(ctx, o.binary, "run")
	s.cmd.Env = environ
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = endTime
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start sidecar %s: %w", s.name, err)
	}
	running := make(chan logged, 1)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s.follow(stderr, running)
		_ = s.cmd.Wait() // how it ended matters only where it ended too early, and then its log says more
	}()
	wait = func() { <-gone }
	bound := time.NewTimer(startTime)
	defer bound.Stop()
	select {
	case l := <-running:
		s.address, s.admin = l.Peers, "http://"+l.Admin
		return wait, nil
	case <-gone:
	case <-bound.C:
		_ = s.cmd.Process.Kill()
		wait()
	}
	return nil, fmt.Errorf("sidecar %s does not run:\n%s", s.name, s.log())
}

// follow reads the log, and finds in it where the sidecar listens.
func (s *subject) follow(log io.Reader, running chan<- logged) {
	for lines := bufio.NewScanner(log); lines.Scan(); {
		var l logged
		if json.Unmarshal(lines.Bytes(), &l) == nil && l.Msg == "running" {
			running <- l
		}
		s.mu.Lock()
		s.tail = append(s.tail[max(0, len(s.tail)-19):], lines.Text())
		s.mu.Unlock()
	}
}

func (s *subject) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.tail, "\n")
}

// reading is all that can be read of a sidecar at one moment.
type reading struct {
	at      time.Time
	cpu     time.Duration
	in, out int64
	metrics map[string]float64
}

// begin reads at the beginning of a window: the process's own work for that is not in it.
func (s *subject) begin(ctx context.Context) (reading, error) {
	var r reading
	var err error
	if r.metrics, err = s.metrics(ctx); err != nil {
		return r, err
	}
	return r, s.read(&r)
}

// end reads at the end of a window, and says what the sidecar needed in it.
func (s *subject) end(ctx context.Context, phase string, before reading) (Cost, error) {
	var after reading
	err := s.read(&after)
	if err != nil {
		return Cost{}, err
	}
	memory, err := memoryOf(s.cmd.Process.Pid)
	if err != nil {
		return Cost{}, err
	}
	if after.metrics, err = s.metrics(ctx); err != nil {
		return Cost{}, err
	}
	seconds := after.at.Sub(before.at).Seconds()
	frames := func(direction string) float64 {
		name := `sidestream_mesh_frames_total{direction="` + direction + `"`
		return (sum(after.metrics, name) - sum(before.metrics, name)) / seconds
	}
	return Cost{
		Subject: s.name, Phase: phase,
		Resident: memory["VmRSS"] / megabyte, Anonymous: memory["RssAnon"] / megabyte, Peak: memory["VmHWM"] / megabyte,
		Heap:       sum(after.metrics, "go_memstats_heap_inuse_bytes") / megabyte,
		Stacks:     sum(after.metrics, "go_memstats_stack_inuse_bytes") / megabyte,
		Goroutines: sum(after.metrics, "go_goroutines"),
		CPU:        (after.cpu - before.cpu).Seconds() / seconds,
		In:         float64(after.in-before.in) / seconds,
		Out:        float64(after.out-before.out) / seconds,
		FramesIn:   frames("in"),
		FramesOut:  frames("out"),
	}, nil
}

func (s *subject) read(r *reading) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return fmt.Errorf("sidecar %s has ended: %w\n%s", s.name, err, s.log())
	}
	r.at, r.in, r.out = time.Now(), s.in.Load(), s.out.Load()
	r.cpu, err = parseStat(stat)
	return err
}

// parseStat takes the user and system time from /proc/PID/stat: the 14th and 15th field, of which the second is a name in
// parentheses that may hold anything.
func parseStat(stat []byte) (time.Duration, error) {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("read CPU time: %d fields after the name in %q", len(fields), stat)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// memoryOf reads the lines of /proc/PID/status that end in kB, in bytes.
func memoryOf(pid int) (map[string]float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	memory := map[string]float64{}
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		n, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return nil, fmt.Errorf("read memory: %w", err)
		}
		memory[strings.TrimSuffix(fields[0], ":")] = n * 1024
	}
	return memory, nil
}

func (s *subject) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.admin+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask sidecar %s: %w\n%s", s.name, err, s.log())
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err != nil {
		return nil, fmt.Errorf("ask sidecar %s for %s: %w", s.name, path, err)
	}
	return body, nil
}

// metrics are the values by name and labels, as they are written.
func (s *subject) metrics(ctx context.Context) (map[string]float64, error) {
	body, err := s.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(body), nil
}

func parseMetrics(text []byte) map[string]float64 {
	values := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		space := strings.LastIndexByte(line, ' ')
		if space < 0 || line[0] == '#' {
			continue
		}
		if v, err := strconv.ParseFloat(line[space+1:], 64); err == nil {
			values[line[:space]] = v
		}
	}
	return values
}

// sum adds up all values of one metric, or of those whose first labels are given.
func sum(values map[string]float64, name string) float64 {
	total := 0.0
	for key, v := range values {
		if rest, ok := strings.CutPrefix(key, name); ok && (rest == "" || rest[0] == '{' || rest[0] == ',' || rest[0] == '}') {
			total += v
		}
	}
	return total
}

// connected is how many peers the sidecar is connected with now.
func (s *subject) connected(ctx context.Context) (int, error) {
	m, err := s.metrics(ctx)
	return connected(m), err
}

func connected(m map[string]float64) (peers int) {
	for key, v := range m {
		if strings.HasPrefix(key, "sidestream_mesh_peers{") && !strings.Contains(key, `state="disconnected"`) {
			peers += int(v)
		}
	}
	return peers
}

// complete says whether so many peers are connected, and have told what they hold.
func (s *subject) complete(ctx context.Context, peers int) (bool, error) {
	m, err := s.metrics(ctx)
	sets := m[`sidestream_mesh_frames_total{direction="in",kind="holds"}`]
	return connected(m) == peers && int(sets) >= peers, err
}

// streams is how many streams the sidecar knows of.
func (s *subject) streams(ctx context.Context) (int, error) {
	body, err := s.get(ctx, "/api/status")
	if err != nil {
		return 0, err
	}
	var status struct {
		Streams []struct{ Stream adapters.StreamID }
	}
	if err := json.Unmarshal(body, &status); err != nil {
		return 0, fmt.Errorf("read status of sidecar %s: %w", s.name, err)
	}
	return len(status.Streams), nil
}

// profile writes the profiles of the sidecar to files; with seconds, also one of the CPU over that time.
func (s *subject) profile(ctx context.Context, dir, prefix string, seconds int) error {
	paths := map[string]string{
		"heap": "/debug/pprof/heap", "allocs": "/debug/pprof/allocs", "goroutine": "/debug/pprof/goroutine",
	}
	if seconds > 0 {
		paths = map[string]string{"cpu": fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds)}
	}
	for kind, path := range paths {
		body, err := s.get(ctx, path)
		if err != nil {
			return err
		}
		name := filepath.Join(dir, fmt.Sprintf("%s-%s.%s.pprof", prefix, s.name, kind))
		if err := os.WriteFile(name, body, 0o644); err != nil {
			return err
		}
	}
	return nil
}
