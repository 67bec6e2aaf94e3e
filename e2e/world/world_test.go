//go:build linux

package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sidestream-dev/sidestream/e2e/bed"
	"github.com/sidestream-dev/sidestream/e2e/inside"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	peerService = "sidestream-peers"
	peerSecret  = "sidestream-peer-tls"
	service     = "sfu" // to viewers and publishers
	stream      = "live/show"

	long      = 60 * time.Second // for what is not measured, on a machine that does much else
	jsonPatch = types.JSONPatchType
)

// distance are the ways between the regions: of light in fibre, and a packet in a thousand lost.
var distance = map[[2]string]wan.Params{
	{germany, singapore}: {Delay: 80 * time.Millisecond, Loss: 0.001},
	{germany, usWest}:    {Delay: 75 * time.Millisecond, Loss: 0.001},
	{singapore, usWest}:  {Delay: 85 * time.Millisecond, Loss: 0.001},
}

// world is three regions for a test.
type world struct {
	*testing.T
	bed       *bed.Bed
	network   *wan.Network
	namespace string
	logs      string
	authority *authority
	regions   map[string]*region
	links     map[[2]string]wan.Link // between regions, as the first sees it; all hosts share it
}

// region is a cluster, and those who live near it.
type region struct {
	*world
	*bed.Cluster
	people *wan.Host // where viewers and publishers are

	mu    sync.Mutex
	hosts []*wan.Host
	doors []string // host:port of the Service's ready endpoints, as it was seen last
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getenv("E2E") == "" {
		t.Skip("run by make e2e")
	}
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	w := &world{
		T: t, bed: shared.Bed(t), network: wan.NewNetwork(), authority: newAuthority(t),
		regions: map[string]*region{}, links: map[[2]string]wan.Link{},
	}
	var err error
	w.logs, err = os.MkdirTemp("", "world-")
	w.must(err)
	w.must(os.Chmod(w.logs, 0o755))
	w.namespace = w.bed.Namespace(t)
	w.carry()
	seed := uint64(0)
	for pair, params := range distance {
		seed++
		link := wan.NewLink(seed, params)
		w.links[pair], w.links[[2]string{pair[1], pair[0]}] = link, link.Reversed()
	}
	var group sync.WaitGroup
	for _, c := range w.bed.Clusters {
		r := &region{world: w, Cluster: c}
		w.regions[c.Name] = r
		r.people = r.host("people-" + c.Name)
	}
	for _, r := range w.regions {
		group.Go(func() { r.prepare() })
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return w
}

// carry lets the network run until all that the test started has ended.
func (w *world) carry() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.network.Run(ctx)
	}()
	w.Cleanup(func() {
		cancel()
		<-done
		if w.Failed() {
			w.Logf("logs of pods and injectors are in %s", w.logs)
			return
		}
		_ = os.RemoveAll(w.logs)
	})
}

// must fails the test. It may be called by goroutines that prepare for it.
func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// log is a file that the test leaves if it fails.
func (r *region) log(name string) *os.File {
	r.Helper()
	f, err := os.OpenFile(filepath.Join(r.logs, r.Name+"-"+name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	r.must(err)
	r.Cleanup(func() { _ = f.Close() })
	return f
}

// host makes one in the region: beside the others there, far from all others.
func (r *region) host(name string) *wan.Host {
	r.Helper()
	h, err := r.network.Host(name)
	if errors.Is(err, errors.ErrUnsupported) {
		r.Skip(err)
	}
	r.must(err)
	for _, other := range r.regions {
		if link, far := r.links[[2]string{r.Name, other.Name}]; far {
			other.mu.Lock()
			for _, there := range other.hosts {
				h.Join(there, link)
			}
			other.mu.Unlock()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts = append(r.hosts, h)
	return h
}

// prepare does what an operator does.
func (r *region) prepare() {
	ctx, client := r.Context(), r.Client()
	peers := bed.GlobalService(r.namespace, peerService,
		corev1.ServicePort{Name: inject.PeerPortName, Port: 18443, TargetPort: intstr.FromString(inject.PeerPortName)})
	peers.Spec.Selector, peers.Spec.PublishNotReadyAddresses = map[string]string{inject.InjectedLabel: "true"}, true
	_, errPeers := client.CoreV1().Services(r.namespace).Create(ctx, peers, metav1.CreateOptions{})
	_, errService := client.CoreV1().Services(r.namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: service},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": service}, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromString("http")},
		}},
	}, metav1.CreateOptions{})
	_, errRole := client.RbacV1().Roles(r.namespace).Create(ctx, &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "sidestream"},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: []string{"get", "list", "watch"},
		}},
	}, metav1.CreateOptions{})
	_, errBinding := client.RbacV1().RoleBindings(r.namespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "sidestream"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "sidestream"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:serviceaccounts:" + r.namespace}},
	}, metav1.CreateOptions{})
	_, errSecret := client.CoreV1().Secrets(r.namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: peerSecret}, Type: corev1.SecretTypeTLS, Data: r.authority.issue(r.T),
	}, metav1.CreateOptions{})
	if err := errors.Join(errPeers, errService, errRole, errBinding, errSecret); err != nil {
		r.Error(err)
		return
	}
	r.install()
}

// poll tries until there is no error.
func (w *world) poll(what string, try func(context.Context) error) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), long)
	defer cancel()
	if err := retry(ctx, try); err != nil {
		w.Fatalf("%s: %v", what, err)
	}
}

func retry(ctx context.Context, try func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// wants asks for a status.
func wants(ctx context.Context, client *http.Client, address string, status int) error {
	_, err := fetch(ctx, client, address, status)
	return err
}

func get(ctx context.Context, client *http.Client, address string, into any) error {
	body, err := fetch(ctx, client, address, http.StatusOK)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

func fetch(ctx context.Context, client *http.Client, address string, status int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != status {
		return nil, fmt.Errorf("%s: %s: %s", address, resp.Status, body)
	}
	return body, err
}

// door is what kube-proxy makes of the Service: one of its ready endpoints, another at each attempt. While the API server is away
// it is as it was.
func (r *region) door(attempt int) string {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	list, err := r.Client().DiscoveryV1().EndpointSlices(r.namespace).List(ctx,
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.doors = nil
		for _, s := range list.Items {
			for _, e := range s.Endpoints {
				if e.Conditions.Ready == nil || *e.Conditions.Ready {
					for _, p := range s.Ports {
						r.doors = append(r.doors, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
					}
				}
			}
		}
		slices.Sort(r.doors)
	}
	if len(r.doors) == 0 {
		return ""
	}
	return r.doors[attempt%len(r.doors)]
}

// watch lets somebody of the region play the stream by the Service until the test ends or leave is called. Of those whose
// first differs by one, each begins at another pod.
func (r *region) watch(first int) *viewer {
	r.Helper()
	return r.watchAt(func(attempt int) string { return whep(r.door(first + attempt)) })
}

func whep(door string) string {
	if door == "" {
		return ""
	}
	return "http://" + door + "/whep/" + stream
}

func ingest(door string) string {
	if door == "" {
		return ""
	}
	return "http://" + door + "/whip/" + stream
}

type viewer struct {
	*inside.Viewer
	*region
	leave func()
}

func (r *region) watchAt(where func(attempt int) string) *viewer {
	r.Helper()
	v, err := inside.NewViewer(r.people, where)
	r.must(err)
	return &viewer{v, r, r.background(v.Run)}
}

// frames waits for so many more.
func (v *viewer) frames(n int) {
	v.Helper()
	ctx, cancel := context.WithTimeout(v.Context(), long)
	defer cancel()
	if err := v.Wait(ctx, v.Seen().Frames+n); err != nil {
		v.Fatalf("a viewer in %s: %v", v.Name, err)
	}
}

// publish sends the clip from the region, by the Service, until the test ends or leave is called.
func (r *region) publish() (p *inside.Publisher, leave func()) {
	r.Helper()
	return r.publishAt(func(attempt int) string { return ingest(r.door(attempt)) })
}

func (r *region) publishAt(where func(attempt int) string) (p *inside.Publisher, leave func()) {
	r.Helper()
	p, err := inside.NewPublisher(r.people, 0, where)
	r.must(err)
	return p, r.background(p.Run)
}

// background runs something until the test ends, or what is returned is called, which waits for it.
func (w *world) background(run func(context.Context)) (end func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	end = func() {
		cancel()
		<-done
	}
	w.Cleanup(end)
	return end
}

// into counts the bytes that have come into a region from others.
func (w *world) into(region string) (n uint64) {
	for way, link := range w.links {
		if way[0] == region {
			n += link.In.Counters().Bytes
		}
	}
	return n
}

// cut loses everything between a region and all others, of media and of the control planes, until it is healed.
func (w *world) cut(region string, yes bool) {
	for way, link := range w.links {
		if way[0] != region {
			continue
		}
		p := link.Out.Params()
		p.Cut = yes
		link.Set(p)
		if yes {
			w.bed.Cut(way[0], way[1])
		} else {
			w.bed.Heal(way[0], way[1])
		}
	}
}
