package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sidestream-dev/sidestream/e2e/bed"
)

// The command check finds the slices of other clusters, and asks the sidecars by way of the API server.
func TestCheckJoinedClusters(t *testing.T) {
	j := newJoined(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	germany, singapore := j.run("germany", "sfu-0"), j.run("singapore", "sfu-0")
	germany.connected(ctx, t, 1)
	singapore.connected(ctx, t, 1)

	// What the injector writes on its pods.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels":      map[string]string{"sidestream.dev/inject": "true", "sidestream.dev/injected": "true"},
		"annotations": map[string]string{"sidestream.dev/status": `{"container":"sidestream","gateway":18080,"peer":18443,"admin":18090}`},
	}})
	if err != nil {
		t.Fatal(err)
	}
	pods := germany.cluster.Client().CoreV1().Pods(j.namespace)
	if _, err := pods.Patch(ctx, germany.pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	check := func(clusters string) (results map[string]string, code int) {
		t.Helper()
		out, err := exec.CommandContext(ctx, binary, "check", "-kubeconfig", germany.cluster.Kubeconfig(), "-n", j.namespace,
			"-clusters", clusters, "-o", "json").Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		}
		var all []struct {
			ID, Status, Message string
			Details             []string
		}
		if err := json.Unmarshal(out, &all); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		results = map[string]string{}
		for _, r := range all {
			results[r.ID] = r.Status + " " + r.Message + " " + strings.Join(r.Details, "; ")
			t.Log(r.ID, results[r.ID])
		}
		return results, code
	}
	want := func(got map[string]string, id, words string) {
		t.Helper()
		if !strings.HasPrefix(got[id], words) {
			t.Errorf("%s is %q, not %q", id, got[id], words)
		}
	}
	_, err = germany.cluster.AwaitSlices(ctx, j.namespace, func(s []discoveryv1.EndpointSlice) bool {
		return len(bed.Addresses(bed.From(s, ""))) == 1 && len(bed.Addresses(bed.From(s, "singapore"))) == 1
	})
	if err != nil {
		t.Fatal(err)
	}
	got, code := check("singapore")
	if code != 1 { // there is no injector
		t.Errorf("exit code %d", code)
	}
	want(got, "webhook", "fail")
	want(got, "clocks", "ok 2 clocks")
	want(got, "slices", "ok endpoints: 1 of this cluster; of others: singapore 1")
	want(got, "peers", "ok 1 of 1 links")
	want(got, "media-servers", "ok 1 media servers")
	want(got, "pods", "ok")
	if got, _ = check("singapore,us-west"); !strings.Contains(got["slices"], "cluster us-west") || !strings.Contains(got["peers"], "cluster us-west") {
		t.Errorf("nobody misses us-west: %q, %q", got["slices"], got["peers"])
	}

	germany.process.interrupt(t)
	got, _ = check("singapore")
	want(got, "media-servers", "skip no sidecar can be asked")
	if pod, err := pods.Get(ctx, germany.pod.Name, metav1.GetOptions{}); err != nil || pod.Status.Phase != corev1.PodRunning {
		t.Errorf("the pod is %s (%v): this proves nothing any more", pod.Status.Phase, err)
	}
}
