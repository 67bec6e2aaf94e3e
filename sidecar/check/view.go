package check

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	// maxAsked bounds how many sidecars are asked, and manyAtOnce how many at a time.
	maxAsked   = 200
	manyAtOnce = 16
	// patience bounds how long all of them together are waited for.
	patience = 20 * time.Second
	// usualPeers is the Service of the peers where no pod names one.
	usualPeers = "sidestream-peers"
)

// view is what several checks look at, read once.
type view struct {
	Options
	cluster Cluster
	version string
	clock   Clock

	hooks    []hook
	hooksErr error
	space    *corev1.Namespace
	spaceErr error
	pods     []corev1.Pod // all that ask for a sidecar, or have one
	podsErr  error
	services []corev1.Service
	servErr  error
	injected []*sidecar
	peers    string // name of their Service; "": sidecars find peers otherwise
	cilium   map[string]string
	ciliErr  error
}

// hook is a webhook that is asked about pods with our label.
type hook struct {
	configuration string
	admissionregistrationv1.MutatingWebhook
}

// sidecar is a pod that has one, and what that says of itself.
type sidecar struct {
	pod    *corev1.Pod
	done   inject.Status
	native bool
	spec   *corev1.Container

	asked    bool
	err      error // why it did not answer
	ready    Answer
	status   status
	readable bool
}

func (s *sidecar) name() string { return s.pod.Namespace + "/" + s.pod.Name }

// env is a setting of the sidecar's.
func (s *sidecar) env(name string) string {
	for _, e := range s.spec.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// server is the media server's container.
func (s *sidecar) server() *corev1.Container {
	for i := range s.pod.Spec.Containers {
		if s.pod.Spec.Containers[i].Name == s.done.Container {
			return &s.pod.Spec.Containers[i]
		}
	}
	return nil
}

// status is what of a sidecar's /api/status is looked at.
type status struct {
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	Version string `json:"version"`
	Adapter string `json:"adapter"`
	Peers   []struct {
		ID         string   `json:"id"`
		Cluster    string   `json:"cluster"`
		Address    string   `json:"address"`
		Version    string   `json:"version"`
		Connected  bool     `json:"connected"`
		Error      string   `json:"error"`
		Conditions []string `json:"conditions"`
	} `json:"peers"`
	Relays []struct {
		Stream    string    `json:"stream"`
		State     string    `json:"state"`
		LiveSince time.Time `json:"liveSince"`
		LastError string    `json:"lastError"`
	} `json:"relays"`
	Discovery []struct {
		Source string `json:"source"`
		Error  string `json:"error"`
	} `json:"discovery"`
}

// over says that a pod has ended, or soon will have.
func over(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil
}

// newView reads all of it. What cannot be read the checks say.
func newView(ctx context.Context, cluster Cluster, o Options) (*view, error) {
	v := &view{Options: o, cluster: cluster, peers: usualPeers}
	var err error
	if v.version, v.clock, err = cluster.Version(ctx); err != nil {
		return nil, err
	}
	var configurations []admissionregistrationv1.MutatingWebhookConfiguration
	configurations, v.hooksErr = cluster.Webhooks(ctx)
	for _, c := range configurations {
		for _, h := range c.Webhooks {
			if h.ObjectSelector != nil && h.ObjectSelector.MatchLabels[inject.Label] == "true" {
				v.hooks = append(v.hooks, hook{c.Name, h})
			}
		}
	}
	v.space, v.spaceErr = cluster.Namespace(ctx, o.Namespace)
	v.services, v.servErr = cluster.Services(ctx, o.Namespace)
	if m, err := cluster.ConfigMap(ctx, "kube-system", "cilium-config"); err == nil {
		v.cilium = m.Data
	} else {
		v.ciliErr = err
	}
	v.pods, v.podsErr = readPods(ctx, cluster, o.Namespace)
	for i := range v.pods {
		if s, ok := sidecarOf(&v.pods[i]); ok && !over(s.pod) {
			v.injected = append(v.injected, s)
		}
	}
	for i, s := range v.injected {
		if name := s.env("SIDESTREAM_PEER_SERVICE"); i == 0 || name != "" {
			v.peers = name
		}
	}
	v.ask(ctx)
	return v, nil
}

// readPods reads those that ask for a sidecar and those that have one.
func readPods(ctx context.Context, cluster Cluster, namespace string) ([]corev1.Pod, error) {
	asking, err := cluster.Pods(ctx, namespace, inject.Label+"=true")
	if err != nil {
		return nil, err
	}
	having, err := cluster.Pods(ctx, namespace, inject.InjectedLabel+"=true,"+inject.Label+"!=true") // the label was taken off
	return append(asking, having...), err
}

func sidecarOf(pod *corev1.Pod) (*sidecar, bool) {
	done, ok := inject.StatusOf(pod)
	if !ok {
		return nil, false
	}
	s := &sidecar{pod: pod, done: done}
	for n, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == inject.ContainerName && s.spec == nil {
				s.spec, s.native = &list[i], n == 0
			}
		}
	}
	return s, s.spec != nil
}

// ask asks all sidecars that run how they are.
func (v *view) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(manyAtOnce)
	asked := 0
	for _, s := range v.injected {
		if s.pod.Status.Phase != corev1.PodRunning || asked >= maxAsked {
			continue
		}
		asked++
		s.asked = true
		group.Go(func() error {
			s.ready, s.err = v.cluster.Ask(ctx, s.pod.Namespace, s.pod.Name, s.done.Admin, "/readyz")
			if s.err != nil {
				return nil
			}
			answer, err := v.cluster.Ask(ctx, s.pod.Namespace, s.pod.Name, s.done.Admin, "/api/status")
			switch {
			case err != nil:
				s.err = err
			case answer.Status != http.StatusOK:
				s.err = fmt.Errorf("/api/status answers %d", answer.Status)
			default:
				if err := json.Unmarshal(answer.Body, &s.status); err != nil {
					s.err = fmt.Errorf("/api/status answers what is no status: %w", err)
				}
			}
			s.readable = s.err == nil
			return nil
		})
	}
	_ = group.Wait()
}

// answering are the sidecars that told their status. The finding says why there are none.
func (v *view) answering() ([]*sidecar, *finding) {
	if f := v.noPods(); f != nil {
		return nil, f
	}
	var all []*sidecar
	var last *sidecar
	for _, s := range v.injected {
		if s.readable {
			all = append(all, s)
		}
		if s.err != nil {
			last = s
		}
	}
	switch {
	case len(all) > 0:
		return all, nil
	case last != nil:
		f := skip("no sidecar can be asked through the API server: %s: %v", last.name(), last.err)
		return nil, &f
	}
	f := skip("no injected pod runs in namespace %s", v.Namespace)
	return nil, &f
}

// noPods says why there is no injected pod to look at.
func (v *view) noPods() *finding {
	var f finding
	switch {
	case v.podsErr != nil:
		f = unseen("pods of namespace "+v.Namespace, v.podsErr)
	case len(v.injected) == 0:
		f = skip("no pod of namespace %s has a sidecar", v.Namespace)
	default:
		return nil
	}
	return &f
}

// peerService is that of the peers. The finding says why there is none to look at.
func (v *view) peerService() (*corev1.Service, *finding) {
	var f finding
	switch {
	case v.servErr != nil:
		f = unseen("Services of namespace "+v.Namespace, v.servErr)
	case v.peers == "":
		f = skip("the sidecars find their peers otherwise than by a Service")
	default:
		for i := range v.services {
			if v.services[i].Name == v.peers {
				return &v.services[i], nil
			}
		}
		f = skip("there is no Service %s", v.peers)
	}
	return nil, &f
}

// groups are those of a service account, without which it is not known to RBAC.
func groups(user string) []string {
	namespace, _, ok := strings.Cut(strings.TrimPrefix(user, accountPrefix), ":")
	if !ok || !strings.HasPrefix(user, accountPrefix) {
		return nil
	}
	return []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"}
}

const accountPrefix = "system:serviceaccount:"

// unique sorts, and leaves each once.
func unique(all []string) []string {
	slices.Sort(all)
	return slices.Compact(all)
}
