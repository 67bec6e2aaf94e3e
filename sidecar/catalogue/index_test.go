package catalogue_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// TestBeatsIsAStrictTotalOrder tries all pairs and triples of publications that differ in any way.
func TestBeatsIsAStrictTotalOrder(t *testing.T) {
	var all []catalogue.Publication
	for _, epoch := range []uint64{0, 1, 2, 1 << 60} {
		for _, origin := range []ID{"a", "b", "c"} {
			for _, priority := range []int32{-5, 0, 3} {
				for _, oldest := range []bool{false, true} {
					all = append(all, catalogue.Publication{Epoch: epoch, Origin: origin, Priority: priority, Oldest: oldest})
				}
			}
		}
	}
	for _, p := range all {
		for _, q := range all {
			if p.Beats(q) == q.Beats(p) && p != q || p == q && p.Beats(q) {
				t.Fatalf("%v and %v: of two, one must win", p, q)
			}
			for _, r := range all {
				if p.Beats(q) && q.Beats(r) && !p.Beats(r) {
					t.Fatalf("%v beats %v beats %v, but not that", p, q, r)
				}
			}
		}
	}
}

func TestBeats(t *testing.T) {
	type P = catalogue.Publication
	for name, tt := range map[string]struct{ winner, loser P }{
		"newest":                         {P{Epoch: 6, Origin: "b"}, P{Epoch: 5, Origin: "a"}},
		"newest of the smaller origin":   {P{Epoch: 5, Origin: "a"}, P{Epoch: 5, Origin: "b"}},
		"newest of unknown age":          {P{Epoch: 1, Origin: "b"}, P{Origin: "a"}},
		"oldest":                         {P{Epoch: 5, Origin: "b", Oldest: true}, P{Epoch: 6, Origin: "a", Oldest: true}},
		"oldest of unknown age":          {P{Epoch: 9, Origin: "b", Oldest: true}, P{Origin: "a", Oldest: true}},
		"oldest and newest":              {P{Epoch: 5, Origin: "b", Oldest: true}, P{Epoch: 6, Origin: "a"}},
		"oldest and newest the other":    {P{Epoch: 6, Origin: "b", Oldest: true}, P{Epoch: 5, Origin: "a"}},
		"oldest of unknown age, newest":  {P{Origin: "b", Oldest: true}, P{Epoch: 5, Origin: "a"}},
		"priority":                       {P{Epoch: 1, Origin: "b", Priority: 1}, P{Epoch: 9, Origin: "a", Oldest: true}},
		"a priority below that of all":   {P{Epoch: 1, Origin: "b"}, P{Epoch: 9, Origin: "a", Priority: -1}},
		"of one priority the higher age": {P{Epoch: 9, Origin: "b", Priority: 1}, P{Epoch: 1, Origin: "a", Priority: 1}},
	} {
		if !tt.winner.Beats(tt.loser) || tt.loser.Beats(tt.winner) {
			t.Errorf("%s: the wrong one wins", name)
		}
	}
}

// TestPolicyOfTheOrigin: what conflicts are settled by is the origin's, and goes with its holds.
func TestPolicyOfTheOrigin(t *testing.T) {
	c := catalogue.New(self)
	c.SetPolicy(catalogue.Policy{Oldest: true, Priority: 2})
	setLocal(t, c)
	setLocal(t, c, stream("x", "s1"))
	want := []Hold{{Stream: "x", Epoch: 1, Path: []ID{"a1"}, Priority: 2, Oldest: true}}
	if d := cmp.Diff(want, c.Announcement("b")); d != "" {
		t.Error(d)
	}
	setPeer(t, c, "b1", "b", hold("x", 9, "b1"))
	s, _ := c.Snapshot()
	if w, _ := s.Winner("x"); w.Origin != "a1" {
		t.Errorf("winner %v", w)
	}
}

// TestOriginKnowsBest: a publisher that comes back to the same origin under the policy "oldest" would lose for ever against
// what relays still hold of the publication before.
func TestOriginKnowsBest(t *testing.T) {
	c := catalogue.New(self)
	mark := func(h Hold) Hold { h.Oldest = true; return h }
	setPeer(t, c, "c1", "c", mark(hold("x", 5, "b1", "c1")))
	setPeer(t, c, "d1", "d", mark(hold("x", 7, "d1")))
	winner := func(want uint64, holders ...ID) {
		t.Helper()
		s, _ := c.Snapshot()
		w, _ := s.Winner("x")
		var got []ID
		for _, h := range s.Holders("x") {
			got = append(got, h.Holder())
		}
		if w.Epoch != want || !slices.Equal(got, holders) {
			t.Errorf("winner %v held by %v, want epoch %d held by %v", w, got, want, holders)
		}
	}
	winner(5, "c1")
	setPeer(t, c, "b1", "b", mark(hold("x", 8, "b1")))
	winner(7, "d1") // both of b1's lose: one is later, the other over
	setPeer(t, c, "d1", "d")
	winner(8, "b1")
	setPeer(t, c, "c1", "c", mark(hold("x", 8, "b1", "c1")))
	winner(8, "b1", "c1")
	setPeer(t, c, "b1", "b", hold("x", 8, "b1")) // restarted with another policy, and the same epoch
	winner(8, "b1")
	setPeer(t, c, "b1", "b", mark(hold("x", 0, "b1"))) // of unknown age: it does not know better
	winner(8, "c1")
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		names                catalogue.Names
		allowed, listed, not string
	}{
		{nil, "x", "", ""},
		{catalogue.Names{"x", "studio/*"}, "studio/1", "studio/1", "y"},
		{catalogue.Names{"x"}, "x", "x", "x/y"},
		{catalogue.Names{"!private/*"}, "x", "", "private/1"},
		{catalogue.Names{"!x-secret", "x-*"}, "x-1", "x-1", "x-secret"},
		{catalogue.Names{"x-*", "!x-secret"}, "x-secret", "x-secret", "y"},
		{catalogue.Names{"a[b"}, "a[b", "a[b", "ab"},
	} {
		if !tt.names.Allows(adapters.StreamID(tt.allowed)) || tt.not != "" && tt.names.Allows(adapters.StreamID(tt.not)) {
			t.Errorf("%q allows the wrong ones", tt.names)
		}
		if tt.listed != "" && !tt.names.Lists(adapters.StreamID(tt.listed)) || tt.names.Lists(adapters.StreamID(tt.not)) {
			t.Errorf("%q lists the wrong ones", tt.names)
		}
	}
}

func TestExportAndImport(t *testing.T) {
	c := catalogue.New(self)
	c.SetPolicy(catalogue.Policy{Export: catalogue.Names{"!local/*"}, Import: catalogue.Names{"news/*"}})
	setLocal(t, c)
	setLocal(t, c, stream("local/1", "s1"), stream("news/1", "s2"))
	names := func(holds []Hold) (names []string) {
		for _, h := range holds {
			names = append(names, string(h.Stream))
		}
		return names
	}
	if d := cmp.Diff([]string{"local/1", "news/1"}, names(c.Announcement("a"))); d != "" {
		t.Errorf("within the cluster: %s", d)
	}
	if d := cmp.Diff([]string{"news/1"}, names(c.Announcement("b"))); d != "" {
		t.Errorf("outside: %s", d)
	}
	setPeer(t, c, "b1", "b", hold("local/1", 9, "b1"), hold("news/1", 8, "b1"), hold("other", 7, "b1"))
	setPeer(t, c, "a2", "a", hold("other", 6, "a2"))
	s, _ := c.Snapshot()
	for id, want := range map[adapters.StreamID]ID{"local/1": "a1", "news/1": "b1", "other": "a2"} {
		if w, _ := s.Winner(id); w.Origin != want {
			t.Errorf("winner of %s: %v, want that of %s", id, w, want)
		}
	}
	if c.Clock() != 9 {
		t.Errorf("clock %d: epochs count, whatever is imported", c.Clock())
	}
	if s.Exports("local/1") || !s.Exports("news/1") {
		t.Error("what may leave")
	}
}

func TestConditions(t *testing.T) {
	c := catalogue.New(self)
	drains := catalogue.Condition{Ready: true, Draining: true}
	condition := func(id ID, want catalogue.Condition) {
		t.Helper()
		s, _ := c.Snapshot()
		if got := s.Condition(id); got != want {
			t.Errorf("%s: %+v, want %+v", id, got, want)
		}
	}
	wakes := func(want bool, do func()) {
		t.Helper()
		before, ch := c.Snapshot()
		do()
		after, _ := c.Snapshot()
		woken := false
		select {
		case <-ch:
			woken = true
		default:
		}
		if _, ok := after.Changed(before); woken != want || ok == want {
			t.Errorf("woken %v, every stream may differ: %v; want %v", woken, !ok, want)
		}
	}
	condition("a2", catalogue.Condition{Ready: true})
	c.SetCondition("a2", drains) // before it is known
	condition("a2", catalogue.Condition{Ready: true})
	setPeer(t, c, "a2", "a")
	condition("a2", drains)
	wakes(false, func() { c.SetCondition("a2", drains) })
	wakes(true, func() { c.SetCondition("a2", catalogue.Condition{}) })
	condition("a2", catalogue.Condition{})
	wakes(true, func() { c.SetCondition("a1", drains) })
	condition("a1", drains)
	s, _ := c.Snapshot()
	if d := cmp.Diff([]catalogue.Node{{ID: "a2", Cluster: "a"}}, s.Owners()); d != "" {
		t.Errorf("owners while this node drains: %s", d)
	}
	c.Forget("a2")
	s, _ = c.Snapshot()
	if d := cmp.Diff([]catalogue.Node{self}, s.Owners()); d != "" {
		t.Errorf("owners where all drain: %s", d)
	}
	setPeer(t, c, "a2", "a")
	condition("a2", catalogue.Condition{Ready: true})
}

// TestIndex compares what a State knows at once with what a walk over all holds finds, after each of many random changes,
// and checks that earlier States stay as they were.
func TestIndex(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	nodes := []ID{"a1", "a2", "b1", "b2", "c1"}
	streams := []adapters.StreamID{"s", "t", "u", "v"}
	c := catalogue.New(self)
	random := func(holder ID) (holds []Hold) {
		for _, s := range streams {
			if r.IntN(3) == 0 {
				continue
			}
			var path []ID
			for _, i := range r.Perm(len(nodes)) {
				if nodes[i] != holder && r.IntN(3) == 0 {
					path = append(path, nodes[i])
				}
			}
			if holder == self.ID && len(path) == 0 {
				path = []ID{"b1"}
			}
			holds = append(holds, Hold{
				Stream: s, Epoch: uint64(r.IntN(3)), Path: append(path, holder), Priority: int32(r.IntN(2)), Oldest: r.IntN(2) == 0,
			})
		}
		return holds
	}
	type memory struct {
		state *catalogue.State
		holds map[adapters.StreamID][]Hold
	}
	holdsOf := func(s *catalogue.State) map[adapters.StreamID][]Hold {
		holds := map[adapters.StreamID][]Hold{}
		for _, id := range s.Streams() {
			holds[id] = slices.Clone(s.Holds(id))
		}
		return holds
	}
	var memories []memory
	for range 3000 {
		switch id := nodes[r.IntN(len(nodes))]; {
		case id == self.ID:
			if err := c.SetCarried(random(id)); err != nil {
				t.Fatal(err)
			}
		case r.IntN(8) == 0:
			c.Forget(id)
		default:
			setPeer(t, c, string(id), string(id)[:1], random(id)...)
		}
		s, _ := c.Snapshot()
		holds := holdsOf(s)
		load, pulls, related := map[ID]int{}, map[ID][]adapters.StreamID{}, map[ID]bool{}
		for _, id := range slices.Sorted(maps.Keys(holds)) {
			if len(holds[id]) == 0 {
				t.Fatalf("%s is listed and nobody holds it", id)
			}
			for i, h := range holds[id] {
				if i > 0 && holds[id][i-1].Holder() >= h.Holder() {
					t.Fatalf("holds of %s are not in the order of holders: %v", id, holds[id])
				}
				if h.Parent() == "" {
					continue
				}
				load[h.Parent()]++
				if h.Parent() == self.ID {
					pulls[h.Holder()] = append(pulls[h.Holder()], id)
					related[h.Holder()] = true
				}
				if h.Holder() == self.ID {
					related[h.Parent()] = true
				}
			}
			winner, _ := s.Winner(id)
			holders := s.Holders(id)
			for i, h := range holders {
				if h.Publication() != winner {
					t.Fatalf("%v is among the holders of %v", h, winner)
				}
				fan := 0
				for _, child := range holders {
					if child.Parent() == h.Holder() {
						fan++
					}
				}
				if got := s.Row(id).Fan(i); got != fan {
					t.Fatalf("%s has %d children at %s, want %d", h.Holder(), got, id, fan)
				}
			}
		}
		for _, id := range nodes {
			if s.Load(id) != load[id] {
				t.Fatalf("load of %s: %d, want %d", id, s.Load(id), load[id])
			}
			if d := cmp.Diff(pulls[id], s.Pulls(id)); d != "" {
				t.Fatalf("pulls of %s: %s", id, d)
			}
		}
		if d := cmp.Diff(slices.Sorted(maps.Keys(related)), s.Related()); d != "" {
			t.Fatalf("related: %s", d)
		}
		memories = append(memories, memory{s, holds})
		old := memories[r.IntN(len(memories))]
		if d := cmp.Diff(old.holds, holdsOf(old.state)); d != "" {
			t.Fatalf("an earlier state has changed: %s", d)
		}
		changed, ok := s.Changed(old.state)
		for _, id := range streams {
			if ok && !slices.Contains(changed, id) && !cmp.Equal(old.holds[id], holds[id]) {
				t.Fatalf("%s has changed, and only %v are said to have", id, changed)
			}
		}
	}
}

func TestChangedIsBounded(t *testing.T) {
	c := catalogue.New(self)
	setPeer(t, c, "b1", "b")
	first, _ := c.Snapshot()
	for i := range 20_000 {
		setPeer(t, c, "b1", "b", hold("x", uint64(i), "b1"))
	}
	last, _ := c.Snapshot()
	if _, ok := last.Changed(first); ok {
		t.Error("every change is remembered")
	}
	setPeer(t, c, "b1", "b", hold("y", 1, "b1"))
	s, _ := c.Snapshot()
	changed, ok := s.Changed(last)
	if d := cmp.Diff([]adapters.StreamID{"x", "y"}, changed); d != "" || !ok {
		t.Error(d)
	}
	if changed, ok := s.Changed(s); !ok || len(changed) > 0 {
		t.Errorf("nothing has changed: %v %v", changed, ok)
	}
}

func TestAnnouncementIsKept(t *testing.T) {
	c := catalogue.New(self)
	setLocal(t, c)
	setLocal(t, c, stream("x", "s1"))
	setPeer(t, c, "b1", "b")
	before := c.Announcement("b")
	setPeer(t, c, "b1", "b", hold("y", 1, "b1"))
	if after := c.Announcement("c"); &before[0] != &after[0] {
		t.Error("it is made anew though nothing of this node's has changed")
	}
}

// mesh fills a catalogue with nodes of five clusters, each the origin of some streams that one node of each other cluster
// pulls, and gives the holds of its last node.
func mesh(c *catalogue.Catalogue, nodes, streams int) (last catalogue.Node, holds []Hold) {
	sets := make([][]Hold, nodes)
	tracks := func() []adapters.Track {
		return []adapters.Track{{Kind: "video", MIME: fmt.Sprint("video/", "H264")}, {Kind: "audio", MIME: fmt.Sprint("audio/", "opus")}}
	}
	name := func(n int) ID { return ID(fmt.Sprintf("7d444840-9dc0-11d1-b245-5ffdce74f%03d", n)) }
	for i := range streams {
		origin := i % nodes
		for k := range 5 {
			n := (origin + k) % nodes
			path := []ID{name(origin)}
			if k > 0 {
				path = append(path, name(n))
			}
			sets[n] = append(sets[n], Hold{
				Stream: adapters.StreamID(fmt.Sprintf("studio/camera-%05d", i)), Epoch: uint64(i + 1), Path: path, Tracks: tracks(),
			})
		}
	}
	for n := range nodes {
		last, holds = catalogue.Node{ID: name(n), Incarnation: 1, Cluster: string(rune('a' + n%5))}, sets[n]
		_ = c.SetPeer(last, holds)
	}
	return last, holds
}

// BenchmarkOneChange is what a peer's news costs: its full set, in which one hold differs, and the state after it.
func BenchmarkOneChange(b *testing.B) {
	for _, streams := range []int{400, 2000} {
		b.Run(fmt.Sprint(streams), func(b *testing.B) {
			c := catalogue.New(self)
			n, holds := mesh(c, 50, streams)
			other := slices.Clone(holds)
			other[3].Delay = 1
			sets := [][]Hold{holds, other}
			b.ReportAllocs()
			before, _ := c.Snapshot()
			for i := 0; b.Loop(); i++ {
				_ = c.SetPeer(n, sets[i%2])
				s, _ := c.Snapshot()
				s.Changed(before)
				before = s
			}
		})
	}
}

// BenchmarkMemory reports what a hold costs in a mesh of 50 nodes, 2,000 streams and 10,000 holds.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		c := catalogue.New(self)
		mesh(c, 50, 2000)
		s, _ := c.Snapshot()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/10_000, "B/hold")
		runtime.KeepAlive(s)
	}
}
