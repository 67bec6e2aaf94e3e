package whip

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Relations of the WHEP extensions, which a server promises by Links of its 201.
const (
	RelEvents = "urn:ietf:params:whep:ext:core:server-sent-events"
	RelLayer  = "urn:ietf:params:whep:ext:core:layer"
	RelLoss   = "https://sidestream.dev/rel/loss" // our own: simulated loss
)

// Events of a WHEP session.
const (
	EventActive      = "active"
	EventInactive    = "inactive"
	EventLayers      = "layers"
	EventReconnect   = "reconnect"
	EventViewerCount = "viewercount"
)

const (
	maxEvent = 64 << 10 // bytes
	// eventSilence is after how long without a word a stream of events counts as broken. Servers say something now and then.
	eventSilence = 45 * time.Second
)

// ErrNoExtension says that the server does not offer what was asked for.
var ErrNoExtension = errors.New("the server does not offer this")

// Layer is one encoding of a media section, as a server tells of it or as a client wants it. Drafts differ in what they call its
// name: both names are written, and either is read. The bit rate is 0 for one that does not flow.
type Layer struct {
	RID        string `json:"rid,omitempty"`
	EncodingID string `json:"encodingId,omitempty"`
	Bitrate    int64  `json:"bitrate,omitempty"` // bits per second
	Width      int    `json:"width,omitempty"`
	Height     int    `json:"height,omitempty"`
}

// Name is the layer's.
func (l Layer) Name() string {
	if l.RID != "" {
		return l.RID
	}
	return l.EncodingID
}

// NewLayer is a layer by all its names.
func NewLayer(rid string, bitrate int64) Layer {
	return Layer{RID: rid, EncodingID: rid, Bitrate: bitrate}
}

// Selection is the body of a layer request. A media section without any wish is for the server to choose.
type Selection struct {
	MediaID    string `json:"mediaId,omitempty"`
	RID        string `json:"rid,omitempty"`
	EncodingID string `json:"encodingId,omitempty"`
}

// Name is the layer that is wanted, "" for the server's choice.
func (s Selection) Name() string { return Layer{RID: s.RID, EncodingID: s.EncodingID}.Name() }

// Layers is what a server says of the layers of each media section, by its mid.
type Layers map[string][]Layer

// UnmarshalJSON takes a list of layers for each section, or an object of lists by state.
func (l *Layers) UnmarshalJSON(b []byte) error {
	var sections map[string]json.RawMessage
	if err := json.Unmarshal(b, &sections); err != nil {
		return err
	}
	*l = make(Layers)
	for mid, raw := range sections {
		var list []Layer
		if json.Unmarshal(raw, &list) == nil {
			(*l)[mid] = list
			continue
		}
		var states struct {
			Active   []Layer `json:"active"`
			Inactive []Layer `json:"inactive"`
		}
		if err := json.Unmarshal(raw, &states); err != nil {
			return err
		}
		for _, layer := range states.Inactive {
			layer.Bitrate = 0
			states.Active = append(states.Active, layer)
		}
		(*l)[mid] = states.Active
	}
	return nil
}

// extension is the address that the answer's Link of a relation gave; nil where there was none. A relative one is relative to
// the address that answered (RFC 8288, section 3.2).
func (s *Session) extension(rel string) *url.URL {
	for _, l := range s.extensions {
		if l.HasRel(rel) {
			if u, err := s.answered.Parse(l.Target); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
				return u
			}
		}
	}
	return nil
}

// SelectLayer asks the server for a layer of a media section, by its mid; an empty name leaves the choice to the server. It fails
// with ErrNoExtension, or a *StatusError.
func (s *Session) SelectLayer(ctx context.Context, mid, rid string) error {
	const op = "select layer"
	u := s.extension(RelLayer)
	if u == nil {
		return s.fail(fmt.Errorf("%s: %w", op, ErrNoExtension))
	}
	body, err := json.Marshal(Selection{MediaID: mid, RID: rid, EncodingID: rid})
	if err != nil {
		return s.fail(err)
	}
	res, err := s.post(ctx, op, u, body)
	if err != nil {
		return err
	}
	if !res.ok() {
		return res.refusal(op)
	}
	return nil
}

func (s *Session) post(ctx context.Context, op string, u *url.URL, body []byte) (*response, error) {
	ctx, cancel := context.WithTimeout(ctx, s.bounds.request)
	defer cancel()
	remote := s.remote
	remote.bare = remote.bare || downgrades(s.answered, u)
	return remote.do(ctx, request{
		op: op, method: http.MethodPost, url: u, header: http.Header{"Content-Type": {"application/json"}}, body: body,
	})
}

// Event is one event of a WHEP session.
type Event struct {
	Name string
	Data []byte // JSON
}

// Events subscribes to events of a WHEP session and reports each, until ctx ends or the stream of events does, and says why. It
// fails with ErrNoExtension where the server does not offer one of them.
func (s *Session) Events(ctx context.Context, names []string, report func(Event)) error {
	const op = "subscribe"
	u := s.extension(RelEvents)
	for _, name := range names {
		if u == nil || !s.offers(name) {
			return s.fail(fmt.Errorf("%s to %s: %w", op, name, ErrNoExtension))
		}
	}
	body, err := json.Marshal(names)
	if err != nil {
		return s.fail(err)
	}
	res, err := s.post(ctx, op, u, body)
	if err != nil {
		return err
	}
	if !res.ok() {
		return res.refusal(op)
	}
	at, err := resolve(res)
	if err != nil {
		return s.fail(fmt.Errorf("%s: %w", op, err))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(eventSilence, func() { cancel(fmt.Errorf("nothing heard for %s", eventSilence)) })
	defer silence.Stop()
	remote := s.remote
	remote.bare = remote.bare || downgrades(s.answered, at)
	stream, err := remote.open(ctx, request{
		op: op, method: http.MethodGet, url: at, header: http.Header{"Accept": {"text/event-stream"}},
	})
	if err != nil {
		return because(ctx, err)
	}
	defer stream.Close()
	err = readEvents(stream, func() { silence.Reset(eventSilence) }, report)
	return s.fail(fmt.Errorf("read events: %w", because(ctx, err)))
}

// because prefers what ended the context over what that did to a request.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (s *Session) offers(event string) bool {
	for _, l := range s.extensions {
		if events, _ := l.Param("events"); l.HasRel(RelEvents) && listed([]string{events}, event) {
			return true
		}
	}
	return false
}

// readEvents reads a stream of events (HTML standard, section 9.2.6) to its end, which is an error. heard is called for each line.
func readEvents(r io.Reader, heard func(), report func(Event)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxEvent)
	var e Event
	for lines.Scan() {
		heard()
		line := lines.Bytes()
		if len(line) == 0 {
			if len(e.Data) > 0 {
				report(e)
			}
			e = Event{}
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			e.Name = strings.Clone(string(value))
		case "data":
			if len(e.Data)+len(value) >= maxEvent {
				return fmt.Errorf("an event is larger than %d bytes", maxEvent)
			}
			if len(e.Data) > 0 {
				e.Data = append(e.Data, '\n')
			}
			e.Data = append(e.Data, value...)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}
