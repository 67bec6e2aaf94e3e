package pionsfu

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	videoHistory = 1024 // packets kept of a track: some seconds at 2 Mbit/s
	audioHistory = 256
	// A viewer that comes just after the publisher waits this long for the publisher's connection, and from there on for
	// its first packets, which tell the codec.
	connectPatience = 2 * time.Second
	packetPatience  = 500 * time.Millisecond
	silence         = 2 * time.Second // after which another source may take over a track
)

// publication is what publishers send: at most one audio and one video feed. It outlives the session of a publisher that is lost,
// for a while, so that the next session can go on with it.
type publication struct {
	touch func() // tells the watchers
	feeds []*feed
	live  chan struct{} // closed when the first publisher is connected and known to be, at since
	ended chan struct{} // closed when it is over
	since time.Time

	mu       sync.Mutex
	watching atomic.Pointer[[]*viewer] // replaced under mu, never changed

	// What follows is the registry's.
	readers   int
	publisher *session // who publishes, or did last
	successor *session // who is about to go on with it; nil: nobody
	over      bool     // it ends where nobody does
}

// feed is one track of a publication: one layer, or several of simulcast (RFC 8853).
type feed struct {
	publication *publication
	kind        webrtc.RTPCodecType
	negotiated  map[uint8]string // header extensions, URI by id, as the first publisher has them
	started     latch            // the first packet of a layer is there
	codec       atomic.Pointer[webrtc.RTPCodecParameters]
	layers      []*layer // as the publisher prefers them
}

// layer is one encoding of a track, kept for those who read it. Its numbers go on whatever source feeds it.
type layer struct {
	feed    *feed
	rid     string // empty without simulcast
	history *media.History
	source  atomic.Pointer[source] // nil before the first packet
	report  atomic.Pointer[media.SenderReport]

	mu   sync.Mutex // held while a packet is taken: two sources may be there for a moment
	rate meter
	edge edge // without pictures
}

// source feeds a layer from one SSRC.
type source struct {
	layer       *layer
	session     *session
	track       *media.Track
	payloadType uint8
	last        atomic.Int64 // when the newest packet came, in Unix nanoseconds

	// What follows is guarded by the layer's mu.
	joined bool // the first packet has gone on
	first  uint16
	young  int                         // packets since then, up to reorder
	shift  atomic.Pointer[media.Shift] // of its numbers; nil before it has joined
}

var _ media.Sink = (*source)(nil)

// newPublication makes the session's publication; its feeds come with the answer.
func newPublication(s *session, touch func()) *publication {
	p := &publication{publisher: s, touch: touch, live: make(chan struct{}), ended: make(chan struct{})}
	p.watching.Store(&[]*viewer{})
	return p
}

// negotiated takes what the connection has agreed on: a feed for each section, with the codec that the publisher likes
// best, until its packets tell the true one.
func (p *publication) negotiated(pc *webrtc.PeerConnection, wanted []string) error {
	for _, t := range pc.GetTransceivers() {
		receiver := t.Receiver()
		if receiver == nil {
			continue
		}
		size := audioHistory
		if t.Kind() == webrtc.RTPCodecTypeVideo {
			size = videoHistory
		}
		f := &feed{
			publication: p, kind: t.Kind(), negotiated: make(map[uint8]string), started: latch{c: make(chan struct{})},
		}
		rids := []string{""}
		if t.Kind() == webrtc.RTPCodecTypeVideo && len(wanted) > 0 {
			rids = wanted
		}
		for _, rid := range rids {
			f.layers = append(f.layers, &layer{feed: f, rid: rid, history: media.NewHistory(size)})
		}
		parameters := receiver.GetParameters()
		for _, e := range parameters.HeaderExtensions {
			f.negotiated[uint8(e.ID)] = e.URI
		}
		for _, codec := range parameters.Codecs {
			if !strings.EqualFold(codec.MimeType, webrtc.MimeTypeRTX) {
				f.codec.Store(&codec)
				break
			}
		}
		if f.codec.Load() == nil {
			return unacceptable("None of the codecs of its %s section is known here.", t.Kind())
		}
		p.feeds = append(p.feeds, f)
	}
	return nil
}

// layered says whether there is a choice of layers.
func (p *publication) layered() bool {
	return slices.ContainsFunc(p.feeds, func(f *feed) bool { return len(f.layers) > 1 })
}

// continues says whether the viewers of a former publication can go on with this one: it has the same tracks and layers.
func (p *publication) continues(former *publication) bool {
	return slices.EqualFunc(p.feeds, former.feeds, func(a, b *feed) bool {
		return a.kind == b.kind && slices.EqualFunc(a.layers, b.layers, func(a, b *layer) bool { return a.rid == b.rid })
	})
}

// onTrack says who takes the packets of a new SSRC; it is called in the goroutine that reads the connection. A second
// source of one layer is ignored while the first is alive, unless it is of another session, which has been let in.
func (p *publication) onTrack(from *session, t *media.Track) media.Sink {
	i := slices.IndexFunc(p.feeds, func(f *feed) bool { return f.kind == t.Kind() })
	if i < 0 {
		return nil
	}
	f := p.feeds[i]
	i = slices.IndexFunc(f.layers, func(l *layer) bool { return l.rid == t.RID() || len(f.layers) == 1 })
	if i < 0 {
		return nil
	}
	l := f.layers[i]
	former := l.source.Load()
	if former != nil && former.session == from && l.alive(time.Now()) {
		return nil
	}
	s := &source{layer: l, session: from, track: t}
	s.last.Store(time.Now().UnixNano())
	if former == nil {
		s.joined = true
		s.shift.Store(&media.Shift{})
	}
	s.follow(uint8(t.Codec().PayloadType))
	l.source.Store(s)
	f.started.fire()
	p.touch()
	return s
}

// follow notes the codec that a payload type stands for.
func (s *source) follow(payloadType uint8) {
	codec := s.track.Codec()
	s.payloadType = payloadType
	if old := s.layer.feed.codec.Swap(&codec); !sameCodec(old, &codec) {
		s.layer.feed.publication.touch()
	}
}

// Packet implements media.Sink.
func (s *source) Packet(p *media.Packet) {
	l := s.layer
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.source.Load() != s {
		return
	}
	if p.Header.PayloadType != s.payloadType {
		s.follow(p.Header.PayloadType)
	}
	s.last.Store(p.Arrival.UnixNano())
	if !s.joined && !s.joinLocked(p) {
		return
	}
	if shift := *s.shift.Load(); shift != (media.Shift{}) {
		if s.young++; s.young < reorder && int16(p.Header.SequenceNumber-s.first) < 0 {
			return // from before the beginning, late
		}
		p.Shift(s.track.Codec().MimeType, s.descriptor(), shift)
	}
	if h := &p.Header; !l.edge.ok || int16(h.SequenceNumber-l.edge.sequence) > 0 {
		l.edge = edge{sequence: h.SequenceNumber, timestamp: h.Timestamp, arrival: p.Arrival, ok: true}
	}
	l.rate.add(p.Arrival, len(p.Payload))
	l.history.Add(p)
	p.Later(l.feed.publication)
}

// joinLocked lets a source go on where another has ended, video at a key frame, and says whether it does with the packet at hand.
func (s *source) joinLocked(p *media.Packet) bool {
	l := s.layer
	if l.feed.kind == webrtc.RTPCodecTypeVideo && !p.KeyFrame {
		s.track.RequestKeyFrame()
		return false
	}
	s.first, s.joined = p.Header.SequenceNumber, true
	if !l.edge.ok {
		s.shift.Store(&media.Shift{})
		return true
	}
	codec := s.track.Codec()
	var last media.Packet
	if l.history.Sequence(l.edge.sequence, &last) {
		l.edge.pictures = last.Pictures(codec.MimeType, s.descriptor())
	}
	// By the time of arrival: what the clocks of two sources have to do with each other, nobody knows.
	shift := l.edge.follow(p, p.Pictures(codec.MimeType, s.descriptor()), nil, nil, media.Shift{}, codec.ClockRate)
	s.shift.Store(&shift)
	return true
}

// descriptor is the id of the dependency descriptor among the header extensions, 0 for none.
func (s *source) descriptor() uint8 {
	for id, uri := range s.track.Extensions() {
		if uri == media.DependencyDescriptor {
			return id
		}
	}
	return 0
}

// SenderReport implements media.Sink.
func (s *source) SenderReport(r media.SenderReport) {
	shift := s.shift.Load()
	if s.layer.source.Load() != s || shift == nil {
		return
	}
	r.RTP += shift.Timestamp
	s.layer.report.Store(&r)
	s.layer.feed.publication.Wake()
}

// extensions are the header extensions of the packets that come, URI by id.
func (l *layer) extensions() map[uint8]string {
	if s := l.source.Load(); s != nil {
		return s.track.Extensions()
	}
	return l.feed.negotiated
}

// alive says whether packets of the layer have come lately.
func (l *layer) alive(now time.Time) bool {
	s := l.source.Load()
	return s != nil && now.Sub(time.Unix(0, s.last.Load())) < silence
}

// RequestKeyFrame asks the publisher, who hears of many requests only once a second.
func (l *layer) RequestKeyFrame() {
	if s := l.source.Load(); s != nil {
		s.track.RequestKeyFrame()
	}
}

// Wake tells every viewer that there is something to read. It never waits for one.
func (p *publication) Wake() {
	for _, v := range *p.watching.Load() {
		v.wake()
	}
}

func (p *publication) join(v *viewer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := append(slices.Clone(*p.watching.Load()), v)
	p.watching.Store(&next)
}

func (p *publication) leave(v *viewer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := slices.DeleteFunc(slices.Clone(*p.watching.Load()), func(other *viewer) bool { return other == v })
	p.watching.Store(&next)
}

// tracks describes the publication to watchers: the tracks that packets have come of, for before that nobody knows which
// of the codecs offered it will be.
func (p *publication) tracks() []adapters.Track {
	tracks := make([]adapters.Track, 0, len(p.feeds))
	for _, f := range p.feeds {
		for _, l := range f.layers {
			if l.source.Load() != nil {
				tracks = append(tracks, adapters.Track{Kind: f.kind.String(), MIME: f.codec.Load().MimeType, RID: l.rid})
			}
		}
	}
	return tracks
}

// settle waits until it is known what the publisher sends: its connection is up, and a packet of each feed has come or
// does not come. It says errUnpublished where there is no publication after all.
func (p *publication) settle(ctx context.Context, stopped <-chan struct{}) error {
	patience := time.NewTimer(connectPatience)
	defer patience.Stop()
	select {
	case <-p.live:
	case <-p.ended:
		return errUnpublished
	case <-patience.C:
		return errUnpublished
	case <-stopped:
		return errNotRunning
	case <-ctx.Done():
		return ctx.Err()
	}
	// Later viewers find the timer run out at once.
	packets := time.NewTimer(packetPatience - time.Since(p.since))
	defer packets.Stop()
	for _, f := range p.feeds {
		select {
		case <-f.started.c:
			continue
		default:
		}
		select {
		case <-f.started.c:
		case <-packets.C:
			return nil // silent so far: what was negotiated has to do
		case <-p.ended:
			return errUnpublished
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// sameCodec says whether who decodes the one can decode the other.
func sameCodec(a, b *webrtc.RTPCodecParameters) bool {
	return strings.EqualFold(a.MimeType, b.MimeType) && a.ClockRate == b.ClockRate && a.Channels == b.Channels
}
