package bed

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// ports gives out free ports of 127.0.0.1. They lie below those that the kernel picks for outgoing connections, so that
// nobody takes one while its process is down; two beds at a time are kept apart by chance.
type ports struct {
	mu    sync.Mutex
	given map[int]bool
}

const (
	firstPort = 12000
	lastPort  = 32000
)

// take returns a port as host:port.
func (p *ports) take() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var last error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if p.given[port] {
			continue
		}
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", address)
		if err != nil {
			last = err
			continue
		}
		_ = l.Close()
		if p.given == nil {
			p.given = make(map[int]bool)
		}
		p.given[port] = true
		return address, nil
	}
	return "", fmt.Errorf("find a free port: %w", last)
}
