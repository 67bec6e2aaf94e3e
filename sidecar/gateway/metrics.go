package gateway

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/sidestream-dev/sidestream/adapters"
)

// The kinds of request in metrics.
const (
	kindPlay    = "play"
	kindPublish = "publish"
	kindSession = "session"
	kindForward = "forward" // a session of another node
	kindPull    = "pull"
	kindPeer    = "peer" // sessions, on the peer port
	kindOther   = "other"

	kindPreflight = "preflight"
	kindHealth    = "health"
)

// statusGone stands in metrics for a caller that left before the answer.
const statusGone = 499

type metrics struct {
	requests *prometheus.CounterVec
	refusals *prometheus.CounterVec
	pulls    *prometheus.CounterVec
	holds    *prometheus.HistogramVec
	held     prometheus.Gauge
	sessions prometheus.Gauge
	open     *prometheus.GaugeVec
	placed   *prometheus.CounterVec
	left     prometheus.Counter
	yielded  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_gateway_requests_total", Help: "Requests answered, by kind (play, publish, session, forward, pull, peer, preflight, health, other) and class of status, such as 2xx.",
		}, []string{"kind", "class"}),
		refusals: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_gateway_refusals_total", Help: "Requests that the gateway itself refused: limit_plays, limit_publications, limit_address, limit_stream, sessions, rate_address, " +
				"rate_stream, name, token, token_scope, token_unchecked, pull_token, closed, body, codec, held, answer (of the server, of no use).",
		}, []string{"reason"}),
		pulls: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_gateway_pulls_total", Help: "Pulls by children: opened, refused (by the server), failed, too_many, rate, bad_name, bad_method, bad_token, bad_body.",
		}, []string{"outcome"}),
		holds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sidestream_gateway_hold_seconds", Help: "How long viewers waited for a stream to be fetched: served, missing, refused, timeout, gone (the viewer), failed.",
			Buckets: []float64{0.05, 0.1, 0.2, 0.4, 0.7, 1, 2, 4, 7, 10, 15, 30},
		}, []string{"outcome"}),
		held: f.NewGauge(prometheus.GaugeOpts{
			Name: "sidestream_gateway_held_viewers", Help: "Viewers that wait for a stream to be fetched.",
		}),
		sessions: f.NewGauge(prometheus.GaugeOpts{
			Name: "sidestream_gateway_sessions", Help: "Viewers' sessions that are looked after as demand.",
		}),
		open: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sidestream_gateway_open_sessions", Help: "Sessions that were opened here and have not ended as far as is known: play, publish.",
		}, []string{"kind"}),
		placed: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_gateway_placed_total", Help: "New sessions for other nodes of the cluster: forwarded, redirected, refused (by that node's server), failed.",
		}, []string{"outcome"}),
		left: f.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_gateway_abandoned_total", Help: "Sessions that were deleted because their client had left before the answer.",
		}),
		yielded: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_gateway_takeovers_total", Help: "Publishers for whom a relay of the same name was ended: published, refused (by the server), failed.",
		}, []string{"outcome"}),
	}
}

func (m *metrics) refused(reason string) { m.refusals.WithLabelValues(reason).Inc() }

func (m *metrics) answered(r *recorder) {
	m.requests.WithLabelValues(r.kind, strconv.Itoa(r.status/100)+"xx").Inc()
}

// recorder notes what became of a request, and lets pages of other origins read the answer.
type recorder struct {
	http.ResponseWriter
	kind   string
	status int // 0: none was written
	stream adapters.StreamID
	peer   bool   // it came by the peer port
	cors   *cors  // nil: none is added
	origin string // of the page that asks
	own    bool   // the answer is the gateway's, not the server's
}

// WriteHeader notes the final status; interim ones (RFC 9110 section 15.2) go by.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		r.status = status
		if r.cors != nil && r.origin != "" && (r.own || r.kind != kindOther) {
			r.cors.answer(r.Header(), r.origin)
		}
	}
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the server's writer, to flush and to take the connection over.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
