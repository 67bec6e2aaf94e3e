package janus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
)

// fake answers as Janus 1.1.2 did when it was asked, but where a test has it say something else. Its ids are strings.
type fake struct {
	*httptest.Server
	// say gives another answer to a request; false: the usual one. It is called with a lock held.
	say func(r *http.Request, request map[string]any) (answer string, ok bool)

	mu     sync.Mutex
	events []string // to be polled
	poke   chan struct{}
	next   uint64
	seen   []map[string]any
}

const (
	infoAnswer = `{"janus":"server_info","transaction":"t","name":"Janus WebRTC Server","version":1102,"version_string":"1.1.2",` +
		`"session-timeout":60,"ice-keepalive-conncheck":true,"plugins":{"janus.plugin.videoroom":{"name":"JANUS VideoRoom plugin"}}}`
	answerSDP = "v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n" +
		"c=IN IP4 10.0.0.1\r\na=recvonly\r\na=mid:0\r\na=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\na=setup:active\r\n" +
		"a=rtpmap:96 VP8/90000\r\na=candidate:1 1 udp 2015363327 10.0.0.1 45880 typ host\r\na=end-of-candidates\r\n"
)

func newFake(t testing.TB, say func(r *http.Request, request map[string]any) (string, bool)) *fake {
	f := &fake{say: say, poke: make(chan struct{})}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

// tell has an event come.
func (f *fake) tell(event string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tellLocked(event)
}

func (f *fake) tellLocked(event string) {
	f.events = append(f.events, event)
	close(f.poke)
	f.poke = make(chan struct{})
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	var request map[string]any
	if body, _ := io.ReadAll(r.Body); len(body) > 0 {
		_ = json.Unmarshal(body, &request)
	}
	f.mu.Lock()
	f.seen = append(f.seen, request)
	var answer string
	said := false
	if f.say != nil {
		answer, said = f.say(r, request)
	}
	if !said {
		answer, said = f.usual(r, request)
	}
	f.mu.Unlock()
	if !said {
		f.poll(w, r)
		return
	}
	if answer == "404" {
		http.NotFound(w, r)
		return
	}
	_, _ = io.WriteString(w, answer)
}

func (f *fake) poll(w http.ResponseWriter, r *http.Request) {
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	for {
		f.mu.Lock()
		events, poke := f.events, f.poke
		f.events = nil
		f.mu.Unlock()
		if len(events) > 0 {
			_, _ = io.WriteString(w, "["+strings.Join(events, ",")+"]")
			return
		}
		select {
		case <-poke:
		case <-r.Context().Done():
			return
		case <-timeout.C:
			_, _ = io.WriteString(w, `[{"janus":"keepalive"}]`)
			return
		}
	}
}

func (f *fake) usual(r *http.Request, request map[string]any) (answer string, ok bool) {
	if r.Method == http.MethodGet {
		return infoAnswer, strings.HasSuffix(r.URL.Path, "/info")
	}
	transaction := request["transaction"]
	switch request["janus"] {
	case "create", "attach":
		f.next++
		return fmt.Sprintf(`{"janus":"success","transaction":%q,"data":{"id":%d}}`, transaction, f.next), true
	case "message":
	default:
		return fmt.Sprintf(`{"janus":"success","transaction":%q}`, transaction), true
	}
	elements := strings.Split(r.URL.Path, "/")
	sender := elements[len(elements)-1]
	plugin := func(kind, data, more string) string {
		return fmt.Sprintf(`{"janus":%q,"sender":%s,"transaction":%q,"plugindata":{"plugin":%q,"data":%s}%s}`, kind, sender, transaction, "janus.plugin.videoroom", data, more)
	}
	body, _ := request["body"].(map[string]any)
	switch body["request"] {
	case "exists":
		return plugin("success", `{"videoroom":"success","room":"sidestream","exists":false}`, ""), true
	case "list":
		return plugin("success", `{"videoroom":"success","list":[]}`, ""), true
	case "listparticipants":
		return plugin("success", `{"videoroom":"event","error_code":426,"error":"No such room"}`, ""), true
	case "join":
		f.tellLocked(plugin("event", `{"videoroom":"joined","room":"x","publishers":[]}`, ""))
	case "publish":
		sdp, _ := json.Marshal(answerSDP)
		f.tellLocked(plugin("event", `{"videoroom":"event","configured":"ok"}`, fmt.Sprintf(`,"jsep":{"type":"answer","sdp":%s}`, sdp)))
	default:
		return plugin("success", `{"videoroom":"success"}`, ""), true
	}
	return fmt.Sprintf(`{"janus":"ack","transaction":%q}`, transaction), true
}

// request is what a message asks for.
func requestOf(request map[string]any) string {
	body, _ := request["body"].(map[string]any)
	name, _ := body["request"].(string)
	return name
}

// What a server may say that is no Janus, not this one, or not for us: it is told, and nothing else happens.
func TestOtherServers(t *testing.T) {
	t.Parallel()
	say := func(when func(r *http.Request, request map[string]any) bool, answer string) func(*http.Request, map[string]any) (string, bool) {
		return func(r *http.Request, request map[string]any) (string, bool) { return answer, when(r, request) }
	}
	info := func(r *http.Request, _ map[string]any) bool { return strings.HasSuffix(r.URL.Path, "/info") }
	kind := func(name string) func(*http.Request, map[string]any) bool {
		return func(_ *http.Request, request map[string]any) bool { return request["janus"] == name }
	}
	asks := func(name string) func(*http.Request, map[string]any) bool {
		return func(_ *http.Request, request map[string]any) bool { return requestOf(request) == name }
	}
	polls := func(r *http.Request, _ map[string]any) bool {
		return r.Method == http.MethodGet && !strings.HasSuffix(r.URL.Path, "/info")
	}
	for name, o := range map[string]struct {
		say  func(*http.Request, map[string]any) (string, bool)
		want string
	}{
		"not found":          {say(info, "404"), "status 404"},
		"a page":             {say(info, "<html>"), "is this Janus' HTTP API?"},
		"no plugin":          {say(info, `{"janus":"server_info","plugins":{}}`), "VideoRoom plugin"},
		"nothing":            {say(info, ""), "is this Janus' HTTP API?"},
		"wrong secret":       {say(kind("create"), `{"janus":"error","transaction":"t","error":{"code":403,"reason":"Unauthorized request (wrong or missing secret/token)"}}`), "403"},
		"about to end":       {say(kind("create"), `{"janus":"error","error":{"code":472,"reason":"Not accepting new sessions"}}`), "472"},
		"no id":              {say(kind("create"), `{"janus":"success"}`), "no id"},
		"id of another kind": {say(kind("create"), `{"janus":"success","data":{"id":"x"}}`), "is this Janus' HTTP API?"},
		"cannot attach":      {say(kind("attach"), `{"janus":"error","error":{"code":460,"reason":"No such plugin"}}`), "460"},
		"error without word": {say(kind("attach"), `{"janus":"error"}`), "without words"},
		"no plugin data":     {say(asks("exists"), `{"janus":"success"}`), "without the plugin's data"},
		"list of other form": {say(asks("list"), `{"janus":"success","plugindata":{"data":{"videoroom":"success","list":7}}}`), "another form"},
		"wrong admin key":    {say(asks("list"), `{"janus":"success","plugindata":{"data":{"videoroom":"event","error_code":433,"error":"Unauthorized"}}}`), "433"},
		"session over":       {say(polls, `{"janus":"error","error":{"code":458,"reason":"No such session"}}`), "458"},
		"timed out":          {say(polls, `[{"janus":"timeout","session_id":1}]`), "silent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newFake(t, o.say)
			a, err := New(Config{BaseURL: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = a.Close(); a.client.http.CloseIdleConnections() })
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err = a.connection(ctx)
			if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), o.want) {
				t.Errorf("%v; want something about %q", err, o.want)
			}
		})
	}
}

// An event that is not understood ends nothing; garbage in place of events is asked about, and the session goes on.
func TestGarbageEvents(t *testing.T) {
	t.Parallel()
	server := newFake(t, nil)
	a, _ := run(t, Config{BaseURL: server.URL})
	a.until(t, "ready", func(s state) bool { return s.ready })
	for _, event := range []string{
		`{"janus":"event","sender":1,"plugindata":{"data":7}}`, `{"janus":"unheard of"}`, `{"janus":"media","sender":99}`, `{}`, `7`, `[`,
		`{"janus":"event","sender":2,"plugindata":{"data":{"videoroom":"event","publishers":{}}}}`,
	} {
		server.tell(event)
	}
	_, err := harness(t, a).TryPublish(t, "x")
	if err == nil || strings.Contains(err.Error(), "503") {
		t.Errorf("publishing after garbage: %v", err) // the fake's fixed answer does not fit, so the client gives up
	}
}

// post sends an offer to the façade as its own handler gets it.
func post(t testing.TB, a *Adapter, path, kind, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set(secretHeader, a.inside)
	r.Header.Set("Content-Type", kind)
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	refused := func(request string, code int) func(*http.Request, map[string]any) (string, bool) {
		return func(_ *http.Request, r map[string]any) (string, bool) {
			return fmt.Sprintf(`{"janus":"success","plugindata":{"data":{"videoroom":"event","error_code":%d,"error":"so it is"}}}`, code), requestOf(r) == request
		}
	}
	for name, o := range map[string]struct {
		say        func(*http.Request, map[string]any) (string, bool)
		path       string
		kind, body string
		want       int
	}{
		"not SDP":          {nil, "/whip/x", whip.ContentTypeSDP, "hello", http.StatusBadRequest},
		"no media":         {nil, "/whip/x", whip.ContentTypeSDP, "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n", http.StatusBadRequest},
		"another type":     {nil, "/whip/x", "text/plain", answerSDP, http.StatusUnsupportedMediaType},
		"too large":        {nil, "/whip/x", whip.ContentTypeSDP, strings.Repeat("a", maxBody+1), http.StatusRequestEntityTooLarge},
		"dotted":           {nil, "/whip/a/../b", whip.ContentTypeSDP, answerSDP, http.StatusBadRequest},
		"long":             {nil, "/whip/" + strings.Repeat("a", 1000), whip.ContentTypeSDP, answerSDP, http.StatusBadRequest},
		"nobody publishes": {nil, "/whep/x", whip.ContentTypeSDP, answerSDP, http.StatusConflict},
		"room full":        {refused("publish", codePublishersFull), "/whip/x", whip.ContentTypeSDP, answerSDP, http.StatusConflict},
		"PIN":              {refused("join", codeRoomForbidden), "/whip/x", whip.ContentTypeSDP, answerSDP, http.StatusForbidden},
		"bad SDP":          {refused("publish", codePluginBadSDP), "/whip/x", whip.ContentTypeSDP, answerSDP, http.StatusUnprocessableEntity},
		"something else":   {refused("publish", 499), "/whip/x", whip.ContentTypeSDP, answerSDP, http.StatusBadGateway},
		"accepted":         {nil, "/whip/x", whip.ContentTypeSDP, answerSDP, http.StatusCreated},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newFake(t, o.say)
			a, _ := run(t, Config{BaseURL: server.URL})
			a.until(t, "ready", func(s state) bool { return s.ready })
			got := post(t, a, o.path, o.kind, o.body)
			var problem adapters.Problem
			if got.Code != o.want {
				t.Errorf("%d %s; want %d", got.Code, got.Body, o.want)
			} else if err := json.Unmarshal(got.Body.Bytes(), &problem); o.want >= 400 && (err != nil || problem.Detail == "") {
				t.Errorf("%s says nothing", got.Body)
			}
			if o.want >= 400 && len(a.facade.sessions)+len(a.facade.publishers) > 0 {
				t.Error("a session is left")
			}
		})
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	server := newFake(t, nil)
	a, _ := run(t, Config{BaseURL: server.URL, MaxSessions: 2, MaxOpening: 1})
	a.until(t, "ready", func(s state) bool { return s.ready })
	publish := func(name string) int { return post(t, a, "/whip/"+name, whip.ContentTypeSDP, answerSDP).Code }
	if got := publish("a"); got != http.StatusCreated {
		t.Fatalf("first: %d", got)
	}
	if got := publish("b"); got != http.StatusTooManyRequests {
		t.Errorf("second while the first is not connected: %d", got)
	}
	connect := func(name adapters.StreamID) {
		a.facade.mu.Lock()
		s := a.facade.publishers[name]
		a.facade.mu.Unlock()
		a.facade.heard(s, &message{Janus: "webrtcup"})
		a.facade.heard(s, &message{Janus: "media", MID: "0", Receiving: true})
	}
	connect("a")
	if got := publish("a"); got != http.StatusConflict {
		t.Errorf("again: %d", got)
	}
	if got := publish("b"); got != http.StatusCreated {
		t.Errorf("second: %d", got)
	}
	connect("b")
	if got := publish("c"); got != http.StatusServiceUnavailable {
		t.Errorf("third of two: %d", got)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	f := newFacade(&link{}, Config{MaxSessions: 10, MaxOpening: 10}, mark{}, discard(), func(bool) {})
	f.connect(naming{}, true)
	open := func(id adapters.StreamID, publish bool) *session {
		s, replaced, err := f.reserve(id, publish, true)
		if err != nil || replaced != nil {
			t.Fatal(replaced, err)
		}
		return s
	}
	half, play, live, silent := open("half", true), open("live", false), open("live", true), open("silent", true)
	for _, s := range []*session{play, live, silent} {
		f.heard(s, &message{Janus: "webrtcup"})
	}
	f.heard(live, &message{Janus: "media", MID: "0", Receiving: true})
	f.heard(silent, &message{Janus: "media", MID: "0", Receiving: true})
	f.heard(silent, &message{Janus: "media", MID: "1", Receiving: true})
	f.heard(silent, &message{Janus: "media", MID: "1"})
	if !silent.silent.IsZero() {
		t.Error("a publisher whose sound goes on is silent")
	}
	f.heard(silent, &message{Janus: "media", MID: "0"})
	now := time.Now()
	f.sweep(now.Add(time.Second))
	if len(f.sessions) != 4 {
		t.Errorf("%d sessions left at once", len(f.sessions))
	}
	if silent.replaceable(now.Add(replaceTime/2)) || !silent.replaceable(now.Add(replaceTime+time.Second)) || live.replaceable(now.Add(time.Hour)) {
		t.Error("the wrong publishers can be replaced")
	}
	f.sweep(now.Add(openTime + time.Second))
	if !half.over || !silent.over || play.over || live.over {
		t.Errorf("over: half-open %t, silent %t, play %t, live %t", half.over, silent.over, play.over, live.over)
	}
	if _, _, err := f.reserve("live", true, true); !errors.Is(err, errPublished) {
		t.Errorf("a name that is taken: %v", err)
	}
}
