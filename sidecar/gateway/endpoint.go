package gateway

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/pace"
)

// endpoint serves a POST that opens a session. A pinned one stays at this node.
func (g *Gateway) endpoint(w *recorder, r *http.Request, want adapters.Request, pinned bool) {
	w.kind, w.stream = kindPlay, want.ID
	if want.Publish {
		w.kind = kindPublish
	}
	if err := want.ID.Validate(); err != nil {
		w.stream = ""
		g.metrics.refused("name")
		g.refuse(w, r, http.StatusBadRequest, "Bad stream name", "In the address: "+err.Error()+".")
		return
	}
	if !w.peer { // else the node that passed it on has counted it
		played := want.ID
		if want.Publish {
			played = ""
		}
		if g.tooSoon(w, r, g.paces, played) || !g.authorized(w, r, want) {
			return
		}
	}
	r, ok := g.buffered(w, r)
	if !ok {
		return
	}
	r, span := g.begin(w, r, w.kind)
	defer span.end(w)
	s, full := g.sessions.admit(want, pace.Key(g.client(w, r)))
	if s != nil {
		defer g.settled(s)
	}
	if !pinned && g.place(w, r, want, full) {
		return
	}
	switch {
	case s == nil:
		g.metrics.refused(full)
		w.Header().Set("Retry-After", "10")
		w.Header().Set(fullHeader, full)
		g.refuse(w, r, http.StatusServiceUnavailable, "Too many sessions", "This node serves as many sessions as it may ("+
			strings.ReplaceAll(full, "_", " ")+"); try again after the seconds in Retry-After, or at another address.")
	case want.Publish:
		g.publish(w, r, want, s)
	default:
		g.play(w, r, want, s)
	}
}

// authorized answers a request whose token does not allow what it wants, and says false.
func (g *Gateway) authorized(w *recorder, r *http.Request, want adapters.Request) bool {
	if g.o.Authorize == nil {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		token = ""
	}
	err := g.o.Authorize(r.Context(), strings.TrimSpace(token), want)
	denied, said := errors.AsType[*adapters.DeniedError](err)
	switch {
	case err == nil:
		return true
	case r.Context().Err() != nil:
		w.status = statusGone
	case !said:
		g.log.Warn("token cannot be checked", "stream", want.ID, "error", err)
		g.metrics.refused("token_unchecked")
		w.Header().Set("Retry-After", "5")
		g.refuse(w, r, http.StatusServiceUnavailable, "Token cannot be checked", "The keys for tokens are not at hand; try again in a "+
			"moment.")
	case denied.Known:
		g.metrics.refused("token_scope")
		w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope"`) // RFC 6750, section 3.1
		g.refuse(w, r, http.StatusForbidden, "Not allowed", denied.Reason)
	default:
		g.metrics.refused("token")
		challenge := "Bearer"
		if token != "" {
			challenge = `Bearer error="invalid_token"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
		g.refuse(w, r, http.StatusUnauthorized, "Token needed", denied.Reason)
	}
	return false
}

// credentials are what the server is shown for one who has shown a token to the gateway: the sidecar's own, where it has any.
func (g *Gateway) credentials(want adapters.Request) http.Header {
	if g.o.Authorize == nil || want.ID == "" {
		return nil
	}
	if want.Publish {
		return g.o.Adapter.Ingest(want.ID).Header
	}
	return g.o.Adapter.Egress(want.ID).Header
}

// replaceCredentials puts an Authorization in the place of that which came; nil where there is none, and that one passes.
// Other fields of an endpoint may say that the request is a sidecar's own, which it is not.
func replaceCredentials(with http.Header) func(http.Header) {
	auth := with.Values("Authorization")
	if len(auth) == 0 {
		return nil
	}
	return func(h http.Header) {
		h.Del("Cookie")
		h["Authorization"] = slices.Clone(auth)
	}
}

// opened notes a session that the server has opened, and adds what its answer lacks.
func (g *Gateway) opened(w *recorder, s *session, resp *http.Response) error {
	if !sessionOpened(resp.StatusCode) {
		return nil
	}
	if u, ok := locationOf(resp.Request.URL, resp.Header); ok {
		g.sessions.opened(s, u.EscapedPath(), authorizationOf(resp.Request.Header))
		g.tell(s)
	}
	if g.o.ICEServers != nil && !hasICEServer(resp.Header) {
		ctx, cancel := context.WithTimeout(resp.Request.Context(), g.o.HoldTimeout)
		defer cancel()
		for _, link := range g.o.ICEServers(ctx) {
			resp.Header.Add("Link", link)
		}
	}
	return nil
}

// authorizationOf is what the server is shown when it is asked about a session later.
func authorizationOf(h http.Header) http.Header {
	if auth := h.Values("Authorization"); len(auth) > 0 {
		return http.Header{"Authorization": auth}
	}
	return http.Header{}
}

// hasICEServer says whether an answer names STUN or TURN servers (RFC 9725, section 4.6).
func hasICEServer(h http.Header) bool {
	return slices.ContainsFunc(h.Values("Link"), func(link string) bool {
		return strings.Contains(strings.ToLower(link), "ice-server")
	})
}

// settled ends a session that was admitted and not opened.
func (g *Gateway) settled(s *session) {
	if !g.sessions.isOpen(s) {
		g.sessions.end(s)
	}
}

// tell tells an adapter whose server does not tell its publications, when one of those that came through here may have
// changed.
func (g *Gateway) tell(changed *session) {
	seer, ok := g.o.Adapter.(adapters.Observer)
	if !ok || changed != nil && !changed.publish {
		return
	}
	g.telling.Lock()
	defer g.telling.Unlock()
	seer.Observe(g.sessions.publications())
}
