package janus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/janus/janustest"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// until waits until the inventory is as wanted.
func (a *Adapter) until(t testing.TB, what string, wanted func(state) bool) state {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		known, changed := a.inventory.snapshot()
		if wanted(known) {
			return known
		}
		select {
		case <-changed:
		case <-timeout.C:
			t.Fatalf("waited %s in vain for: %s; last %+v", patience, what, known)
		}
	}
}

// stream waits for one that is as wanted; its zero value stands for its absence.
func (a *Adapter) stream(t testing.TB, id adapters.StreamID, what string, wanted func(adapters.Stream) bool) (found adapters.Stream) {
	t.Helper()
	a.until(t, what, func(known state) bool {
		found = adapters.Stream{}
		for _, s := range known.streams {
			if s.ID == id {
				found = s
			}
		}
		return known.ready && wanted(found)
	})
	return found
}

func isLive(s adapters.Stream) bool { return s.ID != "" && !s.Waiting }

func absent(s adapters.Stream) bool { return s.ID == "" }

// status is the code of a refusal.
func status(t testing.TB, err error) int {
	t.Helper()
	refusal, ok := errors.AsType[*whip.StatusError](err)
	if !ok {
		t.Fatalf("%v is no refusal", err)
	}
	return refusal.Code
}

// A publisher that vanishes keeps its name for as long as Janus keeps it, unless another one comes.
func TestPublisherVanishes(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{})
	a, _ := run(t, Config{BaseURL: server.URL})
	h := harness(t, a)
	id := h.NewStream(t)
	socket := adaptertest.NewSocketAt(t, h.Address)
	first := h
	first.Client = socket.Client(h.Client)
	first.Publish(t, id).WaitConnected()
	was := a.stream(t, id, "published", isLive)

	_, err := h.TryPublish(t, id)
	if code := status(t, err); code != http.StatusConflict {
		t.Fatalf("a second publisher: %v", err)
	}
	viewer := h.Play(t, id)
	viewer.WaitFrames(1)
	socket.Cut()
	for end := time.Now().Add(patience); ; {
		second, err := h.TryPublish(t, id)
		if err == nil {
			second.WaitConnected()
			break
		}
		if code := status(t, err); code != http.StatusConflict || time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	viewer.WaitEnded()
	a.stream(t, id, "published anew", func(s adapters.Stream) bool { return isLive(s) && s.Session != was.Session })
	h.Play(t, id).WaitFrames(5)
}

func TestJanusRestarts(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{})
	a, _ := run(t, Config{BaseURL: server.URL})
	h := harness(t, a)
	id := h.NewStream(t)
	publisher := h.Publish(t, id)
	publisher.WaitConnected()
	a.stream(t, id, "published", isLive)
	watched := make(chan error, 1)
	go func() { watched <- a.Watch(t.Context(), func([]adapters.Stream) {}) }()
	server.Restart()
	if err := <-watched; err == nil || t.Context().Err() != nil {
		t.Errorf("Watch of a server that was restarted: %v", err)
	}
	a.stream(t, id, "the stream is gone", absent)
	location := publisher.Session.Location()
	if got := send(t, h, a.Ingest(id), http.MethodGet, location.String(), "", ""); got.StatusCode != http.StatusNotFound {
		t.Errorf("session of a server that was restarted: %s", got.Status)
	}
	h.Publish(t, id).WaitConnected()
	a.stream(t, id, "published again", isLive)
	h.Play(t, id).WaitFrames(5)
}

// send sends a request with an endpoint's header.
func send(t testing.TB, h adaptertest.Harness, ep adapters.Endpoint, method, to, kind, body string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, to, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range ep.Header {
		r.Header[name] = values
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := h.Client.HTTP.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(read))
	return resp
}

func text(t testing.TB, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// severed is a way to Janus that can be closed, as a process that is killed closes it.
type severed struct {
	cut  atomic.Bool
	wire context.Context // of what is under way
	end  func()
}

func newSevered(t testing.TB) *severed {
	s := &severed{}
	s.wire, s.end = context.WithCancel(context.Background())
	t.Cleanup(s.end)
	return s
}

// sever also ends what is under way.
func (s *severed) sever() {
	s.cut.Store(true)
	s.end()
}

func (s *severed) mend() {
	s.wire, s.end = context.WithCancel(context.Background())
	s.cut.Store(false)
}

func (s *severed) RoundTrip(r *http.Request) (*http.Response, error) {
	if s.cut.Load() {
		return nil, errors.New("severed")
	}
	ctx, cancel := context.WithCancel(r.Context())
	context.AfterFunc(s.wire, cancel)
	return http.DefaultTransport.RoundTrip(r.WithContext(ctx))
}

// What a sidecar leaves when it is killed is taken out by the next one, and does not keep anybody from publishing.
func TestLeftBehind(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{})
	way := newSevered(t)
	killed, stop := run(t, Config{BaseURL: server.URL, Owner: "pod", HTTP: &http.Client{Transport: way}})
	h := harness(t, killed)
	id := h.NewStream(t)
	h.Publish(t, id).WaitConnected()
	killed.stream(t, id, "published", isLive)
	way.sever()
	stop()

	a, _ := run(t, Config{BaseURL: server.URL, Owner: "pod"})
	a.until(t, "nothing is published", func(s state) bool { return s.ready && len(s.streams) == 0 })
	h = harness(t, a)
	h.Publish(t, id).WaitConnected()
	a.stream(t, id, "published again", isLive)

	other, _ := run(t, Config{BaseURL: server.URL, Owner: "another pod"})
	other.stream(t, id, "another's publication stays", isLive)
}

// When Janus cannot be reached for a while the session with it is lost, and what it had: Janus itself would keep it for a
// minute more.
func TestSessionLost(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{})
	way := newSevered(t)
	a, _ := run(t, Config{BaseURL: server.URL, HTTP: &http.Client{Transport: way}})
	h := harness(t, a)
	id := h.NewStream(t)
	h.Publish(t, id).WaitConnected()
	was := a.stream(t, id, "published", isLive)
	way.sever()
	a.until(t, "the session is lost", func(s state) bool { return !s.ready })
	way.mend()
	h.Publish(t, id).WaitConnected()
	if s := a.stream(t, id, "published again", isLive); s.Session == was.Session {
		t.Error("the session is the old one")
	}
}

// native is a client of Janus' own API.
type native struct {
	*link
	t testing.TB
}

func newNative(t testing.TB, server *janustest.Server) *native {
	t.Helper()
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	n := &native{t: t, link: &link{client: &client{base: base, http: &http.Client{Transport: &http.Transport{}}, fields: params{}}}}
	session, err := n.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.follow(ctx, session) }()
	t.Cleanup(func() {
		cancel()
		<-done
		n.client.http.CloseIdleConnections()
	})
	return n
}

func (n *native) join(room ident) *handle {
	n.t.Helper()
	h, err := n.attach(n.t.Context(), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, _, err := h.request(n.t.Context(), "join", params{"request": "join", "ptype": "publisher", "room": room, "id": ident{text: "somebody"}}, nil); err != nil {
		n.t.Fatal(err)
	}
	return h
}

// publish sends a VP8 packet every now and then until the test ends.
func (n *native) publish(h *handle) {
	n.t.Helper()
	pc, err := media.Transport{}.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		n.t.Fatal(err)
	}
	track, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}, "video", "native")
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := pc.AddTransceiverFromTrack(track, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly}); err != nil {
		n.t.Fatal(err)
	}
	offer, err := pc.CreateOffer(nil)
	if err != nil {
		n.t.Fatal(err)
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(offer); err != nil {
		n.t.Fatal(err)
	}
	<-gathered
	_, answer, err := h.request(n.t.Context(), "publish", params{"request": "publish"}, &jsep{"offer", pc.LocalDescription().SDP})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: answer.SDP}); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for sequence := uint16(0); ; sequence++ {
			_ = track.WriteRTP(&rtp.Packet{
				Header:  rtp.Header{Version: 2, SequenceNumber: sequence, Timestamp: uint32(sequence) * 1800, Marker: true},
				Payload: []byte{0x10, 0x00, 0x00, 0x00, 0x9d, 0x01, 0x2a, 0x40, 0x01, 0xf0, 0x00, 0x00},
			})
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
	n.t.Cleanup(func() {
		cancel()
		<-done
		_ = pc.GracefulClose()
	})
}

// Rooms that others use by Janus' own API are streams too, and who is there without publishing waits for one.
func TestNativeClients(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{Rooms: `room-studio: { description = "Studio" publishers = 3 videocodec = "vp8" }`})
	a, _ := run(t, Config{BaseURL: server.URL})
	h := harness(t, a)
	client := newNative(t, server)
	somebody := client.join(ident{text: "studio"})
	a.stream(t, "studio", "somebody waits", func(s adapters.Stream) bool { return s.Waiting && s.Readers == 1 })
	client.publish(somebody)
	first := a.stream(t, "studio", "published", func(s adapters.Stream) bool { return isLive(s) && len(s.Tracks) == 1 })
	if first.Session != "somebody" || first.Tracks[0] != (adapters.Track{Kind: "video", MIME: "video/VP8"}) || first.Readers != 0 {
		t.Errorf("got %+v", first)
	}
	if _, err := h.TryPublish(t, "studio"); status(t, err) != http.StatusConflict {
		t.Errorf("a publisher beside a native one: %v", err)
	}

	viewer, err := h.Client.Play(t.Context(), a.Egress("studio"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = viewer.Close(context.Background()) })
	a.stream(t, "studio", "one reader", func(s adapters.Stream) bool { return s.Readers == 1 })

	if err := a.End(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	a.stream(t, "studio", "ended", func(s adapters.Stream) bool { return !isLive(s) })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := viewer.Wait(ctx); ctx.Err() != nil {
		t.Errorf("the viewer of a publisher that was kicked goes on: %v", err)
	}
	again := client.join(ident{text: "studio"})
	client.publish(again)
	second := a.stream(t, "studio", "published again", isLive)
	if second.Session == first.Session {
		t.Errorf("another publication by one id has the same session %q", second.Session)
	}
	if err := again.detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.stream(t, "studio", "left", absent)

	// The room takes VP8 only, and stays when nobody is in it.
	if _, _, err := publishOnly(t, h, "studio", webrtc.MimeTypeH264); err == nil || status(t, err) != http.StatusUnprocessableEntity {
		t.Errorf("H264 into a room of VP8: %v", err)
	}
}

// Who subscribes by Janus' own API to what came by WHIP is counted by the administration's.
func TestNativeSubscribers(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{AdminSecret: "admin"})
	a, _ := run(t, Config{BaseURL: server.URL, AdminURL: server.AdminURL, AdminSecret: "admin"})
	h := harness(t, a)
	id := h.NewStream(t)
	h.Publish(t, id).WaitConnected()
	s := a.stream(t, id, "published", isLive)
	h.Play(t, id).WaitFrames(1)
	a.stream(t, id, "one reader", func(s adapters.Stream) bool { return s.Readers == 1 })
	subscriber, err := newNative(t, server).attach(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = subscriber.request(t.Context(), "subscribe", params{
		"request": "join", "ptype": "subscriber", "room": ident{text: string(id)}, "streams": []params{{"feed": ident{text: s.Session}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.stream(t, id, "two readers", func(s adapters.Stream) bool { return s.Readers == 2 })
	if err := subscriber.detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.stream(t, id, "one reader again", func(s adapters.Stream) bool { return s.Readers == 1 })
}

func TestRoomsAreEnded(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{Numbers: true})
	a, stop := run(t, Config{BaseURL: server.URL})
	h := harness(t, a)
	client := newNative(t, server)
	look, err := client.attach(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	rooms := func() []room {
		listed, err := look.ask(t.Context(), "list", params{"request": "list"})
		if err != nil {
			t.Fatal(err)
		}
		return listed.List
	}
	none := func(what string) {
		t.Helper()
		for end := time.Now().Add(patience); len(rooms()) > 0; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %+v", what, rooms())
			}
		}
	}
	for _, id := range []adapters.StreamID{"live/Käse 100%", "1234"} {
		publisher := h.Publish(t, id)
		publisher.WaitConnected()
		a.stream(t, id, "published", isLive)
		if found := rooms(); len(found) != 1 || found[0].Description != ownRoom+string(id) {
			t.Errorf("rooms %+v", found)
		}
		publisher.Close()
		none("a room without a publisher")
	}
	left := func() int {
		a.link.mu.Lock()
		defer a.link.mu.Unlock()
		return len(a.link.handles)
	}
	for end := time.Now().Add(patience); left() > 1; time.Sleep(20 * time.Millisecond) { // one to ask by
		if time.Now().After(end) {
			t.Fatalf("%d handles are left", left())
		}
	}
	h.Publish(t, "left").WaitConnected()
	stop()
	none("a room of a sidecar that has ended")
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{APISecret: "secret", AdminKey: "key"})
	t.Run("secret", func(t *testing.T) {
		a, _ := run(t, Config{BaseURL: server.URL, APISecret: "wrong"})
		known := a.until(t, "refused", func(s state) bool { return s.attempts > 0 })
		if codeOf(known.err) != codeUnauthorized {
			t.Errorf("Janus says %v", known.err)
		}
		if err := a.Watch(t.Context(), func([]adapters.Stream) { t.Error("reports what it cannot know") }); err == nil {
			t.Error("Watch with a wrong secret ends without an error")
		}
		_, err := harness(t, a).TryPublish(t, "x")
		if status(t, err) != http.StatusForbidden {
			t.Errorf("publish with a wrong secret: %v", err)
		}
		if retried := a.until(t, "still refused", func(s state) bool { return s.attempts > 0 }); retried.attempts > 10 {
			t.Errorf("%d attempts within seconds", retried.attempts)
		}
	})
	t.Run("admin key", func(t *testing.T) {
		for _, key := range []string{"", "wrong"} {
			a, _ := run(t, Config{BaseURL: server.URL, APISecret: "secret", AdminKey: key})
			_, err := harness(t, a).TryPublish(t, "x")
			if status(t, err) != http.StatusForbidden {
				t.Errorf("publish with admin key %q: %v", key, err)
			}
		}
	})
}

// Strangers come through the gateway; they are who the settings let in.
func TestStrangers(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{APISecret: "secret"})
	offer := func() string {
		pc, err := media.Transport{}.NewPeerConnection(webrtc.Configuration{})
		if err != nil {
			t.Fatal(err)
		}
		defer pc.GracefulClose() //nolint:errcheck // nothing was connected
		if _, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo); err != nil {
			t.Fatal(err)
		}
		o, err := pc.CreateOffer(nil)
		if err != nil {
			t.Fatal(err)
		}
		return o.SDP
	}()
	for name, o := range map[string]struct {
		config         Config
		method, path   string
		header         []string
		status         int
		passesToServer bool
	}{
		"closed":             {Config{}, http.MethodPost, "/whep/x", nil, http.StatusUnauthorized, false},
		"wrong token":        {Config{PlayToken: "p"}, http.MethodPost, "/whep/x", []string{"Authorization", "Bearer q"}, http.StatusUnauthorized, false},
		"token":              {Config{PlayToken: "p"}, http.MethodPost, "/whep/x", []string{"Authorization", "Bearer p"}, http.StatusConflict, false},
		"token of another":   {Config{PlayToken: "p"}, http.MethodPost, "/whip/x", []string{"Authorization", "Bearer p"}, http.StatusUnauthorized, false},
		"a guessed secret":   {Config{PlayToken: "p"}, http.MethodPost, "/whep/x", []string{secretHeader, "guess"}, http.StatusUnauthorized, false},
		"preflight":          {Config{}, http.MethodOptions, "/whep/x", nil, http.StatusOK, false},
		"unknown session":    {Config{PlayToken: "p"}, http.MethodDelete, "/session/x", []string{"Authorization", "Bearer p"}, http.StatusNotFound, false},
		"bad name":           {Config{PlayToken: "p"}, http.MethodPost, "/whep/a//b", []string{"Authorization", "Bearer p"}, http.StatusBadRequest, false},
		"Janus' own address": {Config{}, http.MethodGet, "/janus/info", nil, http.StatusOK, true},
	} {
		t.Run(name, func(t *testing.T) {
			o.config.BaseURL, o.config.APISecret = server.URL, "secret"
			a, _ := run(t, o.config)
			h := harness(t, a)
			h.Client.HTTP.Transport = a.Transport(&http.Transport{DisableKeepAlives: true})
			base, _ := url.Parse(server.URL)
			body := offer
			if o.method != http.MethodPost {
				body = ""
			}
			got := send(t, h, adapters.Endpoint{}, o.method, "http://"+base.Host+o.path, whip.ContentTypeSDP, body, o.header...)
			if body := text(t, got); got.StatusCode != o.status || strings.Contains(body, "server_info") != o.passesToServer {
				t.Errorf("%s %s", got.Status, body)
			}
			direct := send(t, harness(t, a), adapters.Endpoint{}, o.method, "http://"+a.address+o.path, whip.ContentTypeSDP, body)
			if direct.StatusCode != http.StatusForbidden {
				t.Errorf("past the gateway: %s", direct.Status)
			}
		})
	}
}

// ICE of a publisher begins anew; the DTLS session goes on.
func TestICERestart(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{})
	a, _ := run(t, Config{BaseURL: server.URL})
	h := harness(t, a)
	id := h.NewStream(t)
	publisher := h.Publish(t, id)
	publisher.WaitConnected()
	a.stream(t, id, "published", isLive)
	at := publisher.Session.Location().String()
	fragment := string(whip.Fragment{Media: []whip.FragmentMedia{{
		Line: "audio 9 UDP/TLS/RTP/SAVPF 111", MID: "0", FragmentICE: whip.FragmentICE{Ufrag: "anew", Pwd: "abcdefghijklmnopqrstuvwx"},
	}}}.Marshal())
	got := send(t, h, a.Ingest(id), http.MethodPatch, at, whip.ContentTypeFragment, fragment, "If-Match", `"*"`)
	body := text(t, got)
	answer, err := whip.ParseFragment([]byte(body))
	if got.StatusCode != http.StatusOK || err != nil {
		t.Fatalf("restart: %s %s (%v)", got.Status, body, err)
	}
	ufrag, pwd := answer.Credentials()
	if was := publisher.Session.PeerConnection().RemoteDescription().SDP; ufrag == "" || pwd == "" || strings.Contains(was, ufrag) {
		t.Errorf("Janus' credentials are %q %q", ufrag, pwd)
	}
	tag := got.Header.Get("ETag")
	if tag == "" || tag == publisher.Session.ETag() || len(answer.AllCandidates()) == 0 {
		t.Errorf("ETag %q, candidates %q", tag, answer.AllCandidates())
	}
	for match, want := range map[string]int{publisher.Session.ETag(): http.StatusPreconditionFailed, "": http.StatusPreconditionRequired, tag: http.StatusNoContent} {
		fields := []string{"If-Match", match}
		if match == "" {
			fields = nil
		}
		if got := send(t, h, a.Ingest(id), http.MethodPatch, at, whip.ContentTypeFragment, fragment, fields...); got.StatusCode != want {
			t.Errorf("PATCH with If-Match %q: %s %s", match, got.Status, text(t, got))
		}
	}
}

// publishOnly offers one codec.
func publishOnly(t testing.TB, h adaptertest.Harness, id adapters.StreamID, mime string) (*whip.Session, *webrtc.TrackLocalStaticRTP, error) {
	var track *webrtc.TrackLocalStaticRTP
	session, err := h.Client.Publish(t.Context(), h.Adapter.Ingest(id), func(pc *webrtc.PeerConnection) error {
		kind := webrtc.NewRTPCodecType(strings.Split(mime, "/")[0])
		transceiver, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
		if err != nil {
			return err
		}
		var only []webrtc.RTPCodecParameters
		for _, c := range transceiver.Sender().GetParameters().Codecs {
			if strings.EqualFold(c.MimeType, mime) {
				only = append(only, c)
			}
		}
		if err := transceiver.SetCodecPreferences(only[:1]); err != nil {
			return err
		}
		if track, err = webrtc.NewTrackLocalStaticRTP(only[0].RTPCodecCapability, "track", "codec"); err != nil {
			return err
		}
		return transceiver.Sender().ReplaceTrack(track)
	})
	return session, track, err
}

// Every codec that the traits name goes through.
func TestCodecs(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{})
	a, _ := run(t, Config{BaseURL: server.URL})
	for _, mime := range a.Traits().Codecs {
		t.Run(mime, func(t *testing.T) {
			h := harness(t, a)
			id := h.NewStream(t)
			publisher, track, err := publishOnly(t, h, id, mime)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = publisher.Close(context.Background()) })
			if err := publisher.Connected(t.Context()); err != nil {
				t.Fatal(err)
			}
			sending, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for sequence := uint16(1); pause(sending, 10*time.Millisecond) == nil; sequence++ {
					_ = track.WriteRTP(&rtp.Packet{
						Header: rtp.Header{Version: 2, SequenceNumber: sequence, Timestamp: uint32(sequence) * 960, Marker: true}, Payload: []byte("payload"),
					})
				}
			}()
			defer func() {
				stop()
				<-done
			}()
			s := a.stream(t, id, "published", isLive)
			if len(s.Tracks) != 1 || !strings.EqualFold(s.Tracks[0].MIME, mime) {
				t.Errorf("tracks %+v", s.Tracks)
			}
			got := make(chan string, 1)
			viewer, err := h.Client.Play(t.Context(), a.Egress(id), func(pc *webrtc.PeerConnection) error {
				pc.OnTrack(func(remote *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
					if p, _, err := remote.ReadRTP(); err == nil {
						select {
						case got <- remote.Codec().MimeType + " " + string(p.Payload):
						default:
						}
					}
				})
				for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
					if _, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = viewer.Close(context.Background()) })
			timeout := time.NewTimer(patience)
			defer timeout.Stop()
			select {
			case packet := <-got:
				if !strings.EqualFold(packet, mime+" payload") {
					t.Errorf("got %q", packet)
				}
			case <-timeout.C:
				t.Error("nothing arrives")
			}
		})
	}
}

// The header extensions that the traits name go through.
func TestExtensions(t *testing.T) {
	t.Parallel()
	server := janustest.Start(t, janustest.Options{})
	a, _ := run(t, Config{BaseURL: server.URL})
	values := map[string][]byte{
		"urn:ietf:params:rtp-hdrext:ssrc-audio-level": {0x85},
		"urn:3gpp:video-orientation":                  {0x01},
	}
	for _, uri := range a.Traits().Extensions {
		t.Run(uri[strings.LastIndexAny(uri, ":/")+1:], func(t *testing.T) {
			mime := webrtc.MimeTypeVP8
			if strings.Contains(uri, "audio") {
				mime = webrtc.MimeTypeOpus
			}
			h := harness(t, a)
			id := h.NewStream(t)
			publisher, track, err := publishOnly(t, h, id, mime)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = publisher.Close(context.Background()) })
			if err := publisher.Connected(t.Context()); err != nil {
				t.Fatal(err)
			}
			number := func(all []webrtc.RTPHeaderExtensionParameter) uint8 {
				for _, e := range all {
					if e.URI == uri {
						return uint8(e.ID)
					}
				}
				t.Errorf("not negotiated: %+v", all)
				return 14
			}
			sent := number(publisher.PeerConnection().GetSenders()[0].GetParameters().HeaderExtensions)
			sending, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for sequence := uint16(1); pause(sending, 10*time.Millisecond) == nil; sequence++ {
					p := &rtp.Packet{
						Header: rtp.Header{Version: 2, SequenceNumber: sequence, Timestamp: uint32(sequence) * 960, Marker: true}, Payload: []byte("payload"),
					}
					_ = p.SetExtension(sent, values[uri])
					_ = track.WriteRTP(p)
				}
			}()
			defer func() {
				stop()
				<-done
			}()
			a.stream(t, id, "published", isLive)
			got := make(chan []byte, 1)
			viewer, err := h.Client.Play(t.Context(), a.Egress(id), func(pc *webrtc.PeerConnection) error {
				pc.OnTrack(func(remote *webrtc.TrackRemote, receiver *webrtc.RTPReceiver) {
					if p, _, err := remote.ReadRTP(); err == nil {
						got <- p.GetExtension(number(receiver.GetParameters().HeaderExtensions))
					}
				})
				for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo} {
					if _, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = viewer.Close(context.Background()) })
			timeout := time.NewTimer(patience)
			defer timeout.Stop()
			select {
			case value := <-got:
				if !bytes.Equal(value, values[uri]) {
					t.Errorf("got %x", value)
				}
			case <-timeout.C:
				t.Error("nothing arrives")
			}
		})
	}
}
