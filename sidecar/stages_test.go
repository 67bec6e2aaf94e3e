package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// journal records in which order things happen.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

// lasting runs until its context ends, and takes a second to end.
func (j *journal) lasting(name string) part {
	return func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(time.Second)
		j.add(name)
		return ctx.Err()
	}
}

func TestStagesEndFromTheTop(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name  string
		end   func(cancel func()) part // runs in the stage below
		stage int
		want  []string
		err   error
	}{
		{"told to end", func(cancel func()) part {
			return func(ctx context.Context) error { cancel(); <-ctx.Done(); return ctx.Err() }
		}, 1, []string{"top", "middle", "bottom"}, context.Canceled},
		{"the top fails", func(func()) part { return func(context.Context) error { return broken } }, 2, []string{"top", "middle", "bottom"}, broken},
		// What has lost its ground is told at once, together with its neighbours.
		{"the bottom fails", func(func()) part { return func(context.Context) error { return broken } }, 0, nil, broken},
		{"a part that is done ends nothing", func(cancel func()) part {
			return func(context.Context) error { time.AfterFunc(time.Minute, cancel); return nil }
		}, 2, []string{"top", "middle", "bottom"}, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var j journal
				stages := [][]part{{j.lasting("bottom")}, {j.lasting("middle")}, {j.lasting("top")}}
				stages[tt.stage] = append(stages[tt.stage], tt.end(cancel))
				err := runStages(ctx, stages...)
				if !errors.Is(err, tt.err) {
					t.Errorf("error %v, want %v", err, tt.err)
				}
				if tt.want == nil {
					slices.Sort(j.lines)
					tt.want = []string{"bottom", "middle", "top"}
				}
				if d := cmp.Diff(tt.want, j.lines); d != "" {
					t.Errorf("order of ending (-want +got)\n%s", d)
				}
			})
		})
	}
}
