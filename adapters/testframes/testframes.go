// Package testframes makes video frames of every codec that hold their own number and checksum, and reads them again: by
// them a receiver tells which frames came, and whether they came whole. Behind as much of a real header as servers read,
// nobody can decode them. Conformance tests and the probe send them.
package testframes

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"

	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"
)

const (
	keySize   = 4000
	otherSize = 1500
)

// Codec makes and reads frames of one codec.
type Codec struct {
	// MIME is the codec's type, and Format its format parameters, as in SDP.
	MIME, Format string
	// Payloader makes a maker of RTP payloads, and Depacketizer what turns them into frames again.
	Payloader    func() rtp.Payloader
	Depacketizer func() rtp.Depacketizer

	wrap  func(body []byte, key bool) []byte
	isKey func(frame []byte) bool
}

// Codecs are all of them: H264, VP8, VP9, AV1.
func Codecs() []Codec { return slices.Clone(all) }

var all = []Codec{
	{
		MIME: webrtc.MimeTypeH264, Format: "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
		Payloader:    func() rtp.Payloader { return &codecs.H264Payloader{} },
		Depacketizer: func() rtp.Depacketizer { return &codecs.H264Packet{} },
		wrap:         wrapH264,
		isKey:        func(f []byte) bool { return bytes.Contains(f, append(startCode, 0x65)) },
	},
	{
		MIME:         webrtc.MimeTypeVP8,
		Payloader:    func() rtp.Payloader { return &codecs.VP8Payloader{EnablePictureID: true} },
		Depacketizer: func() rtp.Depacketizer { return &codecs.VP8Packet{} },
		wrap:         wrapVP8,
		isKey:        func(f []byte) bool { return f[0]&1 == 0 },
	},
	{
		MIME: webrtc.MimeTypeVP9, Format: "profile-id=0",
		Payloader:    func() rtp.Payloader { return &codecs.VP9Payloader{} },
		Depacketizer: func() rtp.Depacketizer { return &codecs.VP9Packet{} },
		wrap:         wrapVP9,
		isKey:        func(f []byte) bool { return f[0]&0x04 == 0 },
	},
	{
		MIME: webrtc.MimeTypeAV1, Format: "profile=0",
		Payloader:    func() rtp.Payloader { return &codecs.AV1Payloader{} },
		Depacketizer: func() rtp.Depacketizer { return &codecs.AV1Depacketizer{} },
		wrap:         wrapAV1,
		isKey:        func(f []byte) bool { return bytes.Contains(f, av1Sequence) },
	},
}

// Of is the codec of a MIME type.
func Of(mime string) (Codec, bool) {
	for _, c := range all {
		if strings.EqualFold(c.MIME, mime) {
			return c, true
		}
	}
	return Codec{}, false
}

// Parameter sets of a real H264 baseline stream of 320 × 240, and the sequence header of an AV1 stream of that size.
var (
	sps = []byte{
		0x67, 0x42, 0xc0, 0x0d, 0xd9, 0x01, 0x41, 0xfb, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10, 0x00, 0x00, 0x03, 0x03, 0xc0,
		0xf1, 0x42, 0xa4, 0x80,
	}
	pps         = []byte{0x68, 0xcb, 0x83, 0xcb, 0x20}
	startCode   = []byte{0, 0, 0, 1}
	av1Sequence = []byte{0x00, 0x00, 0x00, 0x24, 0x3c, 0xff, 0xbc, 0x01, 0x80, 0x08}
)

// wrapH264 makes an access unit.
func wrapH264(body []byte, key bool) []byte {
	nal := byte(0x41)
	var b []byte
	if key {
		nal = 0x65
		b = append(append(append(append(b, startCode...), sps...), startCode...), pps...)
	}
	return append(append(append(b, startCode...), nal), body...)
}

// wrapVP8 puts the frame tag of RFC 6386, section 9.1, in front.
func wrapVP8(body []byte, key bool) []byte {
	tag := uint32(len(body))<<5 | 1<<4 // shown, and the first partition is all
	if key {
		start := []byte{0x9d, 0x01, 0x2a, 320 & 0xff, 320 >> 8, 240, 0}
		return append(append([]byte{byte(tag), byte(tag >> 8), byte(tag >> 16)}, start...), body...)
	}
	tag |= 1
	return append([]byte{byte(tag), byte(tag >> 8), byte(tag >> 16)}, body...)
}

// wrapVP9 puts an uncompressed header of profile 0 in front.
func wrapVP9(body []byte, key bool) []byte {
	if key {
		return append([]byte{0x82, 0x49, 0x83, 0x42, 0x40, 0x13, 0xf0, 0x0e, 0xf0}, body...)
	}
	return append([]byte{0x86, 0x00}, body...)
}

// wrapAV1 makes a temporal unit of OBUs with sizes.
func wrapAV1(body []byte, key bool) []byte {
	const temporalDelimiter, sequenceHeader, frame = 2<<3 | 2, 1<<3 | 2, 6<<3 | 2
	b := []byte{temporalDelimiter, 0}
	first := byte(0x30) // shown, an inter frame
	if key {
		b = append(append(b, sequenceHeader, byte(len(av1Sequence))), av1Sequence...)
		first = 0x10
	}
	b = append(b, frame)
	b = binary.AppendUvarint(b, uint64(len(body))+1) // leb128
	return append(append(b, first), body...)
}

// opening begins the body of a frame, in letters that no header has in a row.
const opening = "sidestream:"

// Frame makes the frame of a number; a key frame is larger than others.
func (c Codec) Frame(number uint32, key bool) []byte {
	size := otherSize
	if key {
		size = keySize
	}
	// Letters only: a slice must not hold what looks like a start code.
	body := []byte(opening + hex.EncodeToString(binary.BigEndian.AppendUint32(nil, number)))
	for len(body) < size {
		body = append(body, 'a'+byte(uint32(len(body))*7+number)%26)
	}
	return c.wrap(append(body, sum(body)...), key)
}

func sum(body []byte) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(body)))
}

// Check reads a frame again. Where it is not whole, neither number nor key mean anything.
func (c Codec) Check(b []byte) (number uint32, key, whole bool) {
	begin := bytes.Index(b, []byte(opening))
	if begin < 0 || len(b)-begin < len(opening)+16 {
		return 0, false, false
	}
	body, tail := b[begin:len(b)-8], b[len(b)-8:]
	n, err := strconv.ParseUint(string(body[len(opening):len(opening)+8]), 16, 32)
	if err != nil || sum(body) != string(tail) {
		return 0, false, false
	}
	return uint32(n), c.isKey(b), true
}
