package pionsfu

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// restart begins a client's ICE anew, and says what the server answered.
func (s *sfu) restart(t *testing.T, session *whip.Session, match string) (answered, whip.Fragment) {
	t.Helper()
	pc := session.PeerConnection()
	before := pc.RemoteDescription().SDP
	offer, err := pc.CreateOffer(&webrtc.OfferOptions{ICERestart: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := pc.SetLocalDescription(offer); err != nil {
		t.Fatal(err)
	}
	<-webrtc.GatheringCompletePromise(pc)
	local := pc.LocalDescription().SDP
	var candidates []string
	for _, line := range regexp.MustCompile(`(?m)^a=candidate:(.*)\r$`).FindAllStringSubmatch(local, -1) {
		candidates = append(candidates, line[1])
	}
	a := s.patch(t, session.Location().Path, fragment(local, candidates...), "If-Match", match)
	a.want(t, http.StatusOK)
	theirs, err := whip.ParseFragment([]byte(a.body))
	if err != nil {
		t.Fatal(err)
	}
	ufrag, pwd := theirs.Credentials()
	answer := regexp.MustCompile(`a=ice-ufrag:.*\r\n`).ReplaceAllString(before, "a=ice-ufrag:"+ufrag+"\r\n")
	answer = regexp.MustCompile(`a=ice-pwd:.*\r\n`).ReplaceAllString(answer, "a=ice-pwd:"+pwd+"\r\n")
	answer = regexp.MustCompile(`a=(candidate:.*|end-of-candidates)\r\n`).ReplaceAllString(answer, "")
	lines := ""
	for _, c := range theirs.AllCandidates() {
		lines += "a=candidate:" + c + "\r\n"
	}
	first := strings.Index(answer, "m=")
	at := first + strings.Index(answer[first:], "a=")
	answer = answer[:at] + lines + answer[at:]
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: answer}); err != nil {
		t.Fatalf("%v\n%s", err, answer)
	}
	return a, theirs
}

// A publisher and a viewer restart ICE, more than once, and the frames go on.
func restartICE(t *testing.T) {
	s := run(t, Config{AdvertisedIPs: []string{"203.0.113.7"}})
	h := s.clients(t)
	publisher := h.Publish(t, "p4")
	publisher.WaitConnected()
	viewer := h.Play(t, "p4")
	viewer.WaitFrames(5)
	for _, session := range []*whip.Session{publisher.Session, viewer.Session, publisher.Session} {
		etag, was := session.ETag(), session.PeerConnection().RemoteDescription().SDP
		for _, match := range []string{"*", `"*"`} {
			a, theirs := s.restart(t, session, match)
			now := a.Header.Get("ETag")
			if !regexp.MustCompile(`^"[!#-~]+"$`).MatchString(now) || now == etag {
				t.Errorf("ETag %s after %s", now, etag)
			}
			if kind := a.Header.Get("Content-Type"); kind != trickleType {
				t.Errorf("Content-Type %q", kind)
			}
			ufrag, pwd := theirs.Credentials()
			if ufrag == "" || pwd == "" || strings.Contains(was, ufrag) || strings.Contains(was, pwd) {
				t.Errorf("credentials %q %q are not new", ufrag, pwd)
			}
			// As before: no ICE options, full ICE (RFC 9725, section 4.3.3), and all candidates.
			if theirs.Lite || len(theirs.Options) > 0 || len(theirs.AllCandidates()) != 2 ||
				!strings.Contains(theirs.AllCandidates()[0], "203.0.113.7") {
				t.Errorf("%+v", theirs)
			}
			// The ETag of before is of no use any more.
			local := session.PeerConnection().LocalDescription().SDP
			s.patch(t, session.Location().Path, fragment(local), "If-Match", etag).want(t, http.StatusPreconditionFailed)
			s.patch(t, session.Location().Path, fragment(local), "If-Match", now).want(t, http.StatusNoContent)
			etag = now
			viewer.WaitFrames(viewer.Stats().Frames + 25)
		}
	}
	if bad := viewer.Stats(); bad.Frames < 100 {
		t.Errorf("%+v", bad)
	}
	s.do(t, http.MethodDelete, viewer.Session.Location().Path, "").want(t, http.StatusOK)
}

// A restart that cannot be leaves everything as it was.
func restartRefused(t *testing.T) {
	s := run(t, Config{})
	h := s.clients(t)
	publisher := h.Publish(t, "p5")
	publisher.WaitConnected()
	viewer := h.Play(t, "p5")
	viewer.WaitFrames(5)
	path := publisher.Session.Location().Path
	for _, body := range []string{
		"m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=ice-ufrag:abc\r\na=ice-pwd:abcdefghijklmnopqrstuv\r\n",
		"m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=ice-ufrag:abcd\r\n",
		"m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=ice-ufrag:abcd\r\na=ice-pwd:short\r\n",
	} {
		s.patch(t, path, body, "If-Match", "*").want(t, http.StatusBadRequest)
	}
	s.patch(t, path, fragment(publishOffer(t)), "If-Match", `"stale"`).want(t, http.StatusPreconditionFailed)
	s.patch(t, path, fragment(publishOffer(t))).want(t, http.StatusPreconditionRequired)
	viewer.WaitFrames(viewer.Stats().Frames + 10)

	// Nobody may keep the server busy with it.
	idle := s.publish(t, "idle").location(t)
	statuses, began := make(map[int]int), time.Now()
	for range 3 * restartBurst {
		a := s.patch(t, idle, fragment(publishOffer(t)), "If-Match", "*")
		if statuses[a.StatusCode]++; a.StatusCode == http.StatusTooManyRequests && a.Header.Get("Retry-After") == "" {
			t.Error("429 without Retry-After")
		}
	}
	if most := restartBurst + 1 + int(time.Since(began)/restartEvery); statuses[http.StatusOK] < restartBurst ||
		statuses[http.StatusOK] > most || len(statuses) != 2 {
		t.Errorf("answers: %v", statuses)
	}
	s.do(t, http.MethodGet, idle, "").want(t, http.StatusNoContent)
}

// Both kinds of PATCH are taken, so that none is answered by 422; of what a server lacks, that of an answered counter-offer is one.
func restartAndTrickle(t *testing.T) {
	s := run(t, Config{})
	offer := publishOffer(t)
	a := s.post(t, "/whip/p6", offer)
	a.want(t, http.StatusCreated)
	s.patch(t, a.location(t), fragment(offer), "If-Match", a.Header.Get("ETag")).want(t, http.StatusNoContent)
	s.patch(t, a.location(t), fragment(publishOffer(t)), "If-Match", "*").want(t, http.StatusOK)
}

func laxETags(t *testing.T) {
	s := run(t, Config{LaxETags: true})
	offer := publishOffer(t)
	path := s.post(t, "/whip/p2", offer).location(t)
	s.patch(t, path, fragment(offer)).want(t, http.StatusNoContent)
	s.patch(t, path, fragment(offer), "If-Match", `"stale"`).want(t, http.StatusNoContent)
	a := s.patch(t, path, fragment(publishOffer(t)))
	a.want(t, http.StatusOK)
	if a.Header.Get("ETag") == "" {
		t.Error("no ETag after a restart")
	}
	s.patch(t, path, "nonsense").want(t, http.StatusBadRequest)
}

func FuzzReadPatch(f *testing.F) {
	now := iceSession{"ufrag", "passwordpasswordpassword", "0"}
	f.Add([]byte("m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\na=end-of-candidates\r\n"), `"tag"`, false)
	f.Add([]byte("a=ice-ufrag:other\r\na=ice-pwd:wordpasswordpasswordpass\r\n"), "*", false)
	f.Add([]byte("a=ice-ufrag:ufrag\r\nm=video 9 RTP/AVP 0\r\na=mid:1\r\na=candidate:x\r\n"), "", true)
	f.Fuzz(func(t *testing.T, body []byte, match string, lax bool) {
		p, err := readPatch(body, match, `"tag"`, now, lax)
		if err != nil {
			why, ok := err.(*refusal) //nolint:errorlint // as it is made
			if !ok || why.status < 400 || why.status > 499 || why.detail == "" {
				t.Fatalf("refused by %v", err)
			}
			return
		}
		if trimmed := strings.TrimSpace(match); !lax && trimmed != "*" && trimmed != `"*"` && trimmed != `"tag"` {
			t.Fatalf("taken with If-Match %q", match)
		}
		if len(p.candidates) > maxCandidates || slices.ContainsFunc(p.candidates, func(c string) bool { return !usableCandidate(c) }) {
			t.Fatalf("candidates %q", p.candidates)
		}
		if p.restart == (iceSession{}) {
			return
		}
		if !usableCredentials(p.restart.ufrag, p.restart.pwd) || p.restart.ufrag == now.ufrag && p.restart.pwd == now.pwd {
			t.Fatalf("restart by %+v", p.restart)
		}
		offer, err := checkOffer([]byte(fuzzOffer), true)
		if err != nil {
			t.Fatal(err)
		}
		again, err := offer.restarted(p)
		if err != nil {
			t.Fatal(err)
		}
		if checked, err := checkOffer([]byte(again), true); err != nil || checked.ufrag != p.restart.ufrag || checked.pwd != p.restart.pwd {
			t.Fatalf("%v in\n%s", err, again)
		}
	})
}

const fuzzOffer = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n" +
	"c=IN IP4 0.0.0.0\r\na=mid:0\r\na=sendonly\r\na=rtcp-mux\r\na=setup:actpass\r\na=ice-ufrag:ufrag\r\na=ice-pwd:passwordpasswordpassword\r\n" +
	"a=fingerprint:sha-256 00:01:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:10:11:12:13:14:15:16:17:18:19:1A:1B:1C:1D:1E:1F\r\n" +
	"a=rtpmap:111 opus/48000/2\r\n"
