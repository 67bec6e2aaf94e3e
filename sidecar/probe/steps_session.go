package probe

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// trySession looks at what a session's own address does.
func (p *Probe) trySession(ctx context.Context) {
	p.say("trickling, restarting ICE, deleting")
	name, c := p.name("session"), p.fact().main
	b, err := p.publish(ctx, publishing{name: name, content: c})
	if err != nil {
		p.note("session.etag", Skip, "no session to look at: %s", why(err))
		return
	}
	defer b.close() //nolint:errcheck // looked at below
	if _, ok := p.connected(ctx, b.session.Connected); !ok {
		return
	}
	var v *viewer
	if p.target.play != "" {
		if v, err = p.playSoon(ctx, playing{name: name, content: c}); err == nil {
			defer v.close() //nolint:errcheck // looked at below
			v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) > 5 })
		}
	}
	if tag := b.session.ETag(); tag == "" {
		p.note("session.etag", Skip, "none: the server does not restart ICE (RFC 9725, section 4.3.1)")
	} else {
		p.note("session.etag", OK, "%s", excerpt(tag))
	}
	post, _ := b.log.last(http.MethodPost)
	if servers := whip.ICEServers(post.header); len(servers) > 0 {
		p.note("session.turn", OK, "%d ICE servers by Link: %s", len(servers), excerpt(strings.Join(servers[0].URLs, " ")))
	} else {
		p.note("session.turn", Skip, "no ICE servers by Link; the gateway can add some")
	}

	ep := p.endpoint(true, name, true)
	p.tryTrickle(ctx, b, ep)
	p.tryRestart(ctx, b, v, ep)
	p.tryDelete(ctx, b, v, name)
}

// fragment is one for the session as it stands, with a candidate that leads nowhere.
func fragment(b *publisher, ufrag, pwd string) string {
	line, mid := "audio 9 UDP/TLS/RTP/SAVPF 111", "0"
	local := b.session.PeerConnection().LocalDescription().SDP
	own := whip.FragmentICE{Ufrag: attribute(local, "ice-ufrag"), Pwd: attribute(local, "ice-pwd")}
	if ufrag != "" {
		own.Ufrag, own.Pwd = ufrag, pwd
	}
	if _, rest, ok := strings.Cut(local, "m="); ok {
		line, _, _ = strings.Cut(rest, "\r\n")
		mid = attribute(rest, "mid")
	}
	f := whip.Fragment{FragmentICE: own, Media: []whip.FragmentMedia{{Line: line, MID: mid, FragmentICE: whip.FragmentICE{
		Candidates:      []string{"1 1 udp 2122260223 192.0.2.1 61764 typ host"}, // TEST-NET-1, RFC 5737
		EndOfCandidates: true,
	}}}}
	return string(f.Marshal())
}

// attribute is the first of a name in a description.
func attribute(description, name string) string {
	_, rest, _ := strings.Cut(description, "a="+name+":")
	value, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(value)
}

func (p *Probe) tryTrickle(ctx context.Context, b *publisher, ep adapters.Endpoint) {
	at, tag := b.session.Location(), b.session.ETag()
	patch := func(match string) (answer, error) {
		h := with(ep.Header, "Content-Type", contentFrag)
		if match != "" {
			h.Set("If-Match", match)
		}
		return p.ask(ctx, http.MethodPatch, at, h, fragment(b, "", ""))
	}
	a, err := patch(tag)
	switch {
	case err != nil:
		p.note("session.trickle", Warn, "%s", why(err))
		return
	case a.ok():
		p.note("session.trickle", OK, "a PATCH with a candidate: %s", a)
	default:
		p.note("session.trickle", Warn, "a PATCH with a candidate: %s; clients must gather all candidates before they offer", a)
		return
	}
	if tag == "" {
		p.note("session.ifmatch", Skip, "there is no ETag to match")
		return
	}
	missing, err := patch("")
	if err != nil {
		return
	}
	stale, err := patch(`"sidestream-probe-stale"`)
	if err != nil {
		return
	}
	text := fmt.Sprintf("a PATCH without If-Match: %s; with another's: %s", missing, stale)
	switch {
	case tag == "*" || !stale.ok():
		p.note("session.ifmatch", OK, "%s", text)
	default:
		p.note("session.ifmatch", Warn, "%s: a late PATCH is taken for one of now (RFC 9725, section 4.3.1, has 412)", text)
	}
}

// tryRestart asks for an ICE restart with credentials of nobody first: where that is refused, the session must live on.
func (p *Probe) tryRestart(ctx context.Context, b *publisher, v *viewer, ep adapters.Endpoint) {
	h := with(ep.Header, "Content-Type", contentFrag, "If-Match", "*")
	a, err := p.ask(ctx, http.MethodPatch, b.session.Location(), h, fragment(b, rand.Text()[:8], rand.Text()))
	if err != nil {
		p.note("session.restart", Warn, "%s", why(err))
		return
	}
	if !a.ok() || a.contentType() != contentFrag {
		if v == nil || p.flows(ctx, v) {
			p.note("session.restart", Warn, "%s, and the session goes on: who changes networks has to publish anew", a)
		} else {
			p.note("session.restart", Fail, "%s, and the old session ended with it", a)
		}
		return
	}
	// Now in earnest, in a session of its own: the one before has lost its way.
	name := p.name("restart")
	if p.options.Stream != "" {
		_ = b.close()
	}
	again, err := p.publish(ctx, publishing{name: name, content: p.fact().main})
	if err != nil {
		p.note("session.restart", Warn, "%s; a second try found no session: %s", a, why(err))
		return
	}
	defer again.close() //nolint:errcheck // other steps look at that
	if _, ok := p.connected(ctx, again.session.Connected); !ok {
		return
	}
	var watcher *viewer
	if p.target.play != "" {
		if watcher, err = p.playSoon(ctx, playing{name: name, content: p.fact().main}); err == nil {
			defer watcher.close() //nolint:errcheck // other steps look at that
			watcher.wait(ctx, p.bounds.wait, func() bool { return len(watcher.frames) > 5 })
		}
	}
	began := time.Now()
	if err := p.restart(ctx, again, ep); err != nil {
		p.note("session.restart", Fail, "%s", why(err))
		return
	}
	if watcher == nil || p.flows(ctx, watcher) {
		p.note("session.restart", OK, "200, and media goes on; %s in all", ms(time.Since(began)))
	} else {
		p.note("session.restart", Fail, "200, and no media afterwards")
	}
}

// restart gives a publisher's connection new ICE credentials, and the server's with them.
func (p *Probe) restart(ctx context.Context, b *publisher, ep adapters.Endpoint) error {
	pc := b.session.PeerConnection()
	before := pc.RemoteDescription().SDP
	offer, err := pc.CreateOffer(&webrtc.OfferOptions{ICERestart: true})
	if err != nil {
		return err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(offer); err != nil {
		return err
	}
	select {
	case <-gathered:
	case <-time.After(p.bounds.request):
	case <-ctx.Done():
		return ctx.Err()
	}
	local := pc.LocalDescription().SDP
	_, rest, _ := strings.Cut(local, "m=")
	line, _, _ := strings.Cut(rest, "\r\n")
	f := whip.Fragment{
		FragmentICE: whip.FragmentICE{Ufrag: attribute(local, "ice-ufrag"), Pwd: attribute(local, "ice-pwd")},
		Media:       []whip.FragmentMedia{{Line: line, MID: attribute(rest, "mid")}},
	}
	first, _, _ := strings.Cut(rest, "\r\nm=")
	for l := range strings.Lines(first) {
		if c, ok := strings.CutPrefix(strings.TrimSpace(l), "a=candidate:"); ok {
			f.Media[0].Candidates = append(f.Media[0].Candidates, c)
		}
	}
	f.Media[0].EndOfCandidates = true
	a, err := p.ask(ctx, http.MethodPatch, b.session.Location(),
		with(ep.Header, "Content-Type", contentFrag, "If-Match", "*"), string(f.Marshal()))
	if err != nil {
		return err
	}
	if !a.ok() {
		return fmt.Errorf("a restart that was granted once is refused: %s", a)
	}
	theirs, err := whip.ParseFragment(a.body)
	if err != nil {
		return err
	}
	ufrag, pwd := theirs.Credentials()
	if ufrag == "" {
		return fmt.Errorf("the answer to a restart, %s, has no credentials", a)
	}
	return pc.SetRemoteDescription(webrtc.SessionDescription{
		Type: webrtc.SDPTypeAnswer, SDP: restarted(before, ufrag, pwd, theirs.AllCandidates()),
	})
}

// restarted is an answer with other credentials and candidates.
func restarted(answer, ufrag, pwd string, candidates []string) string {
	var out strings.Builder
	placed := false
	for l := range strings.Lines(answer) {
		switch line := strings.TrimSpace(l); {
		case strings.HasPrefix(line, "a=ice-ufrag:"):
			out.WriteString("a=ice-ufrag:" + ufrag + "\r\n")
		case strings.HasPrefix(line, "a=ice-pwd:"):
			out.WriteString("a=ice-pwd:" + pwd + "\r\n")
		case len(candidates) > 0 && (strings.HasPrefix(line, "a=candidate:") || line == "a=end-of-candidates"):
		case strings.HasPrefix(line, "a=mid:") && !placed:
			placed = true
			out.WriteString(l)
			for _, c := range candidates {
				out.WriteString("a=candidate:" + c + "\r\n")
			}
		default:
			out.WriteString(l)
		}
	}
	return out.String()
}

// flows says whether a viewer goes on getting frames.
func (p *Probe) flows(ctx context.Context, v *viewer) bool {
	var before int
	v.look(func() { before = len(v.frames) })
	return v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) > before+enough/2 })
}

// tryDelete ends the sessions.
func (p *Probe) tryDelete(ctx context.Context, b *publisher, v *viewer, name adapters.StreamID) {
	bare, full := p.endpoint(true, name, false), p.endpoint(true, name, true)
	if full.Header.Get("Authorization") != bare.Header.Get("Authorization") {
		if a, err := p.ask(ctx, http.MethodDelete, b.session.Location(), bare.Header, ""); err == nil {
			if a.ok() {
				p.note("access.session", Warn, "DELETE of a session without credentials: %s; who knows its address may end it", a)
			} else {
				p.note("access.session", OK, "DELETE of a session without credentials: %s", a)
			}
		}
	}
	if v != nil {
		_ = v.close()
		e, sent := v.log.last(http.MethodDelete)
		switch {
		case !sent:
			p.note("delete.viewer", Fail, "no answer")
		case e.status/100 == 2:
			p.note("delete.viewer", OK, "%s", answer{status: e.status})
		default:
			p.note("delete.viewer", Warn, "%s: a viewer's session ends when its connection does", answer{status: e.status})
		}
	}
	_ = b.close()
	e, sent := b.log.last(http.MethodDelete)
	switch {
	case !sent:
		p.note("delete.publisher", Fail, "no answer")
		return
	case e.status/100 == 2:
		p.note("delete.publisher", OK, "%s", answer{status: e.status})
	case e.status == http.StatusNotFound && p.checked("access.session").Verdict == Warn:
		p.note("delete.publisher", OK, "%s, it was deleted before", answer{status: e.status})
	default:
		p.note("delete.publisher", Fail, "%s: what a relay publishes stays until the server gives it up", answer{status: e.status})
		return
	}
	if a, err := p.ask(ctx, http.MethodDelete, b.session.Location(), full.Header, ""); err == nil {
		if a.status/100 == 4 {
			p.note("delete.again", OK, "%s", a)
		} else {
			p.note("delete.again", Warn, "%s: it says the same of sessions that it does not have", a)
		}
	}
}

func (p *Probe) checked(id string) Check {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.checks[id]
}
