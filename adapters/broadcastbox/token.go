package broadcastbox

import (
	"encoding/base64"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/sidestream-dev/sidestream/adapters"
)

var (
	plain   = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	encoded = regexp.MustCompile(`^[A-Za-z0-9+/]+={0,2}$`)
)

// bearer is the token by which Broadcast Box knows a stream. It decodes tokens that can be base64, so that names which look like
// it have to be encoded as well as those that are no ASCII; and it makes underscores of spaces: a name with spaces, which would
// become another stream's, gets a token that it refuses.
func bearer(id adapters.StreamID) string {
	if strings.Contains(string(id), " ") {
		return url.PathEscape(string(id))
	}
	return base64.StdEncoding.EncodeToString([]byte(id))
}

// nameOf is the name that Broadcast Box makes of an Authorization field, "" where it refuses that.
func nameOf(authorization string) adapters.StreamID {
	token, ok := strings.CutPrefix(authorization, "Bearer ")
	if !ok {
		return ""
	}
	if encoded.MatchString(token) {
		if decoded, err := base64.StdEncoding.DecodeString(token); err == nil {
			if utf8.Valid(decoded) {
				token = string(decoded)
			}
			return adapters.StreamID(strings.ReplaceAll(token, " ", "_"))
		}
	}
	token = strings.ReplaceAll(strings.TrimSpace(token), " ", "_")
	if !plain.MatchString(token) {
		return ""
	}
	return adapters.StreamID(token)
}
