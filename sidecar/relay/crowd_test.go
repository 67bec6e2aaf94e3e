package relay

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/webrtc/v4"
)

// A hundred viewers who join at once in five regions all see the picture, and their wishes for a key frame cross each relay once a
// second at most.
func TestCrowd(t *testing.T) {
	if raceDetector || testing.Short() {
		t.Skip("a hundred connections are too much for the race detector")
	}
	const regions, viewers, frames = 5, 20, 30
	origin := newSFU(t)
	publish(t, origin, "h264")
	var edges []*sfu
	var relays []*relayed
	for range regions {
		edge := newSFU(t)
		edges, relays = append(edges, edge), append(relays, newRelay(t, origin, edge, nil))
	}
	requests := func(r *relayed) (sent, received uint64) {
		for _, track := range r.Status().Tracks {
			sent, received = sent+track.KeyFrameRequestsSent, received+track.KeyFrameRequestsReceived
		}
		return sent, received
	}
	var before []uint64
	for _, r := range relays {
		sent, _ := requests(r)
		before = append(before, sent)
	}

	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var watching, seeing sync.WaitGroup
	var seen atomic.Int64
	for _, edge := range edges {
		for range viewers {
			watching.Add(1)
			seeing.Add(1)
			go func() {
				defer watching.Done()
				saw := sync.OnceFunc(seeing.Done)
				defer saw()
				if err := glance(ctx, edge, frames, func() { seen.Add(1); saw() }); err != nil && ctx.Err() == nil {
					t.Errorf("a viewer: %v", err)
				}
			}()
		}
	}
	seeing.Wait()
	took := time.Since(began)
	for i, r := range relays {
		sent, received := requests(r)
		if most := before[i] + 1 + uint64(took/time.Second); sent > most {
			t.Errorf("region %d: %d key frame requests to the parent in %v, want %d at most", i, sent-before[i], took, most-before[i])
		}
		t.Logf("region %d: %d requests came from the server, %d went to the parent", i, received, sent-before[i])
	}
	if got := seen.Load(); got != regions*viewers {
		t.Errorf("%d of %d viewers saw %d frames", got, regions*viewers, frames)
	}
	t.Logf("after %v all have seen %d frames", took.Round(time.Millisecond), frames)
	cancel()
	watching.Wait()
}

// glance plays until ctx ends, and says when so many frames have come.
func glance(ctx context.Context, s server, frames int, done func()) error {
	var readers sync.WaitGroup
	defer readers.Wait()
	session, err := client().Play(ctx, s.Egress("demo"), func(pc *webrtc.PeerConnection) error {
		for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
			_, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
			if err != nil {
				return err
			}
		}
		pc.OnTrack(func(t *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
			readers.Add(1)
			defer readers.Done()
			video := t.Kind() == webrtc.RTPCodecTypeVideo
			if video { // as players do
				_ = pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(t.SSRC())}})
			}
			for whole := 0; ; {
				p, _, err := t.ReadRTP()
				if err != nil {
					return
				}
				if video && p.Marker {
					if whole++; whole == frames {
						done()
					}
				}
			}
		})
		return nil
	})
	if err != nil {
		return err
	}
	defer func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = session.Close(bounded)
	}()
	return session.Wait(ctx)
}
