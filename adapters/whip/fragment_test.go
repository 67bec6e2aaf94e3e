package whip

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func lines(l ...string) string { return strings.Join(l, "\r\n") + "\r\n" }

func TestParseFragment(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		want       Fragment
	}{
		{
			"trickle (RFC 9725, figure 4)",
			lines("a=group:BUNDLE 0 1", "m=audio 9 UDP/TLS/RTP/SAVPF 111", "a=mid:0", "a=ice-ufrag:EsAw",
				"a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1",
				"a=candidate:1387637174 1 udp 2122260223 192.0.2.1 61764 typ host generation 0 ufrag EsAw network-id 1",
				"a=candidate:3471623853 1 udp 2122194687 198.51.100.2 61765 typ host", "a=end-of-candidates"),
			Fragment{Media: []FragmentMedia{{
				Line: "audio 9 UDP/TLS/RTP/SAVPF 111", MID: "0",
				FragmentICE: FragmentICE{
					Ufrag: "EsAw", Pwd: "P2uYro0UCOQ4zxjKXaWCBui1",
					Candidates: []string{
						"1387637174 1 udp 2122260223 192.0.2.1 61764 typ host generation 0 ufrag EsAw network-id 1",
						"3471623853 1 udp 2122194687 198.51.100.2 61765 typ host",
					},
					EndOfCandidates: true,
				},
			}}},
		},
		{
			"restart, of the session",
			lines("a=ice-lite", "a=ice-options:trickle ice2", "a=ice-ufrag:289b31b754eaa438",
				"a=ice-pwd:0b66f472495ef0ccac7bda653ab6be49ea13114472a5d10a", "m=video 9 RTP/AVP 0", "a=mid:v"),
			Fragment{
				FragmentICE: FragmentICE{
					Ufrag: "289b31b754eaa438", Pwd: "0b66f472495ef0ccac7bda653ab6be49ea13114472a5d10a",
				},
				Lite: true, Options: []string{"trickle", "ice2"},
				Media: []FragmentMedia{{Line: "video 9 RTP/AVP 0", MID: "v"}},
			},
		},
		{
			"bare line ends, no media, unknown lines",
			"v=0\n\na=candidate: 1 1 udp 1 192.0.2.1 9 typ host \na=x-new:1\na=end-of-candidates",
			Fragment{FragmentICE: FragmentICE{
				Candidates: []string{"1 1 udp 1 192.0.2.1 9 typ host"}, EndOfCandidates: true,
			}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseFragment([]byte(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ParseFragment (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseFragmentRefuses(t *testing.T) {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format+"\r\n", i)
		}
		return b.String()
	}
	for name, body := range map[string]string{
		"empty":               "",
		"blank":               "\r\n\r\n",
		"only unknown":        "a=foo\r\nb=bar\r\n",
		"JSON":                `{"candidate":"x"}`,
		"short m line":        "m=audio 9\r\n",
		"empty candidate":     "a=candidate:\r\n",
		"blank in ufrag":      "a=ice-ufrag:a b\r\n",
		"empty pwd":           "a=ice-pwd:\r\n",
		"mid of no media":     "a=mid:0\r\n",
		"control character":   "a=candidate:1\x00\r\n",
		"empty options":       "a=ice-options: \r\n",
		"inner return":        "a=candidate:1\ra=b\r\n",
		"long line":           "a=candidate:" + strings.Repeat("1", maxFragmentLine) + "\r\n",
		"1000 candidates":     many(1000, "a=candidate:%d 1 udp 1 192.0.2.1 9 typ host"),
		"1000 media sections": many(1000, "m=audio %d RTP/AVP 0"),
		"1000 options":        many(1000, "a=ice-options:%d"),
		"1 MB":                strings.Repeat("a=x\r\n", 200_000),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := ParseFragment([]byte(body)); err == nil {
				t.Errorf("accepted as %+v", got)
			}
		})
	}
}

func TestFragmentAccessors(t *testing.T) {
	f := Fragment{
		FragmentICE: FragmentICE{Candidates: []string{"a"}},
		Media: []FragmentMedia{
			{FragmentICE: FragmentICE{Candidates: []string{"b", "c"}}},
			{FragmentICE: FragmentICE{Ufrag: "u", Pwd: "p", Candidates: []string{"d"}}},
		},
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "d"}, f.AllCandidates()); diff != "" {
		t.Errorf("AllCandidates (-want +got):\n%s", diff)
	}
	if ufrag, pwd := f.Credentials(); ufrag != "u" || pwd != "p" {
		t.Errorf("Credentials = %q, %q", ufrag, pwd)
	}
}

func FuzzParseFragment(f *testing.F) {
	f.Add([]byte(lines("a=ice-lite", "a=ice-options:trickle", "a=ice-ufrag:u", "a=ice-pwd:p",
		"m=audio 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0", "a=candidate:1 1 udp 1 192.0.2.1 9 typ host", "a=end-of-candidates")))
	f.Add([]byte("m=a\u00a0b c d\na=mid: \u20281\na=candidate:\x85"))
	f.Add([]byte("a=ice-options: a  b\na=ice-options:c\na:b\n="))
	f.Fuzz(func(t *testing.T, body []byte) {
		first, err := ParseFragment(body)
		if err != nil {
			return
		}
		if n := len(first.AllCandidates()); n > maxFragmentCandidates {
			t.Fatalf("%d candidates", n)
		}
		marshalled := first.Marshal()
		second, err := ParseFragment(marshalled)
		if err != nil {
			t.Fatalf("%q: %v", marshalled, err)
		}
		if diff := cmp.Diff(first, second); diff != "" {
			t.Fatalf("%q read back (-want +got):\n%s", marshalled, diff)
		}
	})
}
