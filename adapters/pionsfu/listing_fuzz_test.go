package pionsfu

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
)

// What a server lists is the same when it is listed again.
func FuzzListing(f *testing.F) {
	f.Add([]byte(`{"streams":[{"id":"live/a","session":"s","since":"2026-11-26T10:00:00Z","readers":2,"tracks":[{"kind":"video","mime":"video/H264","rid":"h"}]}]}`))
	f.Add([]byte(`{"streams":[{"id":"","readers":-1,"relayed":true},{"id":"a"},{"id":"a"}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var list streamList
		if json.Unmarshal(line, &list) != nil {
			return
		}
		streams := list.adapt()
		text, err := json.Marshal(listOf(streams))
		if err != nil {
			t.Skip() // a year that RFC 3339 does not know
		}
		var again streamList
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(streams, again.adapt(), cmp.Comparer(func(a, b adapters.StreamID) bool { return a == b })); d != "" {
			t.Error(d)
		}
	})
}
