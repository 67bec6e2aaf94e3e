package whip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"
)

var (
	// ErrFailed says that ICE or DTLS gave the connection up.
	ErrFailed = errors.New("connection failed")
	// ErrClosed says that one of the two sides closed the connection.
	ErrClosed = errors.New("connection closed")
)

// Session is an open WHIP or WHEP session. It is there until Close, also when the connection has ended. Its methods may
// be called concurrently.
type Session struct {
	op       string
	conn     *connection
	remote   remote
	location *url.URL
	etag     string
	trickles bool               // the server takes PATCHes
	named    []webrtc.ICEServer // came with the answer and are not in the connection
	bounds   bounds
	logger   *slog.Logger

	closing atomic.Bool
	done    chan struct{}
	err     error // of Close, once done
}

// PeerConnection is the connection. It is closed through the session only.
func (s *Session) PeerConnection() *webrtc.PeerConnection { return s.conn.pc }

// Location is the session's own URL, at which it is trickled to and deleted.
func (s *Session) Location() *url.URL {
	u := *s.location
	return &u
}

// ETag names the session's ICE generation as the server does, "" where it does not.
func (s *Session) ETag() string { return s.etag }

// Connected waits until ICE and DTLS are up. It fails with ErrFailed, ErrClosed or the context's error.
func (s *Session) Connected(ctx context.Context) error {
	select {
	case <-s.conn.connected:
	case <-s.conn.failed:
	case <-s.conn.closed:
	case <-ctx.Done():
		return s.fail(ctx.Err())
	}
	return s.ended()
}

// Wait blocks until the connection has failed or was closed, by whichever side, and says which; or returns the
// context's error.
func (s *Session) Wait(ctx context.Context) error {
	select {
	case <-s.conn.failed:
	case <-s.conn.closed:
	case <-ctx.Done():
		return s.fail(ctx.Err())
	}
	return s.ended()
}

func (s *Session) ended() error {
	if isClosed(s.conn.failed) {
		return s.fail(ErrFailed)
	}
	if isClosed(s.conn.closed) {
		return s.fail(ErrClosed)
	}
	return nil
}

func (s *Session) fail(err error) error { return fmt.Errorf("%s %s: %w", s.op, plain(s.location), err) }

// Close deletes the session at the server, for as long as ctx lasts and at most five seconds, and frees the connection
// whatever became of that: when it returns, nothing of the session runs any more. Give it a context that outlives the
// session's own. A session that the server no longer knows is closed without error. Further calls wait for the first.
func (s *Session) Close(ctx context.Context) error {
	if s.closing.Swap(true) {
		select {
		case <-s.done:
			return s.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer close(s.done)
	if s.location != nil {
		s.err = s.delete(ctx)
	}
	if s.conn != nil {
		s.conn.free()
	}
	return s.err
}

func (s *Session) delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.bounds.request)
	defer cancel()
	res, err := s.remote.do(ctx, request{op: "delete", method: http.MethodDelete, url: s.location})
	switch {
	case res == nil:
		return err
	case res.ok(), res.code == http.StatusNotFound, res.code == http.StatusGone:
		return nil
	}
	return res.refusal("delete")
}

// abandon closes a session that nobody will see.
func (s *Session) abandon(ctx context.Context) {
	if err := s.Close(context.WithoutCancel(ctx)); err != nil {
		s.logger.WarnContext(ctx, "session is left at the server until it times out", "error", err)
	}
}

// begin takes up the session that an answer opens. The location comes first: whatever else is wrong with the answer,
// the session can then be deleted.
func (s *Session) begin(res *response, bodyErr error) error {
	location, err := resolve(res)
	if err != nil {
		return fmt.Errorf("%s %s: %w", s.op, plain(res.url), err)
	}
	s.location = location
	s.remote.bare = s.remote.bare || downgrades(res.url, location)
	s.etag = res.header.Get("ETag")
	s.trickles, _ = allowsTrickle(res.header)
	known := s.conn.pc.GetConfiguration().ICEServers
	for _, server := range ICEServers(res.header) {
		if !slices.ContainsFunc(known, func(k webrtc.ICEServer) bool { return slices.Equal(k.URLs, server.URLs) }) {
			s.named = append(s.named, server)
		}
	}
	return bodyErr
}

// direct says whether the session does without the ICE servers that came with its answer, which it does when there are
// none.
func (s *Session) direct(ctx context.Context, bound time.Duration) bool {
	if len(s.named) == 0 {
		return true
	}
	if s.conn.pc.GetConfiguration().ICETransportPolicy == webrtc.ICETransportPolicyRelay {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	return s.Connected(ctx) == nil
}

// patch sends a body to the session, under the ETag that it was given.
func (s *Session) patch(ctx context.Context, op, contentType string, body []byte) (*response, error) {
	ctx, cancel := context.WithTimeout(ctx, s.bounds.request)
	defer cancel()
	header := http.Header{"Content-Type": {contentType}}
	if s.etag != "" {
		header.Set("If-Match", s.etag)
	}
	res, err := s.remote.do(ctx, request{op: op, method: http.MethodPatch, url: s.location, header: header, body: body})
	switch {
	case err != nil:
		return nil, err
	case !res.ok():
		return res, res.refusal(op)
	}
	return res, nil
}

// trickle tells the server of candidates that came too late for the description. They are sent in one PATCH; only when
// gathering drags on, and nothing has connected yet, does a second one follow with the rest.
func (s *Session) trickle(ctx context.Context, described string) error {
	sent, err := candidates(described)
	if err != nil {
		return s.fail(err)
	}
	if sent.EndOfCandidates {
		return nil
	}
	if allowed, err := s.mayTrickle(ctx); !allowed {
		return err
	}
	for _, bound := range []time.Duration{s.bounds.aggregate, s.bounds.gatherAll} {
		complete, err := s.conn.gathered(ctx, bound)
		if err != nil {
			return s.fail(err)
		}
		now, err := candidates(s.conn.pc.LocalDescription().SDP)
		if err != nil {
			return s.fail(err)
		}
		news := now
		news.Candidates = slices.DeleteFunc(slices.Clone(now.Candidates), func(c string) bool {
			return slices.Contains(sent.Candidates, c)
		})
		if len(news.Candidates) > 0 {
			if err := s.send(ctx, news); err != nil {
				return err
			}
			sent = now
		}
		if complete || isClosed(s.conn.connected) || isClosed(s.conn.failed) || isClosed(s.conn.closed) {
			return nil
		}
	}
	return nil
}

// mayTrickle asks the session where the answer did not say whether it takes PATCHes.
func (s *Session) mayTrickle(ctx context.Context) (bool, error) {
	if s.trickles {
		return true, nil
	}
	bounded, cancel := context.WithTimeout(ctx, s.bounds.request)
	defer cancel()
	res, err := s.remote.do(bounded, request{op: "trickle", method: http.MethodOptions, url: s.location})
	if ctx.Err() != nil {
		return false, s.fail(ctx.Err())
	}
	if err == nil && res.ok() {
		s.trickles, _ = allowsTrickle(res.header)
	}
	if !s.trickles {
		s.logger.DebugContext(ctx, "server takes no later candidates; those that are not in the offer are lost")
	}
	return s.trickles, nil
}

// send PATCHes one fragment. A server that does not trickle after all is taken at its word, and a connection that stands
// needs no further candidates: both go on.
func (s *Session) send(ctx context.Context, news described) error {
	_, err := s.patch(ctx, "trickle", ContentTypeFragment, news.fragment().Marshal())
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	if isClosed(s.conn.connected) {
		s.logger.DebugContext(ctx, "late candidates were refused", "error", err)
		return nil
	}
	if refusal := (*StatusError)(nil); errors.As(err, &refusal) {
		switch refusal.Code {
		case http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity,
			http.StatusNotImplemented:
			s.trickles = false
			s.logger.DebugContext(ctx, "server does not trickle", "error", err)
			return nil
		}
	}
	return err
}

// described is what a local description says of ICE.
type described struct {
	ufrag, pwd, line, mid string
	Candidates            []string
	EndOfCandidates       bool
}

// fragment is of the first media section, which stands for the whole bundle (RFC 9725, section 4.3.1).
func (d described) fragment() Fragment {
	return Fragment{
		FragmentICE: FragmentICE{Ufrag: d.ufrag, Pwd: d.pwd},
		Media: []FragmentMedia{{
			Line: d.line, MID: d.mid,
			FragmentICE: FragmentICE{Candidates: d.Candidates, EndOfCandidates: d.EndOfCandidates},
		}},
	}
}

// candidates reads a local description. Candidates for RTCP are left out, as it shares the port (rtcp-mux).
func candidates(description string) (described, error) {
	var parsed sdp.SessionDescription
	if err := parsed.UnmarshalString(description); err != nil {
		return described{}, err
	}
	if len(parsed.MediaDescriptions) == 0 {
		return described{}, errors.New("description without media")
	}
	first := parsed.MediaDescriptions[0]
	d := described{line: first.MediaName.String()}
	for _, attributes := range [][]sdp.Attribute{parsed.Attributes, first.Attributes} {
		for _, a := range attributes {
			switch a.Key {
			case "ice-ufrag":
				d.ufrag = a.Value
			case "ice-pwd":
				d.pwd = a.Value
			case "mid":
				d.mid = a.Value
			case "candidate":
				if fields := strings.Fields(a.Value); len(fields) > 1 && fields[1] == "1" {
					d.Candidates = append(d.Candidates, a.Value)
				}
			case "end-of-candidates":
				d.EndOfCandidates = true
			}
		}
	}
	return d, nil
}

// connection is a PeerConnection with its states as channels.
type connection struct {
	pc       *webrtc.PeerConnection
	complete <-chan struct{} // gathering has ended

	connected, failed, closed chan struct{}
	markConnected             func()
	markFailed, markClosed    func()
}

// newConnection watches a connection on which nothing has begun yet.
func newConnection(pc *webrtc.PeerConnection) *connection {
	c := &connection{
		pc: pc, connected: make(chan struct{}), failed: make(chan struct{}), closed: make(chan struct{}),
	}
	c.markConnected = sync.OnceFunc(func() { close(c.connected) })
	c.markFailed = sync.OnceFunc(func() { close(c.failed) })
	c.markClosed = sync.OnceFunc(func() { close(c.closed) })
	c.complete = webrtc.GatheringCompletePromise(pc)
	// Pion calls this in a goroutine of its own for each state, so the order in which they arrive says nothing.
	pc.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		switch state {
		case webrtc.PeerConnectionStateConnected:
			c.markConnected()
		case webrtc.PeerConnectionStateFailed:
			c.markFailed()
		case webrtc.PeerConnectionStateClosed:
			c.markClosed()
		}
	})
	return c
}

// describe sets the local description and returns it with the candidates that were found within the bound.
func (c *connection) describe(ctx context.Context, d webrtc.SessionDescription, bound time.Duration) (string, error) {
	if err := c.pc.SetLocalDescription(d); err != nil {
		return "", err
	}
	if _, err := c.gathered(ctx, bound); err != nil {
		return "", err
	}
	return c.pc.LocalDescription().SDP, nil
}

// gathered waits until all candidates are there, and says so. It waits no longer than the bound, nor once the fate of
// the connection is known.
func (c *connection) gathered(ctx context.Context, bound time.Duration) (bool, error) {
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case <-c.complete:
	case <-c.connected:
	case <-c.failed:
	case <-c.closed:
	case <-timer.C:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	return isClosed(c.complete), nil
}

// free closes the connection and waits until nothing of it runs.
func (c *connection) free() {
	_ = c.pc.GracefulClose() // what it reports, nobody can act on
	// GracefulClose does not wait for the callback, which pion starts by "go" (PeerConnection.onConnectionStateChange).
	// It comes at once, unless the caller has put another callback in its place.
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-c.closed:
	case <-timer.C:
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
