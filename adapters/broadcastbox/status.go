package broadcastbox

import (
	"fmt"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// session is what the status page says of a name: of its publication, where there is one, and of its plays.
type session struct {
	StreamKey   string     `json:"streamKey"`
	StreamStart *time.Time `json:"streamStart"` // of the entry: a play may have made it, and it outlives publications
	AudioTracks []track    `json:"audioTracks"`
	VideoTracks []track    `json:"videoTracks"` // one for each layer
	Sessions    []struct {
		ID string `json:"id"`
	} `json:"sessions"`
}

type track struct {
	PacketsReceived uint64 `json:"packetsReceived"`
}

func (s session) packets() (n uint64) {
	for _, t := range append(s.AudioTracks[:len(s.AudioTracks):len(s.AudioTracks)], s.VideoTracks...) {
		n += t.PacketsReceived
	}
	return n
}

// ledger tells the publications of a name from each other, of which the status page says nothing: one begins when there are
// tracks again after there were none, or fewer packets than before.
type ledger map[string]*entry

type entry struct {
	start     time.Time
	number    int // of the publication
	since     time.Time
	published bool
	packets   uint64
}

// streams are those of an answer, which is later than all before it.
func (l ledger) streams(sessions []session, now time.Time) []adapters.Stream {
	streams := make([]adapters.Stream, 0, len(sessions))
	present := make(map[string]bool, len(sessions))
	for _, s := range sessions {
		present[s.StreamKey] = true
		if stream, ok := l.stream(s, now); ok {
			streams = append(streams, stream)
		}
	}
	for name := range l {
		if !present[name] {
			delete(l, name)
		}
	}
	return streams
}

func (l ledger) stream(s session, now time.Time) (adapters.Stream, bool) {
	e := l[s.StreamKey]
	if e == nil || !e.start.Equal(*s.StreamStart) {
		e = &entry{start: *s.StreamStart}
		l[s.StreamKey] = e
	}
	packets := s.packets()
	stream := adapters.Stream{ID: adapters.StreamID(s.StreamKey), Readers: len(s.Sessions)}
	if len(s.AudioTracks)+len(s.VideoTracks) == 0 {
		e.published = false
		stream.Waiting = true
		return stream, stream.Readers > 0
	}
	if !e.published || packets < e.packets {
		if e.number++; e.number == 1 {
			e.since = e.start
		} else {
			e.since = now
		}
	}
	e.published, e.packets = true, packets
	stream.Since, stream.Session = e.since, e.start.UTC().Format(time.RFC3339Nano)
	if e.number > 1 {
		stream.Session += fmt.Sprintf("/%d", e.number)
	}
	// A play gives one track of each kind.
	if len(s.AudioTracks) > 0 {
		stream.Tracks = append(stream.Tracks, adapters.Track{Kind: "audio", MIME: "audio/opus"}) // it takes no other
	}
	if len(s.VideoTracks) > 0 {
		stream.Tracks = append(stream.Tracks, adapters.Track{Kind: "video"})
	}
	return stream, true
}
