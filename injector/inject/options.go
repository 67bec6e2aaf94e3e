package inject

import (
	"fmt"
	"net"
	"strconv"

	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// With are the options with what all sidecars are told, and the ports that this says. What would be wrong in every pod is an
// error.
func (o Options) With(sidecar config.Config) (Options, error) {
	o.Sidecar = sidecar
	for _, l := range []struct {
		address string
		to      *int32
	}{
		{sidecar.Gateway.Listen, &o.Ports.Gateway}, {sidecar.Peer.Listen, &o.Ports.Peer}, {sidecar.Admin.Listen, &o.Ports.Admin},
	} {
		host, port, err := net.SplitHostPort(l.address)
		n, errPort := strconv.ParseUint(port, 10, 16)
		if err != nil || errPort != nil || host != "" || n < 1024 {
			return o, fmt.Errorf("sidecars are to listen at %q: write a port from 1024 on without a host, such as :18080", l.address)
		}
		*l.to = int32(n)
	}
	for _, v := range sidecar.Env() {
		if v.Secret {
			return o, fmt.Errorf("%s would stand in every pod: put it into a Secret of the pods' namespaces, and name that as the peers' "+
				"Secret or in the pods' annotations", v.Name)
		}
	}
	probe := sidecar
	if probe.Peer.Security == config.SharedKey {
		probe.Peer.KeyFile = "/key" // mounted from PeerSecret
	}
	return o, probe.Validate()
}

// UsualPort is where a make of media server speaks HTTP unless it is told otherwise, by the name of its adapter; 0: there is
// no usual one.
func UsualPort(adapter string) int32 { return servers[adapter].port }
