package inject

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidestream-dev/sidestream/e2e/bed"
	"github.com/sidestream-dev/sidestream/injector/inject"
)

// The command check sees what is there, on a real API server with a real webhook, and what is missing.
func TestCheck(t *testing.T) {
	c := newCluster(t, admissionregistrationv1.Ignore)
	sidestream := filepath.Join(t.TempDir(), "sidestream")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", sidestream, "../../sidecar").CombinedOutput(); err != nil {
		t.Fatalf("build the program under test: %v\n%s", err, out)
	}
	// run returns statuses by the checks' names, and the exit code.
	run := func() (map[string]string, int) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), sidestream, "check", "-kubeconfig", c.Kubeconfig(), "-n", c.namespace, "-o", "json")
		out, err := cmd.Output()
		exit, failed := errors.AsType[*exec.ExitError](err)
		code := 0
		if failed {
			code = exit.ExitCode()
		}
		var results []struct{ ID, Status, Message string }
		if err := json.Unmarshal(out, &results); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		statuses := map[string]string{}
		for _, r := range results {
			t.Logf("%-4s %-20s %s", r.Status, r.ID, r.Message)
			statuses[r.ID] = r.Status
		}
		return statuses, code
	}
	want := func(got map[string]string, want map[string]string) {
		t.Helper()
		for id, status := range want {
			if got[id] != status {
				t.Errorf("%s is %q, not %q", id, got[id], status)
			}
		}
	}

	c.deploy("sfu", nil)
	got, code := run()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	want(got, map[string]string{
		"api-version": "ok", "rights": "ok", "clocks": "ok", "webhook": "ok", "webhook-namespace": "ok", "webhook-authority": "ok",
		"webhook-certificate": "skip", "injection": "ok", "peer-service": "fail", "slice-sync": "skip", "slice-rights": "fail",
		"peer-secret": "fail", "pods": "ok", "services": "warn", "prestop": "ok",
	})

	ctx, client := t.Context(), c.Client()
	service := bed.GlobalService(c.namespace, "sidestream-peers", corev1.ServicePort{Name: inject.PeerPortName, Port: 18443})
	service.Spec.Selector, service.Spec.PublishNotReadyAddresses = map[string]string{inject.InjectedLabel: "true"}, true
	meta := metav1.ObjectMeta{Name: "sidestream"}
	_, errService := client.CoreV1().Services(c.namespace).Create(ctx, service, metav1.CreateOptions{})
	_, errSecret := client.CoreV1().Secrets(c.namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "sidestream-peer-tls"}, Data: map[string][]byte{"key": []byte("k")},
	}, metav1.CreateOptions{})
	_, errRole := client.RbacV1().Roles(c.namespace).Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{discoveryv1.GroupName}, Resources: []string{"endpointslices"}, Verbs: []string{"get", "list", "watch"},
	}}}, metav1.CreateOptions{})
	_, errBinding := client.RbacV1().RoleBindings(c.namespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "sidestream"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:serviceaccounts:" + c.namespace}},
	}, metav1.CreateOptions{})
	if err := errors.Join(errService, errSecret, errRole, errBinding); err != nil {
		t.Fatal(err)
	}
	for _, r := range c.replicas {
		r.stop() // nobody answers the API server
	}
	if _, err := client.CoreV1().Pods(c.namespace).Create(ctx, c.pod("missed", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	got, _ = run()
	want(got, map[string]string{
		"injection": "fail", "peer-service": "ok", "peer-service-global": "ok", "slice-rights": "ok", "peer-secret": "ok", "pods": "fail",
	})

	out, err := exec.CommandContext(ctx, sidestream, "check", "-kubeconfig", c.Kubeconfig(), "-n", c.namespace, "-uninstall", "-o", "json").Output()
	var left []struct{ Kind, Name, Command string }
	if exit, failed := errors.AsType[*exec.ExitError](err); !failed || exit.ExitCode() != 1 || json.Unmarshal(out, &left) != nil || len(left) != 1 ||
		left[0].Command != "kubectl -n "+c.namespace+" rollout restart deployment/sfu" {
		t.Errorf("%v\n%s", err, out)
	}
}
