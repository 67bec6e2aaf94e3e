package e2e

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/e2e/player"
)

// TestFirstFrame tells how long a viewer waits from the press of the button to the first whole key frame, through gateway,
// mesh, pull and republish: cold, when nobody in the region had the stream, and warm, when somebody did.
func TestFirstFrame(t *testing.T) {
	if os.Getenv("E2E") == "" {
		t.Skip("run by make e2e")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	p := start(t, []string{"SIDESTREAM_RELAY_LINGER=100ms"}, "demo", "-json", "-port", "0", "-no-distance")
	ready := p.await(ctx, t, "ready", func(e event) bool { return e.Event == "ready" })
	p.await(ctx, t, "the clip is published", func(e event) bool { return e.Event == "published" })
	var germany string
	for _, r := range ready.Regions {
		if r.Name == "germany" {
			germany = r.WHEP
		}
	}
	first := func() (time.Duration, *viewer) {
		v := watch(ctx, t, germany)
		if err := v.Wait(ctx, func(r player.Report) bool { return r.FirstFrame > 0 }); err != nil {
			t.Fatal(err)
		}
		return v.Report().FirstFrame, v
	}
	const times = 20
	var cold, warm []time.Duration
	for range times {
		c, v := first()
		w, other := first()
		cold, warm = append(cold, c), append(warm, w)
		_, _ = v.stop(), other.stop()
		p.await(ctx, t, "the relay ends", func(e event) bool { return e.Event == "ended" && e.Region == "germany" })
	}
	for name, all := range map[string][]time.Duration{"cold": cold, "warm": warm} {
		slices.Sort(all)
		t.Logf("%s first frame, %d times: median %v, p95 %v, most %v", name, times,
			all[times/2].Round(time.Millisecond), all[times*95/100].Round(time.Millisecond), all[times-1].Round(time.Millisecond))
	}
	p.interrupt(t)
}
