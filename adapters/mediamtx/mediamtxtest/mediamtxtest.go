// Package mediamtxtest runs a real MediaMTX for tests, on ports of loopback that are free and with settings of its own.
// The binary is the tester's: it is found by MEDIAMTX_BIN or in PATH, and where it is not, the test skips and says so.
package mediamtxtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx"
)

// startTime bounds how long a server takes to answer.
const startTime = 20 * time.Second

// Options are what differs between tests.
type Options struct {
	// Users is set where each action has a user of its own: "publisher", "player" and "watcher", the passwords likewise.
	Users bool
	// YAML is added to the settings.
	YAML string
	// Host is the address to listen at; empty: 127.0.0.1.
	Host string
}

// Server is a running MediaMTX.
type Server struct {
	Version  string
	URL, API string

	t                  testing.TB
	binary, settings   string
	environ            []string
	publish, play, api adapters.Credentials

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{}
	output bytes.Buffer
}

// Missing says why no MediaMTX can run here, or is empty.
func Missing() string {
	if _, err := find(); err != nil {
		return err.Error()
	}
	return ""
}

func find() (string, error) {
	if path := os.Getenv("MEDIAMTX_BIN"); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("MEDIAMTX_BIN: %w", err)
		}
		return path, nil
	}
	path, err := exec.LookPath("mediamtx")
	if err != nil {
		return "", errors.New("no MediaMTX here: set MEDIAMTX_BIN or put mediamtx into PATH to run this against the real server")
	}
	return path, nil
}

// Binary is the path of MediaMTX; without it the test is skipped.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := find()
	switch {
	case err != nil && os.Getenv("MEDIAMTX_BIN") != "":
		t.Fatal(err)
	case err != nil:
		t.Skip(err)
	}
	return path
}

// Start runs a server until the test ends.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{binary: Binary(t), t: t}
	version, err := exec.CommandContext(t.Context(), s.binary, "--version").Output()
	if err != nil {
		t.Fatalf("%s --version: %v", s.binary, err)
	}
	s.Version = regexp.MustCompile(`v[0-9][0-9.]*`).FindString(string(version))
	host := cmp.Or(o.Host, "127.0.0.1")
	ports := freePorts(t, host, 2)
	at := func(i int) string { return fmt.Sprintf("%s:%d", host, ports[i]) }
	s.URL, s.API = "http://"+at(0), "http://"+at(1)
	yaml := "paths:\n  all_others:\n"
	if o.Users {
		yaml += `
authInternalUsers:
- user: publisher
  pass: publisher
  permissions: [{action: publish}]
- user: player
  pass: player
  permissions: [{action: read}]
- user: watcher
  pass: watcher
  permissions: [{action: api}]
`
		s.publish = adapters.Credentials{User: "publisher", Password: "publisher"}
		s.play = adapters.Credentials{User: "player", Password: "player"}
		s.api = adapters.Credentials{User: "watcher", Password: "watcher"}
	}
	s.settings = filepath.Join(t.TempDir(), "mediamtx.yml")
	if err := os.WriteFile(s.settings, []byte(yaml+o.YAML), 0o600); err != nil {
		t.Fatal(err)
	}
	// Settings that a version does not know are errors in the file, and nothing in the environment.
	s.environ = []string{
		"MTX_API=yes", "MTX_APIADDRESS=" + at(1), "MTX_WEBRTCADDRESS=" + at(0),
		"MTX_WEBRTCLOCALUDPADDRESS=" + at(0), "MTX_WEBRTCIPSFROMINTERFACES=no",
		"MTX_WEBRTCADDITIONALHOSTS=" + host, "MTX_RTSP=no", "MTX_RTMP=no", "MTX_HLS=no", "MTX_SRT=no", "MTX_MOQ=no",
	}
	s.Up()
	t.Cleanup(func() {
		s.Down()
		if t.Failed() {
			t.Logf("MediaMTX %s wrote:\n%s", s.Version, s.Output())
		}
	})
	return s
}

// Up starts the server again after Down, at the same addresses, and waits until it answers.
func (s *Server) Up() {
	s.t.Helper()
	s.mu.Lock()
	cmd := exec.Command(s.binary, s.settings)
	cmd.Env = append(os.Environ(), s.environ...)
	cmd.Stdout = writer(func(b []byte) { s.mu.Lock(); defer s.mu.Unlock(); s.output.Write(b) })
	cmd.Stderr = cmd.Stdout
	ended := make(chan struct{})
	err := cmd.Start()
	s.cmd, s.ended = cmd, ended
	s.mu.Unlock()
	if err != nil {
		close(ended)
		s.t.Fatalf("start MediaMTX: %v", err)
	}
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	deadline := time.Now().Add(startTime)
	for !s.answers() {
		select {
		case <-ended:
			s.t.Fatalf("MediaMTX has ended:\n%s", s.Output())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("MediaMTX does not answer:\n%s", s.Output())
		}
	}
}

func (s *Server) answers() bool {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, at := range []string{s.URL + "/up/", s.API + "/v3/info"} {
		request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, at, http.NoBody)
		if err != nil {
			s.t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
	}
	return true
}

// Down kills the server without a word, as a crash would.
func (s *Server) Down() {
	s.mu.Lock()
	cmd, ended := s.cmd, s.ended
	s.mu.Unlock()
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("kill MediaMTX: %v", err)
	}
	<-ended
}

// Output is what the server has written.
func (s *Server) Output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.output.String()
}

// Config is how an adapter speaks to the server.
func (s *Server) Config() mediamtx.Config {
	return mediamtx.Config{BaseURL: s.URL, APIURL: s.API, Publish: s.publish, Play: s.play, API: s.api}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

// freePorts finds TCP ports that nobody uses now.
func freePorts(t testing.TB, host string, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}
