package media

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"
)

// packetsOf makes packets of payloads, one frame each.
func packetsOf(t testing.TB, frames ...[][]byte) (packets []Packet) {
	t.Helper()
	seq := uint16(65530)
	for i, payloads := range frames {
		for j, payload := range payloads {
			p, err := NewPacket(rtp.Header{
				Version: 2, SequenceNumber: seq, Timestamp: 0xfffff000 + uint32(i)*3000, Marker: j == len(payloads)-1,
			}, payload)
			if err != nil {
				t.Fatal(err)
			}
			packets = append(packets, *p)
			seq++
		}
	}
	return packets
}

// The same frames, packed otherwise, have the same content.
func TestUnitsSurviveRepacking(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(1 + random.IntN(255))
		}
		return b
	}
	annexB := func(units ...[]byte) (b []byte) {
		for _, u := range units {
			b = append(append(b, 0, 0, 0, 1), u...)
		}
		return b
	}
	nal := func(header ...byte) func(n int) []byte {
		return func(n int) []byte { return append(slices.Clone(header), noise(n)...) }
	}
	obus := func(sizes ...int) (b []byte) {
		b = append(b, 0x12, 0x00) // temporal delimiter
		for _, n := range sizes {
			b = append(b, 0x32) // a frame, with its size
			b = binary.AppendUvarint(b, uint64(n))
			b = append(b, noise(n)...)
		}
		return b
	}
	for _, test := range []struct {
		mime   string
		make   func() rtp.Payloader
		frames [][]byte
	}{
		{webrtc.MimeTypeH264, func() rtp.Payloader { return &codecs.H264Payloader{} }, [][]byte{
			annexB(nal(0x67)(20), nal(0x68)(8), nal(0x65)(5000)), annexB(nal(0x41)(90)), annexB(nal(0x41)(1500), nal(0x41)(2500)),
		}},
		{webrtc.MimeTypeH265, func() rtp.Payloader { return &codecs.H265Payloader{} }, [][]byte{
			annexB(nal(0x40, 1)(20), nal(0x42, 1)(30), nal(0x44, 1)(8), nal(0x26, 1)(5000)), annexB(nal(0x02, 1)(90)),
			annexB(nal(0x02, 1)(1500), nal(0x02, 1)(2500)),
		}},
		{
			webrtc.MimeTypeVP8, func() rtp.Payloader { return &codecs.VP8Payloader{EnablePictureID: true} },
			[][]byte{noise(4000), noise(80), noise(3000)},
		},
		{
			webrtc.MimeTypeVP9, func() rtp.Payloader { return &codecs.VP9Payloader{FlexibleMode: true} },
			[][]byte{append([]byte{0x86}, noise(4000)...), append([]byte{0x86}, noise(80)...), append([]byte{0x86}, noise(3000)...)},
		},
		{webrtc.MimeTypeAV1, func() rtp.Payloader { return &codecs.AV1Payloader{} }, [][]byte{obus(5000), obus(90, 70), obus(1500, 2500)}},
		{webrtc.MimeTypeOpus, func() rtp.Payloader { return &codecs.OpusPayloader{} }, [][]byte{noise(80), noise(90)}},
	} {
		t.Run(test.mime, func(t *testing.T) {
			units := func(mtu uint16) []Unit {
				payloader := test.make()
				var frames [][][]byte
				for _, f := range test.frames {
					frames = append(frames, payloader.Payload(mtu, f))
				}
				return Units(test.mime, packetsOf(t, append(frames, frames[0])...))[:len(frames)]
			}
			want := units(1150)
			for i, u := range want {
				if i > 0 && !u.Whole || len(u.Content) == 0 {
					t.Errorf("frame %d: %+v", i, u)
				}
			}
			for _, mtu := range []uint16{300, 700, 1400} {
				for i, u := range units(mtu) {
					if want[i].Whole != u.Whole || !slices.Equal(want[i].Content, u.Content) || want[i].Timestamp != u.Timestamp {
						t.Errorf("frame %d in payloads of %d bytes: %+v, want %+v", i, mtu, u, want[i])
					}
				}
			}
			if slices.Equal(want[0].Content, want[1].Content) {
				t.Error("two frames are the same")
			}
		})
	}
}

// What is missing makes its unit incomplete, and no other.
func TestUnitsWithGaps(t *testing.T) {
	frame := func(b byte) [][]byte {
		return [][]byte{{0x7c, 0x85, b, 1}, {0x7c, 0x05, b, 2}, {0x7c, 0x45, b, 3}} // FU-A of an IDR
	}
	packets := packetsOf(t, frame(1), frame(2), frame(3), frame(4))
	packets = slices.Delete(packets, 4, 5)
	var whole []bool
	var content []int
	for _, u := range Units(webrtc.MimeTypeH264, packets) {
		whole, content = append(whole, u.Whole), append(content, len(u.Content))
	}
	// Nothing tells that the first packet is its frame's first.
	if diff := cmp.Diff([]bool{false, false, true, true}, whole); diff != "" {
		t.Errorf("whole (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{1, 0, 1, 1}, content); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
}

// Wherever a frame broke off, the rest of another copy completes it, to the byte.
func TestRest(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	for range 500 {
		size := 1 + random.IntN(6000)
		frame := make([]byte, size)
		for i := range frame {
			frame[i] = byte(1 + random.IntN(255))
		}
		for _, mime := range []string{webrtc.MimeTypeH264, webrtc.MimeTypeH265, webrtc.MimeTypeVP8} {
			var a, b rtp.Payloader
			data := frame
			switch mime {
			case webrtc.MimeTypeVP8:
				a, b = &codecs.VP8Payloader{EnablePictureID: true}, &codecs.VP8Payloader{}
			case webrtc.MimeTypeH264:
				a, b = &codecs.H264Payloader{}, &codecs.H264Payloader{}
				half := size / 2
				data = slices.Concat([]byte{0, 0, 0, 1, 0x41}, frame[:half], []byte{0, 0, 0, 1, 0x41}, frame[half:])
			default:
				a, b = &codecs.H265Payloader{}, &codecs.H265Payloader{}
				data = slices.Concat([]byte{0, 0, 0, 1, 0x02, 0x01}, frame)
			}
			mine := a.Payload(uint16(400+random.IntN(800)), data)
			whole := packetsOf(t, b.Payload(uint16(400+random.IntN(800)), data))
			cut := 1 + random.IntN(len(mine))
			rest, ok := Rest(mime, packetsOf(t, mine)[:cut], whole)
			if !ok {
				t.Fatalf("%s: %d of %d packets are not completed", mime, cut, len(mine))
			}
			got := packetsOf(t, slices.Concat(mine[:cut], rest))
			for i := range rest {
				if len(rest[i]) > restSize {
					t.Fatalf("%s: a payload of %d bytes", mime, len(rest[i]))
				}
			}
			if mime == webrtc.MimeTypeVP8 {
				var all []byte
				for i := range got {
					all = append(all, Content(mime, got[i].Payload)...)
					if begins := got[i].Payload[0]&0x10 != 0; begins != (i == 0) {
						t.Fatalf("payload %d begins the frame: %v", i, begins)
					}
				}
				if !bytes.Equal(all, frame) {
					t.Fatalf("%d bytes, want %d", len(all), len(frame))
				}
				continue
			}
			want, _ := nalUnits(mime, whole)
			have, piece := nalUnits(mime, got)
			if len(piece) > 0 || !cmp.Equal(want, have) {
				t.Fatalf("%s: other NAL units", mime)
			}
			other := slices.Clone(data)
			other[len(other)-size/2-1] ^= 0xff
			if _, ok := Rest(mime, packetsOf(t, mine), packetsOf(t, b.Payload(1000, other))); ok && size > 20 {
				t.Fatalf("%s: completed from another frame", mime)
			}
		}
	}
}

// Numbers are shifted in the packet and in its header alike, and back.
func TestShift(t *testing.T) {
	h := rtp.Header{Version: 2, SequenceNumber: 65535, Timestamp: 0xffffffff}
	if err := h.SetExtension(5, []byte{0x80, 0xff, 0xff, 1}); err != nil {
		t.Fatal(err)
	}
	wide := []byte{0x90, 0xc0, 0xff, 0xff, 0xff, 1, 2, 3} // VP8 with a picture id of 15 bits, and TL0PICIDX
	p, err := NewPacket(h, wide)
	if err != nil {
		t.Fatal(err)
	}
	before := p.Pictures(webrtc.MimeTypeVP8, 5)
	want := Pictures{Picture: 0x7fff, Bits: 15, Level: 255, HasLevel: true, Frame: 0xffff, HasFrame: true}
	if before != want {
		t.Fatalf("%+v", before)
	}
	shift := Shift{Sequence: 2, Timestamp: 3, Picture: 4, Level: 5, Frame: 6}
	p.Shift(webrtc.MimeTypeVP8, 5, shift)
	again := &Packet{}
	if err := again.parse(p.raw); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Packet{p, again} {
		n := p.Pictures(webrtc.MimeTypeVP8, 5)
		if p.Header.SequenceNumber != 1 || p.Header.Timestamp != 2 || n.Picture != 3 || n.Level != 4 || n.Frame != 5 {
			t.Errorf("shifted to %d, %d, %+v", p.Header.SequenceNumber, p.Header.Timestamp, n)
		}
		back := n.To(before)
		if back != (Shift{Picture: 0x7fff - 3, Level: 251, Frame: 0xfffa}) {
			t.Errorf("back by %+v", back)
		}
	}
	short, err := NewPacket(rtp.Header{Version: 2}, []byte{0x90, 0x80, 0x7f, 1})
	if err != nil {
		t.Fatal(err)
	}
	short.Shift(webrtc.MimeTypeVP8, 0, Shift{Picture: 2})
	if n := short.Pictures(webrtc.MimeTypeVP8, 0); n.Picture != 1 || n.Bits != 7 {
		t.Errorf("%+v", n)
	}
}

func TestHistoryAll(t *testing.T) {
	h := NewHistory(4)
	for i := range uint16(6) {
		p, err := NewPacket(rtp.Header{Version: 2, SequenceNumber: 65533 + i}, []byte{byte(i)})
		if err != nil {
			t.Fatal(err)
		}
		h.Add(p)
	}
	all, head := h.All(nil)
	if len(all) != 4 || head != 6 || all[0].Header.SequenceNumber != 65535 || all[3].Payload[0] != 5 {
		t.Errorf("%d packets, head %d", len(all), head)
	}
	if !h.Has(65535) || !h.Has(2) || h.Has(65534) || h.Has(3) {
		t.Error("it has others than it keeps")
	}
	again, _ := h.All(all)
	if &again[0].raw[0] != &all[0].raw[0] {
		t.Error("buffers are not used again")
	}
}

// Whatever comes, reading content neither fails nor reads beyond.
func FuzzContent(f *testing.F) {
	f.Add(uint8(0), []byte{0x7c, 0x85, 1, 2, 3}, []byte{0x7c, 0x45, 4}, uint8(3))
	f.Add(uint8(1), []byte{0x62, 1, 0x93, 1, 2, 3}, []byte{0x60, 1, 0, 1, 7}, uint8(3))
	f.Add(uint8(2), []byte{0x90, 0xff, 0x80, 1, 2, 3}, []byte{0x80, 0x80, 1, 9, 9}, uint8(1))
	f.Add(uint8(3), []byte{0xff, 0x80, 1, 2, 3, 4, 5, 6, 7, 8}, []byte{0x8a, 1, 0xff, 3}, uint8(2))
	f.Add(uint8(4), []byte{0x50, 0x32, 5, 1}, []byte{0x90, 2, 3, 4, 5}, uint8(3))
	mimes := []string{webrtc.MimeTypeH264, webrtc.MimeTypeH265, webrtc.MimeTypeVP8, webrtc.MimeTypeVP9, webrtc.MimeTypeAV1, webrtc.MimeTypeOpus}
	f.Fuzz(func(t *testing.T, codec uint8, a, b []byte, how uint8) {
		mime := mimes[int(codec)%len(mimes)]
		packets := packetsOf(t, [][]byte{a, b}, [][]byte{b, a})
		if how&1 == 0 {
			packets = slices.Delete(packets, 1, 2)
		}
		units := Units(mime, packets)
		n := 0
		for _, u := range units {
			n += u.Packets
		}
		if n != len(packets) {
			t.Fatalf("%d packets of %d are in units", n, len(packets))
		}
		if rest, ok := Rest(mime, packets[:1], packets); ok {
			for _, payload := range rest {
				if len(payload) == 0 {
					t.Fatal("an empty payload")
				}
			}
		}
		for i := range packets {
			p := &packets[i]
			if len(Content(mime, p.Payload)) > len(p.Payload) {
				t.Fatal("more content than payload")
			}
			before := p.Pictures(mime, 0)
			p.Shift(mime, 0, Shift{Sequence: 1, Timestamp: 1, Picture: uint16(how), Level: how})
			after := p.Pictures(mime, 0)
			if before.Bits != after.Bits || before.HasLevel != after.HasLevel {
				t.Fatalf("%+v became %+v", before, after)
			}
			p.Shift(mime, 0, after.To(before))
			if again := p.Pictures(mime, 0); again != before {
				t.Fatalf("%+v came back as %+v", before, again)
			}
		}
	})
}
