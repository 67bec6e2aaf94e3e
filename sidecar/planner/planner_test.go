package planner_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
)

type ID = catalogue.NodeID

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// path reads "b1 a2" as a path, and cluster takes a node's first letter for its cluster.
func path(s string) []ID {
	var ids []ID
	for _, f := range strings.Fields(s) {
		ids = append(ids, ID(f))
	}
	return ids
}

func cluster(id ID) string { return string(id)[:1] }

// state is what node a1 knows: holds of stream x as "epoch path" and further nodes that are alive.
func state(t *testing.T, published bool, holds, alive []string) *catalogue.State {
	t.Helper()
	return conditioned(t, published, holds, alive, "", "")
}

// conditioned is state where some nodes drain or are not ready.
func conditioned(t *testing.T, published bool, holds, alive []string, drains, unready string) *catalogue.State {
	t.Helper()
	c := catalogue.New(catalogue.Node{ID: "a1", Cluster: "a"})
	if published {
		if err := c.SetLocal([]adapters.Stream{{ID: "x", Session: "s"}}); err != nil { // at epoch 0
			t.Fatal(err)
		}
	}
	for _, s := range holds {
		var epoch uint64
		number, rest, _ := strings.Cut(s, " ")
		if _, err := fmt.Sscan(number, &epoch); err != nil {
			t.Fatal(err)
		}
		h := catalogue.Hold{Stream: "x", Epoch: epoch, Path: path(rest)}
		var err error
		if h.Holder() == "a1" {
			err = c.SetCarried([]catalogue.Hold{h})
		} else {
			err = c.SetPeer(catalogue.Node{ID: h.Holder(), Cluster: cluster(h.Holder())}, []catalogue.Hold{h})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range alive {
		if err := c.SetPeer(catalogue.Node{ID: ID(id), Cluster: cluster(ID(id))}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range path(drains) {
		c.SetCondition(id, catalogue.Condition{Ready: true, Draining: true})
	}
	for _, id := range path(unready) {
		c.SetCondition(id, catalogue.Condition{})
	}
	s, _ := c.Snapshot()
	return s
}

// senior and junior are nodes of cluster a beside a1 that rank before and after it for stream x.
var senior, junior = func() (s, j string) {
	for i := 2; s == "" || j == ""; i++ {
		id := ID(fmt.Sprint("a", i))
		if planner.Rank("x", []ID{"a1", id})[0] == id {
			s = string(id)
		} else {
			j = string(id)
		}
	}
	return s, j
}()

func TestPlan(t *testing.T) {
	live := func(epoch uint64, parent, origin string) *planner.Relay {
		return &planner.Relay{
			Parent: ID(parent), Publication: catalogue.Publication{Epoch: epoch, Origin: ID(origin)},
			Outside: cluster(ID(parent)) != "a", Live: true,
		}
	}
	early := func(epoch uint64, parent, origin string) *planner.Relay {
		r := live(epoch, parent, origin)
		r.Early = true
		return r
	}
	connecting := func(epoch uint64, parent, origin string) *planner.Relay {
		r := live(epoch, parent, origin)
		r.Live = false
		return r
	}
	quiet := func(epoch uint64, parent, origin string) *planner.Relay {
		r := live(epoch, parent, origin)
		r.Quiet = true
		return r
	}
	valued := func(epoch uint64, parent, origin string) *planner.Relay {
		r := live(epoch, parent, origin)
		r.Publication.Priority = 9
		return r
	}
	young := func(epoch uint64, parent, origin string) *planner.Relay {
		r := live(epoch, parent, origin)
		r.Since = now.Add(-29 * time.Second)
		return r
	}
	granted := planner.Claim{Epoch: 5, Granted: true, Until: now.Add(time.Second)}
	soon := now.Add(time.Second)
	ms := func(n time.Duration) time.Duration { return n * time.Millisecond }
	tests := []struct {
		name      string
		published bool
		holds     []string
		alive     []string
		relay     *planner.Relay
		claim     planner.Claim
		avoid     map[ID]time.Time
		rtt       map[ID]time.Duration
		fanOut    int
		gapless   bool
		drains    string // nodes that do
		unready   string
		want      string // action and subject
		why       planner.Reason
	}{
		{name: "published here", published: true, want: "nothing", why: planner.WhyOrigin},
		{
			name: "published here while it is relayed", published: true, holds: []string{"0 b1"},
			relay: live(0, "b1", "b1"), want: "nothing drop", why: planner.WhyOrigin,
		},
		{
			name: "published here, superseded", published: true, holds: []string{"5 b1"},
			want: "nothing", why: planner.WhySuperseded,
		},
		{name: "nobody holds it", alive: []string{"b1"}, want: "nothing", why: planner.WhyNobody},
		{
			name: "nobody holds it while it is relayed", relay: live(5, "b1", "b1"),
			want: "run b1", why: planner.WhyOrphan,
		},

		// Within the cluster.
		{name: "the origin is near", holds: []string{"5 a2", "5 a2 b1"}, want: "run a2", why: planner.WhyNear},
		{
			name: "a puller is near", holds: []string{"5 b1", "5 b1 a2"}, rtt: map[ID]time.Duration{"b1": 1, "a2": ms(900)},
			want: "run a2", why: planner.WhyNear,
		},
		{
			name: "two are near", holds: []string{"5 b1", "5 b1 a2", "5 b1 a2 a3"},
			rtt: map[ID]time.Duration{"a2": ms(20), "a3": ms(1)}, want: "run a3", why: planner.WhyNear,
		},
		{
			name: "a tie", holds: []string{"5 b1", "5 b1 a9", "5 b1 a9 a4", "5 b1 a9 a3"},
			rtt: map[ID]time.Duration{"a9": ms(20), "a4": ms(1), "a3": ms(1)}, want: "run a3", why: planner.WhyNear,
		},
		{
			name: "two pullers are near", holds: []string{"5 b1 " + senior, "5 b1 " + junior, "5 b1"},
			rtt:  map[ID]time.Duration{ID(senior): ms(9), ID(junior): ms(1)},
			want: "run " + senior, why: planner.WhyNear,
		},
		{
			name: "the near one has it through us", holds: []string{"5 b1", "5 b1 a1 a2"},
			want: "ask", why: planner.WhyAsk,
		},
		{
			name: "the near one failed", holds: []string{"5 b1", "5 b1 a2"}, avoid: map[ID]time.Time{"a2": soon},
			want: "wait until", why: planner.WhyAvoid,
		},
		{
			name: "the near one failed some time ago", holds: []string{"5 b1", "5 b1 a2"},
			avoid: map[ID]time.Time{"a2": now}, want: "run a2", why: planner.WhyNear,
		},
		{
			name: "of two near ones the one that did not fail", holds: []string{"5 b1 a2", "5 b1 a2 a3"},
			avoid: map[ID]time.Time{"a2": soon}, want: "run a3", why: planner.WhyNear,
		},
		{
			name: "the near one has no room", holds: []string{"5 b1 a2", "5 b1 a2 a3", "5 b1 a2 a4"}, fanOut: 2,
			rtt: map[ID]time.Duration{"a2": ms(1), "a3": ms(30), "a4": ms(20)}, want: "run a4", why: planner.WhyNear,
		},
		{
			name: "a relay from near goes on", holds: []string{"5 b1 a2", "5 b1 a2 a3"}, relay: live(5, "a3", "b1"),
			rtt: map[ID]time.Duration{"a2": ms(1), "a3": ms(300)}, want: "run a3", why: planner.WhyNear,
		},
		{
			name: "a relay from near goes on though it failed once", holds: []string{"5 b1 a2"}, relay: live(5, "a2", "b1"),
			avoid: map[ID]time.Time{"a2": soon}, want: "run a2", why: planner.WhyNear,
		},
		{
			name: "a cheaper near one, without a gap", holds: []string{"5 b1 a2", "5 b1 a2 a3"}, relay: live(5, "a3", "b1"),
			rtt: map[ID]time.Duration{"a2": ms(1), "a3": ms(300)}, gapless: true, want: "run a2", why: planner.WhyCheaper,
		},

		// Two pullers.
		{
			name: "another puller ranks lower", holds: []string{"5 b1", "5 b1 a1", "5 b1 " + senior},
			relay: live(5, "b1", "b1"), want: "run " + senior, why: planner.WhyYield,
		},
		{
			name: "another puller ranks higher", holds: []string{"5 b1", "5 b1 a1", "5 b1 " + junior},
			relay: live(5, "b1", "b1"), want: "run b1", why: planner.WhyPull,
		},
		{
			name:  "another puller ranks lower and has it through us",
			holds: []string{"5 b1", "5 b1 a1", "5 b1 a1 c1 " + senior, "5 b1 a1 c1"},
			relay: live(5, "b1", "b1"), want: "run b1", why: planner.WhyPull,
		},
		{
			name:  "another puller ranks lower and has it through this cluster",
			holds: []string{"5 b1", "5 b1 a1", "5 b1 a9x c1 " + senior, "5 b1 a9x c1"}, alive: []string{"a9x"},
			relay: live(5, "b1", "b1"), want: "run b1", why: planner.WhyPull,
		},
		{
			name: "the origin is near and we pull from outside", holds: []string{"5 a9", "5 a9 b1", "5 a9 b1 a1"},
			relay: live(5, "b1", "a9"), want: "run a9", why: planner.WhyYield,
		},
		{
			name: "another puller, and we are not live yet", holds: []string{"5 b1", "5 b1 " + junior},
			relay: connecting(5, "b1", "b1"), want: "run " + junior, why: planner.WhyNear,
		},
		{
			name:  "the other puller that ranks lower failed",
			holds: []string{"5 b1", "5 b1 a1", "5 b1 " + senior}, avoid: map[ID]time.Time{ID(senior): soon},
			relay: live(5, "b1", "b1"), want: "run b1 until", why: planner.WhyAvoid,
		},

		// Nodes that leave, or are not ready.
		{
			name: "a near one drains", holds: []string{"5 b1", "5 b1 a2"}, drains: "a2", want: "ask", why: planner.WhyAsk,
		},
		{
			name: "a near one is not ready", holds: []string{"5 b1", "5 b1 a2"}, unready: "a2", want: "ask", why: planner.WhyAsk,
		},
		{
			name: "all drain", holds: []string{"5 b1 a2"}, drains: "a2", want: "run a2", why: planner.WhyNear,
		},
		{
			name: "a far one drains", holds: []string{"5 b1", "5 b1 c1"}, claim: granted, drains: "b1",
			rtt: map[ID]time.Duration{"b1": 1, "c1": ms(300)}, want: "run c1", why: planner.WhyPull,
		},
		{
			name: "the only far one that stays failed", holds: []string{"5 b1", "5 b1 c1"}, claim: granted, drains: "b1",
			avoid: map[ID]time.Time{"c1": soon}, want: "wait until", why: planner.WhyAvoid,
		},
		{
			name: "the parent drains, and the others hang on it", holds: []string{"5 b1", "5 b1 c1", "5 b1 a1"},
			relay: live(5, "b1", "b1"), drains: "b1", want: "run b1", why: planner.WhyPull,
		},
		{
			name: "the parent drains, and there is one apart", holds: []string{"5 e1 b1", "5 e1 c1", "5 e1 b1 a1"},
			relay: live(5, "b1", "e1"), drains: "b1", want: "run c1", why: planner.WhyDrain,
		},
		{
			name: "the parent drains, and the other failed", holds: []string{"5 e1 b1", "5 e1 c1", "5 e1 b1 a1"},
			relay: live(5, "b1", "e1"), drains: "b1", avoid: map[ID]time.Time{"c1": soon}, want: "run b1 until", why: planner.WhyAvoid,
		},
		{
			name: "the parent drains, and this node too", holds: []string{"5 e1 b1", "5 e1 c1", "5 e1 b1 a1"},
			relay: live(5, "b1", "e1"), drains: "a1 b1", want: "run b1", why: planner.WhyPull,
		},
		{
			name: "the parent drains, and the other too", holds: []string{"5 e1 b1", "5 e1 c1", "5 e1 b1 a1"},
			relay: live(5, "b1", "e1"), drains: "b1 c1", want: "run b1", why: planner.WhyPull,
		},
		{
			name: "the parent drains before media flows", holds: []string{"5 e1 b1", "5 e1 c1"},
			relay: connecting(5, "b1", "e1"), drains: "b1", want: "run b1", why: planner.WhyPull,
		},
		{
			name: "the near parent drains, and another is near", holds: []string{"5 b1", "5 b1 a2", "5 b1 a3", "5 b1 a2 a1"},
			relay: live(5, "a2", "b1"), drains: "a2", want: "run a3", why: planner.WhyDrain,
		},
		{
			name: "the near parent drains, and others hang on it", holds: []string{"5 b1", "5 b1 a2", "5 b1 a2 a3", "5 b1 a2 a1"},
			relay: live(5, "a2", "b1"), drains: "a2", want: "ask", why: planner.WhyAsk,
		},
		{
			name: "the parent is not ready", holds: []string{"5 b1", "5 b1 c1"}, relay: live(5, "b1", "b1"), unready: "b1",
			want: "run b1", why: planner.WhyPull,
		},
		{
			name: "another puller ranks lower and drains", holds: []string{"5 b1", "5 b1 a1", "5 b1 " + senior}, drains: senior,
			relay: live(5, "b1", "b1"), want: "run b1", why: planner.WhyPull,
		},
		{
			name: "another puller ranks higher and this node drains", holds: []string{"5 b1", "5 b1 a1", "5 b1 " + junior},
			drains: "a1", relay: live(5, "b1", "b1"), want: "run b1", why: planner.WhyPull,
		},
		{
			name: "granted to another that drains", holds: []string{"5 b1"}, alive: []string{"a2"}, drains: "a2",
			claim: planner.Claim{Epoch: 5, Holder: "a2", Until: soon}, want: "ask", why: planner.WhyAsk,
		},

		// From outside.
		{name: "nobody was asked", holds: []string{"5 b1"}, want: "ask", why: planner.WhyAsk},
		{
			name: "asked for another epoch", holds: []string{"6 b1"}, claim: granted, want: "ask", why: planner.WhyAsk,
		},
		{
			name: "the grant is over", holds: []string{"5 b1"}, claim: planner.Claim{Epoch: 5, Granted: true, Until: now},
			want: "ask", why: planner.WhyAsk,
		},
		{
			name: "granted to another", holds: []string{"5 b1"}, alive: []string{"a2"},
			claim: planner.Claim{Epoch: 5, Holder: "a2", Until: soon}, want: "wait a2 until", why: planner.WhyGranted,
		},
		{
			name: "granted to another that died", holds: []string{"5 b1"},
			claim: planner.Claim{Epoch: 5, Holder: "a2", Until: soon}, want: "ask", why: planner.WhyAsk,
		},
		{name: "granted", holds: []string{"5 b1"}, claim: granted, want: "run b1", why: planner.WhyPull},
		{
			name: "the cheapest by round trip and path", claim: granted,
			holds: []string{"5 b1", "5 b1 c1", "5 b1 d1"},
			rtt:   map[ID]time.Duration{"b1": ms(100), "c1": ms(94), "d1": ms(96)}, want: "run c1", why: planner.WhyPull,
		},
		{
			name: "a path costs", claim: granted, holds: []string{"5 b1", "5 b1 c1"},
			rtt: map[ID]time.Duration{"b1": ms(100), "c1": ms(96)}, want: "run b1", why: planner.WhyPull,
		},
		{
			name: "one that was not measured comes last", claim: granted, holds: []string{"5 b1", "5 b1 c1"},
			rtt: map[ID]time.Duration{"c1": ms(300)}, want: "run c1", why: planner.WhyPull,
		},
		{
			name: "the origin has no room", claim: granted, fanOut: 2,
			holds: []string{"5 b1", "5 b1 c1", "5 b1 d1"}, rtt: map[ID]time.Duration{"b1": 1, "c1": ms(80), "d1": ms(90)},
			want: "run c1", why: planner.WhyPull,
		},
		{
			name: "nobody has room", claim: granted, fanOut: 1, holds: []string{"5 b1", "5 b1 c1", "5 b1 c1 d1"},
			avoid: map[ID]time.Time{"d1": soon}, rtt: map[ID]time.Duration{"b1": 1}, want: "run b1", why: planner.WhyPull,
		},
		{
			name: "an outside path through us", claim: granted, holds: []string{"5 a1 b1"},
			want: "nothing", why: planner.WhyOnlyUs,
		},
		{
			name: "of an older publication nobody takes", claim: granted, holds: []string{"4 c1", "5 b1"},
			rtt: map[ID]time.Duration{"c1": 1}, want: "run b1", why: planner.WhyPull,
		},
		{
			name: "the longest path that counts is shorter by this node", claim: granted,
			holds: []string{"5 n1 n2 n3 n4 n5 n6 n7 n8 n9 m1 m2 m3 m4 m5 m6 m7"},
			want:  "nothing", why: planner.WhyOnlyUs,
		},
		{
			name: "every far one failed", claim: granted, holds: []string{"5 b1", "5 b1 c1"},
			avoid: map[ID]time.Time{"b1": soon.Add(1), "c1": soon}, want: "wait until", why: planner.WhyAvoid,
		},
		{
			name: "a relay goes on without a claim", holds: []string{"5 b1", "5 b1 a1"}, relay: live(5, "b1", "b1"),
			want: "run b1", why: planner.WhyPull,
		},
		{
			name: "a relay that connects goes on", holds: []string{"5 b1"}, relay: connecting(5, "b1", "b1"),
			want: "run b1", why: planner.WhyPull,
		},
		{
			name: "not worth it: a fifth", holds: []string{"5 b1", "5 b1 c1"}, relay: live(5, "b1", "b1"), gapless: true,
			rtt: map[ID]time.Duration{"b1": ms(100), "c1": ms(80)}, want: "run b1", why: planner.WhyPull,
		},
		{
			name: "not worth it: 10 ms", holds: []string{"5 b1", "5 b1 c1"}, relay: live(5, "b1", "b1"), gapless: true,
			rtt: map[ID]time.Duration{"b1": ms(20), "c1": ms(6)}, want: "run b1", why: planner.WhyPull,
		},
		{
			name: "worth it", holds: []string{"5 b1", "5 b1 c1"}, relay: live(5, "b1", "b1"), gapless: true,
			rtt: map[ID]time.Duration{"b1": ms(100), "c1": ms(75)}, want: "run c1", why: planner.WhyCheaper,
		},
		{
			name: "worth it but for the gap", holds: []string{"5 b1", "5 b1 c1"}, relay: live(5, "b1", "b1"),
			rtt: map[ID]time.Duration{"b1": ms(100), "c1": ms(75)}, want: "run b1", why: planner.WhyPull,
		},

		// The parent changes.
		{
			name: "the heartbeat is lost and another holds it", holds: []string{"5 b1 c1"}, relay: live(5, "d1", "b1"),
			want: "run c1", why: planner.WhyGone,
		},
		{
			name:  "the heartbeat is lost and others have it from there",
			holds: []string{"5 d1 c1", "5 d1 b2", "5 d1 a1"}, relay: live(5, "d1", "d1"),
			want: "run d1", why: planner.WhyOrphan,
		},
		{
			name:  "the heartbeat is lost and the senior has it from there",
			holds: []string{"5 d1 c1", "5 d1 a2", "5 d1 a1"}, relay: live(5, "d1", "d1"),
			want: "run a2", why: planner.WhyYield,
		},
		{
			name:  "the heartbeat is lost and one that ranks higher has it from there",
			holds: []string{"5 d1 c1", "5 d1 a4", "5 d1 a1"}, relay: live(5, "d1", "d1"),
			want: "run d1", why: planner.WhyOrphan,
		},
		{
			name: "a near heartbeat is lost and there are far holders", holds: []string{"5 b1", "5 b1 a2 a1"},
			relay: live(5, "a2", "b1"), want: "ask", why: planner.WhyAsk,
		},
		{
			name: "a near heartbeat is lost and a near one is left", holds: []string{"5 b1", "5 b1 a2 a1", "5 b1 a3"},
			relay: live(5, "a2", "b1"), want: "run a3", why: planner.WhyNear,
		},
		{
			name: "the parent lives and holds nothing", holds: []string{"5 b1 c1", "5 b1 d1 a1"}, alive: []string{"d1"},
			relay: live(5, "d1", "b1"), want: "run d1", why: planner.WhyPause,
		},
		{
			name: "the parent has it from us now", holds: []string{"5 b1", "5 b1 a1", "5 b1 a1 c1"},
			relay: live(5, "c1", "b1"), claim: granted, want: "run b1 drop", why: planner.WhyPull,
		},
		{
			name: "the parent has it from us, and nobody else", holds: []string{"5 b1 a1", "5 b1 a1 c1"},
			relay: live(5, "c1", "b1"), want: "nothing drop", why: planner.WhyLoop,
		},
		{
			name: "the parent has another publication from us", holds: []string{"5 b1 a1", "4 d1 a1 c1", "5 b1 d1"},
			relay: live(5, "c1", "b1"), claim: granted, want: "run d1 drop", why: planner.WhyPull,
		},
		{
			name: "the parent has turned to a beaten publication", holds: []string{"5 b1 c1 a1", "4 d1 c1"},
			relay: live(5, "c1", "b1"), want: "nothing drop", why: planner.WhyTurned,
		},
		{
			name: "the parent held a beaten one when it granted", holds: []string{"5 b1 c1 a1", "4 d1 c1"},
			relay: early(5, "c1", "b1"), want: "run c1", why: planner.WhyOrphan,
		},

		{
			name: "quiet, and the parent holds nothing", holds: []string{"5 b1 c1", "5 b1 d1 a1"}, alive: []string{"d1"},
			relay: quiet(5, "d1", "b1"), claim: granted, want: "run c1 drop", why: planner.WhyPull,
		},
		{
			name: "quiet, and nobody holds it", holds: []string{"5 d1 a1"}, alive: []string{"d1"},
			relay: quiet(5, "d1", "d1"), want: "nothing drop", why: planner.WhyQuiet,
		},
		{
			name: "quiet, and the parent holds it", holds: []string{"5 d1", "5 d1 a1"}, relay: quiet(5, "d1", "d1"),
			want: "run d1", why: planner.WhyPull,
		},
		{
			name: "connecting, and the parent is lost", holds: []string{"5 d1 c1"}, relay: connecting(5, "d1", "d1"),
			claim: granted, want: "run c1 drop", why: planner.WhyPull,
		},
		{
			name: "connecting, and the parent is lost, and nobody holds it", relay: connecting(5, "d1", "d1"),
			want: "nothing drop", why: planner.WhyNobody,
		},
		{
			name: "a cheaper one, too soon after the last", holds: []string{"5 b1", "5 b1 c1"}, relay: young(5, "b1", "b1"),
			gapless: true, rtt: map[ID]time.Duration{"b1": ms(100), "c1": ms(75)}, want: "run b1 until", why: planner.WhyPull,
		},

		// The publication changes.
		{
			name: "a newer publication", holds: []string{"6 c1"}, relay: live(5, "b1", "b1"), want: "ask", why: planner.WhyAsk,
		},
		{
			name: "a newer publication at the same parent", holds: []string{"6 b1"}, relay: live(5, "b1", "b1"),
			claim: planner.Claim{Epoch: 6, Granted: true, Until: soon}, want: "run b1", why: planner.WhyPull,
		},
		{
			name: "a newer publication is near", holds: []string{"6 c1", "6 c1 a2"}, relay: live(5, "b1", "b1"),
			want: "run a2", why: planner.WhyNear,
		},
		{
			name: "the newer publication's holders failed", holds: []string{"6 c1"}, relay: live(5, "b1", "b1"),
			claim: planner.Claim{Epoch: 6, Granted: true, Until: soon}, avoid: map[ID]time.Time{"c1": soon},
			want: "run b1 until", why: planner.WhyAvoid,
		},
		{
			name: "the publisher is back at the same origin, of lower priority now", holds: []string{"6 b1", "5 b1 a1"},
			relay: valued(5, "b1", "b1"), want: "ask", why: planner.WhyAsk,
		},
		{
			name: "the relay is ahead of the news", holds: []string{"4 c1"}, relay: live(5, "b1", "b1"),
			want: "run b1", why: planner.WhyAhead,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := planner.Input{
				State: conditioned(t, tt.published, tt.holds, tt.alive, tt.drains, tt.unready), Now: now,
				Wants:  []planner.Want{{Stream: "x", Demand: planner.Demand{Viewers: 1}}},
				Claims: map[adapters.StreamID]planner.Claim{"x": tt.claim},
				Avoid:  func(_ adapters.StreamID, id ID) time.Time { return tt.avoid[id] },
				RTT: func(id ID) (time.Duration, bool) {
					d, ok := tt.rtt[id]
					return d, ok
				},
				FanOut: tt.fanOut, Gapless: tt.gapless,
			}
			if tt.relay != nil {
				in.Relays = map[adapters.StreamID]planner.Relay{"x": *tt.relay}
			}
			d := planner.Plan(in)[0]
			got := d.Action.String()
			if d.Parent != "" {
				got += " " + string(d.Parent)
			}
			if !d.Until.IsZero() {
				got += " until"
				if d.Until != soon {
					t.Errorf("until %v, want %v", d.Until, soon)
				}
			}
			if d.Drop {
				got += " drop"
			}
			if got != tt.want || d.Why != tt.why {
				t.Errorf("%s: %s\nwant %s: %s", got, d.Why, tt.want, tt.why)
			}
			if d.Action == planner.Run && (d.Hold.Holder() != d.Parent || d.Outside != (cluster(d.Parent) != "a")) {
				t.Errorf("hold %v and outside %v of parent %s", d.Hold, d.Outside, d.Parent)
			}
		})
	}
}

// TestSilentOwners: who does not answer is passed over; after two the node pulls unasked.
func TestSilentOwners(t *testing.T) {
	s := state(t, false, []string{"5 b1"}, []string{"a2", "a3", "a4"})
	order := planner.Rank("x", []ID{"a1", "a2", "a3", "a4"})
	claim := planner.Claim{Epoch: 5, Until: now.Add(time.Second)}
	for i := range 3 {
		d := planner.Plan(planner.Input{
			State: s, Now: now, Wants: []planner.Want{{Stream: "x"}},
			Claims: map[adapters.StreamID]planner.Claim{"x": claim},
		})[0]
		if i == 2 {
			if d.Action != planner.Run || d.Parent != "b1" || d.Why != planner.WhyUnasked {
				t.Errorf("after two: %v %s: %s", d.Action, d.Parent, d.Why)
			}
			break
		}
		if d.Action != planner.Ask || d.Owner != order[i] || d.Epoch != 5 {
			t.Errorf("after %d: %v %s, want %s", i, d.Action, d.Owner, order[i])
		}
		claim.Silent = append(claim.Silent, order[i])
	}
}

// TestOwnersThatLeave: a node that drains grants nothing, unless no other can.
func TestOwnersThatLeave(t *testing.T) {
	first := planner.Rank("x", []ID{"a1", "a2", "a3"})
	for name, tt := range map[string]struct {
		drains string
		want   ID
	}{
		"none drains":      {"", first[0]},
		"the first drains": {string(first[0]), first[1]},
		"two drain":        {fmt.Sprint(first[0], " ", first[1]), first[2]},
		"all drain":        {"a1 a2 a3", first[0]},
	} {
		s := conditioned(t, false, []string{"5 b1"}, []string{"a2", "a3"}, tt.drains, "")
		d := planner.Plan(planner.Input{State: s, Now: now, Wants: []planner.Want{{Stream: "x"}}})[0]
		if d.Action != planner.Ask || d.Owner != tt.want {
			t.Errorf("%s: %v %s, want %s", name, d.Action, d.Owner, tt.want)
		}
	}
}

// TestTreesSpread: of parents that are as far away, the one takes the next child that has fewer, of all streams.
func TestTreesSpread(t *testing.T) {
	c := catalogue.New(catalogue.Node{ID: "a1", Cluster: "a"})
	set := func(id ID, holds ...catalogue.Hold) {
		if err := c.SetPeer(catalogue.Node{ID: id, Cluster: cluster(id)}, holds); err != nil {
			t.Fatal(err)
		}
	}
	set("b1", catalogue.Hold{Stream: "x", Epoch: 5, Path: path("e1 b1")})
	set("c1", catalogue.Hold{Stream: "x", Epoch: 5, Path: path("e1 c1")})
	set("d1", catalogue.Hold{Stream: "y", Epoch: 4, Path: path("b1 d1")}, catalogue.Hold{Stream: "z", Epoch: 3, Path: path("b1 d1")})
	s, _ := c.Snapshot()
	in := planner.Input{
		State: s, Now: now, Wants: []planner.Want{{Stream: "x"}},
		Claims: map[adapters.StreamID]planner.Claim{"x": {Epoch: 5, Granted: true, Until: now.Add(time.Second)}},
		RTT:    func(ID) (time.Duration, bool) { return 40 * time.Millisecond, true },
	}
	if d := planner.Plan(in)[0]; d.Parent != "c1" {
		t.Errorf("from %s, which has two children", d.Parent)
	}
	in.RTT = func(id ID) (time.Duration, bool) { return 40 * time.Millisecond, id == "b1" }
	if d := planner.Plan(in)[0]; d.Parent != "b1" {
		t.Errorf("from %s, which was not measured", d.Parent)
	}
}

// TestSourceIsNotExported: what may not leave the cluster is handed on within it only.
func TestSourceIsNotExported(t *testing.T) {
	c := catalogue.New(catalogue.Node{ID: "a1", Cluster: "a"})
	c.SetPolicy(catalogue.Policy{Export: catalogue.Names{"!x"}})
	if err := c.SetLocal([]adapters.Stream{{ID: "x", Session: "s"}, {ID: "y", Session: "s"}}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []ID{"a2", "b1"} {
		if err := c.SetPeer(catalogue.Node{ID: id, Cluster: cluster(id)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := c.Snapshot()
	for _, tt := range []struct {
		child  ID
		stream adapters.StreamID
		want   error
	}{{"a2", "x", nil}, {"b1", "x", planner.ErrRefused}, {"b1", "y", nil}, {"z9", "x", planner.ErrRefused}} {
		if _, err := planner.Source(s, tt.child, tt.stream); !errors.Is(err, tt.want) {
			t.Errorf("%s to %s: %v, want %v", tt.stream, tt.child, err, tt.want)
		}
	}
}

func TestRank(t *testing.T) {
	var nodes []ID
	for i := range 10 {
		nodes = append(nodes, ID(fmt.Sprint("n", i)))
	}
	owned := map[ID]int{}
	for i := range 2000 {
		stream := adapters.StreamID(fmt.Sprint("s", i))
		order := planner.Rank(stream, nodes)
		shuffled := slices.Clone(nodes)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if d := cmp.Diff(order, planner.Rank(stream, shuffled)); d != "" {
			t.Fatalf("the order of nodes matters: %s", d)
		}
		owned[order[0]]++
		without := slices.DeleteFunc(slices.Clone(nodes), func(id ID) bool { return id == order[0] })
		if d := cmp.Diff(order[1:], planner.Rank(stream, without)); d != "" {
			t.Fatalf("a node that leaves changes the order of the others: %s", d)
		}
	}
	for id, n := range owned {
		if n < 120 || n > 280 { // 200 ± 6 standard deviations
			t.Errorf("%s owns %d of 2000 streams", id, n)
		}
	}
}

func TestSource(t *testing.T) {
	tests := []struct {
		name      string
		published bool
		holds     []string
		child     ID
		want      error
	}{
		{name: "no source", holds: []string{"5 b1"}, child: "c1", want: adapters.ErrNoStream},
		{name: "the child is in the path", holds: []string{"5 b1 c1 a1"}, child: "c1", want: planner.ErrRefused},
		{
			name: "the publication here is superseded", published: true, holds: []string{"5 b1"}, child: "c1",
			want: planner.ErrRefused,
		},
		{name: "the relayed one is superseded", holds: []string{"5 b1 a1", "6 c1"}, child: "d1", want: planner.ErrRefused},
		{name: "published here", published: true, child: "c1"},
		{name: "carried here", holds: []string{"5 b1 a1"}, child: "c1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, err := planner.Source(state(t, tt.published, tt.holds, nil), tt.child, "x")
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if err == nil && h.Holder() != "a1" {
				t.Errorf("hold %v", h)
			}
		})
	}
}

// TestAnyInput: whatever a node believes, the plan takes no parent whose path passes it, takes only holders of the
// winning publication, and says the same twice.
func TestAnyInput(t *testing.T) {
	for seed := range uint64(20_000) {
		r := rand.New(rand.NewPCG(seed, 1))
		nodes := []ID{"a1", "a2", "a3", "b1", "b2", "c1"}
		c := catalogue.New(catalogue.Node{ID: "a1", Cluster: "a"})
		for _, id := range nodes[1:] {
			if r.IntN(4) == 0 {
				continue
			}
			var holds []catalogue.Hold
			if r.IntN(3) > 0 {
				p := []ID{}
				for _, i := range r.Perm(len(nodes)) {
					if nodes[i] != id && r.IntN(2) == 0 {
						p = append(p, nodes[i])
					}
				}
				holds = append(holds, catalogue.Hold{Stream: "x", Epoch: uint64(r.IntN(3)), Path: append(p, id)})
			}
			if err := c.SetPeer(catalogue.Node{ID: id, Cluster: cluster(id)}, holds); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range nodes {
			if r.IntN(4) == 0 {
				c.SetCondition(id, catalogue.Condition{Ready: r.IntN(2) == 0, Draining: r.IntN(2) == 0})
			}
		}
		s, _ := c.Snapshot()
		rtt := map[ID]time.Duration{}
		for _, id := range nodes {
			rtt[id] = time.Duration(r.IntN(3)) * 50 * time.Millisecond
		}
		in := planner.Input{
			State: s, Now: now, Wants: []planner.Want{{Stream: "x"}}, FanOut: 1 + r.IntN(3), Gapless: r.IntN(2) == 0,
			Relays: map[adapters.StreamID]planner.Relay{},
			Claims: map[adapters.StreamID]planner.Claim{"x": {
				Epoch: uint64(r.IntN(3)), Granted: r.IntN(2) == 0, Holder: nodes[r.IntN(len(nodes))], Until: now.Add(time.Second),
			}},
			Avoid: func(_ adapters.StreamID, id ID) time.Time {
				if seed%5 == 0 && id == nodes[seed%6] {
					return now.Add(time.Second)
				}
				return time.Time{}
			},
			RTT: func(id ID) (time.Duration, bool) { return rtt[id], rtt[id] > 0 },
		}
		parent := nodes[1+r.IntN(len(nodes)-1)]
		running := r.IntN(2) == 0
		if running {
			in.Relays["x"] = planner.Relay{
				Parent: parent, Publication: catalogue.Publication{Epoch: uint64(r.IntN(3)), Origin: nodes[1+r.IntN(5)]},
				Outside: cluster(parent) != "a", Live: r.IntN(2) == 0, Quiet: r.IntN(2) == 0,
			}
		}
		d := planner.Plan(in)[0]
		if diff := cmp.Diff(d, planner.Plan(in)[0]); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		if d.Hold.Through("a1") {
			t.Fatalf("seed %d: a parent whose path passes this node: %+v", seed, d)
		}
		best, held := s.Winner("x")
		kept := running && d.Parent == parent && d.Hold.Publication() == in.Relays["x"].Publication
		if d.Action == planner.Run && !kept {
			h, ok := s.Hold(d.Parent, "x")
			if !held || !ok || h.Publication() != best || h.Through("a1") {
				t.Fatalf("seed %d: no holder of %v: %+v", seed, best, d)
			}
		}
		if d.Action == planner.Run && !kept && !s.Fit(d.Parent) {
			for _, h := range s.Holders("x") {
				_, alive := s.Node(parent)
				if s.Fit(h.Holder()) && !h.Through("a1") && (alive || !running || !h.Through(parent)) {
					t.Fatalf("seed %d: %s is chosen, which is about to leave, and %s holds it too: %+v", seed, d.Parent, h.Holder(), d)
				}
			}
		}
		if d.Action == planner.Run && d.Drop && d.Parent == parent && kept {
			t.Fatalf("seed %d: what is dropped is kept: %+v", seed, d)
		}
		if len(planner.Plan(planner.Input{State: s, Now: now})) != 0 {
			t.Fatalf("seed %d: a decision without demand", seed)
		}
	}
}

// wide is what node a1 knows of a mesh of 50 nodes in five clusters, of which each is the origin of 40 of the 2,000 streams,
// and others pull each; change changes one hold.
func wide(pullers int) (*catalogue.Catalogue, []planner.Want, func(change int)) {
	c := catalogue.New(catalogue.Node{ID: "a1", Cluster: "a"})
	name := func(n int) ID { return ID(fmt.Sprintf("%c%d", 'a'+n%5, 2+n)) }
	sets := make([][]catalogue.Hold, 50)
	var wants []planner.Want
	for i := range 2000 {
		stream := adapters.StreamID(fmt.Sprint("s", i))
		wants = append(wants, planner.Want{Stream: stream})
		origin := i % 50
		for k := range pullers + 1 {
			n := (origin + k) % 50
			path := []ID{name(origin), name(n)}
			if k == 0 {
				path = path[:1]
			}
			sets[n] = append(sets[n], catalogue.Hold{Stream: stream, Epoch: uint64(i + 1), Path: path})
		}
	}
	for n, set := range sets {
		_ = c.SetPeer(catalogue.Node{ID: name(n), Cluster: cluster(name(n))}, set)
	}
	return c, wants, func(change int) {
		sets[7][3].Delay = time.Duration(change)
		_ = c.SetPeer(catalogue.Node{ID: name(7), Cluster: cluster(name(7))}, sets[7])
	}
}

func BenchmarkPlan(b *testing.B) {
	rtt := func(ID) (time.Duration, bool) { return 40 * time.Millisecond, true }
	for _, pullers := range []int{0, 3, 4} {
		b.Run(fmt.Sprint(pullers), func(b *testing.B) {
			c, wants, _ := wide(pullers)
			s, _ := c.Snapshot()
			for b.Loop() {
				planner.Plan(planner.Input{State: s, Now: now, Wants: wants, RTT: rtt})
			}
		})
	}
}

// BenchmarkOneChange: a peer's full set comes in which one of 40 holds differs, and what that touches is planned again.
func BenchmarkOneChange(b *testing.B) {
	c, _, change := wide(0)
	before, _ := c.Snapshot()
	for i := 0; b.Loop(); i++ {
		change(i + 1)
		s, _ := c.Snapshot()
		var wants []planner.Want
		touched, ok := s.Changed(before)
		for _, id := range touched {
			wants = append(wants, planner.Want{Stream: id})
		}
		if len(planner.Plan(planner.Input{State: s, Now: now, Wants: wants})) != 1 || !ok {
			b.Fatalf("touched: %v", touched)
		}
		before = s
	}
}
