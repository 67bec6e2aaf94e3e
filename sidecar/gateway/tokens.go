package gateway

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// TokenLife is how long a pull token opens a pull after its issue.
const TokenLife = time.Minute

// The reasons why a pull token opens nothing.
var (
	ErrToken        = errors.New("pull token is not one of this node for this stream")
	ErrTokenExpired = errors.New("pull token has expired")
)

// Tokens issues and checks the tokens with which children pull: bound to the stream, the child and a minute, and of
// no use after the process has ended.
type Tokens struct {
	key [sha256.Size]byte
	now func() time.Time
}

// NewTokens makes an issuer with a key of its own. now tells the time; nil is the machine's.
func NewTokens(now func() time.Time) *Tokens {
	if now == nil {
		now = time.Now
	}
	t := &Tokens{now: now}
	_, _ = rand.Read(t.key[:]) // never fails, as its documentation says
	return t
}

// A token is base64url of: MAC, time of expiry in Unix seconds (8 bytes), child.
const tokenHead = sha256.Size + 8

// Issue makes a token with which the child may pull the stream.
func (t *Tokens) Issue(child string, stream adapters.StreamID) string {
	expiry := uint64(t.now().Add(TokenLife).Unix())
	token := t.mac(expiry, child, stream)
	token = binary.BigEndian.AppendUint64(token, expiry)
	return base64.RawURLEncoding.EncodeToString(append(token, child...))
}

// PullID names the pull of a token in the logs of both its ends. It opens nothing.
func PullID(token string) string {
	sum := sha256.Sum256([]byte("sidestream pull id\x00" + token))
	return hex.EncodeToString(sum[:5])
}

// Verify says which child a token was issued to, or that it does not open a pull of the stream now.
func (t *Tokens) Verify(token string, stream adapters.StreamID) (child string, err error) {
	if len(token) > 1024 {
		return "", ErrToken
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(raw) < tokenHead {
		return "", ErrToken
	}
	expiry, child := binary.BigEndian.Uint64(raw[sha256.Size:tokenHead]), string(raw[tokenHead:])
	if !hmac.Equal(raw[:sha256.Size], t.mac(expiry, child, stream)) {
		return "", ErrToken
	}
	if t.now().Unix() >= int64(expiry) {
		return child, ErrTokenExpired
	}
	return child, nil
}

// mac binds the parts, each of known length, so that no two sets of them read the same.
func (t *Tokens) mac(expiry uint64, child string, stream adapters.StreamID) []byte {
	m := hmac.New(sha256.New, t.key[:])
	head := binary.BigEndian.AppendUint64([]byte("sidestream pull 1\x00"), expiry)
	m.Write(binary.BigEndian.AppendUint32(head, uint32(len(child))))
	m.Write([]byte(child))
	m.Write([]byte(stream))
	return m.Sum(nil)
}
