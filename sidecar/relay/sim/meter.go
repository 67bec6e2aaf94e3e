package main

import (
	"google.golang.org/protobuf/proto"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// What a frame costs on the wire besides itself, where it goes alone in a segment, as nearly all do: the prefix of a gRPC
// message, the header of an HTTP/2 DATA frame, a TLS 1.3 record (header, content type, tag), and TCP (with timestamps) over
// IPv4. And what the receiver's acknowledgement costs, which nothing of its own carries along.
const (
	framing         = 5 + 9 + 5 + 1 + 16 + 32 + 20
	acknowledgement = 32 + 20
)

// meter counts what would go over the network, by the size of the real frames. The holds of one announcement go to many
// peers: they are measured once.
type meter struct {
	frames, payload int
	sizes           map[[2]*announcement]int
}

func newMeter() *meter { return &meter{sizes: map[[2]*announcement]int{}} }

// wire is all bytes, those of a cable.
func (m *meter) wire() int { return m.payload + m.frames*(framing+acknowledgement) }

func (m *meter) count(l *link, f *frame) {
	m.frames++
	if f.kind != kindHolds {
		m.payload += bytesOf(frameOf(l, f))
		return
	}
	key := [2]*announcement{f.base, f.next}
	n, ok := m.sizes[key]
	if !ok {
		n = bytesOf(frameOf(l, f))
		m.sizes[key] = n
	}
	m.payload += n
}

func bytesOf(f *pb.Frame) int { return proto.Size(&pb.ExchangeRequest{Frame: f}) }

// frameOf is a word as the mesh would say it.
func frameOf(l *link, f *frame) *pb.Frame {
	switch f.kind {
	case kindHeartbeat:
		return &pb.Frame{Body: &pb.Frame_Heartbeat{Heartbeat: heartbeatFrame(l.own.w, &f.beat)}}
	case kindHolds:
		return &pb.Frame{Body: &pb.Frame_Holds{Holds: holdsFrame(f.base, f.next)}}
	case kindClaim:
		return &pb.Frame{Body: &pb.Frame_ClaimRequest{ClaimRequest: &pb.ClaimRequest{
			Request: 1000, Stream: string(l.own.w.names[f.stream]), Epoch: f.epoch,
		}}}
	case kindClaimAnswer:
		return &pb.Frame{Body: &pb.Frame_ClaimAnswer{ClaimAnswer: &pb.ClaimAnswer{
			Request: 1000, Granted: f.claim.Granted, Holder: string(f.claim.Holder),
		}}}
	case kindPull:
		return &pb.Frame{Body: &pb.Frame_PullRequest{PullRequest: &pb.PullRequest{
			Request: 1000, Stream: string(l.own.w.names[f.stream]),
		}}}
	case kindPullAnswer:
		return &pb.Frame{Body: &pb.Frame_PullAnswer{PullAnswer: pullAnswer(&f.grant)}}
	case kindObituary:
		return &pb.Frame{Body: &pb.Frame_Obituary{Obituary: &pb.Obituary{Node: string(f.node), Incarnation: f.incarn}}}
	default:
		return &pb.Frame{Body: &pb.Frame_Goodbye{Goodbye: &pb.Goodbye{}}}
	}
}

func heartbeatFrame(w *world, b *heartbeat) *pb.Heartbeat {
	h := &pb.Heartbeat{
		Sequence: b.sequence, Clock: b.clock, Ready: b.ready, Draining: b.draining,
		PeriodMs: uint32(b.period.Milliseconds()), WantedPeriodMs: uint32(b.wanted.Milliseconds()), Probe: b.probe,
		EchoSequence: b.echo, EchoAgeUs: uint64(b.echoAge.Microseconds()),
	}
	for i, f := range b.flows {
		age := &pb.PacketAge{Stream: string(w.names[i]), Sequence: f.sequence}
		if f.known {
			age.AgeMs = new(uint64(max(f.age.Milliseconds(), 0)))
		}
		h.PacketAges = append(h.PacketAges, age)
	}
	return h
}

func holdsFrame(base, next *announcement) *pb.Holds {
	h := &pb.Holds{Sequence: next.sequence}
	var old []catalogue.Hold
	if base != nil {
		h.Base, old = base.sequence, base.holds
	}
	i := 0
	for _, hold := range next.holds {
		for ; i < len(old) && old[i].Stream < hold.Stream; i++ {
			h.Withdrawn = append(h.Withdrawn, string(old[i].Stream))
		}
		if i < len(old) && old[i].Stream == hold.Stream {
			i++
			if sameHold(old[i-1], hold) {
				continue
			}
		}
		h.Holds = append(h.Holds, holdFrame(hold))
	}
	for ; i < len(old); i++ {
		h.Withdrawn = append(h.Withdrawn, string(old[i].Stream))
	}
	return h
}

func holdFrame(h catalogue.Hold) *pb.Hold {
	p := &pb.Hold{
		Stream: string(h.Stream), Epoch: h.Epoch, Priority: h.Priority, Oldest: h.Oldest,
		DelayUs: uint64(h.Delay.Microseconds()),
	}
	for _, id := range h.Path {
		p.Path = append(p.Path, string(id))
	}
	for _, t := range h.Tracks {
		p.Tracks = append(p.Tracks, &pb.Track{Kind: t.Kind, Mime: t.MIME, Rid: t.RID})
	}
	return p
}

func pullAnswer(g *grant) *pb.PullAnswer {
	if g.refused != nil {
		return &pb.PullAnswer{Request: 1000, Result: &pb.PullAnswer_Refused{Refused: g.refused.Error()}}
	}
	p := &pb.Grant{
		Token: "0123456789abcdefghijklmnopqrstuv0123456789a", Epoch: g.of.Epoch, Sequence: g.sequence,
		Priority: g.of.Priority, Oldest: g.of.Oldest,
	}
	for _, id := range g.path {
		p.Path = append(p.Path, string(id))
	}
	return &pb.PullAnswer{Request: 1000, Result: &pb.PullAnswer_Grant{Grant: p}}
}
