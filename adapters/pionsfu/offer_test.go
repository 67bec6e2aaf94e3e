package pionsfu

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// minimalOffer has what must be there, and nothing else: attributes of the session that count for its one section, an
// active DTLS side, no candidates.
const minimalOffer = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n" +
	"a=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuv\r\na=sendonly\r\na=setup:active\r\n" +
	"a=fingerprint:sha-256 00:01:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:" +
	"10:11:12:13:14:15:16:17:18:19:1A:1B:1C:1D:1E:1F\r\n" +
	"m=audio 9 UDP/TLS/RTP/SAVPF 0\r\nc=IN IP4 0.0.0.0\r\na=mid:a\r\na=rtcp-mux\r\n"

func TestMinimalOffer(t *testing.T) {
	o, err := checkOffer([]byte(minimalOffer), true)
	if err != nil {
		t.Fatal(err)
	}
	text, err := o.marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"a=group:BUNDLE a\r\n", "a=sendonly\r\n", "a=ice-ufrag:abcd\r\n", "a=setup:active\r\n", "a=fingerprint:sha-256 00:01",
	} {
		if _, section, _ := strings.Cut(text, "m="); !strings.Contains(section, line) && !strings.HasPrefix(line, "a=group") ||
			strings.Count(text, line) != 1 {
			t.Errorf("not exactly one %q in its section:\n%s", line, text)
		}
	}
	run(t, Config{}).post(t, "/whip/minimal", minimalOffer).want(t, 201)
}

// Encoders that name the SSRCs of all their layers are taken, with simulcast or without.
func TestDeclaredSources(t *testing.T) {
	const sources = "a=ssrc-group:SIM 44 66\r\na=ssrc-group:FID 44 55\r\na=ssrc-group:FID 66 77\r\n" +
		"a=ssrc:44 cname:x\r\na=ssrc:55 cname:x\r\na=ssrc:66 cname:x\r\na=ssrc:77 cname:x\r\n"
	for name, tt := range map[string]struct {
		layers string
		want   []string
	}{
		"one layer": {"", []string{"a=ssrc-group:FID 44 55", "a=ssrc:44 cname:x", "a=ssrc:55 cname:x"}},
		"simulcast": {"a=rid:h send\r\na=rid:l send\r\na=simulcast:send h;l\r\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			offer := publishOffer(t)
			at := strings.Index(offer, "a=mid:1\r\n") + len("a=mid:1\r\n")
			head, video := offer[:at], strings.Split(offer[at:], "\r\n")
			video = slices.DeleteFunc(video, func(l string) bool { return strings.HasPrefix(l, "a=ssrc") })
			offer = head + sources + tt.layers + strings.Join(video, "\r\n")
			o, err := checkOffer([]byte(offer), true)
			if err != nil {
				t.Fatal(err)
			}
			text, err := o.marshal()
			if err != nil {
				t.Fatal(err)
			}
			_, section, _ := strings.Cut(text, "m=video")
			var got []string
			for line := range strings.SplitSeq(section, "\r\n") {
				if strings.HasPrefix(line, "a=ssrc") {
					got = append(got, line)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("declares %q; want %q", got, tt.want)
			}
			run(t, Config{}).post(t, "/whip/sources", offer).want(t, 201)
		})
	}
}

func TestUsableCandidate(t *testing.T) {
	for candidate, want := range map[string]bool{
		"1 1 udp 2130706431 192.0.2.1 5000 typ host":                                  true,
		"1 1 UDP 2130706431 2001:db8::1 5000 typ host":                                true,
		"1 1 udp 1694498815 203.0.113.9 61000 typ srflx raddr 192.0.2.1 rport 5000":   true,
		"1 1 udp 41885439 203.0.113.9 61000 typ relay raddr 192.0.2.1 rport 5000":     true,
		"1 2 udp 2130706431 192.0.2.1 5001 typ host":                                  false,
		"1 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active":                      false,
		"1 1 udp 2130706431 f0a8c9f2-1c5e-4c7c-9f5c-000000000000.local 5000 typ host": false,
		"1 1 udp 2130706431 metadata.internal 80 typ host":                            false,
		"1 1 udp 2130706431 0.0.0.0 5000 typ host":                                    false,
		"1 1 udp 2130706431 224.0.0.1 5000 typ host":                                  false,
		"1 1 udp 2130706431 192.0.2.1 0 typ host":                                     false,
		"1 1 udp 2130706431 192.0.2.1 99999 typ host":                                 false,
		"": false,
		"1 1 udp 2130706431 192.0.2.1 5000 typ host " + strings.Repeat("x y ", 200): false,
	} {
		if got := usableCandidate(candidate); got != want {
			t.Errorf("%q: usable %t; want %t", candidate, got, want)
		}
	}
}

// FuzzOffer: no offer makes checkOffer panic, what it lets through it lets through again, and pion answers it or says why
// not.
func FuzzOffer(f *testing.F) {
	for _, offer := range []string{minimalOffer, publishOffer(f), playOffer(f)} {
		for _, replace := range []struct{ old, with string }{
			{"", ""},
			{"a=mid:1", "a=mid:0"},
			{"a=setup:", "a=setup:x"},
			{"96", "0"},
			{"apt=", "apt=x"},
			{"a=extmap:", "a=extmap:99"},
			{"H264/90000", "H264/90000/999999999999"},
			{"a=sendonly", "a=rid:x send\r\na=simulcast:send x"},
			{"nack pli", "nack " + strings.Repeat("a", 1000)},
			{"a=rtcp-mux\r\n", "a=rtcp-mux\r\na=candidate:1 1 udp 1 ::1 1 typ host\r\n"},
			{"a=msid:", "a=ssrc-group:FID 1 2 3\r\na=ssrc:-1 x\r\na=ssrc:4294967296\r\na=msid:"},
		} {
			f.Add([]byte(strings.ReplaceAll(offer, replace.old, replace.with)), strings.Contains(offer, "a=sendonly"))
		}
	}
	server, err := New(Config{UDPAddr: "127.0.0.1:0"})
	if err != nil {
		f.Fatal(err)
	}
	mux := newMux(server.sockets)
	f.Cleanup(func() { _ = mux.Close() })
	f.Fuzz(func(t *testing.T, body []byte, publish bool) {
		offer, err := checkOffer(body, publish)
		if err != nil {
			return
		}
		text, err := offer.marshal()
		if err != nil {
			t.Fatalf("accepted, but cannot be written: %v", err)
		}
		if _, err := checkOffer([]byte(text), publish); err != nil {
			t.Fatalf("accepted once, but not again: %v\n%s", err, text)
		}
		s := newSession("fuzz", "fuzz", publish)
		s.offer = offer
		prepare := func(*webrtc.PeerConnection) error { return nil }
		if publish {
			s.publication = newPublication(s, func() {})
			s.conn = media.NewConn(media.Transport{UDPMux: mux}, s.onTrack)
			prepare = s.published
		} else {
			s.conn = media.NewConn(media.Transport{UDPMux: mux}, nil)
		}
		if _, err := s.negotiate(context.Background(), server, prepare); err == nil {
			if err := s.pc.GracefulClose(); err != nil {
				t.Error(err)
			}
		}
	})
}
