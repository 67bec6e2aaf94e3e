package probe

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// Verdict is what a check came to.
type Verdict string

// Verdicts.
const (
	OK   Verdict = "ok"   // as it should be
	Warn Verdict = "warn" // it works, and costs something or wants a setting
	Fail Verdict = "fail" // something that a cascade, or the standard, needs does not work
	Skip Verdict = "skip" // not tried, or not there to be tried
)

// Check is one thing that was looked at.
type Check struct {
	ID      string  `json:"id"`
	Group   string  `json:"group"`
	Verdict Verdict `json:"verdict"`
	Text    string  `json:"text"` // what was seen and what it means
}

// Role is whether a server can take a place in a cascade.
type Role struct {
	Able bool   `json:"able"`
	Why  string `json:"why"`
}

// Report is what a probe found.
type Report struct {
	Make     string          `json:"make,omitempty"` // whose addresses these are, as far as they tell
	Publish  string          `json:"publish,omitempty"`
	Play     string          `json:"play,omitempty"`
	Stream   string          `json:"stream"` // its name, or what the names begin with
	Began    time.Time       `json:"began"`
	Took     time.Duration   `json:"-"` // "seconds" in JSON
	Checks   []Check         `json:"checks"`
	Origin   Role            `json:"origin"`
	Edge     Role            `json:"edge"`
	OnDemand Role            `json:"onDemand"`
	Traits   adapters.Traits `json:"-"` // as measured; Aliases cannot be
	Settings []string        `json:"settings"`
	Advice   []string        `json:"advice,omitempty"`
}

// notTried is the text of checks that other things stood in the way of.
const notTried = "not tried: what they need is not there, or did not work"

// CanCascade says whether the server can be part of a cascade at all.
func (r Report) CanCascade() bool { return r.Origin.Able || r.Edge.Able }

// MarshalJSON implements json.Marshaler.
func (r Report) MarshalJSON() ([]byte, error) {
	type fields Report
	type traits struct {
		Codecs       []string `json:"codecs"`
		Extensions   []string `json:"extensions"`
		InOrder      bool     `json:"inOrder"`
		MaxHold      float64  `json:"maxHoldSeconds"`
		FillAudio    bool     `json:"fillAudio"`
		DropsReaders bool     `json:"dropsReaders"`
		Waits        bool     `json:"waits"`
		IgnoresPLI   bool     `json:"ignoresPLI"`
	}
	t := r.Traits
	return json.Marshal(struct {
		fields
		CanCascade bool    `json:"canCascade"`
		Seconds    float64 `json:"seconds"`
		Traits     traits  `json:"traits"`
	}{fields(r), r.CanCascade(), r.Took.Seconds(), traits{
		t.Codecs, t.Extensions, t.InOrder, t.MaxHold.Seconds(), t.FillAudio, t.DropsReadersOnReplace, t.AcceptsAndWaits, t.IgnoresPLI,
	}})
}

// Check is the check of an id; the zero value where there is none.
func (r Report) Check(id string) Check {
	for _, c := range r.Checks {
		if c.ID == id {
			return c
		}
	}
	return Check{}
}

// WriteText writes the report for people.
func (r Report) WriteText(to io.Writer) error {
	var b bytes.Buffer
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-9s %s\n", name, value)
		}
	}
	line("server", r.Make)
	line("publish", r.Publish)
	line("play", r.Play)
	line("streams", fmt.Sprintf("%s, %.0f s", r.Stream, r.Took.Seconds()))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	group, untried := "", 0
	for _, c := range r.Checks {
		if c.Verdict == Skip && c.Text == notTried {
			untried++
			continue
		}
		if c.Group != group {
			group = c.Group
			_ = w.Flush()
			fmt.Fprintf(&b, "\n%s\n", group)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", c.Verdict, c.ID, c.Text)
	}
	_ = w.Flush()
	if untried > 0 {
		fmt.Fprintf(&b, "\n%d further checks were %s\n", untried, notTried)
	}
	b.WriteString("\nIn a cascade\n")
	for _, role := range []struct {
		name string
		Role
	}{{"origin", r.Origin}, {"edge", r.Edge}, {"on demand", r.OnDemand}} {
		able := "no"
		if role.Able {
			able = "yes"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", able, role.name, role.Why)
	}
	_ = w.Flush()
	if len(r.Settings) > 0 {
		b.WriteString("\nSettings of a sidecar beside it\n")
		for _, s := range r.Settings {
			fmt.Fprintf(&b, "  %s\n", s)
		}
	}
	for _, s := range r.Advice {
		fmt.Fprintf(&b, "  # %s\n", s)
	}
	// Verdicts are padded by the table; nobody wants blanks at the ends of lines.
	for l := range strings.Lines(b.String()) {
		if _, err := io.WriteString(to, strings.TrimRight(l, " \n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// catalogue is every check there is, in the order of the report.
var catalogue = []struct {
	group string
	ids   []string
}{
	{"Access", []string{
		"access.publish", "access.play", "access.redirect", "access.open", "access.address", "access.session",
	}},
	{"HTTP", []string{
		"http.options", "http.cors", "http.type", "http.malformed", "http.problem", "http.get", "http.location",
	}},
	{"Offers", []string{
		"offer.direction", "offer.candidates", "offer.bundle", "offer.streams", "offer.partial", "offer.setup", "offer.lite",
	}},
	{"Sessions", []string{
		"session.counter", "session.etag", "session.trickle", "session.ifmatch", "session.restart", "session.turn",
		"delete.publisher", "delete.viewer", "delete.again",
	}},
	{"Streams", []string{
		"stream.missing", "stream.wait", "stream.second", "stream.readers", "stream.end", "stream.again",
		"stream.vanish", "stream.viewer-vanish", "stream.half-open",
	}},
	{"Events", []string{
		"events.stream", "events.unknown", "events.viewercount", "events.reconnect", "events.layers", "layer.select",
	}},
	{"Media", []string{
		"media.connect", "media.candidates", "media.frames", "media.audio", "media.latency",
		"codec.h264", "codec.vp8", "codec.vp9", "codec.av1", "codec.h265", "codec.simulcast",
	}},
	{"Repair and clocks", []string{
		"repair.publisher", "repair.viewer", "repair.rtx", "repair.order", "repair.audio",
		"clock.reports", "clock.lipsync", "extensions",
	}},
	{"Key frames", []string{"key.join", "key.request", "key.rate"}},
}

// known says whether an id is one of the catalogue's.
func known(id string) bool {
	for _, g := range catalogue {
		for _, k := range g.ids {
			if k == id {
				return true
			}
		}
	}
	return false
}
