package bed

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// syncTimeout is shorter than Cilium's, for the tests' sake.
const syncTimeout = 10 * time.Second

var shared = Shared{Config: Config{Clusters: []string{"east", "west"}, SyncTimeout: syncTimeout}}

func TestMain(m *testing.M) {
	OwnNetwork()
	shared.Tests = m
	goleak.VerifyTestMain(&shared)
}

func TestMemory(t *testing.T) {
	for _, c := range shared.Bed(t).Clusters {
		sum := c.Memory()
		t.Logf("%s: %d MiB", c.Name, sum>>20)
		for name, p := range c.processes {
			t.Logf("%s/%s: %d MiB", c.Name, name, p.Memory()>>20)
		}
		if sum > 700<<20 {
			t.Errorf("%s has %d MiB; 700 were promised", c.Name, sum>>20)
		}
	}
}

// The API server asks a webhook on loopback, applies its patch, and refuses the pod when it is down.
func TestWebhook(t *testing.T) {
	b := shared.Bed(t)
	c, namespace := b.Cluster("east"), b.Namespace(t)
	authority, err := newAuthority("webhook")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := authority.server([]string{"localhost"}, net.IPv4(127, 0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.X509KeyPair(issued.certificate, issued.key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(admit))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.StartTLS()
	defer server.Close()

	url := server.URL + "/mutate"
	fail, none := admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNone
	configuration := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: namespace},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name:         "mutate.bed.test",
			ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: authority.pem},
			NamespaceSelector: &metav1.LabelSelector{
				MatchLabels: map[string]string{corev1.LabelMetadataName: namespace},
			},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
			FailurePolicy: &fail, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
		}},
	}
	webhooks := c.Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	if _, err := webhooks.Create(t.Context(), configuration, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = webhooks.Delete(context.WithoutCancel(t.Context()), namespace, metav1.DeleteOptions{}) }()

	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	n := 0
	run := func() (*corev1.Pod, error) {
		n++
		return c.RunPod(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint("pod-", n)},
		}, netip.MustParseAddr("10.10.0.1"))
	}
	err = poll(ctx, func() error { // the API server notices the configuration in a moment
		pod, err := run()
		if err == nil && pod.Annotations["bed.test/seen"] != "yes" {
			err = fmt.Errorf("pod %s was not mutated", pod.Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	server.Close()
	if _, err := run(); !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "mutate.bed.test") {
		t.Errorf("with the webhook down, a pod's creation says %v", err)
	}
}

// admit annotates whatever it is asked about.
func admit(w http.ResponseWriter, r *http.Request) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, "no review", http.StatusBadRequest)
		return
	}
	kind := admissionv1.PatchTypeJSONPatch
	review.Response = &admissionv1.AdmissionResponse{
		UID: review.Request.UID, Allowed: true, PatchType: &kind,
		Patch: []byte(`[{"op": "add", "path": "/metadata/annotations", "value": {"bed.test/seen": "yes"}}]`),
	}
	review.Request = nil
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(review)
}

// A cluster goes on where it was after its processes have been killed.
func TestRestart(t *testing.T) {
	b := shared.Bed(t)
	c, namespace := b.Cluster("west"), b.Namespace(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	api := c.Process(APIServer)
	if err := api.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client().CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err == nil {
		t.Error("an API server that is stopped answers")
	}
	if pid := api.PID(); pid != 0 {
		t.Errorf("an API server that is stopped has the id %d", pid)
	}
	for _, p := range []*Process{c.Process(Etcd), api, c.Process(ControllerManager)} {
		if err := p.Restart(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Client().CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if err := c.AddNamespace(ctx, namespace+"-2", nil); err != nil {
		t.Error(err)
	}
}

// What a Deployment creates goes through admission as in the field, and runs when the test says so.
func TestDeployment(t *testing.T) {
	b := shared.Bed(t)
	c, namespace := b.Cluster("east"), b.Namespace(t)
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	labels := map[string]string{"app": "sfu"}
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sfu"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "sfu", Image: "example.invalid/sfu:1"}}},
			},
		},
	}
	if _, err := c.Client().AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var pod *corev1.Pod
	err := poll(ctx, func() error {
		pods, err := c.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err == nil && len(pods.Items) == 0 {
			err = errNotYet
		}
		if err == nil {
			pod = &pods.Items[0]
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, ready := range []bool{false, true} { // the second time it has a node, which this one does not know
		if _, err := c.ReportPod(ctx, pod, netip.MustParseAddr("10.10.0.2"), ready); err != nil {
			t.Fatal(err)
		}
	}
	other := pod.DeepCopy()
	other.UID = "another"
	if _, err := c.ReportPod(ctx, other, netip.MustParseAddr("10.10.0.3"), false); err == nil {
		t.Error("a pod that was there before under the same name is reported")
	}
	err = poll(ctx, func() error {
		seen, err := c.Client().AppsV1().Deployments(namespace).Get(ctx, "sfu", metav1.GetOptions{})
		if err == nil && seen.Status.ReadyReplicas != 1 {
			err = errNotYet
		}
		return err
	})
	if err != nil {
		t.Errorf("the Deployment does not become ready: %v", err)
	}
}

// A bed of its own ends with its test.
func TestNew(t *testing.T) {
	var pids []int
	t.Run("alone", func(t *testing.T) {
		b := New(t, "solo")
		for _, p := range b.Clusters[0].processes {
			pids = append(pids, p.PID())
		}
		b.Namespace(t)
	})
	for _, pid := range pids {
		if pid == 0 || !gone(pid) {
			t.Errorf("process %d runs after its test", pid)
		}
	}
}

func TestRunSaysWhatBroke(t *testing.T) {
	binaries := t.TempDir()
	script := []byte("#!/bin/sh\necho the disk is full; exit 1\n")
	if err := os.WriteFile(filepath.Join(binaries, "etcd"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	config := Config{Clusters: []string{"east", "west"}, Binaries: Binaries(binaries), Dir: t.TempDir()}
	err := Run(t.Context(), config, func(context.Context, *Bed) error { return errors.New("it was started") })
	if message := fmt.Sprint(err); !strings.HasPrefix(message, "start bed: start ") || !strings.Contains(message, "the disk is full") {
		t.Errorf("Run says %v", err)
	}
}

// supervise runs a process for the test.
func supervise(t *testing.T, path string, args ...string) *Process {
	t.Helper()
	path, err := exec.LookPath(path)
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	p := &Process{
		name: "test/" + filepath.Base(path), path: path, args: args, dir: dir, log: filepath.Join(dir, "log"),
		changed: make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error)
	go func() { done <- p.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestProcess(t *testing.T) {
	p := supervise(t, "sleep", "1000")
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := p.PID()
	if err := p.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := p.PID()
	if first == 0 || second == 0 || first == second {
		t.Errorf("first it is %d, after a restart %d", first, second)
	}
	if !gone(first) {
		t.Errorf("%d is still there", first)
	}

	// Killed by somebody else it comes back.
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := poll(t.Context(), func() error {
		if pid := p.PID(); pid == 0 || pid == second {
			return errNotYet
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestProcessThatCannotStart(t *testing.T) {
	p := supervise(t, "sh", "-c", "echo no luck; exit 1")
	p.ready = func(context.Context) error { return errNotYet }
	if err := p.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("Start says %v", err)
	}
}

func TestProcessEndsWithAKilledTest(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process that its parent has died")
	}
	if os.Getenv("BED_VICTIM") == "1" {
		p := supervise(t, "sleep", "1000")
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\nstarted %d\n", p.PID())
		<-t.Context().Done() // the kill comes first
		return
	}
	victim := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	victim.Env = append(os.Environ(), "BED_VICTIM=1", "TMPDIR="+t.TempDir()) // it cannot tidy up
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "started %d", &pid)
	}
	_ = victim.Process.Kill()
	_ = victim.Wait()
	if pid == 0 {
		t.Fatal("the other test started nothing")
	}
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	err = poll(ctx, func() error {
		if !gone(pid) {
			return fmt.Errorf("%d is still there", pid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// gone says that a process has ended, if only as a zombie that nobody has looked after.
func gone(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err == nil && strings.Contains(string(stat), ") Z ")
}

func TestPorts(t *testing.T) {
	var p, other ports
	defer p.release()
	defer other.release()
	seen := make(map[string]bool)
	for i := range 50 {
		address, err := []*ports{&p, &other}[i%2].take()
		if err != nil {
			t.Fatal(err)
		}
		if seen[address] {
			t.Errorf("%s was given twice", address)
		}
		seen[address] = true
	}
	for address := range seen {
		if hold, err := net.ListenPacket("udp", address); err == nil {
			t.Errorf("nobody can tell that %s is taken", address)
			_ = hold.Close()
		}
	}
}

func TestLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	var first, second strings.Builder
	unlock, err := lock(t.Context(), name, &first)
	if err != nil {
		t.Fatal(err)
	}
	waiting, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := lock(waiting, name, &second); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the second has the lock: %v", err)
	}
	if first.Len() != 0 || !strings.Contains(second.String(), "waiting") {
		t.Errorf("the first says %q, the second %q", first.String(), second.String())
	}
	var other sync.WaitGroup
	other.Go(func() {
		again, err := lock(t.Context(), name, &second)
		if err != nil {
			t.Error(err)
			return
		}
		again()
	})
	unlock()
	other.Wait()
}

// The cache's key changes with everything that is built.
func TestKey(t *testing.T) {
	src, err := findSource()
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"kubernetes-v1.", "etcd-v3.", "cilium-v1."} {
		if !strings.Contains(src.key, part) {
			t.Errorf("%s lacks %s", src.key, part)
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(src.dir)); err != nil {
		t.Fatal(err)
	}
	if same, err := readSource(dir); err != nil || same.key != src.key {
		t.Errorf("a copy has the key %s (%v), the original %s", same.key, err, src.key)
	}
	for _, name := range []string{"go.mod", "go.sum", "meshsync/main.go"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("\n"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		other, err := readSource(dir)
		if err != nil {
			t.Fatal(err)
		}
		if other.key == src.key {
			t.Errorf("with another %s the key is the same", name)
		}
		src = other
	}
}

func TestConfig(t *testing.T) {
	for _, clusters := range [][]string{nil, {"a", "a"}, {"A"}, {"a_b"}, {""}, {strings.Repeat("a", 33)}} {
		err := Run(t.Context(), Config{Clusters: clusters, Binaries: "none", Dir: t.TempDir()}, nil)
		if err == nil || !strings.Contains(err.Error(), "configure bed") {
			t.Errorf("%q: %v", clusters, err)
		}
	}
}
