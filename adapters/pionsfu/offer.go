package pionsfu

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/pion/ice/v4"
	"github.com/pion/sdp/v3"
)

// What an offer or a trickle PATCH may hold. Honest clients stay far below.
const (
	maxBody       = 256 << 10
	maxCandidates = 100 // in one offer or PATCH
	maxFormats    = 96  // payload types of one media section
	maxAttributes = 1024
	maxSources    = 16 // SSRCs declared in one media section
	maxCredential = 256
	maxLayers     = 4 // of simulcast
)

// offer is a client's SDP after it was found acceptable, rewritten so that pion answers it in the one direction that
// the endpoint has.
type offer struct {
	kinds []string // of the media sections, in their order
	mids  []string
	rids  []string // of the video section's simulcast layers, as the client prefers them; none without simulcast
	ufrag string   // the client's ICE user fragment
	pwd   string
	desc  sdp.SessionDescription
}

// refusal is why a request is turned down, in words for the one who sent it.
type refusal struct {
	status int
	reason string // a constant, for the metrics
	title  string
	detail string
}

func (r *refusal) Error() string { return r.title + ": " + r.detail }

func malformed(format string, args ...any) *refusal {
	return &refusal{http.StatusBadRequest, "malformed", "Malformed offer", fmt.Sprintf(format, args...)}
}

func unacceptable(format string, args ...any) *refusal {
	return &refusal{http.StatusUnprocessableEntity, "unacceptable", "Offer cannot be accepted", fmt.Sprintf(format, args...)}
}

// checkOffer reads a client's offer and says what is wrong with it: 400 for what is no SDP offer of WebRTC, 422 for what
// is one but not of the kind that the endpoint takes (RFC 9725, section 4.4; WHEP likewise). It is a pure function of
// its arguments, and what it lets through is safe to give to pion.
func checkOffer(body []byte, publish bool) (*offer, error) {
	o := &offer{}
	if len(body) == 0 {
		return nil, malformed("The body is empty; send the SDP offer in it.")
	}
	if err := o.desc.Unmarshal(body); err != nil {
		return nil, malformed("The body is not SDP: %s", err)
	}
	media := o.desc.MediaDescriptions
	switch {
	case len(media) == 0:
		return nil, unacceptable("It has no media sections; offer one audio or one video, or both.")
	case len(media) > 2:
		return nil, unacceptable("It has %d media sections; at most one audio and one video are possible.", len(media))
	case len(o.desc.Attributes) > maxAttributes:
		return nil, malformed("It has %d attributes in the session part.", len(o.desc.Attributes))
	}
	o.cleanSession()
	for _, m := range media {
		if err := o.checkMedia(m, publish); err != nil {
			return nil, err
		}
	}
	if err := o.checkBundle(); err != nil {
		return nil, err
	}
	if publish {
		if err := o.checkStream(); err != nil {
			return nil, err
		}
	}
	return o, o.checkTransport()
}

// cleanSession drops session attributes that would count for each media section, after moving them there.
func (o *offer) cleanSession() {
	var kept, shared []sdp.Attribute
	for _, a := range o.desc.Attributes {
		switch a.Key {
		case "ice-ufrag", "ice-pwd", "fingerprint", "setup", "sendrecv", "sendonly", "recvonly", "inactive":
			shared = append(shared, a)
		case "candidate", "end-of-candidates", "identity":
		default:
			kept = append(kept, a)
		}
	}
	o.desc.Attributes = kept
	for _, m := range o.desc.MediaDescriptions {
		for _, a := range shared {
			if !has(m, a.Key) && !(isDirection(a.Key) && direction(m) != "") {
				m.Attributes = append(m.Attributes, a)
			}
		}
	}
}

func (o *offer) checkMedia(m *sdp.MediaDescription, publish bool) error {
	kind := m.MediaName.Media
	if kind != "audio" && kind != "video" {
		return unacceptable("It has a media section of kind %q; only audio and video are possible.", short(kind))
	}
	for _, other := range o.kinds {
		if other == kind {
			return unacceptable("It has more than one %s section; offer one.", kind)
		}
	}
	if len(m.MediaName.Formats) > maxFormats || len(m.Attributes) > maxAttributes {
		return malformed("Its %s section has too many payload types or attributes.", kind)
	}
	if profile := strings.Join(m.MediaName.Protos, "/"); profile != "UDP/TLS/RTP/SAVPF" && profile != "UDP/TLS/RTP/SAVP" &&
		profile != "RTP/SAVPF" {
		return unacceptable("Its %s section is of protocol %q; WebRTC uses UDP/TLS/RTP/SAVPF.", kind, short(profile))
	}
	if m.MediaName.Port.Value == 0 && !has(m, "bundle-only") {
		return unacceptable("Its %s section is switched off (port 0); leave it out.", kind)
	}
	mid, _ := m.Attribute("mid")
	if mid == "" || len(mid) > 64 || strings.ContainsAny(mid, " \t") {
		return malformed("Its %s section has no usable a=mid.", kind)
	}
	for _, other := range o.mids {
		if other == mid {
			return malformed("Two media sections have the same a=mid.")
		}
	}
	if !has(m, "rtcp-mux") {
		return unacceptable("Its %s section lacks a=rtcp-mux (RFC 8834); RTP and RTCP share one port here.", kind)
	}
	if err := checkPayloads(m); err != nil {
		return err
	}

	// RFC 9725, section 4.2: a publisher sends; a WHEP player receives. Where a client offers both ways only that one
	// is taken, and pion shall not answer more.
	offered, taken := direction(m), "recvonly"
	if publish {
		taken = "sendonly"
	}
	if offered == "" {
		offered = "sendrecv" // RFC 8866, section 6.7
	}
	if offered != taken && offered != "sendrecv" {
		return unacceptable("Its %s section is %s; it must be %s or sendrecv.", kind, offered, taken)
	}
	o.kinds, o.mids = append(o.kinds, kind), append(o.mids, mid)
	if publish && kind == "video" {
		var err error
		if o.rids, err = simulcast(m); err != nil {
			return err
		}
	}
	return o.cleanMedia(m, taken)
}

// simulcast reads which layers a section sends (RFC 8853, section 5.1); of alternatives the first. One alone is no simulcast.
func simulcast(m *sdp.MediaDescription) (rids []string, err error) {
	named := make(map[string]bool)
	list := ""
	for _, a := range m.Attributes {
		switch fields := strings.Fields(a.Value); {
		case a.Key == "rid" && len(fields) >= 2 && fields[1] == "send":
			named[fields[0]] = true
		case a.Key == "simulcast":
			for i := 0; i+1 < len(fields); i += 2 {
				if fields[i] == "send" {
					list = fields[i+1]
				}
			}
		}
	}
	if list == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(list, ";") {
		rid, _, _ := strings.Cut(part, ",")
		rid = strings.TrimPrefix(rid, "~") // paused at first
		if !named[rid] || len(rid) > 16 || strings.ContainsFunc(rid, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
		}) {
			return nil, malformed("Its a=simulcast names %q, for which there is no a=rid of letters and digits.", short(rid))
		}
		if slices.Contains(rids, rid) {
			return nil, malformed("Its a=simulcast names %q twice.", rid)
		}
		rids = append(rids, rid)
	}
	if len(rids) > maxLayers {
		return nil, unacceptable("It has %d simulcast layers; at most %d are possible.", len(rids), maxLayers)
	}
	if len(rids) == 1 {
		return nil, nil
	}
	return rids, nil
}

// cleanMedia rewrites the attributes of a section: one direction, and only what can be used of the rest.
func (o *offer) cleanMedia(m *sdp.MediaDescription, taken string) error {
	kept := make([]sdp.Attribute, 0, len(m.Attributes)+1)
	candidates := 0
	sources := make(map[string]bool)
	first := firstSource(m)
	if taken == "sendonly" && len(o.rids) > 0 && m.MediaName.Media == "video" {
		clear(first) // layers are told by their rid
	}
	for _, a := range m.Attributes {
		switch a.Key {
		case "sendrecv", "sendonly", "recvonly", "inactive":
			continue
		case "rid", "simulcast":
			continue // written anew below
		case "candidate":
			if candidates++; candidates > maxCandidates {
				return malformed("It has more than %d candidates.", maxCandidates)
			}
			if !usableCandidate(a.Value) {
				continue
			}
		case "extmap":
			var e sdp.ExtMap
			if e.Unmarshal("extmap:"+a.Value) != nil || e.URI == nil || e.Value < 1 || e.Value > 255 {
				continue
			}
		case "ssrc":
			id, _, _ := strings.Cut(a.Value, " ")
			if sources[id] = true; len(sources) > maxSources {
				return malformed("Its %s section declares more than %d SSRCs.", m.MediaName.Media, maxSources)
			}
			if !first[id] {
				continue
			}
		case "ssrc-group":
			if ids := strings.Fields(a.Value); len(ids) < 2 || ids[0] == "SIM" || !first[ids[1]] {
				continue
			}
		}
		kept = append(kept, a)
	}
	if taken == "sendonly" && m.MediaName.Media == "video" && len(o.rids) > 0 {
		for _, rid := range o.rids {
			kept = append(kept, sdp.Attribute{Key: "rid", Value: rid + " send"})
		}
		kept = append(kept, sdp.Attribute{Key: "simulcast", Value: "send " + strings.Join(o.rids, ";")})
	}
	m.Attributes = append(kept, sdp.Attribute{Key: taken})
	return nil
}

// firstSource are the SSRCs of the first stream that a section declares: it, and what repairs it. The others are further layers,
// as encoders have it that name the SSRCs of all; pion takes a section with several streams for one of Plan B.
func firstSource(m *sdp.MediaDescription) map[string]bool {
	first := make(map[string]bool)
	for _, a := range m.Attributes {
		if a.Key == "ssrc" {
			id, _, _ := strings.Cut(a.Value, " ")
			first[id] = true
			break
		}
	}
	for _, a := range m.Attributes {
		// RFC 5576, section 4.2: the first of the group is what the others repair.
		if ids := strings.Fields(a.Value); a.Key == "ssrc-group" && len(ids) > 1 && ids[0] != "SIM" && first[ids[1]] {
			for _, id := range ids[2:] {
				first[id] = true
			}
		}
	}
	return first
}

// checkPayloads makes sure that each payload type is a number and has a codec, so that nobody has to guess later.
func checkPayloads(m *sdp.MediaDescription) error {
	if len(m.MediaName.Formats) == 0 {
		return malformed("Its %s section lists no payload types.", m.MediaName.Media)
	}
	mapped := map[string]bool{"0": true, "8": true, "9": true} // static: PCMU, PCMA, G722 (RFC 3551)
	for _, a := range m.Attributes {
		if a.Key == "rtpmap" {
			pt, _, _ := strings.Cut(a.Value, " ")
			mapped[pt] = true
		}
	}
	kept := m.MediaName.Formats[:0]
	for _, format := range m.MediaName.Formats {
		if n, err := strconv.ParseUint(format, 10, 8); err != nil || n > 127 {
			return malformed("Payload type %q of its %s section is no number up to 127.", short(format), m.MediaName.Media)
		}
		if mapped[format] {
			kept = append(kept, format)
		}
	}
	if len(kept) == 0 {
		return malformed("None of the payload types of its %s section has an a=rtpmap.", m.MediaName.Media)
	}
	m.MediaName.Formats = kept
	return nil
}

// checkBundle asks for one transport for all (max-bundle, RFC 9725, section 4.4.1).
func (o *offer) checkBundle() error {
	grouped := make(map[string]bool)
	kept := o.desc.Attributes[:0]
	for _, a := range o.desc.Attributes {
		if a.Key != "group" {
			kept = append(kept, a)
			continue
		}
		if fields := strings.Fields(a.Value); len(fields) > 0 && fields[0] == "BUNDLE" && len(grouped) == 0 {
			for _, mid := range fields[1:] {
				grouped[mid] = true
			}
		}
	}
	for _, mid := range o.mids {
		if !grouped[mid] && len(o.mids) > 1 {
			return unacceptable("Its media sections are not bundled; use the bundle policy max-bundle.")
		}
	}
	o.desc.Attributes = append(kept, sdp.Attribute{Key: "group", Value: "BUNDLE " + strings.Join(o.mids, " ")})
	return nil
}

// checkStream asks for one MediaStream (RFC 9725, section 4.4.2).
func (o *offer) checkStream() error {
	stream := ""
	for _, m := range o.desc.MediaDescriptions {
		for _, a := range m.Attributes {
			if a.Key != "msid" {
				continue
			}
			id, _, _ := strings.Cut(a.Value, " ")
			if stream != "" && id != stream {
				return unacceptable("Its tracks belong to different MediaStreams; put them into one.")
			}
			stream = id
		}
	}
	return nil
}

// checkTransport looks at ICE and DTLS. The sections are bundled, so the first one speaks for all; the others are made
// to say the same.
func (o *offer) checkTransport() error {
	first := o.desc.MediaDescriptions[0]
	o.ufrag, _ = first.Attribute("ice-ufrag")
	o.pwd, _ = first.Attribute("ice-pwd")
	if !usableCredentials(o.ufrag, o.pwd) {
		return malformed("It lacks a usable a=ice-ufrag or a=ice-pwd (RFC 8839, section 5.4).")
	}
	fingerprint, _ := first.Attribute("fingerprint")
	if err := checkFingerprint(fingerprint); err != nil {
		return malformed("It lacks a usable a=fingerprint: %s.", err)
	}
	setup, _ := first.Attribute("setup")
	switch setup {
	case "", "actpass", "active":
		// The client opens DTLS, the server waits (RFC 9725, section 4.4.4): then a pod needs no way out. Pion would
		// take the active part if it might choose.
		setup = "active"
	case "passive":
		// Not what the RFC wants of a client, but some publish that way.
	default:
		return unacceptable("Its a=setup is %q; use actpass.", short(setup))
	}
	for i, m := range o.desc.MediaDescriptions {
		kept := m.Attributes[:0]
		for _, a := range m.Attributes {
			switch a.Key {
			case "ice-ufrag", "ice-pwd", "fingerprint", "setup":
				continue
			case "candidate", "end-of-candidates":
				if i > 0 {
					continue
				}
			}
			kept = append(kept, a)
		}
		m.Attributes = append(kept,
			sdp.Attribute{Key: "ice-ufrag", Value: o.ufrag}, sdp.Attribute{Key: "ice-pwd", Value: o.pwd},
			sdp.Attribute{Key: "fingerprint", Value: fingerprint}, sdp.Attribute{Key: "setup", Value: setup})
	}
	return nil
}

// usableCredentials are such as RFC 8839, section 5.4, asks for.
func usableCredentials(ufrag, pwd string) bool {
	return len(ufrag) >= 4 && len(ufrag) <= maxCredential && len(pwd) >= 22 && len(pwd) <= maxCredential &&
		!strings.ContainsAny(ufrag+pwd, " \t")
}

func checkFingerprint(value string) error {
	algorithm, digits, _ := strings.Cut(value, " ")
	sizes := map[string]int{"sha-1": 20, "sha-224": 28, "sha-256": 32, "sha-384": 48, "sha-512": 64}
	size := sizes[strings.ToLower(algorithm)]
	if value == "" {
		return errors.New("there is none")
	}
	if size == 0 {
		return fmt.Errorf("hash %q is not known", short(algorithm))
	}
	if sum, err := hex.DecodeString(strings.ReplaceAll(digits, ":", "")); err != nil || len(sum) != size {
		return errors.New("its digits do not fit the hash")
	}
	return nil
}

// marshal is the offer as pion gets it.
func (o *offer) marshal() (string, error) {
	raw, err := o.desc.Marshal()
	return string(raw), err
}

// usableCandidate says whether an ICE candidate can lead anywhere from here: UDP to a plain address. Host names and
// mDNS are not looked up for strangers, and passed over in silence (RFC 9725, section 4.3.2).
func usableCandidate(value string) bool {
	if len(value) > 512 {
		return false
	}
	c, err := ice.UnmarshalCandidate(value)
	if err != nil || c.Component() != ice.ComponentRTP || c.NetworkType().IsTCP() {
		return false
	}
	addr, err := netip.ParseAddr(c.Address())
	if err != nil {
		return false
	}
	return c.Port() > 0 && !addr.IsUnspecified() && !addr.IsMulticast()
}

func isDirection(key string) bool {
	switch key {
	case "sendrecv", "sendonly", "recvonly", "inactive":
		return true
	}
	return false
}

func direction(m *sdp.MediaDescription) string {
	for _, a := range m.Attributes {
		if isDirection(a.Key) {
			return a.Key
		}
	}
	return ""
}

func has(m *sdp.MediaDescription, key string) bool {
	_, ok := m.Attribute(key)
	return ok
}

// short bounds what is repeated of a stranger's words.
func short(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
