package relay_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// A play that is under way when the last viewer has left keeps the relay: its viewer would be let in and see nothing.
func TestHoldKeepsALingeringRelay(t *testing.T) {
	run(t, func(_ *bed, o *relay.ManagerOptions) { o.Linger = 5 * time.Second }, func(b *bed) {
		b.peer("b1", "7 b1")
		if release, err := b.manager.Hold(b.Context(), "x"); release != nil || err != nil {
			b.Fatalf("something is held that does not run: %v", err)
		}
		b.play()()
		after(4 * time.Second)
		release, err := b.manager.Hold(b.Context(), "x")
		if err != nil || release == nil {
			b.Fatalf("held %t, %v", release != nil, err)
		}
		after(time.Minute)
		b.wantOwn("7 b1 a1")
		release()
		after(4 * time.Second)
		b.wantOwn("7 b1 a1")
		after(2 * time.Second)
		b.wantOwn("")
		b.wantPulls("b1")
	})
}

// One that comes while the relay ends waits for the next.
func TestHoldWaitsForTheNextRelay(t *testing.T) {
	run(t, func(_ *bed, o *relay.ManagerOptions) { o.Linger = time.Second }, func(b *bed) {
		b.peer("b1", "7 b1")
		b.play()()
		after(time.Second + freeTime/2)
		b.wantOwn("")
		ctx, cancel := context.WithTimeout(b.Context(), waitTime)
		defer cancel()
		release, err := b.manager.Hold(ctx, "x")
		if err != nil || release == nil {
			b.Fatalf("held %t, %v", release != nil, err)
		}
		b.wantOwn("7 b1 a1")
		b.wantPulls("b1", "b1")
		release()
	})
}

// A publisher at this node takes a relay's place: the relay has ended before Yield returns, and none begins until it is known
// what became of the publisher.
func TestYield(t *testing.T) {
	for name, published := range map[string]bool{"the server takes the publisher": true, "the server refuses it": false} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(b *bed) {
				b.peer("b1", "7 b1")
				if _, ok := b.manager.Yield(b.Context(), "x"); ok {
					b.Fatal("something is ended that does not run")
				}
				release := b.play()
				defer release()
				relayed := b.last()
				done, ok := b.manager.Yield(b.Context(), "x")
				if !ok || !relayed.isFreed() || b.own("x") != "" {
					b.Fatalf("yielded %t, freed %t, announced %q", ok, relayed.isFreed(), b.own("x"))
				}
				after(time.Minute)
				b.wantPulls("b1") // the viewer waits
				if !published {
					done(false)
					after(connectTime)
					b.wantOwn("7 b1 a1")
					return
				}
				done(true)
				after(5 * time.Second)
				b.wantPulls("b1")
				b.report(func(server map[adapters.StreamID]adapters.Stream) {
					server["x"] = adapters.Stream{ID: "x", Session: "publisher", Readers: 0}
				})
				b.wantOwn("8 a1")
				after(time.Second)
				b.wantPulls("b1")
				// It leaves again at once: what others publish is as good as before.
				b.report(func(server map[adapters.StreamID]adapters.Stream) { delete(server, "x") })
				after(connectTime)
				b.wantOwn("7 b1 a1")
			})
		})
	}
}

// A publisher that was taken and never connects is waited for, and no longer.
func TestYieldToNobody(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "7 b1")
		release := b.play()
		defer release()
		done, ok := b.manager.Yield(b.Context(), "x")
		if !ok {
			b.Fatal("not yielded")
		}
		done(true)
		after(14 * time.Second)
		b.wantOwn("")
		after(2 * time.Second)
		b.wantOwn("7 b1 a1")
	})
}

// Who gives up before the relay has ended leaves nothing behind.
func TestYieldInVain(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "7 b1")
		release := b.play()
		defer release()
		ctx, cancel := context.WithCancel(b.Context())
		cancel()
		if _, ok := b.manager.Yield(ctx, "x"); ok && !errors.Is(ctx.Err(), context.Canceled) {
			b.Error("yielded")
		}
		after(freeTime + connectTime)
		b.wantOwn("7 b1 a1")
	})
}
