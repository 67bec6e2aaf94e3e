package main

import (
	"context"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// board is where the bench hangs out what is about to happen, and the watchers write when they saw it.
type board struct {
	mu     sync.Mutex
	events map[*event]struct{}
	hung   chan struct{} // closed and replaced when an event is hung out
}

// event is something that catalogues will know.
type event struct {
	began   time.Time
	happens func(*catalogue.State) bool
	from    int // cluster

	mu   sync.Mutex
	left map[*peer]struct{} // who has not seen it
	took []sight
	done chan struct{} // closed when all have seen it
}

// sight is when one watcher saw an event.
type sight struct {
	by   *peer
	took time.Duration
}

func newBoard() *board {
	return &board{events: map[*event]struct{}{}, hung: make(chan struct{})}
}

// expect hangs out an event that begins now, for these watchers.
func (b *board) expect(by []*peer, from int, happens func(*catalogue.State) bool) *event {
	e := &event{
		began: time.Now(), happens: happens, from: from, left: make(map[*peer]struct{}, len(by)), done: make(chan struct{}),
	}
	for _, p := range by {
		e.left[p] = struct{}{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events[e] = struct{}{}
	close(b.hung)
	b.hung = make(chan struct{})
	return e
}

// watch looks at a peer's catalogue at each change until ctx ends.
func (b *board) watch(ctx context.Context, p *peer) {
	for {
		b.mu.Lock()
		hung := b.hung
		b.mu.Unlock()
		state, changed := p.known.Snapshot()
		now := time.Now()
		b.mu.Lock()
		for e := range b.events {
			if e.see(p, state, now) {
				delete(b.events, e)
			}
		}
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-hung:
		}
	}
}

// see says whether the watcher was the last to see the event.
func (e *event) see(p *peer, s *catalogue.State, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.left[p]; !ok || !e.happens(s) {
		return false
	}
	delete(e.left, p)
	e.took = append(e.took, sight{by: p, took: now.Sub(e.began)})
	if len(e.left) > 0 {
		return false
	}
	close(e.done)
	return true
}

// wait returns when all have seen the event, or ctx ends.
func (e *event) wait(ctx context.Context) {
	select {
	case <-e.done:
	case <-ctx.Done():
	}
}

// sights are what was seen so far, and by how many it was not.
func (e *event) sights() (took []sight, missed int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.took, len(e.left)
}

// forget takes events down that nobody waits for any more.
func (b *board) forget(events ...*event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range events {
		delete(b.events, e)
	}
}
