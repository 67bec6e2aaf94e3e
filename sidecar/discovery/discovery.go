// Package discovery says where the other sidecars are. It yields addresses, nothing more: who answers there, of which
// cluster and whether it is alive, the mesh learns by asking.
package discovery

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// MaxPeers bounds how many peers one source reports: a mesh in which all speak with all ends long before.
const MaxPeers = 1000

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

// Troubled is a Source that goes on by itself when it cannot learn anything new.
type Troubled interface {
	// Trouble is what keeps the source from knowing better, nil: nothing, and since when that is so; the zero time: from
	// the start. It may be asked at any time.
	Trouble() (since time.Time, err error)
}

// Condition is a source's state, for those that are Troubled. Its zero value is a source without trouble.
type Condition struct {
	mu    sync.Mutex
	since time.Time
	err   error
}

// Set takes the trouble that there is now, nil: none.
func (c *Condition) Set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if (err == nil) != (c.err == nil) {
		c.since = time.Now()
	}
	c.err = err
}

// Trouble is as Troubled says.
func (c *Condition) Trouble() (since time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.since, c.err
}

// Unite takes the peers of all sets, each address once: of the first cluster that a set tells, ready where one says so.
// The union is sorted by address, and never nil.
func Unite(sets ...[]Peer) []Peer {
	byAddr := map[netip.AddrPort]Peer{}
	for _, set := range sets {
		for _, p := range set {
			p.Addr = netip.AddrPortFrom(p.Addr.Addr().Unmap(), p.Addr.Port())
			if known, ok := byAddr[p.Addr]; ok {
				p.Cluster = cmp.Or(known.Cluster, p.Cluster)
				p.Ready = p.Ready || known.Ready
			}
			byAddr[p.Addr] = p
		}
	}
	union := slices.AppendSeq(make([]Peer, 0, len(byAddr)), maps.Values(byAddr))
	slices.SortFunc(union, func(a, b Peer) int { return a.Addr.Compare(b.Addr) })
	return union
}

// OnChange passes on the sets that differ from the one before. The set belongs to whoever gets it.
func OnChange(report func([]Peer)) func([]Peer) {
	var last []Peer
	return func(peers []Peer) {
		if last == nil || !slices.Equal(peers, last) {
			last = append([]Peer{}, peers...)
			report(slices.Clone(last))
		}
	}
}
