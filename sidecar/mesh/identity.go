package mesh

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"

	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// errForeign says that a peer may be what it says it is somewhere, but not here.
var errForeign = errors.New("not a peer of this node")

// identity is where a node belongs. In a certificate it is the DNS name NAMESPACE.CLUSTER.sidestream-peer; the cluster may
// hold dots. A certificate without such a name proves that its owner belongs to the mesh, and no more.
type identity struct{ namespace, cluster string }

func (i identity) String() string {
	if i.namespace == "" {
		return "cluster " + i.cluster + " without a namespace"
	}
	return "namespace " + i.namespace + " of cluster " + i.cluster
}

// dnsName is how a certificate names it.
func (i identity) dnsName() string { return i.namespace + "." + i.cluster + "." + PeerName }

// identitiesOf are what a certificate allows its owner to be; none where it does not say. A name that begins like an
// identity and is none allows nothing: it was meant to narrow things down.
func identitiesOf(c *x509.Certificate) []identity {
	var all []identity
	for _, name := range c.DNSNames {
		end := len(name) - len("."+PeerName)
		if end < 0 || !strings.EqualFold(name[end:], "."+PeerName) {
			continue
		}
		namespace, cluster, _ := strings.Cut(name[:end], ".")
		all = append(all, identity{namespace, cluster})
	}
	return all
}

// allowedBy says why a certificate does not let its owner be this.
func (i identity) allowedBy(c *x509.Certificate) error {
	all := identitiesOf(c)
	if len(all) == 0 {
		return nil
	}
	var names []string
	for _, a := range all {
		if i.namespace != "" && strings.EqualFold(a.namespace, i.namespace) && strings.EqualFold(a.cluster, i.cluster) {
			return nil
		}
		if len(names) < 4 {
			names = append(names, a.dnsName())
		}
	}
	text := fmt.Sprintf("the certificate is for %s, and the node says that it is of %s", strings.Join(names, ", "), i)
	if i.namespace == "" {
		return errors.New(text + ": set its SIDESTREAM_NAMESPACE")
	}
	return fmt.Errorf("%s: give it a certificate with the DNS name %s", text, i.dnsName())
}

// admit says why a node that introduces itself does not belong to this mesh, by its certificate or by its own word.
func (m *Mesh) admit(ctx context.Context, h *pb.Hello) error {
	theirs := identity{h.GetNamespace(), h.GetCluster()}
	if remote, ok := grpcpeer.FromContext(ctx); ok {
		if info, ok := remote.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
			if err := theirs.allowedBy(info.State.PeerCertificates[0]); err != nil {
				return fmt.Errorf("%w: %w", errForeign, err)
			}
		}
	}
	own := m.o.Namespace
	if own != "" && theirs.namespace != "" && !strings.EqualFold(own, theirs.namespace) {
		return fmt.Errorf("%w: one is of namespace %s and the other of %s: a mesh is of one namespace, whatever its clusters",
			errForeign, own, theirs.namespace)
	}
	return nil
}

// strange says why a certificate cannot be that of a peer of this node, whoever its owner will say to be: all that is known
// where there is no hello.
func (s *Security) strange(c *x509.Certificate) error {
	all := identitiesOf(c)
	for _, a := range all {
		if s.self.namespace == "" || strings.EqualFold(a.namespace, s.self.namespace) {
			return nil
		}
	}
	if len(all) == 0 {
		return nil
	}
	return fmt.Errorf("%w: its certificate is for %s, and this node is of namespace %s", errForeign, all[0].dnsName(), s.self.namespace)
}
