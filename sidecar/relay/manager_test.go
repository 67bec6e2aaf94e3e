package relay_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

type ID = catalogue.NodeID

const (
	connectTime = 200 * time.Millisecond // from a session's Run until it is live
	freeTime    = 50 * time.Millisecond  // from its end until it is freed
	waitTime    = 10 * time.Second       // for which a viewer is held
)

// bed is node a1 of cluster a with its manager; the mesh, the sessions and the local server are small fakes that keep
// what they are told. It lives in a synctest bubble, so that time is exact.
type bed struct {
	*testing.T
	catalogue *catalogue.Catalogue
	manager   *relay.Manager
	peers     *peers
	registry  *prometheus.Registry
	stop      context.CancelFunc
	ended     chan error

	reporting sync.Mutex // a server's reports come one after the other
	mu        sync.Mutex
	sessions  []*session
	server    map[adapters.StreamID]adapters.Stream // what the local server has
	script    func(*session)                        // sets up a session before it runs
	gapless   bool                                  // sessions change their source
}

func run(t *testing.T, options func(*bed, *relay.ManagerOptions), test func(b *bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{
			T: t, catalogue: catalogue.New(catalogue.Node{ID: "a1", Cluster: "a"}), registry: prometheus.NewRegistry(),
			server: map[adapters.StreamID]adapters.Stream{}, ended: make(chan error, 1),
		}
		b.peers = &peers{bed: b, silent: map[ID]bool{}, pull: map[ID]func(adapters.StreamID) (relay.Grant, error){}}
		o := relay.ManagerOptions{
			Catalogue: b.catalogue, Peers: b.peers, Registerer: b.registry,
			NewSession: func(s relay.Spec) relay.Runner { return b.newSession(s) },
		}
		if options != nil {
			options(b, &o)
		}
		b.manager = relay.NewManager(o)
		b.report(nil)
		ctx, cancel := context.WithCancel(t.Context())
		b.stop = cancel
		go func() { b.ended <- b.manager.Run(ctx) }()
		test(b)
		cancel()
		if err := <-b.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
		b.ended <- nil
		for _, s := range b.sessions {
			if !s.freed {
				t.Errorf("session of %s from %s is not freed", s.Stream, s.Parent)
			}
		}
		if h := b.catalogue.Announcement("a"); len(h) != len(b.server) {
			t.Errorf("still announced at the end: %v", h)
		}
	})
}

// peer announces holds of stream x, as "epoch path", of the path's last node; without holds it is only alive.
func (b *bed) peer(id ID, holds ...string) {
	b.Helper()
	var set []catalogue.Hold
	for _, s := range holds {
		h := catalogue.Hold{Stream: "x"}
		number, path, _ := strings.Cut(s, " ")
		if _, err := fmt.Sscan(number, &h.Epoch); err != nil {
			b.Fatal(err)
		}
		for _, f := range strings.Fields(path) {
			h.Path = append(h.Path, ID(f))
		}
		set = append(set, h)
	}
	if err := b.catalogue.SetPeer(catalogue.Node{ID: id, Cluster: string(id)[:1]}, set); err != nil {
		b.Fatal(err)
	}
}

// report changes what the local server has, if there is something to change, and lets it report.
func (b *bed) report(change func(map[adapters.StreamID]adapters.Stream)) {
	b.reporting.Lock()
	defer b.reporting.Unlock()
	b.mu.Lock()
	if change != nil {
		change(b.server)
	}
	var streams []adapters.Stream
	for _, s := range b.server {
		streams = append(streams, s)
	}
	b.mu.Unlock()
	if err := b.catalogue.SetLocal(streams); err != nil {
		b.Error(err)
	}
	b.manager.Report(streams)
}

func (b *bed) readers(n int) {
	b.report(func(server map[adapters.StreamID]adapters.Stream) {
		s := server["x"]
		s.ID, s.Readers = "x", n
		server["x"] = s
	})
}

// acquire plays x as a viewer who waits at most waitTime.
func (b *bed) acquire() (func(), error) {
	ctx, cancel := context.WithTimeout(b.Context(), waitTime)
	defer cancel()
	return b.manager.Acquire(ctx, "x")
}

// play is a viewer who gets the stream, and leaves again.
func (b *bed) play() (release func()) {
	b.Helper()
	release, err := b.acquire()
	if err != nil {
		b.Fatal(err)
	}
	return release
}

// after lets time pass, and all that follows from it happen.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// own is the node's hold of a stream as peers are told, "" for none.
func (b *bed) own(id adapters.StreamID) string {
	s, _ := b.catalogue.Snapshot()
	h, ok := s.Own(id)
	if !ok {
		return ""
	}
	return strings.TrimSuffix(fmt.Sprint(h.Epoch, " ", strings.Trim(fmt.Sprint(h.Path), "[]")), " ")
}

func (b *bed) wantOwn(want string) {
	b.Helper()
	synctest.Wait()
	if got := b.own("x"); got != want {
		b.Errorf("own hold %q, want %q", got, want)
	}
}

func (b *bed) wantPulls(want ...ID) {
	b.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := cmp.Diff(want, b.peers.pulls); d != "" {
		b.Errorf("pulls: %s", d)
	}
}

func (b *bed) status() relay.Status {
	b.Helper()
	synctest.Wait()
	list := b.manager.Status()
	if len(list) != 1 {
		b.Fatalf("%d streams: %v", len(list), list)
	}
	return list[0]
}

// locked changes or reads what the fakes keep.
func (b *bed) locked(do func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	do()
}

func (b *bed) setScript(script func(*session)) { b.locked(func() { b.script = script }) }

func (b *bed) setPull(id ID, pull func(adapters.StreamID) (relay.Grant, error)) {
	b.locked(func() { b.peers.pull[id] = pull })
}

func (b *bed) made() (sessions, pulls int, claims []ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sessions), len(b.peers.pulls), slices.Clone(b.peers.claims)
}

// last is the newest session.
func (b *bed) last() *session {
	b.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.sessions) == 0 {
		b.Fatal("no session")
	}
	return b.sessions[len(b.sessions)-1]
}

func (b *bed) count(metric, value string) float64 {
	families, err := b.registry.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == metric && (value == "" || m.GetLabel()[0].GetValue() == value) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	b.Fatalf("no metric %s %s", metric, value)
	return 0
}

// peers are the other nodes: who holds a stream grants it by the path that it announces, unless told otherwise.
type peers struct {
	*bed
	pulls  []ID
	claims []ID // owners that were asked
	silent map[ID]bool
	answer relay.Claim // of owners that are not silent
	pull   map[ID]func(adapters.StreamID) (relay.Grant, error)

	measured  atomic.Int64         // how often the planner asked for a round trip
	ages      map[ID]time.Duration // of x, as parents say
	heard     map[ID]time.Time     // not there: just now; zero: never
	sequences map[ID]uint64
}

func (p *peers) RTT(ID) (time.Duration, bool) {
	p.measured.Add(1)
	return 40 * time.Millisecond, true
}

func (p *peers) PacketAge(parent ID, _ adapters.StreamID) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	age, ok := p.ages[parent]
	return age, ok
}

func (p *peers) Heard(id ID) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.heard[id]
	if !ok {
		return time.Now(), true
	}
	return at, !at.IsZero()
}

func (p *peers) Sequence(parent ID, _ adapters.StreamID) (uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sequence, ok := p.sequences[parent]
	return sequence, ok
}

func (p *peers) Claim(ctx context.Context, owner ID, _ adapters.StreamID, _ uint64) (relay.Claim, error) {
	p.mu.Lock()
	p.claims = append(p.claims, owner)
	silent, answer := p.silent[owner], p.answer
	p.mu.Unlock()
	if silent {
		<-ctx.Done()
		return relay.Claim{}, ctx.Err()
	}
	return answer, nil
}

func (p *peers) Pull(_ context.Context, parent ID, stream adapters.StreamID) (relay.Grant, error) {
	if own := p.own(stream); own != "" && !p.gapless {
		p.Errorf("a parent is asked while %q is still announced", own)
	}
	p.mu.Lock()
	p.pulls = append(p.pulls, parent)
	pull := p.bed.peers.pull[parent]
	p.mu.Unlock()
	if pull != nil {
		return pull(stream)
	}
	s, _ := p.catalogue.Snapshot()
	h, ok := s.Hold(parent, stream)
	if !ok {
		return relay.Grant{}, adapters.ErrNoStream
	}
	return relay.Grant{Token: "t", Path: h.Path, Epoch: h.Epoch, URL: "https://" + string(parent)}, nil
}

// session carries nothing, but comes and goes as one does, and keeps the local server's list.
type session struct {
	*bed
	relay.Spec
	name    string
	connect time.Duration
	failing error         // instead of becoming live
	silent  bool          // never becomes live
	lasts   time.Duration // from when it is live until it ends; 0: for ever
	end     chan error
	live    chan struct{}
	ended   chan struct{}
	last    time.Time // when the last packet came; zero: a moment ago
	freed   bool
	joined  int // calls of Joined

	source        relay.SourceState
	sourceChanged chan struct{}
	sources       []relay.Source // that it was changed to
	refuses       error          // a change
	changing      time.Duration

	standbys []standby // second copies that it was given
}

// standby is a second copy; what is sent to end ends it: nil where it has taken over.
type standby struct {
	parent ID
	end    chan error
}

func (b *bed) newSession(spec relay.Spec) *session {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &session{
		bed: b, Spec: spec, name: fmt.Sprint("s", len(b.sessions)), connect: connectTime,
		end: make(chan error, 1), live: make(chan struct{}), ended: make(chan struct{}),
		source: relay.SourceState{Flow: relay.FlowOn}, sourceChanged: make(chan struct{}),
	}
	for _, other := range b.sessions {
		if other.Stream == s.Stream && !other.freed {
			b.Errorf("a second session of %s is made before the first is freed", s.Stream)
		}
	}
	b.sessions = append(b.sessions, s)
	if b.script != nil {
		b.script(s)
	}
	return s
}

func (s *session) isFreed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freed
}

func (s *session) Live() <-chan struct{}  { return s.live }
func (s *session) Ended() <-chan struct{} { return s.ended }

func (s *session) LastPacket() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.IsZero() {
		return time.Now()
	}
	return s.last
}

func (s *session) Change(ctx context.Context, to relay.Source) (string, error) {
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(s.changing):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuses != nil {
		return "", s.refuses
	}
	s.sources = append(s.sources, to)
	s.setFlow(relay.FlowOn)
	return relay.HowAligned, nil
}

func (s *session) Standby(ctx context.Context, from relay.Source) (bool, error) {
	second := standby{parent: ID(from.From.URL.Host), end: make(chan error, 1)}
	s.locked(func() { s.standbys = append(s.standbys, second) })
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-s.ended:
		return false, relay.ErrNotLive
	case err := <-second.end:
		return err == nil, err
	}
}

func (s *session) Source() (relay.SourceState, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.source, s.sourceChanged
}

// setFlow says how the source stands. The lock is held.
func (s *session) setFlow(flow relay.SourceFlow) {
	s.source = relay.SourceState{Flow: flow, Since: time.Now()}
	close(s.sourceChanged)
	s.sourceChanged = make(chan struct{})
}

func (s *session) flow(flow relay.SourceFlow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setFlow(flow)
}

func (s *session) Joined() {
	s.bed.locked(func() { s.joined++ })
}

func (s *session) Location() string { return "http://server/whip/x/" + s.name }
func (s *session) Status() relay.SessionStatus {
	return relay.SessionStatus{Stream: s.Stream, Location: s.Location()}
}

func (s *session) Run(ctx context.Context) error {
	defer func() {
		close(s.ended)
		time.Sleep(freeTime)
		s.mu.Lock()
		s.freed = true
		gone := s.server[s.Stream].Session == s.name
		s.mu.Unlock()
		if gone {
			s.report(func(server map[adapters.StreamID]adapters.Stream) { delete(server, s.Stream) })
		}
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(s.connect):
	}
	if s.failing != nil {
		return s.failing
	}
	s.report(func(server map[adapters.StreamID]adapters.Stream) {
		server[s.Stream] = adapters.Stream{ID: s.Stream, Session: s.name}
	})
	if own := s.own(s.Stream); own != "" {
		s.Errorf("the relay's publication is announced before it is live: %s", own)
	}
	if !s.silent {
		close(s.live)
	}
	var over <-chan time.Time
	if s.lasts > 0 {
		over = time.After(s.lasts)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-over:
		return errors.New("crash")
	case err := <-s.end:
		return err
	}
}

func TestManyViewersOnePull(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		began := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				release, err := b.acquire()
				if err != nil {
					b.Error(err)
					return
				}
				if waited := time.Since(began); waited != connectTime {
					b.Errorf("waited %s", waited)
				}
				release()
				release()
			})
		}
		wg.Wait()
		b.wantPulls("b1")
		b.wantOwn("5 b1 a1")
		if got := b.count("sidestream_acquires_total", "live"); got != 100 {
			b.Errorf("%v plays counted", got)
		}
		if s := b.status(); s.State != relay.StateLive || s.Demand.Viewers != 0 || s.Session.Location == "" {
			b.Errorf("status %+v", s)
		}
		if s, _ := b.catalogue.Snapshot(); len(s.Origins()) != 0 {
			b.Errorf("the relay is announced as an origin: %v", s.Origins())
		}
		if d := cmp.Diff(relay.Grant{Token: "t", Path: []ID{"b1"}, Epoch: 5, URL: "https://b1"}, b.last().Grant); d != "" {
			b.Error(d)
		}
	})
}

func TestLinger(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.play()()
		after(14 * time.Second)
		b.wantOwn("5 b1 a1")
		b.readers(1) // the viewer is seen by the server
		after(time.Hour)
		b.wantOwn("5 b1 a1")
		if got := b.status().Demand; got != (planner.Demand{Viewers: 1}) {
			b.Errorf("demand %+v", got)
		}
		b.readers(0)
		after(14 * time.Second)
		b.wantOwn("5 b1 a1")
		if got := b.status().Demand; got != (planner.Demand{Lingering: true}) {
			b.Errorf("demand %+v", got)
		}
		after(time.Second)
		b.wantOwn("")
		after(freeTime)
		if got := b.manager.Status(); len(got) != 0 {
			b.Errorf("status at rest: %+v", got)
		}
		b.wantPulls("b1")
		if got := b.count("sidestream_relay_ends_total", "unwanted"); got != 1 {
			b.Errorf("%v ended as unwanted", got)
		}
	})
}

// The session hears of more readers, and of nothing else.
func TestReadersJoin(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.play()()
		for _, step := range []struct{ readers, joined int }{{1, 1}, {1, 1}, {4, 2}, {2, 2}, {-1, 2}, {0, 2}, {1, 3}} {
			b.readers(step.readers)
			after(time.Second)
			var joined int
			s := b.last()
			b.locked(func() { joined = s.joined })
			if joined != step.joined {
				b.Errorf("%d readers: the session was told %d times, want %d", step.readers, joined, step.joined)
			}
		}
	})
}

// What comes from another cluster crosses once, whoever fetched it; each further viewer would have had it cross again.
func TestShare(t *testing.T) {
	for name, tt := range map[string]struct {
		parent ID
		hold   string
		want   relay.Share
	}{
		"from the origin's cluster": {"b1", "5 b1", relay.Share{Crosses: true, Foreign: true, Viewers: 3}},
		"within the cluster":        {"a2", "5 b1 a2", relay.Share{Foreign: true, Viewers: 3}},
		"of the own cluster":        {"a2", "5 a2", relay.Share{Viewers: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(b *bed) {
				if got := b.manager.Share("x"); got != (relay.Share{}) {
					b.Errorf("before: %+v", got)
				}
				b.peer("b1")
				b.peer(tt.parent, tt.hold)
				b.play()()
				b.readers(3)
				after(time.Second)
				if got := b.manager.Share("x"); got != tt.want {
					b.Errorf("%+v", got)
				}
			})
		})
	}
}

func TestHeldWhereTheServerDoesNotCount(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		release := b.play()
		b.readers(-1)
		after(time.Hour)
		b.wantOwn("5 b1 a1")
		release()
		after(15 * time.Second)
		b.wantOwn("")
	})
}

func TestViewerIsNotHeldForever(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.setScript(func(s *session) { s.silent = true })
		began := time.Now()
		_, err := b.acquire()
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, adapters.ErrNoStream) {
			b.Errorf("error %v", err)
		}
		if waited := time.Since(began); waited != waitTime {
			b.Errorf("waited %s", waited)
		}
		after(15*time.Second + freeTime) // nobody wants it any more
		if got := b.manager.Status(); len(got) != 0 {
			b.Errorf("status at rest: %+v", got)
		}
	})
}

func TestNobodyHoldsIt(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1")
		began := time.Now()
		for _, id := range []adapters.StreamID{"x", "", "../x"} {
			if _, err := b.manager.Acquire(b.Context(), id); !errors.Is(err, adapters.ErrNoStream) {
				b.Errorf("%q: error %v", id, err)
			}
		}
		if waited := time.Since(began); waited != 0 {
			b.Errorf("waited %s", waited)
		}
		b.wantPulls()
		if got := b.manager.Status(); len(got) != 0 {
			b.Errorf("it is remembered: %+v", got)
		}
	})
}

// TestEverybodyRefuses: holders that have no source any more are asked once in a second, whoever plays.
func TestEverybodyRefuses(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.peer("c1", "5 b1 c1")
		for _, id := range []ID{"b1", "c1"} {
			b.setPull(id, func(adapters.StreamID) (relay.Grant, error) { return relay.Grant{}, adapters.ErrNoStream })
		}
		for range 5 {
			if _, err := b.acquire(); !errors.Is(err, adapters.ErrNoStream) {
				b.Errorf("error %v", err)
			}
		}
		b.wantPulls("b1", "c1")
		after(6 * time.Second)
		if _, n, _ := b.made(); n < 6 || n > 14 {
			b.Errorf("%d pulls in six seconds more", n)
		}
		b.setPull("b1", nil)
		after(8 * time.Second) // somebody wanted it a moment ago
		b.wantOwn("5 b1 a1")
	})
}

func TestPublishedHere(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		release := b.play()
		b.wantOwn("5 b1 a1")
		b.report(func(server map[adapters.StreamID]adapters.Stream) {
			server["x"] = adapters.Stream{ID: "x", Session: "publisher", Readers: 3}
		})
		b.wantOwn("6 a1")
		after(freeTime)
		if !b.last().isFreed() {
			b.Error("the relay goes on beside the publisher")
		}
		if got := b.count("sidestream_relay_ends_total", "origin"); got != 1 {
			b.Errorf("%v ended for an origin", got)
		}
		b.play()()
		release()
		b.wantPulls("b1")
		b.wantOwn("6 a1")
		after(time.Hour)
		b.wantOwn("6 a1")
	})
}

// TestParentDies: the hold is withdrawn before another parent is asked (the fake checks), and viewers need do nothing.
func TestParentDies(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.peer("c1", "5 b1 c1")
		defer b.play()()
		b.last().end <- errors.New("connection lost")
		after(freeTime)
		b.wantOwn("")
		after(connectTime)
		b.wantOwn("5 b1 c1 a1")
		b.wantPulls("b1", "c1")
		b.last().end <- errors.New("connection lost")
		after(time.Second)
		b.wantOwn("5 b1 a1")
		if s := b.status(); !strings.Contains(s.LastError, "connection lost") {
			b.Errorf("last error %q", s.LastError)
		}
	})
}

// TestControlLost: media that flows is not ended because nobody is heard any more.
func TestControlLost(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		defer b.play()()
		b.catalogue.Forget("b1")
		after(time.Hour)
		b.wantOwn("5 b1 a1")
		b.play()()
		b.last().end <- errors.New("connection lost")
		after(time.Minute)
		b.wantOwn("")
		if _, err := b.acquire(); !errors.Is(err, adapters.ErrNoStream) {
			b.Errorf("error %v", err)
		}
		b.wantPulls("b1")
	})
}

func TestParentWithoutSourceForAMoment(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.peer("c1", "5 b1 c1")
		b.setPull("b1", func(adapters.StreamID) (relay.Grant, error) { return relay.Grant{}, errors.New("busy") })
		defer b.play()()
		b.wantOwn("5 b1 c1 a1")
		b.peer("c1")
		after(time.Minute)
		b.wantOwn("5 b1 c1 a1")
		b.peer("c1", "5 b1 d1 c1")
		b.wantOwn("5 b1 d1 c1 a1") // and the path is the parent's new one
		b.setPull("b1", nil)
		b.peer("c1", "5 b1 a1 c1")
		after(freeTime + connectTime)
		b.wantPulls("b1", "c1", "b1") // a loop is left
		b.wantOwn("5 b1 a1")
	})
}

func TestClaimGrantedToAnother(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		other, owner := b.owner()
		b.peer(other)
		b.locked(func() { b.peers.answer = relay.Claim{Holder: other} })
		result := make(chan error)
		go func() {
			_, err := b.acquire()
			result <- err
		}()
		after(3 * time.Second)
		b.wantPulls()
		if _, _, claims := b.made(); len(claims) < 3 || len(claims) > 4 || claims[0] != owner {
			b.Errorf("owners asked in three seconds: %v", claims)
		}
		if s := b.status(); s.State != relay.StateWaiting || s.Parent != other {
			b.Errorf("status %+v", s)
		}
		b.peer(other, fmt.Sprintf("5 b1 %s", other))
		if err := <-result; err != nil {
			b.Error(err)
		}
		b.wantPulls(other)
		b.wantOwn(fmt.Sprintf("5 b1 %s a1", other))
	})
}

// owner adds nodes to cluster a so that one of them owns x, and names another too.
func (b *bed) owner() (other, owner ID) {
	nodes := []ID{"a1"}
	for i := 2; ; i++ {
		nodes = append(nodes, ID(fmt.Sprint("a", i)))
		b.peer(nodes[len(nodes)-1])
		if order := planner.Rank("x", nodes); len(nodes) > 2 && order[0] != "a1" {
			return nodes[slices.IndexFunc(nodes, func(id ID) bool { return id != "a1" && id != order[0] })], order[0]
		}
	}
}

func TestClaimGranted(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		_, owner := b.owner()
		b.locked(func() { b.peers.answer = relay.Claim{Granted: true} })
		defer b.play()()
		b.wantPulls("b1")
		_, _, claims := b.made()
		if d := cmp.Diff([]ID{owner}, claims); d != "" {
			b.Error(d)
		}
		// Within the lease the pull is tried again without asking.
		after(time.Minute)
		b.last().end <- errors.New("connection lost")
		after(2 * time.Second)
		b.wantOwn("5 b1 a1")
		if _, _, claims := b.made(); len(claims) != 1 {
			b.Errorf("owners asked: %v", claims)
		}
	})
}

func TestOwnersAreSilent(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		nodes := []ID{"a1"}
		for i := 2; slices.Contains(planner.Rank("x", nodes)[:min(2, len(nodes))], "a1"); i++ {
			id := ID(fmt.Sprint("a", i))
			nodes = append(nodes, id)
			b.peer(id)
			b.locked(func() { b.peers.silent[id] = true })
		}
		began := time.Now()
		defer b.play()()
		if waited := time.Since(began); waited != 600*time.Millisecond+connectTime {
			b.Errorf("waited %s", waited)
		}
		b.wantPulls("b1")
		_, _, claims := b.made()
		if d := cmp.Diff(planner.Rank("x", nodes)[:2], claims); d != "" {
			b.Error(d)
		}
		if got := b.count("sidestream_claims_total", "silent"); got != 2 {
			b.Errorf("%v silent owners counted", got)
		}
	})
}

// TestTwoPullers: after a race for the claim the one that ranks lower stays and the other goes under it.
func TestTwoPullers(t *testing.T) {
	var senior, junior ID
	for i := 2; senior == "" || junior == ""; i++ {
		id := ID(fmt.Sprint("a", i))
		if planner.Rank("x", []ID{"a1", id})[0] == id {
			senior = id
		} else {
			junior = id
		}
	}
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		defer b.play()()
		b.peer(junior, fmt.Sprintf("5 b1 %s", junior))
		after(time.Minute)
		b.wantOwn("5 b1 a1")
		b.peer(senior, fmt.Sprintf("5 b1 %s", senior))
		after(freeTime + connectTime)
		b.wantOwn(fmt.Sprintf("5 b1 %s a1", senior))
		b.wantPulls("b1", senior)
		if got := b.count("sidestream_relay_ends_total", "moved"); got != 1 {
			b.Errorf("%v moved", got)
		}
	})
}

func TestNewPublication(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		defer b.play()()
		b.peer("c1", "6 c1")
		after(freeTime + connectTime)
		b.wantOwn("6 c1 a1")
		b.peer("b1")
		after(time.Minute)
		b.wantPulls("b1", "c1")
	})
}

func TestBackoff(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.setScript(func(s *session) { s.failing = errors.New("no route") })
		patient := make(chan error, 1)
		go func() {
			_, err := b.manager.Acquire(b.Context(), "x")
			patient <- err
		}()
		after(time.Minute)
		early, _, _ := b.made()
		after(10 * time.Minute)
		late, _, _ := b.made()
		late -= early
		// 0.25 s doubled up to 15 s, each ±30 %.
		if early < 7 || early > 14 || late < 29 || late > 60 {
			b.Errorf("%d attempts in the first minute, %d in ten more", early, late)
		}
		if s := b.status(); s.State == relay.StateLive || !strings.Contains(s.LastError, "no route") {
			b.Errorf("status %+v", s)
		}
		b.setScript(nil)
		after(20 * time.Second)
		b.wantOwn("5 b1 a1")
		if err := <-patient; err != nil {
			b.Error(err)
		}
	})
}

func TestRelayThatDiesAtOnceBacksOff(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.setScript(func(s *session) { s.lasts = time.Millisecond })
		b.report(func(server map[adapters.StreamID]adapters.Stream) {
			server["y"] = adapters.Stream{ID: "y", Session: "1"} // an origin beside it is not touched
		})
		defer b.play()()
		after(10 * time.Minute)
		if n, _, _ := b.made(); n < 30 || n > 60 {
			b.Errorf("%d sessions in ten minutes", n)
		}
		b.report(func(server map[adapters.StreamID]adapters.Stream) { delete(server, "y") })
	})
}

// TestLocalServerFails: it is not held against the parent, and a publisher that took the name has time to be reported.
func TestLocalServerFails(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.peer("c1", "5 b1 c1")
		defer b.play()()
		b.last().end <- &relay.SessionError{Side: relay.LocalServer, Step: "relay", Err: errors.New("closed")}
		after(time.Second)
		b.wantPulls("b1")
		after(freeTime + connectTime)
		b.wantPulls("b1", "b1")
		b.wantOwn("5 b1 a1")
	})
}

// TestServerRefuses: what took the name at the server may be what an earlier relay left behind there, or a publisher's. However
// much the stream is wanted, it is found out in time which of both.
func TestServerRefuses(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		defer b.play()()
		b.setScript(func(s *session) {
			s.failing = &relay.SessionError{Side: relay.LocalServer, Step: relay.StepPublish, Err: errors.New("409")}
		})
		b.report(func(server map[adapters.StreamID]adapters.Stream) {
			server["x"] = adapters.Stream{ID: "x", Readers: 1} // by no name
		})
		b.last().end <- &relay.SessionError{Side: relay.LocalServer, Step: "relay", Err: errors.New("closed")}
		after(50 * time.Second)
		b.wantOwn("")
		after(15 * time.Second)
		b.wantOwn("6 a1")
	})
}

// TestRememberedBeforeItPublishes: a crash at any time leaves nothing behind that the next process takes for a publisher's.
func TestRememberedBeforeItPublishes(t *testing.T) {
	for name, hangs := range map[string]bool{"at once": false, "the disk hangs": true} {
		t.Run(name, func(t *testing.T) {
			var remembered []catalogue.Carried
			run(t, func(b *bed, o *relay.ManagerOptions) {
				o.Remember = func(ctx context.Context) {
					remembered = b.catalogue.Record().Carried
					if len(b.sessions) != 1 || len(b.server) > 0 {
						b.Errorf("%d sessions, at the server: %v", len(b.sessions), b.server)
					}
					if hangs {
						<-ctx.Done()
					}
				}
			}, func(b *bed) {
				b.peer("b1", "5 b1")
				defer b.play()()
				if d := cmp.Diff([]catalogue.Carried{{Stream: "x"}}, remembered); d != "" {
					b.Error(d)
				}
			})
		})
	}
}

// TestServerRestarts: the server's own word that it has lost the stream counts at once; the connection to it would take
// seconds to fail. A server that loses it again and again is not asked in a circle.
func TestServerRestarts(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		defer b.play()()
		b.readers(1)
		lose := func() {
			b.report(func(server map[adapters.StreamID]adapters.Stream) { delete(server, "x") })
		}
		lose()
		b.wantOwn("")
		after(freeTime + 200*time.Millisecond + connectTime)
		b.wantOwn("5 b1 a1")
		b.wantPulls("b1", "b1")
		for range 600 {
			b.locked(func() {
				if _, ok := b.server["x"]; !ok {
					return
				}
				delete(b.server, "x")
			})
			b.report(nil)
			after(100 * time.Millisecond)
		}
		if sessions, _, _ := b.made(); sessions > 30 {
			b.Errorf("%d sessions in a minute", sessions)
		}
	})
}

func TestGrantsThatAreRefused(t *testing.T) {
	for name, g := range map[string]relay.Grant{
		"no path":             {Epoch: 5},
		"another's":           {Epoch: 5, Path: []ID{"b1", "c1"}},
		"a loop":              {Epoch: 5, Path: []ID{"a1", "b1"}},
		"an older epoch":      {Epoch: 4, Path: []ID{"b1"}},
		"a far too new epoch": {Epoch: 1 << 40, Path: []ID{"b1"}},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(b *bed) {
				b.peer("b1", "5 b1")
				b.peer("c1", "5 b1 c1")
				b.setPull("b1", func(adapters.StreamID) (relay.Grant, error) { return g, nil })
				b.play()()
				b.wantPulls("b1", "c1")
				if n, _, _ := b.made(); n != 1 {
					b.Errorf("%d sessions", n)
				}
			})
		})
	}
}

// TestGrantIsNewerThanTheCatalogue: what the parent says when it is asked counts.
func TestGrantIsNewerThanTheCatalogue(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.setPull("b1", func(adapters.StreamID) (relay.Grant, error) {
			return relay.Grant{Epoch: 7, Path: []ID{"d1", "b1"}}, nil
		})
		b.play()()
		b.wantOwn("7 d1 b1 a1")
		after(10 * time.Second)
		b.wantPulls("b1")
		if c := b.catalogue.Clock(); c != 7 {
			b.Errorf("clock %d", c)
		}
	})
}

func TestDrain(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.play()
		waiting := make(chan error, 1)
		if err := b.catalogue.SetPeer(catalogue.Node{ID: "c1", Cluster: "c"}, []catalogue.Hold{
			{Stream: "y", Epoch: 6, Path: []ID{"c1"}},
		}); err != nil {
			b.Fatal(err)
		}
		b.setScript(func(s *session) { s.silent = true })
		go func() {
			_, err := b.manager.Acquire(b.Context(), "y")
			waiting <- err
		}()
		after(connectTime)
		b.wantOwn("5 b1 a1")
		b.stop()
		b.wantOwn("")
		if b.last().isFreed() {
			b.Error("the session is freed before the hold is withdrawn")
		}
		if err := <-waiting; !errors.Is(err, relay.ErrEnded) {
			b.Errorf("who waited: %v", err)
		}
		select {
		case <-b.ended:
			b.Error("run returns before its sessions are freed")
		default:
		}
		b.ended <- <-b.ended
		if _, err := b.acquire(); !errors.Is(err, relay.ErrEnded) {
			b.Errorf("who comes later: %v", err)
		}
	})
}

// TestCrash: what the process before left at the server is not published over, and not mistaken for an origin's.
func TestCrash(t *testing.T) {
	left := func(session string) func(*bed, *relay.ManagerOptions) {
		return func(b *bed, o *relay.ManagerOptions) {
			record := catalogue.Record{Carried: []catalogue.Carried{{Stream: "x", Location: "http://server/whip/x/old"}}}
			if err := o.Catalogue.Restore(record); err != nil {
				b.Fatal(err)
			}
			b.server["x"] = adapters.Stream{ID: "x", Session: session}
		}
	}
	forget := func(server map[adapters.StreamID]adapters.Stream) { delete(server, "x") }
	t.Run("a session", func(t *testing.T) {
		run(t, left("old"), func(b *bed) {
			b.peer("b1", "5 b1")
			result := make(chan error, 1)
			go func() {
				_, err := b.acquire()
				result <- err
			}()
			after(3 * time.Second)
			b.wantPulls()
			b.report(forget) // it was deleted, or has timed out
			if err := <-result; err != nil {
				b.Error(err)
			}
			b.wantOwn("5 b1 a1")
		})
	})
	t.Run("a publisher", func(t *testing.T) {
		run(t, left("publisher"), func(b *bed) {
			b.peer("b1", "5 b1")
			_, err := b.acquire()
			if !errors.Is(err, context.DeadlineExceeded) {
				b.Errorf("error %v", err)
			}
			after(time.Minute)
			b.wantPulls()
			b.wantOwn("6 a1")
			b.report(forget)
		})
	})
}

func TestPins(t *testing.T) {
	pin := func(_ *bed, o *relay.ManagerOptions) { o.Pins = []string{"cam-*", "[", "x"} }
	run(t, pin, func(b *bed) {
		hold := func(stream adapters.StreamID) catalogue.Hold {
			return catalogue.Hold{Stream: stream, Epoch: 1, Path: []ID{"b1"}}
		}
		set := []catalogue.Hold{hold("x"), hold("cam-1"), hold("cam-1/low"), hold("other")}
		if err := b.catalogue.SetPeer(catalogue.Node{ID: "b1", Cluster: "b"}, set); err != nil {
			b.Fatal(err)
		}
		after(time.Hour)
		var got []string
		for _, s := range b.manager.Status() {
			got = append(got, fmt.Sprintf("%s %s %v", s.Stream, s.State, s.Demand.Pinned))
		}
		if d := cmp.Diff([]string{"cam-1 live true", "x live true"}, got); d != "" {
			b.Error(d)
		}
	})
}

// TestChildrenAreDemand: who pulls from here keeps the relay running, also where the server does not count readers.
func TestChildrenAreDemand(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.play()()
		b.peer("a2", "5 b1 a1 a2")
		after(time.Hour)
		b.wantOwn("5 b1 a1")
		b.readers(3)
		if got := b.status().Demand; got != (planner.Demand{Viewers: 2, Children: 1}) {
			b.Errorf("demand %+v", got)
		}
		b.readers(0)
		b.peer("a2")
		after(15 * time.Second)
		b.wantOwn("")
	})
}

// TestWaitingPlays: where the server accepts a play of a name that it does not have, that play is demand.
func TestWaitingPlays(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.report(func(server map[adapters.StreamID]adapters.Stream) {
			server["x"] = adapters.Stream{ID: "x", Waiting: true}
		})
		after(time.Hour)
		b.peer("b1", "5 b1")
		after(connectTime)
		b.wantOwn("5 b1 a1")
	})
}

func TestTooManyRelays(t *testing.T) {
	limit := func(_ *bed, o *relay.ManagerOptions) { o.MaxRelays = 1 }
	run(t, limit, func(b *bed) {
		if err := b.catalogue.SetPeer(catalogue.Node{ID: "b1", Cluster: "b"}, []catalogue.Hold{
			{Stream: "x", Epoch: 1, Path: []ID{"b1"}}, {Stream: "y", Epoch: 2, Path: []ID{"b1"}},
		}); err != nil {
			b.Fatal(err)
		}
		release := b.play()
		if _, err := b.manager.Acquire(b.Context(), "y"); !errors.Is(err, relay.ErrFull) {
			b.Errorf("error %v", err)
		}
		release()
		after(15*time.Second + freeTime)
		release, err := b.manager.Acquire(b.Context(), "y")
		if err != nil {
			b.Fatal(err)
		}
		release()
	})
}

func TestMetricsHaveNoStreams(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.play()()
		families, err := b.registry.Gather()
		if err != nil {
			b.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetValue() == "x" || l.GetName() == "stream" {
						b.Errorf("%s has label %s=%s", f.GetName(), l.GetName(), l.GetValue())
					}
				}
			}
		}
		if got := b.count("sidestream_relays", "live"); got != 1 {
			b.Errorf("%v live", got)
		}
	})
}

// TestQuiet: a parent that lives but holds nothing any more is left when nothing comes from it either, long before the
// connection notices; but not while it says itself that its source is paused, and not while packets come.
func TestQuiet(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.peer("c1", "5 b1 c1")
		defer b.play()()
		after(time.Minute)
		stopped := time.Now()
		b.locked(func() {
			b.sessions[0].last = stopped
			b.peers.ages = map[ID]time.Duration{"b1": 5 * time.Second}
		})
		after(time.Minute) // it is paused, and the parent holds it
		b.wantOwn("5 b1 a1")
		b.peer("b1")
		after(time.Minute)
		b.wantOwn("5 b1 a1") // the parent says so
		b.locked(func() { b.peers.ages = nil })
		after(time.Second + freeTime + connectTime)
		b.wantOwn("5 b1 c1 a1")
		if got := b.count("sidestream_relay_ends_total", "quiet"); got != 1 {
			b.Errorf("%v ended for being quiet", got)
		}
		b.peer("c1") // and packets go on
		after(time.Minute)
		b.wantOwn("5 b1 c1 a1")
		b.locked(func() { b.sessions[1].last = time.Now() })
		b.wantOwn("5 b1 c1 a1")
		after(2*time.Second + 100*time.Millisecond)
		b.wantOwn("")
	})
}

// TestConnectingToALostParent: what does not flow yet is no reason to stay.
func TestConnectingToALostParent(t *testing.T) {
	for name, lose := range map[string]func(b *bed){
		"its heartbeat is lost": func(b *bed) { b.catalogue.Forget("b1") },
		"it holds nothing":      func(b *bed) { b.peer("b1") },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(b *bed) {
				b.peer("b1", "5 b1")
				b.peer("c1", "5 b1 c1")
				b.setScript(func(s *session) { s.connect = time.Hour })
				result := make(chan error, 1)
				go func() {
					release, err := b.acquire()
					if err == nil {
						release()
					}
					result <- err
				}()
				after(connectTime)
				b.wantPulls("b1")
				b.setScript(nil)
				lose(b)
				if err := <-result; err != nil {
					b.Error(err)
				}
				b.wantPulls("b1", "c1")
				b.wantOwn("5 b1 c1 a1")
				if got := b.count("sidestream_relay_ends_total", "lost"); got != 1 {
					b.Errorf("%v ended for a lost parent", got)
				}
			})
		})
	}
}

// TestHoldEndsWithTheMedia: it is withdrawn before the session is freed, which can take seconds.
func TestHoldEndsWithTheMedia(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 b1")
		b.play()()
		b.last().end <- errors.New("connection lost")
		b.wantOwn("")
		if b.last().isFreed() {
			b.Error("it is withdrawn only when the session is freed")
		}
		if _, err := b.manager.Grant("c1", "x"); !errors.Is(err, adapters.ErrNoStream) {
			b.Errorf("granted meanwhile: %v", err)
		}
		after(time.Second)
		b.wantOwn("5 b1 a1")
	})
}

// TestFeasibleParents: a parent that may have the stream from this node is not taken; a moment later it has heard the origin
// itself, or it has not.
func TestFeasibleParents(t *testing.T) {
	run(t, nil, func(b *bed) {
		grant := func(sequence uint64, path ...ID) func(adapters.StreamID) (relay.Grant, error) {
			return func(adapters.StreamID) (relay.Grant, error) {
				return relay.Grant{Epoch: 5, Path: path, Sequence: sequence}, nil
			}
		}
		b.peer("b1", "5 b1")
		b.setPull("b1", grant(100, "b1"))
		defer b.play()()
		b.peer("d1", "5 b1 a1 d1")
		given, err := b.manager.Grant("d1", "x")
		if err != nil {
			b.Fatal(err)
		}
		if d := cmp.Diff(relay.Grant{Path: []ID{"b1", "a1"}, Epoch: 5, Sequence: 100}, given); d != "" {
			b.Error(d)
		}
		b.locked(func() { b.peers.sequences = map[ID]uint64{"b1": 110} })
		want := map[adapters.StreamID]relay.Flow{"x": {Known: true, Sequence: 110}}
		if d := cmp.Diff(want, b.manager.Flows("d1")); d != "" {
			b.Error(d)
		}
		if flows := b.manager.Flows("c1"); flows != nil {
			b.Errorf("flows to one that pulls nothing: %v", flows)
		}
		// The origin's server goes away for this node; c1 says that it has it from elsewhere, but it has it from d1.
		b.peer("c1", "5 b1 e1 c1")
		b.peer("b1")
		b.setPull("b1", grant(0))
		b.setPull("c1", grant(110, "b1", "e1", "c1"))
		b.last().end <- errors.New("connection lost")
		after(3 * time.Second)
		b.wantOwn("")
		if s := b.status(); !strings.Contains(s.LastError, "heard the origin") {
			b.Errorf("last error %q", s.LastError)
		}
		if _, pulls, _ := b.made(); pulls < 4 || pulls > 7 {
			b.Errorf("%d pulls in three seconds", pulls)
		}
		b.setPull("c1", grant(111, "b1", "e1", "c1"))
		after(soon + connectTime)
		b.wantOwn("5 b1 e1 c1 a1")
	})
}

const soon = 700 * time.Millisecond

// TestOriginsFlow: an origin does not see into its server; its sequence grows with time.
func TestOriginsFlow(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.report(func(server map[adapters.StreamID]adapters.Stream) {
			server["x"] = adapters.Stream{ID: "x", Session: "publisher"}
		})
		b.peer("b1", "1 a1 b1")
		first := b.manager.Flows("b1")["x"]
		after(time.Minute)
		second := b.manager.Flows("b1")["x"]
		if first.Known || second.Known || second.Sequence-first.Sequence != 300 {
			b.Errorf("%+v, a minute later %+v", first, second)
		}
		b.report(func(server map[adapters.StreamID]adapters.Stream) { delete(server, "x") })
	})
}

// TestDrainingParent: it is left at once where there is another, and chosen only where there is none.
func TestDrainingParent(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.peer("b1", "5 e1 b1")
		b.catalogue.SetCondition("b1", catalogue.Condition{Ready: true, Draining: true})
		defer b.play()()
		b.wantPulls("b1")
		b.peer("c1", "5 e1 b1 c1") // has it from there
		after(time.Minute)
		b.wantOwn("5 e1 b1 a1")
		b.peer("c1", "5 e1 c1")
		after(freeTime + connectTime)
		b.wantPulls("b1", "c1")
		b.wantOwn("5 e1 c1 a1")
	})
}

// TestManyStreamsLinger: streams that nothing touches are not planned again, and yet the time comes for each.
func TestManyStreamsLinger(t *testing.T) {
	run(t, nil, func(b *bed) {
		var holds []catalogue.Hold
		for i := range 100 {
			holds = append(holds, catalogue.Hold{Stream: adapters.StreamID(fmt.Sprint("s", i)), Epoch: 1, Path: []ID{"b1"}})
		}
		if err := b.catalogue.SetPeer(catalogue.Node{ID: "b1", Cluster: "b"}, holds); err != nil {
			b.Fatal(err)
		}
		for i := range 100 {
			release, err := b.manager.Acquire(b.Context(), holds[i].Stream)
			if err != nil {
				b.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			release()
		}
		for n := 100; n > 0; n -= 10 {
			if got := len(b.manager.Status()); got > n {
				b.Errorf("%d streams, want at most %d", got, n)
			}
			after(4 * time.Second)
		}
		if got := b.manager.Status(); len(got) != 0 {
			b.Errorf("status at rest: %+v", got)
		}
	})
}

// TestOnlyWhatIsTouchedIsPlanned: of a hundred relays, a change plans one again.
func TestOnlyWhatIsTouchedIsPlanned(t *testing.T) {
	pin := func(_ *bed, o *relay.ManagerOptions) { o.Pins = []string{"*"} }
	run(t, pin, func(b *bed) {
		var holds []catalogue.Hold
		for i := range 100 {
			holds = append(holds, catalogue.Hold{Stream: adapters.StreamID(fmt.Sprint("s", i)), Epoch: 1, Path: []ID{"b1"}})
		}
		set := func() {
			b.Helper()
			if err := b.catalogue.SetPeer(catalogue.Node{ID: "b1", Cluster: "b"}, holds); err != nil {
				b.Fatal(err)
			}
			synctest.Wait()
		}
		set()
		after(time.Minute)
		if got := b.count("sidestream_relays", "live"); got != 100 {
			b.Fatalf("%v live", got)
		}
		before := b.peers.measured.Load()
		after(time.Hour)
		if n := b.peers.measured.Load() - before; n != 0 {
			b.Errorf("planned %d times though nothing happens", n)
		}
		holds = slices.Clone(holds)
		holds[7].Delay = time.Millisecond
		set()
		if n := b.peers.measured.Load() - before; n == 0 || n > 3 {
			b.Errorf("%d parents were measured for one change", n)
		}
		b.catalogue.SetCondition("b1", catalogue.Condition{}) // which may matter to all
		synctest.Wait()
		if n := b.peers.measured.Load() - before; n < 100 {
			b.Errorf("%d parents were measured for a change that touches all", n)
		}
	})
}
