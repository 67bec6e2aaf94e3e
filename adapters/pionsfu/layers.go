package pionsfu

import (
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

const (
	rateWindow = time.Second
	// better is by how much, in quarters, another layer's bit rate must exceed that of the one which a viewer has, before the
	// viewer is moved to it: rates waver.
	better = 5
	// spare is how much room, in quarters of its bit rate, a layer needs before a viewer is moved up to it.
	spare = 5
)

// meter measures the bit rate of a layer over the last full second. One goroutine adds.
type meter struct {
	began time.Time
	bytes int
	bits  atomic.Int64 // per second, as measured last
}

func (r *meter) add(now time.Time, bytes int) {
	switch passed := now.Sub(r.began); {
	case r.began.IsZero():
		r.began = now
	case passed >= rateWindow:
		r.bits.Store(int64(float64(r.bytes*8) / passed.Seconds()))
		r.began, r.bytes = now, 0
	}
	r.bytes += bytes
}

// standing is what is to be known of a layer to choose among them.
type standing struct {
	rid   string
	alive bool
	bits  int64 // 0: not known
}

// standings are those of a feed's layers, in the publisher's order.
func (f *feed) standings(now time.Time) []standing {
	all := make([]standing, 0, len(f.layers))
	for _, l := range f.layers {
		all = append(all, standing{rid: l.rid, alive: l.alive(now), bits: l.rate.bits.Load()})
	}
	return all
}

// choose picks the layer that a viewer is to have: the wanted one; while that does not flow, the next below it; where none is
// wanted, that of the highest bit rate for which there is room, in bits per second (0: nobody knows how much), or the lowest. have
// is the one that the viewer has, -1 for none, which it keeps unless the room is known to be limited; for a little more it is not
// moved.
func choose(layers []standing, have int, wanted string, room int64, limited bool) int {
	limit := int64(math.MaxInt64)
	if i := slices.IndexFunc(layers, func(s standing) bool { return s.rid == wanted }); wanted != "" && i >= 0 {
		if layers[i].alive {
			return i
		}
		limit = layers[i].bits
	} else if room > 0 {
		limit = room
		if have >= 0 && layers[have].alive && (!limited || layers[have].bits <= room) {
			limit = max(layers[have].bits, room*4/spare) // what is new needs room to spare
		}
	}
	best := -1
	for i, s := range layers {
		if !s.alive {
			continue
		}
		if best < 0 {
			best = i
			continue
		}
		fits, fitted := s.bits <= limit, layers[best].bits <= limit
		if fits && (!fitted || s.bits > layers[best].bits) || !fits && !fitted && s.bits < layers[best].bits {
			best = i
		}
	}
	switch {
	case best < 0:
		return have
	case have >= 0 && layers[have].alive && layers[have].bits <= limit && layers[best].bits*4 <= layers[have].bits*better:
		return have
	}
	return best
}

// edge is where a lane ended, by the numbers that went out.
type edge struct {
	sequence  uint16
	timestamp uint32
	pictures  media.Pictures
	marker    bool
	arrival   time.Time
	ok        bool
}

// follow says how a layer whose key frame is next goes on behind the edge of another: timestamps by what the publisher says of
// both layers' clocks, else by the time of arrival; behind what has gone out in any case. had and has are the last sender
// reports of the one and the other, shift is how the one went out.
func (e edge) follow(
	next *media.Packet, pictures media.Pictures, had, has *media.SenderReport, shift media.Shift, clockRate uint32,
) media.Shift {
	var s media.Shift
	if had != nil && has != nil {
		s.Timestamp = had.At(has.NTP, clockRate) + shift.Timestamp - has.RTP
	} else {
		passed := next.Arrival.Sub(e.arrival)
		s.Timestamp = e.timestamp + uint32(int64(passed.Seconds()*float64(clockRate))) - next.Header.Timestamp
	}
	if int32(next.Header.Timestamp+s.Timestamp-e.timestamp) <= 0 {
		s.Timestamp = e.timestamp + clockRate/1000 - next.Header.Timestamp
	}
	s.Sequence = e.sequence + 1 - next.Header.SequenceNumber
	to := pictures.To(e.pictures.Next())
	s.Picture, s.Level, s.Frame = to.Picture, to.Level, to.Frame
	return s
}
