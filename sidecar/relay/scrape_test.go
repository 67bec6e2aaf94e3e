package relay

import (
	"fmt"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// BenchmarkScrape is a scrape while 100 relays of one stream carry media.
func BenchmarkScrape(b *testing.B) {
	registry := prometheus.NewPedanticRegistry()
	metrics := NewSessionMetrics(registry)
	newManagerMetrics(registry)
	origin, local := newSFU(b), newSFU(b)
	publish(b, origin, "vp8")
	for i := range 100 {
		newRelay(b, origin, local, func(o *SessionOptions) {
			o.To, o.Metrics = local.Ingest(fmt.Sprint("demo", i)), metrics
			o.Share = func() Share { return Share{Crosses: true, Foreign: true, Viewers: 2} }
		})
	}
	page := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	for b.Loop() {
		page.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(b.Context(), "GET", "/metrics", nil))
	}
	families, err := registry.Gather()
	if err != nil {
		b.Fatal(err)
	}
	series := 0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			series += 1 + len(m.GetHistogram().GetBucket())
		}
		if f.GetName() == "sidestream_relay_sessions" && f.GetMetric()[0].GetGauge().GetValue()+f.GetMetric()[1].GetGauge().GetValue() != 100 {
			b.Errorf("%v", f)
		}
	}
	b.ReportMetric(float64(series), "series")
}
