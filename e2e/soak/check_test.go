//go:build linux

package main

import (
	"strings"
	"testing"
)

func TestGrown(t *testing.T) {
	for name, tt := range map[string]struct {
		at   func(step int) sample
		want string // in what is said; "": nothing is
	}{
		"flat":             {func(int) sample { return sample{100, 30, 10, 40_000} }, ""},
		"up and down":      {func(i int) sample { return sample{100 + 60*(i%2), 30 + 20*(i%2), 10, 40_000} }, ""},
		"goroutines leak":  {func(i int) sample { return sample{100 + 12*i, 30, 10, 40_000} }, "goroutines"},
		"files leak":       {func(i int) sample { return sample{100, 30 + 8*i, 10, 40_000} }, "files"},
		"memory leaks":     {func(i int) sample { return sample{100, 30, 10, 40_000 + 8_000*i} }, "memory"},
		"too young to say": {func(i int) sample { return sample{100 * (i / 6 * 50), 30, 10, 40_000} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := &pod{samples: map[string][]sample{}}
			steps := 4 * settled
			if name == "too young to say" {
				steps = settled
			}
			var said []string
			for i := range steps {
				n.samples["sidecar 1"] = append(n.samples["sidecar 1"], tt.at(i))
				said = append(said, n.grown()...)
			}
			if got := strings.Join(said, "; "); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("said %q", got)
			}
		})
	}
}

func TestDeed(t *testing.T) {
	if got := (deed{"kill many", []*pod{{name: "a-0"}, {name: "b-1"}}}).String(); got != "kill many: a-0 b-1" {
		t.Error(got)
	}
	if got := (deed{what: "begin"}).String(); got != "begin" {
		t.Error(got)
	}
}

// Nothing is done where the arguments are wrong.
func TestBadArguments(t *testing.T) {
	if err := run(t.Context(), []string{"-duration", "soon"}, t.Output()); err == nil {
		t.Error("no error")
	}
}
