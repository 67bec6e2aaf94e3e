package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// A protocol that takes the connection over, as WebSockets do, has it: bytes pass both ways, and the end of one side is the
// end of the other.
func TestUpgrade(t *testing.T) {
	s := newServer(t)
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("Sec-WebSocket-Key") != "k" {
			t.Errorf("server saw %v", r.Header)
		}
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-WebSocket-Accept", "a")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		defer conn.Close()
		_, _ = io.Copy(conn, buffered) // an echo, until the client has said all
		return true
	})
	n := newNode(t, s, nil)
	conn, err := net.Dial("tcp", n.public.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n")
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-WebSocket-Accept") != "a" {
		t.Fatalf("%v, %+v", err, resp)
	}
	for _, said := range []string{"first\n", strings.Repeat("x", 100_000) + "\n"} {
		go io.WriteString(conn, said) //nolint:errcheck // it is seen in what comes back
		if heard, err := reader.ReadString('\n'); err != nil || heard != said {
			t.Fatalf("%d of %d bytes came back: %v", len(heard), len(said), err)
		}
	}
}

// An upload goes on to the server as it comes, however large: the server has its first part before the last is sent.
func TestUploadsAreNotKept(t *testing.T) {
	const size = 64 << 20
	came := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first := make([]byte, 1024)
		if _, err := io.ReadFull(r.Body, first); err != nil {
			t.Error(err)
		}
		close(came)
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n+1024, err)
	}))
	defer s.Close()
	target, _ := url.Parse(s.URL)
	g := New(Options{Adapter: adapter{base: target}, Target: target, NodeID: "a"})
	front := httptest.NewServer(g)
	defer front.Close()
	defer g.through.(*http.Transport).CloseIdleConnections()
	body, more := io.Pipe()
	go func() {
		block := make([]byte, 1<<20)
		_, _ = more.Write(block)
		<-came
		for range size>>20 - 1 {
			if _, err := more.Write(block); err != nil {
				break
			}
		}
		_ = more.Close()
	}()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, front.URL+"/files/1", body)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, _ := io.ReadAll(resp.Body); string(got) != fmt.Sprint(size, " <nil>") {
		t.Errorf("the server read %s", got)
	}
}

// What is not WHIP or WHEP may take as long as it likes: Janus' long polls, exports.
func TestLongPolls(t *testing.T) {
	g := New(Options{Adapter: adapter{}, Target: &url.URL{Scheme: "http", Host: "a"}})
	if got := g.through.(*http.Transport).ResponseHeaderTimeout; got != 0 {
		t.Errorf("answers must come in %s", got)
	}
	if got := g.o.Transport.(*http.Transport).ResponseHeaderTimeout; got == 0 {
		t.Error("a session may take for ever to open")
	}
}

// BenchmarkThrough is a small page, from the server and through the gateway; sessions besides are what a gateway in use has.
func BenchmarkThrough(b *testing.B) {
	page := bytes.Repeat([]byte("x"), 2048)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) }))
	defer s.Close()
	target, _ := url.Parse(s.URL)
	g := New(Options{Adapter: adapter{base: target}, Target: target, NodeID: "a", AccessLog: true})
	front := httptest.NewServer(g)
	defer front.Close()
	defer g.through.(*http.Transport).CloseIdleConnections()
	browser := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	defer browser.CloseIdleConnections()
	for name, at := range map[string]string{"server": s.URL, "gateway": front.URL} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resp, err := browser.Get(at + "/page")
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
}
