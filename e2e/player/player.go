// Package player is a viewer that counts: it plays a stream by WHEP, puts frames together as a decoder would want them,
// and says how many came, which are missing and how old they were. A connected state proves nothing; this does.
package player

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"
	"github.com/pion/webrtc/v4/pkg/media/samplebuilder"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

const (
	// late is how many packets a frame that misses one is waited for.
	late = 200
	// keep bounds the latencies that are remembered.
	keep = 100_000
)

// Player plays one stream, once.
type Player struct {
	// OnFrame, set before Run, is told of each whole video frame when it comes. The stamp is that of the test source's frames
	// in H264, else nil. Calls follow each other.
	OnFrame func(came time.Time, stamp *testsource.Stamp)

	client  *whip.Client
	started time.Time

	mu      sync.Mutex
	report  Report
	seen    map[uint64]bool
	last    time.Time // when the last frame came
	latency []time.Duration
	changed chan struct{}
}

// Report is what came so far.
type Report struct {
	Location   string        // of the session
	Video      string        // MIME type
	Frames     int           // whole video frames
	KeyFrames  int           // of those, which can be decoded alone
	Stamped    int           // frames of the test source in H264, each counted once
	Missing    int           // of those between the first and the last, which did not come
	Repeated   int           // of those, which came more than once
	First      uint64        // number of the first of them
	Last       uint64        // and of the last
	Audio      int           // audio packets
	Connected  time.Duration // from the start to the connection
	FirstFrame time.Duration // from the start to the first key frame that is whole
	Median     time.Duration // age of frames on arrival
	P99        time.Duration
	Freeze     time.Duration // longest from one video frame to the next, since the start or Player.Forget
}

// New makes a player.
func New(client *whip.Client) *Player {
	return &Player{client: client, seen: map[uint64]bool{}, changed: make(chan struct{})}
}

// Run plays until ctx ends, deletes the session, and returns ctx's error; or it returns what went wrong.
func (p *Player) Run(ctx context.Context, ep adapters.Endpoint) error {
	p.mu.Lock()
	p.started = time.Now()
	p.mu.Unlock()
	var readers sync.WaitGroup
	session, err := p.client.Play(ctx, ep, func(pc *webrtc.PeerConnection) error {
		for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
			if _, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
				return err
			}
		}
		pc.OnTrack(func(t *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
			readers.Add(1)
			defer readers.Done()
			p.read(pc, t)
		})
		return nil
	})
	if err != nil {
		return err
	}
	defer readers.Wait()
	defer func() {
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = session.Close(bound)
	}()
	p.update(func(r *Report) { r.Location = session.Location().String() })
	if err := session.Connected(ctx); err != nil {
		return err
	}
	p.update(func(r *Report) { r.Connected = time.Since(p.started) })
	return session.Wait(ctx)
}

// Report is what came so far.
func (p *Player) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.report
	if n := len(p.latency); n > 0 {
		sorted := slices.Sorted(slices.Values(p.latency))
		r.Median, r.P99 = sorted[n/2], sorted[n*99/100]
	}
	return r
}

// Forget begins to measure Report.Freeze anew, with the last frame.
func (p *Player) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Freeze = 0
}

// Wait blocks until the report satisfies what the caller waits for, or ctx ends.
func (p *Player) Wait(ctx context.Context, done func(Report) bool) error {
	for {
		p.mu.Lock()
		ok, changed := done(p.report), p.changed
		p.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the player (%+v): %w", p.Report(), ctx.Err())
		case <-changed:
		}
	}
}

func (p *Player) update(change func(r *Report)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.report)
	close(p.changed)
	p.changed = make(chan struct{})
}

// read takes the packets of a track until it ends.
func (p *Player) read(pc *webrtc.PeerConnection, t *webrtc.TrackRemote) {
	if t.Kind() == webrtc.RTPCodecTypeAudio {
		for {
			if _, _, err := t.ReadRTP(); err != nil {
				return
			}
			p.update(func(r *Report) { r.Audio++ })
		}
	}
	mime := t.Codec().MimeType
	p.update(func(r *Report) { r.Video = mime })
	depacketizer, err := depacketizerOf(mime)
	if err != nil {
		return // Report.Video tells
	}
	builder := samplebuilder.New(late, depacketizer, t.Codec().ClockRate)
	// As every player does, it asks for a picture that it can begin with.
	_ = pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(t.SSRC())}})
	for {
		packet, _, err := t.ReadRTP()
		if err != nil {
			return
		}
		builder.Push(packet)
		for sample := builder.Pop(); sample != nil; sample = builder.Pop() {
			p.frame(mime, sample.Data)
		}
	}
}

func depacketizerOf(mime string) (rtp.Depacketizer, error) {
	switch {
	case strings.EqualFold(mime, webrtc.MimeTypeH264):
		return &codecs.H264Packet{}, nil
	case strings.EqualFold(mime, webrtc.MimeTypeVP8):
		return &codecs.VP8Packet{}, nil
	case strings.EqualFold(mime, webrtc.MimeTypeVP9):
		return &codecs.VP9Packet{}, nil
	default:
		return nil, errors.New("frames of " + mime + " are not put together")
	}
}

func (p *Player) frame(mime string, data []byte) {
	now := time.Now()
	key := keyFrame(mime, data)
	stamp, stamped := testsource.Stamp{}, false
	if strings.EqualFold(mime, webrtc.MimeTypeH264) {
		stamp, stamped = testsource.ParseStamp(data)
	}
	if p.OnFrame != nil && stamped {
		p.OnFrame(now, &stamp)
	} else if p.OnFrame != nil {
		p.OnFrame(now, nil)
	}
	p.update(func(r *Report) {
		r.Frames++
		if !p.last.IsZero() {
			r.Freeze = max(r.Freeze, now.Sub(p.last))
		}
		p.last = now
		if key {
			r.KeyFrames++
			if r.FirstFrame == 0 {
				r.FirstFrame = now.Sub(p.started)
			}
		}
		if !stamped {
			return
		}
		if p.seen[stamp.Frame] {
			r.Repeated++
			return
		}
		p.seen[stamp.Frame] = true
		if r.Stamped == 0 || stamp.Frame < r.First {
			r.First = stamp.Frame
		}
		r.Stamped++
		r.Last = max(r.Last, stamp.Frame)
		r.Missing = int(r.Last-r.First) + 1 - r.Stamped //nolint:gosec // frames of one test
		if len(p.latency) < keep {
			p.latency = append(p.latency, now.Sub(stamp.Sent))
		}
	})
}

// keyFrame looks at a whole frame.
func keyFrame(mime string, data []byte) bool {
	switch {
	case strings.EqualFold(mime, webrtc.MimeTypeH264):
		for i := 0; i+3 < len(data); i++ {
			if data[i] == 0 && data[i+1] == 0 && data[i+2] == 1 && data[i+3]&0x1f == 5 {
				return true
			}
		}
		return false
	case strings.EqualFold(mime, webrtc.MimeTypeVP8):
		return len(data) > 0 && data[0]&1 == 0
	default:
		return true
	}
}
