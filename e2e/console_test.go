package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// inPage polls an expression in a page.
func inPage(expression string) chromedp.Action[chromedp.Void] {
	return chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingInterval(100*time.Millisecond), chromedp.WithPollingTimeout(40*time.Second))
}

// drawn waits until a page has been drawn as it is now: layouts follow a change of the window's size later.
func drawn() chromedp.Action[chromedp.Void] {
	return chromedp.Steps(chromedp.Evaluate[chromedp.Void](`window.drawn = 0`),
		inPage(`(requestAnimationFrame(() => { window.drawn++; }), window.drawn > 3)`))
}

// scheme has pages think that the visitor wants it dark or light.
func scheme(name string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
		})
		return err
	})
}

// pictures keeps a page in both schemes, and as a phone shows it.
func pictures(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	for _, s := range []string{"dark", "light"} {
		if err := chromedp.Do(ctx, scheme(s), drawn()); err != nil {
			t.Fatal(err)
		}
		picture(ctx, t, name+"-"+s)
	}
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(390, 800), inPage(`innerWidth === 390`), drawn()); err != nil {
		t.Fatal(err)
	}
	wide, err := chromedp.Run(ctx, chromedp.Evaluate[float64](`document.documentElement.scrollWidth`))
	if err != nil || wide > 390 {
		t.Errorf("on a phone %s is %.0f wide: %v", name, wide, err)
	}
	picture(ctx, t, name+"-phone")
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1200, 900), inPage(`innerWidth === 1200`), drawn()); err != nil {
		t.Fatal(err)
	}
}

// do runs steps in a page, of which a picture is kept when they fail.
func do(ctx context.Context, t *testing.T, what string, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Error(what, err)
		picture(ctx, t, strings.ReplaceAll(what, " ", "-")+"-failed")
		words, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText.slice(0, 2000)`))
		t.Fatalf("%s: %v\n%s", what, err, words)
	}
}

// The console as a visitor has it: watch, lose packets, record, compare, save and load; and the cascade of it all.
func TestConsole(t *testing.T) {
	chromium := browse(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p := start(t, nil, "demo", "-json", "-port", "0")
	ready := p.await(ctx, t, "ready", func(e event) bool { return e.Event == "ready" })
	url, admin := map[string]string{}, map[string]string{}
	for _, r := range ready.Regions {
		url[r.Name], admin[r.Name] = r.URL, r.Admin
	}
	page := tab(chromium, t)
	downloads := t.TempDir()
	do(page, t, "play", chromedp.EmulateViewport(1200, 900),
		chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			_, err := cdp.Call(ctx, t, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
				Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: downloads,
			})
			return err
		}),
		chromedp.Navigate(url["germany"]+"/?stream=demo"), plays(60),
		inPage(`document.getElementById("way").textContent.includes("singapore → germany")`),
	)
	if s := numbers(page, t); s.Region != "germany" || s.RoundTripMs < 35 || s.RoundTripMs > 120 {
		t.Errorf("the nearest region: %+v", s)
	}
	// What the page counted, the server sent.
	sent := func() float64 {
		return metric(ctx, t, admin["germany"], `sidestream_sfu_packets_total{direction="out"`)
	}
	had, before := numbers(page, t).PacketsReceived, sent()
	do(page, t, "play on", inPage(fmt.Sprintf(`window.sidestream.stats.packetsReceived > %f + 300`, had)))
	if got, want := numbers(page, t).PacketsReceived-had, sent()-before; got < 0.7*want-100 || got > 1.1*want+300 {
		t.Errorf("the page counts %.0f packets more, the server %.0f", got, want)
	}

	// Nothing was asked of any other host.
	hosts, err := chromedp.Run(page, chromedp.Evaluate[[]string](
		`performance.getEntriesByType("resource").map((e) => new URL(e.name).origin).filter((o, i, all) => all.indexOf(o) === i)`))
	if err != nil || len(hosts) == 0 {
		t.Error(hosts, err)
	}
	for _, h := range hosts {
		if h != url["germany"] && h != url["singapore"] && h != url["us-west"] {
			t.Errorf("it asks %s", h)
		}
	}
	paint, err := chromedp.Run(page, chromedp.Evaluate[float64](`performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? -1`))
	t.Logf("first paint after %.0f ms %v", paint, err)
	latency, err := chromedp.Run(page, chromedp.Evaluate[float64](`window.sidestream.stats.latencyMs ?? -1`))
	t.Logf("since the capture: %.0f ms %v", latency, err)

	// Record what loss does.
	do(page, t, "lose", chromedp.Click(chromedp.CSS(`#record`)),
		chromedp.Evaluate[chromedp.Void](`(() => { const l = document.getElementById("loss"); l.value = 6; l.dispatchEvent(new Event("input")); l.dispatchEvent(new Event("change")); })()`),
		inPage(`window.sidestream.stats.lossPercent > 2 && window.sidestream.stats.nacks > 0`),
		inPage(`document.getElementById("record-status").textContent.match(/[5-9] s|\d\d s/)`),
	)
	pictures(page, t, "play")
	do(page, t, "stop recording", chromedp.Click(chromedp.CSS(`#record`)), inPage(`document.getElementById("record-status").textContent.includes("Recorded")`))

	// The article's comparison: one click on the way there, one to begin.
	do(page, t, "compare", chromedp.Click(chromedp.CSS(`a[href="measurements"]`)), chromedp.WaitVisible(chromedp.CSS(`#compare`)),
		inPage(`document.getElementById("compare")?.dataset.ready === ""`),
		chromedp.SetValue(chromedp.CSS(`#compare [name=seconds]`), "15"),
		chromedp.Click(chromedp.CSS(`#compare [type=submit]`)),
		inPage(`document.getElementById("compare-status").textContent.startsWith("Done")`),
	)
	pictures(page, t, "measurements")
	type sums []map[string]float64
	measured, err := chromedp.Run(page, chromedp.Evaluate[sums](`window.sidestream.measurements`))
	if err != nil || len(measured) != 3 {
		t.Fatalf("%d measurements: %v", len(measured), err)
	}
	t.Logf("recorded, far and near: %v", measured)
	if measured[0]["Packets lost, %"] < 1 || measured[1]["Round trip, ms"] < measured[2]["Round trip, ms"]+80 {
		t.Errorf("%v", measured)
	}

	// Saved, forgotten, loaded: the same.
	do(page, t, "save", chromedp.Click(chromedp.CSS(`#save`)))
	var file string
	for file == "" {
		found, _ := filepath.Glob(filepath.Join(downloads, "*.json"))
		if len(found) > 0 {
			file = found[0]
		}
		select {
		case <-ctx.Done():
			t.Fatal("no file was saved")
		case <-time.After(50 * time.Millisecond):
		}
	}
	do(page, t, "load", chromedp.Click(chromedp.CSS(`#clear`)), inPage(`window.sidestream.measurements.length === 0`),
		chromedp.SetUploadFiles(chromedp.CSS(`#load`), []string{file}), inPage(`window.sidestream.measurements.length === 3`))
	again, err := chromedp.Run(page, chromedp.Evaluate[sums](`window.sidestream.measurements`))
	was, _ := json.Marshal(measured)
	is, _ := json.Marshal(again)
	if err != nil || string(was) != string(is) {
		t.Errorf("saved and loaded\n%s\nbecame\n%s", was, is)
	}
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`{"format":"other"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	do(page, t, "load nonsense", chromedp.SetUploadFiles(chromedp.CSS(`#load`), []string{bad}),
		inPage(`document.getElementById("list-status").textContent.includes("no measurements")`))

	// All of it crosses once, and the cascade shows it.
	watching := tab(chromium, t)
	do(watching, t, "watch while operators look", chromedp.Navigate(url["germany"]+"/sidestream/?stream=demo&from=germany"), plays(30))
	do(page, t, "cascade", chromedp.Navigate(url["us-west"]+"/sidestream/cascade"),
		inPage(`window.sidestream.cascade?.flows.some((f) => f.from === "singapore" && f.to === "germany" && f.bits > 1e5)`),
		inPage(`window.sidestream.cascade.streams[0].viewers.germany === 1`),
		chromedp.Click(chromedp.CSS(`#nodes tbody button`)), inPage(`!document.getElementById("node").hidden`),
	)
	pictures(page, t, "cascade")
}

// metric adds up the samples of one name, with some of its labels, at a node.
func metric(ctx context.Context, t *testing.T, admin, name string) (sum float64) {
	t.Helper()
	for _, line := range strings.Split(string(getBody(ctx, t, admin+"/metrics")), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok && (strings.HasPrefix(rest, "{") || strings.HasPrefix(rest, " ") || strings.HasPrefix(rest, "}") || strings.HasPrefix(rest, ",")) {
			var v float64
			if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &v); err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// A parent dies: operators see the child with another one. The pages of a region that dies and comes back go on.
func TestConsoleSurvives(t *testing.T) {
	chromium := browse(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	origin, parent, child, _ := cascade(ctx, t)
	page := tab(chromium, t)
	relays := func(condition string) string {
		return fmt.Sprintf(`(window.sidestream.cascade?.nodes ?? []).flatMap((n) => n.report?.relays ?? []).filter((r) => r.state === "live").%s`, condition)
	}
	do(page, t, "cascade", chromedp.EmulateViewport(1200, 900), chromedp.Navigate(origin.admin+"/sidestream/"),
		inPage(relays(`filter((r) => r.path.length === 3).length === 1`)), inPage(relays(`length === 2`)))
	if err := parent.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	do(page, t, "another parent", inPage(relays(`every((r) => r.path.length === 2)`)+` && `+relays(`length === 1`)),
		inPage(`window.sidestream.cascade.nodes.some((n) => !n.connected) || window.sidestream.cascade.nodes.length === 2`))
	pictures(page, t, "re-parented")
	child.until(ctx, t, "the child relays", func(st siteStatus) bool { return len(st.Relays) == 1 && st.Relays[0].State == "live" })
}

// A region dies under a page of another one, and comes back: the picture does, too, by itself.
func TestConsoleOutlivesRegion(t *testing.T) {
	chromium := browse(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	pods := startPods(ctx, t, "singapore", "germany")
	here, there := pods[0], pods[1]
	_ = here.sidecar.cmd.Process.Kill()
	_ = here.sidecar.cmd.Wait()
	here.env = append(here.env, "SIDESTREAM_CONSOLE_ENABLED=true",
		"SIDESTREAM_CONSOLE_REGIONS=singapore="+here.url+"/sidestream/,germany="+there.url+"/sidestream/")
	here.startSidecar(t)
	here.until(ctx, t, "all peers", peers(1))
	publish(ctx, t, here.url+"/whip/show")
	there.until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
	page := tab(chromium, t)
	do(page, t, "play from there", chromedp.EmulateViewport(1200, 900), chromedp.Navigate(here.url+"/sidestream/?stream=show&from=germany"), plays(30))
	for _, p := range []*process{there.sidecar, there.sfu} {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
	do(page, t, "the region is gone", inPage(`document.getElementById("status").textContent.includes("Trying again")`))
	picture(page, t, "region-gone")
	there.startSFU(t)
	there.startSidecar(t)
	do(page, t, "it is back", chromedp.Evaluate[chromedp.Void](`window.sidestream.stats = {}`), plays(30))
	if s := numbers(page, t); s.Region != "germany" {
		t.Errorf("%+v", s)
	}
}

// Three qualities of a camera, of which the viewer takes the lowest.
func TestConsoleQuality(t *testing.T) {
	chromium := browse(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	site := startSitesWith(ctx, t, map[int][]string{0: {"SIDESTREAM_CONSOLE_ENABLED=true"}}, "germany")[0]
	publishing, watching := tab(chromium, t), tab(chromium, t)
	do(publishing, t, "publish in three qualities", chromedp.EmulateViewport(1200, 900), chromedp.Navigate(site.url+"/sidestream/publish"),
		chromedp.SetValue(chromedp.CSS(`#form [name=source]`), "camera"), chromedp.Click(chromedp.CSS(`#form [name=simulcast]`)),
		chromedp.Click(chromedp.CSS(`#form [type=submit]`)),
		inPage(`window.sidestream.published?.layers === 3 && window.sidestream.published.framesEncoded > 60`))
	pictures(publishing, t, "publish-page")
	do(watching, t, "choose", chromedp.EmulateViewport(1200, 900), chromedp.Navigate(site.url+"/sidestream/?stream=studio"), plays(30),
		inPage(`!document.getElementById("layer-field").hidden && document.getElementById("layer").options.length === 4`),
		chromedp.Evaluate[chromedp.Void](`(() => { const l = document.getElementById("layer"); l.value = [...l.options].find((o) => o.value.endsWith(" l")).value; l.dispatchEvent(new Event("change")); })()`),
		inPage(`window.sidestream.stats.width > 0 && window.sidestream.stats.width <= 320`),
		chromedp.Evaluate[chromedp.Void](`(() => { const l = document.getElementById("layer"); l.value = [...l.options].find((o) => o.value.endsWith(" h")).value; l.dispatchEvent(new Event("change")); })()`),
		inPage(`window.sidestream.stats.width >= 640`),
	)
	picture(watching, t, "quality")
}

// Operators show a token; the proxy's header counts only where it comes from the proxy.
func TestConsoleIsClosed(t *testing.T) {
	if os.Getenv("E2E") == "" {
		t.Skip("run by make e2e")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sites := startSitesWith(ctx, t, map[int][]string{
		0: {"SIDESTREAM_CONSOLE_ENABLED=true", "SIDESTREAM_CONSOLE_TOKEN=hunter2"},
		1: {
			"SIDESTREAM_CONSOLE_ENABLED=true", "SIDESTREAM_CONSOLE_PROXY_HEADER=X-Forwarded-User",
			"SIDESTREAM_GATEWAY_TRUSTED_PROXIES=127.0.0.0/8",
		},
		2: {"SIDESTREAM_CONSOLE_ENABLED=true"},
		3: {},
	}, "token", "proxy", "pages", "none")
	for _, tt := range []struct {
		url    string
		header [2]string
		status int
	}{
		{sites[0].url + "/sidestream/", [2]string{}, 200},
		{sites[0].url + "/sidestream/cascade", [2]string{}, 200}, // a page that asks for the token
		{sites[0].url + "/sidestream/api/cascade", [2]string{}, 401},
		{sites[0].url + "/sidestream/api/cascade/events", [2]string{}, 401},
		{sites[0].url + "/sidestream/api/cascade", [2]string{"Authorization", "Bearer hunter3"}, 401},
		{sites[0].url + "/sidestream/api/cascade", [2]string{"X-Forwarded-User", "me"}, 401},
		{sites[0].url + "/sidestream/api/cascade", [2]string{"Authorization", "Bearer hunter2"}, 200},
		{sites[1].url + "/sidestream/api/cascade", [2]string{"X-Forwarded-User", "me"}, 200},
		{sites[1].url + "/sidestream/api/cascade", [2]string{}, 401},
		{sites[2].url + "/sidestream/api/cascade", [2]string{}, 404},
		{sites[2].url + "/sidestream/api/streams", [2]string{}, 200},
		{sites[2].admin + "/sidestream/api/cascade", [2]string{}, 200},
		{sites[3].url + "/sidestream/", [2]string{}, 404}, // the server's own word
	} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, tt.url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if tt.header[0] != "" {
			r.Header.Set(tt.header[0], tt.header[1])
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != tt.status {
			t.Errorf("%s with %v: %d, want %d", tt.url, tt.header, res.StatusCode, tt.status)
		}
	}
}
