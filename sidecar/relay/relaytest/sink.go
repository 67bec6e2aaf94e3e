package relaytest

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/transport/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// Sink takes publications and counts what comes.
type Sink struct {
	*server

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced at each packet that somebody waits for
	receptions map[string]*reception
	latencies  []time.Duration // nil: not measured
	measured   bool
	asking     bool
	packets    uint64
	bytes      uint64
}

// Reception is what a Sink has received of one stream, over all its sessions.
type Reception struct {
	Codecs       []string // MIME types, in order of appearance
	Video, Audio int      // packets
	Frames       int      // of video, complete
	KeyFrames    int      // complete
	// First is the frame that the first complete one is, as the source counts, and FirstKey whether it is a key frame.
	First    uint32
	FirstKey bool
	// FirstFrame is when that was complete, FirstKeyFrame when the first key frame was.
	FirstFrame, FirstKeyFrame time.Time
	// Late are frames of which packets are missing while more than a second of later ones has come.
	Late int
	// Skew is how far audio is behind video by the sender reports received; Reports counts these.
	Skew    time.Duration
	Reports int
}

type reception struct {
	Reception
	frames [256]frame
	clocks map[webrtc.RTPCodecType]clock
	pcs    map[*webrtc.PeerConnection][]webrtc.SSRC // of video
}

type frame struct {
	number     uint32
	got, count uint16
	used       bool
	seen       [4]uint64
}

// clock ties a track's timestamps to the wall clock twice: by what sender reports say, and by what the source stamped.
type clock struct {
	report   *rtcp.SenderReport
	stamp    time.Time
	stampRTP uint32
	rate     uint32
}

// NewSink makes a sink that listens; Run serves. n is nil for the machine's loopback.
func NewSink(n transport.Net) (*Sink, error) {
	srv, err := newServer(n, func(m *webrtc.MediaEngine, r *interceptor.Registry) error {
		return errors.Join(webrtc.ConfigureNack(m, r), webrtc.ConfigureRTCPReports(r), webrtc.ConfigureTWCCSender(m, r))
	})
	if err != nil {
		return nil, err
	}
	s := &Sink{server: srv, changed: make(chan struct{}), receptions: make(map[string]*reception)}
	srv.accept = s.accept
	return s, nil
}

// Hook is called for each offer before it is answered; an error refuses it. Set it before Run.
func (s *Sink) Hook(hook func(r *http.Request) error) { s.hook = hook }

// Received is what has come of a stream so far.
func (s *Sink) Received(name string) Reception {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.receivedLocked(name)
}

func (s *Sink) receivedLocked(name string) Reception {
	r := s.receptions[name]
	if r == nil {
		return Reception{}
	}
	result := r.Reception
	result.Codecs = slices.Clone(r.Codecs)
	audio, video := r.clocks[webrtc.RTPCodecTypeAudio], r.clocks[webrtc.RTPCodecTypeVideo]
	if audio.report != nil && video.report != nil {
		result.Skew = audio.error() - video.error()
	}
	return result
}

// error is by how much the sender report places a packet later than the source did.
func (c clock) error() time.Duration {
	ticks := time.Duration(int32(c.stampRTP - c.report.RTPTime))
	return fromNTP(c.report.NTPTime).Add(ticks * time.Second / time.Duration(c.rate)).Sub(c.stamp)
}

// AwaitReception waits until what has come of a stream fulfils a condition, and returns it.
func (s *Sink) AwaitReception(ctx context.Context, name string, condition func(Reception) bool) (Reception, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		r := s.receivedLocked(name)
		if condition(r) {
			return r, nil
		}
		s.asking = true
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
			s.mu.Lock()
		case <-ctx.Done():
			s.mu.Lock()
			return r, ctx.Err()
		}
	}
}

// Totals counts the RTP packets of all streams, and their bytes with RTP headers.
func (s *Sink) Totals() (packets, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.packets, s.bytes
}

// Play takes a stream from a WHEP server, counting it under the name, until ctx ends or the connection does.
func (s *Sink) Play(ctx context.Context, name string, from adapters.Endpoint) error {
	var p *peer
	client := &whip.Client{NewPeerConnection: s.api.NewPeerConnection}
	session, err := client.Play(ctx, from, func(pc *webrtc.PeerConnection) error {
		p = bare(pc)
		for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeVideo, webrtc.RTPCodecTypeAudio} {
			_, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
			if err != nil {
				return err
			}
		}
		return s.accept(name, p)
	})
	if err != nil {
		if p != nil { // accept has begun to wait for the end
			p.end()
			p.run()
		}
		return err
	}
	return p.use(ctx, session, func() {})
}

// Measure begins to collect how long each packet was on its way, from the source's send call to here.
func (s *Sink) Measure() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latencies, s.measured = s.latencies[:0], true
}

// Measured ends that and returns what was collected, one value for each packet. It is valid until the next Measure.
func (s *Sink) Measured() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.measured = false
	return s.latencies
}

// RequestKeyFrames sends a number of picture loss indications to the publisher of a stream, back to back.
func (s *Sink) RequestKeyFrames(name string, n int) {
	s.mu.Lock()
	var requests []func()
	if r := s.receptions[name]; r != nil {
		for pc, ssrcs := range r.pcs {
			for _, ssrc := range ssrcs {
				requests = append(requests, func() {
					_ = pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(ssrc)}})
				})
			}
		}
	}
	s.mu.Unlock()
	for range n {
		for _, request := range requests {
			request()
		}
	}
}

func (s *Sink) accept(name string, p *peer) error {
	pc := p.pc
	s.mu.Lock()
	r := s.receptions[name]
	if r == nil {
		r = &reception{
			clocks: make(map[webrtc.RTPCodecType]clock), pcs: make(map[*webrtc.PeerConnection][]webrtc.SSRC),
		}
		s.receptions[name] = r
	}
	s.mu.Unlock()
	pc.OnTrack(func(t *webrtc.TrackRemote, receiver *webrtc.RTPReceiver) {
		s.mu.Lock()
		r.Codecs = append(r.Codecs, t.Codec().MimeType)
		r.clocks[t.Kind()] = clock{rate: t.Codec().ClockRate}
		if t.Kind() == webrtc.RTPCodecTypeVideo {
			r.pcs[pc] = append(r.pcs[pc], t.SSRC())
		}
		s.mu.Unlock()
		p.do(func() { s.readReports(r, t.Kind(), receiver) })
		p.do(func() { s.read(r, t) })
	})
	p.do(func() {
		<-p.ended
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(r.pcs, pc)
	})
	return nil
}

func (s *Sink) readReports(r *reception, kind webrtc.RTPCodecType, receiver *webrtc.RTPReceiver) {
	for {
		packets, _, err := receiver.ReadRTCP()
		if err != nil {
			return
		}
		for _, p := range packets {
			if report, ok := p.(*rtcp.SenderReport); ok {
				s.mu.Lock()
				c := r.clocks[kind]
				c.report = report
				r.clocks[kind] = c
				r.Reports++
				s.changedLocked()
				s.mu.Unlock()
			}
		}
	}
}

func (s *Sink) read(r *reception, t *webrtc.TrackRemote) {
	buffer := make([]byte, 1500)
	var header rtp.Header
	for {
		n, _, err := t.Read(buffer)
		if err != nil {
			return
		}
		now := time.Now()
		at, err := header.Unmarshal(buffer[:n])
		if err != nil {
			continue
		}
		end := n
		if header.Padding {
			end -= int(buffer[n-1]) // RFC 3550, section 5.1
		}
		if end < at {
			continue
		}
		stamp, ok := readStamp(buffer[at:end])
		if !ok {
			continue
		}
		s.mu.Lock()
		s.packets++
		s.bytes += uint64(n)
		sent := time.Unix(0, stamp.sent)
		if s.measured {
			s.latencies = append(s.latencies, now.Sub(sent))
		}
		c := r.clocks[t.Kind()]
		// The packet that the source sent with the least delay after its due time tells best.
		ahead := time.Duration(int32(header.Timestamp-c.stampRTP)) * time.Second / time.Duration(c.rate)
		if c.stamp.IsZero() || sent.Sub(c.stamp) < ahead {
			c.stamp, c.stampRTP = sent, header.Timestamp
			r.clocks[t.Kind()] = c
		}
		if t.Kind() == webrtc.RTPCodecTypeAudio {
			r.Audio++
		} else {
			r.Video++
			r.take(stamp, now)
		}
		s.changedLocked()
		s.mu.Unlock()
	}
}

func (s *Sink) changedLocked() {
	if s.asking {
		s.asking = false
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// take counts a packet towards its frame.
func (r *reception) take(p stamp, now time.Time) {
	f := &r.frames[p.frame%uint32(len(r.frames))]
	if !f.used || f.number != p.frame {
		if f.used && f.got < f.count {
			r.Late++
		}
		*f = frame{number: p.frame, count: p.count, used: true}
	}
	if word, bit := p.index/64%4, uint64(1)<<(p.index%64); f.seen[word]&bit == 0 {
		f.seen[word] |= bit
		f.got++
	} else {
		return
	}
	if f.got != f.count {
		return
	}
	if r.Frames == 0 {
		r.First, r.FirstKey, r.FirstFrame = p.frame, p.key, now
	}
	r.Frames++
	if p.key {
		if r.KeyFrames == 0 {
			r.FirstKeyFrame = now
		}
		r.KeyFrames++
	}
}
