// Package mediamtx is the adapter of MediaMTX (v1.5 and later), which speaks WHIP and WHEP at each path and tells its
// paths and sessions by its control API. That API must be on (api: yes), and what the sidecar shows must have the
// permissions publish, read and api; the sidecar is not at 127.0.0.1, which MediaMTX trusts by default.
package mediamtx

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/poll"
)

const (
	// AdapterName is what labels and annotations call this server.
	AdapterName = "mediamtx"
	// Port and APIPort are where MediaMTX listens for WebRTC and for its control API, unless it is told otherwise.
	Port    = "8889"
	APIPort = "9997"

	pageSize    = 1000
	maxPages    = 100
	maxPage     = 64 << 20
	requestTime = 5 * time.Second
	// single is how many new sessions are looked up one by one rather than by listing all.
	single = 4
	// relists is how often a listing of several pages is begun again because it has changed meanwhile.
	relists = 3

	// markName and markValue are a query parameter. MediaMTX shows the query of a session's request in its control API, since
	// v1.4.2, and otherwise does nothing with it: so our own publications are known by it, even after a crash in between.
	markName, markValue = "sidestream", "relay"
)

// Config is where a MediaMTX is and how to speak to it.
type Config struct {
	BaseURL string // of the WebRTC listener: "http://10.0.0.7:8889"
	APIURL  string // of the control API; empty: port 9997 of the same host, by HTTP
	// Publish and Play are shown for WHIP and WHEP, API to the control API.
	Publish, Play, API adapters.Credentials
	HTTP               *http.Client // to the control API; nil: one of its own
}

// Adapter knows a MediaMTX server by its addresses. It implements adapters.Adapter, adapters.Ender and adapters.Looker.
type Adapter struct {
	poll.Poller

	config Config
	base   url.URL
	api    url.URL
	client *http.Client
}

var (
	_ adapters.Adapter = (*Adapter)(nil)
	_ adapters.Ender   = (*Adapter)(nil)
	_ adapters.Looker  = (*Adapter)(nil)

	_ adapters.Occupier = (*Adapter)(nil)
)

// New makes an Adapter; it does not speak to the server yet.
func New(c Config) (*Adapter, error) {
	base, err := adapters.ParseBase("mediamtx address", c.BaseURL)
	if err != nil {
		return nil, err
	}
	api := url.URL{Scheme: "http", Host: net.JoinHostPort(base.Hostname(), APIPort)}
	if c.APIURL != "" {
		if api, err = adapters.ParseBase("mediamtx control API address", c.APIURL); err != nil {
			return nil, err
		}
	}
	client := c.HTTP
	if client == nil {
		client = &http.Client{Timeout: requestTime, Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: requestTime}).DialContext, MaxIdleConnsPerHost: 4, IdleConnTimeout: 8 * time.Second,
		}}
	}
	return &Adapter{config: c, base: base, api: api, client: client}, nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return AdapterName }

// Traits implements adapters.Adapter.
func (a *Adapter) Traits() adapters.Traits {
	return adapters.Traits{
		Codecs: []string{
			"video/AV1", "video/VP9", "video/VP8", "video/H265", "video/H264",
			"audio/opus", "audio/multiopus", "audio/G722", "audio/PCMU", "audio/PCMA", "audio/L16",
		},
		// It takes frames apart and packs them anew: packets wait in a buffer of 64 for one that is missing, of audio that is
		// 1.28 s, and the time of an Opus packet is the sum of the durations before it.
		InOrder: true, MaxHold: 64 * 20 * time.Millisecond, FillAudio: true,
		DropsReadersOnReplace: true,
		// It asks every publisher for a key frame each 2 s instead.
		IgnoresPLI: true,
	}
}

// Ingest implements adapters.Adapter.
func (a *Adapter) Ingest(id adapters.StreamID) adapters.Endpoint {
	ep := a.endpoint(id, "/whip", a.config.Publish)
	ep.URL.RawQuery = url.Values{markName: {markValue}}.Encode()
	return ep
}

// Egress implements adapters.Adapter.
func (a *Adapter) Egress(id adapters.StreamID) adapters.Endpoint {
	return a.endpoint(id, "/whep", a.config.Play)
}

func (a *Adapter) endpoint(id adapters.StreamID, suffix string, c adapters.Credentials) adapters.Endpoint {
	u := a.base
	u.Path += "/" + string(id) + suffix
	return adapters.Endpoint{URL: &u, Header: c.Header()}
}

// Match implements adapters.Adapter. MediaMTX' own pages, at PATH/ and PATH/publish, send their offers to the same URLs.
func (a *Adapter) Match(r *http.Request) (adapters.Request, bool) {
	path, ok := strings.CutPrefix(r.URL.Path, a.base.Path+"/")
	if !ok || r.Method != http.MethodPost {
		return adapters.Request{}, false
	}
	name, publish := strings.CutSuffix(path, "/whip")
	if !publish {
		if name, ok = strings.CutSuffix(path, "/whep"); !ok {
			return adapters.Request{}, false
		}
	}
	return adapters.Request{ID: adapters.StreamID(name), Publish: publish}, true
}

// Missing implements adapters.Adapter. MediaMTX answers 404 also where a path is not configured or a session unknown: its
// words tell.
func (a *Adapter) Missing(status int, _ http.Header, body []byte) bool {
	if status != http.StatusNotFound {
		return false
	}
	words := refusalOf(body)
	return strings.HasPrefix(words, "no stream is available on path") || // since v1.12
		strings.HasPrefix(words, "no one is publishing to path")
}

// Occupied implements adapters.Occupier: where overridePublisher is off, MediaMTX refuses a second publisher in words only.
func (a *Adapter) Occupied(status int, _ http.Header, body []byte) bool {
	return status >= 400 && strings.HasPrefix(refusalOf(body), "someone is already publishing to path")
}

func refusalOf(body []byte) string {
	var refusal struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal(body, &refusal) // another server's page has no words of this one
	return refusal.Error
}

// Watch implements adapters.Adapter.
func (a *Adapter) Watch(ctx context.Context, report func([]adapters.Stream)) error {
	w := watch{adapter: a, ours: map[string]bool{}}
	if err := a.Poller.Watch(ctx, w.list, report); ctx.Err() == nil {
		return fmt.Errorf("watch mediamtx at %s: %w", a.api.Host, err)
	}
	return ctx.Err()
}

// watch is what one Watch remembers from question to question.
type watch struct {
	adapter *Adapter
	ours    map[string]bool // by the session, whether it bears our mark
}

func (w *watch) list(ctx context.Context) ([]adapters.Stream, error) {
	paths, err := listAll(ctx, w.adapter, "/v3/paths/list", func(p path) string { return p.Name })
	if err != nil {
		return nil, err
	}
	if err := w.look(ctx, paths); err != nil {
		return nil, err
	}
	streams := make([]adapters.Stream, 0, len(paths))
	for _, p := range paths {
		s, ok := p.stream()
		if !ok {
			continue
		}
		// Not to know whose a session is means that it came or went between the answers: the next one tells.
		if s.Relayed, ok = w.ours[s.Session]; ok || p.Source.Type != webRTCSession {
			streams = append(streams, s)
		}
	}
	return streams, nil
}

// look finds out which of the sessions that publish are our own.
func (w *watch) look(ctx context.Context, paths []path) error {
	before := w.ours
	w.ours = make(map[string]bool, len(before))
	var fresh []string
	for _, p := range paths {
		if p.Source == nil || p.Source.Type != webRTCSession || p.Source.ID == "" {
			continue
		}
		if ours, known := before[p.Source.ID]; known {
			w.ours[p.Source.ID] = ours
		} else {
			fresh = append(fresh, p.Source.ID)
		}
	}
	if len(fresh) > single {
		sessions, err := listAll(ctx, w.adapter, "/v3/webrtcsessions/list", func(s session) string { return s.ID })
		if err != nil {
			return err
		}
		for _, s := range sessions {
			w.ours[s.ID] = s.ours()
		}
		for id := range w.ours {
			if _, known := before[id]; !known && !slices.Contains(fresh, id) {
				delete(w.ours, id) // a reader
			}
		}
		return nil
	}
	for _, id := range fresh {
		var s session
		err := w.adapter.get(ctx, "/v3/webrtcsessions/get/"+url.PathEscape(id), nil, &s)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		w.ours[id] = s.ours()
	}
	return nil
}

// listAll reads all pages of a list, in the order of names, each once.
func listAll[T any](ctx context.Context, a *Adapter, at string, name func(T) string) ([]T, error) {
	var all []T
	for range relists {
		all = all[:0]
		total, same := -1, true
		for number := 0; ; number++ {
			var p page[T]
			query := url.Values{"itemsPerPage": {strconv.Itoa(pageSize)}, "page": {strconv.Itoa(number)}}
			if err := a.get(ctx, at, query, &p); err != nil {
				return nil, err
			}
			if p.ItemCount == nil || p.PageCount == nil || *p.PageCount > maxPages {
				return nil, &poll.Final{Err: fmt.Errorf("%s: the answer is not that of MediaMTX' control API v3: no itemCount and pageCount, "+
					"or more than %d pages", at, maxPages)}
			}
			all = append(all, p.Items...)
			same = same && (total < 0 || total == *p.ItemCount)
			total = *p.ItemCount
			if number+1 >= *p.PageCount {
				break
			}
		}
		if same {
			break // else an item may have slipped from one page to the next unseen
		}
	}
	slices.SortStableFunc(all, func(x, y T) int { return cmp.Compare(name(x), name(y)) })
	return slices.CompactFunc(all, func(x, y T) bool { return name(x) == name(y) }), nil
}

// kicks are the API's lists of those that can be ended, by the type of a path's source.
var kicks = map[string]string{
	webRTCSession: "webrtcsessions", "rtspSession": "rtspsessions", "rtspsSession": "rtspssessions", "rtmpConn": "rtmpconns",
	"rtmpsConn": "rtmpsconns", "srtConn": "srtconns", "moqSession": "moqsessions",
}

// End implements adapters.Ender. A publication that has ended already is no error; one that MediaMTX fetches from elsewhere
// by its own configuration cannot be ended.
func (a *Adapter) End(ctx context.Context, s adapters.Stream) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	var p path
	escaped := (&url.URL{Path: string(s.ID)}).EscapedPath()
	if err := a.get(ctx, "/v3/paths/get/"+escaped, nil, &p); gone(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("end %s: %w", s.ID, err)
	}
	if p.Source == nil || p.Source.ID != s.Session {
		return nil
	}
	list, ok := kicks[p.Source.Type]
	if !ok || p.Source.ID == "" {
		return fmt.Errorf("end %s: a source of type %s cannot be ended", s.ID, p.Source.Type)
	}
	err := a.request(ctx, http.MethodPost, "/v3/"+list+"/kick/"+url.PathEscape(p.Source.ID), nil, nil)
	if err != nil && !gone(err) {
		return fmt.Errorf("end %s: %w", s.ID, err)
	}
	return nil
}

// statusError is an answer other than 2xx.
type statusError struct {
	code  int
	words string
}

func (e *statusError) Error() string {
	return strings.TrimSuffix(fmt.Sprintf("%d %s: %s", e.code, http.StatusText(e.code), e.words), ": ")
}

// gone says whether the API knows what was asked for no more.
func gone(err error) bool {
	failed := (*statusError)(nil)
	return errors.As(err, &failed) && failed.code == http.StatusNotFound && failed.words != ""
}

func (a *Adapter) get(ctx context.Context, path string, query url.Values, into any) error {
	return a.request(ctx, http.MethodGet, path, query, into)
}

func (a *Adapter) request(ctx context.Context, method, path string, query url.Values, into any) error {
	u := a.api
	u.RawQuery = query.Encode()
	at, err := url.Parse(u.Path + path) // the path is escaped already
	if err != nil {
		return err
	}
	u.Path, u.RawPath = at.Path, at.RawPath
	request, err := http.NewRequestWithContext(ctx, method, u.String(), http.NoBody)
	if err != nil {
		return err
	}
	request.Header = a.config.API.Header()
	response, err := a.client.Do(request)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w (is the control API on? api: yes)", err)
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxPage))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode/100 != 2 {
		return a.refused(method+" "+path, &statusError{response.StatusCode, refusalOf(body)})
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return &poll.Final{Err: fmt.Errorf("%s: the answer is not that of MediaMTX' control API v3: %w", path, err)}
	}
	return nil
}

// refused says what to do about an answer that will not change by itself.
func (a *Adapter) refused(what string, err *statusError) error {
	switch {
	case err.code == http.StatusUnauthorized || err.code == http.StatusForbidden:
		return &poll.Final{Err: fmt.Errorf("%s with %s: %w; give the sidecar credentials that have the permission \"api\"",
			what, a.config.API, err)}
	case err.code == http.StatusNotFound && err.words == "":
		return &poll.Final{Err: fmt.Errorf("%s: %w: there is no control API v3 at this address; MediaMTX v1.5 and later have it", what, err)}
	case err.code/100 == 4 && err.code != http.StatusNotFound && err.code != http.StatusTooManyRequests:
		return &poll.Final{Err: fmt.Errorf("%s: %w", what, err)}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// CloseIdleConnections closes the connections to the control API that nobody uses.
func (a *Adapter) CloseIdleConnections() { a.client.CloseIdleConnections() }
