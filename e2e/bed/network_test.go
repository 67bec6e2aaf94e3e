package bed

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestPodIPs(t *testing.T) {
	ips := append(PodIPs(t, 3), PodIPs(t, 1)...)
	for i, ip := range ips {
		if slices.Contains(ips[:i], ip) {
			t.Errorf("%v was given twice", ip)
		}
		l, err := net.Listen("tcp", netip.AddrPortFrom(ip, 7070).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
}

// Pods that differ in the port behind a name, some with one address too: their own cluster's slices have them right. Those
// that Cilium writes in another cluster name each address once, and all with one of the ports, by chance.
func TestPodsOfOneAddress(t *testing.T) {
	b := shared.Bed(t)
	namespace := b.Namespace(t)
	for _, c := range b.Clusters {
		service := GlobalService(namespace, "sfu", corev1.ServicePort{Name: "mesh", Port: 7070, TargetPort: intstr.FromString("mesh")})
		if _, err := c.Client().CoreV1().Services(namespace).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	east, west := b.Cluster("east"), b.Cluster("west")
	one, other := netip.MustParseAddr("10.10.1.10"), netip.MustParseAddr("10.10.2.11")
	var pods []netip.AddrPort
	run := func(at netip.AddrPort) {
		pods = append(pods, at)
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: fmt.Sprint("sfu-", len(pods)), Labels: map[string]string{"app": "sfu"},
			},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: "sidecar", Image: "example.invalid/sidecar:1",
				Ports: []corev1.ContainerPort{{Name: "mesh", ContainerPort: int32(at.Port())}},
			}}},
		}
		if _, err := east.RunPod(t.Context(), pod, at.Addr()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	seen := func(of string, want ...netip.AddrPort) func([]discoveryv1.EndpointSlice) bool {
		return func(all []discoveryv1.EndpointSlice) bool { return slices.Equal(endpoints(From(all, of)), want) }
	}

	t.Log("one port: right everywhere")
	run(netip.AddrPortFrom(one, 7070))
	run(netip.AddrPortFrom(other, 7070))
	if _, err := west.AwaitSlices(ctx, namespace, seen("east", pods...)); err != nil {
		t.Fatal(err)
	}

	t.Log("two ports, and one address twice")
	run(netip.AddrPortFrom(one, 7071))
	right := slices.SortedFunc(slices.Values(pods), netip.AddrPort.Compare)
	if _, err := east.AwaitSlices(ctx, namespace, seen("", right...)); err != nil {
		t.Fatal(err)
	}
	run(netip.AddrPortFrom(netip.MustParseAddr("10.10.3.12"), 7070)) // when this one is seen, the third would have been
	mirrored, err := west.AwaitSlices(ctx, namespace, func(all []discoveryv1.EndpointSlice) bool {
		return slices.Contains(Addresses(From(all, "east")), "10.10.3.12")
	})
	if err != nil {
		t.Fatal(err)
	}
	got := endpoints(From(mirrored, "east"))
	if len(got) != 3 {
		t.Fatalf("the other cluster sees %v", got)
	}
	for i, ip := range []string{"10.10.1.10", "10.10.2.11", "10.10.3.12"} {
		if got[i].Addr() != netip.MustParseAddr(ip) || got[i].Port() != got[0].Port() {
			t.Errorf("the other cluster sees %v; each address once was expected, with one port for all", got)
		}
	}
	t.Logf("of %v the other cluster sees %v", pods, got)
}

// endpoints are those of slices with one port, sorted.
func endpoints(all []discoveryv1.EndpointSlice) (found []netip.AddrPort) {
	for _, s := range all {
		for _, e := range s.Endpoints {
			found = append(found, netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), uint16(*s.Ports[0].Port)))
		}
	}
	slices.SortFunc(found, netip.AddrPort.Compare)
	return found
}
