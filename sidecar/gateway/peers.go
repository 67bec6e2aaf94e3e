package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

// pullPath is where children POST their WHEP offers; the stream's name follows.
const pullPath = "/whep/"

// maxAnswer bounds an answer that is read to add a candidate.
const maxAnswer = 256 << 10

// PeerHandler serves other sidecars: pulls by children at POST /whep/{stream}, the sessions that come of them, and
// session requests that other gateways pass on for their viewers. It must be mounted where only peers come in.
func (g *Gateway) PeerHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w, kind: kindPeer, peer: true}
		defer g.finish(rec, r, time.Now())
		g.peer(rec, r)
	})
}

func (g *Gateway) peer(w *recorder, r *http.Request) {
	path := r.URL.EscapedPath()
	if strings.HasPrefix(path, pullPath) {
		w.kind = kindPull
		g.pull(w, r)
		return
	}
	if node, id, own, ok := parsePull(path); ok && node == g.o.NodeID {
		g.pullSession(w, r, id, own)
		return
	}
	if node, own, ok := parseSession(path); ok && node == g.o.NodeID {
		g.ownSession(w, r, own)
		return
	}
	g.refuse(w, r, http.StatusNotFound, "Nothing here for peers", "This port serves POST "+pullPath+"{stream} and session URLs "+
		"of node "+g.o.NodeID+".")
}

// pull answers a child's offer with the server's answer, and leaves an audit line.
func (g *Gateway) pull(w *recorder, r *http.Request) {
	name, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), pullPath))
	id := adapters.StreamID(name)
	var child, outcome string
	var traced slog.Attr
	pull, began := PullID(r.Header.Get(PullTokenHeader)), time.Now()
	defer func() {
		if outcome == "" { // the server's word
			outcome = "refused"
			switch {
			case sessionOpened(w.status):
				outcome = "opened"
			case w.status >= 500 || w.status == 0:
				outcome = "failed"
			}
		}
		g.metrics.pulls.WithLabelValues(outcome).Inc()
		g.log.Info("pull answered", "pull", pull, "child", child, "stream", id, "outcome", outcome, "status", w.status,
			"from", r.RemoteAddr, "took", time.Since(began), traced)
	}()

	switch {
	case err != nil || id.Validate() != nil:
		id, outcome = "", "bad_name" // not for the log
		g.refuse(w, r, http.StatusBadRequest, "Not a stream name", "Ask for "+pullPath+"{stream} with a name of at most 255 "+
			"bytes of UTF-8, without empty or dotted path elements.")
		return
	case r.Method != http.MethodPost:
		outcome = "bad_method"
		w.Header().Set("Allow", http.MethodPost)
		g.refuse(w, r, http.StatusMethodNotAllowed, "", "POST a WHEP offer.")
		return
	}
	if child, err = g.verify(r, id); err != nil {
		outcome = "bad_token"
		g.refuse(w, r, http.StatusForbidden, "Pull refused", err.Error()+": ask this node for one over the mesh and send it "+
			"in "+PullTokenHeader+" within a minute.")
		return
	}
	if g.tooSoon(w, r, g.pullPaces, id) {
		outcome = "rate"
		return
	}
	if mediaType(r.Header) != typeSDP {
		outcome = "bad_body"
		g.refuse(w, r, http.StatusUnsupportedMediaType, "", "Send the offer as "+typeSDP+".")
		return
	}
	if n := g.pulls.Add(1); n > int64(g.o.MaxPulls) {
		g.pulls.Add(-1)
		outcome = "too_many"
		w.Header().Set("Retry-After", "1")
		g.refuse(w, r, http.StatusServiceUnavailable, "Too many pulls", "This node answers as many pulls as it can; try again "+
			"in a moment.")
		return
	}
	defer g.pulls.Add(-1)
	buffered, ok := g.buffered(w, r)
	if !ok {
		outcome = "bad_body"
		return
	}

	buffered, span := g.begin(w, buffered, kindPull)
	span.SetAttributes(tracing.Stream.String(string(id)), tracing.Peer.String(child), tracing.Pull.String(pull))
	traced = tracing.Attr(span.Span)
	defer span.end(w)
	end := g.o.Adapter.Egress(id)
	// url.JoinPath leaves a path without its first slash where the base URL has none.
	to := withPath(buffered, "/"+strings.TrimPrefix(end.URL.EscapedPath(), "/"))
	to.URL.RawQuery = end.URL.RawQuery
	to.Host = end.URL.Host
	if g.o.Relays != nil { // until the child shows as demand, by its hold or among the server's readers
		ctx, cancel := context.WithTimeout(r.Context(), g.o.HoldTimeout)
		release, err := g.o.Relays.Hold(ctx, id)
		cancel()
		if err == nil && release != nil && !g.demand.add(&viewer{stream: id, release: release, brief: true}) {
			release()
		}
	}
	p := g.pullPassage(w, to, id, end)
	p.opens = true
	p.plain = true
	p.transport = roundTripper(g.send)
	p.answer = g.addPodIP
	p.serve(w, to)
}

// pullSession passes on a request on a session that came of a pull, with the server's credentials.
func (g *Gateway) pullSession(w *recorder, r *http.Request, id adapters.StreamID, path string) {
	end := g.o.Adapter.Egress(id)
	to := withPath(r, path)
	to.Host = end.URL.Host
	if _, opens := g.o.Adapter.Match(to); opens {
		g.refuse(w, r, http.StatusNotFound, "No such session", "Pull with POST "+pullPath+"{stream} to open one.")
		return
	}
	to, ok := g.buffered(w, to)
	if !ok {
		return
	}
	p := g.pullPassage(w, to, id, end)
	p.inSession = true
	p.serve(w, to)
}

// pullPassage leads to the server in the sidecar's own name: the child's credentials stay here.
func (g *Gateway) pullPassage(w *recorder, r *http.Request, id adapters.StreamID, end adapters.Endpoint) *passage {
	p := g.passage(w, r, end.URL)
	p.header = func(h http.Header) {
		h.Del("Authorization")
		h.Del("Cookie")
		for name, values := range end.Header {
			h[http.CanonicalHeaderKey(name)] = values
		}
	}
	p.rename = func(u *url.URL) string { name, _ := formatPull(g.o.NodeID, id, u); return name }
	return p
}

func (g *Gateway) verify(r *http.Request, id adapters.StreamID) (child string, err error) {
	tokens := r.Header.Values(PullTokenHeader)
	if len(tokens) != 1 || g.o.Tokens == nil {
		return "", errors.New("a pull needs one token")
	}
	return g.o.Tokens.Verify(tokens[0], id)
}

// addPodIP makes the server's answer usable within the clusters' network. One that nobody could use is refused, and the
// session deleted.
func (g *Gateway) addPodIP(resp *http.Response) error {
	if !sessionOpened(resp.StatusCode) || mediaType(resp.Header) != typeSDP {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	_ = resp.Body.Close()
	if err != nil {
		return err
	}
	if len(body) > maxAnswer {
		err = &answerError{"it is larger than any session description"}
	} else {
		body = addCandidate(body, g.o.PodIP)
		err = unusable(body)
	}
	if err != nil {
		g.drop(resp.Request, resp, err.Error())
		return err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header.Del("Content-Length") // the proxy writes ContentLength's
	return nil
}
