package relay

import (
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// SessionMetrics counts what all sessions of a process carry. Streams are not told apart: their names are without bound.
type SessionMetrics struct {
	ends        *prometheus.CounterVec
	firstPacket prometheus.Histogram
	live        prometheus.Histogram
	changes     *prometheus.CounterVec
	changed     prometheus.Histogram
	layers      prometheus.Counter

	mu     sync.Mutex
	active map[*Session]map[trackCounter]float64 // what was last read of each
	tracks map[*Session]map[string]*media.Track  // and by which tracks, by kind
	total  map[trackCounter]float64              // never falls
}

// trackCounter is one counter of one kind of media.
type trackCounter struct {
	description *prometheus.Desc
	kind        string
}

var (
	activeDesc = prometheus.NewDesc("sidestream_relay_sessions",
		"Relay sessions by state.", []string{"state"}, nil)
	packetsDesc = prometheus.NewDesc("sidestream_relay_packets_total",
		"RTP packets received from parents.", []string{"kind"}, nil)
	bytesDesc = prometheus.NewDesc("sidestream_relay_bytes_total",
		"RTP payload bytes received from parents.", []string{"kind"}, nil)
	lostDesc = prometheus.NewDesc("sidestream_relay_lost_packets_total",
		"RTP packets that did not come from parents when they were due, repaired ones included.", []string{"kind"}, nil)
	repairedDesc = prometheus.NewDesc("sidestream_relay_repaired_packets_total",
		"RTP packets that were lost and came by retransmission.", []string{"kind"}, nil)
	nacksDesc = prometheus.NewDesc("sidestream_relay_nacks_total",
		"NACK packets sent to parents.", []string{"kind"}, nil)
	requestsSentDesc = prometheus.NewDesc("sidestream_relay_key_frame_requests_sent_total",
		"Key frame requests sent to parents.", []string{"kind"}, nil)
	requestsReceivedDesc = prometheus.NewDesc("sidestream_relay_key_frame_requests_received_total",
		"Key frame requests received from the local server.", []string{"kind"}, nil)
	resentDesc = prometheus.NewDesc("sidestream_relay_resent_packets_total",
		"RTP packets sent again at the local server's request.", []string{"kind"}, nil)
	sendErrorsDesc = prometheus.NewDesc("sidestream_relay_send_errors_total",
		"RTP packets that could not be sent to the local server.", []string{"kind"}, nil)
	standbyPacketsDesc = prometheus.NewDesc("sidestream_relay_standby_packets_total",
		"RTP packets received as second copies of streams.", []string{"kind"}, nil)
	standbyBytesDesc = prometheus.NewDesc("sidestream_relay_standby_bytes_total",
		"RTP payload bytes received as second copies of streams.", []string{"kind"}, nil)
	filledDesc = prometheus.NewDesc("sidestream_relay_standby_filled_total",
		"Holes in a stream that its second copy filled: packets, or runs of frames.", []string{"kind"}, nil)
)

// NewSessionMetrics makes the metrics and registers them; with a nil Registerer it only makes them.
func NewSessionMetrics(r prometheus.Registerer) *SessionMetrics {
	buckets := []float64{.05, .1, .2, .3, .5, .7, 1, 1.5, 2, 3, 5, 10}
	m := &SessionMetrics{
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_relay_session_ends_total", Help: "Relay sessions that ended, by the side that ended them.",
		}, []string{"side"}),
		firstPacket: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sidestream_relay_first_packet_seconds", Help: "From a session's begin to its first packet.", Buckets: buckets,
		}),
		live: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sidestream_relay_live_seconds", Help: "From a session's begin to media in the local server.", Buckets: buckets,
		}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_relay_source_changes_total",
			Help: "Changes of source of a live relay session, by how the new source took over.",
		}, []string{"how"}),
		changed: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sidestream_relay_source_change_seconds",
			Help: "From the begin of a change of source to media of the new one.", Buckets: buckets,
		}),
		layers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_relay_layer_changes_total",
			Help: "Times that a parent was asked for another simulcast layer, for what the path can carry.",
		}),
		active: make(map[*Session]map[trackCounter]float64),
		tracks: make(map[*Session]map[string]*media.Track),
		total:  make(map[trackCounter]float64),
	}
	if r != nil {
		r.MustRegister(m.ends, m.firstPacket, m.live, m.changes, m.changed, m.layers, m)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *SessionMetrics) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		activeDesc, packetsDesc, bytesDesc, lostDesc, repairedDesc, nacksDesc, requestsSentDesc, requestsReceivedDesc,
		resentDesc, sendErrorsDesc, standbyPacketsDesc, standbyBytesDesc, filledDesc,
	} {
		descriptions <- d
	}
}

// Collect implements prometheus.Collector: the media path itself counts nothing for it.
func (m *SessionMetrics) Collect(metrics chan<- prometheus.Metric) {
	m.mu.Lock()
	states := map[string]float64{"starting": 0, "live": 0}
	for s := range m.active {
		if m.readLocked(s) {
			states["live"]++
		} else {
			states["starting"]++
		}
	}
	total := maps.Clone(m.total)
	m.mu.Unlock()
	for state, n := range states {
		metrics <- prometheus.MustNewConstMetric(activeDesc, prometheus.GaugeValue, n, state)
	}
	for counter, n := range total {
		metrics <- prometheus.MustNewConstMetric(counter.description, prometheus.CounterValue, n, counter.kind)
	}
}

// readLocked adds what a session has carried since it was last read, and says whether it is live.
func (m *SessionMetrics) readLocked(s *Session) (live bool) {
	status, before := s.Status(), m.active[s]
	if status.Standby != nil {
		for _, t := range status.Standby.Tracks {
			for description, n := range map[*prometheus.Desc]uint64{
				standbyPacketsDesc: t.Packets, standbyBytesDesc: t.Bytes, filledDesc: t.Filled,
			} {
				counter := trackCounter{description, t.Kind}
				m.total[counter] += float64(n) - before[counter]
				before[counter] = float64(n)
			}
		}
	}
	for _, t := range status.Tracks {
		// Another source counts from its own begin; what it brought as a second copy has been counted as such.
		if now := s.sourceOf(t.Kind); now.track != m.tracks[s][t.Kind] {
			m.tracks[s][t.Kind] = now.track
			for description, n := range map[*prometheus.Desc]uint64{
				packetsDesc: now.counts.packets, bytesDesc: now.counts.bytes, lostDesc: now.counts.lost,
				repairedDesc: 0, nacksDesc: 0, requestsSentDesc: 0,
			} {
				before[trackCounter{description, t.Kind}] = float64(n)
			}
		}
		for description, n := range map[*prometheus.Desc]uint64{
			packetsDesc: t.Packets, bytesDesc: t.Bytes, repairedDesc: t.Repaired, nacksDesc: t.NACKs,
			lostDesc:         t.Lost + t.Repaired,
			requestsSentDesc: t.KeyFrameRequestsSent, requestsReceivedDesc: t.KeyFrameRequestsReceived,
			resentDesc: t.Resent, sendErrorsDesc: t.SendErrors,
		} {
			counter := trackCounter{description, t.Kind}
			// What was late rather than lost makes the count of losses fall again; a counter must not.
			if rise := float64(n) - before[counter]; rise >= 0 {
				m.total[counter] += rise
				before[counter] = float64(n)
			}
		}
	}
	return status.Live
}

func (m *SessionMetrics) begin(s *Session) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.active[s], m.tracks[s] = make(map[trackCounter]float64), make(map[string]*media.Track)
}

func (m *SessionMetrics) end(s *Session, err error) {
	if m == nil {
		return
	}
	side := "none" // it was no longer wanted
	if failure, ok := errors.AsType[*SessionError](err); ok {
		side = string(failure.Side)
	}
	m.ends.WithLabelValues(side).Inc()
	observe(m.firstPacket, s.took(StepPlay, StepFirstPacket))
	observe(m.live, s.took(StepPlay, StepLive))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readLocked(s)
	delete(m.active, s)
	delete(m.tracks, s)
}

// change counts a change of source that took so long.
func (m *SessionMetrics) change(how string, took time.Duration, err error) {
	if m == nil {
		return
	}
	if err != nil {
		m.changes.WithLabelValues("failed").Inc()
		return
	}
	m.changes.WithLabelValues(how).Inc()
	observe(m.changed, took)
}

// layer counts a parent that was asked for another layer.
func (m *SessionMetrics) layer() {
	if m != nil {
		m.layers.Inc()
	}
}

func observe(h prometheus.Histogram, d time.Duration) {
	if d > 0 {
		h.Observe(d.Seconds())
	}
}
