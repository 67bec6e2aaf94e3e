package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
)

const (
	// A parent that failed to give a second copy is tried again after the first of these, then later, up to the second.
	secondAgain = time.Second
	secondMost  = time.Minute
	// After a takeover the new parent has so long to have heard the origin since this node has.
	confirmTime = 3 * time.Second
)

var (
	errMet   = errors.New("its path meets the first copy's")
	errStood = errors.New("it ended or stood still, and the second copy has taken over")
)

// second is the second copy of what an entry's relay carries, and what is known of those before it.
type second struct {
	run       *run // nil: there is none
	stopping  bool
	decision  planner.Decision
	failures  map[catalogue.NodeID]*failure
	lastErr   error
	takeovers int
	missing   bool // one is wanted, and none runs
}

// stop ends the second copy, if there is one.
func (b *second) stop() {
	if b.run != nil && !b.stopping {
		b.stopping = true
		b.run.cancel()
	}
}

func (b *second) avoid(parent catalogue.NodeID) time.Time {
	if f := b.failures[parent]; f != nil {
		return f.until
	}
	return time.Time{}
}

// standBy begins, keeps or ends the second copy of what an entry's relay carries.
func (m *Manager) standBy(ctx context.Context, e *entry, in planner.Input) (start func()) {
	r, b := e.run, &e.second
	switch {
	case !m.o.Standby.Lists(e.id) || m.o.NewSource == nil || !r.live() || r.ending():
		m.miss(e, false)
		b.stop()
		return nil
	case r.moving:
		return nil // it is planned again then
	}
	plan := planner.Second{
		Relay: planner.Relay{Parent: r.parent, Publication: r.publication, Live: true}, Path: r.path[:len(r.path)-1],
	}
	if b.run != nil && b.run.publication == r.publication {
		plan.Parent = b.run.parent
	}
	in.Avoid = func(stream adapters.StreamID, parent catalogue.NodeID) time.Time {
		return later(m.avoid(stream, parent), b.avoid(parent))
	}
	d := planner.Standby(in, e.id, plan)
	if before := b.decision; d.Action != planner.Run && (d.Why != before.Why || before.Action == planner.Run) {
		m.o.Logger.Warn("relay has no second copy", "stream", e.id, "parent", r.parent, "why", d.Why)
	}
	b.decision = d
	m.miss(e, d.Action != planner.Run)
	m.wait(e, in.Now, d.Until)
	switch {
	case b.run != nil && (d.Action != planner.Run || d.Parent != plan.Parent):
		b.stop()
	case b.run == nil && d.Action == planner.Run:
		inner, cancel := context.WithCancel(ctx)
		s := &run{
			parent: d.Parent, outside: d.Outside, publication: r.publication, delay: m.delay(d.Hold), tracks: d.Hold.Tracks,
			cancel: cancel, why: d.Why, since: in.Now,
		}
		b.run, b.stopping = s, false
		m.metrics.standbys.Inc()
		first, session := slices.Clone(plan.Path), r.session
		return func() {
			defer cancel()
			took, err := m.keep(inner, e.id, session, first, s)
			succeeding, over := context.WithCancel(ctx)
			defer over()
			if m.kept(e, r, s, over, took, err) {
				m.succeed(succeeding, e, r, s)
			}
		}
	}
	return nil
}

// miss notes whether an entry lacks a second copy.
func (m *Manager) miss(e *entry, missing bool) {
	switch {
	case missing && !e.second.missing:
		m.metrics.standbyMissing.Inc()
	case !missing && e.second.missing:
		m.metrics.standbyMissing.Dec()
	}
	e.second.missing = missing
}

// keep asks for a second copy and has the session keep it.
func (m *Manager) keep(
	ctx context.Context, stream adapters.StreamID, session Runner, first []catalogue.NodeID, s *run,
) (took bool, err error) {
	asking, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	grant, err := m.o.Peers.Pull(asking, s.parent, stream)
	if err == nil {
		err = m.usable(grant, s)
	}
	switch {
	case err != nil:
	case grant.Publication() != s.publication:
		err = fmt.Errorf("%w: it has epoch %d of %s", errGrant, grant.Epoch, grant.Path[0])
	case !planner.Disjoint(first, grant.Path):
		err = fmt.Errorf("%w: %w", errGrant, errMet)
	}
	if err != nil {
		return false, fmt.Errorf("pull %s from %s: %w", stream, s.parent, err)
	}
	m.mu.Lock()
	s.path = append(slices.Clip(grant.Path), m.o.Catalogue.Self().ID)
	m.mu.Unlock()
	source := m.o.NewSource(Spec{Stream: stream, Parent: s.parent, Grant: grant})
	source.Same = true
	return session.Standby(ctx, source)
}

// kept records how a second copy ended. It says whether the relay is to go on with its parent, until abort is called.
func (m *Manager) kept(e *entry, r, s *run, abort context.CancelFunc, took bool, err error) (succeeds bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wake()
	b := &e.second
	b.run = nil
	m.touch(e.id)
	m.metrics.standbys.Dec()
	end := standbyFailed
	switch {
	case took:
		end = standbyTook
		b.takeovers++
		if e.run != r {
			break
		}
		m.blame(e, r, &SessionError{Side: Parent, Step: "relay", Err: errStood})
		failed := e.failures[r.parent]
		failed.gone, failed.until = true, later(failed.until, time.Now().Add(goneTime))
		b.fail(r.parent, r.since) // so that two bad ways do not take turns
		if succeeds = !r.ending() && !r.moving && !m.ended; succeeds {
			r.moving, r.next, r.abort = true, s.parent, abort
		}
	case b.stopping || errors.Is(err, ErrNotLive):
		end = standbyUnwanted
	default:
		b.lastErr = err
		until := b.fail(s.parent, s.since)
		m.o.Logger.Warn("second copy ended", "stream", e.id, "parent", s.parent, "error", err, "parent avoided until", until)
	}
	m.metrics.standbyEnds.WithLabelValues(end).Inc()
	return succeeds
}

// fail makes a parent wait for its next turn to give a second copy. since is when its last turn began.
func (b *second) fail(parent catalogue.NodeID, since time.Time) (until time.Time) {
	f := b.failures[parent]
	if f == nil {
		f = &failure{backoff: newBackoff(secondAgain, secondMost)}
		if b.failures == nil {
			b.failures = map[catalogue.NodeID]*failure{}
		}
		b.failures[parent] = f
	}
	now := time.Now()
	if now.Sub(since) > secondMost {
		f.backoff.Reset()
	}
	f.until = now.Add(f.backoff.NextBackOff())
	return f.until
}

// succeed makes the parent of a second copy that has taken over the relay's: what flows is from there already. The hold says so when
// that parent has granted it once more, as to any that is changed to.
func (m *Manager) succeed(ctx context.Context, e *entry, r, next *run) {
	err := m.confirm(ctx, e, next)
	m.moved(e, r, next, HowStandby, err)
	if err == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.run == r && r.live() && !r.ending() {
		m.darken(e, r)
		m.publish()
		m.count()
		m.wake()
	}
}

// confirm asks a parent that is the source already.
func (m *Manager) confirm(ctx context.Context, e *entry, next *run) error {
	for until := time.Now().Add(confirmTime); ; {
		grant, err := m.grant(ctx, e.id, next)
		if err == nil {
			next.publication, next.sequence = grant.Publication(), grant.Sequence
			next.path = append(slices.Clip(grant.Path), m.o.Catalogue.Self().ID)
			return nil
		}
		if !errors.Is(err, errInfeasible) || time.Now().After(until) {
			return err
		}
		m.mu.Lock()
		e.backward = time.Now().Add(2 * soonTime)
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(soonTime / 2):
		}
	}
}

// The states of a second copy at this node.
const (
	SecondRunning  = "running"
	SecondStopping = "stopping"
	SecondMissing  = "missing" // Why says what for
)

// SecondStatus is how the second copy of a stream stands at this node: it is not announced, and no claim is needed for it.
type SecondStatus struct {
	State     string             `json:"state"`
	Why       planner.Reason     `json:"why"`
	Parent    catalogue.NodeID   `json:"parent,omitempty"`
	Path      []catalogue.NodeID `json:"path,omitempty"` // as the parent granted it
	Since     time.Time          `json:"since,omitzero"`
	Takeovers int                `json:"takeovers"` // how often it became the first one
	LastError string             `json:"lastError,omitempty"`
	NextRetry time.Time          `json:"nextRetry,omitzero"`
}

func (b *second) status() *SecondStatus {
	if b.run == nil && !b.missing {
		return nil
	}
	s := &SecondStatus{State: SecondMissing, Why: b.decision.Why, Takeovers: b.takeovers, NextRetry: b.decision.Until}
	if b.lastErr != nil {
		s.LastError = b.lastErr.Error()
	}
	if r := b.run; r != nil {
		s.State, s.Parent, s.Path, s.Since = SecondRunning, r.parent, r.path, r.since
		if b.stopping {
			s.State = SecondStopping
		}
	}
	return s
}
