package mesh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// channel dials a node as no Mesh would. It is closed with the test.
func (n *network) channel(t *testing.T, host, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(n.dialFrom(host)),
		grpc.WithNoProxy(), grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// stranger calls a node as no Mesh would. The call ends with the test.
func (n *network) stranger(t *testing.T, host, addr string) *dialledStream {
	t.Helper()
	conn := n.channel(t, host, addr)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	call, err := pb.NewMeshServiceClient(conn).Exchange(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &dialledStream{call}
}

func helloFrame(edit func(*pb.Hello)) *pb.Frame {
	h := &pb.Hello{Node: "s", Incarnation: 1, Cluster: "far", Process: []byte("p"), Connection: 1, Port: 1}
	if edit != nil {
		edit(h)
	}
	return &pb.Frame{Body: &pb.Frame_Hello{Hello: h}}
}

func confirmFrame() *pb.Frame { return &pb.Frame{Body: &pb.Frame_Confirm{Confirm: &pb.Confirm{}}} }

func heartbeatFrame(edit func(*pb.Heartbeat)) *pb.Frame {
	h := &pb.Heartbeat{Sequence: 1, PeriodMs: 5000, WantedPeriodMs: 5000}
	if edit != nil {
		edit(h)
	}
	return &pb.Frame{Body: &pb.Frame_Heartbeat{Heartbeat: h}}
}

func holdsFrame(sequence, base uint64, edit func(*pb.Holds), streams ...string) *pb.Frame {
	h := &pb.Holds{Sequence: sequence, Base: base}
	for _, s := range streams {
		h.Holds = append(h.Holds, &pb.Hold{Stream: s, Epoch: 1, Path: []string{"s"}})
	}
	if edit != nil {
		edit(h)
	}
	return &pb.Frame{Body: &pb.Frame_Holds{Holds: h}}
}

// join makes the dialler's handshake.
func join(t *testing.T, s *dialledStream) {
	t.Helper()
	if err := s.send(helloFrame(nil)); err != nil {
		t.Fatal(err)
	}
	if f, err := s.recv(); err != nil || f.GetHello() == nil {
		t.Fatalf("hello was answered %v, %v", f, err)
	}
	if err := s.send(confirmFrame()); err != nil {
		t.Fatal(err)
	}
}

// refusedWith reads until the call ends.
func refusedWith(s *dialledStream) error {
	for {
		if _, err := s.recv(); err != nil {
			return err
		}
	}
}

func many(n int, what string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%d", what, i)
	}
	return all
}

func TestAPeerThatLiesIsRefused(t *testing.T) {
	more := func(h *pb.Holds) { h.More = true }
	endless := func() []*pb.Frame {
		frames := []*pb.Frame{helloFrame(nil), confirmFrame()}
		for i := range catalogue.MaxHolds/1000 + 1 {
			frames = append(frames, holdsFrame(1, 0, more, many(1000, fmt.Sprint("s", i))...))
		}
		return frames
	}
	joined := func(frames ...*pb.Frame) []*pb.Frame {
		return append([]*pb.Frame{helloFrame(nil), confirmFrame()}, frames...)
	}
	hello := func(edit func(*pb.Hello)) []*pb.Frame { return []*pb.Frame{helloFrame(edit)} }
	holds := func(edit func(*pb.Holds), streams ...string) []*pb.Frame {
		return joined(holdsFrame(1, 0, edit, streams...))
	}
	path := func(path ...string) func(*pb.Holds) {
		return func(h *pb.Holds) { h.Holds[0].Path = path }
	}
	const bad = codes.InvalidArgument
	for _, tt := range []struct {
		name   string
		frames []*pb.Frame
		code   codes.Code
		reason string
	}{
		{"no frame", []*pb.Frame{nil}, bad, "frame"},
		{"no hello", []*pb.Frame{heartbeatFrame(nil)}, bad, "order"},
		{"no id", hello(func(h *pb.Hello) { h.Node = "" }), bad, "frame"},
		{"control characters in the id", hello(func(h *pb.Hello) { h.Node = "a\nb" }), bad, "frame"},
		{"endless id", hello(func(h *pb.Hello) { h.Node = strings.Repeat("x", 300) }), bad, "frame"},
		{"no cluster", hello(func(h *pb.Hello) { h.Cluster = "" }), bad, "frame"},
		{"port out of range", hello(func(h *pb.Hello) { h.Port = 70000 }), bad, "frame"},
		{"too many features", hello(func(h *pb.Hello) { h.Features = many(65, "f") }), bad, "frame"},
		{"the node's own id", hello(func(h *pb.Hello) { h.Node = "a" }), codes.PermissionDenied, "identity"},
		{"another node's id", hello(func(h *pb.Hello) { h.Node = "b" }), codes.PermissionDenied, "identity"},
		{"an older incarnation", hello(func(h *pb.Hello) { h.Node, h.Incarnation = "b", 0 }), codes.FailedPrecondition, "stale"},
		{"a clock far ahead", hello(func(h *pb.Hello) { h.Clock = 1 << 40 }), codes.FailedPrecondition, "clock"},
		{"no confirmation", []*pb.Frame{helloFrame(nil), heartbeatFrame(nil)}, bad, "order"},
		{"hello twice", joined(helloFrame(nil)), bad, "order"},
		{
			"a heartbeat's clock far ahead",
			joined(heartbeatFrame(func(h *pb.Heartbeat) { h.Clock = 1 << 40 })), codes.FailedPrecondition, "clock",
		},
		{"a stream without a name", holds(nil, ""), bad, "frame"},
		{"a stream that climbs", holds(nil, "../x"), bad, "frame"},
		{"no path", holds(path(), "x"), bad, "frame"},
		{"a path that ends elsewhere", holds(path("s", "b"), "x"), bad, "holds"},
		{"a path in circles", holds(path("s", "b", "s"), "x"), bad, "frame"},
		{"an endless path", holds(path(many(17, "n")...), "x"), bad, "frame"},
		{"a stream twice", holds(nil, "x", "x"), bad, "holds"},
		{"an update of nothing", joined(holdsFrame(5, 4, nil, "x")), bad, "holds"},
		{"an update of another set", joined(holdsFrame(1, 0, nil, "x"), holdsFrame(5, 4, nil, "y")), bad, "holds"},
		{"sequences that go back", joined(holdsFrame(3, 3, nil, "x")), bad, "frame"},
		{"pieces of two sets", joined(holdsFrame(1, 0, more, "x"), holdsFrame(2, 0, nil, "y")), bad, "holds"},
		{"too many in a piece", holds(nil, many(1025, "x")...), bad, "frame"},
		{"an endless catalogue", endless(), bad, "holds"},
		{"a message too large", joined(heartbeatFrame(func(h *pb.Heartbeat) {
			for range 100_000 {
				h.PacketAges = append(h.PacketAges, &pb.PacketAge{Stream: strings.Repeat("x", 100)})
			}
		})), codes.ResourceExhausted, "frame"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(time.Millisecond)
				a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
				a.SetPeers(at(addrB))
				a.book.hears(t, "b", 0)
				s := net.stranger(t, hostC, addrA)
				for i, f := range tt.frames {
					if err := s.send(f); err != nil {
						break // refused already
					}
					if i == 0 && len(tt.frames) > 1 {
						if _, err := s.recv(); err != nil {
							t.Fatalf("hello was answered: %v", err)
						}
					}
				}
				err := refusedWith(s)
				if status.Code(err) != tt.code && !(tt.code == codes.ResourceExhausted && status.Code(err) == codes.InvalidArgument) {
					t.Errorf("refused with %v, want %v", err, tt.code)
				}
				time.Sleep(time.Second)
				if n := a.counted(t, "sidestream_mesh_refused_total", tt.reason); n != 1 {
					t.Errorf("%v refusals were reported for %s", n, tt.reason)
				}
				if a.book.holds("s") != nil {
					t.Error("what it held is still believed")
				}
				// The rest goes on.
				b.book.publish(2, "x")
				a.book.hears(t, "b", 2, "x")
				if got := a.book.forgotten(); slices.Contains(got, "b") {
					t.Error("somebody else was forgotten")
				}
			})
		})
	}
}

func TestWhatANewerVersionSaysIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a"})
		s := net.stranger(t, hostC, addrA)
		join(t, s)
		future := &pb.Frame{}
		// Field 1000, a message of three bytes: a kind of frame that this version does not have.
		future.ProtoReflect().SetUnknown([]byte{0xc2, 0x3e, 0x03, 0x01, 0x02, 0x03})
		if err := s.send(future); err != nil {
			t.Fatal(err)
		}
		if err := s.send(holdsFrame(1, 0, nil, "x")); err != nil {
			t.Fatal(err)
		}
		a.book.hears(t, "s", 1, "x")
	})
}

// liar is a node that is dialled and answers as it likes.
type liar struct {
	pb.UnimplementedMeshServiceServer
	frames  []*pb.Frame
	mu      sync.Mutex
	refusal string
}

func (l *liar) Exchange(call grpc.BidiStreamingServer[pb.ExchangeRequest, pb.ExchangeResponse]) error {
	if _, err := call.Recv(); err != nil {
		return err
	}
	for _, f := range l.frames {
		if err := call.Send(&pb.ExchangeResponse{Frame: f}); err != nil {
			return err
		}
	}
	for {
		r, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if reason := r.GetFrame().GetRefusal().GetReason(); reason != "" {
			l.mu.Lock()
			l.refusal = reason
			l.mu.Unlock()
		}
	}
}

func TestANodeThatIsDialledAndLiesIsRefused(t *testing.T) {
	elsewhere := func(h *pb.Holds) { h.Holds[0].Path = []string{"x"} }
	for _, tt := range []struct {
		name   string
		frames []*pb.Frame
		reason string
		told   string // what the liar is told
	}{
		{"no hello", []*pb.Frame{heartbeatFrame(nil)}, "order", "did not say hello"},
		{"bad hello", []*pb.Frame{helloFrame(func(h *pb.Hello) { h.Node = " " })}, "frame", "printable"},
		{"the node's own id", []*pb.Frame{helloFrame(func(h *pb.Hello) { h.Node = "a" })}, "identity", "this node's"},
		{"a clock far ahead", []*pb.Frame{helloFrame(func(h *pb.Hello) { h.Clock = 1 << 40 })}, "clock", "too far ahead"},
		{"someone else's path", []*pb.Frame{helloFrame(nil), holdsFrame(1, 0, elsewhere, "x")}, "holds", "ends in x"},
		{"garbage", []*pb.Frame{helloFrame(nil), holdsFrame(0, 0, nil)}, "frame", "does not come after"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(time.Millisecond)
				a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
				bad := &liar{frames: tt.frames}
				server := grpc.NewServer(grpc.WaitForHandlers(true))
				pb.RegisterMeshServiceServer(server, bad)
				listener := net.listen(t, addrC)
				served := make(chan error)
				go func() { served <- server.Serve(listener) }()
				t.Cleanup(func() {
					server.Stop()
					<-served
				})
				a.SetPeers(at(addrB, addrC))
				a.book.hears(t, "b", 0)
				time.Sleep(time.Minute)
				if n := a.counted(t, "sidestream_mesh_refused_total", tt.reason); n < 1 || n > 20 {
					t.Errorf("%v refusals in a minute were reported for %s", n, tt.reason)
				}
				bad.mu.Lock()
				if !strings.Contains(bad.refusal, tt.told) {
					t.Errorf("it was told %q, want %q", bad.refusal, tt.told)
				}
				bad.mu.Unlock()
				if a.book.holds("s") != nil {
					t.Error("what it holds is believed")
				}
				b.book.publish(2, "x")
				a.book.hears(t, "b", 2, "x")
			})
		})
	}
}

// The better of two links breaks while the other is still there: what that one brings counts again.
func TestFallingBackOnTheOtherLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a"})
		s := net.stranger(t, hostC, addrA)
		join(t, s)
		if err := s.send(holdsFrame(1, 0, nil, "x")); err != nil {
			t.Fatal(err)
		}
		a.book.hears(t, "s", 1, "x")
		server := grpc.NewServer(grpc.WaitForHandlers(true))
		pb.RegisterMeshServiceServer(server, &liar{frames: []*pb.Frame{helloFrame(nil), holdsFrame(1, 0, nil, "x", "y")}})
		listener := net.listen(t, addrC)
		served := make(chan error)
		go func() { served <- server.Serve(listener) }()
		a.SetPeers(at(addrC))
		a.book.hears(t, "s", 1, "x", "y")
		if err := s.send(holdsFrame(2, 1, nil, "z")); err != nil { // not believed as long as the other link is there
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		a.book.hears(t, "s", 1, "x", "y")
		server.Stop()
		<-served
		a.book.hears(t, "s", 1, "x", "z")
		if got := a.book.forgotten(); len(got) > 0 {
			t.Errorf("forgotten: %v", got)
		}
	})
}

// A peer that keeps up its heartbeats but reads nothing costs a bounded amount, and then its link.
func TestASlowPeerCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a, b := net.member(t, hostA, config{id: "a"}), net.member(t, hostB, config{id: "b"})
		a.SetPeers(at(addrB))
		a.book.hears(t, "b", 0)
		s := net.stranger(t, hostC, addrA)
		join(t, s)
		if err := s.send(holdsFrame(1, 0, nil, "x")); err != nil {
			t.Fatal(err)
		}
		a.book.hears(t, "s", 1, "x")
		slow := a.link("s")
		names := make([]adapters.StreamID, 600)
		for i := range names {
			names[i] = adapters.StreamID(fmt.Sprintf("a-stream-with-a-name-of-some-length-%d", i))
		}
		for epoch := range uint64(80) {
			a.book.publish(epoch+1, names...)
			if epoch%10 == 0 {
				a.beatAllNow()
			}
			b.book.hears(t, "a", epoch+1, names...)
		}
		synctest.Wait()
		slow.mu.Lock()
		queue := len(slow.queue)
		slow.mu.Unlock()
		if queue > maxQueue || len(slow.pieces) > len(names)/pieceHolds+1 {
			t.Errorf("%d frames queued, %d pieces", queue, len(slow.pieces))
		}
		// It wakes up and reads: what it gets is a few sets, the last of which is the newest state, not eighty.
		seen := map[string]uint64{}
		sets := 0
		for sets == 0 || len(seen) < len(names) || seen[string(names[0])] < 80 {
			f, err := s.recv()
			if err != nil {
				t.Fatalf("after %d sets: %v", sets, err)
			}
			for _, h := range f.GetHolds().GetHolds() {
				seen[h.GetStream()] = h.GetEpoch()
			}
			if h := f.GetHolds(); h != nil && !h.GetMore() {
				sets++
			}
		}
		if sets > 5 {
			t.Errorf("%d sets were waiting for it", sets)
		}

		// It falls asleep again, and goes on to say that it is alive.
		for epoch := range uint64(80) {
			a.book.publish(81+epoch, names...)
			b.book.hears(t, "a", 81+epoch, names...)
		}
		began := time.Now()
		for i := uint64(2); !slow.ended() && time.Since(began) < time.Minute; i++ {
			_ = s.send(heartbeatFrame(func(h *pb.Heartbeat) { h.Sequence = i }))
			time.Sleep(time.Second)
		}
		if took := time.Since(began); !slow.ended() || took > blockedFor+5*time.Second {
			t.Errorf("its link ended: %v, after %v", slow.ended(), took)
		}
		b.book.hears(t, "a", 160, names...)
	})
}

// beatAllNow sends a heartbeat to everyone.
func (n *node) beatAllNow() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tellCondition()
}

func TestAPeerThatAsksAndDoesNotReadIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a", handler: answers{
			grant: func(catalogue.NodeID, adapters.StreamID) (Grant, error) {
				return Grant{}, &RefusedError{Reason: strings.Repeat("no ", 1000)}
			},
		}})
		s := net.stranger(t, hostC, addrA)
		join(t, s)
		for i := range uint64(5000) {
			f := &pb.Frame{Body: &pb.Frame_PullRequest{PullRequest: &pb.PullRequest{Request: i, Stream: "x"}}}
			if err := s.send(f); err != nil {
				break
			}
		}
		time.Sleep(time.Second)
		if n := a.counted(t, "sidestream_mesh_refused_total", "flood"); n != 1 {
			t.Errorf("%v refusals", n)
		}
		if err := refusedWith(s); status.Code(err) != codes.InvalidArgument {
			t.Errorf("refused with %v", err)
		}
	})
}

// A connection that says nothing, or half a handshake, is not kept.
func TestHandshakesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a"})
		s := net.stranger(t, hostC, addrA)
		began := time.Now()
		if err := s.send(helloFrame(nil)); err != nil {
			t.Fatal(err)
		}
		if err := refusedWith(s); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("ended with %v", err)
		}
		if took := time.Since(began); took > greetTimeout+time.Second {
			t.Errorf("kept for %v", took)
		}
		if a.links("s") != 0 {
			t.Error("has a link")
		}
	})
}

func TestAHandlerThatPanicsEndsOneLinkOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a", handler: answers{
			claim: func(catalogue.NodeID, adapters.StreamID, uint64) Claim { panic("a mistake") },
		}})
		b, c := net.member(t, hostB, config{id: "b"}), net.member(t, hostC, config{id: "c"})
		a.SetPeers(at(addrB, addrC))
		b.book.hears(t, "a", 0)
		c.book.hears(t, "a", 0)
		if _, err := b.Claim(t.Context(), "a", "x", 1); !errors.Is(err, ErrNotConnected) {
			t.Errorf("the claim: %v", err)
		}
		a.book.publish(1, "x")
		c.book.hears(t, "a", 1, "x")
		b.book.hears(t, "a", 1, "x") // connected again
	})
}

// Whatever two announcements are, the pieces lead from one to the other.
func TestPieces(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	set := func(n int) []catalogue.Hold {
		var holds []catalogue.Hold
		for i := range n {
			if random.IntN(3) > 0 {
				holds = append(holds, catalogue.Hold{
					Stream: adapters.StreamID(fmt.Sprintf("s%06d", i)), Epoch: random.Uint64N(2), Path: []catalogue.NodeID{"s"},
				})
			}
		}
		return holds
	}
	for range 300 {
		n := random.IntN(10)
		if random.IntN(20) == 0 {
			n = 4000
		}
		l := New(Options{Catalogue: newBook(catalogue.Node{ID: "a"})}).newLink(nil, true, &pb.Hello{Node: "s"}, "")
		var before *announcement
		for sequence := range uint64(4) {
			next := &announcement{sequence: sequence + 1, holds: set(n)}
			frames := pieces(before, next)
			for i, f := range frames {
				if err := f.Validate(); err != nil {
					t.Fatal(err)
				}
				if size := proto.Size(f); size > pieceBytes+1024 {
					t.Fatalf("a piece of %d bytes", size)
				}
				a, err := l.assemble(f.GetHolds())
				if err != nil {
					t.Fatal(err)
				}
				if last := i == len(frames)-1; last != !f.GetHolds().GetMore() {
					t.Fatalf("piece %d of %d says more %v", i+1, len(frames), f.GetHolds().GetMore())
				}
				if !f.GetHolds().GetMore() {
					l.assembling = nil
					if err := l.take(a); err != nil {
						t.Fatal(err)
					}
				}
			}
			got := l.set()
			slices.SortFunc(got, func(a, b catalogue.Hold) int { return strings.Compare(string(a.Stream), string(b.Stream)) })
			if !slices.EqualFunc(got, next.holds, equalHolds) {
				t.Fatalf("%d holds arrived of %d", len(got), len(next.holds))
			}
			before = next
		}
	}
}

// script is the dialler's end of a call that says what was written down, and reads nothing. It validates as the
// interceptor does.
type script struct {
	grpc.ServerStream
	lines [][]byte
}

func (*script) Context() context.Context { return context.Background() }

func (*script) Send(*pb.ExchangeResponse) error { return nil }

func (s *script) Recv() (*pb.ExchangeRequest, error) {
	if len(s.lines) == 0 {
		return nil, io.EOF
	}
	line := s.lines[0]
	s.lines = s.lines[1:]
	r := &pb.ExchangeRequest{}
	if err := proto.Unmarshal(line, r); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := r.Validate(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return r, nil
}

// lines cuts what a fuzzer writes into messages: each is preceded by its length in two bytes, the last one may be shorter.
func lines(data []byte) [][]byte {
	var all [][]byte
	for len(data) >= 2 && len(all) < 1000 {
		n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
		all = append(all, data[2:2+n])
		data = data[2+n:]
	}
	return all
}

func written(t testing.TB, frames ...*pb.Frame) []byte {
	t.Helper()
	var all []byte
	for _, f := range frames {
		data, err := proto.Marshal(&pb.ExchangeRequest{Frame: f})
		if err != nil {
			t.Fatal(err)
		}
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(data))), data...)
	}
	return all
}

// FuzzFrame: whatever bytes a peer sends, in the handshake or after it, they do nothing worse than to end its own link, and
// what is believed of it and kept for it stays within bounds.
func FuzzFrame(f *testing.F) {
	hello, confirm := helloFrame(nil), confirmFrame()
	for _, frames := range [][]*pb.Frame{
		{},
		{nil},
		{hello},
		{hello, hello},
		{confirm},
		{hello, {Body: &pb.Frame_Refusal{Refusal: &pb.Refusal{Reason: "no"}}}},
		{helloFrame(func(h *pb.Hello) {
			h.Namespace, h.ClusterFingerprint, h.Features, h.Host = "media", []byte("f"), []string{"x"}, "host"
		}), confirm},
		{helloFrame(func(h *pb.Hello) { h.Cluster, h.ClusterFingerprint = "near", []byte("another") }), confirm, heartbeatFrame(nil)},
		{helloFrame(func(h *pb.Hello) { h.Node = "a" }), confirm},
		{helloFrame(func(h *pb.Hello) { h.Clock = 1 << 63 }), confirm},
		{hello, confirm, heartbeatFrame(func(h *pb.Heartbeat) {
			h.Probe, h.EchoSequence, h.EchoAgeUs, h.PacketAges = true, 1, 1<<63, []*pb.PacketAge{{Stream: "x", AgeMs: new(uint64(1 << 63)), Sequence: 1 << 63}}
		})},
		{hello, confirm, holdsFrame(1, 0, nil, "x", "y"), holdsFrame(2, 1, func(h *pb.Holds) { h.Withdrawn = []string{"x"} }, "z")},
		{hello, confirm, holdsFrame(1, 0, func(h *pb.Holds) { h.More = true }, "x"), holdsFrame(1, 0, nil, "y")},
		{hello, confirm, {Body: &pb.Frame_ClaimRequest{ClaimRequest: &pb.ClaimRequest{Request: 1, Stream: "x", Epoch: 1}}}},
		{hello, confirm, {Body: &pb.Frame_ClaimAnswer{ClaimAnswer: &pb.ClaimAnswer{Request: 1, Holder: "s"}}}},
		{hello, confirm, {Body: &pb.Frame_PullRequest{PullRequest: &pb.PullRequest{Request: 1, Stream: "x"}}}},
		{hello, confirm, {Body: &pb.Frame_PullAnswer{PullAnswer: &pb.PullAnswer{
			Result: &pb.PullAnswer_Grant{Grant: &pb.Grant{Path: []string{"s"}}},
		}}}},
		{hello, confirm, {Body: &pb.Frame_Obituary{Obituary: &pb.Obituary{Node: "s"}}}},
		{hello, confirm, {Body: &pb.Frame_Goodbye{Goodbye: &pb.Goodbye{}}}},
	} {
		f.Add(written(f, frames...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBook(catalogue.Node{ID: "a", Cluster: "near"})
		m := New(Options{
			Catalogue: b, Security: Plaintext(), Namespace: "media", ClusterFingerprint: []byte("own"),
			Handler: answers{
				claim: func(catalogue.NodeID, adapters.StreamID, uint64) Claim { return Claim{Holder: "h"} },
				grant: func(catalogue.NodeID, adapters.StreamID) (Grant, error) {
					return Grant{Token: "t", Path: []catalogue.NodeID{"a"}}, nil
				},
			},
		})
		stream := acceptedStream{&script{lines: lines(data)}}
		l, err := m.welcome(stream)
		if err != nil || l == nil {
			if len(b.peers) > 0 || len(m.peers) > 0 {
				t.Fatal("believed without a handshake")
			}
			return
		}
		if err := m.keep(l); err != nil {
			t.Fatal(err)
		}
		l.read()
		if !l.ended() || strings.Contains(l.why.Error(), "internal error") {
			t.Fatalf("ended: %v", l.why)
		}
		id := l.node.ID
		for s, h := range b.peers[id].holds {
			if s.Validate() != nil || h.Holder() != id || len(h.Path) > catalogue.MaxPath {
				t.Fatalf("believed: %+v", h)
			}
		}
		if len(b.peers) > 1 || len(m.peers) > 1 || len(m.targets) > 0 || len(m.refusals) > 1 {
			t.Fatalf("kept: %d, %d peers, %d targets, %d refusals", len(b.peers), len(m.peers), len(m.targets), len(m.refusals))
		}
		if len(l.holds) > catalogue.MaxHolds || len(l.queue) > maxQueue || len(l.flows) > pb.MaxPacketAges || len(l.deaths) > 0 {
			t.Fatalf("kept: %d holds, %d answers, %d ages", len(l.holds), len(l.queue), len(l.flows))
		}
		if l.promised < relatedPeriod || l.promised > distantPeriod || l.theirs < relatedPeriod || l.theirs > distantPeriod {
			t.Fatalf("promised %v, wanted %v", l.promised, l.theirs)
		}
		for range len(l.queue) + 2 {
			if f, _ := l.next(time.Now()); f != nil && f.Validate() != nil {
				t.Fatalf("would send %v", f)
			}
		}
		m.remove(l, l.why)
		m.Peers()
	})
}
