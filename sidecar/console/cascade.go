package console

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Cascade is the mesh as one node sees it, with what the others say of themselves.
type Cascade struct {
	At    time.Time `json:"at"`
	Here  string    `json:"here"` // the node
	Nodes []Node    `json:"nodes"`
}

// Node is one of the mesh. Report is what it says of itself, nil where it could not be asked: Error says why.
type Node struct {
	Node      string  `json:"node"`
	Cluster   string  `json:"cluster"`
	Version   string  `json:"version,omitempty"`
	Connected bool    `json:"connected"` // to the node that looks
	RTTMs     float64 `json:"rttMs"`     // from there; 0: not known
	Error     string  `json:"error,omitempty"`
	Report    *Report `json:"report,omitempty"`
}

// Report is what a node says of itself.
type Report struct {
	Node        string        `json:"node"`
	Cluster     string        `json:"cluster"`
	Version     string        `json:"version"`
	Adapter     string        `json:"adapter"`
	Ready       bool          `json:"ready"`
	Draining    bool          `json:"draining"`
	ServerError string        `json:"serverError,omitempty"` // why its media server cannot be asked
	Published   []Publication `json:"published"`
	Relays      []Relay       `json:"relays"`
	Omitted     int           `json:"omitted,omitempty"` // streams beyond those that are listed
	// Carried are the bytes of media that came from other clusters, Saved those that would have come besides, had each viewer
	// here played at the origin's. Both count from the node's start.
	Carried uint64 `json:"carried"`
	Saved   uint64 `json:"saved"`
}

// Publication is a stream that is published at a node's own server.
type Publication struct {
	Stream  string    `json:"stream"`
	Epoch   uint64    `json:"epoch"`
	Since   time.Time `json:"since,omitzero"`
	Viewers int       `json:"viewers"` // without relays of other nodes; -1: not known
	Tracks  []string  `json:"tracks"`  // codecs
	Counts  bool      `json:"counts"`  // it is the publication that all nodes show
}

// Relay is a stream that a node carries, or would.
type Relay struct {
	Stream      string    `json:"stream"`
	State       string    `json:"state"`
	Why         string    `json:"why,omitempty"`
	Epoch       uint64    `json:"epoch"`
	Parent      string    `json:"parent,omitempty"`
	Path        []string  `json:"path,omitempty"` // nodes, the origin first
	Viewers     int       `json:"viewers"`
	LiveSince   time.Time `json:"liveSince,omitzero"`
	LastError   string    `json:"lastError,omitempty"`
	Standby     string    `json:"standby,omitempty"` // the second copy's parent
	Bytes       uint64    `json:"bytes"`
	Packets     uint64    `json:"packets"`
	Lost        uint64    `json:"lost"`
	Repaired    uint64    `json:"repaired"`
	NACKs       uint64    `json:"nacks"`
	KeyRequests uint64    `json:"keyFrameRequests"`
	RTTMs       float64   `json:"rttMs"`   // to the parent
	AddedMs     float64   `json:"addedMs"` // through the relay
	Tracks      []string  `json:"tracks"`  // codecs
	Steps       []Step    `json:"steps"`   // of the pull
	Changes     int       `json:"changes"` // of parents, without an end
}

// Step is one of a pull, and how long after the first it was taken.
type Step struct {
	Name string  `json:"name"`
	Ms   float64 `json:"ms"`
}

// Guard lets operators in: by a token, or because a reverse proxy that is trusted says who they are.
type Guard struct {
	Token  string         // "": nobody comes in so
	Header string         // that the proxy sets, and takes away from what others send; "": nobody comes in so
	From   []netip.Prefix // where the proxy is
}

// Allow says whether a request may pass.
func (g Guard) Allow(r *http.Request) bool {
	if g.Header != "" && r.Header.Get(g.Header) != "" {
		if at, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			for _, prefix := range g.From {
				if prefix.Contains(at.Addr().Unmap()) {
					return true
				}
			}
		}
	}
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if g.Token == "" || !ok || !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	// Of equal length, so that the time tells nothing.
	want, got := sha256.Sum256([]byte(g.Token)), sha256.Sum256([]byte(strings.TrimSpace(token)))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

const (
	// period is between two looks while somebody watches.
	period = time.Second
	// quiet is how long nothing is sent before a comment is, so that proxies keep the connection.
	quiet = 15 * time.Second
	// writeTime bounds how long a watcher may take to read one event.
	writeTime = 10 * time.Second
	// maxWatchers bounds those who watch at one time.
	maxWatchers = 32
)

// caster shows the cascade to those who watch, and looks no more often for many than for one.
type caster struct {
	look func() Cascade

	mu       sync.Mutex
	last     Cascade
	watchers int
}

// recent is the cascade of a moment ago.
func (c *caster) recent() Cascade {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.last.At) >= period*9/10 {
		c.last = c.look()
	}
	return c.last
}

func (c *caster) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watchers >= maxWatchers {
		return false
	}
	c.watchers++
	return true
}

func (c *caster) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers--
}

// stream sends the cascade as server-sent events, whole each time, when it has changed.
func (c *caster) stream(w http.ResponseWriter, r *http.Request) {
	if !c.enter() {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "Too many watch the cascade at this node; try again in a moment.", http.StatusServiceUnavailable)
		return
	}
	defer c.leave()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	control := http.NewResponseController(w)
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	var before []byte
	said := time.Now()
	for {
		now := c.recent()
		text, err := json.Marshal(now)
		if err != nil {
			return
		}
		now.At = time.Time{}
		same, err := json.Marshal(now)
		if err != nil {
			return
		}
		var event []byte
		switch {
		case !bytes.Equal(same, before):
			event = append(append([]byte("event: cascade\ndata: "), text...), "\n\n"...)
		case time.Since(said) >= quiet:
			event = []byte(": nothing new\n\n")
		}
		if event != nil {
			before, said = same, time.Now()
			_ = control.SetWriteDeadline(time.Now().Add(writeTime))
			if _, err := w.Write(event); err != nil {
				return
			}
			if control.Flush() != nil {
				return
			}
		}
		select {
		case <-r.Context().Done():
			return
		case <-ticker.C:
		}
	}
}
