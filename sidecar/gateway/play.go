package gateway

import (
	"context"
	"errors"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

// maxRefusal bounds how much of a server's refusal is read to see what it means.
const maxRefusal = 64 << 10

// maxHeldBytes bounds the offers of all viewers that wait; an ordinary one has 2 to 10 KB.
const maxHeldBytes = 16 << 20

// repeats are the pauses before a play is sent again once its stream is here: the server may take a moment between
// accepting the publication and serving it.
var repeats = []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond}

// holdError says why a viewer was not served after all.
type holdError struct {
	status                    int // 0: 503
	title, detail, retryAfter string
	cause                     error
}

func (e *holdError) Error() string { return e.title }
func (e *holdError) Unwrap() error { return e.cause }

// play asks the server first; only its answer "no such stream" has the stream fetched while the viewer waits. What brings
// the stream here already is kept meanwhile: the last viewer may have left a moment ago.
func (g *Gateway) play(w *recorder, r *http.Request, want adapters.Request, s *session) {
	p := &play{gateway: g, stream: want.ID}
	defer p.done()
	if g.o.Relays != nil {
		if g.o.Adapter.Traits().AcceptsAndWaits {
			if err := g.turnDown(r.Context(), want.ID); err != nil { // the server would let it wait for ever
				g.metrics.refused("codec")
				g.refuse(w, r, err.status, err.title, err.detail)
				return
			}
			// The server will take the play whether or not it has the stream, so the answer tells nothing.
			p.viewer = &viewer{stream: want.ID, cause: tracing.Of(r.Context())}
			if !g.demand.add(p.viewer) {
				p.viewer = nil
				g.tooMany(w, r)
				return
			}
		} else {
			ctx, cancel := context.WithTimeout(r.Context(), g.o.HoldTimeout)
			p.release, _ = g.o.Relays.Hold(ctx, want.ID) // where that fails, the server's answer says what is to be done
			cancel()
		}
	}
	way := g.passage(w, r, g.o.Target)
	way.transport = p
	way.plain = true
	way.opens = true
	way.rename = g.renamer(w, want)
	way.header = replaceCredentials(g.credentials(want))
	way.answer = func(resp *http.Response) error {
		p.answered(resp)
		if g.o.Adapter.Traits().IgnoresPLI && sessionOpened(resp.StatusCode) {
			g.look() // so that a key frame is asked for when the viewer has come
		}
		return g.opened(w, s, resp)
	}
	way.serve(w, r)
}

func (g *Gateway) tooMany(w http.ResponseWriter, r *http.Request) {
	g.metrics.refused("sessions")
	w.Header().Set("Retry-After", "10")
	g.refuse(w, r, http.StatusServiceUnavailable, "Too many sessions", "This node has as many viewers as it can look after; "+
		"try again later or at another address.")
}

// play is one viewer's POST on its way. It is the proxy's transport, so that what is sent twice is otherwise an
// ordinary request, and its answer an ordinary answer.
type play struct {
	gateway *Gateway
	stream  adapters.StreamID
	release func()  // of the relay, when there is one to release here
	viewer  *viewer // the demand, when it is kept beyond the answer
}

// RoundTrip sends the play, and sends it again when its stream has been fetched.
func (p *play) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, missing, err := p.ask(req)
	if err != nil || !missing || p.gateway.o.Relays == nil {
		return resp, err
	}
	return p.hold(req, resp)
}

// ask sends the play once, and says whether the answer means that nobody publishes the stream here.
func (p *play) ask(req *http.Request) (resp *http.Response, missing bool, err error) {
	resp, err = p.gateway.send(req)
	if err != nil || sessionOpened(resp.StatusCode) {
		return resp, false, err
	}
	body, err := peek(resp)
	if err != nil {
		return nil, false, err
	}
	return resp, p.gateway.o.Adapter.Missing(resp.StatusCode, resp.Header, body), nil
}

// hold keeps the viewer waiting while the stream is fetched. refusal is the server's answer, which goes back where
// there is no such stream anywhere.
func (p *play) hold(req *http.Request, refusal *http.Response) (*http.Response, error) {
	g := p.gateway
	held, size := g.held.Add(1), g.heldBytes.Add(req.ContentLength)
	leave := func() { g.held.Add(-1); g.heldBytes.Add(-req.ContentLength) }
	if held > int64(g.o.MaxHeld) || size > maxHeldBytes {
		leave()
		g.metrics.refused("held")
		discard(refusal)
		return nil, &holdError{
			title: "Too many viewers wait", retryAfter: "1",
			detail: "This node is fetching streams for as many viewers as it can; try again in a moment.",
		}
	}
	g.metrics.held.Inc()
	began := time.Now()
	outcome := "failed"
	defer func() {
		leave()
		g.metrics.held.Dec()
		g.metrics.holds.WithLabelValues(outcome).Observe(time.Since(began).Seconds())
	}()

	ctx, cancel := context.WithTimeout(req.Context(), g.o.HoldTimeout)
	defer cancel()
	ctx, span := tracing.Child(ctx, "wait for stream", trace.WithAttributes(tracing.Stream.String(string(p.stream))))
	defer func() {
		span.SetAttributes(tracing.Outcome.String(outcome))
		span.End()
	}()
	var err error
	for pauses := repeats; ; pauses = repeats[1:] {
		var release func()
		if release, err = g.o.Relays.Acquire(ctx, p.stream); errors.Is(err, adapters.ErrNoStream) {
			outcome = "missing"
			return refusal, nil
		}
		if codec, ok := errors.AsType[*adapters.CodecError](err); ok {
			outcome = "refused"
			g.metrics.refused("codec")
			discard(refusal)
			return nil, unfitError(p.stream, codec)
		}
		if err != nil {
			break
		}
		p.free()
		p.release = release
		var resp *http.Response
		if resp, err = p.repeat(ctx, req, pauses); err == nil {
			discard(refusal)
			outcome = "served"
			return resp, nil
		}
		if resp == nil {
			break
		}
		// What made the stream seem to be here has just ended: a relay whose server or parent is gone, or a publisher. Its
		// viewers come back at once, and ask before that is known.
		discard(refusal)
		refusal = resp
		p.free()
	}
	discard(refusal)
	switch {
	case req.Context().Err() != nil:
		outcome = "gone"
		return nil, req.Context().Err()
	case errors.Is(err, context.DeadlineExceeded):
		outcome = "timeout"
	}
	g.log.Warn("stream did not come for a viewer", "stream", p.stream, "waited", time.Since(began), "error", err)
	return nil, &holdError{
		title: "Stream is not here yet", retryAfter: "1", cause: err,
		detail: "The stream is published elsewhere and could not be brought here in time; try again after the seconds in " +
			"Retry-After.",
	}
}

// turnDown says why a stream that is published elsewhere cannot come here, where that is known. The relays are asked for it all
// the same, which does not take long then: so they know that it was wanted, and say what is wrong.
func (g *Gateway) turnDown(ctx context.Context, id adapters.StreamID) *holdError {
	if g.o.Unfit == nil || g.o.Unfit(id) == nil {
		return nil
	}
	release, err := g.o.Relays.Acquire(ctx, id)
	if err == nil {
		release()
	}
	if codec, ok := errors.AsType[*adapters.CodecError](err); ok {
		return unfitError(id, codec)
	}
	return nil
}

// unfitError is for streams of which it is known that they cannot come here: to try again is of no use.
func unfitError(id adapters.StreamID, err error) *holdError {
	return &holdError{
		status: http.StatusUnsupportedMediaType, title: "Stream cannot be played here", cause: err,
		detail: string(id) + " is published elsewhere and cannot be brought here: " + err.Error() + ". Play it where another make of " +
			"server stands, or publish it with another codec.",
	}
}

var errStillMissing = errors.New("media server does not serve the stream that was published to it")

// repeat sends the play again now that its stream is here, a few times. Where the server has the stream by none of them,
// its last answer comes with errStillMissing. ctx bounds the pauses only: the answer's body lives as long as the request.
func (p *play) repeat(ctx context.Context, req *http.Request, pauses []time.Duration) (*http.Response, error) {
	for i, d := range pauses {
		if err := pause(ctx, d); err != nil {
			return nil, err
		}
		resp, missing, err := p.ask(req)
		switch {
		case err != nil || !missing:
			return resp, err
		case i == len(pauses)-1:
			return resp, errStillMissing
		}
		discard(resp)
	}
	return nil, errStillMissing
}

// answered keeps the demand of a session that an answer opened.
func (p *play) answered(resp *http.Response) {
	g := p.gateway
	if !sessionOpened(resp.StatusCode) || g.o.Relays == nil {
		return
	}
	u, ok := locationOf(resp.Request.URL, resp.Header)
	if !ok {
		return
	}
	header := authorizationOf(resp.Request.Header)
	switch {
	case p.viewer != nil:
		g.demand.opened(p.viewer, u.EscapedPath(), header)
		p.viewer = nil
	case p.release != nil || !g.counts(p.stream):
		// Where the server counts its readers, it does not count one that still connects.
		v := &viewer{stream: p.stream, header: header, path: u.EscapedPath(), release: p.release}
		if g.demand.add(v) {
			p.release = nil // it is the viewer's now
		} else {
			g.log.Warn("too many sessions: this one is not counted as demand", "stream", p.stream)
		}
	}
}

// done frees what is not kept beyond the answer.
func (p *play) done() {
	if p.viewer != nil {
		p.gateway.demand.end(p.viewer)
	}
	p.free()
}

func (p *play) free() {
	if p.release != nil {
		p.release()
		p.release = nil
	}
}

// counts says whether the server itself says how many play a stream.
func (g *Gateway) counts(id adapters.StreamID) bool {
	return g.o.Readers != nil && g.o.Readers(id) >= 0
}
