package testsource

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/pion/webrtc/v4/pkg/media/ivfreader"
)

//go:generate go run generate.go

var (
	//go:embed clip.h264
	h264File []byte
	//go:embed clip.ivf
	vp8File []byte
	//go:embed clip.opus
	opusFile []byte
)

const (
	// FrameRate is the clips' frames per second.
	FrameRate = 30
	// KeyFrameDistance is how many frames lie between two key frames.
	KeyFrameDistance = FrameRate / 2
	// AudioRate is the clips' Opus packets per second: one every 20 ms.
	AudioRate = 50

	videoTicks = 90000 / FrameRate // of the RTP clock, per frame
	audioTicks = 48000 / AudioRate
)

// Clip is a short piece of video and sound of the very same length, so that it can be played in a circle. It is shared:
// do not change it.
type Clip struct {
	Codec string   // "h264" or "vp8"
	Video []Frame  // FrameRate a second
	Audio [][]byte // Opus packets, AudioRate a second
}

// Frame is an encoded picture.
type Frame struct {
	Data []byte // H264: an access unit in Annex B, parameter sets before each IDR; VP8: a frame
	Key  bool   // decoding can begin here
}

var loaders = map[string]func() (*Clip, error){
	"h264": sync.OnceValues(func() (*Clip, error) { return load("h264", h264File, readH264) }),
	"vp8":  sync.OnceValues(func() (*Clip, error) { return load("vp8", vp8File, readVP8) }),
}

// LoadClip returns the embedded clip in a codec, "h264" or "vp8".
func LoadClip(codec string) (*Clip, error) {
	l, ok := loaders[codec]
	if !ok {
		return nil, fmt.Errorf("load clip: no clip in %q; there are h264 and vp8", codec)
	}
	return l()
}

func load(codec string, file []byte, read func([]byte) ([]Frame, error)) (*Clip, error) {
	video, err := read(file)
	if err != nil {
		return nil, fmt.Errorf("load %s clip: %w", codec, err)
	}
	audio, err := readOpus(opusFile)
	if err != nil {
		return nil, fmt.Errorf("load clip's sound: %w", err)
	}
	if len(video)*AudioRate != len(audio)*FrameRate {
		return nil, fmt.Errorf("load %s clip: %d frames and %d audio packets are not of one length", codec, len(video), len(audio))
	}
	return &Clip{Codec: codec, Video: video, Audio: audio}, nil
}

// NAL unit types (ITU-T H.264, table 7-1).
const (
	nalSlice = 1
	nalIDR   = 5
	nalSEI   = 6
)

func nalType(nal []byte) byte { return nal[0] & 0x1f }

var startCode = []byte{0, 0, 0, 1}

// nalUnits are the NAL units of a byte stream (ITU-T H.264, annex B), without start codes.
func nalUnits(stream []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		_, rest, found := bytes.Cut(stream, startCode[1:])
		for found {
			var nal []byte
			nal, rest, found = bytes.Cut(rest, startCode[1:])
			// A zero byte more belongs to the next start code; no NAL unit ends in one.
			nal = bytes.TrimRight(nal, "\x00")
			if len(nal) > 0 && !yield(nal) {
				return
			}
		}
	}
}

// readH264 splits a byte stream into access units. An access unit ends with its slices: what else there is precedes them.
func readH264(file []byte) ([]Frame, error) {
	var frames []Frame
	var unit Frame
	for nal := range nalUnits(file) {
		unit.Data = append(append(unit.Data, startCode...), nal...)
		switch nalType(nal) {
		case nalSlice, nalIDR:
			if len(nal) < 2 || nal[1]&0x80 == 0 { // first_mb_in_slice is not 0
				return nil, fmt.Errorf("frame %d has several slices", len(frames))
			}
			unit.Key = nalType(nal) == nalIDR
			frames = append(frames, unit)
			unit = Frame{}
		}
	}
	return frames, nil
}

func readVP8(file []byte) ([]Frame, error) {
	r, _, err := ivfreader.NewWith(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	var frames []Frame
	for {
		data, _, err := r.ParseNextFrame()
		if errors.Is(err, io.EOF) {
			return frames, nil
		}
		if err != nil {
			return nil, err
		}
		if len(data) == 0 {
			return nil, fmt.Errorf("frame %d is empty", len(frames))
		}
		frames = append(frames, Frame{Data: data, Key: data[0]&1 == 0}) // RFC 6386, section 9.1
	}
}

// readOpus takes the packets out of an Ogg file (RFC 3533, RFC 7845). A page may hold many; none here spans two pages.
func readOpus(file []byte) ([][]byte, error) {
	var packets [][]byte
	for page := 0; len(file) > 0; page++ {
		if len(file) < 27 || string(file[:4]) != "OggS" || len(file) < 27+int(file[26]) {
			return nil, fmt.Errorf("page %d is not one of Ogg", page)
		}
		segments := file[27 : 27+int(file[26])]
		file = file[27+len(segments):]
		size := 0
		for _, s := range segments {
			size += int(s)
			if s == 255 { // the packet goes on in the next segment
				continue
			}
			if size > len(file) {
				return nil, fmt.Errorf("page %d is cut short", page)
			}
			if page >= 2 { // after those of OpusHead and OpusTags
				packets = append(packets, file[:size:size])
			}
			file, size = file[size:], 0
		}
		if size > 0 {
			return nil, fmt.Errorf("page %d ends within a packet", page)
		}
	}
	return packets, nil
}
