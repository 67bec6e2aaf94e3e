package relay

import (
	"errors"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
)

// unfitTime is for how long it is believed that the local server does not take a publication which it has refused for its
// codec: a publisher may change that without beginning anew.
const unfitTime = time.Minute

// unfit is what the local server has refused for its codec, where nobody had announced that beforehand.
type unfit struct {
	publication catalogue.Publication
	until       time.Time
	err         *adapters.CodecError
}

// Unfit says why a stream that is published elsewhere cannot be carried here, whatever is tried: the local server does not take
// its codecs. It is nil where that is not known, or the stream is here.
func (m *Manager) Unfit(id adapters.StreamID) error {
	state, _ := m.o.Catalogue.Snapshot()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unfit(state, id, time.Now())
}

func (m *Manager) unfit(state *catalogue.State, id adapters.StreamID, now time.Time) error {
	row := state.Row(id)
	best, held := row.Winner()
	if !held {
		return nil
	}
	if _, published := state.Origin(id); published {
		return nil
	}
	if e := m.entries[id]; e != nil {
		if e.run.live() {
			return nil // it was taken, whatever is said
		}
		if e.unfit.err != nil && e.unfit.publication == best && now.Before(e.unfit.until) {
			return e.unfit.err
		}
	}
	if m.o.Accept == nil {
		return nil
	}
	for _, h := range row.Holders() {
		if err := m.o.Accept(h.Tracks); err != nil {
			return err
		}
	}
	return nil
}

// turned says whether an entry cannot be carried here, and has turned it down.
func (m *Manager) turned(e *entry, state *catalogue.State, now time.Time) bool {
	err := m.unfit(state, e.id, now)
	if err != nil {
		m.turnDown(e, state, err, now)
	}
	return err != nil
}

// turnDown lets an entry be that cannot be carried here, and says why: to who waits for it, and to people.
func (m *Manager) turnDown(e *entry, state *catalogue.State, err error, now time.Time) {
	best, _ := state.Winner(e.id)
	m.stop(e, endUnfit)
	if e.told != best {
		e.told = best
		m.o.Logger.Warn("stream cannot be carried here", "stream", e.id, "origin", best.Origin, "epoch", best.Epoch, "error", err)
	}
	e.lastErr = err
	e.decision = planner.Decision{Stream: e.id, Why: planner.WhyUnfit}
	m.wait(e, now, e.unfit.until)
	m.settle(e, err)
}

// refusedCodec remembers a publication that the local server has just refused for its codec.
func (e *entry) refusedCodec(p catalogue.Publication, err error, now time.Time) {
	if codec, ok := errors.AsType[*adapters.CodecError](err); ok {
		e.unfit = unfit{publication: p, until: now.Add(unfitTime), err: codec}
	}
}
