package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"
	"golang.org/x/sync/errgroup"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
)

const (
	stepTimeout     = 10 * time.Second // for each step on the way to live
	keyFrameTimeout = 30 * time.Second // servers that ignore requests send one by their own clock
	freeTimeout     = 5 * time.Second  // for the DELETEs at the end
	freeFailed      = time.Second      // for the one to the side that failed: another parent waits for it

	// After the first track, the others are waited for this long. Where the parent's answer leaves no doubt of the codec
	// of one that has not come, it is published all the same and may come when it likes; else it is left out. Some
	// servers hold video back until a key frame, so there more patience is due: a track cannot be added later.
	settle      = 500 * time.Millisecond
	settleVideo = 2500 * time.Millisecond
)

// Steps of a session, in the order in which they are usually taken.
const (
	StepPlay            = "play"             // the WHEP offer goes to the parent
	StepPlayAnswered    = "play answered"    //
	StepParentConnected = "parent connected" // ICE and DTLS are up
	StepFirstPacket     = "first packet"     // from the parent
	StepFirstKeyFrame   = "first key frame"  // from the parent; not for audio alone
	StepPublish         = "publish"          // the WHIP offer goes to the local server
	StepPublishAnswered = "publish answered" //
	StepServerConnected = "server connected" //
	StepLive            = "live"             // media flows into the local server
)

// Step is one thing that happened on the way to live.
type Step struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
}

// Side is one of the two ends of a relay.
type Side string

// The sides of a relay.
const (
	Parent      Side = "parent"
	LocalServer Side = "local server"
)

// SessionError says how a session ended: on which side and at which step. Whoever retries looks for another parent if it
// was the parent's side, and leaves the parent alone if it was not.
type SessionError struct {
	Side Side
	Step string // what was being done: "play", "connect", "wait for media", "relay"
	Err  error
}

func (e *SessionError) Error() string { return fmt.Sprintf("%s: %s: %v", e.Side, e.Step, e.Err) }
func (e *SessionError) Unwrap() error { return e.Err }

// SessionOptions describe one stream, where it comes from and where it goes.
type SessionOptions struct {
	Stream    adapters.StreamID
	From      adapters.Endpoint // WHEP, at the parent's peer port
	FromHTTP  *http.Client      // nil: as whip.Client has it
	To        adapters.Endpoint // WHIP, at the local server
	ToHTTP    *http.Client
	Transport media.Transport
	Traits    adapters.Traits // of the local server
	// Grace is for how long the publication at the local server outlives its source, so that Change can give it another.
	// 0: 10 s; negative: not at all.
	Grace   time.Duration
	Logger  *slog.Logger    // nil: discard
	Metrics *SessionMetrics // nil: none
	// Share tells for the metrics what the stream's bytes spare the ways between clusters; nil: nobody knows.
	Share func() Share
}

// Session carries one stream from a parent into the local server; what is published there stays when the parent changes. It
// is used for one Run.
type Session struct {
	options SessionOptions
	logger  *slog.Logger
	limits  limits

	live    chan struct{}
	over    chan struct{} // closed when media has ended
	newest  atomic.Int64  // when the last packet came from the source, in Unix nanoseconds; 0: none has
	changes chan changeRequest
	kick    chan struct{} // wakes tend

	standbys chan standbyRequest

	mu           sync.Mutex
	steps        []Step
	location     string
	lanes        []*lane // at most one of audio and one of video
	published    bool    // lanes are fixed
	upstream     *upstream
	out          *media.Conn // to the local server
	discarded    connStats   // of connections that have ended
	state        SourceState
	stateChanged chan struct{}
	changed      []ChangeStatus
	standby      *standby                              // nil: there is none
	past         map[webrtc.RTPCodecType]standbyCounts // of standbys that have ended
	joins        joins
	ended        string
	trace        sessionTrace
}

func (s *Session) newLane(kind webrtc.RTPCodecType) *lane {
	l := newLane(kind, &s.newest, s.step)
	if s.options.Metrics != nil {
		l.froze = s.options.Metrics.freeze(kind)
	}
	return l
}

// limits are constants but for tests.
type limits struct{ step, keyFrame, free, settle, settleVideo time.Duration }

// NewSession makes a session. Nothing happens before Run.
func NewSession(o SessionOptions) *Session {
	logger := o.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Session{
		options: o, logger: logger.With("stream", o.Stream),
		limits: limits{
			step: stepTimeout, keyFrame: keyFrameTimeout, free: freeTimeout, settle: settle, settleVideo: settleVideo,
		},
		live: make(chan struct{}), over: make(chan struct{}), changes: make(chan changeRequest),
		standbys: make(chan standbyRequest), past: make(map[webrtc.RTPCodecType]standbyCounts),
		kick:  make(chan struct{}, 1),
		state: SourceState{Flow: FlowStarting}, stateChanged: make(chan struct{}),
	}
}

// Live is closed once media flows into the local server: video from a key frame on.
func (s *Session) Live() <-chan struct{} { return s.live }

// Ended is closed when media flows no longer, or never will; Run returns when both sides are freed.
func (s *Session) Ended() <-chan struct{} { return s.over }

// LastPacket is when the last packet came from the source, zero before the first.
func (s *Session) LastPacket() time.Time {
	if newest := s.newest.Load(); newest != 0 {
		return time.Unix(0, newest)
	}
	return time.Time{}
}

// Location is the URL of the session at the local server, empty before there is one.
func (s *Session) Location() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.location
}

// Run carries the stream until either side fails or ctx ends, and returns why: a *SessionError, or the error of ctx. Both
// sides are freed then, within five seconds. It never retries, and can be called once.
func (s *Session) Run(ctx context.Context) error {
	s.options.Metrics.begin(s)
	s.mu.Lock()
	s.trace = newSessionTrace(ctx)
	s.mu.Unlock()
	err := s.run(tracing.Within(ctx, nil)) // only what asks for the first source, and publishes, is of that trace
	s.mu.Lock()
	s.ended = err.Error()
	s.trace.ended(s.steps, err, time.Now())
	s.mu.Unlock()
	s.options.Metrics.end(s, err)
	return fmt.Errorf("relay %s: %w", s.options.Stream, err)
}

func (s *Session) run(ctx context.Context) error {
	first := s.newUpstream(Source{From: s.options.From, FromHTTP: s.options.FromHTTP}, true)
	s.step(StepPlay)
	if err := s.play(s.requesting(ctx, StepPlayAnswered), first); err != nil {
		close(s.over)
		return err
	}
	s.step(StepPlayAnswered)
	s.mu.Lock()
	s.upstream = first
	s.mu.Unlock()
	group, inner := errgroup.WithContext(ctx)
	group.Go(func() error { return s.supervise(inner, first) })
	group.Go(func() error { return s.tend(inner) })
	var target *whip.Session
	group.Go(func() (err error) {
		target, err = s.forward(inner, first)
		return err
	})
	err := group.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	s.free(ctx, s.upstream.session, target, err)
	return err
}

// forward takes the stream from the parent's connection to the local server and stays until one of them fails. The
// publication, if there is one, is returned in any case.
func (s *Session) forward(ctx context.Context, source *upstream) (*whip.Session, error) {
	err := s.bounded(ctx, Parent, "connect", s.limits.step, source.session.Connected)
	if err != nil {
		return nil, err
	}
	s.step(StepParentConnected)

	if err := s.awaitTracks(ctx, source); err != nil {
		return nil, failed(ctx, Parent, "wait for media", err)
	}
	target, err := s.publish(ctx)
	if err != nil {
		return target, err
	}
	if err := s.bounded(ctx, LocalServer, "connect", s.limits.step, target.Connected); err != nil {
		return target, err
	}
	s.step(StepServerConnected)

	if err := s.bounded(ctx, Parent, "wait for a key frame", s.limits.keyFrame, s.open); err != nil {
		return target, err
	}
	s.step(StepLive)
	close(s.live)
	s.logger.Info("relay live", "after", s.took(StepPlay, StepLive))
	return target, failed(ctx, LocalServer, "relay", ended(target.Wait(ctx)))
}

// play opens the session at a parent.
func (s *Session) play(ctx context.Context, u *upstream) error {
	conn := media.NewConn(s.options.Transport, u.arrived)
	u.conn = conn
	client := &whip.Client{HTTP: u.source.FromHTTP, NewPeerConnection: conn.NewPeerConnection, Logger: s.logger}
	return s.bounded(ctx, Parent, "play", s.limits.step, func(ctx context.Context) (err error) {
		u.session, err = client.Play(ctx, u.source.From, nil)
		return err
	})
}

// awaitTracks waits until it is known what is to be published: which tracks, and of which codec. An answer may list more
// codecs than one, and the profile it names is often not the publisher's, so only packets tell (and the answer, where it
// leaves no choice). A source that takes another's place need have only what is published already.
func (s *Session) awaitTracks(ctx context.Context, u *upstream) error {
	promised, err := promisedTracks(u.session.PeerConnection())
	if err != nil {
		return err
	}
	if len(promised) == 0 {
		return errors.New("its answer offers neither audio nor video")
	}
	timer := time.NewTimer(s.limits.step)
	defer timer.Stop()
	settling := false
	for {
		missing, come := s.missing(u, promised)
		if len(missing) == 0 {
			break
		}
		if !settling && come > 0 {
			settling = true
			patience := s.limits.settle
			if slices.ContainsFunc(missing, func(p promise) bool {
				return p.kind == webrtc.RTPCodecTypeVideo && (len(p.codecs) != 1 || !u.initial)
			}) {
				patience = s.limits.settleVideo
			}
			timer.Reset(patience)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-u.arrivals:
			continue
		case <-timer.C:
		}
		if !settling {
			return fmt.Errorf("nothing came within %s", s.limits.step)
		}
		break
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if !u.initial {
		if len(u.feeds) == 0 {
			return errors.New("it has none of the tracks that are published")
		}
		return nil
	}
	s.published = true
	for _, p := range promised {
		if s.laneLocked(p.kind) == nil && len(p.codecs) == 1 {
			l := s.newLane(p.kind)
			l.codec, l.extensions = p.codecs[0], p.extensions
			s.lanes = append(s.lanes, l)
		}
	}
	return nil
}

// missing lists what a source has promised and not sent yet, of what is of use, and counts what has come.
func (s *Session) missing(u *upstream, promised []promise) (missing []promise, come int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(promised), func(p promise) bool {
		return u.feedLocked(p.kind) != nil || !u.initial && s.laneLocked(p.kind) == nil
	}), len(u.feeds)
}

// promise is a track that the parent's answer says will be sent.
type promise struct {
	kind       webrtc.RTPCodecType
	codecs     []webrtc.RTPCodecParameters
	extensions map[uint8]string // header extensions, URI by id
}

func promisedTracks(pc *webrtc.PeerConnection) ([]promise, error) {
	sections, err := answerSections(pc)
	if err != nil {
		return nil, err
	}
	var promised []promise
	for _, transceiver := range pc.GetTransceivers() {
		if !sections[transceiver.Mid()].sends || transceiver.Receiver() == nil {
			continue
		}
		p := promise{kind: transceiver.Kind(), extensions: make(map[uint8]string)}
		parameters := transceiver.Receiver().GetParameters()
		for _, extension := range parameters.HeaderExtensions {
			p.extensions[uint8(extension.ID)] = extension.URI
		}
		for _, codec := range parameters.Codecs {
			if !strings.EqualFold(codec.MimeType, webrtc.MimeTypeRTX) {
				p.codecs = append(p.codecs, codec)
			}
		}
		promised = append(promised, p)
	}
	return promised, nil
}

// section is what an answer says of one m-line.
type section struct{ sends, receives bool }

// answerSections reads the remote description, by mid. A section with port 0 was refused (RFC 8829, section 5.3.1).
func answerSections(pc *webrtc.PeerConnection) (map[string]section, error) {
	description := pc.RemoteDescription()
	if description == nil {
		return nil, errors.New("there is no answer")
	}
	return sectionsOf(description.SDP)
}

func sectionsOf(answer string) (map[string]section, error) {
	// Not webrtc.SessionDescription.Unmarshal: that keeps what it made in the description, which pion reads meanwhile.
	var parsed sdp.SessionDescription
	if err := parsed.UnmarshalString(answer); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	sections := make(map[string]section)
	for _, m := range parsed.MediaDescriptions {
		mid, _ := m.Attribute(sdp.AttrKeyMID)
		direction := sdp.DirectionSendRecv
		for _, d := range []sdp.Direction{sdp.DirectionSendOnly, sdp.DirectionRecvOnly, sdp.DirectionInactive} {
			_, ofMedia := m.Attribute(d.String())
			_, ofSession := parsed.Attribute(d.String())
			if ofMedia || ofSession && direction == sdp.DirectionSendRecv {
				direction = d
			}
		}
		refused := m.MediaName.Port.Value == 0
		sections[mid] = section{
			sends:    !refused && (direction == sdp.DirectionSendRecv || direction == sdp.DirectionSendOnly),
			receives: !refused && (direction == sdp.DirectionSendRecv || direction == sdp.DirectionRecvOnly),
		}
	}
	return sections, nil
}

// publish opens the session at the local server, with just the codecs that come from the parent.
func (s *Session) publish(ctx context.Context) (*whip.Session, error) {
	conn := media.NewConn(s.options.Transport, nil)
	s.mu.Lock()
	s.out = conn
	s.mu.Unlock()
	client := &whip.Client{HTTP: s.options.ToHTTP, NewPeerConnection: conn.NewPeerConnection, Logger: s.logger}
	var session *whip.Session
	if err := failed(ctx, LocalServer, "publish", s.acceptable()); err != nil {
		return nil, err
	}
	s.step(StepPublish)
	err := s.bounded(s.requesting(ctx, StepPublishAnswered), LocalServer, "publish", s.limits.step, func(ctx context.Context) (err error) {
		session, err = client.Publish(ctx, s.options.To, func(pc *webrtc.PeerConnection) error {
			return s.addLanes(conn, pc)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	s.step(StepPublishAnswered)
	s.mu.Lock()
	s.location = session.Location().String()
	s.mu.Unlock()
	return session, failed(ctx, LocalServer, "publish", s.accepted(session.PeerConnection()))
}

// acceptable says which of the tracks the local server is known not to take.
func (s *Session) acceptable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	tracks := make([]adapters.Track, 0, len(s.lanes))
	for _, l := range s.lanes {
		tracks = append(tracks, adapters.Track{Kind: l.kind.String(), MIME: l.codec.MimeType})
	}
	return s.options.Traits.Accept(tracks)
}

func (s *Session) addLanes(conn *media.Conn, pc *webrtc.PeerConnection) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		options := media.SenderOptions{
			Kind: l.kind, Codec: l.codec.RTPCodecCapability, ID: l.kind.String(), StreamID: "sidestream",
			Extensions: l.extensions, History: l.history,
			OnKeyFrameRequest: func() { l.serverAsks(s.options.Traits.IgnoresPLI, time.Now()) },
		}
		var fill *filler
		if s.options.Traits.FillAudio && strings.EqualFold(l.codec.MimeType, webrtc.MimeTypeOpus) {
			fill = newFiller()
			options.History = fill.history
		}
		l.out = conn.NewSender(options)
		l.outlet.Store(&outlet{
			to: l.out, history: l.history, video: l.kind == webrtc.RTPCodecTypeVideo,
			inOrder: s.options.Traits.InOrder || fill != nil, maxHold: s.options.Traits.MaxHold,
			trip: l.roundTrip, lost: l.requestKeyFrame, wake: s.wake, fill: fill,
		})
		transceiver, err := pc.AddTransceiverFromTrack(l.out,
			webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
		if err != nil {
			return fmt.Errorf("add %s: %w", l.codec.MimeType, err)
		}
		codecs := withRepair(l.codec.RTPCodecCapability, transceiver.Sender().GetParameters().Codecs)
		if err := transceiver.SetCodecPreferences(codecs); err != nil {
			return fmt.Errorf("offer %s: %w", l.codec.MimeType, err)
		}
	}
	return nil
}

// withRepair picks the codec, and the RTX that goes with it, of what an engine knows.
func withRepair(codec webrtc.RTPCodecCapability, known []webrtc.RTPCodecParameters) []webrtc.RTPCodecParameters {
	match, ok := media.MatchCodec(codec, known)
	if !ok {
		return []webrtc.RTPCodecParameters{{RTPCodecCapability: codec}} // SetCodecPreferences says what is wrong with it
	}
	picked := []webrtc.RTPCodecParameters{match}
	for _, k := range known {
		if strings.EqualFold(k.MimeType, webrtc.MimeTypeRTX) && k.SDPFmtpLine == fmt.Sprintf("apt=%d", match.PayloadType) {
			picked = append(picked, k)
		}
	}
	return picked
}

// accepted says which of the tracks the local server refused in its answer.
func (s *Session) accepted(pc *webrtc.PeerConnection) error {
	sections, err := answerSections(pc)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, transceiver := range pc.GetTransceivers() {
		l := s.laneLocked(transceiver.Kind())
		if l != nil && !sections[transceiver.Mid()].receives {
			return &adapters.CodecError{MIME: l.codec.MimeType}
		}
	}
	return nil
}

// open lets the media through and returns when that of each track that has come from the parent flows.
func (s *Session) open(ctx context.Context) error {
	s.mu.Lock()
	lanes := slices.Clone(s.lanes)
	s.mu.Unlock()
	// A server that goes by the source's clock drops what comes before it knows that.
	for _, l := range lanes {
		l.tellClock()
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(burstInterval):
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range lanes {
		group.Go(func() error {
			if err := l.open(ctx); err != nil || l.track.Load() == nil {
				return err
			}
			select {
			case <-l.started:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}
	return group.Wait()
}

// free ends both sessions, after err. It outlives ctx, within its own bounds.
func (s *Session) free(ctx context.Context, source, target *whip.Session, err error) {
	dead := Side("")
	if failure, ok := errors.AsType[*SessionError](err); ok {
		dead = failure.Side
	}
	var group sync.WaitGroup
	for side, session := range map[Side]*whip.Session{Parent: source, LocalServer: target} {
		if session == nil {
			continue
		}
		limit := s.limits.free
		if side == dead {
			limit = min(limit, freeFailed)
		}
		group.Go(func() { s.close(ctx, side, session, limit) })
	}
	group.Wait()
}

// close ends one session, within a time and not before.
func (s *Session) close(ctx context.Context, side Side, session *whip.Session, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	err := session.Close(ctx)
	s.options.Metrics.freed(side, session.Gone(), err)
	if err != nil {
		// The server sees the connection closed, and frees the session by that.
		s.logger.Warn("relay session not freed", "side", side, "error", err)
	}
}

// bounded does one step within a time.
func (s *Session) bounded(
	ctx context.Context, side Side, step string, limit time.Duration, do func(context.Context) error,
) error {
	inner, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %s", limit))
	defer cancel()
	err := do(inner)
	if err != nil && inner.Err() != nil && ctx.Err() == nil {
		err = context.Cause(inner)
	}
	return failed(ctx, side, step, err)
}

// failed says where an error came from. If ctx has ended, that is what came first.
func failed(ctx context.Context, side Side, step string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return &SessionError{Side: side, Step: step, Err: err}
	}
}

// ended makes an error of a session that ended without one.
func ended(err error) error {
	if err == nil {
		return errors.New("it ended the session")
	}
	return err
}

func (s *Session) laneLocked(kind webrtc.RTPCodecType) *lane {
	for _, l := range s.lanes {
		if l.kind == kind {
			return l
		}
	}
	return nil
}

func (s *Session) step(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stepLocked(name)
}

// stepLocked records a step the first time it is taken.
func (s *Session) stepLocked(name string) {
	if !slices.ContainsFunc(s.steps, func(step Step) bool { return step.Name == name }) {
		now := time.Now()
		s.steps = append(s.steps, Step{Name: name, At: now})
		s.options.Metrics.step(name, now.Sub(s.steps[0].At))
		s.trace.stepped(s.steps)
		s.logger.Debug("relay step", "step", name)
	}
}

// took is the time from one step to another, 0 where one was not taken.
func (s *Session) took(from, to string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var begin, end time.Time
	for _, step := range s.steps {
		switch step.Name {
		case from:
			begin = step.At
		case to:
			end = step.At
		}
	}
	if begin.IsZero() || end.IsZero() {
		return 0
	}
	return end.Sub(begin)
}

// SessionStatus is a session as `explain` shows it.
type SessionStatus struct {
	Stream   adapters.StreamID `json:"stream"`
	Location string            `json:"location,omitempty"` // of the session at the local server
	Steps    []Step            `json:"steps"`              // in the order they were taken
	Live     bool              `json:"live"`
	Source   SourceState       `json:"source"`
	Layer    string            `json:"layer,omitempty"`   // of simulcast that the parent was asked for; none: its choice
	Changes  []ChangeStatus    `json:"changes,omitempty"` // the last ones, oldest first
	Standby  *StandbyStatus    `json:"standby,omitempty"` // the second copy, where there is or was one
	Ended    string            `json:"ended,omitempty"`   // why, once Run has ended
	Tracks   []TrackStatus     `json:"tracks,omitempty"`

	Malformed uint64 `json:"malformed,omitempty"` // RTP and RTCP packets of both sides that could not be read
	Unknown   uint64 `json:"unknown,omitempty"`   // RTP packets of what was not negotiated
}

// TrackStatus counts what one track carried.
type TrackStatus struct {
	Kind       string        `json:"kind"`
	Codec      string        `json:"codec"` // MIME type
	Packets    uint64        `json:"packets"`
	Bytes      uint64        `json:"bytes"` // of payload
	LastPacket time.Time     `json:"lastPacket"`
	Lost       uint64        `json:"lost"`     // still missing
	Repaired   uint64        `json:"repaired"` // lost, and come by retransmission
	NACKs      uint64        `json:"nacks"`    // sent to the parent
	KeyFrames  uint64        `json:"keyFrames"`
	RTT        time.Duration `json:"rtt"` // to the parent; 0: not known
	Jitter     time.Duration `json:"jitter"`
	Bandwidth  int64         `json:"bandwidth,omitempty"`  // bits per second that the path from the parent carries; 0: not known
	Limited    bool          `json:"limited,omitempty"`    // lately that was less than what was sent
	Restarts   uint64        `json:"restarts,omitempty"`   // new beginnings of the source's SSRC or sequence numbers
	ClockJumps uint64        `json:"clockJumps,omitempty"` // jumps of the source's timestamps by more than ten seconds
	Added      time.Duration `json:"added"`                // time that a packet takes through the relay, smoothed; 0: not known

	KeyFrameRequestsSent     uint64 `json:"keyFrameRequestsSent"`     // to the parent
	KeyFrameRequestsReceived uint64 `json:"keyFrameRequestsReceived"` // from the local server

	PacketsSent uint64        `json:"packetsSent"`
	Resent      uint64        `json:"resent"` // at the local server's request
	SendErrors  uint64        `json:"sendErrors"`
	ServerRTT   time.Duration `json:"serverRTT"` // to the local server; 0: not known

	Waited  uint64 `json:"waited"`  // packets that waited for one before them, where the server wants them in order
	GivenUp uint64 `json:"givenUp"` // packets that were waited for in vain
	Filled  uint64 `json:"filled"`  // empty packets in the place of missing sound, where the server counts
	Paced   uint64 `json:"paced"`   // packets of bursts that were spread out
}

// Status tells what has happened and what has been carried so far.
func (s *Session) Status() SessionStatus {
	status, lanes := s.status()
	// Not under the session's lock: a packet that takes a step asks for it while it holds the lane's.
	for i, l := range lanes {
		t := &status.Tracks[i]
		t.Restarts = l.renewed.Load()
		if in, added, ok := l.stats(); ok {
			t.Packets, t.Bytes, t.LastPacket = in.Packets, in.Bytes, in.LastPacket
			t.Lost, t.Repaired, t.NACKs = in.Lost, in.Repaired, in.NACKs
			t.KeyFrames, t.KeyFrameRequestsSent = in.KeyFrames, in.PLIs
			t.RTT, t.Jitter, t.Added = in.RoundTrip, in.Jitter, added
			t.Bandwidth, t.Limited = in.Bandwidth, in.Limited
			t.Restarts, t.ClockJumps = t.Restarts+in.Restarts, in.ClockJumps
		}
	}
	return status
}

// status is what Status tells but for what came in, and the lanes in the order of its tracks.
func (s *Session) status() (SessionStatus, []*lane) {
	s.mu.Lock()
	lanes := slices.Clone(s.lanes)
	s.mu.Unlock()
	outlets := make(map[*lane]outletStats)
	for _, l := range lanes {
		outlets[l] = l.outletStats() // a lane that is locked may take the session's lock
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	status := SessionStatus{
		Stream: s.options.Stream, Location: s.location, Steps: slices.Clone(s.steps), Ended: s.ended,
		Source: s.state, Changes: slices.Clone(s.changed),
	}
	select {
	case <-s.live:
		status.Live = true
	default:
	}
	useless := s.discarded
	if s.upstream != nil {
		useless.add(s.upstream.conn)
		status.Layer = s.upstream.layer
	}
	useless.add(s.out)
	status.Malformed, status.Unknown = useless.Malformed, useless.Unknown
	for _, l := range s.lanes {
		t := TrackStatus{Kind: l.kind.String(), Codec: l.codec.MimeType}
		if l.out != nil {
			out := l.out.Stats()
			t.PacketsSent, t.Resent, t.SendErrors = out.Packets, out.Resent, out.Errors
			t.KeyFrameRequestsReceived, t.ServerRTT = out.KeyFrameRequests, out.RoundTrip
		}
		o := outlets[l]
		t.Waited, t.GivenUp, t.Filled, t.Paced = o.waited, o.givenUp, o.filled, o.paced
		status.Tracks = append(status.Tracks, t)
	}
	status.Standby = s.standbyStatusLocked()
	return status, slices.Clone(s.lanes)
}
