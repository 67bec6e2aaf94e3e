package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/e2e/player"
)

// A publisher at a node that relays its name is not turned away: the relay ends for it, and its stream is an origin there.
// Which of the two publications the world sees is for the policies to say: by default the later one.
func TestTakeover(t *testing.T) {
	for conflict, winner := range map[string]string{"newest": "edge", "oldest": "origin"} {
		t.Run(conflict, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			policy := "SIDESTREAM_PUBLISH_CONFLICT=" + conflict
			sites := startSitesWith(ctx, t, map[int][]string{
				0: {"SIDESTREAM_NODE_ID=origin", policy}, 1: {"SIDESTREAM_NODE_ID=edge", policy},
			}, "singapore", "germany")
			origin, edge := sites[0], sites[1]
			publish(ctx, t, origin.url+"/whip/live/show")
			edge.until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
			before := watch(ctx, t, edge.url+"/whep/live/show")
			before.frames(ctx, t, 25)

			stop := publish(ctx, t, edge.url+"/whip/live/show")
			for _, s := range sites {
				s.until(ctx, t, "the winner is known", func(st siteStatus) bool {
					return len(st.Streams) == 1 && st.Streams[0].Origin == winner
				})
			}
			// Its own viewers see the publisher's at once, whoever wins elsewhere.
			edge.until(ctx, t, "the relay has ended", func(st siteStatus) bool {
				return len(st.Relays) == 0 || st.Relays[0].State == "idle"
			})
			if r := watch(ctx, t, edge.url+"/whep/live/show").frames(ctx, t, 25); r.Missing > 0 {
				t.Errorf("%d of %d frames missing", r.Missing, r.Stamped)
			}
			stop()
			for _, s := range sites {
				s.until(ctx, t, "the earlier publication is the only one", func(st siteStatus) bool {
					return len(st.Streams) == 1 && st.Streams[0].Origin == "origin"
				})
			}
			if r := patient(ctx, t, edge.url+"/whep/live/show", 25); r.Missing > 0 {
				t.Errorf("%d of %d frames missing", r.Missing, r.Stamped)
			}
		})
	}
}

// patient is a viewer that comes again where it is turned away: for a second after a node has refused a pull, since it had
// not heard yet that the publication there is the only one again, the answer is the server's own.
func patient(ctx context.Context, t *testing.T, whep string, frames int) player.Report {
	t.Helper()
	for {
		p := player.New(newClient())
		playing, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() {
			err := p.Run(playing, endpoint(t, whep))
			stop()
			ended <- err
		}()
		err := p.Wait(playing, func(r player.Report) bool { return r.Stamped >= frames })
		stop()
		refused := <-ended
		if err == nil {
			return p.Report()
		}
		if ctx.Err() != nil {
			t.Fatal(errors.Join(err, refused))
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
