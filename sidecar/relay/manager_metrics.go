package relay

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/sidecar/planner"
)

// Labels' values.
const (
	resultLive    = "live"
	resultOrigin  = "origin"
	resultMissing = "missing"
	resultFull    = "full"
	resultTimeout = "timeout"
	resultUnfit   = "unfit"

	endUnwanted = "unwanted"
	endMoved    = "moved"
	endOrigin   = "origin"
	endLoop     = "loop"
	endLost     = "lost"
	endQuiet    = "quiet"
	endDrained  = "drained"
	endDropped  = "dropped"
	endRefused  = "refused"
	endFailed   = "failed"
	endUnfit    = "unfit"
	endYielded  = "yielded"

	endInfeasible = "infeasible"

	claimGranted = "granted"
	claimHeld    = "held"
	claimSilent  = "silent"
	claimForeign = "foreign"

	standbyTook     = "took over"
	standbyFailed   = "failed"
	standbyUnwanted = "unwanted"
)

type managerMetrics struct {
	connecting  prometheus.Gauge
	live        prometheus.Gauge
	starts      prometheus.Counter
	ends        *prometheus.CounterVec
	losses      prometheus.Counter
	untilLive   prometheus.Histogram
	acquires    *prometheus.CounterVec
	acquireTime prometheus.Histogram
	claims      *prometheus.CounterVec
	answers     *prometheus.CounterVec

	standbys       prometheus.Gauge
	standbyMissing prometheus.Gauge
	standbyEnds    *prometheus.CounterVec
}

// newManagerMetrics registers the metrics; without a registerer they count for nobody.
func newManagerMetrics(r prometheus.Registerer) *managerMetrics {
	relays := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sidestream_relays", Help: "Streams that are relayed here, or are about to be: connecting, live.",
	}, []string{"state"})
	standbys := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sidestream_relay_standbys", Help: "Second copies of relayed streams: running, or missing.",
	}, []string{"state"})
	m := &managerMetrics{
		standbys:       standbys.WithLabelValues("running"),
		standbyMissing: standbys.WithLabelValues("missing"),
		standbyEnds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_relay_standby_ends_total", Help: "Second copies that ended: took over, failed, unwanted.",
		}, []string{"reason"}),
		connecting: relays.WithLabelValues("connecting"),
		live:       relays.WithLabelValues("live"),
		starts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_relay_starts_total", Help: "Attempts to relay a stream.",
		}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_relay_ends_total", Help: "Relays and attempts that ended: unwanted, drained, moved, origin (it is published here), lost and quiet (the parent is gone, " +
				"or has nothing), dropped (the local server lost it), loop, infeasible, refused, unfit (the server does not take its codecs), " +
				"yielded (to a publisher), failed.",
		}, []string{"reason"}),
		losses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_relay_source_losses_total",
			Help: "Live relays that lost their source, and whose publication waited for another one.",
		}),
		untilLive: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sidestream_relay_start_seconds", Help: "Time from the start of an attempt until media flowed.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 9),
		}),
		acquires: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_acquires_total", Help: "Plays that asked for a stream: live, origin (it is published here), missing, full, timeout, unfit.",
		}, []string{"result"}),
		acquireTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sidestream_acquire_seconds", Help: "Time that plays waited until their stream was live here.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
		}),
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_claims_total", Help: "Claims to fetch a stream for the cluster that this node asked for: granted, held (by another node), silent, foreign.",
		}, []string{"answer"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_claim_answers_total", Help: "Claims that this node answered as owner: granted, held, foreign.",
		}, []string{"answer"}),
	}
	for _, v := range []string{resultLive, resultOrigin, resultMissing, resultFull, resultTimeout, resultUnfit} {
		m.acquires.WithLabelValues(v)
	}
	for _, v := range []string{
		endUnwanted, endMoved, endOrigin, endLoop, endLost, endQuiet, endDrained, endDropped, endRefused, endFailed, endInfeasible, endYielded, endUnfit,
	} {
		m.ends.WithLabelValues(v)
	}
	for _, v := range []string{standbyTook, standbyFailed, standbyUnwanted} {
		m.standbyEnds.WithLabelValues(v)
	}
	for _, v := range []string{claimGranted, claimHeld, claimSilent} {
		m.claims.WithLabelValues(v)
	}
	if r != nil {
		r.MustRegister(relays, m.starts, m.ends, m.losses, m.untilLive, m.acquires, m.acquireTime, m.claims, m.answers,
			standbys, m.standbyEnds)
	}
	return m
}

func (m *managerMetrics) acquired(result string, since time.Time) {
	m.acquires.WithLabelValues(result).Inc()
	if result == resultLive {
		m.acquireTime.Observe(time.Since(since).Seconds())
	}
}

func (c Claim) label() string {
	switch {
	case c.Granted:
		return claimGranted
	case c.Holder != "":
		return claimHeld
	}
	return claimForeign
}

// endOf is the label for why the planner ends a relay.
func endOf(why planner.Reason) string {
	switch why {
	case planner.WhyOrigin, planner.WhySuperseded:
		return endOrigin
	case planner.WhyLost:
		return endLost
	case planner.WhyQuiet:
		return endQuiet
	}
	return endLoop
}
