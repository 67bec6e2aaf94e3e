package mesh

import (
	"errors"
	"sync"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/protobuf/proto"

	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// maxClusters bounds the label that peers choose.
const maxClusters = 64

type metrics struct {
	frames      *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	resyncs     *prometheus.CounterVec
	refused     *prometheus.CounterVec
	lost        prometheus.Counter
	sleeps      prometheus.Counter
	dialsFailed prometheus.Counter
	tlsFailures *prometheus.CounterVec
	delayed     prometheus.Counter
	rtts        *prometheus.HistogramVec
	server      *grpcprom.ServerMetrics
	client      *grpcprom.ClientMetrics

	mu       sync.Mutex
	clusters map[string]struct{}
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	m := &metrics{
		frames: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_mesh_frames_total",
			Help: "Frames exchanged with peers, by direction (in, out) and kind.",
		}, []string{"direction", "kind"}),
		bytes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_mesh_bytes_total",
			Help: "Bytes of the frames exchanged with peers, without what gRPC and TLS add, by direction (in, out).",
		}, []string{"direction"}),
		resyncs: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_mesh_resyncs_total",
			Help: "Full sets of holds exchanged with peers in place of changes, as for each new connection, by direction (in, out).",
		}, []string{"direction"}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_mesh_refused_total",
			Help: "Peers, or parts of what they said, that were refused, by reason.",
		}, []string{"reason"}),
		lost: f.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_mesh_heartbeats_lost_total",
			Help: "Peers that were given up because their heartbeats did not come any more.",
		}),
		sleeps: f.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_mesh_sleeps_total",
			Help: "Times that this process stood still for more than half a second, and could hear nobody.",
		}),
		dialsFailed: f.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_mesh_dials_failed_total",
			Help: "Connections to peers that did not come about, or broke.",
		}),
		tlsFailures: newTLSFailures(r),
		delayed: f.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_mesh_frames_delayed_total",
			Help: "Frames after which a peer was not read for a while, because it sends too many.",
		}),
		rtts: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sidestream_mesh_rtt_seconds",
			Help:    "Smoothed round trips to peers, at each heartbeat, by their cluster.",
			Buckets: []float64{.001, .005, .02, .05, .1, .15, .2, .3, .5},
		}, []string{"peer_cluster"}),
		server:   grpcprom.NewServerMetrics(),
		client:   grpcprom.NewClientMetrics(),
		clusters: map[string]struct{}{},
	}
	if r != nil {
		r.MustRegister(m.server, m.client)
	}
	return m
}

// newTLSFailures makes the one counter that a Port and a Mesh of the same registry share.
func newTLSFailures(r prometheus.Registerer) *prometheus.CounterVec {
	failures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sidestream_mesh_tls_failures_total",
		Help: "Connections with peers, in both directions, that TLS did not let come about: expired, authority, name, plaintext, other.",
	}, []string{"reason"})
	if r != nil {
		var already prometheus.AlreadyRegisteredError
		if err := r.Register(failures); errors.As(err, &already) {
			failures = already.ExistingCollector.(*prometheus.CounterVec)
		} else if err != nil {
			panic(err) // as promauto does
		}
	}
	for _, reason := range []string{faultExpired, faultAuthority, faultName, faultPlaintext, faultOther} {
		failures.WithLabelValues(reason)
	}
	return failures
}

// The states of peers, as a label.
const (
	statePeerReady   = "ready"
	statePeerUnready = "unready"
	statePeerDrains  = "draining"
	statePeerAway    = "disconnected"
)

var (
	peersDesc = prometheus.NewDesc("sidestream_mesh_peers",
		"Peers, and addresses of peers, by their cluster and state: ready, unready, draining, disconnected.",
		[]string{"peer_cluster", "state"}, nil)
	conditionsDesc = prometheus.NewDesc("sidestream_mesh_conditions",
		"Peers, and addresses of peers, with a condition that a person should look at, by condition.", []string{"condition"}, nil)
	expiryDesc = prometheus.NewDesc("sidestream_mesh_certificate_expiry_timestamp_seconds",
		"When this node's certificate for peers expires.", nil, nil)
)

// collector shows what a Mesh knows at the moment when it is asked.
type collector struct{ mesh *Mesh }

func (collector) Describe(to chan<- *prometheus.Desc) {
	to <- peersDesc
	to <- conditionsDesc
	to <- expiryDesc
}

func (c collector) Collect(to chan<- prometheus.Metric) {
	counts := map[string]int{}
	for _, condition := range conditions {
		counts[condition] = 0
	}
	type place struct{ cluster, state string }
	peers := map[place]int{}
	for _, p := range c.mesh.Peers() {
		peers[place{c.mesh.metrics.cluster(p.Cluster), stateOf(p)}]++
		for _, condition := range p.Conditions {
			counts[condition]++
		}
	}
	for at, n := range peers {
		to <- prometheus.MustNewConstMetric(peersDesc, prometheus.GaugeValue, float64(n), at.cluster, at.state)
	}
	for condition, n := range counts {
		to <- prometheus.MustNewConstMetric(conditionsDesc, prometheus.GaugeValue, float64(n), condition)
	}
	if s := c.mesh.o.Security; s != nil && !s.plaintext() {
		to <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(s.expiry().Unix()))
	}
}

func stateOf(p PeerStatus) string {
	switch {
	case !p.Connected:
		return statePeerAway
	case p.Draining:
		return statePeerDrains
	case !p.Ready:
		return statePeerUnready
	}
	return statePeerReady
}

func (m *metrics) rtt(cluster string, rtt time.Duration) {
	m.rtts.WithLabelValues(m.cluster(cluster)).Observe(rtt.Seconds())
}

func (m *metrics) frame(direction string, f *pb.Frame) {
	m.frames.WithLabelValues(direction, kindOf(f)).Inc()
	m.bytes.WithLabelValues(direction).Add(float64(proto.Size(f)))
	if h := f.GetHolds(); h != nil && h.GetBase() == 0 && !h.GetMore() { // its last piece
		m.resyncs.WithLabelValues(direction).Inc()
	}
}

// cluster is a peer's cluster as a label. The first ones keep their names; where nobody has answered it is not known.
func (m *metrics) cluster(name string) string {
	if name == "" {
		return "unknown"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.clusters[name]; !ok {
		if len(m.clusters) >= maxClusters {
			return "other"
		}
		m.clusters[name] = struct{}{}
	}
	return name
}

func kindOf(f *pb.Frame) string {
	switch f.GetBody().(type) {
	case *pb.Frame_Hello, *pb.Frame_Confirm:
		return "handshake"
	case *pb.Frame_Heartbeat:
		return "heartbeat"
	case *pb.Frame_Holds:
		return "holds"
	case *pb.Frame_ClaimRequest, *pb.Frame_ClaimAnswer:
		return "claim"
	case *pb.Frame_PullRequest, *pb.Frame_PullAnswer:
		return "pull"
	case *pb.Frame_Obituary:
		return "obituary"
	case *pb.Frame_Goodbye, *pb.Frame_Refusal:
		return "end"
	default:
		return "unknown"
	}
}
