package pionsfu

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"
	"golang.org/x/time/rate"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	gatherTimeout = 5 * time.Second
	// maxTrickled bounds the candidates of one session, which each cost connectivity checks to an address of the
	// client's choice. What comes after is unusable, and so passed over in silence.
	maxTrickled = 200
)

// session is one publisher or one viewer, from its POST to its end.
type session struct {
	id      string            // the last element of its address: a secret of 130 bits
	token   [sha256.Size]byte // with which it was opened, hashed
	stream  adapters.StreamID
	publish bool
	relayed bool // a sidecar publishes it

	publication *publication // of a publisher
	viewer      *viewer      // of a viewer
	conn        *media.Conn
	pc          *webrtc.PeerConnection
	offer       *offer
	countered   bool // the server has offered

	answered latch         // of one that is countered: the client's answer is there
	up       latch         // the connection is there for the first time
	lost     latch         // the connection is gone for good
	deleted  latch         // the client, or the adapter, wants the end
	replaced chan struct{} // of a publisher: closed by the registry when another goes on in its place
	removed  chan struct{} // closed when the registry has forgotten the session
	freed    chan struct{} // closed when nothing of it is left

	patching sync.Mutex    // held while the ICE session is changed by a PATCH
	restarts *rate.Limiter // of ICE

	mu       sync.Mutex
	etag     string // names the ICE session (RFC 9725, section 4.3.1)
	remote   iceSession
	trickled int
	movable  int                 // streams of events by which it hears that it is to go elsewhere
	events   map[string][]string // subscriptions of a viewer: the events wanted, by id

	doubt atomic.Bool // nothing has been heard from the client for some seconds

	// What follows is the registry's.
	connected bool
	since     time.Time
	away      bool         // a publisher is lost, and what it published waits for the next
	follows   *publication // that of a publisher which is away or in doubt, when this session began
}

// latch is a channel that is closed by the first of several.
type latch struct {
	once sync.Once
	c    chan struct{}
}

func newETag() string { return strconv.Quote(rand.Text()) }

func (l *latch) fire() { l.once.Do(func() { close(l.c) }) }

func newSession(id string, stream adapters.StreamID, publish bool) *session {
	return &session{
		id: id, etag: newETag(), stream: stream, publish: publish,
		answered: latch{c: make(chan struct{})}, up: latch{c: make(chan struct{})}, lost: latch{c: make(chan struct{})}, deleted: latch{c: make(chan struct{})},
		restarts: rate.NewLimiter(rate.Every(restartEvery), restartBurst),
		replaced: make(chan struct{}), removed: make(chan struct{}), freed: make(chan struct{}),
	}
}

// negotiate answers the offer. prepare, if there is one, adds what is to be sent once the offer's codecs are known. After
// an error nothing is left of the connection.
func (s *session) negotiate(
	ctx context.Context, server *Server, prepare func(*webrtc.PeerConnection) error,
) (string, error) {
	s.remote = s.offer.ice()
	offered, err := s.offer.marshal()
	if err != nil {
		return "", malformed("It cannot be written back as SDP: %s", err)
	}
	pc, err := s.conn.NewPeerConnection(webrtc.Configuration{Certificates: server.certificates})
	if err != nil {
		return "", err
	}
	s.pc = pc
	pc.OnConnectionStateChange(s.stateChanged)
	answer, err := s.answer(ctx, offered, prepare)
	if err == nil {
		answer, err = finishAnswer(answer, s.publish, server.advertised, server.config.ICELite)
	}
	if err != nil {
		return "", errors.Join(err, pc.GracefulClose())
	}
	return answer, nil
}

func (s *session) answer(
	ctx context.Context, offered string, prepare func(*webrtc.PeerConnection) error,
) (string, error) {
	err := s.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offered})
	if err != nil {
		return "", malformed("It cannot be used: %s", err)
	}
	if prepare != nil {
		if err := prepare(s.pc); err != nil {
			return "", err
		}
	}
	answer, err := s.pc.CreateAnswer(nil)
	if err != nil {
		return "", fmt.Errorf("make answer: %w", err)
	}
	gathered := webrtc.GatheringCompletePromise(s.pc)
	if err := s.pc.SetLocalDescription(answer); err != nil {
		return "", fmt.Errorf("set answer: %w", err)
	}
	return s.described(ctx, gathered)
}

// described is the own description with all candidates in it; the server never trickles (RFC 9725, section 4.3.2).
func (s *session) described(ctx context.Context, gathered <-chan struct{}) (string, error) {
	timer := time.NewTimer(gatherTimeout)
	defer timer.Stop()
	select {
	case <-gathered:
	case <-timer.C:
		return "", errors.New("gather candidates: timed out")
	case <-ctx.Done():
		return "", ctx.Err()
	}
	return s.pc.LocalDescription().SDP, nil
}

// stateChanged is called by pion, each time in a goroutine of its own, so that the order does not count.
func (s *session) stateChanged(state webrtc.PeerConnectionState) {
	switch state {
	case webrtc.PeerConnectionStateConnected:
		s.doubt.Store(false)
		s.up.fire()
	case webrtc.PeerConnectionStateDisconnected:
		s.doubt.Store(true)
	case webrtc.PeerConnectionStateFailed, webrtc.PeerConnectionStateClosed:
		s.lost.fire()
	}
}

// serve runs a session to its end, in a goroutine of Run.
func (s *Server) serve(ctx context.Context, session *session) {
	kind := "play"
	if session.publish {
		kind = "publish"
	}
	logger := s.logger.With("kind", kind, "stream", session.stream, "session", session.id[:6])
	err := s.follow(ctx, session, logger)
	// Only who is lost may come back; who says goodbye has ended.
	waiting := session.publish && errors.Is(err, errLost) && s.config.PublisherGrace > 0 && s.registry.suspend(session)
	if !waiting {
		s.registry.remove(session)
	}
	if closing := session.pc.GracefulClose(); closing != nil {
		logger.Debug("closing failed", "error", closing)
	}
	s.registry.bury(session)
	level := slog.LevelInfo
	if !isClosed(session.up.c) {
		level = slog.LevelDebug // a thousand of these are one flood, which the metrics show
	}
	logger.Log(ctx, level, "session ended", "reason", err)
	close(session.freed)
	if !waiting {
		return
	}
	patience := time.NewTimer(s.config.PublisherGrace)
	defer patience.Stop()
	select {
	case <-patience.C:
	case <-session.replaced:
	case <-ctx.Done():
	}
	s.registry.expire(session)
}

// onTrack says who takes the packets of a publisher's new SSRC.
func (s *session) onTrack(t *media.Track) media.Sink { return s.publication.onTrack(s, t) }

// published takes what a publisher's connection has agreed on.
func (s *session) published(pc *webrtc.PeerConnection) error {
	if err := s.publication.negotiated(pc, s.offer.rids); err != nil {
		return err
	}
	if s.follows != nil && s.publication.continues(s.follows) {
		s.publication = s.follows
	}
	return nil
}

// follow waits for a session to connect and then to end, and says why it did.
func (s *Server) follow(ctx context.Context, session *session, logger *slog.Logger) error {
	var source <-chan struct{} // of a viewer: its publisher has gone
	if session.viewer != nil {
		source = session.viewer.source.ended
	}
	patience := time.NewTimer(s.config.ConnectTimeout)
	defer patience.Stop()
	answered := session.answered.c
	if session.countered {
		patience.Reset(counterTime)
	}
	for up := session.up.c; ; {
		select {
		case <-answered:
			answered = nil
			patience.Reset(s.config.ConnectTimeout)
		case <-up:
			if !s.registry.connect(session) {
				return errDeleted
			}
			logger.Info("session connected")
			if session.viewer != nil {
				return session.viewer.forward(ctx)
			}
			patience.Stop()
			up = nil
		case <-patience.C:
			s.refused.WithLabelValues("never_connected").Inc()
			return errors.New("did not connect in time")
		case <-session.lost.c:
			return errLost
		case <-session.deleted.c:
			return errDeleted
		case <-session.replaced:
			return errReplaced
		case <-source:
			return errSourceGone
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

var (
	errLost       = errors.New("connection lost")
	errDeleted    = errors.New("deleted")
	errReplaced   = errors.New("publisher came back by another session")
	errSourceGone = errors.New("publisher gone")
	errNewCodec   = errors.New("publisher changed its codec")
)

// trickle adds a client's candidates; those that cannot be used are passed over (RFC 9725, section 4.3.2).
func (s *session) trickle(candidates []string) {
	for _, candidate := range candidates {
		if !usableCandidate(candidate) {
			continue
		}
		s.mu.Lock()
		s.trickled++
		enough := s.trickled > maxTrickled
		s.mu.Unlock()
		if enough {
			return
		}
		// An error is a candidate that pion likes less than we did, or a connection that is closing.
		_ = s.pc.AddICECandidate(webrtc.ICECandidateInit{Candidate: "candidate:" + candidate})
	}
}

// traffic is what has gone through a session that has connected.
func (s *session) traffic() (t traffic) {
	useless := s.conn.Stats()
	t.malformed, t.unknown, t.forged = useless.Malformed, useless.Unknown, useless.Forged
	switch {
	case s.publish:
		for _, track := range s.conn.Tracks() {
			stats := track.Stats()
			t.packetsIn += stats.Packets
			t.bytesIn += stats.Bytes
			t.nacksOut += stats.NACKs
			t.plisOut += stats.PLIs
		}
	default:
		for _, lane := range s.viewer.lanes {
			stats := lane.sender.Stats()
			t.packetsOut += stats.Packets
			t.bytesOut += stats.Bytes
			t.resent += stats.Resent
			t.dropped += stats.Dropped
			t.nacksIn += stats.NACKs
			t.plisIn += stats.KeyFrameRequests
			t.skips += lane.skips.Load()
			t.switches += lane.switches.Load()
		}
	}
	return t
}

// finishAnswer makes pion's answer what the RFCs ask for. It refuses a publisher's offer of which a section found no
// codec: half a publication is none (RFC 9725, section 4.4.3).
func finishAnswer(answer string, publish bool, advertised []advertised, lite bool) (string, error) {
	var desc sdp.SessionDescription
	if err := desc.UnmarshalString(answer); err != nil {
		return "", fmt.Errorf("read own answer: %w", err)
	}
	if _, has := desc.Attribute("ice-lite"); lite && !has {
		desc.Attributes = append(desc.Attributes, sdp.Attribute{Key: "ice-lite"})
	}
	for i, m := range desc.MediaDescriptions {
		if m.MediaName.Port.Value == 0 {
			if publish || i == 0 { // the first section also carries the transport of all
				return "", unacceptable("None of the codecs of its %s section is known here.", m.MediaName.Media)
			}
			continue
		}
		// RFC 9725, section 4.4.1, asks for the attribute in each bundled section, of the server too.
		m.Attributes = append(m.Attributes, sdp.Attribute{Key: "rtcp-mux-only"})
		m.Attributes = finishCandidates(m.Attributes, advertised)
	}
	raw, err := desc.Marshal()
	return string(raw), err
}
