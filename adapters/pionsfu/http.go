package pionsfu

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	pathPublish = "/whip/"
	pathPlay    = "/whep/"
	pathSession = "/session/"
	pathStreams = "/api/streams"
	pathReady   = "/readyz"

	contentSDP      = "application/sdp"
	contentFragment = "application/trickle-ice-sdpfrag"

	bodyTimeout   = 10 * time.Second
	deleteTimeout = 5 * time.Second
	retrySeconds  = "1"
)

// ServeHTTP implements http.Handler. Paths are matched here and not by an http.ServeMux, which redirects paths that are
// not clean by 301: WHIP clients may follow 307 only (RFC 9725, section 4.5).
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.allowOrigin(w.Header())
	path := r.URL.Path
	if name, ok := strings.CutPrefix(path, pathPublish); ok {
		s.serveEndpoint(w, r, adapters.StreamID(name), true)
	} else if name, ok := strings.CutPrefix(path, pathPlay); ok {
		s.serveEndpoint(w, r, adapters.StreamID(name), false)
	} else if id, ok := strings.CutPrefix(path, pathSession); ok {
		s.serveSession(w, r, id)
	} else if path == pathStreams {
		s.serveStreams(w, r)
	} else if path == pathReady {
		s.serveReady(w, r)
	} else {
		adapters.WriteProblem(w, http.StatusNotFound, "No such page",
			"Publish by a POST to /whip/{stream}, play by one to /whep/{stream}.")
	}
}

// allowOrigin lets browsers of other origins call, and read what they need of the answer (Fetch standard, section 3.2).
func (s *Server) allowOrigin(h http.Header) {
	h.Set("Access-Control-Allow-Origin", s.config.AllowOrigin)
	if s.config.AllowOrigin != "*" {
		h.Add("Vary", "Origin")
	}
	h.Set("Access-Control-Expose-Headers", "Location, Link, ETag, Retry-After, Accept-Patch, WWW-Authenticate")
}

// serveOptions answers OPTIONS: a preflight needs no authorisation and tells nothing else; otherwise it also says what
// may be posted or patched, and who may use the endpoint learns the ICE servers (RFC 9725, section 4.6).
func (s *Server) serveOptions(w http.ResponseWriter, r *http.Request, methods string, servers bool, want scope) {
	h := w.Header()
	h.Set("Allow", methods)
	if r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" {
		h.Set("Access-Control-Allow-Methods", methods)
		h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, If-Match")
		h.Set("Access-Control-Max-Age", "3600")
	} else if servers && s.access.judge(r.Header.Get("Authorization"), want) == allowed {
		s.addLinks(h)
	}
	w.WriteHeader(http.StatusOK)
}

func (s *Server) addLinks(h http.Header) {
	for _, link := range s.links {
		h.Add("Link", link) // a line for each: RFC 9725, section 4.6
	}
}

func iceServerLinks(servers []webrtc.ICEServer) (links []string) {
	for _, server := range servers {
		links = append(links, whip.FormatICEServerLink(server)...)
	}
	return links
}

func notAllowed(w http.ResponseWriter, methods string) {
	w.Header().Set("Allow", methods)
	adapters.WriteProblem(w, http.StatusMethodNotAllowed, "", "This address takes "+methods+".")
}

// refuse answers with what err says, and counts it.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	var why *refusal
	if !errors.As(err, &why) {
		s.logger.Error("request failed", "error", err)
		why = &refusal{http.StatusInternalServerError, "internal", "", "The server could not do this; its log says more."}
	}
	if why.status == http.StatusConflict || why.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retrySeconds)
	}
	s.refused.WithLabelValues(why.reason).Inc()
	adapters.WriteProblem(w, why.status, why.title, why.detail)
}

// serveEndpoint is a stream's WHIP or WHEP endpoint.
func (s *Server) serveEndpoint(w http.ResponseWriter, r *http.Request, stream adapters.StreamID, publish bool) {
	const methods = "OPTIONS, GET, HEAD, POST"
	want := scopePlay
	if publish {
		want = scopePublish
	}
	if r.Method == http.MethodOptions {
		w.Header().Set("Accept-Post", contentSDP)
		s.serveOptions(w, r, methods, true, want)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
	default:
		notAllowed(w, methods)
		return
	}
	if !s.admit(w, r, want) {
		return
	}
	if err := stream.Validate(); err != nil {
		s.refuse(w, &refusal{
			http.StatusBadRequest, "stream_name", "Bad stream name", "In the address: " + err.Error() + ".",
		})
		return
	}
	switch {
	case r.Method == http.MethodPost:
		if err := s.open(w, r, stream, publish); err != nil && r.Context().Err() == nil {
			s.refuse(w, err)
		}
	case r.Method == http.MethodHead && !publish:
		w.Header().Set("Content-Type", contentSDP) // how a player knows the endpoint (WHEP, "Discoverability")
		w.WriteHeader(http.StatusOK)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// readBody reads a bounded body of the content type, and does not wait for ever.
func readBody(w http.ResponseWriter, r *http.Request, contentType string) ([]byte, error) {
	given, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(given), contentType) {
		return nil, &refusal{
			http.StatusUnsupportedMediaType, "content_type", "", "The body must be " + contentType + ", and Content-Type say so.",
		}
	}
	// Where the connection cannot be told (a test's recorder), nobody is slow either.
	controller := http.NewResponseController(w)
	if controller.SetReadDeadline(time.Now().Add(bodyTimeout)) == nil {
		defer controller.SetReadDeadline(time.Time{}) //nolint:errcheck // it could be set a moment ago
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &refusal{
			http.StatusRequestEntityTooLarge, "too_large", "", "The body may have " + strconv.Itoa(maxBody) + " bytes.",
		}
	case err != nil:
		return nil, &refusal{
			http.StatusBadRequest, "truncated", "Body incomplete", "It ended early or came too slowly; send it again.",
		}
	}
	return body, nil
}

// open makes a session of an offer and answers 201.
func (s *Server) open(w http.ResponseWriter, r *http.Request, stream adapters.StreamID, publish bool) error {
	body, err := readBody(w, r, contentSDP)
	if err != nil {
		return err
	}
	offer, err := checkOffer(body, publish)
	if err != nil {
		return err
	}
	transport, done, err := s.begin()
	if err != nil {
		return err
	}
	defer done()

	var source *publication
	if !publish {
		publisher, err := s.registry.publisher(stream)
		if err != nil {
			return err
		}
		source = publisher.publication
		if err := source.settle(r.Context(), s.stopped); err != nil {
			return err
		}
	}
	session, err := s.registry.reserve(stream, publish)
	if err != nil {
		return err
	}
	session.offer, session.relayed = offer, publish && r.URL.RawQuery == markRelay
	answer, err := s.negotiate(r, session, transport, source)
	if err != nil {
		s.registry.remove(session)
		return err
	}
	if err := s.launch(session); err != nil {
		s.registry.remove(session)
		return errors.Join(err, session.pc.GracefulClose())
	}

	h := w.Header()
	h.Set("Content-Type", contentSDP)
	h.Set("Location", s.publicURL+pathSession+session.id)
	h.Set("ETag", session.etag)
	h.Set("Accept-Patch", contentFragment)
	h.Set("Cache-Control", "no-store")
	s.addLinks(h)
	if !publish {
		s.addExtensions(h, session)
	}
	w.WriteHeader(http.StatusCreated)
	if _, err := io.WriteString(w, answer); err != nil {
		session.deleted.fire() // nobody knows of it
	}
	return nil
}

// negotiate answers the session's offer; source is what a viewer's session plays.
func (s *Server) negotiate(
	r *http.Request, session *session, transport media.Transport, source *publication,
) (string, error) {
	if session.publish {
		session.conn = media.NewConn(transport, session.onTrack)
		return session.negotiate(r.Context(), s, session.published)
	}
	session.conn = media.NewConn(transport, nil)
	session.viewer = &viewer{session: session, source: source, wakeup: make(chan struct{}, 1)}
	return session.negotiate(r.Context(), s, session.viewer.choose)
}

// serveSession is the address of one session, and those below it.
func (s *Server) serveSession(w http.ResponseWriter, r *http.Request, id string) {
	if id, below, ok := strings.Cut(id, "/"); ok {
		s.serveExtension(w, r, id, below)
		return
	}
	const methods = "OPTIONS, GET, HEAD, PATCH, DELETE"
	switch r.Method {
	case http.MethodOptions:
		w.Header().Set("Accept-Patch", contentFragment)
		s.serveOptions(w, r, methods, false, scopePlay)
		return
	case http.MethodGet, http.MethodHead, http.MethodPatch, http.MethodDelete:
	default:
		notAllowed(w, methods)
		return
	}
	session, err := s.registry.session(id)
	if !s.admit(w, r, s.sessionScope(session, r)) {
		return
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	switch r.Method {
	case http.MethodPatch:
		err = s.patch(w, r, session)
	case http.MethodDelete:
		err = s.delete(w, r, session)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
	if err != nil {
		s.refuse(w, err)
	}
}

// sessionScope is what a session's address asks for. Of one that does not exist only those may learn that who could have
// had one.
func (s *Server) sessionScope(session *session, r *http.Request) scope {
	switch {
	case session != nil && session.publish:
		return scopePublish
	case session != nil:
		return scopePlay
	case s.access.judge(r.Header.Get("Authorization"), scopePublish) == allowed:
		return scopePublish
	default:
		return scopePlay
	}
}

// patch takes candidates (RFC 9725, section 4.3.2).
func (s *Server) patch(w http.ResponseWriter, r *http.Request, session *session) error {
	body, err := readBody(w, r, contentFragment)
	if err != nil {
		return err
	}
	match := strings.TrimSpace(r.Header.Get("If-Match"))
	if match == "" {
		return &refusal{
			http.StatusPreconditionRequired, "if_match", "", "Send If-Match with the ETag of the 201; RFC 9725, section 4.3.1.",
		}
	}
	// The drafts print the asterisk in quotes, and clients send it so.
	restart := match == "*" || match == `"*"`
	if !restart && match != session.etag {
		return &refusal{
			http.StatusPreconditionFailed, "if_match", "", "If-Match is of another ICE session; use the latest ETag.",
		}
	}
	fragment, err := whip.ParseFragment(body)
	if err != nil {
		return &refusal{
			http.StatusBadRequest, "malformed", "Malformed fragment",
			"Send an SDP fragment of RFC 8840: " + err.Error() + ".",
		}
	}
	candidates := fragment.Candidates
	for _, m := range fragment.Media {
		// Only the section that the bundle goes by counts (RFC 9725, section 4.3.2).
		if m.MID == "" || m.MID == session.offer.mids[0] {
			candidates = append(candidates, m.Candidates...)
		}
	}
	if len(candidates) > maxCandidates {
		return &refusal{
			http.StatusBadRequest, "malformed", "Too many candidates", "One PATCH may bring " + strconv.Itoa(maxCandidates) + ".",
		}
	}
	ufrag, pwd := fragment.Credentials()
	if restart || ufrag != "" && ufrag != session.offer.ufrag || pwd != "" && pwd != session.offer.pwd {
		// RFC 9725, section 4.3.3: the session stays as it is.
		return &refusal{
			http.StatusUnprocessableEntity, "restart", "ICE cannot be restarted",
			"The session goes on as before; if its network is gone, DELETE it and POST anew.",
		}
	}
	session.trickle(candidates)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// delete ends a session and answers when nothing of it is left.
func (s *Server) delete(w http.ResponseWriter, r *http.Request, session *session) error {
	if !s.registry.remove(session) {
		return errNoSession
	}
	session.deleted.fire()
	timer := time.NewTimer(deleteTimeout)
	defer timer.Stop()
	select {
	case <-session.freed:
	case <-timer.C: // the name is free and the media ended; what is left is pion's business
	case <-r.Context().Done():
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// serveReady is for probes.
func (s *Server) serveReady(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		notAllowed(w, "GET, HEAD")
	case !s.ready():
		s.refuse(w, errNotRunning)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}
