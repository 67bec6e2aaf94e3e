package media

import (
	"encoding/binary"

	"github.com/pion/rtp"
)

// NewPacket makes a packet of its own memory.
func NewPacket(h rtp.Header, payload []byte) (*Packet, error) {
	raw, err := (&rtp.Packet{Header: h, Payload: payload}).Marshal()
	if err != nil {
		return nil, err
	}
	p := &Packet{}
	return p, p.parse(raw)
}

// Shift is what is added to a packet's numbers when it goes out as part of another stream than it came in by.
type Shift struct {
	Sequence  uint16
	Timestamp uint32
	Picture   uint16 // picture id of VP8 and VP9
	Level     uint8  // TL0PICIDX of VP8 and VP9
	Frame     uint16 // frame number of AV1's dependency descriptor
}

// Shift adds to the numbers of a packet, in place. descriptor is the id of the dependency descriptor's header extension,
// 0 where there is none.
func (p *Packet) Shift(mime string, descriptor uint8, s Shift) {
	p.Header.SequenceNumber += s.Sequence
	p.Header.Timestamp += s.Timestamp
	if len(p.raw) >= 12 {
		binary.BigEndian.PutUint16(p.raw[2:], p.Header.SequenceNumber)
		binary.BigEndian.PutUint32(p.raw[4:], p.Header.Timestamp)
	}
	if s.Picture != 0 || s.Level != 0 {
		if d, ok := describe(mime, p.Payload); ok {
			shiftPicture(p.Payload, d, s)
		}
	}
	if s.Frame != 0 && descriptor != 0 {
		if b := p.Header.GetExtension(descriptor); len(b) >= 3 {
			binary.BigEndian.PutUint16(b[1:], binary.BigEndian.Uint16(b[1:])+s.Frame)
		}
	}
}

func shiftPicture(payload []byte, d descriptor, s Shift) {
	switch {
	case d.picture == 0:
	case d.wide:
		b := payload[d.picture:]
		binary.BigEndian.PutUint16(b, (binary.BigEndian.Uint16(b)+s.Picture)&0x7fff|0x8000)
	default:
		payload[d.picture] = (payload[d.picture] + byte(s.Picture)) & 0x7f
	}
	if d.level != 0 {
		payload[d.level] += s.Level
	}
}

// Pictures are the numbers of pictures that a packet names, beside its RTP header.
type Pictures struct {
	Picture  uint16
	Level    uint8
	Frame    uint16
	HasFrame bool
	HasLevel bool
	Bits     int // of Picture; 0: there is none
}

// Pictures reads the numbers that Shift adds to.
func (p *Packet) Pictures(mime string, descriptor uint8) (n Pictures) {
	if d, ok := describe(mime, p.Payload); ok {
		switch {
		case d.picture == 0:
		case d.wide:
			n.Picture, n.Bits = binary.BigEndian.Uint16(p.Payload[d.picture:])&0x7fff, 15
		default:
			n.Picture, n.Bits = uint16(p.Payload[d.picture]&0x7f), 7
		}
		if d.level != 0 {
			n.Level, n.HasLevel = p.Payload[d.level], true
		}
	}
	if descriptor != 0 {
		if b := p.Header.GetExtension(descriptor); len(b) >= 3 {
			n.Frame, n.HasFrame = binary.BigEndian.Uint16(b[1:]), true
		}
	}
	return n
}

// To is the shift that makes the pictures of n those of other.
func (n Pictures) To(other Pictures) (s Shift) {
	if n.Bits > 0 && other.Bits > 0 {
		s.Picture = (other.Picture - n.Picture) & (1<<n.Bits - 1)
	}
	if n.HasLevel && other.HasLevel {
		s.Level = other.Level - n.Level
	}
	if n.HasFrame && other.HasFrame {
		s.Frame = other.Frame - n.Frame
	}
	return s
}

// Next are the numbers of the picture that follows.
func (n Pictures) Next() Pictures {
	n.Picture++
	n.Level++
	n.Frame++
	return n
}
