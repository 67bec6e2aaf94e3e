package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// The tests of this file use the loopback interface and the clock as they are.

func listenLoopback(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func certificates(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := WriteEphemeralCertificates(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func load(t *testing.T, dir string) *Security {
	t.Helper()
	s, err := LoadSecurity(dir, SecurityOptions{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *node) waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	bound := time.After(30 * time.Second)
	for !is() {
		select {
		case <-tick.C:
		case <-bound:
			t.Fatalf("%s: never %s", n.self.ID, what)
		}
	}
}

func TestThreeNodesOverTLS(t *testing.T) {
	dir := certificates(t)
	nodes := map[catalogue.NodeID]*node{}
	var addrs []string
	for _, id := range []catalogue.NodeID{"a", "b"} {
		n := start(t, config{id: id, security: load(t, dir), listener: listenLoopback(t, "127.0.0.1:0")})
		n.book.publish(1, adapters.StreamID("from-"+id))
		nodes[id] = n
		addrs = append(addrs, n.addr)
	}
	for _, n := range nodes {
		n.SetPeers(at(addrs...)) // both dial each other, and themselves
	}
	nodes["a"].book.hears(t, "b", 1, "from-b")
	nodes["b"].book.hears(t, "a", 1, "from-a")

	late := start(t, config{id: "c", security: load(t, dir), listener: listenLoopback(t, "127.0.0.1:0")})
	late.SetPeers(at(addrs...))
	late.book.hears(t, "a", 1, "from-a")
	late.book.hears(t, "b", 1, "from-b")
	late.book.publish(2, "from-c")
	nodes["a"].book.hears(t, "c", 2, "from-c")
	for id, n := range nodes {
		n.waitFor(t, "one link to each", func() bool { return n.links("a")+n.links("b")+n.links("c") == 2 })
		if got := n.book.forgotten(); len(got) > 0 {
			t.Errorf("%s forgot %v", id, got)
		}
		n.waitFor(t, "measured", func() bool { _, ok := n.RTT("c"); return ok })
		if rtt, _ := n.RTT("c"); rtt <= 0 || rtt > time.Second {
			t.Errorf("%s measured %v", id, rtt)
		}
	}
	if addr, _ := nodes["a"].Address("c"); addr != late.addr {
		t.Errorf("a, whom c dialled, knows it at %s, want %s", addr, late.addr)
	}
	if addr, _ := late.Address("a"); addr != nodes["a"].addr {
		t.Errorf("c, who dialled a, knows it at %s, want %s", addr, nodes["a"].addr)
	}
}

// kill is a listener that can die like a machine: no goodbye, nothing closed properly, nobody answers any more.
type kill struct {
	net.Listener

	mu    sync.Mutex
	dead  bool
	conns []net.Conn
}

func (k *kill) Accept() (net.Conn, error) {
	for {
		conn, err := k.Listener.Accept()
		if err != nil {
			return nil, err
		}
		k.mu.Lock()
		dead := k.dead
		k.conns = append(k.conns, conn)
		k.mu.Unlock()
		if !dead {
			return conn, nil
		}
		reset(conn)
	}
}

func (k *kill) now() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dead = true
	for _, conn := range k.conns {
		reset(conn)
	}
}

func reset(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

func TestKilledAndRestarted(t *testing.T) {
	dir := certificates(t)
	k := &kill{Listener: listenLoopback(t, "127.0.0.1:0")}
	dead := errors.New("dead")
	nobody := func(context.Context, string) (net.Conn, error) { return nil, dead }
	a := start(t, config{id: "a", security: load(t, dir), listener: listenLoopback(t, "127.0.0.1:0")})
	old := start(t, config{id: "b", security: load(t, dir), listener: k, dial: nobody, dies: true})
	old.book.publish(1, "before")
	a.SetPeers(at(old.addr))
	a.SetRelated([]catalogue.NodeID{"b"})
	a.book.hears(t, "b", 1, "before")
	a.waitFor(t, "related", func() bool {
		l := a.link("b")
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.promised == relatedPeriod
	})

	began := time.Now()
	k.now()
	a.book.until(t, "b is lost", func() bool { return len(a.book.forgotten()) > 0 })
	// The last heartbeat came at most a period before.
	if took := time.Since(began); took < lostAfter(relatedPeriod)-relatedPeriod {
		t.Errorf("lost after %v: not by its heartbeat", took)
	}
	_ = k.Close() // the port is the next one's

	b := start(t, config{id: "b", incarnation: 2, security: load(t, dir), listener: listenLoopback(t, old.addr)})
	b.book.publish(5, "after")
	a.book.hears(t, "b", 5, "after")
	if s := a.status("b"); s.Incarnation != 2 || !s.Connected {
		t.Errorf("status: %+v", s)
	}
}

func TestAnotherAuthorityIsRefused(t *testing.T) {
	a := start(t, config{id: "a", security: load(t, certificates(t)), listener: listenLoopback(t, "127.0.0.1:0")})
	b := start(t, config{id: "b", security: load(t, certificates(t)), listener: listenLoopback(t, "127.0.0.1:0")})
	b.SetPeers(at(a.addr))
	b.waitFor(t, "has an error", func() bool { return len(b.Peers()) == 1 && b.Peers()[0].Error != "" })
	if s := b.Peers()[0]; !strings.Contains(s.Error, "unknown authority") || s.Address != a.addr || s.Connected {
		t.Errorf("the dialler's status: %+v", s)
	}
	a.waitFor(t, "refused a handshake", func() bool {
		return a.counted(t, "sidestream_mesh_handshakes_refused_total", "") > 0
	})

	// A client that trusts the server, but whose own certificate is of another authority, is refused by the server.
	config := b.security.clientConfig(alpnGRPC)
	config.RootCAs = a.security.material().authority
	if err := talk(t, a.addr, config); err == nil || !strings.Contains(err.Error(), "unknown certificate authority") {
		t.Errorf("a client of another authority: %v", err)
	}
	// So is one without a certificate, and one of the right authority with another name than a peer's.
	config = a.security.clientConfig(alpnGRPC)
	config.GetClientCertificate = nil
	if err := talk(t, a.addr, config); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a client without a certificate: %v", err)
	}
	config = a.security.clientConfig(alpnGRPC)
	config.MaxVersion, config.MinVersion = tls.VersionTLS12, tls.VersionTLS12
	if err := talk(t, a.addr, config); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("a client of TLS 1.2: %v", err)
	}
}

// talk makes a handshake and waits for the server's verdict: in TLS 1.3 a client learns it only when it reads.
func talk(t *testing.T, addr string, config *tls.Config) error {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func TestCertificatesAreReadAgain(t *testing.T) {
	dir := certificates(t)
	shared := load(t, dir)
	a := start(t, config{id: "a", security: shared, listener: listenLoopback(t, "127.0.0.1:0")})
	b := start(t, config{id: "b", security: load(t, dir), listener: listenLoopback(t, "127.0.0.1:0")})
	b.SetPeers(at(a.addr))
	a.book.hears(t, "b", 0)
	since := a.status("b").Since
	before := shared.material()

	// A swap that is seen half way: the certificate is new, the key is not. Files of the same size that were written in one tick of
	// the file system's clock could not be told apart.
	next := certificates(t)
	for _, name := range []string{certificateFile, keyFile, authorityFile} {
		later := time.Now().Add(time.Second)
		if err := os.Chtimes(filepath.Join(next, name), later, later); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(next, certificateFile), filepath.Join(dir, certificateFile)); err != nil {
		t.Fatal(err)
	}
	if shared.material() != before {
		t.Error("half a certificate is in force")
	}
	for _, name := range []string{keyFile, authorityFile} {
		if err := os.Rename(filepath.Join(next, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, config{id: "c", security: load(t, dir), listener: listenLoopback(t, "127.0.0.1:0")})
	c.SetPeers(at(a.addr, b.addr))
	a.book.hears(t, "c", 0)
	b.book.hears(t, "c", 0)
	// What was connected before stays.
	if s := a.status("b"); !s.Connected || s.Since != since {
		t.Errorf("the connection of before: %+v", s)
	}
	if err := os.Remove(filepath.Join(dir, keyFile)); err != nil {
		t.Fatal(err)
	}
	if shared.material() == nil || shared.material() == before {
		t.Error("a file that vanishes takes the certificates with it")
	}
}

func TestLoadSecurityNamesWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, dir string)
		want   string
	}{
		{"no key", func(t *testing.T, dir string) { remove(t, dir, keyFile) }, keyFile},
		{"no authority", func(t *testing.T, dir string) { remove(t, dir, authorityFile) }, authorityFile},
		{"empty authority", func(t *testing.T, dir string) { write(t, dir, authorityFile, "") }, "no certificate"},
		{"key of another certificate", func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(certificates(t), keyFile), filepath.Join(dir, keyFile)); err != nil {
				t.Fatal(err)
			}
		}, "does not match"},
		{"certificate of something else", func(t *testing.T, dir string) {
			authority, err := os.ReadFile(filepath.Join(dir, authorityFile))
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, certificateFile, string(authority))
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := certificates(t)
			tt.change(t, dir)
			if _, err := LoadSecurity(dir, SecurityOptions{}); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %v, want one that names %q", err, tt.want)
			}
		})
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// gRPC and HTTP/1.1 share the port, with certificates and without.
func TestPortServesBoth(t *testing.T) {
	dir := certificates(t)
	for name, security := range map[string]func() *Security{
		"TLS": func() *Security { return load(t, dir) }, "plaintext": Plaintext,
	} {
		t.Run(name, func(t *testing.T) {
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				who := "nobody"
				if r.TLS != nil {
					who = r.TLS.PeerCertificates[0].DNSNames[0]
				}
				_, _ = io.WriteString(w, strings.Join([]string{r.Proto, r.Method, r.URL.Path, who, string(body)}, " "))
			})
			a := start(t, config{
				id: "a", security: security(), listener: listenLoopback(t, "127.0.0.1:0"), http: handler,
				handler: answers{grant: func(catalogue.NodeID, adapters.StreamID) (Grant, error) {
					return Grant{Token: "t", Path: []catalogue.NodeID{"a"}, Epoch: 1}, nil
				}},
			})
			var dialled []string
			b := start(t, config{id: "b", security: security(), listener: listenLoopback(t, "127.0.0.1:0")})
			b.SetPeers(at(a.addr))
			b.book.hears(t, "a", 0)
			grant, err := b.Pull(t.Context(), "a", "a stream")
			if err != nil {
				t.Fatal(err)
			}
			client := b.security.HTTPClient(func(ctx context.Context, addr string) (net.Conn, error) {
				dialled = append(dialled, addr)
				return dialOr(nil)(ctx, addr)
			})
			defer client.CloseIdleConnections()
			for range 2 {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, grant.URL, strings.NewReader("an offer"))
				if err != nil {
					t.Fatal(err)
				}
				response, err := client.Do(request)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if err != nil {
					t.Fatal(err)
				}
				want := "HTTP/1.1 POST /whep/a stream " + PeerName + " an offer"
				if name == "plaintext" {
					want = "HTTP/1.1 POST /whep/a stream nobody an offer"
				}
				if string(body) != want {
					t.Errorf("answered %q, want %q", body, want)
				}
			}
			if d := cmp.Diff([]string{a.addr}, dialled); d != "" {
				t.Errorf("dialled by the hook: %s", d)
			}
		})
	}
}

// Clients that connect and say nothing keep nobody out, however many they are.
func TestPortIsNotBlockedByStalledClients(t *testing.T) {
	dir := certificates(t)
	for name, security := range map[string]*Security{"TLS": load(t, dir), "plaintext": Plaintext()} {
		t.Run(name, func(t *testing.T) {
			a := start(t, config{id: "a", security: security, listener: listenLoopback(t, "127.0.0.1:0")})
			for range maxHandshakes + 20 {
				conn, err := net.Dial("tcp", a.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
			}
			b := start(t, config{id: "b", security: security, listener: listenLoopback(t, "127.0.0.1:0")})
			began := time.Now()
			b.SetPeers(at(a.addr))
			b.book.hears(t, "a", 0)
			if took := time.Since(began); took > handshakeTimeout/2 {
				t.Errorf("connected after %v", took)
			}
		})
	}
}

// Bytes that are neither TLS nor gRPC are refused, and the rest goes on.
func TestPortRefusesNoise(t *testing.T) {
	dir := certificates(t)
	for name, security := range map[string]*Security{"TLS": load(t, dir), "plaintext": Plaintext()} {
		t.Run(name, func(t *testing.T) {
			a := start(t, config{id: "a", security: security, listener: listenLoopback(t, "127.0.0.1:0"), http: http.NotFoundHandler()})
			for _, noise := range []string{
				"\x00\x01\x02\x03", "GET / HTTP/1.1\r\n\r\n", prefaceHTTP2,
				prefaceHTTP2 + "\r\n\r\nSM\r\n\r\nnoise and more noise",
			} {
				conn, err := net.Dial("tcp", a.addr)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(conn, noise); err != nil {
					t.Fatal(err)
				}
				_ = conn.(*net.TCPConn).CloseWrite()
				_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%q: the connection stays open", noise)
				}
				_ = conn.Close()
			}
			b := start(t, config{id: "b", security: security, listener: listenLoopback(t, "127.0.0.1:0")})
			b.SetPeers(at(a.addr))
			b.book.hears(t, "a", 0)
		})
	}
}

// The real catalogue, and two clusters.
func TestWithTheCatalogue(t *testing.T) {
	dir := certificates(t)
	book := func(id catalogue.NodeID, cluster string) (*catalogue.Catalogue, func(*Options)) {
		c := catalogue.New(catalogue.Node{ID: id, Incarnation: 1, Cluster: cluster})
		return c, func(o *Options) { o.Catalogue = c }
	}
	catA, useA := book("a", "east")
	catB, useB := book("b", "west")
	a := start(t, config{id: "a", security: load(t, dir), listener: listenLoopback(t, "127.0.0.1:0"), options: useA})
	start(t, config{id: "b", security: load(t, dir), listener: listenLoopback(t, "127.0.0.1:0"), options: func(o *Options) {
		useB(o)
		o.Dial = dialOr(nil)
	}}).SetPeers(at(a.addr))
	if err := catA.SetLocal(nil); err != nil {
		t.Fatal(err)
	}
	if err := catA.SetLocal([]adapters.Stream{{ID: "demo", Session: "1"}}); err != nil {
		t.Fatal(err)
	}
	bound := time.After(30 * time.Second)
	for {
		state, changed := catB.Snapshot()
		if holds := state.Holders("demo"); len(holds) == 1 && holds[0].Holder() == "a" {
			break
		}
		select {
		case <-changed:
		case <-bound:
			t.Fatal("b never hears of the stream")
		}
	}
}
