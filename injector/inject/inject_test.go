package inject

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/yaml"

	"github.com/sidestream-dev/sidestream/adapters/broadcastbox"
	"github.com/sidestream-dev/sidestream/adapters/janus"
	"github.com/sidestream-dev/sidestream/adapters/mediamtx"
	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

func options() Options {
	sidecar := config.Default()
	sidecar.Cluster = "germany"
	sidecar.Peer.Service = "sidestream-peers"
	return Options{
		Image: "ghcr.io/sidestream-dev/sidestream:1.2.3", Revision: "default", Native: true, Sidecar: sidecar,
		Ports:      Ports{Gateway: 18080, Peer: 18443, Admin: 18090},
		PeerSecret: "sidestream-peer-tls",
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
		}},
	}
}

// read reads a pod, and the namespace where the file has one.
func read(tb testing.TB, name string) (*corev1.Pod, *corev1.Namespace) {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		tb.Fatal(err)
	}
	var pod corev1.Pod
	var namespace corev1.Namespace
	for _, document := range bytes.Split(text, []byte("\n---\n")) {
		to := any(&pod)
		if bytes.Contains(document, []byte("kind: Namespace")) {
			to = &namespace
		}
		if err := yaml.UnmarshalStrict(document, to); err != nil {
			tb.Fatalf("%s: %v", name, err)
		}
	}
	return &pod, &namespace
}

func TestGolden(t *testing.T) {
	for golden, tt := range map[string]struct {
		input  string
		change func(*Options)
	}{
		"mediamtx":     {"mediamtx", nil},
		"broadcastbox": {"broadcastbox", nil},
		"janus":        {"janus", nil},
		"pionsfu":      {"pionsfu", func(o *Options) { o.Sidecar.Peer.Security = config.SharedKey; o.PeerSecret = "sidestream-key" }},
		"generic": {"generic", func(o *Options) {
			o.Sidecar.Peer.Security, o.PullPolicy, o.PullSecrets = config.Plaintext, corev1.PullAlways, []string{"registry"}
		}},
		"hostnetwork":               {"hostnetwork", func(o *Options) { o.HostPorts = HostPorts{18100, 18101} }},
		"hostnetwork-without-ports": {"hostnetwork", nil},
		"hostnetwork-annotated":     {"hostnetwork-annotated", nil},
		"istio":                     {"istio", nil},
		"linkerd":                   {"linkerd", nil},
		"redirect":                  {"redirect", nil},
		"job":                       {"job", nil},
		"job-ordinary":              {"job", func(o *Options) { o.Native = false }},
	} {
		t.Run(golden, func(t *testing.T) {
			pod, namespace := read(t, tt.input)
			o := options()
			if tt.change != nil {
				tt.change(&o)
			}
			after, decision := mutate(t, pod, namespace, o)

			var out strings.Builder
			fmt.Fprintf(&out, "# %s: %s\n", decision.Reason, decision.Message)
			for _, w := range decision.Warnings {
				fmt.Fprintf(&out, "# warning: %s\n", w)
			}
			if decision.Reason == Injected {
				text, err := yaml.Marshal(after)
				if err != nil {
					t.Fatal(err)
				}
				out.Write(text)
			}
			name := filepath.Join("testdata", golden+".golden")
			if *update {
				if err := os.WriteFile(name, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out.String()); diff != "" {
				t.Errorf("%s (-want +got); -update writes it anew\n%s", name, diff)
			}
		})
	}
}

// mutate calls Mutate, and checks what holds of every call.
func mutate(tb testing.TB, pod *corev1.Pod, namespace *corev1.Namespace, o Options) (*corev1.Pod, Decision) {
	tb.Helper()
	before := pod.DeepCopy()
	after, decision := Mutate(pod, namespace, o)
	if diff := cmp.Diff(before, pod); diff != "" {
		tb.Errorf("the pod that was given is changed (-before +after)\n%s", diff)
	}
	if !slices.Contains(Reasons(), decision.Reason) || decision.Message == "" || strings.Contains(decision.Message, "\n") {
		tb.Errorf("decision %+v", decision)
	}
	if decision.Reason != Injected {
		if after != pod {
			tb.Errorf("%s, and the pod is changed", decision.Reason)
		}
		return after, decision
	}
	if _, ok := StatusOf(after); !ok || Missed(after) {
		tb.Error("what was done is not to be seen")
	}
	again, second := Mutate(after, namespace, o)
	if second.Reason != Already || again != after {
		tb.Errorf("the second time: %+v", second)
	}
	checkSettings(tb, after)
	return after, decision
}

// checkSettings reads the sidecar's settings as the sidecar will.
func checkSettings(tb testing.TB, pod *corev1.Pod) {
	tb.Helper()
	sidecar := containerOf(tb, pod, ContainerName)
	known := map[string]string{
		"metadata.uid": "9f4c1d2e-0001-4c5e-8000-1f2e3d4c5b6a", "metadata.namespace": "media", "status.podIP": "fd00::7",
	}
	var environ []string
	for _, v := range sidecar.Env {
		value := strings.ReplaceAll(v.Value, "$$", "$")
		switch from := v.ValueFrom; {
		case from == nil:
		case from.FieldRef != nil:
			value = known[from.FieldRef.FieldPath]
		case from.SecretKeyRef != nil:
			value = placeholder
		}
		environ = append(environ, v.Name+"="+value)
	}
	c, err := config.Decode(environ)
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		tb.Errorf("the sidecar refuses its settings: %v", err)
	}
}

func containerOf(tb testing.TB, pod *corev1.Pod, name string) *corev1.Container {
	tb.Helper()
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	tb.Fatalf("no container %s", name)
	return nil
}

// A redirection takes rights that not every namespace gives, and a network of the pod's own.
func TestRedirectRefused(t *testing.T) {
	level := func(l string) func(*corev1.Pod, *corev1.Namespace) {
		return func(_ *corev1.Pod, n *corev1.Namespace) { n.Labels = map[string]string{securityLabel: l} }
	}
	of := func(change func(*corev1.Pod)) func(*corev1.Pod, *corev1.Namespace) {
		return func(p *corev1.Pod, _ *corev1.Namespace) { change(p) }
	}
	for name, tt := range map[string]struct {
		change func(*corev1.Pod, *corev1.Namespace)
		reason Reason
		word   string
	}{
		"privileged": {level("privileged"), Injected, ""},
		"no level":   {func(_ *corev1.Pod, n *corev1.Namespace) { n.Labels = nil }, Injected, ""},
		"baseline":   {level("baseline"), NotPossible, "label the namespace privileged"},
		"restricted": {level("restricted"), NotPossible, "which takes NET_ADMIN"},
		"host's network": {of(func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
			annotation("gateway-port", "19080")(p)
			annotation("admin-port", "19090")(p)
		}), NotPossible, "host's network"},
		"Istio": {
			func(_ *corev1.Pod, n *corev1.Namespace) { n.Labels = map[string]string{"istio-injection": "enabled"} }, NotPossible, "Istio",
		},
		"name of the container": {of(func(p *corev1.Pod) { p.Spec.InitContainers[0].Name = redirectName }), NameTaken, redirectName},
		"the gateway's port": {of(func(p *corev1.Pod) {
			annotation("port", "18080")(p)
			p.Spec.Containers[0].Ports = nil
		}), PortTaken, "sidestream.dev/gateway-port"},
		"no port":    {of(annotation("port", "123456")), BadAnnotation, "sidestream.dev/port"},
		"undeclared": {of(func(p *corev1.Pod) { p.Spec.Containers[0].Ports = nil }), Injected, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod, namespace := read(t, "redirect")
			tt.change(pod, namespace)
			after, decision := mutate(t, pod, namespace, options())
			if decision.Reason != tt.reason || !strings.Contains(decision.Message, tt.word) {
				t.Errorf("%s: %s", decision.Reason, decision.Message)
			}
			if decision.Reason != Injected {
				return
			}
			if c := containerOf(t, after, redirectName); !slices.Equal(c.Args, []string{"redirect", "8889", "18080"}) {
				t.Errorf("it redirects %q", c.Args)
			}
			if first := after.Spec.InitContainers[1].Name; first != redirectName {
				t.Errorf("%s runs before the redirection is there", first)
			}
		})
	}
	pod, _ := read(t, "redirect")
	if _, decision := mutate(t, pod, nil, options()); decision.Reason != NotPossible || !strings.Contains(decision.Message, "could not be read") {
		t.Errorf("in a namespace that is not known: %+v", decision)
	}
}

func TestLeftAlone(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*corev1.Pod)
		reason Reason
		word   string
	}{
		"not asked":  {func(p *corev1.Pod) { p.Labels[Label] = "yes" }, NotAsked, ""},
		"no labels":  {func(p *corev1.Pod) { p.Labels = nil }, NotAsked, ""},
		"revision":   {annotation("revision", "canary"), OtherRevision, "canary"},
		"unknown":    {annotation("relay-pin", "news"), BadAnnotation, "did you mean sidestream.dev/relay-pins?"},
		"nonsense":   {annotation("zzzzzzzzzz", "1"), BadAnnotation, "remove it"},
		"no adapter": {func(p *corev1.Pod) { delete(p.Annotations, Domain+"adapter") }, BadAnnotation, `"mediamtx"`},
		"adapter":    {annotation("adapter", "nginx"), BadAnnotation, `"mediamtx"`},
		"value":      {annotation("relay-fan-out", "many"), BadAnnotation, `sidestream.dev/relay-fan-out is "many": write a whole number`},
		"range":      {annotation("relay-linger", "1ns"), BadAnnotation, "sidestream.dev/relay-linger is 1ns"},
		"together": {
			func(p *corev1.Pod) { delete(p.Annotations, Domain+"publish-conflict") }, BadAnnotation, "sidestream.dev/publish-conflict=priority",
		},
		"of another make": {annotation("adapter-janus-room-pin", "a/b"), BadAnnotation, "sidestream.dev/adapter to janus"},
		"secret in clear": {annotation("adapter-password", "hunter2 is/ my_password"), BadAnnotation, "never what is secret itself"},
		"no secret's name": {
			annotation("adapter-password", "hunter2"), BadAnnotation, "sidestream.dev/adapter-password names no Secret",
		},
		"capture":       {annotation("capture", "port"), BadAnnotation, "write port-name, redirect or none"},
		"native":        {annotation("native", "perhaps"), BadAnnotation, "true or false"},
		"low port":      {annotation("gateway-port", "80"), BadAnnotation, "from 1024"},
		"same ports":    {annotation("gateway-port", "18443"), PortTaken, "18443"},
		"port taken":    {annotation("admin-port", "8554"), PortTaken, "sidestream.dev/admin-port"},
		"peers' port":   {port(18443, ""), PortTaken, "in all pods at once"},
		"UDP is free":   {func(p *corev1.Pod) { port(18443, "")(p); p.Spec.Containers[0].Ports[3].Protocol = corev1.ProtocolUDP }, Injected, ""},
		"resources":     {annotation("cpu-limit", "-1"), BadAnnotation, "100m"},
		"container":     {annotation("container", "box"), NoServer, "no such container"},
		"port's name":   {annotation("port", "whip"), NoServer, "declares no port whip"},
		"port's number": {annotation("port", "123456"), BadAnnotation, "sidestream.dev/port"},
		"port and URL": {func(p *corev1.Pod) {
			annotation("port", "8889")(p)
			annotation("adapter-url", "http://:8889")(p)
		}, BadAnnotation, "both set"},
		"generic without port": {annotation("adapter", "generic"), NoServer, "no usual port"},
		"two servers": {func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, *p.Spec.Containers[0].DeepCopy())
			p.Spec.Containers[1].Name = "twin"
		}, NoServer, "2 declare its port 8889"},
		"name that leads elsewhere": {func(p *corev1.Pod) {
			annotation("capture", "port-name")(p)
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
				Name: "other", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}},
			})
		}, NoServer, "container other has a port of the name http too"},
		"Windows": {func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, NotPossible, "Linux"},
		"name of the container": {
			func(p *corev1.Pod) { p.Spec.Containers[0].Name = ContainerName }, NameTaken, "container of the name",
		},
		"name of a port":   {port(1234, PeerPortName), NameTaken, "port of the name"},
		"name of a volume": {func(p *corev1.Pod) { p.Spec.Volumes[0].Name = stateVolume }, NameTaken, "volume of the name"},
		"labelled by hand": {func(p *corev1.Pod) { p.Labels[InjectedLabel] = "true" }, Injected, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod, namespace := read(t, "mediamtx")
			tt.change(pod)
			_, decision := mutate(t, pod, namespace, options())
			if decision.Reason != tt.reason || !strings.Contains(decision.Message, tt.word) {
				t.Errorf("%s: %s", decision.Reason, decision.Message)
			}
			if strings.Contains(decision.Message, "hunter2") {
				t.Errorf("what may be a secret is told: %s", decision.Message)
			}
			wanted := tt.reason != Injected && tt.reason != NotAsked && tt.reason != OtherRevision
			if decision.Refused() != wanted {
				t.Errorf("refused: %v", decision.Refused())
			}
		})
	}
}

func annotation(name, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations[Domain+name] = value }
}

func port(number int32, name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: name, ContainerPort: number})
	}
}

// A secret that the operator put into the settings of all would stand in every pod.
func TestSecretOfTheOperator(t *testing.T) {
	pod, namespace := read(t, "broadcastbox")
	o := options()
	o.Sidecar.Adapter.Token = "hunter2"
	if _, d := mutate(t, pod, namespace, o); d.Reason != NotPossible || strings.Contains(d.Message, "hunter2") {
		t.Errorf("%+v", d)
	}
}

// The usual ports and paths are the adapters' own.
func TestServers(t *testing.T) {
	for name, want := range map[string]struct{ port, path string }{
		mediamtx.AdapterName:     {mediamtx.Port, ""},
		broadcastbox.AdapterName: {broadcastbox.Port, ""},
		janus.AdapterName:        {"8088", janus.DefaultBasePath},
		pionsfu.AdapterName:      {"8800", ""},
	} {
		s, ok := servers[name]
		if !ok || fmt.Sprint(s.port) != want.port || s.path != want.path {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if _, p, _ := strings.Cut(config.Default().SFU.Listen, ":"); p != fmt.Sprint(servers[config.PionSFU].port) {
		t.Errorf("the built-in server listens at %s", p)
	}
}

// FuzzMutate gives pods as the API server might. Nothing may panic, what is the user's stays, and the second time changes
// nothing; also where a newer Kubernetes has fields that are not known here.
func FuzzMutate(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no pods to begin with", err)
	}
	for _, name := range files {
		pod, _ := read(f, strings.TrimSuffix(filepath.Base(name), ".yaml"))
		text, err := json.Marshal(pod)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, true, false)
		f.Add(text, false, true)
	}
	f.Fuzz(func(t *testing.T, text []byte, native, host bool) {
		var pod corev1.Pod
		if json.Unmarshal(text, &pod) != nil {
			return
		}
		if pod.Labels != nil {
			pod.Labels[Label] = "true"
		}
		try(t, &pod, native, host)
	})
}

// FuzzAnyPod fills pods with whatever their types can hold.
func FuzzAnyPod(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		data := make([]byte, 64<<(i%7))
		for j := range data {
			data[j] = byte(random.Uint32())
		}
		f.Add(data, i%2 == 0, i%3 == 0)
	}
	f.Fuzz(func(t *testing.T, data []byte, native, host bool) {
		var pod corev1.Pod
		randfill.NewFromGoFuzz(data).NilChance(.3).NumElements(0, 3).MaxDepth(12).Funcs(
			func(q *resource.Quantity, c randfill.Continue) {
				*q = *resource.NewQuantity(c.Int63n(1<<40), resource.BinarySI)
			},
			func(p *intstr.IntOrString, c randfill.Continue) {
				*p = []intstr.IntOrString{intstr.FromInt32(8889), intstr.FromString("http"), intstr.FromString("other")}[c.Intn(3)]
			},
			func(m *metav1.Time, _ randfill.Continue) { *m = metav1.Unix(1e9, 0) },
			func(m *metav1.MicroTime, _ randfill.Continue) { *m = metav1.NewMicroTime(time.Unix(1e9, 0)) },
			func(m *metav1.FieldsV1, _ randfill.Continue) { *m = *metav1.NewFieldsV1("{}") },
			func(p *corev1.ContainerPort, c randfill.Continue) {
				p.Name = []string{"", "http", "other"}[c.Intn(3)]
				p.ContainerPort = []int32{80, 8889, 9000}[c.Intn(3)]
				p.Protocol = []corev1.Protocol{"", "TCP", "UDP"}[c.Intn(3)]
			},
		).Fill(&pod)
		// One that is asked for, of which a container is likely to be the server.
		if pod.Labels == nil {
			pod.Labels = map[string]string{}
		}
		pod.Labels[Label] = "true"
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[Domain+"adapter"] = "mediamtx"
		if len(data) > 0 {
			if way := []way{"", PortName, Redirect, None}[data[0]%4]; way != "" {
				pod.Annotations[Domain+"capture"] = string(way)
			}
		}
		if len(pod.Spec.Containers) > 0 {
			pod.Spec.Containers[0].Name = "mediamtx"
			pod.Annotations[Domain+"container"] = "mediamtx"
		}
		pod.Spec.OS = nil
		text, err := json.Marshal(&pod)
		if err != nil {
			t.Fatal(err)
		}
		var sent corev1.Pod // as it comes over the wire: amounts have one form there
		if err := json.Unmarshal(text, &sent); err != nil {
			t.Fatal(err)
		}
		if try(t, &sent, native, host); t.Failed() {
			t.Logf("%s", text)
		}
	})
}

// try mutates a pod, and checks that what is the user's stays.
func try(t *testing.T, pod *corev1.Pod, native, host bool) {
	t.Helper()
	o := options()
	o.Native = native
	if host {
		o.HostPorts = HostPorts{18100, 18101}
	}
	after, decision := mutate(t, pod, &corev1.Namespace{}, o)
	if decision.Reason != Injected {
		return
	}
	kept(t, pod, after)

	// What the webhook was given has more than what was decoded.
	document, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	strange := withUnknown(t, document)
	patch, err := Patch(pod, after)
	if err != nil {
		t.Fatal(err)
	}
	operations, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := operations.Apply(strange)
	if err != nil {
		t.Fatalf("%v\n%s", err, patch)
	}
	var got corev1.Pod
	if err := json.Unmarshal(patched, &got); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(&got)
	if err != nil {
		t.Fatal(err)
	}
	wanted, err := json.Marshal(after)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(wanted), string(again)); diff != "" {
		t.Errorf("the patch makes another pod (-wanted +got)\n%s", diff)
	}
	if n, m := bytes.Count(strange, []byte(unknownField)), bytes.Count(patched, []byte(unknownField)); n != m {
		t.Errorf("of %d fields that are not known %d are left", n, m)
	}
}

const unknownField = `"fieldOfTheFuture"`

// withUnknown adds a field that nobody knows to every object of a document, but for those whose keys are the user's.
func withUnknown(t *testing.T, document []byte) []byte {
	var tree any
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber()
	if err := decoder.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	var add func(any)
	add = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, child := range v {
				switch key {
				case "labels", "annotations", "limits", "requests", "nodeSelector", "matchLabels", "volumeAttributes", "options", "overhead",
					"fieldsV1", "userAnnotations", "resizePolicy", "allocatedResources", "resources", "capacity":
				default:
					add(child)
				}
			}
			v["fieldOfTheFuture"] = "kept"
		case []any:
			for _, child := range v {
				add(child)
			}
		}
	}
	add(tree)
	out, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// kept takes back what Mutate is known to do, and compares what is left with what there was.
func kept(t *testing.T, before, after *corev1.Pod) {
	t.Helper()
	a, b := after.DeepCopy(), before.DeepCopy()
	status, _ := StatusOf(after)
	delete(a.Labels, InjectedLabel)
	delete(b.Labels, InjectedLabel)
	delete(a.Annotations, StatusAnnotation)
	delete(b.Annotations, StatusAnnotation)
	for _, mesh := range meshes {
		for _, name := range []string{mesh.inbound, mesh.outbound} {
			if !strings.HasPrefix(a.Annotations[name], b.Annotations[name]) {
				t.Errorf("%s is %q, and was %q", name, a.Annotations[name], b.Annotations[name])
			}
			delete(a.Annotations, name)
			delete(b.Annotations, name)
		}
	}
	a.Spec.InitContainers = slices.DeleteFunc(a.Spec.InitContainers, isOurs)
	a.Spec.Containers = slices.DeleteFunc(a.Spec.Containers, isOurs)
	if n := len(b.Spec.Volumes); len(a.Spec.Volumes) >= n {
		a.Spec.Volumes = a.Spec.Volumes[:n]
	}
	given := ""
	if sidecar := containerOf(t, after, ContainerName); status.Capture == string(PortName) {
		given = sidecar.Ports[0].Name
	}
	for i := range b.Spec.Containers {
		if i >= len(a.Spec.Containers) || b.Spec.Containers[i].Name != status.Container || a.Spec.Containers[i].Name != status.Container {
			continue
		}
		was, is := &b.Spec.Containers[i], &a.Spec.Containers[i]
		if was.Lifecycle == nil || was.Lifecycle.PreStop == nil {
			is.Lifecycle.PreStop = nil
			if was.Lifecycle == nil {
				is.Lifecycle = nil
			}
		}
		var number int32
		for p := range is.Ports {
			if is.Ports[p].Name == serverName && given != "" {
				is.Ports[p].Name, number = given, is.Ports[p].ContainerPort
			}
		}
		for _, c := range []*corev1.Container{was, is} {
			for _, p := range namedPorts(c) {
				if *p == intstr.FromString(given) && given != "" {
					*p = intstr.FromInt32(number)
				}
			}
		}
		break
	}
	// Empty and absent are one on the wire.
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	var left, right any
	_, _ = json.Unmarshal(x, &left), json.Unmarshal(y, &right)
	for _, tree := range []any{left, right} {
		metadata := tree.(map[string]any)["metadata"].(map[string]any)
		if m, ok := metadata["annotations"].(map[string]any); ok && len(m) == 0 {
			delete(metadata, "annotations")
		}
	}
	if diff := cmp.Diff(right, left); diff != "" {
		t.Errorf("the user's pod is changed (-was +is)\n%s", diff)
	}
}

func isOurs(c corev1.Container) bool { return c.Name == ContainerName || c.Name == redirectName }

func namedPorts(c *corev1.Container) (ports []*intstr.IntOrString) {
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p != nil && p.HTTPGet != nil {
			ports = append(ports, &p.HTTPGet.Port)
		}
		if p != nil && p.TCPSocket != nil {
			ports = append(ports, &p.TCPSocket.Port)
		}
	}
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil && h.HTTPGet != nil {
				ports = append(ports, &h.HTTPGet.Port)
			}
			if h != nil && h.TCPSocket != nil {
				ports = append(ports, &h.TCPSocket.Port)
			}
		}
	}
	return ports
}
