package mesh

import (
	"crypto/sha256"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// twoDoors opens a port that is free for TCP and UDP.
func twoDoors(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if l, err := net.Listen("tcp", conn.LocalAddr().String()); err == nil {
			return l, conn
		}
		_ = conn.Close() // somebody has the number by TCP
	}
}

// deaf is a path on which only small packets pass.
type deaf struct{ net.PacketConn }

func (d deaf) WriteTo(b []byte, to net.Addr) (int, error) {
	if len(b) > 1200 {
		return len(b), nil
	}
	return d.PacketConn.WriteTo(b, to)
}

func datagramsPass(n *node, peer catalogue.NodeID) (known, lost bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.peers[peer]
	if p == nil || p.primary == nil {
		return false, false
	}
	n.datagrams.mu.Lock()
	defer n.datagrams.mu.Unlock()
	of := p.primary.passage
	return of.lost || of.tries == 0 && !of.next.IsZero(), of.lost
}

// What passes is known soon, and what does not is a condition of the peer that ends nothing.
func TestDatagrams(t *testing.T) {
	for _, test := range []struct {
		name string
		path func(net.PacketConn) net.PacketConn
		lost bool
	}{
		{"they pass", func(c net.PacketConn) net.PacketConn { return c }, false},
		{"only small ones pass", func(c net.PacketConn) net.PacketConn { return deaf{c} }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			la, ua := twoDoors(t)
			lb, ub := twoDoors(t)
			a := start(t, config{id: "a", listener: la, options: func(o *Options) { o.Datagrams = test.path(ua) }})
			b := start(t, config{id: "b", listener: lb, options: func(o *Options) { o.Datagrams = ub }})
			a.SetPeers(at(lb.Addr().String()))
			b.book.publish(1, "show")
			a.book.hears(t, "b", 1, "show")
			bound := time.Now().Add(30 * time.Second)
			for known := false; !known; known, _ = datagramsPass(a, "b") {
				if time.Now().After(bound) {
					t.Fatal("nobody knows whether they pass")
				}
				<-time.After(20 * time.Millisecond)
			}
			_, lost := datagramsPass(a, "b")
			peers := a.Peers()
			if lost != test.lost || len(peers) != 1 || !peers[0].Connected || slices.Contains(peers[0].Conditions, DatagramsLost) != test.lost {
				t.Errorf("lost: %t, peers %+v", lost, peers)
			}
		})
	}
}

// Who is not joined gets no answer, whatever he asks, and no answer is taken but the peer's own.
func TestDatagramsOfStrangers(t *testing.T) {
	m := &Mesh{process: []byte("a process")}
	ours, theirs := udpPair(t)
	d := &datagrams{mesh: m, conn: ours, asked: map[[datagramNonce]byte]*link{}}
	done := make(chan struct{})
	go func() { d.serve(); close(done) }()
	t.Cleanup(func() { _ = ours.Close(); <-done })
	nonce := make([]byte, datagramNonce)
	packet := func(process, purpose string, size int) []byte {
		return append(append(slices.Clone(nonce), seal([]byte(process), purpose, nonce)...), make([]byte, max(size-datagramNonce-sha256.Size, 0))...)
	}
	for _, b := range [][]byte{
		packet("another process", "question", datagramSize), packet("a process", "answer", datagramSize),
		packet("a process", "question", datagramSize-1), packet("a process", "question", datagramSize+1),
		{},
		make([]byte, datagramSize),
	} {
		if _, err := theirs.WriteTo(b, ours.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	nonce[0] = 1
	if _, err := theirs.WriteTo(packet("a process", "question", datagramSize), ours.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2*datagramSize)
	if err := theirs.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, _, err := theirs.ReadFrom(b)
	if err != nil || n != datagramSize || b[0] != 1 || !slices.Equal(b[:n], packet("a process", "answer", datagramSize)) {
		t.Errorf("the first answer has %d bytes and is for question %d: %v", n, b[0], err)
	}
	l := &link{process: []byte("the peer")}
	d.mu.Lock()
	d.asked[[datagramNonce]byte(nonce)] = l
	d.mu.Unlock()
	if d.answered([datagramNonce]byte(nonce), seal([]byte("somebody"), "answer", nonce)) != nil ||
		d.answered([datagramNonce]byte(nonce), seal([]byte("the peer"), "question", nonce)) != nil ||
		d.answered([datagramNonce]byte(nonce), seal([]byte("the peer"), "answer", nonce)) != l ||
		d.answered([datagramNonce]byte(nonce), seal([]byte("the peer"), "answer", nonce)) != nil {
		t.Error("an answer is taken that is not the peer's, or not the one that is")
	}
}

func udpPair(t *testing.T) (a, b net.PacketConn) {
	t.Helper()
	for _, c := range []*net.PacketConn{&a, &b} {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		*c = conn
	}
	return a, b
}
