package mesh

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// Clusters are named by peers: those beyond a bound share one label, so that the metrics of a mesh stay below their share of
// what one scrape may hold.
func TestClustersAreBounded(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	m := newMetrics(registry)
	for i := range 10 * maxClusters {
		m.rtt(fmt.Sprint("cluster-", i), time.Millisecond)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var series int
	var clusters []string
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			series++
			if h := metric.GetHistogram(); h != nil {
				series += len(h.GetBucket()) + 2
				clusters = append(clusters, metric.GetLabel()[0].GetValue())
			}
		}
	}
	if len(clusters) != maxClusters+1 || !slices.Contains(clusters, "other") {
		t.Errorf("%d clusters: %s", len(clusters), clusters)
	}
	if series > 1200 {
		t.Errorf("%d series", series)
	}
}

// A full set of holds is a resync, in however many pieces it comes; changes are none.
func TestFramesAreCounted(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	m := newMetrics(registry)
	for _, h := range []*pb.Holds{
		{Sequence: 1, More: true}, {Sequence: 1}, // a full set in two pieces
		{Sequence: 2, Base: 1}, {Sequence: 3, Base: 2, More: true}, {Sequence: 3, Base: 2},
	} {
		m.frame("in", &pb.Frame{Body: &pb.Frame_Holds{Holds: h}})
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP sidestream_mesh_resyncs_total Full sets of holds exchanged with peers in place of changes, as for each new connection, by direction (in, out).
# TYPE sidestream_mesh_resyncs_total counter
sidestream_mesh_resyncs_total{direction="in"} 1
`), "sidestream_mesh_resyncs_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(m.bytes.WithLabelValues("in")); n == 0 {
		t.Error("no bytes")
	}
}

func TestStateOf(t *testing.T) {
	for want, p := range map[string]PeerStatus{
		"disconnected": {Ready: true},
		"ready":        {Connected: true, Ready: true},
		"unready":      {Connected: true},
		"draining":     {Connected: true, Ready: true, Draining: true},
	} {
		if got := stateOf(p); got != want {
			t.Errorf("%+v is %s", p, got)
		}
	}
}
