package mesh

import (
	"sync"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// maxClusters bounds the label that peers choose.
const maxClusters = 64

type metrics struct {
	peers       *prometheus.GaugeVec
	frames      *prometheus.CounterVec
	refused     *prometheus.CounterVec
	lost        prometheus.Counter
	dialsFailed prometheus.Counter
	rtts        *prometheus.HistogramVec
	server      *grpcprom.ServerMetrics
	client      *grpcprom.ClientMetrics

	shown map[string]struct{} // clusters that peers has a value for; guarded by Mesh.mu

	mu       sync.Mutex
	clusters map[string]struct{}
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	m := &metrics{
		peers: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sidestream_mesh_peers",
			Help: "Peers that are connected now, by their cluster.",
		}, []string{"peer_cluster"}),
		frames: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_mesh_frames_total",
			Help: "Frames exchanged with peers, by direction (in, out) and kind.",
		}, []string{"direction", "kind"}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_mesh_refused_total",
			Help: "Peers, or parts of what they said, that were refused, by reason.",
		}, []string{"reason"}),
		lost: f.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_mesh_heartbeats_lost_total",
			Help: "Peers that were given up because their heartbeats did not come any more.",
		}),
		dialsFailed: f.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_mesh_dials_failed_total",
			Help: "Connections to peers that did not come about, or broke.",
		}),
		rtts: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sidestream_mesh_rtt_seconds",
			Help:    "Smoothed round trips to peers, at each heartbeat, by their cluster.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .15, .2, .3, .5, 1},
		}, []string{"peer_cluster"}),
		server:   grpcprom.NewServerMetrics(),
		client:   grpcprom.NewClientMetrics(),
		shown:    map[string]struct{}{},
		clusters: map[string]struct{}{},
	}
	if r != nil {
		r.MustRegister(m.server, m.client)
	}
	return m
}

func (m *metrics) setPeers(counts map[string]int) {
	sums := map[string]float64{}
	for cluster, n := range counts {
		sums[m.cluster(cluster)] += float64(n)
	}
	for cluster := range m.shown {
		if _, ok := sums[cluster]; !ok {
			m.peers.WithLabelValues(cluster).Set(0)
		}
	}
	for cluster, n := range sums {
		m.shown[cluster] = struct{}{}
		m.peers.WithLabelValues(cluster).Set(n)
	}
}

func (m *metrics) rtt(cluster string, rtt time.Duration) {
	m.rtts.WithLabelValues(m.cluster(cluster)).Observe(rtt.Seconds())
}

func (m *metrics) frame(direction string, f *pb.Frame) {
	m.frames.WithLabelValues(direction, kindOf(f)).Inc()
}

// cluster is a peer's cluster as a label. The first ones keep their names.
func (m *metrics) cluster(name string) string {
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
