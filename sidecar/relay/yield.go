package relay

import (
	"context"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// yieldTime is for how long nothing is relayed after a publisher was taken in a relay's place: it has to connect, and the
// server to report it. Then it is the origin, or it never came.
const yieldTime = 15 * time.Second

// Hold keeps a stream wanted that a relay brings here, until release is called, and returns at once. Only where the relay is
// about to end does it wait as Acquire does, until the stream is here anew. Where nothing runs for it, or it is published
// here, there is nothing to hold: release and the error are nil.
func (m *Manager) Hold(ctx context.Context, id adapters.StreamID) (release func(), err error) {
	state, _ := m.o.Catalogue.Snapshot()
	if _, ok := state.Origin(id); ok {
		return nil, nil //nolint:nilnil // it is what the comment says
	}
	m.mu.Lock()
	e := m.entries[id]
	if m.ended || e == nil || e.run == nil {
		m.mu.Unlock()
		return nil, nil //nolint:nilnil // it is what the comment says
	}
	if e.run.ending() {
		m.mu.Unlock()
		return m.Acquire(ctx, id)
	}
	defer m.mu.Unlock()
	e.held++
	m.touch(id)
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		e.held--
		e.lastDemand = time.Now()
		m.touch(id)
		m.wake()
	}), nil
}

// Yield ends the relay of a stream for a publisher at this node, and returns when both servers are free of it; it is false
// where none runs, or ctx ends first. Until done is called no other is begun, and none for a while after that where the
// publisher was taken: then the local server reports it, or it never connected. Plays of the stream wait meanwhile.
func (m *Manager) Yield(ctx context.Context, id adapters.StreamID) (done func(published bool), ok bool) {
	m.mu.Lock()
	e := m.entries[id]
	if m.ended || e == nil || e.run == nil {
		m.mu.Unlock()
		return nil, false
	}
	e.yielding++
	over := e.run.over
	m.stop(e, endYielded)
	m.publish()
	m.mu.Unlock()
	m.wake()

	done = func(published bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		e.yielding--
		if published {
			e.yieldUntil = time.Now().Add(yieldTime)
		}
		m.touch(id)
		m.wake()
	}
	select {
	case <-over:
		return done, true
	case <-ctx.Done():
		done(false)
		return nil, false
	}
}
