package probe

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// tryMissing plays what nobody publishes, and where that is taken, publishes it then.
func (p *Probe) tryMissing(ctx context.Context) {
	p.say("playing what nobody publishes")
	name := p.name("missing")
	began := time.Now()
	c, err := clip()
	if err != nil {
		return
	}
	v, err := p.play(ctx, playing{name: name, content: c})
	took := time.Since(began)
	if code := refusal(err); code != 0 {
		switch {
		case code == 401 || code == 403:
			p.note("stream.missing", Fail, "%s: credentials are not enough to play", why(err))
		case code/100 == 4:
			p.learn(func(f *facts) { f.missing = code })
			p.note("stream.missing", OK, "a play of what nobody publishes: %s, after %s", why(err), ms(took))
		default:
			p.learn(func(f *facts) { f.missing = code })
			p.note("stream.missing", Warn, "a play of what nobody publishes: %s; a refusal would be 404 or 409", why(err))
		}
		p.note("stream.wait", Skip, "such a play does not wait")
		return
	}
	if err != nil {
		p.note("stream.missing", Fail, "a play of what nobody publishes: %s", why(err))
		return
	}
	defer v.close() //nolint:errcheck // other steps look at that
	p.note("stream.missing", OK, "a play of what nobody publishes is taken, after %s", ms(took))
	if p.target.publish == "" {
		return
	}
	b, err := p.publish(ctx, publishing{name: name, content: c})
	if err != nil {
		p.note("stream.wait", Fail, "such a play is taken, and then nobody can publish: %s", why(err))
		return
	}
	defer b.close() //nolint:errcheck // other steps look at that
	if v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) > 0 }) {
		p.note("stream.wait", OK, "such a play waits, and has its first frame when somebody publishes")
		p.learn(func(f *facts) { f.waits = true })
		return
	}
	p.note("stream.wait", Fail, "such a play is taken, and gets nothing when somebody publishes: its viewers wait for ever")
}

// shift is by how much a second publisher's numbers are higher than the first one's.
const shift = 1 << 24

// shifted is content with higher numbers, so that two publications of a name can be told apart.
func shifted(c content, by uint32) content {
	out := c
	out.frame = func(n uint32, key bool) ([]byte, bool) { return c.frame(n+by, key) }
	return out
}

// comes says whether a viewer gets frames from a number on, within the bound.
func (v *viewer) comes(ctx context.Context, bound time.Duration, from uint32) bool {
	return v.wait(ctx, bound, func() bool {
		for n := range v.frames {
			if n >= from {
				return true
			}
		}
		return false
	})
}

// tryLife sees what becomes of publishers and viewers when a second publisher comes, and when the publisher goes.
func (p *Probe) tryLife(ctx context.Context) {
	p.say("publishing a name twice, and ending it")
	name, c := p.name("life"), p.fact().main
	first, err := p.publish(ctx, publishing{name: name, content: c})
	if err != nil {
		p.note("stream.second", Skip, "%s", why(err))
		return
	}
	defer first.close() //nolint:errcheck // other steps look at that
	if _, ok := p.connected(ctx, first.session.Connected); !ok {
		return
	}
	watch := func() *viewer {
		if p.target.play == "" {
			return nil
		}
		v, err := p.playSoon(ctx, playing{name: name, content: c})
		if err != nil || !v.wait(ctx, p.bounds.wait, func() bool { return len(v.frames) > 5 }) {
			if err == nil {
				_ = v.close()
			}
			return nil
		}
		return v
	}
	v := watch()
	if v != nil {
		defer v.close() //nolint:errcheck // other steps look at that
	}

	owner := first
	second, err := p.publish(ctx, publishing{name: name, content: shifted(c, shift)})
	switch {
	case refusal(err) != 0:
		if v == nil || p.flows(ctx, v) {
			p.note("stream.second", OK, "refused: %s; the first goes on", why(err))
		} else {
			p.note("stream.second", Fail, "refused: %s; and the viewers of the first get nothing more", why(err))
		}
	case err != nil:
		p.note("stream.second", Warn, "%s", why(err))
	default:
		defer second.close() //nolint:errcheck // other steps look at that
		owner = p.noteSecond(ctx, first, second, v)
	}
	if owner != first && p.target.play != "" {
		if v != nil {
			_ = v.close()
		}
		if v = watch(); v != nil {
			defer v.close() //nolint:errcheck // other steps look at that
		}
	}
	p.tryEnd(ctx, name, owner, v)
}

// noteSecond says how two publishers of a name get on, and which is left.
func (p *Probe) noteSecond(ctx context.Context, first, second *publisher, v *viewer) (owner *publisher) {
	p.connected(ctx, second.session.Connected)
	if v == nil {
		if _, replaced := ended(ctx, p.bounds.quiet, first.session.Wait); replaced {
			p.note("stream.second", OK, "replaces the first")
			return second
		}
		p.note("stream.second", Warn, "taken while the first goes on: two publishers do not learn of each other")
		_ = second.close()
		return first
	}
	follows := v.comes(ctx, p.bounds.quiet, shift)
	dropped := false
	if !follows {
		_, dropped = ended(ctx, p.bounds.retry, v.session.Wait)
	}
	// Who comes now sees whom the server takes for the publisher.
	newcomer, err := p.playSoon(ctx, playing{name: v.how.name, content: v.how.content})
	heard := false
	if err == nil {
		newcomer.wait(ctx, p.bounds.wait, func() bool { return len(newcomer.frames) > 0 })
		heard = newcomer.comes(ctx, p.bounds.retry, shift)
		_ = newcomer.close()
	}
	switch {
	case !heard:
		p.note("stream.second", Warn, "taken while the first goes on, whom viewers see: two publishers do not learn of each other")
		_ = second.close()
		return first
	case follows:
		p.note("stream.second", OK, "replaces the first, whose viewers stay and see the second")
	case dropped:
		p.note("stream.second", Warn, "replaces the first, whose viewers are closed and have to come again")
	default:
		p.note("stream.second", Warn, "replaces the first, whose viewers stay connected and see nothing more")
	}
	_ = first.close()
	return second
}

// tryEnd ends a publication and sees what becomes of its viewers, of the name, and of who publishes it again.
func (p *Probe) tryEnd(ctx context.Context, name adapters.StreamID, b *publisher, v *viewer) {
	_ = b.close()
	const again = shift * 2
	took, closed := time.Duration(0), false
	if v != nil {
		took, closed = ended(ctx, p.bounds.quiet, v.session.Wait)
	}
	if p.target.play != "" {
		p.noteEnd(ctx, name, took, closed)
	}
	began := time.Now()
	var next *publisher
	var err error
	refusals := ""
	for {
		next, err = p.publish(ctx, publishing{name: name, content: shifted(p.fact().main, again)})
		if err == nil || refusal(err) == 0 || time.Since(began) > p.bounds.wait || ctx.Err() != nil {
			break
		}
		refusals = why(err)
		select {
		case <-time.After(p.bounds.retry):
		case <-ctx.Done():
		}
	}
	if err != nil {
		p.note("stream.again", Fail, "a name that was published and ended is refused for %s: %s", ms(time.Since(began)), why(err))
		return
	}
	defer next.close() //nolint:errcheck // other steps look at that
	if refusals == "" {
		p.note("stream.again", OK, "the name can be published again at once")
	} else {
		p.note("stream.again", Warn, "the name can be published again after %s; before, %s", ms(time.Since(began)), refusals)
	}
	if v == nil {
		return
	}
	switch {
	case closed:
		p.learn(func(f *facts) { f.traits.DropsReadersOnReplace = true })
		p.note("stream.readers", Warn, "viewers are closed when their publisher goes, %s after; they have to come again", ms(took))
	case v.comes(ctx, p.bounds.wait, again):
		p.note("stream.readers", OK, "viewers stay when their publisher goes, and see the next one")
	default:
		p.learn(func(f *facts) { f.traits.DropsReadersOnReplace = true })
		p.note("stream.readers", Fail, "viewers stay connected when their publisher goes, and never see the next one")
	}
}

// noteEnd says whether a name that is published no longer is one that nobody publishes.
func (p *Probe) noteEnd(ctx context.Context, name adapters.StreamID, took time.Duration, closed bool) {
	viewers := "its viewers stay connected"
	if closed {
		viewers = fmt.Sprintf("its viewers are closed after %s", ms(took))
	}
	f := p.fact()
	if f.missing == 0 {
		p.note("stream.end", OK, "%s; plays of it wait", viewers)
		return
	}
	began := time.Now()
	for {
		v, err := p.play(ctx, playing{name: name, content: f.main})
		if err == nil {
			_ = v.close()
		}
		switch {
		case refusal(err) == f.missing:
			p.note("stream.end", OK, "%s; a play is refused %s after the DELETE", viewers, ms(time.Since(began)))
			return
		case time.Since(began) > p.bounds.wait || ctx.Err() != nil:
			text := "is still taken"
			if err != nil {
				text = why(err)
			}
			p.note("stream.end", Fail, "%s; a play %s after the DELETE: %s", viewers, ms(time.Since(began)), strings.TrimSpace(text))
			return
		}
		select {
		case <-time.After(p.bounds.retry):
		case <-ctx.Done():
		}
	}
}
