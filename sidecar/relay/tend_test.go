package relay

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

// However many join whenever, a key frame is asked for once a second at most, and for each viewer between 200 and 1200 ms after.
func TestJoins(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		start := time.Unix(1000, 0)
		var j joins
		var asked, joined []time.Time
		for ms := range 20_000 {
			now := start.Add(time.Duration(ms) * time.Millisecond)
			if ms < 15_000 && random.IntN(700) == 0 {
				j.add(now)
				joined = append(joined, now)
			}
			if j.due(now) {
				asked = append(asked, now)
			}
		}
		for i := 1; i < len(asked); i++ {
			if d := asked[i].Sub(asked[i-1]); d < joinAgain && d < joinTime {
				t.Fatalf("seed %d: asked twice within %s", seed, d)
			}
		}
		for _, at := range joined {
			served := false
			for _, ask := range asked {
				d := ask.Sub(at)
				served = served || d >= joinTime && d <= joinTime+joinAgain
			}
			if !served {
				t.Fatalf("seed %d: nobody asked for who joined after %s", seed, at.Sub(start))
			}
		}
		if !j.next.IsZero() {
			t.Fatal("it goes on asking")
		}
	}
}

// Many servers that ask by a clock of their own make no more key frames than one.
func TestBlindRequestsDoNotMultiply(t *testing.T) {
	t.Parallel()
	const servers, length = 40, 60 * time.Second
	random := rand.New(rand.NewPCG(1, 1))
	start := time.Unix(1000, 0)
	lanes := make([]*lane, servers)
	phases := make([]time.Duration, servers)
	for i := range lanes {
		lanes[i] = &lane{keyAt: start}
		phases[i] = time.Duration(random.IntN(2000)) * time.Millisecond
	}
	keyFrames := 0
	var arrives time.Time // of the key frame under way
	for at := time.Duration(0); at < length; at += time.Millisecond {
		now := start.Add(at)
		if !arrives.IsZero() && !now.Before(arrives) {
			arrives = time.Time{}
			keyFrames++
			for _, l := range lanes {
				l.keyAt = now
			}
		}
		for i, l := range lanes {
			if at%(2*time.Second) == phases[i] && !l.keyedSince(now.Add(-blindInterval)) && arrives.IsZero() {
				arrives = now.Add(200 * time.Millisecond)
			}
		}
	}
	if limit := int(length / blindInterval); keyFrames > limit || keyFrames < limit/2 {
		t.Errorf("%d key frames in %s, want at most %d", keyFrames, length, limit)
	}
}

// What a server asks for by its own clock is absorbed while key frames come; who joins it gets one all the same.
func TestSessionAbsorbsBlindRequests(t *testing.T) {
	t.Parallel()
	h := newHop(t, hopOptions{
		shape: relaytest.Shape{Video: webrtc.MimeTypeH264, GOP: 500 * time.Millisecond},
		options: func(o *SessionOptions) {
			o.Traits = adapters.Traits{IgnoresPLI: true, InOrder: true, MaxHold: time.Second, FillAudio: true}
		},
	})
	h.awaitLive()
	h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= 5 })
	before := h.source.KeyFrameRequests()
	for deadline := bound(t); h.session.Status().Tracks[0].KeyFrameRequestsReceived < 40; {
		frames := h.sink.Received("demo").Frames
		h.sink.RequestKeyFrames("demo", 10)
		h.awaitReception(func(r relaytest.Reception) bool { return r.Frames > frames+5 })
		if deadline.Err() != nil {
			t.Fatal("the requests do not arrive")
		}
	}
	if n := h.source.KeyFrameRequests() - before; n > 0 {
		t.Errorf("%d key frame requests went upstream", n)
	}
	h.session.Joined()
	for deadline := bound(t); h.source.KeyFrameRequests() == before && deadline.Err() == nil; {
		frames := h.sink.Received("demo").Frames
		h.awaitReception(func(r relaytest.Reception) bool { return r.Frames > frames })
	}
	if h.source.KeyFrameRequests() == before {
		t.Error("nobody asked for who joined")
	}
}
