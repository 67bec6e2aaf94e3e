package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/janus/janustest"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/e2e/bed"
	"github.com/sidestream-dev/sidestream/e2e/player"
)

// binary is the program under test, as a user has it.
var binary string

func TestMain(m *testing.M) {
	if janustest.Host() != "" { // started by TestJanus
		binary = os.Getenv(binaryVariable)
		os.Exit(m.Run())
	}
	bed.OwnNetwork()
	clusters.Tests = m
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sidestream-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "sidestream")
		args := []string{"build", "-o", binary}
		if raceDetector {
			args = append(args, "-race")
		}
		build := exec.Command("go", append(args, "../sidecar")...)
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build the program under test:", err)
			return 1
		}
		return clusters.Run()
	}())
}

// process is a run of the binary.
type process struct {
	cmd    *exec.Cmd
	events chan event // of a demo with -json; closed at its end

	mu  sync.Mutex
	log []string // what it wrote to stderr, the last lines
}

// event is a line of a demo's -json.
type event struct {
	Event   string
	Region  string
	Stream  string
	Parent  string
	Regions []struct {
		Name, URL, WHIP, WHEP, Admin string
	}
	Crossings []struct {
		From, To    string
		MediaBytes  uint64
		PacketsLost uint64
	}
}

// start runs the binary; it is ended with the test, and its log shown if that failed.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary, args...), events: make(chan event, 1000)}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.WaitDelay = 10 * time.Second
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	readers.Go(func() {
		defer close(p.events)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				p.events <- e
			}
		}
	})
	readers.Go(func() { p.keep(stderr) })
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
		}
		readers.Wait()
		_ = p.cmd.Wait()
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, line := range p.log {
				t.Log(line)
			}
		}
	})
	return p
}

// said says whether a text is among the last lines that the process wrote.
func (p *process) said(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.log, func(line string) bool { return strings.Contains(line, text) })
}

// find is the group of an expression in the first of the last lines that has it; "" is none.
func (p *process) find(expression *regexp.Regexp) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.log {
		if found := expression.FindStringSubmatch(line); found != nil {
			return found[1]
		}
	}
	return ""
}

func (p *process) keep(r io.Reader) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		p.mu.Lock()
		p.log = append(p.log[max(0, len(p.log)-200):], lines.Text())
		p.mu.Unlock()
	}
}

// await passes over events until one is as wanted.
func (p *process) await(ctx context.Context, t *testing.T, what string, wanted func(event) bool) event {
	t.Helper()
	for {
		select {
		case e, ok := <-p.events:
			if !ok {
				t.Fatalf("the program ended before: %s", what)
			}
			if wanted(e) {
				return e
			}
		case <-ctx.Done():
			t.Fatalf("no event in time: %s", what)
		}
	}
}

// interrupt is Ctrl-C: the program must end in order, without an error.
func (p *process) interrupt(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	stuck := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer stuck.Stop()
	go func() {
		defer close(ended)
		_, _ = p.cmd.Process.Wait()
	}()
	<-ended
}

// viewer plays a stream until the test ends or stop is called.
type viewer struct {
	*player.Player
	stop func() error    // ends the session as it should be, and says how playing went
	over <-chan struct{} // closed when playing has ended
}

func watch(ctx context.Context, t *testing.T, whep string) *viewer {
	t.Helper()
	over := make(chan struct{})
	v := &viewer{Player: player.New(newClient()), over: over}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- v.Run(ctx, endpoint(t, whep))
		close(over)
	}()
	v.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = v.stop() })
	return v
}

// frames waits until so many stamped frames and as much sound as belongs to them have come.
func (v *viewer) frames(ctx context.Context, t *testing.T, n int) player.Report {
	t.Helper()
	if err := v.Wait(ctx, func(r player.Report) bool { return r.Stamped >= n && r.Audio >= n }); err != nil {
		t.Fatal(err)
	}
	return v.Report()
}

func newClient() *whip.Client {
	return &whip.Client{
		HTTP:              &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection,
	}
}

func endpoint(t *testing.T, address string) adapters.Endpoint {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return adapters.Endpoint{URL: u}
}

// getJSON reads a status page.
func getJSON(ctx context.Context, t *testing.T, address string, into any) {
	t.Helper()
	if err := json.Unmarshal(getBody(ctx, t, address), into); err != nil {
		t.Fatalf("%s: %v", address, err)
	}
}

func getBody(ctx context.Context, t *testing.T, address string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", address, resp.Status, err)
	}
	return body
}
