package pionsfu

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	pathPublish = "/whip/"
	pathPlay    = "/whep/"
	pathSession = "/session/"
	pathStreams = "/api/streams"
	pathConfig  = "/api/pc-config"
	pathReady   = "/readyz"

	contentSDP      = "application/sdp"
	contentFragment = "application/trickle-ice-sdpfrag"

	bodyTimeout   = 10 * time.Second
	deleteTimeout = 5 * time.Second
	retrySeconds  = "1"

	// smallBody is what an offer hardly ever exceeds; only so many bodies at once may be larger, so that those who send some slowly
	// take no memory.
	smallBody   = 16 << 10
	largeBodies = 32

	// preferCounter is what a player sends in Prefer (RFC 7240) that takes an offer of the server's where its own will not do.
	preferCounter = "counter-offer"
)

// ServeHTTP implements http.Handler. Paths are matched here and not by an http.ServeMux, which redirects paths that are
// not clean by 301: WHIP clients may follow 307 only (RFC 9725, section 4.5).
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.allowOrigin(w.Header())
	path := r.URL.Path
	if r.ContentLength != 0 {
		// Also for those that are refused unread: net/http reads on before it answers. Where the connection cannot be told (a test's
		// recorder), nobody is slow either.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	}
	if s.tooSoon(w, r) {
		return
	}
	if name, ok := strings.CutPrefix(path, pathPublish); ok {
		s.serveEndpoint(w, r, adapters.StreamID(name), true)
	} else if name, ok := strings.CutPrefix(path, pathPlay); ok {
		s.serveEndpoint(w, r, adapters.StreamID(name), false)
	} else if id, ok := strings.CutPrefix(path, pathSession); ok {
		s.serveSession(w, r, id)
	} else if path == pathStreams {
		s.serveStreams(w, r)
	} else if path == pathConfig {
		s.serveConfig(w, r)
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
func (s *Server) serveOptions(w http.ResponseWriter, r *http.Request, methods string, servers *claim) {
	h := w.Header()
	h.Set("Allow", methods)
	if r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" {
		h.Set("Access-Control-Allow-Methods", methods)
		h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, If-Match, Prefer")
		h.Set("Access-Control-Max-Age", "3600")
	} else if servers != nil && s.config.ICEServers != nil && s.access.check(r.Context(), tokenOf(r), *servers) == nil {
		s.addLinks(r.Context(), h)
	}
	w.WriteHeader(http.StatusOK)
}

// addLinks adds the ICE servers, a line for each (RFC 9725, section 4.6).
func (s *Server) addLinks(ctx context.Context, h http.Header) {
	if s.config.ICEServers == nil {
		return
	}
	for _, server := range s.config.ICEServers(ctx) {
		for _, link := range whip.FormatICEServerLink(server) {
			h.Add("Link", link)
		}
	}
}

// serveConfig tells the ICE servers in the form of an RTCConfiguration, for clients that cannot read Link.
func (s *Server) serveConfig(w http.ResponseWriter, r *http.Request) {
	if !s.isRead(w, r) {
		return
	}
	c := claim{scope: scopePlay, stream: adapters.StreamID(r.URL.Query().Get("stream"))}
	if s.access.judge(tokenOf(r), scopePublish) == allowed || r.URL.Query().Has("publish") {
		c.scope = scopePublish
	}
	if s.access.authorize != nil && c.stream.Validate() != nil && s.access.judge(tokenOf(r), c.scope) != allowed {
		s.refuse(w, &refusal{
			http.StatusBadRequest, "stream_name", "Stream is missing",
			"Say in the query for which stream it is: ?stream=NAME, and &publish where it is to be published.",
		})
		return
	}
	if !s.admit(w, r, c) {
		return
	}
	type iceServer struct {
		URLs       []string `json:"urls"`
		Username   string   `json:"username,omitempty"`
		Credential any      `json:"credential,omitempty"`
	}
	answer := struct {
		ICEServers []iceServer `json:"iceServers"`
	}{[]iceServer{}}
	if s.config.ICEServers != nil {
		for _, server := range s.config.ICEServers(r.Context()) {
			answer.ICEServers = append(answer.ICEServers, iceServer{server.URLs, server.Username, server.Credential})
		}
	}
	w.Header().Set("Content-Type", contentJSON)
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(answer) // an error here is a caller that has gone
}

// isRead answers all but GET and HEAD, and says whether it is one of the two.
func (s *Server) isRead(w http.ResponseWriter, r *http.Request) bool {
	const methods = "OPTIONS, GET, HEAD"
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return true
	case http.MethodOptions:
		s.serveOptions(w, r, methods, nil)
	default:
		notAllowed(w, methods)
	}
	return false
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
	if retry := w.Header().Get("Retry-After") == ""; retry &&
		(why.status == http.StatusConflict || why.status == http.StatusServiceUnavailable || why.status == http.StatusTooManyRequests) {
		w.Header().Set("Retry-After", retrySeconds)
	}
	s.refused.WithLabelValues(why.reason).Inc()
	adapters.WriteProblem(w, why.status, why.title, why.detail)
}

// serveEndpoint is a stream's WHIP or WHEP endpoint.
func (s *Server) serveEndpoint(w http.ResponseWriter, r *http.Request, stream adapters.StreamID, publish bool) {
	const methods = "OPTIONS, GET, HEAD, POST"
	want := claim{scope: scopePlay, stream: stream}
	if publish {
		want.scope = scopePublish
	}
	if r.Method == http.MethodOptions {
		w.Header().Set("Accept-Post", contentSDP)
		s.serveOptions(w, r, methods, &want)
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
		err := s.open(w, r, stream, publish)
		// net/http also takes the end of a body that came too slowly for that of the client.
		if _, said := errors.AsType[*refusal](err); err != nil && (said || r.Context().Err() == nil) {
			s.refuse(w, err)
		}
	case r.Method == http.MethodHead && !publish:
		w.Header().Set("Content-Type", contentSDP) // how a player knows the endpoint (WHEP, "Discoverability")
		w.WriteHeader(http.StatusOK)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// readBody reads a bounded body of the content type, until the deadline that ServeHTTP has set.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, contentType string) (_ []byte, err error) {
	defer func() {
		until := time.Time{}
		if err != nil {
			w.Header().Set("Connection", "close") // else what is left of the body would be waited for
			until = time.Now()
		}
		_ = http.NewResponseController(w).SetReadDeadline(until)
	}()
	if !isType(r, contentType) {
		return nil, &refusal{
			http.StatusUnsupportedMediaType, "content_type", "", "The body must be " + contentType + ", and Content-Type say so.",
		}
	}
	limited := http.MaxBytesReader(w, r.Body, maxBody)
	body, err := io.ReadAll(io.LimitReader(limited, smallBody))
	if err == nil && len(body) == smallBody {
		select {
		case s.large <- struct{}{}:
			defer func() { <-s.large }()
		default:
			return nil, &refusal{http.StatusServiceUnavailable, "busy", "Too many large bodies", "Try again in a moment."}
		}
		var rest []byte
		rest, err = io.ReadAll(limited)
		body = append(body, rest...)
	}
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

func isType(r *http.Request, contentType string) bool {
	given, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(given), contentType)
}

// open makes a session of an offer and answers 201, or another way where that cannot be.
func (s *Server) open(w http.ResponseWriter, r *http.Request, stream adapters.StreamID, publish bool) error {
	body, err := s.readBody(w, r, contentSDP)
	if err != nil {
		return err
	}
	offer, err := checkOffer(body, publish)
	counter := !publish && wantsCounter(r) && isUnacceptable(err)
	if err != nil && !counter {
		return err
	}
	relayed := publish && r.URL.RawQuery == markRelay
	transport, done, err := s.begin()
	if err != nil {
		return err
	}
	defer done()
	if !relayed && s.drained() && s.redirect(w, r) {
		return nil
	}

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
	if counter {
		return s.counter(w, r, stream, transport, source)
	}
	session, err := s.registry.reserve(stream, publish)
	switch {
	case errors.Is(err, errFull) && !relayed && s.redirect(w, r):
		return nil
	case err != nil:
		return err
	}
	session.offer, session.relayed, session.token = offer, relayed, sha256.Sum256([]byte(tokenOf(r)))
	answer, err := s.negotiate(r, session, transport, source)
	if err != nil {
		s.registry.remove(session)
		if !publish && wantsCounter(r) && isUnacceptable(err) {
			return s.counter(w, r, stream, transport, source)
		}
		return err
	}
	return s.answer(w, r, session, http.StatusCreated, contentSDP, answer)
}

// answer hands a session over to Run, and its address and description to the client.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, session *session, status int, contentType, description string) error {
	if err := s.launch(session); err != nil {
		s.registry.remove(session)
		return errors.Join(err, session.pc.GracefulClose())
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Location", s.publicURL+pathSession+session.id)
	h.Set("ETag", session.etag)
	h.Set("Accept-Patch", contentFragment)
	h.Set("Cache-Control", "no-store")
	s.addLinks(r.Context(), h)
	if !session.publish {
		s.addExtensions(h, session)
	}
	w.WriteHeader(status)
	if _, err := io.WriteString(w, description); err != nil {
		session.deleted.fire() // nobody knows of it
	}
	return nil
}

// redirect sends a client to another server by 307, where there is one and the client has not been sent before (RFC 9725,
// section 4.5), and says whether it did.
func (s *Server) redirect(w http.ResponseWriter, r *http.Request) bool {
	if s.overflow == nil || r.URL.Query().Has(markRedirected) {
		return false
	}
	to := s.overflow.JoinPath(r.URL.EscapedPath())
	q := r.URL.Query()
	q.Set(markRedirected, "")
	to.RawQuery = q.Encode()
	w.Header().Set("Location", to.String())
	w.Header().Set("Cache-Control", "no-store")
	s.refused.WithLabelValues("redirected").Inc()
	w.WriteHeader(http.StatusTemporaryRedirect)
	return true
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
		s.serveOptions(w, r, methods, nil)
		return
	case http.MethodGet, http.MethodHead, http.MethodPatch, http.MethodDelete:
	default:
		notAllowed(w, methods)
		return
	}
	session, err := s.registry.session(id)
	if !s.admit(w, r, s.sessionClaim(session, r)) {
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
