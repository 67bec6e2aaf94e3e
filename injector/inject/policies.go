package inject

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// PortNames are those by which NetworkPolicies of a pod's namespace let traffic into it, sorted.
func PortNames(policies []networkingv1.NetworkPolicy, pod map[string]string) (names []string) {
	for i := range policies {
		spec := &policies[i].Spec
		selector, err := metav1.LabelSelectorAsSelector(&spec.PodSelector)
		if err != nil || !selector.Matches(labels.Set(pod)) {
			continue
		}
		for _, rule := range spec.Ingress {
			for _, p := range rule.Ports {
				if p.Port != nil && p.Port.Type == intstr.String {
					names = append(names, p.Port.StrVal)
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// obeyPolicies makes the sidecar an ordinary container where a NetworkPolicy names one of its ports, unless the annotation has
// decided that.
func (m *mutation) obeyPolicies() *refusal {
	if !m.native {
		return nil
	}
	names := []string{PeerPortName, adminPortName}
	if m.capture.way == PortName {
		names = append(names, m.port.Name)
	}
	i := slices.IndexFunc(names, func(name string) bool { return slices.Contains(m.options.PolicyPorts, name) })
	switch policy := m.pod.Spec.RestartPolicy; {
	case i < 0:
	case m.wishes.native != nil:
		m.warn("a NetworkPolicy lets traffic in by the name %s, which it does not find in the sidecar, an init container: write the port's "+
			"number there", names[i])
	case policy != "" && policy != corev1.RestartPolicyAlways:
		m.warn("a NetworkPolicy lets traffic in by the name %s, which it does not find in the sidecar: that is an init container, for the "+
			"pod's restart policy is %s; write the port's number there", names[i], policy)
	default:
		m.native = false
	}
	return nil
}
