package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// explained asks a sidecar by the command, as people do.
func explained(ctx context.Context, t *testing.T, admin, stream string) map[string]string {
	t.Helper()
	out, err := exec.CommandContext(ctx, binary, "explain", stream, "--admin", admin, "-o", "json").Output()
	if err != nil {
		t.Fatalf("explain: %v %s", err, out)
	}
	var e struct {
		Accounts []struct{ Cluster, Node, State, Stage string }
	}
	if err := json.Unmarshal(out, &e); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, a := range e.Accounts {
		found[a.Cluster] = a.State + " at " + a.Stage
	}
	return found
}

// One command at any node says for all clusters why a stream is there, or is not.
func TestExplain(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	sites := startSitesWith(ctx, t, map[int][]string{
		0: {"SIDESTREAM_RELAY_EXPORT=!secret/*"}, 2: {"SIDESTREAM_RELAY_IMPORT=!show"},
	}, "singapore", "germany", "us-west")
	singapore, germany, west := sites[0], sites[1], sites[2]
	publish(ctx, t, singapore.url+"/whip/show")
	publish(ctx, t, singapore.url+"/whip/secret/show")
	germany.until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
	watch(ctx, t, germany.url+"/whep/show").frames(ctx, t, 30)
	expect := func(admin, stream string, want map[string]string) {
		t.Helper()
		got := explained(ctx, t, admin, stream)
		for cluster, account := range want {
			if got[cluster] != account {
				t.Errorf("%s: %q in %s, want %q", stream, got[cluster], cluster, account)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %v", stream, got)
		}
	}
	expect(west.admin, "show", map[string]string{
		"singapore": "ok at viewers", "germany": "ok at viewers", "us-west": "failed at policy",
	})
	expect(germany.admin, "secret/show", map[string]string{
		"singapore": "ok at viewers", "germany": "failed at policy", "us-west": "failed at policy",
	})
	expect(singapore.admin, "nobody", map[string]string{
		"singapore": "failed at publication", "germany": "failed at publication", "us-west": "failed at publication",
	})

	// One id joins what the two ends of the pull have logged.
	pulled := regexp.MustCompile(`"msg":"relay live".*"pull":"([0-9a-f]{10})"`)
	if id := germany.find(pulled); id == "" || !singapore.said(`"pull":"`+id+`"`) {
		t.Errorf("no log of the origin's has the pull %q", id)
	}

	// The tables of the other commands.
	for command, words := range map[string][]string{
		"streams -o wide": {"show", "secret/show", "germany,singapore", "video/H264"},
		"relays":          {"show", "germany", "live", "singapore"},
		"top --times 1":   {"3 of 3 nodes ready", "show"},
		"peers -o yaml":   {"connected: true", "cluster: singapore"},
	} {
		out, err := exec.CommandContext(ctx, binary, append(strings.Fields(command), "--admin", west.admin)...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v", command, err)
		}
		for _, word := range words {
			if !strings.Contains(string(out), word) {
				t.Errorf("%s says nothing of %q:\n%s", command, word, out)
			}
		}
	}
	if out, err := exec.CommandContext(ctx, binary, "streams", "-o", "xml", "--admin", west.admin).CombinedOutput(); err == nil || !strings.Contains(string(out), "table, wide, json or yaml") {
		t.Errorf("%v %s", err, out)
	}
}

// Real faults of real nodes are named as what they are.
func TestExplainFaults(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	closed := freePorts(t, 1)[0]
	sites := startSitesWith(ctx, t, map[int][]string{
		1: {"SIDESTREAM_ADAPTER_NAME=mediamtx", fmt.Sprintf("SIDESTREAM_ADAPTER_URL=http://127.0.0.1:%d", closed)},
	}, "singapore", "germany")
	publish(ctx, t, sites[0].url+"/whip/show")
	sites[1].until(ctx, t, "the stream is known", func(st siteStatus) bool { return len(st.Streams) == 1 })
	if got := explained(ctx, t, sites[0].admin, "show"); got["germany"] != "failed at media server" {
		t.Errorf("a server that is down: %v", got)
	}
	if err := sites[1].cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	sites[0].until(ctx, t, "it is missed", func(st siteStatus) bool { return len(st.Peers) == 0 || !st.Peers[0].Connected })
	if got := explained(ctx, t, sites[0].admin, "show"); got["germany"] != "failed at handshake" {
		t.Errorf("a node that is gone: %v", got)
	}
}
