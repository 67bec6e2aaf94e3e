package bed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// media is a namespace with a global headless Service in both clusters, with pods stood in for.
type media struct {
	*testing.T
	bed       *Bed
	namespace string
	latencies []time.Duration // from a change in one cluster to its sight in the other
}

func newMedia(t *testing.T) *media {
	m := &media{T: t, bed: shared.Bed(t)}
	m.namespace = m.bed.Namespace(t)
	for _, c := range m.bed.Clusters {
		service := GlobalService(m.namespace, "sfu",
			corev1.ServicePort{Name: "http", Port: 8080, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP},
			corev1.ServicePort{Name: "media", Port: 5060, TargetPort: intstr.FromInt32(5060), Protocol: corev1.ProtocolUDP})
		if _, err := c.Client().CoreV1().Services(m.namespace).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *media) cluster(name string) *Cluster { return m.bed.Cluster(name) }

func (m *media) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

func (m *media) run(cluster, name, ip string) *corev1.Pod {
	m.Helper()
	pod, err := m.cluster(cluster).RunPod(m.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: name, Labels: map[string]string{"app": "sfu"}},
	}, netip.MustParseAddr(ip))
	m.must(err)
	return pod
}

// await returns the slices in a cluster for the endpoints of another ("" are its own) when they have these addresses.
func (m *media) await(in, of string, bound time.Duration, addresses ...string) []discoveryv1.EndpointSlice {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), bound)
	defer cancel()
	began := time.Now()
	found, err := m.cluster(in).AwaitSlices(ctx, m.namespace, func(s []discoveryv1.EndpointSlice) bool {
		return slices.Equal(Addresses(From(s, of)), addresses)
	})
	m.must(err)
	if of != "" {
		m.latencies = append(m.latencies, time.Since(began))
	}
	return From(found, of)
}

// stay fails if the slices in a cluster for another's endpoints change within a time.
func (m *media) stay(in, of string, length time.Duration, as []discoveryv1.EndpointSlice) {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), length)
	defer cancel()
	version := func(s []discoveryv1.EndpointSlice) (versions []string) {
		for _, s := range s {
			versions = append(versions, s.Name+" "+s.ResourceVersion)
		}
		return versions
	}
	before := version(as)
	last, err := m.cluster(in).AwaitSlices(ctx, m.namespace, func(s []discoveryv1.EndpointSlice) bool {
		return !slices.Equal(version(From(s, of)), before)
	})
	if err == nil {
		m.Fatalf("the slices changed:%s\nand were:%s", describe(From(last, of)), describe(as))
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		m.Fatal(err)
	}
}

const long = 30 * time.Second // for what is not measured, on a machine that does much else

// What a sidecar can know of other clusters, and what it cannot.
func TestMirroredSlices(t *testing.T) {
	m := newMedia(t)
	m.run("east", "sfu-0", "10.10.1.10")
	m.run("east", "sfu-1", "10.10.2.11")
	m.run("west", "sfu-0", "10.20.1.10")
	west1 := m.run("west", "sfu-1", "10.20.2.11")
	m.await("west", "east", long, "10.10.1.10", "10.10.2.11")
	mirrored := m.await("east", "west", long, "10.20.1.10", "10.20.2.11")
	m.latencies = nil // the first ones waited for the endpoints of each cluster too

	t.Log("they are what Cilium wrote in the field: no pod's name, node or zone; only the cluster")
	recorded := From(fixture(t, "both-ready-east.yaml"), "west")
	if d := gocmp.Diff(anonymous(recorded), anonymous(mirrored)); d != "" {
		t.Errorf("recorded (-) and seen (+) differ:\n%s", d)
	}
	if name := mirrored[0].Name; !strings.HasPrefix(name, "sfu-west-") {
		t.Errorf("the slice is named %s", name)
	}

	t.Log("pods appear and vanish within two seconds")
	for i := range 3 {
		pod := m.run("west", fmt.Sprint("sfu-more-", i), "10.20.9.9")
		m.await("east", "west", long, "10.20.1.10", "10.20.2.11", "10.20.9.9")
		m.must(m.cluster("west").RemovePod(t.Context(), pod))
		m.await("east", "west", long, "10.20.1.10", "10.20.2.11")
	}
	slices.Sort(m.latencies)
	t.Logf("latencies %v", m.latencies)
	if median := m.latencies[len(m.latencies)/2]; median > 2*time.Second {
		t.Errorf("it took %v", median)
	}

	t.Log("a pod that is not ready vanishes, though its own cluster still lists it")
	_, err := m.cluster("west").ReportPod(t.Context(), west1, netip.MustParseAddr("10.20.2.11"), false)
	m.must(err)
	m.await("east", "west", long, "10.20.1.10")
	m.await("west", "", long, "10.20.1.10", "10.20.2.11")
	_, err = m.cluster("west").ReportPod(t.Context(), west1, netip.MustParseAddr("10.20.2.11"), true)
	m.must(err)
	m.await("east", "west", long, "10.20.1.10", "10.20.2.11")

	t.Log("a pod that terminates looks ready from outside")
	m.must(m.cluster("west").TerminatePod(t.Context(), west1))
	m.run("west", "sfu-2", "10.20.3.12") // when this one is seen, the termination would have been
	seen := m.await("east", "west", long, "10.20.1.10", "10.20.2.11", "10.20.3.12")
	for _, e := range seen[0].Endpoints {
		if !*e.Conditions.Ready || !*e.Conditions.Serving || *e.Conditions.Terminating {
			t.Errorf("endpoint %v has %v", e.Addresses, e.Conditions)
		}
	}
	own := m.await("west", "", long, "10.20.1.10", "10.20.2.11", "10.20.3.12")
	conditions := func(slices []discoveryv1.EndpointSlice, address string) (found []discoveryv1.EndpointConditions) {
		for _, s := range slices {
			for _, e := range s.Endpoints {
				if e.Addresses[0] == address {
					found = append(found, e.Conditions)
				}
			}
		}
		return found
	}
	if d := gocmp.Diff(conditions(fixture(t, "terminating-west.yaml"), "10.20.3.12"), conditions(own, "10.20.2.11")); d != "" {
		t.Errorf("in its own cluster, recorded (-) and seen (+) differ:\n%s", d)
	}
	m.must(m.cluster("west").RemovePod(t.Context(), west1))
	m.await("east", "west", long, "10.20.1.10", "10.20.3.12")
}

// A cut changes nothing until the sync is restarted: then it forgets, after its time-out, what it cannot see.
func TestMirroredSlicesOfACutCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for time-outs of the sync, for half a minute")
	}
	m := newMedia(t)
	m.run("east", "sfu-0", "10.10.1.10")
	m.run("west", "sfu-0", "10.20.1.10")
	goes := m.run("west", "sfu-1", "10.20.2.11")
	before := m.await("east", "west", long, "10.20.1.10", "10.20.2.11")

	t.Log("cut: pods that have gone are still listed, new ones are not")
	m.bed.Cut("east", "west")
	t.Cleanup(func() { m.bed.Heal("east", "west") })
	m.must(m.cluster("west").RemovePod(t.Context(), goes))
	m.run("west", "sfu-2", "10.20.3.12")
	m.await("west", "", long, "10.20.1.10", "10.20.3.12")
	m.stay("east", "west", 5*time.Second, before)

	t.Log("healed: the same slice is put right")
	m.bed.Heal("east", "west")
	began := time.Now()
	healed := m.await("east", "west", 2*time.Minute, "10.20.1.10", "10.20.3.12")
	t.Logf("right %v after the heal", time.Since(began).Round(time.Millisecond))
	if healed[0].Name != before[0].Name {
		t.Errorf("the slice was %s and is %s", before[0].Name, healed[0].Name)
	}

	t.Log("cut, and the sync restarted: the slice is kept until the time-out, then it vanishes")
	m.bed.Cut("east", "west")
	m.must(m.cluster("east").Process(MeshSync).Stop(t.Context()))
	m.stay("east", "west", time.Second, healed)
	began = time.Now()
	m.must(m.cluster("east").Process(MeshSync).Start(t.Context()))
	m.await("east", "west", syncTimeout+time.Minute)
	took := time.Since(began)
	t.Logf("gone %v after the restart", took.Round(time.Millisecond))
	if took < syncTimeout {
		t.Errorf("it vanished %v after the restart, before the time-out of %v", took, syncTimeout)
	}
	m.await("east", "", long, "10.10.1.10")

	t.Log("healed: it returns under another name")
	m.bed.Heal("east", "west")
	began = time.Now()
	back := m.await("east", "west", 2*time.Minute, "10.20.1.10", "10.20.3.12")
	t.Logf("back %v after the heal", time.Since(began).Round(time.Millisecond))
	if back[0].Name == healed[0].Name {
		t.Errorf("the slice is %s again", back[0].Name)
	}
}

// fixture reads slices that Cilium wrote, recorded.
func fixture(t *testing.T, name string) []discoveryv1.EndpointSlice {
	t.Helper()
	content, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var list discoveryv1.EndpointSliceList
	if err := yaml.Unmarshal(content, &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// anonymous leaves out what differs from one run to the next.
func anonymous(from []discoveryv1.EndpointSlice) []discoveryv1.EndpointSlice {
	var list []discoveryv1.EndpointSlice
	for _, s := range from {
		s := s.DeepCopy()
		s.TypeMeta = metav1.TypeMeta{}
		s.ObjectMeta = metav1.ObjectMeta{GenerateName: s.GenerateName, Labels: s.Labels, OwnerReferences: s.OwnerReferences}
		for i := range s.OwnerReferences {
			s.OwnerReferences[i].UID = ""
		}
		for i := range s.Endpoints {
			s.Endpoints[i].TargetRef.Namespace = ""
		}
		slices.SortFunc(s.Endpoints, func(a, b discoveryv1.Endpoint) int { return cmp.Compare(a.Addresses[0], b.Addresses[0]) })
		slices.SortFunc(s.Ports, func(a, b discoveryv1.EndpointPort) int { return cmp.Compare(*a.Name, *b.Name) })
		list = append(list, *s)
	}
	return list
}
