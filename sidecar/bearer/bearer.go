// Package bearer checks the JSON Web Tokens of publishers and viewers: who signed them, until when they are good, and which
// streams they open. It keeps the keys, from a file or a JWKS URL, and knows nothing of HTTP requests.
package bearer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

const (
	// leeway is how far clocks may be apart.
	leeway = 30 * time.Second
	// freshTime is how long keys are used before they are looked at again; unknownTime is the shortest pause between two looks
	// because of a key that is not known, or after a failure.
	freshTime   = 5 * time.Minute
	unknownTime = 10 * time.Second
	fetchTime   = 2 * time.Second

	maxKeys   = 1 << 20 // bytes
	maxToken  = 16 << 10
	minSecret = 32
)

var (
	public = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	secret = []string{"HS256", "HS384", "HS512"}
)

// Options say which tokens are good.
type Options struct {
	// KeyFile holds the keys: PEM (public keys or certificates), a JWKS document, or a secret of at least 32 characters for
	// HS256. JWKS is where such a document is; one of the two is given. Both are read again from time to time.
	KeyFile string
	JWKS    *url.URL
	// Issuer and Audience are what a token must say; "" for anything.
	Issuer, Audience string
	HTTP             *http.Client // for JWKS; nil: one of its own
	Logger           *slog.Logger // nil: discard
}

// Checker checks tokens. Its methods may be called concurrently.
type Checker struct {
	o      Options
	log    *slog.Logger
	parser *jwt.Parser

	gate   chan struct{} // held by who reads the keys or looks at them
	keys   keys
	read   time.Time // when the keys were read
	tried  time.Time // when that was tried last
	failed error     // why it did not work then
}

// keys are what tokens may be signed with.
type keys struct {
	find    jwt.Keyfunc
	methods []string
}

// New makes a Checker. A file must be there and hold keys; a URL is asked when the first token comes.
func New(o Options) (*Checker, error) {
	if (o.KeyFile == "") == (o.JWKS == nil) {
		return nil, errors.New("keys for tokens: give a file or a URL")
	}
	c := &Checker{o: o, log: o.Logger, gate: make(chan struct{}, 1)}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if o.HTTP == nil {
		c.o.HTTP = &http.Client{Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: fetchTime}).DialContext, MaxIdleConnsPerHost: 1, IdleConnTimeout: 10 * time.Second,
		}}
	}
	options := []jwt.ParserOption{jwt.WithExpirationRequired(), jwt.WithLeeway(leeway), jwt.WithTimeFunc(time.Now)}
	if o.Issuer != "" {
		options = append(options, jwt.WithIssuer(o.Issuer))
	}
	if o.Audience != "" {
		options = append(options, jwt.WithAudience(o.Audience))
	}
	c.parser = jwt.NewParser(options...)
	if o.KeyFile == "" {
		return c, nil
	}
	var err error
	if c.keys, err = c.load(context.Background()); err != nil {
		return nil, err
	}
	c.read = time.Now()
	c.tried = c.read
	return c, nil
}

// claims are what a token holds: names of streams, or patterns of them as in the lists of the settings.
type claims struct {
	jwt.RegisteredClaims

	Publish names `json:"publish"`
	Play    names `json:"play"`
}

// names is a list, or one alone.
type names catalogue.Names

// UnmarshalJSON accepts both.
func (n *names) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*n = names{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(n))
}

// Check says whether a token allows to publish or play a stream: nil, an *adapters.DeniedError, or why that cannot be said now. It takes
// some seconds at most.
func (c *Checker) Check(ctx context.Context, token string, want adapters.Request) error {
	if token == "" {
		return &adapters.DeniedError{Reason: "Send a token in the field Authorization: Bearer TOKEN."}
	}
	if len(token) > maxToken {
		return &adapters.DeniedError{Reason: "The token is longer than any that is given out here."}
	}
	keys, err := c.fresh(ctx, false)
	if err != nil {
		return err
	}
	said, err := c.parse(token, keys)
	if errors.Is(err, jwt.ErrTokenUnverifiable) && c.o.JWKS != nil { // it may be a new key's
		if keys, err = c.fresh(ctx, true); err != nil {
			return err
		}
		said, err = c.parse(token, keys)
	}
	if err != nil {
		return &adapters.DeniedError{Reason: reason(err)}
	}
	list, word := said.Play, "play"
	if want.Publish {
		list, word = said.Publish, "publish"
	}
	if !catalogue.Names(list).Lists(want.ID) {
		return &adapters.DeniedError{Known: true, Reason: "The token does not allow to " + word + " this stream; its claim " + word +
			" must list the stream's name or a pattern of it."}
	}
	return nil
}

func (c *Checker) parse(token string, k keys) (claims, error) {
	var said claims
	_, err := c.parser.ParseWithClaims(token, &said, func(t *jwt.Token) (any, error) {
		for _, method := range k.methods { // never by what the token alone says
			if t.Method.Alg() == method {
				return k.find(t)
			}
		}
		return nil, fmt.Errorf("%w: signed by %s", errMethod, t.Method.Alg())
	})
	return said, err
}

var errMethod = errors.New("method of signing is not accepted")

// reason says to the one who showed a token what is wrong with it.
func reason(err error) string {
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return "The token has expired; get a new one."
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return "The token is not valid yet; look at the clocks."
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return "The token lacks a claim: it must say when it expires (exp), and its issuer and audience where they are asked for."
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return "The token is another issuer's."
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return "The token is for another audience."
	case errors.Is(err, errMethod):
		return "The token is signed by a method that is not accepted here."
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
		return "The token is not signed with a key that is known here."
	default:
		return "The token cannot be read: it must be a JSON Web Token."
	}
}

// fresh gives the keys, and looks for new ones where they are old, or where a token's is not among them. Old ones go on to be
// used while new ones cannot be had.
func (c *Checker) fresh(ctx context.Context, unknown bool) (keys, error) {
	select {
	case c.gate <- struct{}{}:
		defer func() { <-c.gate }()
	case <-ctx.Done():
		return keys{}, ctx.Err()
	}
	now := time.Now()
	if (unknown || now.Sub(c.read) >= freshTime) && now.Sub(c.tried) >= unknownTime {
		c.tried = now
		// The caller may leave; the keys are for all.
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
		read, err := c.load(bound)
		cancel()
		c.failed = err
		if err == nil {
			c.keys, c.read = read, now
		} else {
			c.log.Warn("keys for tokens cannot be read; those that were read go on to count", "error", err)
		}
	}
	if c.keys.find == nil {
		return keys{}, fmt.Errorf("no keys for tokens: %w", c.failed)
	}
	return c.keys, nil
}

// load reads the keys.
func (c *Checker) load(ctx context.Context) (keys, error) {
	if c.o.KeyFile != "" {
		text, err := os.ReadFile(c.o.KeyFile)
		if err != nil {
			return keys{}, fmt.Errorf("read keys for tokens: %w", err)
		}
		k, err := parseKeys(text)
		if err != nil {
			return keys{}, fmt.Errorf("keys for tokens in %s: %w", c.o.KeyFile, err)
		}
		return k, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.o.JWKS.String(), nil)
	if err != nil {
		return keys{}, err
	}
	resp, err := c.o.HTTP.Do(req)
	if err != nil {
		return keys{}, fmt.Errorf("ask for the keys for tokens: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxKeys+1))
	switch {
	case err != nil:
	case resp.StatusCode != http.StatusOK:
		err = errors.New(resp.Status)
	case len(text) > maxKeys:
		err = errors.New("the answer is too large")
	}
	if err != nil {
		return keys{}, fmt.Errorf("ask %s for the keys for tokens: %w", c.o.JWKS.Host, err)
	}
	k, err := parseSet(text, public) // no secret is to be had by a URL
	if err != nil {
		return keys{}, fmt.Errorf("keys for tokens at %s: %w", c.o.JWKS.Host, err)
	}
	return k, nil
}

// parseKeys reads a file of keys.
func parseKeys(text []byte) (keys, error) {
	text = bytes.TrimSpace(text)
	switch {
	case bytes.HasPrefix(text, []byte("{")):
		return parseSet(text, append(append([]string{}, public...), secret...))
	case bytes.Contains(text, []byte("-----BEGIN")):
		return parsePEM(text)
	case len(text) < minSecret:
		return keys{}, fmt.Errorf("it is neither PEM nor a JWKS document, and as a secret has %d characters: use at least %d",
			len(text), minSecret)
	}
	return keys{find: func(*jwt.Token) (any, error) { return text, nil }, methods: secret}, nil
}

func parseSet(text []byte, methods []string) (keys, error) {
	set, err := keyfunc.NewJWKSetJSON(text)
	if err != nil {
		return keys{}, fmt.Errorf("read a JWKS document: %w", err)
	}
	known, err := set.Storage().KeyReadAll(context.Background())
	if err != nil || len(known) == 0 {
		return keys{}, errors.Join(errors.New("the JWKS document holds no key"), err)
	}
	return keys{find: set.Keyfunc, methods: methods}, nil
}

func parsePEM(text []byte) (keys, error) {
	var set jwt.VerificationKeySet
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		var key crypto.PublicKey
		var err error
		switch block.Type {
		case "PUBLIC KEY":
			key, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			key, err = x509.ParsePKCS1PublicKey(block.Bytes)
		case "CERTIFICATE":
			var certificate *x509.Certificate
			if certificate, err = x509.ParseCertificate(block.Bytes); err == nil {
				key = certificate.PublicKey
			}
		default:
			return keys{}, fmt.Errorf("it holds a %s: give public keys only", block.Type)
		}
		if err != nil {
			return keys{}, fmt.Errorf("read a %s: %w", block.Type, err)
		}
		set.Keys = append(set.Keys, key)
	}
	if len(set.Keys) == 0 {
		return keys{}, errors.New("no key can be read in it")
	}
	return keys{find: func(*jwt.Token) (any, error) { return set, nil }, methods: public}, nil
}

// CloseIdleConnections closes connections to the JWKS URL that nobody uses.
func (c *Checker) CloseIdleConnections() { c.o.HTTP.CloseIdleConnections() }
