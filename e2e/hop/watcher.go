package main

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// patience is how many packets a viewer has behind a missing one before it goes on without that.
const patience = 500

// recent is how old a sound may be that is looked for.
const recent = 3 * time.Second

// watcher is a viewer that writes down what comes.
type watcher struct {
	mu      sync.Mutex
	frames  []picture
	sounds  []sound
	reports map[webrtc.RTPCodecType]*rtcp.SenderReport
}

// picture is a frame of which, and of all before it, every packet is there.
type picture struct {
	number uint64
	sent   time.Time
	at     time.Time
	told   time.Time // the source's time of it, by the last sender report; zero: there was none
}

// sound is a packet of audio.
type sound struct {
	sequence  uint16
	timestamp uint32
	content   uint64
	empty     bool
	at        time.Time
	told      time.Time
}

var seed = maphash.MakeSeed()

func newWatcher() *watcher {
	return &watcher{reports: make(map[webrtc.RTPCodecType]*rtcp.SenderReport)}
}

func (w *watcher) begun() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.frames) > 0 && len(w.sounds) > 0
}

func (w *watcher) play(ctx context.Context, client *whip.Client, from adapters.Endpoint) error {
	var readers sync.WaitGroup
	defer readers.Wait()
	session, err := client.Play(ctx, from, func(pc *webrtc.PeerConnection) error {
		for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
			_, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
			if err != nil {
				return err
			}
		}
		pc.OnTrack(func(t *webrtc.TrackRemote, r *webrtc.RTPReceiver) {
			readers.Add(2)
			go func() {
				defer readers.Done()
				w.listen(t.Kind(), r)
			}()
			defer readers.Done()
			if t.Kind() == webrtc.RTPCodecTypeVideo {
				_ = pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(t.SSRC())}})
				w.watch(t)
			} else {
				w.hear(t)
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

func (w *watcher) listen(kind webrtc.RTPCodecType, r *webrtc.RTPReceiver) {
	for {
		packets, _, err := r.ReadRTCP()
		if err != nil {
			return
		}
		for _, p := range packets {
			if report, ok := p.(*rtcp.SenderReport); ok {
				w.mu.Lock()
				w.reports[kind] = report
				w.mu.Unlock()
			}
		}
	}
}

// toldLocked is the source's time of a timestamp.
func (w *watcher) toldLocked(kind webrtc.RTPCodecType, timestamp uint32, rate int64) time.Time {
	const since1900 = 2208988800
	r := w.reports[kind]
	if r == nil {
		return time.Time{}
	}
	reported := time.Unix(int64(r.NTPTime>>32)-since1900, int64(r.NTPTime&0xffffffff)*1e9>>32)
	return reported.Add(time.Duration(int64(int32(timestamp-r.RTPTime))) * time.Second / time.Duration(rate))
}

func (w *watcher) watch(t *webrtc.TrackRemote) {
	waiting := make(map[uint16]*rtp.Packet)
	var next uint16
	var frame []byte
	begun, broken := false, true // in the middle of a frame
	unpack := &codecs.H264Packet{}
	for {
		p, _, err := t.ReadRTP()
		if err != nil {
			return
		}
		now := time.Now()
		if !begun {
			begun, next = true, p.SequenceNumber
		}
		if int16(p.SequenceNumber-next) < 0 {
			continue
		}
		waiting[p.SequenceNumber] = p
		if len(waiting) > patience {
			for broken = true; waiting[next] == nil; next++ {
			}
		}
		for ; waiting[next] != nil; next++ {
			packet := waiting[next]
			delete(waiting, next)
			part, err := unpack.Unmarshal(packet.Payload)
			if err != nil && len(packet.Payload) > 0 {
				broken = true
			}
			frame = append(frame, part...)
			if !packet.Marker {
				continue
			}
			if stamp, ok := testsource.ParseStamp(frame); ok && !broken {
				w.mu.Lock()
				told := w.toldLocked(webrtc.RTPCodecTypeVideo, packet.Timestamp, 90000)
				w.frames = append(w.frames, picture{number: stamp.Frame, sent: stamp.Sent, at: now, told: told})
				w.mu.Unlock()
			}
			frame, broken = nil, false
		}
	}
}

func (w *watcher) hear(t *webrtc.TrackRemote) {
	for {
		p, _, err := t.ReadRTP()
		if err != nil {
			return
		}
		now := time.Now()
		w.mu.Lock()
		w.sounds = append(w.sounds, sound{
			sequence: p.SequenceNumber, timestamp: p.Timestamp, content: maphash.Bytes(seed, p.Payload), empty: len(p.Payload) <= 2, at: now,
			told: w.toldLocked(webrtc.RTPCodecTypeAudio, p.Timestamp, 48000),
		})
		w.mu.Unlock()
	}
}

// compare says what became, at a viewer far away, of what one beside the source saw, within a time.
func compare(near, far *watcher, from, to time.Time) *result {
	near.mu.Lock()
	far.mu.Lock()
	defer near.mu.Unlock()
	defer far.mu.Unlock()
	r := &result{}

	// The source sends by a clock, give or take what its machine does.
	const frameTime, soundTime = time.Second / testsource.FrameRate, time.Second / testsource.AudioRate
	var zero time.Time // of frame 0
	for i, f := range near.frames {
		if at := f.sent.Add(-time.Duration(f.number) * frameTime); i == 0 || at.Before(zero) {
			zero = at
		}
	}
	var best time.Duration
	numbers := make(map[uint64]bool)
	var first, last uint64
	type moment struct {
		at    time.Time
		wrong time.Duration // by which the source's time is told too late
	}
	var pictures []moment
	var late []time.Duration
	for _, f := range far.frames {
		due := zero.Add(time.Duration(f.number) * frameTime)
		if due.Before(from) || due.After(to) {
			continue
		}
		late = append(late, f.at.Sub(due))
		numbers[f.number] = true
		if len(late) == 1 || f.number < first {
			first = f.number
		}
		last = max(last, f.number)
		if !f.told.IsZero() {
			pictures = append(pictures, moment{f.at, f.told.Sub(due)})
		}
	}
	if len(numbers) > 0 {
		r.lost = int(last-first) + 1 - len(numbers) //nolint:gosec // frames of one measurement
	}
	best = at(late, 0)
	for _, d := range late {
		r.frames = append(r.frames, d-best)
	}

	// Sounds are known by their content, where that is not the same as another's of that time.
	var begin time.Time // of the first sound
	extended, known := 0, make(map[uint64][]int)
	for i, s := range near.sounds {
		if i > 0 {
			extended += int(int16(s.sequence - near.sounds[i-1].sequence))
		}
		known[s.content] = append(known[s.content], extended)
		if at := s.at.Add(-time.Duration(extended) * soundTime); i == 0 || at.Before(begin) {
			begin = at
		}
	}
	var sounds []moment
	var zeros []time.Duration // of timestamps, since begin, by each sound that is known
	var origin uint32
	for i, s := range far.sounds {
		if i == 0 {
			origin = s.timestamp
		}
		var due time.Time
		found := 0
		for _, n := range known[s.content] {
			if at := begin.Add(time.Duration(n) * soundTime); at.Before(s.at) && s.at.Sub(at) < recent {
				due = at
				found++
			}
		}
		if s.empty || found != 1 || due.Before(from) || due.After(to) {
			continue
		}
		zeros = append(zeros, due.Sub(begin)-soundAt(s.timestamp-origin))
		if !s.told.IsZero() {
			sounds = append(sounds, moment{s.at, s.told.Sub(due)})
		}
	}
	late = late[:0]
	for _, s := range far.sounds { // the others are where their timestamps say
		if due := begin.Add(at(zeros, 50) + soundAt(s.timestamp-origin)); !due.Before(from) && !due.After(to) {
			late = append(late, s.at.Sub(due))
		}
	}
	best = at(late, 0)
	for _, d := range late {
		r.sounds = append(r.sounds, d-best)
	}
	i := 0
	for _, s := range sounds {
		for i < len(pictures) && !pictures[i].at.After(s.at) {
			i++
		}
		if i > 0 {
			skew := s.wrong - pictures[i-1].wrong
			r.skews = append(r.skews, max(skew, -skew))
		}
	}
	return r
}

// soundAt is a number of ticks as time.
func soundAt(ticks uint32) time.Duration { return time.Duration(int32(ticks)) * time.Second / 48000 }
