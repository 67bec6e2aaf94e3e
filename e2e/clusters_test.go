package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sidestream-dev/sidestream/e2e/bed"
)

const (
	peerService = "sidestream-peers"
	peerPort    = 18443
)

// outage is for how long the clusters' control planes are away.
const outage = time.Minute

// clusters are real control planes that Cilium joins.
var clusters = bed.Shared{Config: bed.Config{Clusters: []string{"singapore", "germany", "us-west"}}}

// joined are the clusters with a Service of peers in all of them.
type joined struct {
	*testing.T
	bed       *bed.Bed
	namespace string
	key       string
	configs   map[string]string // kubeconfig files with the least rights, by cluster
}

func newJoined(t *testing.T) *joined {
	t.Helper()
	if os.Getenv("E2E") == "" {
		t.Skip("run by make e2e")
	}
	j := &joined{T: t, bed: clusters.Bed(t), key: rand.Text() + rand.Text(), configs: map[string]string{}}
	j.namespace = j.bed.Namespace(t)
	for _, c := range j.bed.Clusters {
		service := bed.GlobalService(j.namespace, peerService, corev1.ServicePort{
			Name: "sidestream-peer", Port: peerPort, TargetPort: intstr.FromString("sidestream-peer"),
		})
		if _, err := c.Client().CoreV1().Services(j.namespace).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		account, err := c.AddAccount(t.Context(), j.namespace, "sidecar", rbacv1.PolicyRule{
			APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: []string{"get", "list", "watch"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if j.configs[c.Name], err = c.KubeconfigFor(account, j.namespace); err != nil {
			t.Fatal(err)
		}
	}
	return j
}

// replica is a pod with a sidecar and the built-in server.
type replica struct {
	*site
	id      string
	ip      netip.Addr
	pod     *corev1.Pod
	cluster *bed.Cluster
}

// run starts a pod, and its sidecar with it.
func (j *joined) run(cluster, name string) *replica {
	j.Helper()
	r := &replica{ip: bed.PodIPs(j, 1)[0], cluster: j.bed.Cluster(cluster)}
	var err error
	r.pod, err = r.cluster.RunPod(j.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: j.namespace, Name: name, Labels: map[string]string{"app": peerService}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "sidestream", Image: "example.invalid/sidestream:1",
			Env: []corev1.EnvVar{
				{Name: "SIDESTREAM_CLUSTER", Value: cluster}, {Name: "SIDESTREAM_PEER_SERVICE", Value: peerService},
			},
			Ports: []corev1.ContainerPort{{Name: "sidestream-peer", ContainerPort: peerPort}},
		}}},
	}, r.ip)
	if err != nil {
		j.Fatal(err)
	}
	r.id = string(r.pod.UID)
	at := func(port int) string { return netip.AddrPortFrom(r.ip, uint16(port)).String() }
	r.site = &site{url: "http://" + at(18080), admin: "http://" + at(18090)}
	r.process = start(j.T, []string{
		"SIDESTREAM_NODE_ID=" + r.id,
		"SIDESTREAM_CLUSTER=" + cluster,
		"SIDESTREAM_NAMESPACE=" + j.namespace,
		"SIDESTREAM_POD_IP=" + r.ip.String(),
		"SIDESTREAM_STATE_DIR=" + j.TempDir(),
		"SIDESTREAM_PEER_SERVICE=" + peerService,
		"SIDESTREAM_PEER_KUBECONFIG=" + j.configs[cluster],
		"SIDESTREAM_PEER_SECURITY=shared-key",
		"SIDESTREAM_PEER_KEY=" + j.key,
		"SIDESTREAM_PEER_LISTEN=" + at(peerPort),
		"SIDESTREAM_GATEWAY_LISTEN=" + at(18080),
		"SIDESTREAM_ADMIN_LISTEN=" + at(18090),
		"SIDESTREAM_SFU_LISTEN=" + at(8800),
		"SIDESTREAM_SFU_MEDIA_LISTEN=127.0.0.1:0",
		"SIDESTREAM_SFU_LOOPBACK=true",
		"SIDESTREAM_RELAY_LINGER=1s",
		"SIDESTREAM_RELAY_DRAIN=2s",
	}, "run")
	return r
}

// connected waits until a replica has so many peers.
func (r *replica) connected(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	r.until(ctx, t, fmt.Sprintf("%d peers of %s", n, r.pod.Name), func(st siteStatus) bool {
		connected := 0
		for _, p := range st.Peers {
			if p.Connected {
				connected++
			}
		}
		return connected == n
	})
}

// troubled waits until a replica says, or no longer says, that it cannot read its cluster's slices.
func (r *replica) troubled(ctx context.Context, t *testing.T, yes bool) {
	t.Helper()
	r.until(ctx, t, fmt.Sprintf("%s is troubled: %v", r.pod.Name, yes), func(st siteStatus) bool {
		return slices.ContainsFunc(st.Discovery, func(d discoveryStatus) bool { return d.Error != "" }) == yes
	})
}

// Sidecars in clusters that Cilium joins find each other by the slices that it syncs, with the least rights. What they
// carry goes on without API servers, slices and mesh, and so does finding what they knew; a node that terminates is not
// chosen, though the slices call it ready.
func TestJoinedClusters(t *testing.T) {
	j := newJoined(t)
	ctx, cancel := context.WithTimeout(t.Context(), outage+3*time.Minute)
	defer cancel()
	singapore, germany, west := j.run("singapore", "sfu-0"), j.run("germany", "sfu-0"), j.run("us-west", "sfu-0")
	for _, r := range []*replica{singapore, germany, west} {
		r.connected(ctx, t, 2)
	}
	publish(ctx, t, singapore.url+"/whip/show")
	known := func(st siteStatus) bool { return len(st.Streams) == 1 }
	germany.until(ctx, t, "the stream is known", known)
	viewer := watch(ctx, t, germany.url+"/whep/show")
	viewer.frames(ctx, t, 60)

	t.Log("slices deleted, the mesh of the control planes cut, API servers stopped")
	for _, c := range j.bed.Clusters {
		if err := c.LoseSlices(ctx, j.namespace, peerService); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range j.bed.Clusters {
		for _, other := range j.bed.Clusters[:i] {
			j.bed.Cut(c.Name, other.Name)
		}
		if err := c.Stop(ctx, bed.APIServer); err != nil {
			t.Fatal(err)
		}
	}
	before := viewer.Report()
	for _, r := range []*replica{singapore, germany, west} {
		r.troubled(ctx, t, true)
	}
	late := watch(ctx, t, west.url+"/whep/show") // somebody new, meanwhile
	late.frames(ctx, t, 60)
	if err := late.stop(); ctx.Err() != nil {
		t.Fatal(err)
	}
	select {
	case <-time.After(outage):
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	after := viewer.Report()
	t.Logf("%d frames in %v, %d missing", after.Stamped-before.Stamped, outage, after.Missing)
	if came := after.Stamped - before.Stamped; came < int(outage.Seconds())*25 || after.Missing > 0 || after.Repeated > 0 {
		t.Errorf("the outage was seen: %d frames came; in all %d are missing, %d came twice", came, after.Missing, after.Repeated)
	}
	for _, r := range []*replica{singapore, germany, west} {
		r.connected(ctx, t, 2)
	}

	t.Log("all back")
	for i, c := range j.bed.Clusters {
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		for _, other := range j.bed.Clusters[:i] {
			j.bed.Heal(c.Name, other.Name)
		}
	}
	for _, r := range []*replica{singapore, germany, west} {
		r.troubled(ctx, t, false)
	}
	second := j.run("germany", "sfu-1")
	second.connected(ctx, t, 3)

	t.Log("the origin terminates: ready in the slices, and not chosen")
	west.until(ctx, t, "nothing is carried there", func(st siteStatus) bool {
		return len(st.Streams) == 1 && !slices.ContainsFunc(st.Relays, func(r relayStatus) bool { return r.State == "live" })
	})
	if err := singapore.cluster.TerminatePod(ctx, singapore.pod); err != nil {
		t.Fatal(err)
	}
	singapore.drain(ctx, t)
	mirrored, err := west.cluster.AwaitSlices(ctx, j.namespace, func(s []discoveryv1.EndpointSlice) bool {
		return len(bed.Addresses(bed.From(s, "singapore"))) > 0
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range bed.From(mirrored, "singapore") {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready == nil || !*e.Conditions.Ready {
				t.Errorf("the mirrored slice says that %v is not ready: this proves nothing any more", e.Addresses)
			}
		}
	}
	late = watch(ctx, t, west.url+"/whep/show")
	late.frames(ctx, t, 60)
	west.until(ctx, t, "pulled from germany", func(st siteStatus) bool {
		return slices.ContainsFunc(st.Relays, func(r relayStatus) bool { return r.State == "live" && r.Parent == germany.id })
	})
	if r := viewer.Report(); r.Missing > 0 || r.Repeated > 0 {
		t.Errorf("germany's viewer misses %d frames and had %d twice", r.Missing, r.Repeated)
	}
}

// drain does what a preStop hook does. Its answer does not matter here: germany has nobody else to turn to.
func (r *replica) drain(ctx context.Context, t *testing.T) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.admin+"/drain", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
}
