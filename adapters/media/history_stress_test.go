package media

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtp"
)

// noise is what the payloads of the tests below are cut from: wherever a byte lies, it is known what it should be.
var noise = func() []byte {
	b := make([]byte, 1<<17)
	_ = must(rand.NewChaCha8([32]byte{1}).Read(b))
	return b
}()

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// telling is a packet that tells whose it is, and which; its payload follows from that.
type telling struct {
	start  uint16 // sequence number at position 0
	stream uint32
}

func (k telling) payload(position uint32) []byte {
	x := (uint64(k.stream)<<32 | uint64(position)) * 0x9e3779b97f4a7c15
	size := int(x >> 40 % 1300)
	if x>>20%257 == 0 {
		size = int(x >> 40 % (3 * chunkSize))
	}
	at := int(x >> 8 % uint64(len(noise)-3*chunkSize))
	return noise[at : at+size]
}

func (k telling) header(position uint32) rtp.Header {
	return rtp.Header{
		Version: 2, SSRC: k.stream, Timestamp: position, SequenceNumber: k.start + uint16(position), Marker: position%7 == 0,
	}
}

// check says what is wrong with a packet that was read.
func (k telling) check(p *Packet) error {
	want := k.header(p.Header.Timestamp)
	if h := &p.Header; h.SSRC != want.SSRC || h.SequenceNumber != want.SequenceNumber || h.Marker != want.Marker {
		return fmt.Errorf("stream %d has a packet with the header %+v", k.stream, *h)
	}
	if !bytes.Equal(p.Payload, k.payload(p.Header.Timestamp)) {
		return fmt.Errorf("packet %d of stream %d has other bytes than it was stored with", p.Header.Timestamp, k.stream)
	}
	return nil
}

// Streams that lend each other memory, each with one who writes and many who read: at the live edge, behind it, by sequence
// number, and all at once. Whatever is read is what was stored, to the byte, and of the stream it was asked of.
func TestHistoryStress(t *testing.T) {
	t.Parallel()
	packets := uint32(20_000) // they pass the end of the sequence numbers
	streams := 4
	var writers, readers sync.WaitGroup
	var reads, overruns, answers, grown atomic.Int64
	for i := range streams {
		k := telling{start: uint16(60_000 + i), stream: uint32(i + 1)}
		h := NewHistory(64 << i)
		if i%2 == 1 {
			h.Keep(historyTime, 2048)
		}
		done := make(chan struct{})
		failed := func(err error) bool {
			if err != nil {
				t.Error(err)
			}
			return err != nil
		}
		reader := func(read func(random *rand.Rand) error) {
			seed := rand.Uint64()
			readers.Go(func() {
				random := rand.New(rand.NewPCG(seed, 1))
				for {
					select {
					case <-done:
						return
					default:
					}
					if failed(read(random)) {
						return
					}
				}
			})
		}
		for range 2 { // one after another, as viewers do
			var p Packet
			cursor := uint64(0)
			reader(func(random *rand.Rand) error {
				switch h.At(cursor, &p) {
				case Read:
					reads.Add(1)
					if uint64(p.Header.Timestamp) != cursor {
						return fmt.Errorf("position %d holds packet %d", cursor, p.Header.Timestamp)
					}
					cursor++
					return k.check(&p)
				case Future:
					runtime.Gosched()
				case Overrun:
					overruns.Add(1)
					head := h.Head()
					cursor = head - min(head, random.Uint64N(uint64(h.Room())))
				}
				return nil
			})
		}
		var again Packet
		reader(func(random *rand.Rand) error { // NACKs
			runtime.Gosched()
			head := h.Head()
			if head == 0 {
				return nil
			}
			asked := k.start + uint16(head-1) - uint16(random.UintN(uint(2*h.Room())))
			if !h.Sequence(asked, &again) {
				return nil
			}
			answers.Add(1)
			if again.Header.SequenceNumber != asked {
				return fmt.Errorf("asked for %d, given %d", asked, again.Header.SequenceNumber)
			}
			if age := h.Head() - uint64(again.Header.Timestamp); age > 1<<15 {
				return fmt.Errorf("packet %d is given for one of this cycle", again.Header.Timestamp)
			}
			return k.check(&again)
		})
		var all []Packet
		var head uint64
		reader(func(*rand.Rand) error {
			if h.Head() < head+uint64(h.Room())/4 {
				runtime.Gosched()
				return nil
			}
			all, head = h.All(all)
			for i := range all {
				if got, want := uint64(all[i].Header.Timestamp), head-uint64(len(all)-i); got != want {
					return fmt.Errorf("packet %d in the place of %d", got, want)
				}
				if err := k.check(&all[i]); err != nil {
					return err
				}
			}
			if position, ok := h.KeyFrame(); ok && position%300 != 0 {
				return fmt.Errorf("a key frame at %d", position)
			}
			return nil
		})
		writers.Go(func() {
			defer close(done)
			random := rand.New(rand.NewPCG(uint64(i), 2))
			now := time.Unix(1000, 0)
			scratch := make([]byte, 4*chunkSize) // as a socket's reader has it: used again at once
			var p Packet
			for position := range packets {
				n := must((&rtp.Packet{Header: k.header(position), Payload: k.payload(position)}).MarshalTo(scratch))
				if failed(p.parse(scratch[:n])) {
					return
				}
				now = now.Add(time.Duration(random.IntN(2000)) * time.Microsecond)
				if random.IntN(5000) == 0 {
					now = now.Add(2 * historyTime) // a pause: all is let go of, to other streams
				}
				p.Arrival, p.KeyFrame = now, position%300 == 0
				if got := h.Add(&p); got != uint64(position) {
					t.Errorf("packet %d at position %d", position, got)
					return
				}
				clear(scratch[:n])
			}
			if h.Room() > 64<<i {
				grown.Add(1)
			}
		})
	}
	writers.Wait()
	readers.Wait()
	t.Logf("%d packets read, %d overruns, %d NACKs answered", reads.Load(), overruns.Load(), answers.Load())
	if reads.Load() == 0 || overruns.Load() == 0 || answers.Load() == 0 || grown.Load() == 0 {
		t.Error("not everything was tried")
	}
}

// Whatever comes in whatever order, what is kept is what came last, and a number is answered by the newest packet that had it.
func TestHistoryModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(24) {
		random := rand.New(rand.NewPCG(seed, 3))
		h := NewHistory(1 << random.IntN(8))
		if random.IntN(2) == 0 {
			h.Keep(historyTime, 1<<random.IntN(10))
		}
		type came struct {
			seq  uint16
			mark uint32 // tells it from others
		}
		var log []came
		now := time.Unix(1000, 0)
		newest, begun := uint16(random.Uint32()), 0 // since when numbers are of one source
		for i := range uint32(3000) {
			seq := newest + 1
			switch random.IntN(40) {
			case 0:
				seq += uint16(random.IntN(50)) // loss
			case 1, 2, 3:
				seq = newest - uint16(random.IntN(80)) // late, or twice
			case 4:
				if random.IntN(20) == 0 {
					seq = newest - seenWindow - uint16(random.IntN(1<<14)) // another source
					begun = len(log)
				}
			case 5:
				now = now.Add(time.Duration(random.IntN(700)) * time.Millisecond)
			}
			now = now.Add(time.Duration(random.IntN(4)) * time.Millisecond)
			if i == 0 || int16(seq-newest) > 0 || int16(seq-newest) <= -seenWindow {
				newest = seq
			}
			p := must(NewPacket(rtp.Header{Version: 2, SequenceNumber: seq, Timestamp: i, SSRC: 9},
				telling{stream: 9}.payload(i)))
			p.Arrival, p.KeyFrame = now, random.IntN(50) == 0
			log = append(log, came{seq, i})
			if at := h.Add(p); at != uint64(i) {
				t.Fatalf("seed %d: packet %d at %d", seed, i, at)
			}
			if i%37 != 0 {
				continue
			}
			all, head := h.All(nil)
			if head != uint64(i+1) || len(all) == 0 {
				t.Fatalf("seed %d: head %d, %d kept after packet %d", seed, head, len(all), i)
			}
			first, size := len(log)-len(all), 0
			latest := map[uint16]uint32{}
			for j := range all {
				want := log[first+j]
				if all[j].Header.Timestamp != want.mark || !bytes.Equal(all[j].Payload, telling{stream: 9}.payload(want.mark)) {
					t.Fatalf("seed %d: packet %d is kept as %d, or damaged", seed, want.mark, all[j].Header.Timestamp)
				}
				latest[want.seq] = want.mark
				size += len(all[j].raw)
			}
			if size != h.size {
				t.Fatalf("seed %d: %d bytes kept, %d counted", seed, size, h.size)
			}
			var again Packet
			for j := range all {
				want := log[first+j]
				found := h.Sequence(want.seq, &again)
				if found != h.Has(want.seq) {
					t.Fatalf("seed %d: Has(%d) differs", seed, want.seq)
				}
				if found && again.Header.Timestamp != latest[want.seq] {
					t.Fatalf("seed %d: %d is answered by packet %d, not %d", seed, want.seq, again.Header.Timestamp, latest[want.seq])
				}
				if behind := newest - want.seq; !found && first+j >= begun && int(behind) < h.Room() {
					t.Fatalf("seed %d: %d is not found, %d behind the newest, of %d", seed, want.seq, behind, h.Room())
				}
			}
			if position, ok := h.KeyFrame(); ok && h.At(position, &again) != Read {
				t.Fatalf("seed %d: the key frame is gone", seed)
			}
		}
	}
}
