package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/broadcastbox"
	"github.com/sidestream-dev/sidestream/adapters/generic"
	"github.com/sidestream-dev/sidestream/adapters/janus"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/sidecar/admin"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/config"
	"github.com/sidestream-dev/sidestream/sidecar/discovery"
	"github.com/sidestream-dev/sidestream/sidecar/discovery/endpointslice"
	"github.com/sidestream-dev/sidestream/sidecar/gateway"
	"github.com/sidestream-dev/sidestream/sidecar/iceservers"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
	"github.com/sidestream-dev/sidestream/sidecar/tracing"
	"github.com/sidestream-dev/sidestream/sidecar/tracing/otlp"
)

// sweepTime bounds the deletion of what was left behind.
const sweepTime = 5 * time.Second

// surroundings is the world around a node, where it is not the machine's own: the demo puts distance there.
type surroundings struct {
	dial    mesh.DialFunc                   // to peers; nil: the machine's network
	viewers func(net.Listener) net.Listener // what the gateway listens on; nil: as it is
	front   func(http.Handler) http.Handler // around the gateway; nil: nothing
	sfu     media.Transport                 // of the built-in media server
	relay   media.Transport                 // of relays
}

// node is one sidecar, and the built-in media server where that runs in the same process: all its parts, put together.
type node struct {
	settings config.Config
	around   surroundings
	logger   *slog.Logger
	registry *prometheus.Registry

	sfu      *pionsfu.Server // nil: the media server is another process
	adapter  adapters.Adapter
	turn     *iceservers.Servers // nil: there are none
	facade   *janus.Adapter      // nil: the media server speaks WHIP and WHEP itself
	server   http.RoundTripper   // to the media server; nil: as the gateway has it
	state    state
	file     stateFile
	known    *catalogue.Catalogue
	security *mesh.Security
	port     *mesh.Port
	mesh     *mesh.Mesh
	peers    *http.Client // to the peer ports of others
	local    *http.Client // to the media server
	relays   *relay.Manager
	carriage *relay.SessionMetrics
	gateway  *gateway.Gateway
	tokens   *gateway.Tokens

	sources *discovery.Merged // from run on

	listeners struct{ sfu, gateway, peer, admin net.Listener }
	udp       net.PacketConn // the mesh's; nil: there is none

	traces *otlp.Provider // nil: nothing is traced

	superseded *supersededMetrics
	draining   atomic.Bool

	mu       sync.Mutex
	reported map[adapters.StreamID]adapters.Stream // by the media server, the last time
	failed   error                                 // why it cannot be watched
	lost     time.Time                             // since when; zero: it can
	losses   uint64                                // how often it could not be watched, or no longer
}

// newNode opens the ports, so that one which is taken is known at once, and puts the parts together. Nothing runs before
// run, which also frees what was opened.
func newNode(settings config.Config, around surroundings, logger *slog.Logger) (_ *node, err error) {
	settings.Adapter = settings.Adapter.At(settings.PodIP)
	n := &node{
		settings: settings, around: around, logger: logger, registry: prometheus.NewRegistry(),
		reported: map[adapters.StreamID]adapters.Stream{}, lost: time.Now(),
	}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	n.superseded = newSupersededMetrics(n.registry)
	n.registry.MustRegister(nodeCollector{n})
	n.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, l := range []struct {
		to            *net.Listener
		what, address string
	}{
		{&n.listeners.gateway, "viewers (SIDESTREAM_GATEWAY_LISTEN)", settings.Gateway.Listen},
		{&n.listeners.peer, "peers (SIDESTREAM_PEER_LISTEN)", settings.Peer.Listen},
		{&n.listeners.admin, "administration (SIDESTREAM_ADMIN_LISTEN)", settings.Admin.Listen},
	} {
		if *l.to, err = net.Listen("tcp", l.address); err != nil {
			return nil, fmt.Errorf("open the port for %s: %w", l.what, err)
		}
	}
	if n.turn, err = newTURN(settings.TURN, logger, n.registry); err != nil {
		return nil, err
	}
	target, err := n.openServer()
	if err != nil {
		return nil, err
	}

	n.file = stateFile{name: filepath.Join(settings.StateDir, "state.json"), logger: logger, asked: make(chan chan<- struct{})}
	n.state = n.file.open(catalogue.NodeID(settings.NodeID))
	n.logger = logger.With("node", n.state.Node, "cluster", settings.Cluster)
	n.known = catalogue.New(catalogue.Node{
		ID: n.state.Node, Incarnation: n.state.Incarnation, Cluster: settings.Cluster,
	})
	n.known.SetPolicy(policyOf(settings))
	if err := n.known.Restore(n.state.Record); err != nil {
		n.logger.Warn("what was remembered cannot be true; going on without it", "error", err)
	}

	n.traces = otlp.New(context.Background(), otlp.Options{
		Service: "sidestream", Node: string(n.state.Node), Cluster: settings.Cluster, Namespace: settings.Namespace, Version: version,
		Logger: n.logger,
	})
	if err := n.openMesh(); err != nil {
		return nil, err
	}
	n.local = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: 2 * time.Second}}
	if n.traces != nil {
		n.peers.Transport, n.local.Transport = tracing.Transport{Next: n.peers.Transport}, tracing.Transport{Next: n.local.Transport}
	}
	n.carriage = relay.NewSessionMetrics(n.registry)
	n.relays = relay.NewManager(relay.ManagerOptions{
		Catalogue: n.known,
		Peers:     parents{n.mesh},
		NewSession: func(s relay.Spec) relay.Runner {
			return n.newSession(s, n.carriage)
		},
		NewSource: n.newSource,
		Accept:    func(tracks []adapters.Track) error { return n.adapter.Traits().Accept(tracks) },
		Remember:  n.file.remember, Awake: n.mesh.Awake,
		Pins: settings.Relay.Pins, Standby: settings.Relay.Standby, Linger: settings.Relay.Linger, FanOut: settings.Relay.FanOut,
		Registerer: n.registry, Tracer: n.traces.Tracer(), Logger: n.logger,
	})
	if n.gateway, err = n.newGateway(target); err != nil {
		return nil, err
	}
	return n, nil
}

// servers are the adapters by their names. Each finds the server that stands beside the sidecar, and says at which base URL
// it is.
var servers = map[string]func(*node) (adapters.Adapter, *url.URL, error){
	pionsfu.AdapterName:  (*node).openPionSFU,
	mediamtx.AdapterName: (*node).openMediaMTX,
	generic.AdapterName:  (*node).openGeneric,
	janus.AdapterName:    (*node).openJanus,

	broadcastbox.AdapterName: (*node).openBroadcastBox,
}

// openServer makes the adapter that the settings name.
func (n *node) openServer() (target *url.URL, err error) {
	open, ok := servers[n.settings.Adapter.Name]
	if !ok {
		return nil, fmt.Errorf("adapter %q is not known: this version has %q", n.settings.Adapter.Name,
			slices.Sorted(maps.Keys(servers)))
	}
	n.adapter, target, err = open(n)
	if err != nil {
		return nil, err
	}
	return target, nil
}

// openPionSFU also makes the built-in server, where no other is said to run.
func (n *node) openPionSFU() (adapters.Adapter, *url.URL, error) {
	s := n.settings
	target := s.Adapter.URL
	publish, play := string(s.Adapter.Token), string(s.Adapter.Token)
	if target == nil {
		var err error
		if n.sfu, err = newSFU(s.SFU, sfuParts{n.around.sfu, n.turn, nil}, n.logger, n.registry); err != nil {
			return nil, nil, err
		}
		if n.listeners.sfu, err = net.Listen("tcp", s.SFU.Listen); err != nil {
			return nil, nil, fmt.Errorf("open the port for the media server (SIDESTREAM_SFU_LISTEN): %w", err)
		}
		target = &url.URL{Scheme: "http", Host: dialable(n.listeners.sfu.Addr(), s.PodIP)}
		publish, play = string(s.SFU.PublishToken), string(s.SFU.PlayToken)
	}
	adapter, err := pionsfu.NewAdapter(pionsfu.AdapterConfig{
		BaseURL: target.String(), PublishToken: publish, PlayToken: play,
	})
	return adapter, target, err
}

func (n *node) openMediaMTX() (adapters.Adapter, *url.URL, error) {
	s := n.settings.Adapter
	target := n.serverAt(mediamtx.Port)
	c := mediamtx.Config{
		BaseURL: target.String(),
		Publish: credentials(s, s.Publish), Play: credentials(s, s.Play), API: credentials(s, s.API),
	}
	if s.APIURL != nil {
		c.APIURL = s.APIURL.String()
	}
	adapter, err := mediamtx.New(c)
	return adapter, target, err
}

func (n *node) openGeneric() (adapters.Adapter, *url.URL, error) {
	s, g := n.settings.Adapter, n.settings.Adapter.Generic
	header, err := g.HeaderFields()
	if err != nil {
		return nil, nil, err
	}
	adapter, err := generic.New(generic.Config{
		BaseURL: s.URL.String(), Publish: g.Publish, Play: g.Play, Header: header,
		PublishCredentials: credentials(s, s.Publish), PlayCredentials: credentials(s, s.Play), API: credentials(s, s.API),
		MissingStatus: g.MissingStatus, MissingBody: g.MissingBody, Inventory: g.Inventory, Query: g.Query, Seen: g.Seen,
		Traits: adapters.Traits{
			Codecs: g.Codecs, InOrder: g.InOrder, MaxHold: g.MaxHold, FillAudio: g.FillAudio,
			DropsReadersOnReplace: g.DropsReaders, AcceptsAndWaits: g.Waits, IgnoresPLI: g.IgnoresPLI,
		},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("settings that describe the generic server: %w", err)
	}
	return adapter, s.URL, nil
}

// serverAt is the address of the server beside the sidecar: as it is set, else a port at the pod's IP.
func (n *node) serverAt(port string) *url.URL {
	if u := n.settings.Adapter.URL; u != nil {
		return u
	}
	pod := n.settings.PodIP
	if !pod.IsValid() {
		pod = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return &url.URL{Scheme: "http", Host: net.JoinHostPort(pod.String(), port)}
}

// credentials are those for one purpose, or the general ones where it has none of its own.
func credentials(general config.Adapter, own config.Credentials) adapters.Credentials {
	if own == (config.Credentials{}) {
		own = config.Credentials{User: general.User, Password: general.Password, Token: general.Token}
	}
	return adapters.Credentials{User: own.User, Password: string(own.Password), Token: string(own.Token)}
}

// dialable is how a listener of this pod is reached from within: by the pod's IP where it listens on every address and
// that is known, because many servers trust loopback.
func dialable(addr net.Addr, pod netip.Addr) string {
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil || !at.Addr().IsUnspecified() {
		return addr.String()
	}
	if !pod.IsValid() {
		pod = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(pod, at.Port()).String()
}

func (n *node) openMesh() (err error) {
	p := n.settings.Peer
	n.security = mesh.Plaintext()
	self := mesh.SecurityOptions{Namespace: n.settings.Namespace, Cluster: n.settings.Cluster, Logger: n.logger}
	switch p.Security {
	case config.TLS:
		if n.security, err = mesh.LoadSecurity(p.TLSDir, self); err != nil {
			return fmt.Errorf("%w (set SIDESTREAM_PEER_TLS_DIR, or SIDESTREAM_PEER_SECURITY to shared-key, or to plaintext on a network "+
				"that is safe by itself)", err)
		}
	case config.SharedKey:
		if p.KeyFile != "" {
			n.security, err = mesh.SharedKeyFile(p.KeyFile, self)
		} else {
			n.security, err = mesh.SharedKey(string(p.Key), self)
		}
		if err != nil {
			return err
		}
	}
	fingerprint, err := clusterFingerprint(n.settings.ClusterCAFile)
	if err != nil {
		n.logger.Warn("the cluster's authority cannot be read; a cluster of the same name will not be noticed", "error", err)
	}
	n.tokens = gateway.NewTokens(nil)
	n.peers = n.security.HTTPClient(n.around.dial)
	n.port = mesh.NewPort(mesh.PortOptions{
		Listener: n.listeners.peer, Security: n.security, Registerer: n.registry, Logger: n.logger,
	})
	host := p.AdvertisedHost
	if host == "" && n.settings.PodIP.IsValid() {
		host = n.settings.PodIP.String()
	}
	_, port, err := net.SplitHostPort(n.listeners.peer.Addr().String())
	if err != nil {
		return err
	}
	n.mesh = mesh.New(mesh.Options{
		Catalogue: n.known, Security: n.security, Listener: n.port.GRPC(), Address: net.JoinHostPort(host, port),
		Namespace: n.settings.Namespace, ClusterFingerprint: fingerprint, Datagrams: n.datagrams(),
		Flows: n.flows, Outgrow: n.known.Outgrow, Load: n.load,
		Handler: answers{n}, Version: version, Dial: n.around.dial, Registerer: n.registry, Tracer: n.traces.Tracer(), Logger: n.logger,
	})
	n.mesh.SetReady(false) // until the media server has answered
	return nil
}

// datagrams opens the number of the peers' port for UDP too; nil where something else has it.
func (n *node) datagrams() net.PacketConn {
	conn, err := net.ListenPacket("udp", n.listeners.peer.Addr().String())
	if err != nil {
		n.logger.Info("it is not found out whether UDP passes between the peers", "error", err)
		return nil
	}
	n.udp = conn
	return conn
}

// clusterFingerprint tells clusters apart by their authority; nil where there is none.
func clusterFingerprint(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(bytes.TrimSpace(text))
	return sum[:], nil
}

// newSource is where a session takes the stream from: a parent's gateway.
func (n *node) newSource(s relay.Spec) relay.Source {
	from := adapters.Endpoint{Header: http.Header{gateway.PullTokenHeader: {s.Grant.Token}}}
	// The URL comes of an address that the mesh speaks to, so it parses; an empty one fails in the session, with words.
	from.URL, _ = url.Parse(s.Grant.URL)
	return relay.Source{From: from, FromHTTP: n.peers}
}

// newSession makes the session that pulls from a parent's gateway and publishes into the own server.
func (n *node) newSession(s relay.Spec, metrics *relay.SessionMetrics) relay.Runner {
	source := n.newSource(s)
	return relay.NewSession(relay.SessionOptions{
		Stream: s.Stream, From: source.From, FromHTTP: source.FromHTTP, To: n.adapter.Ingest(s.Stream), ToHTTP: n.local,
		Transport: n.around.relay, Traits: n.adapter.Traits(),
		Logger: n.logger.With("pull", gateway.PullID(s.Grant.Token)), Metrics: metrics, Share: func() relay.Share { return n.relays.Share(s.Stream) },
	})
}

// run runs all parts until ctx ends or one fails. The media server and the ports outlive the relays, so that these can
// end their sessions.
func (n *node) run(ctx context.Context) error {
	defer n.close()
	if err := n.openDiscovery(); err != nil { // not before: the demo's nodes learn each other's ports when all are open
		return err
	}
	viewers, front := n.listeners.gateway, http.Handler(n.gateway)
	if n.around.viewers != nil {
		viewers = n.around.viewers(viewers)
	}
	front = n.console(front)
	if n.around.front != nil {
		front = n.around.front(front)
	}
	var server []part
	if n.sfu != nil {
		server = []part{n.sfu.Run, serveHTTP(n.listeners.sfu, n.sfu)}
	}
	if n.facade != nil {
		server = []part{n.facade.Run}
	}
	if n.traces != nil {
		server = append(server, n.traces.Run)
	}
	doors := []part{
		n.gateway.Run, n.port.Run, n.mesh.Run,
		serveHTTP(viewers, front),
		serveHTTP(n.port.HTTP(), n.peerDoor(n.gateway.PeerHandler())),
		serveHTTP(n.listeners.admin, n.consoleForAdmin(admin.New(admin.Options{
			Ready: n.gateway.Ready, Drain: n.drain, Status: func() any { return n.status() }, Metrics: n.registry,
			Explain: n.explain,
			Demand:  &hooks{relays: n.relays, pod: n.settings.PodIP, logger: n.logger},
			Profile: n.settings.Admin.Profile, Logger: n.logger,
		}))),
		func(ctx context.Context) error { return n.file.follow(ctx, n.state, n.known) },
	}
	working := []part{n.relays.Run, n.watchServer, n.watchKnown, n.endSuperseded, n.discover}
	tests, err := testPublishers(n.settings.TestStreams, n.adapter, n.around.relay, n.logger)
	if err != nil {
		return err
	}
	working = append(working, tests...)
	n.logger.Info("running", "gateway", n.listeners.gateway.Addr().String(), "peers", n.listeners.peer.Addr().String(),
		"admin", n.listeners.admin.Addr().String(), "incarnation", n.state.Incarnation)
	return runStages(ctx, server, doors, working)
}

// close frees what newNode opened. Closing twice does no harm.
func (n *node) close() {
	for _, l := range []net.Listener{n.listeners.sfu, n.listeners.gateway, n.listeners.peer, n.listeners.admin} {
		if l != nil {
			_ = l.Close()
		}
	}
	if n.udp != nil {
		_ = n.udp.Close()
	}
	if n.facade != nil {
		_ = n.facade.Close()
	}
	for _, c := range []*http.Client{n.peers, n.local} {
		if c != nil {
			c.CloseIdleConnections()
		}
	}
}

// sweep deletes the WHIP sessions that relays of the process before left behind at the media server. What cannot be
// deleted ends by itself, when the server notices that nothing comes any more.
func (n *node) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	for _, left := range n.known.Left() {
		req, err := http.NewRequestWithContext(ctx, http.MethodDelete, left.Location, http.NoBody)
		if err != nil {
			n.logger.Warn("session left behind has no address", "stream", left.Stream, "error", err)
			continue
		}
		req.Header = n.adapter.Ingest(left.Stream).Header.Clone()
		resp, err := n.local.Do(req)
		if err != nil {
			n.logger.Warn("session left behind is not deleted", "stream", left.Stream, "error", err)
			continue
		}
		_ = resp.Body.Close()
		n.logger.Info("deleted a session that was left behind", "stream", left.Stream, "status", resp.StatusCode)
	}
}

// endStrays ends what relays of a process before left behind, of which this one remembers nothing: the server has no room for the
// stream itself until then.
func (n *node) endStrays(ctx context.Context, streams []adapters.Stream) {
	ender, ok := n.adapter.(adapters.Ender)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	for _, s := range n.known.Strays(streams) {
		if err := ender.End(ctx, s); err != nil {
			n.logger.Warn("publication left behind is not ended", "stream", s.ID, "error", err)
			continue
		}
		n.logger.Info("ended a publication that was left behind", "stream", s.ID)
	}
}

// watchServer hands what the media server reports to all who want to know, and asks again when it was lost.
func (n *node) watchServer(ctx context.Context) error {
	n.sweep(ctx)
	lost := false
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := n.adapter.Watch(ctx, func(streams []adapters.Stream) {
			if lost {
				lost = false
				n.stay()
			}
			n.mesh.SetReady(true)
			n.setFailed(nil)
			n.endStrays(ctx, streams)
			n.report(streams)
		})
		if ctx.Err() != nil {
			return struct{}{}, backoff.Permanent(ctx.Err())
		}
		lost = true
		n.mesh.SetReady(false)
		n.setFailed(err)
		if errors.Is(err, syscall.ECONNREFUSED) {
			// It does not run, so it has no streams: peers need not try, and what it has when it runs again, or for the first
			// time after this sidecar has begun, is new.
			n.report(nil)
		}
		n.logger.Warn("media server cannot be watched; asking again", "adapter", n.adapter.Name(), "error", err)
		return struct{}{}, errors.Join(err, errLost)
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
	return err
}

// errLost keeps a retry going where the error was nil.
var errLost = errors.New("lost")

func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 200*time.Millisecond, 5*time.Second
	return b
}

func (n *node) report(streams []adapters.Stream) {
	reported := make(map[adapters.StreamID]adapters.Stream, len(streams))
	for _, s := range streams {
		reported[s.ID] = s
	}
	n.mu.Lock()
	before := n.reported
	n.reported = reported
	n.mu.Unlock()
	for _, s := range streams {
		if s.Lacks != "" && s.Lacks != before[s.ID].Lacks {
			n.logger.Warn("stream cannot be played as it is published", "stream", s.ID, "lacks", s.Lacks)
		}
	}
	if err := n.known.SetLocal(streams); err != nil {
		n.logger.Warn("streams are not announced", "error", err)
	}
	n.relays.Report(streams)
}

// setFailed notes why the media server cannot be watched; nil: it can.
func (n *node) setFailed(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = err
	if err == nil {
		n.lost = time.Time{}
		return
	}
	n.losses++
	if n.lost.IsZero() {
		n.lost = time.Now()
	}
}

func (n *node) serverError() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.failed == nil {
		return ""
	}
	return n.failed.Error()
}

func (n *node) streamOf(id adapters.StreamID) (adapters.Stream, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.reported[id]
	return s, ok
}

func (n *node) readersOf(id adapters.StreamID) int {
	s, ok := n.streamOf(id)
	if !ok {
		return -1
	}
	return s.Readers
}

// watchKnown follows what is known of the streams: it tells the mesh on which nodes media depends here, and people which
// publications here are beaten by later ones elsewhere.
func (n *node) watchKnown(ctx context.Context) error {
	var beaten superseded
	for {
		state, changed := n.known.Snapshot()
		n.mesh.SetRelated(state.Related())
		n.superseded.present.Set(float64(beaten.follow(state, n.logger)))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// openDiscovery puts together the sources of peers that the settings name.
func (n *node) openDiscovery() error {
	p := n.settings.Peer
	var sources []discovery.Named
	if p.Service != "" {
		sources = append(sources, discovery.Named{Name: "endpointslice", Source: endpointslice.New(endpointslice.Options{
			Service: p.Service, Namespace: n.settings.Namespace, PortName: p.PortName, Kubeconfig: p.Kubeconfig,
			Logger: n.logger, Registerer: n.registry,
		})})
	}
	if len(p.DNS) > 0 {
		names, err := discovery.NewDNS(p.DNS, p.PortName, n.logger)
		if err != nil {
			return fmt.Errorf("find peers by DNS (SIDESTREAM_PEER_DNS): %w", err)
		}
		sources = append(sources, discovery.Named{Name: "dns", Source: names})
	}
	if p.File != "" {
		sources = append(sources, discovery.Named{Name: "file", Source: discovery.NewFile(p.File, n.logger)})
	}
	if len(p.Static) > 0 {
		list, err := discovery.NewStatic(p.Static, n.logger)
		if err != nil {
			return fmt.Errorf("list peers (SIDESTREAM_PEER_STATIC): %w", err)
		}
		sources = append(sources, discovery.Named{Name: "static", Source: list})
	}
	n.sources = discovery.Merge(discovery.MergeOptions{Logger: n.logger, Registerer: n.registry}, sources...)
	return nil
}

// discover tells the mesh where peers are.
func (n *node) discover(ctx context.Context) error { return n.sources.Run(ctx, n.mesh.SetPeers) }

// forward is how the gateway reaches another node's sessions.
func (n *node) forward(id string) (*url.URL, http.RoundTripper, bool) {
	addr, ok := n.mesh.Address(catalogue.NodeID(id))
	if !ok {
		return nil, nil, false
	}
	return &url.URL{Scheme: n.security.Scheme(), Host: addr}, n.peers.Transport, true
}

// status is what /api/status shows.
type status struct {
	Node    catalogue.NodeID `json:"node"`
	Cluster string           `json:"cluster"`
	Version string           `json:"version"`
	Adapter string           `json:"adapter"`
	// ServerError says why the media server cannot be asked for its streams.
	ServerError string `json:"serverError,omitempty"`

	Peers   []mesh.PeerStatus `json:"peers"`
	Streams []streamStatus    `json:"streams"`
	Relays  []relay.Status    `json:"relays"`

	Discovery []discovery.Status `json:"discovery"`
}

// streamStatus is one name that anybody holds.
type streamStatus struct {
	Stream  adapters.StreamID `json:"stream"`
	Epoch   uint64            `json:"epoch"`
	Origin  catalogue.NodeID  `json:"origin"`
	Holders []holder          `json:"holders"`
	Readers int               `json:"readers"` // at this node; -1: not known
	// Lacks says what of it plays do not give, where it is published at this node.
	Lacks string `json:"lacks,omitempty"`
	// Refused says why it is published elsewhere and cannot be had here.
	Refused string `json:"refused,omitempty"`
}

type holder struct {
	Node    catalogue.NodeID   `json:"node"`
	Cluster string             `json:"cluster"`
	Path    []catalogue.NodeID `json:"path"`
}

func (n *node) status() status {
	known, _ := n.known.Snapshot()
	s := status{
		Node: n.state.Node, Cluster: n.settings.Cluster, Version: version, Adapter: n.adapter.Name(), ServerError: n.serverError(),
		Discovery: n.sources.Status(),
		Peers:     append([]mesh.PeerStatus{}, n.mesh.Peers()...), Relays: n.relays.Status(), Streams: []streamStatus{},
	}
	for _, id := range known.Streams() {
		winner, ok := known.Winner(id)
		if !ok {
			continue
		}
		row := streamStatus{Stream: id, Epoch: winner.Epoch, Origin: winner.Origin, Readers: n.readersOf(id)}
		if here, ok := n.streamOf(id); ok {
			row.Lacks = here.Lacks
		}
		if err := n.relays.Unfit(id); err != nil {
			row.Refused = err.Error()
		}
		for _, h := range known.Holders(id) {
			at, _ := known.Node(h.Holder())
			row.Holders = append(row.Holders, holder{Node: h.Holder(), Cluster: at.Cluster, Path: h.Path})
		}
		s.Streams = append(s.Streams, row)
	}
	return s
}

// parents is the mesh as the relays know it.
type parents struct{ mesh *mesh.Mesh }

func (p parents) Claim(ctx context.Context, owner catalogue.NodeID, id adapters.StreamID, epoch uint64) (relay.Claim, error) {
	c, err := p.mesh.Claim(ctx, owner, id, epoch)
	return relay.Claim(c), err
}

func (p parents) Pull(ctx context.Context, parent catalogue.NodeID, id adapters.StreamID) (relay.Grant, error) {
	g, err := p.mesh.Pull(ctx, parent, id)
	if refused, ok := errors.AsType[*mesh.RefusedError](err); ok {
		return relay.Grant{}, fmt.Errorf("%w: %w", adapters.ErrNoStream, refused)
	}
	return relay.Grant(g), err
}

func (p parents) RTT(id catalogue.NodeID) (time.Duration, bool) { return p.mesh.RTT(id) }

func (p parents) PacketAge(parent catalogue.NodeID, id adapters.StreamID) (time.Duration, bool) {
	return p.mesh.PacketAge(parent, id)
}

func (p parents) Heard(id catalogue.NodeID) (time.Time, bool) { return p.mesh.Heard(id) }

func (p parents) Sequence(parent catalogue.NodeID, id adapters.StreamID) (uint64, bool) {
	return p.mesh.Sequence(parent, id)
}

// flows are the streams that a child pulls from here.
func (n *node) flows(child catalogue.NodeID) map[adapters.StreamID]mesh.Flow {
	flows := n.relays.Flows(child)
	told := make(map[adapters.StreamID]mesh.Flow, len(flows))
	for id, f := range flows {
		told[id] = mesh.Flow(f)
	}
	return told
}

// answers is what the mesh asks of this node on behalf of others.
type answers struct{ node *node }

func (a answers) Claim(from catalogue.NodeID, id adapters.StreamID, epoch uint64) mesh.Claim {
	return mesh.Claim(a.node.relays.Claim(from, id, epoch))
}

// Grant lets a child pull what is held here, unless it would be pulling from itself, or the stream may not leave.
func (a answers) Grant(child catalogue.NodeID, id adapters.StreamID) (mesh.Grant, error) {
	grant, err := a.node.relays.Grant(child, id)
	if err != nil {
		return mesh.Grant{}, &mesh.RefusedError{Reason: err.Error()}
	}
	grant.Token = a.node.tokens.Issue(string(child), id)
	return mesh.Grant(grant), nil
}

// runSidecar is the command "run".
func runSidecar(ctx context.Context, settings config.Config, logger *slog.Logger) error {
	transport := media.Transport{Loopback: settings.SFU.Loopback}
	n, err := newNode(settings, surroundings{relay: transport}, logger)
	if err != nil {
		return err
	}
	return n.run(ctx)
}
