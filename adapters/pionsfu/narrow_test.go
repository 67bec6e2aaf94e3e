package pionsfu

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// A viewer whose path becomes too narrow for its layer gets one that fits, without a picture lost for good, and the better one
// again when the path carries it.
func TestNarrowPath(t *testing.T) {
	if os.Getenv("E2E") == "" {
		t.Skip("takes up to minutes, and a machine with time to spare: run with E2E=1; make e2e has a browser on such a path")
	}
	t.Parallel()
	network := wan.NewNetwork()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- network.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	link := wan.NewLink(1, wan.Params{})
	wire := network.PacketConn(socket, func(netip.AddrPort) wan.Link { return wan.Link{Out: link.Out} })
	mux := ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: wire})
	t.Cleanup(func() { _ = mux.Close(); _ = wire.Close() })
	s := run(t, Config{Transport: media.Transport{UDPMux: mux, Loopback: true}})
	p := s.simulcast(t, "simulcast", "l", "m", "h")
	player := s.playRaw(t, "simulcast", webrtc.RTPCodecTypeVideo)
	until := func(rid string) {
		t.Helper()
		for began := time.Now(); ; {
			if p.tracks[player.next(t).Payload[4]].RID() == rid {
				return
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("layer %s does not come", rid)
			}
		}
	}
	until("h")
	link.Out.Set(wan.Params{Rate: 400_000, Delay: 10 * time.Millisecond})
	until("m")
	link.Out.Set(wan.Params{Delay: 10 * time.Millisecond})
	until("h")
}
