package probe

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/testframes"
)

// address says from where the server is seen: many trust loopback.
func (p *Probe) address(ctx context.Context) {
	for _, s := range []string{p.options.Base, p.target.publish, p.target.play} {
		if s == "" {
			continue
		}
		u, err := fill(s, "x")
		if err != nil {
			return
		}
		own, err := localAddress(ctx, u)
		switch {
		case err != nil:
			p.note("access.address", Fail, "%s cannot be found: %s", u.Hostname(), excerpt(err.Error()))
		case own.IsLoopback():
			p.note("access.address", Warn, "probed over loopback, which many servers trust more than others: probe the address that "+
				"clients use to see what they may do")
		default:
			p.note("access.address", OK, "probed from %s: rights that servers give to 127.0.0.1 do not count here", own)
		}
		return
	}
}

// localAddress is this machine's address towards a server. Nothing is sent.
func localAddress(ctx context.Context, u *url.URL) (netip.Addr, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(u.Hostname(), "9"))
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// detect finds the scheme by which a server takes a publication.
func (p *Probe) detect(ctx context.Context) bool {
	base := strings.TrimRight(p.options.Base, "/")
	h264, _ := testframes.Of(webrtc.MimeTypeH264)
	var refused string
	for _, s := range schemes {
		p.say("trying the addresses of %s", s.name)
		p.target = target{scheme: s, publish: base + s.publish}
		if s.play != "" {
			p.target.play = base + s.play
		}
		b, err := p.publish(ctx, publishing{name: p.name("make"), content: synthetic(h264)})
		if err == nil {
			_ = b.close()
			return true
		}
		switch code := refusal(err); {
		case code == 0 && ctx.Err() != nil, code == 0 && !strings.Contains(err.Error(), "answer"):
			p.note("access.publish", Fail, "%s: %s", base, why(err))
			p.target = target{}
			return false
		case code != 0 && code != http.StatusNotFound && code != http.StatusMethodNotAllowed && refused == "":
			refused = fmt.Sprintf("%s answers %s", s.publish, why(err))
		}
	}
	p.target = target{}
	text := "takes a WHIP offer at none of the addresses of known makes: give the URLs to publish and to play, with " + placeholder
	if refused != "" {
		text += "; " + refused
	}
	p.note("access.publish", Fail, "%s", text)
	return false
}

// vacant says whether the name that the operator gave may be used: somebody may publish it.
func (p *Probe) vacant(ctx context.Context) bool {
	if p.target.play == "" || p.target.publish == "" {
		return true
	}
	p.say("looking whether somebody publishes %s", p.options.Stream)
	v, err := p.play(ctx, playing{name: p.options.Stream})
	if err != nil {
		return true
	}
	defer v.close() //nolint:errcheck // it is not what is looked at
	if v.wait(ctx, p.bounds.quiet, func() bool { return v.packets > 0 || v.soundCount > 0 }) {
		p.note("access.publish", Fail, "somebody publishes %s: nothing was tried, give a name that is free", p.options.Stream)
		return false
	}
	return true
}

// tryOpen finds out what one may without the credentials that were given.
func (p *Probe) tryOpen(ctx context.Context) {
	given := p.options.Token != "" || p.options.PublishToken != "" || p.options.PlayToken != "" ||
		p.options.Header.Get("Authorization") != ""
	if !given {
		p.note("access.open", Warn, "no credentials were needed: whoever reaches this address may do the same")
		return
	}
	p.say("trying without credentials")
	name, h264 := p.name("open"), p.fact().main
	open, verdict := []string{}, OK
	b, err := p.publish(ctx, publishing{name: name, content: h264, endpoint: p.endpoint(true, name, false)})
	if err == nil {
		verdict = Warn
		open = append(open, "publishing needs no credentials")
		defer b.close() //nolint:errcheck // it is not what is looked at
	} else {
		open = append(open, "publishing without credentials: "+why(err))
	}
	if p.target.play != "" {
		// Of what is published: servers say 404 for the rest, whoever asks.
		if err != nil {
			if b, err = p.publish(ctx, publishing{name: name, content: h264}); err == nil {
				defer b.close() //nolint:errcheck // it is not what is looked at
				if v, err := p.playSoon(ctx, playing{name: name, content: h264}); err == nil {
					_ = v.close()
				}
			}
		}
		v, err := p.play(ctx, playing{name: name, content: h264, endpoint: p.endpoint(false, name, false)})
		if err == nil {
			verdict = Warn
			open = append(open, "playing needs no credentials")
			_ = v.close()
		} else {
			open = append(open, "playing: "+why(err))
		}
	}
	p.note("access.open", verdict, "%s", strings.Join(open, "; "))
}

// tryHTTP looks at the endpoint itself, without a session.
func (p *Probe) tryHTTP(ctx context.Context) {
	p.say("asking the endpoint this and that")
	publish := p.target.publish != ""
	ep := p.endpoint(publish, p.name("http"), true)
	if ep.URL == nil {
		return
	}
	if a, err := p.ask(ctx, http.MethodOptions, ep.URL, ep.Header, ""); err != nil {
		p.note("http.options", Warn, "%s", why(err))
	} else if accepts := a.header.Get("Accept-Post"); a.ok() && strings.Contains(accepts, contentSDP) {
		p.note("http.options", OK, "%s, Accept-Post: %s", a, excerpt(accepts))
	} else {
		p.note("http.options", Warn, "%s without Accept-Post: application/sdp; clients that ask first go without", a)
	}

	preflight := http.Header{
		"Origin": {"https://probe.invalid"}, "Access-Control-Request-Method": {"POST"},
		"Access-Control-Request-Headers": {"authorization,content-type"},
	}
	if a, err := p.ask(ctx, http.MethodOptions, ep.URL, preflight, ""); err != nil {
		p.note("http.cors", Warn, "%s", why(err))
	} else if allowed := a.header.Get("Access-Control-Allow-Origin"); a.ok() && allowed != "" {
		p.note("http.cors", OK, "preflight %s, for origin %s", a, excerpt(allowed))
	} else {
		p.note("http.cors", Warn, "preflight %s without Access-Control-Allow-Origin: players in pages of other origins cannot call", a)
	}

	var refusals []answer
	for id, q := range map[string]struct{ kind, body string }{
		"http.type":      {"text/plain", "v=0\r\n"},
		"http.malformed": {contentSDP, "this is no SDP"},
	} {
		a, err := p.ask(ctx, http.MethodPost, ep.URL, with(ep.Header, "Content-Type", q.kind), q.body)
		what := map[string]string{"http.type": "an offer of type text/plain", "http.malformed": "an offer that is no SDP"}[id]
		switch {
		case err != nil:
			p.note(id, Fail, "%s: %s", what, why(err))
		case a.status/100 == 4:
			p.note(id, OK, "%s is refused: %s", what, a)
			refusals = append(refusals, a)
		case a.ok():
			p.note(id, Fail, "%s is accepted: %s", what, a)
			if at, err := ep.URL.Parse(a.header.Get("Location")); err == nil && a.header.Get("Location") != "" {
				_, _ = p.ask(ctx, http.MethodDelete, at, ep.Header, "")
			}
		default:
			p.note(id, Warn, "%s: %s; a refusal would be 4xx", what, a)
		}
	}
	if len(refusals) > 0 {
		a := refusals[0]
		if a.contentType() == "application/problem+json" {
			p.note("http.problem", OK, "refusals say why, as application/problem+json")
		} else {
			p.note("http.problem", Skip, "refusals are of type %q; RFC 9725 only suggests application/problem+json", excerpt(a.contentType()))
		}
	}
	if a, err := p.ask(ctx, http.MethodGet, ep.URL, ep.Header, ""); err != nil {
		p.note("http.get", Warn, "%s", why(err))
	} else if a.ok() {
		p.note("http.get", OK, "GET of the endpoint: %s", a)
	} else {
		p.note("http.get", Warn, "GET of the endpoint: %s; RFC 9725 has it answered 2xx, drafts before it did not", a)
	}
}

// notes of an answer that opened a session.
func (p *Probe) noteOpened(log *recorder) {
	if e, ok := log.first(exchange.redirects); ok {
		p.noteRedirect(e.status, hostOf(e))
	} else {
		p.note("access.redirect", OK, "none")
	}
	post, ok := log.last(http.MethodPost)
	if !ok {
		return
	}
	at, err := post.url.Parse(post.header.Get("Location"))
	if err != nil {
		return
	}
	p.learn(func(f *facts) { f.location = at.Path })
	kind := "relative"
	if strings.Contains(post.header.Get("Location"), "://") {
		kind = "absolute"
	}
	last := at.Path[strings.LastIndexByte(at.Path, '/')+1:] + at.RawQuery
	switch {
	case post.url.Scheme == "https" && at.Scheme != "https":
		p.note("http.location", Fail, "%s, and leads from https to http", kind)
	case len(last) < 16 && len(at.Path) < len(post.url.Path)+16:
		p.note("http.location", Warn, "%s; its last part has %d letters and may be guessed", kind, len(last))
	default:
		p.note("http.location", OK, "%s, long enough not to be guessed", kind)
	}
}

func (p *Probe) noteRedirect(status int, to string) {
	if status == http.StatusTemporaryRedirect || status == http.StatusPermanentRedirect {
		p.note("access.redirect", OK, "%d to %s", status, excerpt(to))
		return
	}
	p.note("access.redirect", Fail, "%d: clients send only 307 and 308 on with their offer (RFC 9725, section 4.5)", status)
}

func hostOf(e exchange) string {
	u, err := e.url.Parse(e.header.Get("Location"))
	if err != nil {
		return "nowhere"
	}
	return u.Scheme + "://" + u.Host
}

// ended waits until the server or the network has ended a session.
func ended(ctx context.Context, bound time.Duration, wait func(context.Context) error) (time.Duration, bool) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err := wait(ctx)
	return time.Since(began), err != nil && ctx.Err() == nil
}
