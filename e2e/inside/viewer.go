//go:build linux

package inside

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

const (
	// Standing is how long a picture stands still to be called frozen: as browsers count it, some frames' time at 30 a second.
	Standing = 200 * time.Millisecond

	comeAgain = 250 * time.Millisecond // after a session has ended, or was refused
	giveUp    = 8 * time.Second        // without a frame people press the button again
)

// Viewer plays, and comes again when it is turned away, its session ends, or the picture stands still for long, as people do.
type Viewer struct {
	// Client plays; from another than the host's own where it is set before Run.
	Client *whip.Client

	where func(attempt int) string

	mu      sync.Mutex
	frames  int
	last    time.Time
	freezes []time.Duration
	opened  int // sessions in which frames came
	at      string
	report  player.Report // of the sessions that have ended, and
	current *player.Player
	err     error
	changed chan struct{}
}

// NewViewer makes a viewer in a host that asks where to play before each attempt, from 0 on; "" is nowhere yet.
func NewViewer(h *wan.Host, where func(attempt int) string) (*Viewer, error) {
	client, err := Client(h)
	return &Viewer{Client: client, where: where, changed: make(chan struct{})}, err
}

// Run plays until ctx ends.
func (v *Viewer) Run(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		if at, err := url.Parse(v.where(attempt)); err == nil && at.Host != "" {
			v.play(ctx, at)
		}
		select {
		case <-ctx.Done():
		case <-time.After(comeAgain):
		}
	}
}

func (v *Viewer) play(ctx context.Context, at *url.URL) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	patience := time.AfterFunc(giveUp+10*time.Second, leave) // an answer may be held back that long
	defer patience.Stop()
	p, first := player.New(v.Client), true
	p.OnFrame = func(now time.Time, _ *testsource.Stamp) {
		patience.Reset(giveUp)
		v.frame(now, first, at.Host)
		first = false
	}
	v.mu.Lock()
	v.current = p
	v.mu.Unlock()
	err := p.Run(ctx, adapters.Endpoint{URL: at})
	v.mu.Lock()
	defer v.mu.Unlock()
	r := p.Report()
	v.report.Missing += r.Missing
	v.report.Repeated += r.Repeated
	v.current, v.at, v.err = nil, "", err
}

func (v *Viewer) frame(now time.Time, first bool, at string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if first {
		v.opened++
		v.at = at
	}
	if gap := now.Sub(v.last); !v.last.IsZero() && gap >= Standing {
		v.freezes = append(v.freezes, gap)
	}
	v.frames++
	v.last = now
	close(v.changed)
	v.changed = make(chan struct{})
}

// Seen is what a viewer saw.
type Seen struct {
	Frames   int
	Sessions int             // in which frames came
	Missing  int             // frames of a session that did not come
	Repeated int             // and that came twice
	Freezes  []time.Duration // each time in which the picture stood still for Standing or longer, across sessions
	At       string          // host and port where it plays now, "" nowhere
	Age      time.Duration   // of frames on arrival: the median of the present session
}

// Seen is all that it saw since the start, and the freezes since Forget.
func (v *Viewer) Seen() Seen {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := Seen{
		Frames: v.frames, Sessions: v.opened, Missing: v.report.Missing, Repeated: v.report.Repeated,
		Freezes: slices.Clone(v.freezes), At: v.at,
	}
	if v.current != nil {
		r := v.current.Report()
		s.Missing, s.Repeated, s.Age = s.Missing+r.Missing, s.Repeated+r.Repeated, r.Median
	}
	if standing := time.Since(v.last); !v.last.IsZero() && standing >= Standing {
		s.Freezes = append(s.Freezes, standing) // it is not over
	}
	return s
}

// Forget forgets the freezes so far.
func (v *Viewer) Forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.freezes = nil
}

// Wait waits until n frames have come in all.
func (v *Viewer) Wait(ctx context.Context, n int) error {
	for {
		v.mu.Lock()
		frames, changed, err := v.frames, v.changed, v.err
		v.mu.Unlock()
		if frames >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d frames have come: %w; the last session ended with: %v", frames, n, ctx.Err(), err) //nolint:errorlint // it tells
		case <-changed:
		}
	}
}
