package broadcastbox

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

type page []byte

func (p page) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := []byte(p)
	if strings.HasSuffix(r.URL.Path, pathProfiles) {
		answer = []byte(`[]`)
	}
	return &http.Response{
		StatusCode: http.StatusOK, Status: "200 OK", Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(answer)), Request: r,
	}, nil
}

// FuzzStatus reads a status page, whatever is on it.
func FuzzStatus(f *testing.F) {
	f.Add([]byte(`[{"streamKey":"a","streamStart":"2026-11-26T10:00:00Z","audioTracks":[],"videoTracks":[{"rid":"h"}],"sessions":[{}]}]`))
	f.Add([]byte(`[{"streamKey":"a"}]`))
	f.Add([]byte(`[null,{}]`))
	f.Fuzz(func(t *testing.T, status []byte) {
		a, err := New(Config{BaseURL: "http://10.0.0.7:8080"})
		if err != nil {
			t.Fatal(err)
		}
		a.client = &http.Client{Transport: page(status)}
		streams, err := a.list(t.Context())
		for _, s := range streams {
			if err == nil && s.ID == "" {
				t.Errorf("%+v", s)
			}
		}
	})
}
