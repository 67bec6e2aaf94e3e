package relay

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/pion/webrtc/v4"
)

// tendInterval is how often a second copy is looked after.
const tendInterval = 20 * time.Millisecond

type standbyRequest struct {
	ctx    context.Context
	source Source
	result chan standbyResult // capacity 1
}

type standbyResult struct {
	took bool
	err  error
}

// standby is a second copy of what a session carries.
type standby struct {
	upstream *upstream
	request  standbyRequest
	opened   chan error // capacity 1; nil once it has been read
	since    time.Time
	taking   bool // it is about to become the source
	isOpen   bool

	// Guarded by the session's mu.
	aligned map[webrtc.RTPCodecType]bool
}

// standbyCounts are what second copies have brought.
type standbyCounts struct{ packets, bytes, lost, filled uint64 }

func (c *standbyCounts) add(o standbyCounts) {
	c.packets, c.bytes, c.lost, c.filled = c.packets+o.packets, c.bytes+o.bytes, c.lost+o.lost, c.filled+o.filled
}

// How a second copy stands.
const (
	StandbyConnecting = "connecting"
	StandbyAligning   = "aligning" // it has come, and is not found alike with what goes out
	StandbyReady      = "ready"
	StandbyNone       = "none" // there was one
)

// StandbyStatus is a session's second copy, as `explain` shows it.
type StandbyStatus struct {
	State  string         `json:"state"`
	Since  time.Time      `json:"since,omitzero"`
	Tracks []StandbyTrack `json:"tracks,omitempty"`
}

// StandbyTrack counts what second copies brought of one track, in the whole session's time.
type StandbyTrack struct {
	Kind    string `json:"kind"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`  // of payload
	Lost    uint64 `json:"lost"`   // still missing
	Filled  uint64 `json:"filled"` // holes of the first copy that were filled: packets, or runs of frames
}

// Standby keeps a second copy of what flows, from a source that has the same publication by another way, until ctx ends, the copy is
// lost, or it has become the session's source, which it says: that is at once when the first one has ended, or stands still
// while the second goes on. Until then the second fills in what the first has lost. It fails with ErrNotLive as Change does.
// There is one second copy at a time; a further call waits.
func (s *Session) Standby(ctx context.Context, from Source) (tookOver bool, err error) {
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("second copy of %s: %w", s.options.Stream, err)
	}
	r := standbyRequest{ctx: ctx, source: from, result: make(chan standbyResult, 1)}
	select {
	case <-s.live:
	default:
		return fail(ErrNotLive)
	}
	select {
	case s.standbys <- r:
	case <-s.over:
		return fail(ErrNotLive)
	case <-ctx.Done():
		return fail(ctx.Err())
	}
	result := <-r.result
	if result.err != nil {
		return fail(result.err)
	}
	return result.took, nil
}

// beginStandby opens the session at a second source. group is for what outlives the call.
func (s *Session) beginStandby(ctx context.Context, group *sync.WaitGroup, r standbyRequest) *standby {
	u := s.newUpstream(r.source, false)
	u.second = true
	second := &standby{
		upstream: u, request: r, opened: make(chan error, 1), since: time.Now(), aligned: make(map[webrtc.RTPCodecType]bool),
	}
	s.mu.Lock()
	s.standby = second
	s.mu.Unlock()
	opened := second.opened
	group.Go(func() {
		inner, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		stop := context.AfterFunc(r.ctx, func() { cancel(context.Cause(r.ctx)) })
		defer stop()
		opened <- s.join(inner, cancel, group, ctx, u)
	})
	return second
}

// The methods of a standby are there for nil, too: it is none.

func (b *standby) ready() bool { return b != nil && b.isOpen && !b.taking && !b.upstream.gone() }

func (b *standby) opening() <-chan error {
	if b == nil {
		return nil
	}
	return b.opened
}

func (b *standby) open(err error) { b.opened, b.isOpen = nil, err == nil }

// over is closed when there is no use in an open second copy any more.
func (b *standby) over() <-chan struct{} {
	switch {
	case b == nil || !b.isOpen || b.taking:
		return nil
	case b.request.ctx.Err() != nil:
		return b.request.ctx.Done()
	}
	return b.upstream.ended
}

func (b *standby) why() error {
	if err := b.request.ctx.Err(); err != nil {
		return err
	}
	return b.upstream.err
}

func (b *standby) quieten(quiet bool) {
	if b == nil {
		return
	}
	for _, f := range b.feeds() {
		f.lane.quieten(quiet)
	}
}

func (b *standby) feeds() []*feed {
	b.upstream.s.mu.Lock()
	defer b.upstream.s.mu.Unlock()
	return append([]*feed(nil), b.upstream.feeds...)
}

// leave gives a second copy up, whose opening has ended, and says why when its session is freed, in a goroutine of group.
func (s *Session) leave(ctx context.Context, group *sync.WaitGroup, b *standby, err error) {
	for _, f := range b.feeds() {
		f.lane.dropSpare(f)
	}
	s.retire(b)
	group.Go(func() {
		if b.upstream.session != nil {
			s.close(ctx, Parent, b.upstream.session, freeFailed)
		}
		b.request.result <- standbyResult{err: err}
	})
}

// leaveLast gives up the second copy, if there is one, of a session that ends. The context that it was begun with has ended.
func (s *Session) leaveLast(ctx context.Context, group *sync.WaitGroup, b *standby) {
	if b == nil {
		return
	}
	if b.opened != nil {
		<-b.opened
	}
	s.leave(ctx, group, b, ErrNotLive)
}

// retire keeps the counts of a second copy that is none any more.
func (s *Session) retire(b *standby) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind, counts := range b.countsLocked() {
		counts.add(s.past[kind])
		s.past[kind] = counts
	}
	s.standby = nil
	s.notifyLocked()
}

func (b *standby) countsLocked() map[webrtc.RTPCodecType]standbyCounts {
	all := make(map[webrtc.RTPCodecType]standbyCounts)
	for _, f := range b.upstream.feeds {
		in := f.track.Stats()
		all[f.lane.kind] = standbyCounts{packets: in.Packets, bytes: in.Bytes, lost: in.Lost, filled: f.filled.Load()}
	}
	return all
}

// lookAfter tends an open second copy, and says whether the first stands still while it goes on.
func (s *Session) lookAfter(b *standby, now time.Time, compare bool) (still bool) {
	if !b.ready() || !compare {
		return false
	}
	aligned := make(map[webrtc.RTPCodecType]bool)
	for _, f := range b.feeds() {
		alike, stands := f.lane.tend(now)
		aligned[f.lane.kind] = alike
		still = still || stands
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !maps.Equal(b.aligned, aligned) {
		b.aligned = aligned
		s.notifyLocked()
	}
	return still
}

// promote makes a second copy the session's source.
func (s *Session) promote(ctx context.Context, u *upstream) attempted {
	began := time.Now()
	inner, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		select {
		case <-u.ended:
			cancel(u.err)
		case <-inner.Done():
		}
	})
	h := s.newHandover(u, nil)
	h.warm = true
	for _, f := range []*feed{h.video, h.audio} {
		if f == nil {
			continue
		}
		if found, ok := f.lane.seamOf(f); ok {
			h.seams[f] = found
		}
	}
	err := s.bounded(inner, Parent, "take over", s.limits.keyFrame, h.run)
	took := time.Since(began)
	status := ChangeStatus{At: began, Took: took, How: h.how, Standby: true}
	if err != nil {
		status.How, status.Error = "", err.Error()
		for _, f := range []*feed{h.video, h.audio} {
			if f != nil {
				f.lane.resume()
			}
		}
		s.logger.Warn("second copy could not take over", "error", err)
	} else {
		s.logger.Info("second copy has taken over", "how", h.how, "after", took)
	}
	s.record(status)
	s.options.Metrics.change(h.how, took, err)
	request := changeRequest{result: make(chan changeResult, 1)} // nobody waits
	return attempted{request: request, upstream: u, result: changeResult{how: h.how, err: err}}
}

// taken tells how it ended that a second copy was to become the source.
func (s *Session) taken(ctx context.Context, group *sync.WaitGroup, b *standby, err error) {
	if err != nil {
		s.leave(ctx, group, b, err)
		return
	}
	s.retire(b)
	b.request.result <- standbyResult{took: true}
}

func (s *Session) standbyStatusLocked() *StandbyStatus {
	counts := make(map[webrtc.RTPCodecType]standbyCounts)
	status := &StandbyStatus{State: StandbyNone}
	if b := s.standby; b != nil {
		counts = b.countsLocked()
		status.State, status.Since = StandbyConnecting, b.since
		for _, aligned := range b.aligned {
			switch {
			case !aligned:
				status.State = StandbyAligning
			case status.State == StandbyConnecting:
				status.State = StandbyReady
			}
		}
	} else if len(s.past) == 0 {
		return nil
	}
	for _, l := range s.lanes {
		c := counts[l.kind]
		c.add(s.past[l.kind])
		status.Tracks = append(status.Tracks, StandbyTrack{
			Kind: l.kind.String(), Packets: c.packets, Bytes: c.bytes, Lost: c.lost, Filled: c.filled,
		})
	}
	return status
}
