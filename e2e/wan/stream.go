package wan

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

const (
	piece  = 16 << 10 // bytes that go over a link as one
	window = 1 << 20  // bytes that a stream holds at most: written, and not yet read at the far end
)

// errHalfClosed ends a stream whose connection is still read.
var errHalfClosed = errors.New("closed for writing")

// stream is one way of a connection: bytes go in at one end and come out, in order, when they have crossed the link. Each
// end may be used by one goroutine at a time (a second one waits).
type stream struct {
	direction *Direction
	notBefore time.Time // nothing counts as sent earlier

	reading, writing            sync.Mutex
	readDeadline, writeDeadline deadline

	mu       sync.Mutex
	pieces   []part
	admitted int // of pieces, those that the link has let in
	held     int // bytes in pieces
	last     time.Time
	finished bool  // no more can be written
	err      error // both ends are broken; what is under way is lost

	readable, writable chan struct{} // capacity 1
	broken             chan struct{} // closed by fail
}

// part is a piece of the stream, or its end.
type part struct {
	data    []byte
	arrival time.Time
	end     error
}

func newStream(d *Direction, notBefore time.Time) *stream {
	return &stream{
		direction: d, notBefore: notBefore,
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1), broken: make(chan struct{}),
	}
}

// Write puts bytes into the stream, and waits while it is full.
func (s *stream) Write(p []byte) (n int, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	for {
		put, err := s.put(p[n:])
		n += put
		if err != nil || n == len(p) {
			return n, err
		}
		select {
		case <-s.writable:
		case <-s.broken:
		case <-s.writeDeadline.passed():
			return n, os.ErrDeadlineExceeded
		}
	}
}

// put takes as many bytes as there is room for.
func (s *stream) put(p []byte) (n int, err error) {
	select {
	case <-s.writeDeadline.passed():
		return 0, os.ErrDeadlineExceeded
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return 0, s.err
	case s.finished:
		return 0, net.ErrClosed
	}
	for n < len(p) && s.held < window {
		size := min(len(p)-n, piece, window-s.held)
		s.pieces = append(s.pieces, part{data: append([]byte(nil), p[n:n+size]...)})
		s.held += size
		n += size
	}
	s.admit(time.Now())
	nudge(s.readable)
	return n, nil
}

// finish puts the end of the stream into it. The reader finds it after all that was written.
func (s *stream) finish(end error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || s.err != nil {
		return
	}
	s.finished = true
	s.pieces = append(s.pieces, part{end: end})
	s.admit(time.Now())
	nudge(s.readable)
}

// fail breaks both ends at once.
func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err, s.pieces, s.admitted, s.held = err, nil, 0, 0
	close(s.broken)
}

// Read takes out bytes that have arrived, and waits where there are none.
func (s *stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	for {
		var changed <-chan struct{}
		if s.direction != nil {
			changed = s.direction.change()
		}
		n, wait, err := s.take(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		if err := s.await(wait, changed); err != nil {
			return 0, err
		}
	}
}

// await returns when it is worth looking again: after wait (if that is not negative) or when something has changed.
func (s *stream) await(wait time.Duration, changed <-chan struct{}) error {
	var over <-chan time.Time
	if wait >= 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-over:
	case <-changed:
	case <-s.readable:
	case <-s.broken:
	case <-s.readDeadline.passed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// take is Read without waiting: it says how long to wait where nothing has arrived, negative where that is not known.
func (s *stream) take(p []byte) (n int, wait time.Duration, err error) {
	select {
	case <-s.readDeadline.passed():
		return 0, 0, os.ErrDeadlineExceeded
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, 0, s.err
	}
	now := time.Now()
	wait = s.admit(now)
	for s.admitted > 0 && n < len(p) {
		first := &s.pieces[0]
		if until := first.arrival.Sub(now); until > 0 {
			if wait < 0 || until < wait {
				wait = until
			}
			break
		}
		if first.end != nil {
			if n == 0 {
				err = first.end
			}
			break
		}
		size := copy(p[n:], first.data)
		n += size
		s.held -= size
		first.data = first.data[size:]
		if len(first.data) == 0 {
			*first = part{}
			s.pieces = s.pieces[1:]
			s.admitted--
		}
	}
	if n > 0 {
		nudge(s.writable)
	}
	return n, wait, err
}

// admit lets pieces onto the link as far as it takes them, and says how long to wait with the next; negative where there
// is none, or where only a change of the link can help.
func (s *stream) admit(now time.Time) time.Duration {
	for s.admitted < len(s.pieces) {
		next := &s.pieces[s.admitted]
		arrival := now
		if s.direction != nil {
			at, wait, ok := s.direction.admitStream(now, len(next.data))
			if !ok {
				return wait
			}
			arrival = at
		}
		if hold := s.notBefore.Sub(now); hold > 0 {
			arrival = arrival.Add(hold)
		}
		if arrival.Before(s.last) {
			arrival = s.last
		}
		s.last = arrival
		next.arrival = arrival
		s.admitted++
	}
	return -1
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// deadline is a moment that can be moved while somebody waits for it. The zero value never passes.
type deadline struct {
	mu    sync.Mutex
	over  chan struct{}
	timer *time.Timer
	moves int // tells a timer that fires too late to be stopped that it is no longer meant
}

// passed is closed once the deadline has passed. Whoever waits on it need not ask again when the deadline moves.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over == nil {
		d.over = make(chan struct{})
	}
	return d.over
}

// set moves the deadline; the zero time takes it away.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.moves++
	if d.over == nil || isClosed(d.over) {
		d.over = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		close(d.over)
		return
	}
	move := d.moves
	d.timer = time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.moves == move {
			close(d.over)
		}
	})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
