package redirect

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// What comes from another host for the server's port reaches the gateway, by IPv4 and IPv6; what the pod says to itself, and
// other ports, do not.
func TestSet(t *testing.T) {
	network := wan.NewNetwork()
	ctx, cancel := context.WithCancel(context.Background()) // it outlives what says goodbye
	ran := make(chan error, 1)
	go func() { ran <- network.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ran })
	host := func(name string) *wan.Host {
		h, err := network.Host(name)
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		return h
	}
	pod, viewer := host("pod"), host("viewer")

	serve := func(says string) uint16 {
		t.Helper()
		var l net.Listener
		if err := pod.Do(func() (err error) { l, err = net.Listen("tcp", ":0"); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, says)
				_ = c.Close()
			}
		}()
		return netip.MustParseAddrPort(l.Addr().String()).Port()
	}
	server, gateway, other := serve("server"), serve("gateway"), serve("other")

	hear := func(from *wan.Host, at netip.Addr, port uint16) string {
		t.Helper()
		var heard []byte
		if err := from.Do(func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(at, port).String(), 20*time.Second)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			heard, err = io.ReadAll(c)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return string(heard)
	}
	addresses := []netip.Addr{pod.IPv4, pod.IPv6}
	for _, a := range addresses {
		if got := hear(viewer, a, server); got != "server" {
			t.Fatalf("before, %s reaches the %s", a, got)
		}
	}
	for range 2 { // a container that is restarted does it again
		err := pod.Do(func() error { return Set(server, gateway) })
		if unsupported(err) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range addresses {
		for _, want := range []struct {
			from *wan.Host
			port uint16
			says string
		}{{viewer, server, "gateway"}, {viewer, gateway, "gateway"}, {viewer, other, "other"}, {pod, server, "server"}} {
			if got := hear(want.from, a, want.port); got != want.says {
				t.Errorf("%s port %d reaches the %s, want the %s", a, want.port, got, want.says)
			}
		}
	}
	if got := hear(pod, netip.MustParseAddr("127.0.0.1"), server); got != "server" {
		t.Errorf("loopback reaches the %s", got)
	}
	if err := pod.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := conn.ListChains()
		if err != nil || len(chains) != 1 {
			t.Errorf("%d chains, %v", len(chains), err)
			return err
		}
		rules, err := conn.GetRules(chains[0].Table, chains[0])
		if err != nil || len(rules) != 1 {
			t.Errorf("%d rules, %v; want one however often it is set", len(rules), err)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// unsupported says that the kernel has no nftables.
func unsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, os.ErrNotExist)
}
