package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

func TestChildren(t *testing.T) {
	known := catalogue.New(catalogue.Node{ID: "a", Incarnation: 1, Cluster: "a"})
	if err := known.SetLocal([]adapters.Stream{{ID: "x", Session: "1"}, {ID: "y", Session: "2"}}); err != nil {
		t.Fatal(err)
	}
	for id, holds := range map[catalogue.NodeID][]catalogue.Hold{
		"c": {{Stream: "x", Epoch: 1, Path: []catalogue.NodeID{"a", "c"}}, {Stream: "y", Epoch: 1, Path: []catalogue.NodeID{"a", "c"}}},
		"b": {{Stream: "x", Epoch: 1, Path: []catalogue.NodeID{"a", "b"}}},
		"d": {{Stream: "x", Epoch: 1, Path: []catalogue.NodeID{"a", "b", "d"}}, {Stream: "z", Epoch: 1, Path: []catalogue.NodeID{"d"}}},
		"e": nil,
	} {
		if err := known.SetPeer(catalogue.Node{ID: id, Incarnation: 1, Cluster: "b"}, holds); err != nil {
			t.Fatal(err)
		}
	}
	// What this node pulls from d makes d no child.
	if err := known.SetCarried([]catalogue.Hold{{Stream: "z", Epoch: 1, Path: []catalogue.NodeID{"d", "a"}}}); err != nil {
		t.Fatal(err)
	}
	state, _ := known.Snapshot()
	if d := cmp.Diff([]catalogue.NodeID{"b", "c"}, children(state)); d != "" {
		t.Error(d)
	}
}
