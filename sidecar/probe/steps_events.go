package probe

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const contentJSON = "application/json"

// tryEvents looks at the extensions of WHEP: events, and the choice of a layer.
func (p *Probe) tryEvents(ctx context.Context) {
	if p.target.play == "" {
		return
	}
	p.say("listening to events")
	name, c := p.name("events"), p.fact().main
	b, err := p.publish(ctx, publishing{name: name, content: c})
	if err != nil {
		p.note("events.stream", Skip, "no stream to look at: %s", why(err))
		return
	}
	defer b.close() //nolint:errcheck // other steps look at that
	v, err := p.playSoon(ctx, playing{name: name, content: c})
	if err != nil {
		p.note("events.stream", Skip, "no play to look at: %s", why(err))
		return
	}
	defer v.close() //nolint:errcheck // other steps look at that
	post, _ := v.log.last(http.MethodPost)
	var offered []string
	var at, layer *whip.Link
	for _, l := range whip.ParseLinks(post.header) {
		switch {
		case l.HasRel(whip.RelEvents):
			events, _ := l.Param("events")
			offered, at = strings.Split(strings.ReplaceAll(events, " ", ""), ","), &l
		case l.HasRel(whip.RelLayer):
			layer = &l
		}
	}
	if at == nil {
		p.note("events.stream", Skip, "no events by Link: viewers do not hear that the stream pauses, or that the server leaves")
		return
	}
	p.tryUnknownEvent(ctx, post, at.Target, name)
	p.tryViewerCount(ctx, v, offered)
	if slices.Contains(offered, whip.EventReconnect) {
		p.note("events.reconnect", OK, "offered: viewers are told where to go when the server leaves")
	} else {
		p.note("events.reconnect", Skip, "not offered: viewers find out by themselves that the server has left")
	}
	switch {
	case layer == nil:
		p.note("layer.select", Skip, "viewers cannot choose a layer")
	case !slices.Contains(offered, whip.EventLayers):
		p.note("layer.select", Warn, "layers can be chosen, and no event tells which there are")
	default:
		if err := v.session.SelectLayer(ctx, "", ""); err != nil {
			p.note("layer.select", Warn, "leaving the choice of the layer to the server: %s", why(err))
		} else {
			p.note("layer.select", OK, "viewers may choose a layer, or leave it to the server")
		}
	}
	if slices.Contains(offered, whip.EventLayers) {
		p.note("events.layers", OK, "offered")
	} else {
		p.note("events.layers", Skip, "not offered")
	}
}

// tryUnknownEvent subscribes to what the server did not offer.
func (p *Probe) tryUnknownEvent(ctx context.Context, post exchange, target string, name adapters.StreamID) {
	u, err := post.url.Parse(target)
	if err != nil {
		p.note("events.unknown", Warn, "the Link leads nowhere: %s", excerpt(target))
		return
	}
	a, err := p.ask(ctx, http.MethodPost, u, with(p.endpoint(false, name, true).Header, "Content-Type", contentJSON), `["sidestream-probe"]`)
	switch {
	case err != nil:
		p.note("events.unknown", Warn, "%s", why(err))
	case a.status == http.StatusBadRequest:
		p.note("events.unknown", OK, "an event that is not offered: %s", a)
	default:
		p.note("events.unknown", Warn, "an event that is not offered: %s; the draft has 400", a)
	}
}

// tryViewerCount listens until the server has said how many viewers there are.
func (p *Probe) tryViewerCount(ctx context.Context, v *viewer, offered []string) {
	if !slices.Contains(offered, whip.EventViewerCount) {
		p.note("events.viewercount", Skip, "not offered")
		err := p.hear(ctx, v, offered[:1], func(whip.Event) bool { return true })
		p.noteStream(err)
		return
	}
	var data map[string]int
	err := p.hear(ctx, v, []string{whip.EventViewerCount}, func(e whip.Event) bool {
		return e.Name == whip.EventViewerCount && json.Unmarshal(e.Data, &data) == nil
	})
	p.noteStream(err)
	switch n, ok := data["viewercount"]; {
	case err != nil:
		p.note("events.viewercount", Warn, "none came")
	case !ok:
		p.note("events.viewercount", Warn, "its data has no viewercount")
	default:
		p.note("events.viewercount", OK, "%d viewer is counted, who is the probe", n)
	}
}

func (p *Probe) noteStream(err error) {
	switch {
	case err == nil:
		p.note("events.stream", OK, "a stream of events")
	case errors.Is(err, context.DeadlineExceeded):
		p.note("events.stream", Warn, "a stream of events is offered, and nothing comes of it")
	default:
		p.note("events.stream", Fail, "a stream of events is offered, and does not work: %s", why(err))
	}
}

// hear listens to events until one is as wanted.
func (p *Probe) hear(ctx context.Context, v *viewer, names []string, wanted func(whip.Event) bool) error {
	ctx, cancel := context.WithTimeout(ctx, p.bounds.wait)
	defer cancel()
	heard := false
	err := v.session.Events(ctx, names, func(e whip.Event) {
		if wanted(e) {
			heard = true
			cancel()
		}
	})
	if heard {
		return nil
	}
	return err
}
