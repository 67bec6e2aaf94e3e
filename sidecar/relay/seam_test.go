package relay

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// play is a stream of made-up frames.
type play struct {
	mime   string
	frames [][]byte // H264: Annex B; VP8: the frame; Opus: a packet
	keys   map[int]bool
}

const playRate = 30

func newPlay(random *rand.Rand, mime string, n int) play {
	p := play{mime: mime, keys: map[int]bool{}}
	still := noise(random, 300)
	for i := range n {
		key := i%15 == 0
		p.keys[i] = key
		size := 200 + random.IntN(4000)
		if key {
			size *= 3
		}
		var frame []byte
		switch mime {
		case webrtc.MimeTypeH264:
			unit := func(header byte, body []byte) { frame = append(append(frame, 0, 0, 0, 1, header), body...) }
			kind := byte(0x41)
			if key {
				unit(0x67, []byte{0x42, 0x00, 0x1f, 0xe9}) // the same each time
				unit(0x68, []byte{0xce, 0x3c, 0x80})
				kind = 0x65
			}
			switch random.IntN(4) {
			case 0: // two slices
				unit(kind, noise(random, size/2))
				unit(kind, noise(random, size/2))
			case 1: // a picture that stands still
				if !key {
					unit(kind, still)
					break
				}
				fallthrough
			default:
				unit(kind, noise(random, size))
			}
		case webrtc.MimeTypeVP8:
			frame = noise(random, size)
			frame[0] |= 1
			if key {
				frame[0] &^= 1
			}
		default:
			frame = noise(random, 40+random.IntN(80))
			if random.IntN(3) == 0 {
				frame = []byte{0xf8, 0xff, 0xfe} // silence
			}
		}
		p.frames = append(p.frames, frame)
	}
	return p
}

// noise is bytes without zeros, so that no start code is among them.
func noise(random *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + random.IntN(255))
	}
	return b
}

// delivery is a packet that comes at a time.
type delivery struct {
	at     time.Duration
	frame  int
	packet *media.Packet
}

func (p play) clockRate() uint32 {
	if p.mime == webrtc.MimeTypeOpus {
		return 48000
	}
	return 90000
}

func (p play) interval() time.Duration {
	if p.mime == webrtc.MimeTypeOpus {
		return 20 * time.Millisecond
	}
	return time.Second / playRate
}

// copyOptions are how one copy of a play comes.
type copyOptions struct {
	mtu       uint16
	delay     time.Duration
	join      time.Duration // what is due before comes then, from the last key frame on, or not at all
	from      time.Duration // that key frame is not due later than this; 0: than join
	live      bool
	ordered   bool // nothing comes out of order
	loss      float64
	recovered bool // what was lost comes late
}

// deliver packs a play and says when each packet comes.
func (p play) deliver(t *testing.T, random *rand.Rand, o copyOptions) []delivery {
	var payloader rtp.Payloader
	switch p.mime {
	case webrtc.MimeTypeH264:
		payloader = &codecs.H264Payloader{}
	case webrtc.MimeTypeVP8:
		payloader = &codecs.VP8Payloader{EnablePictureID: true}
	default:
		payloader = &codecs.OpusPayloader{}
	}
	seq, base := uint16(random.Uint32()), random.Uint32()
	if random.IntN(2) == 0 { // wraps soon
		seq, base = 65400+uint16(random.IntN(130)), 0xffffffff-uint32(random.IntN(200000))
	}
	var all []delivery
	step := p.clockRate() * uint32(p.interval()/time.Microsecond) / 1e6
	if p.mime != webrtc.MimeTypeOpus {
		step = 3000
	}
	key := 0
	for i := range p.frames {
		if p.keys[i] && time.Duration(i)*p.interval() <= cmp.Or(o.from, o.join) {
			key = i
		}
	}
	for i, frame := range p.frames {
		payloads := payloader.Payload(o.mtu, frame)
		for j, payload := range payloads {
			at := time.Duration(i)*p.interval() + o.delay + time.Duration(j)*100*time.Microsecond
			h := rtp.Header{
				Version: 2, SequenceNumber: seq, Timestamp: base + uint32(i)*step, PayloadType: 96,
				Marker: j == len(payloads)-1 && p.mime != webrtc.MimeTypeOpus,
			}
			seq++
			if at < o.join {
				if o.live || i < key {
					continue
				}
				at = o.join
			}
			if random.Float64() < o.loss {
				if !o.recovered {
					continue
				}
				at += time.Duration(20+random.IntN(100)) * time.Millisecond
			} else if random.IntN(20) == 0 && !o.ordered {
				at += 300 * time.Microsecond
			}
			packet, err := media.NewPacket(h, payload)
			if err != nil {
				t.Fatal(err)
			}
			packet.KeyFrame = p.mime != webrtc.MimeTypeOpus && media.KeyFrame(p.mime, payload)
			all = append(all, delivery{at: at, frame: i, packet: packet})
		}
	}
	slices.SortStableFunc(all, func(a, b delivery) int { return int(a.at - b.at) })
	return all
}

// recorder takes what a lane sends.
type recorder struct {
	webrtc.TrackLocalContext
	codec   webrtc.RTPCodecCapability
	packets *[]media.Packet
}

func (r recorder) CodecParameters() []webrtc.RTPCodecParameters {
	return []webrtc.RTPCodecParameters{{RTPCodecCapability: r.codec, PayloadType: 96}}
}
func (recorder) HeaderExtensions() []webrtc.RTPHeaderExtensionParameter { return nil }
func (recorder) SSRC() webrtc.SSRC                                      { return 1 }
func (recorder) SSRCRetransmission() webrtc.SSRC                        { return 0 }
func (r recorder) WriteStream() webrtc.TrackLocalWriter                 { return r }
func (recorder) Write(b []byte) (int, error)                            { return len(b), nil }

func (r recorder) WriteRTP(h *rtp.Header, payload []byte) (int, error) {
	p, err := media.NewPacket(*h, bytes.Clone(payload))
	if err != nil {
		return 0, err
	}
	p.Arrival = time.Now()
	*r.packets = append(*r.packets, *p)
	return len(payload), nil
}

// seamRun is a lane whose source changes.
type seamRun struct {
	play    play
	sent    []media.Packet
	lane    *lane
	how     string
	err     error
	old     []delivery
	fresh   []delivery
	changed time.Duration
}

// run lets two copies of a play come to a lane: the old one until it ends, and changes to the new one at a time.
func (p play) run(t *testing.T, random *rand.Rand, old, fresh copyOptions, end, change time.Duration) *seamRun {
	kind := webrtc.RTPCodecTypeVideo
	if p.mime == webrtc.MimeTypeOpus {
		kind = webrtc.RTPCodecTypeAudio
	}
	r := &seamRun{play: p, lane: newLane(kind, new(atomic.Int64), func(string) {}), old: p.deliver(t, random, old), fresh: p.deliver(t, random, fresh)}
	l := r.lane
	codec := webrtc.RTPCodecCapability{MimeType: p.mime, ClockRate: p.clockRate()}
	l.codec.RTPCodecCapability = codec
	l.out = media.NewConn(media.Transport{}, nil).NewSender(media.SenderOptions{Kind: kind, Codec: codec, History: l.history})
	if _, err := l.out.Bind(recorder{codec: codec, packets: &r.sent}); err != nil {
		t.Fatal(err)
	}
	l.opened, l.seenPacket, l.through = true, true, true
	feeds := [2]*feed{}
	for i := range feeds {
		feeds[i] = &feed{lane: l, track: &media.Track{}, codec: l.codec, payloadType: 96}
	}
	l.current = feeds[0]

	began := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		a, b := r.old, r.fresh
		for len(a) > 0 || len(b) > 0 {
			from := &a
			if len(a) == 0 || len(b) > 0 && b[0].at < a[0].at {
				from = &b
			}
			d := (*from)[0]
			*from = (*from)[1:]
			if from == &a && d.at >= end {
				a = nil
				continue
			}
			time.Sleep(d.at - time.Since(began))
			d.packet.Arrival = time.Now()
			copied, err := media.NewPacket(d.packet.Header, bytes.Clone(d.packet.Payload))
			if err != nil {
				t.Error(err)
			}
			copied.Arrival, copied.KeyFrame = d.packet.Arrival, d.packet.KeyFrame
			if from == &a {
				feeds[0].Packet(copied)
			} else {
				feeds[1].Packet(copied)
			}
		}
	}()
	time.Sleep(change)
	h := &handover{same: true, seams: map[*feed]seam{}}
	if end > change {
		h.old = &upstream{ended: make(chan struct{})}
	}
	if kind == webrtc.RTPCodecTypeVideo {
		h.video = feeds[1]
	} else {
		h.audio = feeds[1]
	}
	r.err = h.run(context.Background())
	r.how, r.changed = h.how, time.Since(began)
	<-done
	return r
}

// ordered says what is wrong with the numbers of what went out.
func (r *seamRun) ordered(t *testing.T, lossless bool) []media.Packet {
	t.Helper()
	packets := slices.Clone(r.sent)
	order := make(map[uint16]int)
	for i := range packets {
		if j, ok := order[packets[i].Header.SequenceNumber]; ok {
			t.Fatalf("number %d went out as packet %d and %d", packets[i].Header.SequenceNumber, j, i)
		}
		order[packets[i].Header.SequenceNumber] = i
	}
	packets = inOrder(packets)
	for i := 1; i < len(packets); i++ {
		a, b := &packets[i-1].Header, &packets[i].Header
		if lossless && b.SequenceNumber != a.SequenceNumber+1 {
			t.Fatalf("%d follows %d", b.SequenceNumber, a.SequenceNumber)
		}
		if int32(b.Timestamp-a.Timestamp) < 0 {
			t.Fatalf("timestamp %d at %d follows %d at %d", b.Timestamp, b.SequenceNumber, a.Timestamp, a.SequenceNumber)
		}
	}
	return packets
}

// check says what is wrong with what went out: each frame is there once, as it was, in order, at its time.
func (r *seamRun) check(t *testing.T, lossless bool) (frames int) {
	t.Helper()
	packets := r.ordered(t, lossless)
	base := r.old[0].packet.Header.Timestamp - uint32(r.old[0].frame)*r.step()
	next := 0
	for _, u := range media.Units(r.play.mime, packets) {
		if !u.Whole {
			if lossless && u.First > 0 {
				t.Fatalf("the frame at %d is not whole: %+v", u.Timestamp-base, u)
			}
			continue
		}
		i := int(u.Timestamp-base) / int(r.step())
		if i < next || lossless && i != next && next > 0 {
			t.Fatalf("frame %d after %d", i, next-1)
		}
		next = i + 1
		got := r.unpack(packets[u.First : u.First+u.Packets])
		if !bytes.Equal(got, r.play.frames[i]) {
			t.Fatalf("frame %d is %d bytes, not %d, or others", i, len(got), len(r.play.frames[i]))
		}
		frames++
	}
	// The local server gets what it asks for as it was sent.
	for i := max(0, len(packets)-100); i < len(packets); i++ {
		var p media.Packet
		if !r.lane.history.Sequence(packets[i].Header.SequenceNumber, &p) {
			t.Fatalf("%d is not kept", packets[i].Header.SequenceNumber)
		}
		if p.Header.Timestamp != packets[i].Header.Timestamp || !bytes.Equal(p.Payload, packets[i].Payload) {
			t.Fatalf("%d is kept otherwise than it went out", packets[i].Header.SequenceNumber)
		}
	}
	return frames
}

func (r *seamRun) step() uint32 {
	if r.play.mime == webrtc.MimeTypeOpus {
		return 960
	}
	return 3000
}

func (r *seamRun) unpack(packets []media.Packet) (frame []byte) {
	switch r.play.mime {
	case webrtc.MimeTypeH264:
		d := &codecs.H264Packet{}
		for i := range packets {
			part, _ := d.Unmarshal(packets[i].Payload)
			frame = append(frame, part...)
		}
	default:
		for i := range packets {
			frame = append(frame, media.Content(r.play.mime, packets[i].Payload)...)
		}
	}
	return frame
}

// Whatever two copies are packed like, whenever the change comes and wherever the old copy breaks off: each frame goes out
// once, whole, in order, at its time.
func TestSeam(t *testing.T) {
	t.Parallel()
	for _, mime := range []string{webrtc.MimeTypeH264, webrtc.MimeTypeVP8, webrtc.MimeTypeOpus} {
		for _, killed := range []bool{false, true} {
			for _, alike := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, killed %t, packed alike %t", mime, killed, alike), func(t *testing.T) {
					t.Parallel()
					keyed := 0
					for seed := range uint64(60) {
						synctest.Test(t, func(t *testing.T) {
							random := rand.New(rand.NewPCG(seed, 7))
							p := newPlay(random, mime, 120)
							old := copyOptions{mtu: 1150, delay: time.Duration(random.IntN(100)) * time.Millisecond}
							change := 1500*time.Millisecond + time.Duration(random.IntN(500))*time.Millisecond
							if mime == webrtc.MimeTypeOpus {
								change /= 2
							}
							fresh := copyOptions{
								mtu: 1150, delay: time.Duration(random.IntN(100)) * time.Millisecond, join: change,
							}
							// A frame that breaks off with a hole in it cannot be gone on with.
							old.ordered = killed
							if !alike {
								fresh.mtu = uint16(500 + random.IntN(500))
							}
							end := time.Hour
							if killed {
								end = change - time.Duration(1+random.IntN(300))*time.Millisecond - time.Duration(random.IntN(2000))*time.Microsecond
							}
							fresh.from = min(change, end) - 300*time.Millisecond
							if mime == webrtc.MimeTypeOpus && killed {
								fresh.join = 0 // else nothing is left to compare
							}
							r := p.run(t, random, old, fresh, end, change)
							if r.err != nil {
								t.Fatalf("seed %d: %v", seed, r.err)
							}
							if r.how == HowKeyFrame && killed && !alike {
								keyed++ // the match came at the very moment at which patience ended
								return
							}
							if r.how != HowAligned {
								t.Fatalf("seed %d: changed by %s", seed, r.how)
							}
							if n := r.check(t, true); n < 115 {
								t.Fatalf("seed %d: %d frames", seed, n)
							}
						})
						if t.Failed() {
							t.Fatalf("seed %d", seed)
						}
					}
					if keyed > 2 {
						t.Errorf("%d of 60 were changed by key frame", keyed)
					}
				})
			}
		}
	}
}

// A source that is lost right after a key frame has next to nothing in common with one that begins with that key frame.
func TestSeamTail(t *testing.T) {
	t.Parallel()
	for _, mime := range []string{webrtc.MimeTypeH264, webrtc.MimeTypeVP8} {
		for _, mtu := range []uint16{1150, 700} {
			t.Run(fmt.Sprintf("%s, packets of %d", mime, mtu), func(t *testing.T) {
				t.Parallel()
				for seed := range uint64(60) {
					synctest.Test(t, func(t *testing.T) {
						random := rand.New(rand.NewPCG(seed, 11))
						p := newPlay(random, mime, 120)
						old := copyOptions{mtu: 1150, delay: time.Duration(random.IntN(100)) * time.Millisecond, ordered: true}
						key := time.Duration(15*(2+random.IntN(3))) * p.interval()
						end := key + old.delay + 3*time.Millisecond + time.Duration(random.IntN(70))*time.Millisecond
						change := end + time.Duration(random.IntN(200))*time.Millisecond
						fresh := copyOptions{
							mtu: mtu, delay: time.Duration(random.IntN(100)) * time.Millisecond, join: change, from: key,
						}
						r := p.run(t, random, old, fresh, end, change)
						if r.err != nil || r.how != HowAligned {
							t.Fatalf("seed %d: changed by %s, %v", seed, r.how, r.err)
						}
						if n := r.check(t, true); n < 115 {
							t.Fatalf("seed %d: %d frames", seed, n)
						}
					})
					if t.Failed() {
						t.Fatalf("seed %d", seed)
					}
				}
			})
		}
	}
}

// A key frame that is like the one before it is not taken for that.
func TestAlignTailDoubts(t *testing.T) {
	p := newPlay(rand.New(rand.NewPCG(1, 1)), webrtc.MimeTypeVP8, 16)
	packets := func(frames ...int) (all []media.Packet) {
		for _, d := range p.deliver(t, rand.New(rand.NewPCG(2, 2)), copyOptions{mtu: 1150, ordered: true}) {
			if slices.Contains(frames, d.frame) {
				all = append(all, *d.packet)
			}
		}
		return all
	}
	before := packets(0, 1)
	for name, test := range map[string]struct {
		after []media.Packet
		near  bool
		want  bool
	}{
		"its key frame, and more":           {packets(0, 1, 2), true, true},
		"the clocks say something else":     {packets(0, 1, 2), false, false},
		"another key frame":                 {packets(15), true, false},
		"no key frame":                      {packets(1, 2), true, false},
		"the key frame, and another behind": {packets(0, 3, 4), true, false},
		"nothing":                           {nil, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, ok := alignTail(p.mime, p.clockRate(), 0, before, test.after, func(uint32) bool { return test.near })
			if ok != test.want {
				t.Errorf("aligned: %t", ok)
			}
		})
	}
}

// With losses on both ways, what goes out is less, but never wrong, twice or out of order.
func TestSeamWithLoss(t *testing.T) {
	t.Parallel()
	for _, mime := range []string{webrtc.MimeTypeH264, webrtc.MimeTypeVP8, webrtc.MimeTypeOpus} {
		t.Run(mime, func(t *testing.T) {
			t.Parallel()
			ways := map[string]int{}
			for seed := range uint64(200) {
				synctest.Test(t, func(t *testing.T) {
					random := rand.New(rand.NewPCG(seed, 8))
					p := newPlay(random, mime, 120)
					copied := func() copyOptions {
						return copyOptions{
							mtu: uint16(600 + 275*random.IntN(3)), delay: time.Duration(random.IntN(100)) * time.Millisecond,
							loss: 0.05 * random.Float64(), recovered: random.IntN(2) == 0,
						}
					}
					old, fresh := copied(), copied()
					change := time.Second + time.Duration(random.IntN(500))*time.Millisecond
					fresh.join, fresh.live = change, random.IntN(3) == 0
					end := time.Hour
					if random.IntN(2) == 0 {
						end = change - time.Duration(1+random.IntN(300))*time.Millisecond
					}
					r := p.run(t, random, old, fresh, end, change)
					if r.err != nil {
						t.Fatalf("seed %d: %v", seed, r.err)
					}
					ways[r.how]++
					r.ordered(t, false)
					if r.how == HowAligned {
						r.check(t, false)
					}
				})
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
			t.Logf("%v", ways)
		})
	}
}

func TestOnGrid(t *testing.T) {
	for _, test := range []struct {
		offset, last, next, step uint32
		want                     uint32 // of next+offset-last
	}{
		{0, 1000, 1950, 960, 960},
		{0, 1000, 2400, 960, 960},
		{0, 1000, 2500, 960, 1920},
		{0xffffff00, 0xffffff00, 1000, 960, 960},
		{7, 1000, 2000, 0, 1007},
	} {
		got := test.next + onGrid(test.offset, test.last, test.next, test.step) - test.last
		if got != test.want {
			t.Errorf("%+v: %d", test, got)
		}
	}
}

// Sound keeps its place beside the picture, by sender reports however sources count, else by arrival.
func TestCarried(t *testing.T) {
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 9))
		now := time.Unix(1_800_000_000, 0)
		// Each source has a random beginning of its timestamps and of its wall clock.
		type source struct{ audio, video, ntp uint32 }
		make := func() source { return source{random.Uint32(), random.Uint32(), random.Uint32()} }
		old, fresh := make(), make()
		at := func(s source, d time.Duration) (audio, video clock) {
			ntp := uint64(s.ntp)<<32 + uint64(int64(d.Seconds()*(1<<32)))
			return clock{ntp, s.audio + ticks(d, 48000), 48000, true}, clock{ntp, s.video + ticks(d, 90000), 90000, true}
		}
		late := time.Duration(random.IntN(400)-200) * time.Millisecond // the new source behind the old
		offset := old.video - fresh.video + ticks(-late, 90000)        // as aligned by content
		line := func(start, rate uint32, after time.Duration) line {
			return line{at: now.Add(after), timestamp: start + ticks(after, rate), clockRate: rate, ok: true}
		}
		var oldTo, newTo, oldFrom, newFrom side
		want := old.audio - fresh.audio + ticks(-late, 48000)
		if random.IntN(2) == 0 {
			oldTo.clock, _ = at(old, time.Duration(random.IntN(3000))*time.Millisecond)
			_, oldFrom.clock = at(old, time.Duration(random.IntN(3000))*time.Millisecond)
			newTo.clock, _ = at(fresh, time.Duration(random.IntN(3000))*time.Millisecond)
			_, newFrom.clock = at(fresh, time.Duration(random.IntN(3000))*time.Millisecond)
		} else {
			oldTo.line = line(old.audio, 48000, -time.Duration(random.IntN(300))*time.Millisecond)
			oldFrom.line = line(old.video, 90000, -time.Duration(random.IntN(300))*time.Millisecond)
			newTo.line = line(fresh.audio, 48000, time.Duration(random.IntN(300))*time.Millisecond)
			newFrom.line = line(fresh.video, 90000, time.Duration(random.IntN(300))*time.Millisecond)
		}
		got, ok := carried(oldTo, newTo, oldFrom, newFrom, offset)
		if apart := int32(got - want); !ok || max(apart, -apart) > 5 {
			t.Fatalf("seed %d: %d ticks apart", seed, apart)
		}
	}
	if _, ok := carried(side{}, side{}, side{}, side{}, 0); ok {
		t.Error("carried by nothing")
	}
}
