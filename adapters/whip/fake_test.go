package whip

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var leaksChecked sync.Map // by test

// checkLeaks looks for goroutines left when a test has ended. Whatever starts some calls it first: cleanups run last
// first, so the check comes after all others.
func checkLeaks(t *testing.T) {
	t.Helper()
	if _, done := leaksChecked.LoadOrStore(t, true); !done {
		t.Cleanup(func() { goleak.VerifyNone(t) })
	}
}

// fake is a WHIP and WHEP server on pion, of the plainest kind: POST to /whip/ and /whep/ opens sessions below
// /session/. What a test wants otherwise it says with intercept, or the knobs.
type fake struct {
	t    *testing.T
	http *httptest.Server

	// intercept sees each request first, and returns true when it has answered.
	intercept func(w http.ResponseWriter, r *http.Request, body []byte) bool
	etag      string      // of the sessions
	header    http.Header // of the answers to POST
	counter   bool        // plays are answered with an offer
	// deaf makes a server that learns candidates by PATCH only, and whose own a client has to discover.
	deaf    func(r *http.Request) bool
	givenUp chan struct{} // a test closes it when the client's caller has given up
	packets chan struct{} // one for each RTP packet that a publisher sends

	mu       sync.Mutex
	seen     []seen
	changed  chan struct{} // closes when seen grows
	sessions map[string]*connection
	frozen   map[string]*connection // counter-offered, waiting for the answer
	writers  sync.WaitGroup
}

type seen struct {
	method, path string
	header       http.Header
	body         string
}

func newFake(t *testing.T, setUp func(*fake)) *fake {
	t.Helper()
	checkLeaks(t)
	f := &fake{
		t: t, changed: make(chan struct{}), packets: make(chan struct{}, 1000), etag: `"first"`,
		sessions: map[string]*connection{}, frozen: map[string]*connection{},
		deaf: func(*http.Request) bool { return false },
	}
	if setUp != nil {
		setUp(f)
	}
	f.http = httptest.NewServer(f)
	t.Cleanup(func() {
		f.http.Close()
		f.mu.Lock()
		for _, conns := range []map[string]*connection{f.sessions, f.frozen} {
			for _, c := range conns {
				c.free()
			}
		}
		f.mu.Unlock()
		f.writers.Wait()
	})
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	f.seen = append(f.seen, seen{r.Method, r.URL.Path, r.Header.Clone(), string(body)})
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	if f.intercept != nil && f.intercept(w, r, body) {
		return
	}
	switch {
	case r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/whip/"),
		r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/whep/"):
		err = f.post(w, r, string(body))
	case r.Method == http.MethodPatch:
		err = f.patch(w, r, body)
	case r.Method == http.MethodDelete:
		f.delete(w, r)
	default:
		http.Error(w, "", http.StatusMethodNotAllowed)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func (f *fake) connect() (*connection, error) {
	pc, err := media.Transport{Loopback: true}.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return nil, err
	}
	pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		for {
			if _, _, err := track.ReadRTP(); err != nil {
				return
			}
			select {
			case f.packets <- struct{}{}:
			default:
			}
		}
	})
	return newConnection(pc), nil
}

// send writes packets to a player until its connection closes.
func (f *fake) send(c *connection) error {
	track, err := newTrack()
	if err != nil {
		return err
	}
	if _, err := c.pc.AddTransceiverFromTrack(track,
		webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly}); err != nil {
		return err
	}
	f.writers.Go(func() { writePackets(track, c.closed) })
	return nil
}

func (f *fake) post(w http.ResponseWriter, r *http.Request, offer string) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	id := fmt.Sprintf("/session/%p", c)
	play := strings.HasPrefix(r.URL.Path, "/whep/")
	f.mu.Lock()
	if f.counter && play {
		f.frozen[id] = c
	} else {
		f.sessions[id] = c
	}
	f.mu.Unlock()
	if play {
		if err := f.send(c); err != nil {
			return err
		}
	}
	deaf := f.deaf(r)
	code := http.StatusCreated
	var local webrtc.SessionDescription
	if f.counter && play {
		code = http.StatusNotAcceptable
		local, err = c.pc.CreateOffer(nil)
	} else {
		if deaf {
			offer = withoutCandidates(offer)
		}
		if err := c.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offer}); err != nil {
			return err
		}
		local, err = c.pc.CreateAnswer(nil)
	}
	if err != nil {
		return err
	}
	described, err := c.describe(r.Context(), local, 5*time.Second)
	if err != nil {
		return err
	}
	answer := described.sdp
	if deaf {
		answer = withoutCandidates(answer)
	}
	h := w.Header()
	h.Set("Content-Type", ContentTypeSDP)
	h.Set("Location", id)
	if f.etag != "" {
		h.Set("ETag", f.etag)
	}
	for name, values := range f.header {
		h[name] = values
	}
	w.WriteHeader(code)
	_, _ = io.WriteString(w, answer)
	return nil
}

func (f *fake) patch(w http.ResponseWriter, r *http.Request, body []byte) error {
	f.mu.Lock()
	c, frozen := f.sessions[r.URL.Path], f.frozen[r.URL.Path]
	f.mu.Unlock()
	switch {
	case c == nil && frozen == nil:
		http.Error(w, "", http.StatusNotFound)
	case r.Header.Get("If-Match") != f.etag:
		http.Error(w, "", http.StatusPreconditionFailed)
	case frozen != nil && r.Header.Get("Content-Type") == ContentTypeSDP:
		answer := webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: string(body)}
		if err := frozen.pc.SetRemoteDescription(answer); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
	case c != nil && r.Header.Get("Content-Type") == ContentTypeFragment:
		fragment, err := ParseFragment(body)
		if err != nil {
			return err
		}
		for _, candidate := range fragment.AllCandidates() {
			if err := c.pc.AddICECandidate(webrtc.ICECandidateInit{Candidate: "candidate:" + candidate}); err != nil {
				return err
			}
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, "", http.StatusUnsupportedMediaType)
	}
	return nil
}

func (f *fake) delete(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	c := f.sessions[r.URL.Path]
	if c == nil {
		c = f.frozen[r.URL.Path]
	}
	delete(f.sessions, r.URL.Path)
	delete(f.frozen, r.URL.Path)
	f.mu.Unlock()
	if c == nil {
		http.Error(w, "", http.StatusNotFound)
		return
	}
	c.free()
}

// of returns the requests of a method, in order.
func (f *fake) of(method string) []seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []seen
	for _, s := range f.seen {
		if s.method == method {
			out = append(out, s)
		}
	}
	return out
}

// await waits for the first request of a method.
func (f *fake) await(method string) seen {
	f.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		if s := f.of(method); len(s) > 0 {
			return s[0]
		}
		select {
		case <-changed:
		case <-deadline:
			f.t.Fatalf("no %s came", method)
		}
	}
}

// open says how many sessions the server holds.
func (f *fake) open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sessions) + len(f.frozen)
}

// client is one for the fake alone, whose idle connections end with the test.
func (f *fake) client() *Client {
	transport := &http.Transport{}
	f.t.Cleanup(transport.CloseIdleConnections)
	return &Client{HTTP: &http.Client{Transport: transport}}
}

func (f *fake) endpoint(path string) adapters.Endpoint {
	return adapters.Endpoint{URL: parseURL(f.t, f.http.URL+path), Header: http.Header{"Authorization": {"Bearer secret"}}}
}

func parseURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func withoutCandidates(description string) string {
	var b strings.Builder
	for line := range strings.Lines(description) {
		if !strings.HasPrefix(line, "a=candidate:") && !strings.HasPrefix(line, "a=end-of-candidates") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func newTrack() (*webrtc.TrackLocalStaticRTP, error) {
	return webrtc.NewTrackLocalStaticRTP(
		webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}, "video", "stream")
}

func writePackets(track *webrtc.TrackLocalStaticRTP, done <-chan struct{}) {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for n := uint16(0); ; n++ {
		select {
		case <-ticker.C:
		case <-done:
			return
		}
		_ = track.WriteRTP(&rtp.Packet{
			Header:  rtp.Header{Version: 2, SequenceNumber: n, Timestamp: uint32(n) * 450, Marker: true},
			Payload: []byte{0x10, 0, 0, 0},
		})
	}
}

// publisher is the setup of a Publish that sends packets until the test ends.
func publisher(t *testing.T) func(*webrtc.PeerConnection) error {
	t.Helper()
	track, err := newTrack()
	if err != nil {
		t.Fatal(err)
	}
	var writer sync.WaitGroup
	writer.Go(func() { writePackets(track, t.Context().Done()) })
	t.Cleanup(writer.Wait)
	return func(pc *webrtc.PeerConnection) error {
		_, err := pc.AddTransceiverFromTrack(track,
			webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
		return err
	}
}

// player is the setup of a Play that counts packets.
func player(packets chan<- struct{}) func(*webrtc.PeerConnection) error {
	return func(pc *webrtc.PeerConnection) error {
		pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
			for {
				if _, _, err := track.ReadRTP(); err != nil {
					return
				}
				select {
				case packets <- struct{}{}:
				default:
				}
			}
		})
		return receiveBoth(pc)
	}
}

func wantPackets(t *testing.T, packets <-chan struct{}, n int) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for i := range n {
		select {
		case <-packets:
		case <-deadline:
			t.Fatalf("%d packets of %d came", i, n)
		}
	}
}

func closeSession(t *testing.T, s *Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
	if !isClosed(s.conn.closed) {
		t.Error("close returned before the callback of the connection's end")
	}
}

func connected(t *testing.T, s *Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Connected(ctx); err != nil {
		t.Fatal(err)
	}
}
