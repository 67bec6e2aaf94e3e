package generic

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Without an inventory the streams are those that the gateway saw, where that is wanted; a server that did not run in between
// has none of them.
func TestSeen(t *testing.T) {
	for _, counts := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var down atomic.Bool
			a, err := New(Config{BaseURL: "http://a", Publish: "/whip/{stream}", Seen: counts, HTTP: &http.Client{Transport: transport(
				func(*http.Request) (*http.Response, error) {
					if down.Load() {
						return nil, syscall.ECONNREFUSED
					}
					return httptest.NewRecorder().Result(), nil
				})}})
			if err != nil {
				t.Fatal(err)
			}
			var reported []adapters.StreamID
			reports := 0
			watch := func() (stop func() error) {
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() {
					ended <- a.Watch(ctx, func(streams []adapters.Stream) {
						reported, reports = nil, reports+1
						for _, s := range streams {
							reported = append(reported, s.ID)
						}
					})
				}()
				return func() error { cancel(); return <-ended }
			}
			want := func(ids ...adapters.StreamID) {
				t.Helper()
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if !counts {
					ids = nil
				}
				if !slices.Equal(reported, ids) || reports == 0 {
					t.Errorf("reported %q (%d), want %q", reported, reports, ids)
				}
			}
			stop := watch()
			want()
			before := []adapters.Stream{{ID: "a", Session: "/s/1", Since: time.Now(), Readers: -1}}
			a.Observe(before)
			want("a")
			down.Store(true)
			time.Sleep(2 * time.Second)
			if err := stop(); err == nil {
				t.Error("a server that does not run is watched")
			}
			down.Store(false)
			stop = watch()
			want()
			a.Observe(append(before, adapters.Stream{ID: "b", Session: "/s/2", Since: time.Now(), Readers: -1}))
			want("b")
			a.Observe(nil)
			want()
			_ = stop()
		})
	}
	if _, err := New(Config{BaseURL: "http://a", Publish: "/{stream}", Inventory: "/api", Query: ".", Seen: true}); err == nil {
		t.Error("seen and an inventory")
	}
}
