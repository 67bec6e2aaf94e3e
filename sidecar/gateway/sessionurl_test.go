package gateway

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
)

func TestRelink(t *testing.T) {
	base, _ := url.Parse("http://sfu:8800/live/demo/whep")
	own := func(host string) bool { return host == "sfu:8800" || host == "live.example.org" }
	rename := func(u *url.URL) string { return "[" + u.RequestURI() + "]" }
	for name, tt := range map[string]struct{ in, want []string }{
		"path":           {[]string{`</a>; rel="x"`}, []string{`<[/a]>; rel="x"`}},
		"relative":       {[]string{`<b?c=1#d>`}, []string{`<[/live/demo/b?c=1]>`}},
		"absolute":       {[]string{`<http://sfu:8800/a>,<https://live.example.org/b>`}, []string{`<[/a]>,<[/b]>`}},
		"others":         {[]string{`<https://other/a>; rel=x, <turn:h?transport=udp>; rel="ice-server"`}, nil},
		"quoted comma":   {[]string{`</a>; t="x, </b>; \", </c>", </d>`}, []string{`<[/a]>; t="x, </b>; \", </c>", <[/d]>`}},
		"several lines":  {[]string{`</a>`, `</b>`}, []string{`<[/a]>`, `<[/b]>`}},
		"empty elements": {[]string{` , ,	</a> ,`}, []string{` , ,	<[/a]> ,`}},
		"no bracket":     {[]string{`/a; rel=x, </b>`}, nil},
		"open bracket":   {[]string{`</a>, </b`}, []string{`<[/a]>, </b`}},
		"open quote":     {[]string{`</a>; t="x, </b>`}, []string{`<[/a]>; t="x, </b>`}},
		"last backslash": {[]string{`</a>; t="x\`}, []string{`<[/a]>; t="x\`}},
		"empty":          {[]string{``, `<>`}, nil},
		"no URL":         {[]string{`<http://[>, </a>`}, []string{`<http://[>, <[/a]>`}},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.want == nil {
				tt.want = append([]string(nil), tt.in...)
			}
			h := http.Header{"Link": tt.in}
			relink(h, base, own, rename)
			if diff := cmp.Diff(tt.want, h["Link"]); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// FuzzSessionPath: whatever a path is, it leads into the server's own paths or nowhere.
func FuzzSessionPath(f *testing.F) {
	for _, seed := range []string{
		"/_sidestream/node-1/live/demo/whep/1", "/_sidestream/a/b%2Fc", "/_sidestream/a/../b", "/_sidestream/a//b", "/_sidestream/a/%2e%2e/b",
		"/_sidestream-pull/node-1/ZGVtbw/live/demo/whep/1", "/_sidestream-pull/a/Li4/b", "/_sidestream/a/%5c", "/x", "", "/_sidestream/a/é",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		incoming, err := url.ParseRequestURI(raw)
		if err != nil {
			return
		}
		escaped := incoming.EscapedPath()
		check := func(node, path, back string) {
			to := &url.URL{Scheme: "http", Host: "sfu"}
			setPath(to, path)
			sent, err := url.Parse(to.String())
			if err != nil {
				t.Fatalf("%q leads to %q: %v", raw, to, err)
			}
			clean := sent.JoinPath()
			if sent.Host != "sfu" || sent.User != nil || !strings.HasPrefix(sent.Path, "/") || strings.HasPrefix(sent.Path, "//") ||
				sent.RawQuery != "" || reserved(sent.Path) || strings.ContainsAny(sent.Path, "\\\x00\r\n") ||
				strings.Contains(sent.Path+"/", "/../") || strings.Contains(sent.Path+"/", "/./") {
				t.Fatalf("%q leads to %q (%q)", raw, sent, clean)
			}
			if node == "" || strings.ContainsAny(node, "/%:@") || node == ".." {
				t.Fatalf("%q names node %q", raw, node)
			}
			if back != escaped {
				t.Fatalf("%q is written %q", escaped, back)
			}
		}
		if node, path, ok := parseSession(escaped); ok {
			u := &url.URL{}
			setPath(u, path)
			back, _ := formatSession(node, u)
			check(node, path, back)
		}
		if node, id, path, ok := parsePull(escaped); ok {
			u := &url.URL{}
			setPath(u, path)
			back, _ := formatPull(node, id, u)
			check(node, path, back)
			if id.Validate() != nil {
				t.Fatalf("%q names stream %q", raw, id)
			}
		}
		if _, _, ok := parseSession(escaped); ok && !reserved(incoming.Path) {
			t.Fatalf("%q is a session URL that the server would see", raw)
		}
	})
}

// FuzzLinks: targets are replaced, and nothing else changes.
func FuzzLinks(f *testing.F) {
	f.Add(`</a>; rel="x", <b>; t="\",<"`)
	f.Add(`<`)
	f.Fuzz(func(t *testing.T, value string) {
		if got := replaceTargets(value, func(s string) string { return s }); got != value {
			t.Fatalf("%q became %q", value, got)
		}
		count := 0
		replaceTargets(value, func(s string) string { count++; return s })
		if count > strings.Count(value, "<") {
			t.Fatalf("%d targets in %q", count, value)
		}
	})
}

// FuzzCandidates: an answer grows by candidates only, and only once.
func FuzzCandidates(f *testing.F) {
	f.Add("m=a\r\na=candidate:1 1 udp 9 1.2.3.4 1 typ host\r\n")
	f.Fuzz(func(t *testing.T, sdp string) {
		once := addCandidate([]byte(sdp), testIP)
		if twice := addCandidate(once, testIP); string(twice) != string(once) {
			t.Fatalf("%q, then %q", once, twice)
		}
	})
}

func TestPullURLs(t *testing.T) {
	for _, id := range []adapters.StreamID{"demo", "a/b", "ü", adapters.StreamID(strings.Repeat("x", adapters.MaxStreamID))} {
		u, _ := url.Parse("http://sfu/live/x%2Fy/whep/1?a=b")
		path, ok := formatPull("node-1", id, u)
		if !ok {
			t.Fatal(id)
		}
		back, _ := url.Parse(path)
		node, got, own, ok := parsePull(back.EscapedPath())
		if !ok || node != "node-1" || got != id || own != "/live/x%2Fy/whep/1" || back.RawQuery != "a=b" {
			t.Errorf("%q: %q %q %q %v", path, node, got, own, ok)
		}
	}
}
