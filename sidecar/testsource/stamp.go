package testsource

import (
	"bytes"
	"encoding/binary"
	"time"
)

// Stamp is what each H264 frame of a [Source] carries, in a message that decoders skip (user_data_unregistered SEI): by it
// a receiver counts what is missing and measures how long the rest was under way.
type Stamp struct {
	Frame uint64    // counts up by one per frame sent, over loops and jumps
	Sent  time.Time // to the microsecond, by the publisher's clock
}

// stampID is the UUID of our messages.
var stampID = [16]byte{0x5d, 0x1e, 0x57, 0x2e, 0xa3, 0x8c, 0x4b, 0x0f, 0x9a, 0x61, 0x7c, 0x24, 0xe8, 0x90, 0x3b, 0xd6}

const (
	seiFiller       = 3
	seiUnregistered = 5
	stampSize       = len(stampID) + 8 + 8
)

// ParseStamp finds the stamp in an access unit in Annex B, or in one NAL unit, as it lies in an RTP packet's payload:
// stamps are never aggregated or fragmented at their source.
func ParseStamp(b []byte) (Stamp, bool) {
	if bytes.HasPrefix(b, startCode[1:]) || bytes.HasPrefix(b, startCode) {
		for nal := range nalUnits(b) {
			if s, ok := parseStamp(nal); ok {
				return s, true
			}
		}
		return Stamp{}, false
	}
	return parseStamp(b)
}

func parseStamp(nal []byte) (Stamp, bool) {
	if len(nal) < 3+stampSize || nalType(nal) != nalSEI || nal[1] != seiUnregistered || int(nal[2]) != stampSize {
		return Stamp{}, false
	}
	body := unescape(nal[3:])
	if len(body) < stampSize || !bytes.Equal(body[:16], stampID[:]) {
		return Stamp{}, false
	}
	return Stamp{
		Frame: binary.BigEndian.Uint64(body[16:]),
		Sent:  time.UnixMicro(int64(binary.BigEndian.Uint64(body[24:]))), //nolint:gosec // a moment, whatever it is
	}, true
}

// appendNAL adds the stamp's NAL unit with its start code.
func (s Stamp) appendNAL(b []byte) []byte {
	body := append([]byte{seiUnregistered, byte(stampSize)}, stampID[:]...)
	body = binary.BigEndian.AppendUint64(body, s.Frame)
	body = binary.BigEndian.AppendUint64(body, uint64(s.Sent.UnixMicro())) //nolint:gosec // read back the same way
	b = append(append(b, startCode...), nalSEI)
	return append(escape(b, body), 0x80) // rbsp_trailing_bits
}

// Insert returns an access unit in Annex B with the stamp in it: behind the parameter sets and before the slice, where the
// standard wants such messages.
func (s Stamp) Insert(unit []byte) []byte {
	b := make([]byte, 0, len(unit)+2*stampSize)
	for nal := range nalUnits(unit) {
		if t := nalType(nal); t == nalSlice || t == nalIDR {
			b = s.appendNAL(b)
		}
		b = append(append(b, startCode...), nal...)
	}
	return b
}

// appendFiller adds a NAL unit of about so many bytes that mean nothing.
func appendFiller(b []byte, size int) []byte {
	const least = 4 + 1 + 1 + 1 + 1 // start code, NAL header, type, size, trailing bits
	size -= least + size/255
	if size < 0 {
		return b
	}
	b = append(append(b, startCode...), nalSEI, seiFiller)
	for n := size; ; n -= 255 {
		if n < 255 {
			b = append(b, byte(n))
			break
		}
		b = append(b, 255)
	}
	return append(append(b, bytes.Repeat([]byte{255}, size)...), 0x80)
}

// escape puts the emulation prevention byte wherever the body would look like a start code (ITU-T H.264, 7.4.1).
func escape(b, body []byte) []byte {
	zeros := 0
	for _, c := range body {
		if zeros == 2 && c <= 3 {
			b, zeros = append(b, 3), 0
		}
		b = append(b, c)
		if c == 0 {
			zeros++
		} else {
			zeros = 0
		}
	}
	return b
}

func unescape(body []byte) []byte {
	out := make([]byte, 0, len(body))
	zeros := 0
	for _, c := range body {
		if zeros >= 2 && c == 3 {
			zeros = 0
			continue
		}
		out = append(out, c)
		if c == 0 {
			zeros++
		} else {
			zeros = 0
		}
	}
	return out
}
