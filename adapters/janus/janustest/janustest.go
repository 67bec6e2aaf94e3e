// Package janustest runs a real Janus for tests, from the binary that a distribution installs. libnice, its ICE agent,
// offers no loopback addresses, so the tests run in a network namespace with an interface that has another one.
package janustest

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// hostVariable holds the address of the host that a test binary was started anew in.
	hostVariable = "JANUS_TEST_HOST"
	// binaryVariable names another janus than the one in PATH.
	binaryVariable = "JANUS_BIN"

	startTime = 10 * time.Second
)

// Missing says why there is no Janus to test with; empty where there is one.
func Missing() string {
	if _, err := binary(); err != nil {
		return "no janus in PATH (Debian's package janus, or set " + binaryVariable + "): tests with a real Janus are skipped"
	}
	return ""
}

func binary() (string, error) {
	if name := os.Getenv(binaryVariable); name != "" {
		return exec.LookPath(name)
	}
	return exec.LookPath("janus")
}

// Host is the address at which Janus and its peers meet; empty outside.
func Host() string { return os.Getenv(hostVariable) }

// Main runs a package's tests inside, where there is a Janus and the machine allows it; else those that need it are
// skipped. It is the whole of TestMain but for what m is.
func Main(run func() int) int {
	if Host() != "" || Missing() != "" {
		return run()
	}
	code, err := Inside(os.Stdout, nil, os.Args[1:]...)
	if errors.Is(err, errors.ErrUnsupported) {
		return run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "janustest:", err)
		return 1
	}
	return code
}

// Options are how a Janus is set up.
type Options struct {
	APISecret, AdminKey, AdminSecret string
	Numbers                          bool   // ids are numbers: without string_ids
	Rooms                            string // more of janus.plugin.videoroom.jcfg
	NAT                              string // more of janus.jcfg's section nat
}

// Server is a Janus that runs until the test ends.
type Server struct {
	URL, AdminURL string

	t    testing.TB
	conf string
	log  string
	cmd  *exec.Cmd
}

// Start starts a Janus and waits until it answers. Without one the test is skipped.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	if why := Missing(); why != "" {
		t.Skip(why)
	}
	if Host() == "" {
		t.Skip("janus needs a network namespace of its own: root and /dev/net/tun")
	}
	api, admin := freePort(t), freePort(t)
	s := &Server{
		URL:      fmt.Sprintf("http://%s/janus", net.JoinHostPort(Host(), api)),
		AdminURL: fmt.Sprintf("http://%s/admin", net.JoinHostPort(Host(), admin)),
		t:        t, conf: t.TempDir(), log: filepath.Join(t.TempDir(), "janus.log"),
	}
	files := map[string]string{
		"janus.jcfg": general(t, s.conf, o),
		"janus.transport.http.jcfg": fmt.Sprintf(`general: { json = "compact" base_path = "/janus" http = true port = %s https = false }
admin: { admin_base_path = "/admin" admin_http = true admin_port = %s admin_https = false }
`, api, admin),
		"janus.plugin.videoroom.jcfg": fmt.Sprintf("general: { string_ids = %t %s }\n%s\n", !o.Numbers, setting("admin_key", o.AdminKey), o.Rooms),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.conf, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			s.show()
		}
	})
	s.Restart()
	return s
}

func setting(name, value string) string {
	if value == "" {
		return ""
	}
	return name + " = " + strconv.Quote(value)
}

func general(t testing.TB, conf string, o Options) string {
	found, err := filepath.Glob("/usr/lib/*/janus/plugins")
	if err != nil || len(found) == 0 {
		found, _ = filepath.Glob("/usr/*/*/janus/plugins")
	}
	if len(found) == 0 {
		t.Skip("janus is there, its plugins are not where a package puts them: tests with a real Janus are skipped")
	}
	folder := filepath.Dir(found[0])
	return fmt.Sprintf(`general: {
	configs_folder = %q
	plugins_folder = "%[2]s/plugins"
	transports_folder = "%[2]s/transports"
	events_folder = "%[2]s/events"
	loggers_folder = "%[2]s/loggers"
	debug_level = 4
	debug_colors = false
	debug_timestamps = true
	%[3]s
	%[4]s
}
nat: { %[5]s }
plugins: { disable = %[6]q }
transports: { disable = %[7]q }
loggers: { disable = "libjanus_jsonlog.so" }
`, conf, folder, setting("api_secret", o.APISecret), setting("admin_secret", o.AdminSecret), o.NAT,
		all(folder+"/plugins", "videoroom"), all(folder+"/transports", "http"))
}

// all lists the modules in a folder but one.
func all(folder, but string) string {
	files, _ := filepath.Glob(folder + "/*.so")
	var names []string
	for _, f := range files {
		if name := filepath.Base(f); name != "libjanus_"+but+".so" {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(Host(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// Kill ends Janus at once, as a crash does.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Restart kills Janus, where it runs, and starts it again at the same place.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	program, err := binary()
	if err != nil {
		s.t.Fatal(err)
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "-F", s.conf)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = mortal()
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	for end := time.Now().Add(startTime); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		resp, err := client.Get(s.URL + "/info")
		if err == nil {
			_ = resp.Body.Close()
			return
		}
	}
	s.show()
	s.t.Fatalf("janus does not answer at %s within %s", s.URL, startTime)
}

// show puts the end of Janus' log into the test's.
func (s *Server) show() {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range lines[max(0, len(lines)-80):] {
		s.t.Log(line)
	}
}
