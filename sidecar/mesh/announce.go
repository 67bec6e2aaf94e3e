package mesh

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// The bounds of one piece of a set: heartbeats and answers go out between two pieces.
const (
	pieceHolds = 512
	pieceBytes = 256 << 10
)

// announcement is what the peers of one cluster are told at one moment. It never changes, so that all their links can
// share it; a link that is behind needs only its last one and the newest.
type announcement struct {
	sequence uint64
	holds    []catalogue.Hold // by stream
	told     []catalogue.Hold // by the catalogue, of which holds are made
}

// announce keeps the announcements up to date with the catalogue.
func (m *Mesh) announce(ctx context.Context) {
	for {
		// Asked for before the holds are read: a change in between is seen twice rather than never.
		_, changed := m.o.Catalogue.Snapshot()
		m.refresh()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-m.wakeAnnounce:
		}
	}
}

// refresh makes the announcements anew, and wakes the links whose peers do not know the newest.
func (m *Mesh) refresh() {
	m.mu.Lock()
	clusters := map[string]*announcement{}
	for _, p := range m.peers {
		clusters[p.node.Cluster] = m.announcements[p.node.Cluster]
	}
	m.mu.Unlock()

	for cluster, before := range clusters {
		told := m.o.Catalogue.Announcement(cluster)
		if before == nil || !sameHolds(before.told, told) {
			clusters[cluster] = &announcement{told: told, holds: m.announceable(told)}
		}
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range clusters {
		if a.sequence == 0 {
			m.announced++
			a.sequence = m.announced
		}
	}
	for _, p := range m.peers {
		if a := clusters[p.node.Cluster]; a != nil && a != m.announcements[p.node.Cluster] {
			for _, l := range p.links {
				l.wake.raise()
			}
		}
	}
	m.announcements = clusters
}

// announceable is what peers are told: sorted, each stream once, and nothing for which they would refuse this node.
func (m *Mesh) announceable(told []catalogue.Hold) []catalogue.Hold {
	holds := slices.Clone(told)
	slices.SortStableFunc(holds, func(a, b catalogue.Hold) int {
		if c := strings.Compare(string(a.Stream), string(b.Stream)); c != 0 {
			return c
		}
		return compareEpochs(b, a)
	})
	holds = slices.CompactFunc(holds, func(a, b catalogue.Hold) bool { return a.Stream == b.Stream })
	holds = slices.DeleteFunc(holds, func(h catalogue.Hold) bool {
		frame := &pb.Frame{Body: &pb.Frame_Holds{Holds: &pb.Holds{Sequence: 1, Holds: []*pb.Hold{holdFrame(h)}}}}
		err := frame.Validate()
		if err != nil || h.Holder() != m.self.ID {
			m.log.Error("own hold is not announced", "stream", h.Stream, "path", h.Path, "error", err)
			return true
		}
		return false
	})
	return holds[:min(len(holds), catalogue.MaxHolds)]
}

// nextPiece is the next frame that brings the peer up to date, nil when it is.
func (l *link) nextPiece() *pb.Frame {
	if len(l.pieces) == 0 {
		l.mesh.mu.Lock()
		a := l.mesh.announcements[l.node.Cluster]
		l.mesh.mu.Unlock()
		if a == nil || a == l.sent {
			return nil
		}
		l.pieces = pieces(l.sent, a)
		l.sent = a
	}
	f := l.pieces[0]
	l.pieces[0] = nil
	l.pieces = l.pieces[1:]
	return f
}

// pieces cuts the way from one announcement to the next into frames; from nil, the full set.
func pieces(from, to *announcement) []*pb.Frame {
	var base uint64
	var old []catalogue.Hold
	if from != nil {
		base, old = from.sequence, from.holds
	}
	var frames []*pb.Frame
	var current *pb.Holds
	var size int
	begin := func() {
		current, size = &pb.Holds{Sequence: to.sequence, Base: base, More: true}, 0
		frames = append(frames, &pb.Frame{Body: &pb.Frame_Holds{Holds: current}})
	}
	room := func(bytes int) {
		if len(current.GetHolds()) >= pieceHolds || len(current.GetWithdrawn()) >= pieceHolds || size+bytes > pieceBytes {
			begin()
		}
		size += bytes
	}
	begin()
	changed, withdrawn := difference(old, to.holds)
	for _, h := range changed {
		p := holdFrame(h)
		room(proto.Size(p))
		current.Holds = append(current.Holds, p)
	}
	for _, s := range withdrawn {
		room(len(s))
		current.Withdrawn = append(current.Withdrawn, string(s))
	}
	current.More = false
	return frames
}

// difference walks along two sorted sets.
func difference(old, next []catalogue.Hold) (changed []catalogue.Hold, withdrawn []adapters.StreamID) {
	i := 0
	for _, h := range next {
		for ; i < len(old) && old[i].Stream < h.Stream; i++ {
			withdrawn = append(withdrawn, old[i].Stream)
		}
		if i < len(old) && old[i].Stream == h.Stream {
			if !equalHolds(old[i], h) {
				changed = append(changed, h)
			}
			i++
			continue
		}
		changed = append(changed, h)
	}
	for ; i < len(old); i++ {
		withdrawn = append(withdrawn, old[i].Stream)
	}
	return changed, withdrawn
}
