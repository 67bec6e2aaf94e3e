// Package discovery says where the other sidecars are. It yields addresses, nothing more: who answers there, of which
// cluster and whether it is alive, the mesh learns by asking.
package discovery

import (
	"context"
	"net/netip"
)

// Peer is an address at which a sidecar may listen for its peers. A source's words about it are hints: the handshake
// tells the truth.
type Peer struct {
	Addr    netip.AddrPort
	Cluster string // "" where the source cannot tell
	Ready   bool
}

// Source finds peers.
type Source interface {
	// Run reports the full set of peers, first as it stands and then at every change, never from two goroutines at
	// once, until ctx ends (and returns its error) or the source breaks; the caller runs it again. A peer that is
	// missing from a report is no longer announced, which does not mean that it is gone. The set may hold the caller's own address.
	Run(ctx context.Context, report func([]Peer)) error
}
