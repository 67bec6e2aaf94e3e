// Package tracing is how a pull becomes one trace across nodes: what the gateway, the relays and the mesh need to make spans of it and
// to hand its context on, by the header fields and the frame that peers understand (W3C Trace Context). Where nobody traces, it makes
// nothing and costs nothing; where traces go is the business of tracing/otlp. No packet of media passes here.
package tracing

import (
	"context"
	"log/slog"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Scope is the name under which spans are made.
const Scope = "github.com/sidestream-dev/sidestream"

// The attributes of spans beside those of the OpenTelemetry conventions.
const (
	Stream  = attribute.Key("sidestream.stream")
	Peer    = attribute.Key("sidestream.peer") // the node at the other end
	Pull    = attribute.Key("sidestream.pull") // the id in the logs of both ends
	Why     = attribute.Key("sidestream.why")
	Outcome = attribute.Key("sidestream.outcome")
	Granted = attribute.Key("sidestream.granted")
	Status  = attribute.Key("http.response.status_code")
)

// The parts that are traced are made with a trace.Tracer, or with nil.

// Or is a tracer that can be used: none makes nothing.
func Or(t trace.Tracer) trace.Tracer {
	if t == nil {
		return noop.Tracer{}
	}
	return t
}

// Child begins a span within that of ctx. Where ctx has none, so has what comes back, and nothing is made.
func Child(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.SpanContext().IsValid() {
		return ctx, parent
	}
	return parent.TracerProvider().Tracer(Scope).Start(ctx, name, options...)
}

// End ends a span, as failed where there is an error.
func End(span trace.Span, err error, options ...trace.SpanEndOption) {
	if err != nil && span.IsRecording() {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End(options...)
}

// Within is ctx with a span in place of the one that it has; nil: with none.
func Within(ctx context.Context, span trace.Span) context.Context {
	if span == nil {
		span = noop.Span{}
	}
	return trace.ContextWithSpan(ctx, span)
}

// Of is the span of ctx, nil where it has none.
func Of(ctx context.Context) trace.Span {
	if span := trace.SpanFromContext(ctx); span.SpanContext().IsValid() {
		return span
	}
	return nil
}

// Attr shows in a log which trace a line belongs to; nothing, where it belongs to none that is kept.
func Attr(span trace.Span) slog.Attr {
	if span == nil || !span.SpanContext().IsSampled() {
		return slog.Attr{}
	}
	return slog.String("trace", span.SpanContext().TraceID().String())
}

var format propagation.TraceContext

// Extract is ctx with the span that header fields tell of, as that of another process.
func Extract(ctx context.Context, h http.Header) context.Context {
	return format.Extract(ctx, propagation.HeaderCarrier(h))
}

// Inject writes the span of ctx into header fields, where there is one.
func Inject(ctx context.Context, h http.Header) { format.Inject(ctx, propagation.HeaderCarrier(h)) }

// Pair is the span of ctx as the values of traceparent and tracestate; empty where there is none.
func Pair(ctx context.Context) (parent, state string) {
	if Of(ctx) == nil {
		return "", ""
	}
	carrier := propagation.MapCarrier{}
	format.Inject(ctx, carrier)
	return carrier.Get("traceparent"), carrier.Get("tracestate")
}

// FromPair is the opposite of Pair: ctx with a span of another process, or as it was where the values say none.
func FromPair(ctx context.Context, parent, state string) context.Context {
	if parent == "" {
		return ctx
	}
	return format.Extract(ctx, propagation.MapCarrier{"traceparent": parent, "tracestate": state})
}

// Transport writes the span of each request's context into its header. Requests without one pass as they are.
type Transport struct{ Next http.RoundTripper }

// RoundTrip sends a request.
func (t Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if Of(r.Context()) != nil {
		r = r.Clone(r.Context()) // a RoundTripper must not change what it is given
		Inject(r.Context(), r.Header)
	}
	return t.Next.RoundTrip(r)
}

// CloseIdleConnections closes those of the transport beneath.
func (t Transport) CloseIdleConnections() {
	if c, ok := t.Next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
