package adapters

import (
	"fmt"
	"slices"
	"strings"
)

// CodecError says that a server cannot carry a stream, because it does not take the codec of one of its tracks.
type CodecError struct {
	MIME  string   // of the track: "video/VP8"
	Takes []string // what of its kind the server takes; empty where that is not known
}

func (e *CodecError) Error() string {
	if len(e.Takes) == 0 {
		return "the media server does not take " + e.MIME
	}
	return fmt.Sprintf("the media server does not take %s, only %s", e.MIME, strings.Join(e.Takes, ", "))
}

// Accept says which of a stream's tracks the server does not take, by a *CodecError. Tracks whose codec is not known are taken.
func (t Traits) Accept(tracks []Track) error {
	if len(t.Codecs) == 0 {
		return nil
	}
	for _, track := range tracks {
		if track.MIME == "" || slices.ContainsFunc(t.Codecs, func(mime string) bool { return strings.EqualFold(mime, track.MIME) }) {
			continue
		}
		e := &CodecError{MIME: track.MIME}
		kind, _, _ := strings.Cut(track.MIME, "/")
		for _, mime := range t.Codecs {
			if of, _, _ := strings.Cut(mime, "/"); strings.EqualFold(of, kind) {
				e.Takes = append(e.Takes, mime)
			}
		}
		return e
	}
	return nil
}
