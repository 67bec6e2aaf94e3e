package pionsfu

import (
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestPortIsTaken(t *testing.T) {
	first := run(t, Config{})
	_, err := New(Config{UDPAddr: first.UDPAddrs()[0].String()})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), first.UDPAddrs()[0].String()) {
		t.Errorf("%v; want that the address is in use, and which", err)
	}
}

// Without a host there is a socket for each address, all of one port, and each is a candidate.
func TestEveryAddress(t *testing.T) {
	s := run(t, Config{UDPAddr: ":0"})
	addrs := s.UDPAddrs()
	a := s.publish(t, "all")
	for _, addr := range addrs {
		if addr.Port() != addrs[0].Port() {
			t.Errorf("ports differ: %v", addrs)
		}
		if line := " " + addr.Addr().String() + " " + itoa(addr.Port()) + " typ host"; !strings.Contains(a.body, line) {
			t.Errorf("no candidate %q in:\n%s", line, a.body)
		}
	}
	h := s.clients(t)
	h.Publish(t, "every").WaitConnected()
	h.Play(t, "every").WaitFrames(1)
}

func TestBadConfig(t *testing.T) {
	for name, config := range map[string]Config{
		"no port":    {UDPAddr: "127.0.0.1"},
		"bad port":   {UDPAddr: "127.0.0.1:http"},
		"bad host":   {UDPAddr: "nowhere:0"},
		"advertised": {UDPAddr: "127.0.0.1:0", AdvertisedIPs: []string{"example.com"}},
		"public URL": {UDPAddr: "127.0.0.1:0", PublicURL: "example.com"},
		"not ours":   {UDPAddr: "192.0.2.250:0"},
	} {
		if _, err := New(config); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestBeforeRun(t *testing.T) {
	server, err := New(Config{UDPAddr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	s := &sfu{Server: server, url: serve(t, server)}
	s.post(t, "/whip/early", publishOffer(t)).want(t, http.StatusServiceUnavailable)
	s.do(t, http.MethodGet, "/readyz", "").want(t, http.StatusServiceUnavailable)
}

// What is written while another connection of the same port is closed is not lost: pion interrupts writes by a deadline.
func TestWritesAreNotInterrupted(t *testing.T) {
	sockets, err := listenUDP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer sockets[0].Close() //nolint:errcheck // the test is over
	port := sockets[0]
	far, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close() //nolint:errcheck // likewise
	to := far.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, arm := range []func(time.Time) error{port.SetWriteDeadline, port.SetDeadline} {
		if err := arm(time.Now().Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := port.WriteToAddrPort([]byte("x"), to); err != nil {
			t.Error(err)
		}
		if _, err := port.WriteTo([]byte("x"), far.LocalAddr()); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := port.ReadFromAddrPort(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading has no deadline: %v", err)
	}
}
