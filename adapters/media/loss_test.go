package media

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A link that is given more than it carries queues, then loses, also what is sent again: answers come later than the path's round
// trip lets one think, or not at all. What is asked for stays less than what comes and what is lost.
func TestLossesUnderOverload(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		offered, carries int // packets a second
		queue            time.Duration
	}{
		{"a little too much", 1000, 900, 200 * time.Millisecond},
		{"twice too much", 1000, 500, 200 * time.Millisecond},
		{"a queue of a second", 1000, 800, time.Second},
		{"hardly anything", 1000, 50, 400 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const rtt, length = 20 * time.Millisecond, 20 * time.Second
			type packet struct {
				seq   uint16
				again bool
				at    time.Duration
			}
			var l losses
			var queue []packet     // on the link
			var asked []packet     // on the way to the sender
			var busy time.Duration // until then the link is
			var received, repaired, pairs int
			start := time.Unix(1000, 0)
			send := func(p packet, now time.Duration) {
				busy = max(busy, now)
				if busy-now > tt.queue {
					return
				}
				busy += time.Second / time.Duration(tt.carries)
				p.at = busy + rtt/2
				queue = append(queue, p)
			}
			random := rand.New(rand.NewPCG(1, 2))
			seq := uint16(random.Uint32())
			for now := time.Duration(0); now < length; now += time.Second / time.Duration(tt.offered) {
				for len(asked) > 0 && asked[0].at <= now {
					send(packet{seq: asked[0].seq, again: true}, now)
					asked = asked[1:]
				}
				send(packet{seq: seq}, now)
				seq++
				for len(queue) > 0 && queue[0].at <= now {
					p := queue[0]
					queue = queue[1:]
					at := start.Add(p.at)
					if l.arrived(p.seq, at, p.again) {
						received++
						if p.again {
							repaired++
						}
					}
					for _, pair := range l.due(at, rtt, nil) {
						pairs++
						for _, wanted := range pair.PacketList() {
							asked = append(asked, packet{seq: wanted, at: p.at + rtt/2})
						}
					}
				}
			}
			gaps := int(l.lost) + repaired
			if limit := gaps + received/retryPrice + maxCredit/retryPrice; int(l.requested) > limit {
				t.Errorf("%d packets asked for, %d received, %d lost: want at most %d", l.requested, received, gaps, limit)
			}
			t.Logf("%d received, %d of them repairs, %d missed, %d asked for in %d pairs", received, repaired, gaps, l.requested, pairs)
		})
	}
}

// A history that may grow keeps what is younger than the time, and no more packets than it may.
func TestHistoryGrows(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		interval time.Duration
		want     int // slots in the end
	}{
		{"slow", 20 * time.Millisecond, 64},
		{"fits after growing", 5 * time.Millisecond, 256},
		{"too fast", 100 * time.Microsecond, 512},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := NewHistory(64)
			h.Keep(time.Second, 512)
			now := time.Unix(1000, 0)
			const first, total = 65000, 3000
			for i := range total {
				p := videoPacket(t, first+i-65000)
				p.Header.SequenceNumber = uint16(first + i)
				p, err := NewPacket(p.Header, []byte{byte(i), byte(i >> 8)})
				if err != nil {
					t.Fatal(err)
				}
				p.Arrival = now
				if position := h.Add(p); position != uint64(i) {
					t.Fatalf("packet %d at position %d", i, position)
				}
				now = now.Add(tt.interval)
			}
			if len(h.slots) != tt.want {
				t.Errorf("%d slots, want %d", len(h.slots), tt.want)
			}
			var p Packet
			for i := range total {
				kept := i >= total-tt.want
				if got := h.Sequence(uint16(first+i), &p); got != kept {
					t.Fatalf("packet %d is there: %t, want %t", i, got, kept)
				} else if got && (int(p.Payload[0])|int(p.Payload[1])<<8) != i {
					t.Fatalf("packet %d is another", i)
				}
				if got := h.At(uint64(i), &p); (got == Read) != kept {
					t.Fatalf("position %d: %v, want it there: %t", i, got, kept)
				}
			}
		})
	}
}
