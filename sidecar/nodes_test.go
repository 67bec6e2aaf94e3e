package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/config"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// runNodes runs whole nodes, each with the built-in server, by their ids and clusters, and waits until all know each other. dial is how
// they reach each other; nil: by the machine's network.
func runNodes(t *testing.T, clusters map[string]string, dial mesh.DialFunc) map[string]*node {
	t.Helper()
	nodes := map[string]*node{}
	var addresses []string
	for id, cluster := range clusters {
		settings, err := config.Decode([]string{
			"SIDESTREAM_NODE_ID=" + id, "SIDESTREAM_CLUSTER=" + cluster, "SIDESTREAM_STATE_DIR=" + t.TempDir(),
			"SIDESTREAM_PEER_SECURITY=plaintext", "SIDESTREAM_GATEWAY_LISTEN=127.0.0.1:0", "SIDESTREAM_PEER_LISTEN=127.0.0.1:0",
			"SIDESTREAM_ADMIN_LISTEN=127.0.0.1:0", "SIDESTREAM_SFU_LISTEN=127.0.0.1:0", "SIDESTREAM_SFU_MEDIA_LISTEN=127.0.0.1:0",
			"SIDESTREAM_SFU_LOOPBACK=true", "SIDESTREAM_GATEWAY_TRUSTED_PROXIES=127.0.0.0/8",
		})
		if err != nil {
			t.Fatal(err)
		}
		transport := media.Transport{Loopback: true}
		n, err := newNode(settings, surroundings{dial: dial, sfu: transport, relay: transport}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		nodes[id] = n
		addresses = append(addresses, n.listeners.peer.Addr().String())
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, n := range nodes {
		n.settings.Peer.Static = addresses
		running.Go(func() {
			if err := n.run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("node %s: %v", n.state.Node, err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for _, n := range nodes {
		eventually(t, "all nodes are connected and ready", func() bool {
			connected := 0
			for _, p := range n.mesh.Peers() {
				if p.Connected && p.ID != n.state.Node {
					connected++
				}
			}
			return connected == len(nodes)-1 && n.gateway.Ready(ctx) == nil
		})
	}
	return nodes
}

// eventually asks until it is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !so() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// publishAt publishes the test clip at a node until the test ends, and waits until all nodes know it.
func publishAt(t *testing.T, at *node, stream string, all map[string]*node) {
	t.Helper()
	source, err := testsource.New(testsource.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var publishing sync.WaitGroup
	publishing.Go(func() {
		_ = source.Publish(ctx, loopbackClient(), adapters.Endpoint{URL: gatewayURL(at, "/whip/"+stream)})
	})
	t.Cleanup(func() {
		cancel()
		publishing.Wait()
	})
	for _, n := range all {
		eventually(t, "the stream is known", func() bool {
			known, _ := n.known.Snapshot()
			winner, ok := known.Winner(adapters.StreamID(stream))
			return ok && winner.Origin == at.state.Node
		})
	}
}

func loopbackClient() *whip.Client {
	return &whip.Client{
		HTTP:              &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
		NewPeerConnection: media.Transport{Loopback: true}.NewPeerConnection,
	}
}

func gatewayURL(n *node, path string) *url.URL {
	return &url.URL{Scheme: "http", Host: n.listeners.gateway.Addr().String(), Path: path}
}
