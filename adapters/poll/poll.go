// Package poll is Watch for adapters whose server tells its streams only when it is asked: it asks again and again, with
// jitter, never more than a fifth of the time, and reports what has changed.
package poll

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"sync"
	"syscall"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

const (
	// Interval is the longest pause between two questions to a server that answers quickly.
	Interval = 800 * time.Millisecond
	// near is the pause after Look, for nearTime.
	near     = 50 * time.Millisecond
	nearTime = 10 * time.Second
	// busy is how much longer than an answer took the pause after it is at least.
	busy = 4
	// maxPause bounds that: a server that answers slowly is still asked.
	maxPause = 10 * time.Second
	// misses in a row are passed over where the server has answered before.
	misses = 2
)

// Final is an answer that asking again does not change: wrong credentials, another API. It ends a Watch at once.
type Final struct{ Err error }

func (f *Final) Error() string { return f.Err.Error() }
func (f *Final) Unwrap() error { return f.Err }

// Poller is the state that all Watches of one server share. Its zero value is ready for use, and its methods may be called
// concurrently.
type Poller struct {
	mu    sync.Mutex
	until time.Time // for so long something is about to change
	heard time.Time // when the server answered last
	wake  chan struct{}
}

// Look implements adapters.Looker.
func (p *Poller) Look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = time.Now().Add(nearTime)
	if p.wake != nil {
		close(p.wake)
	}
	p.wake = make(chan struct{})
}

// Confirmed implements adapters.Confirmer.
func (p *Poller) Confirmed() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heard
}

func (p *Poller) confirm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard = time.Now()
}

func (p *Poller) state() (until time.Time, wake <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wake == nil {
		p.wake = make(chan struct{})
	}
	return p.until, p.wake
}

// Watch implements adapters.Adapter with a func that lists the streams as they stand, in an order of its own that does not
// change by itself. A server that refuses the connection, a Final error and the first answer's failure end it at once; of
// others it bears a few in a row.
func (p *Poller) Watch(
	ctx context.Context, list func(context.Context) ([]adapters.Stream, error), report func([]adapters.Stream),
) error {
	var (
		last   []adapters.Stream
		told   bool
		failed int
	)
	for {
		// Taken before the question: a Look meanwhile may be of what the answer does not hold yet.
		until, wake := p.state()
		began := time.Now()
		streams, err := list(ctx)
		switch final := (*Final)(nil); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			failed = 0
			p.confirm()
			if !told || !reflect.DeepEqual(streams, last) {
				last, told = streams, true
				report(streams)
			}
		case !told, failed >= misses, errors.As(err, &final), errors.Is(err, syscall.ECONNREFUSED):
			return err
		default:
			failed++
		}
		if err := p.pause(ctx, until, wake, time.Since(began)); err != nil {
			return err
		}
	}
}

func (p *Poller) pause(ctx context.Context, until time.Time, wake <-chan struct{}, took time.Duration) error {
	wait := Interval - rand.N(Interval/4) //nolint:gosec // spreads load
	if time.Now().Before(until) {
		wait = near
	}
	timer := time.NewTimer(max(wait, min(busy*took, maxPause)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	case <-wake:
	}
	return nil
}
