package mesh

import (
	"sync/atomic"
	"time"
)

const (
	// awakeTick is how often a Mesh looks at the clock.
	awakeTick = relatedPeriod / 2
	// asleepFor is how late such a look must be for the process, or the machine, to have stood still meanwhile.
	asleepFor = relatedPeriod
)

// awake notices that this process stood still: what was not heard in that time says nothing of those who may have said it. It
// counts by the clock that nobody sets.
type awake struct {
	began  time.Time
	ticked atomic.Int64 // when the last tick came, since then, in nanoseconds; 0: there was none
	woke   atomic.Int64 // when the last tick came that was so late
}

func newAwake(now time.Time) *awake { return &awake{began: now.Add(-1)} }

// tick says that the process runs at this time, and how long it had not before.
func (a *awake) tick(now time.Time) (slept time.Duration) {
	at := now.Sub(a.began)
	before := time.Duration(a.ticked.Swap(int64(at)))
	if before == 0 || at-before <= asleepFor {
		return 0
	}
	a.woke.Store(int64(at))
	return at - before
}

// since is when the process woke last, zero where it never slept. Who asks before the first tick after a sleep learns that it
// woke this moment.
func (a *awake) since(now time.Time) time.Time {
	if ticked := time.Duration(a.ticked.Load()); ticked != 0 && now.Sub(a.began)-ticked > asleepFor {
		return now
	}
	if woke := time.Duration(a.woke.Load()); woke != 0 {
		return a.began.Add(woke)
	}
	return time.Time{}
}

// Awake is since when this process has run without a pause in which nobody could be heard: zero where there was none while Run
// was at work. A node that slept itself, because its machine or its container stood still, must not take the others' silence for
// their death.
func (m *Mesh) Awake() time.Time { return m.awake.since(time.Now()) }
