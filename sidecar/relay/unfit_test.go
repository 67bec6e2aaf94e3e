package relay_test

import (
	"errors"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// tracked has a node announce stream x with video of a codec, "" where its server does not say.
func (b *bed) tracked(id ID, epoch uint64, mime string) {
	b.Helper()
	h := catalogue.Hold{
		Stream: "x", Epoch: epoch, Path: []ID{id},
		Tracks: []adapters.Track{{Kind: "audio", MIME: "audio/opus"}, {Kind: "video", MIME: mime}},
	}
	if err := b.catalogue.SetPeer(catalogue.Node{ID: id, Cluster: string(id)[:1]}, []catalogue.Hold{h}); err != nil {
		b.Fatal(err)
	}
}

func h264Only(_ *bed, o *relay.ManagerOptions) {
	o.Accept = adapters.Traits{Codecs: []string{"video/H264", "audio/opus"}}.Accept
}

// acquireAtOnce is a viewer who is answered without waiting.
func (b *bed) acquireAtOnce() error {
	b.Helper()
	began := time.Now()
	release, err := b.acquire()
	if took := time.Since(began); took != 0 {
		b.Errorf("answered after %s: %v", took, err)
	}
	if err == nil {
		release()
	}
	return err
}

// What the local server is known not to take is refused before anybody is asked for it, whatever wants it, and said in the
// status; the next publication may be another matter.
func TestUnfit(t *testing.T) {
	run(t, func(b *bed, o *relay.ManagerOptions) {
		h264Only(b, o)
		o.Pins = catalogue.Names{"x"}
	}, func(b *bed) {
		b.tracked("b1", 5, "video/VP8")
		after(time.Second)
		for range 3 {
			refused, ok := errors.AsType[*adapters.CodecError](b.acquireAtOnce())
			if !ok || refused.MIME != "video/VP8" {
				t.Fatalf("a viewer is told %v", refused)
			}
		}
		if s := b.status(); s.State != relay.StateRefused || s.Why != planner.WhyUnfit || s.LastError == "" {
			t.Errorf("status %+v", s)
		}
		if err := b.manager.Unfit("x"); err == nil {
			t.Error("nothing is known against the stream")
		}
		if sessions, pulls, claims := b.made(); sessions != 0 || pulls != 0 || len(claims) != 0 {
			t.Errorf("%d sessions, %d pulls, claims of %v", sessions, pulls, claims)
		}
		if n := b.count("sidestream_acquires_total", "unfit"); n != 3 {
			t.Errorf("%v plays are counted as refused", n)
		}
		b.peers.answer = relay.Claim{Granted: true}
		b.tracked("b1", 6, "video/h264")
		b.play()()
		if err := b.manager.Unfit("x"); err != nil {
			t.Errorf("of the next publication: %v", err)
		}
		b.wantOwn("6 b1 a1")
	})
}

// Where nobody says the codec, the local server's refusal tells: those who wait are told at once, and others for a minute.
func TestUnfitIsFoundOut(t *testing.T) {
	run(t, h264Only, func(b *bed) {
		b.peers.answer = relay.Claim{Granted: true}
		refusal := &relay.SessionError{Side: relay.LocalServer, Step: "publish", Err: &adapters.CodecError{MIME: "video/VP8"}}
		b.setScript(func(s *session) { s.failing = refusal })
		b.tracked("b1", 5, "")
		began := time.Now()
		_, err := b.acquire()
		if _, ok := errors.AsType[*adapters.CodecError](err); !ok {
			t.Fatalf("the viewer is told %v", err)
		}
		if took := time.Since(began); took > connectTime+freeTime {
			t.Errorf("after %s", took)
		}
		after(time.Second)
		if _, ok := errors.AsType[*adapters.CodecError](b.acquireAtOnce()); !ok {
			t.Error("the next viewer is not told")
		}
		if sessions, _, _ := b.made(); sessions != 1 {
			t.Errorf("%d sessions", sessions)
		}
		b.setScript(nil)
		b.tracked("b1", 6, "")
		b.play()()
	})
	run(t, func(b *bed, o *relay.ManagerOptions) {
		h264Only(b, o)
		o.Pins = catalogue.Names{"x"}
	}, func(b *bed) {
		b.peers.answer = relay.Claim{Granted: true}
		refusal := &relay.SessionError{Side: relay.LocalServer, Step: "publish", Err: &adapters.CodecError{MIME: "video/VP8"}}
		b.setScript(func(s *session) { s.failing = refusal })
		b.tracked("b1", 5, "")
		after(50 * time.Second)
		if sessions, _, _ := b.made(); sessions != 1 {
			t.Errorf("%d sessions in 50 s", sessions)
		}
		b.setScript(nil)
		after(20 * time.Second)
		b.wantOwn("5 b1 a1")
	})
}

// A publisher at this node is nobody's refusal.
func TestUnfitElsewhereOnly(t *testing.T) {
	run(t, h264Only, func(b *bed) {
		b.tracked("b1", 5, "video/VP8")
		b.readers(1)
		after(time.Second)
		if err := b.manager.Unfit("x"); err != nil {
			t.Error(err)
		}
		if err := b.acquireAtOnce(); err != nil {
			t.Error(err)
		}
	})
}
