// Package adaptertest is the conformance suite of adapters: Run checks that an Adapter keeps its contract with the real
// server that it is for. An adapter's own test starts that server and calls Run; only test code imports this package. Its
// Publisher and Player, which count whole frames rather than trust that a connection is up, serve other tests as well.
package adaptertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/testframes"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// Harness is one adapter with a running server behind it, which nobody else uses meanwhile.
type Harness struct {
	Adapter adapters.Adapter
	// Client publishes and plays; nil means one with the defaults.
	Client *whip.Client
	// Stream gives a name that nobody publishes and that the server lets one publish; a server that wants to be told of
	// names beforehand is told here. Nil means any name will do.
	Stream func(t testing.TB) adapters.StreamID
	// Names are further names to try the adapter's URLs with, beside the suite's own. Nothing is published by them.
	Names []adapters.StreamID
	// Unreachable is the same adapter for an address at which no server is; nil leaves that out.
	Unreachable adapters.Adapter
	// Denied is the same adapter with credentials that the server refuses; nil leaves that out.
	Denied adapters.Adapter
	// Restart ends the server as a crash would, and starts it again at the same address; nil leaves that out.
	Restart func(t testing.TB)
	// Server is the server's make and version. Where it is set, and ADAPTERTEST_RESULTS names a directory, a run without failure
	// leaves its Results there.
	Server string
	// Waiting is set where the server accepts a play of what nobody publishes and the adapter can report it.
	Waiting bool
	// OneCodec is set for servers that take one codec of those that are offered: publishers offer only what they send.
	OneCodec bool
	// Address is where clients whose cable is pulled have their socket; the zero value is loopback.
	Address netip.Addr
	// Stranger is how a publisher who is not a sidecar reaches the server; nil means Ingest's address with nothing but its
	// Authorization.
	Stranger func(id adapters.StreamID) adapters.Endpoint
	// Patience is how long a change at the server may take to be reported, and media to arrive. Zero means 15 s.
	Patience time.Duration

	results *results
}

var streams atomic.Uint64

// NewStream is a name that nobody publishes.
func (h Harness) NewStream(t testing.TB) adapters.StreamID {
	if h.Stream != nil {
		return h.Stream(t)
	}
	return adapters.StreamID(fmt.Sprintf("adaptertest-%d", streams.Add(1)))
}

func (h Harness) patience() time.Duration {
	if h.Patience == 0 {
		return 15 * time.Second
	}
	return h.Patience
}

func (h Harness) client() *whip.Client {
	if h.Client == nil {
		return &whip.Client{}
	}
	return h.Client
}

// Run checks everything that the contract of adapters.Adapter says, each point as a subtest. What differs from make to make
// without being wrong are its Results; it logs them in lines that begin with "result:".
func Run(t *testing.T, h Harness) {
	h.results = &results{}
	defer h.writeResults(t)
	vanished := h.vanish(t)
	t.Run("Name", h.testName)
	t.Run("EndpointsMatch", h.testEndpointsMatch)
	t.Run("OthersDoNotMatch", h.testOthersDoNotMatch)
	t.Run("Missing", h.testMissing)
	t.Run("Waits", h.testWaits)
	t.Run("OtherAnswersAreNotMissing", h.testOtherAnswersAreNotMissing)
	t.Run("Media", h.testMedia)
	t.Run("WatchReportsAtOnce", h.testWatchReportsAtOnce)
	t.Run("WatchReportsChanges", h.testWatchReportsChanges)
	t.Run("WatchSessions", h.testWatchSessions)
	t.Run("WatchTwice", h.testWatchTwice)
	t.Run("WatchUnreachable", h.testWatchUnreachable)
	t.Run("End", h.testEnd)
	t.Run("OwnPublications", h.testOwnPublications)
	t.Run("Orphan", h.testOrphan)
	t.Run("Duplicate", h.testDuplicate)
	t.Run("Denied", h.testDenied)
	for _, c := range testframes.Codecs() {
		t.Run("Codec"+strings.TrimPrefix(c.MIME, "video/"), func(t *testing.T) { h.testCodec(t, c) })
	}
	t.Run("Announced", h.testAnnounced)
	t.Run("Vanished", func(t *testing.T) { h.testVanished(t, vanished) })
	t.Run("Restart", h.testRestart)
}

func (h Harness) testName(t *testing.T) {
	name := h.Adapter.Name()
	if name == "" || strings.ToLower(name) != name || strings.ContainsAny(name, " /_.") || len(name) > 63 {
		t.Errorf("name %q cannot be a label", name)
	}
	if again := h.Adapter.Name(); again != name {
		t.Errorf("name changes from %q to %q", name, again)
	}
	if traits := h.Adapter.Traits(); !reflect.DeepEqual(traits, h.Adapter.Traits()) {
		t.Error("traits change")
	}
}

// names that a URL could swallow part of.
func (h Harness) names(t testing.TB) []adapters.StreamID {
	return append([]adapters.StreamID{h.NewStream(t), "demo", "a-b_c.d~1", "Käse"}, h.Names...)
}

func (h Harness) testEndpointsMatch(t *testing.T) {
	for _, id := range h.names(t) {
		for _, publish := range []bool{true, false} {
			want := adapters.Request{ID: id, Publish: publish}
			r := h.request(t, http.MethodPost, want)
			got, ok := h.Adapter.Match(r)
			if !ok || got != want {
				t.Errorf("POST %s: Match gives %+v, %t; it is the endpoint of %+v", r.URL, got, ok, want)
			}
		}
	}
}

// request is what reaches a server when a client sends it to the adapter's endpoint: with the URL of the wire, that is,
// a path only.
func (h Harness) request(t testing.TB, method string, want adapters.Request) *http.Request {
	t.Helper()
	ep := h.Adapter.Egress(want.ID)
	if want.Publish {
		ep = h.Adapter.Ingest(want.ID)
	}
	if ep.URL == nil || ep.URL.Host == "" || ep.URL.Scheme == "" {
		t.Fatalf("endpoint of %+v is %v; want an absolute URL", want, ep.URL)
	}
	onWire, err := url.ParseRequestURI(ep.URL.RequestURI())
	if err != nil {
		t.Fatalf("endpoint of %+v: %v", want, err)
	}
	header := ep.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	header.Set("Content-Type", whip.ContentTypeSDP)
	return &http.Request{Method: method, URL: onWire, Host: ep.URL.Host, Header: header, Body: http.NoBody}
}

func (h Harness) testOthersDoNotMatch(t *testing.T) {
	id := h.NewStream(t)
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodDelete} {
		for _, publish := range []bool{true, false} {
			if got, ok := h.Adapter.Match(h.request(t, method, adapters.Request{ID: id, Publish: publish})); ok {
				t.Errorf("%s matches as %+v; it opens nothing", method, got)
			}
		}
	}
	for _, path := range []string{"/", "", "/metrics", "/sidestream-no-such-page"} {
		r := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: path}, Header: http.Header{}, Body: http.NoBody}
		if got, ok := h.Adapter.Match(r); ok {
			t.Errorf("POST %q matches as %+v", path, got)
		}
	}
}

// testMissing plays what nobody publishes.
func (h Harness) testMissing(t *testing.T) {
	id := h.NewStream(t)
	status, header, body := h.postPlay(t, id)
	missing := h.Adapter.Missing(status, header, body)
	if h.Adapter.Traits().AcceptsAndWaits {
		if missing || status != http.StatusCreated {
			t.Errorf("play of %s: %d, missing %t; the server is said to accept and wait", id, status, missing)
		}
		h.result(t, "play of what nobody publishes", "%d, and waits", status)
		return
	}
	h.result(t, "play of what nobody publishes", "%d", status)
	if !missing {
		t.Errorf("play of %s, which nobody publishes: %d %q is not taken for missing", id, status, body)
	}
}

// testWaits plays what nobody publishes yet, at a server that is said to let such a play wait: it gets the media of the publisher
// who comes, and of the one after that.
func (h Harness) testWaits(t *testing.T) {
	if !h.Adapter.Traits().AcceptsAndWaits {
		t.Skip("a play of what nobody publishes is refused, as the traits say")
	}
	id := h.NewStream(t)
	w := h.watch(t)
	h.until(w, id, "nothing yet", absent)
	player := h.Play(t, id)
	told := "seen by the gateway only"
	if h.Waiting {
		told = "reported"
		h.until(w, id, "a play waits", func(s adapters.Stream) bool { return s.Waiting })
	}
	for range 2 {
		before := player.Stats()
		publisher := h.Publish(t, id)
		publisher.WaitConnected()
		h.until(w, id, "published", func(s adapters.Stream) bool { return published(s) && s.Readers != 0 })
		player.WaitFrames(before.Frames + 25)
		player.WaitKeyFrames(before.KeyFrames + 1)
		publisher.Close()
		h.until(w, id, "ended", func(s adapters.Stream) bool { return !published(s) })
	}
	player.Close()
	h.until(w, id, "nobody waits any more", func(s adapters.Stream) bool { return !s.Waiting })
	h.result(t, "play that waits", "%s, gets the next publisher's media", told)
}

func (h Harness) testOtherAnswersAreNotMissing(t *testing.T) {
	for _, status := range []int{
		200, 201, 204, 307, 401, 403, 405, 406, 413, 415, 422, 429, 500, 502, 503, 504,
	} {
		if h.Adapter.Missing(status, http.Header{}, nil) {
			t.Errorf("a bare %d is taken for a missing stream", status)
		}
	}
	id := h.NewStream(t)
	h.Publish(t, id).WaitConnected()
	status, header, body := h.postPlay(t, id)
	for deadline := time.Now().Add(h.patience()); h.Adapter.Missing(status, header, body) && time.Now().Before(deadline); {
		time.Sleep(retry) // its first media may be under way
		status, header, body = h.postPlay(t, id)
	}
	if !sessionOpened(status) || h.Adapter.Missing(status, header, body) {
		t.Errorf("play of %s, which is published: %d %q", id, status, body)
	}
}

// sessionOpened says whether a status is that of a new session: an answer, or a counter-offer.
func sessionOpened(status int) bool {
	return status == http.StatusCreated || status == http.StatusNotAcceptable
}

// postPlay sends a real offer to the play endpoint as it is, and deletes what comes of it.
func (h Harness) postPlay(t testing.TB, id adapters.StreamID) (status int, header http.Header, body []byte) {
	t.Helper()
	pc, err := media.Transport{Loopback: true}.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.GracefulClose() //nolint:errcheck // nothing was connected
	for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
		if _, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{
			Direction: webrtc.RTPTransceiverDirectionRecvonly,
		}); err != nil {
			t.Fatal(err)
		}
	}
	offer, err := pc.CreateOffer(nil)
	if err != nil {
		t.Fatal(err)
	}
	ep := h.Adapter.Egress(id)
	send := func(method, at, body string) *http.Response {
		ctx, cancel := context.WithTimeout(context.Background(), h.patience())
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, at, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = ep.Header.Clone()
		if r.Header == nil {
			r.Header = http.Header{}
		}
		r.Header.Set("Content-Type", whip.ContentTypeSDP)
		client := h.client().HTTP
		if client == nil {
			client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		}
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		read, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		response.Body = io.NopCloser(bytes.NewReader(read))
		return response
	}
	response := send(http.MethodPost, ep.URL.String(), offer.SDP)
	body, _ = io.ReadAll(response.Body)
	if location := response.Header.Get("Location"); sessionOpened(response.StatusCode) && location != "" {
		session, err := ep.URL.Parse(location)
		if err != nil {
			t.Fatal(err)
		}
		send(http.MethodDelete, session.String(), "")
	}
	return response.StatusCode, response.Header, body
}

// testMedia sees that what goes in at Ingest comes out at Egress.
func (h Harness) testMedia(t *testing.T) {
	id := h.NewStream(t)
	h.Publish(t, id).WaitConnected()
	player := h.Play(t, id)
	player.WaitFrames(25)
	player.WaitAudio(25)
	player.WaitKeyFrames(1)
	if stats := player.Stats(); stats.Damaged > stats.Frames/10 {
		t.Errorf("player got %+v", stats)
	}
}

// watching is a Watch under way.
type watching struct {
	t      testing.TB
	cancel context.CancelFunc
	ended  chan error
	busy   atomic.Bool

	mu      sync.Mutex
	reports [][]adapters.Stream
	times   []time.Time
	copies  [][]adapters.Stream
	changed chan struct{}
}

func (h Harness) watch(t testing.TB) *watching {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{t: t, cancel: cancel, ended: make(chan error, 1), changed: make(chan struct{})}
	go func() { w.ended <- h.Adapter.Watch(ctx, w.report) }()
	t.Cleanup(w.stop)
	return w
}

func (w *watching) report(streams []adapters.Stream) {
	if !w.busy.CompareAndSwap(false, true) {
		w.t.Error("Watch reports from two goroutines at once")
	}
	defer w.busy.Store(false)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reports = append(w.reports, streams)
	w.times = append(w.times, time.Now())
	w.copies = append(w.copies, deepCopy(streams))
	close(w.changed)
	w.changed = make(chan struct{})
}

func deepCopy(streams []adapters.Stream) []adapters.Stream {
	streams = slices.Clone(streams)
	for i := range streams {
		streams[i].Tracks = slices.Clone(streams[i].Tracks)
	}
	return streams
}

func (w *watching) latest() (streams []adapters.Stream, at time.Time, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.reports); n > 0 {
		streams, at = w.reports[n-1], w.times[n-1]
	}
	return streams, at, w.changed
}

// since is when the reports began that are as wanted without one between that is not, up to the latest.
func (w *watching) since(id adapters.StreamID, wanted func(adapters.Stream) bool) (at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.reports) - 1; i >= 0; i-- {
		var found adapters.Stream
		if n := slices.IndexFunc(w.reports[i], func(s adapters.Stream) bool { return s.ID == id }); n >= 0 {
			found = w.reports[i][n]
		}
		if !wanted(found) {
			break
		}
		at = w.times[i]
	}
	return at
}

// stop ends the Watch and checks how it went.
func (w *watching) stop() {
	w.cancel()
	select {
	case err := <-w.ended:
		if !errors.Is(err, context.Canceled) {
			w.t.Errorf("Watch ended with %v; want the context's error", err)
		}
		w.ended <- err
	case <-time.After(5 * time.Second):
		w.t.Error("Watch goes on after its context has ended")
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, was := range w.copies {
		if !reflect.DeepEqual(was, w.reports[i]) {
			w.t.Errorf("a report was changed afterwards, from %+v to %+v", was, w.reports[i])
		}
	}
}

// until waits for a report in which a stream is as wanted. The stream's zero value stands for its absence.
func (h Harness) until(w *watching, id adapters.StreamID, what string, wanted func(adapters.Stream) bool) adapters.Stream {
	w.t.Helper()
	found, _ := h.await(w.t, w, id, what, wanted)
	return found
}

// untilTime is until, and gives the time at which the report came. Reports from before the first that is as wanted do not count.
func (h Harness) untilTime(
	t testing.TB, w *watching, id adapters.StreamID, what string, wanted func(adapters.Stream) bool,
) time.Time {
	t.Helper()
	_, at := h.await(t, w, id, what, wanted)
	return at
}

func (h Harness) await(
	t testing.TB, w *watching, id adapters.StreamID, what string, wanted func(adapters.Stream) bool,
) (adapters.Stream, time.Time) {
	t.Helper()
	timeout := time.NewTimer(h.patience())
	defer timeout.Stop()
	for {
		streams, at, changed := w.latest()
		var found adapters.Stream
		for _, s := range streams {
			if s.ID == id {
				if found.ID != "" {
					t.Fatalf("%s is reported twice", id)
				}
				found = s
			}
		}
		if !at.IsZero() && wanted(found) {
			return found, w.since(id, wanted)
		}
		select {
		case <-changed:
		case err := <-w.ended:
			w.ended <- err
			t.Fatalf("Watch ended with %v; waiting for: %s", err, what)
		case <-timeout.C:
			t.Fatalf("not reported within %s: %s; last report %+v", h.patience(), what, streams)
		}
	}
}

// isCodec says whether a track is of a codec, as far as the server says.
func isCodec(t adapters.Track, mime string) bool {
	return t.MIME == "" || strings.EqualFold(t.MIME, mime)
}

func absent(s adapters.Stream) bool { return s.ID == "" }

func published(s adapters.Stream) bool { return s.ID != "" && !s.Waiting }

func (h Harness) testWatchReportsAtOnce(t *testing.T) {
	id := h.NewStream(t)
	h.until(h.watch(t), id, "an idle server's full set", absent)

	h.Publish(t, id).WaitConnected()
	h.until(h.watch(t), id, "a stream that was published before the Watch", published)
}

func (h Harness) testWatchReportsChanges(t *testing.T) {
	id := h.NewStream(t)
	w := h.watch(t)
	h.until(w, id, "nothing yet", absent)

	publisher := h.Publish(t, id)
	publisher.WaitConnected()
	stream := h.until(w, id, "published, with both tracks", func(s adapters.Stream) bool {
		return published(s) && len(s.Tracks) == 2
	})
	tracks := make(map[string]bool)
	for _, track := range stream.Tracks {
		tracks[track.Kind] = track.Kind == "audio" && isCodec(track, webrtc.MimeTypeOpus) ||
			track.Kind == "video" && isCodec(track, webrtc.MimeTypeH264)
	}
	if want := (map[string]bool{"audio": true, "video": true}); !maps.Equal(tracks, want) {
		t.Errorf("tracks %+v; want Opus and H264", stream.Tracks)
	}
	if slices.ContainsFunc(stream.Tracks, func(t adapters.Track) bool { return t.MIME == "" }) {
		h.result(t, "codecs of what is published", "not told by the server")
	} else {
		h.result(t, "codecs of what is published", "told by the server")
	}
	if stream.Session == "" {
		t.Error("the publication has no session name")
	}
	if age := time.Since(stream.Since); age < -time.Minute || age > time.Hour {
		t.Errorf("published since %s, which cannot be", stream.Since)
	}
	if stream.Readers > 0 {
		t.Errorf("%d readers before anybody plays", stream.Readers)
	}

	if stream.Readers == 0 {
		first, second := h.Play(t, id), h.Play(t, id)
		first.WaitFrames(1)
		second.WaitFrames(1)
		h.until(w, id, "2 readers", func(s adapters.Stream) bool { return s.Readers == 2 })
		first.Close()
		h.until(w, id, "1 reader", func(s adapters.Stream) bool { return s.Readers == 1 })
		second.Close()
		h.until(w, id, "no readers", func(s adapters.Stream) bool { return s.Readers == 0 })
	}

	publisher.Close()
	h.until(w, id, "the stream has ended", func(s adapters.Stream) bool { return !published(s) })
}

func (h Harness) testWatchSessions(t *testing.T) {
	id := h.NewStream(t)
	w := h.watch(t)
	var last string
	for range 2 {
		publisher := h.Publish(t, id)
		publisher.WaitConnected()
		stream := h.until(w, id, "published by another session", func(s adapters.Stream) bool {
			return published(s) && s.Session != last
		})
		last = stream.Session
		path := publisher.Session.Location().Path
		if element := path[strings.LastIndexByte(path, '/')+1:]; element != stream.Session && !stream.Relayed {
			t.Logf("session %q is not the last element of Location: relays are known by other means", stream.Session)
		}
		publisher.Close()
		h.until(w, id, "ended", func(s adapters.Stream) bool { return !published(s) })
	}
}

func (h Harness) testWatchTwice(t *testing.T) {
	id := h.NewStream(t)
	first, second := h.watch(t), h.watch(t)
	h.until(first, id, "nothing yet", absent)
	first.stop()
	h.Publish(t, id).WaitConnected()
	h.until(second, id, "published, though another Watch has ended", published)
}

func (h Harness) testWatchUnreachable(t *testing.T) {
	if h.Unreachable == nil {
		t.Skip("the harness has no unreachable server")
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.patience())
	defer cancel()
	err := h.Unreachable.Watch(ctx, func(s []adapters.Stream) { t.Errorf("reports %v of a server that is not there", s) })
	if err == nil || ctx.Err() != nil {
		t.Errorf("Watch of a server that is not there: %v; want an error, at once", err)
	}
}

func (h Harness) testEnd(t *testing.T) {
	ender, ok := h.Adapter.(adapters.Ender)
	if !ok {
		h.result(t, "ending a publication", "no")
		t.Skip("the adapter cannot end publications")
	}
	id := h.NewStream(t)
	w := h.watch(t)
	h.Publish(t, id).WaitConnected()
	stream := h.until(w, id, "published", published)
	ctx, cancel := context.WithTimeout(context.Background(), h.patience())
	defer cancel()
	if err := ender.End(ctx, stream); err != nil {
		t.Fatal(err)
	}
	h.until(w, id, "ended", func(s adapters.Stream) bool { return !published(s) })
	if err := ender.End(ctx, stream); err != nil {
		t.Errorf("ending it again: %v; want no error", err)
	}
	h.result(t, "ending a publication", "yes")
}
