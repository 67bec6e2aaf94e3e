package gateway

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"github.com/sidestream-dev/sidestream/adapters"
)

// SessionPrefix begins the path of every session URL: the node's id and the server's own path follow.
const SessionPrefix = "/_sidestream/"

// pullPrefix begins the session URLs of pullers: node id, stream name in base64url and the server's own path follow.
// They are known on the peer port only, because the server's credentials are added to such requests.
const pullPrefix = "/_sidestream-pull/"

// reserved says whether a path, unescaped, is the gateway's own rather than the server's.
func reserved(path string) bool {
	return strings.HasPrefix(path+"/", SessionPrefix) || strings.HasPrefix(path+"/", pullPrefix)
}

// parseSession takes an escaped path apart into the node and the server's own path, still escaped.
func parseSession(escaped string) (node, path string, ok bool) {
	rest, ok := strings.CutPrefix(escaped, SessionPrefix)
	if !ok {
		return "", "", false
	}
	return cutNode(rest)
}

// parsePull takes the escaped path of a puller's session URL apart.
func parsePull(escaped string) (node string, id adapters.StreamID, path string, ok bool) {
	rest, ok := strings.CutPrefix(escaped, pullPrefix)
	if !ok {
		return "", "", "", false
	}
	node, rest, found := strings.Cut(rest, "/")
	if !found || !plainName(node) {
		return "", "", "", false
	}
	encoded, path, ok := cutNode(rest)
	if !ok {
		return "", "", "", false
	}
	name, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	id = adapters.StreamID(name)
	if err != nil || id.Validate() != nil || reserved(path) {
		return "", "", "", false
	}
	return node, id, path, true
}

func cutNode(rest string) (node, path string, ok bool) {
	node, _, found := strings.Cut(rest, "/")
	path = rest[len(node):]
	if !found || !plainName(node) || !cleanPath(path) {
		return "", "", false
	}
	return node, path, true
}

// formatSession is the reverse of parseSession, with the query; not ok for a URL that parseSession would not give back.
func formatSession(node string, u *url.URL) (string, bool) { return format(SessionPrefix+node, u) }

func formatPull(node string, id adapters.StreamID, u *url.URL) (string, bool) {
	return format(pullPrefix+node+"/"+base64.RawURLEncoding.EncodeToString([]byte(id)), u)
}

func format(prefix string, u *url.URL) (string, bool) {
	path := u.EscapedPath()
	if !cleanPath(path) {
		return "", false
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return prefix + path, true
}

// plainName says whether a path element needs no escape and is no dotted one.
func plainName(s string) bool {
	return s != "" && len(s) <= 512 && strings.Trim(s, ".") != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	})
}

// cleanPath says whether an escaped path means the same to everybody who reads it: it begins with one slash, and holds
// no dotted elements, backslashes or control characters, escaped or not. What is the gateway's own is not the server's.
func cleanPath(escaped string) bool {
	path, err := url.PathUnescape(escaped)
	if err != nil || !strings.HasPrefix(escaped, "/") || strings.HasPrefix(path, "//") || reserved(path) {
		return false
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) ||
		strings.ContainsAny(escaped, "?# ") {
		return false
	}
	for element := range strings.SplitSeq(path, "/") {
		if element == "." || element == ".." {
			return false
		}
	}
	return true
}

// setPath gives a URL an escaped path.
func setPath(u *url.URL, escaped string) {
	if path, err := url.PathUnescape(escaped); err == nil {
		u.Path, u.RawPath = path, escaped
	}
}

// withPath is the request as the server would have got it.
func withPath(r *http.Request, escaped string) *http.Request {
	out := r.WithContext(r.Context())
	u := *r.URL
	setPath(&u, escaped)
	out.URL = &u
	out.RequestURI = u.RequestURI()
	return out
}

// relink replaces the URLs of an answer's Location and Link fields that point to the server that answered, by what
// rename makes of them; it leaves those for which rename yields nothing.
func relink(h http.Header, base *url.URL, own func(host string) bool, rename func(*url.URL) string) {
	replace := func(reference string) string {
		u, err := base.Parse(reference)
		if err != nil || reference == "" || u.Scheme != "http" && u.Scheme != "https" || !own(u.Host) {
			return reference
		}
		if name := rename(u); name != "" {
			return name
		}
		return reference
	}
	if location := h.Get("Location"); location != "" {
		h.Set("Location", replace(location))
	}
	for i, value := range h.Values("Link") {
		h["Link"][i] = replaceTargets(value, replace)
	}
}

// replaceTargets maps the targets of a Link field's value (RFC 8288 section 3): what stands between angle brackets
// where a link begins. From the first fault on it leaves the value as it is.
func replaceTargets(value string, replace func(string) string) string {
	var out strings.Builder
	rest := value
	for {
		begin := len(rest) - len(strings.TrimLeft(rest, " \t,"))
		if begin == len(rest) || rest[begin] != '<' {
			break
		}
		end := strings.IndexByte(rest[begin:], '>')
		if end < 0 {
			break
		}
		end += begin
		out.WriteString(rest[:begin+1])
		out.WriteString(replace(rest[begin+1 : end]))
		next := end + parameters(rest[end:])
		out.WriteString(rest[end:next])
		rest = rest[next:]
	}
	out.WriteString(rest)
	return out.String()
}

// parameters is the length of what precedes the comma between two links; commas in quotes do not count.
func parameters(s string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			quoted = !quoted
		case '\\':
			if quoted {
				i++
			}
		case ',':
			if !quoted {
				return i
			}
		}
	}
	return len(s)
}
