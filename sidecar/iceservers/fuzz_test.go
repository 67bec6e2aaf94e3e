package iceservers

import (
	"strings"
	"testing"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// FuzzConfiguration reads what the authentication service says. What comes of it can stand in a header field, and is read from there
// as it was.
func FuzzConfiguration(f *testing.F) {
	f.Add([]byte(`{"iceServers":[{"urls":["turn:192.0.2.1:3478?transport=udp"],"username":"a","credential":"b"}],"iceTransportPolicy":"all"}`))
	f.Add([]byte(`{"iceServers":[{"urls":"stun:a.example"},{"urls":"turn:a>; rel=x"},{"urls":"turns:a","username":"a\"\\","credential":" "}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		servers, err := parse(body)
		if err != nil {
			return
		}
		for _, s := range servers {
			links := whip.FormatICEServerLink(s)
			for _, link := range links {
				if strings.ContainsFunc(link, func(r rune) bool { return r < ' ' || r > '~' }) {
					t.Errorf("%q in a header", link)
				}
			}
			if len(links) != len(s.URLs) {
				t.Errorf("%d links of %d URLs", len(links), len(s.URLs))
			}
		}
	})
}
