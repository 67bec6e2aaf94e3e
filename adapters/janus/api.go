package janus

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

const (
	plugin = "janus.plugin.videoroom"

	// maxListing bounds an answer: a room in a list takes some 600 bytes.
	maxListing = 32 << 20
	maxWords   = 300 // bytes kept of a text of Janus' or of somebody in between
)

// Codes of Janus' core (apierror.h) and of the VideoRoom plugin, which share one range without overlap.
const (
	codeUnauthorized    = 403
	codeNoPlugin        = 460
	codeNoSession       = 458
	codeNoHandle        = 459
	codeInvalidSDP      = 465
	codeBadSDPType      = 464
	codeNoMoreSessions  = 472
	codeNoRoom          = 426
	codeRoomExists      = 427
	codeNoFeed          = 428
	codeMissingElement  = 429
	codeInvalidElement  = 430
	codePublishersFull  = 432
	codeRoomForbidden   = 433
	codeIDExists        = 436
	codePluginBadSDP    = 437
	codeInvalidSDPType  = 431
	codeTokenNotAllowed = 405
)

// apiError is what Janus answers when it will not.
type apiError struct {
	op     string
	code   int
	reason string
}

func (e *apiError) Error() string {
	return fmt.Sprintf("%s: janus error %d: %s", e.op, e.code, e.reason)
}

func codeOf(err error) int {
	if refused, ok := errors.AsType[*apiError](err); ok {
		return refused.code
	}
	return 0
}

// garbageError is an answer that is not Janus'.
type garbageError struct {
	op, what string
}

func (e *garbageError) Error() string { return e.op + ": " + e.what + ": is this Janus' HTTP API?" }

// ident is the id of a room or participant: a string where the server has string_ids, else a number.
type ident struct {
	text   string
	number bool
}

func (i ident) MarshalJSON() ([]byte, error) {
	if i.number {
		return []byte(i.text), nil
	}
	return json.Marshal(i.text)
}

func (i *ident) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		i.number = false
		return json.Unmarshal(b, &i.text)
	}
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return fmt.Errorf("id %.40s is neither text nor a number", b)
	}
	*i = ident{text: strconv.FormatUint(n, 10), number: true}
	return nil
}

type jsep struct {
	Type string `json:"type"`
	SDP  string `json:"sdp"`
}

// message is whatever Janus says: the answer to a request, or an event.
type message struct {
	Janus       string `json:"janus"`
	Transaction string `json:"transaction"`
	Session     uint64 `json:"session_id"`
	Sender      uint64 `json:"sender"`
	Data        struct {
		ID uint64 `json:"id"`
	} `json:"data"`
	Plugin struct {
		Data json.RawMessage `json:"data"`
	} `json:"plugindata"`
	JSEP  *jsep `json:"jsep"`
	Error *struct {
		Code   int    `json:"code"`
		Reason string `json:"reason"`
	} `json:"error"`
	// of the events "media" and "hangup"
	MID       string `json:"mid"`
	Receiving bool   `json:"receiving"`
	Reason    string `json:"reason"`
	// of the administration's handle_info
	Info json.RawMessage `json:"info"`
}

// said is what the VideoRoom plugin says.
type said struct {
	VideoRoom string `json:"videoroom"`
	Code      int    `json:"error_code"`
	Error     string `json:"error"`
	ID        ident  `json:"id"`
	Exists    bool   `json:"exists"`
	List      []room `json:"list"`

	Participants []participant `json:"participants"`
	Publishers   []publisher   `json:"publishers"`
	// Ids of participants, or "ok" where it is about ourselves.
	Unpublished *ident `json:"unpublished"`
	Leaving     *ident `json:"leaving"`
}

type room struct {
	Room         ident  `json:"room"`
	Description  string `json:"description"`
	Participants int    `json:"num_participants"`
}

type participant struct {
	ID        ident  `json:"id"`
	Display   string `json:"display"`
	Publisher bool   `json:"publisher"`
}

type publisher struct {
	ID      ident          `json:"id"`
	Display string         `json:"display"`
	Dummy   bool           `json:"dummy"`
	Streams []publisherOne `json:"streams"`
}

type publisherOne struct {
	Type     string `json:"type"`
	Codec    string `json:"codec"`
	Disabled bool   `json:"disabled"`
}

// serverInfo is what GET info tells.
type serverInfo struct {
	Janus    string                     `json:"janus"`
	Version  string                     `json:"version_string"`
	Checks   bool                       `json:"ice-keepalive-conncheck"`
	Consent  bool                       `json:"ice-consent-freshness"`
	Plugins  map[string]json.RawMessage `json:"plugins"`
	Sessions int                        `json:"session-timeout"`
}

// params are the fields of a request.
type params map[string]any

// client speaks to one HTTP API of Janus: that for media, or that for administration.
type client struct {
	base   *url.URL // with the base path: http://10.0.0.7:8088/janus
	http   *http.Client
	fields params // that go along with every request: apisecret, token or admin_secret
}

// info asks for what needs no credentials.
func (c *client) info(ctx context.Context) (serverInfo, error) {
	const op = "ask janus for its version"
	var info serverInfo
	body, err := c.do(ctx, op, http.MethodGet, c.base.JoinPath("info"), nil)
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(body, &info); err != nil || info.Janus != "server_info" {
		return info, &garbageError{op, "an answer without server_info"}
	}
	if _, ok := info.Plugins[plugin]; !ok {
		return info, fmt.Errorf("%s: it runs without the VideoRoom plugin, which the sidecar needs: load %s", op, plugin)
	}
	return info, nil
}

// call sends a request to the path below the base that the ids name, and takes the answer as it stands.
func (c *client) call(ctx context.Context, op string, fields params, ids ...uint64) (*message, error) {
	sent := params{}
	for _, m := range []params{fields, c.fields} {
		for name, value := range m {
			sent[name] = value
		}
	}
	if sent["transaction"] == nil {
		sent["transaction"] = nonce()
	}
	body, err := json.Marshal(sent)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	answer, err := c.do(ctx, op, http.MethodPost, c.at(ids), body)
	if err != nil {
		return nil, err
	}
	m := new(message)
	if err := json.Unmarshal(answer, m); err != nil || m.Janus == "" {
		return nil, &garbageError{op, "an answer that is none"}
	}
	return m, m.failure(op)
}

func (m *message) failure(op string) error {
	if m.Error != nil {
		return &apiError{op, m.Error.Code, legible(m.Error.Reason)}
	}
	if m.Janus == "error" {
		return &garbageError{op, "an error without words"}
	}
	return nil
}

// said reads what the plugin said.
func (m *message) said(op string) (said, error) {
	var s said
	if len(m.Plugin.Data) == 0 {
		return s, &garbageError{op, fmt.Sprintf("%.20q without the plugin's data", m.Janus)}
	}
	if err := json.Unmarshal(m.Plugin.Data, &s); err != nil {
		return s, &garbageError{op, "plugin data of another form"}
	}
	if s.Code != 0 {
		return s, &apiError{op, s.Code, legible(s.Error)}
	}
	return s, nil
}

// poll waits for events, half a minute at most (the server's own bound), and keeps the session alive by that.
func (c *client) poll(ctx context.Context, session uint64) ([]message, error) {
	const op = "wait for events"
	at := c.at([]uint64{session})
	query := url.Values{"maxev": {"50"}}
	for name, value := range c.fields {
		if text, ok := value.(string); ok {
			query.Set(name, text)
		}
	}
	at.RawQuery = query.Encode()
	body, err := c.do(ctx, op, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	return eventsOf(op, body)
}

// eventsOf reads one event, or a list of them.
func eventsOf(op string, body []byte) (events []message, err error) {
	if body = bytes.TrimSpace(body); len(body) > 0 && body[0] == '[' {
		err = json.Unmarshal(body, &events)
	} else {
		events = make([]message, 1)
		err = json.Unmarshal(body, &events[0])
	}
	if err != nil {
		return nil, &garbageError{op, "events of another form"}
	}
	for _, e := range events {
		if e.Janus == "" {
			return nil, &garbageError{op, "an event without a kind"}
		}
		if e.Janus == "error" {
			return nil, e.failure(op)
		}
	}
	return events, nil
}

func (c *client) at(ids []uint64) *url.URL {
	elements := make([]string, len(ids))
	for i, id := range ids {
		elements[i] = strconv.FormatUint(id, 10)
	}
	return c.base.JoinPath(elements...)
}

func (c *client) do(ctx context.Context, op, method string, at *url.URL, body []byte) ([]byte, error) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, at.String(), reader)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, plain(err))
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, plain(err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxListing+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", op, plain(err))
	case len(answer) > maxListing:
		return nil, &garbageError{op, fmt.Sprintf("an answer of more than %d MiB", maxListing>>20)}
	case resp.StatusCode != http.StatusOK: // Janus answers 200 also where it refuses
		return nil, &garbageError{op, "status " + strconv.Itoa(resp.StatusCode)}
	}
	return answer, nil
}

// plain takes the URL out of an error of net/http's: in its query are credentials.
func plain(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}

// nonce names a transaction.
func nonce() string { return strings.ToLower(rand.Text()) }

// legible makes a foreign text fit for a log line and an answer.
func legible(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxWords)], "")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
}
