//go:build linux

// Package inside lets this process publish, play and ask as if it were in a [wan.Host]: its sockets are there, its goroutines
// here, so that a test has many viewers behind emulated links without a process for each.
package inside

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/pion/transport/v4"
	"github.com/pion/transport/v4/stdnet"

	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// Dial connects from the host. It takes addresses, not names.
func Dial(h *wan.Host) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = h.Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// Listen listens for TCP in the host.
func Listen(h *wan.Host, address string) (l net.Listener, err error) {
	err = h.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// HTTP asks from the host. Each request has a connection of its own; its context bounds it.
func HTTP(h *wan.Host) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: Dial(h), DisableKeepAlives: true}}
}

// Client publishes and plays from the host.
func Client(h *wan.Host) (*whip.Client, error) {
	network, err := newNetwork(h)
	if err != nil {
		return nil, err
	}
	web := HTTP(h)
	web.Timeout = time.Minute // a path that loses all is no reason to wait for ever
	return &whip.Client{HTTP: web, NewPeerConnection: media.Transport{Net: network}.NewPeerConnection}, nil
}

// network opens pion's sockets in the host.
type network struct {
	*stdnet.Net
	host *wan.Host
}

var _ transport.Net = (*network)(nil)

func newNetwork(h *wan.Host) (*network, error) {
	n := &network{host: h}
	err := h.Do(func() (err error) { // it looks at the interfaces
		n.Net, err = stdnet.NewNet()
		return err
	})
	return n, err
}

func (n *network) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = n.host.Do(func() (err error) {
		c, err = n.Net.ListenPacket(network, address)
		return err
	})
	return c, err
}

func (n *network) ListenUDP(network string, local *net.UDPAddr) (c transport.UDPConn, err error) {
	err = n.host.Do(func() (err error) {
		c, err = n.Net.ListenUDP(network, local)
		return err
	})
	return c, err
}

func (n *network) ListenTCP(network string, local *net.TCPAddr) (l transport.TCPListener, err error) {
	err = n.host.Do(func() (err error) {
		l, err = n.Net.ListenTCP(network, local)
		return err
	})
	return l, err
}

func (n *network) Dial(network, address string) (c net.Conn, err error) {
	err = n.host.Do(func() (err error) {
		c, err = n.Net.Dial(network, address)
		return err
	})
	return c, err
}

func (n *network) DialUDP(network string, local, remote *net.UDPAddr) (c transport.UDPConn, err error) {
	err = n.host.Do(func() (err error) {
		c, err = n.Net.DialUDP(network, local, remote)
		return err
	})
	return c, err
}

func (n *network) DialTCP(network string, local, remote *net.TCPAddr) (c transport.TCPConn, err error) {
	err = n.host.Do(func() (err error) {
		c, err = n.Net.DialTCP(network, local, remote)
		return err
	})
	return c, err
}

func (n *network) CreateDialer(d *net.Dialer) transport.Dialer { return dialer{n.host, d} }

func (n *network) CreateListenConfig(c *net.ListenConfig) transport.ListenConfig {
	return listenConfig{n.host, c}
}

type dialer struct {
	host *wan.Host
	*net.Dialer
}

func (d dialer) Dial(network, address string) (c net.Conn, err error) {
	err = d.host.Do(func() (err error) {
		c, err = d.Dialer.Dial(network, address)
		return err
	})
	return c, err
}

type listenConfig struct {
	host   *wan.Host
	config *net.ListenConfig
}

func (c listenConfig) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	err = c.host.Do(func() (err error) {
		l, err = c.config.Listen(ctx, network, address)
		return err
	})
	return l, err
}

func (c listenConfig) ListenPacket(ctx context.Context, network, address string) (p net.PacketConn, err error) {
	err = c.host.Do(func() (err error) {
		p, err = c.config.ListenPacket(ctx, network, address)
		return err
	})
	return p, err
}
