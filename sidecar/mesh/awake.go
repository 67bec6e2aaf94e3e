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

// awake notices that this process stood still: what was not heard in that time says nothing of those who may have said it. The
// zero value has always been awake.
type awake struct {
	ticked atomic.Int64 // the last tick, in Unix nanoseconds; 0: there was none
	woke   atomic.Int64 // the last tick that came so late
}

// tick says that the process runs at this time, and how long it had not before.
func (a *awake) tick(now time.Time) (slept time.Duration) {
	before := a.ticked.Swap(now.UnixNano())
	if gap := time.Duration(now.UnixNano() - before); before != 0 && gap > asleepFor {
		a.woke.Store(now.UnixNano())
		return gap
	}
	return 0
}

// since is when the process woke last, zero where it never slept. Who asks before the first tick after a sleep learns that it
// woke this moment.
func (a *awake) since(now time.Time) time.Time {
	if ticked := a.ticked.Load(); ticked != 0 && time.Duration(now.UnixNano()-ticked) > asleepFor {
		return now
	}
	if woke := a.woke.Load(); woke != 0 {
		return time.Unix(0, woke)
	}
	return time.Time{}
}

// Awake is since when this process has run without a pause in which nobody could be heard: zero where there was none while Run
// was at work. A node that slept itself, because its machine or its container stood still, must not take the others' silence for
// their death.
func (m *Mesh) Awake() time.Time { return m.awake.since(time.Now()) }
