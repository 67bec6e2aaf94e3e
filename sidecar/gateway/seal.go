package gateway

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
)

// seal marks session URLs as given out by this node, where requests on them get the server's own credentials, or pass
// where others do not: nobody else can make one, for any other path of the server. A sealed path has an element in front,
// "~", then base64url of a MAC, a letter for the kind, and the stream's name.
type seal struct{ key [sha256.Size]byte }

// sealSize is how much of the MAC is in the URL.
const sealSize = 16

// newSeal makes a seal of a secret key, or of a random one.
func newSeal(key []byte) *seal {
	if len(key) == 0 {
		key = make([]byte, sha256.Size)
		_, _ = rand.Read(key) // never fails, as its documentation says
	}
	return &seal{sha256.Sum256(append([]byte("sidestream session 1\x00"), key...))}
}

// element is what goes in front of a session's escaped path.
func (s *seal) element(of adapters.Request, path string) string {
	head := kindLetter(of) + string(of.ID)
	return "/~" + base64.RawURLEncoding.EncodeToString(append(s.mac(head, path), head...))
}

// open takes a path apart that bears the seal.
func (s *seal) open(sealed string) (of adapters.Request, path string, ok bool) {
	rest, found := strings.CutPrefix(sealed, "/~")
	end := strings.IndexByte(rest, '/')
	if !found || end < 0 {
		return adapters.Request{}, "", false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(rest[:end])
	if err != nil || len(raw) <= sealSize {
		return adapters.Request{}, "", false
	}
	head, path := string(raw[sealSize:]), rest[end:]
	if !hmac.Equal(raw[:sealSize], s.mac(head, path)) || !cleanPath(path) {
		return adapters.Request{}, "", false
	}
	return adapters.Request{ID: adapters.StreamID(head[1:]), Publish: head[0] == 'i'}, path, true
}

func kindLetter(of adapters.Request) string {
	if of.Publish {
		return "i" // ingest
	}
	return "e"
}

func (s *seal) mac(head, path string) []byte {
	m := hmac.New(sha256.New, s.key[:])
	m.Write(binary.BigEndian.AppendUint32(nil, uint32(len(head))))
	m.Write([]byte(head))
	m.Write([]byte(path))
	return m.Sum(nil)[:sealSize]
}
