package janus

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	pathPublish = "/whip/"
	pathPlay    = "/whep/"
	pathSession = "/session/"

	// secretHeader proves that a request is the sidecar's: everything in the pod's network namespace reaches loopback.
	secretHeader = "Sidestream-Facade"

	maxBody       = 256 << 10
	maxCandidates = 100
	bodyTime      = 10 * time.Second
)

// refusal is why a request is turned down, in words for the one who sent it.
type refusal struct {
	status int
	title  string
	detail string
}

func (r *refusal) Error() string { return r.title + ": " + r.detail }

var (
	errPublished = &refusal{
		http.StatusConflict, "Already published", "Somebody publishes this stream; it can be taken over when nothing has come from " +
			"them for two seconds.",
	}
	errTooMany = &refusal{http.StatusServiceUnavailable, "Too many sessions", "This node has as many as it may; try again later."}

	errTooManyOpening = &refusal{
		http.StatusTooManyRequests, "Too many sessions at once", "Too many sessions are not connected yet; try again in a moment.",
	}
	errAnswered = &refusal{http.StatusConflict, "Answered already", "The counter-offer was answered before, or has ended."}
	errBusy     = &refusal{http.StatusConflict, "ICE is being restarted", "Wait for the answer to the restart before."}
	errNoStream = &refusal{http.StatusConflict, "Nobody publishes", "Nobody publishes this stream now; try again later."}
)

// refusedMedia is an answer of Janus' that leaves out what was offered.
type refusedMedia struct{ kinds []string }

func (e *refusedMedia) Error() string {
	return "the room takes no such " + strings.Join(e.kinds, " and ")
}

// noRoom says that a room is not there and must not be made.
type noRoom struct{ cause error }

func (e *noRoom) Error() string { return e.cause.Error() }
func (e *noRoom) Unwrap() error { return e.cause }

// refusalOf says in HTTP what went wrong.
func refusalOf(err error) *refusal {
	if why, ok := errors.AsType[*refusal](err); ok {
		return why
	}
	if media, ok := errors.AsType[*refusedMedia](err); ok {
		return &refusal{http.StatusUnprocessableEntity, "Offer cannot be accepted", "Janus takes no such " +
			strings.Join(media.kinds, " and ") + " in this room: offer a codec that the room is set to."}
	}
	if _, ok := errors.AsType[*noRoom](err); ok {
		return &refusal{http.StatusForbidden, "No such room", "Janus lets the sidecar make no room: make the room in Janus' configuration, " +
			"or give the sidecar the VideoRoom plugin's admin_key."}
	}
	if _, ok := errors.AsType[*garbageError](err); ok {
		return &refusal{http.StatusBadGateway, "", "What Janus answers is not understood; the sidecar's log says more."}
	}
	switch code := codeOf(err); code {
	case 0:
	case codeNoFeed, codeNoRoom:
		return errNoStream
	case codePublishersFull, codeIDExists:
		return errPublished
	case codeInvalidSDP, codePluginBadSDP, codeBadSDPType, codeInvalidSDPType:
		return &refusal{http.StatusUnprocessableEntity, "Janus refuses the description", reasonOf(err)}
	case codeRoomForbidden, codeMissingElement:
		return &refusal{http.StatusForbidden, "Janus does not allow it", reasonOf(err) + "; the room may want a PIN, or a token of its own."}
	case codeNoMoreSessions:
		return &refusal{http.StatusServiceUnavailable, "Janus takes no more sessions", "It is about to end; try another node."}
	case codeUnauthorized, codeTokenNotAllowed:
		return &refusal{http.StatusForbidden, "Janus refuses the sidecar", "Its secret or token is wrong; an operator has to set it."}
	case codeNoSession, codeNoHandle:
		return &refusal{http.StatusServiceUnavailable, "Janus was restarted", "Try again in a moment."}
	default:
		return &refusal{http.StatusBadGateway, "Janus refuses", reasonOf(err)}
	}
	var netErr net.Error
	switch {
	case errors.Is(err, adapters.ErrNoStream):
		return errNoStream
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return &refusal{http.StatusGatewayTimeout, "", "Janus did not answer in time; try again in a moment."}
	default:
		return &refusal{http.StatusServiceUnavailable, "Janus cannot be reached", "Try again in a moment."}
	}
}

func reasonOf(err error) string {
	if refused, ok := errors.AsType[*apiError](err); ok {
		return "Janus says: " + refused.reason
	}
	return ""
}

func (a *Adapter) refuse(w http.ResponseWriter, err error) {
	why := refusalOf(err)
	if error(why) != err && why != errNoStream && why != errPublished {
		a.logger.Warn("request failed", "status", why.status, "error", a.advise(err))
	}
	switch why.status {
	case http.StatusConflict, http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusGatewayTimeout:
		w.Header().Set("Retry-After", "1")
	}
	adapters.WriteProblem(w, why.status, why.title, why.detail)
}

// ServeHTTP is the façade. Paths are matched here and not by an http.ServeMux, which redirects paths that are not clean by
// 301: WHIP clients may follow 307 only (RFC 9725, section 4.5).
func (a *Adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	given := []byte(r.Header.Get(secretHeader))
	inside := subtle.ConstantTimeCompare(given, []byte(a.inside)) == 1
	if !inside && subtle.ConstantTimeCompare(given, []byte(a.outside)) != 1 {
		adapters.WriteProblem(w, http.StatusForbidden, "Not for you", "Publish and play at the pod's gateway; this port is the sidecar's own.")
		return
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "Location, Link, ETag, Retry-After, Accept-Patch, WWW-Authenticate")
	if name, ok := strings.CutPrefix(r.URL.Path, pathPublish); ok {
		a.serveEndpoint(w, r, adapters.StreamID(name), true, inside)
	} else if name, ok := strings.CutPrefix(r.URL.Path, pathPlay); ok {
		a.serveEndpoint(w, r, adapters.StreamID(name), false, inside)
	} else if id, ok := strings.CutPrefix(r.URL.Path, pathSession); ok {
		a.serveSession(w, r, id, inside)
	} else {
		adapters.WriteProblem(w, http.StatusNotFound, "No such page", "Publish by a POST to /whip/{stream}, play by one to /whep/{stream}.")
	}
}

// admit says whether somebody may publish or play; else they are told.
func (a *Adapter) admit(w http.ResponseWriter, r *http.Request, publish, inside bool) bool {
	want, detail := a.config.PlayToken, "Send Authorization: Bearer with the token for viewers."
	if publish {
		want, detail = a.config.PublishToken, "Send Authorization: Bearer with the token for publishers."
	}
	closed := a.config.APISecret != "" || a.config.Token != ""
	if inside || want == "" && !closed {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if want != "" && strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare([]byte(strings.TrimSpace(token)), []byte(want)) == 1 {
		return true
	}
	if want == "" {
		detail = "Janus is closed to strangers, and so is this address: an operator can set a token for it."
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="sidestream"`)
	adapters.WriteProblem(w, http.StatusUnauthorized, "", detail)
	return false
}

func serveOptions(w http.ResponseWriter, r *http.Request, methods string) {
	h := w.Header()
	h.Set("Allow", methods)
	if r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" {
		h.Set("Access-Control-Allow-Methods", methods)
		h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, If-Match")
		h.Set("Access-Control-Max-Age", "3600")
	}
	w.WriteHeader(http.StatusOK)
}

func notAllowed(w http.ResponseWriter, methods string) {
	w.Header().Set("Allow", methods)
	adapters.WriteProblem(w, http.StatusMethodNotAllowed, "", "This address takes "+methods+".")
}

// serveEndpoint is a stream's WHIP or WHEP endpoint.
func (a *Adapter) serveEndpoint(w http.ResponseWriter, r *http.Request, stream adapters.StreamID, publish, inside bool) {
	const methods = "OPTIONS, GET, HEAD, POST"
	switch r.Method {
	case http.MethodOptions:
		w.Header().Set("Accept-Post", whip.ContentTypeSDP)
		serveOptions(w, r, methods)
		return
	case http.MethodGet, http.MethodHead, http.MethodPost:
	default:
		notAllowed(w, methods)
		return
	}
	if !a.admit(w, r, publish, inside) {
		return
	}
	if err := stream.Validate(); err != nil {
		a.refuse(w, &refusal{http.StatusBadRequest, "Bad stream name", "In the address: " + err.Error() + "."})
		return
	}
	switch {
	case r.Method == http.MethodPost:
		if err := a.open(w, r, stream, publish, inside); err != nil && r.Context().Err() == nil {
			a.refuse(w, err)
		}
	case r.Method == http.MethodHead && !publish:
		w.Header().Set("Content-Type", whip.ContentTypeSDP)
		w.WriteHeader(http.StatusOK)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// readBody reads a bounded body of one of the content types, and does not wait for ever.
func readBody(w http.ResponseWriter, r *http.Request, types ...string) (body []byte, contentType string, err error) {
	contentType, _, _ = strings.Cut(r.Header.Get("Content-Type"), ";")
	contentType = strings.ToLower(strings.TrimSpace(contentType))
	if !slices.Contains(types, contentType) {
		return nil, "", &refusal{
			http.StatusUnsupportedMediaType, "", "The body must be " + strings.Join(types, " or ") + ", and Content-Type say so.",
		}
	}
	controller := http.NewResponseController(w)
	if controller.SetReadDeadline(time.Now().Add(bodyTime)) == nil {
		defer controller.SetReadDeadline(time.Time{}) //nolint:errcheck // it could be set a moment ago
	}
	body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, "", &refusal{http.StatusRequestEntityTooLarge, "", "The body may have " + strconv.Itoa(maxBody) + " bytes."}
	}
	if err != nil {
		return nil, "", &refusal{http.StatusBadRequest, "Body incomplete", "It ended early or came too slowly; send it again."}
	}
	return body, contentType, nil
}

func readDescription(body []byte) (description, error) {
	d, err := describe(string(body))
	if err != nil {
		return d, &refusal{http.StatusBadRequest, "Malformed description", "The body is no SDP of WebRTC: " + legible(err.Error()) + "."}
	}
	if len(d.candidates) > maxCandidates {
		return d, &refusal{http.StatusBadRequest, "Too many candidates", "Send at most " + strconv.Itoa(maxCandidates) + "."}
	}
	return d, nil
}

// open makes a session of an offer: 201 with an answer for a publisher, 406 with a counter-offer for a viewer.
func (a *Adapter) open(w http.ResponseWriter, r *http.Request, stream adapters.StreamID, publish, inside bool) error {
	body, _, err := readBody(w, r, whip.ContentTypeSDP)
	if err != nil {
		return err
	}
	offer, err := readDescription(body)
	if err != nil {
		return err
	}
	ctx := r.Context()
	if known, _ := a.inventory.snapshot(); refused(known.err) {
		return known.err
	}
	if err := a.facade.await(ctx); err != nil {
		if known, _ := a.inventory.snapshot(); known.err != nil {
			err = known.err
		}
		return err
	}
	s, replaced, err := a.facade.reserve(stream, publish, inside)
	if replaced != nil {
		a.logger.Info("publisher is replaced", "stream", stream, "session", replaced.id)
		a.facade.free(ctx, replaced)
	}
	if err != nil {
		return err
	}
	description, err := a.negotiate(ctx, s, offer)
	if err != nil {
		if a.facade.remove(s) {
			a.facade.free(ctx, s)
		}
		return err
	}
	h := w.Header()
	h.Set("Content-Type", whip.ContentTypeSDP)
	h.Set("Location", pathSession+s.id)
	h.Set("ETag", etag(s.id, 0))
	h.Set("Cache-Control", "no-store")
	status := http.StatusCreated
	if publish {
		h.Set("Accept-Patch", whip.ContentTypeFragment)
	} else {
		status = http.StatusNotAcceptable
		h.Set("Accept-Patch", whip.ContentTypeSDP+", "+whip.ContentTypeFragment)
		h.Set("Content-Type", fmt.Sprintf("%s; valid-until=%q", whip.ContentTypeSDP, s.began.Add(openTime).UTC().Format(http.TimeFormat)))
	}
	w.WriteHeader(status)
	if _, err := io.WriteString(w, description.text); err != nil {
		a.facade.end(s, "nobody took the answer")
	}
	return nil
}

func etag(id string, tag int) string { return fmt.Sprintf(`"%s-%d"`, id[:min(len(id), 8)], tag) }

func (a *Adapter) negotiate(ctx context.Context, s *session, offer description) (description, error) {
	if s.publish {
		return a.facade.publish(ctx, s, offer)
	}
	a.facade.awaitPublisher(ctx, s.stream)
	feed, ok := a.inventory.publisher(s.room)
	if !ok {
		var err error
		if feed, err = a.facade.anyPublisher(ctx, s.room); err != nil {
			return description{}, err
		}
	}
	a.facade.mu.Lock()
	s.feed = feed
	a.facade.mu.Unlock()
	return a.facade.play(ctx, s)
}

// serveSession is the address of one session.
func (a *Adapter) serveSession(w http.ResponseWriter, r *http.Request, id string, inside bool) {
	const methods = "OPTIONS, GET, HEAD, PATCH, DELETE"
	switch r.Method {
	case http.MethodOptions:
		w.Header().Set("Accept-Patch", whip.ContentTypeSDP+", "+whip.ContentTypeFragment)
		serveOptions(w, r, methods)
		return
	case http.MethodGet, http.MethodHead, http.MethodPatch, http.MethodDelete:
	default:
		notAllowed(w, methods)
		return
	}
	s := a.facade.session(id)
	if !a.admit(w, r, s != nil && s.publish, inside) {
		return
	}
	if s == nil {
		adapters.WriteProblem(w, http.StatusNotFound, "No such session", "It has ended, or never was; open a new one.")
		return
	}
	switch r.Method {
	case http.MethodPatch:
		if err := a.patch(w, r, s); err != nil {
			a.refuse(w, err)
		}
	case http.MethodDelete:
		if !a.facade.remove(s) {
			adapters.WriteProblem(w, http.StatusNotFound, "No such session", "It has just ended.")
			return
		}
		a.facade.free(r.Context(), s)
		w.WriteHeader(http.StatusOK)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// patch takes the answer to a counter-offer, candidates (RFC 9725, section 4.3.2) or an ICE restart (section 4.3.3).
func (a *Adapter) patch(w http.ResponseWriter, r *http.Request, s *session) error {
	body, contentType, err := readBody(w, r, whip.ContentTypeSDP, whip.ContentTypeFragment)
	if err != nil {
		return err
	}
	a.facade.mu.Lock()
	tag, offer, answered, handle := etag(s.id, s.tag), s.offer, s.answered, s.handle
	a.facade.mu.Unlock()
	match := strings.TrimSpace(r.Header.Get("If-Match"))
	anyTag := match == "*" || match == `"*"` // the drafts print the asterisk in quotes, and clients send it so
	if contentType == whip.ContentTypeSDP {
		switch {
		case s.publish:
			return &refusal{http.StatusUnprocessableEntity, "Not a counter-offer", "Only a play's counter-offer is answered by PATCH."}
		case match != "" && !anyTag && match != tag:
			return errStaleTag
		}
		answer, err := readDescription(body)
		if err != nil {
			return err
		}
		if err := a.facade.answer(r.Context(), s, answer.text); err != nil {
			if !errors.Is(err, errAnswered) {
				a.facade.end(s, "its answer was not taken: "+err.Error())
			}
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	switch {
	case match == "":
		return &refusal{http.StatusPreconditionRequired, "", "Send If-Match with the ETag of the answer; RFC 9725, section 4.3.1."}
	case !anyTag && match != tag:
		return errStaleTag
	case !answered:
		return &refusal{http.StatusUnprocessableEntity, "Not answered", "Answer the counter-offer first."}
	}
	fragment, err := whip.ParseFragment(body)
	if err != nil {
		return &refusal{http.StatusBadRequest, "Malformed fragment", "Send an SDP fragment of RFC 8840: " + err.Error() + "."}
	}
	if len(fragment.AllCandidates()) > maxCandidates {
		return &refusal{http.StatusBadRequest, "Too many candidates", "Send at most " + strconv.Itoa(maxCandidates) + "."}
	}
	ufrag, pwd := fragment.Credentials()
	switch {
	case s.publish && anyTag && ufrag != "" && ufrag != offer.ufrag:
		return a.restart(w, r, s, fragment)
	case anyTag, s.publish && (ufrag != "" && ufrag != offer.ufrag || pwd != "" && pwd != offer.pwd):
		return errNoRestart
	}
	complete := fragment.EndOfCandidates
	for _, m := range fragment.Media {
		complete = complete || m.EndOfCandidates
	}
	if err := handle.trickle(r.Context(), offer.trickled(fragment), complete); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

var (
	errStaleTag  = &refusal{http.StatusPreconditionFailed, "", "If-Match is of another ICE session; use the latest ETag."}
	errNoRestart = &refusal{
		http.StatusUnprocessableEntity, "ICE cannot be restarted",
		"The session goes on as before; if its network is gone, DELETE it and POST anew.",
	}
)

func (a *Adapter) restart(w http.ResponseWriter, r *http.Request, s *session, fragment whip.Fragment) error {
	answer, tag, err := a.facade.restart(r.Context(), s, fragment)
	if err != nil {
		if errors.Is(err, errBusy) {
			return err
		}
		a.logger.Warn("ICE restart failed", "stream", s.stream, "error", err)
		return errNoRestart // RFC 9725, section 4.3.3: the session stays as it is
	}
	w.Header().Set("Content-Type", whip.ContentTypeFragment)
	w.Header().Set("ETag", etag(s.id, tag))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(answer.fragment().Marshal())
	return nil
}

// Transport leads requests for the façade's paths to the façade and all others on: so the pod's gateway, which has one
// media server behind it, serves WHIP and WHEP beside Janus' own pages and APIs. Strangers' requests are marked as theirs.
func (a *Adapter) Transport(next http.RoundTripper) http.RoundTripper { return &transport{a, next} }

type transport struct {
	adapter *Adapter
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == t.adapter.address {
		return t.next.RoundTrip(r) // the sidecar's own, with its secret
	}
	r = r.Clone(r.Context())
	r.Header.Del(secretHeader)
	for _, path := range []string{pathPublish, pathPlay, pathSession} {
		if strings.HasPrefix(r.URL.Path, path) {
			r.URL.Scheme, r.URL.Host = "http", t.adapter.address
			r.Header.Set(secretHeader, t.adapter.outside)
			break
		}
	}
	return t.next.RoundTrip(r)
}

// CloseIdleConnections closes those of the transport below.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func jitter(most time.Duration) time.Duration { return rand.N(most + 1) }
