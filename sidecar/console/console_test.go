package console

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/sidecar/cascade"
)

func get(t *testing.T, h http.Handler, path string, header ...string) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Result(), string(body)
}

func everything() Options {
	return Options{
		Region:  "germany",
		Streams: func() []Stream { return []Stream{{Name: "demo", Origin: "singapore"}} },
		Cascade: func() cascade.Cascade { return cascade.Cascade{At: time.Now(), Here: "n1"} },
	}
}

func TestSettingsStayData(t *testing.T) {
	o := everything()
	o.Region = `germany </script><script>alert("&")`
	o.Regions = []Region{{Name: "us-west", URL: "http://127.0.0.1:8083/"}, {Name: "evil", URL: "javascript:alert(1)"}}
	o.Base, o.Places = "../gateway", map[string][2]float64{"germany": {50, 8}}
	h := Handler(o)
	for path, scripts := range map[string]int{"/": 3, "/publish": 2, "/measurements": 3, "/cascade": 2} {
		res, page := get(t, h, path)
		if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") {
			t.Fatalf("%s: %d %s", path, res.StatusCode, res.Header.Get("Content-Type"))
		}
		if strings.Count(page, "<script") != scripts || strings.Contains(page, `"javascript:`) && !strings.Contains(page, `"url":"javascript:`) {
			t.Errorf("settings have become code:\n%s", page)
		}
		match := regexp.MustCompile(`(?s)id="config">(.*?)</script>`).FindStringSubmatch(page)
		if match == nil {
			t.Fatal("the page has no settings")
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(match[1]), &got); err != nil {
			t.Fatal(err)
		}
		want := map[string]any{
			"page": got["page"], "region": o.Region, "stream": "demo", "base": "../gateway/", "list": true, "cascade": true,
			"places": map[string]any{"germany": []any{50.0, 8.0}},
			"regions": []any{
				map[string]any{"name": "us-west", "url": "http://127.0.0.1:8083/"}, map[string]any{"name": "evil", "url": "javascript:alert(1)"},
			},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: settings (-want +got):\n%s", path, diff)
		}
	}
}

// All that the pages name, and what their scripts import, is there and small, and nothing comes from another host.
func TestFiles(t *testing.T) {
	h := Handler(everything())
	for _, page := range []string{"/", "/publish", "/measurements", "/cascade"} {
		total := 0
		seen := map[string]bool{}
		var load func(path string)
		load = func(path string) {
			if seen[path] {
				return
			}
			seen[path] = true
			res, body := get(t, h, path)
			if res.StatusCode != http.StatusOK || body == "" {
				t.Errorf("%s: %d, %d bytes", path, res.StatusCode, len(body))
			}
			if policy := res.Header.Get("Content-Security-Policy"); policy != contentPolicy {
				t.Errorf("%s: Content-Security-Policy %q", path, policy)
			}
			if again, _ := get(t, h, path, "If-None-Match", res.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
				t.Errorf("%s: asked for again, %d", path, again.StatusCode)
			}
			total += len(body)
			if strings.HasSuffix(path, ".js") {
				for _, m := range regexp.MustCompile(`from "\./([^"]+)"`).FindAllStringSubmatch(body, -1) {
					load("/static/" + m[1])
				}
				for _, m := range regexp.MustCompile(`fetch\("(static/[^"]+)"`).FindAllStringSubmatch(body, -1) {
					load("/" + m[1])
				}
				return
			}
			for _, m := range regexp.MustCompile(`(?:src|href)="(static/[^"#]+)"`).FindAllStringSubmatch(body, -1) {
				load("/" + m[1])
			}
			if m := regexp.MustCompile(`(?:src|href)="[^"]*//[^"]*"`).FindString(body); m != "" && strings.HasSuffix(res.Header.Get("Content-Type"), "html") {
				t.Errorf("%s is elsewhere", m)
			}
		}
		load(page)
		if total > 300_000 {
			t.Errorf("%s weighs %d bytes", page, total)
		}
		if len(seen) < 5 {
			t.Errorf("%s loads only %v", page, seen)
		}
	}
	if res, _ := get(t, h, "/static/"); res.StatusCode != http.StatusNotFound {
		t.Errorf("the list of files: %d", res.StatusCode)
	}
}

// What is not wanted is not there.
func TestParts(t *testing.T) {
	admin := everything()
	admin.Base, admin.Streams = "none", nil
	closed := everything()
	closed.Allow, closed.StreamsClosed = Guard{Token: "hunter2"}.Allow, true
	for name, tt := range map[string]struct {
		o      Options
		path   string
		header []string
		status int
	}{
		"page":                  {Options{}, "/", nil, 200},
		"no cascade":            {Options{}, "/cascade", nil, 404},
		"no API of it":          {Options{}, "/api/cascade", nil, 404},
		"no list":               {Options{}, "/api/streams", nil, 404},
		"list":                  {everything(), "/api/streams", nil, 200},
		"ping":                  {Options{}, "/api/ping", nil, 204},
		"admin: cascade":        {admin, "/cascade", nil, 200},
		"admin: nothing played": {admin, "/publish", nil, 404},
		"admin: first":          {admin, "/", nil, 307},
		"closed: page":          {closed, "/cascade", nil, 200},
		"closed: API":           {closed, "/api/cascade", nil, 401},
		"closed: events":        {closed, "/api/cascade/events", nil, 401},
		"closed: list":          {closed, "/api/streams", nil, 401},
		"closed: with a token":  {closed, "/api/cascade", []string{"Authorization", "bearer hunter2"}, 200},
	} {
		if res, body := get(t, Handler(tt.o), tt.path, tt.header...); res.StatusCode != tt.status {
			t.Errorf("%s: %d %s", name, res.StatusCode, body)
		}
	}
	if res, _ := get(t, Handler(Options{}), "/api/ping"); res.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Error("pages of other regions may not ask how far it is")
	}
}

func TestGuard(t *testing.T) {
	proxy := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for name, tt := range map[string]struct {
		guard  Guard
		remote string
		header []string
		want   bool
	}{
		"nobody":                  {Guard{}, "10.0.0.1:1", []string{"Authorization", "Bearer "}, false},
		"token":                   {Guard{Token: "a"}, "192.0.2.1:1", []string{"Authorization", "Bearer a"}, true},
		"longer":                  {Guard{Token: "a"}, "192.0.2.1:1", []string{"Authorization", "Bearer aa"}, false},
		"another scheme":          {Guard{Token: "a"}, "192.0.2.1:1", []string{"Authorization", "Basic a"}, false},
		"none":                    {Guard{Token: "a"}, "192.0.2.1:1", nil, false},
		"proxy":                   {Guard{Header: "X-User", From: proxy}, "10.1.2.3:1", []string{"X-User", "me"}, true},
		"proxy, mapped":           {Guard{Header: "X-User", From: proxy}, "[::ffff:10.1.2.3]:1", []string{"X-User", "me"}, true},
		"proxy says nothing":      {Guard{Header: "X-User", From: proxy}, "10.1.2.3:1", nil, false},
		"somebody else":           {Guard{Header: "X-User", From: proxy}, "192.0.2.1:1", []string{"X-User", "me"}, false},
		"token beside the header": {Guard{Token: "a", Header: "X-User", From: proxy}, "192.0.2.1:1", []string{"Authorization", "Bearer a"}, true},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = tt.remote
		for i := 0; i < len(tt.header); i += 2 {
			r.Header.Set(tt.header[i], tt.header[i+1])
		}
		if got := tt.guard.Allow(r); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Many who watch cost no more looks than one, each hears every change, and nobody hears what is not new.
func TestWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks, version atomic.Int64
		c := &caster{look: func() cascade.Cascade {
			looks.Add(1)
			return cascade.Cascade{At: time.Now(), Here: "n1", Nodes: []cascade.Node{{Node: "n1", RTTMs: float64(version.Load())}}}
		}}
		type watcher struct {
			lines  chan string
			cancel func()
		}
		watch := func() watcher {
			r, w := io.Pipe()
			request := httptest.NewRequest(http.MethodGet, "/", nil)
			ctx, cancel := contextOf(t)
			request = request.WithContext(ctx)
			lines := make(chan string, 100)
			go c.stream(&piped{header: http.Header{}, to: w}, request)
			go func() {
				for s := bufio.NewScanner(r); s.Scan(); {
					if s.Text() != "" {
						lines <- s.Text()
					}
				}
			}()
			return watcher{lines, func() { cancel(); w.Close() }}
		}
		var all []watcher
		for range 5 {
			all = append(all, watch())
		}
		time.Sleep(10*period + period/2)
		synctest.Wait()
		if n := looks.Load(); n > 12 {
			t.Errorf("%d looks in ten seconds", n)
		}
		version.Add(1)
		time.Sleep(quiet + 2*period)
		synctest.Wait()
		for _, w := range all {
			if n := len(w.lines); n < 5 || n > 6 { // two events of two lines, and a comment or two
				t.Errorf("%d lines", n)
			}
		}
		for len(all) < maxWatchers {
			all = append(all, watch())
		}
		synctest.Wait()
		full := httptest.NewRecorder()
		c.stream(full, httptest.NewRequest(http.MethodGet, "/", nil))
		if full.Code != http.StatusServiceUnavailable {
			t.Errorf("one too many: %d", full.Code)
		}
		for _, w := range all {
			w.cancel()
		}
		synctest.Wait()
		if c.watchers != 0 {
			t.Errorf("%d watch still", c.watchers)
		}
	})
}
