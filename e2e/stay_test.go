package e2e

import (
	"context"
	"net/http"
	"testing"
	"time"
)

// A kubelet runs a preStop hook also before it restarts a media server that is not alive: when that runs again, the node is no
// longer about to leave.
func TestDrainIsTakenBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pods := startPods(ctx, t, "germany", "singapore")
	germany, singapore := pods[0], pods[1]
	leaving := func(yes bool) func(siteStatus) bool {
		return func(st siteStatus) bool {
			return len(st.Peers) == 1 && st.Peers[0].Connected && st.Peers[0].Draining == yes
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, germany.admin+"/drain", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("drain: %s", resp.Status)
	}
	singapore.until(ctx, t, "germany leaves", leaving(true))
	germany.sfu.kill(t)
	germany.startSFU(t)
	singapore.until(ctx, t, "germany stays", leaving(false))
}
