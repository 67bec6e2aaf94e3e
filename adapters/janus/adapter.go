// Package janus is the adapter for a plain Janus, without any WHIP or WHEP server in front of it: it is that server itself.
// A façade on loopback speaks WHIP and WHEP on one side and Janus' own HTTP API (the VideoRoom plugin) on the other, and
// the adapter's endpoints point at it. A stream is a room, and the room's publisher is the publication.
package janus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

const (
	// AdapterName is what labels and annotations call this server.
	AdapterName = "janus"

	// DefaultBasePath is where Janus' HTTP API is unless the address says otherwise.
	DefaultBasePath = "/janus"

	defaultSessions = 1000
	defaultOpening  = 64

	leastRetry = 200 * time.Millisecond
	mostRetry  = 5 * time.Second
)

// Config is where a Janus is, how to speak to it, and whom the façade serves.
type Config struct {
	// BaseURL is the HTTP API for media: "http://10.0.0.7:8088/janus"; without a path, DefaultBasePath is meant.
	BaseURL string
	// APISecret is Janus' api_secret, Token one of its token_auth; empty where it has none.
	APISecret, Token string
	// AdminKey is the VideoRoom plugin's admin_key: without it a plugin that has one lets no room be made. RoomSecret and
	// RoomPIN are those of the rooms, also of those that are made here; empty: none.
	AdminKey, RoomSecret, RoomPIN string
	// AdminURL is the HTTP API for administration ("http://10.0.0.7:7088/admin") and AdminSecret its admin_secret. With it
	// subscribers that did not come through the façade are counted too.
	AdminURL, AdminSecret string
	// PublishToken and PlayToken are what publishers and viewers of the pod must show as a bearer token. Empty: nothing,
	// where Janus itself asks for nothing; where it does, nobody may but the sidecar.
	PublishToken, PlayToken string
	// Owner names this sidecar across its restarts: by it participants that a run before this one left in the rooms are
	// known, and taken out. Empty: the host's name.
	Owner string
	// MaxSessions and MaxOpening bound sessions, and those of them that are not connected yet. Zero: 1000 and 64.
	MaxSessions, MaxOpening int

	HTTP   *http.Client // to Janus; nil: one of its own
	Logger *slog.Logger // nil: discard
}

// Adapter knows a Janus and is the façade in front of it. It implements adapters.Adapter and adapters.Ender. Nothing of it
// works before Run.
type Adapter struct {
	config    Config
	base      url.URL // scheme and host of Janus
	logger    *slog.Logger
	client    *client
	link      *link
	facade    *facade
	inventory *inventory
	listener  net.Listener
	address   string // of the façade
	// The secrets that come with requests: of the sidecar itself, and of what its gateway passes on for strangers.
	inside, outside string
	running         atomic.Bool
}

var (
	_ adapters.Adapter = (*Adapter)(nil)
	_ adapters.Ender   = (*Adapter)(nil)
)

// New makes an Adapter and opens the façade's port on loopback, which nobody serves before Run. The caller closes it where
// it does not run it.
func New(c Config) (*Adapter, error) {
	base, err := adapters.ParseBase("janus address", c.BaseURL)
	if err != nil {
		return nil, err
	}
	if base.Path == "" {
		base.Path = DefaultBasePath
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.HTTP == nil {
		c.HTTP = &http.Client{Transport: &http.Transport{
			DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext, MaxIdleConnsPerHost: 16,
			IdleConnTimeout: 5 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		}}
	}
	if c.MaxSessions <= 0 {
		c.MaxSessions = defaultSessions
	}
	if c.MaxOpening <= 0 {
		c.MaxOpening = defaultOpening
	}
	if c.Owner == "" {
		if c.Owner, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("name the owner of participants: %w", err)
		}
	}
	owner := sha256.Sum256([]byte(c.Owner)) // participants see it
	a := &Adapter{
		config: c, base: url.URL{Scheme: base.Scheme, Host: base.Host}, logger: c.Logger, inside: nonce(), outside: nonce(),
		client: &client{base: &base, http: c.HTTP, fields: params{}},
	}
	for name, value := range map[string]string{"apisecret": c.APISecret, "token": c.Token} {
		if value != "" {
			a.client.fields[name] = value
		}
	}
	var admin *client
	if c.AdminURL != "" {
		at, err := adapters.ParseBase("janus administration's address", c.AdminURL)
		if err != nil {
			return nil, err
		}
		if at.Path == "" {
			at.Path = "/admin"
		}
		admin = &client{base: &at, http: c.HTTP, fields: params{"admin_secret": c.AdminSecret}}
	}
	a.link = &link{client: a.client, logger: c.Logger}
	a.inventory = newInventory(admin, c.Logger)
	m := mark{owner: hex.EncodeToString(owner[:6])}
	a.facade = newFacade(a.link, c, m, c.Logger, a.inventory.news)
	a.inventory.facade = a.facade
	if a.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("open the façade's port: %w", err)
	}
	a.address = a.listener.Addr().String()
	return a, nil
}

// Close frees the port of an Adapter that was not run. After Run it does nothing.
func (a *Adapter) Close() error {
	if err := a.listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return AdapterName }

// Traits implements adapters.Adapter. They are of Janus 1.1.2 with rooms that the sidecar made; a room that was there
// before takes the codecs that it was set to. Subscriptions end with their publisher, because what Janus offers them
// anew afterwards no WHEP viewer could answer.
func (a *Adapter) Traits() adapters.Traits {
	return adapters.Traits{Codecs: slices.Clone(codecs), Extensions: slices.Clone(extensions), DropsReadersOnReplace: true}
}

var (
	codecs = []string{
		"video/H264", "video/VP8", "video/VP9", "video/AV1", "video/H265", "audio/opus", "audio/G722", "audio/PCMU", "audio/PCMA",
	}
	// Playout delay is negotiated too, and arrives as zero.
	extensions = []string{"urn:ietf:params:rtp-hdrext:ssrc-audio-level", "urn:3gpp:video-orientation"}
)

// Ingest implements adapters.Adapter.
func (a *Adapter) Ingest(id adapters.StreamID) adapters.Endpoint { return a.endpoint(pathPublish, id) }

// Egress implements adapters.Adapter. A play of it is answered by a counter-offer (406), since it is Janus that offers.
func (a *Adapter) Egress(id adapters.StreamID) adapters.Endpoint { return a.endpoint(pathPlay, id) }

func (a *Adapter) endpoint(path string, id adapters.StreamID) adapters.Endpoint {
	return adapters.Endpoint{
		URL:    &url.URL{Scheme: "http", Host: a.address, Path: path + string(id)},
		Header: http.Header{secretHeader: {a.inside}},
	}
}

// Match implements adapters.Adapter: the façade's paths, which Transport has at the pod's gateway too. What native
// clients of Janus do is seen in the rooms, not here.
func (a *Adapter) Match(r *http.Request) (adapters.Request, bool) {
	if r.Method != http.MethodPost {
		return adapters.Request{}, false
	}
	name, publish := strings.CutPrefix(r.URL.Path, pathPublish)
	if !publish {
		var play bool
		if name, play = strings.CutPrefix(r.URL.Path, pathPlay); !play {
			return adapters.Request{}, false
		}
	}
	return adapters.Request{ID: adapters.StreamID(name), Publish: publish}, true
}

// Missing implements adapters.Adapter: to a play, the façade answers 409 for no other reason.
func (a *Adapter) Missing(status int, _ http.Header, _ []byte) bool {
	return status == http.StatusConflict
}

// Watch implements adapters.Adapter. Rooms tell of publishers that come and go, and once a second they are listed.
func (a *Adapter) Watch(ctx context.Context, report func([]adapters.Stream)) error {
	if err := a.watch(ctx, report); ctx.Err() == nil {
		return fmt.Errorf("watch %s: %w", a.base.Host, err)
	}
	return ctx.Err()
}

func (a *Adapter) watch(ctx context.Context, report func([]adapters.Stream)) error {
	if err := a.fresh(ctx); err != nil {
		return err
	}
	first := true
	var told []adapters.Stream
	for {
		known, changed := a.inventory.snapshot()
		if !known.ready {
			return known.err
		}
		if first || !reflect.DeepEqual(told, known.streams) {
			report(known.streams)
		}
		first, told = false, known.streams
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// fresh waits until Janus has been asked anew: what is known may be of one that was restarted a moment ago.
func (a *Adapter) fresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*stepTime)
	defer cancel()
	wanted := a.inventory.want()
	for {
		done, changed, failed := a.inventory.looked(wanted)
		if done {
			return nil
		}
		if refused(failed) {
			return failed
		}
		if _, err := a.client.info(ctx); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if !a.running.Load() {
				return errors.New("the façade does not run")
			}
			return errors.Join(failed, errors.New("janus was not heard of in time"))
		}
	}
}

// refused says whether an error is one that does not pass by itself.
func refused(err error) bool {
	switch code := codeOf(err); code {
	case codeNoSession, codeNoHandle, codeNoMoreSessions:
		return false
	case 0:
		_, garbage := errors.AsType[*garbageError](err)
		return garbage
	}
	return true
}

// End implements adapters.Ender: the publisher is taken out of the room. A publication that has ended already is no error.
func (a *Adapter) End(ctx context.Context, s adapters.Stream) error {
	room, id, ok := a.inventory.find(s)
	if !ok {
		return nil
	}
	if own := a.facade.session(id.text); own != nil && own.publish {
		if a.facade.remove(own) {
			a.facade.free(ctx, own)
		}
		return nil
	}
	h, err := a.link.attach(ctx, nil)
	if err == nil {
		defer h.detach(ctx) //nolint:errcheck // a handle without a connection
		err = a.facade.kick(ctx, h, room, id)
	}
	if err != nil {
		return fmt.Errorf("end %s: %w", s.ID, err)
	}
	return nil
}

// Run serves the façade and keeps the session with Janus until ctx ends, and returns its error. Publications that came
// through the façade end with it. It may be called once.
func (a *Adapter) Run(ctx context.Context) error {
	a.running.Store(true)
	defer a.running.Store(false)
	server := &http.Server{
		Handler: a, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(a.logger.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	serving, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	group.Go(func() {
		defer stop()
		failed <- server.Serve(a.listener)
	})
	a.connect(serving)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTime)
	defer cancel()
	if server.Shutdown(bounded) != nil {
		_ = server.Close()
	}
	group.Wait()
	a.client.http.CloseIdleConnections()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("serve the façade: %w", <-failed)
}

// connect keeps a session with Janus, and begins another where it is lost.
func (a *Adapter) connect(ctx context.Context) {
	retry := leastRetry
	told := ""
	for ctx.Err() == nil {
		began := time.Now()
		err := a.connection(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > mostRetry {
			retry = leastRetry
		}
		a.inventory.lost(err)
		if err.Error() != told {
			told = err.Error()
			a.logger.Warn("no session with janus; trying again", "error", a.advise(err))
		}
		if pause(ctx, retry/2+jitter(retry/2)) != nil {
			return
		}
		retry = min(2*retry, mostRetry)
	}
}

// advise adds what to do to errors that a person has to mend.
func (a *Adapter) advise(err error) error {
	switch codeOf(err) {
	case codeUnauthorized, codeTokenNotAllowed:
		return fmt.Errorf("%w (the sidecar's secret or token is not Janus' own: compare it with api_secret and token_auth in janus.jcfg)",
			err)
	case codeNoPlugin:
		return fmt.Errorf("%w (Janus runs without the VideoRoom plugin)", err)
	}
	return err
}

// connection is one session with Janus, from its beginning to its loss.
func (a *Adapter) connection(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, stepTime)
	info, err := a.client.info(bounded)
	cancel()
	if err != nil {
		return err
	}
	session, err := a.link.open(ctx)
	if err != nil {
		return err
	}
	a.facade.renew()
	// Events come until the farewell is over; work ends with ctx, or with the events.
	alive, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() {
		defer cancel()
		stop(a.link.follow(alive, session))
	})
	defer func() {
		stop(nil)
		group.Wait()
		a.facade.disconnect()
	}()
	err = a.work(working, info)
	if alive.Err() == nil {
		a.farewell(ctx, session)
		stop(err)
	}
	return context.Cause(alive)
}

// work keeps the sessions and the inventory until ctx ends or Janus refuses.
func (a *Adapter) work(ctx context.Context, info serverInfo) error {
	control, err := a.link.attach(ctx, nil)
	if err != nil {
		return err
	}
	n, err := probeNaming(ctx, control)
	if err != nil {
		return err
	}
	a.logger.Info("session with janus", "version", legible(info.Version), "string_ids", !n.numbers)
	notices := info.Checks || info.Consent
	if !notices {
		a.logger.Warn("janus does not notice viewers that vanish: set ice_keepalive_conncheck = true in the section nat of janus.jcfg, " +
			"or from 1.2 on ice_consent_freshness = true")
	}
	ctx, cancel := context.WithCancel(ctx)
	var reaping sync.WaitGroup
	reaping.Go(func() { a.facade.run(ctx) })
	defer reaping.Wait()
	defer cancel()
	return a.inventory.run(ctx, control, n, func() { a.facade.connect(n, notices) })
}

// farewell ends what this sidecar has begun at Janus.
func (a *Adapter) farewell(ctx context.Context, session uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTime)
	defer cancel()
	a.facade.closeRooms(ctx)
	a.link.close(ctx, session)
}

// probeNaming finds out of which kind the server's ids are.
func probeNaming(ctx context.Context, h *handle) (naming, error) {
	_, err := h.ask(ctx, "ask for the kind of ids", params{"request": "exists", "room": "sidestream"})
	if codeOf(err) == codeInvalidElement {
		return naming{numbers: true}, nil
	}
	return naming{}, err
}
