package pionsfu

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Offers as other publishers and players make them are answered so that these can go on. The files are written in their manner:
// OBS has libdatachannel, with credentials in the session part and a group of its own; GStreamer has webrtcbin, with one codec, and
// mids that are words, and of bundled sections all but the first at port 0.
func TestOffersOfOtherClients(t *testing.T) {
	for name, tt := range map[string]struct {
		path     string
		contains []string
	}{
		"obs.sdp": {"/whip/obs", []string{
			"a=group:BUNDLE 0 1", "a=rtpmap:111 opus/48000/2", "a=rtpmap:96 H264/90000", "a=rtcp-fb:96 nack pli", "a=recvonly",
		}},
		"obs-video.sdp": {"/whip/obs-video", []string{"a=group:BUNDLE 0", "a=rtpmap:96 H264/90000"}},
		"gstreamer-whip.sdp": {"/whip/gstreamer", []string{
			"a=group:BUNDLE video0 audio1", "a=rtpmap:96 H264/90000", "a=rtpmap:97 opus/48000/2", "a=mid:video0", "a=recvonly",
		}},
		"gstreamer-vp8.sdp": {"/whip/gstreamer-vp8", []string{"a=group:BUNDLE video0", "a=rtpmap:96 VP8/90000", "a=rtcp-fb:96 nack pli"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := run(t, Config{})
			text, err := os.ReadFile(filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			offer := strings.ReplaceAll(string(text), "\n", "\r\n")
			a := s.post(t, tt.path, offer)
			a.want(t, http.StatusCreated)
			sections := strings.Count(offer, "m=")
			for _, line := range append(tt.contains, "a=setup:passive", "a=rtcp-mux", "a=end-of-candidates", "a=fingerprint:sha-256") {
				if !strings.Contains(strings.ToLower(a.body), strings.ToLower(line)) {
					t.Errorf("no %q in the answer:\n%s", line, a.body)
				}
			}
			if n := len(regexp.MustCompile(`(?m)^m=(audio|video) [1-9]`).FindAllString(a.body, -1)); n != sections {
				t.Errorf("%d of %d sections are taken:\n%s", n, sections, a.body)
			}
			if !regexp.MustCompile(`(?m)^a=candidate:.* typ host`).MatchString(a.body) {
				t.Errorf("no candidate in the answer:\n%s", a.body)
			}
			// What these clients do at the end.
			s.do(t, http.MethodDelete, a.location(t), "").want(t, http.StatusOK)
		})
	}
}
