package mesh

import (
	"context"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

// A pair of nodes has one call, for as long as both live: a span of it, and a trace in its metadata, would say nothing. So questions
// have spans, and carry them in their frames.

// questionSpan is that of a question to a peer, where ctx has one.
func questionSpan(ctx context.Context, name string, to catalogue.NodeID, stream adapters.StreamID) (context.Context, trace.Span) {
	return tracing.Child(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		tracing.Peer.String(string(to)), tracing.Stream.String(string(stream)),
	))
}

// traceFrame is the span of ctx for a peer; nil where there is none.
func traceFrame(ctx context.Context) *pb.Trace {
	parent, state := tracing.Pair(ctx)
	if parent == "" {
		return nil
	}
	if len(state) > pb.MaxText { // more than a peer takes, and than anybody must keep (W3C Trace Context, section 3.3.1.5)
		state = ""
	}
	return &pb.Trace{Parent: parent, State: state}
}

// answerSpan is that of the answer to a question which has a span.
func (l *link) answerSpan(name string, of *pb.Trace, stream string) trace.Span {
	if l.mesh.o.Tracer == nil || of == nil {
		return noop.Span{}
	}
	ctx := tracing.FromPair(context.Background(), of.GetParent(), of.GetState())
	if tracing.Of(ctx) == nil {
		return noop.Span{}
	}
	_, span := l.mesh.o.Tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		tracing.Peer.String(string(l.node.ID)), tracing.Stream.String(stream),
	))
	return span
}
