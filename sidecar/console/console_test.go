package console

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

func TestPage(t *testing.T) {
	h := Handler(Options{
		Region:  `germany </script><script>alert("&")`,
		Regions: []Region{{Name: "us-west", URL: "http://127.0.0.1:8083/"}, {Name: "evil", URL: "javascript:alert(1)"}},
		Base:    "../gateway",
	})
	res, page := get(t, h, "/")
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") {
		t.Fatalf("%d %s", res.StatusCode, res.Header.Get("Content-Type"))
	}
	if !strings.Contains(page, `href="http://127.0.0.1:8083/"`) {
		t.Error("the link to us-west is missing")
	}
	if strings.Contains(page, "javascript:") || strings.Count(page, "<script") != 2 {
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
	want := map[string]any{"region": `germany </script><script>alert("&")`, "stream": "demo", "base": "../gateway/"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

// All that the page names is there, small, and nothing comes from another host.
func TestFiles(t *testing.T) {
	h := Handler(Options{Region: "germany"})
	_, page := get(t, h, "/")
	total := len(page)
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"#]+)"`).FindAllStringSubmatch(page, -1) {
		if strings.Contains(m[1], "//") {
			t.Errorf("%s is elsewhere", m[1])
		}
		res, body := get(t, h, "/"+m[1])
		if res.StatusCode != http.StatusOK || body == "" {
			t.Errorf("%s: %d, %d bytes", m[1], res.StatusCode, len(body))
		}
		if policy := res.Header.Get("Content-Security-Policy"); policy != contentPolicy {
			t.Errorf("%s: Content-Security-Policy %q", m[1], policy)
		}
		if again, _ := get(t, h, "/"+m[1], "If-None-Match", res.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s: asked for again, %d", m[1], again.StatusCode)
		}
		total += len(body)
	}
	if total > 60_000 {
		t.Errorf("the page weighs %d bytes", total)
	}
	for path, want := range map[string]string{
		"/static/console.js": "text/javascript", "/static/console.css": "text/css", "/static/icon.svg": "image/svg+xml",
	} {
		if res, _ := get(t, h, path); !strings.HasPrefix(res.Header.Get("Content-Type"), want) {
			t.Errorf("%s is %s, want %s", path, res.Header.Get("Content-Type"), want)
		}
	}
}

func TestNotServed(t *testing.T) {
	h := Handler(Options{})
	for _, path := range []string{"/static/", "/static/none", "/index.html", "/console.go", "/whep/demo"} {
		if res, _ := get(t, h, path); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
}

// Every region's page shows the regions in the same order, and itself as where one is.
func TestRegions(t *testing.T) {
	regions := []Region{{"germany", "http://a/"}, {"singapore", "http://b/"}}
	_, page := get(t, Handler(Options{Region: "singapore", Regions: regions}), "/")
	germany, singapore := strings.Index(page, `href="http://a/"`), strings.Index(page, `You are at </span>singapore`)
	if germany < 0 || singapore < germany || strings.Contains(page, `href="http://b/"`) {
		t.Errorf("germany at %d, singapore at %d in:\n%s", germany, singapore, page)
	}
	if _, page = get(t, Handler(Options{Region: "alone"}), "/"); !strings.Contains(page, `You are at </span>alone`) {
		t.Error("a region without others does not say its name")
	}
}
