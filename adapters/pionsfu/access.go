package pionsfu

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/pace"
)

// scope is what a token is for.
type scope int

const (
	scopePublish scope = iota
	scopePlay
	scopeAPI
	scopes
)

// access decides by bearer tokens (RFC 6750; RFC 9725, section 4.7.1). Tokens are compared as hashes, in constant time; those
// that are none of its own are for authorize to judge, where there is one.
type access struct {
	wanted    [scopes]*[sha256.Size]byte // nil: open to everybody, unless there is authorize
	authorize func(ctx context.Context, token string, want adapters.Request) error
}

func newAccess(c Config) access {
	a := access{authorize: c.Authorize}
	set := func(s scope, token string) {
		if token != "" {
			sum := sha256.Sum256([]byte(token))
			a.wanted[s] = &sum
		}
	}
	set(scopePublish, c.PublishToken)
	set(scopePlay, c.PlayToken)
	for _, token := range []string{c.APIToken, c.PublishToken, c.PlayToken} {
		if a.wanted[scopeAPI] == nil {
			set(scopeAPI, token)
		}
	}
	return a
}

// claim is what somebody wants to do: something with a stream, or with a session.
type claim struct {
	scope   scope
	stream  adapters.StreamID
	session *session // nil: the claim is to the stream, or to a session that there is not
}

// sessionClaim is what a session's address asks for. Of one that does not exist only those may learn that who could have had one.
func (s *Server) sessionClaim(session *session, r *http.Request) claim {
	switch {
	case session != nil && session.publish:
		return claim{scopePublish, session.stream, session}
	case session != nil:
		return claim{scopePlay, session.stream, session}
	case s.access.judge(tokenOf(r), scopePublish) == allowed:
		return claim{scope: scopePublish}
	default:
		return claim{scope: scopePlay}
	}
}

type verdict int

const (
	allowed verdict = iota
	anonymous
	unknownToken
	wrongScope
)

// tokenOf is the token of a request, "" where it has none.
func tokenOf(r *http.Request) string {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(kind, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// judge looks at a token by those that are set.
func (a access) judge(token string, want scope) verdict {
	if a.wanted[want] == nil && a.authorize == nil {
		return allowed
	}
	if token == "" {
		return anonymous
	}
	sum, known := sha256.Sum256([]byte(token)), false
	matches := [scopes]bool{}
	for s, wanted := range a.wanted {
		if wanted != nil {
			matches[s] = subtle.ConstantTimeCompare(sum[:], wanted[:]) == 1
			known = known || matches[s]
		}
	}
	switch {
	case matches[want]:
		return allowed
	case known:
		return wrongScope
	default:
		return unknownToken
	}
}

// check says whether a token allows what is claimed: nil, an *adapters.DeniedError, or why that cannot be said now.
func (a access) check(ctx context.Context, token string, c claim) error {
	verdict := a.judge(token, c.scope)
	if verdict == unknownToken && a.authorize != nil && c.scope != scopeAPI {
		switch {
		case c.session != nil && c.session.openedBy(token): // it may have expired since
			return nil
		case c.session == nil && c.stream == "": // a session that does not exist, as will be said
			return nil
		}
		return a.authorize(ctx, token, adapters.Request{ID: c.stream, Publish: c.scope == scopePublish})
	}
	switch verdict {
	case allowed:
		return nil
	case anonymous:
		return &adapters.DeniedError{Reason: `Send the header "Authorization: Bearer" with a token.`}
	case wrongScope:
		return &adapters.DeniedError{
			Known:  true,
			Reason: "The token is known, but not good for this: publishing, playing and the status API may each have their own.",
		}
	default:
		return &adapters.DeniedError{Reason: "Check the token, or ask for a new one."}
	}
}

// openedBy says whether a token is the one that the session was opened with.
func (s *session) openedBy(token string) bool {
	sum := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(sum[:], s.token[:]) == 1
}

// admit answers a request that may not pass, and says whether it may.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, c claim) bool {
	token := tokenOf(r)
	err := s.access.check(r.Context(), token, c)
	if err == nil {
		return true
	}
	denied, said := errors.AsType[*adapters.DeniedError](err)
	challenge := "Bearer"
	switch {
	case !said:
		if r.Context().Err() == nil {
			s.logger.Warn("token cannot be checked", "stream", c.stream, "error", err)
		}
		s.refuse(w, &refusal{
			http.StatusServiceUnavailable, "token_unchecked", "Token cannot be checked",
			"What judges tokens does not answer now; try again in a moment.",
		})
		return false
	case denied.Known:
		w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope"`) // RFC 6750, section 3.1
		s.refuse(w, &refusal{http.StatusForbidden, "wrong_scope", "Token is for something else", denied.Reason})
		return false
	case token == "":
		err = &refusal{http.StatusUnauthorized, "anonymous", "Token required", denied.Reason}
	default:
		challenge = `Bearer error="invalid_token"`
		err = &refusal{http.StatusUnauthorized, "invalid_token", "Token not known", denied.Reason}
	}
	w.Header().Set("WWW-Authenticate", challenge)
	s.refuse(w, err)
	return false
}

// tooSoon answers with 429 (RFC 6585, section 4) who asks for too much, and says so.
func (s *Server) tooSoon(w http.ResponseWriter, r *http.Request) bool {
	switch r.Method {
	case http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete:
	default:
		return false
	}
	from := ""
	if key := pace.Key(pace.Client(r, false, s.trusted)); key.IsValid() {
		from = key.String()
	}
	wait := s.pace.Take(from, time.Now())
	if wait == 0 {
		return false
	}
	w.Header().Set("Retry-After", strconv.Itoa(pace.Seconds(wait)))
	s.refuse(w, &refusal{
		http.StatusTooManyRequests, "rate_address", "Too many requests",
		"Too much comes from this address; try again after the seconds in Retry-After.",
	})
	return true
}

// trusted says whether an address is that of a proxy whose X-Forwarded-For is believed.
func (s *Server) trusted(a netip.Addr) bool {
	return slices.ContainsFunc(s.config.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}
