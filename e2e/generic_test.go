package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Two servers that only settings describe: the origin's lists its streams, the edge's does not.
func TestGenericServers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	further := map[int][]string{}
	for i, port := range freePorts(t, 2) {
		address := fmt.Sprintf("127.0.0.1:%d", port)
		start(t, []string{
			"SIDESTREAM_SFU_LISTEN=" + address, "SIDESTREAM_SFU_MEDIA_LISTEN=127.0.0.1:0", "SIDESTREAM_SFU_LOOPBACK=true",
		}, "sfu")
		further[i] = []string{
			"SIDESTREAM_ADAPTER_NAME=generic", "SIDESTREAM_ADAPTER_URL=http://" + address,
			"SIDESTREAM_ADAPTER_GENERIC_PUBLISH_PATH=/whip/{stream}", "SIDESTREAM_ADAPTER_GENERIC_PLAY_PATH=/whep/{stream}",
			"SIDESTREAM_ADAPTER_GENERIC_MISSING_STATUS=409",
		}
	}
	further[0] = append(further[0], "SIDESTREAM_ADAPTER_GENERIC_INVENTORY_URL=/api/streams",
		"SIDESTREAM_ADAPTER_GENERIC_INVENTORY_QUERY=.streams[] | {name: .id, session, since, readers, tracks: [.tracks[].mime]}")
	sites := startSitesWith(ctx, t, further, "singapore", "germany")
	origin, edge := sites[0], sites[1]
	publish(ctx, t, origin.url+"/whip/live/show")
	known := func(n int) func(siteStatus) bool {
		return func(st siteStatus) bool { return len(st.Streams) == 1 && len(st.Streams[0].Holders) == n }
	}
	edge.until(ctx, t, "the stream is known", known(1))
	v := watch(ctx, t, edge.url+"/whep/live/show")
	if r := v.frames(ctx, t, 200); r.Missing > 0 {
		t.Errorf("%d of %d frames missing", r.Missing, r.Stamped)
	}
	origin.until(ctx, t, "the origin has one reader", func(st siteStatus) bool { return known(2)(st) && st.Streams[0].Readers == 1 })
	if err := v.stop(); ctx.Err() != nil {
		t.Fatal(err)
	}
	origin.until(ctx, t, "no viewer, no bytes", func(st siteStatus) bool { return known(1)(st) && st.Streams[0].Readers == 0 })
}
