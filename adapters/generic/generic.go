// Package generic is the adapter of any server that speaks WHIP or WHEP, told by settings: path templates, what "no such
// stream" looks like, and where and how the server lists its streams. Servers of a make that has an adapter of its own are
// better served by that.
package generic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/poll"
)

const (
	// AdapterName is what labels and annotations call servers that are described by settings.
	AdapterName = "generic"

	requestTime = 5 * time.Second
	maxAnswer   = 64 << 20
)

// Config describes a server.
type Config struct {
	BaseURL string // "http://10.0.0.7:8080"
	// Publish and Play are the paths, with a query where the server wants one, to which offers are POSTed. "{stream}" stands for
	// the stream's name, once in each; elements of the name stay elements of the path. Empty: the server cannot do that.
	Publish, Play string
	// PublishCredentials and PlayCredentials go with the offers, API with the question for the inventory; Header goes with all.
	PublishCredentials, PlayCredentials, API adapters.Credentials
	Header                                   http.Header
	// MissingStatus are the statuses that mean that nobody publishes what is to be played; where MissingBody is set the answer
	// holds it, too. No status: 404.
	MissingStatus []int
	MissingBody   string
	// Inventory is the URL, or a path at BaseURL, of a JSON document from which Query, an expression of jq, makes the list of
	// streams (see Stream). Empty: the server's own streams are not known.
	Inventory string
	Query     string
	// Seen takes the publications that the adapter is told to have passed the gateway for the server's, where there is no
	// Inventory. That they have ended is known by what passes the gateway, too, and by GET on their URLs where the server
	// answers that: a publisher that vanishes may stay.
	Seen   bool
	Traits adapters.Traits
	HTTP   *http.Client // for the inventory; nil: one of its own
}

// Adapter knows a server by its Config. It implements adapters.Adapter and adapters.Looker.
type Adapter struct {
	poll.Poller

	config        Config
	base          url.URL
	publish, play *template
	inventory     *url.URL
	query         *query
	client        *http.Client

	mu   sync.Mutex
	seen []adapters.Stream
	down time.Time // when the server did not answer last: what it had before is gone
}

var (
	_ adapters.Adapter = (*Adapter)(nil)
	_ adapters.Looker  = (*Adapter)(nil)

	_ adapters.Observer = (*Adapter)(nil)
)

// New makes an Adapter; it does not speak to the server yet.
func New(c Config) (*Adapter, error) {
	base, err := adapters.ParseBase("server's address", c.BaseURL)
	if err != nil {
		return nil, err
	}
	a := &Adapter{config: c, base: base, client: c.HTTP}
	if c.Publish == "" && c.Play == "" {
		return nil, errors.New("neither a path to publish nor one to play is given")
	}
	if a.publish, err = newTemplate(c.Publish); err != nil {
		return nil, fmt.Errorf("path to publish: %w", err)
	}
	if a.play, err = newTemplate(c.Play); err != nil {
		return nil, fmt.Errorf("path to play: %w", err)
	}
	if c.Seen && c.Inventory != "" {
		return nil, errors.New("what the gateway saw does not count where there is an inventory")
	}
	if c.Inventory != "" {
		if a.inventory, err = base.Parse(c.Inventory); err != nil {
			return nil, fmt.Errorf("address of the inventory: %w", err)
		}
		if strings.HasPrefix(c.Inventory, "/") {
			a.inventory.Path = base.Path + a.inventory.Path
		}
		if a.inventory.User != nil || a.inventory.Scheme != "http" && a.inventory.Scheme != "https" {
			return nil, fmt.Errorf("address of the inventory %q must be a path, or like http://host:port/path", a.inventory.Redacted())
		}
		if a.query, err = newQuery(c.Query); err != nil {
			return nil, err
		}
	}
	if len(a.config.MissingStatus) == 0 {
		a.config.MissingStatus = []int{http.StatusNotFound}
	}
	if a.client == nil {
		a.client = &http.Client{Timeout: requestTime, Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: requestTime}).DialContext, MaxIdleConnsPerHost: 4, IdleConnTimeout: 2 * time.Second,
		}}
	}
	return a, nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return AdapterName }

// Traits implements adapters.Adapter.
func (a *Adapter) Traits() adapters.Traits {
	t := a.config.Traits
	t.Codecs, t.Extensions = slices.Clone(t.Codecs), slices.Clone(t.Extensions)
	return t
}

// Ingest implements adapters.Adapter. Its URL is nil where the server cannot be published to.
func (a *Adapter) Ingest(id adapters.StreamID) adapters.Endpoint {
	return a.endpoint(a.publish, id, a.config.PublishCredentials)
}

// Egress implements adapters.Adapter. Its URL is nil where the server cannot be played from.
func (a *Adapter) Egress(id adapters.StreamID) adapters.Endpoint {
	return a.endpoint(a.play, id, a.config.PlayCredentials)
}

func (a *Adapter) endpoint(t *template, id adapters.StreamID, c adapters.Credentials) adapters.Endpoint {
	if t == nil {
		return adapters.Endpoint{}
	}
	u := a.base
	t.fill(&u, string(id))
	return adapters.Endpoint{URL: &u, Header: a.header(c)}
}

func (a *Adapter) header(c adapters.Credentials) http.Header {
	h := c.Header()
	for name, values := range a.config.Header {
		h[name] = slices.Clone(values)
	}
	return h
}

// Match implements adapters.Adapter.
func (a *Adapter) Match(r *http.Request) (adapters.Request, bool) {
	path, ok := strings.CutPrefix(r.URL.Path, a.base.Path)
	if !ok || r.Method != http.MethodPost {
		return adapters.Request{}, false
	}
	at := url.URL{Path: path, RawQuery: r.URL.RawQuery}
	name, publish := a.publish.match(&at)
	if !publish {
		if name, ok = a.play.match(&at); !ok {
			return adapters.Request{}, false
		}
	}
	return adapters.Request{ID: adapters.StreamID(name), Publish: publish}, true
}

// Missing implements adapters.Adapter.
func (a *Adapter) Missing(status int, _ http.Header, body []byte) bool {
	return slices.Contains(a.config.MissingStatus, status) && strings.Contains(string(body), a.config.MissingBody)
}

// Watch implements adapters.Adapter. Without an inventory it sees only whether the server is there, and reports no streams but
// those that the gateway saw, where these count.
func (a *Adapter) Watch(ctx context.Context, report func([]adapters.Stream)) error {
	list, host := a.list, a.base.Host
	if a.inventory == nil {
		list = a.knock
	} else {
		host = a.inventory.Host
	}
	if err := a.Poller.Watch(ctx, list, report); ctx.Err() == nil {
		return fmt.Errorf("watch %s: %w", host, err)
	}
	return ctx.Err()
}

// Observe implements adapters.Observer.
func (a *Adapter) Observe(seen []adapters.Stream) {
	a.mu.Lock()
	a.seen = seen
	a.mu.Unlock()
	if a.config.Seen {
		a.Look()
	}
}

// knock is list for servers that do not tell their streams. Whatever HTTP answer comes is fine.
func (a *Adapter) knock(ctx context.Context) ([]adapters.Stream, error) {
	response, err := a.do(ctx, http.MethodOptions, a.base.JoinPath("/"))
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			a.down = time.Now()
		}
		return nil, err
	}
	if err := response.Body.Close(); err != nil || !a.config.Seen {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(a.seen), func(s adapters.Stream) bool { return s.Since.Before(a.down) }), nil
}

func (a *Adapter) list(ctx context.Context) ([]adapters.Stream, error) {
	response, err := a.do(ctx, http.MethodGet, a.inventory)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("inventory %s: %w", a.inventory.Path, err)
	}
	switch code := response.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return nil, &poll.Final{Err: fmt.Errorf("inventory %s with %s: %s; give the sidecar credentials that the API takes",
			a.inventory.Path, a.config.API, response.Status)}
	case code/100 == 4 && code != http.StatusTooManyRequests && code != http.StatusRequestTimeout:
		return nil, &poll.Final{Err: fmt.Errorf("inventory %s: %s; is the address right?", a.inventory.Path, response.Status)}
	case code/100 != 2:
		return nil, fmt.Errorf("inventory %s: %s", a.inventory.Path, response.Status)
	}
	streams, err := a.query.streams(ctx, body)
	if err != nil && ctx.Err() == nil {
		return nil, &poll.Final{Err: fmt.Errorf("inventory %s: %w", a.inventory.Path, err)}
	}
	return streams, err
}

func (a *Adapter) do(ctx context.Context, method string, u *url.URL) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, u.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header = a.header(a.config.API)
	request.Header.Set("Accept", "application/json")
	response, err := a.client.Do(request)
	// The address may hold a token in its query: net/http's words repeat it.
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return nil, fmt.Errorf("%s %s: %w", method, u.Path, wrapped.Err)
	}
	return response, err
}

// CloseIdleConnections closes the connections for the inventory that nobody uses.
func (a *Adapter) CloseIdleConnections() { a.client.CloseIdleConnections() }
