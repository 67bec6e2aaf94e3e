// Package broadcastboxtest runs a real Broadcast Box for tests, at a free port of loopback. The binary is the tester's: it is
// found by BROADCAST_BOX_BIN or in PATH, and where it is not, the test skips and says so.
package broadcastboxtest

import (
	"bytes"
	"cmp"
	"context"
	"debug/buildinfo"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters/broadcastbox"
)

// startTime bounds how long a server takes to answer.
const startTime = 20 * time.Second

// Options are what differs between tests.
type Options struct {
	// AdminToken is the server's, and the sidecar's; empty: it has none.
	AdminToken string
	// Environ are further settings, NAME=value.
	Environ []string
	// Host is the address to listen at, and of the candidates; empty: 127.0.0.1.
	Host string
}

// Server is a running Broadcast Box.
type Server struct {
	Version string // as far as the binary tells
	URL     string

	t       testing.TB
	binary  string
	dir     string
	environ []string
	admin   string

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{}
	output bytes.Buffer
}

// Missing says why no Broadcast Box can run here, or is empty.
func Missing() string {
	if _, err := find(); err != nil {
		return err.Error()
	}
	return ""
}

func find() (string, error) {
	if path := os.Getenv("BROADCAST_BOX_BIN"); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", errors.New("BROADCAST_BOX_BIN: " + err.Error())
		}
		return filepath.Abs(path)
	}
	path, err := exec.LookPath("broadcast-box")
	if err != nil {
		return "", errors.New("no Broadcast Box here: set BROADCAST_BOX_BIN or put broadcast-box into PATH to run this against the real server")
	}
	return filepath.Abs(path)
}

// Binary is the path of Broadcast Box; without it the test is skipped.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := find()
	switch {
	case err != nil && os.Getenv("BROADCAST_BOX_BIN") != "":
		t.Fatal(err)
	case err != nil:
		t.Skip(err)
	}
	return path
}

// Start runs a server until the test ends.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{t: t, binary: Binary(t), dir: t.TempDir(), admin: o.AdminToken}
	s.Version = version(s.binary)
	host := cmp.Or(o.Host, "127.0.0.1")
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	s.URL = "http://" + address
	s.environ = append([]string{
		"APP_ENV=production", "HTTP_ADDRESS=" + address, "DISABLE_FRONTEND=TRUE", "INCLUDE_LOOPBACK_CANDIDATE=1", "INTERFACE_FILTER=" + interfaceOf(t, host),
		"FRONTEND_ADMIN_TOKEN=" + o.AdminToken, "STREAM_PROFILE_PATH=" + filepath.Join(s.dir, "profiles"),
	}, o.Environ...)
	s.Up()
	t.Cleanup(func() {
		s.Down()
		if t.Failed() {
			t.Logf("Broadcast Box %s wrote:\n%s", s.Version, s.Output())
		}
	})
	return s
}

// interfaceOf is the network interface that has an address.
func interfaceOf(t testing.TB, host string) string {
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		addresses, _ := i.Addrs()
		for _, a := range addresses {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.String() == host {
				return i.Name
			}
		}
	}
	t.Fatalf("no interface has %s", host)
	return ""
}

// version is the commit or the release that the binary was built of.
func version(binary string) string {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "of unknown version"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(7, len(s.Value))]
		}
	}
	return strings.Trim(info.Main.Version, "()")
}

// Up starts the server again after Down, at the same address, and waits until it answers.
func (s *Server) Up() {
	s.t.Helper()
	s.mu.Lock()
	cmd := exec.Command(s.binary)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), s.environ...)
	cmd.Stdout = writer(func(b []byte) { s.mu.Lock(); defer s.mu.Unlock(); s.output.Write(b) })
	cmd.Stderr = cmd.Stdout
	ended := make(chan struct{})
	err := cmd.Start()
	s.cmd, s.ended = cmd, ended
	s.mu.Unlock()
	if err != nil {
		close(ended)
		s.t.Fatalf("start Broadcast Box: %v", err)
	}
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	deadline := time.Now().Add(startTime)
	for !s.answers() {
		select {
		case <-ended:
			s.t.Fatalf("Broadcast Box has ended:\n%s", s.Output())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("Broadcast Box does not answer:\n%s", s.Output())
		}
	}
}

func (s *Server) answers() bool {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, s.URL+"/api/status", http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return true
}

// Down kills the server without a word, as a crash would.
func (s *Server) Down() {
	s.mu.Lock()
	cmd, ended := s.cmd, s.ended
	s.mu.Unlock()
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("kill Broadcast Box: %v", err)
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
func (s *Server) Config() broadcastbox.Config {
	return broadcastbox.Config{BaseURL: s.URL, AdminToken: s.admin}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }
