//go:build linux

package world

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
	"syscall"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	certSecret = "sidestream-injector-certs"
	portsMap   = "sidestream-host-ports"
)

// install has an injector run in a region, with the rights that the chart gives it, for pods of the world's namespace.
func (r *region) install() {
	r.Helper()
	ctx, client, name := r.Context(), r.Client(), "sidestream-"+r.namespace
	_, errSecret := client.CoreV1().Secrets(r.namespace).Create(ctx,
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: certSecret}}, metav1.CreateOptions{})
	_, errMap := client.CoreV1().ConfigMaps(r.namespace).Create(ctx,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: portsMap}}, metav1.CreateOptions{})
	account, errAccount := r.AddAccount(ctx, r.namespace, "injector",
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{certSecret}, Verbs: []string{"get", "update"}},
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{portsMap}, Verbs: []string{"get", "update"}})
	_, errRole := client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"get"}},
			{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}},
			{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create"}},
			{
				APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"mutatingwebhookconfigurations"},
				ResourceNames: []string{name}, Verbs: []string{"get", "patch"},
			},
		},
	}, metav1.CreateOptions{})
	_, errBinding := client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: r.namespace, Name: "injector"}},
	}, metav1.CreateOptions{})
	r.must(errors.Join(errSecret, errMap, errAccount, errRole, errBinding))
	hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := errors.Join(
			hooks.Delete(ctx, name, metav1.DeleteOptions{}),
			client.RbacV1().ClusterRoles().Delete(ctx, name, metav1.DeleteOptions{}),
			client.RbacV1().ClusterRoleBindings().Delete(ctx, name, metav1.DeleteOptions{})); err != nil {
			r.Error(err)
		}
	})
	kubeconfig, err := r.KubeconfigFor(account, r.namespace)
	r.must(err)

	hook := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name:         "pods.sidestream.dev",
			ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: new("https://127.0.0.1:1/mutate")}, // until it listens
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule: admissionregistrationv1.Rule{
					APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: new(admissionregistrationv1.NamespacedScope),
				},
			}},
			FailurePolicy: new(admissionregistrationv1.Fail), SideEffects: new(admissionregistrationv1.SideEffectClassNoneOnDryRun),
			ReinvocationPolicy: new(admissionregistrationv1.IfNeededReinvocationPolicy),
			TimeoutSeconds:     new(int32(10)), AdmissionReviewVersions: []string{"v1"},
			ObjectSelector:    &metav1.LabelSelector{MatchLabels: map[string]string{inject.Label: "true"}},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: r.namespace}},
		}},
	}
	_, err = hooks.Create(ctx, hook, metav1.CreateOptions{})
	r.must(err)
	webhook, admin := r.startInjector(name, kubeconfig)
	r.poll("the injector is ready", func(ctx context.Context) error {
		return wants(ctx, http.DefaultClient, "http://"+admin+"/readyz", http.StatusOK)
	})
	patch := fmt.Sprintf(`[{"op": "replace", "path": "/webhooks/0/clientConfig/url", "value": "https://%s/mutate"}]`, webhook)
	_, err = hooks.Patch(ctx, name, jsonPatch, []byte(patch), metav1.PatchOptions{})
	r.must(err)
}

// startInjector runs the program until the test ends, and says where it listens.
func (r *region) startInjector(name, kubeconfig string) (webhook, admin string) {
	r.Helper()
	cmd := exec.Command(filepath.Join(binaries, "sidestream-injector"))
	cmd.Env = append(os.Environ(),
		"INJECTOR_LISTEN=127.0.0.1:0", "INJECTOR_ADMIN_LISTEN=127.0.0.1:0", "INJECTOR_NAMESPACE="+r.namespace,
		"INJECTOR_KUBECONFIG="+kubeconfig, "INJECTOR_IMAGE="+image, "INJECTOR_WEBHOOK="+name, "INJECTOR_CERT_HOSTS=127.0.0.1",
		"INJECTOR_CERT_SETTLE=1s", "INJECTOR_SHUTDOWN_DELAY=1ms",
		"SIDESTREAM_CLUSTER="+r.Name, "SIDESTREAM_PEER_SERVICE="+peerService)
	log := r.log("injector")
	stderr, err := cmd.StderrPipe()
	r.must(err)
	r.must(cmd.Start())
	type addresses struct{ Msg, Webhook, Admin string }
	running, done := make(chan addresses, 1), make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(log, lines.Text())
			var line addresses
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "running" {
				running <- line
			}
		}
		_ = cmd.Wait()
	}()
	r.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-done
	})
	select {
	case at := <-running:
		return at.Webhook, at.Admin
	case <-done:
		r.Fatal("the injector ended")
	}
	return "", ""
}
