package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

const (
	defaultGrace = 10 * time.Second // without a source
	maxChanges   = 8                // that a status remembers

	alignTick = 10 * time.Millisecond
	// For so long two copies that both flow may take to be found alike. Where the old one is gone, each moment is a freeze.
	alignPatience = 2 * time.Second
	alignHurry    = 250 * time.Millisecond
	// And for so long sound is compared when the picture has been found.
	soundPatience = 300 * time.Millisecond
	soundHurry    = 50 * time.Millisecond
	// A frame's end is waited for this long at most before another feed takes over.
	boundaryPatience = 500 * time.Millisecond
	// The old source flows where something of it came this recently.
	flowing = 200 * time.Millisecond
	// And where they lie further than this from those told by the content of a single frame, that frame is not believed.
	tailDoubt = 300 * time.Millisecond
	// Where timestamps told by clocks lie further than this from those told by arrival, the clocks are not believed.
	clockDoubt = 3 * time.Second
)

// Errors of Session.Change.
var (
	// ErrCodecDiffers says that a source cannot take another's place: the stream must be published anew.
	ErrCodecDiffers = errors.New("codec differs")
	// ErrNotLive says that there is nothing to change yet, or no more.
	ErrNotLive = errors.New("session is not live")
)

// Source is where a session takes its stream from.
type Source struct {
	From     adapters.Endpoint // WHEP, at the parent's peer port
	FromHTTP *http.Client      // nil: as whip.Client has it
	// Same is set where it has the publication that the session carries already, a copy of the same packets.
	Same bool
}

// How a source took another's place.
const (
	HowAligned  = "aligned"   // copies of one publication, found alike: no frame need be missing
	HowKeyFrame = "key frame" // at a key frame of the new one
	HowClock    = "clock"     // sound alone: where the clocks say
	HowStandby  = "standby"   // its second copy had been kept
)

// SourceFlow is how a session's source stands.
type SourceFlow string

// The states of a session's source.
const (
	FlowStarting SourceFlow = "starting" // not live yet
	FlowOn       SourceFlow = "flowing"
	FlowSilent   SourceFlow = "silent" // video flowed, and has stopped, with all else: it may be paused, or gone
	FlowLost     SourceFlow = "lost"   // the connection to it has ended
)

// SourceState is how a session's source stands, and since when.
type SourceState struct {
	Flow  SourceFlow `json:"flow"`
	Since time.Time  `json:"since,omitzero"`
	Error string     `json:"error,omitempty"` // of a source that is lost
}

// ChangeStatus is one change of source, as `explain` shows it.
type ChangeStatus struct {
	At    time.Time     `json:"at"`
	To    string        `json:"to"` // host and port of the new source
	Took  time.Duration `json:"took"`
	How   string        `json:"how,omitempty"` // HowAligned, HowKeyFrame or HowClock
	Error string        `json:"error,omitempty"`
	// Standby says that it was the second copy that took over.
	Standby bool `json:"standby,omitempty"`
}

// upstream is a session at a parent.
type upstream struct {
	s        *Session
	source   Source
	initial  bool // of the session's begin
	second   bool // a second copy, which becomes a source when the first is lost
	session  *whip.Session
	conn     *media.Conn
	arrivals chan struct{} // capacity 1: a track has come
	failures chan error    // capacity 1: it cannot be gone on with
	ended    chan struct{} // closed when err is set
	err      error

	// Guarded by the session's mu.
	feeds   []*feed
	current bool
	layer   string // of simulcast that was asked for; "": the parent's choice
}

func (s *Session) newUpstream(source Source, initial bool) *upstream {
	return &upstream{
		s: s, source: source, initial: initial, arrivals: make(chan struct{}, 1), failures: make(chan error, 1),
		ended: make(chan struct{}),
	}
}

func (u *upstream) fail(err error) {
	select {
	case u.failures <- err:
	default: // one is enough
	}
}

// watch waits for the end of the upstream, and says why it came.
func (u *upstream) watch(ctx context.Context) {
	defer close(u.ended)
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan error, 1)
	var group sync.WaitGroup
	group.Go(func() { over <- ended(u.session.Wait(inner)) })
	group.Go(func() { u.chooseLayers(inner) })
	select {
	case u.err = <-over:
	case u.err = <-u.failures:
	}
	cancel()
	group.Wait()
}

func (u *upstream) gone() bool {
	select {
	case <-u.ended:
		return true
	default:
		return false
	}
}

func (u *upstream) feedLocked(kind webrtc.RTPCodecType) *feed {
	for _, f := range u.feeds {
		if f.lane.kind == kind {
			return f
		}
	}
	return nil
}

// arrived takes a track of the parent's. It runs in the goroutine that reads the parent's connection.
func (u *upstream) arrived(t *media.Track) media.Sink {
	s := u.s
	var spare *feed
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
		if spare != nil { // a lane that flows is not to wait for the session
			spare.lane.addSpare(spare)
		}
	}()
	if u.initial {
		s.stepLocked(StepFirstPacket)
	}
	known, l := u.feedLocked(t.Kind()), s.laneLocked(t.Kind())
	flows := s.published && (u.initial || u.current)
	switch {
	case known != nil && t.RID() != "":
		return nil // another simulcast layer: one is relayed
	case known != nil && flows:
		// The sender has found that its SSRC was another's too, and taken a new one (RFC 3550, section 8.2), or begun anew.
		l.renewed.Add(1)
	case known != nil:
		u.fail(fmt.Errorf("it began a second %s track", t.Kind()))
		return nil
	case l == nil && s.published && u.initial:
		u.fail(fmt.Errorf("its %s began after the stream had been published without", t.Kind()))
		return nil
	case l == nil && (s.published || u.second):
		return nil // the source before did not have it
	case l == nil:
		l = s.newLane(t.Kind())
		s.lanes = append(s.lanes, l)
	}
	f, err := l.newFeed(t, u.fail)
	if err != nil {
		u.fail(err)
		return nil
	}
	u.feeds = append(slices.DeleteFunc(u.feeds, func(other *feed) bool { return other == known }), f)
	switch {
	case u.second && !u.current:
		spare = f
	case l.track.Load() == nil:
		l.begin(f)
	case u.current || known != nil:
		f.late = true
	}
	select {
	case u.arrivals <- struct{}{}:
	default:
	}
	return f
}

type changeRequest struct {
	ctx    context.Context
	source Source
	result chan changeResult // capacity 1
}

type changeResult struct {
	how string
	err error
}

// Change lets the stream come from another source from now on, without an end to what is published: the session at the new
// parent is opened first, then each track changes over, then the old session is closed. It returns when the new source
// flows, and says how it took over. If it fails, the old source goes on untouched where it is still alive. It fails with
// ErrCodecDiffers where the new source cannot take the old one's place, and with ErrNotLive where Run is not, or not any
// more, at work with flowing media. One change is made at a time; a further call waits.
func (s *Session) Change(ctx context.Context, to Source) (how string, err error) {
	r := changeRequest{ctx: ctx, source: to, result: make(chan changeResult, 1)}
	select {
	case <-s.live:
	default:
		return "", fmt.Errorf("change source of %s: %w", s.options.Stream, ErrNotLive)
	}
	select {
	case s.changes <- r:
	case <-s.over:
		return "", fmt.Errorf("change source of %s: %w", s.options.Stream, ErrNotLive)
	case <-ctx.Done():
		return "", fmt.Errorf("change source of %s: %w", s.options.Stream, ctx.Err())
	}
	result := <-r.result
	if result.err != nil {
		return "", fmt.Errorf("change source of %s: %w", s.options.Stream, result.err)
	}
	return result.how, nil
}

// Source is how the session's source stands now; the channel is closed when that changes, or the state of its second copy.
func (s *Session) Source() (SourceState, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.stateChanged
}

func (s *Session) setState(state SourceState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == state {
		return
	}
	s.state = state
	s.notifyLocked()
}

func (s *Session) notifyLocked() {
	close(s.stateChanged)
	s.stateChanged = make(chan struct{})
}

// supervise watches over the source, changes it when it is told to, and returns when there has been none for too long.
// current is the session's first. All that supervise begins has ended when it returns, but the session at the current source.
func (s *Session) supervise(ctx context.Context, current *upstream) error {
	var group sync.WaitGroup
	defer group.Wait()
	var second *standby // nil: there is none
	standbys := s.standbys
	var tending <-chan time.Time
	defer func() { s.leaveLast(ctx, &group, second) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer close(s.over)

	group.Go(func() { current.watch(ctx) })
	grace := time.NewTimer(0)
	grace.Stop()
	defer grace.Stop()
	silence := time.NewTimer(silenceMax)
	defer silence.Stop()
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	live := s.live
	var lost error
	var attempt chan attempted // of the change under way
	over := current.ended
	requests := s.changes
	// takeOver lets the second copy become the source.
	takeOver := func() {
		requests, attempt = nil, make(chan attempted, 1) // one at a time
		to, from := attempt, second
		from.taking = true
		group.Go(func() { to <- s.promote(ctx, from.upstream) })
	}
	for {
		select {
		case <-ctx.Done():
			if attempt != nil {
				s.discard(ctx, <-attempt, context.Cause(ctx))
			}
			return context.Cause(ctx)
		case <-live:
			live = nil
			s.setState(SourceState{Flow: FlowOn, Since: time.Now()})
		case <-over:
			if ctx.Err() != nil {
				continue
			}
			over = nil
			if live != nil || s.options.Grace < 0 || errors.Is(current.err, ErrCodecDiffers) {
				cancel()
				if attempt != nil {
					s.discard(ctx, <-attempt, ErrNotLive)
				}
				return &SessionError{Side: Parent, Step: stepOfEnd(current.err), Err: current.err}
			}
			lost = current.err
			dead := current.session
			s.logger.Warn("relay has lost its source", "error", lost)
			group.Go(func() { s.close(ctx, Parent, dead, freeFailed) })
			switch {
			case attempt == nil && second.ready():
				takeOver()
				continue
			case second != nil && second.taking:
				continue
			}
			s.setState(SourceState{Flow: FlowLost, Since: time.Now(), Error: lost.Error()})
			grace.Reset(s.grace())
		case r := <-requests:
			requests = nil // one at a time
			attempt = make(chan attempted, 1)
			from, old := attempt, current
			if lost != nil {
				old = nil
			}
			second.quieten(true)
			group.Go(func() { from <- s.attempt(ctx, &group, r, old) })
		case a := <-attempt:
			attempt, requests = nil, s.changes
			second.quieten(false)
			if second != nil && second.taking {
				s.taken(ctx, &group, second, a.result.err)
				second, standbys, tending = nil, s.standbys, nil
			}
			if a.result.err != nil {
				a.request.result <- a.result
				if state, _ := s.Source(); lost != nil && state.Flow != FlowLost {
					s.setState(SourceState{Flow: FlowLost, Since: time.Now(), Error: lost.Error()})
				}
				if lost != nil && second.ready() {
					takeOver()
				} else if lost != nil { // the time may have run out meanwhile
					grace.Reset(max(time.Until(s.lostAt().Add(s.grace())), 0))
				}
				continue
			}
			old := current
			current, over = a.upstream, a.upstream.ended
			grace.Stop()
			if lost == nil {
				group.Go(func() { s.close(ctx, Parent, old.session, s.limits.free) })
			}
			lost = nil
			s.mu.Lock()
			s.upstream = current
			s.discarded.add(old.conn)
			s.mu.Unlock()
			s.setState(SourceState{Flow: FlowOn, Since: time.Now()})
			a.request.result <- a.result
		case r := <-standbys:
			standbys = nil // one at a time
			second = s.beginStandby(ctx, &group, r)
		case err := <-second.opening():
			if second.open(err); err != nil {
				s.leave(ctx, &group, second, err)
				second, standbys = nil, s.standbys
				continue
			}
			tending = time.Tick(tendInterval)
			if lost != nil && attempt == nil {
				takeOver()
			}
		case <-second.over():
			s.leave(ctx, &group, second, second.why())
			second, standbys, tending = nil, s.standbys, nil
		case now := <-tending:
			if still := s.lookAfter(second, now, attempt == nil); still && live == nil && lost == nil && attempt == nil {
				takeOver()
			}
		case <-grace.C:
			if attempt == nil {
				return &SessionError{Side: Parent, Step: "relay", Err: lost}
			}
		case <-look.C:
			if live == nil {
				s.options.Metrics.look(s)
			}
		case <-silence.C:
			again := silenceMax
			if live == nil && lost == nil && attempt == nil {
				again = s.listen(time.Now())
			}
			silence.Reset(again)
		}
	}
}

// stepOfEnd is what a live relay was doing when its source ended.
func stepOfEnd(err error) string {
	if errors.Is(err, ErrCodecDiffers) {
		return "change codec"
	}
	return "relay"
}

func (s *Session) grace() time.Duration {
	if s.options.Grace > 0 {
		return s.options.Grace
	}
	return defaultGrace
}

func (s *Session) lostAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Since
}

// listen notices that flowing video has fallen silent, or flows again, and says when to listen again.
func (s *Session) listen(now time.Time) (again time.Duration) {
	s.mu.Lock()
	lanes, was := slices.Clone(s.lanes), s.state
	s.mu.Unlock()
	flow, since := FlowOn, now
	again = silenceMax
	for _, l := range lanes {
		last, patience := l.patience()
		switch left := patience - now.Sub(last); {
		case l.kind != webrtc.RTPCodecTypeVideo || patience == 0:
		case left > 0:
			again = max(left, silenceMin/10)
		default:
			flow, since, again = FlowSilent, last, silenceMin/3
		}
	}
	for _, l := range lanes {
		// Sound goes on: the parent is there, and its picture is muted.
		last, _ := l.patience()
		if l.kind == webrtc.RTPCodecTypeAudio && flow == FlowSilent && last.After(since.Add(silenceMin/2)) {
			flow, since = FlowOn, now
		}
	}
	if flow != was.Flow {
		s.setState(SourceState{Flow: flow, Since: since})
	}
	return again
}

// attempted is a change that was tried.
type attempted struct {
	request  changeRequest
	upstream *upstream
	result   changeResult
}

// discard ends a change whose session ends.
func (s *Session) discard(ctx context.Context, a attempted, err error) {
	if a.result.err == nil {
		s.close(ctx, Parent, a.upstream.session, freeFailed)
	}
	a.request.result <- changeResult{err: err}
}

// attempt opens a session at the new source and lets its tracks take over from old, which is nil where that has ended. Where
// it fails nothing is left of the new one.
func (s *Session) attempt(ctx context.Context, group *sync.WaitGroup, r changeRequest, old *upstream) attempted {
	began := time.Now()
	inner, cancel := context.WithCancelCause(tracing.Within(ctx, tracing.Of(r.ctx)))
	defer cancel(nil)
	stop := context.AfterFunc(r.ctx, func() { cancel(context.Cause(r.ctx)) })
	defer stop()

	u := s.newUpstream(r.source, false)
	how, err := s.take(inner, cancel, group, ctx, u, old)
	took := time.Since(began)
	if err != nil && u.session != nil {
		group.Go(func() { s.close(ctx, Parent, u.session, freeFailed) }) // another source may be waiting for its turn
	}
	status := ChangeStatus{At: began, Took: took, How: how}
	if at := r.source.From.URL; at != nil {
		status.To = at.Host
	}
	if err != nil {
		status.Error = err.Error()
		s.logger.Warn("relay keeps its source", "error", err)
	} else {
		s.logger.Info("relay has changed its source", "how", how, "after", took)
	}
	s.record(status)
	s.options.Metrics.change(how, took, err)
	return attempted{request: r, upstream: u, result: changeResult{how: how, err: err}}
}

func (s *Session) record(c ChangeStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = append(s.changed, c)
	s.changed = s.changed[max(len(s.changed)-maxChanges, 0):]
}

// take does one attempt. life is the session's, which the upstream is watched for.
func (s *Session) take(
	ctx context.Context, cancel context.CancelCauseFunc, group *sync.WaitGroup, life context.Context, u, old *upstream,
) (string, error) {
	if err := s.join(ctx, cancel, group, life, u); err != nil {
		return "", err
	}
	h := s.newHandover(u, old)
	if err := s.bounded(ctx, Parent, "take over", s.limits.keyFrame, h.run); err != nil {
		return "", err
	}
	return h.how, nil
}

// join opens the session at a source and waits for its tracks.
func (s *Session) join(
	ctx context.Context, cancel context.CancelCauseFunc, group *sync.WaitGroup, life context.Context, u *upstream,
) error {
	if err := s.play(ctx, u); err != nil {
		return err
	}
	group.Go(func() {
		u.watch(life)
		cancel(u.err)
	})
	if err := s.bounded(ctx, Parent, "connect", s.limits.step, u.session.Connected); err != nil {
		return err
	}
	return failed(ctx, Parent, "wait for media", s.awaitTracks(ctx, u))
}

// newHandover begins to make a source the current one.
func (s *Session) newHandover(u, old *upstream) *handover {
	h := &handover{s: s, old: old, same: u.source.Same, seams: make(map[*feed]seam)}
	s.mu.Lock()
	defer s.mu.Unlock()
	u.current = true // what comes from now on is late
	for _, f := range u.feeds {
		switch {
		case f.lane.track.Load() == f.track: // the lane's first
		case f.lane.kind == webrtc.RTPCodecTypeVideo:
			h.video = f
		default:
			h.audio = f
		}
	}
	return h
}

// handover is how the tracks of a new source take over from the old one's.
type handover struct {
	s            *Session
	old          *upstream // nil: it has ended
	same         bool      // publication
	warm         bool      // the new source has long been here: it need not begin with a key frame
	video, audio *feed     // of the new source; nil where it has none
	seams        map[*feed]seam
	how          string

	oldVideo, newVideo side // the picture's clocks, as they were when it took over
	before, after      []media.Packet
}

// flows says whether the old source still sends.
func (h *handover) flows() bool {
	if h.old == nil || h.old.gone() {
		return false
	}
	for _, f := range []*feed{h.video, h.audio} {
		if f == nil {
			continue
		}
		if last, _ := f.lane.patience(); time.Since(last) < flowing {
			return true
		}
	}
	return false
}

func (h *handover) run(ctx context.Context) error {
	h.how = HowClock
	if h.video != nil && !h.warm && !h.flows() {
		h.hurry()
	}
	if h.same {
		if err := h.align(ctx); err != nil {
			return err
		}
	}
	if len(h.seams) > 0 {
		h.how = HowAligned
	}
	if h.video != nil {
		if err := h.runVideo(ctx); err != nil {
			return err
		}
	}
	if h.audio != nil {
		return h.runAudio(ctx)
	}
	return nil
}

// hurry asks for a key frame, unless the new source has begun with one.
func (h *handover) hurry() {
	if kept := h.kept(h.video); kept == nil {
		h.video.track.RequestKeyFrame()
	} else if _, ok := kept.KeyFrame(); !ok {
		h.video.track.RequestKeyFrame()
	}
}

func (h *handover) kept(f *feed) *media.History {
	f.lane.mu.Lock()
	defer f.lane.mu.Unlock()
	return f.kept
}

// windows are the last packets of the lane and the first of the feed; they are valid until the next call.
func (h *handover) windows(f *feed) (before, after []media.Packet) {
	before, after = f.lane.windows(f, h.before, h.after)
	h.before, h.after = before[:0], after[:0]
	return before, after
}

// align looks for what the two copies have in common, until it is found or clear that it will not be.
func (h *handover) align(ctx context.Context) error {
	tick := time.NewTicker(alignTick)
	defer tick.Stop()
	var began, seen time.Time // since there is something to compare; since the picture was found
	for {
		hopeless := false
		for _, f := range []*feed{h.video, h.audio} {
			if f == nil {
				continue
			}
			if _, ok := h.seams[f]; ok {
				continue
			}
			before, after := h.windows(f)
			if len(after) > 0 && began.IsZero() {
				began = time.Now()
			}
			codec := f.lane.codec.RTPCodecCapability
			found, ok := align(codec.MimeType, codec.ClockRate, f.descriptor, before, after)
			if !ok && f == h.video && !h.flows() {
				near := func(offset uint32) bool {
					apart := int32(offset - h.offset(f, before, after))
					return uint32(max(apart, -apart)) <= ticks(tailDoubt, codec.ClockRate)
				}
				found, ok = alignTail(codec.MimeType, codec.ClockRate, f.descriptor, before, after, near)
			}
			if ok {
				h.seams[f] = found
				if f == h.video {
					seen = time.Now()
				}
			} else if f == h.video {
				whole := 0
				for _, u := range media.Units(codec.MimeType, after) {
					if u.Whole {
						whole++
					}
				}
				hopeless = whole > alignUnits && time.Since(began) > alignTick // what came out of order has come
			}
		}
		patience, sound := alignPatience, soundPatience
		flows := h.flows()
		if !flows {
			patience, sound = alignHurry, soundHurry
		}
		_, video := h.seams[h.video]
		_, audio := h.seams[h.audio]
		switch {
		case (video || h.video == nil) && (audio || h.audio == nil):
			return nil
		case !seen.IsZero() && time.Since(seen) > sound:
			return nil
		case !began.IsZero() && time.Since(began) > patience:
			return nil
		case hopeless && !flows && !video:
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// runVideo lets the picture take over.
func (h *handover) runVideo(ctx context.Context) error {
	f := h.video
	l := f.lane
	found, ok := h.seams[f]
	if !ok {
		return h.runKeyFrame(ctx, nil)
	}
	before, after := h.windows(f)
	h.oldVideo, h.newVideo = h.sides(f, before, after)
	if found.exact {
		return l.exactly(ctx, f, found)
	}
	torn := missing(before)
	mended, err := h.mend(ctx, found.shift.Timestamp)
	for err == nil && mended {
		err = l.aligned(ctx, f, found.shift, h.flows)
		if !errors.Is(err, errBrokeOff) {
			if err == nil && torn {
				f.track.RequestKeyFrame() // what the old source lost will not come any more
			}
			return err
		}
		mended, err = h.mend(ctx, found.shift.Timestamp)
	}
	if err != nil {
		return err
	}
	return h.runKeyFrame(ctx, &found.shift.Timestamp)
}

// missing says whether there are holes in the last packets, in order of sequence number.
func missing(packets []media.Packet) bool {
	const look = 128
	packets = packets[max(len(packets)-look, 0):]
	for i := 1; i < len(packets); i++ {
		if packets[i].Header.SequenceNumber != packets[i-1].Header.SequenceNumber+1 {
			return true
		}
	}
	return false
}

// mend completes the frame in whose middle the old source broke off, and says whether the lane now ends with a whole one.
// While the old source flows that is left to it.
func (h *handover) mend(ctx context.Context, shift uint32) (bool, error) {
	f := h.video
	codec := f.lane.codec.RTPCodecCapability
	tick := time.NewTicker(alignTick)
	defer tick.Stop()
	began := time.Now()
	for {
		if h.flows() {
			return true, nil
		}
		before, after := h.windows(f)
		units := media.Units(codec.MimeType, before)
		if len(units) == 0 {
			return false, nil
		}
		last := units[len(units)-1]
		if last.Whole {
			return true, nil
		}
		broken := before[last.First : last.First+last.Packets]
		if !last.Begins || missing(broken) {
			return false, nil
		}
		for _, u := range media.Units(codec.MimeType, after) {
			apart := int32(u.Timestamp + shift - last.Timestamp)
			if max(apart, -apart) <= tolerance(codec.ClockRate) && u.Whole {
				return f.lane.finish(codec.MimeType, broken, after[u.First:u.First+u.Packets]), nil
			}
		}
		if time.Since(began) > alignHurry {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// runKeyFrame lets the picture take over at a key frame. The offset of timestamps is given where it is known.
func (h *handover) runKeyFrame(ctx context.Context, known *uint32) error {
	h.how = HowKeyFrame
	f := h.video
	l := f.lane
	rate := l.codec.ClockRate
	tick := time.NewTicker(alignTick)
	defer tick.Stop()
	var p media.Packet
	for {
		if kept := h.kept(f); kept != nil {
			position, ok := kept.KeyFrame()
			if ok && kept.At(position, &p) == media.Read {
				before, after := h.windows(f)
				offset := uint32(0)
				switch {
				case known != nil:
					offset = *known
				case len(before) > 0:
					offset = h.offset(f, before, after)
				}
				ahead := int32(1)
				var pictures media.Shift
				if len(before) > 0 {
					end := &before[len(before)-1]
					ahead = int32(p.Header.Timestamp + offset - end.Header.Timestamp)
					pictures = p.Pictures(l.codec.MimeType, f.descriptor).To(
						end.Pictures(l.codec.MimeType, h.descriptor(l)).Next())
				}
				if ahead <= tolerance(rate) && known == nil && !h.flows() {
					// It is older than what has gone out, by the time it came, and the next may be far: time goes on all the same.
					offset += uint32(-ahead) + rate/videoStep
					ahead = int32(rate / videoStep)
				}
				if ahead > 0 {
					h.oldVideo, h.newVideo = h.sides(f, before, after)
					h.seams[f] = seam{shift: media.Shift{Timestamp: offset}}
					return l.atKeyFrame(ctx, f, p.Header.SequenceNumber, withPictures(h.seams[f].shift, pictures), h.flows)
				}
			}
		}
		f.track.RequestKeyFrame() // it merges wishes and spaces them
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// videoStep is the part of a second by which a frame follows another where nothing better is known.
const videoStep = 30

func (h *handover) descriptor(l *lane) uint8 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil {
		return 0
	}
	return l.current.descriptor
}

// offset tells how timestamps lie by the two sources' clocks, which are one for a publication that comes by two ways, else
// by the time that packets came.
func (h *handover) offset(f *feed, before, after []media.Packet) uint32 {
	old, now := h.sides(f, before, after)
	byArrival := old.line.timestampAt(now.line.at) - now.line.timestamp
	if h.same && old.clock.ok && now.clock.ok {
		byClock := old.clock.timestampAt(now.clock.ntp) - now.clock.timestamp
		if believable(byClock, byArrival, f.lane.codec.ClockRate) {
			return byClock
		}
	}
	return byArrival
}

func believable(a, b, clockRate uint32) bool {
	apart := int32(a - b)
	return uint32(max(apart, -apart)) <= ticks(clockDoubt, clockRate)
}

// sides are what is known of a lane's clocks, as it goes out and as the new source has it.
func (h *handover) sides(f *feed, before, after []media.Packet) (old, now side) {
	l := f.lane
	rate := l.codec.ClockRate
	old.line, now.line = lineOf(before, rate), lineOf(after, rate)
	l.mu.Lock()
	heard, current := l.heard, l.current
	said := f.heard
	l.mu.Unlock()
	if current != nil {
		old.clock, now.clock = captured(before, current.extensions, rate), captured(after, f.extensions, rate)
	}
	if old.clock.ok && now.clock.ok {
		return old, now
	}
	old.clock, now.clock = clock{}, clock{}
	if heard != nil && said != nil {
		old.clock = clock{ntp: heard.NTP, timestamp: heard.RTP, clockRate: rate, ok: true}
		now.clock = clock{ntp: said.NTP, timestamp: said.RTP, clockRate: rate, ok: true}
	}
	return old, now
}

// runAudio lets the sound take over, after the picture.
func (h *handover) runAudio(ctx context.Context) error {
	f := h.audio
	l := f.lane
	found, ok := h.seams[f]
	if ok && found.exact {
		return l.exactly(ctx, f, found)
	}
	if !ok {
		before, after := h.windows(f)
		if len(before) == 0 || len(after) == 0 {
			l.mu.Lock()
			f.late = true // its first packet takes over
			l.mu.Unlock()
			return nil
		}
		offset := h.offset(f, before, after)
		if picture, ok := h.seams[h.video]; ok {
			old, now := h.sides(f, before, after)
			carry, ok := carried(old, now, h.oldVideo, h.newVideo, picture.shift.Timestamp)
			if ok && believable(carry, offset, l.codec.ClockRate) {
				offset = carry
			}
		}
		end := before[len(before)-1].Header.Timestamp
		found.shift.Timestamp = onGrid(offset, end, after[0].Header.Timestamp, stepOf(before))
	}
	err := l.aligned(ctx, f, found.shift, h.flows)
	if errors.Is(err, errBrokeOff) {
		l.mu.Lock()
		l.switchLocked(f)
		l.mu.Unlock()
		err = l.catchUp(ctx, f)
	}
	return err
}

// captured is what a track's packets themselves say of their source's time (abs-capture-time), newest first.
func captured(packets []media.Packet, extensions map[uint8]string, clockRate uint32) clock {
	for id, uri := range extensions {
		if uri != media.AbsCaptureTime {
			continue
		}
		for i := len(packets) - 1; i >= 0; i-- {
			if b := packets[i].Header.GetExtension(id); len(b) >= 8 {
				return clock{
					ntp: binary.BigEndian.Uint64(b), timestamp: packets[i].Header.Timestamp, clockRate: clockRate, ok: true,
				}
			}
		}
	}
	return clock{}
}
