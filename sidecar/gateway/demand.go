package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

const (
	// maxViewers bounds the sessions that are looked after.
	maxViewers = 10000
	// waitRetry is how often a stream is asked for again whose viewers wait at the server.
	waitRetry = 2 * time.Second
	// pollTimeout bounds one look at a session.
	pollTimeout = 5 * time.Second
	// countTime is in which a server that counts readers says so of a stream that has just come.
	countTime = time.Second
)

// viewer is one play as demand for its stream.
type viewer struct {
	stream adapters.StreamID
	header http.Header // what the server asks for on the session URL
	cause  trace.Span  // of its play; nil: that is not traced
	brief  bool        // it is demand only until the server counts it, whether or not that says so
	// The rest is the demand's.
	path    string // of the session, as the server knows it; empty until the play is answered
	release func() // of the relay, when it came with one
	cancel  context.CancelFunc
	ended   bool
}

// demand is the table of viewers that the gateway looks after, because the server does not say who plays.
type demand struct {
	wake chan struct{} // capacity 1: there are fresh viewers

	mu      sync.Mutex
	viewers map[*viewer]struct{}
	byPath  map[string]*viewer
	fresh   []*viewer // added and not yet taken
	closed  bool
}

func newDemand() *demand {
	return &demand{
		wake:    make(chan struct{}, 1),
		viewers: make(map[*viewer]struct{}),
		byPath:  make(map[string]*viewer),
	}
}

// add takes a viewer, and its release, into the table; false when the table is full or closed.
func (d *demand) add(v *viewer) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.viewers) >= maxViewers {
		return false
	}
	d.viewers[v] = struct{}{}
	if v.path != "" {
		d.byPath[v.path] = v
	}
	d.fresh = append(d.fresh, v)
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return true
}

// opened says where a viewer's session is, and what the server asks for there.
func (d *demand) opened(v *viewer, path string, header http.Header) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !v.ended {
		v.path, v.header = path, header
		d.byPath[path] = v
	}
}

// take yields the viewers that were added since; the caller keeps each.
func (d *demand) take() []*viewer {
	d.mu.Lock()
	defer d.mu.Unlock()
	fresh := d.fresh
	d.fresh = nil
	return fresh
}

// start binds a viewer to what ends its keeping; false when it has ended already.
func (d *demand) start(v *viewer, cancel context.CancelFunc) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	v.cancel = cancel
	return !v.ended
}

func (d *demand) sessionOf(v *viewer) (path string, header http.Header) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return v.path, v.header
}

// end takes a viewer out of the table and stops its keeping.
func (d *demand) end(v *viewer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endLocked(v)
}

func (d *demand) endLocked(v *viewer) {
	if v.ended {
		return
	}
	v.ended = true
	delete(d.viewers, v)
	if d.byPath[v.path] == v {
		delete(d.byPath, v.path)
	}
	if v.cancel != nil {
		v.cancel()
	}
}

// endPath ends the viewer whose session has a path.
func (d *demand) endPath(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.byPath[path]; v != nil {
		d.endLocked(v)
	}
}

// close refuses further viewers and releases those that nobody keeps.
func (d *demand) close() {
	d.mu.Lock()
	d.closed = true
	fresh := d.fresh
	d.fresh = nil
	for _, v := range fresh {
		d.endLocked(v)
	}
	d.mu.Unlock()
	for _, v := range fresh {
		if v.release != nil {
			v.release()
		}
	}
}

// sessionAnswered forgets a session that is over by the server's own word.
func (g *Gateway) sessionAnswered(method, path string, status int) {
	gone := status == http.StatusNotFound || status == http.StatusGone
	deleted := method == http.MethodDelete && status/100 == 2
	if !deleted && (!gone || method != http.MethodDelete && method != http.MethodPatch) {
		return
	}
	g.demand.endPath(path)
	if s := g.sessions.endPath(path); s != nil && s.publish {
		g.look()
		g.tell(s)
	}
}

// keep holds a viewer's relay until the session is over: deleted, unknown to the server, too old, or long enough there to
// be counted by the server itself.
func (g *Gateway) keep(ctx context.Context, v *viewer) {
	release := v.release
	defer func() {
		if release != nil {
			release()
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !g.demand.start(v, cancel) {
		return
	}
	defer g.demand.end(v)
	g.metrics.sessions.Inc()
	defer g.metrics.sessions.Dec()

	began := time.Now()
	var (
		looked time.Time
		tells  bool // the server answers GET on a living session, so that its 404 means something
	)
	for first := true; ; first = false {
		// Again each time, because what held the stream here may have ended: a relay, or a publisher at this node.
		counted := v.brief || g.counts(v.stream)
		if !counted && (release == nil || !first) {
			asking := ctx
			if first {
				asking = tracing.Within(ctx, v.cause)
			}
			if again := g.acquire(asking, v.stream); again != nil {
				if release != nil {
					release()
				}
				release = again
			}
		}
		if counted {
			if time.Since(began) >= g.o.CountTime {
				return
			}
			if pause(ctx, g.o.CountTime-time.Since(began)) != nil {
				return
			}
			continue
		}
		if path, header := g.demand.sessionOf(v); path != "" && (looked.IsZero() || time.Since(looked) >= g.o.PollInterval) {
			status, err := g.status(ctx, path, header)
			switch {
			case err != nil: // the next look may tell
			case looked.IsZero():
				tells = status/100 == 2
			case tells && (status == http.StatusNotFound || status == http.StatusGone):
				g.sessions.endPath(path)
				return
			}
			looked = time.Now()
		}
		wait := g.o.PollInterval
		if first && g.o.Readers != nil {
			wait = min(wait, countTime)
		}
		if release == nil && g.o.Adapter.Traits().AcceptsAndWaits {
			wait = min(wait, waitRetry)
		}
		if err := pause(ctx, min(wait, g.o.SessionAge)); err != nil || time.Since(began) >= g.o.SessionAge {
			return
		}
	}
}

// acquire has a stream brought here, or held here; nil where that cannot be now.
func (g *Gateway) acquire(ctx context.Context, id adapters.StreamID) (release func()) {
	ctx, cancel := context.WithTimeout(ctx, g.o.HoldTimeout)
	defer cancel()
	release, err := g.o.Relays.Acquire(ctx, id)
	_, unfit := errors.AsType[*adapters.CodecError](err)
	switch {
	case err == nil:
		return release
	case unfit: // the relays say so, once
	case !errors.Is(err, adapters.ErrNoStream) && !errors.Is(err, context.Canceled):
		g.log.Warn("stream did not come for its viewers", "stream", id, "error", err)
	}
	return nil
}

// status asks the server about a session (RFC 9725 section 4.1: GET is answered without content while it lives).
func (g *Gateway) status(ctx context.Context, path string, header http.Header) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	u := &url.URL{Scheme: g.o.Target.Scheme, Host: g.o.Target.Host}
	setPath(u, path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, err
	}
	req.Header = header.Clone()
	resp, err := g.o.Transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	discard(resp)
	return resp.StatusCode, nil
}
