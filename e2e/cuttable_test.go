package e2e

import (
	"net"
	"sync/atomic"
	"testing"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// cuttable is the UDP side of a client whose cable can be pulled.
type cuttable struct {
	*net.UDPConn
	mux  ice.UDPMux
	gone atomic.Bool
}

func newCuttable(t *testing.T) *cuttable {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	c := &cuttable{UDPConn: socket}
	c.mux = ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: c})
	t.Cleanup(func() { _ = c.mux.Close() })
	return c
}

func (c *cuttable) newPeerConnection(config webrtc.Configuration) (*webrtc.PeerConnection, error) {
	return media.Transport{Loopback: true, UDPMux: c.mux}.NewPeerConnection(config)
}

// cut lets nothing leave any more.
func (c *cuttable) cut() { c.gone.Store(true) }

// WriteTo implements net.PacketConn.
func (c *cuttable) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.gone.Load() {
		return len(b), nil
	}
	return c.UDPConn.WriteTo(b, to)
}
