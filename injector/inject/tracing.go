package inject

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// tracing are the variables of OpenTelemetry that a sidecar may be told; true: it is secret.
var tracing = map[string]bool{
	"OTEL_SDK_DISABLED": false, "OTEL_SERVICE_NAME": false, "OTEL_RESOURCE_ATTRIBUTES": false,
	"OTEL_TRACES_EXPORTER": false, "OTEL_TRACES_SAMPLER": false, "OTEL_TRACES_SAMPLER_ARG": false,
	"OTEL_EXPORTER_OTLP_ENDPOINT": false, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": false,
	"OTEL_EXPORTER_OTLP_PROTOCOL": false, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": false,
	"OTEL_EXPORTER_OTLP_INSECURE": false, "OTEL_EXPORTER_OTLP_TIMEOUT": false, "OTEL_EXPORTER_OTLP_COMPRESSION": false,
	"OTEL_EXPORTER_OTLP_HEADERS": true,
	"OTEL_BSP_SCHEDULE_DELAY":    false, "OTEL_BSP_MAX_QUEUE_SIZE": false, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": false,
}

// Tracing picks from variables as os.Environ gives them those that all sidecars are told of traces.
func Tracing(environ []string) (map[string]string, error) {
	found := map[string]string{}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		switch secret, ok := tracing[name]; {
		case !ok || value == "":
		case secret:
			return nil, fmt.Errorf("%s would stand in every pod: name a Secret by the pods' annotation %s%s, or have a collector in the cluster "+
				"that knows it", name, Domain, annotationOf(name))
		default:
			found[name] = value
		}
	}
	return found, nil
}

// traces renders what the sidecar is told of traces: by all pods' settings, and by its own.
func (m *mutation) traces() {
	told := maps.Clone(m.options.Tracing)
	if told == nil {
		told = map[string]string{}
	}
	for name, value := range m.wishes.values {
		if !strings.HasPrefix(name, config.Prefix) {
			told[name] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(told)) {
		m.settings = append(m.settings, corev1.EnvVar{Name: name, Value: escape(told[name])})
	}
	for _, name := range slices.Sorted(maps.Keys(m.wishes.refs)) {
		if ref := m.wishes.refs[name]; !strings.HasPrefix(name, config.Prefix) {
			m.settings = append(m.settings, corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &ref}})
		}
	}
}
