package check

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	globalService   = "service.cilium.io/global"
	globalSync      = "service.cilium.io/global-sync-endpoint-slices"
	sharedService   = "service.cilium.io/shared"
	globalNamespace = "clustermesh.cilium.io/global"
	sourceCluster   = "multicluster.kubernetes.io/source-cluster"
	exportedName    = "multicluster.kubernetes.io/service-name"

	// datagramsLost is a sidecar's condition of a peer, which has a check of its own.
	datagramsLost = "datagrams-lost"
)

func checkPeerService(_ context.Context, v *view) finding {
	if v.peers != "" && v.servErr == nil && !slices.ContainsFunc(v.services, func(s corev1.Service) bool { return s.Name == v.peers }) {
		return fail("namespace %s has no Service %s", v.Namespace, v.peers)
	}
	service, f := v.peerService()
	if f != nil {
		return *f
	}
	var wrong []string
	if service.Spec.ClusterIP != corev1.ClusterIPNone {
		wrong = append(wrong, "it is not headless: set clusterIP: None")
	}
	if len(service.Spec.Selector) != 1 || service.Spec.Selector[inject.InjectedLabel] != "true" {
		wrong = append(wrong, fmt.Sprintf("it selects other pods than the injected ones: set selector: {%s: \"true\"}", inject.InjectedLabel))
	}
	if !service.Spec.PublishNotReadyAddresses {
		wrong = append(wrong, "peers do not meet while media servers are not ready: set publishNotReadyAddresses: true")
	}
	if !slices.ContainsFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == inject.PeerPortName }) {
		wrong = append(wrong, "no port of it has the name "+inject.PeerPortName)
	}
	return unless(wrong, fail("Service %s is not as the sidecars need it", v.peers), ok("Service %s is headless and selects the injected pods", v.peers))
}

// noCilium says why nothing can be told of Cilium's Cluster Mesh.
func (v *view) noCilium() *finding {
	if v.cilium != nil {
		return nil
	}
	f := unseen("Cilium's configuration", v.ciliErr)
	return &f
}

func checkGlobal(_ context.Context, v *view) finding {
	service, f := v.peerService()
	if f != nil {
		return *f
	}
	annotation := service.Annotations[globalService]
	if f := v.noCilium(); f != nil && annotation == "" {
		return *f
	}
	switch {
	case annotation != "true":
		return fail("Service %s is of this cluster alone: set the annotation %s: \"true\"", service.Name, globalService)
	case service.Annotations[sharedService] == "false":
		return fail("Service %s is not shown to other clusters: remove the annotation %s", service.Name, sharedService)
	case service.Annotations[globalSync] == "false":
		return fail("slices of Service %s are not synchronised: remove the annotation %s", service.Name, globalSync)
	}
	return ok("Service %s is global", service.Name)
}

func checkSync(_ context.Context, v *view) finding {
	if f := v.noCilium(); f != nil {
		return *f
	}
	if v.cilium["clustermesh-enable-endpoint-sync"] != "true" {
		return fail("Cilium does not write slices of other clusters' endpoints")
	}
	return ok("Cilium writes slices of other clusters' endpoints")
}

func checkNamespace(_ context.Context, v *view) finding {
	if f := v.noCilium(); f != nil {
		return *f
	}
	if v.spaceErr != nil {
		return unseen("namespace "+v.Namespace, v.spaceErr)
	}
	wanted := v.cilium["clustermesh-default-global-namespace"] == "false"
	switch said := v.space.Annotations[globalNamespace]; {
	case said == "true":
		return ok("namespace %s is global", v.Namespace)
	case said == "false":
		return fail("namespace %s is of this cluster alone, by its annotation %s", v.Namespace, globalNamespace)
	case wanted:
		return fail("namespace %s is of this cluster alone, as Cilium is told to take namespaces", v.Namespace)
	}
	return ok("all namespaces are global")
}

// checkSlices looks whether the endpoints of all clusters are there.
func checkSlices(ctx context.Context, v *view) finding {
	if v.peers == "" {
		return skip("the sidecars find their peers otherwise than by a Service")
	}
	count := map[string]int{}
	for _, label := range []string{discoveryv1.LabelServiceName, exportedName} {
		list, err := v.cluster.Slices(ctx, v.Namespace, label+"="+v.peers)
		if err != nil {
			return unseen("slices of Service "+v.peers, err)
		}
		for _, s := range list {
			if label == exportedName && s.Labels[discoveryv1.LabelServiceName] == v.peers {
				continue // seen already
			}
			count[s.Labels[sourceCluster]] += len(s.Endpoints)
		}
	}
	var wrong, seen, missing []string
	if count[""] == 0 && len(v.injected) > 0 {
		wrong = append(wrong, "no slice has pods of this cluster")
	}
	for cluster, n := range count {
		if cluster != "" {
			seen = append(seen, fmt.Sprintf("%s %d", cluster, n))
		}
	}
	own := v.ownCluster()
	for _, cluster := range v.Clusters {
		if cluster != own && count[cluster] == 0 {
			missing = append(missing, cluster)
		}
	}
	if own == "" && len(missing) == 1 {
		missing = nil // it is this one, or cannot be told from it
	}
	for _, cluster := range missing {
		wrong = append(wrong, fmt.Sprintf("no slice has pods of cluster %s: is the Service %s there, with ready pods, and the mesh connected?",
			cluster, v.peers))
	}
	slices.Sort(seen)
	others := strings.Join(seen, ", ")
	if others == "" {
		others = "none"
	}
	good := ok("endpoints: %d of this cluster; of others: %s", count[""], others)
	if len(seen) == 0 && len(v.Clusters) == 0 {
		good.status = Warn
		good.hint = "nothing of other clusters is here; with -clusters NAME,NAME this check says which are missing"
	}
	return unless(wrong, fail("endpoints: %d of this cluster; of others: %s", count[""], others), good)
}

// ownCluster is this cluster's name as its sidecars have it; "": nobody says.
func (v *view) ownCluster() string {
	for _, s := range v.injected {
		if name := s.env("SIDESTREAM_CLUSTER"); name != "" {
			return name
		}
	}
	return ""
}

// checkAccounts looks whether the pods may read the slices.
func checkAccounts(ctx context.Context, v *view) finding {
	if f := v.noPods(); f != nil {
		return *f
	}
	if v.peers == "" {
		return skip("the sidecars find their peers otherwise than by a Service")
	}
	var accounts []string
	for _, s := range v.injected {
		name := s.pod.Spec.ServiceAccountName
		if name == "" {
			name = "default"
		}
		accounts = append(accounts, name)
	}
	var wrong []string
	accounts = unique(accounts)
	for _, name := range accounts {
		var missing []string
		for _, verb := range []string{"get", "list", "watch"} {
			allowed, err := v.cluster.Allowed(ctx, accountPrefix+v.Namespace+":"+name, authorizationv1.ResourceAttributes{
				Group: discoveryv1.GroupName, Resource: "endpointslices", Verb: verb, Namespace: v.Namespace,
			})
			if err != nil {
				return unseen("rights of service account "+name, err)
			}
			if !allowed {
				missing = append(missing, verb)
			}
		}
		if len(missing) > 0 {
			wrong = append(wrong, fmt.Sprintf("service account %s may not %s endpointslices", name, strings.Join(missing, ", ")))
		}
	}
	return unless(wrong, fail("sidecars cannot find their peers"), ok("service account %s may read slices", strings.Join(accounts, ", ")))
}

// checkPeers asks the sidecars whom they have reached by gRPC.
func checkPeers(_ context.Context, v *view) finding {
	all, f := v.answering()
	if f != nil {
		return *f
	}
	var wrong []string
	connected, known := 0, 0
	for _, s := range all {
		reached := map[string]bool{}
		for _, p := range s.status.Peers {
			known++
			if p.Connected {
				connected++
				reached[p.Cluster] = true
			}
			conditions := slices.DeleteFunc(slices.Clone(p.Conditions), func(c string) bool { return c == datagramsLost }) // see checkDatagrams
			if p.Connected && len(conditions) == 0 {
				continue
			}
			who := strings.TrimSpace(p.Cluster + " " + p.Address)
			why := strings.Join(conditions, ", ")
			if p.Error != "" {
				why = strings.TrimPrefix(why+": "+p.Error, ": ")
			}
			if why == "" {
				why = "not connected"
			}
			wrong = append(wrong, fmt.Sprintf("%s, to %s: %s", s.name(), who, why))
		}
		for _, d := range s.status.Discovery {
			if d.Error != "" {
				wrong = append(wrong, fmt.Sprintf("%s, discovery by %s: %s", s.name(), d.Source, d.Error))
			}
		}
		for _, cluster := range v.Clusters {
			if cluster != s.status.Cluster && !reached[cluster] {
				wrong = append(wrong, fmt.Sprintf("%s is connected to no peer of cluster %s", s.name(), cluster))
			}
		}
	}
	if known == 0 && len(wrong) == 0 {
		return warn("%d sidecars know no peers", len(all))
	}
	return unless(wrong, fail("%d of %d links to peers are up", connected, known), ok("%d of %d links to peers are up", connected, known))
}

// checkDatagrams asks the sidecars whether packets as large as those of media pass between them.
func checkDatagrams(_ context.Context, v *view) finding {
	all, f := v.answering()
	if f != nil {
		return *f
	}
	var wrong []string
	connected := 0
	for _, s := range all {
		for _, p := range s.status.Peers {
			if !p.Connected {
				continue
			}
			connected++
			if slices.Contains(p.Conditions, datagramsLost) {
				wrong = append(wrong, fmt.Sprintf("%s, to %s: packets of 1,300 bytes by UDP are not answered", s.name(), strings.TrimSpace(p.Cluster+" "+p.Address)))
			}
		}
	}
	if connected == 0 {
		return skip("no sidecar is connected to a peer")
	}
	return unless(wrong, fail("UDP does not pass on %d of %d links", len(wrong), connected), ok("nothing is known against UDP on %d links", connected))
}

// checkRelays looks whether media comes over from other nodes.
func checkRelays(_ context.Context, v *view) finding {
	all, f := v.answering()
	if f != nil {
		return *f
	}
	live, n := 0, 0
	var wrong []string
	for _, s := range all {
		for _, r := range s.status.Relays {
			n++
			if r.State == "live" {
				live++
			} else if r.LastError != "" {
				wrong = append(wrong, fmt.Sprintf("%s, stream %s: %s", s.name(), r.Stream, r.LastError))
			}
		}
	}
	if n == 0 {
		return skip("no stream is wanted from another node now, which would show that media passes")
	}
	return unless(wrong, fail("%d of %d streams are carried", live, n), ok("%d of %d streams are carried", live, n))
}
