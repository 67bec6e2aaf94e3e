package pionsfu

import (
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// joining sends what a history holds to a viewer that comes at a time, and says when each packet goes out.
func joining(t *testing.T, ages []time.Duration, now time.Time, live time.Duration) (sent []time.Duration) {
	t.Helper()
	j := join{behind: true, began: now, first: now.Add(-ages[0]), head: uint64(len(ages))}
	at := func(position int) time.Time {
		if position < len(ages) {
			return now.Add(-ages[position])
		}
		return now.Add(time.Duration(position-len(ages)+1) * 20 * time.Millisecond)
	}
	clock := now
	for position := 0; at(position).Before(now.Add(live)); position++ {
		if at(position).After(clock) {
			clock = at(position) // it has to come first
		}
		for j.behind && j.hold(uint64(position), at(position), clock) {
			if !j.due.After(clock) {
				t.Fatalf("packet %d is held until %s ago", position, clock.Sub(j.due))
			}
			clock = j.due
		}
		sent = append(sent, clock.Sub(now))
	}
	if j.behind {
		t.Error("the viewer does not catch up")
	}
	return sent
}

// What came before the viewer goes out at most four times as fast as it came, in small bursts, and then the viewer is at the
// live edge.
func TestJoinIsPaced(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var second []time.Duration // a packet each 5 ms
	for age := time.Second; age > 0; age -= 5 * time.Millisecond {
		second = append(second, age)
	}
	sent := joining(t, second, now, 2*time.Second)
	for i := range second {
		if early := time.Duration(i)*5*time.Millisecond/joinSpeed - sent[i]; early > 0 {
			t.Fatalf("packet %d goes out %s too early", i, early)
		}
	}
	if last := sent[len(sent)-1]; last != 1980*time.Millisecond {
		t.Errorf("at the end a packet of %s goes out at %s", 1980*time.Millisecond, last)
	}

	large := make([]time.Duration, 400) // one key frame
	for i := range large {
		large[i] = 10 * time.Millisecond
	}
	sent = joining(t, large, now, time.Second)
	for i := burst; i < len(large); i++ {
		if sent[i]-sent[i-burst] < burstSpacing {
			t.Fatalf("%d packets go out within %s", burst, sent[i]-sent[i-burst])
		}
	}
	if joined := joining(t, []time.Duration{time.Millisecond}, now, 100*time.Millisecond); joined[0] != 0 {
		t.Errorf("a key frame that has just come waits %s", joined[0])
	}
}

// A viewer begins with a key frame of the last second, however many packets ago that was, with nothing left out; else with the
// next one.
func TestJoinPosition(t *testing.T) {
	for name, test := range map[string]struct {
		packets int
		age     time.Duration
		want    bool
	}{
		"just now":      {1, 0, true},
		"some time ago": {400, 900 * time.Millisecond, true},
		"too old":       {100, 1100 * time.Millisecond, false},
		"too much":      {joinPackets + 1, 100 * time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := &feed{kind: webrtc.RTPCodecTypeVideo}
			f.codec.Store(&webrtc.RTPCodecParameters{})
			l := &layer{feed: f, history: media.NewHistory(videoHistory)}
			f.layers = []*layer{l}
			for i := range test.packets + 10 {
				p, err := media.NewPacket(rtp.Header{Version: 2, SequenceNumber: uint16(i), Timestamp: uint32(i / 10)}, []byte{1})
				if err != nil {
					t.Fatal(err)
				}
				p.KeyFrame = i == 10
				p.Arrival = time.Now().Add(-test.age)
				l.history.Add(p)
			}
			v := newLane(f, f.codec.Load())
			v.begin()
			if v.waiting == test.want {
				t.Fatalf("waits for a key frame: %t", v.waiting)
			}
			want := uint64(test.packets + 10)
			if test.want {
				want = 10
			}
			if v.cursor != want {
				t.Errorf("begins at %d; want %d", v.cursor, want)
			}
		})
	}
}
