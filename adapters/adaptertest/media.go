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
	audioSize  = 5                     // bytes of an Opus packet
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
	Missing           int    // video frames between the first key frame and the last frame that did not come
	Repeated          int    // video frames that came more than once
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
	seen    map[uint32]bool // frames since the first key frame
	from    uint32          // its number
	last    uint32
	clocks  map[webrtc.RTPCodecType]clock
	changed chan struct{}
}

// clock is how a track's timestamps stand to the server's clock, and to the moments at which things were published.
type clock struct {
	reported  bool
	wall      time.Time // that the latest sender report gives
	stamp     uint32    // for this timestamp
	begun     bool
	published time.Duration // of what came last, since the publication's begin
	arrived   uint32        // its timestamp
}

// offset is how much later than its publication, by the server's clock, what came last is to be shown.
func (c clock) offset(rate int64) time.Duration {
	ahead := int64(int32(c.arrived - c.stamp)) //nolint:gosec // timestamps wrap
	return time.Duration(ahead*int64(time.Second)/rate) - c.published
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
	p := &Player{
		t: t, patience: h.patience(), changed: make(chan struct{}), begun: time.Now(),
		seen: map[uint32]bool{}, clocks: map[webrtc.RTPCodecType]clock{},
	}
	session, err := h.client().Play(ctx, h.Adapter.Egress(id), func(pc *webrtc.PeerConnection) error {
		pc.OnTrack(func(track *webrtc.TrackRemote, receiver *webrtc.RTPReceiver) {
			p.group.Add(2)
			defer p.group.Done()
			go func() {
				defer p.group.Done()
				p.listen(track, receiver)
			}()
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
			if len(packet.Payload) == audioSize { // else it fills a hole
				number := binary.BigEndian.Uint32(packet.Payload[1:])
				p.came(track.Kind(), time.Duration(number)*tick, packet.Timestamp)
			}
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
		number, key, whole := codec.Check(sample.Data)
		if whole {
			p.came(webrtc.RTPCodecTypeVideo, time.Duration(number)*2*tick, sample.PacketTimestamp)
		}
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
			p.number(s, number)
		})
	}
}

// number counts a frame by its number, from the first key frame on.
func (p *Player) number(s *PlayerStats, number uint32) {
	switch {
	case s.KeyFrames == 0:
		return
	case len(p.seen) == 0:
		p.from, p.last = number, number
	case p.seen[number]:
		s.Repeated++
		return
	case number < p.from:
		return
	}
	p.seen[number] = true
	p.last = max(p.last, number)
	s.Missing = int(p.last-p.from) + 1 - len(p.seen)
}

// came notes when something was published, and its timestamp now.
func (p *Player) came(kind webrtc.RTPCodecType, published time.Duration, stamp uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clocks[kind]
	c.begun, c.published, c.arrived = true, published, stamp
	p.clocks[kind] = c
}

// listen takes the sender reports of a track until it ends.
func (p *Player) listen(track *webrtc.TrackRemote, receiver *webrtc.RTPReceiver) {
	for {
		packets, _, err := receiver.ReadRTCP()
		if err != nil {
			return
		}
		for _, packet := range packets {
			report, ok := packet.(*rtcp.SenderReport)
			if !ok || report.SSRC != uint32(track.SSRC()) {
				continue
			}
			const epoch = 2208988800                                                                       // of NTP, in Unix time
			wall := time.Unix(int64(report.NTPTime>>32)-epoch, int64((report.NTPTime&0xffffffff)*1e9>>32)) //nolint:gosec // a moment
			p.mu.Lock()
			c := p.clocks[track.Kind()]
			c.reported, c.wall, c.stamp = true, wall, report.RTPTime
			p.clocks[track.Kind()] = c
			p.mu.Unlock()
		}
	}
}

// Skew is by how much the picture is later than the sound that was published with it, where a viewer's player goes by the
// server's sender reports; false where these have not come.
func (p *Player) Skew() (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	video, audio := p.clocks[webrtc.RTPCodecTypeVideo], p.clocks[webrtc.RTPCodecTypeAudio]
	if !video.reported || !video.begun || !audio.reported || !audio.begun {
		return 0, false
	}
	return video.wall.Sub(audio.wall) + video.offset(90000) - audio.offset(48000), true
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
