package relay

import (
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
)

// leaseTime is how long a grant stands without a hold that renews it.
const leaseTime = 5 * time.Second

// Claim is an owner's answer to a node that wants to pull a stream for their cluster. The zero value: not from here.
type Claim struct {
	Granted bool
	Holder  catalogue.NodeID // who has the right, if not the node that asked
}

// Claims are the grants of one owner: at most one node of the cluster at a time may pull a stream from outside. Who holds
// a stream already is adopted, so that a new owner needs to be told nothing. The time comes in with each call. Methods
// may be called concurrently.
type Claims struct {
	mu     sync.Mutex
	leases map[adapters.StreamID]*lease
	seen   *catalogue.State // by the last Observe
	swept  time.Time
}

type lease struct {
	epoch  uint64
	holder catalogue.NodeID
	// The holder's: a process that was killed and came back has lost what it was granted.
	incarnation uint64
	until       time.Time

	holds bool             // the holder is seen to hold the stream: the lease does not end
	held  bool             // it was
	next  catalogue.NodeID // who asked last in vain
	asked time.Time
}

func (l *lease) stands(now time.Time) bool { return l.holds || now.Before(l.until) }

// lives says whether the process that has the lease is there.
func (l *lease) lives(s *catalogue.State) bool {
	n, ok := s.Node(l.holder)
	return ok && s.Near(l.holder) && n.Incarnation == l.incarnation
}

// NewClaims makes an owner that has granted nothing.
func NewClaims() *Claims { return &Claims{leases: map[adapters.StreamID]*lease{}} }

// Claim answers a node of the own cluster. A grant stands for five seconds and as long as the grantee's hold is seen,
// and is not lengthened by asking again: where a grantee does not come to hold the stream, another that asks is next. A node
// that drains or is not ready gets nothing that another has, and keeps nothing that another asks for.
//
// There is one lease for a stream, whichever publication of it is pulled. The epoch that is asked for tells only which of two
// nodes has later news: who asks for one that the owner knows to be beaten is about to learn of the winner, and is answered
// as if it had asked for that.
func (c *Claims) Claim(
	now time.Time, s *catalogue.State, from catalogue.NodeID, stream adapters.StreamID, epoch uint64,
) Claim {
	if !s.Near(from) || stream.Validate() != nil {
		return Claim{}
	}
	row := s.Row(stream)
	if best, ok := row.Winner(); ok && !news(row, epoch) {
		epoch = best.Epoch
		if senior := planner.Senior(s, stream, row.Holders()); senior != "" && (s.Fit(senior) || !s.Fit(from)) {
			return answer(from, senior)
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.leases[stream]
	if l == nil {
		if len(c.leases) >= catalogue.MaxHolds {
			c.sweep(now)
		}
		if len(c.leases) >= catalogue.MaxHolds {
			return Claim{Granted: true} // two copies do less harm than none
		}
		l = &lease{}
		c.leases[stream] = l
	}
	keeps := l.lives(s) && (s.Fit(l.holder) || !s.Fit(from))
	if keeps && l.stands(now) && (l.epoch == epoch || l.epoch > epoch && news(row, l.epoch)) {
		if l.holder != from {
			l.next, l.asked = from, now
		}
		return answer(from, l.holder)
	}
	holder := from
	waits := l.next != "" && now.Sub(l.asked) < leaseTime && s.Near(l.next) && (s.Fit(l.next) || !s.Fit(from))
	if waits && l.holder == from && !l.held && l.epoch == epoch {
		holder = l.next // from had its chance
	}
	n, _ := s.Node(holder)
	*l = lease{epoch: epoch, holder: holder, incarnation: n.Incarnation, until: now.Add(leaseTime)}
	l.observe(now, s, row)
	return answer(from, holder)
}

// news says whether an epoch is of a publication that this node has not heard of yet: the epochs of those that it has are
// known to be beaten or not.
func news(row *catalogue.Row, epoch uint64) bool {
	for _, h := range row.Holds() {
		if h.Epoch >= epoch {
			return false
		}
	}
	return true
}

func answer(from, holder catalogue.NodeID) Claim {
	if from == holder {
		return Claim{Granted: true}
	}
	return Claim{Holder: holder}
}

// Observe renews the leases of those who are seen to hold the stream's winning publication, and lets them run out from the
// moment that they do not. It is called when the catalogue has changed.
func (c *Claims) Observe(now time.Time, s *catalogue.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed, ok := s.Changed(c.seen)
	c.seen = s
	if ok && len(changed) < len(c.leases) {
		for _, stream := range changed {
			if l := c.leases[stream]; l != nil {
				l.observe(now, s, s.Row(stream))
			}
		}
	} else {
		for stream, l := range c.leases {
			l.observe(now, s, s.Row(stream))
		}
	}
	if now.Sub(c.swept) >= leaseTime {
		c.sweep(now)
	}
}

func (l *lease) observe(now time.Time, s *catalogue.State, row *catalogue.Row) {
	h, holds := row.Hold(l.holder)
	best, _ := row.Winner()
	holds = holds && h.Publication() == best
	if holds {
		n, _ := s.Node(l.holder)
		l.epoch, l.incarnation = h.Epoch, n.Incarnation
	}
	if holds || l.holds {
		l.until, l.held = now.Add(leaseTime), true
	}
	l.holds = holds
}

// sweep drops leases that ended so long ago that nobody is next after them.
func (c *Claims) sweep(now time.Time) {
	for stream, l := range c.leases {
		if !l.stands(now) && now.Sub(l.until) > leaseTime {
			delete(c.leases, stream)
		}
	}
	c.swept = now
}
