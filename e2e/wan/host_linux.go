package wan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// pause is how long a host rests after it has taken or delivered packets, so that in dense traffic it wakes up for a
// handful of them instead of each. It is the most by which a machine with time to spare is late at either end.
const pause = 200 * time.Microsecond

// Host is a machine of its own to the programs that run in it: a network namespace whose only way out is the [Network],
// by one interface with an IPv4 and an IPv6 address. Make it with [Network.Host] and close it.
//
// Every two hosts of a network have a link, perfect until [Link.Set] or [Host.Join] make it otherwise. Packets to
// addresses that no host has are lost. They carry whatever IP does; TCP feels loss and reordering itself here, unlike in a [Conn].
//
// Go's goroutines wander between threads, and only a thread is in a namespace: open sockets in [Host.Do], start programs
// by [Host.Start]. A namespace also has a name for `ip netns exec NAME` and `nsenter --net=/var/run/netns/NAME`. It is
// gone with this process, however that ends.
type Host struct {
	// Name is the one given; Namespace is what iproute2 knows it by; the addresses are unique in the network. None of
	// them changes.
	Name, Namespace string
	IPv4, IPv6      netip.Addr

	network *Network
	number  int
	ns      *namespace
	tun     *os.File
	rest    *alarm // of carryOut
	alarm   *alarm // of carryIn

	mu       sync.Mutex
	routes   map[netip.Addr]route
	arriving transit
	closed   bool
}

// route is where a packet goes and by what link.
type route struct {
	to   *Host
	link Link
}

// Host makes a host. Where the machine does not allow it (it takes root and /dev/net/tun) the error is
// [errors.ErrUnsupported]. The hosts of one network are numbered, which gives them their addresses (10.199.0.1,
// fd00:199::1 and so on) and seeds the links between them: the same order gives the same accidents.
func (n *Network) Host(name string) (*Host, error) {
	if name == "" || strings.ContainsFunc(name, unfit) {
		return nil, fmt.Errorf("make host %q: a name of letters, digits, dots and dashes is wanted", name)
	}
	n.hosting.Lock() // each new host has its links to all before it
	defer n.hosting.Unlock()
	h, err := n.makeHost(name)
	if err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	if !n.attend(h) {
		return nil, fmt.Errorf("make host %s: the network has ended", name)
	}
	n.connect(h)
	return h, nil
}

func unfit(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_", r))
}

func (n *Network) makeHost(name string) (*Host, error) {
	number := n.number()
	if number > maxHosts {
		return nil, fmt.Errorf("a network has %d addresses", maxHosts)
	}
	h := &Host{Name: name, network: n, number: number, routes: make(map[netip.Addr]route)}
	h.IPv4, h.IPv6 = hostAddresses(number)
	ns, err := newNamespace(name)
	if err != nil {
		return nil, err
	}
	h.ns, h.Namespace = ns, ns.name
	err = ns.do(func() (err error) {
		h.tun, err = newTUN(h.IPv4, h.IPv6)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	if h.alarm, err = newAlarm(); err != nil {
		return nil, errors.Join(err, h.tun.Close(), ns.close())
	}
	if h.rest, err = newAlarm(); err != nil {
		return nil, errors.Join(err, h.alarm.close(), h.tun.Close(), ns.close())
	}
	return h, nil
}

const maxHosts = 1<<16 - 2

func hostAddresses(number int) (v4, v6 netip.Addr) {
	low := [2]byte{}
	binary.BigEndian.PutUint16(low[:], uint16(number))
	return netip.AddrFrom4([4]byte{10, 199, low[0], low[1]}),
		netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x01, 3: 0x99, 14: low[0], 15: low[1]})
}

// connect gives a new host its links to those that are there.
func (n *Network) connect(h *Host) {
	for _, other := range n.hosts() {
		if other != h {
			seed := uint64(min(h.number, other.number))<<32 | uint64(max(h.number, other.number))
			h.Join(other, NewLink(seed, Params{}))
		}
	}
}

// hosts are those that are open.
func (n *Network) hosts() []*Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	var hosts []*Host
	for a := range n.attended {
		if h, ok := a.(*Host); ok {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Join puts a link between two hosts of a network, as h sees it, in place of the one they had. Links may share a
// direction, and with it the capacity. It is for links with a seed or a share; to change one, set it.
func (h *Host) Join(other *Host, link Link) {
	h.route(other, link)
	other.route(h, link.Reversed())
}

func (h *Host) route(to *Host, link Link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.routes[to.IPv4] = route{to, link}
	h.routes[to.IPv6] = route{to, link}
}

// Link returns the link to another host of the same network, as h sees it: what Out counts has left h.
func (h *Host) Link(to *Host) Link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.routes[to.IPv4].link
}

// Do calls f on a thread inside the host and returns its error: the sockets that f opens and the programs that it starts
// belong to the host for good. What f leaves to other goroutines does not happen there, such as looking up a name.
func (h *Host) Do(f func() error) error {
	var failed error
	if err := h.ns.do(func() error { failed = f(); return nil }); err != nil {
		return errors.Join(failed, fmt.Errorf("enter host %s: %w", h.Name, err))
	}
	return failed
}

// Start starts a command inside the host, in place of its own Start. It is killed when this process ends without having
// waited for it, so that nothing is left of the host then.
func (h *Host) Start(cmd *exec.Cmd) error {
	attributes := syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		attributes = *cmd.SysProcAttr
	}
	attributes.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = &attributes
	return h.Do(func() error { return ordinarily(cmd.Start) })
}

// Close removes the host. Sockets and programs in it go on, but nobody hears them. Packets under way to it are lost.
func (h *Host) Close() error {
	h.mu.Lock()
	again := h.closed
	h.closed = true
	h.arriving.clear()
	h.mu.Unlock()
	if again {
		return nil
	}
	h.network.forget(h)
	for _, other := range h.network.hosts() {
		other.unroute(h)
	}
	if err := errors.Join(h.tun.Close(), h.rest.close(), h.alarm.close(), h.ns.close()); err != nil {
		return fmt.Errorf("close host %s: %w", h.Name, err)
	}
	return nil
}

func (h *Host) unroute(to *Host) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.routes, to.IPv4)
	delete(h.routes, to.IPv6)
}

// abort is what the end of the network does.
func (h *Host) abort() { _ = h.Close() }

// carryOut takes what is sent in the host to the links.
func (h *Host) carryOut() {
	raw, err := h.tun.SyscallConn()
	if err != nil {
		return
	}
	buffer := make([]byte, 1<<16)
	for {
		var failed error
		if err := raw.Read(func(fd uintptr) bool {
			failed = h.drain(int(fd), buffer)
			return failed != syscall.EAGAIN //nolint:errorlint // it is the number
		}); err != nil || failed != nil {
			return
		}
		h.rest.set(time.Now().Add(pause))
		if !h.rest.wait() {
			return
		}
	}
}

// drain sends all that is there to be sent; it fails when that is nothing.
func (h *Host) drain(fd int, buffer []byte) error {
	for i := 0; ; i++ {
		n, err := syscall.Read(fd, buffer)
		switch {
		case err == nil:
			h.send(buffer[:n], time.Now())
		case i == 0:
			return err
		default:
			return nil
		}
	}
}

func (h *Host) send(data []byte, now time.Time) {
	h.mu.Lock()
	r, known := h.routes[destination(data)]
	h.mu.Unlock()
	if !known {
		return
	}
	arrival, ok := r.link.Out.Admit(now, len(data))
	switch {
	case !ok:
	case arrival.After(now):
		r.to.delay(newPacket(data, netip.AddrPort{}, arrival))
	default:
		r.to.deliver(data)
	}
}

// destination reads the header of IPv4 (RFC 791 section 3.1) or IPv6 (RFC 8200 section 3). What is neither goes nowhere.
func destination(data []byte) netip.Addr {
	switch {
	case len(data) >= 20 && data[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(data[16:20]))
	case len(data) >= 40 && data[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(data[24:40]))
	default:
		return netip.Addr{}
	}
}

// delay keeps a packet that arrives later.
func (h *Host) delay(p *packet) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		p.free()
		return
	}
	if h.arriving.add(p) {
		h.alarm.set(p.arrival)
	}
}

// carryIn delivers what arrives.
func (h *Host) carryIn() {
	var due []*packet
	for h.alarm.wait() {
		for due = h.due(due[:0]); len(due) > 0; due = h.due(due[:0]) {
			for _, p := range due {
				h.deliver(p.data)
				p.free()
			}
		}
	}
}

// due takes out what has arrived; where that is nothing, it sets the alarm for what will.
func (h *Host) due(due []*packet) []*packet {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return due
	}
	now := time.Now()
	for p := h.arriving.due(now); p != nil; p = h.arriving.due(now) {
		due = append(due, p)
	}
	if next := h.arriving.next(); len(due) == 0 && !next.IsZero() {
		if rested := now.Add(pause); next.Before(rested) {
			next = rested
		}
		h.alarm.set(next)
	}
	return due
}

// deliver hands a packet to the host's kernel, which loses it where nobody has room for it.
func (h *Host) deliver(data []byte) { _, _ = h.tun.Write(data) }
