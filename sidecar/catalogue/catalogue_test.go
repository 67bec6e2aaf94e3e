package catalogue_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

type (
	ID   = catalogue.NodeID
	Hold = catalogue.Hold
)

var self = catalogue.Node{ID: "a1", Incarnation: 1, Cluster: "a"}

func stream(id, session string) adapters.Stream {
	return adapters.Stream{ID: adapters.StreamID(id), Session: session}
}

func hold(stream string, epoch uint64, path ...ID) Hold {
	return Hold{Stream: adapters.StreamID(stream), Epoch: epoch, Path: path}
}

func setLocal(t *testing.T, c *catalogue.Catalogue, streams ...adapters.Stream) {
	t.Helper()
	if err := c.SetLocal(streams); err != nil {
		t.Fatal(err)
	}
}

func setPeer(t *testing.T, c *catalogue.Catalogue, id, cluster string, holds ...Hold) {
	t.Helper()
	if err := c.SetPeer(catalogue.Node{ID: ID(id), Cluster: cluster}, holds); err != nil {
		t.Fatal(err)
	}
}

// origins lists what the node announces as its own publications, with their epochs.
func origins(c *catalogue.Catalogue) string {
	s, _ := c.Snapshot()
	var all []string
	for _, h := range s.Origins() {
		all = append(all, fmt.Sprintf("%s@%d", h.Stream, h.Epoch))
	}
	return strings.Join(all, " ")
}

func TestEpochs(t *testing.T) {
	c := catalogue.New(self)
	setLocal(t, c, stream("found", "s1"))
	if got, want := origins(c), "found@0"; got != want {
		t.Errorf("found at start: %s, want %s", got, want)
	}
	setPeer(t, c, "b1", "b", hold("other", 7, "b1"))
	setLocal(t, c, stream("found", "s1"), stream("new", "s2"))
	if got, want := origins(c), "found@0 new@8"; got != want {
		t.Errorf("after a peer's epoch 7: %s, want %s", got, want)
	}
	setLocal(t, c, stream("found", "s3"), stream("new", "s2"))
	if got, want := origins(c), "found@9 new@8"; got != want {
		t.Errorf("with another session: %s, want %s", got, want)
	}
	setLocal(t, c)
	setLocal(t, c, stream("found", "s3"), stream("new", "s4"))
	if got, want := origins(c), "found@9 new@10"; got != want {
		t.Errorf("after a report without them: %s, want %s", got, want)
	}
}

func TestEpochsWithoutSessions(t *testing.T) {
	since := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := catalogue.New(self)
	setLocal(t, c)
	setLocal(t, c, stream("x", ""), adapters.Stream{ID: "y", Since: since})
	setLocal(t, c, stream("x", ""), adapters.Stream{ID: "y", Since: since})
	if got, want := origins(c), "x@1 y@2"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	setLocal(t, c)
	setLocal(t, c, stream("x", ""), adapters.Stream{ID: "y", Since: since})
	if got, want := origins(c), "x@3 y@2"; got != want {
		t.Errorf("gone and back: got %s, want %s", got, want)
	}
	setLocal(t, c, stream("x", ""), adapters.Stream{ID: "y", Since: since.Add(time.Second)})
	if got, want := origins(c), "x@3 y@4"; got != want {
		t.Errorf("another since: got %s, want %s", got, want)
	}
}

func TestRestartKeepsEpochs(t *testing.T) {
	before := catalogue.New(self)
	setLocal(t, before)
	if err := before.Observe(41); err != nil {
		t.Fatal(err)
	}
	setLocal(t, before, stream("kept", "s1"), stream("changed", "s2"))
	data, err := json.Marshal(before.Record())
	if err != nil {
		t.Fatal(err)
	}

	var record catalogue.Record
	if err := json.Unmarshal(data, &record); err != nil {
		t.Fatal(err)
	}
	c := catalogue.New(self)
	if err := c.Restore(record); err != nil {
		t.Fatal(err)
	}
	setLocal(t, c, stream("changed", "s3"), stream("kept", "s1"))
	if got, want := origins(c), "changed@0 kept@43"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := c.Clock(); got != 43 {
		t.Errorf("clock %d, want 43", got)
	}
	if d := cmp.Diff(before.Record().Clock, record.Clock); d != "" {
		t.Error(d)
	}
}

// TestRelaysRememberEpochs: a node that lost its record learns the epoch of its publication from those who relay it.
func TestRelaysRememberEpochs(t *testing.T) {
	c := catalogue.New(self)
	setLocal(t, c, stream("x", "s1"))
	setPeer(t, c, "c1", "c", hold("x", 4, "c1"))
	setPeer(t, c, "b1", "b", hold("x", 5, "a1", "b1"))
	if got := origins(c); got != "x@5" {
		t.Errorf("origins %s", got)
	}
	setPeer(t, c, "b2", "b", hold("x", 9, "a1", "b2"))
	if got := origins(c); got != "x@5" {
		t.Errorf("its epoch is known, and another says otherwise: %s", got)
	}
}

// TestRelaysAreHeardBeforeTheServer: the peers may be connected before the server reports for the first time.
func TestRelaysAreHeardBeforeTheServer(t *testing.T) {
	c := catalogue.New(self)
	setPeer(t, c, "b1", "b", hold("x", 5, "a1", "b1"))
	setPeer(t, c, "c1", "c", hold("x", 7, "c1"), hold("y", 6, "c1"))
	setLocal(t, c, stream("x", "s1"), stream("y", "s2"))
	if got := origins(c); got != "x@5 y@0" {
		t.Errorf("origins %s", got)
	}
}

func TestRestoreRefuses(t *testing.T) {
	for name, r := range map[string]catalogue.Record{
		"epoch after clock": {Clock: 1, Bindings: []catalogue.Binding{{Stream: "x", Epoch: 2}}},
		"bad name":          {Bindings: []catalogue.Binding{{Stream: "/"}}},
		"bad carried name":  {Carried: []catalogue.Carried{{Stream: "../x"}}},
	} {
		if err := catalogue.New(self).Restore(r); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
}

func TestWinner(t *testing.T) {
	tests := []struct {
		name   string
		local  bool // published here with epoch 1
		holds  []Hold
		winner catalogue.Publication
		ids    []ID // of the winner's holders
	}{
		{name: "nobody"},
		{name: "only here", local: true, winner: catalogue.Publication{Epoch: 1, Origin: "a1"}, ids: []ID{"a1"}},
		{
			name: "the higher epoch", local: true, holds: []Hold{hold("x", 2, "b1"), hold("x", 1, "b1", "c1")},
			winner: catalogue.Publication{Epoch: 2, Origin: "b1"}, ids: []ID{"b1"},
		},
		{
			name: "the smaller origin of equal epochs", holds: []Hold{hold("x", 3, "c1"), hold("x", 3, "b1")},
			winner: catalogue.Publication{Epoch: 3, Origin: "b1"}, ids: []ID{"b1"},
		},
		{
			name: "a relay whose origin is out of sight", holds: []Hold{hold("x", 5, "z9", "c1"), hold("x", 3, "b1")},
			winner: catalogue.Publication{Epoch: 5, Origin: "z9"}, ids: []ID{"c1"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := catalogue.New(self)
			setLocal(t, c)
			if tt.local {
				setLocal(t, c, stream("x", "s"))
			}
			for _, h := range tt.holds {
				setPeer(t, c, string(h.Holder()), string(h.Holder())[:1], h)
			}
			s, _ := c.Snapshot()
			winner, ok := s.Winner("x")
			if winner != tt.winner || ok != (tt.ids != nil) {
				t.Errorf("winner %v %v, want %v", winner, ok, tt.winner)
			}
			var ids []ID
			for _, h := range s.Holders("x") {
				ids = append(ids, h.Holder())
			}
			if d := cmp.Diff(tt.ids, ids); d != "" {
				t.Error(d)
			}
			if superseded := len(s.Superseded()) > 0; superseded != (tt.local && winner.Origin != self.ID) {
				t.Errorf("superseded %v", superseded)
			}
		})
	}
}

func TestSetPeerLeavesOutWhatCannotBe(t *testing.T) {
	long := make([]ID, catalogue.MaxPath+1)
	for i := range long {
		long[i] = ID(fmt.Sprint("n", i))
	}
	long[len(long)-1] = "b1"
	bad := map[string]Hold{
		"no path":           hold("x", 1),
		"another's":         hold("x", 1, "b1", "c1"),
		"a loop":            hold("x", 1, "b1", "c1", "b1"),
		"an empty node":     hold("x", 1, "", "b1"),
		"a long path":       hold("x", 1, long...),
		"a long node":       hold("x", 1, ID(strings.Repeat("n", catalogue.MaxName+1)), "b1"),
		"no name":           hold("", 1, "b1"),
		"a dotted name":     hold("x/..", 1, "b1"),
		"an absurd epoch":   hold("x", catalogue.MaxJump+100, "b1"),
		"the last epoch":    hold("x", 1<<64-1, "b1"),
		"a negative delay":  {Stream: "x", Path: []ID{"b1"}, Delay: -1},
		"many tracks":       {Stream: "x", Path: []ID{"b1"}, Tracks: make([]adapters.Track, catalogue.MaxTracks+1)},
		"a track of length": {Stream: "x", Path: []ID{"b1"}, Tracks: []adapters.Track{{MIME: strings.Repeat("v", 300)}}},
		"a second time":     hold("good", 2, "b1"),
	}
	for name, h := range bad {
		t.Run(name, func(t *testing.T) {
			c := catalogue.New(self)
			err := c.SetPeer(catalogue.Node{ID: "b1", Cluster: "b"}, []Hold{hold("good", 3, "b1"), h})
			if err == nil {
				t.Error("no error")
			}
			s, _ := c.Snapshot()
			if d := cmp.Diff([]adapters.StreamID{"good"}, s.Streams()); d != "" {
				t.Error(d)
			}
			if got, _ := s.Hold("b1", "good"); got.Epoch != 3 {
				t.Errorf("epoch of the good one: %d", got.Epoch)
			}
			if c.Clock() != 3 {
				t.Errorf("clock %d", c.Clock())
			}
		})
	}
}

func TestSetPeerRefuses(t *testing.T) {
	c := catalogue.New(self)
	if err := c.SetPeer(self, nil); !errors.Is(err, catalogue.ErrSelf) {
		t.Errorf("own id: %v", err)
	}
	if err := c.SetPeer(catalogue.Node{}, nil); err == nil {
		t.Error("no id: taken")
	}
	if err := c.SetPeer(catalogue.Node{ID: "b1", Incarnation: 5, Cluster: "b"}, []Hold{hold("x", 1, "b1")}); err != nil {
		t.Fatal(err)
	}
	old := catalogue.Node{ID: "b1", Incarnation: 4, Cluster: "b"}
	if err := c.SetPeer(old, nil); !errors.Is(err, catalogue.ErrStale) {
		t.Errorf("old incarnation: %v", err)
	}
	c.Forget("b1")
	if err := c.SetPeer(old, nil); !errors.Is(err, catalogue.ErrStale) {
		t.Errorf("old incarnation of a node that was forgotten: %v", err)
	}
	s, _ := c.Snapshot()
	if _, ok := s.Winner("x"); ok {
		t.Error("a forgotten node still holds a stream")
	}
	if err := c.SetPeer(catalogue.Node{ID: "b1", Incarnation: 5, Cluster: "b"}, nil); err != nil {
		t.Errorf("the same incarnation comes back: %v", err)
	}
}

// A node whose memory was lost goes on as a later incarnation, with all that it has.
func TestOutgrow(t *testing.T) {
	c := catalogue.New(self)
	if err := c.SetLocal([]adapters.Stream{{ID: "x", Session: "s"}}); err != nil {
		t.Fatal(err)
	}
	_, changed := c.Snapshot()
	c.Outgrow(self.Incarnation + 5)
	select {
	case <-changed:
	default:
		t.Error("nobody is told")
	}
	c.Outgrow(self.Incarnation)
	s, _ := c.Snapshot()
	want := self.Incarnation + 6
	at, _ := s.Node(self.ID)
	if c.Self().Incarnation != want || s.Self().Incarnation != want || at.Incarnation != want {
		t.Errorf("incarnations %d, %d and %d; want %d", c.Self().Incarnation, s.Self().Incarnation, at.Incarnation, want)
	}
	if _, ok := s.Origin("x"); !ok {
		t.Error("the stream is gone")
	}
}

func TestEndlessCatalogueIsCut(t *testing.T) {
	c := catalogue.New(self)
	holds := make([]Hold, catalogue.MaxHolds+3)
	for i := range holds {
		holds[i] = hold(fmt.Sprint("s", i), 1, "b1")
	}
	if err := c.SetPeer(catalogue.Node{ID: "b1", Cluster: "b"}, holds); !errors.Is(err, catalogue.ErrLimit) {
		t.Errorf("error %v", err)
	}
	s, _ := c.Snapshot()
	if n := len(s.Streams()); n != catalogue.MaxHolds {
		t.Errorf("%d streams", n)
	}
	streams := make([]adapters.Stream, catalogue.MaxHolds+3)
	for i := range streams {
		streams[i] = stream(fmt.Sprint("s", i), "1")
	}
	if err := c.SetLocal(streams); !errors.Is(err, catalogue.ErrLimit) {
		t.Errorf("local: error %v", err)
	}
	if n := len(c.Announcement("b")); n != catalogue.MaxHolds {
		t.Errorf("%d announced", n)
	}
}

func TestObserve(t *testing.T) {
	c := catalogue.New(self)
	for _, clock := range []uint64{5, 3, 5 + catalogue.MaxJump} {
		if err := c.Observe(clock); err != nil {
			t.Errorf("%d: %v", clock, err)
		}
	}
	if err := c.Observe(c.Clock() + catalogue.MaxJump + 1); !errors.Is(err, catalogue.ErrJump) {
		t.Errorf("error %v", err)
	}
	if got := c.Clock(); got != 5+catalogue.MaxJump {
		t.Errorf("clock %d", got)
	}
}

// TestCarried walks through what a server reports while relays come and go, and who is taken for an origin.
func TestCarried(t *testing.T) {
	const parent = "b1"
	relayed := hold("x", 7, parent, "a1")
	type step struct {
		do     func(*testing.T, *catalogue.Catalogue)
		want   string // origins
		reason string
	}
	carry := func(_ *testing.T, c *catalogue.Catalogue) { c.Carry("x") }
	uncarry := func(_ *testing.T, c *catalogue.Catalogue) { c.Uncarry("x") }
	believe := func(_ *testing.T, c *catalogue.Catalogue) { c.Believe("x") }
	located := func(location string) func(*testing.T, *catalogue.Catalogue) {
		return func(_ *testing.T, c *catalogue.Catalogue) { c.Located("x", location) }
	}
	report := func(sessions ...string) func(*testing.T, *catalogue.Catalogue) {
		return func(t *testing.T, c *catalogue.Catalogue) {
			var streams []adapters.Stream
			for _, s := range sessions {
				streams = append(streams, stream("x", s))
			}
			setLocal(t, c, streams...)
		}
	}
	marked := func(session string) func(*testing.T, *catalogue.Catalogue) {
		return func(t *testing.T, c *catalogue.Catalogue) {
			s := stream("x", session)
			s.Relayed = true
			setLocal(t, c, s)
		}
	}
	tests := map[string][]step{
		"a relay from begin to end": {
			{do: carry},
			{do: report("s1"), reason: "reported before its location is known"},
			{do: located("http://server/whip/x/s1")},
			{do: report("s1")},
			{do: uncarry, reason: "the server has not yet noticed"},
			{do: report("s1"), reason: "nor now"},
			{do: report()},
			{do: report("s2"), want: "x@8", reason: "a publisher"},
		},
		"a relay that the server marks": {
			{do: carry},
			{do: marked("s1"), reason: "reported before its location is known"},
			{do: located("http://server/whip/x/secret")},
			{do: marked("s1")},
			{do: report("s2"), want: "x@8", reason: "a publisher has taken the name over"},
			{do: uncarry, want: "x@8"},
			{do: marked("s1"), reason: "what the relay left behind"},
			{do: believe, reason: "whatever time goes by"},
			{do: report("s3"), want: "x@9"},
		},
		"a mark of which no relay is known": {
			{do: marked("s1"), reason: "a process before this one was killed before it knew the location"},
			{do: report("s2"), want: "x@8"},
		},
		"reported only after the end": {
			{do: carry},
			{do: report()},
			{do: located("http://server/whip/x/secret")},
			{do: uncarry},
			{do: report("s1"), reason: "a report that is late"},
			{do: report()},
			{do: report("s1"), want: "x@8"},
		},
		"a publisher takes the name over": {
			{do: carry},
			{do: located("http://server/whip/x/s1")},
			{do: report("s1")},
			{do: report("s2"), want: "x@8", reason: "the server's sessions match its locations, and this is another"},
			{do: uncarry, want: "x@8"},
			{do: report("s2"), want: "x@8"},
		},
		"a publisher is there before the relay's POST is answered": {
			{do: carry},
			{do: located("/whip/x/s1")},
			{do: report("s1")},
			{do: uncarry},
			{do: report()},
			{do: carry},
			{do: report("s2"), reason: "it could be the relay's"},
			{do: located("/whip/x/s3"), want: "x@8", reason: "it is not"},
		},
		"a publisher takes over at a server whose sessions have other names": {
			{do: carry},
			{do: located("http://server/whip/x/secret")},
			{do: report("s1")},
			{do: report("s2"), reason: "it could be the relay's under another name"},
			{do: uncarry},
			{do: report("s2"), reason: "it could still be"},
			{do: report()},
			{do: report("s3"), want: "x@8"},
		},
		"the server has a publisher and refuses the relay": {
			{do: carry},
			{do: report("s1"), reason: "it could be the relay's"},
			{do: uncarry, want: "x@8", reason: "which was never located"},
			{do: report("s1"), want: "x@8"},
		},
		"a publisher follows at once at such a server": {
			{do: carry},
			{do: located("http://server/whip/x/secret")},
			{do: report("s1")},
			{do: uncarry},
			{do: report("s2"), want: "x@8"},
		},
		"the next relay while the last one is still reported": {
			{do: carry},
			{do: located("/whip/x/s1")},
			{do: report("s1")},
			{do: uncarry},
			{do: carry},
			{do: report("s1")},
			{do: located("/whip/x/s2")},
			{do: report("s1"), reason: "the last one's"},
			{do: report("s2")},
		},
		"a publisher in doubt, after a while": {
			{do: carry},
			{do: located("http://server/whip/x/secret")},
			{do: report("s1")},
			{do: report("s2")},
			{do: believe, reason: "the relay still runs"},
			{do: uncarry},
			{do: report("s2")},
			{do: believe, want: "x@8"},
			{do: report("s2"), want: "x@8"},
		},
		"a relay that the server never forgets": {
			{do: carry},
			{do: located("http://server/whip/x/s1")},
			{do: report("s1")},
			{do: uncarry},
			{do: believe},
			{do: report("s1")},
		},
		"a server without sessions": {
			{do: carry},
			{do: report("")},
			{do: located("/whip/x/s1")},
			{do: uncarry},
			{do: report("")},
			{do: report()},
			{do: report(""), want: "x@8"},
			{do: report(), want: ""},
			{do: carry},
			{do: report(""), reason: "not the publication that was bound before"},
		},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			c := catalogue.New(self)
			setLocal(t, c)
			setPeer(t, c, parent, "b", hold("x", 7, parent))
			for i, s := range steps {
				s.do(t, c)
				if got := origins(c); got != s.want {
					t.Fatalf("step %d: origins %q, want %q: %s", i, got, s.want, s.reason)
				}
			}
		})
	}

	t.Run("a hold is what is published, else what is carried", func(t *testing.T) {
		c := catalogue.New(self)
		setLocal(t, c)
		if err := c.SetCarried([]Hold{relayed, hold("y", 1, "a1", "b1")}); err == nil {
			t.Error("a path that ends elsewhere is taken")
		}
		s, _ := c.Snapshot()
		if d := cmp.Diff([]Hold{relayed}, s.Holds("x")); d != "" {
			t.Error(d)
		}
		if _, ok := s.Origin("x"); ok {
			t.Error("what is carried counts as an origin's")
		}
		c.Uncarry("x")
		s, _ = c.Snapshot()
		if got := s.Holds("x"); got != nil {
			t.Errorf("still held: %v", got)
		}
	})
}

// TestCrash: what the process before carried is known by its record, and is deleted before it can be mistaken.
func TestCrash(t *testing.T) {
	restart := func(t *testing.T, c *catalogue.Catalogue) *catalogue.Catalogue {
		data, err := json.Marshal(c.Record())
		if err != nil {
			t.Fatal(err)
		}
		var r catalogue.Record
		if err := json.Unmarshal(data, &r); err != nil {
			t.Fatal(err)
		}
		next := catalogue.New(self)
		if err := next.Restore(r); err != nil {
			t.Fatal(err)
		}
		return next
	}
	t.Run("live", func(t *testing.T) {
		c := catalogue.New(self)
		setLocal(t, c)
		c.Carry("x")
		c.Located("x", "/whip/x/s1")
		setLocal(t, c, stream("x", "s1"))
		c = restart(t, c)
		if d := cmp.Diff([]catalogue.Carried{{Stream: "x", Location: "/whip/x/s1"}}, c.Left()); d != "" {
			t.Error(d)
		}
		setLocal(t, c, stream("x", "s1"))
		if got := origins(c); got != "" {
			t.Errorf("the relay left behind is announced: %s", got)
		}
		setLocal(t, c)
		if got := c.Left(); len(got) != 0 {
			t.Errorf("left behind after it is gone: %v", got)
		}
		setLocal(t, c, stream("x", "s2"))
		if got := origins(c); got != "x@1" {
			t.Errorf("a publisher: %q", got)
		}
	})
	t.Run("while publishing", func(t *testing.T) {
		c := catalogue.New(self)
		setLocal(t, c)
		c.Carry("x")
		c = restart(t, c)
		setLocal(t, c, stream("x", "s1"))
		if got := origins(c); got != "" {
			t.Errorf("the relay left behind is announced: %s", got)
		}
	})
	t.Run("a publisher meanwhile", func(t *testing.T) {
		c := catalogue.New(self)
		setLocal(t, c)
		c.Carry("x")
		c.Located("x", "/whip/x/s1")
		setLocal(t, c, stream("x", "s1"))
		c = restart(t, c)
		setLocal(t, c, stream("x", "s2"))
		if got := origins(c); got != "x@0" {
			t.Errorf("origins %q: a publication found at start has epoch 0", got)
		}
	})
}

func TestAnnouncement(t *testing.T) {
	c := catalogue.New(self)
	setLocal(t, c)
	setLocal(t, c, stream("mine", "s1"))
	setPeer(t, c, "a2", "a")
	setPeer(t, c, "b1", "b")
	pulled, passed := hold("pulled", 4, "b1", "a1"), hold("passed", 5, "b1", "a2", "a1")
	if err := c.SetCarried([]Hold{pulled, passed}); err != nil {
		t.Fatal(err)
	}
	mine := hold("mine", 1, "a1")
	if d := cmp.Diff([]Hold{mine, passed, pulled}, c.Announcement("a")); d != "" {
		t.Errorf("within the cluster: %s", d)
	}
	if d := cmp.Diff([]Hold{mine, pulled}, c.Announcement("b")); d != "" {
		t.Errorf("outside: %s", d)
	}
	child := hold("passed", 5, "b1", "a2", "a1", "b2")
	setPeer(t, c, "b2", "b", child)
	if d := cmp.Diff([]Hold{mine, passed, pulled}, c.Announcement("b")); d != "" {
		t.Errorf("outside, where a child is: %s", d)
	}
	if d := cmp.Diff([]Hold{mine, pulled}, c.Announcement("c")); d != "" {
		t.Errorf("outside, where no child is: %s", d)
	}
	setPeer(t, c, "b2", "b")
	if d := cmp.Diff([]Hold{mine, pulled}, c.Announcement("b")); d != "" {
		t.Errorf("outside, when the child has gone: %s", d)
	}
	c.Forget("a2")
	if d := cmp.Diff([]Hold{mine, pulled}, c.Announcement("b")); d != "" {
		t.Errorf("outside, when the parent is lost: %s", d)
	}
}

func TestSnapshotWakesOnChangeOnly(t *testing.T) {
	c := catalogue.New(self)
	changed := func(do func()) bool {
		_, ch := c.Snapshot()
		do()
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	set := func(holds ...Hold) func() { return func() { setPeer(t, c, "b1", "b", holds...) } }
	for i, tt := range []struct {
		do   func()
		want bool
	}{
		{set(), true},
		{set(), false},
		{set(hold("x", 1, "b1")), true},
		{set(hold("x", 1, "b1")), false},
		{set(hold("x", 2, "b1")), true},
		{func() { setLocal(t, c) }, false},
		{func() { setLocal(t, c, stream("y", "s")) }, true},
		{func() { setLocal(t, c, adapters.Stream{ID: "y", Session: "s", Readers: 3}) }, false},
		{func() {
			setLocal(t, c, adapters.Stream{ID: "y", Session: "s"}, adapters.Stream{ID: "z", Waiting: true})
		}, false},
		{func() { _ = c.Observe(99) }, false},
		{func() { c.Carry("x") }, true}, // for those who keep the record
		{func() { c.Located("x", "/whip/x/1") }, true},
		{func() { c.Located("x", "/whip/x/1") }, false},
		{func() { c.Forget("b1") }, true},
		{func() { c.Forget("b1") }, false},
	} {
		if got := changed(tt.do); got != tt.want {
			t.Errorf("step %d: changed %v, want %v", i, got, tt.want)
		}
	}
}

func TestStateDoesNotChange(t *testing.T) {
	c := catalogue.New(self)
	setPeer(t, c, "b1", "b", hold("x", 1, "b1"))
	setPeer(t, c, "a2", "a")
	s, _ := c.Snapshot()
	setPeer(t, c, "b1", "b", hold("y", 2, "b1"))
	setLocal(t, c, stream("z", "1"))
	c.Forget("a2")
	if d := cmp.Diff([]adapters.StreamID{"x"}, s.Streams()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]catalogue.Node{self, {ID: "a2", Cluster: "a"}}, s.Members()); d != "" {
		t.Error(d)
	}
	if !s.Near("a2") || s.Near("b1") || s.Near("c1") || !s.Near("a1") {
		t.Error("who is near")
	}
}

func TestChildren(t *testing.T) {
	c := catalogue.New(self)
	setPeer(t, c, "a2", "a", hold("x", 1, "b1", "a1", "a2"))
	setPeer(t, c, "c1", "c", hold("x", 1, "b1", "c1"), hold("y", 1, "a1", "c1"))
	s, _ := c.Snapshot()
	if d := cmp.Diff([]ID{"a2"}, s.Children("x", "a1")); d != "" {
		t.Error(d)
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	c := catalogue.New(self)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 50 {
				id := ID(fmt.Sprint("b", i))
				_ = c.SetPeer(catalogue.Node{ID: id, Cluster: "b"}, []Hold{hold("x", uint64(n), id)})
				_ = c.SetLocal([]adapters.Stream{stream("y", fmt.Sprint(n))})
				s, _ := c.Snapshot()
				s.Winner("x")
				s.Streams()
				c.Announcement("b")
				c.Record()
				c.Forget(id)
			}
		})
	}
	wg.Wait()
}

func BenchmarkSnapshotAfterChange(b *testing.B) {
	c := catalogue.New(self)
	sets := [2][]Hold{}
	for n := range 50 {
		id := ID(fmt.Sprint("b", n))
		var holds []Hold
		for i := range 40 {
			holds = append(holds, hold(fmt.Sprint("s", n*40+i), uint64(n*40+i), id))
		}
		_ = c.SetPeer(catalogue.Node{ID: id, Cluster: "b"}, holds)
		sets = [2][]Hold{holds, holds[1:]}
	}
	for i := 0; b.Loop(); i++ {
		_ = c.SetPeer(catalogue.Node{ID: "b49", Cluster: "b"}, sets[i%2])
		s, _ := c.Snapshot()
		s.Winner("s3")
	}
}
