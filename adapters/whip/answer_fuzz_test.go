package whip

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
)

// answering is a server that answers every POST alike.
type answering struct {
	status         int
	body, location string
	link           string
}

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	h := http.Header{"Content-Type": {"application/sdp"}}
	if a.location != "" {
		h["Location"] = []string{a.location}
	}
	if a.link != "" {
		h["Link"] = []string{a.link}
	}
	status := a.status
	if r.Method != http.MethodPost {
		status = http.StatusOK
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Header: h, Body: io.NopCloser(strings.NewReader(a.body)), Request: r}, nil
}

// FuzzAnswer opens a session at a server that answers the offer with whatever it likes. There is an error or a session, and what was
// begun ends.
func FuzzAnswer(f *testing.F) {
	const answer = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n" +
		"m=audio 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\n" +
		"a=fingerprint:sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF\r\n" +
		"a=setup:active\r\na=sendonly\r\na=rtcp-mux\r\na=rtpmap:111 opus/48000/2\r\n" +
		"m=video 9 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\na=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\n" +
		"a=setup:active\r\na=sendonly\r\na=rtcp-mux\r\na=rtpmap:96 VP8/90000\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n"
	f.Add(201, answer, "/session/1", `<stun:stun.example.org>; rel="ice-server"`)
	f.Add(201, strings.ReplaceAll(answer, "UDP/TLS/RTP/SAVPF 96", "UDP/TLS/RTP/SAVPF 96 4000000000"), "http://[::1", "")
	f.Add(406, answer, "/session/1", `<turn:a>; rel="ice-server"; username="u"; credential="c"`)
	f.Add(307, "", "/elsewhere", "")
	var engine webrtc.SettingEngine
	engine.SetInterfaceFilter(func(string) bool { return false })
	var codecs webrtc.MediaEngine
	if err := codecs.RegisterDefaultCodecs(); err != nil {
		f.Fatal(err)
	}
	api := webrtc.NewAPI(webrtc.WithMediaEngine(&codecs), webrtc.WithSettingEngine(engine))
	f.Fuzz(func(t *testing.T, status int, body, location, link string) {
		if status < 200 || status > 599 || strings.ContainsAny(location+link, "\r\n\x00") {
			t.Skip() // net/http lets none of these by
		}
		var made []*webrtc.PeerConnection
		client := &Client{
			HTTP: &http.Client{Transport: answering{status, body, location, link}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
			NewPeerConnection: func(c webrtc.Configuration) (*webrtc.PeerConnection, error) {
				pc, err := api.NewPeerConnection(c)
				if err == nil {
					made = append(made, pc)
				}
				return pc, err
			},
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		session, err := client.Play(ctx, adapters.Endpoint{URL: &url.URL{Scheme: "http", Host: "192.0.2.7", Path: "/whep"}}, nil)
		if err == nil {
			ended, stop := context.WithTimeout(t.Context(), 2*time.Second)
			_ = session.Close(ended)
			stop()
		}
		for i, pc := range made {
			if pc.ConnectionState() != webrtc.PeerConnectionStateClosed {
				t.Errorf("connection %d of %d is left %s after %v", i, len(made), pc.ConnectionState(), err)
				_ = pc.Close()
			}
		}
	})
}
