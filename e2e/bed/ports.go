package bed

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
)

// ports gives out free ports of 127.0.0.1 for TCP. They lie below those that the kernel picks for outgoing connections, so
// that nobody takes one while its process is down. The UDP port of the same number is held meanwhile: it tells other beds,
// also of other processes, that the port is taken, and the kernel lets go of it however this process ends.
type ports struct{ held []io.Closer }

const (
	firstPort = 12000
	lastPort  = 32000
)

// take returns a port as host:port.
func (p *ports) take() (string, error) {
	var last error
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(firstPort+rand.IntN(lastPort-firstPort)))
		hold, err := net.ListenPacket("udp", address)
		if err != nil {
			last = err
			continue
		}
		probe, err := net.Listen("tcp", address)
		if err != nil {
			last = errors.Join(err, hold.Close())
			continue
		}
		p.held = append(p.held, hold)
		return address, probe.Close()
	}
	return "", fmt.Errorf("find a free port: %w", last)
}

// release gives all ports back.
func (p *ports) release() {
	for _, h := range p.held {
		_ = h.Close()
	}
	p.held = nil
}
