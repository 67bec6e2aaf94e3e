package bed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// AddNode adds a node that takes any pod. Each cluster has one from the start, where pods go that name none.
func (c *Cluster) AddNode(ctx context.Context, name, zone string) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		corev1.LabelHostname: name, corev1.LabelTopologyZone: zone, corev1.LabelOSStable: "linux",
	}}}
	if _, err := c.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("add node %s to %s: %w", name, c.Name, err)
	}
	return nil
}

// AddNamespace adds a namespace and returns when pods can be created in it. [Bed.Namespace] is for most tests.
func (c *Cluster) AddNamespace(ctx context.Context, name string, labels map[string]string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("add namespace %s to %s: %w", name, c.Name, err)
	}
	return c.account(ctx, name)
}

// removeNamespace deletes a namespace with its pods, for whose end it would wait for ever without a kubelet.
func (c *Cluster) removeNamespace(ctx context.Context, name string) error {
	now := int64(0)
	err := errors.Join( // in this order nobody makes new ones
		c.client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}),
		c.client.CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}))
	if err != nil {
		return fmt.Errorf("remove namespace %s from %s: %w", name, c.Name, err)
	}
	return nil
}

// RunPod creates a pod, has it running and ready at an address, and returns it as admission left it. A pod without
// containers gets one. The address need not exist; [PodIPs] gives those at which something can listen for the pod. One
// of loopback is refused in EndpointSlices, and nobody would learn of any pod of its Service.
func (c *Cluster) RunPod(ctx context.Context, pod *corev1.Pod, ip netip.Addr) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	if pod.Spec.NodeName == "" {
		pod.Spec.NodeName = c.node()
	}
	if len(pod.Spec.Containers) == 0 {
		pod.Spec.Containers = []corev1.Container{{Name: "main", Image: "example.invalid/none:1"}}
	}
	created, err := c.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("run pod %s/%s in %s: %w", pod.Namespace, pod.Name, c.Name, err)
	}
	return c.ReportPod(ctx, created, ip, true)
}

// ReportPod is the kubelet's word about a pod: it runs, at this address, and is ready or not. A pod that has no node yet,
// such as a Deployment's, is put on the cluster's first. The pod may be of an earlier state; that another has its name now
// is an error.
func (c *Cluster) ReportPod(ctx context.Context, pod *corev1.Pod, ip netip.Addr, ready bool) (*corev1.Pod, error) {
	pods := c.client.CoreV1().Pods(pod.Namespace)
	if pod.Spec.NodeName == "" {
		binding := &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: c.node()},
		}
		err := pods.Bind(ctx, binding, metav1.CreateOptions{})
		if err != nil && !apierrors.IsConflict(err) { // it has a node since; if it is another pod, the patch will say so
			return nil, fmt.Errorf("bind pod %s/%s in %s: %w", pod.Namespace, pod.Name, c.Name, err)
		}
	}
	change := map[string]any{"status": running(pod, ip, ready)}
	if pod.UID != "" {
		change["metadata"] = map[string]any{"uid": pod.UID}
	}
	patch, err := json.Marshal(change)
	if err != nil {
		return nil, fmt.Errorf("report pod %s/%s in %s: %w", pod.Namespace, pod.Name, c.Name, err)
	}
	reported, err := pods.Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return nil, fmt.Errorf("report pod %s/%s in %s: %w", pod.Namespace, pod.Name, c.Name, err)
	}
	return reported, nil
}

// running is the status of a pod whose containers all run.
func running(pod *corev1.Pod, ip netip.Addr, ready bool) corev1.PodStatus {
	now := metav1.Now()
	readiness := corev1.ConditionFalse
	if ready {
		readiness = corev1.ConditionTrue
	}
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: &now,
		PodIP: ip.String(), PodIPs: []corev1.PodIP{{IP: ip.String()}},
		HostIP: "127.0.0.1", HostIPs: []corev1.HostIP{{IP: "127.0.0.1"}},
	}
	for _, c := range []struct {
		kind  corev1.PodConditionType
		value corev1.ConditionStatus
	}{
		{corev1.PodScheduled, corev1.ConditionTrue},
		{corev1.PodInitialized, corev1.ConditionTrue},
		{corev1.ContainersReady, readiness},
		{corev1.PodReady, readiness},
	} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: c.kind, Status: c.value, LastTransitionTime: now})
	}
	up := func(c corev1.Container) corev1.ContainerStatus {
		started := true
		return corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: ready, Started: &started,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		}
	}
	for _, c := range pod.Spec.InitContainers {
		s := up(c)
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways { // not a native sidecar: it is done
			s.Ready = true
			s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: "Completed", StartedAt: now, FinishedAt: now,
			}}
		}
		status.InitContainerStatuses = append(status.InitContainerStatuses, s)
	}
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, up(c))
	}
	return status
}

// TerminatePod asks a pod to go, as an eviction or a roll-out does. It keeps serving, terminating, until RemovePod.
func (c *Cluster) TerminatePod(ctx context.Context, pod *corev1.Pod) error {
	return c.deletePod(ctx, pod, 3600)
}

// RemovePod is the end of a pod.
func (c *Cluster) RemovePod(ctx context.Context, pod *corev1.Pod) error {
	return c.deletePod(ctx, pod, 0)
}

func (c *Cluster) deletePod(ctx context.Context, pod *corev1.Pod, grace int64) error {
	err := c.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace})
	if err != nil {
		return fmt.Errorf("delete pod %s/%s in %s: %w", pod.Namespace, pod.Name, c.Name, err)
	}
	return nil
}

// AwaitSlices returns a namespace's EndpointSlices as soon as they are as wanted, and the error of ctx, with what there was
// last, where they do not become so. It polls, so that it outlives a restart of the API server.
func (c *Cluster) AwaitSlices(
	ctx context.Context, namespace string, wanted func([]discoveryv1.EndpointSlice) bool,
) ([]discoveryv1.EndpointSlice, error) {
	var last []discoveryv1.EndpointSlice
	err := poll(ctx, func() error {
		list, err := c.client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if last = list.Items; !wanted(last) {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		return last, fmt.Errorf("await slices of %s/%s: %w; there are%s", c.Name, namespace, err, describe(last))
	}
	return last, nil
}

// LoseSlices deletes all EndpointSlices of a Service, its own and those of other clusters, as somebody might by mistake, and
// has them stay away: it stops what would write them again within a second, the processes ControllerManager and MeshSync,
// and with them the work for all other Services of the cluster. After [Cluster.Start] they come back under other names.
func (c *Cluster) LoseSlices(ctx context.Context, namespace, service string) error {
	for _, name := range []string{ControllerManager, MeshSync} {
		if p, ok := c.processes[name]; ok {
			if err := p.Stop(ctx); err != nil {
				return err
			}
		}
	}
	of := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service}
	if err := c.client.DiscoveryV1().EndpointSlices(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, of); err != nil {
		return fmt.Errorf("lose slices of %s/%s in %s: %w", namespace, service, c.Name, err)
	}
	return nil
}

// sourceCluster is the label of the Multi-Cluster Services API that Cilium puts on the slices it writes.
const sourceCluster = "multicluster.kubernetes.io/source-cluster"

// From returns those of the slices that the mesh wrote for another cluster's endpoints; "" are the cluster's own.
func From(slices []discoveryv1.EndpointSlice, cluster string) []discoveryv1.EndpointSlice {
	var from []discoveryv1.EndpointSlice
	for _, s := range slices {
		if s.Labels[sourceCluster] == cluster {
			from = append(from, s)
		}
	}
	return from
}

// Addresses returns the addresses of all endpoints, sorted, ready or not.
func Addresses(endpoints []discoveryv1.EndpointSlice) []string {
	addresses := []string{}
	for _, s := range endpoints {
		for _, e := range s.Endpoints {
			addresses = append(addresses, e.Addresses...)
		}
	}
	slices.Sort(addresses)
	return addresses
}

var errNotYet = errors.New("not as wanted yet")

func describe(slices []discoveryv1.EndpointSlice) string {
	if len(slices) == 0 {
		return " none"
	}
	var b strings.Builder
	for _, s := range slices {
		fmt.Fprintf(&b, "\n%s of cluster %q, ports", s.Name, s.Labels[sourceCluster])
		for _, p := range s.Ports {
			if p.Name != nil && p.Port != nil {
				fmt.Fprintf(&b, " %s=%d", *p.Name, *p.Port)
			}
		}
		b.WriteString(":")
		for _, e := range s.Endpoints {
			is := func(v *bool) bool { return v != nil && *v }
			fmt.Fprintf(&b, " %v (ready %t, serving %t, terminating %t)",
				e.Addresses, is(e.Conditions.Ready), is(e.Conditions.Serving), is(e.Conditions.Terminating))
		}
	}
	return b.String()
}
