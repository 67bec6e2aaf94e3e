package relay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// guarded is a lane with a spare, to which a test hands packets.
type guarded struct {
	packets      []media.Packet // that went out
	lane         *lane
	first, spare *feed
}

func newGuarded(t testing.TB, mime string) *guarded {
	codec := webrtc.RTPCodecCapability{MimeType: mime, ClockRate: 90000}
	kind := webrtc.RTPCodecTypeVideo
	if mime == webrtc.MimeTypeOpus {
		codec.ClockRate, kind = 48000, webrtc.RTPCodecTypeAudio
	}
	l := newLane(kind, new(atomic.Int64), func(string) {})
	l.out = media.NewConn(media.Transport{}, nil).NewSender(media.SenderOptions{Kind: kind, Codec: codec, History: l.history})
	g := &guarded{lane: l}
	if _, err := l.out.Bind(recorder{codec: codec, packets: &g.packets}); err != nil {
		t.Fatal(err)
	}
	l.codec.RTPCodecCapability = codec
	l.opened, l.seenPacket, l.through = true, true, true
	g.first, g.spare = &feed{lane: l, codec: l.codec}, &feed{lane: l, codec: l.codec}
	l.current = g.first
	l.addSpare(g.spare)
	return g
}

// pack cuts frames into packets with numbers that begin anywhere.
func pack(t testing.TB, mime string, frames [][]byte, size int, seq uint16, timestamp, step uint32) [][]*media.Packet {
	var packed [][]*media.Packet
	for _, frame := range frames {
		var of []*media.Packet
		parts := slices.Collect(slices.Chunk(frame, size))
		if mime == webrtc.MimeTypeH264 {
			parts = slices.Collect(slices.Chunk(frame[1:], size))
		}
		for i, part := range parts {
			switch mime {
			case webrtc.MimeTypeVP8:
				descriptor := byte(0)
				if i == 0 {
					descriptor = 0x10
				}
				part = append([]byte{descriptor}, part...)
			case webrtc.MimeTypeH264:
				header := []byte{frame[0]&0xe0 | 28, frame[0] & 0x1f}
				if i == 0 {
					header[1] |= 0x80
				}
				if i == len(parts)-1 {
					header[1] |= 0x40
				}
				if part = append(header, part...); len(parts) == 1 {
					part = frame
				}
			}
			p, err := media.NewPacket(rtp.Header{
				Version: 2, SequenceNumber: seq, Timestamp: timestamp, Marker: i == len(parts)-1,
			}, part)
			if err != nil {
				t.Fatal(err)
			}
			of = append(of, p)
			seq++
		}
		packed = append(packed, of)
		timestamp += step
	}
	return packed
}

// unpack puts a frame's packets together.
func unpack(mime string, packets []media.Packet) (frame []byte) {
	for i, p := range packets {
		switch b := p.Payload; {
		case mime == webrtc.MimeTypeVP8:
			frame = append(frame, b[1:]...)
		case mime == webrtc.MimeTypeH264 && b[0]&0x1f == 28:
			if i == 0 {
				frame = append(frame, b[0]&0xe0|b[1]&0x1f)
			}
			frame = append(frame, b[2:]...)
		default:
			frame = append(frame, b...)
		}
	}
	return frame
}

// wantFrames checks that packets are just these frames, that none went out twice, and that no number is left out.
func wantFrames(t *testing.T, name, mime string, sent []media.Packet, frames [][]byte) {
	t.Helper()
	packets := inOrder(slices.Clone(sent))
	if len(packets) != len(sent) {
		t.Errorf("%s: %d packets went out twice", name, len(sent)-len(packets))
	}
	for i := 1; i < len(packets); i++ {
		if packets[i].Header.SequenceNumber != packets[i-1].Header.SequenceNumber+1 {
			t.Errorf("%s: number %d follows %d", name, packets[i].Header.SequenceNumber, packets[i-1].Header.SequenceNumber)
		}
	}
	n := 0
	for rest := packets; len(rest) > 0; n++ {
		end := slices.IndexFunc(rest, func(p media.Packet) bool { return p.Header.Timestamp != rest[0].Header.Timestamp })
		if end < 0 {
			end = len(rest)
		}
		if n < len(frames) && !bytes.Equal(unpack(mime, rest[:end]), frames[n]) {
			t.Fatalf("%s: frame %d is not what was sent", name, n)
		}
		rest = rest[end:]
	}
	if n != len(frames) {
		t.Errorf("%s: %d frames went out of %d", name, n, len(frames))
	}
}

// Whatever the first copy loses, and however late the second is: each frame goes out whole and once, in order, and no number is
// left out.
func TestSpareFillsHoles(t *testing.T) {
	t.Parallel()
	for _, mime := range []string{webrtc.MimeTypeVP8, webrtc.MimeTypeH264, webrtc.MimeTypeOpus} {
		for _, size := range []int{1000, 700, 1150} { // of the second copy's packets; the first's are of 1000
			if mime == webrtc.MimeTypeOpus && size != 1000 {
				continue
			}
			t.Run(fmt.Sprint(mime, " ", size), func(t *testing.T) {
				t.Parallel()
				for seed := range uint64(15) {
					testHoles(t, mime, size, seed)
				}
			})
		}
	}
}

func testHoles(t *testing.T, mime string, size int, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	step, most := uint32(3000), 5000
	if mime == webrtc.MimeTypeOpus {
		step, most = 960, 200
	}
	const count, quiet = 200, 30 // frames; of those, how many pass before the first is lost, and the last after
	frames := make([][]byte, count)
	for i := range frames {
		frames[i] = make([]byte, 20+random.IntN(most))
		for j := range frames[i] {
			frames[i][j] = byte(random.Uint32())
		}
		frames[i][0] = 0x41 // H264: a slice
	}
	g := newGuarded(t, mime)
	first := pack(t, mime, frames, 1000, uint16(random.Uint32()), random.Uint32(), step)
	second := pack(t, mime, frames, size, uint16(random.Uint32()), random.Uint32(), step)
	interval := time.Duration(step) * time.Second / time.Duration(g.lane.codec.ClockRate)
	began := time.Now()
	lag := random.IntN(5) - 2 // frames by which the second copy is later
	now := func(i int) time.Time { return began.Add(time.Duration(i) * interval) }
	hand := func(f *feed, p *media.Packet, at time.Time) {
		p = p.Clone() // packets are the lane's to change
		p.Arrival = at
		f.Packet(p)
	}
	lost, repaired := 0, map[int][]*media.Packet{}
	for i := range count + 10 {
		if j := i - lag; j >= 0 && j < count {
			for _, p := range second[j] {
				hand(g.spare, p, now(i))
			}
		}
		for _, p := range repaired[i] {
			hand(g.first, p, now(i))
		}
		if i < count {
			burst := random.IntN(8) == 0
			for _, p := range first[i] {
				if i > quiet && i < count-quiet && (burst || random.IntN(20) == 0) {
					lost++
					if random.IntN(2) == 0 { // its own repair is late, or comes never
						at := i + 1 + random.IntN(4)
						repaired[at] = append(repaired[at], p)
					}
					continue
				}
				hand(g.first, p, now(i))
			}
		}
		g.lane.tend(now(i))
	}
	if lost < 3 {
		t.Fatalf("seed %d: only %d packets were lost: the test tests nothing", seed, lost)
	}
	wantFrames(t, fmt.Sprintf("seed %d, lag %d", seed, lag), mime, g.packets, frames)
	if g.spare.filled.Load() == 0 {
		t.Errorf("seed %d: nothing was filled", seed)
	}
}

// A server on the second copy's way that counts anew is noticed before anything wrong goes out.
func TestSpareCountsAnew(t *testing.T) {
	t.Parallel()
	const mime = webrtc.MimeTypeVP8
	g := newGuarded(t, mime)
	random := rand.New(rand.NewPCG(1, 1))
	frames := make([][]byte, 120)
	for i := range frames {
		frames[i] = make([]byte, 3000)
		for j := range frames[i] {
			frames[i][j] = byte(random.Uint32())
		}
	}
	first, second := pack(t, mime, frames, 1000, 1, 0, 3000), pack(t, mime, frames, 1000, 500, 90000, 3000)
	began := time.Now()
	for i := range frames {
		at := began.Add(time.Duration(i) * 33 * time.Millisecond)
		for j := range first[i] {
			p := *second[i][j]
			if i >= 60 {
				p.Shift(mime, 0, media.Shift{Sequence: 1})
			}
			p.Arrival = at
			g.spare.Packet(&p)
			if i == 70 && j == 1 {
				continue
			}
			q := *first[i][j]
			q.Arrival = at
			g.first.Packet(&q)
		}
		if aligned, _ := g.lane.tend(at); i == 50 && !aligned {
			t.Error("not aligned")
		}
	}
	wantFrames(t, "all", mime, g.packets, frames)
	if aligned, _ := g.lane.tend(began.Add(time.Hour)); !aligned {
		t.Error("not aligned again")
	}
}

// While nothing is lost, a second copy costs the first's packets no memory.
func TestSpareAllocatesNothing(t *testing.T) {
	f, p := openLane(t, webrtc.RTPCodecTypeVideo)
	spare := &feed{lane: f.lane}
	f.lane.addSpare(spare)
	f.lane.spare.aligned, f.lane.spare.fits, f.lane.spare.seam.exact = true, true, true
	if n := testing.AllocsPerRun(1000, func() {
		p.Header.SequenceNumber++
		f.Packet(p)
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}
