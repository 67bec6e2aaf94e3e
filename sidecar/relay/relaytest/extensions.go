package relaytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// Extensions let a Source tell of layers and be asked for one, as WHEP's extensions have it. What it sends stays the same.
type Extensions struct {
	Layers whip.Layers
	// Selected hears each wish.
	Selected func(whip.Selection)
}

// Extend promises the extensions to each session. Set it before Run.
func (s *Source) Extend(e *Extensions) { s.extensions = e }

func (e *Extensions) promise(h http.Header, location string) {
	h.Add("Link", "<"+location+`/events>; rel="`+whip.RelEvents+`"; events="layers"`)
	h.Add("Link", "<"+location+`/layer>; rel="`+whip.RelLayer+`"`)
}

// serve answers requests below a session's address, and says whether this was one.
func (e *Extensions) serve(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/events"):
		w.Header().Set("Location", r.URL.Path+"/1")
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/events/1"):
		layers, err := json.Marshal(e.Layers)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return true
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, "event: layers\ndata: %s\n\n", layers)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/layer"):
		var wish whip.Selection
		if err := json.NewDecoder(r.Body).Decode(&wish); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return true
		}
		e.Selected(wish)
	default:
		return false
	}
	return true
}
