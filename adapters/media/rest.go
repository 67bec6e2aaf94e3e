package media

import (
	"bytes"
	"slices"
	"strings"

	"github.com/pion/webrtc/v4"
)

// restSize bounds the payloads that Rest makes, so that a packet fits into tunnels with SRTP and lower headers on top.
const restSize = 1150

// Rest makes the payloads that complete a video frame of which only the beginning has gone out, from another copy of the
// same frame, which may be packed differently: a NAL unit goes on from the byte at which it broke off. sent are the packets
// that went out, from the frame's first on without a gap, whole those of the other copy. It is false where the two do not
// agree, or the codec's frames cannot be gone on with. The last payload ends the frame; there is none where all had gone out.
func Rest(mime string, sent, whole []Packet) (payloads [][]byte, ok bool) {
	switch {
	case strings.EqualFold(mime, webrtc.MimeTypeVP8):
		return restVP8(sent, whole)
	case strings.EqualFold(mime, webrtc.MimeTypeH264), strings.EqualFold(mime, webrtc.MimeTypeH265):
		return restNAL(mime, sent, whole)
	}
	// AV1 and VP9 say in each packet what of the frame's structure lies in it: not worth it for a case that a key frame mends.
	return nil, false
}

func restVP8(sent, whole []Packet) (payloads [][]byte, ok bool) {
	if len(sent) == 0 {
		return nil, false
	}
	frame := func(packets []Packet) (b []byte) {
		for i := range packets {
			b = append(b, Content(webrtc.MimeTypeVP8, packets[i].Payload)...)
		}
		return b
	}
	all, done := frame(whole), frame(sent)
	last := sent[len(sent)-1].Payload
	d, readable := describeVP8(last)
	if !readable || !bytes.HasPrefix(all, done) {
		return nil, false
	}
	header := slices.Clone(last[:d.size])
	header[0] &^= 0x10 // S: it does not begin a partition
	for part := range slices.Chunk(all[len(done):], restSize-len(header)) {
		payloads = append(payloads, slices.Concat(header, part))
	}
	return payloads, true
}

// nalUnits are the NAL units in packets that follow each other, and the beginning of one that goes on.
func nalUnits(mime string, packets []Packet) (units [][]byte, piece []byte) {
	a := assembler{each: func(b []byte) { units = append(units, slices.Clone(b)) }}
	a.open()
	for i := range packets {
		a.add(mime, packets[i].Payload)
	}
	if a.inside {
		piece = a.piece
	}
	return units, piece
}

func restNAL(mime string, sent, whole []Packet) (payloads [][]byte, ok bool) {
	done, piece := nalUnits(mime, sent)
	all, over := nalUnits(mime, whole)
	if len(over) > 0 || len(done) > len(all) {
		return nil, false
	}
	for i := range done {
		if !bytes.Equal(done[i], all[i]) {
			return nil, false
		}
	}
	all = all[len(done):]
	header := 1
	if strings.EqualFold(mime, webrtc.MimeTypeH265) {
		header = 2
	}
	for i, unit := range all {
		from := 0
		if i == 0 && len(piece) > 0 {
			if from = len(piece); len(unit) <= from || !bytes.HasPrefix(unit, piece) {
				return nil, false
			}
		}
		if from == 0 && len(unit) <= restSize {
			payloads = append(payloads, unit)
			continue
		}
		if len(unit) <= header {
			return nil, false
		}
		begins := from == 0
		data := unit[max(from, header):]
		for len(data) > 0 {
			n := min(len(data), restSize-header-1)
			payloads = append(payloads, fragmentOf(unit, header, data[:n], begins, n == len(data)))
			data, begins = data[n:], false
		}
	}
	if len(all) == 0 && len(piece) > 0 {
		return nil, false
	}
	return payloads, true
}

// fragmentOf is an FU-A of RFC 6184, section 5.8, or a fragmentation unit of RFC 7798, section 4.4.3.
func fragmentOf(unit []byte, header int, data []byte, first, last bool) []byte {
	var b []byte
	var kind byte
	if header == 1 {
		b, kind = append(b, unit[0]&0xe0|28), unit[0]&0x1f
	} else {
		b, kind = append(b, unit[0]&0x81|49<<1, unit[1]), unit[0]>>1&0x3f
	}
	if first {
		kind |= 0x80
	}
	if last {
		kind |= 0x40
	}
	return append(append(b, kind), data...)
}
