package wan

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// Network keeps the packets and streams that are under way on emulated links. Make it with [NewNetwork], wrap sockets by
// its methods, and let Run go as long as they are in use.
type Network struct {
	wake chan struct{} // capacity 1: there is something earlier to do than Run knows

	hosting sync.Mutex // one host is made at a time

	mu       sync.Mutex
	transit  transit
	attended map[attended]struct{}
	fresh    []attended // made, not yet attended by Run
	numbers  int        // given to hosts
	running  bool
	ended    bool
}

// attended is what Run carries for, both ways, until it is aborted or ends by itself.
type attended interface {
	carryOut()
	carryIn()
	abort()
}

// NewNetwork returns a network with nothing in it.
func NewNetwork() *Network {
	return &Network{wake: make(chan struct{}, 1), attended: make(map[attended]struct{})}
}

// Run lets packets go when they are due and carries the bytes of streams. What is sent before it runs waits; when ctx
// ends, packets under way are lost, streams are closed, and Run returns ctx's error after all it started has ended. It
// should outlive whatever says goodbye over the network. It may be called once.
func (n *Network) Run(ctx context.Context) error {
	n.mu.Lock()
	again := n.running || n.ended
	n.running = true
	n.mu.Unlock()
	if again {
		return errors.New("run network: it runs already or has ended")
	}

	var attendants sync.WaitGroup
	defer attendants.Wait()
	defer n.end()

	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var due []*packet
	for {
		var fresh []attended
		var next time.Time
		due, fresh, next = n.collect(time.Now(), due[:0])
		for _, a := range fresh {
			attendants.Go(a.carryOut)
			attendants.Go(a.carryIn)
		}
		for _, p := range due {
			p.to.release(p)
		}
		if len(due) > 0 {
			continue // releasing took time: look again before sleeping
		}
		timer.Reset(sleep(next))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.wake:
		case <-timer.C:
		}
	}
}

// sleep is how long to wait for a moment; an hour where there is none.
func sleep(until time.Time) time.Duration {
	if until.IsZero() {
		return time.Hour
	}
	return time.Until(until)
}

// collect takes out what is to be done now, and says when there will be more.
func (n *Network) collect(now time.Time, due []*packet) ([]*packet, []attended, time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := n.transit.due(now); p != nil; p = n.transit.due(now) {
		due = append(due, p)
	}
	fresh := n.fresh
	n.fresh = nil
	return due, fresh, n.transit.next()
}

// send hands over a packet that is due later. It becomes the network's.
func (n *Network) send(p *packet) {
	n.mu.Lock()
	if n.ended {
		n.mu.Unlock()
		p.free()
		return
	}
	earliest := n.transit.add(p)
	n.mu.Unlock()
	if earliest {
		n.nudge()
	}
}

func (n *Network) nudge() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// attend has Run carry for something new. Where the network has ended it aborts that and says false.
func (n *Network) attend(a attended) bool {
	n.mu.Lock()
	ended := n.ended
	if !ended {
		n.attended[a] = struct{}{}
		n.fresh = append(n.fresh, a)
	}
	n.mu.Unlock()
	if ended {
		a.abort()
		return false
	}
	n.nudge()
	return true
}

func (n *Network) forget(a attended) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attended, a)
}

// number is one higher each time.
func (n *Network) number() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.numbers++
	return n.numbers
}

func (n *Network) end() {
	n.mu.Lock()
	n.ended = true
	all := n.attended
	n.attended, n.fresh = make(map[attended]struct{}), nil
	n.transit.clear()
	n.mu.Unlock()
	for a := range all {
		a.abort()
	}
}

// packet is a datagram under way. Its buffer comes from a pool and goes back there.
type packet struct {
	arrival  time.Time
	sequence uint64 // keeps the order of packets that arrive at the same moment
	data     []byte
	address  netip.AddrPort
	to       releaser
}

// releaser takes a packet that has arrived; the packet becomes its own.
type releaser interface{ release(p *packet) }

var packets = sync.Pool{New: func() any { return &packet{data: make([]byte, 0, 1500)} }}

func newPacket(data []byte, address netip.AddrPort, arrival time.Time) *packet {
	p := packets.Get().(*packet)
	p.data = append(p.data[:0], data...)
	p.address, p.arrival = address, arrival
	return p
}

func (p *packet) free() {
	p.to = nil
	packets.Put(p)
}

// transit holds packets by their moment of arrival: a binary heap. Not safe for concurrent use.
type transit struct {
	heap     []*packet
	sequence uint64
}

func (t *transit) before(i, j int) bool {
	a, b := t.heap[i], t.heap[j]
	if a.arrival.Equal(b.arrival) {
		return a.sequence < b.sequence
	}
	return a.arrival.Before(b.arrival)
}

// add says whether the packet is now the first to arrive.
func (t *transit) add(p *packet) bool {
	t.sequence++
	p.sequence = t.sequence
	t.heap = append(t.heap, p)
	i := len(t.heap) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !t.before(i, parent) {
			break
		}
		t.heap[i], t.heap[parent] = t.heap[parent], t.heap[i]
		i = parent
	}
	return i == 0
}

// due takes out the first packet if it has arrived.
func (t *transit) due(now time.Time) *packet {
	if len(t.heap) == 0 || t.heap[0].arrival.After(now) {
		return nil
	}
	first := t.heap[0]
	end := len(t.heap) - 1
	t.heap[0], t.heap[end] = t.heap[end], nil
	t.heap = t.heap[:end]
	for i := 0; ; {
		child := 2*i + 1
		if child >= end {
			return first
		}
		if child+1 < end && t.before(child+1, child) {
			child++
		}
		if !t.before(child, i) {
			return first
		}
		t.heap[i], t.heap[child] = t.heap[child], t.heap[i]
		i = child
	}
}

// next is when the first packet arrives; zero where there is none.
func (t *transit) next() time.Time {
	if len(t.heap) == 0 {
		return time.Time{}
	}
	return t.heap[0].arrival
}

func (t *transit) clear() {
	for _, p := range t.heap {
		p.free()
	}
	t.heap = nil
}
