package testsource

import (
	"bytes"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestClips(t *testing.T) {
	for codec, size := range map[string]int{"h264": len(h264File), "vp8": len(vp8File)} {
		t.Run(codec, func(t *testing.T) {
			clip, err := LoadClip(codec)
			if err != nil {
				t.Fatal(err)
			}
			if len(clip.Video) != 300 || len(clip.Audio) != 500 {
				t.Fatalf("%d frames and %d audio packets; 300 and 500 are 10 s each", len(clip.Video), len(clip.Audio))
			}
			if rate := size * 8 / 10; rate > 700_000 {
				t.Errorf("video takes %d bit/s", rate)
			}
			for i, f := range clip.Video {
				if f.Key != (i%KeyFrameDistance == 0) {
					t.Errorf("frame %d: key frame %v", i, f.Key)
				}
			}
			for i, p := range clip.Audio {
				// Frame code 0: one frame in the packet (RFC 6716, section 3.1).
				if d := opusDuration(p[0]); d != 20*time.Millisecond || p[0]&3 != 0 {
					t.Errorf("audio packet %d lasts %v, frame code %d", i, d, p[0]&3)
				}
			}
		})
	}
	if total := len(h264File) + len(vp8File) + len(opusFile); total > 2<<20 {
		t.Errorf("clips are %d bytes", total)
	}
	if _, err := LoadClip("theora"); err == nil {
		t.Error("there is no clip in theora")
	}
}

// opusDuration reads a frame's duration from the table of contents byte (RFC 6716, table 2).
func opusDuration(toc byte) time.Duration {
	config := toc >> 3
	switch {
	case config < 12: // SILK
		return []time.Duration{10, 20, 40, 60}[config%4] * time.Millisecond
	case config < 16: // hybrid
		return []time.Duration{10, 20}[config%2] * time.Millisecond
	default: // CELT
		return []time.Duration{2500, 5000, 10000, 20000}[config%4] * time.Microsecond
	}
}

// Every access unit is a single slice of a baseline picture; each IDR brings its parameter sets, and no message of the
// encoder's is left.
func TestH264AccessUnits(t *testing.T) {
	clip, err := LoadClip("h264")
	if err != nil {
		t.Fatal(err)
	}
	const sps, pps = 7, 8
	for i, f := range clip.Video {
		var got []byte
		for nal := range nalUnits(f.Data) {
			got = append(got, nalType(nal))
			if nalType(nal) == sps && (nal[1] != 66 || nal[2]&0x40 == 0) {
				t.Errorf("frame %d: profile %d, constraints %08b; constrained baseline is wanted", i, nal[1], nal[2])
			}
		}
		want := []byte{nalSlice}
		if f.Key {
			want = []byte{sps, pps, nalIDR}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("frame %d: NAL units (-want +got):\n%s", i, diff)
		}
	}
}

func TestReadersRefuseDamage(t *testing.T) {
	if _, err := readOpus(opusFile[:len(opusFile)-10]); err == nil {
		t.Error("an Ogg file that is cut short was read")
	}
	if _, err := readOpus(opusFile[1:]); err == nil {
		t.Error("an Ogg file without its head was read")
	}
	if _, err := readVP8(vp8File[:len(vp8File)-10]); err == nil {
		t.Error("an IVF file that is cut short was read")
	}
}

func TestPlayheadLoops(t *testing.T) {
	clip, err := LoadClip("vp8")
	if err != nil {
		t.Fatal(err)
	}
	h := playhead{clip: clip}
	var wish atomic.Bool
	for i := range 2*len(clip.Video) + 10 {
		frame, jumped := h.frame(&wish)
		if want := clip.Video[i%len(clip.Video)]; jumped || &frame.Data[0] != &want.Data[0] {
			t.Fatalf("frame %d is another one of the clip, jumped %v", i, jumped)
		}
	}
	for i := range 2*len(clip.Audio) + 10 {
		if got, want := h.sound(), clip.Audio[i%len(clip.Audio)]; &got[0] != &want[0] {
			t.Fatalf("audio packet %d is another one of the clip", i)
		}
	}
}

func TestPlayheadJumps(t *testing.T) {
	clip, err := LoadClip("vp8")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		wishes []int // before which frames
		keys   []int // of the first 45 frames
		jumps  int
	}{
		{"none", nil, []int{0, 15, 30}, 0},
		{"at once", []int{8}, []int{0, 8, 23, 38}, 1},
		{"soon after a key frame", []int{1}, []int{0, 7, 22, 37}, 1},
		{"just before a key frame", []int{15}, []int{0, 15, 30}, 0},
		{"many", []int{8, 9, 10, 11, 12, 13, 14, 15}, []int{0, 8, 15, 30}, 2},
		{"all the time", []int{
			1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
			29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44,
		}, []int{0, 7, 14, 21, 28, 35, 42}, 6},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := playhead{clip: clip}
			var wish atomic.Bool
			wishes := map[int]bool{}
			for _, w := range tt.wishes {
				wishes[w] = true
			}
			var keys []int
			jumps := 0
			for i := range 45 {
				if wishes[i] {
					wish.Store(true)
				}
				frame, jumped := h.frame(&wish)
				if frame.Key {
					keys = append(keys, i)
				}
				if jumped {
					jumps++
				}
				// The sound keeps with the picture.
				picture := float64(h.frames+h.skipped) / FrameRate
				h.sounds = h.frames * AudioRate / FrameRate
				before := h.sounds
				index := audioIndex(clip, h.sound())
				h.sounds = before
				if apart := math.Abs(math.Mod(picture, 10) - float64(index)/AudioRate); apart > 0.04 && apart < 9.96 {
					t.Errorf("frame %d: picture at %.3f s of the clip, sound at %.3f", i, picture, float64(index)/AudioRate)
				}
			}
			if diff := cmp.Diff(tt.keys, keys); diff != "" {
				t.Errorf("key frames (-want +got):\n%s", diff)
			}
			if jumps != tt.jumps {
				t.Errorf("%d jumps, want %d", jumps, tt.jumps)
			}
		})
	}
}

func audioIndex(clip *Clip, p []byte) int {
	for i, a := range clip.Audio {
		if &a[0] == &p[0] {
			return i
		}
	}
	return -1
}

func TestStamp(t *testing.T) {
	for _, s := range []Stamp{
		{Frame: 0, Sent: time.UnixMicro(0)}, // needs emulation prevention
		{Frame: 1, Sent: time.UnixMicro(1_795_334_400_123_456)},
		{Frame: 0x0000_0300_0001_0000, Sent: time.UnixMicro(0x0003_0000_0200_0001)},
		{Frame: math.MaxUint64, Sent: time.UnixMicro(math.MaxInt64)},
	} {
		nal := s.appendNAL(nil)
		if n := bytes.Count(nal, startCode[1:]); n != 1 {
			t.Errorf("%+v: %d start codes", s, n)
		}
		unit := append(nal, 0, 0, 1, nalSlice, 0x88, 0x84)
		for name, b := range map[string][]byte{"access unit": unit, "NAL unit": nal[len(startCode):]} {
			got, ok := ParseStamp(b)
			if !ok || got.Frame != s.Frame || !got.Sent.Equal(s.Sent) {
				t.Errorf("%s: %+v was read as %+v, %v", name, s, got, ok)
			}
		}
	}
	clip, err := LoadClip("h264")
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := ParseStamp(clip.Video[0].Data); ok {
		t.Errorf("the clip itself has a stamp: %+v", s)
	}
}

func FuzzParseStamp(f *testing.F) {
	f.Add(Stamp{Frame: 7, Sent: time.UnixMicro(8)}.appendNAL(nil))
	f.Add([]byte{nalSEI, seiUnregistered, byte(stampSize)})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := ParseStamp(b)
		if !ok {
			return
		}
		if again, ok := ParseStamp(s.appendNAL(nil)); !ok || again.Frame != s.Frame || !again.Sent.Equal(s.Sent) {
			t.Errorf("%+v was read again as %+v, %v", s, again, ok)
		}
	})
}

func TestPadding(t *testing.T) {
	const bitrate = 2_000_000
	s, err := New(Options{Bitrate: bitrate})
	if err != nil {
		t.Fatal(err)
	}
	p := &publication{source: s, head: playhead{clip: s.clip}}
	total, largest := 0, 0
	for range 300 {
		unit := p.frame(time.Now())
		total += len(unit)
		largest = max(largest, len(unit))
		if _, ok := ParseStamp(unit); !ok {
			t.Fatal("a padded frame has no stamp")
		}
	}
	if got := total * 8 / 10; math.Abs(float64(got-bitrate)) > bitrate/100 {
		t.Errorf("%d bit/s, want %d", got, bitrate)
	}
	if _, err := New(Options{Codec: "vp8", Bitrate: bitrate}); err == nil {
		t.Error("VP8 cannot be padded")
	}
	t.Logf("largest frame: %d bytes", largest)
}

func TestNALUnits(t *testing.T) {
	stream := []byte{0, 0, 0, 1, 1, 2, 0, 0, 3, 9, 0, 0, 1, 4, 0, 0, 0, 1, 5}
	want := [][]byte{{1, 2, 0, 0, 3, 9}, {4}, {5}}
	var got [][]byte
	for nal := range nalUnits(stream) {
		got = append(got, nal)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("NAL units (-want +got):\n%s", diff)
	}
}
