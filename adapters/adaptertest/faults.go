package adaptertest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/testframes"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// zombieTime is how long a server may believe in a publisher that has vanished.
const zombieTime = 2 * time.Minute

// Socket is the UDP side of a client whose cable can be pulled.
type Socket struct {
	*net.UDPConn
	mux ice.UDPMux
	cut atomic.Bool
}

// NewSocket opens a socket on loopback; the test's end closes it.
func NewSocket(t testing.TB) *Socket {
	t.Helper()
	return NewSocketAt(t, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
}

// NewSocketAt is NewSocket at another address of this machine.
func NewSocketAt(t testing.TB, address netip.Addr) *Socket {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	if err != nil {
		t.Fatal(err)
	}
	s := &Socket{UDPConn: conn}
	s.mux = ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: s})
	t.Cleanup(func() { _ = s.mux.Close() })
	return s
}

// Cut lets nothing leave any more.
func (s *Socket) Cut() { s.cut.Store(true) }

// WriteTo implements net.PacketConn.
func (s *Socket) WriteTo(b []byte, to net.Addr) (int, error) {
	if s.cut.Load() {
		return len(b), nil
	}
	return s.UDPConn.WriteTo(b, to)
}

// socket is one at the harness' address.
func (h Harness) socket(t testing.TB) *Socket {
	if h.Address.IsValid() {
		return NewSocketAt(t, h.Address)
	}
	return NewSocket(t)
}

// Client is a client whose connections use the socket.
func (s *Socket) Client(like *whip.Client) *whip.Client {
	return &whip.Client{
		HTTP: like.HTTP, Logger: like.Logger,
		NewPeerConnection: func(c webrtc.Configuration) (*webrtc.PeerConnection, error) {
			return media.Transport{Loopback: true, UDPMux: s.mux}.NewPeerConnection(c)
		},
	}
}

// vanished is a publisher that went without a word.
type vanished struct {
	id    adapters.StreamID
	since time.Time
	watch *watching
}

// vanish publishes and pulls the cable; how the server takes it is looked at later, because that takes it long.
func (h Harness) vanish(t *testing.T) (v vanished) {
	if testing.Short() {
		return v
	}
	t.Run("Vanish", func(sub *testing.T) { // the publisher outlives the subtest
		v.id = h.NewStream(t)
		v.watch = h.watch(t)
		socket := h.socket(t)
		p, err := h.publish(t, h.Adapter.Ingest(v.id), webrtc.MimeTypeH264, socket.Client(h.client()))
		if err != nil {
			sub.Fatal(err)
		}
		p.WaitConnected()
		h.await(sub, v.watch, v.id, "published", published)
		socket.Cut()
		v.since = time.Now()
	})
	return v
}

// testVanished reports how long a publisher that died without DELETE is believed in. That it ends at all is what is checked.
func (h Harness) testVanished(t *testing.T, v vanished) {
	if v.since.IsZero() {
		t.Skip("not tried: it takes long")
	}
	patient := h
	patient.Patience = zombieTime
	ended := patient.untilTime(t, v.watch, v.id, "a publisher that has vanished is gone", func(s adapters.Stream) bool { return !published(s) })
	h.result(t, "publisher that vanishes", "gone after %.0f s", ended.Sub(v.since).Seconds())
	h.Publish(t, v.id).WaitConnected()
	h.until(v.watch, v.id, "published again", published)
	v.watch.stop()
}

// testAnnounced reports how long after its connection a stream is reported: by itself, and where the adapter was told to look.
func (h Harness) testAnnounced(t *testing.T) {
	looker, looks := h.Adapter.(adapters.Looker)
	var medians []string
	for _, look := range []bool{false, true} {
		if look && !looks {
			continue
		}
		var took []time.Duration
		for range 5 {
			id := h.NewStream(t)
			w := h.watch(t)
			h.until(w, id, "nothing yet", absent)
			if look {
				looker.Look()
			}
			p := h.Publish(t, id)
			p.WaitConnected()
			begun := time.Now()
			took = append(took, max(0, h.untilTime(t, w, id, "published", published).Sub(begun)))
			w.stop()
			p.Close()
		}
		slices.Sort(took)
		t.Logf("reported after %s, at most, told to look: %t", took[len(took)-1].Round(time.Millisecond), look)
		medians = append(medians, seconds(took[len(took)/2]))
	}
	h.result(t, "stream is reported after its connection", "%s", strings.Join(medians, ", told to look "))
}

// stranger is the endpoint as a publisher uses it who is not a sidecar: its address, and nothing but credentials.
func (h Harness) stranger(id adapters.StreamID) adapters.Endpoint {
	if h.Stranger != nil {
		return h.Stranger(id)
	}
	ep := h.Adapter.Ingest(id)
	u := *ep.URL
	u.RawQuery = ""
	return adapters.Endpoint{URL: &u, Header: http.Header{"Authorization": ep.Header["Authorization"]}}
}

// testOwnPublications sees that what is published by Ingest, which only relays do, is known again, and other publications are
// not taken for it.
func (h Harness) testOwnPublications(t *testing.T) {
	known := func(s adapters.Stream, p *Publisher) (how string) {
		path := p.Session.Location().Path
		switch {
		case s.Relayed:
			return "by a mark"
		case path[strings.LastIndexByte(path, '/')+1:] == s.Session:
			return "by their Location"
		}
		return ""
	}
	id := h.NewStream(t)
	w := h.watch(t)
	own := h.Publish(t, id)
	own.WaitConnected()
	how := known(h.until(w, id, "published", published), own)
	own.Close()
	h.until(w, id, "ended", func(s adapters.Stream) bool { return !published(s) })
	if how == "" {
		h.result(t, "own publications", "not told from others")
		return
	}
	h.result(t, "own publications", "known %s", how)

	p, err := h.publish(t, h.stranger(id), webrtc.MimeTypeH264, h.client())
	if err != nil {
		t.Fatal(err)
	}
	p.WaitConnected()
	if s := h.until(w, id, "published by another", published); s.Relayed {
		t.Errorf("a publisher's stream %+v is taken for a relay's", s)
	}
}

// testOrphan deletes what a process left behind that was killed: the session's URL and Ingest's header are all that its
// successor has.
func (h Harness) testOrphan(t *testing.T) {
	id := h.NewStream(t)
	w := h.watch(t)
	socket := h.socket(t)
	p, err := h.publish(t, h.Adapter.Ingest(id), webrtc.MimeTypeH264, socket.Client(h.client()))
	if err != nil {
		t.Fatal(err)
	}
	p.WaitConnected()
	h.until(w, id, "published", published)
	socket.Cut()
	remove := func() int {
		ctx, cancel := context.WithTimeout(context.Background(), h.patience())
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodDelete, p.Session.Location().String(), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = h.Adapter.Ingest(id).Header.Clone()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode
	}
	if status := remove(); status/100 != 2 {
		t.Fatalf("DELETE of a session left behind: %d", status)
	}
	h.until(w, id, "ended", func(s adapters.Stream) bool { return !published(s) })
	h.result(t, "publication left behind by a crash", "ends by its URL")
	if status := remove(); status/100 != 4 {
		t.Errorf("DELETE of a session that is gone: %d; want a refusal", status)
	}
}

// testDuplicate publishes a name that is taken. Servers refuse the second or end the first; the traits say what becomes of the
// readers then.
func (h Harness) testDuplicate(t *testing.T) {
	id := h.NewStream(t)
	w := h.watch(t)
	first := h.Publish(t, id)
	first.WaitConnected()
	before := h.until(w, id, "published", published)
	player := h.Play(t, id)
	player.WaitFrames(1)

	second, err := h.TryPublish(t, id)
	if refused, ok := errors.AsType[*whip.StatusError](err); ok {
		h.result(t, "second publisher of a name", "refused, %d", refused.Code)
		player.WaitFrames(player.Stats().Frames + 25)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	second.WaitConnected()
	h.until(w, id, "published by the second", func(s adapters.Stream) bool { return published(s) && s.Session != before.Session })
	if h.Adapter.Traits().DropsReadersOnReplace {
		t.Logf("the first one's reader ended after %s", player.WaitEnded().Round(time.Millisecond))
		h.result(t, "second publisher of a name", "ends the first and its readers")
		player = h.Play(t, id)
		player.WaitFrames(1)
		return
	}
	h.result(t, "second publisher of a name", "ends the first, whose readers stay")
	player.WaitFrames(player.Stats().Frames + 25)
}

// testDenied speaks to the server with credentials that it refuses.
func (h Harness) testDenied(t *testing.T) {
	if h.Denied == nil {
		t.Skip("the harness has no wrong credentials")
	}
	denied := h
	denied.Adapter = h.Denied
	id := h.NewStream(t)
	ctx, cancel := context.WithTimeout(context.Background(), h.patience())
	defer cancel()
	err := h.Denied.Watch(ctx, func(s []adapters.Stream) { t.Errorf("reports %v to wrong credentials", s) })
	if err == nil || ctx.Err() != nil {
		t.Errorf("Watch with wrong credentials: %v; want an error, at once", err)
	}
	t.Logf("wrong credentials: %v", err)
	if _, err := denied.TryPublish(t, id); err == nil {
		t.Error("the server takes a publication with wrong credentials")
	}
	status, header, body := denied.postPlay(t, id)
	if status/100 != 4 || h.Denied.Missing(status, header, body) {
		t.Errorf("play with wrong credentials: %d %q; want a refusal that does not mean missing", status, body)
	}
	h.result(t, "wrong credentials", "one error, at once")
}

// testCodec sees that video of a codec passes, where the traits do not say that it does not.
func (h Harness) testCodec(t *testing.T, c testframes.Codec) {
	accepted := h.Adapter.Traits().Codecs
	if len(accepted) > 0 && !slices.ContainsFunc(accepted, func(a string) bool { return strings.EqualFold(a, c.MIME) }) {
		h.result(t, c.MIME, "not accepted")
		t.Skip("not accepted, as the traits say")
	}
	id := h.NewStream(t)
	w := h.watch(t)
	h.PublishCodec(t, id, c.MIME).WaitConnected()
	player := h.Play(t, id)
	player.WaitFrames(50)
	player.WaitKeyFrames(1)
	stats := player.Stats()
	if !strings.EqualFold(stats.Video, c.MIME) || stats.Damaged > stats.Frames/10 {
		t.Errorf("player got %+v", stats)
	}
	h.result(t, c.MIME, "%d of %d frames whole, the first key frame after %s", stats.Frames, stats.Frames+stats.Damaged,
		seconds(stats.FirstKey))
	h.until(w, id, "its video track", func(s adapters.Stream) bool {
		return slices.ContainsFunc(s.Tracks, func(t adapters.Track) bool { return t.Kind == "video" && isCodec(t, c.MIME) })
	})
}

// testRestart ends the server under a Watch: that ends with an error, at the latest when it is asked next, and the next Watch
// begins with what the new server has.
func (h Harness) testRestart(t *testing.T) {
	if h.Restart == nil {
		t.Skip("the harness cannot restart its server")
	}
	id := h.NewStream(t)
	h.Publish(t, id).WaitConnected()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reported := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- h.Adapter.Watch(ctx, func(s []adapters.Stream) {
			if slices.ContainsFunc(s, func(s adapters.Stream) bool { return s.ID == id && published(s) }) {
				select {
				case reported <- struct{}{}:
				default:
				}
			}
		})
	}()
	await := func(what string, c <-chan struct{}) {
		select {
		case <-c:
		case <-time.After(h.patience()):
			t.Fatalf("not within %s: %s", h.patience(), what)
		}
	}
	await("published", reported)
	h.Restart(t)
	// A server that is back before it is asked again has not been away for its adapter; what it has is what counts.
	again := h.watch(t)
	h.until(again, id, "the new server has no streams", func(s adapters.Stream) bool { return !published(s) })
	select {
	case err := <-ended:
		t.Logf("the restart ended Watch: %v", err)
	default:
		t.Log("the restart went by between two questions of Watch")
		cancel()
		<-ended
	}
	h.Publish(t, id).WaitConnected()
	h.until(again, id, "published at the new server", published)
	h.Play(t, id).WaitFrames(1)
	h.result(t, "restart of the server", "its streams are gone, new ones are reported")
}
