package gateway

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// Placement says what becomes of a new session that another node of the cluster had better have.
type Placement string

// It stays here; its offer is forwarded to that node; or its client is sent there.
const (
	PlaceHere     Placement = "off"
	PlaceForward  Placement = "forward"
	PlaceRedirect Placement = "redirect"
)

// fullHeader says in a 503 that the node is at a limit, and which.
const fullHeader = "Sidestream-Full"

const (
	// placeTries bounds how many nodes are asked for one session.
	placeTries = 3
	// By how many sessions, and by what part, this node must have more than another for a session to move that it has room for.
	placeMargin = 4
	placePart   = 10
)

// Load is what a node has to do, and may.
type Load struct {
	Plays, Publications       int
	MaxPlays, MaxPublications int      // 0: no bound
	URL                       *url.URL // where viewers reach this very node; nil: they do not
}

// NodeLoad is another node's load.
type NodeLoad struct {
	Node string
	Load
	At time.Time // when that was so
}

// room says whether a node with this load takes another session.
func (l Load) room(publish bool) bool {
	if publish {
		return l.MaxPublications == 0 || l.Publications < l.MaxPublications
	}
	return l.MaxPlays == 0 || l.Plays < l.MaxPlays
}

func (l Load) sessions() int { return l.Plays + l.Publications }

// better is the node that had better have a new session than the one with the load self: the one with the fewest sessions
// that has room. Where self has room too, only one that has clearly fewer.
func better(self Load, full bool, others []NodeLoad, publish bool) (NodeLoad, bool) {
	var best NodeLoad
	found := false
	for _, o := range others {
		if o.room(publish) && (!found || o.sessions() < best.sessions() || o.sessions() == best.sessions() && o.Node < best.Node) {
			best, found = o, true
		}
	}
	if !found || !full && self.sessions() <= best.sessions()+max(placeMargin, best.sessions()/placePart) {
		return NodeLoad{}, false
	}
	return best, true
}

// placed counts what was placed at each node since it told its load.
type placed struct {
	mu sync.Mutex
	at map[string]sent
}

type sent struct {
	load time.Time // of the load to which it adds
	n    [2]int
}

// add corrects the loads by what was sent since.
func (p *placed) add(loads []NodeLoad) []NodeLoad {
	p.mu.Lock()
	defer p.mu.Unlock()
	loads = slices.Clone(loads)
	for i, l := range loads {
		if s := p.at[l.Node]; s.load.Equal(l.At) {
			loads[i].Plays += s.n[0]
			loads[i].Publications += s.n[1]
		}
	}
	return loads
}

func (p *placed) sent(l NodeLoad, publish bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.at = map[string]sent{}
	}
	s := p.at[l.Node]
	if !s.load.Equal(l.At) {
		s = sent{load: l.At}
	}
	s.n[index(publish)]++
	p.at[l.Node] = s
	for node, other := range p.at {
		if l.At.Sub(other.load) > time.Hour { // it is gone
			delete(p.at, node)
		}
	}
}

// Load is what came through this gateway and is not known to have ended, or what the server counts, if that is more.
func (g *Gateway) Load() Load {
	l := Load{MaxPlays: g.o.Limits.Plays, MaxPublications: g.o.Limits.Publications}
	l.Plays, l.Publications = g.sessions.counts()
	if g.o.Playing != nil {
		l.Plays = max(l.Plays, g.o.Playing())
	}
	return l
}

// place has a session opened at another node, where one had better have it; false where it is for this one. full is why
// this node cannot have it, "" where it can.
func (g *Gateway) place(w *recorder, r *http.Request, want adapters.Request, full string) bool {
	if g.o.Placement == "" || g.o.Placement == PlaceHere || g.o.Loads == nil || full == fullAddress {
		return false
	}
	away := full != "" || g.o.Draining != nil && g.o.Draining()
	if !away && !want.Publish && g.has(want.ID) {
		return false // who watches the same had better do so at one node
	}
	others := g.placed.add(g.o.Loads())
	if g.o.Placement == PlaceRedirect {
		return g.redirect(w, r, want, others, away)
	}
	for range placeTries {
		to, ok := better(g.Load(), away, others, want.Publish)
		if !ok {
			return false
		}
		others = slices.DeleteFunc(others, func(o NodeLoad) bool { return o.Node == to.Node })
		base, via, known := g.forward(to.Node)
		if !known {
			continue
		}
		if g.placeAt(w, r, want, to, base, via) {
			return true
		}
	}
	return false
}

// has says whether the server has a stream.
func (g *Gateway) has(id adapters.StreamID) bool {
	if g.o.Stream == nil {
		return false
	}
	s, ok := g.o.Stream(id)
	return ok && !s.Waiting
}

// redirect sends the client to the node that should have the session (RFC 9725, section 4.5: by 307 only). Its address names
// the node, so that it is right at any other gateway, too.
func (g *Gateway) redirect(w *recorder, r *http.Request, want adapters.Request, others []NodeLoad, away bool) bool {
	to, ok := better(g.Load(), away, others, want.Publish)
	if !ok {
		return false
	}
	location, ok := formatSession(to.Node, r.URL)
	if !ok {
		return false
	}
	if to.URL != nil {
		location = strings.TrimRight(to.URL.String(), "/") + location
	} else {
		location = g.absolute(location)
	}
	g.placed.sent(to, want.Publish)
	g.metrics.placed.WithLabelValues("redirected").Inc()
	w.own = true
	w.Header().Set("Location", location)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusTemporaryRedirect)
	return true
}

// errElsewhere says that a node did not take a session that was to be placed there.
var errElsewhere = errors.New("node has no room")

// placeAt has a node open a session; false where it cannot, and nothing was answered.
func (g *Gateway) placeAt(
	w *recorder, r *http.Request, want adapters.Request, to NodeLoad, base *url.URL, via http.RoundTripper,
) bool {
	own := r.URL.EscapedPath()
	if !cleanPath(own) {
		return false
	}
	g.placed.sent(to, want.Publish)
	there := withPath(r, SessionPrefix+to.Node+own)
	p := g.passage(w, there, base)
	p.inSession = true
	p.rename = g.ofOthers
	failed := false
	p.failed = func(err error) bool {
		if r.Context().Err() != nil {
			return false
		}
		failed = true
		if !errors.Is(err, errElsewhere) {
			g.log.Warn("session is not placed at another node", "stream", want.ID, "at", to.Node, "error", err)
		}
		return true
	}
	p.transport = roundTripper(func(req *http.Request) (*http.Response, error) {
		if req.GetBody != nil { // an earlier try may have read it
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req.Body = body
		}
		resp, err := via.RoundTrip(req)
		if err == nil && resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get(fullHeader) != "" {
			discard(resp)
			return nil, errElsewhere
		}
		return resp, err
	})
	p.serve(w, there)
	switch {
	case failed:
		g.metrics.placed.WithLabelValues("failed").Inc()
		return false
	case sessionOpened(w.status):
		g.metrics.placed.WithLabelValues("forwarded").Inc()
	default:
		g.metrics.placed.WithLabelValues("refused").Inc()
	}
	return true
}
