package bearer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// FuzzToken shows a gateway tokens that nobody signed.
func FuzzToken(f *testing.F) {
	name := filepath.Join(f.TempDir(), "keys")
	if err := os.WriteFile(name, []byte(shared), 0o600); err != nil {
		f.Fatal(err)
	}
	c, err := New(Options{KeyFile: name, Issuer: "us", Audience: "media"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(c.CloseIdleConnections)
	for key, method := range map[any]jwt.SigningMethod{
		jwt.UnsafeAllowNoneSignatureType: jwt.SigningMethodNone,
	} {
		text, err := jwt.NewWithClaims(method, good(nil)).SignedString(key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	other, err := jwt.NewWithClaims(jwt.SigningMethodHS256, good(nil)).SignedString([]byte(strings.Repeat("x", 32)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(other)
	f.Add("a.b.c")
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		if got := outcome(c.Check(t.Context(), token, play)); got != "401" {
			t.Errorf("%q comes to %q", token, got)
		}
	})
}

// FuzzKeys reads a file, or another server's document, with keys.
func FuzzKeys(f *testing.F) {
	f.Add([]byte(shared))
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"a"}]}`))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if k, err := parseKeys(text); err == nil && len(k.methods) == 0 {
			t.Errorf("keys without a method: %+v", k)
		}
	})
}
