package probe

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
)

// placeholder stands for the stream's name in URLs and header values.
const placeholder = "{stream}"

// scheme is where a make of server takes WHIP and WHEP.
type scheme struct {
	name          string // for people
	adapter       string // ours for it, "" where it is generic's
	publish, play string // paths; "" where it has none
	key           bool   // the name is the bearer token
}

// schemes are those of the makes that we know, in the order in which they are tried.
var schemes = []scheme{
	{name: "/whip/NAME (pionsfu, a Sidestream gateway before it, live777)", publish: "/whip/{stream}", play: "/whep/{stream}"},
	{name: "MediaMTX", adapter: "mediamtx", publish: "/{stream}/whip", play: "/{stream}/whep"},
	{name: "Broadcast Box", adapter: "broadcastbox", publish: "/api/whip", play: "/api/whep", key: true},
	{
		name: "SRS", publish: "/rtc/v1/whip/?app=live&stream={stream}", play: "/rtc/v1/whep/?app=live&stream={stream}",
	},
	{name: "Janus behind a simple WHIP server", publish: "/whip/endpoint/{stream}", play: "/whep/endpoint/{stream}"},
	{name: "Ant Media", publish: "/WebRTCAppEE/whip/{stream}", play: "/WebRTCAppEE/whep/{stream}"},
	{name: "OvenMediaEngine", publish: "/app/{stream}?direction=whip"},
	{name: "Galene", publish: "/group/{stream}/.whip"},
	{name: "LiveKit's ingress", publish: "/w/{stream}"},
}

// target is the server that is probed.
type target struct {
	scheme        scheme
	publish, play string // URL templates; "" where there is none
}

// checkTemplate refuses what cannot be a URL template. Where the name stands in a header, the URL needs no place for it.
func checkTemplate(s string, elsewhere bool) error {
	if n := strings.Count(s, placeholder); n > 1 || n == 0 && !elsewhere {
		return fmt.Errorf("%q must hold %s once, where the stream's name belongs; or give a header that holds it, or -stream "+
			"with the name that the URL is for", s, placeholder)
	}
	u, err := url.Parse(strings.ReplaceAll(s, placeholder, "name"))
	if err != nil {
		return fmt.Errorf("%q is no URL", strings.ToValidUTF8(s, ""))
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q must begin with http:// or https:// and a host", u.Redacted())
	}
	if strings.Contains(u.Host, "name") && strings.Contains(s, "://"+placeholder) {
		return errors.New(placeholder + " cannot be in the host")
	}
	return nil
}

// fill puts a name into a URL template.
func fill(template string, name adapters.StreamID) (*url.URL, error) {
	before, after, found := strings.Cut(template, placeholder)
	if !found {
		return url.Parse(template)
	}
	if strings.Contains(before, "?") {
		return url.Parse(before + url.QueryEscape(string(name)) + after)
	}
	// A name may hold slashes, which are path elements of their own.
	elements := strings.Split(string(name), "/")
	for i, e := range elements {
		elements[i] = url.PathEscape(e)
	}
	return url.Parse(before + strings.Join(elements, "/") + after)
}

// endpoint is where a stream is published or played, with what the operator's flags send along.
func (p *Probe) endpoint(publish bool, name adapters.StreamID, credentials bool) adapters.Endpoint {
	template, token := p.target.play, p.options.PlayToken
	if publish {
		template, token = p.target.publish, p.options.PublishToken
	}
	if template == "" {
		return adapters.Endpoint{}
	}
	u, err := fill(template, name)
	if err != nil { // checked before, with another name
		return adapters.Endpoint{}
	}
	if token == "" {
		token = p.options.Token
	}
	header := http.Header{}
	if p.target.scheme.key {
		header.Set("Authorization", "Bearer "+string(name))
	}
	if !credentials {
		return adapters.Endpoint{URL: u, Header: header}
	}
	if token != "" {
		header.Set("Authorization", "Bearer "+strings.ReplaceAll(token, placeholder, string(name)))
	}
	for field, values := range p.options.Header {
		header.Del(field)
		for _, v := range values {
			header.Add(field, strings.ReplaceAll(v, placeholder, string(name)))
		}
	}
	return adapters.Endpoint{URL: u, Header: header}
}

// guess is the scheme that URL templates follow; the zero value where they follow none.
func guess(publish, play string) (s scheme) {
	for _, s := range schemes {
		if s.key || strings.HasSuffix(s.publish, "/{stream}") && s.adapter == "" && s.publish != "/whip/{stream}" {
			continue
		}
		if publish != "" && strings.HasSuffix(publish, s.publish) || publish == "" && s.play != "" && strings.HasSuffix(play, s.play) {
			return s
		}
	}
	if strings.HasSuffix(publish, "/api/whip") {
		return schemes[2]
	}
	return scheme{}
}
