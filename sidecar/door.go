package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/bearer"
	"github.com/sidestream-dev/sidestream/sidecar/config"
	"github.com/sidestream-dev/sidestream/sidecar/gateway"
	"github.com/sidestream-dev/sidestream/sidecar/iceservers"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
)

// newGateway puts the gateway in front of the media server at target.
func (n *node) newGateway(target *url.URL) (*gateway.Gateway, error) {
	g := n.settings.Gateway
	o := gateway.Options{
		Adapter: n.adapter, Target: target, NodeID: string(n.state.Node), Relays: n.relays, Readers: n.readersOf, Unfit: n.relays.Unfit,
		Stream: n.streamOf, Inventory: n.settings.Adapter.Name != config.Generically || n.settings.Adapter.Generic.Inventory != "",
		Forward: n.forward, Tokens: n.tokens, PodIP: n.settings.PodIP, PublicBaseURL: g.PublicURL,
		TrustedProxies: g.TrustedProxies, HoldTimeout: g.Hold, SessionAge: g.SessionAge, Origins: g.Origins, AccessLog: g.AccessLog == config.On,
		Limits: gateway.Limits{
			Plays: g.MaxPlays, Publications: g.MaxPublications, PerAddress: g.MaxPerAddress, PerStream: g.MaxPerStream,
		},
		Rates:     gateway.Rates{PerAddress: g.RatePerAddress, PerStream: g.RatePerStream},
		Placement: gateway.Placement(g.Placement), Loads: n.loads, Playing: n.playing, Draining: n.draining.Load,
		Transport: n.server, Logger: n.logger, Registerer: n.registry, Tracer: n.traces.Tracer(),
	}
	if n.turn != nil {
		o.ICEServers = n.turn.Links
	}
	if j := n.settings.JWT; j.Closed() {
		var err error
		if o.Authorize, err = newAuthorize(j, n.logger); err != nil {
			return nil, err
		}
		o.OpenPath = func(asked string) bool {
			return slices.ContainsFunc(j.OpenPaths, func(open string) bool {
				ok, err := path.Match(open, asked)
				return ok && err == nil
			})
		}
		o.SessionKey = n.sessionKey()
	}
	return gateway.New(o), nil
}

// newTURN is where the TURN servers for sessions come from; nil where there are none.
func newTURN(t config.TURN, logger *slog.Logger, registerer prometheus.Registerer) (*iceservers.Servers, error) {
	if len(t.URLs) == 0 && t.AuthURL == nil {
		return nil, nil
	}
	servers, err := iceservers.New(iceservers.Options{
		URLs: t.URLs, Username: t.Username, Credential: string(t.Credential), SecretFile: t.SecretFile, AuthURL: t.AuthURL, TTL: t.TTL,
		Registerer: registerer, Logger: logger,
	})
	if err != nil {
		return nil, fmt.Errorf("TURN servers (SIDESTREAM_TURN_URLS): %w", err)
	}
	return servers, nil
}

// newAuthorize is what judges tokens; nil where nothing does.
func newAuthorize(j config.JWT, logger *slog.Logger) (func(context.Context, string, adapters.Request) error, error) {
	switch {
	case !j.Closed():
		return nil, nil
	case j.WebhookURL != nil:
		return bearer.NewWebhook(j.WebhookURL, nil).Check, nil
	}
	checker, err := bearer.New(bearer.Options{
		KeyFile: j.KeyFile, JWKS: j.JWKSURL, Issuer: j.Issuer, Audience: j.Audience, Logger: logger,
	})
	if err != nil {
		return nil, fmt.Errorf("tokens (SIDESTREAM_JWT_KEY_FILE): %w", err)
	}
	return checker.Check, nil
}

// sessionKey is the key for session URLs, kept so that they outlive the process. Where it cannot be kept they do not.
func (n *node) sessionKey() []byte {
	name := filepath.Join(n.settings.StateDir, "session.key")
	key, err := os.ReadFile(name)
	if err == nil && len(key) == sha256.Size {
		return key
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.logger.Warn("key for session URLs cannot be read; those of before are void", "error", err)
	}
	key = make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails, as its documentation says
	if err := os.WriteFile(name, key, 0o600); err != nil {
		n.logger.Warn("key for session URLs cannot be kept; a restart of the sidecar voids them", "error", err)
	}
	return key
}

// playing is how many play from the server, as far as it says.
func (n *node) playing() (readers int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.reported {
		readers += max(s.Readers, 0)
	}
	return readers
}

// load is what this node has to do, for the other nodes of the cluster.
func (n *node) load() mesh.Load {
	own := n.gateway.Load()
	l := mesh.Load{
		Plays: own.Plays, Publications: own.Publications, MaxPlays: own.MaxPlays, MaxPublications: own.MaxPublications,
	}
	if u := n.settings.Gateway.NodeURL; u != nil {
		l.URL = u.String()
	}
	return l
}

// loads are those of the other nodes of the cluster.
func (n *node) loads() []gateway.NodeLoad {
	var all []gateway.NodeLoad
	for _, l := range n.mesh.Loads() {
		o := gateway.NodeLoad{Node: string(l.Node), At: l.At, Load: gateway.Load{
			Plays: l.Plays, Publications: l.Publications, MaxPlays: l.MaxPlays, MaxPublications: l.MaxPublications,
		}}
		if l.URL != "" {
			if u, err := url.Parse(l.URL); err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
				o.URL = u
			}
		}
		all = append(all, o)
	}
	return all
}
