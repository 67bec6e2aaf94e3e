package probe

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// summarize makes the report of what has been seen.
func (p *Probe) summarize(ctx context.Context, began time.Time) Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := Report{
		Make: p.target.scheme.name, Publish: p.target.publish, Play: p.target.play, Stream: p.prefix + "-*",
		Began: began.UTC().Truncate(time.Second), Took: time.Since(began), Traits: p.facts.traits,
	}
	if p.options.Stream != "" {
		r.Stream = string(p.options.Stream)
	}
	reason := notTried
	if ctx.Err() != nil {
		reason = "not tried: the time was over"
	}
	for _, g := range catalogue {
		for _, id := range g.ids {
			c, ok := p.checks[id]
			if !ok {
				text := reason
				if slow := id == "stream.vanish" || id == "stream.viewer-vanish" || id == "stream.half-open"; slow && !p.options.Slow {
					text = "not tried: it takes minutes, give -slow"
				}
				c = Check{ID: id, Verdict: Skip, Text: text}
			}
			c.Group = g.group
			r.Checks = append(r.Checks, c)
		}
	}
	slices.Sort(p.facts.codecs)
	r.Traits.Codecs = slices.Compact(p.facts.codecs)
	if p.facts.plays && len(r.Traits.Codecs) > 0 && r.Check("media.audio").Verdict == OK {
		r.Traits.Codecs = append(r.Traits.Codecs, "audio/opus")
	}
	r.Traits.AcceptsAndWaits = p.facts.waits
	p.roles(&r)
	if r.CanCascade() {
		p.settings(&r)
	}
	return r
}

// roles say what places in a cascade the server can take.
func (p *Probe) roles(r *Report) {
	f := p.facts
	switch {
	case f.plays && f.whole && r.Check("repair.viewer").Verdict == Fail:
		r.Origin = Role{true, "what is published here can be pulled by other regions; losses on the way stay"}
	case f.plays && f.whole:
		r.Origin = Role{true, "what is published here can be pulled by other regions"}
	case f.plays:
		r.Origin = Role{false, "it can be played, and what comes is not whole: " + r.Check("media.frames").Text}
	case p.target.play == "" && f.publishes:
		r.Origin = Role{false, "it cannot be played by WHEP, so nobody can pull from it"}
	default:
		r.Origin = Role{false, "it cannot be played: " + firstFault(r, "access.play", "media.connect", "media.frames", "access.publish")}
	}
	end := r.Check("delete.publisher").Verdict != Fail
	switch {
	case f.publishes && (f.whole || !f.plays) && end:
		r.Edge = Role{true, "a relay can publish here what comes from other regions"}
	case f.publishes && f.whole:
		r.Edge = Role{true, "a relay can publish here what comes from other regions; it cannot take it back before the server notices"}
	case f.publishes:
		r.Edge = Role{false, "it can be published to, and what comes out is not whole: " + r.Check("media.frames").Text}
	case p.target.publish == "":
		r.Edge = Role{false, "there is no URL to publish to"}
	default:
		r.Edge = Role{false, "it cannot be published to: " + firstFault(r, "access.publish", "media.connect")}
	}
	missing, waits := r.Check("stream.missing"), r.Check("stream.wait")
	switch {
	case !r.Edge.Able:
		r.OnDemand = Role{false, "it is no edge"}
	case !f.plays:
		r.OnDemand = Role{false, "viewers who come by other ways than WHEP raise no demand: pin the streams (SIDESTREAM_RELAY_PINS)"}
	case f.waits:
		r.OnDemand = Role{true, "a play of a stream that is not there waits, and is served when the relay publishes it"}
	case f.missing != 0 && missing.Verdict != Fail:
		r.OnDemand = Role{true, fmt.Sprintf("a play of a stream that is not there is answered %d, by which the gateway knows when to fetch it", f.missing)}
	case waits.Verdict == Fail:
		r.OnDemand = Role{false, "a play of a stream that is not there is taken and never served: pin the streams (SIDESTREAM_RELAY_PINS)"}
	default:
		r.OnDemand = Role{false, "it does not say which streams are not there: pin them (SIDESTREAM_RELAY_PINS)"}
	}
}

// firstFault is the text of the first of the checks that failed.
func firstFault(r *Report, ids ...string) string {
	for _, id := range ids {
		if c := r.Check(id); c.Verdict == Fail {
			return c.Text
		}
	}
	return "it was not found out why"
}

// settings are those of a sidecar beside the server, and what to do besides.
func (p *Probe) settings(r *Report) {
	some := p.target.publish
	if some == "" {
		some = p.target.play
	}
	u, err := url.Parse(strings.ReplaceAll(some, placeholder, "x"))
	if err != nil {
		return
	}
	set := func(name, value string) { r.Settings = append(r.Settings, "SIDESTREAM_ADAPTER_"+name+"="+value) }
	base := u.Scheme + "://" + u.Host
	adapter := p.target.scheme.adapter
	if adapter == "" && strings.HasPrefix(p.facts.location, "/session/") && r.Check("session.counter").Verdict != Warn && p.target.scheme.publish == "/whip/{stream}" {
		adapter = "pionsfu"
		r.Make = "the built-in server, by its addresses"
	}
	f := p.facts
	if adapter != "" {
		set("NAME", adapter)
		if p.target.scheme.publish != "" {
			base = strings.TrimSuffix(some, p.target.scheme.publish)
		}
		set("URL", base)
	} else {
		set("NAME", "generic")
		set("URL", base)
		if f.publishes {
			set("GENERIC_PUBLISH_PATH", strings.TrimPrefix(p.target.publish, base))
		}
		if f.plays {
			set("GENERIC_PLAY_PATH", strings.TrimPrefix(p.target.play, base))
		}
		if f.missing != 0 && f.missing != http.StatusNotFound {
			set("GENERIC_MISSING_STATUS", fmt.Sprint(f.missing))
		}
		t := r.Traits
		if videos := len(t.Codecs); videos > 0 && p.missesCodec() {
			set("GENERIC_CODECS", strings.Join(t.Codecs, ","))
		}
		for _, trait := range []struct {
			name string
			is   bool
		}{
			{"IN_ORDER", t.InOrder},
			{"FILL_AUDIO", t.FillAudio},
			{"DROPS_READERS", t.DropsReadersOnReplace},
			{"WAITS", t.AcceptsAndWaits},
			{"IGNORES_PLI", t.IgnoresPLI},
		} {
			if trait.is {
				set("GENERIC_"+trait.name, "true")
			}
		}
		if t.MaxHold > 0 {
			set("GENERIC_MAX_HOLD", t.MaxHold.String())
		}
		r.Advice = append(r.Advice, "and its inventory (SIDESTREAM_ADAPTER_GENERIC_INVENTORY_URL, _QUERY), without which it is an edge only")
		if !strings.Contains(p.target.publish, placeholder) && p.target.publish != "" {
			r.Advice = append(r.Advice, "the stream's name stands in a header, which the adapter generic cannot fill in")
		}
	}
	if p.options.Token != "" {
		set("TOKEN", "...")
	}
	if p.options.PublishToken != "" {
		set("PUBLISH_TOKEN", "...")
	}
	if p.options.PlayToken != "" {
		set("PLAY_TOKEN", "...")
	}
	if f.firstKey > time.Second {
		r.Advice = append(r.Advice, fmt.Sprintf("an on-demand play from here begins after %.1f s, because that is how long a key frame takes",
			f.firstKey.Seconds()))
	}
}

// missesCodec says whether one of the codecs that were tried is not taken.
func (p *Probe) missesCodec() bool {
	for id, c := range p.checks {
		if strings.HasPrefix(id, "codec.") && id != "codec.simulcast" && c.Verdict != OK && c.Verdict != Skip {
			return true
		}
	}
	return false
}
