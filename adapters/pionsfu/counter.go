package pionsfu

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
)

// counterTime is how long an offer of the server's waits for its answer (draft-ietf-wish-whep, "Counter-offer").
const counterTime = 30 * time.Second

var (
	errUnanswered = &refusal{
		http.StatusUnprocessableEntity, "unanswered", "Offer is not answered yet",
		"PATCH the answer to the server's offer first, as " + contentSDP + ".",
	}
	errAnswered = &refusal{
		http.StatusUnprocessableEntity, "answered", "Offer is answered already", "A session is set up once; POST anew for another.",
	}
)

// wantsCounter says whether a player asks for an offer of the server's where its own will not do.
func wantsCounter(r *http.Request) bool {
	for _, line := range r.Header.Values("Prefer") {
		for wish := range strings.SplitSeq(line, ",") {
			name, _, _ := strings.Cut(wish, ";")
			if strings.EqualFold(strings.TrimSpace(name), preferCounter) {
				return true
			}
		}
	}
	return false
}

// isUnacceptable says whether a refusal is of an offer that another offer could mend.
func isUnacceptable(err error) bool {
	why, ok := errors.AsType[*refusal](err)
	return ok && why.status == http.StatusUnprocessableEntity
}

// counter answers a play with an offer of what the stream has, by 406.
func (s *Server) counter(
	w http.ResponseWriter, r *http.Request, stream adapters.StreamID, transport media.Transport, source *publication,
) error {
	session, err := s.registry.reserve(stream, false)
	if err != nil {
		return err
	}
	session.countered, session.token = true, sha256.Sum256([]byte(tokenOf(r)))
	session.conn = media.NewConn(transport, nil)
	session.viewer = &viewer{session: session, source: source, wakeup: make(chan struct{}, 1)}
	offer, err := session.propose(r.Context(), s)
	if err != nil {
		s.registry.remove(session)
		return err
	}
	until := time.Now().Add(counterTime).UTC().Format(http.TimeFormat)
	s.refused.WithLabelValues("countered").Inc()
	return s.answer(w, r, session, http.StatusNotAcceptable, fmt.Sprintf("%s; valid-until=%q", contentSDP, until), offer)
}

// propose makes an offer of what the viewer's source has. After an error nothing is left of the connection.
func (s *session) propose(ctx context.Context, server *Server) (_ string, err error) {
	pc, err := s.conn.NewPeerConnection(webrtc.Configuration{Certificates: server.certificates})
	if err != nil {
		return "", err
	}
	s.pc = pc
	pc.OnConnectionStateChange(s.stateChanged)
	defer func() {
		if err != nil {
			err = errors.Join(err, pc.GracefulClose())
		}
	}()
	if err := s.viewer.propose(pc); err != nil {
		return "", err
	}
	offer, err := pc.CreateOffer(nil)
	if err != nil {
		return "", fmt.Errorf("make offer: %w", err)
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(offer); err != nil {
		return "", fmt.Errorf("set offer: %w", err)
	}
	text, err := s.described(ctx, gathered)
	if err != nil {
		return "", err
	}
	return finishAnswer(text, false, server.advertised, server.config.ICELite)
}

// takeAnswer takes a player's answer to the server's offer.
func (s *Server) takeAnswer(w http.ResponseWriter, r *http.Request, session *session) error {
	body, err := s.readBody(w, r, contentSDP)
	if err != nil {
		return err
	}
	answer, err := checkOffer(body, false) // what is asked of an offer is asked of an answer, too
	if err != nil {
		return err
	}
	text, err := answer.marshal()
	if err != nil {
		return malformed("It cannot be written back as SDP: %s", err)
	}
	session.patching.Lock()
	defer session.patching.Unlock()
	if _, now := session.ice(); now != (iceSession{}) {
		return errAnswered
	}
	if len(answer.mids) != len(session.viewer.lanes) {
		return unacceptable("It answers %d of %d media sections.", len(answer.mids), len(session.viewer.lanes))
	}
	if err := session.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: text}); err != nil {
		return malformed("It cannot be used: %s", err)
	}
	session.mu.Lock()
	session.remote = answer.ice()
	session.mu.Unlock()
	session.answered.fire()
	w.WriteHeader(http.StatusNoContent)
	return nil
}
