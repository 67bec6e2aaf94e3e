package relay

import (
	"context"
	"slices"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	// A viewer who joins a server that does not pass on what its viewers ask for is counted before it is connected, and what comes
	// sooner is lost on it: so a key frame is asked for after a while, and once more a second later.
	joinTime  = 200 * time.Millisecond
	joinAgain = time.Second
	// Such a server asks by its own clock. It is answered where no key frame came for so long: what it records is to be cut
	// somewhere. All relays of a stream see the same key frames, so that many servers ask as seldom as one.
	blindInterval = 4 * time.Second
)

// joins says when to ask for key frames for those who have joined.
type joins struct {
	next, until time.Time // zero: nobody is waiting
}

func (j *joins) add(now time.Time) {
	if j.next.IsZero() {
		j.next = now.Add(joinTime)
	}
	j.until = now.Add(joinTime + joinAgain)
}

// due says whether to ask now.
func (j *joins) due(now time.Time) bool {
	if j.next.IsZero() || now.Before(j.next) {
		return false
	}
	if now.Before(j.until) {
		j.next = now.Add(joinAgain)
	} else {
		*j = joins{}
	}
	return true
}

// Joined says that there are more viewers at the local server than before. Where that does not pass on their requests for key
// frames, the session asks for some. It does not block.
func (s *Session) Joined() {
	if !s.options.Traits.IgnoresPLI {
		return
	}
	s.mu.Lock()
	s.joins.add(time.Now())
	s.mu.Unlock()
	s.wake()
}

func (s *Session) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// tend does what has to be done by the clock until ctx ends: sends what waits for its turn, gives up what does not come, and asks for
// key frames for those who have joined. It sleeps while there is nothing to do.
func (s *Session) tend(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var lanes []*lane
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.kick:
		case <-timer.C:
		}
		now := time.Now()
		s.mu.Lock()
		if len(lanes) == 0 && s.published { // fixed from then on
			lanes = slices.Clone(s.lanes)
		}
		ask, next := s.joins.due(now), s.joins.next
		s.mu.Unlock()
		for _, l := range lanes {
			if ask && l.kind == webrtc.RTPCodecTypeVideo {
				l.requestKeyFrame()
			}
			if again := l.drain(now); next.IsZero() || !again.IsZero() && again.Before(next) {
				next = again
			}
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(next.Sub(now))
		}
	}
}

// drain sends what waits and may go out by now, and says when to call again; zero where nothing waits.
func (l *lane) drain(now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o := l.outlet.Load(); o != nil {
		return o.drain(now)
	}
	return time.Time{}
}

// sendLocked sends a packet that stands in the history at a position.
func (l *lane) sendLocked(p *media.Packet, position uint64) {
	if o := l.outlet.Load(); o != nil {
		o.take(p, position)
	} else {
		l.out.Packet(p)
	}
}

// serverAsks takes the local server's request for a key frame. It is blind where that asks by a clock and not for a viewer.
func (l *lane) serverAsks(blind bool, now time.Time) {
	if !blind || !l.keyedSince(now.Add(-blindInterval)) {
		l.requestKeyFrame()
	}
}

// keyedSince says whether a key frame has come since.
func (l *lane) keyedSince(t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keyAt.After(t)
}

// roundTrip is that to the current source; 0 where it is not known.
func (l *lane) roundTrip() time.Duration {
	if t := l.track.Load(); t != nil {
		return t.RoundTrip()
	}
	return 0
}

// outletStats is what the outlet did.
func (l *lane) outletStats() outletStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.outlet.Load()
	if o == nil {
		return outletStats{}
	}
	stats := o.stats
	if o.fill != nil {
		stats.filled = o.fill.filled
	}
	return stats
}
