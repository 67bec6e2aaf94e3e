package janus

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pion/sdp/v3"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// description is what has to be known of a session description.
type description struct {
	text       string
	ufrag, pwd string
	options    string
	mids       []string
	lines      []string // of the sections: "video 9 UDP/TLS/RTP/SAVPF 96"
	refused    []string // kinds of the sections through which nothing goes
	video      string   // the first codec of the first video section, as Janus calls it
	audio      string
	candidates []string // of the first section that has some
}

func describe(text string) (description, error) {
	d := description{text: text}
	var parsed sdp.SessionDescription
	if err := parsed.UnmarshalString(text); err != nil {
		return d, err
	}
	if len(parsed.MediaDescriptions) == 0 {
		return d, errors.New("it has no media section")
	}
	take := func(attributes []sdp.Attribute) {
		var candidates []string
		for _, a := range attributes {
			switch {
			case a.Key == "ice-ufrag" && d.ufrag == "":
				d.ufrag = a.Value
			case a.Key == "ice-pwd" && d.pwd == "":
				d.pwd = a.Value
			case a.Key == "ice-options" && d.options == "":
				d.options = a.Value
			case a.Key == "candidate":
				candidates = append(candidates, a.Value)
			}
		}
		if d.candidates == nil {
			d.candidates = candidates
		}
	}
	take(parsed.Attributes)
	for _, m := range parsed.MediaDescriptions {
		take(m.Attributes)
		mid, _ := m.Attribute("mid")
		d.mids = append(d.mids, mid)
		d.lines = append(d.lines, m.MediaName.String())
		// RFC 8829, section 5.3.1, wants port 0; Janus says it by a direction, and format 0 of which nobody spoke.
		if _, inactive := m.Attribute("inactive"); inactive || m.MediaName.Port.Value == 0 {
			d.refused = append(d.refused, m.MediaName.Media)
		}
		codec := firstCodec(m)
		switch {
		case m.MediaName.Media == "video" && d.video == "":
			d.video = codec
		case m.MediaName.Media == "audio" && d.audio == "":
			d.audio = codec
		}
	}
	if d.ufrag == "" || d.pwd == "" {
		return d, errors.New("it has no ICE credentials")
	}
	return d, nil
}

// firstCodec is the one that a section lists first, in small letters.
func firstCodec(m *sdp.MediaDescription) string {
	for _, format := range m.MediaName.Formats {
		for _, a := range m.Attributes {
			number, codec, ok := strings.Cut(a.Value, " ")
			if a.Key == "rtpmap" && ok && number == format {
				name, _, _ := strings.Cut(codec, "/")
				return strings.ToLower(name)
			}
		}
	}
	return ""
}

// restarted is the offer with other ICE credentials and candidates: an ICE restart (RFC 8839, section 4.4.3.1.1), as a
// browser would offer it anew. Everything else stays, also the DTLS session.
func (d description) restarted(fragment whip.Fragment, version int) (string, error) {
	ufrag, pwd := fragment.Credentials()
	if ufrag == "" || pwd == "" {
		return "", errors.New("the fragment has no ICE credentials")
	}
	var out []string
	for line := range strings.SplitSeq(strings.TrimRight(d.text, "\r\n"), "\n") {
		line = strings.TrimRight(line, "\r")
		switch {
		case strings.HasPrefix(line, "a=candidate:"), line == "a=end-of-candidates":
			continue
		case strings.HasPrefix(line, "a=ice-ufrag:"):
			line = "a=ice-ufrag:" + ufrag
		case strings.HasPrefix(line, "a=ice-pwd:"):
			line = "a=ice-pwd:" + pwd
		case strings.HasPrefix(line, "o="):
			if fields := strings.Fields(line); len(fields) == 6 {
				fields[2] = fmt.Sprint(version)
				line = strings.Join(fields, " ")
			}
		}
		out = append(out, line)
	}
	return strings.Join(out, "\r\n") + "\r\n", nil
}

// trickled is what a fragment's candidates are to Janus. They are of the first section, which the bundle goes by (RFC
// 9725, section 4.3.2).
func (d description) trickled(fragment whip.Fragment) []params {
	var candidates []params
	for _, c := range fragment.AllCandidates() {
		candidates = append(candidates, params{"candidate": "candidate:" + c, "sdpMid": d.mids[0], "sdpMLineIndex": 0})
	}
	return candidates
}

// fragment is the answer to an ICE restart.
func (d description) fragment() whip.Fragment {
	f := whip.Fragment{Media: []whip.FragmentMedia{{
		Line: d.lines[0], MID: d.mids[0],
		FragmentICE: whip.FragmentICE{Ufrag: d.ufrag, Pwd: d.pwd, Candidates: d.candidates, EndOfCandidates: true},
	}}}
	if d.options != "" {
		f.Options = strings.Fields(d.options)
	}
	return f
}
