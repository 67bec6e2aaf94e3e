package media

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"time"

	"github.com/pion/rtp"
)

// Packet is one RTP packet as its publisher sent it: a retransmission has been turned back into the original. Its slices
// belong to whoever handed it over and are valid until the call returns, unless that says otherwise.
type Packet struct {
	Header  rtp.Header
	Payload []byte // without padding; empty for a packet of padding only
	Arrival time.Time
	// Recovered is set on packets that came by retransmission.
	Recovered bool
	// KeyFrame is set on packets of a video frame that can be decoded without any before it, as far as one packet tells.
	KeyFrame bool

	raw   []byte // the whole packet, which Header and Payload point into
	burst *burst // that it came in; nil: it came alone
}

// parse reads raw, which it keeps.
func (p *Packet) parse(raw []byte) error {
	n, err := p.Header.Unmarshal(raw)
	if err != nil {
		return err
	}
	end := len(raw)
	p.Header.PaddingSize = 0
	if p.Header.Padding {
		if end <= n {
			return errors.New("RTP padding without a length")
		}
		p.Header.PaddingSize = raw[end-1]
		end -= int(p.Header.PaddingSize)
		if p.Header.PaddingSize == 0 || end < n {
			return errors.New("RTP padding longer than the packet")
		}
	}
	p.raw, p.Payload = raw, raw[n:end]
	return nil
}

// Clone makes a copy of a packet that came in, in memory of its own.
func (p *Packet) Clone() *Packet {
	c := &Packet{Arrival: p.Arrival, Recovered: p.Recovered, KeyFrame: p.KeyFrame}
	_ = c.parse(bytes.Clone(p.raw)) // it was parsed before
	return c
}

// restore undoes RTX (RFC 4588, section 4) in place: the original sequence number stands in the first two bytes of the
// payload. It gives the shorter packet, or false where there is nothing in it.
func restore(raw []byte, ssrc uint32, payloadType uint8) ([]byte, bool) {
	var h rtp.Header
	n, err := h.Unmarshal(raw)
	if err != nil {
		return nil, false
	}
	end := len(raw)
	if h.Padding && end > n {
		end -= int(raw[end-1])
	}
	if end < n+2 {
		return nil, false // padding sent to probe for bandwidth
	}
	original := binary.BigEndian.Uint16(raw[n:])
	copy(raw[2:n+2], raw[:n])
	raw = raw[2:]
	raw[1] = raw[1]&0x80 | payloadType
	binary.BigEndian.PutUint16(raw[2:], original)
	binary.BigEndian.PutUint32(raw[8:], ssrc)
	return raw, true
}

// SenderReport ties a source's RTP clock to its wall clock (RFC 3550, section 6.4.1).
type SenderReport struct {
	NTP uint64
	RTP uint32
}

// At is the RTP timestamp at a moment of the source's wall clock.
func (r SenderReport) At(ntp uint64, clockRate uint32) uint32 {
	return r.RTP + uint32(int64(math.Round(float64(int64(ntp-r.NTP))/(1<<32)*float64(clockRate))))
}

// Sink takes what arrives on one track. Calls for one track come one at a time, those of Packet in order of arrival.
type Sink interface {
	// Packet takes a packet that is the caller's again once it returns. It must not block.
	Packet(p *Packet)
	// SenderReport takes what the source said of its clocks. It may come at the same time as a packet.
	SenderReport(r SenderReport)
}
