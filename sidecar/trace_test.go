package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
)

// collector takes spans as an OpenTelemetry collector does.
type collector struct {
	coltrace.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []collected
}

type collected struct {
	*tracepb.Span
	node, service string
}

func (c *collector) Export(_ context.Context, r *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range r.GetResourceSpans() {
		node, service := attribute(of.GetResource().GetAttributes(), "service.instance.id"), attribute(of.GetResource().GetAttributes(), "service.name")
		for _, scope := range of.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, collected{s, node, service})
			}
		}
	}
	return &coltrace.ExportTraceServiceResponse{}, nil
}

func attribute(attributes []*commonpb.KeyValue, key string) string {
	for _, a := range attributes {
		if a.GetKey() == key {
			if v, ok := a.GetValue().GetValue().(*commonpb.AnyValue_IntValue); ok {
				return fmt.Sprint(v.IntValue)
			}
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// of are the spans of a trace.
func (c *collector) of(trace string) []collected {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.spans), func(s collected) bool { return hex.EncodeToString(s.GetTraceId()) != trace })
}

// startCollector has this process's nodes send their spans to one of its own.
func startCollector(t *testing.T) *collector {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{}
	server := grpc.NewServer()
	coltrace.RegisterTraceServiceServer(server, c)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+listener.Addr().String())
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	return c
}

// A viewer's POST is one trace, from the proxy that passes it on, through the owner of the claim and the parent's gateway, to the answer.
func TestPullIsOneTrace(t *testing.T) {
	spans := startCollector(t)
	nodes := runNodes(t, map[string]string{"g1": "germany", "g2": "germany", "s1": "singapore"}, nil)
	stream := "show"
	for i := 0; planner.Rank(adapters.StreamID(stream), []catalogue.NodeID{"g1", "g2"})[0] != "g2"; i++ {
		stream = fmt.Sprint("show", i)
	}
	publishAt(t, nodes["s1"], stream, nodes)

	const trace, viewer = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	p := player.New(loopbackClient())
	ctx, cancel := context.WithCancel(t.Context())
	played := make(chan error, 1)
	go func() {
		played <- p.Run(ctx, adapters.Endpoint{
			URL: gatewayURL(nodes["g1"], "/whep/"+stream), Header: http.Header{"Traceparent": {"00-" + trace + "-" + viewer + "-01"}},
		})
	}()
	if err := p.Wait(t.Context(), func(r player.Report) bool { return r.Frames > 5 }); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-played

	// name@node under name@node
	want := map[string]string{
		"play@g1": "", "wait for stream@g1": "play@g1", "offer to media server@g1": "play@g1",
		"claim@g1": "wait for stream@g1", "claim@g2": "claim@g1",
		"relay@g1": "wait for stream@g1", "grant@g1": "relay@g1", "grant@s1": "grant@g1",
		"WHEP@g1": "relay@g1", "pull@s1": "WHEP@g1", "offer to media server@s1": "pull@s1",
		"ICE@g1": "relay@g1", "first packet@g1": "relay@g1", "first key frame@g1": "relay@g1",
		"WHIP@g1": "relay@g1", "ICE to media server@g1": "relay@g1",
	}
	var got []collected
	eventually(t, "the whole trace is collected", func() bool {
		got = spans.of(trace)
		names := map[string]bool{}
		for _, s := range got {
			names[s.GetName()+"@"+s.node] = true
		}
		return len(names) >= len(want)
	})
	byID := map[string]collected{}
	for _, s := range got {
		byID[hex.EncodeToString(s.GetSpanId())] = s
	}
	for _, s := range got {
		name, parent := s.GetName()+"@"+s.node, ""
		if over, ok := byID[hex.EncodeToString(s.GetParentSpanId())]; ok {
			parent = over.GetName() + "@" + over.node
			if s.GetStartTimeUnixNano() < over.GetStartTimeUnixNano() {
				t.Errorf("%s begins before %s", name, parent)
			}
		} else if id := hex.EncodeToString(s.GetParentSpanId()); id != viewer {
			t.Errorf("%s has the parent %s, which nobody knows", name, id)
		}
		if under, ok := want[name]; !ok || under != parent {
			t.Errorf("%s is under %q, want %q", name, parent, under)
		}
		if s.service != "sidestream" || s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR || s.GetEndTimeUnixNano() < s.GetStartTimeUnixNano() {
			t.Errorf("%s: %v", name, s)
		}
		switch s.GetName() {
		case "play", "pull":
			if status := attribute(s.GetAttributes(), "http.response.status_code"); status != "201" || attribute(s.GetAttributes(), "sidestream.stream") != stream {
				t.Errorf("%s: %v", name, s.GetAttributes())
			}
		}
	}
	// The steps of explain are the same times.
	for _, status := range nodes["g1"].relays.Status() {
		for _, step := range status.Session.Steps {
			if step.Name != "first key frame" {
				continue
			}
			if !slices.ContainsFunc(got, func(s collected) bool {
				return s.GetName() == step.Name && s.GetEndTimeUnixNano() == uint64(step.At.UnixNano())
			}) {
				t.Errorf("%s: explain and the trace have other times", step.Name)
			}
		}
	}
	t.Log(strings.Join(slices.Sorted(func(yield func(string) bool) {
		for name := range want {
			if !yield(name) {
				return
			}
		}
	}), ", "))
}
