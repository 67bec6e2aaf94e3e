package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

const (
	// supersededFor is how long a publication must have been beaten before it is ended: what a node knows just after its
	// start, or after its network was cut, is not all there is.
	supersededFor = 5 * time.Second
	// endTimeout bounds the request to the server to end one, which is made again after as long.
	endTimeout = 5 * time.Second
)

// policyOf is what the settings decide about streams.
func policyOf(settings config.Config) catalogue.Policy {
	return catalogue.Policy{
		Priority: settings.Publish.Priority, Oldest: settings.Publish.Conflict == config.Oldest,
		Export: settings.Relay.Export, Import: settings.Relay.Import,
	}
}

type supersededMetrics struct {
	present prometheus.Gauge
	ended   *prometheus.CounterVec
}

func newSupersededMetrics(r prometheus.Registerer) *supersededMetrics {
	m := &supersededMetrics{
		present: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sidestream_superseded_publications", Help: "Publications at this node's server that others elsewhere beat.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_superseded_ended_total",
			Help: "Publications that this node had its server end because others elsewhere beat them, by result.",
		}, []string{"result"}),
	}
	for _, result := range []string{"ended", "failed"} {
		m.ended.WithLabelValues(result)
	}
	r.MustRegister(m.present, m.ended)
	return m
}

// superseded are the publications at the own server that others elsewhere beat, by name, and by which.
type superseded struct {
	seen *catalogue.State
	by   map[adapters.StreamID]catalogue.Publication
}

// follow logs what has changed, and counts them.
func (s *superseded) follow(state *catalogue.State, logger *slog.Logger) int {
	if s.by == nil {
		s.by = map[adapters.StreamID]catalogue.Publication{}
	}
	changed, ok := state.Changed(s.seen)
	s.seen = state
	if !ok {
		for id := range s.by {
			changed = append(changed, id)
		}
		for _, h := range state.Superseded() {
			changed = append(changed, h.Stream)
		}
	}
	for _, id := range changed {
		own, published := state.Origin(id)
		winner, _ := state.Winner(id)
		switch {
		case !published || winner == own.Publication():
			delete(s.by, id)
		case s.by[id] != winner:
			s.by[id] = winner
			logger.Warn("publication is superseded; only viewers of this node see it", "stream", id, "epoch", own.Epoch,
				"by", winner.Origin, "by_epoch", winner.Epoch, "by_priority", winner.Priority, "by_oldest", winner.Oldest)
		}
	}
	return len(s.by)
}

// endSuperseded has the server end what others elsewhere beat, where the settings say so and the server can.
func (n *node) endSuperseded(ctx context.Context) error {
	ender, ok := n.adapter.(adapters.Ender)
	wanted := n.settings.Publish.OnSupersede == config.End
	if wanted && !ok {
		n.logger.Warn("superseded publications go on: the media server cannot end one", "adapter", n.adapter.Name())
	}
	if !wanted || !ok {
		<-ctx.Done()
		return ctx.Err()
	}
	due := map[catalogue.Publication]time.Time{} // when to end each of those that are beaten
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		state, changed := n.known.Snapshot()
		beaten := state.Superseded()
		next := time.Time{}
		still := make(map[catalogue.Publication]time.Time, len(beaten))
		for _, h := range beaten {
			now := time.Now()
			at, ok := due[h.Publication()]
			switch {
			case !ok:
				at = now.Add(supersededFor)
			case !now.Before(at):
				n.end(ctx, ender, h)
				at = time.Now().Add(endTimeout)
			}
			still[h.Publication()] = at
			if next.IsZero() || at.Before(next) {
				next = at
			}
		}
		due = still
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer.C:
		}
	}
}

// end has the server end a publication.
func (n *node) end(ctx context.Context, ender adapters.Ender, h catalogue.Hold) {
	stream, ok := n.streamOf(h.Stream)
	if !ok {
		return // it has ended, and the catalogue is about to know
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := ender.End(ctx, stream); err != nil {
		n.superseded.ended.WithLabelValues("failed").Inc()
		n.logger.Warn("superseded publication is not ended; it is tried again", "stream", h.Stream, "error", err)
		return
	}
	n.superseded.ended.WithLabelValues("ended").Inc()
	n.logger.Warn("superseded publication is ended", "stream", h.Stream, "epoch", h.Epoch)
}
