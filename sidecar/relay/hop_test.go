package relay

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

// strictTraits are those of a server that does as MediaMTX does.
var strictTraits = adapters.Traits{InOrder: true, MaxHold: 1280 * time.Millisecond, FillAudio: true, IgnoresPLI: true}

// A hop that loses packets of sound and picture, into a server that takes them in order only and tells the time of sound by counting:
// it sees no hole, nothing comes late, and the sound keeps its time.
func TestHopIntoStrictServer(t *testing.T) {
	t.Parallel()
	n := newNetworkOf(t, 40*time.Millisecond, 60, func(n int) bool { return n > 100 && (n%41 == 0 || n%410 == 1) })
	source, err := relaytest.NewSource(n.source, relaytest.Shape{Video: webrtc.MimeTypeH264, Audio: true})
	if err != nil {
		t.Fatal(err)
	}
	server, err := relaytest.NewRemux(n.sink, 1200)
	if err != nil {
		t.Fatal(err)
	}
	server.Strict()
	background(t, source.Run)
	background(t, server.Run)
	web := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(web.CloseIdleConnections)
	session := NewSession(SessionOptions{
		Stream: "demo", From: source.Endpoint("demo"), FromHTTP: web, To: server.Ingest("demo"), ToHTTP: web,
		Transport: media.Transport{Net: n.relay}, Traits: strictTraits, Grace: -1,
	})
	while(t, session.Run)
	ctx := bound(t)
	var audio, video relaytest.Taken
	for video.Frames < 200 || audio.Frames < 300 {
		select {
		case <-ctx.Done():
			t.Fatalf("video %+v, audio %+v, session %+v", video, audio, session.Status())
		case <-time.After(50 * time.Millisecond):
		}
		audio, video = server.Taken("demo", webrtc.RTPCodecTypeAudio), server.Taken("demo", webrtc.RTPCodecTypeVideo)
	}
	t.Logf("%d packets dropped; video %+v, audio %+v", n.dropped.Load(), video, audio)
	if n.dropped.Load() < 20 {
		t.Errorf("%d packets were dropped", n.dropped.Load())
	}
	for kind, taken := range map[string]relaytest.Taken{"video": video, "audio": audio} {
		if taken.Late > 0 || taken.Lost > 0 || taken.Waited > 0 || taken.Skips > 0 {
			t.Errorf("%s did not come in order and whole: %+v", kind, taken)
		}
	}
	if audio.Drift > 0 {
		t.Errorf("sound is off by %s", audio.Drift)
	}
	waited, givenUp := uint64(0), uint64(0)
	for _, track := range session.Status().Tracks {
		waited, givenUp = waited+track.Waited, givenUp+track.GivenUp
	}
	// On a machine with more to do than it can, a repair may come too late.
	if waited == 0 || givenUp > uint64(n.dropped.Load())/4 {
		t.Errorf("%d packets waited for others, %d of %d were given up", waited, givenUp, n.dropped.Load())
	}
}

// newDistantSFU runs a built-in server some of whose viewers are far away, on a path that loses packets.
func newDistantSFU(t *testing.T, network *wan.Network, seed uint64, far func(netip.AddrPort) bool) *sfu {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	link := wan.NewLink(seed, wan.Params{Delay: 20 * time.Millisecond, Loss: 0.02})
	wire := network.PacketConn(socket, func(remote netip.AddrPort) wan.Link {
		if far(remote) {
			return link
		}
		return wan.Link{}
	})
	mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: wire})
	t.Cleanup(func() {
		_ = mux.Close()
		_ = wire.Close()
	})
	server, err := pionsfu.New(pionsfu.Config{Transport: media.Transport{UDPMux: mux, Loopback: true}})
	if err != nil {
		t.Fatal(err)
	}
	background(t, server.Run)
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	return &sfu{url: web.URL}
}

// newMux is a socket for all connections of one relay.
func newMux(t *testing.T) (ice.UDPMux, netip.AddrPort) {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: socket})
	t.Cleanup(func() {
		_ = mux.Close()
		_ = socket.Close()
	})
	return mux, socket.LocalAddr().(*net.UDPAddr).AddrPort()
}

// After three hops that lose packets, sound and picture are where the source had them: what its sender reports say of their
// timestamps is what they say at the source's own server.
func TestLipSyncAfterThreeHops(t *testing.T) {
	t.Parallel()
	network := wan.NewNetwork()
	background(t, network.Run)
	const hops = 3
	servers := make([]*sfu, hops+1)
	muxes := make([]ice.UDPMux, hops)
	ports := make([]netip.AddrPort, hops)
	for i := range hops {
		muxes[i], ports[i] = newMux(t)
	}
	for i := range servers {
		servers[i] = newDistantSFU(t, network, uint64(i), func(remote netip.AddrPort) bool { return i < hops && remote == ports[i] })
	}
	publish(t, servers[0], "h264")
	near := newViewer(t, servers[0])
	for i := range hops {
		newRelay(t, servers[i], servers[i+1], func(o *SessionOptions) {
			o.Transport = media.Transport{UDPMux: muxes[i], Loopback: true}
		})
	}
	far := newViewer(t, servers[hops])
	far.await(100, 200)
	// One report of the far viewer's may be older than the first of the near one's. The source's clock says for each when the
	// track's time was 0; of that only what it measures inexactly differs from report to report.
	var nearAudio, nearVideo, farAudio, farVideo time.Duration
	for range 2 {
		farAudio, farVideo = far.awaitReports()
		nearAudio, nearVideo = near.awaitReports()
	}
	skew := (farAudio - farVideo) - (nearAudio - nearVideo)
	t.Logf("sound is later than the picture by %s than at the source's server", skew)
	if max(skew, -skew) > 20*time.Millisecond {
		t.Errorf("sound is later than the picture by %s than at the source's server", skew)
	}
}
