package pionsfu

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// conformance is the checklist for WHIP (RFC 9725) and WHEP servers: S for the endpoints, P for the session addresses, E for the
// extensions of WHEP.
var conformance = []struct {
	row   string
	tests []func(*testing.T)
}{
	{"S1", []func(*testing.T){offerIsPosted}},
	{"S2", []func(*testing.T){answerAndLocation}},
	{"S3", []func(*testing.T){wrongContentType, malformedOffer}},
	{"S4", []func(*testing.T){offeredDirection}},
	{"S5", []func(*testing.T){allCandidatesInAnswer}},
	{"S6", []func(*testing.T){entityTag}},
	{"S7", []func(*testing.T){bundleAndMux}},
	{"S8", []func(*testing.T){oneAudioAndOneVideo}},
	{"S9", []func(*testing.T){noPartialAcceptance}},
	{"S10", []func(*testing.T){setup}},
	{"S11", []func(*testing.T){fullICE, liteICE}},
	{"S12", []func(*testing.T){options}},
	{"S13", []func(*testing.T){getAndHead}},
	{"S14", []func(*testing.T){neverRedirects, redirectsForLoad}},
	{"S15", []func(*testing.T){overload}},
	{"S16", []func(*testing.T){nothingPublished, publishedAlready}},
	{"S17", []func(*testing.T){iCEServers}},
	{"S18", []func(*testing.T){iCEServersInOptions}},
	{"S19", []func(*testing.T){extensions}},
	{"S20", []func(*testing.T){simulcastRow}},
	{"S21", []func(*testing.T){bearerTokens, statusNeedsSomeToken, judgeElsewhere}},
	{"S22", []func(*testing.T){unknownPage}},
	{"S23", []func(*testing.T){sessionAddressesCannotBeGuessed, ratePerAddress}},
	{"S24", []func(*testing.T){counterOffer, counterOfferRefused}},
	{"P1", []func(*testing.T){patchContentType}},
	{"P2", []func(*testing.T){ifMatch, laxETags}},
	{"P3", []func(*testing.T){trickle, trickledCandidatesConnect}},
	{"P4", []func(*testing.T){restartICE}},
	{"P5", []func(*testing.T){restartRefused}},
	{"P6", []func(*testing.T){restartAndTrickle}},
	{"P7", []func(*testing.T){deleteEnds}},
	{"P8", []func(*testing.T){deadSessionIsGone, lostSessionIsGone}},
	{"P9", []func(*testing.T){sessionMethods}},
	{"P10", []func(*testing.T){deleteTellsTheTruth}},
	{"E1", []func(*testing.T){subscriptions, eventStream}},
	{"E2", []func(*testing.T){reconnectOnDrain}},
	{"E3", []func(*testing.T){viewerCount}},
	{"E4", []func(*testing.T){layersTold}},
	{"E5", []func(*testing.T){layerSelection}},
}

func TestConformance(t *testing.T) {
	covered := make(map[string]bool)
	for _, c := range conformance {
		covered[c.row] = len(c.tests) > 0
		t.Run(c.row, func(t *testing.T) {
			t.Parallel()
			for _, test := range c.tests {
				test(t)
			}
		})
	}
	for kind, n := range map[string]int{"S": 24, "P": 10, "E": 5} {
		for i := range n {
			if row := fmt.Sprint(kind, i+1); !covered[row] {
				t.Errorf("row %s has no test", row)
			}
		}
	}
}

// publishOffer and playOffer are what a pion client sends. Nobody is there to connect.
func publishOffer(t testing.TB) string { return makeOffer(t, webrtc.RTPTransceiverDirectionSendonly) }

func playOffer(t testing.TB) string { return makeOffer(t, webrtc.RTPTransceiverDirectionRecvonly) }

func makeOffer(t testing.TB, direction webrtc.RTPTransceiverDirection) string {
	t.Helper()
	pc, err := media.Transport{Loopback: true}.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.GracefulClose() //nolint:errcheck // never connected
	for _, mime := range []string{webrtc.MimeTypeOpus, webrtc.MimeTypeH264} {
		// The one stream of both tracks, which is what a publisher must have.
		track, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: mime}, mime[:5], "stream")
		if err != nil {
			t.Fatal(err)
		}
		if direction == webrtc.RTPTransceiverDirectionSendonly {
			_, err = pc.AddTransceiverFromTrack(track, webrtc.RTPTransceiverInit{Direction: direction})
		} else {
			_, err = pc.AddTransceiverFromKind(track.Kind(), webrtc.RTPTransceiverInit{Direction: direction})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	offer, err := pc.CreateOffer(nil)
	if err != nil {
		t.Fatal(err)
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(offer); err != nil {
		t.Fatal(err)
	}
	<-gathered
	return pc.LocalDescription().SDP
}

type answered struct {
	*http.Response
	body string
}

// do sends a request; header fields come as pairs.
func (s *sfu) do(t testing.TB, method, path, body string, header ...string) answered {
	t.Helper()
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answered{response, string(read)}
}

func (s *sfu) post(t testing.TB, path, body string, header ...string) answered {
	t.Helper()
	return s.do(t, http.MethodPost, path, body, append([]string{"Content-Type", "application/sdp"}, header...)...)
}

// publish opens a session that never connects.
func (s *sfu) publish(t testing.TB, stream string, header ...string) answered {
	t.Helper()
	a := s.post(t, "/whip/"+stream, publishOffer(t), header...)
	a.want(t, http.StatusCreated)
	return a
}

// want checks the status; an error must be a problem in words.
func (a answered) want(t testing.TB, status int) {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("%s %s: %s %q; want %d", a.Request.Method, a.Request.URL.Path, a.Status, a.body, status)
	}
	if status < 400 || a.Request.Method == http.MethodHead {
		return
	}
	var problem adapters.Problem
	kind := a.Header.Get("Content-Type")
	if err := json.Unmarshal([]byte(a.body), &problem); err != nil || kind != adapters.ProblemType {
		t.Errorf("%d is no problem+json: %q (%s)", status, a.body, kind)
	}
	if problem.Title == "" || problem.Detail == "" || problem.Status != status {
		t.Errorf("problem says too little: %+v", problem)
	}
}

func (a answered) location(t testing.TB) string {
	t.Helper()
	u, err := url.Parse(a.Header.Get("Location"))
	if err != nil || u.Path == "" {
		t.Fatalf("Location %q", a.Header.Get("Location"))
	}
	return u.Path
}

func offerIsPosted(t *testing.T) {
	s := run(t, Config{})
	for _, kind := range []string{"application/sdp", "application/sdp; charset=utf-8", "Application/SDP"} {
		a := s.do(t, http.MethodPost, "/whip/s1", publishOffer(t), "Content-Type", kind)
		a.want(t, http.StatusCreated)
		s.do(t, http.MethodDelete, a.location(t), "").want(t, http.StatusOK)
	}
}

func answerAndLocation(t *testing.T) {
	s := run(t, Config{})
	a := s.publish(t, "s2")
	if kind := a.Header.Get("Content-Type"); kind != "application/sdp" {
		t.Errorf("Content-Type %q", kind)
	}
	if !strings.HasPrefix(a.body, "v=0\r\n") {
		t.Errorf("no SDP: %q", a.body)
	}
	if location := a.Header.Get("Location"); !regexp.MustCompile(`^/session/[A-Z2-7]{26}$`).MatchString(location) {
		t.Errorf("Location %q", location)
	}

	absolute := run(t, Config{PublicURL: "https://east.example/"})
	location := absolute.publish(t, "s2").Header.Get("Location")
	if !strings.HasPrefix(location, "https://east.example/session/") {
		t.Errorf("Location %q with a public URL", location)
	}
}

func wrongContentType(t *testing.T) {
	s := run(t, Config{})
	for _, path := range []string{"/whip/s3", "/whep/s3"} {
		for _, kind := range []string{"", "application/json", "text/plain", "application/sdpx"} {
			s.do(t, http.MethodPost, path, publishOffer(t), "Content-Type", kind).want(t, http.StatusUnsupportedMediaType)
		}
	}
}

func malformedOffer(t *testing.T) {
	s := run(t, Config{})
	offer := publishOffer(t)
	candidate := "a=candidate:1 1 udp 2130706431 192.0.2.1 5000 typ host\r\n"
	for name, body := range map[string]string{
		"empty":               "",
		"nonsense":            "hello",
		"binary":              "\x00\xff\x01",
		"truncated":           offer[:len(offer)/20],
		"no mid":              strings.ReplaceAll(offer, "a=mid:", "a=dim:"),
		"no ice":              strings.ReplaceAll(offer, "a=ice-ufrag:", "a=ufrag:"),
		"no fingerprint":      strings.ReplaceAll(offer, "a=fingerprint:", "a=finger:"),
		"bad fingerprint":     strings.ReplaceAll(offer, "a=fingerprint:sha-256 ", "a=fingerprint:sha-256 zz:"),
		"payload type":        strings.ReplaceAll(offer, "SAVPF 111", "SAVPF 311"),
		"thousand candidates": offer + strings.Repeat(candidate, 1000),
	} {
		t.Run(name, func(t *testing.T) {
			s.post(t, "/whip/s3", body).want(t, http.StatusBadRequest)
			play := strings.ReplaceAll(body, "a=sendonly", "a=recvonly")
			s.post(t, "/whep/s3", play).want(t, http.StatusBadRequest)
		})
	}
	s.post(t, "/whip/s3", strings.Repeat("a", maxBody+1)).want(t, http.StatusRequestEntityTooLarge)
	s.post(t, "/whip/"+strings.Repeat("n", 300), offer).want(t, http.StatusBadRequest)
	s.post(t, "/whip/", offer).want(t, http.StatusBadRequest)
	s.post(t, "/whip//double", offer).want(t, http.StatusBadRequest)
	if n := len(s.registry.sessions); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

func offeredDirection(t *testing.T) {
	s := run(t, Config{})
	publish := publishOffer(t)
	for _, direction := range []string{"sendonly", "sendrecv"} {
		a := s.post(t, "/whip/"+direction, strings.ReplaceAll(publish, "a=sendonly", "a="+direction))
		a.want(t, http.StatusCreated)
		if n := strings.Count(a.body, "a=recvonly"); n != 2 || strings.Contains(a.body, "a=sendrecv") {
			t.Errorf("%s: answer is not recvonly:\n%s", direction, a.body)
		}
	}
	for _, direction := range []string{"recvonly", "inactive"} {
		s.post(t, "/whip/s4", strings.ReplaceAll(publish, "a=sendonly", "a="+direction)).want(t, http.StatusUnprocessableEntity)
	}

	s.clients(t).Publish(t, "s4").WaitConnected()
	play := playOffer(t)
	for _, direction := range []string{"recvonly", "sendrecv"} {
		a := s.post(t, "/whep/s4", strings.ReplaceAll(play, "a=recvonly", "a="+direction))
		a.want(t, http.StatusCreated)
		if n := strings.Count(a.body, "a=sendonly"); n != 2 || strings.Contains(a.body, "a=sendrecv") {
			t.Errorf("%s: answer is not sendonly:\n%s", direction, a.body)
		}
	}
	for _, direction := range []string{"sendonly", "inactive"} {
		s.post(t, "/whep/s4", strings.ReplaceAll(play, "a=recvonly", "a="+direction)).want(t, http.StatusUnprocessableEntity)
	}
}

func allCandidatesInAnswer(t *testing.T) {
	s := run(t, Config{AdvertisedIPs: []string{"203.0.113.7"}})
	a := s.publish(t, "s5")
	port := s.UDPAddrs()[0].Port()
	lines := regexp.MustCompile(`(?m)^a=candidate:\S+ \d \S+ \d+ (\S+) (\d+) typ (\S+)`).FindAllStringSubmatch(a.body, -1)
	var got []string
	for _, line := range lines {
		got = append(got, strings.Join(line[1:], " "))
	}
	at := func(ip string) string { return ip + " " + itoa(port) + " host" }
	if want := []string{at("203.0.113.7"), at("127.0.0.1")}; !slices.Equal(got, want) {
		t.Errorf("candidates %q; want %q", got, want)
	}
	if !strings.Contains(a.body, "a=end-of-candidates") || strings.Contains(a.body, "a=ice-options:trickle") {
		t.Error("the server does not trickle, and must not say so")
	}
}

func entityTag(t *testing.T) {
	s := run(t, Config{})
	one, two := s.publish(t, "one").Header.Get("ETag"), s.publish(t, "two").Header.Get("ETag")
	if !regexp.MustCompile(`^"[!#-~]+"$`).MatchString(one) || one == two {
		t.Errorf("ETags %s and %s; want strong ones that differ", one, two)
	}
}

func bundleAndMux(t *testing.T) {
	s := run(t, Config{})
	a := s.publish(t, "s7")
	for attribute, n := range map[string]int{
		"a=group:BUNDLE 0 1": 1, "a=rtcp-mux\r\n": 2, "a=rtcp-mux-only\r\n": 2, "m=audio 0": 0, "m=video 0": 0,
	} {
		if got := strings.Count(a.body, attribute); got != n {
			t.Errorf("%d × %q in the answer; want %d:\n%s", got, attribute, n, a.body)
		}
	}
	offer := publishOffer(t)
	s.post(t, "/whip/x", strings.ReplaceAll(offer, "a=rtcp-mux\r\n", "")).want(t, http.StatusUnprocessableEntity)
	s.post(t, "/whip/x", strings.ReplaceAll(offer, "BUNDLE 0 1", "BUNDLE 0")).want(t, http.StatusUnprocessableEntity)
}

func oneAudioAndOneVideo(t *testing.T) {
	s := run(t, Config{})
	offer := publishOffer(t)
	head, video, _ := strings.Cut(offer, "m=video")
	video = "m=video" + video
	other := strings.NewReplacer("a=mid:1", "a=mid:2", "m=video", "m=audio").Replace(video)
	for name, body := range map[string]string{
		"two videos": strings.Replace(head, "BUNDLE 0 1", "BUNDLE 0 1 2", 1) + video +
			strings.Replace(video, "a=mid:1", "a=mid:2", 1),
		"two audios": strings.Replace(head, "BUNDLE 0 1", "BUNDLE 0 2", 1) + other,
		"data channel": head + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\n" +
			"a=mid:1\r\na=rtcp-mux\r\na=sctp-port:5000\r\n",
		"two streams": strings.Replace(strings.Replace(offer, "a=sendonly", "a=msid:one a\r\na=sendonly", 1),
			"a=mid:1", "a=msid:two b\r\na=mid:1", 1),
		"no sections": offer[:strings.Index(offer, "m=")],
	} {
		t.Run(name, func(t *testing.T) {
			s.post(t, "/whip/s8", body).want(t, http.StatusUnprocessableEntity)
		})
	}
}

func noPartialAcceptance(t *testing.T) {
	s := run(t, Config{})
	names := regexp.MustCompile(`a=rtpmap:(\d+) (VP8|VP9|H264|AV1|H265|rtx)/`)
	a := s.post(t, "/whip/s9", names.ReplaceAllString(publishOffer(t), "a=rtpmap:$1 MYSTERY/"))
	a.want(t, http.StatusUnprocessableEntity)
	if !strings.Contains(a.body, "video") {
		t.Errorf("which section it was is not said: %s", a.body)
	}
	s.publish(t, "s9") // nothing was kept of the name
}

func setup(t *testing.T) {
	s := run(t, Config{})
	offer := publishOffer(t)
	for offered, answer := range map[string]string{"actpass": "passive", "active": "passive", "passive": "active"} {
		a := s.post(t, "/whip/"+offered, strings.ReplaceAll(offer, "a=setup:actpass", "a=setup:"+offered))
		a.want(t, http.StatusCreated)
		if n := strings.Count(a.body, "a=setup:"+answer); n != 2 {
			t.Errorf("setup:%s is not answered by setup:%s:\n%s", offered, answer, a.body)
		}
	}
	held := strings.ReplaceAll(offer, "a=setup:actpass", "a=setup:holdconn")
	s.post(t, "/whip/x", held).want(t, http.StatusUnprocessableEntity)
}

func fullICE(t *testing.T) {
	s := run(t, Config{})
	if a := s.publish(t, "s11"); strings.Contains(a.body, "ice-lite") {
		t.Errorf("the answer says ice-lite:\n%s", a.body)
	}
}

func options(t *testing.T) {
	s := run(t, Config{PublishToken: "publish", PlayToken: "play"})
	for _, path := range []string{"/whip/s12", "/whep/s12", "/session/none"} {
		a := s.do(t, http.MethodOptions, path, "", "Origin", "https://page.example", "Access-Control-Request-Method", "POST")
		a.want(t, http.StatusOK)
		for name, parts := range map[string]string{
			"Access-Control-Allow-Origin":   "*",
			"Access-Control-Allow-Headers":  "Authorization, Content-Type, If-Match",
			"Access-Control-Expose-Headers": "Location, Link, ETag, Retry-After",
			"Access-Control-Allow-Methods":  "OPTIONS, GET, HEAD",
		} {
			if !strings.Contains(a.Header.Get(name), parts) {
				t.Errorf("%s: %s is %q; want %q in it", path, name, a.Header.Get(name), parts)
			}
		}
		kind, want := "Accept-Post", "application/sdp"
		if strings.HasPrefix(path, "/session/") {
			kind, want = "Accept-Patch", "application/trickle-ice-sdpfrag"
		}
		if got := a.Header.Get(kind); got != want {
			t.Errorf("%s: %s %q; want %q", path, kind, got, want)
		}
	}
	a := s.post(t, "/whip/s12", publishOffer(t), "Authorization", "Bearer publish", "Origin", "https://page.example")
	a.want(t, http.StatusCreated)
	if a.Header.Get("Access-Control-Allow-Origin") != "*" || a.Header.Get("Access-Control-Expose-Headers") == "" {
		t.Errorf("a 201 that a browser cannot read: %v", a.Header)
	}

	one := run(t, Config{AllowOrigin: "https://page.example"})
	if got := one.publish(t, "s12").Header.Get("Access-Control-Allow-Origin"); got != "https://page.example" {
		t.Errorf("allowed origin %q", got)
	}
}

func getAndHead(t *testing.T) {
	s := run(t, Config{})
	for _, path := range []string{"/whip/s13", "/whep/s13"} {
		a := s.do(t, http.MethodGet, path, "")
		a.want(t, http.StatusNoContent)
		if a.body != "" {
			t.Errorf("GET %s has a body: %q", path, a.body)
		}
	}
	a := s.do(t, http.MethodHead, "/whep/s13", "")
	a.want(t, http.StatusOK)
	if kind := a.Header.Get("Content-Type"); kind != "application/sdp" {
		t.Errorf("HEAD of a WHEP endpoint: Content-Type %q", kind)
	}
	for _, method := range []string{http.MethodPut, http.MethodPatch, http.MethodDelete} {
		for _, path := range []string{"/whip/s13", "/whep/s13"} {
			a := s.do(t, method, path, "")
			a.want(t, http.StatusMethodNotAllowed)
			if allow := a.Header.Get("Allow"); allow != "OPTIONS, GET, HEAD, POST" {
				t.Errorf("%s %s: Allow %q", method, path, allow)
			}
		}
	}
}

func neverRedirects(t *testing.T) {
	s := run(t, Config{})
	for _, path := range []string{"/whip/a//b", "/whip/./a", "/whip/a/../b", "/whip/a/", "//whip/a", "/whip"} {
		if a := s.post(t, path, publishOffer(t)); a.StatusCode/100 == 3 {
			t.Errorf("POST %s: %s to %q", path, a.Status, a.Header.Get("Location"))
		}
	}
}

func overload(t *testing.T) {
	s := run(t, Config{MaxSessions: 2})
	s.publish(t, "one")
	s.publish(t, "two")
	a := s.post(t, "/whip/three", publishOffer(t))
	a.want(t, http.StatusServiceUnavailable)
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	s.stop()
	s.post(t, "/whip/four", publishOffer(t)).want(t, http.StatusServiceUnavailable)
	s.do(t, http.MethodGet, "/readyz", "").want(t, http.StatusServiceUnavailable)
	s.do(t, http.MethodGet, "/api/streams", "").want(t, http.StatusServiceUnavailable)
}

func nothingPublished(t *testing.T) {
	s := run(t, Config{})
	a := s.post(t, "/whep/s16", playOffer(t))
	a.want(t, http.StatusConflict)
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func publishedAlready(t *testing.T) {
	s := run(t, Config{})
	first := s.publish(t, "s16")
	a := s.post(t, "/whip/s16", publishOffer(t))
	a.want(t, http.StatusConflict)
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	s.do(t, http.MethodDelete, first.location(t), "").want(t, http.StatusOK)
	s.publish(t, "s16")
}

func turn(context.Context) []webrtc.ICEServer { return turnServers }

var turnServers = []webrtc.ICEServer{
	{URLs: []string{"stun:stun.example:3478"}},
	{URLs: []string{"turn:turn.example:3478?transport=udp"}, Username: "u", Credential: `p"w,`},
}

func iCEServers(t *testing.T) {
	s := run(t, Config{ICEServers: turn, PublishToken: "publish"})
	a := s.post(t, "/whip/s17", publishOffer(t), "Authorization", "Bearer publish")
	a.want(t, http.StatusCreated)
	if n := len(a.Header.Values("Link")); n != 2 {
		t.Errorf("%d Link lines: %q", n, a.Header.Values("Link"))
	}
	got := whip.ICEServers(a.Header)
	if len(got) != 2 || got[1].Username != "u" || got[1].Credential != `p"w,` {
		t.Errorf("read back: %+v", got)
	}
}

func iCEServersInOptions(t *testing.T) {
	s := run(t, Config{ICEServers: turn, PublishToken: "publish"})
	for name, test := range map[string]struct {
		header []string
		want   int
	}{
		"authorised": {[]string{"Authorization", "Bearer publish"}, 2},
		"anonymous":  {nil, 0},
		"preflight": {[]string{
			"Authorization", "Bearer publish", "Origin", "https://a.example", "Access-Control-Request-Method", "POST",
		}, 0},
	} {
		a := s.do(t, http.MethodOptions, "/whip/s18", "", test.header...)
		if got := len(a.Header.Values("Link")); got != test.want {
			t.Errorf("%s: %d links; want %d", name, got, test.want)
		}
	}
}

// The extensions of WHEP are promised to viewers only.
func extensions(t *testing.T) {
	s := run(t, Config{})
	if links := s.publish(t, "s19").Header.Values("Link"); len(links) != 0 {
		t.Errorf("links of a publisher: %q", links)
	}
	a := s.post(t, "/whep/s19", playOffer(t))
	a.want(t, http.StatusConflict) // a publisher that never connects
	publisher := s.publishRaw(t, "s19 live", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	a = s.post(t, "/whep/s19%20live", playOffer(t))
	a.want(t, http.StatusCreated)
	want := []string{
		"<" + a.location(t) + `/events>; rel="` + whip.RelEvents + `"; events="active,inactive,layers,reconnect,viewercount"`,
		"<" + a.location(t) + `/layer>; rel="` + whip.RelLayer + `"`,
	}
	if got := a.Header.Values("Link"); !slices.Equal(got, want) {
		t.Errorf("links %q; want %q", got, want)
	}
}

func simulcastRow(t *testing.T) {
	s := run(t, Config{})
	offer := publishOffer(t)
	with := func(lines string) string { return strings.Replace(offer, "a=mid:1", "a=mid:1\r\n"+lines, 1) }
	a := s.post(t, "/whip/s20", with("a=rid:h send\r\na=rid:l send\r\na=simulcast:send h;~l"))
	a.want(t, http.StatusCreated)
	for _, line := range []string{"a=rid:h recv", "a=rid:l recv", "a=simulcast:recv h;l"} {
		if !strings.Contains(a.body, line) {
			t.Errorf("no %s in the answer:\n%s", line, a.body)
		}
	}
	one := s.post(t, "/whip/one", with("a=rid:h send\r\na=simulcast:send h"))
	one.want(t, http.StatusCreated)
	if strings.Contains(one.body, "simulcast") {
		t.Error("one layer is taken for simulcast")
	}
	for name, lines := range map[string]string{
		"no such rid": "a=rid:h send\r\na=simulcast:send h;l", "twice": "a=rid:h send\r\na=simulcast:send h;h",
		"no name": "a=rid:h send\r\na=simulcast:send h;", "not a name": "a=rid:h! send\r\na=rid:l send\r\na=simulcast:send h!;l",
	} {
		t.Run(name, func(t *testing.T) { s.post(t, "/whip/x", with(lines)).want(t, http.StatusBadRequest) })
	}
	many := "a=rid:1 send\r\na=rid:2 send\r\na=rid:3 send\r\na=rid:4 send\r\na=rid:5 send\r\na=simulcast:send 1;2;3;4;5"
	s.post(t, "/whip/x", with(many)).want(t, http.StatusUnprocessableEntity)
}

func bearerTokens(t *testing.T) {
	s := run(t, Config{PublishToken: "publish", PlayToken: "play", APIToken: "api"})
	session := s.publish(t, "s21", "Authorization", "Bearer publish").location(t)
	for _, test := range []struct{ method, path, right, wrong string }{
		{http.MethodPost, "/whip/other", "publish", "play"},
		{http.MethodPost, "/whep/other", "play", "publish"},
		{http.MethodGet, "/whip/other", "publish", "api"},
		{http.MethodHead, "/whep/other", "play", "api"},
		{http.MethodGet, "/api/streams", "api", "publish"},
		{http.MethodGet, session, "publish", "play"},
		{http.MethodPatch, session, "publish", "play"},
		{http.MethodDelete, session, "publish", "play"},
	} {
		ask := func(authorization string) answered {
			return s.do(t, test.method, test.path, "", "Authorization", authorization)
		}
		for _, none := range []string{"", "Bearer", "Bearer ", "Basic " + test.right, test.right} {
			a := ask(none)
			a.want(t, http.StatusUnauthorized)
			if a.Header.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("%s %s with %q: challenge %q", test.method, test.path, none, a.Header.Get("WWW-Authenticate"))
			}
		}
		a := ask("Bearer " + test.right + "x")
		a.want(t, http.StatusUnauthorized)
		if a.Header.Get("WWW-Authenticate") != `Bearer error="invalid_token"` {
			t.Errorf("%s %s: challenge %q", test.method, test.path, a.Header.Get("WWW-Authenticate"))
		}
		ask("Bearer "+test.wrong).want(t, http.StatusForbidden)
		if a := ask("bearer " + test.right); a.StatusCode == http.StatusUnauthorized || a.StatusCode == http.StatusForbidden {
			t.Errorf("%s %s with its token: %s", test.method, test.path, a.Status)
		}
	}
	// Who may do nothing does not learn which sessions there are.
	s.do(t, http.MethodDelete, "/session/none", "").want(t, http.StatusUnauthorized)
	s.do(t, http.MethodDelete, "/session/none", "", "Authorization", "Bearer play").want(t, http.StatusNotFound)
}

func statusNeedsSomeToken(t *testing.T) {
	s := run(t, Config{PublishToken: "publish"})
	s.do(t, http.MethodGet, "/api/streams", "").want(t, http.StatusUnauthorized)
	s.do(t, http.MethodGet, "/api/streams", "", "Authorization", "Bearer publish").want(t, http.StatusOK)
	s.do(t, http.MethodGet, "/whep/s21", "").want(t, http.StatusNoContent)
}

// S22 (problem+json) is checked for every error of these tests by answered.want.
func unknownPage(t *testing.T) {
	run(t, Config{}).do(t, http.MethodGet, "/nothing", "").want(t, http.StatusNotFound)
}

// S23: that HTTPS is used is for the one who serves the handler to see to.
func sessionAddressesCannotBeGuessed(t *testing.T) {
	s := run(t, Config{})
	seen := make(map[string]bool)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		id := s.publish(t, name).location(t)
		if seen[id] || len(id) < len("/session/")+26 {
			t.Errorf("session %q", id)
		}
		seen[id] = true
	}
}

const trickleType = "application/trickle-ice-sdpfrag"

func (s *sfu) patch(t testing.TB, path, body string, header ...string) answered {
	t.Helper()
	return s.do(t, http.MethodPatch, path, body, append([]string{"Content-Type", trickleType}, header...)...)
}

func fragment(offer string, candidates ...string) string {
	ufrag := regexp.MustCompile(`a=ice-ufrag:(\S+)`).FindStringSubmatch(offer)[1]
	pwd := regexp.MustCompile(`a=ice-pwd:(\S+)`).FindStringSubmatch(offer)[1]
	f := whip.Fragment{Media: []whip.FragmentMedia{{Line: "audio 9 UDP/TLS/RTP/SAVPF 0", MID: "0"}}}
	f.Ufrag, f.Pwd = ufrag, pwd
	f.Media[0].Candidates = candidates
	return string(f.Marshal())
}

func patchContentType(t *testing.T) {
	s := run(t, Config{})
	a := s.publish(t, "p1")
	for _, kind := range []string{"", "application/json", "application/sdp"} {
		s.do(t, http.MethodPatch, a.location(t), "a=end-of-candidates", "Content-Type", kind, "If-Match", a.Header.Get("ETag")).
			want(t, http.StatusUnsupportedMediaType)
	}
	for _, body := range []string{"", "nonsense", "\x00", "a=mid:0\r\n", "v=0\r\n", strings.Repeat("a=x\r\n", 30000)} {
		s.patch(t, a.location(t), body, "If-Match", a.Header.Get("ETag")).want(t, http.StatusBadRequest)
	}
	s.patch(t, a.location(t), strings.Repeat("a", maxBody+1), "If-Match", a.Header.Get("ETag")).
		want(t, http.StatusRequestEntityTooLarge)
	s.do(t, http.MethodGet, a.location(t), "").want(t, http.StatusNoContent)
}

func ifMatch(t *testing.T) {
	s := run(t, Config{})
	offer := publishOffer(t)
	a := s.post(t, "/whip/p2", offer)
	a.want(t, http.StatusCreated)
	s.patch(t, a.location(t), fragment(offer)).want(t, http.StatusPreconditionRequired)
	s.patch(t, a.location(t), fragment(offer), "If-Match", `"stale"`).want(t, http.StatusPreconditionFailed)
	s.patch(t, a.location(t), fragment(offer), "If-Match", a.Header.Get("ETag")).want(t, http.StatusNoContent)
}

func trickle(t *testing.T) {
	s := run(t, Config{})
	offer := publishOffer(t)
	a := s.post(t, "/whip/p3", offer)
	a.want(t, http.StatusCreated)
	patched := s.patch(t, a.location(t), fragment(offer,
		"1 1 udp 2130706431 192.0.2.1 5000 typ host",
		"2 1 udp 2130706431 3b6a1c2e-0000-4000-8000-000000000000.local 5000 typ host",
		"3 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active",
		"4 1 udp x y z", "5 2 udp 1 192.0.2.1 5001 typ host",
	), "If-Match", a.Header.Get("ETag"))
	patched.want(t, http.StatusNoContent)
	if patched.body != "" || patched.Header.Get("ETag") != "" {
		t.Errorf("204 with body %q, ETag %q", patched.body, patched.Header.Get("ETag"))
	}
	many := slices.Repeat([]string{"1 1 udp 2130706431 192.0.2.1 5000 typ host"}, maxCandidates+1)
	s.patch(t, a.location(t), fragment(offer, many...), "If-Match", a.Header.Get("ETag")).want(t, http.StatusBadRequest)
}

// A client whose offer has no candidates connects by those that it trickles.
func trickledCandidatesConnect(t *testing.T) {
	s := run(t, Config{})
	pc, err := media.Transport{Loopback: true}.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.GracefulClose() //nolint:errcheck // the test is over
	connected := make(chan struct{})
	pc.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		if state == webrtc.PeerConnectionStateConnected {
			close(connected)
		}
	})
	if _, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo, webrtc.RTPTransceiverInit{
		Direction: webrtc.RTPTransceiverDirectionSendonly,
	}); err != nil {
		t.Fatal(err)
	}
	offer, err := pc.CreateOffer(nil)
	if err != nil {
		t.Fatal(err)
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(offer); err != nil {
		t.Fatal(err)
	}
	<-gathered
	a := s.post(t, "/whip/p3", offer.SDP)
	a.want(t, http.StatusCreated)
	// The answer's candidates are taken away, so that only the client's can make the pair.
	answer := regexp.MustCompile(`a=candidate:.*\r\n`).ReplaceAllString(a.body, "")
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: answer}); err != nil {
		t.Fatal(err)
	}
	var candidates []string
	for _, line := range strings.Split(pc.LocalDescription().SDP, "\r\n") {
		if candidate, ok := strings.CutPrefix(line, "a=candidate:"); ok {
			candidates = append(candidates, candidate)
		}
	}
	s.patch(t, a.location(t), fragment(offer.SDP, candidates...), "If-Match", a.Header.Get("ETag")).
		want(t, http.StatusNoContent)
	select {
	case <-connected:
	case <-time.After(patience):
		t.Fatal("not connected")
	}
}

func deleteEnds(t *testing.T) {
	s := run(t, Config{})
	h := s.clients(t)
	publisher := h.Publish(t, "p7")
	publisher.WaitConnected()
	viewer := h.Play(t, "p7")
	viewer.WaitFrames(1)

	path := viewer.Session.Location().Path
	s.do(t, http.MethodDelete, path, "", "If-Match", `"ignored"`).want(t, http.StatusOK)
	s.do(t, http.MethodDelete, path, "").want(t, http.StatusNotFound)
	s.do(t, http.MethodGet, path, "").want(t, http.StatusNotFound)
	s.patch(t, path, "a=end-of-candidates\r\n", "If-Match", viewer.Session.ETag()).want(t, http.StatusNotFound)
	// The client hears of it by DTLS, long before consent could expire (RFC 7675, section 5.2).
	if took := viewer.WaitEnded(); took > 2*time.Second {
		t.Errorf("the viewer's connection ended after %s", took)
	}
	s.do(t, http.MethodDelete, publisher.Session.Location().Path, "").want(t, http.StatusOK)
	s.post(t, "/whep/p7", playOffer(t)).want(t, http.StatusConflict)
}

func deadSessionIsGone(t *testing.T) {
	s := run(t, Config{ConnectTimeout: 50 * time.Millisecond})
	path := s.publish(t, "p8").location(t)
	s.wait(t, "the session that never connects to end", func(r *registry) bool { return len(r.sessions) == 0 })
	s.do(t, http.MethodGet, path, "").want(t, http.StatusNotFound)
	s.publish(t, "p8")
}

func sessionMethods(t *testing.T) {
	s := run(t, Config{})
	path := s.publish(t, "p9").location(t)
	a := s.do(t, http.MethodGet, path, "")
	a.want(t, http.StatusNoContent)
	if a.body != "" {
		t.Errorf("GET has a body: %q", a.body)
	}
	for _, method := range []string{http.MethodPost, http.MethodPut} {
		a := s.do(t, method, path, "")
		a.want(t, http.StatusMethodNotAllowed)
		if a.Header.Get("Allow") != "OPTIONS, GET, HEAD, PATCH, DELETE" {
			t.Errorf("Allow %q", a.Header.Get("Allow"))
		}
	}
}

// P10: a DELETE is answered when the session has ended, and only by the server that had it.
func deleteTellsTheTruth(t *testing.T) {
	s, other := run(t, Config{}), run(t, Config{})
	a := s.publish(t, "p10")
	other.do(t, http.MethodDelete, a.location(t), "").want(t, http.StatusNotFound)
	s.do(t, http.MethodDelete, a.location(t), "").want(t, http.StatusOK)
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	if n := len(s.registry.sessions); n != 0 || s.registry.halfOpen != 0 {
		t.Errorf("%d sessions, %d half open after DELETE", n, s.registry.halfOpen)
	}
}
