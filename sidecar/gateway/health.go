package gateway

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// HealthPath says to anybody, without a token and without a redirect, whether viewers had better be sent here: 200, or a 503
// that says why not. It is for the health checks of DNS services and load balancers.
const HealthPath = wellKnown + "health"

// wellKnown begins the paths below /.well-known that are the gateway's own.
const wellKnown = "/.well-known/sidestream/"

const (
	// healthTimeout bounds how long the media server is waited for; checks of DNS services wait four seconds or more.
	healthTimeout = 2 * time.Second
	// healthFresh is how long what the media server said holds, so that strangers cannot have it asked at will.
	healthFresh = time.Second
)

// health is what the media server said last.
type health struct {
	mu  sync.Mutex
	at  time.Time
	err error
}

// fresh yields an answer that is at most healthFresh old. Callers that come meanwhile wait for the one that asks.
func (h *health) fresh(ctx context.Context, ask func(context.Context) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.at.IsZero() && time.Since(h.at) < healthFresh {
		return h.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthTimeout) // others hear the answer too
	defer cancel()
	h.err = ask(ctx)
	h.at = time.Now()
	return h.err
}

// wellKnown answers below the gateway's own part of /.well-known.
func (g *Gateway) wellKnown(w *recorder, r *http.Request) {
	w.kind = kindHealth
	if r.URL.Path != HealthPath {
		g.refuse(w, r, http.StatusNotFound, "No such page", "The only page here is "+HealthPath+".")
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		g.refuse(w, r, http.StatusMethodNotAllowed, "Only to be read", "Ask by GET or HEAD.")
		return
	}
	var detail string
	switch {
	case g.o.Draining != nil && g.o.Draining():
		detail = "This node is about to leave."
	case g.full():
		detail = "There is no room for another viewer."
	case g.health.fresh(r.Context(), g.Ready) != nil:
		detail = "The media server does not answer." // why is for the log and /readyz: strangers read this
	default:
		w.own = true
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, "ok\n") // an error here is a caller that has gone
		return
	}
	g.refuse(w, r, http.StatusServiceUnavailable, "Not here", detail)
}

// full says whether a viewer who comes now is refused: there is no room here nor, where sessions are placed, at any other node
// of the cluster. Publications are not looked at: the viewers of a cluster that takes no more of them stay.
func (g *Gateway) full() bool {
	if g.Load().room(false) && g.sessions.room() {
		return false
	}
	if g.o.Placement == "" || g.o.Placement == PlaceHere || g.o.Loads == nil {
		return true
	}
	_, ok := better(Load{}, true, g.placed.add(g.o.Loads()), false)
	return !ok
}

// Bound is the setting by which another viewer of a stream is turned away now, whoever it is; "" where none is. Where sessions are
// placed, one that has room at another node of the cluster turns nobody away.
func (g *Gateway) Bound(id adapters.StreamID) string {
	elsewhere := func() bool {
		if g.o.Placement == "" || g.o.Placement == PlaceHere || g.o.Loads == nil {
			return false
		}
		_, ok := better(Load{}, true, g.placed.add(g.o.Loads()), false)
		return ok
	}
	switch {
	case g.sessions.fullOf(id) && !elsewhere():
		return "SIDESTREAM_GATEWAY_MAX_PER_STREAM"
	case g.full():
		return "SIDESTREAM_GATEWAY_MAX_PLAYS"
	}
	return ""
}

// ownWellKnown says whether a path, unescaped, is of the gateway's part of /.well-known.
func ownWellKnown(path string) bool { return strings.HasPrefix(path+"/", wellKnown) }
