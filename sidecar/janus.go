package main

import (
	"net"
	"net/netip"
	"net/url"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/janus"
	"github.com/sidestream-dev/sidestream/sidecar/gateway"
)

// janusPort is that of Janus' HTTP API, unless its configuration says otherwise.
const janusPort = "8088"

// openJanus makes the adapter of a Janus, whose WHIP and WHEP the gateway then has beside all that Janus serves itself.
func (n *node) openJanus() (adapters.Adapter, *url.URL, error) {
	s := n.settings.Adapter
	target := s.URL
	if target == nil {
		pod := n.settings.PodIP
		if !pod.IsValid() {
			pod = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		target = &url.URL{Scheme: "http", Host: net.JoinHostPort(pod.String(), janusPort), Path: janus.DefaultBasePath}
	}
	c := janus.Config{
		BaseURL: target.String(), APISecret: string(s.Token), Token: string(s.Janus.AuthToken),
		AdminKey: string(s.Janus.AdminKey), RoomSecret: string(s.Janus.RoomSecret), RoomPIN: string(s.Janus.RoomPIN),
		AdminSecret: string(s.Janus.AdminSecret), PublishToken: string(s.Janus.PublishToken), PlayToken: string(s.Janus.PlayToken),
		Logger: n.logger,
	}
	if s.Janus.AdminURL != nil {
		c.AdminURL = s.Janus.AdminURL.String()
	}
	adapter, err := janus.New(c)
	if err != nil {
		return nil, nil, err
	}
	n.facade, n.server = adapter, adapter.Transport(gateway.NewTransport())
	return adapter, target, nil
}
