package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/config"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

func TestClusterFingerprint(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	one, err := clusterFingerprint(file("one", "authority one\n"))
	if err != nil || len(one) == 0 {
		t.Fatalf("%x, %v", one, err)
	}
	if same, _ := clusterFingerprint(file("same", "authority one")); !bytes.Equal(one, same) {
		t.Error("a line end makes another cluster")
	}
	if two, _ := clusterFingerprint(file("two", "authority two")); bytes.Equal(one, two) {
		t.Error("two clusters are one")
	}
	for _, none := range []string{"", filepath.Join(dir, "none"), file("empty", "\n")} {
		if got, err := clusterFingerprint(none); got != nil || err != nil {
			t.Errorf("%q: %x, %v", none, got, err)
		}
	}
	if _, err := clusterFingerprint(dir); err == nil {
		t.Error("a directory is a file")
	}
}

// watched is a media server of which only its Watch is asked: one answer for each call, then silence.
type watched struct {
	adapters.Adapter
	answers []func(report func([]adapters.Stream)) error
}

func (w *watched) Name() string { return "fake" }

func (w *watched) Watch(ctx context.Context, report func([]adapters.Stream)) error {
	if len(w.answers) == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	answer := w.answers[0]
	w.answers = w.answers[1:]
	return answer(report)
}

// clearing is a server that ends publications.
type clearing struct {
	watched
	ended []adapters.Stream
}

func (e *clearing) End(_ context.Context, s adapters.Stream) error {
	e.ended = append(e.ended, s)
	return nil
}

// What a relay of a process before left behind is ended, though nothing is remembered of it; what this process carries is not.
func TestStraysAreEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		known := catalogue.New(catalogue.Node{ID: "a", Incarnation: 1, Cluster: "a"})
		known.Carry("own")
		server := &clearing{watched: watched{answers: []func(func([]adapters.Stream)) error{
			func(report func([]adapters.Stream)) error {
				report([]adapters.Stream{
					{ID: "left", Session: "1", Relayed: true}, {ID: "own", Session: "2", Relayed: true}, {ID: "show", Session: "3"},
				})
				return errors.New("lost")
			},
		}}}
		n := &node{
			logger: slog.New(slog.DiscardHandler), adapter: server, known: known,
			relays: relay.NewManager(relay.ManagerOptions{Catalogue: known}),
			mesh:   mesh.New(mesh.Options{Catalogue: known, Security: mesh.Plaintext()}),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- n.watchServer(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if d := cmp.Diff([]adapters.Stream{{ID: "left", Session: "1", Relayed: true}}, server.ended); d != "" {
			t.Error(d)
		}
		var announced []adapters.StreamID
		for _, h := range known.Announcement("b") {
			announced = append(announced, h.Stream)
		}
		if d := cmp.Diff([]adapters.StreamID{"show"}, announced); d != "" {
			t.Error(d)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// What a server that did not run before has is new; what one has that could not be asked before is not known to be. What
// a server had that does not run any more is gone.
func TestWatchServer(t *testing.T) {
	refused := func(func([]adapters.Stream)) error {
		return fmt.Errorf("watch: %w", syscall.ECONNREFUSED)
	}
	lost := func(func([]adapters.Stream)) error { return errors.New("no answer") }
	has := func(report func([]adapters.Stream)) error {
		report([]adapters.Stream{{ID: "show", Session: "1"}})
		return errors.New("lost")
	}
	type answers = []func(func([]adapters.Stream)) error
	for name, tt := range map[string]struct {
		answers answers
		want    map[adapters.StreamID]uint64 // epochs
	}{
		"runs already":              {answers{has}, map[adapters.StreamID]uint64{"show": 0}},
		"starts later":              {answers{refused, has}, map[adapters.StreamID]uint64{"show": 1}},
		"answers later":             {answers{lost, has}, map[adapters.StreamID]uint64{"show": 0}},
		"is gone":                   {answers{has, refused}, map[adapters.StreamID]uint64{}},
		"does not answer any more":  {answers{has, lost}, map[adapters.StreamID]uint64{"show": 0}},
		"is gone for a moment only": {answers{refused, has, refused, has}, map[adapters.StreamID]uint64{"show": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				known := catalogue.New(catalogue.Node{ID: "a", Incarnation: 1, Cluster: "a"})
				n := &node{
					logger: slog.New(slog.DiscardHandler), adapter: &watched{answers: tt.answers}, known: known,
					relays: relay.NewManager(relay.ManagerOptions{Catalogue: known}),
					mesh:   mesh.New(mesh.Options{Catalogue: known, Security: mesh.Plaintext()}),
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- n.watchServer(ctx) }()
				time.Sleep(time.Minute) // all answers are asked for
				synctest.Wait()
				got := map[adapters.StreamID]uint64{}
				for _, h := range known.Announcement("b") {
					got[h.Stream] = h.Epoch
				}
				if d := cmp.Diff(tt.want, got); d != "" {
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

func TestSupersededIsSaidOnce(t *testing.T) {
	known := catalogue.New(catalogue.Node{ID: "a", Incarnation: 1, Cluster: "a"})
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	var beaten superseded
	follow := func(count, lines int) {
		t.Helper()
		state, _ := known.Snapshot()
		if n := beaten.follow(state, logger); n != count || strings.Count(log.String(), "superseded") != lines {
			t.Errorf("%d, want %d; %d lines wanted: %s", n, count, lines, log.String())
		}
	}
	elsewhere := func(holds ...catalogue.Hold) {
		t.Helper()
		if err := known.SetPeer(catalogue.Node{ID: "b", Incarnation: 1, Cluster: "b"}, holds); err != nil {
			t.Fatal(err)
		}
	}
	if err := known.SetLocal([]adapters.Stream{{ID: "show", Session: "1"}}); err != nil {
		t.Fatal(err)
	}
	follow(0, 0)
	elsewhere(catalogue.Hold{Stream: "show", Epoch: 7, Path: []catalogue.NodeID{"b"}})
	follow(1, 1)
	follow(1, 1)
	elsewhere(catalogue.Hold{Stream: "show", Epoch: 8, Path: []catalogue.NodeID{"b"}})
	follow(1, 2)
	elsewhere()
	follow(0, 2)
}

// Each kind of peer setting is a source of its own, under the name that status and metrics show.
func TestSourcesOfPeers(t *testing.T) {
	settings := config.Default()
	settings.Peer.Service, settings.Peer.DNS = "sidestream-peers", []string{"peers.example"}
	settings.Peer.File, settings.Peer.Static = "/peers", []string{"10.0.0.1:18443"}
	for _, tt := range []struct {
		settings config.Config
		want     []string
	}{
		{config.Default(), nil},
		{settings, []string{"endpointslice", "dns", "file", "static"}},
	} {
		n := &node{settings: tt.settings, logger: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
		if err := n.openDiscovery(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range n.sources.Status() {
			got = append(got, s.Source)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Error(d)
		}
	}
	settings.Peer.DNS = []string{"10.0.0.1:18443"}
	n := &node{settings: settings, logger: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
	if err := n.openDiscovery(); err == nil || !strings.Contains(err.Error(), "SIDESTREAM_PEER_DNS") {
		t.Errorf("a name that is none: %v", err)
	}
}
