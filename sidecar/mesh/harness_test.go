package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ knowledge = (*catalogue.Catalogue)(nil)

// book is a small catalogue that remembers what it was told.
type book struct {
	mu     sync.Mutex
	self   catalogue.Node
	clock  uint64
	own    []catalogue.Hold
	peers  map[catalogue.NodeID]page
	forgot []catalogue.NodeID

	conditions map[catalogue.NodeID]catalogue.Condition
	told       int // SetPeer calls
	changed    chan struct{}
}

type page struct {
	node  catalogue.Node
	holds map[adapters.StreamID]catalogue.Hold
}

func newBook(self catalogue.Node) *book {
	return &book{
		self: self, peers: map[catalogue.NodeID]page{}, conditions: map[catalogue.NodeID]catalogue.Condition{},
		changed: make(chan struct{}),
	}
}

func (b *book) touch() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *book) Self() catalogue.Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.self
}

// outgrow is an Options.Outgrow.
func (b *book) outgrow(incarnation uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.self.Incarnation = max(b.self.Incarnation, incarnation+1)
}

func (b *book) SetPeer(n catalogue.Node, holds []catalogue.Hold) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.peers[n.ID].node.Incarnation > n.Incarnation {
		return catalogue.ErrStale
	}
	p := page{node: n, holds: map[adapters.StreamID]catalogue.Hold{}}
	for _, h := range holds {
		p.holds[h.Stream] = h
		b.clock = max(b.clock, h.Epoch)
	}
	b.peers[n.ID] = p
	b.told++
	b.touch()
	return nil
}

func (b *book) SetCondition(id catalogue.NodeID, c catalogue.Condition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conditions[id] = c
	b.touch()
}

func (b *book) Forget(id catalogue.NodeID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forgot = append(b.forgot, id)
	delete(b.peers, id)
	b.touch()
}

func (b *book) Observe(clock uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if clock > b.clock+catalogue.MaxJump {
		return catalogue.ErrJump
	}
	b.clock = max(b.clock, clock)
	return nil
}

func (b *book) Clock() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clock
}

func (b *book) Announcement(cluster string) []catalogue.Hold {
	b.mu.Lock()
	defer b.mu.Unlock()
	var holds []catalogue.Hold
	for _, h := range b.own {
		if cluster == b.self.Cluster || len(h.Path) == 1 {
			holds = append(holds, h)
		}
	}
	return holds
}

func (b *book) Snapshot() (*catalogue.State, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return nil, b.changed
}

// publish makes the node an origin of exactly these streams.
func (b *book) publish(epoch uint64, streams ...adapters.StreamID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.own = nil
	for _, s := range streams {
		b.own = append(b.own, catalogue.Hold{
			Stream: s, Epoch: epoch, Path: []catalogue.NodeID{b.self.ID},
			Tracks: []adapters.Track{{Kind: "video", MIME: "video/H264"}},
		})
	}
	b.clock = max(b.clock, epoch)
	b.touch()
}

// holds is what a peer is believed to hold, by name and epoch; nil when it is not known.
func (b *book) holds(id catalogue.NodeID) map[adapters.StreamID]uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.peers[id]
	if !ok {
		return nil
	}
	epochs := map[adapters.StreamID]uint64{}
	for s, h := range p.holds {
		epochs[s] = h.Epoch
	}
	return epochs
}

func (b *book) forgotten() []catalogue.NodeID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.forgot)
}

// until waits for something that the book is told.
func (b *book) until(t *testing.T, what string, is func() bool) {
	t.Helper()
	bound := time.After(30 * time.Second)
	for {
		b.mu.Lock()
		changed := b.changed
		b.mu.Unlock()
		if is() {
			return
		}
		select {
		case <-changed:
		case <-bound:
			t.Fatalf("%s never hears that %s", b.self.ID, what)
		}
	}
}

func (b *book) hears(t *testing.T, id catalogue.NodeID, epoch uint64, streams ...adapters.StreamID) {
	t.Helper()
	want := map[adapters.StreamID]uint64{}
	for _, s := range streams {
		want[s] = epoch
	}
	b.until(t, fmt.Sprintf("%s holds %v", id, streams), func() bool {
		got := b.holds(id)
		return got != nil && maps.Equal(got, want)
	})
}

// node is a mesh with its port, running.
type node struct {
	*Mesh
	book     *book
	addr     string
	security *Security
	registry *prometheus.Registry
	stop     func() error // as SIGTERM does; returns Run's error
}

// config is how a test's node differs from the usual one.
type config struct {
	id          catalogue.NodeID
	incarnation uint64 // 0: 1
	cluster     string // "": "c-" and the id
	handler     Handler
	security    *Security // nil: plaintext
	listener    net.Listener
	address     string // "": the listener's
	dial        DialFunc
	http        http.Handler
	dies        bool // before its context ends
	options     func(*Options)
}

func start(t *testing.T, c config) *node {
	t.Helper()
	if c.incarnation == 0 {
		c.incarnation = 1
	}
	if c.cluster == "" {
		c.cluster = "c-" + string(c.id)
	}
	if c.security == nil {
		c.security = Plaintext()
	}
	if c.address == "" {
		c.address = c.listener.Addr().String()
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", c.id)
	registry := prometheus.NewRegistry()
	port := NewPort(PortOptions{Listener: c.listener, Security: c.security, Registerer: registry, Logger: log})
	b := newBook(catalogue.Node{ID: c.id, Incarnation: c.incarnation, Cluster: c.cluster})
	o := Options{
		Catalogue: b, Security: c.security, Listener: port.GRPC(), Address: c.address, Handler: c.handler,
		Namespace: c.security.self.namespace, Version: "test", Features: []string{"a-feature-of-the-future"}, Dial: c.dial, Registerer: registry, Logger: log,
		Outgrow: b.outgrow,
	}
	if c.options != nil {
		c.options(&o)
	}
	m := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = port.Run(ctx) })
	if c.http != nil {
		server := &http.Server{Handler: c.http, ReadHeaderTimeout: time.Second}
		tasks.Go(func() { _ = server.Serve(port.HTTP()) })
		context.AfterFunc(ctx, func() { _ = server.Close() })
	}
	ran := make(chan error, 1)
	tasks.Go(func() { ran <- m.Run(ctx) })
	n := &node{Mesh: m, book: b, addr: c.address, security: c.security, registry: registry}
	n.stop = sync.OnceValue(func() error {
		cancel()
		tasks.Wait()
		return <-ran
	})
	t.Cleanup(func() {
		if err := n.stop(); !errors.Is(err, context.Canceled) && !c.dies {
			t.Errorf("%s: Run returned %v", c.id, err)
		}
	})
	return n
}

// at is what discovery says of these addresses.
func at(addrs ...string) []discovery.Peer {
	var peers []discovery.Peer
	for _, a := range addrs {
		peers = append(peers, discovery.Peer{Addr: netip.MustParseAddrPort(a), Ready: true})
	}
	return peers
}

// status is what a node's status says of a peer.
func (n *node) status(id catalogue.NodeID) PeerStatus {
	for _, s := range n.Peers() {
		if s.ID == id {
			return s
		}
	}
	return PeerStatus{}
}

// links counts a node's links to a peer.
func (n *node) links(id catalogue.NodeID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.peers[id]; p != nil {
		return len(p.links)
	}
	return 0
}

// counted is the value of a counter, summed over those of its series that have a label of that value.
func (n *node) counted(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := n.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, metric := range f.GetMetric() {
			for _, l := range metric.GetLabel() {
				if label == "" || l.GetValue() == label {
					sum += metric.GetCounter().GetValue()
					break
				}
			}
			if len(metric.GetLabel()) == 0 {
				sum += metric.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// gauge is the value of a gauge, of the series with this label where there are several.
func (n *node) gauge(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := n.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			if f.GetName() == name && (label == "" || metric.GetLabel()[0].GetValue() == label) {
				return metric.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s of %s", name, label)
	return 0
}

// answers is a Handler made of two functions.
type answers struct {
	claim func(from catalogue.NodeID, stream adapters.StreamID, epoch uint64) Claim
	grant func(child catalogue.NodeID, stream adapters.StreamID) (Grant, error)
}

func (a answers) Claim(from catalogue.NodeID, stream adapters.StreamID, epoch uint64) Claim {
	return a.claim(from, stream, epoch)
}

func (a answers) Grant(child catalogue.NodeID, stream adapters.StreamID) (Grant, error) {
	return a.grant(child, stream)
}
