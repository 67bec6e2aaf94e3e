package mesh

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

const (
	// frameRate is how much a peer may say for long, frameBurst how much at once; a frame counts as one and its size in
	// units of frameUnit. A node whose 2,000 streams all start at once says about 6,000 of these to one peer (a claim, a
	// pull and an update for each), and the largest full set is 1,500: both pass undelayed.
	frameRate  = 1000
	frameBurst = 10_000
	frameUnit  = 4 << 10
	// floodFor is how long a peer may be more than it should, and so be read slowly, before its link ends.
	floodFor = 15 * time.Second

	// callRate and callBurst bound the handshakes of all peers: a mesh of hundreds may come up at once.
	callRate  = 100
	callBurst = 512
	// remoteRate and remoteBurst bound the connections from one address, behind which a whole cluster may be.
	remoteRate  = 50
	remoteBurst = 512
	// maxRemotes bounds the addresses that are told apart.
	maxRemotes = 4096
)

var errFlood = errors.New("the peer sends more than a mesh needs, and does not stop")

// pace is a link's reader's: it waits where the peer has said too much, so that the transport holds the peer back, and says
// when that does not help.
type pace struct {
	limiter *rate.Limiter
	slowed  bool
	since   time.Time // when the first of the frames came, without a pause, that had to wait; zero: none had to
}

func newPace() pace { return pace{limiter: rate.NewLimiter(frameRate, frameBurst)} }

// take says how long to wait before the next frame, or that the link ends.
func (p *pace) take(f *pb.Frame, now time.Time) (time.Duration, error) {
	cost := min(1+proto.Size(f)/frameUnit, frameBurst)
	wait := p.limiter.ReserveN(now, cost).DelayFrom(now)
	switch {
	case wait <= 0:
		p.since = time.Time{}
	case p.since.IsZero():
		p.since = now
	case now.Sub(p.since) >= floodFor:
		return 0, &refusal{reason: "rate", err: errFlood}
	}
	return wait, nil
}

// slow waits as long as the frame says. It returns early when the link ends.
func (l *link) slow(f *pb.Frame) error {
	wait, err := l.pace.take(f, time.Now())
	if slowed := wait > 0 || err != nil; slowed != l.pace.slowed {
		l.pace.slowed = slowed
		l.mu.Lock()
		l.flooding = slowed
		l.mu.Unlock()
	}
	if wait <= 0 {
		return err
	}
	l.mesh.metrics.delayed.Inc()
	select {
	case <-time.After(wait):
	case <-l.done:
	}
	return nil
}

// calls is the rate of handshakes for go-grpc-middleware.
type calls struct {
	limiter *rate.Limiter
	refused prometheus.Counter
}

// Limit is of ratelimit.Limiter.
func (c calls) Limit(context.Context) error {
	if c.limiter.Allow() {
		return nil
	}
	c.refused.Inc()
	return errors.New("too many peers introduce themselves")
}

// remotes bound how often one address connects. An address that did not connect lately costs nothing.
type remotes struct {
	mu   sync.Mutex
	seen map[netip.Prefix]*rate.Limiter
}

func newRemotes() *remotes { return &remotes{seen: map[netip.Prefix]*rate.Limiter{}} }

func (r *remotes) allow(addr net.Addr, now time.Time) bool {
	key := networkOf(addr)
	r.mu.Lock()
	defer r.mu.Unlock()
	limiter := r.seen[key]
	if limiter == nil {
		if len(r.seen) >= maxRemotes {
			r.prune(now)
		}
		limiter = rate.NewLimiter(remoteRate, remoteBurst)
		r.seen[key] = limiter
	}
	return limiter.AllowN(now, 1)
}

// prune forgets the addresses that may connect as often as one that was never seen; all of them, where none may.
func (r *remotes) prune(now time.Time) {
	for key, limiter := range r.seen {
		if limiter.TokensAt(now) >= remoteBurst {
			delete(r.seen, key)
		}
	}
	if len(r.seen) >= maxRemotes {
		clear(r.seen)
	}
}

// networkOf is what one stranger has at least: an IPv4 address, or the half of an IPv6 address that names a network.
func networkOf(addr net.Addr) netip.Prefix {
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip := at.Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits)
	return prefix
}
