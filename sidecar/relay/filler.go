package relay

import (
	"github.com/pion/rtp"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	opusRate = 48000 // of timestamps, whatever the audio's own rate is (RFC 7587, section 4.1)
	// maxFill bounds the hole that is filled, in ticks: a longer one is a pause, or another source.
	maxFill      = opusRate
	fillerKept   = 128 // packets
	opusLongest  = opusRate * 120 / 1000
	fillerFrames = 48 // of 2.5 ms in that
)

// filler makes a stream of Opus whole, for a server that tells the time by counting what comes: where packets are missing, or
// were not sent since nothing was to be heard, empty ones take their place, which a decoder conceals. It gives packets numbers of
// its own, without a gap.
type filler struct {
	history *media.History // of what goes out, by the numbers it has there
	next    uint16
	begun   bool
	counted uint32 // the timestamp at which the server is, who counts
	first   byte   // of the last packet's payload
	payload [2]byte
	filled  uint64 // packets
}

func newFiller() *filler { return &filler{history: media.NewHistory(fillerKept)} }

// send sends a packet, with what is missing before it.
func (f *filler) send(p *media.Packet, to sender) {
	duration := opusDuration(p.Payload)
	switch hole := int32(p.Header.Timestamp - f.counted); {
	case !f.begun:
		f.begun, f.next = true, p.Header.SequenceNumber
		f.counted = p.Header.Timestamp
	case duration == 0: // padding, or nothing that a decoder takes
	case hole > maxFill || hole < -maxFill:
		f.counted = p.Header.Timestamp
	case hole > 0:
		f.cover(uint32(hole), p, to)
	}
	if duration > 0 {
		f.first = p.Payload[0]
		f.counted += duration
	}
	before := p.Header.SequenceNumber
	p.Shift("", 0, media.Shift{Sequence: f.next - before})
	f.history.Add(p)
	to.Packet(p)
	p.Shift("", 0, media.Shift{Sequence: before - f.next})
	f.next++
}

// cover sends empty frames like those of the last packet, as many as fit into a hole before a packet. What remains is less than a
// frame, and counts with the next hole.
func (f *filler) cover(hole uint32, before *media.Packet, to sender) {
	frame := opusFrame(f.first)
	for hole >= frame {
		n := min(hole/frame, opusLongest/frame, fillerFrames)
		payload := f.payload[:1]
		payload[0] = f.first &^ 3 // one frame (RFC 6716, section 3.2.2), of no bytes
		if n > 1 {
			payload = f.payload[:2]
			payload[0], payload[1] = f.first|3, byte(n) // so many of the same size (section 3.2.5)
		}
		p, err := media.NewPacket(rtp.Header{
			Version: 2, PayloadType: before.Header.PayloadType, SequenceNumber: f.next, Timestamp: f.counted,
		}, payload)
		if err != nil {
			return // cannot be: there is nothing in the header that could be wrong
		}
		p.Arrival = before.Arrival
		f.history.Add(p)
		to.Packet(p)
		f.next++
		f.filled++
		f.counted += n * frame
		hole -= n * frame
	}
}

// opusFrame is the duration of the frames of a packet that begins with a byte, in ticks (RFC 6716, section 3.1).
func opusFrame(toc byte) uint32 {
	const millisecond = opusRate / 1000
	config := toc >> 3
	switch {
	case config < 12: // SILK
		return [4]uint32{10, 20, 40, 60}[config%4] * millisecond
	case config < 16: // hybrid
		return [2]uint32{10, 20}[config%2] * millisecond
	default: // CELT
		return (5 * millisecond / 2) << (config % 4)
	}
}

// opusDuration is what a packet lasts, in ticks (RFC 6716, section 3.2); 0 for one that a decoder does not take.
func opusDuration(payload []byte) uint32 {
	if len(payload) == 0 {
		return 0
	}
	frames := uint32(1)
	switch payload[0] & 3 {
	case 1, 2:
		frames = 2
	case 3:
		if len(payload) < 2 {
			return 0
		}
		frames = uint32(payload[1] & 0x3f)
	}
	if d := frames * opusFrame(payload[0]); d <= opusLongest {
		return d
	}
	return 0
}
