package pionsfu

import (
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// traffic sums what sessions have received and sent. Bytes are of payload.
type traffic struct {
	packetsIn, bytesIn, nacksOut, plisOut                                   uint64 // of publishers
	malformed, unknown, forged                                              uint64 // of both
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
	t.malformed += o.malformed
	t.unknown += o.unknown
	t.forged += o.forged
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

// class is what is told of a viewer's track: all of it comes from small sets, whatever publishers call their layers.
type class struct{ codec, layer, path string }

// classes counts the tracks of connected viewers.
func (r *registry) classes() map[class]int {
	r.mu.Lock()
	var viewers []*viewer
	for _, s := range r.sessions {
		if s.connected && !s.publish {
			viewers = append(viewers, s.viewer)
		}
	}
	r.mu.Unlock()
	all := make(map[class]int)
	for _, v := range viewers {
		path := "wide"
		if _, limited := v.session.conn.Bandwidth(); limited {
			path = "narrow"
		}
		for _, l := range v.lanes {
			_, codec, _ := strings.Cut(l.feed.codec.Load().MimeType, "/")
			all[class{strings.ToLower(codec), l.feed.rank(l.asked.Load()), path}]++
		}
	}
	return all
}

// rank names a layer by how its bit rate compares with that of the others.
func (f *feed) rank(l *layer) string {
	if len(f.layers) == 1 {
		return "only"
	}
	less, more := false, false
	for _, other := range f.layers {
		less = less || other.rate.bits.Load() < l.rate.bits.Load()
		more = more || other.rate.bits.Load() > l.rate.bits.Load()
	}
	switch {
	case !more:
		return "high"
	case less:
		return "middle"
	default:
		return "low"
	}
}

const namespace = "sidestream_sfu_"

// collector reads the registry when it is scraped, so that no counter stands in the way of packets.
type collector struct {
	registry *registry
	sessions *prometheus.Desc
	tracks   *prometheus.Desc
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
	useless := desc("useless_packets_total", "Packets of sessions that could not be read, were not negotiated, or were replays or forgeries.", "reason")
	return &collector{
		registry: r,
		tracks: desc("viewer_tracks", "Tracks that viewers get now: codec; layer, by bit rate, or \"only\" without simulcast; and whether"+
			" the path to the viewer is known to be narrow.", "codec", "layer", "path"),
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
			{useless, "malformed", func(t traffic) uint64 { return t.malformed }},
			{useless, "unknown", func(t traffic) uint64 { return t.unknown }},
			{useless, "forged", func(t traffic) uint64 { return t.forged }},
			{dropped, "", func(t traffic) uint64 { return t.dropped }},
		},
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(c, descs)
	descs <- c.tracks // there may be none at first
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(metrics chan<- prometheus.Metric) {
	t, publishers, viewers, halfOpen := c.registry.totals()
	for kind, n := range map[string]int{"publish": publishers, "play": viewers, "connecting": halfOpen} {
		metrics <- prometheus.MustNewConstMetric(c.sessions, prometheus.GaugeValue, float64(n), kind)
	}
	for class, n := range c.registry.classes() {
		metrics <- prometheus.MustNewConstMetric(c.tracks, prometheus.GaugeValue, float64(n), class.codec, class.layer, class.path)
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
