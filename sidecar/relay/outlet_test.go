package relay

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// drop is a packet that an outlet sent.
type drop struct {
	number  uint16 // as the far end sees it
	source  uint16 // the packet's own
	stamp   uint32
	marker  bool
	payload []byte
	at      time.Time
}

// tray numbers packets as a media.Sender does, and keeps them.
type tray struct {
	now    time.Time
	offset uint16
	splice bool
	last   uint16
	drops  []drop
	off    bool // keeps nothing
}

func (s *tray) Packet(p *media.Packet) {
	h := &p.Header
	if s.splice {
		s.splice, s.offset = false, s.last+1-h.SequenceNumber
	}
	s.last = h.SequenceNumber + s.offset
	if !s.off {
		s.drops = append(s.drops, drop{s.last, h.SequenceNumber, h.Timestamp, h.Marker, bytes.Clone(p.Payload), s.now})
	}
}

func (s *tray) Splice() { s.splice = true }

// come is a packet that comes to an outlet.
type come struct {
	at     time.Duration
	index  int
	packet *media.Packet
	frame  int
	again  bool // it was lost first
}

// flow makes frames of one to twelve packets; each payload tells which packet of which frame it is.
func flow(t testing.TB, random *rand.Rand, frames int) (packets []come) {
	t.Helper()
	seq, stamp := uint16(random.Uint32()), random.Uint32()
	for f := range frames {
		n := 1 + random.IntN(12)
		for i := range n {
			p := packetOf(t, seq, stamp, i == n-1, binary.BigEndian.AppendUint32([]byte{byte(i), byte(n)}, uint32(f)))
			at := time.Duration(f)*40*time.Millisecond + time.Duration(i)*100*time.Microsecond
			packets = append(packets, come{at: at, index: len(packets), packet: p, frame: f})
			seq++
		}
		stamp += 3600
	}
	return packets
}

func packetOf(t testing.TB, seq uint16, stamp uint32, marker bool, payload []byte) *media.Packet {
	t.Helper()
	p, err := media.NewPacket(rtp.Header{Version: 2, SequenceNumber: seq, Timestamp: stamp, Marker: marker, PayloadType: 96}, payload)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// run lets packets come to an outlet, which is drained when it asks for that.
func (o *outlet) run(s *tray, packets []come) {
	start := time.Unix(1000, 0)
	var due time.Time
	o.wake = func() { due = o.due }
	drain := func(until time.Time) {
		for !due.IsZero() && !due.After(until) {
			s.now = due
			due = o.drain(due)
		}
	}
	for _, c := range packets {
		at := start.Add(c.at)
		drain(at)
		s.now = at
		c.packet.Arrival = at
		o.take(c.packet, o.history.Add(c.packet))
	}
	for i := 0; !due.IsZero() && i < 10000; i++ {
		drain(due)
	}
}

// Where repairs come in time everything goes out in order, the rest at once; where they do not, what is not whole is left out, and
// nobody waits for longer than the hold.
func TestOutletOrders(t *testing.T) {
	t.Parallel()
	const trip = 100 * time.Millisecond
	for name, lost := range map[string]float64{"all is repaired": 0, "one in five repairs is lost": 0.2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(100) {
				random := rand.New(rand.NewPCG(seed, 3))
				packets := flow(t, random, 200)
				gone := map[int]bool{}
				begins := time.Duration(0)
				for i := range packets {
					if i < 30 || random.IntN(50) > 0 {
						continue
					}
					packets[i].again = true
					packets[i].at += trip + 40*time.Millisecond
					if random.Float64() < lost {
						gone[i] = true
					}
				}
				came := slices.DeleteFunc(slices.Clone(packets), func(c come) bool { return gone[c.index] })
				slices.SortStableFunc(came, func(a, b come) int { return cmp.Compare(a.at, b.at) })
				s := &tray{}
				wishes := 0
				o := &outlet{
					to: s, history: media.NewHistory(512), video: true, inOrder: true,
					trip: func() time.Duration { return trip }, lost: func() { wishes++ },
				}
				o.run(s, came)

				hold := trip*videoRepair/2 + repairSlack
				byNumber := map[uint16]come{}
				for _, c := range packets {
					byNumber[c.packet.Header.SequenceNumber] = c
				}
				frames := map[int]int{}
				blocked := begins // until when something before this packet was missing
				for i, d := range s.drops {
					c := byNumber[d.source]
					if i > 0 && d.number != s.drops[i-1].number+1 {
						t.Fatalf("seed %d: number %d follows %d", seed, d.number, s.drops[i-1].number)
					}
					if i > 0 && c.index <= byNumber[s.drops[i-1].source].index {
						t.Fatalf("seed %d: packet %d after %d", seed, c.index, byNumber[s.drops[i-1].source].index)
					}
					frames[c.frame]++
					waited := d.at.Sub(time.Unix(1000, 0)) - c.at
					if waited > hold+50*time.Millisecond {
						t.Fatalf("seed %d: packet %d waited for %s", seed, c.index, waited)
					}
					if c.again {
						blocked = max(blocked, c.at)
					}
					if len(gone) == 0 && c.at > blocked && waited > 0 {
						t.Fatalf("seed %d: packet %d waited for %s, and nothing before it was missing", seed, c.index, waited)
					}
				}
				if len(gone) == 0 && (len(s.drops) != len(packets) || wishes > 0 || o.stats.givenUp > 0) {
					t.Fatalf("seed %d: %d of %d packets, %d wishes, %+v", seed, len(s.drops), len(packets), wishes, o.stats)
				}
				if uint64(len(gone)) > o.stats.givenUp {
					t.Fatalf("seed %d: %d gone, %+v", seed, len(gone), o.stats)
				}
				if len(gone) > 0 && wishes == 0 {
					t.Fatalf("seed %d: nobody asked for a key frame", seed)
				}
				// A frame of which something is gone is cut off, or left out.
				for _, c := range packets {
					if gone[c.index] && frames[c.frame] > int(c.packet.Payload[0]) {
						t.Fatalf("seed %d: packet %d of frame %d is gone, and %d packets of it went out", seed,
							c.packet.Payload[0], c.frame, frames[c.frame])
					}
				}
			}
		})
	}
}

// What a far end asks for again is what it was sent by that number, over any give-ups; by the media package's own sender.
func TestOutletIsReversible(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	codec := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeH264, ClockRate: 90000}
	history := media.NewHistory(512)
	out := media.NewConn(media.Transport{}, nil).NewSender(media.SenderOptions{
		Kind: webrtc.RTPCodecTypeVideo, Codec: codec, History: history,
	})
	var sent []media.Packet
	if _, err := out.Bind(recorder{codec: codec, packets: &sent}); err != nil {
		t.Fatal(err)
	}
	o := &outlet{to: out, history: history, video: true, inOrder: true, lost: func() {}}
	packets := slices.DeleteFunc(flow(t, random, 300), func(c come) bool { return c.index > 5 && random.IntN(150) == 0 })
	o.run(&tray{off: true}, packets)
	if o.stats.givenUp == 0 {
		t.Fatal("nothing was given up")
	}
	for i := 1; i < len(sent); i++ {
		if sent[i].Header.SequenceNumber != sent[i-1].Header.SequenceNumber+1 {
			t.Fatalf("%d follows %d", sent[i].Header.SequenceNumber, sent[i-1].Header.SequenceNumber)
		}
	}
}

// What a source that counts anew sends goes on at once.
func TestOutletNewNumbers(t *testing.T) {
	t.Parallel()
	for _, jump := range []uint16{5000, 30000, 60000} {
		s := &tray{}
		o := &outlet{to: s, history: media.NewHistory(64), video: true, inOrder: true, lost: func() {}}
		var packets []come
		for i := range 40 {
			seq := uint16(100 + i)
			if i >= 20 {
				seq += jump
			}
			packets = append(packets, come{
				at: time.Duration(i) * 40 * time.Millisecond, packet: packetOf(t, seq, uint32(i)*3600, true, []byte{1}),
			})
		}
		o.run(s, packets)
		if len(s.drops) != 40 || s.drops[39].number != 139 {
			t.Errorf("after a jump by %d: %d packets, the last %d", jump, len(s.drops), s.last)
		}
	}
}

// A key frame is spread out, and nothing that comes alone waits.
func TestOutletPaces(t *testing.T) {
	t.Parallel()
	for _, inOrder := range []bool{false, true} {
		t.Run(fmt.Sprintf("in order %t", inOrder), func(t *testing.T) {
			t.Parallel()
			s := &tray{}
			o := &outlet{to: s, history: media.NewHistory(512), video: true, inOrder: inOrder, lost: func() {}}
			var packets []come
			seq := uint16(65300)
			add := func(at time.Duration, n int) {
				for i := range n {
					packets = append(packets, come{at: at, packet: packetOf(t, seq, uint32(at), i == n-1, make([]byte, 1000))})
					seq++
				}
			}
			for i := range 5 {
				add(time.Duration(i)*20*time.Millisecond, 20)
			}
			add(100*time.Millisecond, 300)
			add(200*time.Millisecond, 1)
			o.run(s, packets)
			if len(s.drops) != len(packets) {
				t.Fatalf("%d of %d packets", len(s.drops), len(packets))
			}
			start := time.Unix(1000, 0)
			for i, d := range s.drops {
				if d.source != packets[i].packet.Header.SequenceNumber {
					t.Fatalf("packet %d is %d", i, d.source)
				}
				waited := d.at.Sub(start.Add(packets[i].at))
				if i < 100 && waited > 0 || i == 400 && waited > 0 {
					t.Errorf("packet %d waited for %s", i, waited)
				}
				if waited > 30*time.Millisecond {
					t.Errorf("packet %d waited for %s", i, waited)
				}
				// No receiver that sleeps for 3 ms is given more than half of what its buffer holds.
				near := 0
				for _, other := range s.drops[:i] {
					if d.at.Sub(other.at) < 3*time.Millisecond {
						near++
					}
				}
				if near > 2*burstPackets+pacePackets {
					t.Errorf("%d packets within 3 ms", near)
				}
			}
		})
	}
}

// A stream that is always more than the pace is not held back for ever.
func TestOutletKeepsUp(t *testing.T) {
	t.Parallel()
	s := &tray{}
	o := &outlet{to: s, history: media.NewHistory(4096), video: true, lost: func() {}}
	var packets []come
	for i := range 40000 {
		packets = append(packets, come{
			at: time.Duration(i) * 50 * time.Microsecond, packet: packetOf(t, uint16(i), uint32(i/100), false, []byte{1}),
		})
	}
	o.run(s, packets)
	if len(s.drops) != len(packets) {
		t.Fatalf("%d of %d packets", len(s.drops), len(packets))
	}
	for i, d := range s.drops {
		if waited := d.at.Sub(time.Unix(1000, 0).Add(packets[i].at)); waited > 40*time.Millisecond {
			t.Fatalf("packet %d waited for %s", i, waited)
		}
	}
}

func TestOutletAllocatesNothing(t *testing.T) {
	for _, inOrder := range []bool{false, true} {
		o := &outlet{
			to: &tray{off: true}, history: media.NewHistory(64), video: true, inOrder: inOrder, lost: func() {}, wake: func() {},
		}
		p, late := packetOf(t, 0, 0, true, make([]byte, 1000)), packetOf(t, 0, 0, true, make([]byte, 1000))
		now := time.Unix(1000, 0)
		round := func() {
			for range 8 { // every eighth packet comes late
				if p.Header.SequenceNumber%8 == 3 {
					late.Shift("", 0, media.Shift{Sequence: p.Header.SequenceNumber - late.Header.SequenceNumber})
					p.Shift("", 0, media.Shift{Sequence: 1})
				}
				p.Arrival = now
				o.take(p, o.history.Add(p))
				if p.Header.SequenceNumber%8 == 5 {
					late.Arrival = now
					o.take(late, o.history.Add(late))
				}
				p.Shift("", 0, media.Shift{Sequence: 1, Timestamp: 3000})
				now = now.Add(time.Millisecond)
			}
			o.drain(now)
		}
		for range 100 {
			round()
		}
		if n := testing.AllocsPerRun(100, round); n > 0 {
			t.Errorf("in order %t: %v allocations", inOrder, n)
		}
	}
}

// FuzzOutlet lets packets of any numbers come at any time: what goes out has the numbers that come next.
func FuzzOutlet(f *testing.F) {
	f.Add([]byte{1, 0, 1, 1, 1, 0, 3, 2, 255, 1, 1, 9})
	f.Add([]byte{1, 0, 200, 1, 100, 1, 1, 1, 1, 1, 156, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &tray{}
		o := &outlet{to: s, history: media.NewHistory(64), video: true, inOrder: true, lost: func() {}}
		var packets []come
		seq, stamp, at := uint16(0), uint32(0), time.Duration(0)
		for i := 0; i+1 < len(data) && i < 2000; i += 2 {
			step := int(int8(data[i]))
			if data[i+1]&0x80 != 0 {
				step *= 200
			}
			seq += uint16(step)
			stamp += uint32(data[i+1] & 3)
			at += time.Duration(data[i+1]>>2&15) * 10 * time.Millisecond
			packets = append(packets, come{at: at, packet: packetOf(t, seq, stamp, data[i+1]&0x40 != 0, data[i:i+2])})
		}
		o.run(s, packets)
		for i := 1; i < len(s.drops); i++ {
			if s.drops[i].number != s.drops[i-1].number+1 {
				t.Fatalf("number %d follows %d", s.drops[i].number, s.drops[i-1].number)
			}
		}
		if len(s.drops) > len(packets) {
			t.Fatalf("%d packets of %d", len(s.drops), len(packets))
		}
		if !o.due.IsZero() {
			t.Fatal("it still wants to be called")
		}
	})
}
