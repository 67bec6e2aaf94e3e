package adapters

import (
	"strings"
	"testing"
)

func TestParseBase(t *testing.T) {
	for text, want := range map[string]string{
		"http://10.0.0.7:8889":         "http://10.0.0.7:8889",
		"https://sfu.example/a/b//":    "https://sfu.example/a/b",
		"http://[::1]:80/#part":        "http://[::1]:80",
		"a:80":                         "",
		"":                             "",
		"ftp://sfu.example":            "",
		"http:///whip":                 "",
		"http://user:secret@sfu/":      "",
		"http://sfu.example?token=abc": "",
		"http://sfu:port":              "",
	} {
		u, err := ParseBase("server's address", text)
		if (err != nil) != (want == "") || u.String() != want {
			t.Errorf("%q: %q, %v; want %q", text, u.String(), err, want)
		}
		if err != nil && (!strings.HasPrefix(err.Error(), "server's address") || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
