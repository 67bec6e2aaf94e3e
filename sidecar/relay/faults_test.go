package relay

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

type (
	kind    = webrtc.RTPCodecType
	packets = []*rtp.Packet
)

const (
	audio = webrtc.RTPCodecTypeAudio
	video = webrtc.RTPCodecTypeVideo
)

// from lets what a source sends of a kind be tampered with from its n-th packet on.
func from(of kind, n int, tamper func(n int, p *rtp.Packet) packets) func(kind, *rtp.Packet) packets {
	seen := 0
	return func(k kind, p *rtp.Packet) packets {
		if k != of {
			return packets{p}
		}
		if seen++; seen <= n {
			return packets{p}
		}
		return tamper(seen-n, p)
	}
}

// Whatever a source sends, what is whole of it goes on, the session at the local server stays, and it is counted.
func TestFaultySource(t *testing.T) {
	t.Parallel()
	both := relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true}
	const after = 150 // packets: a good half second of video, three seconds of sound
	for _, test := range []struct {
		name   string
		shape  relaytest.Shape
		tamper func(kind, *rtp.Packet) packets
		late   int // frames that may stay incomplete
		counts func(SessionStatus) bool
		metric string // that shows it, by its label
		label  string
	}{
		{
			name: "sequence numbers wrap", shape: both,
			tamper: func() func(kind, *rtp.Packet) packets {
				first := map[kind]uint16{}
				return func(k kind, p *rtp.Packet) packets {
					if _, ok := first[k]; !ok {
						first[k] = p.SequenceNumber
					}
					p.SequenceNumber += 65536 - 50 - first[k]
					return packets{p}
				}
			}(),
			counts: func(s SessionStatus) bool {
				return s.Tracks[0].Lost+s.Tracks[1].Lost+s.Tracks[0].Restarts+s.Tracks[1].Restarts+s.Tracks[0].NACKs == 0
			},
		},
		{
			name: "sequence numbers jump", shape: both,
			tamper: from(video, after, func(_ int, p *rtp.Packet) packets {
				p.SequenceNumber += 20000
				return packets{p}
			}),
			late:   1,
			counts: func(s SessionStatus) bool { return restarts(s) == 1 && s.Tracks[0].NACKs+s.Tracks[1].NACKs <= 2 },
			metric: "sidestream_relay_source_restarts_total", label: "video",
		},
		{
			name: "timestamps jump ahead", shape: both,
			tamper: from(video, after, func(_ int, p *rtp.Packet) packets {
				p.Timestamp += 3600 * 90000
				return packets{p}
			}),
			late:   1,
			counts: func(s SessionStatus) bool { return jumps(s) == 1 },
			metric: "sidestream_relay_clock_jumps_total", label: "video",
		},
		{
			name: "timestamps jump back", shape: both,
			tamper: from(audio, after, func(_ int, p *rtp.Packet) packets {
				p.Timestamp -= 3600 * 48000
				return packets{p}
			}),
			counts: func(s SessionStatus) bool { return jumps(s) == 1 },
			metric: "sidestream_relay_clock_jumps_total", label: "audio",
		},
		{
			name: "payloads are noise", shape: both,
			tamper: from(video, after, func() func(int, *rtp.Packet) packets {
				random := rand.New(rand.NewPCG(1, 2))
				return func(n int, p *rtp.Packet) packets {
					if n > 60 {
						return packets{p}
					}
					p.Payload = p.Payload[:random.IntN(16)]
					for i := range p.Payload {
						p.Payload[i] = byte(random.Uint32())
					}
					return packets{p}
				}
			}()),
			late:   20,
			counts: func(SessionStatus) bool { return true },
		},
		{
			name: "padding, and headers that are full", shape: both,
			tamper: from(video, after, func(n int, p *rtp.Packet) packets {
				p.CSRC = make([]uint32, 8)
				if n%2 == 0 {
					p.Padding, p.Header.PaddingSize = true, 60
				}
				p.Extension, p.ExtensionProfile = true, 0x1000
				_ = p.SetExtension(200, make([]byte, 40)) // of an id that was not negotiated
				return packets{p}
			}),
			counts: func(s SessionStatus) bool { return s.Malformed == 0 },
		},
		{
			name: "a payload type that was not negotiated", shape: both,
			tamper: from(video, after, func(n int, p *rtp.Packet) packets {
				other := p.Clone()
				other.PayloadType = 35
				p.SequenceNumber += uint16(2 * n)
				other.SequenceNumber = p.SequenceNumber - 1
				return packets{other, p}
			}),
			// The numbers between belong to what is ignored, and cannot be had.
			counts: func(s SessionStatus) bool { return s.Unknown > 10 },
			metric: "sidestream_relay_useless_packets_total", label: "unknown",
		},
		{
			name: "a source of its own for a moment", shape: both,
			tamper: from(video, after, func(n int, p *rtp.Packet) packets {
				other := p.Clone()
				other.SSRC, other.PayloadType, other.Payload = 77, 35, []byte("x")
				if n > 30 {
					return packets{p}
				}
				return packets{other, p}
			}),
			counts: func(s SessionStatus) bool { return s.Unknown > 10 },
			metric: "sidestream_relay_useless_packets_total", label: "unknown",
		},
		{
			name: "the source takes another SSRC", shape: both,
			tamper: from(video, after, func(_ int, p *rtp.Packet) packets {
				p.SSRC += 1000
				p.SequenceNumber += 31000
				p.Timestamp += 123456
				return packets{p}
			}),
			late:   2,
			counts: func(s SessionStatus) bool { return restarts(s) == 1 },
			metric: "sidestream_relay_source_restarts_total", label: "video",
		},
		{
			name: "another resolution", shape: both,
			tamper: from(video, after, func(_ int, p *rtp.Packet) packets {
				if p.Payload[0] == 0x67 { // the parameter set before each key frame
					p.Payload[1]++
				}
				return packets{p}
			}),
			counts: func(SessionStatus) bool { return true },
		},
		{
			name: "discontinuous sound", shape: both,
			tamper: from(audio, after/2, discontinuous()),
			counts: func(s SessionStatus) bool {
				return s.Source.Flow == FlowOn && restarts(s)+jumps(s) == 0 && s.Tracks[0].NACKs+s.Tracks[1].NACKs == 0
			},
		},
		{
			name: "discontinuous sound alone", shape: relaytest.Shape{Audio: true},
			tamper: from(audio, after/2, discontinuous()),
			counts: func(s SessionStatus) bool {
				return s.Source.Flow == FlowOn && restarts(s)+jumps(s) == 0 && s.Tracks[0].NACKs == 0
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewPedanticRegistry()
			shape := test.shape
			shape.Tamper = test.tamper
			h := newHop(t, hopOptions{shape: shape, options: func(o *SessionOptions) { o.Metrics = NewSessionMetrics(registry) }})
			h.awaitLive()
			r := h.awaitReception(func(r relaytest.Reception) bool {
				return (shape.Video == "" || r.Frames >= 120) && r.Audio >= after+50
			})
			status := h.session.Status()
			if r.Late > test.late || !test.counts(status) {
				t.Errorf("%d frames of %d stayed incomplete; the session says %+v", r.Late, r.Frames, status)
			}
			if err := h.sink.Await(bound(t), func(opened, deleted int) bool { return opened == 1 && deleted == 0 }); err != nil {
				t.Errorf("the session at the local server did not stay: %v", err)
			}
			if test.metric != "" && gathered(t, registry, test.metric)[test.label] == 0 {
				t.Errorf("%s shows nothing: %v", test.metric, gathered(t, registry, test.metric))
			}
			h.cancel()
			_ = h.end()
			h.awaitFreed(1, 1)
		})
	}
}

func restarts(s SessionStatus) (n uint64) {
	for _, t := range s.Tracks {
		n += t.Restarts
	}
	return n
}

func jumps(s SessionStatus) (n uint64) {
	for _, t := range s.Tracks {
		n += t.ClockJumps
	}
	return n
}

// discontinuous leaves out what would be silence, a second of every two: timestamps go on meanwhile, sequence numbers do not, and
// the first packet after it is marked (RFC 3551, section 4.1).
func discontinuous() func(int, *rtp.Packet) packets {
	var left uint16
	return func(n int, p *rtp.Packet) packets {
		if n%100 < 50 {
			left++
			return nil
		}
		p.Marker = n%100 == 50
		p.SequenceNumber -= left
		return packets{p}
	}
}

// Two tracks that a source sends under one SSRC cannot be told apart: one is carried, or none, and nothing is left behind.
func TestCollidingTracks(t *testing.T) {
	t.Parallel()
	shape := relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true, Tamper: func(_ kind, p *rtp.Packet) packets {
		p.SSRC = 4242
		return packets{p}
	}}
	h := newHop(t, hopOptions{shape: shape, limits: func(l *limits) { l.step, l.keyFrame, l.settleVideo = 2*time.Second, 2*time.Second, time.Second }})
	select {
	case <-h.session.Live():
		h.awaitReception(func(r relaytest.Reception) bool { return r.Audio > 50 || r.Frames > 20 })
		// What else came is counted as of no use, as a new beginning or as lost, or it is dropped as forged before anybody sees it:
		// as the two tracks' numbers happen to lie.
		t.Logf("%+v", h.session.Status())
		h.cancel()
		_ = h.end()
	case err := <-h.result:
		if _, ok := errors.AsType[*SessionError](err); !ok {
			t.Errorf("Run: %v", err)
		}
	case <-bound(t).Done():
		t.Fatalf("neither live nor ended: %+v", h.session.Status())
	}
	same := func(opened, deleted int) bool { return opened == deleted }
	if h.source.Await(bound(t), same) != nil || h.sink.Await(bound(t), same) != nil {
		t.Error("a session is left")
	}
}

// front is a proxy that answers DELETEs by itself.
func front(t *testing.T, to adapters.Endpoint, status int) (at adapters.Endpoint, deletes *atomic.Int64) {
	t.Helper()
	base := *to.URL
	base.Path = ""
	proxy := httputil.NewSingleHostReverseProxy(&base)
	deletes = new(atomic.Int64)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			deletes.Add(1)
			http.Error(w, "no", status)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	at = endpoint(web.URL)
	at.URL.Path = to.URL.Path
	return at, deletes
}

// A server that will not delete a session, or does not know it any more, holds nobody up; the connection is closed all the same.
func TestSessionCannotBeDeleted(t *testing.T) {
	t.Parallel()
	for status, result := range map[int]string{500: "failed", 404: "gone", 410: "gone"} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewPedanticRegistry()
			var atParent, atServer *atomic.Int64
			h := newHop(t, hopOptions{shape: relaytest.Shape{Video: webrtc.MimeTypeH264}, options: func(o *SessionOptions) {
				o.Metrics = NewSessionMetrics(registry)
				o.From, atParent = front(t, o.From, status)
				o.To, atServer = front(t, o.To, status)
			}})
			h.awaitLive()
			h.cancel()
			if err := h.end(); !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
			if atParent.Load() == 0 || atServer.Load() == 0 {
				t.Errorf("%d and %d DELETEs", atParent.Load(), atServer.Load())
			}
			freed := map[string]float64{}
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					if f.GetName() == "sidestream_relay_session_frees_total" {
						freed[m.GetLabel()[0].GetValue()] += m.GetCounter().GetValue()
					}
				}
			}
			if len(freed) != 1 || freed[result] != 2 {
				t.Errorf("freed: %v", freed)
			}
			// Both servers saw the connections closed.
			if err := h.source.AwaitIdle(bound(t)); err != nil {
				t.Errorf("at the source: %v", err)
			}
			if err := h.sink.AwaitIdle(bound(t)); err != nil {
				t.Errorf("at the sink: %v", err)
			}
		})
	}
}

// A connection that comes about and then dies without a word, or never comes about, ends the session with the side that it was on.
func TestConnectionDies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		cut  string // the address whose packets are lost
		live bool   // once it is live, not from the beginning
		side Side
		step string
	}{
		{"to the parent, in mid-stream", "10.0.0.1:", true, Parent, "relay"},
		{"to the local server, in mid-stream", "10.0.0.3:", true, LocalServer, "relay"},
		{"to the parent, from the beginning", "10.0.0.1:", false, Parent, "connect"},
		{"to the local server, from the beginning", "10.0.0.3:", false, LocalServer, "connect"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			registry := prometheus.NewPedanticRegistry()
			n := newNetwork(t, time.Millisecond, func(int) bool { return false })
			cut := func() { n.cut.Store(&test.cut) }
			if !test.live {
				cut()
			}
			h := newHop(t, hopOptions{
				network: n, shape: relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true},
				options: func(o *SessionOptions) { o.Metrics = NewSessionMetrics(registry) },
				limits:  func(l *limits) { l.step = 4 * time.Second },
			})
			if test.live {
				h.awaitLive()
				h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= 30 })
				cut()
			}
			err := h.end()
			failure, ok := errors.AsType[*SessionError](err)
			if !ok || failure.Side != test.side || failure.Step != test.step {
				t.Errorf("Run: %v", err)
			}
			if ends := gathered(t, registry, "sidestream_relay_session_ends_total"); ends[string(test.side)] != 1 {
				t.Errorf("ends: %v", ends)
			}
			opened := 1
			if test.side == Parent && !test.live {
				opened = 0 // nothing was published
			}
			h.awaitFreed(1, opened)
		})
	}
}

// A source that dies without a word is seen to be silent at once, long before the connection is.
func TestSilenceIsSeenBeforeTheConnectionDies(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, time.Millisecond, func(int) bool { return false })
	h := newHop(t, hopOptions{
		network: n, shape: relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true},
		options: func(o *SessionOptions) { o.Grace = time.Minute },
	})
	h.awaitLive()
	h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= 30 })
	source := "10.0.0.1:"
	n.cut.Store(&source)
	var flows []string
	for deadline := bound(t); ; {
		state, changed := h.session.Source()
		if len(flows) == 0 || flows[len(flows)-1] != string(state.Flow) {
			flows = append(flows, string(state.Flow))
		}
		if state.Flow == FlowLost {
			break
		}
		select {
		case <-changed:
		case <-deadline.Done():
			t.Fatalf("the source is not lost: %v", flows)
		}
	}
	if got := strings.Join(flows, " "); !strings.HasSuffix(got, "silent lost") {
		t.Errorf("the source was %s", got)
	}
	h.cancel()
	_ = h.end()
	h.awaitFreed(1, 1)
}

// What a relay has carried is counted over all its sources.
func TestCountsGoOnAfterAChange(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	origin, other, local := newSFU(t), newSFU(t), newSFU(t)
	publish(t, origin, "h264")
	newRelay(t, origin, other, nil)
	r := newRelay(t, origin, local, func(o *SessionOptions) { o.Metrics = NewSessionMetrics(registry) })
	v := newViewer(t, local)
	v.await(60, 60)
	carried := func() (packets, bytes float64) {
		return gathered(t, registry, "sidestream_relay_packets_total")["video"], gathered(t, registry, "sidestream_relay_bytes_total")["video"]
	}
	packets, bytes := carried()
	how := r.change(t, Source{From: other.Egress("demo"), Same: true})
	v.await(30, 30)
	after, moved := carried()
	if after < packets+30 || moved <= bytes {
		t.Errorf("%v packets and %v bytes before, %v and %v after", packets, bytes, after, moved)
	}
	if n := gathered(t, registry, "sidestream_relay_source_changes_total")[how]; n != 1 {
		t.Errorf("%v changes %s", n, how)
	}
	r.options.Metrics.look(r.Session)
	for name, label := range map[string]string{
		"sidestream_relay_added_latency_seconds": "video", "sidestream_relay_round_trip_seconds": string(Parent),
	} {
		if observed(t, registry, name, label) == 0 {
			t.Errorf("%s shows nothing", name)
		}
	}
	for _, name := range []string{
		"sidestream_relay_first_packet_seconds", "sidestream_relay_first_key_frame_seconds", "sidestream_relay_live_seconds",
	} {
		if observed(t, registry, name, "") != 1 {
			t.Errorf("%s was not seen while the relay is live", name)
		}
	}
}

// observed counts what a histogram was given, by its only label.
func observed(t *testing.T, registry *prometheus.Registry, name, label string) (n uint64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (label == "" || m.GetLabel()[0].GetValue() == label) {
				n += m.GetHistogram().GetSampleCount()
			}
		}
	}
	return n
}
