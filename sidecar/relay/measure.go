package relay

import (
	"time"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// delaySample is the part of the packets whose way through the relay is timed.
const delaySample = 64

// delay is how long packets take through the relay, smoothed: from when one was read to when it was handed to the socket.
type delay struct {
	packets  uint
	smoothed time.Duration
}

// sample takes a packet that has just been sent on.
func (d *delay) sample(p *media.Packet) {
	d.packets++
	if d.packets%delaySample != 1 {
		return
	}
	took := time.Since(p.Arrival)
	if d.smoothed == 0 {
		d.smoothed = took
		return
	}
	d.smoothed += (took - d.smoothed) / 8
}

// connStats adds up what came to connections and was of no use.
type connStats media.ConnStats

// add counts what came to a connection; nil: nothing.
func (s *connStats) add(c *media.Conn) {
	if c == nil {
		return
	}
	more := c.Stats()
	s.Malformed += more.Malformed
	s.Unknown += more.Unknown
}

// stats counts what has come to the lane from all its sources, and tells how long packets take through it; false before the
// first.
func (l *lane) stats() (in media.TrackStats, added time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	track := l.track.Load()
	if track == nil {
		return media.TrackStats{}, 0, false
	}
	return track.Stats().Plus(l.past), l.delay.smoothed, true
}
