package tracing

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// Where nobody traces nothing is made: no span, no header field, no garbage.
func TestOff(t *testing.T) {
	ctx := t.Context()
	header := http.Header{}
	if n := testing.AllocsPerRun(100, func() {
		within, span := Child(ctx, "play")
		Inject(within, header)
		if parent, state := Pair(within); parent != "" || state != "" || within != ctx || Of(within) != nil {
			t.Fatal("there is a span")
		}
		End(span, nil)
	}); n != 0 {
		t.Errorf("%.0f allocations", n)
	}
	if len(header) != 0 || !Attr(nil).Equal(Attr(Of(ctx))) {
		t.Error(header)
	}
	_, span := Or(nil).Start(ctx, "play")
	End(span, errors.New("x"))
	if span.IsRecording() {
		t.Error("it records")
	}
}

// A span goes to another process and back by header fields and by a frame alike; words that are none are none.
func TestAcross(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	ctx, span := provider.Tracer(Scope).Start(t.Context(), "play")
	header := http.Header{}
	Inject(ctx, header)
	parent, state := Pair(ctx)
	if header.Get("traceparent") != parent || state != "" {
		t.Errorf("%v, %q, %q", header, parent, state)
	}
	for _, there := range []context.Context{Extract(context.Background(), header), FromPair(context.Background(), parent, state)} {
		if of := Of(there); of == nil || of.SpanContext().SpanID() != span.SpanContext().SpanID() || !of.SpanContext().IsRemote() {
			t.Error(of)
		}
	}
	for _, none := range []string{"", "x", "00-00000000000000000000000000000000-0000000000000000-01", parent[:20]} {
		if Of(FromPair(context.Background(), none, "")) != nil {
			t.Errorf("%q is a span", none)
		}
	}
	_, child := Child(ctx, "offer")
	End(child, errors.New("no answer"))
	if Of(Within(ctx, nil)) != nil {
		t.Error("there is a span without one")
	}
	ended := recorder.Ended()
	if len(ended) != 1 || ended[0].Parent().SpanID() != span.SpanContext().SpanID() || ended[0].Status().Code != codes.Error {
		t.Errorf("%+v", ended)
	}
}

// Requests have the span of their context, and are not changed themselves.
func TestTransport(t *testing.T) {
	ctx, _ := sdktrace.NewTracerProvider().Tracer(Scope).Start(t.Context(), "WHEP")
	var sent []string
	transport := Transport{Next: roundTrip(func(r *http.Request) { sent = append(sent, r.Header.Get("traceparent")) })}
	want, _ := Pair(ctx)
	for _, c := range []context.Context{ctx, t.Context()} {
		r, err := http.NewRequestWithContext(c, http.MethodPost, "http://sfu/whep/show", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := transport.RoundTrip(r); err != nil || len(r.Header) != 0 {
			t.Error(err, r.Header)
		}
	}
	transport.CloseIdleConnections() // the one beneath has none
	if d := cmp.Diff([]string{want, ""}, sent); d != "" {
		t.Error(d)
	}
}

type roundTrip func(*http.Request)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	f(r)
	return &http.Response{}, nil
}
