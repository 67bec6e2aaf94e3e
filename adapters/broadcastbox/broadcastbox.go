// Package broadcastbox is the adapter of Broadcast Box (v2), which takes the stream's name as the bearer token of WHIP and WHEP,
// accepts a play of what nobody publishes and lets it wait, and tells its streams by a status page. With its
// FRONTEND_ADMIN_TOKEN the adapter sees private streams and plays that wait, too.
package broadcastbox

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
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/poll"
)

const (
	// AdapterName is what labels and annotations call this server.
	AdapterName = "broadcastbox"
	// Port is where Broadcast Box listens, unless it is told otherwise.
	Port = "8080"

	pathPublish  = "/api/whip"
	pathPlay     = "/api/whep"
	pathProfile  = pathPublish + "/profile"
	pathStatus   = "/api/status"
	pathAdmin    = "/api/admin/status"
	pathProfiles = "/api/admin/profiles"

	maxAnswer   = 64 << 20
	requestTime = 5 * time.Second
	// profilesAge is how old the list of reserved names may be.
	profilesAge = 15 * time.Second
)

// Config is where a Broadcast Box is and how to speak to it.
type Config struct {
	BaseURL string // "http://10.0.0.7:8080"
	// AdminToken is its FRONTEND_ADMIN_TOKEN. Without it only public streams are seen, and plays that wait are not.
	AdminToken string
	HTTP       *http.Client // for the status page; nil: one of its own
}

// Adapter knows a Broadcast Box by its address. It implements adapters.Adapter and adapters.Looker. It cannot end publications:
// only who has the URL of a session can, and no page shows it.
type Adapter struct {
	poll.Poller

	config Config
	base   url.URL
	client *http.Client

	asking chan struct{} // holds one item while nobody asks: answers count in the order of the questions

	mu       sync.Mutex
	ledger   ledger
	tokens   map[adapters.StreamID]string // of the names that are reserved at the server
	reserved map[string]adapters.StreamID // the same, the other way round
	read     time.Time                    // when these were
}

var (
	_ adapters.Adapter = (*Adapter)(nil)
	_ adapters.Looker  = (*Adapter)(nil)
)

// New makes an Adapter; it does not speak to the server yet.
func New(c Config) (*Adapter, error) {
	base, err := adapters.ParseBase("broadcast box address", c.BaseURL)
	if err != nil {
		return nil, err
	}
	client := c.HTTP
	if client == nil {
		client = &http.Client{Timeout: requestTime, Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: requestTime}).DialContext, MaxIdleConnsPerHost: 4, IdleConnTimeout: 8 * time.Second,
		}}
	}
	a := &Adapter{
		config: c, client: client, asking: make(chan struct{}, 1), ledger: ledger{}, base: base,
	}
	a.asking <- struct{}{}
	return a, nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return AdapterName }

// Traits implements adapters.Adapter. A second publisher is refused, and readers outlive their publisher. Header extensions of
// video are taken off; those of audio keep numbers that the reader has not agreed to.
func (a *Adapter) Traits() adapters.Traits {
	return adapters.Traits{
		Codecs:          []string{"video/H264", "video/H265", "video/VP9", "video/AV1", "audio/opus"},
		AcceptsAndWaits: true,
	}
}

// Ingest implements adapters.Adapter. The query is for a webhook, which is shown it: so it can let relays in.
func (a *Adapter) Ingest(id adapters.StreamID) adapters.Endpoint {
	a.mu.Lock()
	token, ok := a.tokens[id]
	a.mu.Unlock()
	if !ok {
		token = bearer(id)
	}
	ep := a.endpoint(pathPublish, token)
	ep.URL.RawQuery = url.Values{"sidestream": {"relay"}}.Encode()
	return ep
}

// Egress implements adapters.Adapter.
func (a *Adapter) Egress(id adapters.StreamID) adapters.Endpoint {
	return a.endpoint(pathPlay, bearer(id))
}

func (a *Adapter) endpoint(path, token string) adapters.Endpoint {
	u := a.base
	u.Path += path
	return adapters.Endpoint{URL: &u, Header: http.Header{"Authorization": {"Bearer " + token}}}
}

// Match implements adapters.Adapter. Broadcast Box takes a POST at any path below these for an offer. Where a webhook makes
// names of tokens, a request is of another stream than it seems.
func (a *Adapter) Match(r *http.Request) (adapters.Request, bool) {
	path, ok := strings.CutPrefix(r.URL.Path, a.base.Path)
	if !ok || r.Method != http.MethodPost || path == pathProfile {
		return adapters.Request{}, false
	}
	publish := path == pathPublish || strings.HasPrefix(path, pathPublish+"/")
	if !publish && path != pathPlay && !strings.HasPrefix(path, pathPlay+"/") {
		return adapters.Request{}, false
	}
	id := nameOf(r.Header.Get("Authorization"))
	if publish {
		a.mu.Lock()
		if name, ok := a.reserved[string(id)]; ok {
			id = name
		}
		a.mu.Unlock()
	}
	return adapters.Request{ID: id, Publish: publish}, id.Validate() == nil
}

// Missing implements adapters.Adapter: no answer means that nobody publishes the stream.
func (a *Adapter) Missing(int, http.Header, []byte) bool { return false }

// Watch implements adapters.Adapter. The status page does not tell the codec of video.
func (a *Adapter) Watch(ctx context.Context, report func([]adapters.Stream)) error {
	if err := a.Poller.Watch(ctx, a.list, report); ctx.Err() == nil {
		return fmt.Errorf("watch broadcast box at %s: %w", a.base.Host, err)
	}
	return ctx.Err()
}

func (a *Adapter) list(ctx context.Context) ([]adapters.Stream, error) {
	select {
	case <-a.asking:
		defer func() { a.asking <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := a.readProfiles(ctx); err != nil {
		return nil, err
	}
	path := pathStatus
	if a.config.AdminToken != "" {
		path = pathAdmin
	}
	var sessions []session
	if err := a.get(ctx, path, &sessions); err != nil {
		return nil, err
	}
	for i, s := range sessions {
		if s.StreamKey == "" || s.StreamStart == nil || s.AudioTracks == nil || s.VideoTracks == nil || s.Sessions == nil {
			return nil, foreign(path, fmt.Errorf("entry %d lacks one of streamKey, streamStart, audioTracks, videoTracks and sessions", i))
		}
	}
	slices.SortFunc(sessions, func(x, y session) int { return cmp.Compare(x.StreamKey, y.StreamKey) })
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ledger.streams(sessions, time.Now()), nil
}

// readProfiles learns by which tokens the names are published that are reserved at the server.
func (a *Adapter) readProfiles(ctx context.Context) error {
	a.mu.Lock()
	fresh := time.Since(a.read) < profilesAge
	a.mu.Unlock()
	if fresh || a.config.AdminToken == "" {
		return nil
	}
	var profiles []struct {
		StreamKey adapters.StreamID `json:"streamKey"`
		Token     string            `json:"token"`
	}
	if err := a.get(ctx, pathProfiles, &profiles); err != nil {
		return err
	}
	tokens, reserved := map[adapters.StreamID]string{}, map[string]adapters.StreamID{}
	for _, p := range profiles {
		if p.Token != "" && p.StreamKey.Validate() == nil {
			tokens[p.StreamKey], reserved[p.Token] = p.Token, p.StreamKey
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens, a.reserved, a.read = tokens, reserved, time.Now()
	return nil
}

// get reads a page of JSON.
func (a *Adapter) get(ctx context.Context, path string, into any) error {
	u := a.base
	u.Path += path
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return err
	}
	if a.config.AdminToken != "" {
		request.Header.Set("Authorization", "Bearer "+a.config.AdminToken)
	}
	response, err := a.client.Do(request)
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("GET %s: %w", path, wrapped.Err)
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	switch code := response.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return &poll.Final{Err: fmt.Errorf("GET %s with the token of SIDESTREAM_ADAPTER_TOKEN: %s; it must be Broadcast Box' "+
			"FRONTEND_ADMIN_TOKEN", path, response.Status)}
	case code == http.StatusServiceUnavailable && path == pathStatus && strings.Contains(string(body), "Status Service Unavailable"):
		return &poll.Final{Err: fmt.Errorf("GET %s: %s: DISABLE_STATUS is set; unset it, or give the sidecar the "+
			"FRONTEND_ADMIN_TOKEN by SIDESTREAM_ADAPTER_TOKEN", path, response.Status)}
	case code/100 == 4 && code != http.StatusTooManyRequests && code != http.StatusRequestTimeout:
		return foreign(path, errors.New(response.Status))
	case code/100 != 2:
		return fmt.Errorf("GET %s: %s", path, response.Status)
	case len(body) == 0 && path == pathProfiles:
		return nil // no profile has ever been made
	}
	if err := json.Unmarshal(body, into); err != nil {
		return foreign(path, err)
	}
	return nil
}

// foreign is for answers that asking again does not change.
func foreign(path string, err error) error {
	return &poll.Final{Err: fmt.Errorf("GET %s: the answer is not that of Broadcast Box v2: %w", path, err)}
}

// CloseIdleConnections closes the connections for the status page that nobody uses.
func (a *Adapter) CloseIdleConnections() { a.client.CloseIdleConnections() }
