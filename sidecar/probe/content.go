package probe

import (
	"bytes"
	"hash/crc32"
	"strings"
	"sync"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/testframes"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// content is what a publisher sends as video: frames whose numbers can be read again.
type content struct {
	mime, format string
	payloader    func() rtp.Payloader
	// frame makes the frame of a number; whether it is a key frame is only its own choice where that says so.
	frame func(n uint32, key bool) (data []byte, isKey bool)
	// check reads a frame again.
	check func(data []byte) (n uint32, key, whole bool)
	// audio makes the Opus packet of a number.
	audio func(n uint32) []byte
}

// synthetic frames come in every codec and are key frames on request only.
func synthetic(c testframes.Codec) content {
	return content{
		mime: c.MIME, format: c.Format, payloader: c.Payloader,
		frame: func(n uint32, key bool) ([]byte, bool) { return c.Frame(n, key), key },
		check: c.Check,
		audio: stampedAudio,
	}
}

// clip is the test clip in H264: what a real encoder makes. Each frame bears its number, and its slice must come as it was
// sent; servers may change what stands around it.
func clip() (content, error) {
	c, err := testsource.LoadClip("h264")
	if err != nil {
		return content{}, err
	}
	var mu sync.Mutex
	slices := map[uint32]uint32{}
	h264, _ := testframes.Of(webrtc.MimeTypeH264)
	return content{
		mime: h264.MIME, format: h264.Format, payloader: func() rtp.Payloader { return &codecs.H264Payloader{} },
		frame: func(n uint32, _ bool) ([]byte, bool) {
			f := c.Video[int(n)%len(c.Video)]
			unit := testsource.Stamp{Frame: uint64(n), Sent: time.Now()}.Insert(f.Data)
			mu.Lock()
			defer mu.Unlock()
			slices[n] = crc32.ChecksumIEEE(lastNAL(unit))
			return unit, f.Key
		},
		check: func(data []byte) (n uint32, key, whole bool) {
			stamp, ok := testsource.ParseStamp(data)
			if !ok {
				return 0, false, false
			}
			slice := lastNAL(data)
			mu.Lock()
			defer mu.Unlock()
			n = uint32(stamp.Frame) //nolint:gosec // our own numbers
			return n, len(slice) > 0 && slice[0]&0x1f == 5, crc32.ChecksumIEEE(slice) == slices[n]
		},
		audio: func(n uint32) []byte { return c.Audio[int(n)%len(c.Audio)] },
	}, nil
}

// lastNAL is what follows the last start code.
func lastNAL(unit []byte) []byte {
	i := bytes.LastIndex(unit, []byte{0, 0, 1})
	if i < 0 {
		return nil
	}
	return bytes.TrimRight(unit[i+3:], "\x00")
}

// stampedAudio is an Opus packet of 20 ms, full band and stereo, that holds its number where a decoder reads a frame.
func stampedAudio(n uint32) []byte {
	return []byte{0xfc, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// audioNumber reads it again.
func audioNumber(payload []byte) (uint32, bool) {
	if len(payload) != 5 || payload[0] != 0xfc {
		return 0, false
	}
	return uint32(payload[1])<<24 | uint32(payload[2])<<16 | uint32(payload[3])<<8 | uint32(payload[4]), true
}

// depacketizerOf is for any codec that a viewer may meet; false where it cannot put frames together.
func depacketizerOf(mime string) (rtp.Depacketizer, bool) {
	if c, ok := testframes.Of(mime); ok {
		return c.Depacketizer(), true
	}
	return nil, false
}

// shortName is a codec's name in ids: "h264".
func shortName(mime string) string {
	_, name, _ := strings.Cut(strings.ToLower(mime), "/")
	return name
}
