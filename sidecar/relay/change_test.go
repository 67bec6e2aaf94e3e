package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"
	"github.com/pion/webrtc/v4/pkg/media/samplebuilder"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// server is a media server of a test.
type server interface {
	Ingest(name string) adapters.Endpoint
	Egress(name string) adapters.Endpoint
}

// sfu is the built-in server, with a network that can be cut off.
type sfu struct {
	url   string
	cable *cable
}

func (s *sfu) Ingest(name string) adapters.Endpoint { return endpoint(s.url + "/whip/" + name) }
func (s *sfu) Egress(name string) adapters.Endpoint { return endpoint(s.url + "/whep/" + name) }

func endpoint(address string) adapters.Endpoint {
	u, err := url.Parse(address)
	if err != nil {
		panic(err)
	}
	return adapters.Endpoint{URL: u}
}

// cable is a UDP socket that loses everything once it is cut: a machine that is gone says no goodbye.
type cable struct {
	*net.UDPConn
	cut  atomic.Bool
	lose atomic.Pointer[func(sent []byte) bool] // what goes out
	deaf atomic.Bool                            // to NACKs
}

func (c *cable) loses(b []byte) bool {
	lose := c.lose.Load()
	return c.cut.Load() || lose != nil && (*lose)(b)
}

func (c *cable) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.loses(b) {
		return len(b), nil
	}
	return c.UDPConn.WriteTo(b, to)
}

func (c *cable) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if c.loses(b) {
		return len(b), nil
	}
	return c.UDPConn.WriteToUDPAddrPort(b, to)
}

func (c *cable) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.UDPConn.ReadFrom(b)
		// The header of RTCP is not encrypted; 205 is transport feedback.
		nack := n > 2 && b[0]>>6 == 2 && b[1] == 205
		if err != nil || !c.cut.Load() && !(nack && c.deaf.Load()) {
			return n, from, err
		}
	}
}

func newSFU(t testing.TB) *sfu {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	wire := &cable{UDPConn: socket}
	mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: wire})
	t.Cleanup(func() {
		_ = mux.Close()
		_ = socket.Close()
	})
	server, err := pionsfu.New(pionsfu.Config{Transport: media.Transport{UDPMux: mux, Loopback: true}})
	if err != nil {
		t.Fatal(err)
	}
	background(t, server.Run)
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	for {
		response, err := http.Get(web.URL + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode == http.StatusNoContent {
			return &sfu{url: web.URL, cable: wire}
		}
	}
}

func newRemux(t *testing.T, mtu uint16) *relaytest.Remux {
	t.Helper()
	s, err := relaytest.NewRemux(nil, mtu)
	if err != nil {
		t.Fatal(err)
	}
	background(t, s.Run)
	return s
}

// while runs something until the test ends, or the returned function is called, and joins it.
func while(t testing.TB, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			t.Log("ended before the test:", err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// client is what the test's own publishers and viewers connect by.
func client() *whip.Client {
	return &whip.Client{NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection}
}

// publish sends the test source to a server. It returns when the server has it.
func publish(t testing.TB, s server, codec string) (stop func()) {
	t.Helper()
	source, err := testsource.New(testsource.Options{Codec: codec})
	if err != nil {
		t.Fatal(err)
	}
	stop = while(t, func(ctx context.Context) error { return source.Publish(ctx, client(), s.Ingest("demo")) })
	for ctx := bound(t); ; {
		session, err := client().Play(ctx, s.Egress("demo"), nil)
		if err == nil {
			_ = session.Close(ctx)
			return stop
		}
		if ctx.Err() != nil {
			t.Fatalf("the stream is not there: %v", err)
		}
	}
}

// relayed is a session that carries the stream between two servers.
type relayed struct {
	*Session
	ended chan error
}

func newRelay(t testing.TB, from, to server, options func(*SessionOptions)) *relayed {
	t.Helper()
	web := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(web.CloseIdleConnections)
	o := SessionOptions{
		Stream: "demo", From: from.Egress("demo"), FromHTTP: web, To: to.Ingest("demo"), ToHTTP: web,
		Transport: media.Transport{Loopback: true},
	}
	if options != nil {
		options(&o)
	}
	deadline := bound(t)
	for {
		r := &relayed{Session: NewSession(o), ended: make(chan error, 1)}
		stop := while(t, func(ctx context.Context) error {
			err := r.Run(ctx)
			r.ended <- err
			return err
		})
		select {
		case <-r.Live():
			return r
		case err := <-r.ended: // the stream may not be there yet
			stop()
			if deadline.Err() != nil {
				t.Fatalf("no relay: %v", err)
			}
		}
	}
}

func (r *relayed) change(t *testing.T, to Source) string {
	t.Helper()
	how, err := r.Change(bound(t), to)
	if err != nil {
		t.Fatalf("%v\n%+v", err, r.Status())
	}
	return how
}

// viewer plays a stream and keeps what it saw.
type viewer struct {
	t *testing.T

	mu      sync.Mutex
	frames  []seen
	sounds  []seen
	tracks  int
	changed chan struct{}
	names   map[string]uint64 // of VP8 frames: their place in the clip
	reports map[webrtc.RTPCodecType]report
}

type report struct {
	begin time.Duration // the source's time at timestamp 0 of the cycle that the first report was in
	count int
	last  uint32 // timestamp
	turns int64  // cycles of it
}

// take takes the next report.
func (r report) take(sr *rtcp.SenderReport, clockRate int64) report {
	if r.count > 0 && sr.RTPTime < r.last && r.last-sr.RTPTime > 1<<31 {
		r.turns++
	}
	r.last, r.count = sr.RTPTime, r.count+1
	ticks := r.turns<<32 + int64(sr.RTPTime)
	seconds, fraction := sr.NTPTime>>32, sr.NTPTime&0xffffffff
	r.begin = time.Duration(seconds)*time.Second + time.Duration(fraction*uint64(time.Second)>>32) -
		time.Duration(ticks/clockRate)*time.Second - time.Duration(ticks%clockRate)*time.Second/time.Duration(clockRate)
	return r
}

// awaitReports waits for one more sender report of each track, and gives what they say.
func (v *viewer) awaitReports() (audio, video time.Duration) {
	v.t.Helper()
	ctx := bound(v.t)
	v.mu.Lock()
	defer v.mu.Unlock()
	a, b := v.reports[webrtc.RTPCodecTypeAudio].count, v.reports[webrtc.RTPCodecTypeVideo].count
	for v.reports[webrtc.RTPCodecTypeAudio].count == a || v.reports[webrtc.RTPCodecTypeVideo].count == b {
		changed := v.changed
		v.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			v.t.Errorf("sender reports do not come: %+v", v.reports)
			v.mu.Lock()
			return 0, 0
		}
		v.mu.Lock()
	}
	return v.reports[webrtc.RTPCodecTypeAudio].begin, v.reports[webrtc.RTPCodecTypeVideo].begin
}

// seen is a frame, or a packet of sound.
type seen struct {
	number    uint64 // of the frame
	timestamp uint32
	at        time.Time
	key       bool
}

func newViewer(t *testing.T, s server) *viewer {
	t.Helper()
	v := &viewer{t: t, changed: make(chan struct{}), names: map[string]uint64{}, reports: map[webrtc.RTPCodecType]report{}}
	clip, err := testsource.LoadClip("vp8")
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range clip.Video {
		v.names[string(f.Data)] = uint64(i)
	}
	while(t, func(ctx context.Context) error {
		var readers sync.WaitGroup
		defer readers.Wait()
		session, err := client().Play(ctx, s.Egress("demo"), func(pc *webrtc.PeerConnection) error {
			for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
				_, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{
					Direction: webrtc.RTPTransceiverDirectionRecvonly,
				})
				if err != nil {
					return err
				}
			}
			pc.OnTrack(func(t *webrtc.TrackRemote, r *webrtc.RTPReceiver) {
				readers.Add(2)
				go func() {
					defer readers.Done()
					v.readReports(t.Kind(), r)
				}()
				defer readers.Done()
				v.read(t)
			})
			return nil
		})
		if err != nil {
			t.Errorf("play: %v", err)
			return err
		}
		defer func() {
			bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_ = session.Close(bounded)
		}()
		err = session.Wait(ctx)
		if ctx.Err() == nil {
			t.Errorf("the viewer's session ended: %v", err)
		}
		return err
	})
	return v
}

func (v *viewer) update(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *viewer) readReports(kind webrtc.RTPCodecType, r *webrtc.RTPReceiver) {
	for {
		packets, _, err := r.ReadRTCP()
		if err != nil {
			return
		}
		for _, p := range packets {
			if sr, ok := p.(*rtcp.SenderReport); ok {
				rate := int64(48000)
				if kind == webrtc.RTPCodecTypeVideo {
					rate = 90000
				}
				v.update(func() { v.reports[kind] = v.reports[kind].take(sr, rate) })
			}
		}
	}
}

func (v *viewer) read(t *webrtc.TrackRemote) {
	v.update(func() { v.tracks++ })
	if t.Kind() == webrtc.RTPCodecTypeAudio {
		for {
			p, _, err := t.ReadRTP()
			if err != nil {
				return
			}
			v.update(func() {
				v.sounds = append(v.sounds, seen{number: uint64(p.SequenceNumber), timestamp: p.Timestamp, at: time.Now()})
			})
		}
	}
	var depacketizer rtp.Depacketizer = &codecs.H264Packet{}
	if t.Codec().MimeType == webrtc.MimeTypeVP8 {
		depacketizer = &codecs.VP8Packet{}
	}
	builder := samplebuilder.New(200, depacketizer, t.Codec().ClockRate)
	for {
		p, _, err := t.ReadRTP()
		if err != nil {
			return
		}
		builder.Push(p)
		for sample := builder.Pop(); sample != nil; sample = builder.Pop() {
			s := seen{timestamp: sample.PacketTimestamp, at: time.Now()}
			known := true
			if t.Codec().MimeType == webrtc.MimeTypeVP8 {
				s.number, known = v.names[string(sample.Data)]
				s.key = sample.Data[0]&1 == 0
			} else {
				var stamp testsource.Stamp
				stamp, known = testsource.ParseStamp(sample.Data)
				s.number = stamp.Frame
			}
			if !known {
				v.t.Errorf("a frame of %d bytes that the source did not send", len(sample.Data))
			}
			v.update(func() { v.frames = append(v.frames, s) })
		}
	}
}

// await waits until the viewer has so many frames and sounds more.
func (v *viewer) await(frames, sounds int) {
	v.t.Helper()
	ctx := bound(v.t)
	v.mu.Lock()
	frames, sounds = frames+len(v.frames), sounds+len(v.sounds)
	for len(v.frames) < frames || len(v.sounds) < sounds {
		changed := v.changed
		v.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			v.t.Fatalf("%d frames of %d, %d sounds of %d", len(v.frames), frames, len(v.sounds), sounds)
		}
		v.mu.Lock()
	}
	v.mu.Unlock()
}

// story is what became of the frames.
type story struct {
	frames, missing, repeated, back int
	skips                           [][2]uint64
	gap                             time.Duration // longest between two frames
	stretch                         time.Duration // longest by timestamps
	sounds, soundMissing            int
}

func (v *viewer) story(circle uint64) story {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tracks > 2 {
		v.t.Errorf("the viewer was given %d tracks", v.tracks)
	}
	s := story{frames: len(v.frames), sounds: len(v.sounds)}
	for i := 1; i < len(v.frames); i++ {
		a, b := v.frames[i-1], v.frames[i]
		step := int64(b.number - a.number)
		if circle > 0 {
			step = int64((b.number + circle - a.number) % circle)
		}
		switch {
		case step <= 0:
			s.repeated++
			s.skips = append(s.skips, [2]uint64{a.number, b.number})
		case step > 1:
			s.missing += int(step) - 1
			s.skips = append(s.skips, [2]uint64{a.number, b.number})
		}
		apart := int32(b.timestamp - a.timestamp)
		if apart <= 0 {
			s.back++
		}
		s.gap = max(s.gap, b.at.Sub(a.at))
		s.stretch = max(s.stretch, time.Duration(apart)*time.Second/90000)
	}
	for i := 1; i < len(v.sounds); i++ {
		a, b := v.sounds[i-1], v.sounds[i]
		apart := int32(b.timestamp - a.timestamp)
		if int16(b.number-a.number) <= 0 || apart <= 0 {
			v.t.Errorf("sound goes from %d at %d to %d at %d", a.number, a.timestamp, b.number, b.timestamp)
		}
		if apart != 960 {
			s.soundMissing++
		}
	}
	return s
}

// Two copies of one publication that both flow: nobody notices.
func TestChangePlanned(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, codec string
		parent      func(*testing.T) server
		circle      uint64
	}{
		{"H264, packed alike", "h264", func(t *testing.T) server { return newSFU(t) }, 0},
		{"VP8, packed alike", "vp8", func(t *testing.T) server { return newSFU(t) }, 300},
		{"H264, packed anew", "h264", func(t *testing.T) server { return newRemux(t, 700) }, 0},
		{"VP8, packed anew", "vp8", func(t *testing.T) server { return newRemux(t, 700) }, 300},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			origin, first, child := newSFU(t), newSFU(t), newSFU(t)
			second := test.parent(t)
			publish(t, origin, test.codec)
			newRelay(t, origin, first, nil)
			newRelay(t, origin, second, nil)
			subject := newRelay(t, first, child, nil)
			v := newViewer(t, child)
			v.await(45, 75)
			audio, video := v.awaitReports()
			for i, to := range []server{second, first, second} {
				how := subject.change(t, Source{From: to.Egress("demo"), FromHTTP: http.DefaultClient, Same: true})
				if how != HowAligned {
					t.Errorf("change %d: %s", i, how)
				}
				v.await(30, 50)
			}
			// What the source says of its clocks holds for the timestamps that go out.
			// A publisher that this machine keeps waiting says it less precisely, so the best of several reports counts. (A server that
			// packs anew reports by its own clock when it came to send, which says nothing of the source.)
			v.awaitReports()
			best := time.Hour
			for range 10 {
				audioAfter, videoAfter := v.awaitReports()
				best = min(best, max((audioAfter-audio).Abs(), (videoAfter-video).Abs()))
				if best <= 10*time.Millisecond {
					break
				}
			}
			if _, anew := second.(*relaytest.Remux); !anew && best > 10*time.Millisecond {
				t.Errorf("sender reports moved by %s", best)
			}
			s := v.story(test.circle)
			t.Logf("%+v\n%+v", s, subject.Status().Changes)
			if s.missing > 0 || s.repeated > 0 || s.back > 0 || s.stretch > 40*time.Millisecond {
				t.Errorf("%+v", s)
			}
		})
	}
}

// awaitFlow waits until the session says so of its source.
func (r *relayed) awaitFlow(t *testing.T, want SourceFlow) {
	t.Helper()
	ctx := bound(t)
	for {
		state, changed := r.Source()
		if state.Flow == want {
			return
		}
		select {
		case <-changed:
		case err := <-r.ended:
			t.Fatalf("ended: %v", err)
		case <-ctx.Done():
			t.Fatalf("source is %s, not %s", state.Flow, want)
		}
	}
}

// A parent that is gone without a word: the session notices, and goes on with another one's copy.
func TestChangeParentKilled(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, codec string
		parent      func(*testing.T) server
		circle      uint64
	}{
		{"H264, packed alike", "h264", func(t *testing.T) server { return newSFU(t) }, 0},
		{"VP8, packed alike", "vp8", func(t *testing.T) server { return newSFU(t) }, 300},
		{"H264, packed anew", "h264", func(t *testing.T) server { return newRemux(t, 700) }, 0},
		{"VP8, packed anew", "vp8", func(t *testing.T) server { return newRemux(t, 700) }, 300},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			origin, first, child := newSFU(t), newSFU(t), newSFU(t)
			second := test.parent(t)
			publish(t, origin, test.codec)
			newRelay(t, origin, first, nil)
			newRelay(t, origin, second, nil)
			registry := prometheus.NewPedanticRegistry()
			subject := newRelay(t, first, child, func(o *SessionOptions) {
				o.Metrics = NewSessionMetrics(registry)
				o.Share = func() Share { return Share{Crosses: true, Foreign: true, Viewers: 3} }
			})
			v := newViewer(t, child)
			v.await(60, 100)
			first.cable.cut.Store(true)
			subject.awaitFlow(t, FlowSilent)
			how := subject.change(t, Source{From: second.Egress("demo"), FromHTTP: http.DefaultClient, Same: true})
			v.await(60, 100)
			s := v.story(test.circle)
			t.Logf("%s: %+v\n%+v", how, s, subject.Status().Changes)
			if s.repeated > 0 || s.back > 0 {
				t.Errorf("%+v", s)
			}
			// The built-in server begins with the last key frame, which may be one that the old parent did not send any more.
			if _, ok := second.(*sfu); ok && how == HowAligned && s.missing > 0 {
				t.Errorf("%d frames missing", s.missing)
			}
			subject.awaitFlow(t, FlowOn)
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			sums, bytes := map[string]float64{}, map[string]float64{}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					switch f.GetName() {
					case "sidestream_relay_freeze_seconds":
						sums[m.GetLabel()[0].GetValue()] += m.GetHistogram().GetSampleSum()
					case "sidestream_intercluster_bytes_total", "sidestream_intercluster_saved_bytes_total":
						bytes[f.GetName()] = m.GetCounter().GetValue()
					}
				}
			}
			if sums["video"] < silenceMin.Seconds() || sums["audio"] < silenceMin.Seconds() {
				t.Errorf("breaks in seconds: %v", sums)
			}
			carried, saved := bytes["sidestream_intercluster_bytes_total"], bytes["sidestream_intercluster_saved_bytes_total"]
			if carried == 0 || saved != 2*carried {
				t.Errorf("carried and saved: %v", bytes)
			}
		})
	}
}

// Another publication has other content, clocks and numbers: it goes on at a key frame, with sound and picture together.
func TestChangeNewPublication(t *testing.T) {
	t.Parallel()
	for _, codec := range []string{"h264", "vp8"} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, old one killed: %t", codec, killed), func(t *testing.T) {
				t.Parallel()
				origin, other, child := newSFU(t), newSFU(t), newSFU(t)
				publish(t, origin, codec)
				subject := newRelay(t, origin, child, nil)
				v := newViewer(t, child)
				v.await(60, 75)
				publish(t, other, codec) // its frames count from 0
				newViewer(t, other).await(1, 0)
				if killed {
					origin.cable.cut.Store(true)
					subject.awaitFlow(t, FlowSilent)
				}
				how := subject.change(t, Source{From: other.Egress("demo"), FromHTTP: http.DefaultClient})
				if how != HowKeyFrame {
					t.Errorf("changed by %s", how)
				}
				v.await(45, 75)
				s := v.story(0)
				t.Logf("%+v", s)
				if s.back > 0 || s.stretch > 3*time.Second {
					t.Errorf("%+v", s)
				}
				// A key frame that is asked for makes the clip jump, which shows in VP8 only.
				if seams := len(s.skips); seams != 1 && (codec == "h264" || s.repeated > 1) {
					t.Errorf("%d seams: %v", seams, s.skips)
				}
			})
		}
	}
}

func TestChangeAudioOnly(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed: %t", killed), func(t *testing.T) {
			t.Parallel()
			origin, first, second, child := newSFU(t), newSFU(t), newSFU(t), newSFU(t)
			source, err := relaytest.NewSource(nil, relaytest.Shape{Audio: true})
			if err != nil {
				t.Fatal(err)
			}
			background(t, source.Run)
			while(t, func(ctx context.Context) error { return source.Publish(ctx, "demo", origin.Ingest("demo")) })
			newRelay(t, origin, first, nil)
			newRelay(t, origin, second, nil)
			subject := newRelay(t, first, child, nil)
			v := newViewer(t, child)
			v.await(0, 75)
			if killed {
				first.cable.cut.Store(true)
			}
			how := subject.change(t, Source{From: second.Egress("demo"), FromHTTP: http.DefaultClient, Same: true})
			v.await(0, 75)
			s := v.story(0)
			t.Logf("%s %+v", how, s)
			if how == HowKeyFrame || !killed && (how != HowAligned || s.soundMissing > 0) {
				t.Errorf("%s: %+v", how, s)
			}
			if state, _ := subject.Source(); state.Flow != FlowOn {
				t.Errorf("source is %+v", state)
			}
		})
	}
}

// What cannot take the source's place leaves it alone.
func TestChangeFails(t *testing.T) {
	t.Parallel()
	origin, other, child := newSFU(t), newSFU(t), newSFU(t)
	publish(t, origin, "h264")
	publish(t, other, "vp8")
	subject := newRelay(t, origin, child, nil)
	v := newViewer(t, child)
	v.await(30, 0)
	deadline := bound(t)
	for {
		_, err := subject.Change(deadline, Source{From: other.Egress("demo"), FromHTTP: http.DefaultClient})
		if errors.Is(err, ErrCodecDiffers) {
			break
		}
		if err == nil || deadline.Err() != nil { // its publisher may not be there yet
			t.Fatalf("VP8 in place of H264: %v", err)
		}
	}
	if _, err := subject.Change(bound(t), Source{From: child.Egress("nothing"), FromHTTP: http.DefaultClient}); err == nil {
		t.Error("no stream in place of one")
	}
	v.await(30, 50)
	if s := v.story(0); s.missing > 0 || s.repeated > 0 {
		t.Errorf("%+v", s)
	}
	if changes := subject.Status().Changes; len(changes) < 2 || changes[0].Error == "" || changes[0].To == "" {
		t.Errorf("status: %+v", changes)
	}
}

// Without a source the publication stays for a while, and no longer.
func TestSourceLost(t *testing.T) {
	t.Parallel()
	origin, other, child := newSFU(t), newSFU(t), newSFU(t)
	stop := publish(t, origin, "h264")
	publish(t, other, "h264")
	subject := newRelay(t, origin, child, func(o *SessionOptions) { o.Grace = 4 * time.Second })
	v := newViewer(t, child)
	v.await(30, 0)
	newViewer(t, other).await(1, 0)
	stop()
	subject.awaitFlow(t, FlowLost)
	if how := subject.change(t, Source{From: other.Egress("demo"), FromHTTP: http.DefaultClient}); how != HowKeyFrame {
		t.Errorf("changed by %s", how)
	}
	v.await(30, 50)
	if s := v.story(0); s.back > 0 {
		t.Errorf("%+v", s)
	}
	other.cable.cut.Store(true)
	subject.awaitFlow(t, FlowSilent)
}

func TestSourceLostForGood(t *testing.T) {
	t.Parallel()
	h := newHop(t, hopOptions{
		shape:   relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true},
		options: func(o *SessionOptions) { o.Grace = 300 * time.Millisecond },
	})
	h.awaitLive()
	h.source.Vanish()
	err := h.end()
	if failure, ok := errors.AsType[*SessionError](err); !ok || failure.Side != Parent || failure.Step != "relay" {
		t.Errorf("Run: %v", err)
	}
	h.awaitFreed(1, 1)
	if _, err := h.session.Change(t.Context(), Source{}); !errors.Is(err, ErrNotLive) {
		t.Errorf("change after the end: %v", err)
	}
}

// A source need not have all tracks, and may have more.
func TestChangeTracks(t *testing.T) {
	t.Parallel()
	sound := relaytest.Shape{Audio: true}
	both := relaytest.Shape{Video: webrtc.MimeTypeVP8, Audio: true, Exact: true}
	late := both
	late.VideoAfter = 1500 * time.Millisecond
	for _, test := range []struct {
		name     string
		from, to relaytest.Shape
		how      string
		video    bool
	}{
		{"without video", both, sound, HowClock, false},
		{"with video that is not published", sound, both, HowClock, false},
		{"with both", both, both, HowKeyFrame, true},
		{"with video that comes late", both, late, HowClock, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newHop(t, hopOptions{shape: test.from, limits: func(l *limits) { l.settleVideo = 200 * time.Millisecond }})
			other, err := relaytest.NewSource(nil, test.to)
			if err != nil {
				t.Fatal(err)
			}
			background(t, other.Run)
			h.awaitLive()
			h.awaitReception(func(r relaytest.Reception) bool { return r.Audio >= 20 })
			how, err := h.session.Change(bound(t), Source{From: other.Endpoint("demo")})
			if err != nil || how != test.how {
				t.Errorf("%q, %v; want %q", how, err, test.how)
			}
			if err := h.source.Await(bound(t), counts(1)); err != nil {
				t.Errorf("the old session is not freed: %v", err)
			}
			before := h.sink.Received("demo")
			h.awaitReception(func(r relaytest.Reception) bool {
				return r.Audio >= before.Audio+20 && (!test.video || r.Video >= before.Video+60)
			})
		})
	}
}

// A change that is given up, or whose source dies on the way, leaves nothing behind and the old source alone.
func TestChangeGivenUp(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		end  func(other *relaytest.Source) // when it has been asked
	}{
		{"out of time", func(*relaytest.Source) {}},
		{"the new source dies", func(other *relaytest.Source) { other.Vanish() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newHop(t, hopOptions{shape: relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true}})
			other, err := relaytest.NewSource(nil, relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true, Silent: true})
			if err != nil {
				t.Fatal(err)
			}
			background(t, other.Run)
			h.awaitLive()
			// Long enough for the session to be open: one that is given up while it is asked for nobody can delete.
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			go func() {
				if other.Await(ctx, func(opened, _ int) bool { return opened == 1 }) == nil {
					test.end(other)
				}
			}()
			if how, err := h.session.Change(ctx, Source{From: other.Endpoint("demo")}); err == nil {
				t.Errorf("changed by %s to a source that sends nothing", how)
			}
			if err := other.Await(bound(t), counts(1)); err != nil {
				t.Errorf("the new session is not freed: %v", err)
			}
			frames := h.sink.Received("demo").Frames
			if r := h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= frames+30 }); r.Late > 0 {
				t.Errorf("%d frames are incomplete", r.Late)
			}
			if state, _ := h.session.Source(); state.Flow != FlowOn {
				t.Errorf("source: %+v", state)
			}
		})
	}
}
