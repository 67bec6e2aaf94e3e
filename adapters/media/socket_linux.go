package media

import (
	"cmp"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchPackets  = 8
	batchBuffer   = 1 << 16 // what the kernel puts together to one (UDP_GRO) is no longer than a datagram can be
	queuePackets  = 64      // UDP_MAX_SEGMENTS of older kernels
	queueBytes    = 60_000  // a datagram's bound, with room for the headers
	controlLength = 32      // one control message of two bytes, or an int, with its header
)

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
}

// inbox is what one system call takes. Sockets have one only while there is something in it.
type inbox struct {
	messages [batchPackets]message
	vectors  [batchPackets]unix.Iovec
	names    [batchPackets]unix.RawSockaddrInet6 // the longer one
	controls [batchPackets][controlLength]byte
	buffers  [batchPackets][]byte
}

var inboxes = sync.Pool{New: func() any {
	in := &inbox{}
	whole := make([]byte, batchPackets*batchBuffer)
	for i := range in.messages {
		in.buffers[i] = whole[i*batchBuffer : (i+1)*batchBuffer]
		in.vectors[i].Base = &in.buffers[i][0]
		in.vectors[i].SetLen(batchBuffer)
		h := &in.messages[i].header
		h.Name = (*byte)(unsafe.Pointer(&in.names[i]))
		h.Iov = &in.vectors[i]
		h.SetIovlen(1)
		h.Control = &in.controls[i][0]
	}
	in.reset(batchPackets)
	return in
}}

// reset makes the first messages ready for the next system call.
func (in *inbox) reset(n int) {
	for i := range n {
		h := &in.messages[i].header
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlLength)
		h.Flags = 0
	}
}

// batch reads a socket.
type batch struct {
	raw     syscall.RawConn
	plain   atomic.Bool // the kernel has no recvmmsg
	receive func(fd uintptr) bool
	failed  error
	burst   burst

	in     *inbox // nil: nothing left
	count  int
	at     int
	offset int
}

func (b *batch) init(raw syscall.RawConn) {
	b.raw = raw
	b.receive = b.take
	// Best effort: without it packets come one by one.
	_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) })
}

// take is called by the runtime when there may be something to read; it says whether there was.
func (b *batch) take(fd uintptr) bool {
	in := inboxes.Get().(*inbox)
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in.messages[0])), batchPackets,
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.in, b.count, b.at, b.offset = in, int(n), 0, 0
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
		default:
			b.failed = os.NewSyscallError("recvmmsg", errno)
		}
		inboxes.Put(in)
		return errno != unix.EAGAIN
	}
}

// read gives the next packet that is not for the short way.
func (b *batch) read(u *net.UDPConn, to opener, p []byte) (int, netip.AddrPort, error) {
	for {
		if b.plain.Load() {
			n, from, err := u.ReadFromUDPAddrPort(p)
			if err == nil && to.open(from, p[:n], nil) {
				continue
			}
			return n, from, err
		}
		if b.in == nil {
			b.failed = nil
			err := cmp.Or(b.raw.Read(b.receive), b.failed)
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
				b.plain.Store(true)
				continue
			}
			if err != nil {
				return 0, netip.AddrPort{}, err
			}
		}
		var together *burst
		if b.count > 1 || b.offset > 0 || b.in.segment(0) < int(b.in.messages[0].length) {
			together = &b.burst
		}
		packet, from := b.next()
		taken := to.open(from, packet, together)
		n := 0
		if !taken {
			n = copy(p, packet)
		}
		if b.at == b.count {
			b.in.reset(b.count)
			inboxes.Put(b.in)
			b.in = nil
		}
		if b.in == nil || !taken {
			b.burst.end()
		}
		if !taken {
			return n, from, nil
		}
	}
}

// next is the next packet of what was taken.
func (b *batch) next() ([]byte, netip.AddrPort) {
	in := b.in
	whole := in.buffers[b.at][:in.messages[b.at].length]
	from := in.from(b.at)
	end := min(b.offset+in.segment(b.at), len(whole))
	packet := whole[b.offset:end:end]
	if b.offset = end; end == len(whole) {
		b.at, b.offset = b.at+1, 0
	}
	return packet, from
}

// segment is the size of the packets that the kernel put together to one message; the last may be shorter.
func (in *inbox) segment(i int) int {
	m := &in.messages[i]
	whole := max(int(m.length), 1)
	if m.header.Controllen < unix.SizeofCmsghdr+4 {
		return whole
	}
	c := in.controls[i][:]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c[0]))
	if h.Level != unix.IPPROTO_UDP || h.Type != unix.UDP_GRO {
		return whole
	}
	size := int(binary.NativeEndian.Uint32(c[unix.CmsgLen(0):]))
	if size <= 0 {
		return whole
	}
	return min(size, whole)
}

func (in *inbox) from(i int) netip.AddrPort {
	name := &in.names[i]
	if name.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), networkOrder(v4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), networkOrder(name.Port))
}

// networkOrder turns a port that lies in memory in network order into a number, and back.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// outbox is what one system call sends. Sockets have one only while they hold packets.
type outbox struct {
	data     [queueBytes]byte
	sizes    [queuePackets]uint16
	messages [queuePackets]message
	first    [queuePackets + 1]int // packet that a message begins with
	vectors  [queuePackets]unix.Iovec
	controls [queuePackets][controlLength]byte
	name     unix.RawSockaddrInet6
}

var outboxes = sync.Pool{New: func() any { return new(outbox) }}

// queue holds packets to one address.
type queue struct {
	out    *outbox // nil: nothing
	count  int
	length int
	to     netip.AddrPort

	whole  bool // the kernel does not cut packets (UDP_SEGMENT)
	try    func(fd uintptr)
	send   func(fd uintptr) bool
	given  bool
	next   int // message to be sent
	number int // of messages
	errno  syscall.Errno
}

// add keeps a packet, and says whether it could.
func (q *queue) add(b *batch, packet []byte, to netip.AddrPort) bool {
	if b.plain.Load() || len(packet) > 1500 || to.Addr().Zone() != "" {
		return false
	}
	if q.out != nil && (q.to != to || q.count == queuePackets || q.length+len(packet) > queueBytes) {
		q.flush(b)
	}
	if q.out == nil {
		q.out = outboxes.Get().(*outbox)
		q.count, q.length, q.to = 0, 0, to
	}
	copy(q.out.data[q.length:], packet)
	q.out.sizes[q.count] = uint16(len(packet))
	q.count++
	q.length += len(packet)
	return true
}

// flush sends what is kept. It blocks while the socket takes no more. A packet that the kernel refuses is lost.
func (q *queue) flush(b *batch) {
	if q.out == nil {
		return
	}
	if q.send == nil {
		q.send, q.try = q.give, func(fd uintptr) { q.given = q.give(fd) }
	}
	first := 0
	for first < q.count {
		q.build(first)
		// One goroutine at a time writes to a file, by the runtime's rules; the kernel has none such for UDP.
		if q.given = false; b.raw.Control(q.try) != nil || !q.given && b.raw.Write(q.send) != nil {
			break // closed
		}
		failed := q.out.first[q.next]
		switch {
		case q.errno == 0:
			first = q.count
		case q.out.first[q.next+1]-failed > 1:
			// The device cannot do it, or the packets are larger than the path takes.
			q.whole = true
			first = failed
		default:
			first = failed + 1
		}
	}
	outboxes.Put(q.out)
	q.out = nil
}

// build makes messages of the packets from one on: those of equal size, and a shorter one behind them, become one.
func (q *queue) build(first int) {
	o := q.out
	nameLength := q.destination()
	offset := 0
	for _, size := range o.sizes[:first] {
		offset += int(size)
	}
	q.number, q.next = 0, 0
	for i := first; i < q.count; {
		size := o.sizes[i]
		length, j := int(size), i+1
		for ; !q.whole && j < q.count && o.sizes[j] <= size; j++ {
			length += int(o.sizes[j])
			if o.sizes[j] < size {
				j++
				break
			}
		}
		v, h := &o.vectors[q.number], &o.messages[q.number].header
		v.Base = &o.data[offset]
		v.SetLen(length)
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&o.name)), Namelen: nameLength, Iov: v}
		h.SetIovlen(1)
		if j-i > 1 {
			c := &o.controls[q.number]
			header := (*unix.Cmsghdr)(unsafe.Pointer(&c[0]))
			header.Level, header.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
			header.SetLen(unix.CmsgLen(2))
			binary.NativeEndian.PutUint16(c[unix.CmsgLen(0):], size)
			h.Control = &c[0]
			h.SetControllen(unix.CmsgSpace(2))
		}
		o.first[q.number] = i
		q.number++
		i = j
		offset += length
	}
	o.first[q.number] = q.count
}

func (q *queue) destination() (length uint32) {
	addr, port := q.to.Addr(), networkOrder(q.to.Port())
	if addr.Is4() {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(&q.out.name)) = unix.RawSockaddrInet4{
			Family: unix.AF_INET, Port: port, Addr: addr.As4(),
		}
		return unix.SizeofSockaddrInet4
	}
	q.out.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: addr.As16()}
	return unix.SizeofSockaddrInet6
}

// give is called by the runtime when the socket may take something; it says whether it is done.
func (q *queue) give(fd uintptr) bool {
	for q.next < q.number {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&q.out.messages[q.next])),
			uintptr(q.number-q.next), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			q.next += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			q.errno = errno
			return true
		}
	}
	q.errno = 0
	return true
}
