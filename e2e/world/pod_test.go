//go:build linux

package world

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidestream-dev/sidestream/e2e/bed"
	"github.com/sidestream-dev/sidestream/e2e/inside"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/injector/inject"
)

// image is the sidecar's, and the media server's.
const image = "example.invalid/sidestream:1"

// pod is a media server and the sidecar that the injector put beside it.
type pod struct {
	*region
	name    string
	host    *wan.Host
	own     *authority // nil: the mesh's
	object  *corev1.Pod
	status  inject.Status
	dir     string // its containers' roots
	web     *http.Client
	server  *container
	sidecar *container
	once    sync.Once
}

// podSpec is what an operator deploys: the built-in SFU as a container of its own.
func podSpec(namespace, name string, annotations map[string]string) *corev1.Pod {
	all := map[string]string{inject.Domain + "adapter": "pionsfu", inject.Domain + "relay-linger": "2s"}
	for key, value := range annotations {
		all[inject.Domain+key] = value
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, Annotations: all, Labels: map[string]string{"app": service, inject.Label: "true"},
		},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(15)),
			Containers: []corev1.Container{{
				Name: "sfu", Image: image, Args: []string{"sfu"}, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8800}},
			}},
		},
	}
}

// run has a pod admitted, runs it, and returns when it is ready.
func (r *region) run(name string) *pod {
	r.Helper()
	return r.runSpec(podSpec(r.namespace, name, nil))
}

func (r *region) runSpec(spec *corev1.Pod) *pod {
	r.Helper()
	return r.runAs(spec, nil)
}

// runAs is runSpec for a pod that has, in place of what the Secrets hold, certificates of an authority of its own.
func (r *region) runAs(spec *corev1.Pod, own *authority) *pod {
	r.Helper()
	p := &pod{region: r, name: spec.Name, own: own, host: r.host(r.Name + "-" + spec.Name)}
	p.web = inside.HTTP(p.host)
	var err error
	p.dir, err = os.MkdirTemp(r.logs, r.Name+"-"+spec.Name+"-")
	r.must(err)
	r.must(os.Chmod(p.dir, 0o755))
	spec.Spec.NodeName = r.Name + "-node"
	p.object, err = r.Client().CoreV1().Pods(r.namespace).Create(r.Context(), spec, metav1.CreateOptions{})
	r.must(err)
	var ok bool
	if p.status, ok = inject.StatusOf(p.object); !ok {
		r.Fatalf("the pod %s was not injected: %v", name(p.object), p.object.Annotations)
	}
	p.object, err = r.ReportPod(r.Context(), p.object, p.host.IPv4, false)
	r.must(err)
	p.proxy()
	for _, c := range append(p.object.Spec.InitContainers, p.object.Spec.Containers...) {
		started := p.start(c)
		if c.Name == inject.ContainerName {
			p.sidecar = started
		} else {
			p.server = started
		}
	}
	if p.sidecar == nil || p.server == nil {
		r.Fatalf("the pod %s has not the containers that it should", name(p.object))
	}
	r.Cleanup(p.kill)
	p.ready()
	return p
}

func name(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

// ready waits for the probe, and reports it.
func (p *pod) ready() {
	p.Helper()
	probe := p.sidecar.spec.ReadinessProbe.HTTPGet
	p.poll(p.name+" is ready", func(ctx context.Context) error { return wants(ctx, p.web, p.at(probe), http.StatusOK) })
	var err error
	p.object, err = p.ReportPod(p.Context(), p.object, p.host.IPv4, true)
	p.must(err)
}

// at is where a probe or a hook asks.
func (p *pod) at(action *corev1.HTTPGetAction) string {
	return p.url(action.Port.IntVal) + action.Path
}

func (p *pod) url(port int32) string { return fmt.Sprintf("http://%s:%d", p.host.IPv4, port) }

// door is the gateway.
func (p *pod) door() string { return fmt.Sprintf("%s:%d", p.host.IPv4, p.status.Gateway) }

// proxy leads from the pod to its cluster's API server, as a Service does. It stands for kube-proxy.
func (p *pod) proxy() {
	p.Helper()
	api, err := url.Parse(p.Config().Host)
	p.must(err)
	l, err := inside.Listen(p.host, "127.0.0.1:"+api.Port()) // for which the API server's certificate is good
	p.must(err)
	relayTo(p.world, l, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", api.Host)
	})
}

// relayTo carries connections on to another place until the test ends.
func relayTo(w *world, l net.Listener, dial func(context.Context) (net.Conn, error)) {
	w.background(func(ctx context.Context) {
		var carriers sync.WaitGroup
		defer carriers.Wait()
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		defer stop()
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			carriers.Go(func() { bed.Carry(ctx, near, dial) })
		}
	})
}

// start runs a container as the pod says, in a root of its own with nothing but its program and volumes in it.
func (p *pod) start(spec corev1.Container) *container {
	p.Helper()
	root := filepath.Join(p.dir, spec.Name)
	p.must(os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	p.must(os.Link(filepath.Join(binaries, "sidestream"), filepath.Join(root, "sidestream")))
	p.must(os.WriteFile(filepath.Join(root, "etc/hosts"), []byte("127.0.0.1 localhost\n"), 0o644))
	c := &container{
		spec: spec, root: root, host: p.host, env: p.environment(spec), log: p.log(p.name + "-" + spec.Name), changed: make(chan struct{}),
	}
	if s := spec.SecurityContext; s != nil && s.RunAsUser != nil {
		c.user = uint32(*s.RunAsUser)
	}
	for _, m := range spec.VolumeMounts {
		p.mount(c, m)
	}
	p.background(c.run)
	return c
}

// environment is what the kubelet makes of a container's.
func (p *pod) environment(spec corev1.Container) []string {
	p.Helper()
	api, err := url.Parse(p.Config().Host)
	p.must(err)
	env := []string{"KUBERNETES_SERVICE_HOST=" + api.Hostname(), "KUBERNETES_SERVICE_PORT=" + api.Port(), "PATH=/"}
	for _, e := range spec.Env {
		value := strings.ReplaceAll(e.Value, "$$", "$")
		if from := e.ValueFrom; from != nil && from.FieldRef != nil {
			field, ok := map[string]string{
				"metadata.uid": string(p.object.UID), "metadata.namespace": p.object.Namespace, "metadata.name": p.object.Name,
				"status.podIP": p.host.IPv4.String(),
			}[from.FieldRef.FieldPath]
			if !ok {
				p.Fatalf("%s is of %s, which this kubelet does not know", e.Name, from.FieldRef.FieldPath)
			}
			value = field
		} else if from != nil && from.SecretKeyRef != nil {
			secret, err := p.Client().CoreV1().Secrets(p.namespace).Get(p.Context(), from.SecretKeyRef.Name, metav1.GetOptions{})
			p.must(err)
			value = string(secret.Data[from.SecretKeyRef.Key])
		} else if from != nil {
			p.Fatalf("this kubelet does not know where %s comes from", e.Name)
		}
		env = append(env, e.Name+"="+value)
	}
	return env
}

// mount fills a volume. Each has a container to itself.
func (p *pod) mount(c *container, m corev1.VolumeMount) {
	p.Helper()
	ctx, dir := p.Context(), filepath.Join(c.root, m.MountPath)
	p.must(os.MkdirAll(dir, 0o755))
	var volume corev1.VolumeSource
	for _, v := range p.object.Spec.Volumes {
		if v.Name == m.Name {
			volume = v.VolumeSource
		}
	}
	files := map[string][]byte{}
	switch {
	case volume.EmptyDir != nil:
		p.must(os.Chown(dir, int(c.user), int(c.user)))
	case volume.Secret != nil && p.own != nil:
		files = p.own.issue(p.T)
	case volume.Secret != nil:
		secret, err := p.Client().CoreV1().Secrets(p.namespace).Get(ctx, volume.Secret.SecretName, metav1.GetOptions{})
		p.must(err)
		files = secret.Data
	case volume.Projected != nil:
		for _, s := range volume.Projected.Sources {
			switch {
			case s.ServiceAccountToken != nil:
				request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: s.ServiceAccountToken.ExpirationSeconds}}
				token, err := p.Client().CoreV1().ServiceAccounts(p.namespace).CreateToken(ctx, p.object.Spec.ServiceAccountName, request, metav1.CreateOptions{})
				p.must(err)
				files[s.ServiceAccountToken.Path] = []byte(token.Status.Token)
			case s.ConfigMap != nil:
				m, err := p.Client().CoreV1().ConfigMaps(p.namespace).Get(ctx, s.ConfigMap.Name, metav1.GetOptions{})
				p.must(err)
				for _, item := range s.ConfigMap.Items {
					files[item.Path] = []byte(m.Data[item.Key])
				}
			case s.DownwardAPI != nil:
				for _, item := range s.DownwardAPI.Items {
					files[item.Path] = []byte(p.namespace) // nothing else is asked for
				}
			}
		}
	default:
		p.Skipf("this kubelet does not know the volume %s", m.Name)
	}
	p.must(publishFiles(dir, files))
}

// publishFiles changes all files of a volume at once, as the kubelet does: names are links through one that is replaced.
func publishFiles(dir string, files map[string][]byte) error {
	if len(files) == 0 {
		return nil
	}
	fresh, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return err
	}
	errs := []error{os.Chmod(fresh, 0o755)}
	for name, content := range files {
		errs = append(errs, os.WriteFile(filepath.Join(fresh, name), content, 0o644))
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	next := filepath.Join(dir, "..next")
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	errs = append(errs, os.Symlink(filepath.Base(fresh), next), os.Rename(next, filepath.Join(dir, "..data")))
	if old != "" {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, old)))
	}
	return errors.Join(errs...)
}

// refresh brings the Secrets of the pod up to date, which a kubelet does within a minute or so.
func (p *pod) refresh() {
	p.Helper()
	for _, m := range p.sidecar.spec.VolumeMounts {
		for _, v := range p.object.Spec.Volumes {
			if v.Name == m.Name && v.Secret != nil {
				p.mount(p.sidecar, m)
			}
		}
	}
}

// kill is the death of the pod's machine: nothing says goodbye.
func (p *pod) kill() {
	p.once.Do(func() {
		_ = p.host.Close() // first, so that no packet tells of it
		p.server.end(syscall.SIGKILL)
		p.sidecar.end(syscall.SIGKILL)
		p.region.mu.Lock()
		defer p.region.mu.Unlock()
		for i, h := range p.region.hosts {
			if h == p.host {
				p.region.hosts = append(p.region.hosts[:i], p.region.hosts[i+1:]...)
				break
			}
		}
	})
}

// gone kills the pod, and has its cluster notice.
func (p *pod) gone() {
	p.Helper()
	p.kill()
	p.must(p.RemovePod(p.Context(), p.object))
}

// evict ends the pod in order, as a roll-out does: hooks of all containers at once, the media server's end, then the sidecar's.
func (p *pod) evict() {
	p.Helper()
	p.must(p.TerminatePod(p.Context(), p.object))
	var hooks sync.WaitGroup
	for _, c := range []*container{p.server, p.sidecar} {
		if l := c.spec.Lifecycle; l != nil && l.PreStop != nil && l.PreStop.HTTPGet != nil {
			hooks.Go(func() {
				ctx, cancel := context.WithTimeout(p.Context(), time.Duration(*p.object.Spec.TerminationGracePeriodSeconds)*time.Second)
				defer cancel()
				_ = wants(ctx, p.web, p.at(l.PreStop.HTTPGet), http.StatusOK)
			})
		}
	}
	hooks.Wait()
	p.server.end(syscall.SIGTERM)
	p.sidecar.end(syscall.SIGTERM)
	p.kill()
	p.must(p.RemovePod(p.Context(), p.object))
}

// nodeStatus is what tests read of /api/status.
type nodeStatus struct {
	Node    string
	Peers   []struct{ Connected bool }
	Streams []struct {
		Stream, Origin string
		Holders        []struct{ Node, Cluster string }
	}
	Relays []struct{ Stream, State, Parent string }
}

func (p *pod) node(ctx context.Context) (s nodeStatus, err error) {
	return s, get(ctx, p.web, p.url(p.status.Admin)+"/api/status", &s)
}

// published is what the built-in media server says of a stream.
type published struct {
	ID, Session string
	Readers     int
	Relayed     bool
}

func (p *pod) published(ctx context.Context) ([]published, error) {
	var list struct{ Streams []published }
	err := get(ctx, p.web, p.url(8800)+"/api/streams", &list)
	return list.Streams, err
}

// connected waits until each of the pods has all others as peers.
func (w *world) connected(pods ...*pod) {
	w.Helper()
	w.poll("all pods know each other", func(ctx context.Context) error {
		for _, p := range pods {
			st, err := p.node(ctx)
			if err != nil {
				return err
			}
			n := 0
			for _, peer := range st.Peers {
				if peer.Connected {
					n++
				}
			}
			if n != len(pods)-1 {
				return fmt.Errorf("%s in %s has %d peers of %d", p.name, p.Name, n, len(pods)-1)
			}
		}
		return nil
	})
}

// rest waits until nothing is left of what was, and says how long that took: a cluster with viewers pulls the stream once and the
// others not at all, servers have a publication of a relay that lives and no other, and their readers are the viewers and
// children that there are.
func (w *world) rest(what string, origin *pod, viewers []*viewer, pods ...*pod) time.Duration {
	w.Helper()
	began := time.Now()
	w.poll(what+": at rest", func(ctx context.Context) error { return unrest(ctx, origin, viewers, pods) })
	return time.Since(began)
}

func unrest(ctx context.Context, origin *pod, viewers []*viewer, pods []*pod) error {
	readers, pulls, live := map[*pod]int{}, map[string]int{}, map[*pod]bool{}
	byNode := map[string]*pod{}
	for _, p := range pods {
		byNode[string(p.object.UID)] = p
	}
	wanted := map[string]bool{}
	for _, v := range viewers {
		at := v.Seen().At
		for _, p := range pods {
			if at == p.door() {
				readers[p]++
				wanted[p.Name] = wanted[p.Name] || p.Name != origin.Name
			}
		}
	}
	for _, p := range pods {
		st, err := p.node(ctx)
		if err != nil {
			return err
		}
		if origin != nil && (len(st.Streams) != 1 || st.Streams[0].Origin != string(origin.object.UID)) {
			return fmt.Errorf("%s in %s knows of %+v", p.name, p.Name, st.Streams)
		}
		for _, r := range st.Relays {
			switch r.State {
			case "idle":
				continue
			case "live":
			default:
				return fmt.Errorf("%s in %s has a relay that is %s", p.name, p.Name, r.State)
			}
			live[p] = true
			parent := byNode[r.Parent]
			if parent == nil {
				return fmt.Errorf("%s in %s pulls from %s, which is gone", p.name, p.Name, r.Parent)
			}
			readers[parent]++
			if parent.region != p.region {
				pulls[p.Name]++
			}
		}
	}
	for _, p := range pods {
		if want := map[bool]int{true: 1}[wanted[p.Name]]; pulls[p.Name] != want {
			return fmt.Errorf("%s pulls the stream %d times, not %d", p.Name, pulls[p.Name], want)
		}
		streams, err := p.published(ctx)
		if err != nil {
			return err
		}
		if has := len(streams); has > 1 || (has == 1) != (p == origin || live[p]) {
			return fmt.Errorf("the server of %s in %s has %+v", p.name, p.Name, streams)
		}
		if len(streams) == 1 && streams[0].Readers != readers[p] {
			return fmt.Errorf("the server of %s in %s has %d readers, and there are %d", p.name, p.Name, streams[0].Readers, readers[p])
		}
	}
	return nil
}
