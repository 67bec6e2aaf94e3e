package bearer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const shared = "0123456789abcdef0123456789abcdef"

var (
	play    = adapters.Request{ID: "live/show"}
	publish = adapters.Request{ID: "live/show", Publish: true}
)

// good is what a token for both says; changes replace claims, nil takes one out.
func good(changes jwt.MapClaims) jwt.MapClaims {
	c := jwt.MapClaims{
		"exp": time.Now().Add(time.Hour).Unix(), "iss": "us", "aud": []string{"media"}, "play": []string{"live/*"}, "publish": "live/show",
	}
	for name, value := range changes {
		if c[name] = value; value == nil {
			delete(c, name)
		}
	}
	return c
}

func sign(t *testing.T, method jwt.SigningMethod, key any, kid string, c jwt.Claims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, c)
	if kid != "" {
		token.Header["kid"] = kid
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func newChecker(t *testing.T, o Options) *Checker {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func publicPEM(t *testing.T, keys ...crypto.PublicKey) string {
	t.Helper()
	var out strings.Builder
	for _, key := range keys {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		_ = pem.Encode(&out, &pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	return out.String()
}

// outcome is what a check comes to: "", "401", "403" or "503".
func outcome(err error) string {
	denied, ok := errors.AsType[*adapters.DeniedError](err)
	switch {
	case err == nil:
		return ""
	case !ok:
		return "503"
	case denied.Known:
		return "403"
	}
	return "401"
}

func TestClaims(t *testing.T) {
	c := newChecker(t, Options{KeyFile: file(t, shared+"\n"), Issuer: "us", Audience: "media"})
	for name, tt := range map[string]struct {
		changes       jwt.MapClaims
		play, publish string
	}{
		"both":                   {nil, "", ""},
		"plays only":             {jwt.MapClaims{"publish": nil}, "", "403"},
		"everything":             {jwt.MapClaims{"publish": "*/*", "play": []string{"*/*"}}, "", ""},
		"all but this":           {jwt.MapClaims{"play": []string{"!live/show", "live/*"}}, "403", ""},
		"other streams":          {jwt.MapClaims{"publish": []string{"a", "b"}, "play": []string{}}, "403", "403"},
		"expired":                {jwt.MapClaims{"exp": time.Now().Add(-time.Hour).Unix()}, "401", "401"},
		"expired a moment ago":   {jwt.MapClaims{"exp": time.Now().Add(-leeway / 2).Unix()}, "", ""},
		"never expires":          {jwt.MapClaims{"exp": nil}, "401", "401"},
		"not yet":                {jwt.MapClaims{"nbf": time.Now().Add(time.Hour).Unix()}, "401", "401"},
		"another issuer":         {jwt.MapClaims{"iss": "them"}, "401", "401"},
		"no issuer":              {jwt.MapClaims{"iss": nil}, "401", "401"},
		"another audience":       {jwt.MapClaims{"aud": "shop"}, "401", "401"},
		"claims of another form": {jwt.MapClaims{"play": 7}, "401", "401"},
	} {
		t.Run(name, func(t *testing.T) {
			token := sign(t, jwt.SigningMethodHS256, []byte(shared), "", good(tt.changes))
			for want, request := range map[*string]adapters.Request{&tt.play: play, &tt.publish: publish} {
				if got := outcome(c.Check(t.Context(), token, request)); got != *want {
					t.Errorf("%+v: %q, want %q", request, got, *want)
				}
			}
		})
	}
}

func TestKeys(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text := publicPEM(t, rsaKey.Public(), ecKey.Public(), edKey.Public())
	c := newChecker(t, Options{KeyFile: file(t, text)})
	for name, tt := range map[string]struct {
		token string
		want  string
	}{
		"RS256": {sign(t, jwt.SigningMethodRS256, rsaKey, "", good(nil)), ""},
		"ES256": {sign(t, jwt.SigningMethodES256, ecKey, "", good(nil)), ""},
		"EdDSA": {sign(t, jwt.SigningMethodEdDSA, edKey, "", good(nil)), ""},
		// The public keys are no secret.
		"HS256 with the file":  {sign(t, jwt.SigningMethodHS256, []byte(text), "", good(nil)), "401"},
		"HS256 with a key":     {sign(t, jwt.SigningMethodHS256, []byte(publicPEM(t, rsaKey.Public())), "", good(nil)), "401"},
		"unsigned":             {sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", good(nil)), "401"},
		"none":                 {"", "401"},
		"no token":             {"Basic", "401"},
		"very long":            {strings.Repeat("a", maxToken+1), "401"},
		"two dots":             {"..", "401"},
		"changed on the way":   {sign(t, jwt.SigningMethodRS256, rsaKey, "", good(nil)) + "x", "401"},
		"RS256 by another key": {sign(t, jwt.SigningMethodES256, otherKey(t), "", good(nil)), "401"},
	} {
		if got := outcome(c.Check(t.Context(), tt.token, play)); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	for _, bad := range []string{"", "short", "{}", `{"keys":[]}`, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "-----BEGIN"} {
		if _, err := New(Options{KeyFile: file(t, bad)}); err == nil {
			t.Errorf("%q is taken for keys", bad)
		}
	}
	der, err := x509.MarshalPKCS8PrivateKey(edKey)
	if err != nil {
		t.Fatal(err)
	}
	private := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if _, err := New(Options{KeyFile: file(t, private)}); err == nil || !strings.Contains(err.Error(), "public keys only") {
		t.Errorf("a private key: %v", err)
	}
	for _, o := range []Options{{}, {KeyFile: "/nothing/here"}, {KeyFile: "x", JWKS: &url.URL{Host: "x"}}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is enough", o)
		}
	}
}

func otherKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func jwks(t *testing.T, keys map[string]ed25519.PublicKey) string {
	t.Helper()
	type key = map[string]string
	set := map[string][]key{"keys": {}}
	for kid, k := range keys {
		set["keys"] = append(set["keys"], key{
			"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": kid, "x": base64.RawURLEncoding.EncodeToString(k),
		})
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

type transport func(*http.Request) *http.Response

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// Keys at a URL are asked for when they are needed: at first, when they are old, and when a token has another one.
func TestJWKS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		public1, key1, _ := ed25519.GenerateKey(rand.Reader)
		public2, key2, _ := ed25519.GenerateKey(rand.Reader)
		known := map[string]ed25519.PublicKey{"one": public1}
		var asked atomic.Int32
		down := true
		at, _ := url.Parse("https://issuer/jwks.json")
		c := newChecker(t, Options{JWKS: at, HTTP: &http.Client{Transport: transport(func(*http.Request) *http.Response {
			asked.Add(1)
			w := httptest.NewRecorder()
			if down {
				w.WriteHeader(http.StatusBadGateway)
			}
			_, _ = w.WriteString(jwks(t, known))
			return w.Result()
		})}})
		check := func(key ed25519.PrivateKey, kid, want string, times int32) {
			t.Helper()
			before := asked.Load()
			if got := outcome(c.Check(t.Context(), sign(t, jwt.SigningMethodEdDSA, key, kid, good(nil)), play)); got != want {
				t.Errorf("%s: %q, want %q", kid, got, want)
			}
			if n := asked.Load() - before; n != times {
				t.Errorf("asked %d times, want %d", n, times)
			}
		}
		check(key1, "one", "503", 1)
		check(key1, "one", "503", 0)
		down = false
		time.Sleep(unknownTime)
		check(key1, "one", "", 1)
		check(key1, "one", "", 0)
		check(key2, "two", "401", 0) // just asked
		time.Sleep(unknownTime)
		check(key2, "two", "401", 1)
		known["two"] = public2
		time.Sleep(unknownTime)
		check(key2, "two", "", 1)
		down = true
		time.Sleep(freshTime)
		check(key1, "one", "", 1) // what was known goes on to count
		check(key2, "two", "", 0)
		down = false
		delete(known, "one")
		time.Sleep(unknownTime)
		check(key2, "two", "", 1)
		check(key1, "one", "401", 0) // it was taken back
	})
}

// A set at a URL holds no secrets, whoever put them there.
func TestJWKSWithSecret(t *testing.T) {
	text := `{"keys":[{"kty":"oct","kid":"s","alg":"HS256","k":"` + base64.RawURLEncoding.EncodeToString([]byte(shared)) + `"}]}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }))
	defer server.Close()
	at, _ := url.Parse(server.URL)
	token := sign(t, jwt.SigningMethodHS256, []byte(shared), "s", good(nil))
	if got := outcome(newChecker(t, Options{JWKS: at}).Check(t.Context(), token, play)); got != "401" && got != "503" {
		t.Errorf("%q", got)
	}
	if got := outcome(newChecker(t, Options{KeyFile: file(t, text)}).Check(t.Context(), token, play)); got != "" {
		t.Errorf("by a file: %q", got)
	}
}

// The file is read again.
func TestFileChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		name := file(t, shared)
		c := newChecker(t, Options{KeyFile: name})
		other := strings.ToUpper(shared)
		token := sign(t, jwt.SigningMethodHS256, []byte(other), "", good(nil))
		if got := outcome(c.Check(t.Context(), token, play)); got != "401" {
			t.Errorf("%q", got)
		}
		for _, step := range []struct{ text, want string }{{"x", "401"}, {other, ""}} {
			if err := os.WriteFile(name, []byte(step.text), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(freshTime)
			if got := outcome(c.Check(t.Context(), token, play)); got != step.want {
				t.Errorf("%q, want %q", got, step.want)
			}
		}
	})
}
