package whip

import (
	"net/http"
	"slices"
	"strings"

	"github.com/pion/stun/v4"
	"github.com/pion/webrtc/v4"
)

const (
	maxLinks      = 64   // links taken from one answer
	maxLinkParams = 32   // parameters of one link
	maxLinkLine   = 8192 // bytes of one header line
	maxICEServers = 16
)

// relICEServer is the relation of a STUN or TURN server (RFC 9725, section 4.6).
const relICEServer = "ice-server"

// Link is one link of a Link header field (RFC 8288). Params stand in the order of the header, names in lower case.
type Link struct {
	Target string
	Params []LinkParam
}

// LinkParam is one parameter of a Link; one without "=" has an empty value.
type LinkParam struct{ Name, Value string }

// Param returns the value of the first parameter of the name, which is given in lower case.
func (l Link) Param(name string) (string, bool) {
	for _, p := range l.Params {
		if p.Name == name {
			return p.Value, true
		}
	}
	return "", false
}

// HasRel says whether the link is of the relation. Only the first rel parameter counts (RFC 8288, section 3.3).
func (l Link) HasRel(rel string) bool {
	value, _ := l.Param("rel")
	return slices.ContainsFunc(strings.Fields(value), func(r string) bool { return strings.EqualFold(r, rel) })
}

// String writes the link as it stands in a header line, with every value quoted.
func (l Link) String() string {
	var b strings.Builder
	b.WriteByte('<')
	b.WriteString(l.Target)
	b.WriteByte('>')
	for _, p := range l.Params {
		b.WriteString("; ")
		b.WriteString(p.Name)
		b.WriteString(`="`)
		for i := range len(p.Value) {
			if c := p.Value[i]; c == '"' || c == '\\' {
				b.WriteByte('\\')
			}
			b.WriteByte(p.Value[i])
		}
		b.WriteByte('"')
	}
	return b.String()
}

// ParseLinks reads all Link header lines, each with one link or a list of them. A link that cannot be understood is
// left out, the others are kept; so are links past the 64th and lines above 8 KiB left out.
func ParseLinks(h http.Header) []Link {
	var links []Link
	for _, line := range h.Values("Link") {
		if len(line) > maxLinkLine {
			continue
		}
		for line != "" && len(links) < maxLinks {
			var l Link
			var ok bool
			if l, line, ok = parseLink(line); ok {
				links = append(links, l)
			}
		}
	}
	return links
}

// parseLink takes one link off the front of a header line, with the comma that follows it.
func parseLink(s string) (l Link, rest string, ok bool) {
	s = strings.TrimLeft(s, " \t,")
	if s == "" {
		return Link{}, "", false
	}
	end := strings.IndexByte(s, '>')
	if s[0] != '<' || end < 0 {
		return Link{}, skipLink(s), false
	}
	l.Target = strings.TrimSpace(s[1:end])
	if strings.ContainsFunc(l.Target, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Link{}, skipLink(s), false
	}
	s = s[end+1:]
	for {
		s = strings.TrimLeft(s, " \t")
		switch {
		case s == "":
			return l, "", true
		case s[0] == ',':
			return l, s[1:], true
		case s[0] != ';':
			return Link{}, skipLink(s), false
		}
		s = strings.TrimLeft(s[1:], " \t")
		if s == "" || s[0] == ';' || s[0] == ',' {
			continue // RFC 8288 allows empty parameters
		}
		var p LinkParam
		if p, s, ok = parseLinkParam(s); !ok || len(l.Params) == maxLinkParams {
			return Link{}, skipLink(s), false
		}
		l.Params = append(l.Params, p)
	}
}

func parseLinkParam(s string) (p LinkParam, rest string, ok bool) {
	n := 0
	for n < len(s) && isToken(s[n]) {
		n++
	}
	if n == 0 {
		return LinkParam{}, s, false
	}
	p.Name, s = strings.ToLower(s[:n]), strings.TrimLeft(s[n:], " \t")
	if s == "" || s[0] != '=' {
		return p, s, true
	}
	s = strings.TrimLeft(s[1:], " \t")
	if s == "" || s[0] != '"' {
		// More than a token is accepted, as a browser would: unquoted values with slashes and colons are common.
		end := strings.IndexAny(s, " \t;,\"")
		if end < 0 {
			end = len(s)
		}
		p.Value = s[:end]
		return p, s[end:], true
	}
	var value strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			p.Value = value.String()
			return p, s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return LinkParam{}, "", false
			}
		}
		value.WriteByte(s[i])
	}
	return LinkParam{}, "", false // the quote never closes: there is no telling where the next link begins
}

// skipLink drops what is left of a link that cannot be understood: up to the next comma outside quotes and brackets.
func skipLink(s string) string {
	quoted, bracketed := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"' && !bracketed:
			quoted = !quoted
		case quoted:
		case c == '<':
			bracketed = true
		case c == '>':
			bracketed = false
		case c == ',' && !bracketed:
			return s[i+1:]
		}
	}
	return ""
}

// isToken says whether a byte may stand in a token (RFC 9110, section 5.6.2).
func isToken(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// ICEServers returns the STUN and TURN servers of an answer's Link header lines (RFC 9725, section 4.6). Other
// relations are ignored, and so are servers that pion would refuse: a TURN server without credentials, or with others
// than a password.
func ICEServers(h http.Header) []webrtc.ICEServer {
	var servers []webrtc.ICEServer
	for _, l := range ParseLinks(h) {
		if !l.HasRel(relICEServer) || len(servers) == maxICEServers {
			continue
		}
		uri, err := stun.ParseURI(l.Target)
		if err != nil {
			continue
		}
		server := webrtc.ICEServer{URLs: []string{l.Target}}
		if uri.Scheme == stun.SchemeTypeTURN || uri.Scheme == stun.SchemeTypeTURNS {
			username, _ := l.Param("username")
			credential, ok := l.Param("credential")
			kind, given := l.Param("credential-type")
			if username == "" || !ok || given && !strings.EqualFold(kind, "password") {
				continue
			}
			server.Username, server.Credential = username, credential
		}
		servers = append(servers, server)
	}
	return servers
}

// FormatICEServerLink writes a server as values of the Link header field, one for each of its URLs. Each goes into a
// header line of its own (http.Header.Add). What a header line cannot carry, and credentials other than a password,
// are left out.
func FormatICEServerLink(server webrtc.ICEServer) []string {
	var values []string
	for _, target := range server.URLs {
		l := Link{Target: target, Params: []LinkParam{{"rel", relICEServer}}}
		if server.Username != "" || server.Credential != nil {
			credential, ok := server.Credential.(string)
			if !ok || server.CredentialType != webrtc.ICECredentialTypePassword {
				continue
			}
			l.Params = append(l.Params, LinkParam{"username", server.Username}, LinkParam{"credential", credential},
				LinkParam{"credential-type", "password"})
		}
		value := l.String()
		if strings.ContainsAny(target, "<>") ||
			strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			continue
		}
		values = append(values, value)
	}
	return values
}
