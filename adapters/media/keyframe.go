package media

import (
	"strings"

	"github.com/pion/webrtc/v4"
)

// KeyFrame says whether an RTP payload belongs to the beginning of a frame that needs none before it: a sequence
// parameter set or an IDR slice for H264 and H265, the first packet of a key frame for VP8 and VP9, a new coded video
// sequence for AV1. For other codecs every packet is one.
func KeyFrame(mime string, payload []byte) bool {
	if len(payload) == 0 {
		return false
	}
	switch {
	case strings.EqualFold(mime, webrtc.MimeTypeH264):
		return keyFrameH264(payload)
	case strings.EqualFold(mime, webrtc.MimeTypeH265):
		return keyFrameH265(payload)
	case strings.EqualFold(mime, webrtc.MimeTypeVP8):
		return keyFrameVP8(payload)
	case strings.EqualFold(mime, webrtc.MimeTypeVP9):
		// RFC 9628, section 4.2: begins a frame (B), not predicted from earlier ones (P clear), lowest layer.
		d, ok := describeVP9(payload)
		return ok && d.begins && payload[0]&0x40 == 0
	case strings.EqualFold(mime, webrtc.MimeTypeAV1):
		return payload[0]&0x08 != 0 // N, "Video RTP Packet Format" of AV1, section 4.4
	default:
		return true
	}
}

// RFC 6184, section 5.4.
func keyFrameH264(payload []byte) bool {
	const idr, sps, stapA, fuA = 5, 7, 24, 28
	switch payload[0] & 0x1f {
	case idr, sps:
		return true
	case stapA:
		for rest := payload[1:]; len(rest) > 2; {
			size := int(rest[0])<<8 | int(rest[1])
			if kind := rest[2] & 0x1f; kind == idr || kind == sps {
				return true
			}
			if size+2 > len(rest) {
				return false
			}
			rest = rest[size+2:]
		}
	case fuA:
		if len(payload) < 2 {
			return false
		}
		start, kind := payload[1]&0x80 != 0, payload[1]&0x1f
		return start && (kind == idr || kind == sps)
	}
	return false
}

// RFC 7798, section 4.4. A picture parameter set tells nothing: it may come with any picture.
func keyFrameH265(payload []byte) bool {
	const aggregation, fragmentation = 48, 49
	intra := func(kind byte) bool { return kind >= 16 && kind <= 21 || kind == 32 || kind == 33 }
	if len(payload) < 3 {
		return false
	}
	switch kind := payload[0] >> 1 & 0x3f; kind {
	case aggregation:
		for rest := payload[2:]; len(rest) > 2; {
			size := int(rest[0])<<8 | int(rest[1])
			if intra(rest[2] >> 1 & 0x3f) {
				return true
			}
			if size+2 > len(rest) {
				return false
			}
			rest = rest[size+2:]
		}
		return false
	case fragmentation:
		return payload[2]&0x80 != 0 && intra(payload[2]&0x3f)
	default:
		return intra(kind)
	}
}

// RFC 7741, section 4.2 and 4.3: the payload descriptor, then the frame's own header with the inverse key frame bit.
func keyFrameVP8(payload []byte) bool {
	d, ok := describeVP8(payload)
	return ok && d.begins && len(payload) > d.size && payload[d.size]&0x01 == 0
}
