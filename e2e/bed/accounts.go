package bed

import (
	"context"
	"fmt"
	"os"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// ConfigFor is a configuration of any user and groups: nobody knows them until RBAC does.
func (c *Cluster) ConfigFor(user string, groups ...string) (*rest.Config, error) {
	p, err := c.authority.user(user, groups...)
	if err != nil {
		return nil, err
	}
	config := rest.AnonymousClientConfig(c.config)
	config.CertData, config.KeyData = p.certificate, p.key
	return config, nil
}

// AddAccount adds a service account to a namespace, with a Role of its name that allows what the rules say and nothing
// else, and returns a configuration with a token of it, as its pods have one. The token lives for a day.
func (c *Cluster) AddAccount(ctx context.Context, namespace, name string, rules ...rbacv1.PolicyRule) (*rest.Config, error) {
	config, err := c.addAccount(ctx, metav1.ObjectMeta{Namespace: namespace, Name: name}, rules)
	if err != nil {
		return nil, fmt.Errorf("add service account %s/%s to %s: %w", namespace, name, c.Name, err)
	}
	return config, nil
}

func (c *Cluster) addAccount(ctx context.Context, meta metav1.ObjectMeta, rules []rbacv1.PolicyRule) (*rest.Config, error) {
	accounts, rbac := c.client.CoreV1().ServiceAccounts(meta.Namespace), c.client.RbacV1()
	if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta}, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	role := &rbacv1.Role{ObjectMeta: meta, Rules: rules}
	if _, err := rbac.Roles(meta.Namespace).Create(ctx, role, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: meta.Namespace, Name: meta.Name}},
	}
	if _, err := rbac.RoleBindings(meta.Namespace).Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	day := int64(24 * 60 * 60)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &day}}
	request, err := accounts.CreateToken(ctx, meta.Name, request, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = request.Status.Token
	return config, nil
}

// Kubeconfig is the name of an administrator's kubeconfig file.
func (c *Cluster) Kubeconfig() string { return c.file("kubeconfig") }

// KubeconfigFor writes what a configuration of this cluster ([Cluster.ConfigFor], [Cluster.AddAccount]) knows to a
// kubeconfig file of its own, and returns its name. A client without a namespace takes the one given, or default where it
// is "". The file goes with the bed.
func (c *Cluster) KubeconfigFor(config *rest.Config, namespace string) (string, error) {
	file, err := os.CreateTemp(c.dir, "kubeconfig-")
	if err != nil {
		return "", fmt.Errorf("write kubeconfig for %s: %w", c.Name, err)
	}
	_ = file.Close() // nothing was written
	if err := c.writeKubeconfig(file.Name(), config, namespace); err != nil {
		return "", fmt.Errorf("write kubeconfig for %s: %w", c.Name, err)
	}
	return file.Name(), nil
}

func (c *Cluster) writeKubeconfig(file string, config *rest.Config, namespace string) error {
	const user = "user"
	k := api.NewConfig()
	k.Clusters[c.Name] = &api.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	k.AuthInfos[user] = &api.AuthInfo{
		ClientCertificateData: config.CertData, ClientKeyData: config.KeyData, Token: config.BearerToken,
	}
	k.Contexts[c.Name] = &api.Context{Cluster: c.Name, AuthInfo: user, Namespace: namespace}
	k.CurrentContext = c.Name
	return clientcmd.WriteToFile(*k, file)
}
