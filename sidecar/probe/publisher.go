package probe

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/interceptor/pkg/nack"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	mtu        = 1200
	tick       = 20 * time.Millisecond // of audio; every other one has a video frame
	frameTicks = 90000 / 25
	audioTicks = 960
	keyEvery   = 250 // frames, where nobody asks for one
	keyGap     = 5   // frames between two that are asked for
	reportEach = 25  // ticks between sender reports
	// skew is how much later than its sound a picture is sent, as the sender reports say. A server that makes reports of its
	// own from the times of arrival loses it.
	skew = 700 * time.Millisecond
)

// layers are the rids of simulcast, in the order of the offer.
var layers = []string{"h", "m", "l"}

// publishing says how a publisher publishes.
type publishing struct {
	name        adapters.StreamID
	content     content
	endpoint    adapters.Endpoint // the zero value is the stream's own
	simulcast   bool
	extensions  bool       // packets bear header extensions
	socket      ice.UDPMux // nil: ports of its own
	otherCodecs []string   // MIME types that are offered too
}

// publisher is a publication under way.
type publisher struct {
	how     publishing
	session *whip.Session
	log     *recorder
	tamper  *tamper
	opened  time.Duration // until the answer
	stop    context.CancelFunc
	group   sync.WaitGroup
	once    sync.Once
	deleted error

	mu       sync.Mutex
	changed  chan struct{}
	video    []*lane // one, or the layers of simulcast
	audio    *lane
	frames   map[uint32]sent
	sounds   map[uint32]sent
	wish     bool
	requests []time.Time          // for key frames
	nacks    map[uint16]time.Time // sequence numbers of video that the server asked for again
	received uint32               // highest sequence number of video that the server has reported, 0 before it did
	lose     map[bool]int         // how often the next packet of video, or not, is withheld
	losing   map[bool]missing
}

// sent is when a frame or packet went, and with which RTP time.
type sent struct {
	at        time.Time
	timestamp uint32
	key       bool
}

// missing is a packet that is withheld.
type missing struct {
	number uint32 // of its frame or sound
	ssrc   uint32
	seq    uint16
	at     time.Time
}

// lane is a track.
type lane struct {
	track      *webrtc.TrackLocalStaticRTP
	sender     *webrtc.RTPSender
	packetizer rtp.Packetizer
	extensions map[uint8][]byte
	packets    uint32
	bytes      uint32
	last       sent
}

// publish opens a publication and sends until it is closed. Its error is whip.Client's.
func (p *Probe) publish(ctx context.Context, how publishing) (*publisher, error) {
	if how.endpoint.URL == nil {
		how.endpoint = p.endpoint(true, how.name, true)
	}
	b := &publisher{
		how: how, log: p.record(), changed: make(chan struct{}), frames: map[uint32]sent{}, sounds: map[uint32]sent{},
		nacks: map[uint16]time.Time{}, lose: map[bool]int{}, losing: map[bool]missing{},
	}
	client := &whip.Client{HTTP: &http.Client{Transport: b.log}}
	client.NewPeerConnection = func(c webrtc.Configuration) (*webrtc.PeerConnection, error) {
		b.tamper = newTamper()
		responder, err := nack.NewResponderInterceptor()
		if err != nil {
			return nil, err
		}
		return p.connect(c, connecting{mux: how.socket, interceptors: []interceptor.Factory{b.tamper, responder}})
	}
	bounded, cancel := context.WithTimeout(ctx, p.bounds.open)
	defer cancel()
	began := time.Now()
	session, err := client.Publish(bounded, how.endpoint, b.addTracks)
	if err != nil {
		return nil, err
	}
	b.session, b.opened = session, time.Since(began)
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = stop
	for _, l := range append(slices.Clone(b.video), b.audio) {
		b.group.Go(func() { b.hear(l) })
	}
	b.group.Go(func() { b.send(run) })
	return b, nil
}

// addTracks may be called again with another connection.
func (b *publisher) addTracks(pc *webrtc.PeerConnection) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.how.content
	capability := webrtc.RTPCodecCapability{MimeType: c.mime, ClockRate: 90000, SDPFmtpLine: c.format}
	opus := webrtc.RTPCodecCapability{
		MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2, SDPFmtpLine: "minptime=10;useinbandfec=1",
	}
	b.video = nil
	var rids []string
	if b.how.simulcast {
		rids = layers
	} else {
		rids = []string{""}
	}
	var transceiver *webrtc.RTPTransceiver
	for _, rid := range rids {
		var options []func(*webrtc.TrackLocalStaticRTP)
		if rid != "" {
			options = append(options, webrtc.WithRTPStreamID(rid))
		}
		track, err := webrtc.NewTrackLocalStaticRTP(capability, "video", "sidestream-probe", options...)
		if err != nil {
			return err
		}
		if transceiver == nil {
			if transceiver, err = addSendonly(pc, track); err != nil {
				return err
			}
		} else if err := transceiver.Sender().AddEncoding(track); err != nil {
			return err
		}
		b.video = append(b.video, &lane{
			track: track, sender: transceiver.Sender(),
			packetizer: rtp.NewPacketizer(mtu, 0, 0, c.payloader(), rtp.NewRandomSequencer(), 90000),
		})
	}
	if err := transceiver.SetCodecPreferences(
		only(transceiver.Sender().GetParameters().Codecs, append([]string{c.mime}, b.how.otherCodecs...))); err != nil {
		return err
	}
	track, err := webrtc.NewTrackLocalStaticRTP(opus, "audio", "sidestream-probe")
	if err != nil {
		return err
	}
	if transceiver, err = addSendonly(pc, track); err != nil {
		return err
	}
	b.audio = &lane{
		track: track, sender: transceiver.Sender(),
		packetizer: rtp.NewPacketizer(mtu, 0, 0, &codecs.OpusPayloader{}, rtp.NewRandomSequencer(), 48000),
	}
	return transceiver.SetCodecPreferences(only(b.audio.sender.GetParameters().Codecs, []string{opus.MimeType}))
}

func addSendonly(pc *webrtc.PeerConnection, track webrtc.TrackLocal) (*webrtc.RTPTransceiver, error) {
	return pc.AddTransceiverFromTrack(track, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
}

// only keeps codecs of the MIME types, and retransmission formats for them. Of H264 it keeps what every decoder takes.
func only(all []webrtc.RTPCodecParameters, mimes []string) []webrtc.RTPCodecParameters {
	var kept []webrtc.RTPCodecParameters
	types := map[string]bool{}
	for _, c := range all {
		if !slices.ContainsFunc(mimes, func(m string) bool { return strings.EqualFold(m, c.MimeType) }) {
			continue
		}
		if strings.EqualFold(c.MimeType, webrtc.MimeTypeH264) &&
			(!strings.Contains(c.SDPFmtpLine, "packetization-mode=1") || !strings.Contains(c.SDPFmtpLine, "42e01f")) {
			continue
		}
		kept = append(kept, c)
		types["apt="+strings.TrimSpace(itoa(c.PayloadType))] = true
	}
	for _, c := range all {
		if strings.EqualFold(c.MimeType, webrtc.MimeTypeRTX) && types[c.SDPFmtpLine] {
			kept = append(kept, c)
		}
	}
	return kept
}

// hear takes what the server says of a track, until the connection ends.
func (b *publisher) hear(l *lane) {
	for {
		packets, _, err := l.sender.ReadRTCP()
		if err != nil {
			return
		}
		b.update(func() {
			for _, packet := range packets {
				switch packet := packet.(type) {
				case *rtcp.PictureLossIndication, *rtcp.FullIntraRequest:
					b.wish = true
					b.requests = append(b.requests, time.Now())
				case *rtcp.TransportLayerNack:
					for _, pair := range packet.Nacks {
						for _, seq := range pair.PacketList() {
							if _, before := b.nacks[seq]; !before && l != b.audio {
								b.nacks[seq] = time.Now()
							}
						}
					}
				case *rtcp.ReceiverReport:
					for _, r := range packet.Reports {
						if l != b.audio {
							b.received = r.LastSequenceNumber
						}
					}
				}
			}
		})
	}
}

func (b *publisher) update(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	close(b.changed)
	b.changed = make(chan struct{})
}

// wait blocks until the publisher is as wanted, for so long at most. The condition is called under its lock.
func (b *publisher) wait(ctx context.Context, bound time.Duration, wanted func() bool) bool {
	return await(ctx, bound, func() (bool, <-chan struct{}) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return wanted(), b.changed
	})
}

// send sends from the connection's beginning until ctx ends.
func (b *publisher) send(ctx context.Context) {
	if b.session.Connected(ctx) != nil {
		return
	}
	b.prepare()
	pc := b.session.PeerConnection()
	// Each at its own moment since the beginning: what is late does not make the rest late, and RTP time goes as the clock.
	start, timer := time.Now(), time.NewTimer(0)
	defer timer.Stop()
	sinceKey := 0
	for n := uint32(0); ; n++ {
		// What fails here ends the connection, and the session says so.
		b.write(b.audio, b.how.content.audio(n), audioTicks, n, false)
		if n%2 == 0 {
			b.mu.Lock()
			key := n == 0 || sinceKey >= keyEvery || b.wish && sinceKey >= keyGap
			b.mu.Unlock()
			data, isKey := b.how.content.frame(n/2, key)
			sinceKey++
			if isKey {
				sinceKey = 0
				b.update(func() { b.wish = false })
			}
			for _, l := range b.video {
				b.write(l, data, frameTicks, n/2, isKey)
			}
		}
		if n%reportEach == 10 {
			_ = pc.WriteRTCP(b.reports())
		}
		timer.Reset(time.Until(start.Add(time.Duration(n+1) * tick)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// prepare reads what was negotiated.
func (b *publisher) prepare() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range append(slices.Clone(b.video), b.audio) {
		l.extensions = map[uint8][]byte{}
		for _, e := range l.sender.GetParameters().HeaderExtensions {
			value, ok := marks[e.URI]
			switch {
			case b.how.extensions && ok:
				l.extensions[uint8(e.ID)] = value //nolint:gosec // at most 255
			case b.how.simulcast && l != b.audio && e.URI == sdp.SDESRTPStreamIDURI:
				l.extensions[uint8(e.ID)] = []byte(l.track.RID()) //nolint:gosec // at most 255
			case b.how.simulcast && e.URI == sdp.SDESMidURI:
				for _, t := range b.session.PeerConnection().GetTransceivers() {
					if t.Sender() == l.sender {
						l.extensions[uint8(e.ID)] = []byte(t.Mid()) //nolint:gosec // at most 255
					}
				}
			}
		}
	}
}

func (b *publisher) write(l *lane, payload []byte, ticks, number uint32, key bool) {
	packets := l.packetizer.Packetize(payload, ticks)
	if len(packets) == 0 {
		return
	}
	b.update(func() {
		s := sent{time.Now(), packets[0].Timestamp, key}
		l.last = s
		l.packets += uint32(len(packets)) //nolint:gosec // a few
		l.bytes += uint32(len(payload))   //nolint:gosec // a frame
		if l == b.audio {
			b.sounds[number] = s
		} else {
			b.frames[number] = s
		}
		if video := l != b.audio; b.lose[video] > 0 && !key {
			last := packets[len(packets)-1]
			ssrc := ssrcOf(l)
			b.losing[video] = missing{number, ssrc, last.SequenceNumber, time.Now()}
			b.tamper.withhold(ssrc, last.SequenceNumber, b.lose[video])
			delete(b.lose, video)
		}
	})
	for _, packet := range packets {
		for _, id := range slices.Sorted(maps.Keys(l.extensions)) {
			_ = packet.SetExtension(id, l.extensions[id]) // fails on lengths only
		}
		_ = l.track.WriteRTP(packet)
	}
}

func ssrcOf(l *lane) uint32 {
	for _, e := range l.sender.GetParameters().Encodings {
		if e.RID == l.track.RID() {
			return uint32(e.SSRC)
		}
	}
	return 0
}

// drop withholds the next packet that ends a picture that is no key frame, or the next one of sound, so many times, and
// says which it is.
func (b *publisher) drop(ctx context.Context, bound time.Duration, video bool, times int) (missing, bool) {
	b.update(func() {
		delete(b.losing, video)
		b.lose[video] = times
	})
	ok := b.wait(ctx, bound, func() bool { _, is := b.losing[video]; return is })
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.losing[video], ok
}

// reports are sender reports of all tracks, in which the picture is earlier than its arrival says.
func (b *publisher) reports() (packets []rtcp.Packet) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for _, l := range append(slices.Clone(b.video), b.audio) {
		clock, at := int64(90000), now.Add(-skew)
		if l == b.audio {
			clock, at = 48000, now
		}
		elapsed := now.Sub(l.last.at).Microseconds() * clock / 1e6
		packets = append(packets, &rtcp.SenderReport{
			SSRC: ssrcOf(l), NTPTime: ntp(at), RTPTime: l.last.timestamp + uint32(elapsed), //nolint:gosec // wraps as RTP does
			PacketCount: l.packets, OctetCount: l.bytes,
		})
	}
	return packets
}

// asked counts requests for key frames since a moment.
func (b *publisher) asked(since time.Time) (n int) {
	for _, at := range b.requests {
		if !at.Before(since) {
			n++
		}
	}
	return n
}

// close ends the publication by DELETE, once.
func (b *publisher) close() error {
	b.once.Do(func() {
		b.stop()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		b.deleted = b.session.Close(ctx)
		b.group.Wait()
	})
	return b.deleted
}
