package gateway

import (
	"net/netip"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// A stranger's trace is referred to and not gone on with, a proxy's is; the server is told ours, and without tracing what came.
func TestWhoseTrace(t *testing.T) {
	const theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
	for name, tt := range map[string]struct {
		trusted, traced bool
		theirs, links   int
	}{
		"stranger": {false, true, 0, 1},
		"proxy":    {true, true, 1, 0},
		"off":      {true, false, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := tracetest.NewSpanRecorder()
			s := newServer(t, "a")
			n := newNode(t, s, func(o *Options) {
				if tt.traced {
					// Not by the sampling that the caller chose: by that of the parent, one who is believed decides.
					o.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithSpanProcessor(recorder)).Tracer("")
				}
				if tt.trusted {
					o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
				}
			})
			if got := do(t, "POST", n.public.URL+"/live/a/whep", offer, "Traceparent", theirs); got.Status != 201 {
				t.Fatalf("%+v", got)
			}
			n.public.Close() // so that the request has ended
			spans, links, same := recorder.Ended(), 0, 0
			for _, span := range spans {
				if span.Name() != kindPlay {
					continue
				}
				links += len(span.Links())
				if span.SpanContext().TraceID().String() == theirs[3:35] {
					same++
				}
			}
			if links != tt.links || same != tt.theirs || tt.traced && len(spans) != 2 {
				t.Errorf("%d links, %d of their trace, %d spans", links, same, len(spans))
			}
			sent := s.requests()[0].Header.Get("Traceparent")
			if (sent == theirs) == tt.traced || len(sent) != len(theirs) {
				t.Errorf("the server is told %q", sent)
			}
		})
	}
}
