package relay_test

import (
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// What this node did not hear while it stood still is held against nobody: neither what fell silent nor what is quiet is left
// before others had the time to be heard again.
func TestASleeperLeavesNobody(t *testing.T) {
	var woke time.Time
	run(t, func(b *bed, o *relay.ManagerOptions) {
		gapless(b, o)
		o.Awake = func() time.Time {
			b.mu.Lock()
			defer b.mu.Unlock()
			return woke
		}
	}, func(b *bed) {
		b.locked(func() { b.peers.heard = map[ID]time.Time{"b1": time.Now().Add(-4 * time.Second)} })
		b.peer("b1", "5 e1 b1")
		defer b.play()()
		b.peer("c1", "5 e1 c1")
		s := b.last()
		b.locked(func() { woke = time.Now() })
		s.flow(relay.FlowSilent)
		after(500 * time.Millisecond)
		b.wantOwn("5 e1 b1 a1")
		b.wantChanges()
		after(400 * time.Millisecond) // it had its time, and is not heard
		b.wantOwn("5 e1 c1 a1")
		b.wantChanges(true)
	})
	woke = time.Time{}
	run(t, func(b *bed, o *relay.ManagerOptions) {
		o.Awake = func() time.Time {
			b.mu.Lock()
			defer b.mu.Unlock()
			return woke
		}
	}, func(b *bed) {
		b.peer("b1", "5 b1")
		b.peer("c1", "5 b1 c1")
		defer b.play()()
		after(time.Minute)
		b.locked(func() {
			b.sessions[0].last = time.Now().Add(-4 * time.Second)
			woke = time.Now()
		})
		b.peer("b1") // it lost what it had meanwhile
		after(time.Second)
		b.wantOwn("5 b1 a1")
		b.locked(func() { b.sessions[0].last = time.Time{} }) // and its packets come again
		after(time.Minute)
		b.wantOwn("5 b1 a1")
	})
}
