// Package console is the web pages of a sidecar: a player with statistics and measurements, a publisher, and for operators the
// cascade. They speak WHEP and WHIP to the gateway that serves them, or to those of other regions; they are embedded, load
// nothing from elsewhere and keep no state at the server.
package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/cascade"
)

// Path is where the pages are found at a gateway, or at the port for administration.
const Path = "/sidestream/"

//go:embed pages static
var files embed.FS

// contentPolicy lets the pages run their own code only and talk to any host: sessions may live at other regions. Styles are in
// files, but for those that scripts set on elements, to which policies do not apply.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; " +
	"media-src 'self' blob: mediastream:; connect-src 'self' http: https:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Options are what the pages say and where they play from.
type Options struct {
	Region  string   // the name of this region, as people call it; "" means "this region"
	Regions []Region // all of them, in the order in which they are shown; without any, this one alone
	Stream  string   // which stream is offered first; "" means "demo"
	// Places are where regions are on the map: degrees north and east. Of many the pages know it by their names.
	Places map[string][2]float64
	// Base is where whip/ and whep/ are found, relative to the pages; "" means one level up, "none" that they are not here, as
	// at the port for administration.
	Base string

	// Streams lists what can be played; nil: nothing is listed, and viewers must know names.
	Streams func() []Stream
	// Cascade is all that is known of the mesh; nil: operators find nothing here. It is asked for once a second while somebody
	// looks, by one caller at a time.
	Cascade func() cascade.Cascade
	// Allow says whether a request may see the cascade, and with StreamsClosed the list of streams; nil: everybody's may.
	Allow         func(*http.Request) bool
	StreamsClosed bool
}

// Region is a region and where its gateway is.
type Region struct {
	Name string `json:"name"`
	URL  string `json:"url"` // of its pages
}

// Stream is one that can be played.
type Stream struct {
	Name   string `json:"name"`
	Origin string `json:"origin"` // region
	// Ways are how it comes to each region that has it.
	Ways []Way `json:"ways"`
}

// Way is how a stream comes to a region: the regions on the way, the origin's first, and the round trips between them added up;
// 0: not known.
type Way struct {
	Path    []string `json:"path"`
	RTTMs   float64  `json:"rttMs"`
	Viewers int      `json:"viewers,omitempty"`
}

// config is what the pages are told; with names in JSON, their code too.
type config struct {
	Page    string   `json:"page"`
	Region  string   `json:"region"`
	Regions []Region `json:"regions"`
	Stream  string   `json:"stream"`
	Base    string   `json:"base"`
	List    bool     `json:"list"`    // of streams
	Cascade bool     `json:"cascade"` // there is one

	Places map[string][2]float64 `json:"places"`
}

// Plays says that streams can be played and published here.
func (c config) Plays() bool { return c.Base != "none" }

// pages are those that there are, by their addresses.
var pages = map[string]string{"": "play", "publish": "publish", "measurements": "measurements", "cascade": "cascade"}

// Handler serves the pages, and below static/ and api/ what they need. Under another path it needs http.StripPrefix, and an
// address that ends in a slash: the pages' links are relative. Its answers to api/cascade/events last until the request's
// context ends.
func Handler(o Options) http.Handler {
	if o.Region == "" {
		o.Region = "this region"
	}
	if len(o.Regions) == 0 {
		o.Regions = []Region{{Name: o.Region}}
	}
	if o.Stream == "" {
		o.Stream = "demo"
	}
	switch {
	case o.Base == "":
		o.Base = "../"
	case o.Base != "none" && !strings.HasSuffix(o.Base, "/"):
		o.Base += "/"
	}
	mux := http.NewServeMux()
	templates := template.Must(template.ParseFS(files, "pages/*.html"))
	for address, name := range pages {
		if name == "cascade" && o.Cascade == nil || name != "cascade" && o.Base == "none" {
			continue
		}
		var page bytes.Buffer
		c := config{
			Page: name, Region: o.Region, Regions: o.Regions, Stream: o.Stream, Base: o.Base,
			List: o.Streams != nil, Cascade: o.Cascade != nil, Places: o.Places,
		}
		if err := templates.ExecuteTemplate(&page, name+".html", c); err != nil {
			panic(fmt.Sprintf("console: the embedded page does not take its settings: %v", err)) // a test renders it
		}
		if address == "" {
			address = "{$}"
		}
		mux.Handle("GET /"+address, serve(name+".html", page.Bytes()))
	}
	if o.Base == "none" {
		mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "cascade") // http.Redirect would make it absolute, and knows nothing of what was stripped
			w.WriteHeader(http.StatusTemporaryRedirect)
		})
	}
	names, err := fs.Glob(files, "static/*")
	if err != nil {
		panic(fmt.Sprintf("console: %v", err)) // the pattern is constant
	}
	for _, name := range names {
		content, err := files.ReadFile(name)
		if err != nil {
			panic(fmt.Sprintf("console: embedded file: %v", err))
		}
		mux.Handle("GET /"+name, serve(path.Base(name), content))
	}
	mux.HandleFunc("GET /api/ping", ping)
	if o.Streams != nil {
		mux.HandleFunc("GET /api/streams", func(w http.ResponseWriter, r *http.Request) {
			if o.StreamsClosed && !o.allowed(w, r) {
				return
			}
			list := o.Streams()
			if list == nil {
				list = []Stream{}
			}
			answer(w, map[string]any{"region": o.Region, "streams": list})
		})
	}
	if o.Cascade != nil {
		c := &caster{look: o.Cascade}
		mux.HandleFunc("GET /api/cascade", func(w http.ResponseWriter, r *http.Request) {
			if o.allowed(w, r) {
				answer(w, c.recent())
			}
		})
		mux.HandleFunc("GET /api/cascade/events", func(w http.ResponseWriter, r *http.Request) {
			if o.allowed(w, r) {
				c.stream(w, r)
			}
		})
	}
	return mux
}

func (o Options) allowed(w http.ResponseWriter, r *http.Request) bool {
	if o.Allow == nil || o.Allow(r) {
		return true
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="sidestream"`)
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, "Show the console's token.", http.StatusUnauthorized)
	return false
}

// ping is asked by pages of all regions, to see how far it is.
func ping(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

func answer(w http.ResponseWriter, v any) {
	text, err := json.Marshal(v)
	if err != nil { // ours to mend: names, numbers and times
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(text)
}

// serve answers with a file that browsers ask for again each time, and get again when it has changed.
func serve(name string, content []byte) http.Handler {
	sum := sha256.Sum256(content)
	etag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("ETag", etag)
		h.Set("Cache-Control", "no-cache")
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	})
}
