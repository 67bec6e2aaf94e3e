package discovery

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The pauses before a source that broke is run again.
const (
	shortestPause = time.Second
	longestPause  = 30 * time.Second
)

// Named is a source with the name that people see in logs, metrics and status.
type Named struct {
	Name string // unique
	Source
}

// Status is what one source is at.
type Status struct {
	Source string `json:"source"`
	Peers  int    `json:"peers"` // as it reported last
	// Since is when it began to be well, or to be in trouble; the zero time before it runs.
	Since time.Time `json:"since,omitzero"`
	// Error is what keeps it from knowing better; "" where all is well.
	Error string `json:"error,omitempty"`
}

// MergeOptions may all be left out.
type MergeOptions struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Merged is a Source of all that several sources know. A source that breaks is run again after a pause, and what it
// reported last stays known meanwhile.
type Merged struct {
	log     *slog.Logger
	sources []*source
}

// source is one of the sources and its state.
type source struct {
	Named

	mu    sync.Mutex
	peers []Peer // nil: it has not reported yet
	err   error  // why it is not running
	since time.Time
}

// Merge makes one source of several. It is to be run once at a time.
func Merge(o MergeOptions, sources ...Named) *Merged {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Merged{log: o.Logger}
	metrics := promauto.With(o.Registerer)
	for _, named := range sources {
		s := &source{Named: named}
		m.sources = append(m.sources, s)
		label := prometheus.Labels{"source": named.Name}
		metrics.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sidestream_discovery_up", Help: "Whether a source of peers can tell them now (1), or is in trouble (0).",
			ConstLabels: label,
		}, func() float64 {
			if s.status().Error != "" {
				return 0
			}
			return 1
		})
		metrics.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sidestream_discovery_peers", Help: "Addresses of peers that a source reported last, this node's own among them.",
			ConstLabels: label,
		}, func() float64 { return float64(s.status().Peers) })
	}
	return m
}

// Status tells the state of all sources, in their order. It is never nil.
func (m *Merged) Status() []Status {
	all := make([]Status, len(m.sources))
	for i, s := range m.sources {
		all[i] = s.status()
	}
	return all
}

// Run is as Source says, and returns when ctx ends.
func (m *Merged) Run(ctx context.Context, report func([]Peer)) error {
	report = OnChange(report)
	if len(m.sources) == 0 {
		report([]Peer{})
	}
	var mu sync.Mutex // keeps reports from coming from two goroutines at once
	tell := func() {
		mu.Lock()
		defer mu.Unlock()
		sets := make([][]Peer, len(m.sources))
		for i, s := range m.sources {
			sets[i] = s.known()
		}
		report(Unite(sets...))
	}
	var tasks sync.WaitGroup
	for _, s := range m.sources {
		s.note(nil)
		tasks.Go(func() {
			m.keep(ctx, s, func(peers []Peer) {
				s.take(peers)
				tell()
			})
		})
	}
	<-ctx.Done()
	tasks.Wait()
	return ctx.Err()
}

// keep runs one source for as long as ctx lasts.
func (m *Merged) keep(ctx context.Context, s *source, report func([]Peer)) {
	pause := shortestPause
	for {
		began := time.Now()
		err := s.Run(ctx, report)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it ended")
		}
		s.note(err)
		if time.Since(began) > longestPause {
			pause = shortestPause
		}
		m.log.Warn("discovery source broke, to be run again", "source", s.Name, "error", err)
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

// take notes what the source reports.
func (s *source) take(peers []Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers == nil || s.err != nil {
		s.since = time.Now()
	}
	s.peers, s.err = append([]Peer{}, peers...), nil
}

// note notes why the source does not run; nil: it is started.
func (s *source) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil || s.since.IsZero() {
		s.since = time.Now()
	}
	s.err = err
}

// known is what the source reported last. It is not to be changed.
func (s *source) known() []Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers
}

func (s *source) status() Status {
	s.mu.Lock()
	status := Status{Source: s.Name, Peers: len(s.peers), Since: s.since}
	err, answered := s.err, s.peers != nil
	s.mu.Unlock()
	if troubled, ok := s.Source.(Troubled); ok && err == nil {
		var since time.Time
		if since, err = troubled.Trouble(); since.After(status.Since) {
			status.Since = since
		}
	}
	switch {
	case err != nil:
		status.Error = err.Error()
	case !answered:
		status.Error = "it has not reported yet"
	}
	return status
}
