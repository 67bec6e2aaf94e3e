package planner_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
)

func TestStandby(t *testing.T) {
	for _, test := range []struct {
		name   string
		holds  []string // beside a1's own
		first  string   // path of the first copy, to its parent; its epoch is 5
		second string   // the parent of the second copy that runs
		drains string
		failed string
		gone   string
		want   string // parent, "wait", or the reason why there is none
	}{
		{name: "the origin itself", holds: []string{"5 e1", "5 e1 b1"}, first: "e1 b1", want: "e1"},
		{name: "another holder", holds: []string{"5 e1", "5 e1 b1"}, first: "e1", want: "b1"},
		{name: "by the same node", holds: []string{"5 e1 b1", "5 e1 b1 c1"}, first: "e1 b1", want: string(planner.WhyNoSecond)},
		{
			name: "by the same node further up", holds: []string{"5 e1 b1", "5 e1 b1 c1", "5 e1 b1 d1"}, first: "e1 b1 c1",
			want: string(planner.WhyNoSecond),
		},
		{name: "from here", holds: []string{"5 e1 b1", "5 e1 b1 a1 c1"}, first: "e1 b1", want: string(planner.WhyNoSecond)},
		{name: "only the first", holds: []string{"5 e1"}, first: "e1", want: string(planner.WhyNoSecond)},
		{name: "the path is not known", holds: []string{"5 e1", "5 e1 b1"}, want: string(planner.WhyNoSecond)},
		{name: "shorter way", holds: []string{"5 e1 b1", "5 e1 d1", "5 e1 f1 c1"}, first: "e1 b1", want: "d1"},
		{name: "of the own cluster", holds: []string{"5 e1", "5 e1 a2"}, first: "e1", want: "a2"},
		{name: "another publication wins", holds: []string{"5 e1 b1", "6 f1"}, first: "e1 b1", want: string(planner.WhyNotFirst)},
		{name: "one that serves stays", holds: []string{"5 e1", "5 e1 b1", "5 e1 f1 c1"}, first: "e1 b1", second: "c1", want: "c1"},
		{name: "also when it is not heard of", holds: []string{"5 e1", "5 e1 b1"}, first: "e1 b1", second: "c1", want: "c1"},
		{name: "not when it comes to hang on the first", holds: []string{"5 e1", "5 e1 b1", "5 e1 b1 c1"}, first: "e1 b1", second: "c1", want: "e1"},
		{name: "nor when it has the stream from here", holds: []string{"5 e1", "5 e1 b1", "5 e1 b1 a1 c1"}, first: "e1 b1", second: "c1", want: "e1"},
		{name: "nor when it is the first's parent now", holds: []string{"5 e1", "5 e1 b1"}, first: "e1 b1", second: "b1", want: "e1"},
		{name: "one that leaves is left", holds: []string{"5 e1 b1", "5 e1 c1", "5 e1 d1"}, first: "e1 b1", second: "c1", drains: "c1", want: "d1"},
		{name: "where there is another", holds: []string{"5 e1 b1", "5 e1 c1"}, first: "e1 b1", second: "c1", drains: "c1", want: "c1"},
		{name: "none that leaves is chosen", holds: []string{"5 e1 b1", "5 e1 c1"}, first: "e1 b1", drains: "c1", want: string(planner.WhyNoSecond)},
		{name: "who leaves begins none", holds: []string{"5 e1", "5 e1 b1"}, first: "e1 b1", drains: "a1", want: string(planner.WhyLeaves)},
		{name: "failed lately", holds: []string{"5 e1", "5 e1 b1"}, first: "e1 b1", failed: "e1", want: "wait"},
		{name: "not the one that failed", holds: []string{"5 e1", "5 e1 b1", "5 e1 c1"}, first: "e1 b1", failed: "e1", want: "c1"},
		{name: "not who is gone", holds: []string{"5 e1", "5 e1 b1"}, first: "e1 b1", gone: "e1", want: string(planner.WhyNoSecond)},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := planner.Input{
				State: conditioned(t, false, test.holds, nil, test.drains, ""), Now: now,
				Avoid: func(_ adapters.StreamID, id ID) time.Time {
					if string(id) == test.failed {
						return now.Add(time.Second)
					}
					return time.Time{}
				},
				Gone: func(_ adapters.StreamID, id ID) bool { return string(id) == test.gone },
			}
			second := planner.Second{Path: path(test.first), Parent: ID(test.second)}
			if len(second.Path) > 0 {
				second.Relay = planner.Relay{
					Parent: second.Path[len(second.Path)-1], Live: true,
					Publication: catalogue.Publication{Epoch: 5, Origin: second.Path[0]},
				}
			}
			d := planner.Standby(in, "x", second)
			got := string(d.Parent)
			switch d.Action {
			case planner.Wait:
				got = "wait"
			case planner.Nothing:
				got = string(d.Why)
			}
			if got != test.want {
				t.Errorf("%+v, want %s", d, test.want)
			}
		})
	}
}

// Whatever is announced, the two copies have nothing but the origin in common, and this node is in neither.
func TestStandbyIsDisjoint(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	nodes := []string{"b1", "b2", "c1", "c2", "d1", "d2", "a1", "a2"}
	found := 0
	for range 2000 {
		var holds []string
		for _, id := range nodes {
			if id == "a1" || random.IntN(3) == 0 {
				continue
			}
			way := "e1"
			for _, other := range nodes {
				if other != id && random.IntN(5) == 0 {
					way += " " + other
				}
			}
			holds = append(holds, fmt.Sprint("5 ", way, " ", id))
		}
		holds = append(holds, "5 e1")
		state := state(t, false, holds, nil)
		for _, h := range state.Holders("x") {
			if h.Through("a1") {
				continue
			}
			d := planner.Standby(planner.Input{State: state, Now: now}, "x", planner.Second{
				Path: h.Path, Relay: planner.Relay{Parent: h.Holder(), Publication: h.Publication(), Live: true},
			})
			if d.Action != planner.Run {
				continue
			}
			found++
			for _, id := range d.Hold.Path[1:] {
				if slices.Contains(h.Path, id) || id == "a1" {
					t.Fatalf("first by %v, second by %v", h.Path, d.Hold.Path)
				}
			}
			if d.Parent == h.Holder() {
				t.Fatalf("both from %s", d.Parent)
			}
		}
	}
	if found < 1000 {
		t.Errorf("only %d second copies", found)
	}
}
