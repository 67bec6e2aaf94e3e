package pace

import (
	"fmt"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	p, now := New(3), time.Now()
	steps := []struct {
		after time.Duration
		key   string
		wait  time.Duration
	}{
		{0, "a", 0},
		{0, "a", 0},
		{0, "a", 0},
		{0, "a", 20 * time.Second},
		{0, "b", 0}, // another's bucket
		{0, "", 0},  // nobody's
		{15 * time.Second, "a", 5 * time.Second},
		{5 * time.Second, "a", 0},
		{0, "a", 20 * time.Second}, // what was refused did not count
		{time.Hour, "a", 0},
		{0, "a", 0},
		{0, "a", 0},
		{0, "a", 20 * time.Second}, // no more than a minute's worth is kept
	}
	for i, s := range steps {
		now = now.Add(s.after)
		if wait := p.Take(s.key, now); wait != s.wait {
			t.Errorf("step %d: %q waits %s; want %s", i, s.key, wait, s.wait)
		}
	}
	if p := New(0); p.Take("a", now) != 0 {
		t.Error("no bound is one")
	}
}

// The table of those who are counted does not grow without end, and forgets first who is not to be counted any more.
func TestPaceIsBounded(t *testing.T) {
	p, now := New(1), time.Now()
	p.most = 64
	for i := range 1000 {
		p.Take(fmt.Sprint(i), now)
		if len(p.full) > p.most {
			t.Fatalf("%d keys", len(p.full))
		}
	}
	p = New(1)
	p.most = 8
	for i := range 7 {
		p.Take(fmt.Sprint("old", i), now)
	}
	now = now.Add(time.Hour)
	p.Take("young", now)
	p.Take("new", now)
	if p.Take("young", now) == 0 || len(p.full) != 2 {
		t.Errorf("%v", p.full)
	}
}
