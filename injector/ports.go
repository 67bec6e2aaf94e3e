package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	// block is how many ports a workload has.
	block = 2
	// portConflicts is how often in a row others may be faster.
	portConflicts = 10
)

// hostPorts sets ports aside for the sidecars of workloads on the hosts' networks, in a ConfigMap: a line a workload, with the
// first port of its block. A person may change lines, and take out those of workloads that are gone.
type hostPorts struct {
	maps interface {
		Get(ctx context.Context, name string, o metav1.GetOptions) (*corev1.ConfigMap, error)
		Update(ctx context.Context, m *corev1.ConfigMap, o metav1.UpdateOptions) (*corev1.ConfigMap, error)
	}
	name        string
	first, last int32
}

// of returns a workload's ports, and sets some aside where it has none. Dry, it says which ones those would be.
func (h *hostPorts) of(ctx context.Context, workload string, dry bool) (inject.HostPorts, error) {
	for range portConflicts {
		m, err := h.maps.Get(ctx, h.name, metav1.GetOptions{})
		if err != nil {
			return inject.HostPorts{}, fmt.Errorf("read ConfigMap %s: %w", h.name, err)
		}
		first, known, err := h.choose(m.Data, workload)
		if err != nil {
			return inject.HostPorts{}, err
		}
		ports := inject.HostPorts{Gateway: first, Admin: first + 1}
		if known || dry {
			return ports, nil
		}
		m = m.DeepCopy()
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
	return 0, false, errors.New("all ports for pods on the host's network are set aside: take the lines of workloads that are gone out of " +
		"ConfigMap " + h.name + ", or give the injector more by INJECTOR_HOST_PORTS")
}

// workload names what a pod belongs to, as a key of a ConfigMap: its Deployment for a ReplicaSet's, else its owner, else
// itself.
func workload(namespace string, pod *corev1.Pod) string {
	kind, name := "Pod", pod.Name
	if name == "" {
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
