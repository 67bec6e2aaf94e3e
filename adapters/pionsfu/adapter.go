package pionsfu

import (
	"bufio"
	"bytes"
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
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	// AdapterName is what labels and annotations call this server.
	AdapterName = "pionsfu"

	watchSilence = 3 * heartbeat // after which a server that is watched counts as gone
	maxListing   = 64 << 20
	requestTime  = 10 * time.Second
)

// AdapterConfig is where a pionsfu is and how to speak to it.
type AdapterConfig struct {
	BaseURL string // "http://10.0.0.7:8800"
	// The server's tokens, empty where it has none. APIToken falls back to PublishToken and PlayToken as the server's does.
	PublishToken, PlayToken, APIToken string
	HTTP                              *http.Client // nil: one of its own
}

// Adapter knows a pionsfu server by its HTTP address. It implements adapters.Adapter and adapters.Ender.
type Adapter struct {
	config AdapterConfig
	base   url.URL
	client *http.Client
}

var (
	_ adapters.Adapter = (*Adapter)(nil)
	_ adapters.Ender   = (*Adapter)(nil)
)

// codecs are those of media.RegisterCodecs.
var codecs = []string{
	webrtc.MimeTypeVP8, webrtc.MimeTypeVP9, webrtc.MimeTypeH264, webrtc.MimeTypeAV1, webrtc.MimeTypeH265,
	webrtc.MimeTypeOpus, "audio/multiopus", webrtc.MimeTypePCMU, webrtc.MimeTypePCMA, webrtc.MimeTypeG722,
}

// NewAdapter makes an Adapter; it does not speak to the server yet.
func NewAdapter(c AdapterConfig) (*Adapter, error) {
	base, err := adapters.ParseBase("pionsfu address", c.BaseURL)
	if err != nil {
		return nil, err
	}
	for _, token := range []string{c.PublishToken, c.PlayToken} {
		if c.APIToken == "" {
			c.APIToken = token
		}
	}
	client := c.HTTP
	if client == nil {
		// No timeout of the whole: watching has no end. Compression would hold back lines.
		client = &http.Client{Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: requestTime}).DialContext,
			ResponseHeaderTimeout: requestTime, IdleConnTimeout: time.Minute, DisableCompression: true, ForceAttemptHTTP2: true,
		}}
	}
	return &Adapter{config: c, base: base, client: client}, nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return AdapterName }

// Traits implements adapters.Adapter.
func (a *Adapter) Traits() adapters.Traits {
	return adapters.Traits{Codecs: slices.Clone(codecs), Extensions: media.PassedExtensions(), DropsReadersOnReplace: true}
}

// Ingest implements adapters.Adapter.
func (a *Adapter) Ingest(id adapters.StreamID) adapters.Endpoint {
	e := a.endpoint(pathPublish+string(id), a.config.PublishToken)
	e.URL.RawQuery = markRelay
	return e
}

// Egress implements adapters.Adapter.
func (a *Adapter) Egress(id adapters.StreamID) adapters.Endpoint {
	return a.endpoint(pathPlay+string(id), a.config.PlayToken)
}

func (a *Adapter) endpoint(path, token string) adapters.Endpoint {
	u := a.base
	u.Path += path
	return adapters.Endpoint{URL: &u, Header: bearer(token)}
}

func bearer(token string) http.Header {
	h := make(http.Header)
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	return h
}

// Match implements adapters.Adapter.
func (a *Adapter) Match(r *http.Request) (adapters.Request, bool) {
	path, ok := strings.CutPrefix(r.URL.Path, a.base.Path)
	if !ok || r.Method != http.MethodPost {
		return adapters.Request{}, false
	}
	name, publish := strings.CutPrefix(path, pathPublish)
	if !publish {
		if name, ok = strings.CutPrefix(path, pathPlay); !ok {
			return adapters.Request{}, false
		}
	}
	return adapters.Request{ID: adapters.StreamID(name), Publish: publish}, true
}

// Missing implements adapters.Adapter: to a play, the server answers 409 for no other reason.
func (a *Adapter) Missing(status int, _ http.Header, _ []byte) bool {
	return status == http.StatusConflict
}

// Watch implements adapters.Adapter. The server pushes a line at every change, and an empty one now and then.
func (a *Adapter) Watch(ctx context.Context, report func([]adapters.Stream)) error {
	if err := a.watch(ctx, report); ctx.Err() == nil {
		return fmt.Errorf("watch %s: %w", a.base.Host, err)
	}
	return ctx.Err()
}

func (a *Adapter) watch(ctx context.Context, report func([]adapters.Stream)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(watchSilence, func() { cancel(fmt.Errorf("nothing heard for %s", watchSilence)) })
	defer silence.Stop()

	response, err := a.request(ctx, http.MethodGet, pathStreams, a.config.APIToken, contentLines)
	if err != nil {
		return because(ctx, err)
	}
	defer response.Body.Close()
	if kind, _, _ := strings.Cut(response.Header.Get("Content-Type"), ";"); kind != contentLines {
		return fmt.Errorf("got %q instead of %s: is this a pionsfu?", kind, contentLines)
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, maxListing)
	for lines.Scan() {
		silence.Reset(watchSilence)
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		var list streamList
		if err := json.Unmarshal(line, &list); err != nil {
			return fmt.Errorf("read streams: %w", err)
		}
		report(list.adapt())
	}
	if err := lines.Err(); err != nil {
		return because(ctx, err)
	}
	return errors.New("the server ended the connection")
}

// End implements adapters.Ender. A publication that has ended already is no error.
func (a *Adapter) End(ctx context.Context, s adapters.Stream) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	response, err := a.request(ctx, http.MethodDelete, pathSession+s.Session, a.config.PublishToken, "")
	var failed *statusError
	if errors.As(err, &failed) && failed.code == http.StatusNotFound {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end %s: %w", s.ID, err)
	}
	return response.Body.Close()
}

// because gives the reason why a context ended, where that is what made the error.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// statusError is an answer other than 2xx.
type statusError struct {
	code   int
	detail string
}

func (e *statusError) Error() string {
	return strings.TrimSuffix(fmt.Sprintf("%d %s: %s", e.code, http.StatusText(e.code), e.detail), ": ")
}

func (a *Adapter) request(ctx context.Context, method, path, token, accept string) (*http.Response, error) {
	u := a.base
	u.Path += path
	request, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	request.Header = bearer(token)
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode/100 != 2 {
		defer response.Body.Close()
		var problem adapters.Problem
		body, _ := io.ReadAll(io.LimitReader(response.Body, 16<<10)) // what there is of it
		_ = json.Unmarshal(body, &problem)                           // a proxy's answer is no problem of ours
		return nil, &statusError{response.StatusCode, problem.Detail}
	}
	return response, nil
}
