package media

import (
	"math"
	"time"
)

// Constants of the estimate: those of draft-ietf-rmcat-gcc-02, section 5, and of the trend line that took the place of its Kalman
// filter in browsers.
const (
	trendGroups    = 20
	trendSmoothing = 0.9
	trendGain      = 4.0
	trendCap       = 60
	thresholdMin   = 6.0 // milliseconds
	thresholdBegin = 12.5
	thresholdMax   = 600.0
	thresholdUp    = 0.0087
	thresholdDown  = 0.039
	thresholdLeap  = 15.0 // further than that above, it is no drift of the path
	overuseTime    = 10 * time.Millisecond

	estimateWindow = 500 * time.Millisecond // over which the rate that comes is measured
	estimateBack   = 0.85                   // of what comes, when the path is overused
	estimateGrowth = 1.08                   // a second
	estimateMost   = 1.5                    // of what comes: more has not been tried
	estimateLoss   = 0.10                   // part of the packets that must be missing to count
	estimatePause  = 300 * time.Millisecond // between two steps back
	estimateProof  = 10 * time.Second       // for which what has been tried holds
	estimateLapse  = 10 * time.Second       // after the last step back the path counts as wide enough again
)

// estimate says how many bits a second a path carries, by what comes out of it: a queue on the way makes frames come later and later
// after one another than they were sent, and what it cannot take is lost. It is fed with each packet of one track; its time is
// that of arrival.
type estimate struct {
	began  bool
	stamp  uint32    // of the frame that comes
	first  time.Time // when its first packet came
	start  time.Time // of all
	groups int

	delay, smooth float64 // milliseconds by which frames are later than they were sent, since the start
	line          [trendGroups]struct{ at, delay float64 }
	trend         float64
	threshold     float64
	over          time.Duration

	window        time.Time
	bytes         int
	rate          float64 // bits per second that came in the last window
	missed, came  uint64  // at the begin of the window
	bits          float64 // 0: not known yet
	proved        float64 // what came through when it was tried, at provedAt
	provedAt      time.Time
	deaf          bool // what is noticed now comes of trying
	moved, backAt time.Time
}

// packet takes the next packet. missed and came count packets of the track, those that did not come at first and those that did.
func (e *estimate) packet(now time.Time, timestamp uint32, clockRate uint32, bytes int, missed, came uint64) {
	if clockRate == 0 {
		return
	}
	if !e.began {
		e.began, e.stamp, e.first, e.start, e.window, e.moved = true, timestamp, now, now, now, now
		e.threshold, e.missed, e.came = thresholdBegin, missed, came
	}
	e.bytes += bytes
	if passed := int32(timestamp - e.stamp); passed > 0 {
		e.frame(now, time.Duration(passed)*time.Second/time.Duration(clockRate))
		e.stamp, e.first = timestamp, now
	}
	if passed := now.Sub(e.window); passed >= estimateWindow {
		e.rate = float64(e.bytes*8) / passed.Seconds()
		e.window, e.bytes = now, 0
		if missed > e.missed && came >= e.came {
			part := float64(missed-e.missed) / float64(missed-e.missed+came-e.came)
			if part > estimateLoss {
				e.stepBack(now, 1-part/2)
			}
		}
		e.missed, e.came = max(missed, e.missed), came
	}
}

// frame takes the first packet of a frame that was sent so long after the one before.
func (e *estimate) frame(now time.Time, sent time.Duration) {
	arrival := now.Sub(e.first)
	if sent > time.Second || arrival > 2*time.Second { // a pause tells nothing
		e.groups, e.delay, e.smooth, e.over = 0, 0, 0, 0
		return
	}
	e.delay += float64(arrival-sent) / float64(time.Millisecond)
	e.smooth = trendSmoothing*e.smooth + (1-trendSmoothing)*e.delay
	p := &e.line[e.groups%trendGroups]
	p.at, p.delay = float64(now.Sub(e.start))/float64(time.Millisecond), e.smooth
	e.groups++
	if e.groups < trendGroups {
		return
	}
	before := e.trend
	e.trend = e.slope() * float64(min(e.groups, trendCap)) * trendGain
	size := math.Abs(e.trend)
	e.over += arrival
	if e.trend <= e.threshold {
		e.over = 0
	}
	switch {
	case e.over > overuseTime && e.trend >= before:
		e.stepBack(now, estimateBack)
	case e.trend >= -e.threshold: // else a queue empties: what was found holds
		e.grow(now)
	}
	e.moved = now
	if size <= e.threshold+thresholdLeap {
		k := thresholdUp
		if size < e.threshold {
			k = thresholdDown
		}
		change := k * (size - e.threshold) * min(float64(arrival)/float64(time.Millisecond), 100)
		e.threshold = min(max(e.threshold+change, thresholdMin), thresholdMax)
	}
}

// slope is that of the delay over time, by least squares.
func (e *estimate) slope() float64 {
	var at, delay float64
	for _, p := range e.line {
		at += p.at / trendGroups
		delay += p.delay / trendGroups
	}
	var up, down float64
	for _, p := range e.line {
		up += (p.at - at) * (p.delay - delay)
		down += (p.at - at) * (p.at - at)
	}
	if down == 0 {
		return 0
	}
	return up / down
}

func (e *estimate) stepBack(now time.Time, factor float64) {
	if e.rate == 0 || e.deaf || now.Sub(e.backAt) < estimatePause {
		return
	}
	// More may have been sent since the last window, and come.
	rate := e.rate
	if passed := now.Sub(e.window); passed >= estimateWindow/3 {
		rate = max(rate, float64(e.bytes*8)/passed.Seconds())
	}
	e.bits, e.backAt, e.proved = rate*factor, now, 0
}

// prove takes a rate that came through when it was tried.
func (e *estimate) prove(bits float64, now time.Time) {
	e.proved, e.provedAt = bits, now
	e.bits = max(e.bits, bits)
}

func (e *estimate) grow(now time.Time) {
	if e.rate == 0 {
		return
	}
	if e.bits == 0 {
		e.bits = e.rate
	}
	most := max(e.rate*estimateMost, 10_000)
	if now.Sub(e.provedAt) < estimateProof {
		most = max(most, e.proved)
	}
	e.bits = min(e.bits*math.Pow(estimateGrowth, now.Sub(e.moved).Seconds()), most)
}

// now is the estimate, 0 where there is none yet, and whether it is the path that bounds it rather than what is sent.
func (e *estimate) now(at time.Time) (bits int64, limited bool) {
	return int64(e.bits), !e.backAt.IsZero() && at.Sub(e.backAt) < estimateLapse
}
