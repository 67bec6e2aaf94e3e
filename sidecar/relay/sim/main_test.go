package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestFigures measures small meshes, and looks whether the figures can be true.
func TestFigures(t *testing.T) {
	var out, errs bytes.Buffer
	if err := command([]string{"-meshes", "2x3/10,3x2/40"}, &out, &errs); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2x3", "3x2", "publish", "on the wire"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	f := measure(1, 3, 3, 30)
	for name, c := range map[string]struct {
		s    sample
		most int // ms
	}{
		"publish": {f.publish, 50}, "move": {f.move, 50}, "drain": {f.drain, 1500},
		"related": {f.related, 1500}, "all": {f.all, 3000}, "idle": {f.idle, 13_000},
	} {
		if p99 := c.s.at(0.99); len(c.s) == 0 || p99 <= 0 && name != "drain" || p99 > millis(c.most) {
			t.Errorf("%s: %d values, p99 %s, to be at most %d ms", name, len(c.s), p99, c.most)
		}
	}
	// Few children of a draining node have to wait until their next parent has heard the origin.
	if median := f.drain.at(0.5); median > millis(50) {
		t.Errorf("drain: the median is %s", median)
	}
	if f.unaware > 0 || len(f.heal) == 0 {
		t.Errorf("%d nodes did not learn in time, %d heard all after the partition", f.unaware, len(f.heal))
	}
	if q, c := f.atRest, f.inChurn; q.frames <= 0 || q.payload <= 0 || q.wire <= q.payload || c.payload <= q.payload {
		t.Errorf("costs %+v at rest, %+v in churn", q, c)
	}
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{
		{"-meshes", ""},
		{"-meshes", "3x5"},
		{"-meshes", "1x5/10"},
		{"-meshes", "3x5/0"},
		{"-meshes", "x/10"},
		{"-meshes", "100x100/10"},
		{"-meshes", "3x5/10,"},
		{"-seed", "x"},
		{"-unknown"},
		{"more"},
	} {
		var out, errs bytes.Buffer
		if err := command(args, &out, &errs); err == nil || out.Len() > 0 {
			t.Errorf("%q: %v", args, err)
		}
	}
	var out, errs bytes.Buffer
	if err := command([]string{"-h"}, &out, &errs); err != nil || !strings.Contains(errs.String(), "-meshes") {
		t.Errorf("-h: %v, %s", err, &errs)
	}
}
