package relay

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

func TestOpusDuration(t *testing.T) {
	t.Parallel()
	const ms = 48
	for _, tt := range []struct {
		name    string
		payload []byte
		want    uint32
	}{
		{"nothing", nil, 0},
		{"SILK, 10 ms", []byte{0 << 3, 1}, 10 * ms},
		{"SILK, 60 ms", []byte{11 << 3, 1}, 60 * ms},
		{"hybrid, 20 ms", []byte{13 << 3, 1}, 20 * ms},
		{"CELT, 2.5 ms", []byte{16 << 3, 1}, 120},
		{"CELT, 20 ms, stereo", []byte{31<<3 | 4, 1}, 20 * ms},
		{"two of the same size", []byte{31<<3 | 1, 1}, 40 * ms},
		{"two of different sizes", []byte{31<<3 | 2, 1, 2}, 40 * ms},
		{"three", []byte{31<<3 | 3, 3, 1}, 60 * ms},
		{"a number is missing", []byte{31<<3 | 3}, 0},
		{"no frames", []byte{31<<3 | 3, 0}, 0},
		{"too long", []byte{31<<3 | 3, 7}, 0},
	} {
		if got := opusDuration(tt.payload); got != tt.want {
			t.Errorf("%s: %d ticks, want %d", tt.name, got, tt.want)
		}
	}
}

// counter is a server that tells the time of sound by counting what comes, and takes it in order.
type counter struct {
	begun   bool
	next    uint16
	counted uint32
	worst   int32 // by how much it was wrong
	holes   int   // numbers that did not come
	empty   int
}

func (c *counter) Splice() { c.holes++ }

func (c *counter) Packet(p *media.Packet) {
	h := &p.Header
	if !c.begun {
		c.begun, c.next, c.counted = true, h.SequenceNumber, h.Timestamp
	}
	c.holes += int(int16(h.SequenceNumber - c.next))
	c.next = h.SequenceNumber + 1
	wrong := int32(h.Timestamp - c.counted)
	if wrong > opusRate/2 || wrong < -opusRate/2 {
		c.counted, wrong = h.Timestamp, 0
	}
	c.worst = max(c.worst, wrong, -wrong)
	c.counted += opusDuration(p.Payload)
	if len(p.Payload) <= 2 {
		c.empty++
	}
}

// sounds are Opus packets of one configuration. Some are not there, or come late; where nothing is to be heard, none is sent.
func sounds(t *testing.T, random *rand.Rand, toc byte, n int, lose, late, silent float64) (packets []come) {
	t.Helper()
	seq, stamp := uint16(random.Uint32()), random.Uint32()
	step := opusDuration([]byte{toc})
	interval := time.Duration(step) * time.Second / opusRate
	at := time.Duration(0)
	for range n {
		p := packetOf(t, seq, stamp, false, []byte{toc, 1, 2, 3, 4})
		seq, stamp, at = seq+1, stamp+step, at+interval
		if random.Float64() < silent {
			pause := 1 + random.IntN(int(400*time.Millisecond/interval))
			stamp, at = stamp+uint32(pause)*step, at+time.Duration(pause)*interval
		}
		if len(packets) > 0 && random.Float64() < lose {
			continue
		}
		c := come{at: at, packet: p}
		if random.Float64() < late {
			c.at += 130 * time.Millisecond
		}
		packets = append(packets, c)
	}
	return packets
}

// Whatever is lost, late or not sent: a server that counts has the time of each packet right, and sees no hole.
func TestFillerKeepsTime(t *testing.T) {
	t.Parallel()
	for _, toc := range []byte{31 << 3, 31<<3 | 4, 31<<3 | 1, 30 << 3, 16 << 3, 9 << 3, 11 << 3, 13<<3 | 4} {
		for seed := range uint64(30) {
			random := rand.New(rand.NewPCG(seed, uint64(toc)))
			packets := sounds(t, random, toc, 500, 0.03, 0.03, 0.02)
			for i := 1; i < len(packets); i++ { // in order of arrival
				for j := i; j > 0 && packets[j].at < packets[j-1].at; j-- {
					packets[j], packets[j-1] = packets[j-1], packets[j]
				}
			}
			c := &counter{}
			fill := newFiller()
			o := &outlet{
				to: c, history: media.NewHistory(128), inOrder: true, fill: fill, lost: func() {},
				trip: func() time.Duration { return 100 * time.Millisecond },
			}
			o.run(&tray{off: true}, packets)
			if c.worst > 0 || c.holes != 0 {
				t.Fatalf("packets that begin with %#x, seed %d: wrong by %d ticks, %d holes", toc, seed, c.worst, c.holes)
			}
			if fill.filled == 0 || int(fill.filled) != c.empty {
				t.Fatalf("%d filled, %d empty", fill.filled, c.empty)
			}
			// What goes out is what the server gets that asks again.
			var p media.Packet
			if !fill.history.Sequence(c.next-1, &p) || fill.history.Sequence(c.next, &p) {
				t.Fatal("the history has other numbers than those that went out")
			}
		}
	}
}

// A pause, or a source whose time begins elsewhere, is not filled.
func TestFillerIsBounded(t *testing.T) {
	t.Parallel()
	for _, jump := range []uint32{2 * opusRate, 1 << 31, 1<<32 - 2*opusRate} {
		c := &counter{}
		f := newFiller()
		f.send(packetOf(t, 7, 1000, false, []byte{31 << 3, 1}), c)
		f.send(packetOf(t, 8, 1960+jump, false, []byte{31 << 3, 1}), c)
		f.send(packetOf(t, 9, 2920+jump, false, []byte{31 << 3, 1}), c)
		if f.filled > 0 || c.worst > 0 || c.holes > 0 {
			t.Errorf("after a jump by %d: %d filled, wrong by %d", jump, f.filled, c.worst)
		}
	}
	// Sound that is twice somewhere makes no hole: it is as it came.
	c := &counter{}
	f := newFiller()
	for i := range 10 {
		f.send(packetOf(t, uint16(i), uint32(i)*480, false, []byte{31 << 3, 1}), c)
	}
	if f.filled > 0 {
		t.Errorf("%d filled", f.filled)
	}
}
