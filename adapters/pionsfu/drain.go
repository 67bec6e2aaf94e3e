package pionsfu

import (
	"context"
	"slices"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// markRedirected is in the query of clients that another server has sent here: two that are full do not send them to and fro.
const markRedirected = "redirected"

// SetDraining says whether the server is about to leave. Viewers that listen to events are told to reconnect, at the overflow URL
// where there is one; new sessions are sent there. The server serves on.
func (s *Server) SetDraining(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch closed := isClosed(s.drain); {
	case on && !closed:
		close(s.drain)
	case !on && closed:
		s.drain = make(chan struct{})
	}
}

// Drain tells the viewers that the server is about to leave, and returns when none is left of those who can hear it, or ctx ends.
func (s *Server) Drain(ctx context.Context) {
	s.SetDraining(true)
	for {
		left, changed := s.registry.movable()
		if left == 0 {
			return
		}
		select {
		case <-changed:
		case <-s.stopped:
			return
		case <-ctx.Done():
			s.logger.Info("viewers stayed to the end", "viewers", left)
			return
		}
	}
}

// leaving closes when the server is about to leave.
func (s *Server) leaving() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drain
}

func (s *Server) drained() bool { return isClosed(s.leaving()) }

// reconnection is the data of the event that sends a viewer elsewhere; without a URL to where it came from.
type reconnection struct {
	URL string `json:"url,omitempty"`
}

func (s *Server) elsewhere(stream adapters.StreamID) reconnection {
	if s.overflow == nil {
		return reconnection{}
	}
	return reconnection{s.overflow.JoinPath(pathPlay, string(stream)).String()}
}

// watching notes a stream of events while it lasts; the caller calls done when it has ended.
func (s *session) watching(wanted []string, r *registry) (done func()) {
	if !slices.Contains(wanted, whip.EventReconnect) {
		return func() {}
	}
	count := func(by int) {
		s.mu.Lock()
		s.movable += by
		s.mu.Unlock()
		r.touch()
	}
	count(1)
	return func() { count(-1) }
}

// movable is how many sessions hear that they are to go elsewhere.
func (r *registry) movable() (n int, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		s.mu.Lock()
		if s.movable > 0 {
			n++
		}
		s.mu.Unlock()
	}
	return n, r.changed
}
