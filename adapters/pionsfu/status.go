package pionsfu

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

const (
	contentJSON  = "application/json"
	contentLines = "application/x-ndjson"

	// heartbeat is how often a watcher hears of the server when nothing changes: an empty line.
	heartbeat = 5 * time.Second
	// conflation is the least time between two reports to one watcher, so that a thousand viewers who come together do
	// not make a thousand reports.
	conflation   = 20 * time.Millisecond
	writeTimeout = 10 * time.Second

	// markRelay is the query of a sidecar's own publications: they are known by it, also to a process that remembers nothing of
	// the one that made them.
	markRelay = "sidestream=relay"
)

// streamList is the body of the status API, and each line of it when it is watched: always everything.
type streamList struct {
	Streams []streamStatus `json:"streams"`
}

type streamStatus struct {
	ID      string        `json:"id"`
	Session string        `json:"session"` // the last element of the publisher's Location
	Since   time.Time     `json:"since"`
	Tracks  []trackStatus `json:"tracks"`
	Readers int           `json:"readers"`
	Relayed bool          `json:"relayed,omitempty"` // published by the sidecar's adapter
}

type trackStatus struct {
	Kind string `json:"kind"`
	MIME string `json:"mime"`
	RID  string `json:"rid,omitempty"`
}

func listOf(streams []adapters.Stream) streamList {
	list := streamList{Streams: make([]streamStatus, 0, len(streams))}
	for _, s := range streams {
		status := streamStatus{
			ID: string(s.ID), Session: s.Session, Since: s.Since, Readers: s.Readers, Relayed: s.Relayed, Tracks: []trackStatus{},
		}
		for _, t := range s.Tracks {
			status.Tracks = append(status.Tracks, trackStatus(t))
		}
		list.Streams = append(list.Streams, status)
	}
	return list
}

// adapt is the inverse of listOf. Names that cannot be ones are left out.
func (l streamList) adapt() []adapters.Stream {
	streams := make([]adapters.Stream, 0, len(l.Streams))
	for _, s := range l.Streams {
		id := adapters.StreamID(s.ID)
		if id.Validate() != nil {
			continue
		}
		stream := adapters.Stream{ID: id, Session: s.Session, Since: s.Since, Readers: s.Readers, Relayed: s.Relayed}
		for _, t := range s.Tracks {
			stream.Tracks = append(stream.Tracks, adapters.Track(t))
		}
		streams = append(streams, stream)
	}
	return streams
}

// serveStreams lists the streams, once or for as long as the client listens.
func (s *Server) serveStreams(w http.ResponseWriter, r *http.Request) {
	if !s.isRead(w, r) {
		return
	}
	if !s.admit(w, r, claim{scope: scopeAPI}) {
		return
	}
	if !s.ready() {
		s.refuse(w, errNotRunning)
		return
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), contentLines) {
		h.Set("Content-Type", contentLines)
		h.Set("X-Accel-Buffering", "no")
		s.watch(w, r)
		return
	}
	streams, _ := s.registry.snapshot()
	h.Set("Content-Type", contentJSON)
	_ = json.NewEncoder(w).Encode(listOf(streams)) // an error here is a caller that has gone
}

// watch writes the full list at once and at every change, until the client or the server goes.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	controller := http.NewResponseController(w)
	write := func(line []byte) bool {
		_ = controller.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has one
		if _, err := w.Write(append(line, '\n')); err != nil {
			return false
		}
		return controller.Flush() == nil
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last []byte
	for {
		streams, changed := s.registry.snapshot()
		line, err := json.Marshal(listOf(streams))
		if err != nil {
			s.logger.Error("listing streams failed", "error", err)
			return
		}
		if !bytes.Equal(line, last) {
			if last = line; !write(bytes.Clone(line)) {
				return
			}
		}
		for waiting := true; waiting; {
			timer.Reset(heartbeat)
			select {
			case <-changed:
				waiting = false
			case <-timer.C:
				if !write(nil) {
					return
				}
			case <-r.Context().Done():
				return
			case <-s.stopped:
				return
			}
		}
		timer.Reset(conflation)
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		case <-s.stopped:
			return
		}
	}
}
