package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/discovery"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
)

// The loopback addresses at which nodes of the bench are known to each other, and to the sidecars that are measured.
const (
	hostPeers    = "127.0.0.1"
	hostBuiltIn  = "127.0.0.2"
	hostExternal = "127.0.0.3"
)

// publisher takes the full set of streams at a node's server: the node's catalogue, or the media server of a sidecar.
type publisher interface {
	SetLocal(streams []adapters.Stream) error
}

// place is where streams are published.
type place struct {
	node    catalogue.NodeID
	cluster int
	to      publisher

	mu      sync.Mutex
	streams []adapters.Stream
	session int
}

// publish begins publications.
func (p *place) publish(ids ...adapters.StreamID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		p.session++
		p.streams = append(p.streams, adapters.Stream{
			ID: id, Session: fmt.Sprintf("%s-%d", p.node, p.session), Since: time.Now(),
			Tracks: []adapters.Track{{Kind: "video", MIME: "video/H264"}, {Kind: "audio", MIME: "audio/opus"}},
		})
	}
	return p.to.SetLocal(p.streams)
}

// unpublish ends a publication.
func (p *place) unpublish(id adapters.StreamID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams = slices.DeleteFunc(slices.Clone(p.streams), func(s adapters.Stream) bool { return s.ID == id })
	return p.to.SetLocal(p.streams)
}

// peer is a node of the bench: a mesh and a catalogue, without a media server.
type peer struct {
	place
	known   *catalogue.Catalogue
	doors   *doors
	watcher bool // connected with everyone
	mesh    *mesh.Mesh
	death   death
	port    *mesh.Port
	leave   chan struct{} // closed when the node is to go
	left    bool
}

// randomUID looks like a pod's.
func randomUID(r *rand.Rand) catalogue.NodeID {
	return catalogue.NodeID(fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x",
		r.Uint32(), r.Uint32N(1<<16), r.Uint32N(1<<12), 0x8000+r.Uint32N(1<<14), r.Uint64N(1<<48)))
}

func clusterName(i int) string { return fmt.Sprintf("cluster-%d", i+1) }

// world is a mesh of peers, and the sidecars that are measured in it.
type world struct {
	o            options
	certificates string // their directory
	earth        *geography
	security     *mesh.Security
	subjects     []*subject
	peers        []*peer
	watchers     []*peer
	board        *board

	byAddress map[string]int // cluster, by address as peers know it
}

// shut closes the ports of a world that never runs.
func (w *world) shut() {
	for _, p := range w.peers {
		p.doors.shut()
	}
}

// newPeer opens the port of a node.
func (w *world) newPeer(id catalogue.NodeID, cluster int, watcher bool) (*peer, error) {
	p := &peer{watcher: watcher, leave: make(chan struct{})}
	p.known = catalogue.New(catalogue.Node{ID: id, Incarnation: 1, Cluster: clusterName(cluster)})
	p.node, p.cluster, p.to = id, cluster, p.known
	if err := p.known.SetLocal(nil); err != nil { // what is there at the start gets no epoch
		return nil, err
	}
	var err error
	p.doors, err = openDoors([]string{hostPeers, hostBuiltIn, hostExternal}, &p.death, func(c net.Conn) net.Conn { return w.accepted(p, c) })
	if err != nil {
		return nil, err
	}
	w.byAddress[p.doors.at(hostPeers)] = cluster
	return p, nil
}

// accepted sees a connection to a peer. Between two of the bench, the one that dials has put the distance.
func (w *world) accepted(p *peer, conn net.Conn) net.Conn {
	host, _, _ := net.SplitHostPort(conn.LocalAddr().String())
	for _, s := range w.subjects {
		if s.host == host {
			return &wire{
				Conn: w.earth.network.Conn(conn, w.earth.link(p.cluster, s.place.cluster)), death: &p.death, subject: s,
			}
		}
	}
	return &wire{Conn: conn, death: &p.death}
}

// dial is a peer's way to another one, or to a sidecar.
func (w *world) dial(p *peer) mesh.DialFunc {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		cluster := w.byAddress[addr]
		var to *subject
		for _, s := range w.subjects {
			if s.address == addr {
				cluster, to = s.place.cluster, s
			}
		}
		over := w.earth.network.Dialer(dialTCP, func(string) wan.Link { return w.earth.link(p.cluster, cluster) })
		conn, err := over(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return &wire{Conn: conn, death: &p.death, subject: to}, nil
	}
}

// open makes a peer's mesh, before its run.
func (w *world) open(p *peer) {
	p.port = mesh.NewPort(mesh.PortOptions{Listener: p.doors, Security: w.security})
	p.mesh = mesh.New(mesh.Options{
		Catalogue: p.known, Security: w.security, Listener: p.port.GRPC(), Address: p.doors.Addr().String(),
		Version: "bench", Dial: w.dial(p),
	})
}

// run has a peer live until it leaves or ctx ends; a dead one's machine stays as it is until then.
func (w *world) run(ctx context.Context, p *peer) {
	living, cancel := context.WithCancel(ctx)
	defer cancel()
	var entrance, parts sync.WaitGroup
	entrance.Go(p.doors.run)
	parts.Go(func() { _ = p.port.Run(living) })
	parts.Go(func() { _ = p.mesh.Run(living) })
	if p.watcher {
		parts.Go(func() { w.board.watch(living, p) })
	}
	select {
	case <-ctx.Done():
	case <-p.leave:
	}
	cancel()
	parts.Wait()
	if p.death.silent.Load() {
		<-ctx.Done()
	}
	p.doors.shut()
	entrance.Wait()
	p.death.bury()
}

// neighbours are the addresses that a peer is told: of a pair, the smaller id dials. A sidecar is told everyone's, so that
// both sides dial, as they do where both are discovered.
func (w *world) neighbours(p *peer) []discovery.Peer {
	var found []discovery.Peer
	tell := func(address string) {
		found = append(found, discovery.Peer{Addr: netip.MustParseAddrPort(address), Ready: true})
	}
	for _, other := range w.peers {
		if p.node < other.node && (p.watcher || other.watcher) {
			tell(other.doors.at(hostPeers))
		}
	}
	for _, s := range w.subjects {
		tell(s.address)
	}
	return found
}
