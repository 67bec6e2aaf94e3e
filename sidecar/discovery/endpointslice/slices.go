package endpointslice

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/sidestream-dev/sidestream/sidecar/discovery"
)

// What slices say of a Service that spans clusters.
const (
	// serviceLabel is Kubernetes' own: the slices of local Services, and those that Cilium and Karmada write beside them.
	serviceLabel = discoveryv1.LabelServiceName
	// multiclusterLabel is of the Multi-Cluster Services API (KEP-1645). Where that is at work, serviceLabel names a Service
	// that was made up, or is missing (Submariner).
	multiclusterLabel = "multicluster.kubernetes.io/service-name"
	clusterLabel      = "multicluster.kubernetes.io/source-cluster"
	karmadaCluster    = "endpointslice.karmada.io/provision-cluster" // an annotation
)

// What is believed at most. The API allows 1000 endpoints a slice, with 100 addresses each.
const (
	maxSlices  = 1000
	maxCluster = 128 // letters of a cluster's name
)

// Why parts of slices are left out.
const (
	leftFQDN      = "host_names"
	leftAddress   = "bad_address"
	leftPort      = "bad_port"
	leftUnnamed   = "no_such_port"
	leftTooMany   = "too_many"
	leftForeigner = "other_service"
)

// wanted says which slices count, and what of them.
type wanted struct {
	namespace, service, port string
}

// left counts what was left out, by reason: slices, or endpoints' addresses, or ports.
type left map[string]int

// found is what one slice says.
type found struct {
	peers []discovery.Peer
	left  left
}

// peersOf is all that slices say of the peers, each address once, and what was left out. The order of the slices makes no
// difference.
func peersOf(w wanted, all ...*discoveryv1.EndpointSlice) ([]discovery.Peer, left) {
	said := make(map[string]found, len(all))
	for _, s := range all {
		said[s.Namespace+"/"+s.Name] = w.read(s)
	}
	return unite(said)
}

// unite puts together what slices say, by their names: of two that tell different clusters for one address the first in
// the order of names is believed.
func unite(said map[string]found) ([]discovery.Peer, left) {
	missing := left{}
	names := slices.Sorted(maps.Keys(said))
	if n := len(names) - maxSlices; n > 0 {
		missing[leftTooMany] += n
		names = names[:maxSlices]
	}
	sets := make([][]discovery.Peer, 0, len(names))
	for _, name := range names {
		sets = append(sets, said[name].peers)
		for reason, n := range said[name].left {
			missing[reason] += n
		}
	}
	peers := discovery.Unite(sets...)
	if n := len(peers) - discovery.MaxPeers; n > 0 {
		missing[leftTooMany] += n
		peers = slices.Clip(peers[:discovery.MaxPeers])
	}
	return peers, missing
}

// read is what one slice says of the peers.
func (w wanted) read(s *discoveryv1.EndpointSlice) found {
	f := found{left: left{}}
	if s.Namespace != w.namespace || s.Labels[serviceLabel] != w.service && s.Labels[multiclusterLabel] != w.service {
		f.left[leftForeigner]++
		return f
	}
	if len(s.Endpoints) == 0 {
		return f // of a Service without pods Kubernetes writes one without ports
	}
	if s.AddressType != discoveryv1.AddressTypeIPv4 && s.AddressType != discoveryv1.AddressTypeIPv6 {
		f.left[leftFQDN]++
		return f
	}
	ports := w.ports(s, f.left)
	if len(ports) == 0 {
		return f
	}
	cluster := cmp.Or(s.Labels[clusterLabel], s.Annotations[karmadaCluster])
	if len(cluster) > maxCluster {
		cluster = ""
	}
	for _, e := range s.Endpoints {
		for _, address := range e.Addresses {
			ip, err := netip.ParseAddr(address)
			if err != nil || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
				f.left[leftAddress]++
				continue
			}
			for _, port := range ports {
				if len(f.peers) == discovery.MaxPeers {
					f.left[leftTooMany]++
					continue
				}
				f.peers = append(f.peers, discovery.Peer{
					Addr: netip.AddrPortFrom(ip.Unmap(), port), Cluster: cluster, Ready: ready(e.Conditions),
				})
			}
		}
	}
	return f
}

// ports are the numbers of the wanted port: more than one where a slice names it twice.
func (w wanted) ports(s *discoveryv1.EndpointSlice, missing left) []uint16 {
	var ports []uint16
	named := false
	for _, p := range s.Ports {
		if p.Name == nil || *p.Name != w.port {
			continue
		}
		named = true
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			missing[leftPort]++
			continue
		}
		if port := uint16(*p.Port); !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	if !named {
		missing[leftUnnamed]++
	}
	return ports
}

// ready is what the API's documentation says of conditions that are not set: ready, and not terminating. A Service that
// publishes endpoints which are not ready calls those that terminate ready too.
func ready(c discoveryv1.EndpointConditions) bool {
	return (c.Ready == nil || *c.Ready) && (c.Terminating == nil || !*c.Terminating)
}
