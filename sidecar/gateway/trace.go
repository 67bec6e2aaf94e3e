package gateway

import (
	"errors"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

// requestSpan is that of a request which opens a session.
type requestSpan struct{ trace.Span }

var errUnserved = errors.New("not served")

// begin begins the span of a request that opens a session. A peer's request, and one that came through a proxy of ours, goes on with the
// trace that it names. A stranger's begins one, which only refers to the stranger's own: else anybody could have everything recorded.
func (g *Gateway) begin(w *recorder, r *http.Request, name string) (*http.Request, requestSpan) {
	if g.o.Tracer == nil {
		return r, requestSpan{trace.SpanFromContext(r.Context())}
	}
	ctx := r.Context()
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("http.request.method", r.Method), tracing.Stream.String(string(w.stream)),
	)}
	if there := tracing.Extract(ctx, r.Header); w.peer || g.trusts(r) {
		ctx = there
	} else if theirs := trace.SpanContextFromContext(there); theirs.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: theirs}))
	}
	ctx, span := g.o.Tracer.Start(ctx, name, options...)
	return r.WithContext(ctx), requestSpan{span}
}

// end tells how the request was answered.
func (s requestSpan) end(w *recorder) {
	var err error
	if w.status >= http.StatusInternalServerError {
		err = errUnserved
	}
	s.SetAttributes(tracing.Status.Int(w.status))
	tracing.End(s, err)
}
