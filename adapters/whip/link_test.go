package whip

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/webrtc/v4"
)

func TestParseLinks(t *testing.T) {
	link := func(target string, params ...string) Link {
		l := Link{Target: target}
		for i := 0; i < len(params); i += 2 {
			l.Params = append(l.Params, LinkParam{params[i], params[i+1]})
		}
		return l
	}
	for _, tt := range []struct {
		name  string
		lines []string
		want  []Link
	}{
		{"none", nil, nil},
		{"token", []string{`<stun:s.example>; rel=ice-server`}, []Link{link("stun:s.example", "rel", "ice-server")}},
		{
			"list and lines",
			[]string{`<a>; rel=x, <b>; rel=y`, `<c>`},
			[]Link{link("a", "rel", "x"), link("b", "rel", "y"), link("c")},
		},
		{
			"commas, semicolons and escapes in quotes",
			[]string{`<turn:t.example?transport=udp>; rel="ice-server"; username="a,b;<c>"; credential="\"q\\\,", <b>`},
			[]Link{
				link("turn:t.example?transport=udp", "rel", "ice-server", "username", "a,b;<c>", "credential", `"q\,`),
				link("b"),
			},
		},
		{"comma in target", []string{`<http://e/a,b;c>;rel=x`}, []Link{link("http://e/a,b;c", "rel", "x")}},
		{"space around", []string{" ,, <a> ; REL = \"x\" ;; y ,\t"}, []Link{link("a", "rel", "x", "y", "")}},
		{"bad one is skipped", []string{`nonsense "a,b" <x,y>, <b>`, `<c>; =x, <d>`}, []Link{link("b"), link("d")}},
		{"open bracket", []string{`<a`, `<b>`}, []Link{link("b")}},
		{"open quote takes the rest", []string{`<a>, <b>; rel="x, <c>`}, []Link{link("a")}},
		{"escape at the end", []string{`<b>; rel="x\`}, nil},
		{"line too long", []string{`<a>; x="` + strings.Repeat("y", maxLinkLine) + `"`, `<b>`}, []Link{link("b")}},
		{"too many parameters", []string{`<a>` + strings.Repeat(";x", maxLinkParams+1) + `,<b>`}, []Link{link("b")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, ParseLinks(http.Header{"Link": tt.lines})); diff != "" {
				t.Errorf("ParseLinks (-want +got):\n%s", diff)
			}
		})
	}
	if got := len(ParseLinks(http.Header{"Link": {strings.Repeat("<a>,", 1000)}})); got != maxLinks {
		t.Errorf("%d links of 1000, want %d", got, maxLinks)
	}
}

func TestC7UnknownRelsIgnored(t *testing.T) {
	h := http.Header{"Link": {
		`<http://s/events>; rel="urn:ietf:params:whep:ext:core:server-sent-events"; events="active,inactive"`,
		`<stun:s.example:3478>; rel="preconnect ICE-Server", <stun:other.example>; rel="next"; rel="ice-server"`,
		`<turn:t.example?transport=tcp>; rel=ice-server; username="u,1"; credential="p\"2"; credential-type="password"`,
		`<turn:no-credentials.example>; rel="ice-server"`,
		`<turn:oauth.example>; rel="ice-server"; username="u"; credential="p"; credential-type="oauth"`,
		`<http://not-ice.example>; rel="ice-server"`,
	}}
	want := []webrtc.ICEServer{
		{URLs: []string{"stun:s.example:3478"}},
		{URLs: []string{"turn:t.example?transport=tcp"}, Username: "u,1", Credential: `p"2`},
	}
	if diff := cmp.Diff(want, ICEServers(h)); diff != "" {
		t.Errorf("ICEServers (-want +got):\n%s", diff)
	}
}

func TestFormatICEServerLink(t *testing.T) {
	for _, tt := range []struct {
		name   string
		server webrtc.ICEServer
		want   []string
	}{
		{"stun", webrtc.ICEServer{URLs: []string{"stun:s.example"}}, []string{`<stun:s.example>; rel="ice-server"`}},
		{
			"turn",
			webrtc.ICEServer{URLs: []string{"turn:t?transport=udp", "turns:t"}, Username: `u"\`, Credential: "p, q"},
			[]string{
				`<turn:t?transport=udp>; rel="ice-server"; username="u\"\\"; credential="p, q"; credential-type="password"`,
				`<turns:t>; rel="ice-server"; username="u\"\\"; credential="p, q"; credential-type="password"`,
			},
		},
		{"line break", webrtc.ICEServer{URLs: []string{"turn:t"}, Username: "u\r\nX: y", Credential: "p"}, nil},
		{"bracket", webrtc.ICEServer{URLs: []string{"stun:a>b"}}, nil},
		{"oauth", webrtc.ICEServer{
			URLs: []string{"turn:t"}, Username: "u", Credential: webrtc.OAuthCredential{},
			CredentialType: webrtc.ICECredentialTypeOauth,
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := FormatICEServerLink(tt.server)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatalf("FormatICEServerLink (-want +got):\n%s", diff)
			}
			for i, back := range ICEServers(http.Header{"Link": got}) {
				want := tt.server
				want.URLs = want.URLs[i : i+1]
				if diff := cmp.Diff(want, back); diff != "" {
					t.Errorf("read back (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func FuzzParseLinks(f *testing.F) {
	f.Add(`<turn:t?transport=udp>; rel="ice-server"; username="a\"b\\"; credential=",;", <b>;c;;d = e`, "<c>")
	f.Add(`<a`, `<b>; rel="`)
	f.Add(`x,<a>;="`, `<a>;b="\`)
	f.Fuzz(func(t *testing.T, first, second string) {
		links := ParseLinks(http.Header{"Link": {first, second}})
		if len(links) > maxLinks {
			t.Fatalf("%d links", len(links))
		}
		for _, l := range links {
			if len(l.String()) > maxLinkLine {
				continue // quoting has made it longer than what is read
			}
			back := ParseLinks(http.Header{"Link": {l.String()}})
			if diff := cmp.Diff([]Link{l}, back); diff != "" {
				t.Fatalf("%q read back (-want +got):\n%s", l, diff)
			}
		}
		ICEServers(http.Header{"Link": {first, second}})
	})
}
