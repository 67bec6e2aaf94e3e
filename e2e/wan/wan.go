// Package wan emulates wide-area links for tests and for the demo: delay, jitter, loss, rate, reordering and cuts, per
// direction, by a seed, changeable while traffic flows.
//
// It has two forms. One wraps the sockets of one end, a [PacketConn] for UDP and a [Conn], listener or dialler for TCP, and
// needs no root. Wrap one end only, or the distance counts twice. The other joins network namespaces of Linux, each a
// [Host] in which any program runs unchanged, and needs root; the command emulate makes it useful by hand. Beside them,
// [Isolate] gives a test as many addresses of its own as it wants, without any distance between them.
//
// A [Direction] decides about each packet and knows nothing of sockets; a [Network] keeps what is under way and
// lets it go in time. Its Run is the only thing here that starts goroutines.
package wan

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Params are what one direction of a link does to its traffic. The zero value is a perfect link.
//
// Probabilities lie between 0 and 1. Loss and reordering concern packets only: a TCP stream repairs them by itself, so
// a [Conn] feels delay, jitter, rate and cuts.
type Params struct {
	Delay time.Duration // one way: half of a symmetrical round trip
	// Jitter is the most by which a packet is delayed further, evenly distributed. Order is kept: what follows a late
	// packet waits for it.
	Jitter time.Duration

	Loss float64 // share of packets lost, each by itself
	// BurstLoss is the share of packets lost in bursts (Gilbert's model: a good state that loses nothing and a bad one
	// that loses all), BurstLength the mean length of a burst in packets; less than 1 counts as 1. At least one packet
	// passes between two bursts, so that a large share takes long ones: 80 % at least 4 packets.
	BurstLoss   float64
	BurstLength float64

	// Rate is the capacity in bits per second, headers included; 0 means no limit. Queue is how many bytes may wait for
	// it, beyond which packets are dropped; 0 means 200 ms at that rate, at least 24 kB.
	Rate  int64
	Queue int

	// Reorder is the share of packets that are held back by ReorderBy and so overtaken by those behind them.
	Reorder   float64
	ReorderBy time.Duration

	Cut bool // nothing passes: packets are lost, streams stand still
}

// Validate names every value that makes no sense. [Direction.Set] does not refuse them, it takes the nearest that does.
func (p Params) Validate() error {
	var errs []error
	for _, f := range []struct {
		name  string
		value float64
	}{{"loss", p.Loss}, {"burst loss", p.BurstLoss}, {"reorder", p.Reorder}} {
		if !(f.value >= 0 && f.value <= 1) {
			errs = append(errs, fmt.Errorf("%s is %v; a share between 0 and 1 is wanted", f.name, f.value))
		}
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"delay", p.Delay}, {"jitter", p.Jitter}, {"reorder by", p.ReorderBy}} {
		if f.value < 0 {
			errs = append(errs, fmt.Errorf("%s is %v; it cannot be negative", f.name, f.value))
		}
	}
	if p.BurstLength < 0 {
		errs = append(errs, fmt.Errorf("burst length is %v packets; it cannot be negative", p.BurstLength))
	}
	if least := p.shortestBurst(); p.BurstLoss <= 1 && max(p.BurstLength, 1) < least*(1-1e-9) {
		errs = append(errs, fmt.Errorf("burst loss is %v, which takes bursts of %.4g packets or more", p.BurstLoss, least))
	}
	if p.Reorder > 0 && p.ReorderBy == 0 {
		errs = append(errs, errors.New("reorder is set and reorder by is not: no packet would be overtaken"))
	}
	if p.Rate < 0 || p.Queue < 0 {
		errs = append(errs, fmt.Errorf("rate is %d bit/s, queue %d bytes; neither can be negative", p.Rate, p.Queue))
	}
	return errors.Join(errs...)
}

// shortestBurst is the least mean length with which bursts take their share, one packet passing between two.
func (p Params) shortestBurst() float64 {
	if !(p.BurstLoss < 1) { // everything is lost, or it is not a number
		return 1
	}
	return max(1, p.BurstLoss/(1-p.BurstLoss))
}

func (p Params) sane() Params {
	share := func(v float64) float64 {
		if !(v > 0) { // also not a number
			return 0
		}
		return min(v, 1)
	}
	p.Loss, p.BurstLoss, p.Reorder = share(p.Loss), share(p.BurstLoss), share(p.Reorder)
	p.Delay, p.Jitter, p.ReorderBy = max(p.Delay, 0), max(p.Jitter, 0), max(p.ReorderBy, 0)
	p.Rate = max(p.Rate, 0)
	if least := p.shortestBurst(); !(p.BurstLength >= least) {
		p.BurstLength = least
	}
	if p.Queue <= 0 {
		p.Queue = max(int(p.Rate/8/5), 16*1500)
	}
	return p
}

// Counters say what became of the traffic of one direction. Bytes are those on the wire, with IP and UDP headers.
type Counters struct {
	Packets     uint64 // passed
	Bytes       uint64 // passed, of packets
	StreamBytes uint64 // passed, of TCP streams, without headers

	Lost      uint64 // packets lost by Loss
	BurstLost uint64 // packets lost by BurstLoss
	Overflow  uint64 // packets dropped because the queue was full
	CutOff    uint64 // packets lost while the link was cut
	Reordered uint64 // packets held back, of those passed
}

// Direction is one way of a link: it decides, packet by packet, what is lost and when the rest arrives. It holds no
// packets and asks no clock. One Direction may serve many sockets, which then share its capacity. A nil Direction is
// perfect and counts nothing. Safe for concurrent use.
//
// Each kind of accident draws from its own generator, all derived from the seed: which of the packets are lost does not
// depend on whether there is jitter too.
type Direction struct {
	mu       sync.Mutex
	params   Params
	counters Counters
	changed  chan struct{} // closed by Set and replaced

	loss, burst, jitter, reorder *rand.Rand
	inBurst                      bool
	free                         time.Time // when the last admitted packet has been put on the line
	last                         time.Time // the latest arrival so far, of packets that keep their order
}

// NewDirection returns a direction with these parameters. The same seed and the same packets give the same fates.
func NewDirection(seed uint64, p Params) *Direction {
	generator := func(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }
	return &Direction{
		params:  p.sane(),
		changed: make(chan struct{}),
		loss:    generator(1), burst: generator(2), jitter: generator(3), reorder: generator(4),
	}
}

// Params returns the parameters in force.
func (d *Direction) Params() Params {
	if d == nil {
		return Params{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.params
}

// Set replaces the parameters from the next packet on. Packets under way arrive when they would have, so that later ones
// overtake them if the delay has become less, as after a change of route; those that wait for the rate leave at the old
// one. Streams that stood still go on when a cut is healed.
func (d *Direction) Set(p Params) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.params = p.sane()
	d.last = time.Time{}
	close(d.changed)
	d.changed = make(chan struct{})
}

// Counters returns what has become of the traffic so far.
func (d *Direction) Counters() Counters {
	if d == nil {
		return Counters{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counters
}

// Admit decides about a packet of so many bytes, headers included, that is sent now: whether it arrives, and when.
func (d *Direction) Admit(now time.Time, size int) (arrival time.Time, ok bool) {
	if d == nil {
		return now, true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := &d.params
	switch {
	case p.Cut:
		d.counters.CutOff++
		return time.Time{}, false
	case p.BurstLoss > 0 && d.burstTakes(p):
		d.counters.BurstLost++
		return time.Time{}, false
	case p.Loss > 0 && d.loss.Float64() < p.Loss:
		d.counters.Lost++
		return time.Time{}, false
	}
	if p.Rate > 0 && d.backlog(now)+int64(size) > int64(p.Queue) {
		d.counters.Overflow++
		return time.Time{}, false
	}
	arrival = d.transmit(now, size)
	if p.Reorder > 0 && d.reorder.Float64() < p.Reorder {
		d.counters.Reordered++
		arrival = arrival.Add(p.ReorderBy)
	} else {
		if arrival.Before(d.last) {
			arrival = d.last
		}
		d.last = arrival
	}
	d.counters.Packets++
	d.counters.Bytes += uint64(size)
	return arrival, true
}

// burstTakes moves Gilbert's two-state chain one packet on and says whether it is in the bad state. A burst ends after
// each packet with probability 1/length; it begins so often that the share of bad packets is the one asked for.
func (d *Direction) burstTakes(p *Params) bool {
	draw := d.burst.Float64()
	end := 1 / p.BurstLength
	if d.inBurst {
		d.inBurst = p.BurstLoss >= 1 || draw >= end
	} else {
		d.inBurst = p.BurstLoss >= 1 || draw < end*p.BurstLoss/(1-p.BurstLoss)
	}
	return d.inBurst
}

// admitStream admits the next bytes of a stream. Instead of dropping it says how long to wait with them: forever (until
// changed closes) while the link is cut.
func (d *Direction) admitStream(now time.Time, size int) (arrival time.Time, wait time.Duration, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.params.Cut {
		return time.Time{}, -1, false
	}
	if d.params.Rate > 0 {
		if over := d.backlog(now) + int64(size) - int64(d.params.Queue); over > 0 && d.free.After(now) {
			// At most the whole backlog: a piece larger than the queue passes alone.
			wait := min(d.airtime(over), d.free.Sub(now))
			return time.Time{}, max(wait, time.Microsecond), false
		}
	}
	d.counters.StreamBytes += uint64(size)
	return d.transmit(now, size), 0, true
}

// transmit puts a packet on the line behind those that wait there and says when it comes out at the far end.
func (d *Direction) transmit(now time.Time, size int) time.Time {
	sent := now
	if d.params.Rate > 0 {
		if d.free.After(sent) {
			sent = d.free
		}
		sent = sent.Add(d.airtime(int64(size)))
		d.free = sent
	}
	arrival := sent.Add(d.params.Delay)
	if j := d.params.Jitter; j > 0 {
		arrival = arrival.Add(time.Duration(d.jitter.Int64N(int64(j) + 1)))
	}
	return arrival
}

func (d *Direction) airtime(size int64) time.Duration {
	return time.Duration(float64(size) * 8 / float64(d.params.Rate) * float64(time.Second))
}

// backlog is how many bytes wait to be put on the line.
func (d *Direction) backlog(now time.Time) int64 {
	if wait := d.free.Sub(now); wait > 0 {
		return int64(wait.Seconds() * float64(d.params.Rate) / 8)
	}
	return 0
}

func (d *Direction) change() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// Link is a link as one of its two ends sees it. The zero value is perfect.
type Link struct {
	Out *Direction // what this end sends
	In  *Direction // what this end receives
}

// NewLink returns a link with the same parameters both ways, each with its own accidents.
func NewLink(seed uint64, both Params) Link {
	return Link{Out: NewDirection(seed, both), In: NewDirection(seed^0x9e3779b97f4a7c15, both)}
}

// Reversed is the same link as the other end sees it.
func (l Link) Reversed() Link {
	return Link{Out: l.In, In: l.Out}
}

// Set replaces the parameters of both directions. The link must have been made by [NewLink].
func (l Link) Set(both Params) {
	l.Out.Set(both)
	l.In.Set(both)
}

// roundTrip is how long a packet without payload is under way to the other end and back.
func (l Link) roundTrip() time.Duration {
	return l.Out.Params().Delay + l.In.Params().Delay
}

func (l Link) cut() bool {
	return l.Out.Params().Cut || l.In.Params().Cut
}
