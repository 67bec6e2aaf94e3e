package planner_test

import (
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/planner"
)

func TestFeasibility(t *testing.T) {
	p := catalogue.Publication{Epoch: 5, Origin: "b1"}
	type step struct {
		sequence uint64
		depth    int
	}
	for name, tt := range map[string]struct {
		told []step
		from step
		want bool
	}{
		"nothing was handed on":              {nil, step{0, 15}, true},
		"a newer sequence, however deep":     {[]step{{7, 1}}, step{8, 9}, true},
		"the same, nearer to the origin":     {[]step{{7, 2}}, step{7, 1}, true},
		"the same, as far as this node":      {[]step{{7, 2}}, step{7, 2}, false},
		"the same, as a child has it":        {[]step{{7, 2}}, step{7, 3}, false},
		"an older one":                       {[]step{{7, 2}}, step{6, 0}, false},
		"the least depth of a sequence":      {[]step{{7, 3}, {7, 1}, {7, 2}}, step{7, 2}, false},
		"the depth with the newest sequence": {[]step{{7, 1}, {8, 3}}, step{8, 2}, true},
		"what was told late":                 {[]step{{8, 3}, {7, 1}}, step{8, 2}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var f planner.Feasibility
			for _, s := range tt.told {
				f.Told("x", p, s.sequence, s.depth)
			}
			if got := f.Accepts("x", p, tt.from.sequence, tt.from.depth); got != tt.want {
				t.Errorf("accepted: %v", got)
			}
		})
	}
}

func TestFeasibilityForgets(t *testing.T) {
	p := catalogue.Publication{Epoch: 5, Origin: "b1"}
	next := catalogue.Publication{Epoch: 6, Origin: "b1"}
	var f planner.Feasibility
	f.Told("x", p, 9, 1)
	if !f.Accepts("x", next, 1, 5) {
		t.Error("another publication is measured by the last one")
	}
	if f.Accepts("x", p, 1, 0) {
		t.Fatal("nothing is remembered")
	}
	needed := true
	forget := func(at, want time.Duration) {
		t.Helper()
		got := f.Forget(now.Add(at), func(adapters.StreamID) bool { return needed })
		if want == 0 && !got.IsZero() || want != 0 && got != now.Add(want) {
			t.Errorf("after %s: next at %v", at, got)
		}
	}
	forget(0, 0)
	forget(time.Hour, 0)
	needed = false
	forget(2*time.Hour, 2*time.Hour+5*time.Second)
	needed = true
	forget(2*time.Hour+4*time.Second, 0)
	needed = false
	forget(3*time.Hour, 3*time.Hour+5*time.Second)
	forget(3*time.Hour+4*time.Second, 3*time.Hour+5*time.Second)
	if f.Accepts("x", p, 1, 0) {
		t.Error("it is forgotten too early")
	}
	forget(3*time.Hour+5*time.Second, 0)
	if !f.Accepts("x", p, 1, 0) {
		t.Error("an origin that lost its state is never taken again")
	}
}

func TestSequence(t *testing.T) {
	if a, b := planner.Sequence(3, 0), planner.Sequence(3, 200*time.Millisecond); b != a+1 {
		t.Errorf("%d after %d", b, a)
	}
	if a, b := planner.Sequence(3, 1000*time.Hour), planner.Sequence(4, 0); b <= a {
		t.Errorf("after a restart %d, before it %d", b, a)
	}
}
