package main

import (
	"flag"
	"log/slog"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/sidestream-dev/sidestream/e2e/metricsdoc"
	"github.com/sidestream-dev/sidestream/injector/certs"
)

var update = flag.Bool("update", false, "write the generated part of docs/metrics.md anew")

// The manual's table is that of the code.
func TestMetricsAreDocumented(t *testing.T) {
	client, registry, logger := fake.NewClientset(), prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	newMetrics(registry)
	newMissed(client.CoreV1(), newEvents(client.CoreV1(), logger), nil, registry, logger)
	certs.New(certs.Options{Registerer: registry, Logger: logger})
	all, err := metricsdoc.Of(registry, "sidestream_")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if i := slices.IndexFunc(m.Labels, func(l string) bool { return l != "reason" }); i >= 0 {
			t.Errorf("%s has the label %s", m.Name, m.Labels[i])
		}
	}
	if err := metricsdoc.Fresh("../docs/metrics.md", "injector", metricsdoc.Table(all), *update); err != nil {
		t.Error(err)
	}
}
