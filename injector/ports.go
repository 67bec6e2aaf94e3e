package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	// block is how many ports a workload has.
	block = 2
	// abandoned is for how long no pod of a workload was seen when others may take its ports. They do when all are set aside.
	abandoned = time.Hour
	// portConflicts is how often in a row others may be faster.
	portConflicts = 10
)

// hostPorts sets ports aside for the sidecars of workloads on the hosts' networks, in a ConfigMap: a line a workload, with the
// first port of its block. A person may change lines. A workload whose pods are gone for long keeps its block until no other is
// free.
type hostPorts struct {
	maps interface {
		Get(ctx context.Context, name string, o metav1.GetOptions) (*corev1.ConfigMap, error)
		Update(ctx context.Context, m *corev1.ConfigMap, o metav1.UpdateOptions) (*corev1.ConfigMap, error)
	}
	name        string
	first, last int32
	logger      *slog.Logger

	mu    sync.Mutex
	began time.Time            // of looking for pods
	alive map[string]time.Time // when a workload's pods were there last
}

// seen is told of all workloads that have pods on the hosts' networks, again and again.
func (h *hostPorts) seen(workloads map[string]bool, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.alive == nil {
		h.alive, h.began = map[string]time.Time{}, now
	}
	for w := range workloads {
		h.alive[w] = now
	}
	maps.DeleteFunc(h.alive, func(_ string, last time.Time) bool { return now.Sub(last) > abandoned })
}

// gone says that pods of a workload were looked for, and none was there for long.
func (h *hostPorts) gone(workload string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, alive := h.alive[workload]
	return h.alive != nil && now.Sub(h.began) > abandoned && !alive
}

// of returns a workload's ports, and sets some aside where it has none. Dry, it says which ones those would be.
func (h *hostPorts) of(ctx context.Context, workload string, dry bool) (inject.HostPorts, error) {
	for range portConflicts {
		m, err := h.maps.Get(ctx, h.name, metav1.GetOptions{})
		if err != nil {
			return inject.HostPorts{}, fmt.Errorf("read ConfigMap %s: %w", h.name, err)
		}
		m = m.DeepCopy()
		first, known, err := h.choose(m.Data, workload)
		if errors.Is(err, errNoPorts) && h.free(m.Data, workload) {
			first, known, err = h.choose(m.Data, workload)
		}
		if err != nil {
			return inject.HostPorts{}, err
		}
		ports := inject.HostPorts{Gateway: first, Admin: first + 1}
		if known || dry {
			return ports, nil
		}
		if m.Data == nil {
			m.Data = map[string]string{}
		}
		m.Data[workload] = strconv.Itoa(int(first))
		if _, err = h.maps.Update(ctx, m, metav1.UpdateOptions{}); apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			return inject.HostPorts{}, fmt.Errorf("write ConfigMap %s: %w", h.name, err)
		}
		return ports, nil
	}
	return inject.HostPorts{}, fmt.Errorf("write ConfigMap %s: others write it again and again", h.name)
}

// free takes out the line of a workload that is gone, the first by its name, in favour of another.
func (h *hostPorts) free(data map[string]string, heir string) bool {
	now := time.Now()
	for _, w := range slices.Sorted(maps.Keys(data)) {
		n, err := strconv.ParseInt(strings.TrimSpace(data[w]), 10, 32)
		if err != nil || int32(n)+block <= h.first || int32(n) > h.last || !h.gone(w, now) {
			continue
		}
		h.logger.Info("ports on hosts' networks change hands: no pod of their workload was there for long", "ports", data[w], "from", w, "to", heir)
		delete(data, w)
		return true
	}
	return false
}

var errNoPorts = errors.New("all ports for pods on the host's network are set aside")

// choose is the first port of a workload's block: its own, else the lowest that is free.
func (h *hostPorts) choose(data map[string]string, workload string) (first int32, known bool, err error) {
	if text, ok := data[workload]; ok {
		n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 16)
		if err != nil || n < 1024 || n+block-1 > 65535 {
			return 0, false, fmt.Errorf("ConfigMap %s has %q for %s: write a port's number", h.name, text, workload)
		}
		return int32(n), true, nil
	}
	taken := map[int32]bool{}
	for _, text := range data {
		if n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 16); err == nil {
			for i := range int32(block) {
				taken[int32(n)+i] = true
			}
		}
	}
next:
	for p := h.first; p+block-1 <= h.last; p += block {
		for i := range int32(block) {
			if taken[p+i] {
				continue next
			}
		}
		return p, false, nil
	}
	return 0, false, fmt.Errorf("%w: take the lines of workloads that are gone out of ConfigMap %s, or give the injector more by "+
		"INJECTOR_HOST_PORTS", errNoPorts, h.name)
}

// workload names what a pod belongs to, as a key of a ConfigMap: its Deployment for a ReplicaSet's, else its owner, else
// itself.
func workload(namespace string, pod *corev1.Pod) string {
	kind, name := "Pod", pod.Name
	if pod.GenerateName != "" { // a name comes later
		name = strings.TrimSuffix(pod.GenerateName, "-")
	}
	if owner := metav1.GetControllerOf(pod); owner != nil {
		kind, name = owner.Kind, owner.Name
		if hash := pod.Labels["pod-template-hash"]; kind == "ReplicaSet" && hash != "" && strings.HasSuffix(name, "-"+hash) {
			kind, name = "Deployment", strings.TrimSuffix(name, "-"+hash)
		}
	}
	key := strings.Map(func(r rune) rune { // what a key may hold; names of Kubernetes hold nothing else
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_' {
			return r
		}
		return '_'
	}, namespace+"."+kind+"."+name)
	if len(key) > 253 {
		sum := sha256.Sum256([]byte(key))
		key = key[:200] + "." + hex.EncodeToString(sum[:8])
	}
	return key
}
