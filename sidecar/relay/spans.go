package relay

import (
	"context"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

// spans are what a trace shows of the steps: each is from one to another. Those of requests are begun before these are sent, which
// carry them to the other side; the others are written down when they are over.
var spans = []struct {
	name, from, to string
	request        bool
}{
	{"WHEP", StepPlay, StepPlayAnswered, true},
	{"ICE", StepPlayAnswered, StepParentConnected, false},
	{"first packet", StepParentConnected, StepFirstPacket, false},
	{"first key frame", StepFirstPacket, StepFirstKeyFrame, false},
	{"WHIP", StepPublish, StepPublishAnswered, true},
	{"ICE to media server", StepPublishAnswered, StepServerConnected, false},
}

// sessionTrace is a session's place in a trace. Its session's mutex guards it; the zero value traces nothing.
type sessionTrace struct {
	parent   trace.Span
	requests map[string]trace.Span // that are under way, by the step that ends them
}

func newSessionTrace(ctx context.Context) sessionTrace {
	return sessionTrace{parent: tracing.Of(ctx), requests: map[string]trace.Span{}}
}

// stepped is told of each step once; the new one is the last of all.
func (t *sessionTrace) stepped(steps []Step) {
	if t.parent == nil {
		return
	}
	now := steps[len(steps)-1]
	for _, s := range spans {
		switch {
		case s.request && s.from == now.Name:
			t.requests[s.to] = t.begin(s.name, now.At, trace.WithSpanKind(trace.SpanKindClient))
		case s.to == now.Name && s.request:
			t.requests[s.to].End(trace.WithTimestamp(now.At))
			delete(t.requests, s.to)
		case s.to == now.Name:
			begin, ok := timeOf(steps, s.from)
			if !ok { // the packet overtook the news that there is a connection
				begin = steps[len(steps)-2].At
			}
			t.begin(s.name, begin).End(trace.WithTimestamp(now.At))
		}
	}
}

// ended is told of the end of a session that never was live: what it was doing failed, or was given up.
func (t *sessionTrace) ended(steps []Step, err error, at time.Time) {
	if t.parent == nil {
		return
	}
	_, live := timeOf(steps, StepLive)
	for _, s := range slices.Backward(spans) {
		begin, begun := timeOf(steps, s.from)
		if _, over := timeOf(steps, s.to); live || over || !begun {
			continue
		}
		span := t.requests[s.to]
		if span == nil {
			span = t.begin(s.name, begin)
		}
		tracing.End(span, err, trace.WithTimestamp(at))
		err = nil // what else waited did not fail
	}
	t.parent = nil
}

func (t *sessionTrace) begin(name string, at time.Time, options ...trace.SpanStartOption) trace.Span {
	_, span := tracing.Child(tracing.Within(context.Background(), t.parent), name, append(options, trace.WithTimestamp(at))...)
	return span
}

func timeOf(steps []Step, name string) (time.Time, bool) {
	i := slices.IndexFunc(steps, func(s Step) bool { return s.Name == name })
	if i < 0 {
		return time.Time{}, false
	}
	return steps[i].At, true
}

// requesting is ctx with the span of the request that a step will end, where it is traced.
func (s *Session) requesting(ctx context.Context, until string) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if span := s.trace.requests[until]; span != nil {
		return tracing.Within(ctx, span)
	}
	return ctx
}

// traced is ctx within the trace of who waits for a stream first, where somebody does.
func (e *entry) traced(ctx context.Context) context.Context {
	if e.cause == nil {
		return ctx
	}
	return tracing.Within(ctx, e.cause)
}

// follow has the span of one who waited tell which trace has the relay: there is one relay, however many wait.
func (r *run) follow(waited trace.Span) {
	if r == nil || r.span == nil || waited == nil {
		return
	}
	if own := r.span.SpanContext(); own.IsValid() && own.TraceID() != waited.SpanContext().TraceID() {
		waited.AddLink(trace.Link{SpanContext: own})
	}
}

// begin makes the span of an attempt to relay a stream, or to take it from another parent.
func (m *Manager) begin(ctx context.Context, name string, e *entry, r *run, of ...trace.SpanStartOption) (context.Context, trace.Span) {
	return tracing.Or(m.o.Tracer).Start(ctx, name, append(of, trace.WithAttributes(
		tracing.Stream.String(string(e.id)), tracing.Peer.String(string(r.parent)), tracing.Why.String(string(r.why)),
		attribute.Bool("sidestream.crosses", r.outside),
	))...)
}
