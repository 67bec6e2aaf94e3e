package main

import (
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
)

var (
	buildDesc = prometheus.NewDesc("sidestream_build_info",
		"1, with what runs here: the program's version, Go's, and the adapter.", []string{"version", "go_version", "adapter"}, nil)
	streamsDesc = prometheus.NewDesc("sidestream_catalogue_streams",
		"Names of streams that are known here: published at this node (local), or elsewhere only (remote).", []string{"origin"}, nil)
	holdsDesc = prometheus.NewDesc("sidestream_catalogue_holds",
		"Nodes that have a stream, for all streams that are known here: as its origin, or by a relay.", []string{"role"}, nil)
	conflictsDesc = prometheus.NewDesc("sidestream_catalogue_conflicts",
		"Names under which more than one publication is known here; all nodes show the same one.", nil, nil)
	inventoryAgeDesc = prometheus.NewDesc("sidestream_adapter_inventory_age_seconds",
		"For how long the media server has not told or confirmed its streams; 0 while one that pushes changes is connected.", nil, nil)
	upDesc = prometheus.NewDesc("sidestream_adapter_up",
		"1: the media server can be watched.", nil, nil)
	serverErrorsDesc = prometheus.NewDesc("sidestream_adapter_errors_total",
		"Times that the media server could not be watched, or no longer.", nil, nil)
	serverStreamsDesc = prometheus.NewDesc("sidestream_adapter_streams",
		"Streams that the media server reported last.", nil, nil)
	readersDesc = prometheus.NewDesc("sidestream_adapter_readers",
		"Readers that the media server reported last, of all streams, relays of other nodes among them; none where it does not count them.", nil, nil)
)

// nodeCollector shows what a node knows at the moment when it is asked.
type nodeCollector struct{ node *node }

// Describe implements prometheus.Collector.
func (nodeCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		buildDesc, streamsDesc, holdsDesc, conflictsDesc, inventoryAgeDesc, upDesc, serverErrorsDesc, serverStreamsDesc, readersDesc,
	} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c nodeCollector) Collect(to chan<- prometheus.Metric) {
	n := c.node
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(buildDesc, 1, version, runtime.Version(), n.settings.Adapter.Name)

	state, _ := n.known.Snapshot()
	var local, remote, origins, relays, conflicts float64
	for _, id := range state.Streams() {
		if _, ok := state.Origin(id); ok {
			local++
		} else {
			remote++
		}
		holds := state.Holds(id)
		for _, h := range holds {
			if len(h.Path) == 1 {
				origins++
			} else {
				relays++
			}
		}
		if len(state.Holders(id)) < len(holds) {
			conflicts++
		}
	}
	gauge(streamsDesc, local, "local")
	gauge(streamsDesc, remote, "remote")
	gauge(holdsDesc, origins, "origin")
	gauge(holdsDesc, relays, "relay")
	gauge(conflictsDesc, conflicts)

	age, up := n.inventoryAge(time.Now())
	gauge(inventoryAgeDesc, age.Seconds())
	gauge(upDesc, up)
	n.mu.Lock()
	reported, losses := n.reported, n.losses
	n.mu.Unlock()
	to <- prometheus.MustNewConstMetric(serverErrorsDesc, prometheus.CounterValue, float64(losses))
	readers, counted := 0, false
	for _, s := range reported {
		if s.Readers >= 0 {
			readers, counted = readers+s.Readers, true
		}
	}
	gauge(serverStreamsDesc, float64(len(reported)))
	if counted || len(reported) == 0 {
		gauge(readersDesc, float64(readers))
	}
}

// inventoryAge is for how long what the media server said last has not been confirmed, and 1 while it can be watched.
func (n *node) inventoryAge(now time.Time) (age time.Duration, up float64) {
	n.mu.Lock()
	lost := n.lost
	n.mu.Unlock()
	if lost.IsZero() {
		up = 1
	} else {
		age = now.Sub(lost)
	}
	if c, ok := n.adapter.(adapters.Confirmer); ok {
		if at := c.Confirmed(); !at.IsZero() {
			age = now.Sub(at)
		}
	}
	return max(age, 0), up
}
