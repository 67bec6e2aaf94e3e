package adaptertest

import (
	"context"
	"encoding/binary"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	pionmedia "github.com/pion/webrtc/v4/pkg/media"
	"github.com/pion/webrtc/v4/pkg/media/samplebuilder"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/testframes"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	tick       = 20 * time.Millisecond // an Opus packet; every other one a video frame
	keyEvery   = 250                   // frames, unless asked for one
	reorderMax = 200                   // packets that a player waits for one that is late
)

// Publisher sends video, H264 unless it was asked for another codec, 25 frames a second, and Opus, until it is closed. A
// key frame comes when it is asked for, and every ten seconds.
type Publisher struct {
	Session *whip.Session

	t        testing.TB
	patience time.Duration
	keyWish  atomic.Bool
	requests atomic.Int64
	stop     context.CancelFunc
	group    sync.WaitGroup
	once     sync.Once
}

// Publish publishes a stream; the test's end closes it, where nobody did before.
func (h Harness) Publish(t testing.TB, id adapters.StreamID) *Publisher {
	t.Helper()
	p, err := h.TryPublish(t, id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TryPublish is Publish for streams that may be refused.
func (h Harness) TryPublish(t testing.TB, id adapters.StreamID) (*Publisher, error) {
	t.Helper()
	return h.publish(t, h.Adapter.Ingest(id), webrtc.MimeTypeH264, h.client())
}

// PublishCodec is Publish with video of another codec: H264, VP8, VP9 or AV1, by its MIME type.
func (h Harness) PublishCodec(t testing.TB, id adapters.StreamID, mime string) *Publisher {
	t.Helper()
	p, err := h.publish(t, h.Adapter.Ingest(id), mime, h.client())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (h Harness) publish(t testing.TB, ep adapters.Endpoint, mime string, client *whip.Client) (*Publisher, error) {
	t.Helper()
	codec, ok := testframes.Of(mime)
	if !ok {
		t.Fatalf("nobody can make %s here", mime)
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.patience())
	defer cancel()
	var video, audio *webrtc.TrackLocalStaticSample
	var sender *webrtc.RTPSender
	session, err := client.Publish(ctx, ep, func(pc *webrtc.PeerConnection) (err error) {
		video, err = webrtc.NewTrackLocalStaticSample(webrtc.RTPCodecCapability{
			MimeType: codec.MIME, ClockRate: 90000, SDPFmtpLine: codec.Format,
		}, "video", "adaptertest")
		if err != nil {
			return err
		}
		audio, err = webrtc.NewTrackLocalStaticSample(webrtc.RTPCodecCapability{
			MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2,
		}, "audio", "adaptertest")
		if err != nil {
			return err
		}
		for _, track := range []webrtc.TrackLocal{audio, video} {
			transceiver, err := pc.AddTransceiverFromTrack(track, webrtc.RTPTransceiverInit{
				Direction: webrtc.RTPTransceiverDirectionSendonly,
			})
			if err != nil {
				return err
			}
			sender = transceiver.Sender()
			if h.OneCodec && track == webrtc.TrackLocal(video) {
				only := slices.DeleteFunc(sender.GetParameters().Codecs, func(c webrtc.RTPCodecParameters) bool {
					return !strings.EqualFold(c.MimeType, codec.MIME)
				})
				if err := transceiver.SetCodecPreferences(only); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	p := &Publisher{Session: session, t: t, patience: h.patience(), stop: stop}
	p.group.Go(func() { p.send(run, audio, video, codec) })
	p.group.Go(func() { p.hear(sender) })
	t.Cleanup(p.Close)
	return p, nil
}

func (p *Publisher) send(ctx context.Context, audio, video *webrtc.TrackLocalStaticSample, codec testframes.Codec) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for n := uint32(0); ; n++ {
		// What fails here ends the connection, and the players say so.
		_ = audio.WriteSample(pionmedia.Sample{Data: binary.BigEndian.AppendUint32([]byte{0xfc}, n), Duration: tick})
		if n%2 == 0 {
			key := n/2%keyEvery == 0 || p.keyWish.Swap(false)
			_ = video.WriteSample(pionmedia.Sample{Data: codec.Frame(n/2, key), Duration: 2 * tick})
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// hear takes the requests for key frames.
func (p *Publisher) hear(sender *webrtc.RTPSender) {
	for {
		packets, _, err := sender.ReadRTCP()
		if err != nil {
			return
		}
		for _, packet := range packets {
			switch packet.(type) {
			case *rtcp.PictureLossIndication, *rtcp.FullIntraRequest:
				p.requests.Add(1)
				p.keyWish.Store(true)
			}
		}
	}
}

// KeyFrameRequests counts those that have come.
func (p *Publisher) KeyFrameRequests() int { return int(p.requests.Load()) }

// WaitConnected waits until media can flow.
func (p *Publisher) WaitConnected() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), p.patience)
	defer cancel()
	if err := p.Session.Connected(ctx); err != nil {
		p.t.Fatal(err)
	}
}

// Close ends the publication by DELETE.
func (p *Publisher) Close() {
	p.once.Do(func() {
		p.stop()
		ctx, cancel := context.WithTimeout(context.Background(), p.patience)
		defer cancel()
		if err := p.Session.Close(ctx); err != nil {
			p.t.Logf("closing the publisher: %v", err)
		}
		p.group.Wait()
	})
}

// PlayerStats is what a Player has got.
type PlayerStats struct {
	Frames, KeyFrames int // whole video frames
	Damaged           int // video frames of which something was missing
	Audio             int // audio packets
	Packets           int // video packets
	First, FirstKey   time.Duration
	Video             string // MIME type
}

// Player plays a stream that a Publisher publishes, and counts.
type Player struct {
	Session *whip.Session

	t        testing.TB
	patience time.Duration
	group    sync.WaitGroup
	once     sync.Once
	begun    time.Time

	mu      sync.Mutex
	stats   PlayerStats
	changed chan struct{}
}

// retry is the pause before a play that was refused is tried again.
const retry = 50 * time.Millisecond

// Play plays a stream that is published, or about to be: many servers serve it only once its first media has come. The
// test's end closes it, where nobody did before.
func (h Harness) Play(t testing.TB, id adapters.StreamID) *Player {
	t.Helper()
	deadline := time.Now().Add(h.patience())
	for {
		p, err := h.TryPlay(t, id)
		if err == nil {
			return p
		}
		refused, ok := errors.AsType[*whip.StatusError](err)
		if !ok || refused.Code != http.StatusNotFound && refused.Code != http.StatusConflict || time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(retry)
	}
}

// TryPlay is Play for streams that may be refused.
func (h Harness) TryPlay(t testing.TB, id adapters.StreamID) (*Player, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), h.patience())
	defer cancel()
	p := &Player{t: t, patience: h.patience(), changed: make(chan struct{}), begun: time.Now()}
	session, err := h.client().Play(ctx, h.Adapter.Egress(id), func(pc *webrtc.PeerConnection) error {
		pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
			p.group.Add(1)
			defer p.group.Done()
			p.receive(track)
		})
		for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
			if _, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{
				Direction: webrtc.RTPTransceiverDirectionRecvonly,
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	p.Session = session
	t.Cleanup(p.Close)
	return p, nil
}

func (p *Player) receive(track *webrtc.TrackRemote) {
	var builder *samplebuilder.SampleBuilder
	codec, known := testframes.Of(track.Codec().MimeType)
	if known {
		builder = samplebuilder.New(reorderMax, codec.Depacketizer(), 90000)
	}
	p.count(func(s *PlayerStats) {
		if track.Kind() == webrtc.RTPCodecTypeVideo {
			s.Video = track.Codec().MimeType
		}
	})
	for {
		packet, _, err := track.ReadRTP()
		if err != nil {
			return
		}
		if track.Kind() == webrtc.RTPCodecTypeAudio {
			p.count(func(s *PlayerStats) { s.Audio++ })
			continue
		}
		p.count(func(s *PlayerStats) { s.Packets++ })
		if known {
			p.assemble(codec, builder, packet)
		}
	}
}

func (p *Player) assemble(codec testframes.Codec, builder *samplebuilder.SampleBuilder, packet *rtp.Packet) {
	builder.Push(packet)
	for sample := builder.Pop(); sample != nil; sample = builder.Pop() {
		_, key, whole := codec.Check(sample.Data)
		p.count(func(s *PlayerStats) {
			switch {
			case !whole:
				s.Damaged++
				return
			case key:
				if s.KeyFrames++; s.KeyFrames == 1 {
					s.FirstKey = time.Since(p.begun)
				}
			}
			if s.Frames++; s.Frames == 1 {
				s.First = time.Since(p.begun)
			}
		})
	}
}

func (p *Player) count(with func(*PlayerStats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	with(&p.stats)
	close(p.changed)
	p.changed = make(chan struct{})
}

// Stats is what has come so far.
func (p *Player) Stats() PlayerStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// WaitFrames waits until n whole video frames have come in all.
func (p *Player) WaitFrames(n int) {
	p.t.Helper()
	p.wait("video frames", func(s PlayerStats) int { return s.Frames }, n)
}

// WaitKeyFrames waits until n whole key frames have come in all.
func (p *Player) WaitKeyFrames(n int) {
	p.t.Helper()
	p.wait("key frames", func(s PlayerStats) int { return s.KeyFrames }, n)
}

// WaitAudio waits until n audio packets have come in all.
func (p *Player) WaitAudio(n int) {
	p.t.Helper()
	p.wait("audio packets", func(s PlayerStats) int { return s.Audio }, n)
}

func (p *Player) wait(what string, have func(PlayerStats) int, want int) {
	p.t.Helper()
	timeout := time.NewTimer(p.patience)
	defer timeout.Stop()
	for {
		p.mu.Lock()
		stats, changed := p.stats, p.changed
		p.mu.Unlock()
		if have(stats) >= want {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			p.t.Fatalf("%d %s within %s; want %d (%+v)", have(stats), what, p.patience, want, stats)
		}
	}
}

// WaitEnded waits until the server or the network has ended the session, and gives how long that took.
func (p *Player) WaitEnded() time.Duration {
	p.t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), p.patience)
	defer cancel()
	if err := p.Session.Wait(ctx); ctx.Err() != nil {
		p.t.Fatalf("the session goes on: %v", err)
	}
	return time.Since(begun)
}

// Close ends the session by DELETE.
func (p *Player) Close() {
	p.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), p.patience)
		defer cancel()
		if err := p.Session.Close(ctx); err != nil {
			p.t.Logf("closing the player: %v", err)
		}
		p.group.Wait()
	})
}
