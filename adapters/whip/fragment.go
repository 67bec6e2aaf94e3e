package whip

import (
	"errors"
	"fmt"
	"strings"
)

// Content types of bodies that WHIP and WHEP exchange.
const (
	ContentTypeSDP      = "application/sdp"
	ContentTypeFragment = "application/trickle-ice-sdpfrag"
	ContentTypeProblem  = "application/problem+json"
)

const (
	maxFragment           = 64 << 10
	maxFragmentLine       = 1024
	maxFragmentMedia      = 64
	maxFragmentCandidates = 256
	maxFragmentOptions    = 16
)

// Fragment is an SDP fragment: the body of a PATCH that trickles ICE candidates or restarts ICE (RFC 8840, section 9;
// RFC 9725, section 4.3). What stands before the first m= line is of the session. Attributes that it has no field for
// are ignored when read (RFC 8840 asks for that).
type Fragment struct {
	FragmentICE
	Lite    bool     // a=ice-lite
	Options []string // a=ice-options
	Media   []FragmentMedia
}

// FragmentMedia is the part of a Fragment that belongs to one media section.
type FragmentMedia struct {
	FragmentICE
	Line string // the value of the m= line, which only marks the place: "audio 9 UDP/TLS/RTP/SAVPF 0"
	MID  string // a=mid: the section that is meant
}

// FragmentICE is what a Fragment says of ICE, for the session or for one media section.
type FragmentICE struct {
	Ufrag, Pwd      string
	Candidates      []string // values of a=candidate, without "candidate:"
	EndOfCandidates bool
}

// Credentials returns the first ICE user fragment and password, be they of the session or of a media section.
func (f Fragment) Credentials() (ufrag, pwd string) {
	if f.Ufrag != "" {
		return f.Ufrag, f.Pwd
	}
	for _, m := range f.Media {
		if m.Ufrag != "" {
			return m.Ufrag, m.Pwd
		}
	}
	return "", ""
}

// AllCandidates returns the candidates of the session and of every media section, in the order of the fragment.
func (f Fragment) AllCandidates() []string {
	all := append([]string(nil), f.Candidates...)
	for _, m := range f.Media {
		all = append(all, m.Candidates...)
	}
	return all
}

// ParseFragment reads an SDP fragment. It accepts line ends without a carriage return, and refuses what is no SDP at
// all, is empty, or is larger than any honest client's: 64 KiB, 1024 bytes in a line, 64 media sections, 256
// candidates. Candidates are not looked into: the ICE agent does that, and skips those that it cannot use.
func ParseFragment(body []byte) (Fragment, error) {
	var f Fragment
	if len(body) > maxFragment {
		return Fragment{}, fmt.Errorf("parse SDP fragment: %d bytes; at most %d are allowed", len(body), maxFragment)
	}
	at := &f.FragmentICE
	var number, size, candidates, known int
	for line := range strings.SplitSeq(string(body), "\n") {
		number++
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		fail := func(what string) (Fragment, error) {
			return Fragment{}, fmt.Errorf("parse SDP fragment: line %d: %s", number, what)
		}
		if len(line) > maxFragmentLine {
			return fail("too long")
		}
		if size += len(line) + len("\r\n"); size > maxFragment {
			return fail("too much before it")
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return fail("control character")
		}
		if len(line) < 2 || line[1] != '=' || line[0] < 'a' || line[0] > 'z' {
			return fail("not of the form x=value")
		}
		value := strings.TrimSpace(line[2:])
		switch line[0] {
		case 'm':
			fields := strings.Fields(value)
			if len(fields) < 3 {
				return fail("m= needs media, port and protocol")
			}
			if len(f.Media) == maxFragmentMedia {
				return fail("too many media sections")
			}
			f.Media = append(f.Media, FragmentMedia{Line: strings.Join(fields, " ")})
			at = &f.Media[len(f.Media)-1].FragmentICE
			known++
			continue
		case 'a':
		default:
			continue
		}
		name, value, _ := strings.Cut(value, ":")
		value = strings.TrimSpace(value)
		known++
		switch name {
		case "ice-ufrag":
			if !isICEString(value) {
				return fail("bad ice-ufrag")
			}
			at.Ufrag = value
		case "ice-pwd":
			if !isICEString(value) {
				return fail("bad ice-pwd")
			}
			at.Pwd = value
		case "candidate":
			if value == "" {
				return fail("empty candidate")
			}
			if candidates++; candidates > maxFragmentCandidates {
				return fail("too many candidates")
			}
			at.Candidates = append(at.Candidates, value)
		case "end-of-candidates":
			at.EndOfCandidates = true
		case "mid":
			if len(f.Media) == 0 {
				return fail("mid outside a media section")
			}
			if !isICEString(value) {
				return fail("bad mid")
			}
			f.Media[len(f.Media)-1].MID = value
		case "ice-lite":
			f.Lite = true
		case "ice-options":
			options := strings.Fields(value)
			if len(options) == 0 {
				return fail("empty ice-options")
			}
			f.Options = append(f.Options, options...)
			if len(f.Options) > maxFragmentOptions || len(value) > maxFragmentLine/maxFragmentOptions {
				return fail("too many ICE options")
			}
		default:
			known--
		}
	}
	if known == 0 {
		return Fragment{}, errors.New("parse SDP fragment: nothing in it")
	}
	return f, nil
}

// isICEString is laxer than the grammar (RFC 8839, section 5.4): servers with other letters in a user fragment exist.
func isICEString(s string) bool {
	return s != "" && len(s) <= 256 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// Marshal writes the fragment with CRLF line ends.
func (f Fragment) Marshal() []byte {
	var b []byte
	line := func(parts ...string) {
		for _, p := range parts {
			b = append(b, p...)
		}
		b = append(b, '\r', '\n')
	}
	if f.Lite {
		line("a=ice-lite")
	}
	if len(f.Options) > 0 {
		line("a=ice-options:", strings.Join(f.Options, " "))
	}
	f.FragmentICE.marshal(line)
	for _, m := range f.Media {
		line("m=", m.Line)
		if m.MID != "" {
			line("a=mid:", m.MID)
		}
		m.FragmentICE.marshal(line)
	}
	return b
}

func (i FragmentICE) marshal(line func(parts ...string)) {
	if i.Ufrag != "" {
		line("a=ice-ufrag:", i.Ufrag)
	}
	if i.Pwd != "" {
		line("a=ice-pwd:", i.Pwd)
	}
	for _, c := range i.Candidates {
		line("a=candidate:", c)
	}
	if i.EndOfCandidates {
		line("a=end-of-candidates")
	}
}
