package probe

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"github.com/pion/webrtc/v4/pkg/media/samplebuilder"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// late is how many packets a frame waits for one that is missing.
const late = 300

// playing says how a viewer plays.
type playing struct {
	name     adapters.StreamID
	content  content
	endpoint adapters.Endpoint // the zero value is the stream's own
	plain    bool              // it repairs nothing by itself, so that every repetition is one that the probe asked for
	silent   bool              // it does not ask for a key frame by itself
	socket   ice.UDPMux        // nil: ports of its own
}

// viewer is a play under way. It counts.
type viewer struct {
	how     playing
	session *whip.Session
	log     *recorder
	began   time.Time
	opened  time.Duration // until the answer
	group   sync.WaitGroup
	once    sync.Once
	deleted error

	mu         sync.Mutex
	changed    chan struct{}
	codec      string // MIME type of the video
	audioCodec string
	frames     map[uint32]seen // whole ones, by number
	repeated   int             // whole frames that came again
	damaged    int             // frames of which something was missing, or changed
	foreign    int             // frames that bear no number of ours, where none was expected
	firstFrame time.Duration
	firstKey   time.Duration
	keys       int
	ages       []time.Duration
	sounds     map[uint32]seen
	soundCount int
	packets    int
	ssrc       uint32
	newest     uint16         // sequence number of video
	twice      map[uint16]int // how often a sequence number of video has come
	repaired   int            // packets of video that came by RTX
	rtx        bool           // RTX is negotiated
	marks      map[string]mark
	reports    map[bool]senderReport  // of video, and not
	stall      map[bool]time.Duration // longest pause between two packets of video, and of sound, since reset
	last       map[bool]time.Time
}

// seen is a frame or packet as it came.
type seen struct {
	at        time.Time
	timestamp uint32
}

// senderReport is one as it came.
type senderReport struct {
	ntp   uint64
	rtp   uint32
	count int
}

// play opens a play and receives until it is closed.
func (p *Probe) play(ctx context.Context, how playing) (*viewer, error) {
	if how.endpoint.URL == nil {
		how.endpoint = p.endpoint(false, how.name, true)
	}
	v := &viewer{
		how: how, log: p.record(), changed: make(chan struct{}), began: time.Now(),
		frames: map[uint32]seen{}, sounds: map[uint32]seen{}, twice: map[uint16]int{}, marks: map[string]mark{},
		reports: map[bool]senderReport{}, stall: map[bool]time.Duration{}, last: map[bool]time.Time{},
	}
	client := &whip.Client{HTTP: &http.Client{Transport: v.log}}
	client.NewPeerConnection = func(c webrtc.Configuration) (*webrtc.PeerConnection, error) {
		return p.connect(c, connecting{mux: how.socket, viewer: true, repairs: !how.plain})
	}
	bounded, cancel := context.WithTimeout(ctx, p.bounds.open)
	defer cancel()
	session, err := client.Play(bounded, how.endpoint, func(pc *webrtc.PeerConnection) error {
		for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
			if _, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{
				Direction: webrtc.RTPTransceiverDirectionRecvonly,
			}); err != nil {
				return err
			}
		}
		pc.OnTrack(func(t *webrtc.TrackRemote, r *webrtc.RTPReceiver) {
			v.group.Add(2)
			go v.hear(t, r)
			v.read(pc, t, r)
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	v.session, v.opened = session, time.Since(v.began)
	return v, nil
}

// playSoon is play for a stream that has just been published: many servers serve it only once its first media has come.
func (p *Probe) playSoon(ctx context.Context, how playing) (*viewer, error) {
	ctx, cancel := context.WithTimeout(ctx, p.bounds.wait)
	defer cancel()
	for {
		v, err := p.play(ctx, how)
		if err == nil {
			return v, nil
		}
		var refused *whip.StatusError
		if !errors.As(err, &refused) || refused.Code/100 != 4 || refused.Code == http.StatusUnauthorized ||
			refused.Code == http.StatusForbidden || refused.Code == http.StatusMethodNotAllowed {
			return nil, err
		}
		select {
		case <-time.After(p.bounds.retry):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// read takes the packets of a track until it ends.
func (v *viewer) read(pc *webrtc.PeerConnection, t *webrtc.TrackRemote, r *webrtc.RTPReceiver) {
	defer v.group.Done()
	mime := t.Codec().MimeType
	video := t.Kind() == webrtc.RTPCodecTypeVideo
	names := map[uint8]string{}
	parameters := r.GetParameters()
	for _, e := range parameters.HeaderExtensions {
		names[uint8(e.ID)] = e.URI //nolint:gosec // at most 255
	}
	v.update(func() {
		if !video {
			v.audioCodec = mime
			return
		}
		v.codec = mime
		for _, c := range parameters.Codecs {
			v.rtx = v.rtx || strings.EqualFold(c.MimeType, webrtc.MimeTypeRTX)
		}
	})
	var builder *samplebuilder.SampleBuilder
	if d, ok := depacketizerOf(mime); video && ok {
		builder = samplebuilder.New(late, d, t.Codec().ClockRate)
	}
	if video && !v.how.silent {
		_ = pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: uint32(t.SSRC())}})
	}
	for {
		packet, attributes, err := t.ReadRTP()
		if err != nil {
			return
		}
		if !video {
			v.update(func() { v.sound(packet, names) })
			continue
		}
		if v.fresh(packet, names, attributes.Get(webrtc.AttributeRtxSsrc) != nil) && builder != nil {
			builder.Push(packet)
			for s := builder.Pop(); s != nil; s = builder.Pop() {
				v.frame(s.Data, s.PacketTimestamp)
			}
		}
	}
}

// fresh counts a packet of video, and says whether it has not come before.
func (v *viewer) fresh(packet *rtp.Packet, names map[uint8]string, repaired bool) (fresh bool) {
	v.update(func() {
		v.packets++
		v.ssrc = packet.SSRC
		v.pace(true)
		v.twice[packet.SequenceNumber]++
		fresh = v.twice[packet.SequenceNumber] == 1
		delete(v.twice, packet.SequenceNumber-1<<15) // numbers come around
		if repaired {
			v.repaired++
		}
		if int16(packet.SequenceNumber-v.newest) > 0 || v.packets == 1 { //nolint:gosec // RFC 1982
			v.newest = packet.SequenceNumber
		}
		v.extensions(packet, names)
	})
	return fresh
}

// pace notes how long nothing came.
func (v *viewer) pace(video bool) {
	now := time.Now()
	if last, ok := v.last[video]; ok {
		v.stall[video] = max(v.stall[video], now.Sub(last))
	}
	v.last[video] = now
}

func (v *viewer) extensions(packet *rtp.Packet, names map[uint8]string) {
	for _, id := range packet.GetExtensionIDs() {
		if uri, ok := names[id]; ok {
			v.marks[uri] = v.marks[uri].with(uri, packet.GetExtension(id))
		} else {
			v.marks[""] = v.marks[""].with("", packet.GetExtension(id))
		}
	}
}

func (v *viewer) sound(packet *rtp.Packet, names map[uint8]string) {
	v.soundCount++
	v.pace(false)
	if n, ok := audioNumber(packet.Payload); ok {
		if _, before := v.sounds[n]; !before {
			v.sounds[n] = seen{time.Now(), packet.Timestamp}
		}
	}
	v.extensions(packet, names)
}

func (v *viewer) frame(data []byte, timestamp uint32) {
	now := time.Now()
	if v.how.content.check == nil {
		v.update(func() {
			v.foreign++
			if v.firstFrame == 0 {
				v.firstFrame = now.Sub(v.began)
			}
		})
		return
	}
	n, key, whole := v.how.content.check(data)
	v.update(func() {
		if !whole {
			v.damaged++
			return
		}
		if v.firstFrame == 0 {
			v.firstFrame = now.Sub(v.began)
		}
		if key {
			v.keys++
			if v.firstKey == 0 {
				v.firstKey = now.Sub(v.began)
			}
		}
		if _, before := v.frames[n]; before {
			v.repeated++
			return
		}
		v.frames[n] = seen{now, timestamp}
	})
}

// hear takes the sender reports of a track until it ends.
func (v *viewer) hear(t *webrtc.TrackRemote, r *webrtc.RTPReceiver) {
	defer v.group.Done()
	video := t.Kind() == webrtc.RTPCodecTypeVideo
	for {
		var packets []rtcp.Packet
		var err error
		if t.RID() != "" {
			packets, _, err = r.ReadSimulcastRTCP(t.RID())
		} else {
			packets, _, err = r.ReadRTCP()
		}
		if err != nil {
			return
		}
		for _, packet := range packets {
			if s, ok := packet.(*rtcp.SenderReport); ok && s.SSRC == uint32(t.SSRC()) {
				v.update(func() { v.reports[video] = senderReport{s.NTPTime, s.RTPTime, v.reports[video].count + 1} })
			}
		}
	}
}

func (v *viewer) update(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
	close(v.changed)
	v.changed = make(chan struct{})
}

// wait blocks until the viewer is as wanted, for so long at most. The condition is called under its lock.
func (v *viewer) wait(ctx context.Context, bound time.Duration, wanted func() bool) bool {
	return await(ctx, bound, func() (bool, <-chan struct{}) {
		v.mu.Lock()
		defer v.mu.Unlock()
		return wanted(), v.changed
	})
}

// look reads what has come so far.
func (v *viewer) look(at func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	at()
}

// missing counts the numbers between the first and the last frame that have not come; the caller holds the lock.
func (v *viewer) missing() int {
	first, last := ^uint32(0), uint32(0)
	for n := range v.frames {
		first, last = min(first, n), max(last, n)
	}
	if len(v.frames) == 0 {
		return 0
	}
	return int(last-first) + 1 - len(v.frames)
}

// requestKeyFrame sends a PLI (RFC 4585, section 6.3.1).
func (v *viewer) requestKeyFrame() {
	v.mu.Lock()
	ssrc := v.ssrc
	v.mu.Unlock()
	_ = v.session.PeerConnection().WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: ssrc}})
}

// requestAgain asks for a packet that has come (RFC 4585, section 6.2.1).
func (v *viewer) requestAgain(seq uint16) {
	v.mu.Lock()
	ssrc := v.ssrc
	v.mu.Unlock()
	_ = v.session.PeerConnection().WriteRTCP([]rtcp.Packet{&rtcp.TransportLayerNack{
		SenderSSRC: 1, MediaSSRC: ssrc, Nacks: []rtcp.NackPair{{PacketID: seq}},
	}})
}

// close ends the play by DELETE, once.
func (v *viewer) close() error {
	v.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		v.deleted = v.session.Close(ctx)
		v.group.Wait()
	})
	return v.deleted
}

var _ interceptor.Factory = (*tamper)(nil)
