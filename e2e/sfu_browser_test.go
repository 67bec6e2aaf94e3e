package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/pion/ice/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// sfuPage publishes the camera in three layers, or plays, by plain WHIP and WHEP.
const sfuPage = `<!doctype html><video id="player" autoplay playsinline></video><script>
async function offer(pc, address) {
  await pc.setLocalDescription();
  const response = await fetch(address, {method: "POST", headers: {"Content-Type": "application/sdp"}, body: pc.localDescription.sdp});
  if (!response.ok) throw new Error(await response.text());
  await pc.setRemoteDescription({type: "answer", sdp: await response.text()});
  return response.headers.get("Location");
}
async function publish(name) {
  const stream = await navigator.mediaDevices.getUserMedia({audio: true, video: {width: 960, height: 540}});
  window.pc = new RTCPeerConnection();
  pc.addTransceiver(stream.getAudioTracks()[0], {direction: "sendonly"});
  pc.addTransceiver(stream.getVideoTracks()[0], {direction: "sendonly", sendEncodings: [
    {rid: "l", scaleResolutionDownBy: 4, maxBitrate: 100_000}, {rid: "m", scaleResolutionDownBy: 2, maxBitrate: 300_000},
    {rid: "h", maxBitrate: 1_000_000}]});
  window.session = await offer(pc, "/whip/" + name);
}
async function play(name) {
  window.pc = new RTCPeerConnection();
  pc.addTransceiver("audio", {direction: "recvonly"});
  pc.addTransceiver("video", {direction: "recvonly"});
  const stream = new MediaStream();
  pc.ontrack = e => { stream.addTrack(e.track); document.getElementById("player").srcObject = stream; };
  window.session = await offer(pc, "/whep/" + name);
}
async function choose(rid) {
  await fetch(session + "/layer", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({rid, encodingId: rid})});
}
setInterval(async () => {
  if (!window.pc) return;
  const seen = {};
  for (const r of (await pc.getStats()).values()) {
    if (r.type === "inbound-rtp") seen[r.kind] = r;
    if (r.type === "outbound-rtp" && r.rid) seen[r.rid] = r;
  }
  window.seen = seen;
}, 100);
</script>`

// serveSFU runs a built-in server with the page on its root.
func serveSFU(t *testing.T, c pionsfu.Config) (url string) {
	t.Helper()
	server, err := pionsfu.New(c)
	if err != nil {
		t.Fatal(err)
	}
	background(t, server.Run)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte(sfuPage))
			return
		}
		server.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	return web.URL
}

// background runs something until the test ends.
func background(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func script(expression string) chromedp.Action[chromedp.Void] {
	return chromedp.Evaluate[chromedp.Void](expression + "; 0")
}

const (
	flows = `window.seen?.video?.framesDecoded > 60 && window.seen?.audio?.totalSamplesReceived > 48000`
	wide  = `window.seen.video.frameWidth === %d`
)

// A browser publishes its camera in layers and plays it through the built-in server, changes layers, and goes on when the
// publisher's page was loaded anew.
func TestBrowserThroughSFU(t *testing.T) {
	browser := browse(t)
	url := serveSFU(t, pionsfu.Config{UDPAddr: "127.0.0.1:0", PublisherGrace: time.Minute})
	publisher, player := tab(browser, t), tab(browser, t)
	publish := func() {
		t.Helper()
		do(publisher, t, "publish", chromedp.Navigate(url+"/"), script(`publish("camera")`), inPage(`window.seen?.l?.framesSent > 30`))
	}
	publish()
	do(player, t, "play", chromedp.Navigate(url+"/"), script(`play("camera")`), inPage(flows))
	for _, layer := range []struct {
		rid   string
		width int
	}{{"l", 240}, {"m", 480}} {
		do(player, t, "layer "+layer.rid, script(fmt.Sprintf(`choose(%q)`, layer.rid)), inPage(fmt.Sprintf(wide, layer.width)))
	}
	do(player, t, "count", script(`window.before = window.seen.video.framesDecoded`))
	publish() // loads the page anew, without a word to the server
	do(player, t, "go on", inPage(`window.pc.connectionState === "connected" && window.seen.video.framesDecoded > window.before + 100`))
	picture(player, t, "sfu")
}

// A browser whose path becomes narrow gets a layer that fits, and sound without a gap; and the best again when the path is wide.
func TestBrowserOnNarrowPath(t *testing.T) {
	browser := browse(t)
	network := wan.NewNetwork()
	background(t, network.Run)
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	out := wan.NewDirection(1, wan.Params{})
	var playing atomic.Bool
	var near sync.Map // addresses of the publisher
	wire := network.PacketConn(socket, func(remote netip.AddrPort) wan.Link {
		if !playing.Load() {
			near.Store(remote, true)
		}
		if _, ok := near.Load(remote); ok {
			return wan.Link{}
		}
		return wan.Link{Out: out}
	})
	mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: wire})
	t.Cleanup(func() { _ = mux.Close(); _ = wire.Close() })
	url := serveSFU(t, pionsfu.Config{Transport: media.Transport{UDPMux: mux, Loopback: true}})
	publisher, player := tab(browser, t), tab(browser, t)
	do(publisher, t, "publish", chromedp.Navigate(url+"/"), script(`publish("camera")`), inPage(`window.seen?.h?.framesSent > 60`))
	playing.Store(true)
	do(player, t, "play", chromedp.Navigate(url+"/"), script(`play("camera")`), inPage(flows+` && `+fmt.Sprintf(wide, 960)))
	out.Set(wan.Params{Rate: 500_000, Delay: 20 * time.Millisecond})
	do(player, t, "a layer that fits", inPage(`window.seen.video.frameWidth < 960`))
	do(player, t, "sound goes on", script(`window.heard = window.seen.audio.totalSamplesReceived; window.hidden = window.seen.audio.concealedSamples`),
		inPage(`window.seen.audio.totalSamplesReceived > window.heard + 5 * 48000`),
		inPage(`window.seen.audio.concealedSamples - window.hidden < 48000 / 4`))
	out.Set(wan.Params{Delay: 20 * time.Millisecond})
	do(player, t, "the best layer", inPage(fmt.Sprintf(wide, 960)))
}
