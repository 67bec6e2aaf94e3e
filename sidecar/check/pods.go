package check

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

func checkInjected(_ context.Context, v *view) finding {
	if v.podsErr != nil {
		return unseen("pods of namespace "+v.Namespace, v.podsErr)
	}
	var missed []string
	for i := range v.pods {
		if p := &v.pods[i]; !over(p) && inject.Missed(p) {
			missed = append(missed, p.Namespace+"/"+p.Name)
		}
	}
	if len(missed) == 0 && len(v.injected) == 0 {
		f := warn("no pod of namespace %s asks for a sidecar", v.Namespace)
		f.hint = "put the label " + inject.Label + ": \"true\" and the annotation " + inject.Domain + "adapter on the pod templates of the media servers"
		return f
	}
	return unless(missed, fail("%d pods ask for a sidecar and have none", len(missed)), ok("all %d pods that ask for a sidecar have one", len(v.injected)))
}

func checkReady(_ context.Context, v *view) finding {
	if f := v.noPods(); f != nil {
		return *f
	}
	var wrong []string
	for _, s := range v.injected {
		all := slices.Concat(s.pod.Status.InitContainerStatuses, s.pod.Status.ContainerStatuses)
		i := slices.IndexFunc(all, func(c corev1.ContainerStatus) bool { return c.Name == inject.ContainerName })
		switch {
		case i < 0:
			wrong = append(wrong, s.name()+" has not started it")
		case !all[i].Ready:
			why := "is not ready"
			if w := all[i].State.Waiting; w != nil {
				why = "waits: " + w.Reason
			}
			wrong = append(wrong, fmt.Sprintf("%s %s, after %d restarts", s.name(), why, all[i].RestartCount))
		}
	}
	return unless(wrong, fail("%d of %d sidecars are not ready", len(wrong), len(v.injected)), ok("%d sidecars are ready", len(v.injected)))
}

func checkVersions(_ context.Context, v *view) finding {
	if f := v.noPods(); f != nil {
		return *f
	}
	count := map[string]int{}
	for _, s := range v.injected {
		count["image "+s.spec.Image]++
		if s.readable && s.status.Version != "" {
			count["version "+s.status.Version]++
		}
		for _, p := range s.status.Peers {
			if p.Connected && p.Version != "" {
				count["version "+p.Version]++
			}
		}
	}
	var kinds []string
	images, versions := 0, 0
	for _, what := range slices.Sorted(maps.Keys(count)) {
		kinds = append(kinds, what)
		if strings.HasPrefix(what, "image ") {
			images++
		} else {
			versions++
		}
	}
	if images > 1 || versions > 1 {
		f := warn("sidecars are not alike")
		f.details = kinds
		return f
	}
	return ok("all sidecars are alike: %s", strings.Join(kinds, ", "))
}

// checkServer asks whether gateways reach their servers by WHIP and WHEP, which is what their readiness means.
func checkServer(_ context.Context, v *view) finding {
	all, f := v.answering()
	if f != nil {
		return *f
	}
	var wrong []string
	for _, s := range all {
		if s.ready.Status != http.StatusOK {
			wrong = append(wrong, fmt.Sprintf("%s: %.300s", s.name(), strings.TrimSpace(string(s.ready.Body))))
		}
	}
	n := len(all)
	for _, s := range v.injected {
		if s.err != nil { // others are reached in the same way
			n++
			wrong = append(wrong, fmt.Sprintf("%s: its sidecar does not answer: %v", s.name(), s.err))
		}
	}
	return unless(wrong, fail("%d of %d media servers do not answer WHIP and WHEP", len(wrong), n),
		ok("%d media servers answer WHIP and WHEP", len(all)))
}

func checkPreStop(_ context.Context, v *view) finding {
	if f := v.noPods(); f != nil {
		return *f
	}
	var own []string
	for _, s := range v.injected {
		server := s.server()
		if server == nil || server.Lifecycle == nil || server.Lifecycle.PreStop == nil {
			continue
		}
		if get := server.Lifecycle.PreStop.HTTPGet; get == nil || get.Path != "/drain" || get.Port != intstr.FromInt32(s.done.Admin) {
			own = append(own, fmt.Sprintf("container %s of %s; it would ask http://localhost:%d/drain", server.Name, s.name(), s.done.Admin))
		}
	}
	return unless(own, warn("%d media servers have a preStop hook of their own, and do not wait until their streams are handed over", len(own)),
		ok("media servers wait at their end until their streams are handed over"))
}

// selects says that a Service, by its selector, has the sidecar's pod.
func selects(service *corev1.Service, s *sidecar) bool {
	return service.Namespace == s.pod.Namespace && len(service.Spec.Selector) > 0 &&
		labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(s.pod.Labels))
}

func checkHeadless(_ context.Context, v *view) finding {
	if f := v.noPods(); f != nil {
		return *f
	}
	if v.servErr != nil {
		return unseen("Services of namespace "+v.Namespace, v.servErr)
	}
	var found []string
	for i := range v.services {
		service := &v.services[i]
		if service.Spec.ClusterIP != corev1.ClusterIPNone || service.Name == v.peers {
			continue
		}
		if n := slices.IndexFunc(v.injected, func(s *sidecar) bool { return selects(service, s) }); n >= 0 {
			found = append(found, fmt.Sprintf("Service %s: the gateway is at port %d", service.Name, v.injected[n].done.Gateway))
		}
	}
	return unless(found, warn("headless Services give out the pods' own addresses: who takes the media server's port there goes past the gateway"),
		ok("no headless Service goes past the gateway"))
}

// httpPort is where a pod's media server speaks HTTP; 0: that is not to be told.
func (s *sidecar) httpPort() int32 {
	if server := s.server(); server != nil {
		for _, p := range server.Ports {
			if p.Name == "sidestream-sfu" {
				return p.ContainerPort
			}
		}
	}
	if u, err := url.Parse(s.env("SIDESTREAM_ADAPTER_URL")); err == nil {
		if n, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
			return int32(n)
		}
	}
	return inject.UsualPort(s.env("SIDESTREAM_ADAPTER_NAME"))
}

// checkCapture finds Services that lead to the media server itself.
func checkCapture(_ context.Context, v *view) finding {
	if f := v.noPods(); f != nil {
		return *f
	}
	if v.servErr != nil {
		return unseen("Services of namespace "+v.Namespace, v.servErr)
	}
	var found []string
	reached := 0
	for i := range v.services {
		service := &v.services[i]
		if service.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		for _, p := range service.Spec.Ports {
			if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
				continue
			}
			for _, s := range v.injected {
				if !selects(service, s) {
					continue
				}
				switch to := s.resolve(p); {
				case to == s.done.Gateway:
					reached++
				case to != 0 && to == s.httpPort():
					want := strconv.Itoa(int(s.done.Gateway))
					if name := s.gatewayName(); name != "" {
						want = name
					}
					found = append(found, fmt.Sprintf("Service %s, port %d: set targetPort: %s", service.Name, p.Port, want))
				}
			}
		}
	}
	if found = unique(found); len(found) == 0 && reached == 0 {
		f := warn("no Service leads to a gateway: viewers see the streams of their own pod, and those that are pinned there")
		f.hint = "add a Service that selects the pods, with the name of the media server's port as its targetPort"
		return f
	}
	return unless(found, warn("Services lead past the gateway to the media server: no stream is fetched for their viewers"),
		ok("Services lead to the gateways"))
}

// gatewayName is the name of the gateway's port, where it has one.
func (s *sidecar) gatewayName() string {
	for _, p := range s.spec.Ports {
		if p.ContainerPort == s.done.Gateway {
			return p.Name
		}
	}
	return ""
}

// resolve is the port of the pod to which a Service's port leads; 0: to none.
func (s *sidecar) resolve(p corev1.ServicePort) int32 {
	switch {
	case p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal == 0:
		return p.Port
	case p.TargetPort.Type == intstr.Int:
		return p.TargetPort.IntVal
	}
	for _, c := range slices.Concat(s.pod.Spec.Containers, s.pod.Spec.InitContainers) {
		for _, declared := range c.Ports {
			if declared.Name == p.TargetPort.StrVal {
				return declared.ContainerPort
			}
		}
	}
	return 0
}

// checkPolicies finds policies whose port names lead nowhere: they are looked up in ordinary containers alone.
func checkPolicies(ctx context.Context, v *view) finding {
	if f := v.noPods(); f != nil {
		return *f
	}
	policies, err := v.cluster.Policies(ctx, v.Namespace)
	if err != nil {
		return unseen("NetworkPolicies of namespace "+v.Namespace, err)
	}
	var found []string
	for i := range policies {
		for _, s := range v.injected {
			if !s.native {
				continue
			}
			for _, name := range inject.PortNames(policies[i:i+1], s.pod.Labels) {
				if slices.ContainsFunc(s.spec.Ports, func(p corev1.ContainerPort) bool { return p.Name == name }) {
					found = append(found, fmt.Sprintf("NetworkPolicy %s allows port %s, which is the native sidecar's", policies[i].Name, name))
				}
			}
		}
	}
	found = unique(found)
	return unless(found, fail("NetworkPolicies name ports that they do not find"), ok("no NetworkPolicy names a port of a native sidecar"))
}

// byAddress finds permissions by address in the words of media servers' configurations: ips of MediaMTX, acl of Janus.
var byAddress = regexp.MustCompile(`(?m)^[ \t]*-?[ \t]*"?(ips|acl|admin_acl)"?[ \t]*[:=][ \t]*("[^"\n]+"|'[^'\n]+'|\[[ \t]*[^\] \t\n][^\]\n]*\]|\n[ \t]*-[ \t]*['"]?[0-9a-fA-F]*[.:][0-9a-fA-F.:/]*['"]?[ \t]*(?:\n|$))`)

// checkAddresses looks into the media servers' environment and ConfigMaps.
func checkAddresses(ctx context.Context, v *view) finding {
	if f := v.noPods(); f != nil {
		return *f
	}
	var found []string
	var unread error
	read := map[string]map[string]string{}
	for _, s := range v.injected {
		server := s.server()
		if server == nil {
			continue
		}
		for _, e := range server.Env {
			if strings.HasPrefix(e.Name, "MTX_") && strings.HasSuffix(e.Name, "_IPS") && e.Value != "" {
				found = append(found, fmt.Sprintf("variable %s of container %s", e.Name, server.Name))
			}
		}
		for _, name := range configMaps(s.pod, server) {
			data, ok := read[name]
			if !ok {
				m, err := v.cluster.ConfigMap(ctx, s.pod.Namespace, name)
				if err != nil {
					unread = err
					m = &corev1.ConfigMap{}
				}
				data = m.Data
				read[name] = data
			}
			for _, key := range slices.Sorted(maps.Keys(data)) {
				if m := byAddress.FindStringSubmatch(data[key]); m != nil {
					found = append(found, fmt.Sprintf("%s in ConfigMap %s, key %s", m[1], name, key))
				}
			}
		}
	}
	if found = unique(found); len(found) == 0 && unread != nil {
		return unseen("ConfigMaps of the media servers", unread)
	}
	return unless(found, warn("media servers have permissions by address, and see the pod's own for all who come by the gateway"),
		ok("no permissions by address are seen in ConfigMaps and variables"))
}

// configMaps are those that a container mounts.
func configMaps(pod *corev1.Pod, c *corev1.Container) (all []string) {
	for _, mount := range c.VolumeMounts {
		for _, volume := range pod.Spec.Volumes {
			if volume.Name != mount.Name {
				continue
			}
			if volume.ConfigMap != nil {
				all = append(all, volume.ConfigMap.Name)
			}
			if volume.Projected != nil {
				for _, source := range volume.Projected.Sources {
					if source.ConfigMap != nil {
						all = append(all, source.ConfigMap.Name)
					}
				}
			}
		}
	}
	return all
}
