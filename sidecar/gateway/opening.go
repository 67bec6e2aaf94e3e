package gateway

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

const (
	// openTime bounds how long a server may take to open a session, whether or not somebody still waits for it.
	openTime = 70 * time.Second
	// deleteTime bounds the deletion of a session that nobody wants any more.
	deleteTime = 5 * time.Second
)

// roundTripper is a function as an http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// send sends a POST that opens a session. A client that leaves before the answer never learns of the session, so the
// answer is waited for all the same, and the session deleted. The body is sent from the beginning each time.
func (g *Gateway) send(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), openTime)
	ctx, span := tracing.Child(ctx, "offer to media server", trace.WithSpanKind(trace.SpanKindClient))
	again := req.Clone(ctx)
	tracing.Inject(ctx, again.Header) // in place of what came, where it is traced here
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			tracing.End(span, err)
			cancel()
			return nil, err
		}
		again.Body = body
	}
	resp, err := g.o.Transport.RoundTrip(again)
	if err != nil {
		tracing.End(span, err)
		cancel()
		return nil, err
	}
	span.SetAttributes(tracing.Status.Int(resp.StatusCode))
	span.End()
	if gone := req.Context().Err(); gone != nil {
		discard(resp)
		cancel()
		if sessionOpened(resp.StatusCode) {
			g.metrics.left.Inc()
			g.drop(req, resp, "its client left before the answer")
		}
		return nil, gone
	}
	stop := context.AfterFunc(req.Context(), cancel)
	resp.Body = tied{resp.Body, func() { stop(); cancel() }}
	return resp, nil
}

// tied is a body whose request's context ends with it.
type tied struct {
	io.ReadCloser
	end func()
}

func (t tied) Close() error {
	defer t.end()
	return t.ReadCloser.Close()
}

// drop deletes a session that was just opened and that nobody will use.
func (g *Gateway) drop(req *http.Request, resp *http.Response, why string) {
	u, ok := locationOf(req.URL, resp.Header)
	if !ok || u.Host != req.URL.Host && u.Host != req.Host {
		g.log.Warn("session that nobody uses has no address to delete it by", "why", why)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), deleteTime)
	defer cancel()
	u.Scheme, u.Host, u.User, u.Fragment = req.URL.Scheme, req.URL.Host, nil, ""
	del, err := http.NewRequestWithContext(ctx, http.MethodDelete, u.String(), http.NoBody)
	if err != nil {
		g.log.Warn("session that nobody uses cannot be deleted", "why", why, "error", err)
		return
	}
	del.Host = req.Host
	for _, field := range []string{"Authorization", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"} {
		if values := req.Header[field]; len(values) > 0 {
			del.Header[field] = values
		}
	}
	gone, err := g.o.Transport.RoundTrip(del)
	if err != nil {
		g.log.Warn("session that nobody uses is not deleted", "why", why, "error", err)
		return
	}
	discard(gone)
	g.log.Info("deleted a session that nobody uses", "why", why, "status", gone.StatusCode)
}

// locationOf is where an answer says that its session is.
func locationOf(base *url.URL, h http.Header) (*url.URL, bool) {
	location := h.Get("Location")
	if location == "" {
		return nil, false
	}
	u, err := base.Parse(location)
	return u, err == nil
}

// publish passes on a publisher's offer. Where the server refuses it because a relay of ours has the name, the relay ends
// and the offer is sent again: the viewers of this node come back to the publisher.
func (g *Gateway) publish(w *recorder, r *http.Request, want adapters.Request, s *session) {
	p := g.passage(w, r, g.o.Target)
	p.opens = true
	p.plain = true
	p.rename = g.renamer(w, want)
	p.header = replaceCredentials(g.credentials(want))
	p.answer = func(resp *http.Response) error { return g.opened(w, s, resp) }
	p.transport = roundTripper(func(req *http.Request) (*http.Response, error) { return g.take(req, want.ID) })
	p.serve(w, r)
	if sessionOpened(w.status) {
		g.look() // so that the stream is known with its first media
	}
}

// take sends a publisher's offer, a second time if need be.
func (g *Gateway) take(req *http.Request, id adapters.StreamID) (*http.Response, error) {
	resp, err := g.send(req)
	if err != nil || g.o.Relays == nil {
		return resp, err
	}
	if taken, err := g.occupied(resp); err != nil || !taken {
		return resp, err
	}
	ctx, cancel := context.WithTimeout(req.Context(), g.o.HoldTimeout)
	defer cancel()
	done, ok := g.o.Relays.Yield(ctx, id)
	if !ok {
		return resp, nil
	}
	published, outcome := false, "failed"
	defer func() {
		done(published)
		g.metrics.yielded.WithLabelValues(outcome).Inc()
	}()
	g.log.Info("relay has ended for a publisher at this node", "stream", id)
	for _, d := range repeats { // the server may take a moment to know that the name is free
		if pause(ctx, d) != nil {
			break
		}
		discard(resp)
		if resp, err = g.send(req); err != nil {
			return nil, err
		}
		if taken, err := g.occupied(resp); err != nil {
			return nil, err
		} else if !taken {
			break
		}
	}
	outcome = "refused"
	if published = sessionOpened(resp.StatusCode); published {
		outcome = "published"
	}
	return resp, nil
}

// occupied says whether an answer to a publisher means that somebody else publishes the name. After an error nothing is
// left of the answer.
func (g *Gateway) occupied(resp *http.Response) (bool, error) {
	if sessionOpened(resp.StatusCode) {
		return false, nil
	}
	o, ok := g.o.Adapter.(adapters.Occupier)
	if !ok {
		return resp.StatusCode == http.StatusConflict, nil
	}
	body, err := peek(resp)
	return err == nil && o.Occupied(resp.StatusCode, resp.Header, body), err
}

// peek reads the beginning of an answer that is to be passed on.
func peek(resp *http.Response) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	if err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), resp.Body), resp.Body}
	return body, nil
}

// look makes an adapter that asks its server do so at once.
func (g *Gateway) look() {
	if looker, ok := g.o.Adapter.(adapters.Looker); ok {
		looker.Look()
	}
}
