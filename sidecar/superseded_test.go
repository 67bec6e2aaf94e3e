package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/config"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// ending is a server that ends publications, from the second attempt on.
type ending struct {
	watched
	mu    sync.Mutex
	asked []string
	done  func()
}

func (e *ending) End(_ context.Context, s adapters.Stream) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = append(e.asked, s.Session)
	if len(e.asked) == 1 {
		return errors.New("busy")
	}
	e.done()
	return nil
}

func (e *ending) sessions() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string{}, e.asked...)
}

// TestEndSuperseded: a publication that stays beaten is ended where the settings say so, and tried again where that fails.
func TestEndSuperseded(t *testing.T) {
	for name, tt := range map[string]struct {
		policy config.Supersede
		ender  bool
		want   []string
	}{
		"keep":                    {config.Keep, true, []string{}},
		"end":                     {config.End, true, []string{"mine", "mine"}},
		"the server cannot":       {config.End, false, []string{}},
		"beaten for a moment":     {config.End, true, []string{}},
		"another policy decides":  {config.End, true, []string{}},
		"another policy, but end": {config.End, true, []string{"mine", "mine"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				known := catalogue.New(catalogue.Node{ID: "a", Incarnation: 1, Cluster: "a"})
				known.SetPolicy(catalogue.Policy{Oldest: name == "another policy decides"})
				server := &ending{}
				n := &node{
					logger: slog.New(slog.DiscardHandler), known: known, adapter: server,
					relays:     relay.NewManager(relay.ManagerOptions{Catalogue: known}),
					superseded: newSupersededMetrics(prometheus.NewRegistry()),
				}
				n.settings.Publish.OnSupersede = tt.policy
				if !tt.ender {
					n.adapter = &server.watched
				}
				server.done = func() { n.report(nil) }
				n.report(nil)
				n.report([]adapters.Stream{{ID: "show", Session: "mine"}, {ID: "other", Session: "1"}})
				elsewhere := func(holds ...catalogue.Hold) {
					if err := known.SetPeer(catalogue.Node{ID: "b", Cluster: "b"}, holds); err != nil {
						t.Error(err)
					}
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- n.endSuperseded(ctx) }()
				elsewhere(catalogue.Hold{Stream: "show", Epoch: 9, Path: []catalogue.NodeID{"b"}, Oldest: name == "another policy, but end"})
				time.Sleep(4 * time.Second)
				if got := server.sessions(); len(got) > 0 {
					t.Errorf("ended at once: %v", got)
				}
				if name == "beaten for a moment" {
					elsewhere()
				}
				time.Sleep(time.Minute)
				if d := cmp.Diff(tt.want, server.sessions()); d != "" {
					t.Error(d)
				}
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		})
	}
}
