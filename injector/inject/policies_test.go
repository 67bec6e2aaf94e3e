package inject

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func policy(pods map[string]string, ports ...intstr.IntOrString) networkingv1.NetworkPolicy {
	p := networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: pods}}}
	rule := networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{}}} // one of any port
	for i := range ports {
		rule.Ports = append(rule.Ports, networkingv1.NetworkPolicyPort{Port: &ports[i]})
	}
	p.Spec.Ingress = append(p.Spec.Ingress, rule)
	return p
}

func TestPortNames(t *testing.T) {
	bad := policy(nil, intstr.FromString("bad"))
	bad.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "?"}}
	got := PortNames([]networkingv1.NetworkPolicy{
		policy(nil, intstr.FromString("metrics"), intstr.FromInt32(80)),
		policy(map[string]string{"app": "sfu"}, intstr.FromString("http"), intstr.FromString("metrics")),
		policy(map[string]string{"app": "other"}, intstr.FromString("other")),
		bad,
	}, map[string]string{"app": "sfu"})
	if !slices.Equal(got, []string{"http", "metrics"}) {
		t.Errorf("%q", got)
	}
}

// A policy that lets traffic in by the name of a port goes on doing so.
func TestPolicies(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*corev1.Pod)
		ports  []string
		native bool
		word   string // of the warning
	}{
		"none":                {nil, nil, true, ""},
		"others":              {nil, []string{"rtsp"}, true, ""},
		"the server's":        {nil, []string{"http"}, false, ""},
		"the peers'":          {nil, []string{PeerPortName}, false, ""},
		"name is not taken":   {annotation("capture", "none"), []string{"http"}, true, ""},
		"native by wish":      {annotation("native", "true"), []string{"http"}, true, "write the port's number there"},
		"ordinary by wish":    {annotation("native", "false"), []string{"http"}, false, ""},
		"a pod that ends":     {func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever }, []string{"http"}, true, "restart policy is Never"},
		"one that is not one": {func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyAlways }, []string{"http"}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod, namespace := read(t, "mediamtx")
			if tt.change != nil {
				tt.change(pod)
			}
			o := options()
			o.Native, o.PolicyPorts = true, tt.ports
			after, decision := mutate(t, pod, namespace, o)
			if decision.Reason != Injected {
				t.Fatalf("%+v", decision)
			}
			if native := slices.ContainsFunc(after.Spec.InitContainers, isOurs); native != tt.native {
				t.Errorf("native: %v", native)
			}
			warned := slices.ContainsFunc(decision.Warnings, func(w string) bool { return strings.Contains(w, "NetworkPolicy") })
			if warned != (tt.word != "") || !strings.Contains(strings.Join(decision.Warnings, "\n"), tt.word) {
				t.Errorf("warnings %q", decision.Warnings)
			}
		})
	}
}
