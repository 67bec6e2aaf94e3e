package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// browse starts a real browser with a camera that is not one; tests that have none skip.
func browse(t *testing.T) context.Context {
	t.Helper()
	if os.Getenv("E2E") == "" {
		t.Skip("run by make e2e")
	}
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("no browser: install chromium to run this test")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.NoSandbox, // it may run as root in CI, and shows only our own page
		chromedp.Flag("use-fake-device-for-media-stream", true),
		chromedp.Flag("use-fake-ui-for-media-stream", true),
		chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("allow-loopback-in-peer-connection", true), // as on a machine without a network
		chromedp.Flag("mute-audio", false),                       // what is muted is not decoded
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
	)
	allocator, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return ctx
}

// tab opens another tab of the browser.
func tab(ctx context.Context, t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	return ctx
}

// picture keeps a screenshot where the environment asks for it.
func picture(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("E2E_PICTURES")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// plays waits until so many frames were decoded, and sound with something in it.
func plays(frames int) chromedp.Action[chromedp.Void] {
	return chromedp.Steps(
		chromedp.Poll[chromedp.Void](`document.getElementById("player").srcObject`),
		chromedp.Evaluate[chromedp.Void](`document.getElementById("player").muted = false`),
		chromedp.Poll[chromedp.Void](fmt.Sprintf(
			`window.sidestream.stats.framesDecoded >= %d && window.sidestream.stats.audioEnergy > 0`, frames),
			chromedp.WithPollingInterval(100*time.Millisecond), chromedp.WithPollingTimeout(40*time.Second)),
	)
}

// seen is what the page says of a stream that it plays.
type seen struct {
	FirstFrameMs, RoundTripMs, FramesDecoded, AudioEnergy, Freezes, Width float64
	PacketsReceived                                                       float64
	Codec, Region                                                         string
}

func numbers(ctx context.Context, t *testing.T) seen {
	t.Helper()
	s, err := chromedp.Run(ctx, chromedp.Evaluate[seen]("window.sidestream.stats"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A browser watches the test clip from another region, and publishes its own camera, which another region watches. The
// distance is as in the demo.
func TestBrowser(t *testing.T) {
	browser := browse(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	p := start(t, nil, "demo", "-json", "-port", "0")
	ready := p.await(ctx, t, "ready", func(e event) bool { return e.Event == "ready" })
	url := map[string]string{}
	for _, r := range ready.Regions {
		url[r.Name] = r.URL
	}
	watching := tab(browser, t)
	if err := chromedp.Do(watching,
		chromedp.EmulateViewport(1200, 800),
		chromedp.Navigate(url["germany"]+"/?stream=demo&from=germany"),
		plays(90),
	); err != nil {
		picture(watching, t, "watch-failed")
		t.Fatalf("watch the clip in germany: %v: %+v", err, numbers(watching, t))
	}
	stats := numbers(watching, t)
	t.Logf("the clip, watched in germany: %+v", stats)
	picture(watching, t, "watch")
	if stats.RoundTripMs < 35 || stats.RoundTripMs > 120 {
		t.Errorf("round trip to germany %.0f ms, want some 40", stats.RoundTripMs)
	}
	if stats.Width != 640 {
		t.Errorf("the picture is %.0f wide, want 640", stats.Width)
	}

	publishing := tab(browser, t)
	if err := chromedp.Do(publishing,
		chromedp.EmulateViewport(1200, 800),
		chromedp.Navigate(url["singapore"]+"/sidestream/publish"),
		chromedp.SetValue(chromedp.CSS(`#form [name=stream]`), "camera"),
		chromedp.SetValue(chromedp.CSS(`#form [name=source]`), "camera"),
		chromedp.Click(chromedp.CSS(`#form [type=submit]`)),
		chromedp.Poll[chromedp.Void](`window.sidestream.published?.packetsSent > 100`, chromedp.WithPollingTimeout(40*time.Second)),
	); err != nil {
		t.Fatalf("publish a camera in singapore: %v", err)
	}
	picture(publishing, t, "publish")
	p.await(ctx, t, "the camera is published", func(e event) bool { return e.Event == "published" && e.Stream == "camera" })
	far := tab(browser, t)
	if err := chromedp.Do(far,
		chromedp.Navigate(url["germany"]+"/?stream=camera&from=germany"),
		plays(60),
	); err != nil {
		t.Fatalf("watch the camera in germany: %v", err)
	}
	t.Logf("the camera, watched in germany: %+v", numbers(far, t))
	relayed := p.await(ctx, t, "germany relays the camera", func(e event) bool { return e.Event == "relayed" && e.Stream == "camera" })
	if relayed.Region != "germany" {
		t.Errorf("relayed to %s", relayed.Region)
	}
}
