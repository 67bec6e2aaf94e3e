package pionsfu

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/sidestream-dev/sidestream/adapters"
)

// Tokens that are none of the server's own are for another to judge, by stream; the sessions' addresses are closed likewise.
func judgeElsewhere(t *testing.T) {
	var expired, broken atomic.Bool
	s := run(t, Config{PublishToken: "sidecar", ICEServers: turn, Authorize: func(_ context.Context, token string, want adapters.Request) error {
		switch {
		case broken.Load():
			return errors.New("no keys")
		case expired.Load() || token != "good" && token != "other":
			return &adapters.DeniedError{Reason: "That token is not good."}
		case want.ID != "studio":
			return &adapters.DeniedError{Known: true, Reason: "Not that stream."}
		}
		return nil
	}})
	as := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	s.post(t, "/whip/studio", publishOffer(t)).want(t, http.StatusUnauthorized)
	if a := s.post(t, "/whip/studio", publishOffer(t), as("bad")...); a.StatusCode != http.StatusUnauthorized ||
		a.Header.Get("WWW-Authenticate") != `Bearer error="invalid_token"` {
		t.Errorf("%s, challenge %q", a.Status, a.Header.Get("WWW-Authenticate"))
	}
	s.post(t, "/whip/attic", publishOffer(t), as("good")...).want(t, http.StatusForbidden)
	s.publish(t, "attic", as("sidecar")...)                                                    // a token of the server's own is good for all
	s.do(t, http.MethodGet, "/whep/attic", "", as("sidecar")...).want(t, http.StatusForbidden) // of its kind
	session := s.publish(t, "studio", as("good")...).location(t)
	for _, token := range []string{"", "bad"} {
		s.do(t, http.MethodGet, session, "", as(token)...).want(t, http.StatusUnauthorized)
		s.do(t, http.MethodDelete, session, "", as(token)...).want(t, http.StatusUnauthorized)
	}
	s.do(t, http.MethodGet, session, "", as("other")...).want(t, http.StatusNoContent)
	s.do(t, http.MethodGet, "/api/streams", "", as("good")...).want(t, http.StatusUnauthorized)
	s.do(t, http.MethodGet, "/api/streams", "", as("sidecar")...).want(t, http.StatusOK)
	s.do(t, http.MethodGet, "/session/none", "").want(t, http.StatusUnauthorized)
	s.do(t, http.MethodGet, "/session/none", "", as("good")...).want(t, http.StatusNotFound)

	s.do(t, http.MethodGet, "/api/pc-config?stream=studio", "").want(t, http.StatusUnauthorized)
	s.do(t, http.MethodGet, "/api/pc-config", "", as("good")...).want(t, http.StatusBadRequest)
	for path, token := range map[string]string{"?stream=studio": "good", "?stream=studio&publish": "good", "": "sidecar"} {
		s.do(t, http.MethodGet, "/api/pc-config"+path, "", as(token)...).want(t, http.StatusOK)
	}

	// Who has a session keeps it when the token is too old for another.
	expired.Store(true)
	s.do(t, http.MethodGet, session, "", as("other")...).want(t, http.StatusUnauthorized)
	s.do(t, http.MethodGet, session, "", as("good")...).want(t, http.StatusNoContent)
	broken.Store(true)
	s.post(t, "/whip/studio", publishOffer(t), as("good")...).want(t, http.StatusServiceUnavailable)
	s.do(t, http.MethodDelete, session, "", as("good")...).want(t, http.StatusOK)
}

// What one address sends is bounded, and behind a proxy it is the client's address that counts.
func ratePerAddress(t *testing.T) {
	s := run(t, Config{RatePerAddress: 5, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	from := func(address string) answered {
		return s.post(t, "/whip/s23", "nonsense", "X-Forwarded-For", address)
	}
	for range 5 {
		from("192.0.2.1").want(t, http.StatusBadRequest)
	}
	a := from("192.0.2.1")
	a.want(t, http.StatusTooManyRequests)
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	s.do(t, http.MethodDelete, "/session/x", "", "X-Forwarded-For", "192.0.2.1").want(t, http.StatusTooManyRequests)
	s.do(t, http.MethodGet, "/whip/s23", "", "X-Forwarded-For", "192.0.2.1").want(t, http.StatusNoContent)
	from("192.0.2.2").want(t, http.StatusBadRequest)

	plain := run(t, Config{RatePerAddress: 1})
	plain.post(t, "/whip/s23", "nonsense", "X-Forwarded-For", "192.0.2.1").want(t, http.StatusBadRequest)
	plain.post(t, "/whip/s23", "nonsense", "X-Forwarded-For", "192.0.2.2").want(t, http.StatusTooManyRequests)
}

// Clients that cannot read Link find the ICE servers as JSON.
func TestICEConfiguration(t *testing.T) {
	s := run(t, Config{ICEServers: turn, PlayToken: "play"})
	s.do(t, http.MethodGet, "/api/pc-config", "").want(t, http.StatusOK) // everybody may publish, and so ask
	s = run(t, Config{ICEServers: turn, PublishToken: "publish", PlayToken: "play"})
	s.do(t, http.MethodGet, "/api/pc-config", "").want(t, http.StatusUnauthorized)
	s.do(t, http.MethodPost, "/api/pc-config", "").want(t, http.StatusMethodNotAllowed)
	for _, token := range []string{"publish", "play"} {
		a := s.do(t, http.MethodGet, "/api/pc-config", "", "Authorization", "Bearer "+token)
		a.want(t, http.StatusOK)
		var got struct {
			ICEServers []struct {
				URLs                 []string
				Username, Credential string
			}
		}
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || len(got.ICEServers) != 2 ||
			got.ICEServers[1].URLs[0] != turnServers[1].URLs[0] || got.ICEServers[1].Credential != `p"w,` {
			t.Errorf("%s: %v", a.body, err)
		}
	}
	if a := run(t, Config{}).do(t, http.MethodGet, "/api/pc-config", ""); a.body != `{"iceServers":[]}`+"\n" {
		t.Errorf("without servers: %q", a.body)
	}
}
