package testframes

import (
	"testing"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4/pkg/media/samplebuilder"
)

// Frames go through RTP and back, and are told apart from what is cut short.
func TestRoundTrip(t *testing.T) {
	for _, c := range Codecs() {
		t.Run(c.MIME, func(t *testing.T) {
			packetizer := rtp.NewPacketizer(1200, 96, 1, c.Payloader(), rtp.NewFixedSequencer(1), 90000)
			builder := samplebuilder.New(50, c.Depacketizer(), 90000)
			var read uint32
			for n := range uint32(20) {
				for _, p := range packetizer.Packetize(c.Frame(n, n%5 == 0), 3600) {
					builder.Push(p)
				}
				for s := builder.Pop(); s != nil; s = builder.Pop() {
					number, key, whole := c.Check(s.Data)
					if number != read || key != (read%5 == 0) || !whole {
						t.Fatalf("frame %d is read as %d, key %t, whole %t", read, number, key, whole)
					}
					if _, _, whole := c.Check(s.Data[:len(s.Data)-1]); whole {
						t.Errorf("frame %d is whole without its end", read)
					}
					read++
				}
			}
			if read < 18 {
				t.Errorf("%d of 20 frames are read", read)
			}
		})
	}
	if _, ok := Of("video/unheard"); ok {
		t.Error("there is a codec that nobody has heard of")
	}
}
