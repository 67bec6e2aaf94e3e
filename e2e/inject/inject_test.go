// Package inject tests the injector against a real API server: the binary as a user has it, with the rights that it is given in
// the field.
package inject

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	applyadmission "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/sidestream-dev/sidestream/e2e/bed"
	"github.com/sidestream-dev/sidestream/injector/certs"
	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	long       = 2 * time.Minute
	hookName   = "sidestream-injector"
	secretName = "sidestream-injector-certs"
	portsName  = "sidestream-host-ports"
)

var (
	shared = bed.Shared{Config: bed.Config{Clusters: []string{"germany"}}}
	binary string
)

func TestMain(m *testing.M) {
	shared.Tests = m
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sidestream-injector-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "sidestream-injector")
		build := exec.Command("go", "build", "-o", binary, "../../injector")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build the program under test:", err)
			return 1
		}
		return shared.Run()
	}())
}

// cluster is a real control plane with the injector in it.
type cluster struct {
	*testing.T
	*bed.Cluster
	own, namespace string // the injector's, and the pods'
	kubeconfig     string
	service        *balancer
	replicas       []*replica
}

// newCluster installs what the injector needs, and lets two replicas run.
func newCluster(t *testing.T, policy admissionregistrationv1.FailurePolicyType) *cluster {
	t.Helper()
	if os.Getenv("E2E") == "" {
		t.Skip("run by make e2e")
	}
	b := shared.Bed(t)
	c := &cluster{T: t, Cluster: b.Cluster("germany"), own: b.Namespace(t)}
	c.addNamespace(c.own+"-media", map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	c.service = newBalancer(t)
	c.install(policy)
	for range 2 {
		c.replicas = append(c.replicas, c.start())
	}
	c.serve(c.replicas...)
	return c
}

// addNamespace adds the one for pods. With the test it goes, and they do.
func (c *cluster) addNamespace(name string, labels map[string]string) {
	c.Helper()
	c.namespace = name
	if err := c.AddNamespace(c.Context(), name, labels); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), 10*time.Second)
		defer cancel()
		now := metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}
		if err := errors.Join(
			c.Client().AppsV1().Deployments(name).DeleteCollection(ctx, now, metav1.ListOptions{}),
			c.Client().AppsV1().ReplicaSets(name).DeleteCollection(ctx, now, metav1.ListOptions{}),
			c.Client().CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}),
			c.Client().CoreV1().Pods(name).DeleteCollection(ctx, now, metav1.ListOptions{})); err != nil {
			c.Error(err)
		}
	})
}

// install does what the chart does.
func (c *cluster) install(policy admissionregistrationv1.FailurePolicyType) {
	c.Helper()
	ctx, client := c.Context(), c.Client()
	meta := metav1.ObjectMeta{Name: c.own}
	must := func(err error) {
		c.Helper()
		if err != nil {
			c.Fatal(err)
		}
	}
	_, err := client.CoreV1().Secrets(c.own).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secretName}}, metav1.CreateOptions{})
	must(err)
	_, err = client.CoreV1().ConfigMaps(c.own).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: portsName}}, metav1.CreateOptions{})
	must(err)
	hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	_, err = hooks.Apply(ctx, c.configuration(policy), metav1.ApplyOptions{FieldManager: "helm"})
	must(err)
	account, err := c.AddAccount(ctx, c.own, "injector",
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{secretName}, Verbs: []string{"get", "update"}},
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{portsName}, Verbs: []string{"get", "update"}})
	must(err)
	_, err = client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create"}},
		{
			APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"mutatingwebhookconfigurations"},
			ResourceNames: []string{c.hook()}, Verbs: []string{"get", "patch"},
		},
	}}, metav1.CreateOptions{})
	must(err)
	_, err = client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: c.own},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: c.own, Name: "injector"}},
	}, metav1.CreateOptions{})
	must(err)
	c.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := errors.Join(
			hooks.Delete(ctx, c.hook(), metav1.DeleteOptions{}),
			client.RbacV1().ClusterRoles().Delete(ctx, c.own, metav1.DeleteOptions{}),
			client.RbacV1().ClusterRoleBindings().Delete(ctx, c.own, metav1.DeleteOptions{})); err != nil {
			c.Error(err)
		}
	})
	c.kubeconfig, err = c.KubeconfigFor(account, c.own)
	must(err)
}

func (c *cluster) hook() string { return hookName + "-" + c.own }

// configuration is the webhook's, without authorities.
func (c *cluster) configuration(policy admissionregistrationv1.FailurePolicyType) *applyadmission.MutatingWebhookConfigurationApplyConfiguration {
	return applyadmission.MutatingWebhookConfiguration(c.hook()).WithWebhooks(applyadmission.MutatingWebhook().
		WithName("pods.sidestream.dev").
		WithClientConfig(applyadmission.WebhookClientConfig().WithURL("https://" + c.service.listener.Addr().String() + "/mutate")).
		WithRules(applyadmission.RuleWithOperations().WithOperations(admissionregistrationv1.Create).
			WithAPIGroups("").WithAPIVersions("v1").WithResources("pods").WithScope(admissionregistrationv1.NamespacedScope)).
		WithFailurePolicy(policy).WithMatchPolicy(admissionregistrationv1.Equivalent).
		WithReinvocationPolicy(admissionregistrationv1.IfNeededReinvocationPolicy).
		WithSideEffects(admissionregistrationv1.SideEffectClassNoneOnDryRun).WithTimeoutSeconds(3).WithAdmissionReviewVersions("v1").
		WithObjectSelector(&labelSelector{MatchLabels: map[string]string{inject.Label: "true"}}).
		WithNamespaceSelector(&labelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: c.namespace}}))
}

// replica is a process of the injector.
type replica struct {
	cmd            *exec.Cmd
	webhook, admin string // addresses
	done           chan struct{}

	mu  sync.Mutex
	log []string
}

// start starts a replica and waits until it listens.
func (c *cluster) start() *replica {
	c.Helper()
	r := &replica{cmd: exec.Command(binary), done: make(chan struct{})}
	r.cmd.Env = append(os.Environ(),
		"INJECTOR_LISTEN=127.0.0.1:0", "INJECTOR_ADMIN_LISTEN=127.0.0.1:0", "INJECTOR_NAMESPACE="+c.own,
		"INJECTOR_KUBECONFIG="+c.kubeconfig, "INJECTOR_IMAGE=example.invalid/sidestream:1", "INJECTOR_WEBHOOK="+c.hook(),
		"INJECTOR_CERT_HOSTS=127.0.0.1,"+hookName+"."+c.own+".svc", "INJECTOR_CERT_SETTLE=1s", "INJECTOR_REPORT_EVERY=1s",
		"INJECTOR_SHUTDOWN_DELAY=500ms", "SIDESTREAM_CLUSTER=germany", "SIDESTREAM_PEER_SERVICE=sidestream-peers")
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		c.Fatal(err)
	}
	running := make(chan struct{})
	go func() {
		defer close(r.done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			r.mu.Lock()
			r.log = append(r.log, lines.Text())
			r.mu.Unlock()
			var line struct{ Msg, Webhook, Admin string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "running" {
				r.webhook, r.admin = line.Webhook, line.Admin
				close(running)
			}
		}
		_ = r.cmd.Wait()
	}()
	c.Cleanup(func() {
		r.stop()
		if c.Failed() {
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, line := range r.log[max(0, len(r.log)-30):] {
				c.Log(line)
			}
		}
	})
	select {
	case <-running:
	case <-r.done:
		c.Fatal("the injector ended")
	}
	return r
}

// stop ends it in order.
func (r *replica) stop() {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	<-r.done
}

// serve has the Service lead to these replicas, as soon as they are ready.
func (c *cluster) serve(replicas ...*replica) {
	c.Helper()
	var addresses []string
	for _, r := range replicas {
		c.until("ready", func(context.Context) error {
			resp, err := http.Get("http://" + r.admin + "/readyz")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
				return errors.New(string(body))
			}
			return nil
		})
		addresses = append(addresses, r.webhook)
	}
	c.service.set(addresses)
}

// metric is a number that a replica shows.
func (r *replica) metric(name string) (float64, error) {
	resp, err := http.Get("http://" + r.admin + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// until waits for something to be so.
func (c *cluster) until(what string, so func(context.Context) error) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), long)
	defer cancel()
	var err error
	for {
		if err = so(ctx); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			c.Fatalf("%s: %v", what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// balancer is what a Service is: connections to it go to one of its endpoints.
type balancer struct {
	listener net.Listener
	next     atomic.Int64

	mu        sync.Mutex
	endpoints []string
}

func newBalancer(t *testing.T) *balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{listener: l}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() { b.carry(from) })
		}
	})
	t.Cleanup(func() { // the replicas have ended, and with them the connections
		_ = l.Close()
		group.Wait()
	})
	return b
}

func (b *balancer) set(endpoints []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.endpoints = endpoints
}

func (b *balancer) carry(from net.Conn) {
	defer from.Close()
	b.mu.Lock()
	endpoints := b.endpoints
	b.mu.Unlock()
	if len(endpoints) == 0 {
		return
	}
	to, err := net.Dial("tcp", endpoints[int(b.next.Add(1))%len(endpoints)])
	if err != nil {
		return
	}
	defer to.Close()
	var group sync.WaitGroup
	group.Go(func() {
		_, _ = io.Copy(to, from)
		_ = to.Close()
	})
	_, _ = io.Copy(from, to)
	_ = from.Close()
	group.Wait()
}

// template is of a media server that "restricted" lets in.
func template(name string, annotations map[string]string) corev1.PodTemplateSpec {
	all := map[string]string{"sidestream.dev/adapter": "mediamtx"}
	for key, value := range annotations {
		all["sidestream.dev/"+key] = value
	}
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name, inject.Label: "true"}, Annotations: all},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: new(false),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "mtx", Image: "example.invalid/mediamtx:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8889}},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("http")}}},
			}},
		},
	}
}

func (c *cluster) pod(name string, annotations map[string]string) *corev1.Pod {
	t := template(name, annotations)
	t.ObjectMeta.Name, t.ObjectMeta.Namespace = name, c.namespace
	return &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
}

// deploy creates a Deployment, and returns the pod that comes of it.
func (c *cluster) deploy(name string, annotations map[string]string) *corev1.Pod {
	c.Helper()
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: template(name, annotations),
		},
	}
	if _, err := c.Client().AppsV1().Deployments(c.namespace).Create(c.Context(), d, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	var pod *corev1.Pod
	c.until("pod of "+name, func(ctx context.Context) error {
		pods, err := c.Client().CoreV1().Pods(c.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return errors.New("there is none")
		}
		pod = &pods.Items[0]
		return nil
	})
	return pod
}

// A pod of a Deployment is injected, passes Pod Security "restricted", and Services that name its port lead to the sidecar,
// which is an init container or an ordinary one.
func TestInjection(t *testing.T) {
	c := newCluster(t, admissionregistrationv1.Fail)
	ctx := t.Context()
	for name, headless := range map[string]bool{"sfu": false, "sidestream-peers": true} {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
			Selector: map[string]string{inject.InjectedLabel: "true"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		}}
		if headless {
			s.Spec.ClusterIP, s.Spec.PublishNotReadyAddresses = corev1.ClusterIPNone, true
			s.Spec.Ports = []corev1.ServicePort{{Name: "sidestream-peer", Port: 18443, TargetPort: intstr.FromString("sidestream-peer")}}
		}
		if _, err := c.Client().CoreV1().Services(c.namespace).Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	native := c.deploy("native", nil)
	ordinary := c.deploy("ordinary", map[string]string{"native": "false"})
	for i, pod := range []*corev1.Pod{native, ordinary} {
		status, ok := inject.StatusOf(pod)
		if !ok || status.Capture != "port-name" || status.Container != "mtx" {
			t.Fatalf("%+v, annotations %v", status, pod.Annotations)
		}
		isInit := slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == inject.ContainerName })
		if isInit != (pod.Labels["app"] == "native") {
			t.Errorf("%s: sidecar as init container: %v", pod.Labels["app"], isInit)
		}
		if p := pod.Spec.Containers[0].ReadinessProbe.TCPSocket.Port; p != intstr.FromInt32(8889) {
			t.Errorf("the server's probe asks port %s", p.String())
		}
		if _, err := c.ReportPod(ctx, pod, netip.AddrFrom4([4]byte{10, 10, 0, byte(i + 1)}), i == 0); err != nil {
			t.Fatal(err)
		}
	}
	for service, port := range map[string]int32{"sfu": 18080, "sidestream-peers": 18443} {
		wait, cancel := context.WithTimeout(ctx, long)
		_, err := c.AwaitSlices(wait, c.namespace, func(all []discoveryv1.EndpointSlice) bool {
			n := 0
			for _, s := range all {
				if s.Labels[discoveryv1.LabelServiceName] != service {
					continue
				}
				for _, p := range s.Ports {
					if p.Port != nil && *p.Port == port {
						n += len(s.Endpoints)
					}
				}
			}
			return n == 2
		})
		cancel()
		if err != nil {
			t.Errorf("%s: %v", service, err)
		}
	}

	dry, err := c.Client().CoreV1().Pods(c.namespace).Create(ctx, c.pod("dry", nil), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := inject.StatusOf(dry); !ok {
		t.Error("a dry run is not injected")
	}

	// One that nobody asked for is not seen.
	before := c.reviews()
	plain := c.pod("plain", nil)
	plain.Labels = nil
	if got, err := c.Client().CoreV1().Pods(c.namespace).Create(ctx, plain, metav1.CreateOptions{}); err != nil || len(got.Spec.InitContainers) > 0 {
		t.Errorf("%+v %v", got, err)
	}
	if after := c.reviews(); after != before {
		t.Errorf("the API server asked %v times about a pod without the label", after-before)
	}
}

// reviews is how often the API server has asked.
func (c *cluster) reviews() (sum float64) {
	c.Helper()
	for _, r := range c.replicas {
		n, err := r.metric("sidestream_injector_review_seconds_count")
		if err != nil {
			c.Fatal(err)
		}
		sum += n
	}
	return sum
}

// words are the API server's warnings.
type words struct {
	mu  sync.Mutex
	all []string
}

func (w *words) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, text)
}

// A wrong annotation: the pod is created as it is, who creates it is warned, and its owner has an event.
func TestWrongAnnotation(t *testing.T) {
	c := newCluster(t, admissionregistrationv1.Fail)
	said := &words{}
	config := rest.CopyConfig(c.Config())
	config.WarningHandler = said
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	pod, err := client.CoreV1().Pods(c.namespace).Create(t.Context(), c.pod("typo", map[string]string{"relay-pin": "x"}), metav1.CreateOptions{})
	if err != nil || len(pod.Spec.InitContainers) > 0 || pod.Spec.Containers[0].Ports[0].Name != "http" {
		t.Fatalf("%+v %v", pod, err)
	}
	if len(said.all) != 1 || !strings.Contains(said.all[0], "did you mean sidestream.dev/relay-pins?") {
		t.Errorf("warnings %q", said.all)
	}
	c.deploy("misspelt", map[string]string{"relay-pin": "x"})
	c.event("ReplicaSet", "misspelt-", "did you mean sidestream.dev/relay-pins?")
}

// event waits for one about an object.
func (c *cluster) event(kind, name, word string) {
	c.Helper()
	c.until("event about "+name, func(ctx context.Context) error {
		list, err := c.Client().CoreV1().Events(c.namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Reason == "NotInjected" && e.InvolvedObject.Kind == kind && strings.HasPrefix(e.InvolvedObject.Name, name) && strings.Contains(e.Message, word) {
				return nil
			}
		}
		return fmt.Errorf("there are %d others", len(list.Items))
	})
}

// The certificate is made anew while pods are created, replicas change, and somebody else applies the webhook configuration:
// no admission fails.
func TestRotationUnderLoad(t *testing.T) {
	c := newCluster(t, admissionregistrationv1.Fail)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hooks := c.Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	bundle := func() string {
		h, err := hooks.Get(ctx, c.hook(), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return string(h.Webhooks[0].ClientConfig.CABundle)
	}

	var created, failed atomic.Int64
	var load sync.WaitGroup
	for i := range 2 {
		load.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				pod, err := c.Client().CoreV1().Pods(c.namespace).Create(ctx, c.pod(fmt.Sprintf("load-%d-%d", i, n), nil),
					metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				if ctx.Err() != nil {
					return
				}
				if _, ok := inject.StatusOf(pod); err != nil || !ok {
					failed.Add(1)
					t.Errorf("pod %d: %v", n, err)
					return
				}
				created.Add(1)
				time.Sleep(20 * time.Millisecond) // 50 a second at most, each
			}
		})
	}
	defer load.Wait()
	defer cancel()

	secrets := c.Client().CoreV1().Secrets(c.own)
	for round := range 3 {
		before := bundle()
		c.until("Secret is emptied", func(ctx context.Context) error { // as a person has it made anew
			s, err := secrets.Get(ctx, secretName, metav1.GetOptions{})
			if err != nil {
				return err
			}
			s.Data = nil
			_, err = secrets.Update(ctx, s, metav1.UpdateOptions{})
			return err
		})
		c.until("the new authority is announced", func(context.Context) error {
			if now := bundle(); now == before || !strings.Contains(now, "BEGIN CERTIFICATE") {
				return errors.New("it is not")
			}
			return nil
		})
		if n := strings.Count(bundle(), "BEGIN CERTIFICATE"); n != round+2 {
			t.Errorf("%d authorities, want %d: the old ones are still valid", n, round+2)
		}
		s, err := secrets.Get(ctx, secretName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.until("all replicas serve the new certificate", func(context.Context) error {
			for _, r := range c.replicas {
				if err := serves(r.webhook, s.Data["ca.crt"], s.Data["tls.crt"]); err != nil {
					return err
				}
			}
			return nil
		})

		switch round {
		case 0: // Argo CD applies its idea of the configuration, which knows nothing of authorities
			if _, err := hooks.Apply(ctx, c.configuration(admissionregistrationv1.Fail),
				metav1.ApplyOptions{FieldManager: "argocd-controller", Force: true}); err != nil {
				t.Fatal(err)
			}
			h, err := hooks.Get(ctx, c.hook(), metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(h.Webhooks[0].ClientConfig.CABundle) == 0 {
				t.Error("the authorities are gone")
			}
			if !slices.ContainsFunc(h.ManagedFields, func(f metav1.ManagedFieldsEntry) bool {
				return f.Manager == certs.FieldManager && strings.Contains(string(f.FieldsV1.GetRawBytes()), "caBundle")
			}) {
				t.Errorf("%s does not own them", certs.FieldManager)
			}
		case 1: // an upgrade: a new replica comes, an old one goes
			old := c.replicas[0]
			c.replicas = append(c.replicas[1:], c.start())
			c.serve(c.replicas...)
			old.stop()
		}
	}
	cancel()
	load.Wait()
	t.Logf("%d pods were created, %d not", created.Load(), failed.Load())
	if created.Load() < 100 {
		t.Errorf("only %d pods were created", created.Load())
	}
}

// While the webhook is away pods are created without a sidecar. When it is back they are reported, and left alone.
func TestWebhookAway(t *testing.T) {
	c := newCluster(t, admissionregistrationv1.Ignore)
	c.missed(c.replicas[0], 0) // those of other tests have gone
	for _, r := range c.replicas {
		r.stop()
	}
	c.service.set(nil)
	pod := c.deploy("missed", nil)
	if _, ok := inject.StatusOf(pod); ok {
		t.Fatal("injected by nobody")
	}
	r := c.start()
	c.serve(r)
	c.missed(r, 1)
	c.event("Pod", pod.Name, "rollout restart")
	again, err := c.Client().CoreV1().Pods(c.namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil || again.UID != pod.UID || again.DeletionTimestamp != nil {
		t.Errorf("the pod is not left alone: %v", err)
	}
	if err := c.Client().CoreV1().Pods(c.namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
	c.missed(r, 0)
}

// missed waits until a replica counts so many pods.
func (c *cluster) missed(r *replica, want float64) {
	c.Helper()
	c.until(fmt.Sprintf("%v pods are missed", want), func(context.Context) error {
		n, err := r.metric("sidestream_injector_missed_pods")
		if err == nil && n != want {
			err = fmt.Errorf("%v are", n)
		}
		return err
	})
}

// On the host's network the ports are the workload's, and declared so that the scheduler keeps two pods apart.
func TestHostNetwork(t *testing.T) {
	c := newCluster(t, admissionregistrationv1.Fail)
	c.addNamespace(c.own+"-host", nil)
	hooks := c.Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	if _, err := hooks.Apply(t.Context(), c.configuration(admissionregistrationv1.Fail), metav1.ApplyOptions{FieldManager: "helm"}); err != nil {
		t.Fatal(err)
	}
	seen := map[int32]string{}
	c.until("pods are injected", func(ctx context.Context) error { // the API server hears of the new namespace in a moment
		for _, name := range []string{"one", "two"} {
			p := c.pod(name, nil)
			p.Spec.HostNetwork = true
			pod, err := c.Client().CoreV1().Pods(c.namespace).Create(ctx, p, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			s, ok := inject.StatusOf(pod)
			if !ok {
				return errors.Join(errors.New("not injected"), c.Client().CoreV1().Pods(c.namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
			}
			if other := seen[s.Gateway]; other != "" && other != name || s.Peer != 18443 {
				t.Errorf("%s and %s have ports %+v", name, other, s)
			}
			seen[s.Gateway] = name
			for _, p := range pod.Spec.InitContainers[0].Ports {
				if p.HostPort != p.ContainerPort {
					t.Errorf("port %+v", p)
				}
			}
		}
		return nil
	})
	m, err := c.Client().CoreV1().ConfigMaps(c.own).Get(t.Context(), portsName, metav1.GetOptions{})
	if err != nil || len(m.Data) != 2 {
		t.Errorf("%v %v", m.Data, err)
	}
}
