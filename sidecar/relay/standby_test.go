package relay

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

// standingBy is a second copy that a session keeps.
type standingBy struct {
	stop  context.CancelFunc
	ended chan struct{}
	took  bool
	err   error
}

func (r *relayed) standBy(t *testing.T, from server) *standingBy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &standingBy{stop: cancel, ended: make(chan struct{})}
	go func() {
		defer close(b.ended)
		b.took, b.err = r.Standby(ctx, Source{From: from.Egress("demo"), FromHTTP: http.DefaultClient, Same: true})
	}()
	t.Cleanup(func() {
		cancel()
		<-b.ended
	})
	r.awaitStandby(t, func(s *StandbyStatus) bool { return s != nil && s.State == StandbyReady })
	return b
}

func (b *standingBy) await(t *testing.T) {
	t.Helper()
	select {
	case <-b.ended:
	case <-bound(t).Done():
		t.Fatal("the second copy does not end")
	}
}

func (r *relayed) awaitStandby(t *testing.T, condition func(*StandbyStatus) bool) {
	t.Helper()
	ctx := bound(t)
	for {
		_, changed := r.Source()
		status := r.Status().Standby
		if condition(status) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("second copy: %+v", status)
		case <-changed:
		}
	}
}

func (r *relayed) filled() (n uint64) {
	for _, track := range r.Status().Standby.Tracks {
		n += track.Filled
	}
	return n
}

// copies are two copies of one stream, of which the second may be packed otherwise, and a relay of the first.
type copies struct {
	codec         string
	circle        uint64
	anew          bool
	origin, first *sfu
	second        server
	child         *sfu
	subject       *relayed
	viewer        *viewer
}

var kindsOfCopies = map[string]copies{
	"H264, packed alike": {codec: "h264"},
	"VP8, packed alike":  {codec: "vp8", circle: 300},
	"H264, packed anew":  {codec: "h264", anew: true},
	"VP8, packed anew":   {codec: "vp8", circle: 300, anew: true},
}

func eachKindOfCopies(t *testing.T, test func(t *testing.T, c *copies)) {
	t.Parallel()
	for name, c := range kindsOfCopies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.origin, c.first, c.child = newSFU(t), newSFU(t), newSFU(t)
			c.second = newSFU(t)
			if c.anew {
				c.second = newRemux(t, 700)
			}
			publish(t, c.origin, c.codec)
			newRelay(t, c.origin, c.first, nil)
			newRelay(t, c.origin, c.second, nil)
			c.subject = newRelay(t, c.first, c.child, nil)
			c.viewer = newViewer(t, c.child)
			c.viewer.await(30, 50)
			test(t, &c)
		})
	}
}

// wantAll checks that the viewer saw each frame once.
func (c *copies) wantAll(t *testing.T) story {
	t.Helper()
	s := c.viewer.story(c.circle)
	t.Logf("%+v\n%+v\n%+v", s, c.subject.Status().Standby, c.subject.Status().Changes)
	if s.missing > 0 || s.repeated > 0 || s.back > 0 {
		t.Errorf("frames: %+v", s)
	}
	return s
}

// The first copy's parent is gone without a word: no frame is missing, and none is seen twice.
func TestStandbyTakesOver(t *testing.T) {
	eachKindOfCopies(t, func(t *testing.T, c *copies) {
		b := c.subject.standBy(t, c.second)
		c.viewer.await(30, 50)
		c.first.cable.cut.Store(true)
		b.await(t)
		c.first.cable.cut.Store(false) // it is there again a moment too late
		if !b.took || b.err != nil {
			t.Errorf("took over: %t, %v", b.took, b.err)
		}
		c.viewer.await(60, 100)
		if s := c.wantAll(t); s.soundMissing > 0 {
			t.Errorf("sound: %+v", s)
		}
		c.subject.awaitFlow(t, FlowOn)
		// What is the source now can have a second copy, and be changed.
		b = c.subject.standBy(t, c.origin)
		c.subject.change(t, Source{From: c.origin.Egress("demo"), FromHTTP: http.DefaultClient, Same: true})
		c.viewer.await(30, 50)
		b.stop()
		b.await(t)
		if b.took || !errors.Is(b.err, context.Canceled) {
			t.Errorf("after the change: took over: %t, %v", b.took, b.err)
		}
		c.wantAll(t)
	})
}

// What only the first copy loses, and cannot repair itself, comes from the second.
func TestStandbyFills(t *testing.T) {
	eachKindOfCopies(t, func(t *testing.T, c *copies) {
		c.subject.standBy(t, c.second)
		var packets int
		lose := func(b []byte) bool {
			if len(b) < 100 || b[0]>>6 != 2 { // neither STUN nor DTLS, nor feedback
				return false
			}
			packets++
			return packets%50 == 0 || packets%500 == 1
		}
		c.first.cable.deaf.Store(true)
		c.first.cable.lose.Store(&lose)
		c.viewer.await(240, 300)
		c.wantAll(t)
		if n := c.subject.filled(); n < 3 {
			t.Errorf("%d holes were filled", n)
		}
		if changes := c.subject.Status().Changes; len(changes) > 0 {
			t.Errorf("changes of source: %+v", changes)
		}
	})
}

// A second copy that ends is not missed.
func TestStandbyEnds(t *testing.T) {
	t.Parallel()
	h := newHop(t, hopOptions{
		shape:   relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true},
		options: func(o *SessionOptions) { o.Grace = 0 },
	})
	h.awaitLive()
	for range 2 {
		other, err := relaytest.NewSource(nil, relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true})
		if err != nil {
			t.Fatal(err)
		}
		background(t, other.Run)
		go func() {
			if other.Await(t.Context(), func(opened, _ int) bool { return opened == 1 }) == nil {
				before := h.sink.Received("demo").Frames
				_, _ = h.sink.AwaitReception(t.Context(), "demo", func(r relaytest.Reception) bool { return r.Frames > before+30 })
				other.Vanish()
			}
		}()
		took, err := h.session.Standby(bound(t), Source{From: other.Endpoint("demo"), Same: true})
		if took || err == nil {
			t.Errorf("took over: %t, %v", took, err)
		}
		frames := h.sink.Received("demo").Frames
		if r := h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= frames+30 }); r.Late > 0 {
			t.Errorf("%d frames are incomplete", r.Late)
		}
	}
	if status := h.session.Status(); status.Standby.State != StandbyNone || len(status.Changes) > 0 || status.Standby.Tracks[0].Packets == 0 {
		t.Errorf("status %+v, %+v", status.Standby, status.Changes)
	}
}

// Whatever stops a second copy, nothing of it is left at its parent.
func TestStandbyIsFreed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		end  func(h *hop, cancel context.CancelFunc)
		want error
	}{
		{"it is not wanted", func(_ *hop, cancel context.CancelFunc) { cancel() }, context.Canceled},
		{"the session ends", func(h *hop, _ context.CancelFunc) { h.cancel() }, ErrNotLive},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newHop(t, hopOptions{shape: relaytest.Shape{Audio: true}})
			if _, err := h.session.Standby(t.Context(), Source{}); !errors.Is(err, ErrNotLive) {
				t.Errorf("before it is live: %v", err)
			}
			h.awaitLive()
			other, err := relaytest.NewSource(nil, relaytest.Shape{Audio: true})
			if err != nil {
				t.Fatal(err)
			}
			background(t, other.Run)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				if other.Await(ctx, func(opened, _ int) bool { return opened == 1 }) == nil {
					test.end(h, cancel)
				}
			}()
			if took, err := h.session.Standby(ctx, Source{From: other.Endpoint("demo"), Same: true}); took || !errors.Is(err, test.want) {
				t.Errorf("took over: %t, %v", took, err)
			}
			if err := other.Await(bound(t), func(opened, deleted int) bool { return opened == deleted }); err != nil {
				t.Errorf("left at the source: %v", err)
			}
		})
	}
}

// Sound alone has no frames to stand still, and is not silence where the second copy goes on.
func TestStandbyAudioOnly(t *testing.T) {
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
	v.await(0, 25)
	b := subject.standBy(t, second)
	v.await(0, 25)
	first.cable.cut.Store(true)
	b.await(t)
	v.await(0, 75)
	if s := v.story(0); !b.took || s.soundMissing > 0 {
		t.Errorf("took over: %t, %v; %+v", b.took, b.err, s)
	}
}

// A first copy's parent that says goodbye is left at once.
func TestStandbyAfterGoodbye(t *testing.T) {
	t.Parallel()
	origin, child := newSFU(t), newSFU(t)
	first := newRemux(t, 700)
	publish(t, origin, "h264")
	newRelay(t, origin, first, nil)
	subject := newRelay(t, first, child, nil)
	v := newViewer(t, child)
	v.await(30, 50)
	b := subject.standBy(t, origin)
	v.await(30, 50)
	first.Vanish()
	b.await(t)
	v.await(60, 100)
	s := v.story(0)
	t.Logf("%+v\n%+v", s, subject.Status().Changes)
	if !b.took || s.missing > 0 || s.repeated > 0 || s.back > 0 || s.soundMissing > 0 {
		t.Errorf("took over: %t, %v; %+v", b.took, b.err, s)
	}
	if state, _ := subject.Source(); state.Flow != FlowOn {
		t.Errorf("source: %+v", state)
	}
}
