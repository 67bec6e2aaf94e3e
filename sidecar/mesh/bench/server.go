package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// heartbeat is how often the media server tells a sidecar that watches it that nothing has changed.
const heartbeat = 5 * time.Second

// mediaServer is what a sidecar sees of a built-in media server elsewhere: the list of its streams, pushed at each
// change. It carries no media.
type mediaServer struct {
	mu      sync.Mutex
	streams []adapters.Stream
	changed chan struct{}
}

func newMediaServer() *mediaServer { return &mediaServer{changed: make(chan struct{})} }

// SetLocal replaces the list.
func (s *mediaServer) SetLocal(streams []adapters.Stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams = slices.Clone(streams)
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

type listedTrack struct {
	Kind string `json:"kind"`
	MIME string `json:"mime"`
}

type listedStream struct {
	ID      adapters.StreamID `json:"id"`
	Session string            `json:"session"`
	Since   time.Time         `json:"since"`
	Tracks  []listedTrack     `json:"tracks"`
	Readers int               `json:"readers"`
}

type listing struct {
	Streams []listedStream `json:"streams"`
}

func (s *mediaServer) list() (l listing, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.Streams = []listedStream{}
	for _, stream := range s.streams {
		listed := listedStream{ID: stream.ID, Session: stream.Session, Since: stream.Since}
		for _, t := range stream.Tracks {
			listed.Tracks = append(listed.Tracks, listedTrack{Kind: t.Kind, MIME: t.MIME})
		}
		l.Streams = append(l.Streams, listed)
	}
	return l, s.changed
}

// ServeHTTP pushes the list to whoever watches.
func (s *mediaServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || r.URL.Path != "/api/streams" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	encoder, flush := json.NewEncoder(w), http.NewResponseController(w).Flush
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		l, changed := s.list()
		if encoder.Encode(l) != nil || flush() != nil {
			return
		}
		for quiet := true; quiet; {
			select {
			case <-r.Context().Done():
				return
			case <-changed:
				quiet = false
			case <-tick.C:
				if _, err := w.Write([]byte("\n")); err != nil || flush() != nil {
					return
				}
			}
		}
	}
}
