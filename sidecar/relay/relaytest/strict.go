package relaytest

import (
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
)

// keyFrameClock is how often a strict server asks for a key frame, whoever needs one.
const keyFrameClock = 2 * time.Second

// maxDrift is how far a count of sound may be from its timestamps before it begins anew.
const maxDrift = 24000

// Taken is what a strict server made of the packets of one track.
type Taken struct {
	Packets int // that came in order, or could be put in order
	Late    int // that came when they had been given up, or twice
	Lost    int // numbers that did not come in time
	Waited  int // packets that waited for one before them
	Frames  int // of video that went on, of audio packets
	Broken  int // frames of which a packet was missing
	Empty   int // audio packets without anything in them
	// Drift is how far the time of audio, counted, was from its timestamps at worst, and Skips how often the count began anew.
	Drift time.Duration
	Skips int
}

// Strict makes the server do as MediaMTX does with what is published, to the packet: it waits for one that is missing until 64 are
// there, of audio too, and drops what comes later; it tells the time of Opus by counting; it asks for a key frame every other
// second. Call it before Run.
func (s *Remux) Strict() { s.strict = true }

// Taken is what was made of a stream, by kind.
func (s *Remux) Taken(name string, kind webrtc.RTPCodecType) Taken {
	s.mu.Lock()
	stream := s.streams[name]
	s.mu.Unlock()
	if stream == nil {
		return Taken{}
	}
	stream.mu.Lock()
	defer stream.mu.Unlock()
	return stream.taken[kind]
}

// orderer waits for packets as MediaMTX does.
type orderer struct {
	begun bool
	next  uint16
	kept  [reorder]*rtp.Packet // by number
	taken Taken
}

// push takes a packet and gives those that are in order now, and how many were given up before them.
func (o *orderer) push(p *rtp.Packet) (packets []*rtp.Packet, lost int) {
	if !o.begun {
		o.begun, o.next = true, p.SequenceNumber
	}
	ahead := int16(p.SequenceNumber - o.next)
	switch {
	case ahead < 0, ahead > 0 && ahead < reorder && o.kept[p.SequenceNumber%reorder] != nil:
		o.taken.Late++
		return nil, 0
	case ahead >= reorder:
		for seq := o.next; seq != o.next+reorder; seq++ {
			if kept := o.kept[seq%reorder]; kept != nil {
				packets = append(packets, kept)
				o.kept[seq%reorder] = nil
			}
		}
		lost = int(ahead) - len(packets)
		packets = append(packets, p)
		o.next = p.SequenceNumber + 1
	case ahead > 0:
		o.taken.Waited++
		o.kept[p.SequenceNumber%reorder] = p
		return nil, 0
	default:
		packets = append(packets, p)
		for o.next++; o.kept[o.next%reorder] != nil; o.next++ {
			packets = append(packets, o.kept[o.next%reorder])
			o.kept[o.next%reorder] = nil
		}
	}
	o.taken.Packets += len(packets)
	o.taken.Lost += lost
	return packets, lost
}

// readStrict is read for a strict server. depacketizer is nil for audio.
func (r *remuxed) readStrict(s *Remux, t *webrtc.TrackRemote, depacketizer rtp.Depacketizer) {
	var o orderer
	var frame []byte
	var counted uint32
	counting, broken := false, false
	for {
		packet, _, err := t.ReadRTP()
		if err != nil {
			return
		}
		packets, lost := o.push(packet)
		broken = broken || lost > 0
		for _, p := range packets {
			if len(p.Payload) == 0 {
				continue
			}
			if depacketizer == nil {
				drift := int32(p.Timestamp - counted)
				if !counting || drift > maxDrift || drift < -maxDrift {
					if counting {
						o.taken.Skips++
					}
					counting, counted, drift = true, p.Timestamp, 0
				}
				o.taken.Drift = max(o.taken.Drift, time.Duration(max(drift, -drift))*time.Second/48000)
				o.taken.Frames++
				if len(p.Payload) <= 2 {
					o.taken.Empty++
				}
				r.write(s, t.Kind(), p.Payload, counted)
				counted += opusTicks(p.Payload)
				continue
			}
			part, err := depacketizer.Unmarshal(p.Payload)
			broken = broken || err != nil
			frame = append(frame, part...)
			if !p.Marker {
				continue
			}
			if broken {
				o.taken.Broken++
			} else {
				o.taken.Frames++
				r.write(s, t.Kind(), frame, p.Timestamp)
			}
			frame, broken = nil, false
		}
		r.mu.Lock()
		r.taken[t.Kind()] = o.taken
		r.mu.Unlock()
	}
}

// opusTicks is how long a packet of Opus lasts, as a server counts it that looks at its first bytes.
func opusTicks(payload []byte) uint32 {
	config, frames := payload[0]>>3, uint32(1)
	switch payload[0] & 3 {
	case 1, 2:
		frames = 2
	case 3:
		frames = 0
		if len(payload) > 1 {
			frames = uint32(payload[1] & 63)
		}
	}
	frame := []uint32{480, 960, 1920, 2880, 480, 960, 1920, 2880, 480, 960, 1920, 2880, 480, 960, 480, 960}
	if int(config) < len(frame) {
		return frames * frame[config]
	}
	return frames * (120 << (config % 4))
}

// askByClock asks for key frames until the publisher has gone.
func (p *peer) askByClock(t *webrtc.TrackRemote) {
	tick := time.NewTicker(keyFrameClock)
	defer tick.Stop()
	for {
		select {
		case <-p.ended:
			return
		case <-tick.C:
			_ = p.pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(t.SSRC())}})
		}
	}
}
