package charts

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/sidestream-dev/sidestream/sidecar/gateway"
)

// manifests reads the objects of example files: Kubernetes' own into their types, others as they are.
func manifests(t *testing.T, files ...string) (typed []runtime.Object, others []map[string]any) {
	t.Helper()
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join("sidestream", "examples", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, document := range strings.Split(string(text), "\n---\n") {
			var any map[string]any
			if err := yaml.UnmarshalStrict([]byte(document), &any); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			switch group, _, _ := strings.Cut(any["apiVersion"].(string), "/"); group {
			case "cert-manager.io", "gateway.networking.k8s.io":
				others = append(others, any)
				continue
			}
			object, _, err := strict.Decode([]byte(document), nil, nil)
			if err != nil {
				t.Fatalf("%s: %v\n%s", file, err, document)
			}
			typed = append(typed, object)
		}
	}
	return typed, others
}

// Host names lead to a Service that names its targetPort, so that the gateway has it.
func TestExamplesOfHosts(t *testing.T) {
	for name, files := range map[string][]string{
		"ingress": {"hosts/ingress.yaml"}, "route 53": {"hosts/ingress.yaml", "hosts/route53.yaml"},
		"k8gb": {"hosts/ingress.yaml", "hosts/k8gb.yaml"}, "three clusters": {"three-clusters/broadcaster.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			objects, _ := manifests(t, files...)
			services, hosts := map[string]*corev1.Service{}, map[string]bool{}
			for _, o := range objects {
				if s, ok := o.(*corev1.Service); ok {
					services[s.Namespace+"/"+s.Name] = s
				}
			}
			for _, o := range objects {
				in, ok := o.(*networkingv1.Ingress)
				if !ok {
					continue
				}
				for i, rule := range in.Spec.Rules {
					hosts[rule.Host] = true
					if !slices.Contains(in.Spec.TLS[i].Hosts, rule.Host) {
						t.Errorf("%s has no certificate for %s", in.Name, rule.Host)
					}
					path := rule.HTTP.Paths[0]
					s := services[in.Namespace+"/"+path.Backend.Service.Name]
					if s == nil || path.Path != "/" {
						t.Fatalf("%s does not lead to a Service with all paths: %+v", in.Name, path)
					}
					if p := s.Spec.Ports[0]; p.Name != path.Backend.Service.Port.Name || p.TargetPort.Type != intstr.String {
						t.Errorf("%s goes past the gateway: %+v", in.Name, p)
					}
				}
			}
			if len(hosts) != 2 {
				t.Errorf("hosts %v, want the cluster's and the global one", slices.Sorted(maps.Keys(hosts)))
			}
		})
	}
	_, routes := manifests(t, "hosts/httproute.yaml")
	for _, r := range routes {
		if r["kind"] != "HTTPRoute" {
			t.Errorf("%v is no HTTPRoute", r["kind"])
		}
	}
	if len(routes) != 2 {
		t.Errorf("%d routes, want 2", len(routes))
	}
}

// What DNS services are told to ask is what the gateway answers.
func TestHealthPathInExamples(t *testing.T) {
	text, err := os.ReadFile("sidestream/examples/hosts/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		if title, _, _ := strings.Cut(section, "\n"); !strings.Contains(section, gateway.HealthPath) {
			t.Errorf("%s: nothing asks %s", title, gateway.HealthPath)
		}
	}
}

// The demo's media servers ask for a sidecar, and have the ports that STUNner and the Service lead to.
func TestExampleOfThreeClusters(t *testing.T) {
	objects, _ := manifests(t, "three-clusters/broadcaster.yaml")
	i := slices.IndexFunc(objects, func(o runtime.Object) bool { _, ok := o.(*appsv1.StatefulSet); return ok })
	if i < 0 {
		t.Fatal("no StatefulSet")
	}
	pod := objects[i].(*appsv1.StatefulSet).Spec.Template
	if pod.Labels["sidestream.dev/inject"] != "true" || pod.Annotations["sidestream.dev/adapter"] != "mediamtx" {
		t.Errorf("it asks for no sidecar: %v %v", pod.Labels, pod.Annotations)
	}
	values := example(t, "three-clusters/values", "three-clusters/germany")
	media := int32(values["stunner"].(map[string]any)["mediaPort"].(float64))
	ports := pod.Spec.Containers[0].Ports
	if !slices.ContainsFunc(ports, func(p corev1.ContainerPort) bool { return p.ContainerPort == media && p.Protocol == corev1.ProtocolUDP }) {
		t.Errorf("STUNner leads to port %d: %v", media, ports)
	}
	config := objects[slices.IndexFunc(objects, func(o runtime.Object) bool { _, ok := o.(*corev1.ConfigMap); return ok })].(*corev1.ConfigMap)
	var mediamtx map[string]any
	if err := yaml.UnmarshalStrict([]byte(config.Data["mediamtx.yml"]), &mediamtx); err != nil {
		t.Fatal(err)
	}
	if _, issuers := manifests(t, "three-clusters/issuers.yaml"); len(issuers) != 2 {
		t.Errorf("%d issuers, want 2", len(issuers))
	}
}
