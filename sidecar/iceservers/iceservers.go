// Package iceservers gets the TURN servers, and credentials for them, that go with a WHIP or WHEP session: from the settings,
// by a secret shared with the TURN server, or from STUNner's authentication service. It is for answers of media servers that
// name none. A session is served without TURN rather than not at all.
package iceservers

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pion/webrtc/v4"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	// DefaultTTL is how long credentials are good: a TURN server refuses to go on with a session after that.
	DefaultTTL = 24 * time.Hour
	// askTime bounds a question to the authentication service: a viewer waits for it.
	askTime = time.Second
	// freshTime is how long its answer is used for further sessions, and failedTime how long it is not asked after a failure.
	freshTime  = 30 * time.Second
	failedTime = 5 * time.Second

	maxAnswer  = 64 << 10
	maxServers = 16
	maxURLs    = 64
	minSecret  = 16
)

// The results in metrics.
const (
	resultGiven  = "given"
	resultStale  = "stale"
	resultFailed = "failed"
)

// Options say where servers come from. With AuthURL the other servers are for when it fails.
type Options struct {
	// URLs are those of the servers: "turn:turn.example.org:3478?transport=udp".
	URLs []string
	// Username and Credential are for all URLs; or SecretFile holds the secret with which credentials are made that are good for
	// TTL (coturn's use-auth-secret, draft-uberti-behave-turn-rest). It is read for each session.
	Username, Credential, SecretFile string
	// AuthURL is STUNner's: "http://stunner-auth.stunner-system:8088/ice?service=turn".
	AuthURL    *url.URL
	TTL        time.Duration // 0: DefaultTTL
	HTTP       *http.Client  // nil: one of its own
	Registerer prometheus.Registerer
	Logger     *slog.Logger // nil: discard
}

// Servers are the TURN servers for sessions. Its methods may be called concurrently.
type Servers struct {
	o       Options
	log     *slog.Logger
	results *prometheus.CounterVec
	warn    *rate.Limiter

	gate   chan struct{} // held by who asks the service, or looks at what it said
	last   []webrtc.ICEServer
	lastAt time.Time
	failed time.Time
}

// New makes Servers; it asks nobody yet.
func New(o Options) (*Servers, error) {
	for _, u := range o.URLs {
		if err := CheckURL(u); err != nil {
			return nil, err
		}
	}
	if o.TTL <= 0 {
		o.TTL = DefaultTTL
	}
	if o.HTTP == nil {
		o.HTTP = &http.Client{Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: askTime}).DialContext, MaxIdleConnsPerHost: 1, IdleConnTimeout: 10 * time.Second,
		}}
	}
	s := &Servers{
		o: o, log: o.Logger, gate: make(chan struct{}, 1), warn: rate.NewLimiter(rate.Every(time.Minute), 1),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_turn_credentials_total", Help: "Sessions for which TURN servers were looked up: given, stale (the last known ones), failed.",
		}, []string{"result"}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, result := range []string{resultGiven, resultStale, resultFailed} {
		s.results.WithLabelValues(result)
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(s.results)
	}
	return s, nil
}

// CheckURL says why a text is no URL of a STUN or TURN server (RFC 7064, RFC 7065).
func CheckURL(u string) error {
	scheme, rest, _ := strings.Cut(u, ":")
	switch scheme {
	case "stun", "stuns", "turn", "turns":
	default:
		return fmt.Errorf("%q is no STUN or TURN server: write turn:HOST:PORT?transport=udp", u)
	}
	if rest == "" || strings.HasPrefix(rest, "/") || strings.ContainsFunc(u, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`<>"\@`, r)
	}) {
		return fmt.Errorf("%q is no STUN or TURN server: write turn:HOST:PORT?transport=udp, without a user", u)
	}
	return nil
}

// Links are the servers for one session as values of Link fields (RFC 9725, section 4.6). It takes at most a second.
func (s *Servers) Links(ctx context.Context) (links []string) {
	for _, server := range s.Session(ctx) {
		links = append(links, whip.FormatICEServerLink(server)...)
	}
	return links
}

// Session are the servers for one session. It takes at most a second.
func (s *Servers) Session(ctx context.Context) []webrtc.ICEServer {
	servers, result, err := s.servers(ctx)
	if err != nil && ctx.Err() == nil && s.warn.Allow() {
		s.log.Warn("TURN credentials cannot be had", "error", err, "used", result)
	}
	s.results.WithLabelValues(result).Inc()
	return servers
}

func (s *Servers) servers(ctx context.Context) (servers []webrtc.ICEServer, result string, err error) {
	if s.o.AuthURL == nil {
		if servers, err = s.own(); err != nil {
			return nil, resultFailed, err
		}
		return servers, resultGiven, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	select {
	case s.gate <- struct{}{}:
		defer func() { <-s.gate }()
	case <-ctx.Done():
		return nil, resultFailed, ctx.Err()
	}
	now := time.Now()
	if !s.lastAt.IsZero() && now.Sub(s.lastAt) < min(freshTime, s.o.TTL/4) {
		return s.last, resultGiven, nil
	}
	err = errors.New("the authentication service failed a moment ago")
	if now.Sub(s.failed) >= failedTime {
		if servers, err = s.ask(ctx); err == nil {
			s.last, s.lastAt = servers, now
			return servers, resultGiven, nil
		}
		s.failed = time.Now()
	}
	if !s.lastAt.IsZero() && now.Sub(s.lastAt) < s.o.TTL/2 {
		return s.last, resultStale, err
	}
	servers, second := s.own()
	return servers, resultFailed, errors.Join(err, second)
}

// own are the servers of the settings, with credentials of this moment.
func (s *Servers) own() ([]webrtc.ICEServer, error) {
	if len(s.o.URLs) == 0 {
		return nil, nil
	}
	user, credential := s.o.Username, s.o.Credential
	if s.o.SecretFile != "" {
		text, err := os.ReadFile(s.o.SecretFile)
		if err != nil {
			return nil, fmt.Errorf("read the secret for TURN: %w", err)
		}
		secret := strings.TrimSpace(string(text))
		if len(secret) < minSecret {
			return nil, fmt.Errorf("secret for TURN in %s has %d characters: share one of at least %d", s.o.SecretFile, len(secret), minSecret)
		}
		user = strconv.FormatInt(time.Now().Add(s.o.TTL).Unix(), 10) + ":" + strings.ToLower(rand.Text()[:12])
		credential = sign(secret, user)
	}
	return []webrtc.ICEServer{{URLs: s.o.URLs, Username: user, Credential: credential}}, nil
}

// sign is the password of a user that is good until a time that the user's name begins with.
func sign(secret, user string) string {
	m := hmac.New(sha1.New, []byte(secret)) // as the TURN servers have it
	m.Write([]byte(user))
	return base64.StdEncoding.EncodeToString(m.Sum(nil))
}

// ask asks STUNner's authentication service.
func (s *Servers) ask(ctx context.Context) ([]webrtc.ICEServer, error) {
	u := *s.o.AuthURL
	q := u.Query()
	for name, value := range map[string]string{
		"service": "turn", "ttl": strconv.FormatInt(int64(s.o.TTL/time.Second), 10), "username": strings.ToLower(rand.Text()[:12]),
	} {
		if !q.Has(name) {
			q.Set(name, value)
		}
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := s.o.HTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the authentication service: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask the authentication service %s: %w", u.Host, err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("ask the authentication service %s: %s", u.Host, resp.Status)
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("ask the authentication service %s: its answer is too large", u.Host)
	}
	servers, err := parse(body)
	if err != nil {
		return nil, fmt.Errorf("answer of the authentication service %s: %w", u.Host, err)
	}
	return servers, nil
}

// oneOrMore is a text or a list of them: both are in use.
type oneOrMore []string

// UnmarshalJSON accepts both.
func (o *oneOrMore) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*o = oneOrMore{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(o))
}

// parse reads an RTCConfiguration. What is no server of ours to name is left out.
func parse(body []byte) ([]webrtc.ICEServer, error) {
	var answer struct {
		ICEServers []struct {
			URLs       oneOrMore `json:"urls"`
			Username   string    `json:"username"`
			Credential string    `json:"credential"`
		} `json:"iceServers"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("it is no ICE configuration: %w", err)
	}
	var servers []webrtc.ICEServer
	urls := 0
	for _, s := range answer.ICEServers[:min(len(answer.ICEServers), maxServers)] {
		server := webrtc.ICEServer{Username: s.Username, Credential: s.Credential}
		if strings.ContainsFunc(s.Username+s.Credential, func(r rune) bool { return r < ' ' || r > '~' }) {
			continue // a header cannot carry it
		}
		for _, u := range s.URLs {
			if CheckURL(u) == nil && urls < maxURLs {
				server.URLs = append(server.URLs, u)
				urls++
			}
		}
		if len(server.URLs) > 0 {
			servers = append(servers, server)
		}
	}
	if len(servers) == 0 {
		return nil, errors.New("it names no server")
	}
	return servers, nil
}

// CloseIdleConnections closes connections to the authentication service that nobody uses.
func (s *Servers) CloseIdleConnections() { s.o.HTTP.CloseIdleConnections() }
