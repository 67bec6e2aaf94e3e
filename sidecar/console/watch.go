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

	"github.com/sidestream-dev/sidestream/sidecar/cascade"
)

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
	look func() cascade.Cascade

	mu       sync.Mutex
	last     cascade.Cascade
	watchers int
}

// recent is the cascade of a moment ago.
func (c *caster) recent() cascade.Cascade {
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
