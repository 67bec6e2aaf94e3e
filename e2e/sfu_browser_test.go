package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
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
  const stream = await navigator.mediaDevices.getUserMedia({audio: true, video: {width: 640, height: 480}});
  window.pc = new RTCPeerConnection();
  pc.addTransceiver(stream.getAudioTracks()[0], {direction: "sendonly"});
  pc.addTransceiver(stream.getVideoTracks()[0], {direction: "sendonly", sendEncodings: [
    {rid: "l", scaleResolutionDownBy: 4, maxBitrate: 100_000}, {rid: "m", scaleResolutionDownBy: 2, maxBitrate: 300_000},
    {rid: "h", maxBitrate: 900_000}]});
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

// A browser publishes its camera in layers and plays it through the built-in server, changes layers, and goes on when the
// publisher's page was loaded anew.
func TestBrowserThroughSFU(t *testing.T) {
	browser := browse(t)
	server, err := pionsfu.New(pionsfu.Config{UDPAddr: "127.0.0.1:0", PublisherGrace: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte(sfuPage))
			return
		}
		server.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	do := func(ctx context.Context, what string, actions ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(ctx, actions...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	call := func(expression string) chromedp.Action[chromedp.Void] {
		return chromedp.Evaluate[chromedp.Void](expression + "; 0")
	}
	publisher, player := tab(browser, t), tab(browser, t)
	begin := func() {
		t.Helper()
		do(publisher, "publish", chromedp.Navigate(web.URL+"/"), call(`publish("camera")`),
			inPage(`window.seen?.l?.framesSent > 30`))
	}
	begin()
	do(player, "play", chromedp.Navigate(web.URL+"/"), call(`play("camera")`),
		inPage(`window.seen?.video?.framesDecoded > 60 && window.seen?.audio?.totalSamplesReceived > 48000`))
	for _, layer := range []struct {
		rid   string
		width int
	}{{"l", 160}, {"m", 320}} {
		do(player, "layer "+layer.rid, call(fmt.Sprintf(`choose(%q)`, layer.rid)),
			inPage(fmt.Sprintf(`window.seen.video.frameWidth === %d`, layer.width)))
	}
	do(player, "count", call(`window.before = window.seen.video.framesDecoded`))
	begin() // loads the page anew, without a word to the server
	do(player, "go on", inPage(`window.pc.connectionState === "connected" && window.seen.video.framesDecoded > window.before + 100`))
	picture(player, t, "sfu")
}
