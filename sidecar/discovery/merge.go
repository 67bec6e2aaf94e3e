package discovery

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// The pauses before a source that broke is run again.
const (
	shortestPause = time.Second
	longestPause  = 30 * time.Second
)

// Merge is a Source of all that several sources know. A source that breaks is run again after a pause, and what it
// reported last stays known meanwhile. A nil logger is silent.
func Merge(logger *slog.Logger, sources ...Source) Source {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &merged{sources: sources, log: logger}
}

type merged struct {
	sources []Source
	log     *slog.Logger
}

func (m *merged) Run(ctx context.Context, report func([]Peer)) error {
	var mu sync.Mutex // also keeps reports from coming from two goroutines at once
	var last []Peer
	sets := make([][]Peer, len(m.sources))
	tell := func(i int, peers []Peer) {
		mu.Lock()
		defer mu.Unlock()
		sets[i] = peers
		union := unite(sets)
		if last == nil || !slices.Equal(union, last) {
			last = union
			report(slices.Clone(union))
		}
	}
	if len(m.sources) == 0 {
		report([]Peer{})
	}
	var tasks sync.WaitGroup
	for i, s := range m.sources {
		tasks.Go(func() { m.keep(ctx, i, s, func(peers []Peer) { tell(i, peers) }) })
	}
	<-ctx.Done()
	tasks.Wait()
	return ctx.Err()
}

// keep runs one source for as long as ctx lasts.
func (m *merged) keep(ctx context.Context, i int, s Source, report func([]Peer)) {
	pause := shortestPause
	for {
		began := time.Now()
		err := s.Run(ctx, report)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > longestPause {
			pause = shortestPause
		}
		m.log.Warn("discovery source broke, to be run again", "source", i, "error", err)
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		pause = min(2*pause, longestPause)
	}
}

// unite takes the peers of all sets, each address once: of the first cluster that a source tells, ready where one says
// so. It is never nil.
func unite(sets [][]Peer) []Peer {
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
	return slices.SortedFunc(maps.Values(byAddr), func(a, b Peer) int { return a.Addr.Compare(b.Addr) })
}
