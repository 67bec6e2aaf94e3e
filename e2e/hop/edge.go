package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

// The servers that there are.
const (
	builtIn  = "pionsfu"
	strict   = "strict"
	mediaMTX = "mediamtx"
)

var edgeNames = []string{builtIn, strict, mediaMTX}

// stream is the name of the one that is measured.
const stream = "demo"

// server is one of the two.
type server struct {
	ingest, egress adapters.Endpoint
	traits         adapters.Traits
	drift          func() time.Duration // of sound that the server counts, at worst; nil: the viewer tells
}

// group runs what a measurement needs, until it ends.
type group struct {
	waiting sync.WaitGroup
	mu      sync.Mutex
	failed  error
}

func (g *group) run(ctx context.Context, what string, run func(context.Context) error) {
	g.waiting.Go(func() {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.failed = errors.Join(g.failed, fmt.Errorf("%s: %w", what, err))
		}
	})
}

func (g *group) err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed
}

// listen opens a socket for all connections of one process-to-be. link says how far a remote is; nil: none is.
func listen(network *wan.Network, link func(netip.AddrPort) wan.Link) (ice.UDPMux, netip.AddrPort, func(), error) {
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, netip.AddrPort{}, nil, err
	}
	at := socket.LocalAddr().(*net.UDPAddr).AddrPort()
	var wire net.PacketConn = socket
	if link != nil {
		wire = network.PacketConn(socket, link)
	}
	mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: wire})
	return mux, at, func() {
		_ = mux.Close()
		_ = wire.Close()
	}, nil
}

func endpoint(base, path string) adapters.Endpoint {
	u, err := url.Parse(base + path)
	if err != nil {
		panic(err) // it was made here
	}
	return adapters.Endpoint{URL: u}
}

// startSFU runs a built-in server.
func startSFU(ctx context.Context, g *group, mux ice.UDPMux) (*server, error) {
	sfu, err := pionsfu.New(pionsfu.Config{Transport: media.Transport{UDPMux: mux, Loopback: true}})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	web := &http.Server{Handler: sfu}
	g.run(ctx, "server", sfu.Run)
	g.run(ctx, "server", func(context.Context) error { return web.Serve(listener) })
	g.run(ctx, "server", func(ctx context.Context) error {
		<-ctx.Done()
		return web.Close()
	})
	base := "http://" + listener.Addr().String()
	return &server{ingest: endpoint(base, "/whip/"+stream), egress: endpoint(base, "/whep/"+stream)}, nil
}

// startStrict runs a server that does with packets as MediaMTX does.
func startStrict(ctx context.Context, g *group) (*server, error) {
	s, err := relaytest.NewRemux(nil, 1200)
	if err != nil {
		return nil, err
	}
	s.Strict()
	g.run(ctx, "server", s.Run)
	return &server{
		ingest: s.Ingest(stream), egress: s.Egress(stream), traits: (&mediamtx.Adapter{}).Traits(),
		drift: func() time.Duration { return s.Taken(stream, webrtc.RTPCodecTypeAudio).Drift },
	}, nil
}

// startMediaMTX runs a real MediaMTX that takes the clocks of what is published for its own.
func startMediaMTX(ctx context.Context, g *group, binary string) (*server, error) {
	if binary == "" {
		return nil, errors.New("no MediaMTX: name its binary by -mediamtx or MEDIAMTX_BIN")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		return nil, err
	}
	settings, err := os.CreateTemp("", "mediamtx-*.yml")
	if err != nil {
		return nil, err
	}
	defer settings.Close()           //nolint:errcheck // it is read by name
	defer os.Remove(settings.Name()) //nolint:errcheck // best effort
	if _, err := settings.WriteString("pathDefaults:\n  useAbsoluteTimestamp: yes\npaths:\n  all_others:\n"); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, settings.Name())
	cmd.Env = append(os.Environ(), "MTX_LOGLEVEL=error", "MTX_WEBRTCADDRESS="+address, "MTX_WEBRTCLOCALUDPADDRESS="+address,
		"MTX_WEBRTCIPSFROMINTERFACES=no", "MTX_WEBRTCADDITIONALHOSTS=127.0.0.1", "MTX_RTSP=no", "MTX_RTMP=no", "MTX_HLS=no",
		"MTX_SRT=no", "MTX_MOQ=no")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	g.run(ctx, "MediaMTX", func(context.Context) error { return cmd.Wait() })
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
			break
		}
		if err := pause(ctx, g); err != nil {
			return nil, err
		}
	}
	adapter, err := mediamtx.New(mediamtx.Config{BaseURL: "http://" + address})
	if err != nil {
		return nil, err
	}
	return &server{ingest: adapter.Ingest(stream), egress: adapter.Egress(stream), traits: adapter.Traits()}, nil
}

// pause waits a moment, and says whether there is anything left to wait for.
func pause(ctx context.Context, g *group) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(50 * time.Millisecond):
		return g.err()
	}
}
