package relay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	ladderTick = time.Second
	// A hop drowns where more than this part of the packets does not come, for so many seconds in a row: repair takes room too.
	// Below the lower bound it is calm.
	ladderLoss  = 0.10
	ladderCalm  = 0.02
	ladderDoubt = 2
	// After so much calm the next layer up is tried; twice as long after each time that this failed.
	climbWait    = 10 * time.Second
	climbWaitMax = 5 * time.Minute
	climbRoom    = 1.1 // of the next layer's bit rate
	// eventsAgain is when a stream of events that broke off is asked for again.
	eventsAgain = 5 * time.Second
)

// ladder decides which of a parent's simulcast layers a relay takes: one less where the hop drowns, more again where it has been
// calm for long enough. It is a pure function of what it is told.
type ladder struct {
	wanted  string // "": the parent's choice, its best
	trouble int    // seconds in a row
	calm    time.Time
	climbed time.Time
	wait    time.Duration
}

// step takes what the last second was like: which part of the packets did not come at first, and how many bits per second there
// is room for, 0 where that is not known. It says which layer is to be asked for now, if any.
func (l *ladder) step(now time.Time, layers []whip.Layer, lost float64, room int64) (rid string, ask bool) {
	flowing := slices.DeleteFunc(slices.Clone(layers), func(y whip.Layer) bool { return y.Bitrate <= 0 })
	slices.SortStableFunc(flowing, func(a, b whip.Layer) int { return cmp.Compare(a.Bitrate, b.Bitrate) })
	at := slices.IndexFunc(flowing, func(y whip.Layer) bool { return y.Name() == l.wanted })
	if l.wanted == "" || at < 0 {
		at = len(flowing) - 1
	}
	if l.wait == 0 {
		l.wait = climbWait
	}
	if l.calm.IsZero() || lost > ladderCalm || at < 0 {
		l.calm = now
	}
	if at < 0 {
		return "", false
	}
	if lost <= ladderLoss && (room == 0 || room >= flowing[at].Bitrate) {
		l.trouble = 0
		next := at + 1
		if l.wanted == "" || next >= len(flowing) || now.Sub(l.calm) < l.wait ||
			room > 0 && float64(room) < float64(flowing[next].Bitrate)*climbRoom {
			return "", false
		}
		l.wanted = flowing[next].Name()
		if next == len(flowing)-1 {
			l.wanted = ""
		}
		l.calm, l.climbed = now, now
		return l.wanted, true
	}
	l.calm = now
	if l.trouble++; l.trouble < ladderDoubt || at == 0 {
		return "", false
	}
	l.trouble = 0
	if !l.climbed.IsZero() && now.Sub(l.climbed) < l.wait {
		l.wait = min(2*l.wait, climbWaitMax)
	}
	l.wanted = flowing[at-1].Name()
	return l.wanted, true
}

// chooseLayers keeps a parent's layers to what the hop can carry, where the parent offers that, until ctx ends.
func (u *upstream) chooseLayers(ctx context.Context) {
	var mu sync.Mutex
	var told whip.Layers
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group.Go(func() {
		defer cancel()
		u.hearLayers(ctx, func(layers whip.Layers) {
			mu.Lock()
			defer mu.Unlock()
			told = layers
		})
	})
	mid := ""
	for _, t := range u.session.PeerConnection().GetTransceivers() {
		if t.Kind() == webrtc.RTPCodecTypeVideo {
			mid = t.Mid()
		}
	}
	tick := time.NewTicker(ladderTick)
	defer tick.Stop()
	var l ladder
	var last tally
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			mu.Lock()
			layers := told[mid]
			mu.Unlock()
			have := u.tally()
			lost := have.lostSince(last)
			last = have
			if len(layers) < 2 {
				continue
			}
			rid, ask := l.step(now, layers, lost, have.room)
			if !ask {
				continue
			}
			u.s.logger.Info("relay asks its parent for another layer", "layer", cmp.Or(rid, "best"), "lost", lost, "room", have.room)
			if err := u.session.SelectLayer(ctx, mid, rid); err != nil {
				u.s.logger.Warn("parent does not give another layer", "error", err)
				continue
			}
			u.s.mu.Lock()
			u.layer = rid
			u.s.mu.Unlock()
			u.s.options.Metrics.layer()
		}
	}
}

// hearLayers reports what the parent says of its layers, and returns where it has nothing to say.
func (u *upstream) hearLayers(ctx context.Context, report func(whip.Layers)) {
	for {
		err := u.session.Events(ctx, []string{whip.EventLayers}, func(e whip.Event) {
			var layers whip.Layers
			if e.Name == whip.EventLayers && json.Unmarshal(e.Data, &layers) == nil {
				report(layers)
			}
		})
		if ctx.Err() != nil || errors.Is(err, whip.ErrNoExtension) {
			return
		}
		u.s.logger.Debug("parent's events ended", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(eventsAgain):
		}
	}
}

// tally is what has come of a parent's video so far.
type tally struct {
	packets, missed uint64 // missed: repaired or not
	room            int64
}

func (u *upstream) tally() (c tally) {
	u.s.mu.Lock()
	f := u.feedLocked(webrtc.RTPCodecTypeVideo)
	u.s.mu.Unlock()
	if f != nil {
		stats := f.track.Stats()
		c.packets, c.missed = stats.Packets, stats.Lost+stats.Repaired
		if stats.Limited { // else there is room for more than was tried
			c.room = stats.Bandwidth
		}
	}
	return c
}

// lostSince is the part of the packets that did not come at first. What was late rather than lost makes counts fall.
func (c tally) lostSince(before tally) float64 {
	if c.missed <= before.missed || c.packets < before.packets {
		return 0
	}
	missed := float64(c.missed - before.missed)
	return missed / (missed + float64(c.packets-before.packets))
}
