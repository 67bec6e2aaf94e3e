package mediamtx

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

const webRTCSession = "webRTCSession"

// page is one page of any list of the control API.
type page[T any] struct {
	ItemCount *int `json:"itemCount"`
	PageCount *int `json:"pageCount"`
	Items     []T  `json:"items"`
}

// path is what the control API says of one path. Fields of later versions are pointers or slices that others lack.
type path struct {
	Name       string     `json:"name"`
	Ready      bool       `json:"ready"`
	ReadyTime  *time.Time `json:"readyTime"`
	Online     *bool      `json:"online"` // v1.16: false while a path that is always available shows its own picture
	OnlineTime *time.Time `json:"onlineTime"`
	Source     *source    `json:"source"`
	Tracks     []string   `json:"tracks"`
	Tracks2    []track    `json:"tracks2"` // v1.17
	Readers    []source   `json:"readers"`
}

type source struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

type track struct {
	Codec string `json:"codec"`
	Props struct {
		Channels int   `json:"channelCount"`
		MuLaw    *bool `json:"muLaw"`
		Rate     int   `json:"sampleRate"`
	} `json:"codecProps"`
}

// session is what the control API says of a WHIP or WHEP session.
type session struct {
	ID    string `json:"id"`
	Query string `json:"query"`
}

func (s session) ours() bool {
	query, err := url.ParseQuery(s.Query)
	return err == nil && query.Get(markName) == markValue
}

// stream is false for a path that nobody publishes to.
func (p path) stream() (adapters.Stream, bool) {
	online, since := p.Ready, p.ReadyTime
	if p.Online != nil {
		online = *p.Online
	}
	if p.OnlineTime != nil {
		since = p.OnlineTime
	}
	if !online || p.Source == nil || p.Source.Type == "redirect" {
		return adapters.Stream{}, false
	}
	s := adapters.Stream{ID: adapters.StreamID(p.Name), Session: p.Source.ID}
	if since != nil {
		s.Since = *since
	}
	for _, r := range p.Readers {
		if r.Type != "hidden" {
			s.Readers++
		}
	}
	tracks := p.Tracks2
	if len(tracks) == 0 {
		for _, codec := range p.Tracks {
			tracks = append(tracks, track{Codec: codec})
		}
	}
	s.Tracks, s.Lacks = playable(tracks)
	return s, true
}

// carried are the codecs that MediaMTX carries by WHEP, by its own names; of each kind it gives one track, of the codec that
// comes first here.
var carried = []struct{ label, kind, mime string }{
	{"AV1", "video", "video/AV1"},
	{"VP9", "video", "video/VP9"},
	{"VP8", "video", "video/VP8"},
	{"H265", "video", "video/H265"},
	{"H264", "video", "video/H264"},
	{"Opus", "audio", "audio/opus"},
	{"G722", "audio", "audio/G722"},
	{"G711", "audio", "audio/PCMU"},
	{"LPCM", "audio", "audio/L16"},
}

// playable is what a play gives of a publication's tracks, and the others in words.
func playable(all []track) (tracks []adapters.Track, lacks string) {
	taken := map[int]bool{}
	kinds := map[string]bool{}
	for _, c := range carried {
		at := slices.IndexFunc(all, func(t track) bool { return t.Codec == c.label })
		if at < 0 || kinds[c.kind] {
			continue
		}
		taken[at], kinds[c.kind] = true, true
		tracks = append(tracks, adapters.Track{Kind: c.kind, MIME: all[at].mime(c.mime)})
	}
	var left []string
	for i, t := range all {
		if !taken[i] {
			left = append(left, t.Codec)
		}
	}
	if len(left) > 0 {
		lacks = fmt.Sprintf("MediaMTX gives no %s track by WHEP", strings.Join(left, ", nor "))
		if len(tracks) == 0 {
			lacks += ", so that it cannot be played so at all"
		}
	}
	return tracks, lacks
}

func (t track) mime(usual string) string {
	switch {
	case t.Codec == "Opus" && t.Props.Channels > 2:
		return "audio/multiopus"
	case t.Codec == "G711" && t.Props.Rate > 8000:
		return "audio/L16" // what it makes of G711 at other rates
	case t.Codec == "G711" && t.Props.MuLaw != nil && !*t.Props.MuLaw:
		return "audio/PCMA"
	}
	return usual
}
