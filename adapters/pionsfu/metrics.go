package pionsfu

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// traffic sums what sessions have received and sent. Bytes are of payload.
type traffic struct {
	packetsIn, bytesIn, nacksOut, plisOut                                   uint64 // of publishers
	packetsOut, bytesOut, resent, nacksIn, plisIn, skips, switches, dropped uint64 // of viewers
}

func (t *traffic) add(o traffic) {
	t.packetsIn += o.packetsIn
	t.bytesIn += o.bytesIn
	t.nacksOut += o.nacksOut
	t.plisOut += o.plisOut
	t.packetsOut += o.packetsOut
	t.bytesOut += o.bytesOut
	t.resent += o.resent
	t.nacksIn += o.nacksIn
	t.plisIn += o.plisIn
	t.skips += o.skips
	t.switches += o.switches
	t.dropped += o.dropped
}

// totals is the traffic of all sessions, and how many there are.
func (r *registry) totals() (t traffic, publishers, viewers, halfOpen int) {
	r.mu.Lock()
	t, halfOpen = r.past, r.halfOpen
	counting := slices.Collect(maps.Keys(r.ending))
	for _, s := range r.sessions {
		switch {
		case !s.connected:
			continue
		case s.publish:
			publishers++
		default:
			viewers++
		}
		counting = append(counting, s)
	}
	r.mu.Unlock()
	// Outside the lock: a session's own locks are held while it sends. One that ends now is counted here once, and by
	// the next call in past.
	for _, s := range counting {
		t.add(s.traffic())
	}
	return t, publishers, viewers, halfOpen
}

const namespace = "sidestream_sfu_"

// collector reads the registry when it is scraped, so that no counter stands in the way of packets.
type collector struct {
	registry *registry
	sessions *prometheus.Desc
	counters []counter
}

type counter struct {
	desc  *prometheus.Desc
	label string
	value func(traffic) uint64
}

func newCollector(r *registry) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+name, help, labels, nil)
	}
	packets := desc("packets_total", "RTP packets received from publishers and sent to viewers.", "direction")
	octets := desc("payload_bytes_total", "RTP payload received from publishers and sent to viewers.", "direction")
	nacks := desc("nacks_total", "NACK packets received from viewers and sent to publishers.", "direction")
	plis := desc("key_frame_requests_total", "Key frame requests received from viewers and sent to publishers.", "direction")
	resent := desc("resent_packets_total", "Packets sent again to viewers who lost them.")
	skips := desc("skips_total", "Times that a viewer was too slow and skipped to the live edge.")
	switches := desc("layer_switches_total", "Times that a viewer was moved to another simulcast layer.")
	dropped := desc("simulated_lost_packets_total", "Packets to viewers that were thrown away because their clients asked for it.")
	return &collector{
		registry: r,
		sessions: desc("sessions", "Sessions now, by kind; connecting ones are of either.", "kind"),
		counters: []counter{
			{packets, "in", func(t traffic) uint64 { return t.packetsIn }},
			{packets, "out", func(t traffic) uint64 { return t.packetsOut }},
			{octets, "in", func(t traffic) uint64 { return t.bytesIn }},
			{octets, "out", func(t traffic) uint64 { return t.bytesOut }},
			{nacks, "in", func(t traffic) uint64 { return t.nacksIn }},
			{nacks, "out", func(t traffic) uint64 { return t.nacksOut }},
			{plis, "in", func(t traffic) uint64 { return t.plisIn }},
			{plis, "out", func(t traffic) uint64 { return t.plisOut }},
			{resent, "", func(t traffic) uint64 { return t.resent }},
			{skips, "", func(t traffic) uint64 { return t.skips }},
			{switches, "", func(t traffic) uint64 { return t.switches }},
			{dropped, "", func(t traffic) uint64 { return t.dropped }},
		},
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(descs chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, descs) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(metrics chan<- prometheus.Metric) {
	t, publishers, viewers, halfOpen := c.registry.totals()
	for kind, n := range map[string]int{"publish": publishers, "play": viewers, "connecting": halfOpen} {
		metrics <- prometheus.MustNewConstMetric(c.sessions, prometheus.GaugeValue, float64(n), kind)
	}
	for _, counter := range c.counters {
		var labels []string
		if counter.label != "" {
			labels = []string{counter.label}
		}
		metrics <- prometheus.MustNewConstMetric(counter.desc, prometheus.CounterValue, float64(counter.value(t)), labels...)
	}
}

// register makes the counter of refusals, which is counted in any case, and registers everything where there is a
// registerer.
func register(registerer prometheus.Registerer, r *registry) (refused *prometheus.CounterVec, err error) {
	refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: namespace + "refused_total", Help: "Requests refused and sessions dropped, by reason.",
	}, []string{"reason"})
	if registerer == nil {
		return refused, nil
	}
	for _, c := range []prometheus.Collector{newCollector(r), refused} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return refused, nil
}
