package pionsfu

import (
	"cmp"
	"crypto/rand"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// Refusals that do not depend on what the client sent.
var (
	errNotRunning = &refusal{
		http.StatusServiceUnavailable, "stopped", "Server is not running", "Try again, or another server.",
	}
	errFull = &refusal{
		http.StatusServiceUnavailable, "full", "Too many sessions", "Try again later, or another server.",
	}
	errHalfOpen = &refusal{
		http.StatusServiceUnavailable, "half_open", "Too many sessions are being set up", "Try again in a moment.",
	}
	errPublished = &refusal{
		http.StatusConflict, "published", "Stream is published already",
		"End the other publication (DELETE its session), or choose another name.",
	}
	errUnpublished = &refusal{
		http.StatusConflict, "unpublished", "Nobody publishes this stream",
		"Try again after the time in Retry-After; publish it by a POST to the same name under /whip/.",
	}
	errNoSession = &refusal{
		http.StatusNotFound, "no_session", "No such session", "It has ended; open a new one by a POST.",
	}
)

// registry knows every session and which of them publishes what. Its methods each do one thing under one lock; change is
// noticed by the channel of snapshot.
type registry struct {
	maxSessions, maxHalfOpen int

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when any of the following changes
	sessions map[string]*session
	streams  map[adapters.StreamID]*session // who publishes, connected or not, or did and may come back
	halfOpen int
	ending   map[*session]bool // removed, but still counting
	past     traffic           // of those that count no more
}

func newRegistry(maxSessions, maxHalfOpen int) *registry {
	return &registry{
		maxSessions: maxSessions, maxHalfOpen: maxHalfOpen,
		changed:  make(chan struct{}),
		sessions: make(map[string]*session), streams: make(map[adapters.StreamID]*session), ending: make(map[*session]bool),
	}
}

// reserve makes a session, which counts from now on, before anything is spent on it.
func (r *registry) reserve(stream adapters.StreamID, publish bool) (*session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(r.sessions) >= r.maxSessions:
		return nil, errFull
	case r.halfOpen >= r.maxHalfOpen:
		return nil, errHalfOpen
	}
	s := newSession(rand.Text(), stream, publish)
	if publish {
		s.publication = newPublication(s, r.touch)
		switch former := r.streams[stream]; {
		case former == nil:
			r.streams[stream] = s
		case (former.away || former.doubt.Load()) && former.publication.successor == nil:
			s.follows = former.publication
			s.follows.successor = s
		default:
			return nil, errPublished
		}
	}
	r.sessions[s.id] = s
	r.halfOpen++
	return s, nil
}

// connect counts a session as connected; it says false where the session was removed before.
func (r *registry) connect(s *session) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions[s.id] != s {
		return false
	}
	r.halfOpen--
	s.connected = true
	s.since = time.Now().UTC()
	if s.publish {
		r.beginLocked(s)
	} else {
		s.viewer.source.readers++
	}
	r.changeLocked()
	return true
}

// beginLocked makes a connected session the one that publishes, in the place of who was lost.
func (r *registry) beginLocked(s *session) {
	p := s.publication
	if s.follows != nil {
		former := s.follows.publisher
		s.follows.successor = nil
		if p != s.follows {
			r.endLocked(s.follows) // its viewers cannot go on with it
		}
		close(former.replaced)
		r.streams[s.stream] = s
	}
	p.publisher, p.over = s, false
	if !isClosed(p.live) {
		p.since = s.since
		close(p.live)
	}
}

// endLocked ends a publication, whose name is free.
func (r *registry) endLocked(p *publication) {
	delete(r.streams, p.publisher.stream)
	close(p.ended)
}

// remove forgets a session, whose name is free at once. Only the first call says true.
func (r *registry) remove(s *session) bool { return r.removeAs(s, false) }

// suspend forgets the session of a publisher that was lost; what it published waits for the next one, until expire. It says false
// where there is nothing to wait for.
func (r *registry) suspend(s *session) bool { return r.removeAs(s, true) && s.away }

// expire ends what a suspended session published, unless another goes on with it, or is about to.
func (r *registry) expire(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := s.publication; p.publisher == s && !isClosed(p.ended) {
		r.overLocked(p)
		r.changeLocked()
	}
}

// overLocked ends a publication as soon as nobody is about to go on with it.
func (r *registry) overLocked(p *publication) {
	if p.over = true; p.successor == nil {
		r.endLocked(p)
	}
}

func (r *registry) removeAs(s *session, wait bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions[s.id] != s {
		return false
	}
	delete(r.sessions, s.id)
	if s.publish {
		switch p := s.publication; {
		case s.follows != nil && !s.connected:
			s.follows.successor = nil
			if s.follows.over {
				r.endLocked(s.follows)
			}
		case p.publisher != s, isClosed(p.ended): // another goes on
		case wait && s.connected:
			s.away = true
		default:
			s.away = true
			r.overLocked(p)
		}
	}
	if !s.connected {
		r.halfOpen--
	} else {
		if !s.publish {
			s.viewer.source.readers--
		}
		r.ending[s] = true
	}
	close(s.removed)
	r.changeLocked()
	return true
}

// bury adds up what a session has carried, when it carries nothing any more.
func (r *registry) bury(s *session) {
	r.mu.Lock()
	carried := r.ending[s]
	r.mu.Unlock()
	if !carried {
		return // never connected
	}
	t := s.traffic() // takes the connection's own locks, so not under ours
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ending, s)
	r.past.add(t)
	r.changeLocked()
}

func (r *registry) session(id string) (*session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sessions[id]; s != nil {
		return s, nil
	}
	return nil, errNoSession
}

// publisher is the session that publishes a stream, connected or not.
func (r *registry) publisher(stream adapters.StreamID) (*session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.streams[stream]; s != nil {
		return s, nil
	}
	return nil, errUnpublished
}

// snapshot is every stream with a connected publisher, by name, and a channel that closes at the next change.
func (r *registry) snapshot() ([]adapters.Stream, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	streams := make([]adapters.Stream, 0, len(r.streams))
	for id, s := range r.streams {
		if s.connected {
			streams = append(streams, adapters.Stream{
				ID: id, Session: s.id, Since: s.since, Tracks: s.publication.tracks(), Readers: s.publication.readers,
				Relayed: s.relayed,
			})
		}
	}
	slices.SortFunc(streams, func(a, b adapters.Stream) int { return cmp.Compare(a.ID, b.ID) })
	return streams, r.changed
}

// readersOf is how many viewers a publication has.
func (r *registry) readersOf(p *publication) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return p.readers
}

// touch tells the watchers that something about a stream has changed.
func (r *registry) touch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changeLocked()
}

func (r *registry) changeLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}
