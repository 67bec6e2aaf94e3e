package relay_test

import (
	"errors"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// standsBy lets relays of x have a second copy.
func standsBy(b *bed, o *relay.ManagerOptions) {
	gapless(b, o)
	o.NewSource = func(s relay.Spec) relay.Source {
		return relay.Source{From: adapters.Endpoint{URL: &url.URL{Scheme: "https", Host: string(s.Parent)}}}
	}
	o.Standby = []string{"x"}
}

// seconds are the second copies that the last session was given.
func (b *bed) seconds() []standby {
	s := b.last()
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]standby(nil), s.standbys...)
}

// wantSeconds checks whom the last session was given second copies from.
func (b *bed) wantSeconds(want ...ID) standby {
	b.Helper()
	list := b.seconds()
	for i := range max(len(list), len(want)) {
		if i >= len(list) || i >= len(want) || list[i].parent != want[i] {
			b.Fatalf("second copies: %+v, want of %v", list, want)
		}
	}
	if len(list) == 0 {
		return standby{}
	}
	return list[len(list)-1]
}

func (b *bed) wantStandby(state string, parent ID) *relay.SecondStatus {
	b.Helper()
	s := b.status().Standby
	if s == nil || s.State != state || s.Parent != parent {
		b.Fatalf("status of the second copy: %+v, want %s from %q", s, state, parent)
	}
	for _, gauge := range []string{"running", "missing"} {
		want := 0.0
		if gauge == state {
			want = 1
		}
		if got := b.count("sidestream_relay_standbys", gauge); got != want {
			b.Errorf("%v second copies %s", got, gauge)
		}
	}
	return s
}

func TestStandbyIsKept(t *testing.T) {
	run(t, standsBy, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		b.peer("c1", "5 e1 c1")
		release := b.play()
		b.wantSeconds("c1")
		b.wantPulls("b1", "c1")
		b.wantOwn("5 e1 b1 a1") // the second copy is not announced
		s := b.wantStandby(relay.SecondRunning, "c1")
		if len(s.Path) != 3 || s.Why != planner.WhySecond {
			b.Errorf("%+v", s)
		}
		if _, _, claims := b.made(); len(claims) > 0 {
			b.Errorf("claims: %v", claims)
		}
		b.catalogue.Forget("c1") // its packets tell
		after(time.Second)
		b.wantStandby(relay.SecondRunning, "c1")
		release()
		after(15*time.Second + freeTime)
		if s := b.count("sidestream_relay_standbys", "running"); s != 0 {
			b.Errorf("%v second copies are left", s)
		}
		b.wantSeconds("c1")
		if n := b.count("sidestream_relay_standby_ends_total", "unwanted"); n != 1 {
			b.Errorf("%v ended as unwanted", n)
		}
	})
}

func TestStandbyIsOptIn(t *testing.T) {
	run(t, func(b *bed, o *relay.ManagerOptions) {
		standsBy(b, o)
		o.Standby = []string{"y*"}
	}, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		b.peer("c1", "5 e1 c1")
		defer b.play()()
		b.wantPulls("b1")
		if s := b.status().Standby; s != nil {
			b.Errorf("status %+v", s)
		}
	})
}

// Where there is no way apart the status says so, until there is one.
func TestStandbyIsMissing(t *testing.T) {
	run(t, standsBy, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		b.peer("d1", "5 e1 b1 d1")
		defer b.play()()
		b.wantOwn("5 e1 b1 a1")
		if s := b.wantStandby(relay.SecondMissing, ""); s.Why != planner.WhyNoSecond {
			b.Errorf("why: %s", s.Why)
		}
		b.peer("c1", "5 e1 c1")
		b.wantSeconds("c1")
		b.peer("c1", "5 e1 b1 c1") // now it hangs on the first copy's parent
		synctest.Wait()
		b.wantStandby(relay.SecondMissing, "")
		b.peer("e1", "5 e1")
		b.wantSeconds("c1", "e1")
		b.peer("b1", "5 e1 c1 b1") // and the first copy's path follows
		b.wantStandby(relay.SecondRunning, "e1")
		b.wantOwn("5 e1 c1 b1 a1")
	})
}

// A second copy that is lost is replaced: from elsewhere at once, from there after a while.
func TestStandbyIsReplaced(t *testing.T) {
	run(t, standsBy, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		b.peer("c1", "5 e1 c1")
		defer b.play()()
		b.wantSeconds("c1").end <- errors.New("cut off")
		b.wantSeconds("c1")
		if s := b.wantStandby(relay.SecondMissing, ""); s.LastError == "" || s.NextRetry.IsZero() || s.Why != planner.WhyAvoid {
			b.Errorf("%+v", s)
		}
		after(1500 * time.Millisecond)
		b.peer("d1", "5 e1 d1")
		b.wantSeconds("c1", "c1").end <- errors.New("cut off")
		b.wantSeconds("c1", "c1", "d1")
		b.wantStandby(relay.SecondRunning, "d1")
		b.wantOwn("5 e1 b1 a1")
		if s := b.status(); s.LastError != "" {
			b.Errorf("the relay is blamed: %s", s.LastError)
		}
		if n := b.count("sidestream_relay_standby_ends_total", "failed"); n != 2 {
			b.Errorf("%v failed", n)
		}
	})
}

// What a parent grants may differ from what it announced.
func TestStandbyGrantIsChecked(t *testing.T) {
	for name, grant := range map[string]relay.Grant{
		"it meets the first copy": {Path: []ID{"e1", "b1", "c1"}, Epoch: 5},
		"it comes from here":      {Path: []ID{"e1", "a1", "c1"}, Epoch: 5},
		"another publication":     {Path: []ID{"e1", "c1"}, Epoch: 6},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, standsBy, func(b *bed) {
				b.setPull("c1", func(adapters.StreamID) (relay.Grant, error) { return grant, nil })
				b.peer("b1", "5 e1 b1")
				b.peer("c1", "5 e1 c1")
				defer b.play()()
				b.wantPulls("b1", "c1")
				b.wantSeconds()
				b.wantStandby(relay.SecondMissing, "")
			})
		})
	}
}

// The second copy is the first one's when that is lost. Its parent is asked once more, and the hold says so.
func TestStandbyTakesOver(t *testing.T) {
	run(t, standsBy, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		b.peer("c1", "5 e1 c1")
		b.peer("d1", "5 e1 d1")
		defer b.play()()
		b.wantSeconds("c1").end <- nil
		b.wantOwn("5 e1 c1 a1")
		b.wantPulls("b1", "c1", "c1", "d1")
		b.wantSeconds("c1", "d1") // not b1, which has just failed
		if s := b.wantStandby(relay.SecondRunning, "d1"); s.Takeovers != 1 {
			b.Errorf("%+v", s)
		}
		b.wantChanges()
		if n := b.count("sidestream_relay_source_losses_total", ""); n != 0 {
			b.Errorf("%v losses", n)
		}
		if n := b.count("sidestream_relay_standby_ends_total", "took over"); n != 1 {
			b.Errorf("%v took over", n)
		}
		after(time.Minute)
		b.wantOwn("5 e1 c1 a1")
	})
}

// A parent that has taken over and does not grant it is left; the hold is withdrawn until there is another source.
func TestStandbyIsRefused(t *testing.T) {
	run(t, standsBy, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		b.peer("c1", "5 e1 c1")
		defer b.play()()
		second := b.wantSeconds("c1")
		b.setPull("c1", func(adapters.StreamID) (relay.Grant, error) {
			return relay.Grant{Path: []ID{"e1", "a1", "c1"}, Epoch: 5}, nil
		})
		second.end <- nil
		b.wantOwn("")
		b.peer("d1", "5 e1 d1")
		after(time.Second)
		b.wantOwn("5 e1 d1 a1")
		b.wantChanges(true)
	})
}

// It may have heard the origin later than this node has: then it is asked again, and what flows stays announced.
func TestStandbyHearsTheOriginLater(t *testing.T) {
	run(t, standsBy, func(b *bed) {
		grant := func(sequence uint64, path ...ID) func(adapters.StreamID) (relay.Grant, error) {
			return func(adapters.StreamID) (relay.Grant, error) {
				return relay.Grant{Epoch: 5, Path: path, Sequence: sequence}, nil
			}
		}
		b.setPull("b1", grant(100, "e1", "b1"))
		b.setPull("c1", grant(90, "e1", "c1"))
		b.peer("b1", "5 e1 b1")
		b.peer("c1", "5 e1 c1")
		defer b.play()()
		if _, err := b.manager.Grant("d1", "x"); err != nil {
			b.Error(err)
		}
		b.wantSeconds("c1").end <- nil
		b.wantOwn("5 e1 b1 a1")
		b.setPull("c1", grant(101, "e1", "c1"))
		after(time.Second)
		b.wantOwn("5 e1 c1 a1")
		b.wantChanges()
	})
}

// When the relay's parent changes, the second copy is planned anew.
func TestStandbyAfterAMove(t *testing.T) {
	run(t, standsBy, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		b.peer("c1", "5 e1 c1")
		defer b.play()()
		b.wantSeconds("c1")
		b.last().flow(relay.FlowLost) // and the second copy with it
		b.seconds()[0].end <- errors.New("cut off")
		b.peer("d1", "5 e1 d1")
		after(time.Second)
		b.wantOwn("5 e1 c1 a1") // it failed as a second copy only
		b.wantChanges(true)
		b.wantSeconds("c1", "d1")
	})
}
