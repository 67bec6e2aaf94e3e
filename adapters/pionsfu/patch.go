package pionsfu

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// A restart costs connectivity checks and new candidates: a client whose network changes needs some, and not one a second.
const (
	restartEvery = 3 * time.Second
	restartBurst = 5
)

// iceSession is what a client has said of its ICE agent.
type iceSession struct{ ufrag, pwd, mid string }

// ice is the ICE session that an offer, or an answer, begins.
func (o *offer) ice() iceSession { return iceSession{o.ufrag, o.pwd, o.mids[0]} }

// patching is what a PATCH asks for: that candidates be tried, and before that, where there are new credentials, a restart.
type patching struct {
	candidates []string
	restart    iceSession // the zero value: none
}

// readPatch reads a PATCH of a session whose ICE session has an entity tag (RFC 9725, section 4.3). The tag need not be given
// where lax is set. It is a pure function of its arguments.
func readPatch(body []byte, match, etag string, now iceSession, lax bool) (patching, error) {
	match = strings.TrimSpace(match)
	// The drafts print the asterisk in quotes, and clients send it so.
	anyone := match == "*" || match == `"*"`
	switch {
	case match == "" && !lax:
		return patching{}, &refusal{
			http.StatusPreconditionRequired, "if_match", "", "Send If-Match with the ETag of the 201; RFC 9725, section 4.3.1.",
		}
	case !anyone && match != etag && !lax:
		return patching{}, &refusal{
			http.StatusPreconditionFailed, "if_match", "", "If-Match is of another ICE session; use the latest ETag.",
		}
	}
	fragment, err := whip.ParseFragment(body)
	if err != nil {
		return patching{}, &refusal{
			http.StatusBadRequest, "malformed", "Malformed fragment",
			"Send an SDP fragment of RFC 8840: " + err.Error() + ".",
		}
	}
	var p patching
	p.candidates = fragment.Candidates
	for _, m := range fragment.Media {
		// Only the section that the bundle goes by counts (RFC 9725, section 4.3.2).
		if m.MID == "" || m.MID == now.mid {
			p.candidates = append(p.candidates, m.Candidates...)
		}
	}
	if len(p.candidates) > maxCandidates {
		return patching{}, &refusal{
			http.StatusBadRequest, "malformed", "Too many candidates", "One PATCH may bring " + strconv.Itoa(maxCandidates) + ".",
		}
	}
	p.candidates = slices.DeleteFunc(p.candidates, func(c string) bool { return !usableCandidate(c) })
	ufrag, pwd := fragment.Credentials()
	switch {
	case (ufrag == "" || ufrag == now.ufrag) && (pwd == "" || pwd == now.pwd):
		return p, nil
	case !usableCredentials(ufrag, pwd):
		return patching{}, &refusal{
			http.StatusBadRequest, "malformed", "Malformed fragment",
			"It lacks a usable a=ice-ufrag or a=ice-pwd (RFC 8839, section 5.4).",
		}
	}
	p.restart = iceSession{ufrag, pwd, now.mid}
	return p, nil
}

// patch takes candidates, a restart of ICE, or the answer to a counter-offer.
func (s *Server) patch(w http.ResponseWriter, r *http.Request, session *session) error {
	if session.countered && isType(r, contentSDP) {
		return s.takeAnswer(w, r, session)
	}
	body, err := s.readBody(w, r, contentFragment)
	if err != nil {
		return err
	}
	session.patching.Lock()
	defer session.patching.Unlock()
	etag, now := session.ice()
	if now == (iceSession{}) {
		return errUnanswered
	}
	p, err := readPatch(body, r.Header.Get("If-Match"), etag, now, s.config.LaxETags)
	if err != nil {
		return err
	}
	if p.restart == (iceSession{}) {
		session.trickle(p.candidates)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if session.countered {
		// RFC 9725, section 4.3.3: the session stays as it is.
		return &refusal{
			http.StatusUnprocessableEntity, "restart", "ICE cannot be restarted",
			"Who has answered an offer cannot restart it here; if the network is gone, DELETE the session and POST anew.",
		}
	}
	if !session.restarts.Allow() {
		return &refusal{http.StatusTooManyRequests, "restart", "Too many restarts of ICE", "The session goes on as before; wait a little."}
	}
	fragment, err := session.restart(r.Context(), s, p)
	if err != nil {
		return err
	}
	etag, _ = session.ice()
	w.Header().Set("Content-Type", contentFragment)
	w.Header().Set("ETag", etag)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(fragment.Marshal()) // an error here is a client that will ask again
	return nil
}

// ice is what the ICE session is called, and what the client has said of it.
func (s *session) ice() (etag string, remote iceSession) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.etag, s.remote
}

// restart begins ICE anew: the same description comes from the client again, with other credentials (RFC 9725, section 4.3.3;
// RFC 8839, section 4.4.3.1.1). Of the own answer only what is new counts.
func (s *session) restart(ctx context.Context, server *Server, p patching) (whip.Fragment, error) {
	// Half a restart is none: who hangs up meanwhile does not end it.
	ctx = context.WithoutCancel(ctx)
	again, err := s.offer.restarted(p)
	if err != nil {
		return whip.Fragment{}, err
	}
	if err := s.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: again}); err != nil {
		return whip.Fragment{}, fmt.Errorf("restart ICE: %w", err)
	}
	answer, err := s.pc.CreateAnswer(nil)
	if err != nil {
		return whip.Fragment{}, fmt.Errorf("restart ICE: %w", err)
	}
	gathered := webrtc.GatheringCompletePromise(s.pc)
	if err := s.pc.SetLocalDescription(answer); err != nil {
		return whip.Fragment{}, fmt.Errorf("restart ICE: %w", err)
	}
	local, err := s.described(ctx, gathered)
	if err != nil {
		return whip.Fragment{}, fmt.Errorf("restart ICE: %w", err)
	}
	var desc sdp.SessionDescription
	if err := desc.UnmarshalString(local); err != nil {
		return whip.Fragment{}, fmt.Errorf("read own answer: %w", err)
	}
	s.mu.Lock()
	s.etag, s.remote, s.trickled = newETag(), p.restart, 0
	s.mu.Unlock()
	return fragmentOf(desc, server), nil
}

// fragmentOf is what a description says of ICE.
func fragmentOf(desc sdp.SessionDescription, server *Server) whip.Fragment {
	first := desc.MediaDescriptions[0]
	f := whip.Fragment{Lite: server.config.ICELite}
	for _, of := range [][]sdp.Attribute{desc.Attributes, first.Attributes} {
		for _, a := range of {
			if a.Key == "ice-options" {
				f.Options = strings.Fields(a.Value)
			}
		}
	}
	mid, _ := first.Attribute("mid")
	m := whip.FragmentMedia{Line: first.MediaName.String(), MID: mid}
	m.Ufrag, _ = first.Attribute("ice-ufrag")
	m.Pwd, _ = first.Attribute("ice-pwd")
	m.EndOfCandidates = true
	for _, a := range finishCandidates(first.Attributes, server.advertised) {
		if a.Key == "candidate" {
			m.Candidates = append(m.Candidates, a.Value)
		}
	}
	f.Media = []whip.FragmentMedia{m}
	return f
}

// restarted is the offer once more, with other credentials and candidates.
func (o *offer) restarted(p patching) (string, error) {
	desc := o.desc
	desc.Origin.SessionVersion++
	o.desc.Origin = desc.Origin
	desc.MediaDescriptions = nil
	for i, m := range o.desc.MediaDescriptions {
		section := *m
		section.Attributes = nil
		for _, a := range m.Attributes {
			switch a.Key {
			case "ice-ufrag":
				a.Value = p.restart.ufrag
			case "ice-pwd":
				a.Value = p.restart.pwd
			case "candidate", "end-of-candidates":
				continue
			}
			section.Attributes = append(section.Attributes, a)
		}
		if i == 0 {
			for _, c := range p.candidates {
				section.Attributes = append(section.Attributes, sdp.Attribute{Key: "candidate", Value: c})
			}
		}
		desc.MediaDescriptions = append(desc.MediaDescriptions, &section)
	}
	raw, err := desc.Marshal()
	if err != nil {
		return "", fmt.Errorf("restart ICE: %w", err)
	}
	return string(raw), nil
}
