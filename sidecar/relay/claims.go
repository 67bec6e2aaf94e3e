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
}

type lease struct {
	epoch  uint64
	holder catalogue.NodeID
	until  time.Time
	holds  bool             // the holder is seen to hold the stream: the lease does not end
	held   bool             // it was
	next   catalogue.NodeID // who asked last in vain
	asked  time.Time
}

func (l *lease) stands(now time.Time) bool { return l.holds || now.Before(l.until) }

// NewClaims makes an owner that has granted nothing.
func NewClaims() *Claims { return &Claims{leases: map[adapters.StreamID]*lease{}} }

// Claim answers a node of the own cluster. A grant stands for five seconds and as long as the grantee's hold is seen,
// and is not lengthened by asking again: where a grantee does not come to hold the stream, another that asks is next.
func (c *Claims) Claim(
	now time.Time, s *catalogue.State, from catalogue.NodeID, stream adapters.StreamID, epoch uint64,
) Claim {
	if !s.Near(from) || stream.Validate() != nil {
		return Claim{}
	}
	if best, ok := s.Winner(stream); ok {
		epoch = max(epoch, best.Epoch) // who asks for less is about to learn it
		if best.Epoch == epoch {
			if senior := planner.Senior(s, stream, s.Holders(stream)); senior != "" {
				return answer(from, senior)
			}
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
	if l.stands(now) && l.epoch >= epoch && s.Near(l.holder) {
		if l.holder != from {
			l.next, l.asked = from, now
		}
		return answer(from, l.holder)
	}
	holder := from
	waits := l.next != "" && now.Sub(l.asked) < leaseTime && s.Near(l.next)
	if waits && l.holder == from && !l.held && l.epoch >= epoch {
		holder = l.next // from had its chance
	}
	*l = lease{epoch: epoch, holder: holder, until: now.Add(leaseTime)}
	return answer(from, holder)
}

func answer(from, holder catalogue.NodeID) Claim {
	if from == holder {
		return Claim{Granted: true}
	}
	return Claim{Holder: holder}
}

// Observe renews the leases of those who are seen to hold what they were granted, and lets them run out from the moment
// that they do not. It is called when the catalogue has changed.
func (c *Claims) Observe(now time.Time, s *catalogue.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for stream, l := range c.leases {
		h, ok := s.Hold(l.holder, stream)
		holds := ok && h.Epoch >= l.epoch
		if holds || l.holds {
			l.until, l.held = now.Add(leaseTime), true
		}
		l.holds = holds
	}
	c.sweep(now)
}

// sweep drops leases that ended so long ago that nobody is next after them.
func (c *Claims) sweep(now time.Time) {
	for stream, l := range c.leases {
		if !l.stands(now) && now.Sub(l.until) > leaseTime {
			delete(c.leases, stream)
		}
	}
}
