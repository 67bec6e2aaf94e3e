package mesh

import (
	"cmp"
	"math"
	"slices"
	"time"
	"unique"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

func holdFrame(h catalogue.Hold) *pb.Hold {
	p := &pb.Hold{
		Stream:   string(h.Stream),
		Epoch:    h.Epoch,
		Path:     texts(h.Path),
		Priority: h.Priority,
		Oldest:   h.Oldest,
		DelayUs:  uint64(max(h.Delay.Microseconds(), 0)),
	}
	for _, t := range h.Tracks {
		p.Tracks = append(p.Tracks, &pb.Track{Kind: t.Kind, Mime: t.MIME, Rid: t.RID})
	}
	return p
}

func holdFrom(p *pb.Hold) catalogue.Hold {
	h := catalogue.Hold{
		Stream:   adapters.StreamID(oneCopy(p.GetStream())),
		Epoch:    p.GetEpoch(),
		Path:     nodeIDs(p.GetPath()),
		Priority: p.GetPriority(),
		Oldest:   p.GetOldest(),
		Delay:    duration(p.GetDelayUs(), time.Microsecond),
	}
	for _, t := range p.GetTracks() {
		h.Tracks = append(h.Tracks, adapters.Track{Kind: oneCopy(t.GetKind()), MIME: oneCopy(t.GetMime()), RID: oneCopy(t.GetRid())})
	}
	return h
}

func grantFrame(g Grant) *pb.Grant {
	return &pb.Grant{
		Token: g.Token, Path: texts(g.Path), Epoch: g.Epoch, Priority: g.Priority, Oldest: g.Oldest, Sequence: g.Sequence,
	}
}

// grantFrom lacks the URL.
func grantFrom(p *pb.Grant) Grant {
	return Grant{
		Token: p.GetToken(), Path: nodeIDs(p.GetPath()), Epoch: p.GetEpoch(), Priority: p.GetPriority(), Oldest: p.GetOldest(),
		Sequence: p.GetSequence(),
	}
}

func equalHolds(a, b catalogue.Hold) bool {
	return a.Stream == b.Stream && a.Epoch == b.Epoch && a.Priority == b.Priority && a.Oldest == b.Oldest && a.Delay == b.Delay &&
		slices.Equal(a.Path, b.Path) && slices.Equal(a.Tracks, b.Tracks)
}

// sameHolds compares two sets at no cost where they are the same slice, as the catalogue gives it while nothing changes.
func sameHolds(a, b []catalogue.Hold) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.EqualFunc(a, b, equalHolds))
}

func compareEpochs(a, b catalogue.Hold) int { return cmp.Compare(a.Epoch, b.Epoch) }

func flowFrames(flows map[adapters.StreamID]Flow) []*pb.PacketAge {
	var frames []*pb.PacketAge
	for stream, f := range flows {
		if len(frames) >= pb.MaxPacketAges {
			break
		}
		frame := &pb.PacketAge{Stream: string(stream), Sequence: f.Sequence}
		if f.Known {
			frame.AgeMs = new(uint64(max(f.Age.Milliseconds(), 0)))
		}
		frames = append(frames, frame)
	}
	return frames
}

func flowsFrom(frames []*pb.PacketAge) map[adapters.StreamID]Flow {
	flows := make(map[adapters.StreamID]Flow, len(frames))
	for _, f := range frames {
		flows[adapters.StreamID(f.GetStream())] = Flow{
			Age: duration(f.GetAgeMs(), time.Millisecond), Known: f.AgeMs != nil, Sequence: f.GetSequence(),
		}
	}
	return flows
}

func loadFrame(l Load) *pb.Load {
	return &pb.Load{
		Plays: count(l.Plays), Publications: count(l.Publications), MaxPlays: count(l.MaxPlays),
		MaxPublications: count(l.MaxPublications), Url: l.URL,
	}
}

func loadFrom(p *pb.Load) Load {
	return Load{
		Plays: int(p.GetPlays()), Publications: int(p.GetPublications()), MaxPlays: int(p.GetMaxPlays()),
		MaxPublications: int(p.GetMaxPublications()), URL: p.GetUrl(),
	}
}

func count(n int) uint32 { return uint32(min(max(n, 0), math.MaxInt32)) }

// duration does not overflow, whatever a peer says.
func duration(n uint64, unit time.Duration) time.Duration {
	return time.Duration(min(n, uint64(math.MaxInt64/2/unit))) * unit
}

// oneCopy is the one copy of a text that comes again and again in the sets of all peers.
func oneCopy(text string) string { return unique.Make(text).Value() }

func nodeIDs(texts []string) []catalogue.NodeID {
	ids := make([]catalogue.NodeID, len(texts))
	for i, t := range texts {
		ids[i] = catalogue.NodeID(oneCopy(t))
	}
	return ids
}

func texts(ids []catalogue.NodeID) []string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = string(id)
	}
	return texts
}
