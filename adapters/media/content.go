package media

import (
	"encoding/binary"
	"hash/maphash"
	"strings"

	"github.com/pion/webrtc/v4"
)

// Unit is what the packets of one timestamp carry: an access unit of video, or one packet of audio.
type Unit struct {
	Timestamp uint32
	First     int // index of its first packet among those given
	Packets   int
	// Begins is set where the first packet is known to be the unit's first, Ends where the last is its last, Whole where
	// also nothing between is missing.
	Begins, Ends, Whole bool
	// Content are hashes of what a server leaves as it is when it makes packets anew: NAL units, OBUs, the frame for VP8
	// and VP9, the payload for audio. Only what is there from begin to end is among them. They can be compared within
	// one process.
	Content []uint64
}

var contentSeed = maphash.MakeSeed()

// Units puts packets of one track together. They are in order of sequence number, each once.
func Units(mime string, packets []Packet) []Unit {
	var units []Unit
	var a assembler
	video := strings.HasPrefix(strings.ToLower(mime), "video/")
	for i := range packets {
		p := &packets[i]
		follows := i > 0 && p.Header.SequenceNumber == packets[i-1].Header.SequenceNumber+1
		if i == 0 || !video || p.Header.Timestamp != packets[i-1].Header.Timestamp {
			if n := len(units); n > 0 {
				a.close(&units[n-1], packets, follows)
			}
			units = append(units, Unit{Timestamp: p.Header.Timestamp, First: i, Begins: follows || !video || begins(mime, p)})
			a.open()
		} else if !follows {
			a.gap()
		}
		units[len(units)-1].Packets++
		a.add(mime, p.Payload)
	}
	if n := len(units); n > 0 {
		a.close(&units[n-1], packets, !video)
	}
	return units
}

// begins says whether a packet can be told to be the first of its frame by itself.
func begins(mime string, p *Packet) bool {
	if len(p.Payload) == 0 {
		return false
	}
	switch {
	case strings.EqualFold(mime, webrtc.MimeTypeVP8):
		d, ok := describeVP8(p.Payload)
		return ok && d.begins
	case strings.EqualFold(mime, webrtc.MimeTypeVP9):
		d, ok := describeVP9(p.Payload)
		return ok && d.begins
	case strings.EqualFold(mime, webrtc.MimeTypeAV1):
		return p.KeyFrame && p.Payload[0]&0x80 == 0
	case strings.EqualFold(mime, webrtc.MimeTypeH264):
		const aud, sps, stapA = 9, 7, 24
		kind := p.Payload[0] & 0x1f
		if kind == stapA && len(p.Payload) > 3 {
			kind = p.Payload[3] & 0x1f
		}
		return kind == sps || kind == aud
	case strings.EqualFold(mime, webrtc.MimeTypeH265):
		const vps, aud, aggregation = 32, 35, 48
		kind := p.Payload[0] >> 1 & 0x3f
		if kind == aggregation && len(p.Payload) > 4 {
			kind = p.Payload[4] >> 1 & 0x3f
		}
		return kind == vps || kind == aud
	}
	return false
}

// assembler puts the pieces of one unit together.
type assembler struct {
	content []uint64
	piece   []byte // of an element that goes on in the next packet
	inside  bool   // piece holds the beginning of one
	whole   bool   // no packet has been missing so far
	frame   maphash.Hash
	framed  bool                 // frame has something of the whole unit
	each    func(element []byte) // takes elements in place of content
}

func (a *assembler) open() {
	a.content, a.piece, a.inside, a.whole, a.framed = nil, a.piece[:0], false, true, false
	a.frame.SetSeed(contentSeed)
	a.frame.Reset()
}

func (a *assembler) gap() { a.whole, a.inside = false, false }

func (a *assembler) close(u *Unit, packets []Packet, followed bool) {
	last := &packets[u.First+u.Packets-1]
	u.Ends = followed || last.Header.Marker
	u.Whole = u.Begins && u.Ends && a.whole
	u.Content = a.content
	if a.framed && u.Whole {
		u.Content = append(u.Content, a.frame.Sum64())
	}
}

func (a *assembler) element(b []byte) {
	switch {
	case len(b) == 0:
	case a.each != nil:
		a.each(b)
	default:
		a.content = append(a.content, maphash.Bytes(contentSeed, b))
	}
}

func (a *assembler) add(mime string, payload []byte) {
	if len(payload) == 0 {
		return
	}
	switch {
	case strings.EqualFold(mime, webrtc.MimeTypeH264):
		a.addH264(payload)
	case strings.EqualFold(mime, webrtc.MimeTypeH265):
		a.addH265(payload)
	case strings.EqualFold(mime, webrtc.MimeTypeAV1):
		a.addAV1(payload)
	case strings.EqualFold(mime, webrtc.MimeTypeVP8), strings.EqualFold(mime, webrtc.MimeTypeVP9):
		_, _ = a.frame.Write(Content(mime, payload))
		a.framed = true
	default:
		a.element(payload)
	}
}

// addH264 is RFC 6184, section 5: single NAL units, STAP-A and FU-A.
func (a *assembler) addH264(payload []byte) {
	const stapA, fuA = 24, 28
	switch payload[0] & 0x1f {
	case stapA:
		a.inside = false
		a.aggregated(payload[1:])
	case fuA:
		if len(payload) < 2 {
			return
		}
		a.fragment(payload[1], []byte{payload[0]&0xe0 | payload[1]&0x1f}, payload[2:])
	default:
		a.inside = false
		a.element(payload)
	}
}

// addH265 is RFC 7798, section 4.4, without decoding order numbers: single NAL units, aggregation and fragmentation.
func (a *assembler) addH265(payload []byte) {
	const aggregation, fragmentation = 48, 49
	if len(payload) < 3 {
		return
	}
	switch payload[0] >> 1 & 0x3f {
	case aggregation:
		a.inside = false
		a.aggregated(payload[2:])
	case fragmentation:
		a.fragment(payload[2], []byte{payload[0]&0x81 | payload[2]&0x3f<<1, payload[1]}, payload[3:])
	default:
		a.inside = false
		a.element(payload)
	}
}

func (a *assembler) aggregated(rest []byte) {
	for len(rest) > 2 {
		size := int(binary.BigEndian.Uint16(rest))
		if size+2 > len(rest) {
			return
		}
		a.element(rest[2 : 2+size])
		rest = rest[2+size:]
	}
}

// fragment takes a part of a NAL unit. The first two bits of its header say whether it is the first, and the last.
func (a *assembler) fragment(header byte, nal, data []byte) {
	if header&0x80 != 0 {
		a.piece, a.inside = append(a.piece[:0], nal...), true
	}
	if !a.inside {
		return
	}
	a.piece = append(a.piece, data...)
	if header&0x40 != 0 {
		a.element(a.piece)
		a.inside = false
	}
}

// addAV1 is "RTP Payload Format For AV1", section 4: OBU elements, of which the first may go on from the packet before
// and the last may go on in the next.
func (a *assembler) addAV1(payload []byte) {
	continues, goesOn, count := payload[0]&0x80 != 0, payload[0]&0x40 != 0, int(payload[0]>>4&0x03)
	rest := payload[1:]
	if !continues {
		a.inside = false
	}
	for i := 1; len(rest) > 0; i++ {
		element := rest
		if i != count {
			size, n := binary.Uvarint(rest) // LEB128 is the same
			if n <= 0 || size > uint64(len(rest)-n) {
				a.inside = false
				return
			}
			element = rest[n : n+int(size)]
			rest = rest[n+int(size):]
		} else {
			rest = nil
		}
		first, last := i == 1, len(rest) == 0
		if first && continues {
			if !a.inside {
				continue
			}
		} else {
			a.piece, a.inside = a.piece[:0], true
		}
		a.piece = append(a.piece, element...)
		if last && goesOn {
			return
		}
		a.element(bareOBU(a.piece))
		a.inside = false
	}
}

// bareOBU is an OBU without the size field that it may have, and nothing for those that servers add and leave out: temporal
// delimiters and padding (AV1 specification, section 5.3).
func bareOBU(obu []byte) []byte {
	const delimiter, padding = 2, 15
	if len(obu) == 0 {
		return nil
	}
	if kind := obu[0] >> 3 & 0x0f; kind == delimiter || kind == padding {
		return nil
	}
	if obu[0]&0x02 == 0 {
		return obu
	}
	header := 1
	if obu[0]&0x04 != 0 {
		header = 2
	}
	if len(obu) < header {
		return nil
	}
	size, n := binary.Uvarint(obu[header:])
	if n <= 0 || size > uint64(len(obu)-header-n) {
		return nil
	}
	body := obu[header+n : header+n+int(size)]
	copy(obu[n:], obu[:header]) // the header moves up to the body
	obu = obu[n : n+header+len(body)]
	obu[0] &^= 0x02
	return obu
}

// Content is a payload without what belongs to its packet alone: the payload descriptor of VP8 and VP9.
func Content(mime string, payload []byte) []byte {
	if d, ok := describe(mime, payload); ok {
		return payload[min(d.size, len(payload)):]
	}
	return payload
}

// ContentHash is a hash of Content, to be compared within one process.
func ContentHash(mime string, payload []byte) uint64 {
	return maphash.Bytes(contentSeed, Content(mime, payload))
}

// descriptor is where things stand in a payload descriptor of VP8 or VP9. Offsets are 0 where the field is not there.
type descriptor struct {
	size    int // of it all
	begins  bool
	picture int // offset of the picture id
	wide    bool
	level   int // offset of TL0PICIDX
	upper   bool
}

func describe(mime string, payload []byte) (descriptor, bool) {
	switch {
	case strings.EqualFold(mime, webrtc.MimeTypeVP8):
		return describeVP8(payload)
	case strings.EqualFold(mime, webrtc.MimeTypeVP9):
		return describeVP9(payload)
	}
	return descriptor{}, false
}

// describeVP8 reads the payload descriptor of RFC 7741, section 4.2.
func describeVP8(payload []byte) (d descriptor, ok bool) {
	if len(payload) == 0 {
		return d, false
	}
	d.begins = payload[0]&0x10 != 0 && payload[0]&0x07 == 0
	n := 1
	if payload[0]&0x80 != 0 { // X
		if len(payload) <= n {
			return d, false
		}
		x := payload[n]
		n++
		if x&0x80 != 0 { // I
			if len(payload) <= n {
				return d, false
			}
			d.picture, d.wide = n, payload[n]&0x80 != 0
			if d.wide {
				n++
			}
			n++
		}
		if x&0x40 != 0 { // L
			d.level = n
			n++
		}
		if x&0x30 != 0 { // T or K
			n++
		}
	}
	d.size = n
	return d, n <= len(payload)
}

// describeVP9 reads the payload descriptor of RFC 9628, section 4.2.
func describeVP9(payload []byte) (d descriptor, ok bool) {
	if len(payload) == 0 {
		return d, false
	}
	head := payload[0]
	n := 1
	if head&0x80 != 0 { // I
		if len(payload) <= n {
			return d, false
		}
		d.picture, d.wide = n, payload[n]&0x80 != 0
		if d.wide {
			n++
		}
		n++
	}
	if head&0x20 != 0 { // L
		if len(payload) <= n {
			return d, false
		}
		d.upper = payload[n]>>1&0x07 != 0
		n++
		if head&0x10 == 0 { // not flexible
			d.level = n
			n++
		}
	}
	if head&0x50 == 0x50 { // F and P: up to three references
		for range 3 {
			if len(payload) <= n {
				return d, false
			}
			n++
			if payload[n-1]&0x01 == 0 {
				break
			}
		}
	}
	if head&0x02 != 0 { // V: scalability structure
		if len(payload) <= n {
			return d, false
		}
		ss := payload[n]
		n++
		if ss&0x10 != 0 {
			n += (int(ss>>5) + 1) * 4
		}
		if ss&0x08 != 0 {
			if len(payload) <= n {
				return d, false
			}
			pictures := int(payload[n])
			n++
			for range pictures {
				if len(payload) <= n {
					return d, false
				}
				n += 1 + int(payload[n]>>2&0x03)
			}
		}
	}
	d.size, d.begins = n, head&0x08 != 0 && !d.upper
	return d, n <= len(payload)
}
