package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// death is what a machine's crash looks like to others: it says nothing more, and closes nothing.
type death struct {
	silent atomic.Bool
	mu     sync.Mutex
	open   []net.Conn // that the dead node has closed
}

// bury closes what the dead node's machine left open.
func (d *death) bury() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.open {
		_ = c.Close()
	}
	d.open = nil
}

// wire is a peer's end of one connection: it counts what goes to and comes from a sidecar that is measured, and falls
// silent with its node.
type wire struct {
	net.Conn
	death   *death
	subject *subject // nil: at the other end is another node of the bench
}

// Read is [net.Conn]'s. What reaches a dead node is lost.
func (w *wire) Read(b []byte) (int, error) {
	for {
		n, err := w.Conn.Read(b)
		if w.subject != nil {
			w.subject.out.Add(int64(n))
		}
		if err != nil || !w.death.silent.Load() {
			return n, err
		}
	}
}

// Write is [net.Conn]'s. What a dead node says is lost.
func (w *wire) Write(b []byte) (int, error) {
	if w.death.silent.Load() {
		return len(b), nil
	}
	n, err := w.Conn.Write(b)
	if w.subject != nil {
		w.subject.in.Add(int64(n))
	}
	return n, err
}

// Close is [net.Conn]'s. The other end does not see that a dead node closes.
func (w *wire) Close() error {
	if !w.death.silent.Load() {
		return w.Conn.Close()
	}
	w.death.mu.Lock()
	defer w.death.mu.Unlock()
	w.death.open = append(w.death.open, w.Conn)
	return w.Conn.SetReadDeadline(time.Unix(1, 0)) // so that who reads here returns
}

// doors is a listener on one port of several loopback addresses: the address that is called tells who calls.
type doors struct {
	listeners []net.Listener
	wrap      func(net.Conn) net.Conn
	death     *death // while it is silent, connections are neither taken nor refused
	accepted  chan net.Conn
	done      chan struct{}
	once      sync.Once
}

// openDoors listens at the same free port of all hosts. wrap sees each connection before Accept returns it.
func openDoors(hosts []string, d *death, wrap func(net.Conn) net.Conn) (*doors, error) {
	var err error
	for range 20 { // a port that is free at one address may be taken at another
		var listeners []net.Listener
		if listeners, err = listen(hosts); err == nil {
			return &doors{
				listeners: listeners, wrap: wrap, death: d, accepted: make(chan net.Conn), done: make(chan struct{}),
			}, nil
		}
	}
	return nil, fmt.Errorf("listen at the same port of %v: %w", hosts, err)
}

func listen(hosts []string) (listeners []net.Listener, err error) {
	port := "0"
	for _, host := range hosts {
		l, err := net.Listen("tcp", net.JoinHostPort(host, port))
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return nil, err
		}
		listeners = append(listeners, l)
		_, port, _ = net.SplitHostPort(l.Addr().String())
	}
	return listeners, nil
}

// run accepts until shut.
func (d *doors) run() {
	var group sync.WaitGroup
	for _, l := range d.listeners {
		group.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wrapped := d.wrap(conn)
				select {
				case d.accepted <- wrapped:
				case <-d.done:
					_ = wrapped.Close()
				}
			}
		})
	}
	group.Wait()
}

// Accept is [net.Listener]'s.
func (d *doors) Accept() (net.Conn, error) {
	select {
	case conn := <-d.accepted:
		return conn, nil
	case <-d.done:
		return nil, net.ErrClosed
	}
}

// Close is [net.Listener]'s. At a dead node callers do not see it.
func (d *doors) Close() error {
	d.once.Do(func() { close(d.done) })
	if !d.death.silent.Load() {
		d.shut()
	}
	return nil
}

// shut ends run.
func (d *doors) shut() {
	for _, l := range d.listeners {
		_ = l.Close()
	}
}

// Addr is [net.Listener]'s.
func (d *doors) Addr() net.Addr { return d.listeners[0].Addr() }

// at is the same port at one of the other hosts.
func (d *doors) at(host string) string {
	_, port, _ := net.SplitHostPort(d.Addr().String())
	return net.JoinHostPort(host, port)
}

// geography is the distance between clusters: they lie on a ring.
type geography struct {
	network  *wan.Network
	clusters int
	step     time.Duration
	links    map[[2]int]wan.Link
}

func newGeography(clusters int, step time.Duration) *geography {
	g := &geography{network: wan.NewNetwork(), clusters: clusters, step: step, links: map[[2]int]wan.Link{}}
	for a := range clusters {
		for b := range clusters {
			if d := g.oneWay(a, b); d > 0 {
				g.links[[2]int{a, b}] = wan.NewLink(uint64(a*clusters+b), wan.Params{Delay: d})
			}
		}
	}
	return g
}

// oneWay is the time that news takes between two clusters.
func (g *geography) oneWay(a, b int) time.Duration {
	steps := max(a-b, b-a)
	return g.step * time.Duration(min(steps, g.clusters-steps))
}

// link is the way from one cluster to another as its first one sees it; none within a cluster.
func (g *geography) link(a, b int) wan.Link { return g.links[[2]int{a, b}] }

func dialTCP(ctx context.Context, _, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}
