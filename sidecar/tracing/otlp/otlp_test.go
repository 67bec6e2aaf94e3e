package otlp

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Traces are off unless a collector is named, and may be forbidden all the same.
func TestWanted(t *testing.T) {
	for name, tt := range map[string]struct {
		environ map[string]string
		want    bool
	}{
		"nothing":         {nil, false},
		"endpoint":        {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, true},
		"traces endpoint": {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, true},
		"disabled":        {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_SDK_DISABLED": "TRUE"}, false},
		"no exporter":     {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_TRACES_EXPORTER": "none"}, false},
		"a name alone":    {map[string]string{"OTEL_SERVICE_NAME": "video", "OTEL_TRACES_SAMPLER": "always_on"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range tt.environ {
				t.Setenv(k, v)
			}
			p := New(t.Context(), Options{Service: "sidestream", Logger: slog.New(slog.DiscardHandler)})
			if (p != nil) != tt.want || (p.Tracer() != nil) != tt.want {
				t.Errorf("%v", p)
			}
		})
	}
}

// run runs a provider that has made a span, and gives what it has logged when it has ended, and how long that took.
func run(t *testing.T) (log string, took time.Duration) {
	t.Helper()
	buffer := &lines{}
	p := New(t.Context(), Options{Service: "sidestream", Node: "a", Logger: slog.New(slog.NewTextHandler(buffer, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	for !strings.Contains(buffer.String(), "traces c") && !strings.Contains(buffer.String(), "traces are sent") {
		time.Sleep(time.Millisecond)
	}
	_, span := p.Tracer().Start(t.Context(), "play")
	span.End()
	cancel()
	began := time.Now()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	return buffer.String(), time.Since(began)
}

// lines is a log that may be read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A collector that accepts and never answers keeps the process no longer than it may.
func TestEndIsBounded(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+listener.Addr().String())
	if log, took := run(t); took > flushTime+time.Second {
		t.Errorf("it took %s: %s", took, log)
	}
}

// The other protocol is spoken where the environment says so, and what was made last is sent at the end.
func TestHTTP(t *testing.T) {
	posted := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { posted <- r.Method + " " + r.URL.Path }))
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	run(t)
	select {
	case got := <-posted:
		if got != "POST /v1/traces" {
			t.Error(got)
		}
	default:
		t.Error("nothing was sent")
	}
	http.DefaultClient.CloseIdleConnections()
}

// What cannot be spoken ends nothing, and is said.
func TestUnknownProtocol(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
	if log, _ := run(t); !strings.Contains(log, "write grpc or http/protobuf") {
		t.Error(log)
	}
}
