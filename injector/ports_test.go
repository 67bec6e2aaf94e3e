package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

// Workloads that come at once, at several replicas of the injector, get ports of their own each.
func TestHostPortsAtOnce(t *testing.T) {
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: own, Name: "ports", ResourceVersion: "1"}})
	var mu sync.Mutex
	version := 1
	// The fake does not mind that somebody was faster: the API server does.
	client.PrependReactor("update", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		m := a.(clienttesting.UpdateAction).GetObject().(*corev1.ConfigMap)
		if m.ResourceVersion != strconv.Itoa(version) {
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, m.Name, errors.New("it has changed"))
		}
		version++
		m.ResourceVersion = strconv.Itoa(version)
		return true, m, client.Tracker().Update(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, m, m.Namespace)
	})
	const workloads = 8
	ports := make([]inject.HostPorts, workloads)
	var group sync.WaitGroup
	for i := range workloads {
		h := &hostPorts{maps: client.CoreV1().ConfigMaps(own), name: "ports", first: 18100, last: 18199}
		group.Go(func() {
			for {
				var err error
				if ports[i], err = h.of(t.Context(), fmt.Sprint("media.Deployment.", i), false); err == nil {
					return
				} else if !strings.Contains(err.Error(), "again and again") {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	seen := map[int32]bool{}
	for _, p := range ports {
		if p.Gateway < 18100 || p.Admin != p.Gateway+1 || seen[p.Gateway] {
			t.Errorf("%+v", ports)
		}
		seen[p.Gateway] = true
	}
}

func TestHostPortsByHand(t *testing.T) {
	h := &hostPorts{name: "ports", first: 18100, last: 18105}
	for name, tt := range map[string]struct {
		data  map[string]string
		want  int32
		known bool
		word  string
	}{
		"first":             {nil, 18100, false, ""},
		"its own":           {map[string]string{"w": " 20000\n"}, 20000, true, ""},
		"its own, nonsense": {map[string]string{"w": "many"}, 0, false, "write a port's number"},
		"its own, too high": {map[string]string{"w": "65535"}, 0, false, "write a port's number"},
		"a gap":             {map[string]string{"a": "18100", "b": "18104"}, 18102, false, ""},
		"overlapping":       {map[string]string{"a": "18101", "note": "x"}, 18104, false, ""},
		"none":              {map[string]string{"a": "18100", "b": "18103", "c": "18104"}, 0, false, "take the lines"},
	} {
		t.Run(name, func(t *testing.T) {
			got, known, err := h.choose(tt.data, "w")
			if got != tt.want || known != tt.known || (err != nil) != (tt.word != "") || err != nil && !strings.Contains(err.Error(), tt.word) {
				t.Errorf("%d %v %v", got, known, err)
			}
		})
	}
}

// Ports of a workload whose pods have been away for long go to another, but only when there are no others.
func TestHostPortsOfGoneWorkloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deployment := pod(func(p *corev1.Pod) { p.Namespace, p.Name, p.Spec.HostNetwork = "media", "mtx-5d8-x", true })
		h := newHarness(t, deployment)
		h.webhook.ports.last = 18105
		m := newMissed(h.client.CoreV1(), h.events, h.webhook.ports, h.registry, slog.New(slog.DiscardHandler))
		look := func() {
			if err := m.look(t.Context()); err != nil {
				t.Error(err)
			}
		}
		take := func(workload string) int32 {
			ports, err := h.webhook.ports.of(t.Context(), workload, false)
			if err != nil && !errors.Is(err, errNoPorts) {
				t.Error(err)
			}
			return ports.Gateway
		}
		for workload, want := range map[string]int32{"media.Deployment.mtx": 18100} {
			if got := take(workload); got != want {
				t.Errorf("%s has %d", workload, got)
			}
		}
		take("media.Deployment.b")
		take("media.Deployment.c")
		if got := take("media.Deployment.d"); got != 0 {
			t.Errorf("nobody has looked for pods, and ports %d change hands", got)
		}
		look()
		if got := take("media.Deployment.d"); got != 0 {
			t.Errorf("ports %d change hands at once", got)
		}
		for range 4 {
			time.Sleep(abandoned / 3)
			look()
		}
		if got := take("media.Deployment.b"); got != 18102 {
			t.Errorf("one that comes back in time has %d", got)
		}
		if got := take("media.Deployment.d"); got != 18102 {
			t.Errorf("d has %d, not those of b, which was away for longest", got)
		}
		if got := take("media.Deployment.e"); got != 18102 && got != 18104 {
			t.Errorf("e has %d", got)
		}
		if got := take("media.Deployment.mtx"); got != 18100 {
			t.Errorf("one with pods lost its ports: %d", got)
		}
	})
}

func TestWorkload(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*corev1.Pod)
		want   string
	}{
		"Deployment":      {nil, "media.Deployment.mtx"},
		"ReplicaSet":      {func(p *corev1.Pod) { delete(p.Labels, "pod-template-hash") }, "media.ReplicaSet.mtx-5d8"},
		"StatefulSet":     {func(p *corev1.Pod) { p.OwnerReferences[0].Kind = "StatefulSet" }, "media.StatefulSet.mtx-5d8"},
		"bare":            {func(p *corev1.Pod) { p.OwnerReferences, p.GenerateName, p.Name = nil, "", "sfu" }, "media.Pod.sfu"},
		"bare, generated": {func(p *corev1.Pod) { p.OwnerReferences = nil }, "media.Pod.mtx-5d8"},
		"and named":       {func(p *corev1.Pod) { p.OwnerReferences, p.Name = nil, "mtx-5d8-x" }, "media.Pod.mtx-5d8"},
		"strange":         {func(p *corev1.Pod) { p.OwnerReferences[0].Kind, p.OwnerReferences[0].Name = "Ä/", "x" }, "media.__.x"},
	} {
		if got := workload("media", pod(tt.change)); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	long := workload(strings.Repeat("n", 63), pod(func(p *corev1.Pod) { p.OwnerReferences[0].Name = strings.Repeat("x", 253) }))
	if problems := validation.IsConfigMapKey(long); len(problems) > 0 {
		t.Errorf("%q: %v", long, problems)
	}
}
