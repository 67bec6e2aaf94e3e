package pionsfu

import (
	"time"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	soundRoom   = 64_000                 // bits per second that are left to the sound
	probeTime   = 150 * time.Millisecond // that a probe takes
	probeStep   = 5 * time.Millisecond
	probeMore   = 11              // of what is needed, in tenths
	calmAtFirst = 3 * time.Second // between a step up, or a probe, and the next
	calmAtMost  = time.Minute
	pacedAtOnce = 10_000          // bytes that a pacer lets through at once
	pacedSpeed  = 5               // of what the path carries, in halves
	stepTime    = 5 * time.Second // a step up that fails in this time was one too many
)

// pathway is what a ladder knows of the path to a viewer.
type pathway interface {
	// Bandwidth is how many bits a second it carries, 0 where nobody knows, and whether that is for what it carries rather than
	// for what is sent.
	Bandwidth() (bits int64, limited bool)
	BeginProbe()
	EndProbe()
	// Probe sends something of no use, and says how many bytes; 0 where that cannot be.
	Probe() (bytes int)
}

type pathTo struct {
	*media.Conn
	sender *media.Sender
}

func (p pathTo) Probe() int { return p.sender.Probe() }

// ladder says when a viewer may have a layer of a higher bit rate. How much more than what is sent a path would carry shows only when
// it is tried: with packets of no use, before a picture hangs on it. Each attempt that fails doubles the time to the next.
type ladder struct {
	calm   time.Duration // 0: calmAtFirst
	rested time.Time     // when the next attempt may be
	up     time.Time     // of the last step up
	goal   int64         // bits per second that are being tried; 0: nothing is
	tried  int64         // that were tried last, until it is known what came of it
	began  time.Time
	sent   int // bytes
	count  int
	sound  int64 // bits per second that the picture leaves to it
	pacer  pacer
	narrow bool // it has been limited: before that, nothing is to be tried
	blind  bool // what would be sent of no use cannot be: the layer itself is the attempt
}

// room is what there is for the picture: 0 where nobody knows, and at least so much unless it is limited.
func (l *ladder) room(p pathway, now time.Time) (room int64, limited bool) {
	if p == nil {
		return 0, false
	}
	bits, limited := p.Bandwidth()
	if l.pacer.rate = 0; limited {
		l.pacer.rate = bits * pacedSpeed / 2
	}
	l.narrow = l.narrow || limited
	if bits == 0 || !l.narrow || l.blind && !limited && !now.Before(l.rested) {
		return 0, false
	}
	if !l.up.IsZero() && now.Sub(l.up) >= stepTime { // it holds
		l.up, l.calm = time.Time{}, 0
	}
	return max(bits-l.sound, 1), limited
}

func (l *ladder) failed(now time.Time) {
	l.calm = min(max(2*l.calm, 2*calmAtFirst), calmAtMost)
	l.rested, l.up = now.Add(l.calm), time.Time{}
}

// moved notes a change of the layer.
func (l *ladder) moved(up bool, now time.Time) {
	switch {
	case up:
		l.up = now
	case !l.up.IsZero() && now.Sub(l.up) < stepTime:
		l.failed(now)
	default:
		l.rested = now.Add(max(l.calm, calmAtFirst))
	}
}

// consider begins to try for the next layer above where it is time to and there seems to be no room for it yet.
func (l *ladder) consider(layers []standing, have int, room int64, now time.Time) {
	if room == 0 || have < 0 || l.goal > 0 || now.Before(l.rested) {
		return
	}
	next := int64(0)
	for _, s := range layers {
		if s.alive && s.bits*4 > layers[have].bits*better && (next == 0 || s.bits < next) {
			next = s.bits
		}
	}
	switch need := next * spare / 4; {
	case next == 0:
	case need <= room:
		l.tried = 0 // it came through
	case l.tried > 0:
		l.tried = 0
		l.failed(now)
	default:
		// A little more than is needed: sound takes its part, and what was measured is never quite what was sent.
		l.goal, l.began, l.sent, l.count = (need+l.sound)*probeMore/10, now, 0, 0
	}
}

// probe goes on with an attempt, and says when it is to be called again; zero: there is none.
func (l *ladder) probe(p pathway, now time.Time) (due time.Time) {
	if l.goal == 0 {
		return time.Time{}
	}
	if l.count == 0 {
		p.BeginProbe()
	}
	passed := now.Sub(l.began)
	for wanted := int(l.goal / 8 * int64(min(passed, probeTime)+probeStep) / int64(time.Second)); l.sent < wanted; l.count++ {
		bytes := p.Probe()
		if bytes == 0 {
			l.blind = true
			passed = probeTime
			break
		}
		l.sent += bytes
	}
	if passed < probeTime {
		return now.Add(probeStep)
	}
	p.EndProbe()
	l.tried, l.goal = l.goal, 0
	l.rested = now.Add(max(l.calm, calmAtFirst))
	return time.Time{}
}

// pacer spreads what is sent over a path that is known to be narrow, so that a key frame does not fill the queue before it.
type pacer struct {
	rate int64 // bits per second; 0: nothing is held back
	owed int   // bytes that have been sent before their time, at a time
	at   time.Time
}

// hold says when a packet may be sent; zero: now.
func (p *pacer) hold(bytes int, now time.Time) (due time.Time) {
	if p.rate == 0 {
		return time.Time{}
	}
	p.owed = max(p.owed-int(int64(min(now.Sub(p.at), time.Second))*p.rate/8/int64(time.Second)), 0)
	p.at = now
	if p.owed > pacedAtOnce {
		return now.Add(time.Duration(int64(p.owed-pacedAtOnce/2) * 8 * int64(time.Second) / p.rate))
	}
	p.owed += bytes
	return time.Time{}
}
