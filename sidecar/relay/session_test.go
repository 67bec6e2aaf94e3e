package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/logging"
	"github.com/pion/rtp"
	"github.com/pion/transport/v4/vnet"
	"github.com/pion/webrtc/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

// hop is a source and a sink with a session between them.
type hop struct {
	t       *testing.T
	source  *relaytest.Source
	sink    *relaytest.Sink
	session *Session
	cancel  context.CancelFunc
	result  chan error // of the session's Run
}

type hopOptions struct {
	shape   relaytest.Shape
	network *network // nil: loopback
	onPlay  func(*http.Request) error
	onPost  func(*http.Request) error
	options func(*SessionOptions)
	limits  func(*limits)
	source  func(*relaytest.Source)
}

// newHop runs source, sink and session; all are joined when the test ends.
func newHop(t *testing.T, o hopOptions) *hop {
	t.Helper()
	transport := media.Transport{Loopback: true}
	var err error
	h := &hop{t: t, result: make(chan error, 1)}
	if o.network != nil {
		transport = media.Transport{Net: o.network.relay}
		h.source, err = relaytest.NewSource(o.network.source, o.shape)
	} else {
		h.source, err = relaytest.NewSource(nil, o.shape)
	}
	if err != nil {
		t.Fatal(err)
	}
	if o.network != nil {
		h.sink, err = relaytest.NewSink(o.network.sink)
	} else {
		h.sink, err = relaytest.NewSink(nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.source.Hook(o.onPlay)
	if o.source != nil {
		o.source(h.source)
	}
	h.sink.Hook(o.onPost)
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	for _, run := range []func(context.Context) error{h.source.Run, h.sink.Run} {
		background(t, run)
	}
	options := SessionOptions{
		Stream: "demo", From: h.source.Endpoint("demo"), To: h.sink.Endpoint("demo"), FromHTTP: client, ToHTTP: client,
		Transport: transport,
	}
	options.Grace = -1
	if o.options != nil {
		o.options(&options)
	}
	h.session = NewSession(options)
	if o.limits != nil {
		o.limits(&h.session.limits)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.result <- h.session.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return h
}

// background runs something until the test ends, and joins it.
func background(t testing.TB, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("server ended: %v", err)
		}
	})
}

// bound is a context for one wait of a test.
func bound(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (h *hop) awaitLive() {
	h.t.Helper()
	select {
	case <-h.session.Live():
	case err := <-h.result:
		h.t.Fatalf("session ended before it was live: %v", err)
	case <-bound(h.t).Done():
		h.t.Fatalf("session is not live: %+v", h.session.Status())
	}
}

func (h *hop) awaitReception(condition func(relaytest.Reception) bool) relaytest.Reception {
	h.t.Helper()
	r, err := h.sink.AwaitReception(bound(h.t), "demo", condition)
	if err != nil {
		h.t.Fatalf("sink received %+v; session %+v: %v", r, h.session.Status(), err)
	}
	return r
}

// end waits for the session's own end.
func (h *hop) end() error {
	h.t.Helper()
	select {
	case err := <-h.result:
		return err
	case <-bound(h.t).Done():
		h.t.Fatalf("session does not end: %+v", h.session.Status())
		return nil
	}
}

// awaitFreed waits until source and sink have no session that was not deleted.
func (h *hop) awaitFreed(source, sink int) {
	h.t.Helper()
	if err := h.source.Await(bound(h.t), counts(source)); err != nil {
		h.t.Errorf("at the source, want %d: %v", source, err)
	}
	if err := h.sink.Await(bound(h.t), counts(sink)); err != nil {
		h.t.Errorf("at the sink, want %d: %v", sink, err)
	}
}

func counts(n int) func(opened, deleted int) bool {
	return func(opened, deleted int) bool { return opened == n && deleted == n }
}

func (h *hop) steps() []string {
	var names []string
	for _, step := range h.session.Status().Steps {
		names = append(names, step.Name)
	}
	slices.Sort(names)
	return names
}

func TestSessionCarries(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		shape  relaytest.Shape
		codecs []string
		audio  bool
		video  bool
	}{
		{
			"H264 and Opus",
			relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true},
			[]string{webrtc.MimeTypeH264, webrtc.MimeTypeOpus},
			true, true,
		},
		{
			"VP8 and Opus, exact answer",
			relaytest.Shape{Video: webrtc.MimeTypeVP8, Audio: true, Exact: true},
			[]string{webrtc.MimeTypeVP8, webrtc.MimeTypeOpus},
			true, true,
		},
		{"H264 alone", relaytest.Shape{Video: webrtc.MimeTypeH264}, []string{webrtc.MimeTypeH264}, false, true},
		{"Opus alone", relaytest.Shape{Audio: true}, []string{webrtc.MimeTypeOpus}, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newHop(t, hopOptions{shape: test.shape})
			h.awaitLive()
			r := h.awaitReception(func(r relaytest.Reception) bool {
				return (!test.video || r.Frames >= 60 && r.KeyFrames >= 2) && (!test.audio || r.Audio >= 100)
			})
			slices.Sort(r.Codecs)
			slices.Sort(test.codecs)
			if diff := cmp.Diff(test.codecs, r.Codecs); diff != "" {
				t.Errorf("codecs at the sink (-want +got):\n%s", diff)
			}
			if test.video && (!r.FirstKey || r.Late != 0) {
				t.Errorf("first frame is a key frame: %t; incomplete frames: %d", r.FirstKey, r.Late)
			}
			if test.video && r.First != 0 {
				t.Errorf("first frame at the sink is the source's %d, want 0: what came while the sink connected was lost", r.First)
			}
			if r.Audio > 0 != test.audio || r.Video > 0 != test.video {
				t.Errorf("%d audio and %d video packets", r.Audio, r.Video)
			}
			want := []string{
				StepFirstPacket, StepLive, StepParentConnected, StepPlay, StepPlayAnswered, StepPublish, StepPublishAnswered,
				StepServerConnected,
			}
			if test.video {
				want = append(want, StepFirstKeyFrame)
			}
			slices.Sort(want)
			if diff := cmp.Diff(want, h.steps()); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			status := h.session.Status()
			if !status.Live || !strings.Contains(status.Location, "/session/") || h.session.Location() != status.Location {
				t.Errorf("status %+v", status)
			}
			for _, track := range status.Tracks {
				if track.Packets == 0 != (track.Kind == "video" && !test.video || track.Kind == "audio" && !test.audio) {
					t.Errorf("counts of %s: %+v", track.Kind, track)
				}
			}
			h.cancel()
			if err := h.end(); !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
			h.awaitFreed(1, 1)
		})
	}
}

// A local server that takes its time misses nothing: what has come since the last key frame waits for it.
func TestSessionWaitsForServer(t *testing.T) {
	t.Parallel()
	h := newHop(t, hopOptions{
		shape: relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true, GOP: time.Hour},
		onPost: func(r *http.Request) error {
			select {
			case <-time.After(time.Second):
			case <-r.Context().Done():
			}
			return nil
		},
	})
	h.awaitLive()
	r := h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= 60 })
	if r.First != 0 || !r.FirstKey || r.KeyFrames != 1 || r.Late != 0 {
		t.Errorf("first frame %d (key frame: %t), %d key frames, %d incomplete; want all from 0 on", r.First, r.FirstKey,
			r.KeyFrames, r.Late)
	}
	if n := h.source.KeyFrameRequests(); n != 0 {
		t.Errorf("%d key frame requests: none was needed", n)
	}
}

// When more comes than is kept, the session begins with a new key frame, which it asks for.
func TestSessionOutgrowsHistory(t *testing.T) {
	t.Parallel()
	h := newHop(t, hopOptions{
		shape: relaytest.Shape{Video: webrtc.MimeTypeH264, GOP: time.Hour, BitsPerSecond: 4_000_000},
		onPost: func(r *http.Request) error {
			select {
			case <-time.After(3500 * time.Millisecond): // 1600 packets, of which a second is kept in any case
			case <-r.Context().Done():
			}
			return nil
		},
	})
	h.awaitLive()
	r := h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= 30 })
	if r.First == 0 || !r.FirstKey || r.Late != 0 {
		t.Errorf("first frame %d (key frame: %t), %d incomplete; want a later key frame", r.First, r.FirstKey, r.Late)
	}
	if n := h.source.KeyFrameRequests(); n != 1 {
		t.Errorf("%d key frame requests, want 1", n)
	}
}

// A track that the parent's answer promises may come late, where the answer leaves no doubt of its codec.
func TestSessionTakesLateVideo(t *testing.T) {
	t.Parallel()
	h := newHop(t, hopOptions{
		shape:  relaytest.Shape{Video: webrtc.MimeTypeVP8, Audio: true, Exact: true, VideoAfter: time.Second},
		limits: func(l *limits) { l.settle = 100 * time.Millisecond },
	})
	h.awaitLive()
	if r := h.sink.Received("demo"); r.Frames > 0 {
		t.Errorf("%d frames before the video began", r.Frames)
	}
	r := h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= 30 && r.Audio >= 60 })
	if r.First != 0 || !r.FirstKey || r.Late != 0 {
		t.Errorf("first frame %d (key frame: %t), %d incomplete; want all from 0 on", r.First, r.FirstKey, r.Late)
	}
}

// Elsewhere the session ends, so that it can be published anew.
func TestSessionRefusesUnexpectedVideo(t *testing.T) {
	t.Parallel()
	h := newHop(t, hopOptions{
		shape:  relaytest.Shape{Video: webrtc.MimeTypeVP8, Audio: true, VideoAfter: time.Second},
		limits: func(l *limits) { l.settleVideo = 100 * time.Millisecond },
	})
	h.awaitLive()
	if err := h.end(); !strings.Contains(err.Error(), "its video began after the stream had been published without") {
		t.Errorf("Run: %v", err)
	}
	h.awaitFreed(1, 1)
}

// The source's word on its clocks reaches the sink, so audio and video stay in step.
func TestSessionKeepsLipSync(t *testing.T) {
	t.Parallel()
	h := newHop(t, hopOptions{shape: relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true}})
	r := h.awaitReception(func(r relaytest.Reception) bool { return r.Reports >= 4 && r.Frames >= 60 && r.Audio >= 100 })
	if r.Skew.Abs() > 20*time.Millisecond {
		t.Errorf("audio is %s behind video by the sender reports", r.Skew)
	}
}

// However often the server asks, the parent hears it once a second at most.
func TestSessionMergesKeyFrameRequests(t *testing.T) {
	t.Parallel()
	h := newHop(t, hopOptions{shape: relaytest.Shape{Video: webrtc.MimeTypeH264, GOP: time.Hour}})
	h.awaitLive()
	began := time.Now()
	h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= 5 })
	h.sink.RequestKeyFrames("demo", 200)
	h.awaitReception(func(r relaytest.Reception) bool { return r.KeyFrames >= 2 })
	h.sink.RequestKeyFrames("demo", 200)
	h.awaitReception(func(r relaytest.Reception) bool { return r.KeyFrames >= 3 })
	if n, most := h.source.KeyFrameRequests(), 2+int(time.Since(began)/time.Second); n < 2 || n > most {
		t.Errorf("%d key frame requests reached the source, want between 2 and %d", n, most)
	}
	if status := h.session.Status(); status.Tracks[0].KeyFrameRequestsReceived < 100 {
		t.Errorf("the sink's requests did not come: %+v", status)
	}
}

func TestSessionEnds(t *testing.T) {
	t.Parallel()
	both := relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true}
	// Enough for the steps that succeed, on a machine that does much else.
	quick := func(l *limits) { l.step, l.keyFrame = 4*time.Second, 4*time.Second }
	refuse := func(*http.Request) error { return errors.New("full") }
	for _, test := range []struct {
		name         string
		options      hopOptions
		live         func(*hop) // what is done once it is live; nil: it never is
		side         Side
		step         string
		says         string
		source, sink int // sessions opened and deleted
	}{
		{
			name: "parent dies", options: hopOptions{shape: both}, live: func(h *hop) { h.source.Vanish() },
			side: Parent, step: "relay", says: "closed", source: 1, sink: 1,
		},
		{
			name: "server dies", options: hopOptions{shape: both}, live: func(h *hop) { h.sink.Vanish() },
			side: LocalServer, step: "relay", says: "closed", source: 1, sink: 1,
		},
		{
			name: "parent refuses", options: hopOptions{shape: both, onPlay: refuse},
			side: Parent, step: "play", says: "503",
		},
		{
			name: "server refuses", options: hopOptions{shape: both, onPost: refuse},
			side: LocalServer, step: "publish", says: "503", source: 1,
		},
		{
			name: "parent is silent", options: hopOptions{shape: relaytest.Shape{Video: webrtc.MimeTypeH264, Silent: true}, limits: quick},
			side: Parent, step: "wait for media", says: "nothing came within 4s", source: 1,
		},
		{
			name: "parent never answers", options: hopOptions{shape: both, limits: quick, onPlay: untilGone},
			side: Parent, step: "play", says: "not done within 4s",
		},
		{
			name: "server never answers", options: hopOptions{shape: both, limits: quick, onPost: untilGone},
			side: LocalServer, step: "publish", says: "not done within 4s", source: 1,
		},
		{
			name: "codec the server is known not to take", options: hopOptions{shape: both, options: func(o *SessionOptions) {
				o.Traits.Codecs = []string{"video/VP8", "audio/opus"}
			}},
			side: LocalServer, step: "publish", says: "the media server does not take video/H264, only video/VP8", source: 1,
		},
		{
			name:    "codec changes in mid-stream",
			options: hopOptions{shape: relaytest.Shape{Video: webrtc.MimeTypeH264, SwitchAfter: 45}},
			live:    func(*hop) {},
			side:    Parent, step: "change codec", says: "changed from video/H264 to video/VP8", source: 1, sink: 1,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newHop(t, test.options)
			if test.live != nil {
				h.awaitLive()
				h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= 10 })
				test.live(h)
			}
			err := h.end()
			failure, ok := errors.AsType[*SessionError](err)
			if !ok || failure.Side != test.side || failure.Step != test.step || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Run: %v\nwant %s: %s: ... %s", err, test.side, test.step, test.says)
			}
			h.awaitFreed(test.source, test.sink)
			if ended := h.session.Status().Ended; ended == "" {
				t.Error("status does not say why it ended")
			}
		})
	}
}

func untilGone(r *http.Request) error {
	<-r.Context().Done()
	return r.Context().Err()
}

// Whenever it is told to stop, a session leaves nothing behind.
func TestSessionStopsAtEachStep(t *testing.T) {
	t.Parallel()
	for _, step := range []string{
		StepPlay, StepPlayAnswered, StepParentConnected, StepFirstPacket, StepPublish, StepPublishAnswered,
		StepServerConnected, StepLive,
	} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			taken := make(chan struct{})
			h := newHop(t, hopOptions{
				shape:   relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true},
				options: func(o *SessionOptions) { o.Logger = slog.New(stepHandler{step, taken}) },
			})
			select {
			case err := <-h.result:
				t.Fatalf("ended: %v", err)
			case <-taken:
			}
			h.cancel()
			if err := h.end(); !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
			same := func(opened, deleted int) bool { return opened == deleted }
			if err := h.source.Await(bound(t), same); err != nil {
				t.Errorf("left at the source: %v", err)
			}
			if err := h.sink.Await(bound(t), same); err != nil {
				t.Errorf("left at the sink: %v", err)
			}
		})
	}
}

// stepHandler closes taken when a session logs that it takes the step.
type stepHandler struct {
	step  string
	taken chan struct{}
}

func (stepHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h stepHandler) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "step" && a.Value.String() == h.step {
			close(h.taken)
		}
		return true
	})
	return nil
}

func (h stepHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h stepHandler) WithGroup(string) slog.Handler      { return h }

// network is a virtual one: the source has one address, the relay and the sink two others.
type network struct {
	source, relay, sink *vnet.Net
	dropped             atomic.Int64
	cut                 atomic.Pointer[string] // what begins an address, to or from which nothing comes any more
}

// newNetwork loses a part of the source's media packets, by a sequence that is the same in each run.
func newNetwork(t *testing.T, delay time.Duration, lose func(n int) bool) *network {
	t.Helper()
	return newNetworkOf(t, delay, 200, lose)
}

// newNetworkOf loses packets of so many bytes at least.
func newNetworkOf(t *testing.T, delay time.Duration, least int, lose func(n int) bool) *network {
	t.Helper()
	router, err := vnet.NewRouter(&vnet.RouterConfig{
		CIDR: "10.0.0.0/24", MinDelay: delay, LoggerFactory: logging.NewDefaultLoggerFactory(), QueueSize: 10000,
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &network{}
	for i, at := range []**vnet.Net{&n.source, &n.relay, &n.sink} {
		made, err := vnet.NewNet(&vnet.NetConfig{StaticIPs: []string{fmt.Sprintf("10.0.0.%d", i+1)}})
		if err != nil {
			t.Fatal(err)
		}
		if err := router.AddNet(made); err != nil {
			t.Fatal(err)
		}
		*at = made
	}
	var seen atomic.Int64
	router.AddChunkFilter(func(c vnet.Chunk) bool {
		if cut := n.cut.Load(); cut != nil &&
			(strings.HasPrefix(c.SourceAddr().String(), *cut) || strings.HasPrefix(c.DestinationAddr().String(), *cut)) {
			return false
		}
		payload := c.UserData()
		// RTP and RTCP are told apart by RFC 5761, both from DTLS and STUN by RFC 7983.
		if !strings.HasPrefix(c.SourceAddr().String(), "10.0.0.1:") || len(payload) < least || payload[0]>>6 != 2 ||
			payload[1] >= 192 && payload[1] <= 223 {
			return true
		}
		if lose(int(seen.Add(1))) {
			n.dropped.Add(1)
			return false
		}
		return true
	})
	if err := router.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := router.Stop(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// What the path from the parent loses, the relay gets again, and the server sees no gap.
func TestSessionRepairsLoss(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{0, 40 * time.Millisecond} {
		t.Run(fmt.Sprintf("round trip %s", 2*delay), func(t *testing.T) {
			t.Parallel()
			// One packet in 33, and now and then two in a row. The first pass, as a key frame must come through whole.
			n := newNetwork(t, delay, func(n int) bool { return n > 100 && (n%33 == 0 || n%330 == 1) })
			h := newHop(t, hopOptions{network: n, shape: relaytest.Shape{Video: webrtc.MimeTypeH264}})
			h.awaitLive()
			r := h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= 150 })
			status := h.session.Status()
			dropped := n.dropped.Load()
			if dropped < 20 {
				t.Fatalf("only %d packets were dropped: the test tests nothing", dropped)
			}
			if r.Late != 0 {
				t.Errorf("%d frames of %d stayed incomplete", r.Late, r.Frames)
			}
			track := status.Tracks[0]
			// What was dropped last may still be on its way.
			if track.Repaired+5 < uint64(dropped)/2 || track.Lost > 5 || track.NACKs == 0 {
				t.Errorf("%d packets dropped; session counts %+v", dropped, track)
			}
			if track.NACKs > 3*uint64(dropped) {
				t.Errorf("%d NACKs for %d lost packets", track.NACKs, dropped)
			}
			t.Logf("%d dropped, %d repaired, %d still lost, %d NACKs, round trip %s", dropped, track.Repaired, track.Lost,
				track.NACKs, track.RTT)
		})
	}
}

func TestSessionMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	metrics := NewSessionMetrics(registry)
	h := newHop(t, hopOptions{
		shape:   relaytest.Shape{Audio: true},
		options: func(o *SessionOptions) { o.Metrics = metrics },
		limits:  func(l *limits) { l.settleVideo = 100 * time.Millisecond },
	})
	h.awaitLive()
	h.awaitReception(func(r relaytest.Reception) bool { return r.Audio >= 10 })
	if got := gathered(t, registry, "sidestream_relay_sessions"); got["live"] != 1 || got["starting"] != 0 {
		t.Errorf("sessions while one is live: %v", got)
	}
	h.source.Vanish()
	_ = h.end()
	if got := gathered(t, registry, "sidestream_relay_sessions"); got["live"] != 0 || got["starting"] != 0 {
		t.Errorf("sessions after the end: %v", got)
	}
	if got := gathered(t, registry, "sidestream_relay_session_ends_total"); got["parent"] != 1 {
		t.Errorf("ends: %v", got)
	}
	if got := gathered(t, registry, "sidestream_relay_packets_total"); got["audio"] < 10 {
		t.Errorf("packets after the end: %v", got)
	}
}

// gathered is a metric's value by its only label.
func gathered(t *testing.T, registry *prometheus.Registry, name string) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name {
				values[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return values
}

// Once a lane is open, sending a packet on allocates nothing of ours.
func TestLaneAllocatesNothing(t *testing.T) {
	for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeVideo, webrtc.RTPCodecTypeAudio} {
		f, p := openLane(t, kind)
		if n := testing.AllocsPerRun(1000, func() {
			p.Header.SequenceNumber++
			f.Packet(p)
		}); n != 0 {
			t.Errorf("%s: %v allocations per packet", kind, n)
		}
	}
}

func BenchmarkLane(b *testing.B) {
	f, p := openLane(b, webrtc.RTPCodecTypeVideo)
	b.ReportAllocs()
	for b.Loop() {
		p.Header.SequenceNumber++
		f.Packet(p)
	}
}

// openLane is a lane in which packets go straight on, to a writer that counts them.
func openLane(t testing.TB, kind webrtc.RTPCodecType) (*feed, *media.Packet) {
	l := newLane(kind, new(atomic.Int64), func(string) {})
	codec := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}
	l.out = media.NewConn(media.Transport{}, nil).NewSender(media.SenderOptions{Kind: kind, Codec: codec, History: l.history})
	if _, err := l.out.Bind(binding{codec: codec}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l.out.Stats().Packets == 0 {
			t.Error("no packet was sent")
		}
	})
	l.opened, l.seenPacket, l.through = true, true, true
	l.codec.RTPCodecCapability = codec
	p := &media.Packet{Payload: make([]byte, 1150)}
	p.Header.Version = 2
	l.current = &feed{lane: l}
	return l.current, p
}

// binding is what pion gives a track that is about to be sent; what is written goes nowhere.
type binding struct {
	webrtc.TrackLocalContext
	codec webrtc.RTPCodecCapability
}

func (b binding) CodecParameters() []webrtc.RTPCodecParameters {
	return []webrtc.RTPCodecParameters{{RTPCodecCapability: b.codec, PayloadType: 96}}
}
func (binding) HeaderExtensions() []webrtc.RTPHeaderExtensionParameter { return nil }
func (binding) SSRC() webrtc.SSRC                                      { return 1 }
func (binding) SSRCRetransmission() webrtc.SSRC                        { return 0 }
func (binding) WriteStream() webrtc.TrackLocalWriter                   { return nowhere{} }

type nowhere struct{}

func (nowhere) WriteRTP(_ *rtp.Header, payload []byte) (int, error) { return len(payload), nil }
func (nowhere) Write(b []byte) (int, error)                         { return len(b), nil }

// A session's Endpoint header goes along: the parent asks for the pull token in it.
func TestSessionSendsHeader(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	h := newHop(t, hopOptions{
		shape:  relaytest.Shape{Audio: true},
		onPlay: func(r *http.Request) error { got <- r.Header.Get("Sidestream-Pull-Token"); return errors.New("enough") },
		options: func(o *SessionOptions) {
			o.From = adapters.Endpoint{URL: o.From.URL, Header: http.Header{"Sidestream-Pull-Token": {"secret"}}}
		},
	})
	err := h.end()
	if token := <-got; token != "secret" {
		t.Errorf("pull token %q at the parent", token)
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("token in the error: %v", err)
	}
}
