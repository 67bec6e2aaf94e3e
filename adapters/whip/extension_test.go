package whip

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadEvents(t *testing.T) {
	for name, test := range map[string]struct {
		stream string
		want   []string
	}{
		"none":             {"", nil},
		"one":              {"event: layers\ndata: {}\n\n", []string{"layers {}"}},
		"without a space":  {"event:layers\ndata:1\n\n", []string{"layers 1"}},
		"CRLF":             {"event: a\r\ndata: 1\r\n\r\n", []string{"a 1"}},
		"comments":         {":\n\n: hello\nevent: a\n:\ndata: 1\n\n", []string{"a 1"}},
		"two lines":        {"data: 1\ndata: 2\n\n", []string{" 1\n2"}},
		"without data":     {"event: a\n\nevent: b\ndata: 2\n\n", []string{"b 2"}},
		"other fields":     {"id: 7\nretry: 9\nevent: a\ndata: 1\nnonsense\n\n", []string{"a 1"}},
		"broken off":       {"event: a\ndata: 1\n", nil},
		"too long":         {"data: 1\n\nevent: a\ndata: " + strings.Repeat("x", maxEvent) + "\n\n", []string{" 1"}},
		"too many of data": {strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", 100) + "\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			err := readEvents(strings.NewReader(test.stream), func() {}, func(e Event) {
				got = append(got, e.Name+" "+string(e.Data))
			})
			if err == nil {
				t.Error("the end is no error")
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add([]byte("event: layers\ndata: {\"0\":[]}\n\n"))
	f.Add([]byte(":\r\n\r\ndata:1\r\rdata:2\n\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		total := 0
		err := readEvents(bytes.NewReader(stream), func() {}, func(e Event) {
			if len(e.Data) == 0 {
				t.Error("an event without data")
			}
			total += len(e.Data)
			var layers Layers
			_ = json.Unmarshal(e.Data, &layers)
		})
		if err == nil || total > len(stream) {
			t.Errorf("%d bytes of %d, %v", total, len(stream), err)
		}
	})
}

func TestLayersOfEitherForm(t *testing.T) {
	want := Layers{"0": {{RID: "h", Bitrate: 2000, Width: 640}, {RID: "l"}}}
	for name, text := range map[string]string{
		"a list":    `{"0":[{"rid":"h","bitrate":2000,"width":640},{"rid":"l"}]}`,
		"by states": `{"0":{"active":[{"rid":"h","bitrate":2000,"width":640}],"inactive":[{"rid":"l","bitrate":7}]}}`,
	} {
		var got Layers
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
	for _, text := range []string{`[]`, `{"0":7}`, `{"0":[{"bitrate":"x"}]}`, ``} {
		if json.Unmarshal([]byte(text), new(Layers)) == nil {
			t.Errorf("%s is taken", text)
		}
	}
	if (Layer{EncodingID: "x"}).Name() != "x" || (Selection{RID: "r", EncodingID: "x"}).Name() != "r" {
		t.Error("names are not read")
	}
}

func TestExtensionNotOffered(t *testing.T) {
	at := func(text string) *url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	s := &Session{op: "play", location: at("https://sfu.example/session/1"), answered: at("https://sfu.example/whep/a")}
	if err := s.SelectLayer(t.Context(), "0", "h"); !errors.Is(err, ErrNoExtension) {
		t.Errorf("select: %v", err)
	}
	s.extensions = ParseLinks(http.Header{"Link": {
		`<../session/1/events>; rel="` + RelEvents + `"; events="active, layers"`, `<ftp://x/>; rel="` + RelLayer + `"`,
	}})
	for _, names := range [][]string{{EventViewerCount}, {EventLayers, EventViewerCount}} {
		if err := s.Events(t.Context(), names, func(Event) {}); !errors.Is(err, ErrNoExtension) {
			t.Errorf("events %q: %v", names, err)
		}
	}
	if err := s.SelectLayer(t.Context(), "0", "h"); !errors.Is(err, ErrNoExtension) {
		t.Errorf("select by ftp: %v", err)
	}
	if u := s.extension(RelEvents); u == nil || u.String() != "https://sfu.example/session/1/events" {
		t.Errorf("events are at %v", u)
	}
	if !s.offers(EventLayers) || s.offers("layer") {
		t.Error("what is offered is read wrong")
	}
	if err := readEvents(strings.NewReader(""), func() {}, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("end: %v", err)
	}
}
