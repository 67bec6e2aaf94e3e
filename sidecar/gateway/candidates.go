package gateway

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// hostPriority is that of the best host candidate of component 1 (RFC 8445 section 5.1.2.1): within the clusters'
// network the pod's own address is the shortest way.
const hostPriority = 126<<24 | 65535<<8 | 255

// addCandidate adds to a session description, in each section that has candidates, host candidates with the pod's own
// address and the ports of the server's UDP candidates there. Where the server offers that address itself, or no UDP
// port that could be reached by it, the description stays as it is.
func addCandidate(sdp []byte, ip netip.Addr) []byte {
	if !ip.IsValid() {
		return sdp
	}
	ip = ip.Unmap()
	lines := bytes.SplitAfter(sdp, []byte("\n"))
	var out []byte
	var ports []uint16 // of the section, in order
	last := -1         // index in out after the section's last candidate
	var ending string  // of its lines
	flush := func() {
		if last < 0 {
			return
		}
		var added []byte
		for i, port := range ports {
			added = append(added, "a=candidate:sidestream"+strconv.Itoa(i)+" 1 udp "+strconv.Itoa(hostPriority)+" "+ip.String()+" "+
				strconv.Itoa(int(port))+" typ host"+ending...)
		}
		out = append(out[:last:last], append(added, out[last:]...)...)
		ports, last = nil, -1
	}
	for _, line := range lines {
		text := strings.TrimRight(string(line), "\r\n")
		if strings.HasPrefix(text, "m=") {
			flush()
		}
		out = append(out, line...)
		c, ok := parseCandidate(text)
		if !ok {
			continue
		}
		if c.host && c.addr == ip {
			return sdp
		}
		if ending = string(line[len(text):]); !strings.HasSuffix(ending, "\n") { // what follows is a line of its own
			out = append(out[:len(out)-len(ending)], "\r\n"...)
			ending = "\r\n"
		}
		last = len(out)
		if c.port != 0 && !slices.Contains(ports, c.port) {
			ports = append(ports, c.port)
		}
	}
	flush()
	return out
}

// candidate is what matters of an ICE candidate here: a UDP port that the server has open itself.
type candidate struct {
	addr netip.Addr // invalid for names
	port uint16     // the local port; 0 where it is not the server's own, or not UDP
	host bool       // a UDP candidate of the server's own address
	udp  bool
}

// parseCandidate reads a candidate line of component 1 (RFC 8839 section 5.1).
func parseCandidate(line string) (candidate, bool) {
	value, ok := strings.CutPrefix(line, "a=candidate:")
	if !ok {
		return candidate{}, false
	}
	f := strings.Fields(value)
	if len(f) < 8 || f[6] != "typ" {
		return candidate{}, false
	}
	if f[1] != "1" || !strings.EqualFold(f[2], "udp") {
		return candidate{}, true
	}
	c := candidate{udp: true}
	c.addr, _ = netip.ParseAddr(f[4])
	c.addr = c.addr.Unmap()
	port := f[5]
	switch f[7] {
	case "host":
		c.host = true
	case "srflx": // the port behind the address translation is the related one
		port = ""
		for i := 8; i+1 < len(f); i += 2 {
			if f[i] == "rport" {
				port = f[i+1]
			}
		}
	default: // a relay's port is the relay's
		return c, true
	}
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		c.port = uint16(n)
	}
	return c, true
}

// answerError says why a server's answer to a pull is of no use to anybody.
type answerError struct{ reason string }

func (e *answerError) Error() string {
	return "Media server's answer to a pull is of no use: " + e.reason + "."
}

// unusable says why no child could connect by an answer. One without candidates is usable: the server may find the child by
// the child's own, unless it is an ICE-lite one (RFC 8445 section 2.5), which only waits.
func unusable(sdp []byte) error {
	var candidates, udp, reachable, lite bool
	for line := range bytes.Lines(sdp) {
		text := strings.TrimRight(string(line), "\r\n")
		lite = lite || text == "a=ice-lite"
		c, ok := parseCandidate(text)
		if !ok {
			continue
		}
		candidates = true
		udp = udp || c.udp
		reachable = reachable || c.udp && !(c.addr.IsValid() && c.addr.IsUnspecified())
	}
	switch {
	case !bytes.HasPrefix(sdp, []byte("v=")):
		return &answerError{"it is no session description"}
	case candidates && !udp:
		return &answerError{"it offers no candidate by UDP; let the server listen on a UDP port that other pods reach"}
	case candidates && !reachable:
		return &answerError{"its candidates name no address; set the one that the server advertises"}
	case !candidates && lite:
		return &answerError{"it is an ICE-lite server's and has no candidates; set the address that the server advertises"}
	}
	return nil
}
