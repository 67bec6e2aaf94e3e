package whip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

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
	answered *url.URL // that gave the answer
	etag     string
	trickles bool               // the server takes PATCHes
	named    []webrtc.ICEServer // came with the answer and are not in the connection
	bounds   bounds
	logger   *slog.Logger

	extensions []Link // of the answer

	closing atomic.Bool
	gone    atomic.Bool
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
// session's own. A session that the server no longer knows, or lets nobody delete, is closed without error. Further calls wait
// for the first.
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

// Gone says whether the server did not know the session any more when it was closed.
func (s *Session) Gone() bool { return s.gone.Load() }

func (s *Session) delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.bounds.request)
	defer cancel()
	res, err := s.remote.do(ctx, request{op: "delete", method: http.MethodDelete, url: s.location})
	switch {
	case res == nil:
		return err
	case res.ok():
		return nil
	case res.code == http.StatusNotFound, res.code == http.StatusGone:
		s.gone.Store(true)
		return nil
	case res.code == http.StatusMethodNotAllowed, res.code == http.StatusNotImplemented:
		return nil // the server has no DELETE: it takes the end of DTLS for the session's
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
	s.answered, s.extensions = res.url, ParseLinks(res.header)
	s.etag = res.header.Get("ETag")
	s.trickles = allowsTrickle(res.header)
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
func (s *Session) patch(ctx context.Context, op, contentType string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.bounds.request)
	defer cancel()
	header := http.Header{"Content-Type": {contentType}}
	if s.etag != "" {
		header.Set("If-Match", s.etag)
	}
	res, err := s.remote.do(ctx, request{op: op, method: http.MethodPatch, url: s.location, header: header, body: body})
	if err != nil {
		return err
	}
	if !res.ok() {
		return res.refusal(op)
	}
	return nil
}

// trickle tells the server of candidates that came too late for the description. They are sent in one PATCH; only when
// gathering drags on, and nothing has connected yet, does a second one follow with the rest.
func (s *Session) trickle(ctx context.Context, told described) error {
	if told.complete {
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
		now, err := s.conn.described()
		if err != nil {
			return s.fail(err)
		}
		news := slices.DeleteFunc(slices.Clone(now.candidates), func(candidate string) bool {
			return slices.Contains(told.candidates, candidate)
		})
		if len(news) > 0 {
			if err := s.send(ctx, now.fragment(news)); err != nil {
				return err
			}
			told = now
		}
		if complete || !s.trickles || isClosed(s.conn.connected) || s.ended() != nil {
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
		s.trickles = allowsTrickle(res.header)
	}
	if !s.trickles {
		s.logger.DebugContext(ctx, "server takes no later candidates; those that are not in the offer are lost")
	}
	return s.trickles, nil
}

// send PATCHes one fragment. A server that does not trickle after all is taken at its word, and a connection that stands
// needs no further candidates: both go on.
func (s *Session) send(ctx context.Context, news Fragment) error {
	err := s.patch(ctx, "trickle", ContentTypeFragment, news.Marshal())
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
