package pionsfu

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// simulcaster publishes one picture in several encodings, each frame one packet of VP8 that carries its number and its layer.
type simulcaster struct {
	t       *testing.T
	session *whip.Session
	tracks  []*webrtc.TrackLocalStaticRTP
	ids     map[string]uint8 // of header extensions
	mid     string
	wanted  sync.Map // rid of layers that were asked for a key frame

	mu     sync.Mutex
	paused map[string]bool
}

// layerSizes are payload bytes, so that layers differ in bit rate.
var layerSizes = map[string]int{"h": 1000, "m": 500, "l": 100}

func (s *sfu) simulcast(t *testing.T, stream string, rids ...string) *simulcaster {
	t.Helper()
	p := &simulcaster{t: t, ids: make(map[string]uint8), paused: make(map[string]bool)}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var sender *webrtc.RTPSender
	var transceiver *webrtc.RTPTransceiver
	session, err := s.clients(t).Client.Publish(ctx, s.adapter(t).Ingest("simulcast"), func(pc *webrtc.PeerConnection) error {
		p.tracks = nil
		for i, rid := range rids {
			track, err := webrtc.NewTrackLocalStaticRTP(video(webrtc.MimeTypeVP8, ""), "video", "raw", webrtc.WithRTPStreamID(rid))
			if err != nil {
				return err
			}
			p.tracks = append(p.tracks, track)
			if i > 0 {
				if err := sender.AddEncoding(track); err != nil {
					return err
				}
				continue
			}
			transceiver, err = pc.AddTransceiverFromTrack(track,
				webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
			if err != nil {
				return err
			}
			sender = transceiver.Sender()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p.session = session
	t.Cleanup(func() { _ = session.Close(context.Background()) })
	if err := session.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	p.mid = transceiver.Mid()
	for _, e := range sender.GetParameters().HeaderExtensions {
		p.ids[e.URI] = uint8(e.ID)
	}
	var group sync.WaitGroup
	for _, track := range p.tracks {
		group.Go(func() {
			for {
				packets, _, err := sender.ReadSimulcastRTCP(track.RID())
				if err != nil {
					return
				}
				for _, packet := range packets {
					if _, ok := packet.(*rtcp.PictureLossIndication); ok {
						p.wanted.Store(track.RID(), true)
					}
				}
			}
		})
	}
	stop := p.keepSending()
	t.Cleanup(func() {
		stop()
		_ = session.Close(context.Background())
		group.Wait()
	})
	return p
}

// keepSending sends 50 frames a second in each layer that is not paused, a key frame where it was asked for. Layers begin with
// different numbers.
func (p *simulcaster) keepSending() (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for frame := uint32(1); ; frame++ {
			for i, track := range p.tracks {
				p.mu.Lock()
				paused := p.paused[track.RID()]
				p.mu.Unlock()
				if paused {
					continue
				}
				_, key := p.wanted.LoadAndDelete(track.RID())
				payload := make([]byte, layerSizes[track.RID()])
				payload[0] = 0x10
				if !key {
					payload[1] = 1 // an inter frame
				}
				payload[4] = byte(i)
				binary.BigEndian.PutUint32(payload[5:], frame)
				h := rtp.Header{
					Version: 2, Marker: true, SequenceNumber: uint16(frame) + uint16(i)*20000,
					Timestamp: frame*1800 + uint32(i)*1e9,
				}
				_ = h.SetExtension(p.ids[sdp.SDESMidURI], []byte(p.mid))
				_ = h.SetExtension(p.ids[sdp.SDESRTPStreamIDURI], []byte(track.RID()))
				if track.WriteRTP(&rtp.Packet{Header: h, Payload: payload}) != nil {
					return // closed
				}
			}
			select {
			case <-ticker.C:
			case <-end:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(end); <-ended })
}

func (p *simulcaster) pause(rid string, paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused[rid] = paused
}

// layered follows what a viewer gets: numbers that go on by one, timestamps that never fall, key frames where the layer changes.
type layered struct {
	t     *testing.T
	p     *simulcaster
	last  *rtp.Packet
	layer string
}

func (l *layered) next(player *rawPlayer) string {
	l.t.Helper()
	packet := player.next(l.t)
	rid := l.p.tracks[packet.Payload[4]].RID()
	if l.last != nil {
		if packet.SequenceNumber != l.last.SequenceNumber+1 {
			l.t.Fatalf("number %d follows %d", packet.SequenceNumber, l.last.SequenceNumber)
		}
		if passed := int32(packet.Timestamp - l.last.Timestamp); passed <= 0 || passed > 90000*3 {
			l.t.Fatalf("timestamps go on by %d from %s to %s", passed, l.layer, rid)
		}
	}
	if rid != l.layer && packet.Payload[1]&1 != 0 {
		l.t.Fatalf("%s begins without a key frame", rid)
	}
	l.last, l.layer = packet, rid
	return rid
}

// until reads packets until they are of a layer.
func (l *layered) until(player *rawPlayer, rid string) {
	l.t.Helper()
	for range 500 {
		if l.next(player) == rid {
			return
		}
	}
	l.t.Fatalf("layer %s does not come; there is %s", rid, l.layer)
}

// A viewer gets the best layer, another one when it says so, and the next below while its own does not flow.
func layerSelection(t *testing.T) {
	s := run(t, Config{})
	p := s.simulcast(t, "simulcast", "l", "m", "h")
	player := s.playRaw(t, "simulcast", webrtc.RTPCodecTypeVideo)
	l := &layered{t: t, p: p}
	l.until(player, "h")

	mid := player.session.PeerConnection().GetTransceivers()[0].Mid()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	want := func(mid, rid string) {
		t.Helper()
		if err := player.session.SelectLayer(ctx, mid, rid); err != nil {
			t.Fatal(err)
		}
	}
	want(mid, "l")
	l.until(player, "l")
	want("", "m")
	l.until(player, "m")
	p.pause("m", true)
	l.until(player, "l")
	p.pause("m", false)
	l.until(player, "m")
	want(mid, "")
	l.until(player, "h")

	for _, wrong := range [][2]string{{mid, "x"}, {"nowhere", "l"}} {
		err := player.session.SelectLayer(ctx, wrong[0], wrong[1])
		if refusal := (*whip.StatusError)(nil); !errors.As(err, &refusal) || refusal.Code != http.StatusUnprocessableEntity {
			t.Errorf("layer %s of %s: %v", wrong[1], wrong[0], err)
		}
	}
	streams, _ := s.registry.snapshot()
	if len(streams) != 1 || len(streams[0].Tracks) != 3 || streams[0].Tracks[2].RID != "h" {
		t.Errorf("reported is %+v", streams)
	}
	if totals, _, _, _ := s.registry.totals(); totals.switches < 5 {
		t.Errorf("%d switches", totals.switches)
	}
}

// A viewer hears of layers and of how many watch, and of a publisher that falls silent and comes back.
func layersTold(t *testing.T) {
	s := run(t, Config{})
	p := s.simulcast(t, "simulcast", "l", "h")
	player := s.playRaw(t, "simulcast", webrtc.RTPCodecTypeVideo)
	mid := player.session.PeerConnection().GetTransceivers()[0].Mid()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := make(chan whip.Event, 1000)
	ended := make(chan error, 1)
	go func() {
		ended <- player.session.Events(ctx, []string{"active", "inactive", "layers", "viewercount"}, func(e whip.Event) { events <- e })
	}()
	until := func(what string, found func(whip.Event) bool) {
		t.Helper()
		timeout := time.After(patience)
		for {
			select {
			case e := <-events:
				if found(e) {
					return
				}
			case err := <-ended:
				t.Fatalf("waiting for %s: %v", what, err)
			case <-timeout:
				t.Fatalf("no event: %s", what)
			}
		}
	}
	layers := func(found func(l, h whip.Layer) bool) func(whip.Event) bool {
		return func(e whip.Event) bool {
			var all whip.Layers
			if e.Name != whip.EventLayers || json.Unmarshal(e.Data, &all) != nil || len(all[mid]) != 2 {
				return false
			}
			return all[mid][0].Name() == "l" && all[mid][1].Name() == "h" && found(all[mid][0], all[mid][1])
		}
	}
	until("both layers", layers(func(l, h whip.Layer) bool { return l.Bitrate > 20_000 && h.Bitrate > 5*l.Bitrate }))
	s.playRaw(t, "simulcast", webrtc.RTPCodecTypeVideo)
	until("two viewers", func(e whip.Event) bool {
		return e.Name == whip.EventViewerCount && string(e.Data) == `{"viewercount":2}`
	})
	p.pause("h", true)
	until("one layer", layers(func(l, h whip.Layer) bool { return l.Bitrate > 0 && h.Bitrate == 0 }))
	p.pause("l", true)
	until("silence", func(e whip.Event) bool { return e.Name == whip.EventInactive })
	p.pause("l", false)
	until("the stream again", func(e whip.Event) bool { return e.Name == whip.EventActive })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}

func subscriptions(t *testing.T) {
	s := run(t, Config{PlayToken: "play"})
	publisher := s.publishRaw(t, "stream", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	session := s.post(t, "/whep/stream", playOffer(t), "Authorization", "Bearer play").location(t)
	ask := func(method, path, body string, header ...string) answered {
		return s.do(t, method, session+path, body,
			append([]string{"Authorization", "Bearer play", "Content-Type", "application/json"}, header...)...)
	}
	s.do(t, http.MethodPost, session+"/events", `["layers"]`, "Content-Type", "application/json").want(t, http.StatusUnauthorized)
	ask(http.MethodPost, "/events", `["layers","weather"]`).want(t, http.StatusBadRequest)
	ask(http.MethodPost, "/events", `[]`).want(t, http.StatusBadRequest)
	ask(http.MethodPost, "/events", `{"a":1}`).want(t, http.StatusBadRequest)
	ask(http.MethodPost, "/events", `["layers"]`, "Content-Type", "text/plain").want(t, http.StatusUnsupportedMediaType)
	ask(http.MethodPost, "/events", `["`+strings.Repeat("x", maxExtensionBody)+`"]`).want(t, http.StatusRequestEntityTooLarge)
	ask(http.MethodPost, "/nothing", `[]`).want(t, http.StatusNotFound)
	ask(http.MethodGet, "/events", ``).want(t, http.StatusMethodNotAllowed)
	ask(http.MethodGet, "/events/none", ``).want(t, http.StatusNotFound)
	ask(http.MethodPost, "/layer", `{"rid":"h"}`).want(t, http.StatusUnprocessableEntity)
	ask(http.MethodPost, "/layer", `{}`).want(t, http.StatusOK)
	var at string
	for range maxSubscriptions {
		a := ask(http.MethodPost, "/events", `["layers"]`)
		a.want(t, http.StatusCreated)
		at = a.location(t)
	}
	ask(http.MethodPost, "/events", `["layers"]`).want(t, http.StatusServiceUnavailable)
	for _, status := range []int{http.StatusOK, http.StatusNotFound} {
		s.do(t, http.MethodDelete, at, "", "Authorization", "Bearer play").want(t, status)
	}
	ask(http.MethodPost, "/events", `["layers"]`).want(t, http.StatusCreated)
}

func TestChoose(t *testing.T) {
	layers := func(bits ...int64) (all []standing) {
		for i, b := range bits {
			all = append(all, standing{rid: string(rune('a' + i)), alive: b >= 0, bits: max(b, -b)})
		}
		return all
	}
	for name, test := range map[string]struct {
		layers []standing
		have   int
		wanted string
		want   int
	}{
		"the highest rate":              {layers(100, 300, 200), -1, "", 1},
		"nothing is known":              {layers(0, 0), -1, "", 0},
		"nothing flows":                 {layers(-100, -300), -1, "", -1},
		"not for a little":              {layers(100, 120), 0, "", 0},
		"for much":                      {layers(100, 130), 0, "", 1},
		"wanted":                        {layers(100, 300, 200), 1, "a", 0},
		"wanted does not exist":         {layers(100, 300, 200), 0, "z", 1},
		"wanted is silent: next below":  {layers(100, 300, -200), 1, "c", 0},
		"wanted is silent: none below":  {layers(-100, 300, 200), 0, "a", 2},
		"what one has is silent":        {layers(100, -300, 200), 1, "", 2},
		"the lowest is wanted, and had": {layers(100, 300), 0, "a", 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := choose(test.layers, test.have, test.wanted, 0, false); got != test.want {
				t.Errorf("chosen: %d; want %d", got, test.want)
			}
		})
	}
}

// However two layers count, what goes out goes on: by the publisher's clocks where they are known.
func TestEdgeFollow(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		now := time.Unix(1_800_000_000, 0)
		const rate = 90000
		bases := [2]uint32{random.Uint32(), random.Uint32()}
		shift := media.Shift{Timestamp: random.Uint32()}
		had := &media.SenderReport{NTP: random.Uint64(), RTP: bases[0]}
		later := time.Duration(random.IntN(5000)) * time.Millisecond
		has := &media.SenderReport{NTP: had.NTP + uint64(later.Seconds()*(1<<32)), RTP: bases[1] + uint32(later.Seconds()*rate)}
		at := time.Duration(random.IntN(5000)) * time.Millisecond // of the old layer's last frame
		step := time.Duration(random.IntN(200)-50) * time.Millisecond
		e := edge{
			sequence: uint16(random.Uint32()), timestamp: bases[0] + uint32(at.Seconds()*rate) + shift.Timestamp,
			arrival: now, ok: true,
		}
		next, err := media.NewPacket(rtp.Header{
			Version: 2, SequenceNumber: uint16(random.Uint32()), Timestamp: bases[1] + uint32(int64((at+step).Seconds()*rate)),
		}, []byte{1})
		if err != nil {
			t.Fatal(err)
		}
		next.Arrival = now.Add(step)
		if random.IntN(2) == 0 {
			had, has = nil, nil
		}
		s := e.follow(next, media.Pictures{}, had, has, shift, rate)
		want := max(int32(step.Seconds()*rate), rate/1000)
		if passed := int32(next.Header.Timestamp + s.Timestamp - e.timestamp); passed < want-3 || passed > want+3 {
			t.Fatalf("seed %d: timestamps go on by %d; want %d", seed, passed, want)
		}
		if next.Header.SequenceNumber+s.Sequence != e.sequence+1 {
			t.Fatalf("seed %d: numbers do not go on", seed)
		}
	}
}

func TestDiffer(t *testing.T) {
	told := whip.Layers{"0": {whip.NewLayer("h", 1000), whip.NewLayer("l", 100)}}
	for name, test := range map[string]struct {
		now  whip.Layers
		want bool
	}{
		"the same":        {told, false},
		"a little":        {whip.Layers{"0": {whip.NewLayer("h", 1200), whip.NewLayer("l", 90)}}, false},
		"much":            {whip.Layers{"0": {whip.NewLayer("h", 1300), whip.NewLayer("l", 100)}}, true},
		"one is silent":   {whip.Layers{"0": {whip.NewLayer("h", 0), whip.NewLayer("l", 100)}}, true},
		"one more":        {whip.Layers{"0": slices.Repeat([]whip.Layer{whip.NewLayer("h", 1000)}, 3)}, true},
		"another section": {whip.Layers{"1": told["0"]}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := differ(told, test.now); got != test.want {
				t.Errorf("differ: %t", got)
			}
		})
	}
	if !differ(nil, whip.Layers{}) {
		t.Error("what was never told is no news")
	}
}
