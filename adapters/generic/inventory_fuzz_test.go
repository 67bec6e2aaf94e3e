package generic

import "testing"

func FuzzInventory(f *testing.F) {
	q, err := newQuery(`.streams[] | {name: .id, session, readers: .viewers, since, tracks: [.tracks[]?.codec]}`)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"streams":[{"id":"live/a","session":"s","viewers":2,"since":"2026-11-26T10:00:00Z","tracks":[{"codec":"H264"}]}]}`))
	f.Add([]byte(`{"streams":[{"id":"a","viewers":-3,"tracks":[null,{"codec":"x"}]},{"id":"a"}]}`))
	f.Add([]byte(`{"streams":{"id":1e999}}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		streams, err := q.streams(t.Context(), document)
		if err != nil {
			return
		}
		names := map[string]bool{}
		for _, s := range streams {
			if s.ID == "" || names[string(s.ID)] {
				t.Errorf("%q, once more or without a name", s.ID)
			}
			names[string(s.ID)] = true
		}
	})
}
