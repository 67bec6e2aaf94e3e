package charts

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/sidestream-dev/sidestream/e2e/bed"
)

var shared = bed.Shared{Config: bed.Config{Clusters: []string{"germany"}}}

func TestMain(m *testing.M) {
	shared.Tests = m
	os.Exit(shared.Run())
}

// kinds are those of which the chart installs any on a plain cluster.
var kinds = []schema.GroupVersionResource{
	{Version: "v1", Resource: "secrets"},
	{Version: "v1", Resource: "configmaps"},
	{Version: "v1", Resource: "services"},
	{Version: "v1", Resource: "serviceaccounts"},
	{Version: "v1", Resource: "pods"},
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
	{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
}

// installed are all objects of a release that are there, without Helm's own notes.
func installed(t *testing.T, client dynamic.Interface, release string) (found []unstructured.Unstructured) {
	t.Helper()
	for _, kind := range kinds {
		list, err := client.Resource(kind).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/instance=" + release})
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, list.Items...)
	}
	return found
}

// made counts what Helm itself has made: pods come of the Deployment, in their own time.
func made(t *testing.T, client dynamic.Interface, release string) (n int) {
	t.Helper()
	for _, o := range installed(t, client, release) {
		if o.GetKind() != "Pod" {
			n++
		}
	}
	return n
}

// Helm installs the chart, changes it, takes that back, and removes all of it. The injector runs with the rights and settings
// that the chart gives it, and what it writes outlives upgrades.
func TestInstall(t *testing.T) {
	if os.Getenv("E2E") == "" {
		t.Skip("run by make e2e")
	}
	b := shared.Bed(t)
	c, namespace := b.Cluster("germany"), b.Namespace(t)
	media := namespace + "-media"
	if err := c.AddNamespace(t.Context(), media, nil); err != nil {
		t.Fatal(err)
	}
	objects, err := dynamic.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	flags := genericclioptions.NewConfigFlags(true)
	flags.KubeConfig, flags.Namespace = new(c.Kubeconfig()), &namespace
	configuration := action.NewConfiguration()
	if err := configuration.Init(flags, namespace, "secret"); err != nil {
		t.Fatal(err)
	}
	const release = "mesh"
	values := map[string]any{
		"cluster": "germany", "namespaces": []any{media}, "networkPolicy": map[string]any{"kind": "kubernetes"},
	}

	install := action.NewInstall(configuration)
	install.ReleaseName, install.Namespace, install.WaitStrategy, install.Timeout = release, namespace, kube.HookOnlyStrategy, time.Minute
	install.ServerSideApply = true
	if _, err := install.RunWithContext(t.Context(), load(t), values); err != nil {
		t.Fatal(err)
	}
	first := made(t, objects, release)
	if first < 15 {
		t.Errorf("%d objects are installed", first)
	}

	ready(t, c, namespace, release)
	hook := func() []byte {
		h, err := c.Client().AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), "00-"+release+"-injector", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return h.Webhooks[0].ClientConfig.CABundle
	}
	bundle := hook()
	if len(bundle) == 0 {
		t.Fatal("the injector wrote no authority")
	}

	testRights(t, c, namespace, release, values)

	upgrade := action.NewUpgrade(configuration)
	upgrade.Namespace, upgrade.WaitStrategy, upgrade.Timeout, upgrade.ServerSideApply = namespace, kube.HookOnlyStrategy, time.Minute, "auto"
	values["injector"] = map[string]any{"failurePolicy": "Fail", "replicas": 3}
	values["networkPolicy"] = map[string]any{"kind": "none"}
	next := load(t)
	next.Metadata.Version, next.Metadata.AppVersion = "0.2.0", "2"
	if _, err := upgrade.RunWithContext(t.Context(), release, next, values); err != nil {
		t.Fatal(err)
	}
	if n := made(t, objects, release); n != first-1 {
		t.Errorf("%d objects after the policy was given up, %d before", n, first)
	}
	if string(hook()) != string(bundle) {
		t.Error("an upgrade takes the authority away")
	}
	rollback := action.NewRollback(configuration)
	rollback.WaitStrategy, rollback.Timeout, rollback.Version, rollback.ServerSideApply = kube.HookOnlyStrategy, time.Minute, 1, "auto"
	if err := rollback.Run(release); err != nil {
		t.Fatal(err)
	}
	if n := made(t, objects, release); n != first {
		t.Errorf("%d objects after the rollback, %d at first", n, first)
	}
	s, err := c.Client().CoreV1().Secrets(namespace).Get(t.Context(), release+"-injector-certs", metav1.GetOptions{})
	if err != nil || len(s.Data["tls.crt"]) == 0 || string(hook()) != string(bundle) {
		t.Errorf("a rollback takes away what the injector wrote: %v", err)
	}

	uninstall := action.NewUninstall(configuration)
	uninstall.WaitStrategy, uninstall.Timeout = kube.HookOnlyStrategy, time.Minute
	if _, err := uninstall.Run(release); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for left := installed(t, objects, release); len(left) > 0; left = installed(t, objects, release) {
		if time.Now().After(deadline) {
			for _, o := range left {
				t.Errorf("%s %s/%s is left", o.GetKind(), o.GetNamespace(), o.GetName())
			}
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// testRights gives the pod of helm test the rights that the chart gives it: it may read the one webhook configuration, in which it
// finds the authority, and nothing else.
func testRights(t *testing.T, c *bed.Cluster, namespace, release string, values map[string]any) {
	t.Helper()
	files, err := renderAs(t, release, namespace, values)
	if err != nil {
		t.Fatal(err)
	}
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	api := c.Client()
	for _, document := range strings.Split(files["sidestream/templates/test.yaml"], "\n---\n") {
		object, _, err := strict.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		switch o := object.(type) {
		case *corev1.ServiceAccount:
			_, err = api.CoreV1().ServiceAccounts(namespace).Create(t.Context(), o, metav1.CreateOptions{})
			defer func() {
				_ = api.CoreV1().ServiceAccounts(namespace).Delete(context.WithoutCancel(t.Context()), o.Name, metav1.DeleteOptions{})
			}()
		case *rbacv1.ClusterRole:
			_, err = api.RbacV1().ClusterRoles().Create(t.Context(), o, metav1.CreateOptions{})
			defer func() {
				_ = api.RbacV1().ClusterRoles().Delete(context.WithoutCancel(t.Context()), o.Name, metav1.DeleteOptions{})
			}()
		case *rbacv1.ClusterRoleBinding:
			_, err = api.RbacV1().ClusterRoleBindings().Create(t.Context(), o, metav1.CreateOptions{})
			defer func() {
				_ = api.RbacV1().ClusterRoleBindings().Delete(context.WithoutCancel(t.Context()), o.Name, metav1.DeleteOptions{})
			}()
		case *corev1.Pod:
			_, err = api.CoreV1().Pods(namespace).Create(t.Context(), o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		default:
			t.Errorf("helm test has a %T", object)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	request, err := api.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), release+"-injector-test", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	account := rest.AnonymousClientConfig(c.Config())
	account.BearerToken = request.Status.Token
	tester, err := kubernetes.NewForConfig(account)
	if err != nil {
		t.Fatal(err)
	}
	webhooks := tester.AdmissionregistrationV1().MutatingWebhookConfigurations()
	deadline := time.Now().Add(20 * time.Second)
	for { // the API server's authorizer hears of new rights by and by
		h, err := webhooks.Get(t.Context(), "00-"+release+"-injector", metav1.GetOptions{})
		if err == nil {
			if len(h.Webhooks) != 1 || len(h.Webhooks[0].ClientConfig.CABundle) == 0 {
				t.Error("the test finds no authority")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if _, err := webhooks.List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the test may read all webhook configurations: %v", err)
	}
	if _, err := tester.CoreV1().Secrets(namespace).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the test may read Secrets: %v", err)
	}
}

// ready runs the injector as the Deployment would, until it says that it is ready.
func ready(t *testing.T, c *bed.Cluster, namespace, release string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "sidestream-injector")
	build := exec.Command("go", "build", "-o", binary, "./injector")
	build.Dir = ".." // another module
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d, err := c.Client().AppsV1().Deployments(namespace).Get(t.Context(), release+"-injector", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	request := &authenticationv1.TokenRequest{}
	request, err = c.Client().CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), d.Spec.Template.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	account := rest.AnonymousClientConfig(c.Config())
	account.BearerToken = request.Status.Token
	kubeconfig, err := c.KubeconfigFor(account, namespace)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = []string{"INJECTOR_KUBECONFIG=" + kubeconfig, "INJECTOR_LISTEN=127.0.0.1:0", "INJECTOR_ADMIN_LISTEN=127.0.0.1:0", "INJECTOR_SHUTDOWN_DELAY=0s"}
	for _, v := range d.Spec.Template.Spec.Containers[0].Env {
		if v.ValueFrom != nil {
			v.Value = map[string]string{"metadata.namespace": namespace}[v.ValueFrom.FieldRef.FieldPath]
		}
		cmd.Env = append(cmd.Env, v.Name+"="+v.Value)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log []string
	admin := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			log = append(log, lines.Text())
			var line struct{ Msg, Admin string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "running" {
				admin <- line.Admin
			}
		}
	}()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-done
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("%v\n%s", err, strings.Join(log, "\n"))
		}
		for _, line := range log {
			if strings.Contains(line, `"level":"WARN"`) {
				t.Error(line)
			}
		}
	}()
	var address string
	select {
	case address = <-admin:
	case <-done:
		t.Fatal("the injector ended")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		resp, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the injector is not ready: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	// It has looked for pods without a sidecar too.
	if _, err := c.Client().CoreV1().Events(corev1.NamespaceDefault).List(ctx, metav1.ListOptions{}); err != nil {
		t.Error(fmt.Errorf("list events: %w", err))
	}
}
