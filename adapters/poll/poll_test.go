package poll

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
)

func streams(names ...adapters.StreamID) (list []adapters.Stream) {
	for _, name := range names {
		list = append(list, adapters.Stream{ID: name, Tracks: []adapters.Track{{Kind: "audio"}}})
	}
	return list
}

func TestReportsChangesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		answers := [][]adapters.Stream{nil, nil, streams("a"), streams("a"), streams("a", "b"), nil}
		var asked int
		var reported [][]adapters.Stream
		err := new(Poller).Watch(ctx, func(context.Context) ([]adapters.Stream, error) {
			if asked == len(answers) {
				cancel()
				return nil, ctx.Err()
			}
			asked++
			return answers[asked-1], nil
		}, func(s []adapters.Stream) { reported = append(reported, s) })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
		want := [][]adapters.Stream{nil, streams("a"), streams("a", "b"), nil}
		if diff := cmp.Diff(want, reported); diff != "" {
			t.Error(diff)
		}
	})
}

func TestPace(t *testing.T) {
	for name, test := range map[string]struct {
		takes       time.Duration // an answer
		look        bool
		least, most int // questions in 10 s
	}{
		"quick": {0, false, 12, 17},
		"slow":  {time.Second, false, 2, 3},
		"look":  {0, true, 199, 202},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				var p Poller
				if test.look {
					p.Look()
				}
				var asked int
				_ = p.Watch(ctx, func(context.Context) ([]adapters.Stream, error) {
					asked++
					time.Sleep(test.takes)
					return nil, nil
				}, func([]adapters.Stream) {})
				if asked < test.least || asked > test.most {
					t.Errorf("asked %d times; want %d to %d", asked, test.least, test.most)
				}
			})
		})
	}
}

func TestLookAsksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var p Poller
		asked := make(chan struct{}, 100)
		ended := make(chan error)
		go func() {
			ended <- p.Watch(ctx, func(context.Context) ([]adapters.Stream, error) {
				asked <- struct{}{}
				return nil, nil
			}, func([]adapters.Stream) {})
		}()
		synctest.Wait()
		if len(asked) != 1 {
			t.Fatalf("asked %d times at first", len(asked))
		}
		p.Look()
		synctest.Wait()
		if len(asked) != 2 {
			t.Errorf("asked %d times after Look, at the same moment; want 2", len(asked))
		}
		cancel()
		<-ended
	})
}

func TestFailures(t *testing.T) {
	passing := errors.New("503")
	for name, test := range map[string]struct {
		errs []error
		want int // questions until Watch gives up; 0: it does not
	}{
		"first":            {[]error{passing}, 1},
		"few":              {[]error{nil, passing, passing, nil, passing, passing, nil}, 0},
		"many":             {[]error{nil, passing, passing, passing}, 4},
		"final":            {[]error{nil, &Final{passing}}, 2},
		"wrapped final":    {[]error{nil, fmt.Errorf("list: %w", &Final{passing})}, 2},
		"refused at first": {[]error{syscall.ECONNREFUSED}, 1},
		"refused":          {[]error{nil, fmt.Errorf("dial: %w", syscall.ECONNREFUSED)}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var asked int
				err := new(Poller).Watch(ctx, func(context.Context) ([]adapters.Stream, error) {
					if asked == len(test.errs) {
						cancel()
						return nil, ctx.Err()
					}
					asked++
					return nil, test.errs[asked-1]
				}, func([]adapters.Stream) {})
				if gaveUp := !errors.Is(err, context.Canceled); gaveUp != (test.want > 0) || gaveUp && asked != test.want {
					t.Errorf("Watch ended after %d questions with %v; want %d", asked, err, test.want)
				}
			})
		})
	}
}
