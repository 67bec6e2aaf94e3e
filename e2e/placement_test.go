package e2e

import (
	"context"
	"strings"
	"testing"
	"time"
)

// A node that is full has its next viewer served by another one of its cluster, and nobody notices.
func TestPlacement(t *testing.T) {
	for _, policy := range []string{"forward", "redirect"} {
		t.Run(policy, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			settings := []string{"SIDESTREAM_GATEWAY_PLACEMENT=" + policy, "SIDESTREAM_GATEWAY_MAX_PLAYS=1"}
			sites := startSitesWith(ctx, t, map[int][]string{
				1: append(settings, "SIDESTREAM_NODE_ID=first"), 2: append(settings, "SIDESTREAM_NODE_ID=second"),
			}, "singapore", "germany", "germany")
			publish(ctx, t, sites[0].url+"/whip/live/show")
			sites[1].until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
			for _, node := range []string{"first", "second"} {
				v := watch(ctx, t, sites[1].url+"/whep/live/show")
				r := v.frames(ctx, t, 50)
				if r.Missing > 0 || !strings.Contains(r.Location, "/_sidestream/"+node+"/") {
					t.Errorf("%d of %d frames missing at %s; it should be %s", r.Missing, r.Stamped, r.Location, node)
				}
				defer func() { _ = v.stop() }()
			}
		})
	}
}
