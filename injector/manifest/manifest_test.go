package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/sidestream-dev/sidestream/injector/inject"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

func options(tb testing.TB) Options {
	tb.Helper()
	sidecar := config.Default()
	sidecar.Cluster, sidecar.Peer.Service = "germany", "sidestream-peers"
	o, err := inject.Options{Image: "example.invalid/sidestream:1", Revision: "default", Native: true}.With(sidecar)
	if err != nil {
		tb.Fatal(err)
	}
	return Options{Inject: o, Namespace: "media"}
}

// template is a pod's, as a line of YAML.
func template(asks string) string {
	return fmt.Sprintf(`{metadata: {labels: {app: sfu, %s}, annotations: {sidestream.dev/adapter: mediamtx}}, `+
		`spec: {unknown: {to: us}, containers: [{name: sfu, image: sfu, ports: [{name: http, containerPort: 8889}]}]}}`, asks)
}

const asks = `sidestream.dev/inject: "true"`

// object is one of a version and kind, with the template at the path.
func object(of, path, template string) string {
	body, names := template, strings.Split(path, ".")
	for _, name := range slices.Backward(names[1:]) {
		body = fmt.Sprintf("{%s: %s}", name, body)
	}
	version, kind, _ := strings.Cut(of, " ")
	return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: sfu}\n%s: %s\n", version, kind, names[0], body)
}

func run(tb testing.TB, in string, o Options) []Document {
	tb.Helper()
	documents, err := Inject(strings.NewReader(in), o)
	if err != nil {
		tb.Fatalf("%v in\n%s", err, in)
	}
	return documents
}

// at is what stands at a path.
func at(tb testing.TB, text []byte, path string) json.RawMessage {
	tb.Helper()
	raw, err := yaml.YAMLToJSON(text)
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range strings.Split(path, ".") {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(raw, &fields); err != nil {
			tb.Fatal(err)
		}
		raw = fields[name]
	}
	return raw
}

// Every kind with a pod in it gets what the webhook would give that pod.
func TestKinds(t *testing.T) {
	for kind, path := range map[string]string{
		"apps/v1 Deployment":       "spec.template",
		"apps/v1 StatefulSet":      "spec.template",
		"apps/v1 DaemonSet":        "spec.template",
		"apps/v1 ReplicaSet":       "spec.template",
		"batch/v1 Job":             "spec.template",
		"batch/v1 CronJob":         "spec.jobTemplate.spec.template",
		"v1 ReplicationController": "spec.template",
		"v1 PodTemplate":           "template",
	} {
		t.Run(kind, func(t *testing.T) {
			d := run(t, object(kind, path, template(asks)), options(t))
			if len(d) != 1 || len(d[0].Workloads) != 1 || !d[0].Changed() {
				t.Fatalf("%+v", d)
			}
			w := d[0].Workloads[0]
			if _, name, _ := strings.Cut(kind, " "); w.String() != name+" media/sfu" || w.Decision.Reason != inject.Injected {
				t.Errorf("%v %+v", w, w.Decision)
			}
			got := at(t, d[0].Text, path)
			var pod corev1.Pod
			if err := json.Unmarshal(got, &pod); err != nil {
				t.Fatal(err)
			}
			if _, ok := inject.StatusOf(&pod); !ok {
				t.Errorf("no sidecar in\n%s", d[0].Text)
			}
			if s := at(t, got, "spec.unknown"); string(s) != `{"to":"us"}` {
				t.Errorf("a field that this version does not know is %s", s)
			}
		})
	}
}

func TestPod(t *testing.T) {
	pod := strings.Replace(template(asks), "{metadata: {", "{apiVersion: v1, kind: Pod, metadata: {name: sfu, namespace: other, ", 1)
	d := run(t, pod, options(t))
	if got := d[0].Workloads[0]; got.String() != "Pod other/sfu" || got.Decision.Reason != inject.Injected {
		t.Errorf("%v", got)
	}
	again := run(t, string(d[0].Text), options(t))
	if got := again[0].Workloads[0].Decision.Reason; got != inject.Already {
		t.Errorf("the second time: %s", got)
	}
}

// What gets no sidecar is printed to the byte, and said of those that have a pod in them.
func TestLeftAlone(t *testing.T) {
	const in = `# a comment
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {b: "1", a: '2'}   # as it was
---
apiVersion: serving.example/v1
kind: Deployment
spec: {template: {metadata: {labels: {sidestream.dev/inject: "true"}}}}
---
`
	deployment := object("apps/v1 Deployment", "spec.template", template("tier: media"))
	wrong := object("apps/v1 StatefulSet", "spec.template", strings.Replace(template(asks), "mediamtx", "nonesuch", 1))
	d := run(t, in+deployment+"---\n"+wrong, options(t))
	var out bytes.Buffer
	if err := Write(&out, d); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in+deployment+"---\n"+wrong, out.String()); diff != "" {
		t.Error(diff)
	}
	var reasons []string
	for _, document := range d {
		for _, w := range document.Workloads {
			reasons = append(reasons, fmt.Sprint(w, " ", w.Decision.Reason))
		}
	}
	if diff := cmp.Diff([]string{"Deployment media/sfu not_asked", "StatefulSet media/sfu bad_annotation"}, reasons); diff != "" {
		t.Error(diff)
	}
	out.Reset()
	if err := Diff(&out, d); err != nil || out.Len() > 0 {
		t.Errorf("%v %s", err, &out)
	}
}

func TestLists(t *testing.T) {
	service := "{apiVersion: v1, kind: Service, metadata: {name: s}}"
	deployment := fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {name: one}, spec: {template: %s}}", template(asks))
	bare := fmt.Sprintf("{apiVersion: apps/v1, metadata: {name: two}, spec: {template: %s}}", template(asks))
	d := run(t, fmt.Sprintf("apiVersion: v1\nkind: List\nitems: [%s, %s]\n---\napiVersion: apps/v1\nkind: DeploymentList\nitems: [%s]\n",
		service, deployment, bare), options(t))
	var got []string
	for _, document := range d {
		for _, w := range document.Workloads {
			got = append(got, fmt.Sprint(w, " ", w.Decision.Reason))
		}
	}
	if diff := cmp.Diff([]string{"Deployment media/one injected", "Deployment media/two injected"}, got); diff != "" {
		t.Error(diff)
	}
	if !bytes.Contains(d[0].Text, []byte("kind: Service")) {
		t.Errorf("the Service is gone:\n%s", d[0].Text)
	}
}

// A namespace's labels come from the files, else from the options.
func TestNamespaces(t *testing.T) {
	const meshed = "linkerd.io/inject"
	workload := object("apps/v1 Deployment", "spec.template", template(asks))
	skips := func(in string, o Options) bool {
		var text []byte
		for _, d := range run(t, in, o) {
			text = append(text, d.Text...)
		}
		return bytes.Contains(text, []byte("skip-inbound-ports"))
	}
	o := options(t)
	if skips(workload, o) {
		t.Error("Linkerd is there and nobody asked for it")
	}
	o.Annotations = map[string]string{meshed: "enabled"}
	if !skips(workload, o) {
		t.Error("the options' annotation does not count")
	}
	o.Annotations = nil
	namespace := fmt.Sprintf("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Namespace, metadata: {name: media, annotations: {%s: enabled}}}]\n", meshed)
	if !skips(workload+"---\n"+namespace, o) {
		t.Error("the file's namespace does not count")
	}
}

func TestDiff(t *testing.T) {
	var out bytes.Buffer
	if err := Diff(&out, run(t, object("apps/v1 Deployment", "spec.template", template(asks)), options(t))); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"--- Deployment media/sfu\n+++ Deployment media/sfu with a sidecar\n@@", "\n+          name: sidestream-sfu\n",
		"\n+        image: example.invalid/sidestream:1\n",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("%q is missing in\n%s", line, &out)
		}
	}
}

func TestWrong(t *testing.T) {
	deep := "{kind: Secret}"
	for range 20 {
		deep = "{kind: List, items: [" + deep + "]}"
	}
	for in, word := range map[string]string{
		"- one\n- two\n":     "no Kubernetes object",
		"a: b: c\n":          "document 1",
		"a: 1\na: 2\n":       "already set",
		"kind: x\n---\nno\n": "document 2",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: sfu}\nspec: {}\n":                                             "Deployment media/sfu: it has no template",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: sfu, labels: {sidestream.dev/inject: \"true\"}}\nspec: {containers: 7}\n": "Pod media/sfu: read its pod",
		deep: "lists",
	} {
		if _, err := Inject(strings.NewReader(in), options(t)); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// FuzzInject finds texts on which it breaks, or where what it writes is not read again.
func FuzzInject(f *testing.F) {
	f.Add(object("batch/v1 CronJob", "spec.jobTemplate.spec.template", template(asks)))
	f.Add("kind: List\nitems: [{kind: Pod}]\n---\n# nothing\n---\n{}")
	o := options(f)
	f.Fuzz(func(t *testing.T, in string) {
		documents, err := Inject(strings.NewReader(in), o)
		if err != nil {
			return
		}
		for _, d := range documents {
			if !d.Changed() {
				continue
			}
			again, err := Inject(bytes.NewReader(d.Text), o)
			if err != nil {
				t.Fatalf("%v in\n%s", err, d.Text)
			}
			if len(again) != 1 || again[0].Changed() || len(again[0].Workloads) != len(d.Workloads) {
				t.Fatalf("the second time it is another:\n%s", d.Text)
			}
		}
	})
}
