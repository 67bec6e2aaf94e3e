package inject

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// Where traces go is told to all sidecars, and otherwise to one whose pod says so; what is secret comes of a Secret.
func TestTracing(t *testing.T) {
	told, err := Tracing([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317", "OTEL_METRICS_EXPORTER=none", "PATH=/", "OTEL_SERVICE_NAME="})
	if d := cmp.Diff(map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, told); err != nil || d != "" {
		t.Fatal(err, d)
	}
	if _, err := Tracing([]string{"OTEL_EXPORTER_OTLP_HEADERS=key=hunter2"}); err == nil || strings.Contains(err.Error(), "hunter2") ||
		!strings.Contains(err.Error(), "sidestream.dev/otel-exporter-otlp-headers") {
		t.Error(err)
	}

	pod, namespace := read(t, "mediamtx")
	pod.Annotations[Domain+"otel-traces-sampler"] = "traceidratio"
	pod.Annotations[Domain+"otel-exporter-otlp-headers"] = "collector/headers"
	o := options()
	o.Tracing = map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://$(NODE_IP):4317", "OTEL_TRACES_SAMPLER": "always_off"}
	after, decision := mutate(t, pod, namespace, o)
	if decision.Reason != Injected {
		t.Fatal(decision)
	}
	got := map[string]string{}
	for _, c := range append(after.Spec.InitContainers, after.Spec.Containers...) {
		for _, e := range c.Env {
			if strings.HasPrefix(e.Name, "OTEL_") && c.Name == ContainerName {
				got[e.Name] = valueOf(e)
			}
		}
	}
	if d := cmp.Diff(map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://$$(NODE_IP):4317", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_EXPORTER_OTLP_HEADERS": "collector/headers",
	}, got); d != "" {
		t.Error(d)
	}

	pod, namespace = read(t, "mediamtx")
	pod.Annotations[Domain+"otel-exporter-endpoint"] = "http://collector:4317"
	if _, decision := mutate(t, pod, namespace, options()); decision.Reason != BadAnnotation || !strings.Contains(decision.Message, "did you mean") {
		t.Error(decision)
	}
}

func valueOf(e corev1.EnvVar) string {
	if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
		return e.ValueFrom.SecretKeyRef.Name + "/" + e.ValueFrom.SecretKeyRef.Key
	}
	return e.Value
}
