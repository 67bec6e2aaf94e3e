package bed

import (
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func TestCredentials(t *testing.T) {
	c := shared.Bed(t).Cluster("east")
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	admin, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CoreV1().Nodes().Get(t.Context(), "east-node", metav1.GetOptions{}); err != nil {
		t.Errorf("by the kubeconfig: %v", err)
	}
	if config, err = c.ConfigFor("nobody", "nogroup"); err != nil {
		t.Fatal(err)
	}
	nobody, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	_, err = nobody.CoreV1().Nodes().Get(t.Context(), "east-node", metav1.GetOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `"nobody"`) {
		t.Errorf("a user without rights hears %v", err)
	}
}

// A service account may do what its role says, and nothing else, by its configuration and by a kubeconfig file.
func TestAccounts(t *testing.T) {
	b := shared.Bed(t)
	c, namespace := b.Cluster("east"), b.Namespace(t)
	config, err := c.AddAccount(t.Context(), namespace, "reader", rbacv1.PolicyRule{
		APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list"},
	})
	if err != nil {
		t.Fatal(err)
	}
	name, err := c.KubeconfigFor(config, namespace)
	if err != nil {
		t.Fatal(err)
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: name}, nil)
	if got, _, err := loader.Namespace(); err != nil || got != namespace {
		t.Errorf("the file's namespace is %q, %v; want %q", got, err, namespace)
	}
	loaded, err := loader.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	reader, err := kubernetes.NewForConfig(loaded)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.DiscoveryV1().EndpointSlices(namespace).List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("what the role allows: %v", err)
	}
	who := "system:serviceaccount:" + namespace + ":reader"
	_, err = reader.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), who) {
		t.Errorf("what it does not allow: %v", err)
	}
	_, err = reader.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("in another namespace: %v", err)
	}
	if _, err := c.AddAccount(t.Context(), namespace, "reader"); err == nil || !strings.Contains(err.Error(), namespace+"/reader to east") {
		t.Errorf("again: %v", err)
	}
}
