// Package console is the web page of a region: a player with statistics, and a publisher, which speak WHEP and WHIP to the
// gateway that serves the page. It is embedded, loads nothing from elsewhere and keeps no state of its own.
package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed index.html static
var files embed.FS

var index = template.Must(template.ParseFS(files, "index.html"))

// contentPolicy lets the page run its own code only and talk to any host: sessions may live at other regions.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
	"media-src 'self' blob: mediastream:; connect-src 'self' http: https:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Options are what a page says and where it plays from.
type Options struct {
	Region  string   // the name of this region, as people call it; "" means "this region"
	Regions []Region // all of them, in the order in which they are shown; without any, this one alone
	Stream  string   // which stream is offered first; "" means "demo"
	// Base is where whip/ and whep/ are found, relative to the page; "" means beside it.
	Base string
}

// Region is a region and its page.
type Region struct {
	Name string
	URL  string
}

// config is what the page is told; with names in JSON, its code too.
type config struct {
	Region  string   `json:"region"`
	Regions []Region `json:"-"`
	Stream  string   `json:"stream"`
	Base    string   `json:"base"`
}

// Handler serves the page at / and what it needs below /static/. Under another path it needs http.StripPrefix, and an
// address that ends in a slash: the page's links are relative.
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
	if o.Base != "" && !strings.HasSuffix(o.Base, "/") {
		o.Base += "/"
	}
	var page bytes.Buffer
	if err := index.Execute(&page, config(o)); err != nil {
		panic(fmt.Sprintf("console: the embedded page does not take its settings: %v", err)) // a test renders it
	}
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", serve("index.html", page.Bytes()))
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
	return mux
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
