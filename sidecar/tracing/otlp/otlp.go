// Package otlp sends a node's traces to an OpenTelemetry collector, where the standard variables of the environment say so. The node
// makes one Provider and runs it for as long as anything may be traced.
package otlp

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

// flushTime bounds the last export, when the process ends.
const flushTime = 3 * time.Second

// Options say whose traces they are.
type Options struct {
	Service                           string // unless OTEL_SERVICE_NAME says another
	Node, Cluster, Namespace, Version string
	Logger                            *slog.Logger
}

// Provider makes spans and sends them in batches. What a collector does not take in time is thrown away: the queue is bounded
// (OTEL_BSP_MAX_QUEUE_SIZE, 2048 spans), and nobody waits for it.
type Provider struct {
	traces *sdktrace.TracerProvider
	logger *slog.Logger
}

// Wanted says whether the environment names a collector, and does not forbid its use.
func Wanted() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || strings.EqualFold(os.Getenv("OTEL_TRACES_EXPORTER"), "none") {
		return false
	}
	return first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") != ""
}

// first is the value of the first variable that has one.
func first(names ...string) string {
	for _, name := range names {
		if value := strings.TrimSpace(os.Getenv(name)); value != "" {
			return value
		}
	}
	return ""
}

// New makes a provider; nil where no traces are wanted. How many pulls are traced, and what is said of the node besides, is read from
// the environment by the SDK: OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES. Nothing is sent before Run.
func New(ctx context.Context, o Options) *Provider {
	if !Wanted() {
		return nil
	}
	about := []attribute.KeyValue{
		attribute.String("service.name", o.Service), attribute.String("service.version", o.Version),
		attribute.String("service.instance.id", o.Node), attribute.String("sidestream.cluster", o.Cluster),
	}
	if o.Namespace != "" {
		about = append(about, attribute.String("k8s.namespace.name", o.Namespace))
	}
	of, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(about...), resource.WithFromEnv())
	if err != nil { // of the environment's words those that can be read are in it
		o.Logger.Warn("OTEL_RESOURCE_ATTRIBUTES cannot be read whole", "error", err)
	}
	return &Provider{traces: sdktrace.NewTracerProvider(sdktrace.WithResource(of)), logger: o.Logger}
}

// Tracer makes spans; nil, of a nil provider.
func (p *Provider) Tracer() trace.Tracer {
	if p == nil {
		return nil
	}
	return p.traces.Tracer(tracing.Scope)
}

// Run sends traces until ctx ends, and then what is left. A collector that cannot be used is no reason to end: the streams go on.
func (p *Provider) Run(ctx context.Context) error {
	exporter, err := newExporter(ctx)
	if err != nil {
		p.logger.Error("traces cannot be sent: see the OTEL_ variables", "error", err)
		<-ctx.Done()
		return ctx.Err()
	}
	// The SDK has one handler a process. What it says of a collector that is away, it says for each batch.
	sometimes := rate.NewLimiter(rate.Every(time.Minute), 1)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		if sometimes.Allow() {
			p.logger.Warn("traces are lost", "error", err)
		}
	}))
	p.traces.RegisterSpanProcessor(sdktrace.NewBatchSpanProcessor(exporter))
	p.logger.Info("traces are sent", "to", first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"))
	<-ctx.Done()
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if err := p.traces.Shutdown(bound); err != nil {
		p.logger.Warn("last traces are lost", "error", err)
		_ = exporter.Shutdown(bound) // breaks off what is under way, for which the SDK would go on waiting
	}
	return ctx.Err()
}

// newExporter speaks the protocol that the environment names, without one gRPC. Neither waits for the collector.
func newExporter(ctx context.Context) (*otlptrace.Exporter, error) {
	switch protocol := first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); protocol {
	case "", "grpc":
		return otlptracegrpc.New(ctx)
	case "http/protobuf":
		return otlptracehttp.New(ctx)
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL is %q: write grpc or http/protobuf", protocol)
	}
}
