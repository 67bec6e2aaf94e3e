package pionsfu

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	pathEvents = "events"
	pathLayer  = "layer"

	maxSubscriptions = 4 // of one session
	maxExtensionBody = 4 << 10
	// eventInterval is how often bit rates are looked at, and the least time between two events.
	eventInterval = 500 * time.Millisecond
)

// events are what a viewer can subscribe to (draft-ietf-wish-whep, "Server Sent Events extension").
var events = []string{whip.EventActive, whip.EventInactive, whip.EventLayers, whip.EventReconnect, whip.EventViewerCount}

// addExtensions promises a viewer's session the extensions of WHEP, each by a Link.
func (s *Server) addExtensions(h http.Header, session *session) {
	base := s.publicURL + pathSession + session.id + "/"
	h.Add("Link", whip.Link{Target: base + pathEvents, Params: []whip.LinkParam{
		{Name: "rel", Value: whip.RelEvents}, {Name: "events", Value: strings.Join(events, ",")},
	}}.String())
	h.Add("Link", whip.Link{Target: base + pathLayer, Params: []whip.LinkParam{{Name: "rel", Value: whip.RelLayer}}}.String())
	s.addLoss(h, session)
}

// serveExtension is what lies below a session's address.
func (s *Server) serveExtension(w http.ResponseWriter, r *http.Request, id, below string) {
	if below == pathLoss {
		s.serveLoss(w, r, id)
		return
	}
	subscription, subscribed := strings.CutPrefix(below, pathEvents+"/")
	methods := "OPTIONS, POST"
	if subscribed {
		methods = "OPTIONS, GET, DELETE"
	}
	if r.Method == http.MethodOptions {
		if !subscribed {
			w.Header().Set("Accept-Post", contentJSON)
		}
		s.serveOptions(w, r, methods, nil)
		return
	}
	if !slices.Contains(strings.Split(methods, ", "), r.Method) {
		notAllowed(w, methods)
		return
	}
	session, err := s.registry.session(id)
	if !s.admit(w, r, s.sessionClaim(session, r)) {
		return
	}
	switch {
	case err != nil:
	case session.viewer == nil, below != pathLayer && below != pathEvents && !subscribed:
		err = errNoSession
	case subscribed && r.Method == http.MethodDelete:
		err = session.unsubscribe(subscription)
	case subscribed:
		err = s.stream(w, r, session, subscription)
	case below == pathLayer:
		err = s.selectLayer(w, r, session)
	default:
		err = s.subscribe(w, r, session)
	}
	if err != nil {
		s.refuse(w, err)
	}
}

// decode reads a small JSON body.
func (s *Server) decode(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := s.readBody(w, r, contentJSON)
	if err != nil {
		return err
	}
	if len(body) > maxExtensionBody {
		return &refusal{http.StatusRequestEntityTooLarge, "too_large", "", fmt.Sprintf("The body may have %d bytes.", maxExtensionBody)}
	}
	if err := json.Unmarshal(body, into); err != nil {
		return &refusal{http.StatusBadRequest, "malformed", "Malformed JSON", "The body is not as the extension wants it: " + err.Error() + "."}
	}
	return nil
}

// subscribe makes a stream of events, to be read at the address of the 201.
func (s *Server) subscribe(w http.ResponseWriter, r *http.Request, session *session) error {
	var wanted []string
	if err := s.decode(w, r, &wanted); err != nil {
		return err
	}
	for _, name := range wanted {
		if !slices.Contains(events, name) {
			return &refusal{
				http.StatusBadRequest, "unknown_event", "Unknown event",
				fmt.Sprintf("%q is none of %s.", short(name), strings.Join(events, ", ")),
			}
		}
	}
	if len(wanted) == 0 {
		return &refusal{
			http.StatusBadRequest, "unknown_event", "No event is wanted", "Send a JSON array with some of " + strings.Join(events, ", ") + ".",
		}
	}
	id := rand.Text()
	session.mu.Lock()
	full := len(session.events) >= maxSubscriptions
	if !full {
		if session.events == nil {
			session.events = make(map[string][]string)
		}
		session.events[id] = wanted
	}
	session.mu.Unlock()
	if full {
		return &refusal{
			http.StatusServiceUnavailable, "full", "Too many subscriptions",
			fmt.Sprintf("A session may have %d; DELETE one that is not needed.", maxSubscriptions),
		}
	}
	w.Header().Set("Location", s.publicURL+pathSession+session.id+"/"+pathEvents+"/"+id)
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *session) unsubscribe(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.events[id]; !ok {
		return errNoSession
	}
	delete(s.events, id)
	return nil
}

// subscription is what a stream of events is for; false when it has ended.
func (s *session) subscription(id string) ([]string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted, ok := s.events[id]
	return wanted, ok
}

// stream writes the events of a subscription, each when it is news, until the session, the subscription, the client or the
// server ends.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, session *session, id string) error {
	wanted, ok := session.subscription(id)
	if !ok {
		return errNoSession
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	controller := http.NewResponseController(w)
	write := func(text string) bool {
		_ = controller.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has one
		if _, err := w.Write([]byte(text)); err != nil {
			return false
		}
		return controller.Flush() == nil
	}
	if !write(":\n\n") { // what an event stream may begin with, so that the client sees that it is there
		return nil
	}
	news := news{server: s, session: session, wanted: wanted}
	defer session.watching(wanted, s.registry)()
	tick := time.NewTicker(eventInterval)
	defer tick.Stop()
	heard := time.Now()
	for {
		text := news.since(time.Now())
		if text == "" && time.Since(heard) > heartbeat {
			text = ":\n\n"
		}
		if text != "" {
			heard = time.Now()
			if !write(text) {
				return nil
			}
		}
		var leaving <-chan struct{}
		if !news.leaving {
			leaving = s.leaving()
		}
		select {
		case <-leaving:
		case <-tick.C:
			if _, ok := session.subscription(id); !ok {
				return nil
			}
		case <-session.removed:
			return nil
		case <-r.Context().Done():
			return nil
		case <-s.stopped:
			return nil
		}
	}
}

// news tells what has changed for a viewer since it was asked last.
type news struct {
	session *session
	wanted  []string
	active  bool // a viewer takes it so that the stream flows
	layers  whip.Layers
	viewers int
	leaving bool // it was told to go elsewhere
	server  *Server
}

func (n *news) since(now time.Time) string {
	var text bytes.Buffer
	tell := func(event string, data any) {
		if !slices.Contains(n.wanted, event) {
			return
		}
		raw, err := json.Marshal(data)
		if err != nil {
			return // cannot be: these are numbers and names
		}
		fmt.Fprintf(&text, "event: %s\ndata: %s\n\n", event, raw)
	}
	if !n.leaving && n.server.drained() {
		n.leaving = true
		tell(whip.EventReconnect, n.server.elsewhere(n.session.stream))
	}
	source := n.session.viewer.source
	active := slices.ContainsFunc(source.feeds, func(f *feed) bool {
		return slices.ContainsFunc(f.layers, func(l *layer) bool { return l.alive(now) })
	})
	if active != n.active {
		n.active = active
		if active {
			tell(whip.EventActive, struct{}{})
		} else {
			tell(whip.EventInactive, struct{}{})
		}
	}
	if layers := n.session.viewer.layers(now); differ(n.layers, layers) {
		n.layers = layers
		tell(whip.EventLayers, layers)
	}
	if viewers := n.server.registry.readersOf(source); viewers != n.viewers {
		n.viewers = viewers
		tell(whip.EventViewerCount, map[string]int{"viewercount": viewers})
	}
	return text.String()
}

// layers are those of each video track that the viewer gets, by its mid; none without simulcast.
func (v *viewer) layers(now time.Time) whip.Layers {
	all := make(whip.Layers)
	for _, l := range v.lanes {
		if len(l.feed.layers) < 2 {
			continue
		}
		for _, s := range l.feed.standings(now) {
			bits := s.bits
			if !s.alive {
				bits = 0
			}
			all[l.mid] = append(all[l.mid], whip.NewLayer(s.rid, bits))
		}
	}
	return all
}

// differ says whether what was told of layers has changed by more than bit rates waver.
func differ(told, now whip.Layers) bool {
	if told == nil || len(told) != len(now) {
		return true
	}
	for mid, layers := range now {
		if len(told[mid]) != len(layers) {
			return true
		}
		for i, l := range layers {
			if was := told[mid][i].Bitrate; max(was-l.Bitrate, l.Bitrate-was)*4 > was {
				return true
			}
		}
	}
	return false
}

// selectLayer lets a viewer say which layer it wants, or leave that to the server.
func (s *Server) selectLayer(w http.ResponseWriter, r *http.Request, session *session) error {
	var wish whip.Selection
	if err := s.decode(w, r, &wish); err != nil {
		return err
	}
	i := slices.IndexFunc(session.viewer.lanes, func(l *lane) bool {
		return len(l.feed.layers) > 1 && (wish.MediaID == "" || wish.MediaID == l.mid)
	})
	name := wish.Name()
	switch {
	case i < 0 && name == "":
		// There is one layer, and the server chooses it.
	case i < 0:
		return &refusal{
			http.StatusUnprocessableEntity, "no_layers", "No layers to choose from",
			"The media section has one encoding, or is not of this session.",
		}
	case name == "":
		session.viewer.lanes[i].choice.Store(nil)
	case !slices.ContainsFunc(session.viewer.lanes[i].feed.layers, func(l *layer) bool { return l.rid == name }):
		var names []string
		for _, l := range session.viewer.lanes[i].feed.layers {
			names = append(names, l.rid)
		}
		return &refusal{
			http.StatusUnprocessableEntity, "no_layers", "No such layer",
			fmt.Sprintf("%q is none of %s.", short(name), strings.Join(names, ", ")),
		}
	default:
		session.viewer.lanes[i].choice.Store(&name)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
