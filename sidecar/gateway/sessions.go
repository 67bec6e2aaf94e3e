package gateway

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

const (
	// maxSessions bounds the sessions that are known, whatever the limits.
	maxSessions = 20000
	// auditEvery is how often those are looked for that ended without a word.
	auditEvery = 5 * time.Second
	// settleTime is in which a session connects and the server reports it.
	settleTime = 30 * time.Second
)

// Limits bound the sessions that are opened through the gateway; 0 is no bound.
type Limits struct {
	Plays        int // at this node
	Publications int // at this node
	PerAddress   int // of either kind, from one IPv4 address or one IPv6 /64
	PerStream    int // plays of one stream at this node
}

// Why a session is not admitted: the reasons in metrics.
const (
	fullPlays        = "limit_plays"
	fullPublications = "limit_publications"
	fullAddress      = "limit_address"
	fullStream       = "limit_stream"
	fullTable        = "limit_sessions"
)

// session is one that was opened through the gateway, or is about to be.
type session struct {
	stream  adapters.StreamID
	publish bool
	addr    netip.Prefix
	// The rest is the table's.
	since  time.Time
	path   string      // as the server knows it; empty until it is open
	header http.Header // what the server is shown on the session's URL
	looked time.Time
	tells  bool // the server has answered GET on it
	seen   bool // the server has reported it
	ended  bool
}

func (s *session) kind() string {
	if s.publish {
		return kindPublish
	}
	return kindPlay
}

// sessions are those that were opened through the gateway and are not known to have ended. A server does not tell when one
// does, so that the table is kept by what can be seen: DELETE, answers of 404, the server's report of its streams and counts
// of their readers, and age.
type sessions struct {
	limits  Limits
	metrics *metrics

	mu        sync.Mutex
	all       map[*session]struct{}
	byPath    map[string]*session
	byAddress map[netip.Prefix]int
	byStream  map[adapters.StreamID]int // plays
	count     [2]int                    // plays, publications
}

func newSessions(l Limits, m *metrics) *sessions {
	return &sessions{
		limits: l, metrics: m, all: map[*session]struct{}{}, byPath: map[string]*session{},
		byAddress: map[netip.Prefix]int{}, byStream: map[adapters.StreamID]int{},
	}
}

func index(publish bool) int {
	if publish {
		return 1
	}
	return 0
}

// fullOf says whether a stream has as many plays as it may.
func (t *sessions) fullOf(id adapters.StreamID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.limits.PerStream > 0 && t.byStream[id] >= t.limits.PerStream
}

// admit counts a session that is about to be opened; or says which limit does not let it. Whoever admits ends it.
func (t *sessions) admit(want adapters.Request, from netip.Prefix) (s *session, full string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.limits
	switch over := func(limit, n int) bool { return limit > 0 && n >= limit }; {
	case from.IsValid() && over(l.PerAddress, t.byAddress[from]):
		return nil, fullAddress
	case want.Publish && over(l.Publications, t.count[1]):
		return nil, fullPublications
	case !want.Publish && over(l.Plays, t.count[0]):
		return nil, fullPlays
	case !want.Publish && over(l.PerStream, t.byStream[want.ID]):
		return nil, fullStream
	case len(t.all) >= maxSessions:
		return nil, fullTable
	}
	s = &session{stream: want.ID, publish: want.Publish, addr: from, since: time.Now()}
	t.all[s] = struct{}{}
	t.add(s, 1)
	return s, ""
}

// room says whether the table takes another session.
func (t *sessions) room() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all) < maxSessions
}

// add counts a session in or out.
func (t *sessions) add(s *session, n int) {
	t.count[index(s.publish)] += n
	t.metrics.open.WithLabelValues(s.kind()).Add(float64(n))
	if t.byAddress[s.addr] += n; t.byAddress[s.addr] == 0 {
		delete(t.byAddress, s.addr)
	}
	if s.publish {
		return
	}
	if t.byStream[s.stream] += n; t.byStream[s.stream] == 0 {
		delete(t.byStream, s.stream)
	}
}

// opened says where a session is.
func (t *sessions) opened(s *session, path string, header http.Header) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.ended {
		return
	}
	s.path, s.header, s.since = path, header, time.Now()
	t.byPath[path] = s
}

func (t *sessions) isOpen(s *session) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return s.path != ""
}

// end forgets a session.
func (t *sessions) end(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.endLocked(s)
}

func (t *sessions) endLocked(s *session) {
	if s.ended {
		return
	}
	s.ended = true
	delete(t.all, s)
	if t.byPath[s.path] == s {
		delete(t.byPath, s.path)
	}
	t.add(s, -1)
}

// endPath forgets the session that has a path; nil where none has.
func (t *sessions) endPath(path string) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byPath[path]
	if s != nil {
		t.endLocked(s)
	}
	return s
}

// streamOf is the stream of the session at a path, or of the session that the path is below; "" where it is not known.
func (t *sessions) streamOf(path string) adapters.StreamID {
	t.mu.Lock()
	defer t.mu.Unlock()
	for path != "" {
		if s := t.byPath[path]; s != nil {
			return s.stream
		}
		path = path[:max(strings.LastIndexByte(path, '/'), 0)]
	}
	return ""
}

// counts are how many plays and publications there are.
func (t *sessions) counts() (plays, publications int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count[0], t.count[1]
}

// publications are those that are open, one for each stream: that which came last.
func (t *sessions) publications() []adapters.Stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := map[adapters.StreamID]adapters.Stream{}
	for s := range t.all {
		if s.publish && s.path != "" && !last[s.stream].Since.After(s.since) {
			last[s.stream] = adapters.Stream{ID: s.stream, Session: s.path, Since: s.since, Readers: -1}
		}
	}
	return slices.SortedFunc(maps.Values(last), func(a, b adapters.Stream) int { return cmp.Compare(a.ID, b.ID) })
}

// over finds the sessions that have ended by what the server reports, and forgets them. reported is the server's report of a
// stream; inventory says that a publication which is not reported is none.
func (t *sessions) over(
	now time.Time, age time.Duration, inventory bool, reported func(adapters.StreamID) (adapters.Stream, bool),
) (over []*session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	plays := map[adapters.StreamID][]*session{}
	for s := range t.all {
		if s.path == "" {
			continue
		}
		if now.Sub(s.since) >= age {
			over = append(over, s)
			continue
		}
		if !inventory {
			continue
		}
		report, ok := reported(s.stream)
		here := ok && !report.Waiting
		settled := now.Sub(s.since) >= settleTime
		switch {
		case s.publish && here:
			s.seen = true
		case s.publish && (s.seen || settled), !s.publish && !ok && settled:
			over = append(over, s)
		case !s.publish && here && settled && report.Readers >= 0:
			plays[s.stream] = append(plays[s.stream], s)
		}
	}
	// Which of a stream's plays have ended the server does not say: those that began first are the likeliest.
	for id, open := range plays {
		report, _ := reported(id)
		if excess := len(open) - report.Readers; excess > 0 {
			slices.SortFunc(open, func(a, b *session) int { return a.since.Compare(b.since) })
			over = append(over, open[:excess]...)
		}
	}
	for _, s := range over {
		t.endLocked(s)
	}
	return over
}

// due are the publications to look at: those of servers that do not report them.
func (t *sessions) due(now time.Time, every time.Duration) (due []*session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := range t.all {
		if s.publish && s.path != "" && now.Sub(s.looked) >= every {
			s.looked = now
			due = append(due, s)
		}
	}
	return due
}

// told takes a server's answer about a session, and says whether it has ended: 404 means something only where the server has
// answered for it before.
func (t *sessions) told(s *session, status int) (ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	gone := status == http.StatusNotFound || status == http.StatusGone
	s.tells = s.tells || status/100 == 2
	if !gone || !s.tells {
		return false
	}
	t.endLocked(s)
	return true
}

// audit forgets sessions that have ended without a word, until ctx ends.
func (g *Gateway) audit(ctx context.Context) {
	for pause(ctx, auditEvery) == nil {
		changed := false
		for _, s := range g.sessions.over(time.Now(), g.o.SessionAge, g.o.Inventory && g.o.Stream != nil, g.o.Stream) {
			changed = changed || s.publish
		}
		if !g.o.Inventory {
			for _, s := range g.sessions.due(time.Now(), g.o.PollInterval) {
				status, err := g.status(ctx, s.path, s.header)
				if ctx.Err() != nil {
					return
				}
				if errors.Is(err, syscall.ECONNREFUSED) || err == nil && g.sessions.told(s, status) {
					g.sessions.end(s) // a server that does not run has no sessions
					changed = true
				}
			}
		}
		if changed {
			g.tell(nil)
		}
	}
}
