package media

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
)

// A thousand viewers in ten regions who join within a second make one request at each region's relay, and one a second while no
// key frame comes; then the next wish is heard at once.
func TestKeyFrameRequestsAreMerged(t *testing.T) {
	const regions, viewers = 10, 100
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		var tracks []*Track
		for range regions {
			tracks = append(tracks, bareTrack(NewConn(Transport{}, nil), 1, "", &taker{}))
		}
		for _, track := range tracks {
			for range viewers {
				at := time.Duration(random.Int64N(int64(time.Second)))
				time.AfterFunc(at, track.RequestKeyFrame)
				time.AfterFunc(at+500*time.Millisecond, track.RequestKeyFrame) // and once more, for the picture has not come
			}
		}
		// Packets come meanwhile, and none of them is of a key frame.
		var sources []*source
		for _, track := range tracks {
			sources = append(sources, &source{conn: track.conn, ssrc: 1, resolved: true, track: track})
		}
		asked := make([][]time.Time, regions)
		took := make([]uint64, regions)
		began := time.Now()
		for n := uint16(0); time.Since(began) < 5*time.Second; n++ {
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			for i, s := range sources {
				s.receive(rawPacket(t, 96, n, 0x10, 1))
				if got := tracks[i].Stats().PLIs; got > took[i] {
					asked[i] = append(asked[i], time.Now())
					if got > took[i]+1 {
						t.Fatalf("region %d: %d requests within 10 ms", i, got-took[i])
					}
					took[i] = got
				}
			}
		}
		for i, times := range asked {
			if len(times) < 4 || len(times) > 7 {
				t.Errorf("region %d: %d requests in five seconds", i, len(times))
			}
			if times[0].Sub(began) > 100*time.Millisecond {
				t.Errorf("region %d: the first request after %v", i, times[0].Sub(began))
			}
			for j := 1; j < len(times); j++ {
				if apart := times[j].Sub(times[j-1]); apart < keyFrameGap-10*time.Millisecond {
					t.Errorf("region %d: two requests within %v", i, apart)
				}
				if apart := times[j].Sub(times[max(j-2, 0)]); j > 1 && apart < keyFrameInterval-10*time.Millisecond {
					t.Errorf("region %d: three requests within %v", i, apart)
				}
			}
			before := tracks[i].Stats().PLIs
			sources[i].receive(rawPacket(t, 96, 60000, 0x10, 0)) // a key frame
			time.Sleep(2 * time.Second)
			sources[i].receive(rawPacket(t, 96, 60001, 0x10, 1))
			if got := tracks[i].Stats().PLIs; got != before {
				t.Errorf("region %d: asked %d times for what has come", i, got-before)
			}
			if tracks[i].RequestKeyFrame(); tracks[i].Stats().PLIs != before+1 {
				t.Errorf("region %d: the next wish is not heard at once", i)
			}
		}
	})
}

// watching is a Sink that looks whether what it is given can be true.
type watching struct{ t *testing.T }

func (w *watching) Packet(p *Packet) {
	if len(p.Payload) > 65535 || int(p.Header.PaddingSize)+len(p.Payload) > len(p.raw) {
		w.t.Errorf("a payload of %d bytes, %d of padding, in a packet of %d", len(p.Payload), p.Header.PaddingSize, len(p.raw))
	}
	if p.Header.SSRC != 1 {
		w.t.Errorf("a packet of source %d", p.Header.SSRC)
	}
	clone := p.Clone()
	if clone.Header.SequenceNumber != p.Header.SequenceNumber || len(clone.Payload) != len(p.Payload) {
		w.t.Error("the copy differs")
	}
	_ = Units(webrtc.MimeTypeVP8, []Packet{*clone})
}
func (w *watching) SenderReport(SenderReport) {}

// FuzzReceive gives a connection RTP of two sources, one of them for retransmissions, and RTCP, whatever is in it.
func FuzzReceive(f *testing.F) {
	packet := func(payloadType uint8, seq uint16, edit func(*rtp.Packet)) []byte {
		p := &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: payloadType, SequenceNumber: seq, SSRC: 1}, Payload: []byte{0x10, 0}}
		if edit != nil {
			edit(p)
		}
		raw, err := p.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		return raw
	}
	report, err := rtcp.Marshal([]rtcp.Packet{
		&rtcp.SenderReport{SSRC: 1, NTPTime: 1 << 40, RTPTime: 7},
		&rtcp.TransportLayerNack{MediaSSRC: 2, Nacks: []rtcp.NackPair{{PacketID: 1, LostPackets: 0xffff}}},
		&rtcp.PictureLossIndication{MediaSSRC: 2}, &rtcp.Goodbye{Sources: []uint32{1}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packet(96, 1, nil), packet(96, 5, nil), packet(97, 9, func(p *rtp.Packet) { p.SSRC, p.Payload = 3, []byte{0, 3, 0x10, 0} }), report)
	f.Add(packet(96, 65535, nil), packet(96, 0, nil), []byte{0x80}, report[:20])
	f.Add(packet(98, 1, func(p *rtp.Packet) { p.Padding, p.Header.PaddingSize = true, 4 }), packet(35, 2, nil), packet(97, 1, nil), []byte{})
	f.Add(packet(96, 1, func(p *rtp.Packet) {
		p.Extension, p.ExtensionProfile = true, 0x1000
		_ = p.SetExtension(200, make([]byte, 40))
	}), []byte{0xb0, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0xbe, 0xde, 0xff, 0xff}, packet(96, 40000, nil), report[4:])
	f.Fuzz(func(t *testing.T, first, second, repair, control []byte) {
		c := NewConn(Transport{}, nil)
		track := bareTrack(c, 1, "", &watching{t: t})
		media := &source{conn: c, ssrc: 1, resolved: true, track: track}
		rtx := &source{conn: c, ssrc: 3, resolved: true, rtx: true, mid: "0", original: 1}
		sender := c.NewSender(SenderOptions{Kind: webrtc.RTPCodecTypeVideo})
		sender.ssrc, sender.bound = 2, true
		c.senders[2] = sender
		for _, raw := range [][]byte{first, second, first} {
			if len(raw) >= 12 {
				raw = append([]byte{}, raw...)
				raw[8], raw[9], raw[10], raw[11] = 0, 0, 0, 1 // who reads a connection tells sources apart by it
			}
			media.receive(raw)
		}
		rtx.receive(append([]byte{}, repair...))
		for _, ssrc := range []uint32{1, 2, 9} {
			c.receiveRTCP(ssrc, append([]byte{}, control...))
		}
		if s := track.Stats(); s.Packets > 4 || s.NACKs > 4 {
			t.Errorf("%+v of four packets", s)
		}
	})
}

// What cannot be read, or was not negotiated, is counted and harms nobody.
func TestUselessPacketsAreCounted(t *testing.T) {
	c := NewConn(Transport{}, nil)
	k := &taker{}
	track := bareTrack(c, 1, "", k)
	s := &source{conn: c, ssrc: 1, resolved: true, track: track}
	s.receive(rawPacket(t, 96, 1, 0x10, 0))
	s.receive([]byte{0x80, 96})
	s.receive(rawPacket(t, 35, 2, 0x10, 0))
	c.receiveRTCP(1, []byte{0x80, 200, 0})
	s.receive(rawPacket(t, 96, 3, 0x10, 1))
	if got, want := c.Stats(), (ConnStats{Malformed: 2, Unknown: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if len(k.payloads) != 2 {
		t.Errorf("%d packets went on", len(k.payloads))
	}
	s.receive(rawPacket(t, 96, 30000, 0x10, 1))
	if got := track.Stats(); got.Restarts != 1 || got.NACKs > 1 {
		t.Errorf("a jump of sequence numbers: %+v", got)
	}
	sum := track.Stats().Plus(TrackStats{Packets: 1, Bytes: 2, Lost: 3, Repaired: 4, NACKs: 5, PLIs: 6, KeyFrames: 7, Restarts: 8, ClockJumps: 9})
	if sum.Packets != track.Stats().Packets+1 || sum.Restarts != 9 || sum.ClockJumps != 9 {
		t.Errorf("sum %+v", sum)
	}
}
