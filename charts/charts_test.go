// Package charts tests the chart: what it renders, what it refuses, and that Helm installs, changes and removes it.
package charts

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	chartcommon "helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

func load(t *testing.T) *chartv2.Chart {
	t.Helper()
	c, err := loader.Load("sidestream")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// example reads the values of one, of which later files go before earlier ones.
func example(t *testing.T, names ...string) map[string]any {
	t.Helper()
	values := map[string]any{}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join("sidestream", "examples", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var next map[string]any
		if err := yaml.UnmarshalStrict(text, &next); err != nil {
			t.Fatal(err)
		}
		values = util.CoalesceTables(next, values)
	}
	return values
}

// render is what `helm template` shows, by files.
func render(t *testing.T, values map[string]any) (map[string]string, error) {
	t.Helper()
	return renderAs(t, "sidestream", "sidestream-system", values)
}

func renderAs(t *testing.T, release, namespace string, values map[string]any) (map[string]string, error) {
	t.Helper()
	c := load(t)
	all, err := util.ToRenderValues(c, values, chartcommon.ReleaseOptions{Name: release, Namespace: namespace, IsInstall: true}, nil)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

func TestGolden(t *testing.T) {
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	for name, values := range map[string]map[string]any{
		"mediamtx": example(t, "mediamtx"), "janus": example(t, "janus"), "pionsfu": example(t, "pionsfu"),
		"generic": example(t, "generic"), "broadcastbox": example(t, "broadcastbox"),
		"three-clusters-germany":   example(t, "three-clusters/values", "three-clusters/germany"),
		"three-clusters-singapore": example(t, "three-clusters/values", "three-clusters/singapore"),
		"three-clusters-us-west":   example(t, "three-clusters/values", "three-clusters/us-west"),
		"least":                    {"cluster": "germany"},
		"most": {
			"cluster": "germany", "namespaces": []any{"media", "stage"},
			"sidecar": map[string]any{"pullSecrets": []any{"registry"}, "native": "false", "settings": map[string]any{"SIDESTREAM_RELAY_FAN_OUT": 4}},
			"monitoring": map[string]any{
				"podMonitor": map[string]any{"enabled": true, "labels": map[string]any{"release": "a"}},
				"rules":      map[string]any{"enabled": true, "labels": map[string]any{"release": "a"}},
			},
			"peers": map[string]any{"security": "plaintext", "service": map[string]any{"annotations": map[string]any{"a.example/b": "c"}}},
			"injector": map[string]any{
				"replicas": 1, "failurePolicy": "Fail", "revision": "canary", "excludeNamespaces": []any{"kube-public"},
				"pullSecrets": []any{"registry"}, "image": map[string]any{"tag": "1.2.3"}, "priorityClassName": "system-cluster-critical",
				"nodeSelector": map[string]any{"kubernetes.io/os": "linux"}, "tolerations": []any{map[string]any{"operator": "Exists"}},
				"affinity": map[string]any{"nodeAffinity": map[string]any{}}, "podAnnotations": map[string]any{"a.example/b": "c"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := render(t, values)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			for _, file := range slices.Sorted(maps.Keys(files)) {
				if strings.HasSuffix(file, ".tpl") || strings.TrimSpace(files[file]) == "" {
					continue
				}
				out.WriteString("### " + file + "\n" + strings.TrimSpace(files[file]) + "\n")
				if strings.HasSuffix(file, ".txt") {
					continue
				}
				for _, document := range strings.Split("\n"+files[file], "\n---\n") {
					decode(t, strict, document)
				}
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out.String()); diff != "" {
				t.Errorf("%s (-want +got); -update writes it anew\n%s", golden, diff)
			}
		})
	}
}

// decode reads a document into its type, where a misspelt field is an error; of kinds that are not Kubernetes' own only the
// form is looked at.
func decode(t *testing.T, strict runtime.Decoder, document string) {
	t.Helper()
	var kind struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name   string            `json:"name"`
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
		t.Errorf("%v\n%s", err, document)
		return
	}
	if kind.Kind == "" {
		return // comments alone
	}
	if kind.Metadata.Labels["app.kubernetes.io/instance"] != "sidestream" {
		t.Errorf("%s %s does not say whose it is", kind.Kind, kind.Metadata.Name)
	}
	group, _, _ := strings.Cut(kind.APIVersion, "/")
	if strings.Contains(group, ".") && !strings.HasSuffix(group, ".k8s.io") || group == "gateway.networking.k8s.io" {
		return
	}
	object, _, err := strict.Decode([]byte(document), nil, nil)
	if err != nil {
		t.Errorf("%v\n%s", err, document)
		return
	}
	if d, ok := object.(*appsv1.Deployment); ok && !maps.Equal(d.Spec.Selector.MatchLabels, d.Spec.Template.Labels) {
		t.Error("the Deployment does not select its pods")
	}
}

func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		values map[string]any
		word   string
	}{
		"no cluster":      {nil, "cluster"},
		"cluster":         {map[string]any{"cluster": "a b"}, "cluster"},
		"misspelt":        {map[string]any{"cluster": "a", "namespace": []any{"b"}}, "namespace"},
		"misspelt within": {map[string]any{"cluster": "a", "injector": map[string]any{"replica": 2}}, "replica"},
		"namespaces":      {map[string]any{"cluster": "a", "namespaces": "media"}, "namespaces"},
		"security":        {map[string]any{"cluster": "a", "peers": map[string]any{"security": "mtls"}}, "security"},
		"policy":          {map[string]any{"cluster": "a", "injector": map[string]any{"failurePolicy": "Never"}}, "failurePolicy"},
		"setting":         {map[string]any{"cluster": "a", "sidecar": map[string]any{"settings": map[string]any{"RELAY_LINGER": "1s"}}}, "settings"},
		"port":            {map[string]any{"cluster": "a", "sidecar": map[string]any{"ports": map[string]any{"peer": 80}}}, "peer"},
		"network policy":  {map[string]any{"cluster": "a", "networkPolicy": map[string]any{"kind": "calico"}}, "kind"},
		"replicas":        {map[string]any{"cluster": "a", "injector": map[string]any{"replicas": 0}}, "replicas"},
		"STUNner": {
			map[string]any{"cluster": "a", "stunner": map[string]any{"enabled": true}}, "stunner.authSecret: name a Secret",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := render(t, tt.values)
			if err == nil || !strings.Contains(err.Error(), tt.word) {
				t.Errorf("%v", err)
			}
		})
	}
}

// Every value has a place in the schema, and every default is allowed.
func TestSchemaKnowsAllValues(t *testing.T) {
	c := load(t)
	if _, err := render(t, map[string]any{"cluster": "a"}); err != nil {
		t.Error(err)
	}
	var walk func(path string, values map[string]any)
	walk = func(path string, values map[string]any) {
		for key, value := range values {
			inner, ok := value.(map[string]any)
			if !ok || len(inner) == 0 {
				continue
			}
			changed := map[string]any{"cluster": "a"}
			at := changed
			for _, k := range strings.Split(strings.TrimPrefix(path+"."+key, "."), ".") {
				next := map[string]any{}
				at[k] = next
				at = next
			}
			at["noSuchValue"] = "x"
			if _, err := render(t, changed); err == nil {
				t.Errorf("%s.%s takes any value", path, key)
			}
			walk(path+"."+key, inner)
		}
	}
	walk("", c.Values)
}
