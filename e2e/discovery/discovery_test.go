// Package discovery proves on real API servers, joined by Cilium's own sync, that sidecars find each other in EndpointSlices.
package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/sidestream-dev/sidestream/e2e/bed"
	"github.com/sidestream-dev/sidestream/sidecar/discovery"
	"github.com/sidestream-dev/sidestream/sidecar/discovery/endpointslice"
)

var shared = bed.Shared{Config: bed.Config{Clusters: []string{"east", "west"}}}

func TestMain(m *testing.M) {
	shared.Tests = m
	goleak.VerifyTestMain(&shared)
}

const (
	service = "sidestream-peers"
	port    = "sidestream-peer"
	long    = 2 * time.Minute // for what is not measured, on a machine that does much else
)

// peers is a namespace with the peer Service in both clusters, and a source of each's choosing.
type peers struct {
	*testing.T
	bed       *bed.Bed
	namespace string
}

func newPeers(t *testing.T) *peers {
	p := &peers{T: t, bed: shared.Bed(t)}
	p.namespace = p.bed.Namespace(t)
	for _, c := range p.bed.Clusters {
		s := bed.GlobalService(p.namespace, service,
			corev1.ServicePort{Name: port, Port: 18443, TargetPort: intstr.FromInt32(18443)},
			corev1.ServicePort{Name: "http", Port: 18080, TargetPort: intstr.FromInt32(18080)})
		_, err := c.Client().CoreV1().Services(p.namespace).Create(t.Context(), s, metav1.CreateOptions{})
		p.must(err)
	}
	return p
}

func (p *peers) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *peers) run(cluster, name, ip string) *corev1.Pod {
	p.Helper()
	pod, err := p.bed.Cluster(cluster).RunPod(p.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: name, Labels: map[string]string{"app": service}},
	}, netip.MustParseAddr(ip))
	p.must(err)
	return pod
}

// account makes a service account without rights and a kubeconfig of its token.
func (p *peers) account(c *bed.Cluster, name string) (kubeconfig string) {
	p.Helper()
	accounts := c.Client().CoreV1().ServiceAccounts(p.namespace)
	_, err := accounts.Create(p.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	p.must(err)
	token, err := accounts.CreateToken(p.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	p.must(err)
	config := api.NewConfig()
	config.Clusters[c.Name] = &api.Cluster{Server: c.Config().Host, CertificateAuthorityData: c.Config().CAData}
	config.AuthInfos[name] = &api.AuthInfo{Token: token.Status.Token}
	config.Contexts[c.Name] = &api.Context{Cluster: c.Name, AuthInfo: name}
	config.CurrentContext = c.Name
	kubeconfig = filepath.Join(p.TempDir(), name)
	p.must(clientcmd.WriteToFile(*config, kubeconfig))
	return kubeconfig
}

// allow gives a service account what the manual says that it needs, and nothing else.
func (p *peers) allow(c *bed.Cluster, name string) {
	p.Helper()
	meta := metav1.ObjectMeta{Name: name}
	rights := c.Client().RbacV1()
	_, err := rights.Roles(p.namespace).Create(p.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"get", "list", "watch"},
	}}}, metav1.CreateOptions{})
	p.must(err)
	_, err = rights.RoleBindings(p.namespace).Create(p.Context(), &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: name, Namespace: p.namespace}},
	}, metav1.CreateOptions{})
	p.must(err)
}

// watched is a source that runs, and what it said.
type watched struct {
	*peers
	source *endpointslice.Source

	mu      sync.Mutex
	log     bytes.Buffer
	last    []discovery.Peer
	changed chan struct{} // closed and replaced at each report
}

// watch runs the source in a cluster until the test ends.
func (p *peers) watch(kubeconfig string) *watched {
	p.Helper()
	w := &watched{peers: p, changed: make(chan struct{})}
	w.source = endpointslice.New(endpointslice.Options{
		Service: service, Namespace: p.namespace, PortName: port, Kubeconfig: kubeconfig,
		Logger: slog.New(slog.NewTextHandler(w, nil)),
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.Context()))
	done := make(chan error)
	go func() {
		done <- w.source.Run(ctx, func(all []discovery.Peer) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.last = all
			close(w.changed)
			w.changed = make(chan struct{})
		})
	}()
	p.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			p.Errorf("the source ended: %v", err)
		}
		p.Logf("the source's log:\n%s", w.log.String())
	})
	return w
}

// Write is for the log.
func (w *watched) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(line)
}

// await waits until the source has reported these, as "ADDRESS CLUSTER", and returns how long that took.
func (w *watched) await(want ...string) time.Duration {
	w.Helper()
	began := time.Now()
	for bound := time.After(long); ; {
		w.mu.Lock()
		got, changed := w.said(), w.changed
		w.mu.Unlock()
		if slices.Equal(got, want) {
			return time.Since(began)
		}
		select {
		case <-changed:
		case <-bound:
			_, err := w.source.Trouble()
			w.Fatalf("the source says %q, want %q; its trouble: %v", got, want, err)
		}
	}
}

// awaitTrouble waits until the source is in trouble of these words; "": in none.
func (w *watched) awaitTrouble(words string) {
	w.Helper()
	w.poll(func() error {
		_, err := w.source.Trouble()
		if words == "" && err == nil || words != "" && err != nil && strings.Contains(err.Error(), words) {
			return nil
		}
		return fmt.Errorf("the source's trouble is %w, want %q", err, words)
	})
}

func (w *watched) awaitLog(words string) {
	w.Helper()
	w.poll(func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !strings.Contains(w.log.String(), words) {
			return fmt.Errorf("the log does not say %q", words)
		}
		return nil
	})
}

// poll tries until there is no error.
func (w *watched) poll(try func() error) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), long)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.Fatal(err)
		}
	}
}

// said is the last report. The caller holds mu.
func (w *watched) said() []string {
	all := []string{}
	for _, p := range w.last {
		line := p.Addr.String()
		if p.Cluster != "" {
			line += " " + p.Cluster
		}
		if !p.Ready {
			line += " not ready"
		}
		all = append(all, line)
	}
	return all
}

// awaitSlices waits until a cluster's own slices have these addresses.
func (p *peers) awaitSlices(cluster string, addresses ...string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), long)
	defer cancel()
	_, err := p.bed.Cluster(cluster).AwaitSlices(ctx, p.namespace, func(all []discoveryv1.EndpointSlice) bool {
		return slices.Equal(bed.Addresses(bed.From(all, "")), addresses)
	})
	p.must(err)
}

func TestPeersOfAnotherCluster(t *testing.T) {
	p := newPeers(t)
	east := p.bed.Cluster("east")
	kubeconfig := p.account(east, "sidecar")
	p.allow(east, "sidecar")
	p.run("east", "sfu-0", "10.10.1.10")
	p.run("west", "sfu-0", "10.20.1.10")
	w := p.watch(kubeconfig)
	w.await("10.10.1.10:18443", "10.20.1.10:18443 west")
	w.awaitTrouble("")

	t.Log("a pod that starts or goes elsewhere is noticed within two seconds")
	var took []time.Duration
	for i := range 3 {
		pod := p.run("west", fmt.Sprint("sfu-more-", i), "10.20.9.9")
		took = append(took, w.await("10.10.1.10:18443", "10.20.1.10:18443 west", "10.20.9.9:18443 west"))
		p.must(p.bed.Cluster("west").RemovePod(t.Context(), pod))
		took = append(took, w.await("10.10.1.10:18443", "10.20.1.10:18443 west"))
	}
	slices.Sort(took)
	t.Logf("it took %v", took)
	if median := took[len(took)/2]; median > 2*time.Second {
		t.Errorf("half of the times it took more than %v", median)
	}

	t.Log("one of its own that terminates is not ready, as is one that is not yet")
	going, unready := p.run("east", "sfu-1", "10.10.1.11"), p.run("east", "sfu-2", "10.10.1.12")
	p.must(east.TerminatePod(t.Context(), going))
	_, err := east.ReportPod(t.Context(), unready, netip.MustParseAddr("10.10.1.12"), false)
	p.must(err)
	w.await("10.10.1.10:18443", "10.10.1.11:18443 not ready", "10.10.1.12:18443 not ready", "10.20.1.10:18443 west")
	for _, pod := range []*corev1.Pod{going, unready} {
		p.must(east.RemovePod(t.Context(), pod))
	}
	w.await("10.10.1.10:18443", "10.20.1.10:18443 west")

	t.Log("the mesh is cut: what was known stays, as Cilium has it")
	p.bed.Cut("east", "west")
	t.Cleanup(func() { p.bed.Heal("east", "west") })
	p.run("west", "sfu-1", "10.20.2.11")
	p.awaitSlices("west", "10.20.1.10", "10.20.2.11")
	w.await("10.10.1.10:18443", "10.20.1.10:18443 west")
	p.bed.Heal("east", "west")
	t.Logf("%v after the heal the new one is known",
		w.await("10.10.1.10:18443", "10.20.1.10:18443 west", "10.20.2.11:18443 west").Round(time.Millisecond))

	t.Log("the API server is stopped: what was known stays, and the source says what is wrong")
	process := east.Process(bed.APIServer)
	p.must(process.Stop(t.Context()))
	t.Cleanup(func() { _ = process.Start(context.WithoutCancel(t.Context())) })
	w.awaitTrouble("EndpointSlices of Service " + service)
	p.run("west", "sfu-2", "10.20.3.12")
	p.awaitSlices("west", "10.20.1.10", "10.20.2.11", "10.20.3.12")
	w.await("10.10.1.10:18443", "10.20.1.10:18443 west", "10.20.2.11:18443 west")
	p.must(process.Start(t.Context()))
	t.Logf("%v after it is back the new one is known",
		w.await("10.10.1.10:18443", "10.20.1.10:18443 west", "10.20.2.11:18443 west", "10.20.3.12:18443 west").Round(time.Millisecond))
	w.awaitTrouble("")

	t.Log("all slices are deleted by mistake, and come again: it ends with the same peers, and is no trouble")
	all := []string{"10.10.1.10", "10.20.1.10", "10.20.2.11", "10.20.3.12"}
	bound, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	deleted := map[string]bool{}
	_, err = east.AwaitSlices(bound, p.namespace, func(list []discoveryv1.EndpointSlice) bool {
		for _, s := range list {
			deleted[s.Name] = true
		}
		return slices.Equal(bed.Addresses(list), all)
	})
	p.must(err)
	endpointSlices := east.Client().DiscoveryV1().EndpointSlices(p.namespace)
	p.must(endpointSlices.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	_, err = east.AwaitSlices(bound, p.namespace, func(list []discoveryv1.EndpointSlice) bool {
		return slices.Equal(bed.Addresses(list), all) &&
			!slices.ContainsFunc(list, func(s discoveryv1.EndpointSlice) bool { return deleted[s.Name] })
	})
	p.must(err)
	w.await("10.10.1.10:18443", "10.20.1.10:18443 west", "10.20.2.11:18443 west", "10.20.3.12:18443 west")
	w.awaitTrouble("")
}

func TestServiceAccountWithoutRights(t *testing.T) {
	p := newPeers(t)
	east := p.bed.Cluster("east")
	p.run("east", "sfu-0", "10.10.1.10")
	p.awaitSlices("east", "10.10.1.10")
	w := p.watch(p.account(east, "sidecar"))
	const words = "bind one in that namespace with the verbs get, list and watch on endpointslices"
	w.awaitTrouble(words)
	w.awaitLog("level=ERROR")
	p.allow(east, "sidecar")
	w.await("10.10.1.10:18443")
	w.awaitTrouble("")
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := strings.Count(w.log.String(), words); n != 1 {
		t.Errorf("it was said %d times, want once", n)
	}
}
