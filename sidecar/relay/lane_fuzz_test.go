package relay

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// sentPackets takes what a lane sends.
type sentPackets struct {
	t    *testing.T
	seen map[uint16][]byte // payloads by sequence number
}

func (s *sentPackets) Write([]byte) (int, error) { panic("packets are written with their headers") }

func (s *sentPackets) WriteRTP(h *rtp.Header, payload []byte) (int, error) {
	if before, twice := s.seen[h.SequenceNumber]; twice && !bytes.Equal(before, payload) {
		s.t.Errorf("number %d is sent with other content", h.SequenceNumber)
	}
	s.seen[h.SequenceNumber] = bytes.Clone(payload)

	return len(payload), nil
}

// sending is what pion gives a track that is about to be sent.
type sending struct {
	binding
	to *sentPackets
}

func (s sending) WriteStream() webrtc.TrackLocalWriter { return s.to }

// FuzzSeam lets a source take over from another in the middle of whatever comes of both: reordered, lost, twice. No number goes out
// with two contents, the numbers go on where the old ones ended, and each that went out can be had again for a NACK.
func FuzzSeam(f *testing.F) {
	f.Add([]byte{1, 1, 1, 1, 1, 1}, []byte{1, 1, 1, 1}, uint16(65533), uint32(1<<32-2))
	f.Add([]byte{1, 2, 255, 2, 1, 0, 1}, []byte{3, 254, 1, 1, 5}, uint16(7), uint32(9))
	f.Add([]byte{}, []byte{1}, uint16(0), uint32(0))
	f.Add([]byte{1, 1, 250, 1, 10, 1}, []byte{1, 253, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, uint16(40000), uint32(1<<31))
	f.Fuzz(func(t *testing.T, before, after []byte, start uint16, clock uint32) {
		if len(before)+len(after) > audioHistory/2 {
			return
		}
		codec := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}
		l := newLane(webrtc.RTPCodecTypeAudio, new(atomic.Int64), func(string) {})
		l.codec.RTPCodecCapability = codec
		to := &sentPackets{t: t, seen: map[uint16][]byte{}}
		l.out = media.NewConn(media.Transport{}, nil).NewSender(media.SenderOptions{Kind: l.kind, Codec: codec, History: l.history})
		if _, err := l.out.Bind(sending{binding{codec: codec}, to}); err != nil {
			t.Fatal(err)
		}
		l.opened, l.seenPacket, l.through = true, true, true
		arrival := time.Now()
		// Each byte is by how much the next number differs from the one before: most are 1.
		play := func(feed *feed, steps []byte, source byte, seq uint16, timestamp uint32) (highest uint16, high uint32) {
			first := seq
			for i, step := range steps {
				seq += uint16(int16(int8(step)))
				at := timestamp + uint32(int32(int16(seq-first)))*960
				payload := binary.BigEndian.AppendUint16([]byte{source}, seq)
				p, err := media.NewPacket(rtp.Header{Version: 2, SequenceNumber: seq, Timestamp: at}, payload)
				if err != nil {
					t.Fatal(err)
				}
				arrival = arrival.Add(20 * time.Millisecond)
				p.Arrival = arrival
				feed.Packet(p)
				if i == 0 || int16(seq-highest) > 0 {
					highest, high = seq, at
				}
			}
			return highest, high
		}
		old := &feed{lane: l}
		l.current = old
		play(old, before, 1, start, clock)
		end, sent := l.last, len(to.seen)

		next := &feed{lane: l, late: true}
		play(next, after, 2, start*3+1, clock+12345)
		if l.current != next && len(after) > 0 {
			t.Fatal("the new source did not take over")
		}
		lowest := uint16(0)
		for seq, payload := range to.seen {
			if payload[0] != 2 {
				continue
			}
			if end.ok && int16(seq-end.sequence) <= 0 && sent > 0 {
				t.Errorf("number %d of the new source is not behind the old one's end %d", seq, end.sequence)
			}
			if behind := seq - end.sequence; end.ok && (lowest == 0 || behind < lowest) {
				lowest = behind
			}
		}
		if end.ok && lowest > 1 {
			t.Errorf("%d numbers are left out at the seam", lowest-1)
		}
		var again media.Packet
		for seq, payload := range to.seen {
			if back := int16(l.last.sequence - seq); back < 0 || back >= audioHistory {
				continue // nobody asks for what is so far back
			}
			if !l.history.Sequence(seq, &again) || !bytes.Equal(again.Payload, payload) {
				t.Errorf("number %d cannot be had again as it was", seq)
			}
		}
		play(old, before, 1, start, clock) // what comes of the old one counts no more
		for _, payload := range to.seen {
			if payload[0] == 1 {
				sent--
			}
		}
		if sent != 0 {
			t.Errorf("%d packets of the old source went out after it had been left", -sent)
		}
	})
}
