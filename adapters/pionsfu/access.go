package pionsfu

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
)

// scope is what a token is for.
type scope int

const (
	scopePublish scope = iota
	scopePlay
	scopeAPI
	scopes
)

// access decides by bearer tokens (RFC 6750; RFC 9725, section 4.7.1). Tokens are compared as hashes, in constant time.
type access struct {
	wanted [scopes]*[sha256.Size]byte // nil: open to everybody
}

func newAccess(c Config) access {
	var a access
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

type verdict int

const (
	allowed verdict = iota
	anonymous
	unknownToken
	wrongScope
)

// judge looks at an Authorization header field.
func (a access) judge(authorization string, want scope) verdict {
	if a.wanted[want] == nil {
		return allowed
	}
	scheme, token, _ := strings.Cut(authorization, " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
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

// admit answers a request that may not pass, and says whether it may.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, want scope) bool {
	switch s.access.judge(r.Header.Get("Authorization"), want) {
	case allowed:
		return true
	case anonymous:
		w.Header().Set("WWW-Authenticate", "Bearer")
		s.refused.WithLabelValues("anonymous").Inc()
		adapters.WriteProblem(w, http.StatusUnauthorized, "Token required",
			`Send the header "Authorization: Bearer" with a token.`)
	case unknownToken:
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		s.refused.WithLabelValues("invalid_token").Inc()
		adapters.WriteProblem(w, http.StatusUnauthorized, "Token not known", "Check the token, or ask for a new one.")
	case wrongScope:
		w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope"`)
		s.refused.WithLabelValues("wrong_scope").Inc()
		adapters.WriteProblem(w, http.StatusForbidden, "Token is for something else",
			"The token is known, but not good for this: publishing, playing and the status API may each have their own.")
	}
	return false
}
