package relay

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/pion/webrtc/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// SessionMetrics counts what all sessions of a process carry. Streams are not told apart: their names are without bound.
type SessionMetrics struct {
	ends      *prometheus.CounterVec
	frees     *prometheus.CounterVec
	steps     map[string]prometheus.Observer // how soon a step is taken
	roundTrip *prometheus.HistogramVec
	added     *prometheus.HistogramVec
	changes   *prometheus.CounterVec
	changed   prometheus.Histogram
	freezes   *prometheus.HistogramVec
	layers    prometheus.Counter

	mu             sync.Mutex
	active         map[*Session]map[trackCounter]float64 // what was last read of each
	total          map[trackCounter]float64              // never falls
	carried, saved float64                               // bytes between clusters
}

// trackCounter is one counter, of one kind of media or by another label.
type trackCounter struct {
	description *prometheus.Desc
	label       string
}

var (
	activeDesc = prometheus.NewDesc("sidestream_relay_sessions",
		"Sessions of relays: starting, live.", []string{"state"}, nil)
	limitedDesc = prometheus.NewDesc("sidestream_relay_limited_sessions",
		"Relay sessions whose path from the parent lately carried less than was sent.", nil, nil)
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
		"Key frame requests sent to parents: once a second at most.", []string{"kind"}, nil)
	requestsReceivedDesc = prometheus.NewDesc("sidestream_relay_key_frame_requests_received_total",
		"Key frame requests received from the local server.", []string{"kind"}, nil)
	resentDesc = prometheus.NewDesc("sidestream_relay_resent_packets_total",
		"RTP packets sent again at the local server's request.", []string{"kind"}, nil)
	restartsDesc = prometheus.NewDesc("sidestream_relay_source_restarts_total",
		"New beginnings of a source's SSRC or sequence numbers.", []string{"kind"}, nil)
	clockJumpsDesc = prometheus.NewDesc("sidestream_relay_clock_jumps_total",
		"Jumps of a source's timestamps by more than ten seconds.", []string{"kind"}, nil)
	uselessDesc = prometheus.NewDesc("sidestream_relay_useless_packets_total",
		"Packets from parents and the local server that could not be read (malformed), or of what was not negotiated (unknown).",
		[]string{"why"}, nil)
	waitedDesc = prometheus.NewDesc("sidestream_relay_waited_packets_total",
		"RTP packets that waited for one before them, for local servers that want them in order.", []string{"kind"}, nil)
	givenUpDesc = prometheus.NewDesc("sidestream_relay_given_up_packets_total",
		"RTP packets that others waited for in vain.", []string{"kind"}, nil)
	filledDesc = prometheus.NewDesc("sidestream_relay_filled_packets_total",
		"Empty packets in the place of missing sound, for local servers that count.", []string{"kind"}, nil)
	sendErrorsDesc = prometheus.NewDesc("sidestream_relay_send_errors_total",
		"RTP packets that could not be sent to the local server.", []string{"kind"}, nil)
	carriedDesc = prometheus.NewDesc("sidestream_intercluster_bytes_total",
		"RTP payload bytes of relayed streams that came from other clusters, without second copies.", nil, nil)
	savedDesc = prometheus.NewDesc("sidestream_intercluster_saved_bytes_total",
		"RTP payload bytes that would have come from other clusters besides, had each viewer here played the stream at its origin's cluster.", nil, nil)
	standbyPacketsDesc = prometheus.NewDesc("sidestream_relay_standby_packets_total",
		"RTP packets received as second copies of streams; those of one that has taken over count as its source's, too.", []string{"kind"}, nil)
	standbyBytesDesc = prometheus.NewDesc("sidestream_relay_standby_bytes_total",
		"RTP payload bytes received as second copies of streams.", []string{"kind"}, nil)
	standbyFilledDesc = prometheus.NewDesc("sidestream_relay_standby_filled_total",
		"Holes in a stream that its second copy filled: packets, or runs of frames.", []string{"kind"}, nil)
)

// NewSessionMetrics makes the metrics and registers them; with a nil Registerer it only makes them.
func NewSessionMetrics(r prometheus.Registerer) *SessionMetrics {
	buckets := []float64{.05, .1, .2, .3, .5, .7, 1, 1.5, 2, 3, 5, 10}
	m := &SessionMetrics{
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_relay_session_ends_total",
			Help: "Relay sessions that ended, by the side that ended them and the step: play, connect, wait for media (it was accepted and nothing " +
				"came), wait for a key frame, publish, relay (the connection died), change codec; none: not wanted any more.",
		}, []string{"side", "step"}),
		frees: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_relay_session_frees_total",
			Help: "Sessions that were deleted at parents and the local server: freed, gone (the server did not know it any more), failed.",
		}, []string{"side", "result"}),
		roundTrip: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sidestream_relay_round_trip_seconds", Help: "Round trips of live relays, looked at every five seconds.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .15, .2, .3, .5, 1},
		}, []string{"side"}),
		added: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sidestream_relay_added_latency_seconds",
			Help:    "Time that packets take through live relays, smoothed, looked at every five seconds.",
			Buckets: []float64{1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, .001, .002, .005, .01, .02, .05},
		}, []string{"kind"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_relay_source_changes_total",
			Help: "Changes of source under live viewers: aligned (no frame need be missing), key frame, clock (sound alone), standby, failed.",
		}, []string{"how"}),
		changed: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sidestream_relay_source_change_seconds",
			Help: "From the begin of a change of source to media of the new one.", Buckets: buckets,
		}),
		freezes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sidestream_relay_freeze_seconds",
			Help:    "At changes of source: from the old source's last packet to the first that went on from the new one; a frame's time is no freeze.",
			Buckets: []float64{.02, .05, .1, .2, .3, .5, 1, 2, 5, 10},
		}, []string{"kind"}),
		layers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_relay_layer_changes_total",
			Help: "Times that a parent was asked for another simulcast layer, for what the path can carry.",
		}),
		active: make(map[*Session]map[trackCounter]float64),
		total:  make(map[trackCounter]float64),
	}
	firstPacket := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "sidestream_relay_first_packet_seconds", Help: "From a session's begin to its first packet.", Buckets: buckets,
	})
	firstKeyFrame := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "sidestream_relay_first_key_frame_seconds", Help: "From a session's begin to its first key frame.", Buckets: buckets,
	})
	live := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "sidestream_relay_live_seconds", Help: "From a session's begin to media in the local server.", Buckets: buckets,
	})
	m.steps = map[string]prometheus.Observer{StepFirstPacket: firstPacket, StepFirstKeyFrame: firstKeyFrame, StepLive: live}
	if r != nil {
		r.MustRegister(m.ends, m.frees, m.roundTrip, m.added, firstPacket, firstKeyFrame, live, m.changes, m.changed, m.freezes, m.layers, m)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *SessionMetrics) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		activeDesc, limitedDesc, packetsDesc, bytesDesc, lostDesc, repairedDesc, nacksDesc, requestsSentDesc, requestsReceivedDesc,
		resentDesc, waitedDesc, givenUpDesc, filledDesc, sendErrorsDesc, restartsDesc, clockJumpsDesc, uselessDesc,
		standbyPacketsDesc, standbyBytesDesc, standbyFilledDesc, carriedDesc, savedDesc,
	} {
		descriptions <- d
	}
}

// Collect implements prometheus.Collector: the media path itself counts nothing for it.
func (m *SessionMetrics) Collect(metrics chan<- prometheus.Metric) {
	m.mu.Lock()
	states := map[string]float64{"starting": 0, "live": 0}
	limited := 0.0
	for s := range m.active {
		status := m.readLocked(s)
		if status.Live {
			states["live"]++
		} else {
			states["starting"]++
		}
		if slices.ContainsFunc(status.Tracks, func(t TrackStatus) bool { return t.Limited }) {
			limited++
		}
	}
	total := maps.Clone(m.total)
	carried, saved := m.carried, m.saved
	m.mu.Unlock()
	for state, n := range states {
		metrics <- prometheus.MustNewConstMetric(activeDesc, prometheus.GaugeValue, n, state)
	}
	metrics <- prometheus.MustNewConstMetric(limitedDesc, prometheus.GaugeValue, limited)
	metrics <- prometheus.MustNewConstMetric(carriedDesc, prometheus.CounterValue, carried)
	metrics <- prometheus.MustNewConstMetric(savedDesc, prometheus.CounterValue, saved)
	for counter, n := range total {
		metrics <- prometheus.MustNewConstMetric(counter.description, prometheus.CounterValue, n, counter.label)
	}
}

// Intercluster is how many bytes of payload came from other clusters, and how many more would have come, had each viewer here
// played at the origin's cluster.
func (m *SessionMetrics) Intercluster() (carried, saved uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.active {
		m.readLocked(s)
	}
	return uint64(m.carried), uint64(m.saved)
}

// readLocked adds what a session has carried since it was last read, and gives its status.
func (m *SessionMetrics) readLocked(s *Session) SessionStatus {
	status, before := s.Status(), m.active[s]
	add := func(description *prometheus.Desc, label string, n uint64) {
		counter := trackCounter{description, label}
		// What was late rather than lost makes the count of losses fall again; a counter must not.
		rise := float64(n) - before[counter]
		if rise > 0 && description == bytesDesc && s.options.Share != nil {
			share := s.options.Share()
			if share.Crosses {
				m.carried += rise
			}
			m.saved += rise * float64(share.spared())
		}
		if rise >= 0 {
			m.total[counter] += rise
			before[counter] = float64(n)
		}
	}
	for _, t := range status.Tracks {
		for description, n := range map[*prometheus.Desc]uint64{
			packetsDesc: t.Packets, bytesDesc: t.Bytes, repairedDesc: t.Repaired, nacksDesc: t.NACKs,
			lostDesc:         t.Lost + t.Repaired,
			requestsSentDesc: t.KeyFrameRequestsSent, requestsReceivedDesc: t.KeyFrameRequestsReceived,
			resentDesc: t.Resent, waitedDesc: t.Waited, givenUpDesc: t.GivenUp, filledDesc: t.Filled,
			sendErrorsDesc: t.SendErrors, restartsDesc: t.Restarts, clockJumpsDesc: t.ClockJumps,
		} {
			add(description, t.Kind, n)
		}
	}
	if status.Standby != nil {
		for _, t := range status.Standby.Tracks {
			add(standbyPacketsDesc, t.Kind, t.Packets)
			add(standbyBytesDesc, t.Kind, t.Bytes)
			add(standbyFilledDesc, t.Kind, t.Filled)
		}
	}
	add(uselessDesc, "malformed", status.Malformed)
	add(uselessDesc, "unknown", status.Unknown)
	return status
}

func (m *SessionMetrics) begin(s *Session) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.active[s] = make(map[trackCounter]float64)
}

func (m *SessionMetrics) end(s *Session, err error) {
	if m == nil {
		return
	}
	side, step := "none", "none" // it was no longer wanted
	if failure, ok := errors.AsType[*SessionError](err); ok {
		side, step = string(failure.Side), failure.Step
	}
	m.ends.WithLabelValues(side, step).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readLocked(s)
	delete(m.active, s)
}

// step takes notice of a step that was taken so long after the session began.
func (m *SessionMetrics) step(name string, after time.Duration) {
	if m == nil {
		return
	}
	if h, ok := m.steps[name]; ok {
		observe(h, after)
	}
}

// freed counts a session that was closed on one side.
func (m *SessionMetrics) freed(side Side, gone bool, err error) {
	if m == nil {
		return
	}
	result := "freed"
	switch {
	case err != nil:
		result = "failed"
	case gone:
		result = "gone"
	}
	m.frees.WithLabelValues(string(side), result).Inc()
}

// lookInterval is how often a live session's times are looked at.
const lookInterval = 5 * time.Second

// look takes the times of a live session as they are now, and what it has carried for the viewers of now.
func (m *SessionMetrics) look(s *Session) {
	if m == nil {
		return
	}
	m.mu.Lock()
	status := m.readLocked(s)
	m.mu.Unlock()
	for _, t := range status.Tracks {
		observe(m.roundTrip.WithLabelValues(string(Parent)), t.RTT)
		observe(m.roundTrip.WithLabelValues(string(LocalServer)), t.ServerRTT)
		observe(m.added.WithLabelValues(t.Kind), t.Added)
	}
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

// freeze gives what observes the breaks of one kind of media at changes of source.
func (m *SessionMetrics) freeze(kind webrtc.RTPCodecType) func(time.Duration) {
	h := m.freezes.WithLabelValues(kind.String())
	return func(d time.Duration) { observe(h, d) }
}

// layer counts a parent that was asked for another layer.
func (m *SessionMetrics) layer() {
	if m != nil {
		m.layers.Inc()
	}
}

func observe(h prometheus.Observer, d time.Duration) {
	if d > 0 {
		h.Observe(d.Seconds())
	}
}
