package relay

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

// The spans of a session are its steps, with their times; where it fails, the one that it was at has failed.
func TestSpansOfSteps(t *testing.T) {
	begin := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		steps []string // one a second
		err   error
		want  []string // from-to, in seconds, in the order of their ends
	}{
		"live": {
			[]string{StepPlay, StepPlayAnswered, StepParentConnected, StepFirstPacket, StepPublish, StepFirstKeyFrame, StepPublishAnswered, StepServerConnected, StepLive},
			errors.New("over"),
			[]string{"WHEP 0-1", "ICE 1-2", "first packet 2-3", "first key frame 3-5", "WHIP 4-6", "ICE to media server 6-7"},
		},
		"a packet before the connection": {
			[]string{StepPlay, StepPlayAnswered, StepFirstPacket, StepParentConnected, StepLive},
			errors.New("over"),
			[]string{"WHEP 0-1", "first packet 1-2", "ICE 1-3"},
		},
		"no answer":   {[]string{StepPlay}, errors.New("timeout"), []string{"WHEP 0-1 timeout"}},
		"no ICE":      {[]string{StepPlay, StepPlayAnswered}, errors.New("timeout"), []string{"WHEP 0-1", "ICE 1-2 timeout"}},
		"not refused": {[]string{StepPlay, StepPlayAnswered, StepParentConnected, StepFirstPacket, StepPublish}, errors.New("401"), []string{"WHEP 0-1", "ICE 1-2", "first packet 2-3", "WHIP 4-5 401", "first key frame 3-5"}},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := tracetest.NewSpanRecorder()
			ctx, parent := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("").Start(t.Context(), "relay")
			trace := newSessionTrace(ctx)
			var steps []Step
			for i, step := range tt.steps {
				steps = append(steps, Step{step, begin.Add(time.Duration(i) * time.Second)})
				trace.stepped(steps)
			}
			trace.ended(steps, tt.err, begin.Add(time.Duration(len(steps))*time.Second))
			var got []string
			for _, span := range recorder.Ended() {
				line := fmt.Sprintf("%s %.0f-%.0f", span.Name(), span.StartTime().Sub(begin).Seconds(), span.EndTime().Sub(begin).Seconds())
				if span.Status().Code == codes.Error {
					line += " " + span.Status().Description
				}
				if span.Parent().SpanID() != parent.SpanContext().SpanID() {
					line += " of another"
				}
				got = append(got, line)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// Without a trace steps make no garbage.
func TestStepsWithoutTrace(t *testing.T) {
	trace := newSessionTrace(tracing.Within(t.Context(), nil))
	steps := []Step{{StepPlay, time.Now()}}
	if n := testing.AllocsPerRun(100, func() { trace.stepped(steps) }); n != 0 {
		t.Errorf("%.0f allocations", n)
	}
}

// BenchmarkStep is what a step costs that is traced, and one that is not. Packets take none.
func BenchmarkStep(b *testing.B) {
	for _, on := range []bool{false, true} {
		b.Run(fmt.Sprintf("traced=%t", on), func(b *testing.B) {
			ctx := b.Context()
			if on {
				ctx, _ = sdktrace.NewTracerProvider().Tracer("").Start(ctx, "relay")
			}
			trace := newSessionTrace(ctx)
			steps := []Step{{StepPlayAnswered, time.Now()}, {StepParentConnected, time.Now()}}
			b.ReportAllocs()
			for b.Loop() {
				trace.stepped(steps)
			}
		})
	}
}
