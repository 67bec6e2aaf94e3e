package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/sidestream-dev/sidestream/injector/inject"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const own = "sidestream"

// harness is a webhook without the port around it.
type harness struct {
	*testing.T
	client   *fake.Clientset
	webhook  *webhook
	events   *events
	registry *prometheus.Registry
}

func newHarness(t *testing.T, objects ...runtime.Object) *harness {
	t.Helper()
	sidecar := config.Default()
	sidecar.Cluster = "germany"
	h := &harness{
		T: t, registry: prometheus.NewRegistry(),
		client: fake.NewClientset(append(objects,
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "media", Labels: map[string]string{"istio-injection": "enabled"}}},
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: own, Name: "ports"}})...),
	}
	logger := slog.New(slog.DiscardHandler)
	h.events = newEvents(h.client.CoreV1(), logger)
	h.webhook = &webhook{
		options: inject.Options{
			Image: "sidestream:1", Revision: "default", Native: true, Sidecar: sidecar,
			Ports: inject.Ports{Gateway: 18080, Peer: 18443, Admin: 18090},
		},
		namespaces: newNamespaces(h.client.CoreV1()), policies: newPolicies(h.client.NetworkingV1()),
		ports:  &hostPorts{maps: h.client.CoreV1().ConfigMaps(own), name: "ports", first: 18100, last: 18103, logger: logger},
		events: h.events, metrics: newMetrics(h.registry), logger: logger,
	}
	return h
}

// written are the events so far.
func (h *harness) written() []corev1.Event {
	h.Helper()
	ctx, cancel := context.WithCancel(h.Context())
	cancel()
	if err := h.events.run(ctx); !errors.Is(err, context.Canceled) {
		h.Errorf("run: %v", err)
	}
	list, err := h.client.CoreV1().Events("").List(h.Context(), metav1.ListOptions{})
	if err != nil {
		h.Fatal(err)
	}
	return list.Items
}

// pod is a MediaMTX of a Deployment.
func pod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "mtx-5d8-", Labels: map[string]string{inject.Label: "true", "pod-template-hash": "5d8"},
			Annotations: map[string]string{"sidestream.dev/adapter": "mediamtx"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "mtx-5d8", UID: "u", Controller: new(true),
			}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "mtx", Image: "mediamtx:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8889}},
		}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

func request(t *testing.T, p *corev1.Pod) *admissionv1.AdmissionRequest {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return &admissionv1.AdmissionRequest{
		UID: "review", Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Namespace: "media",
		Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: text},
	}
}

// A NetworkPolicy of the pod's namespace that names its port makes the sidecar an ordinary container; one that cannot be read
// stops nothing.
func TestNetworkPolicies(t *testing.T) {
	named := intstr.FromString("http")
	policy := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "media", Name: "web"},
		Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
			Ports: []networkingv1.NetworkPolicyPort{{Port: &named}},
		}}},
	}
	other := policy.DeepCopy()
	other.Namespace = "elsewhere"
	for name, tt := range map[string]struct {
		object runtime.Object
		fails  bool
		path   string
	}{
		"native":              {other, false, "/spec/initContainers"},
		"ordinary":            {policy, false, "/spec/containers/1"},
		"who may not read it": {policy, true, "/spec/initContainers"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, tt.object)
			if tt.fails {
				h.client.PrependReactor("list", "networkpolicies", func(clienttesting.Action) (bool, runtime.Object, error) {
					return true, nil, errors.New("forbidden")
				})
			}
			response := h.ask(request(t, pod(nil)))
			if !bytes.Contains(response.Patch, []byte(`"path":"`+tt.path)) {
				t.Errorf("%s", response.Patch)
			}
		})
	}
}

// ask posts a review as the API server does.
func (h *harness) ask(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	h.Helper()
	review := admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: r,
	}
	text, err := json.Marshal(review)
	if err != nil {
		h.Fatal(err)
	}
	req := httptest.NewRequestWithContext(h.Context(), http.MethodPost, webhookPath, bytes.NewReader(text))
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.webhook.ServeHTTP(w, req)
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusOK {
		h.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if answer.Kind != review.Kind || answer.APIVersion != review.APIVersion || answer.Response.UID != r.UID || !answer.Response.Allowed {
		h.Errorf("answer %+v", answer)
	}
	return answer.Response
}

func TestReview(t *testing.T) {
	h := newHarness(t)
	r := request(t, pod(nil))
	answer := h.ask(r)
	if answer.PatchType == nil || *answer.PatchType != admissionv1.PatchTypeJSONPatch || len(answer.Warnings) > 0 {
		t.Fatalf("%+v", answer)
	}
	patch, err := jsonpatch.DecodePatch(answer.Patch)
	if err != nil {
		t.Fatal(err)
	}
	after, err := patch.Apply(r.Object.Raw)
	if err != nil {
		t.Fatal(err)
	}
	var got corev1.Pod
	if err := json.Unmarshal(after, &got); err != nil {
		t.Fatal(err)
	}
	if s, ok := inject.StatusOf(&got); !ok || s.Capture != "port-name" {
		t.Errorf("the patched pod is %s", after)
	}
	if got.Annotations["traffic.sidecar.istio.io/excludeInboundPorts"] == "" {
		t.Error("the namespace's labels do not count")
	}
	if n := len(h.written()); n != 0 {
		t.Errorf("%d events", n)
	}
	if v := testutil.ToFloat64(h.webhook.metrics.reviews.WithLabelValues("injected")); v != 1 {
		t.Errorf("%v are counted", v)
	}
	if problems, err := testutil.GatherAndLint(h.registry); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func TestReviewsThatChangeNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*corev1.Pod)
		alter  func(*admissionv1.AdmissionRequest)
		reason inject.Reason
		warned bool
		event  bool
	}{
		"not asked": {func(p *corev1.Pod) { p.Labels = nil }, nil, inject.NotAsked, false, false},
		"misspelt":  {func(p *corev1.Pod) { p.Annotations["sidestream.dev/adaptor"] = "x" }, nil, inject.BadAnnotation, true, true},
		"misspelt, dry": {
			func(p *corev1.Pod) { p.Annotations["sidestream.dev/adaptor"] = "x" },
			func(r *admissionv1.AdmissionRequest) { r.DryRun = new(true) }, inject.BadAnnotation, true, false,
		},
		"misspelt, bare": {func(p *corev1.Pod) {
			p.Annotations["sidestream.dev/adaptor"] = strings.Repeat("x", 2000)
			p.OwnerReferences = nil
		}, nil, inject.BadAnnotation, true, false},
		"no pod":      {nil, func(r *admissionv1.AdmissionRequest) { r.Resource.Resource = "services" }, notAPod, true, false},
		"subresource": {nil, func(r *admissionv1.AdmissionRequest) { r.SubResource = "exec" }, notAPod, true, false},
		"update":      {nil, func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update }, notAPod, true, false},
		"garbage":     {nil, func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(`{"spec":"x"}`) }, undecodable, true, false},
		"nothing":     {nil, func(r *admissionv1.AdmissionRequest) { r.Object.Raw = nil }, undecodable, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			r := request(t, pod(tt.change))
			if tt.alter != nil {
				tt.alter(r)
			}
			for range 2 { // of the same, one event
				answer := h.ask(r)
				if answer.Patch != nil || answer.PatchType != nil || answer.AuditAnnotations["decision"] != string(tt.reason) {
					t.Errorf("%+v", answer)
				}
				if (len(answer.Warnings) > 0) != tt.warned || tt.warned && len(answer.Warnings[0]) > maxWarning {
					t.Errorf("warnings %q", answer.Warnings)
				}
			}
			if v := testutil.ToFloat64(h.webhook.metrics.reviews.WithLabelValues(string(tt.reason))); v != 2 {
				t.Errorf("%v are counted", v)
			}
			events := h.written()
			if (len(events) == 1) != tt.event || len(events) > 1 {
				t.Fatalf("events %+v", events)
			}
			if tt.event {
				e := events[0]
				if e.Namespace != "media" || e.InvolvedObject.Kind != "ReplicaSet" || e.InvolvedObject.UID != "u" ||
					!strings.Contains(e.Message, "did you mean sidestream.dev/adapter?") || e.Reason != "NotInjected" {
					t.Errorf("%+v", e)
				}
			}
		})
	}
}

// What is not as it should be is told to whoever creates the pod, and to its owner.
func TestWarnings(t *testing.T) {
	h := newHarness(t)
	answer := h.ask(request(t, pod(func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].Name = "" })))
	if answer.Patch == nil || len(answer.Warnings) != 1 || !strings.HasPrefix(answer.Warnings[0], "sidestream: no traffic reaches") {
		t.Errorf("%+v", answer)
	}
	if events := h.written(); len(events) != 1 || events[0].Reason != "InjectedWithWarning" {
		t.Errorf("%+v", events)
	}
}

// On the host's network every workload has ports of its own, and dry runs set none aside.
func TestHostNetwork(t *testing.T) {
	h := newHarness(t)
	host := func(owner string) *admissionv1.AdmissionRequest {
		return request(t, pod(func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
			p.OwnerReferences[0].Kind, p.OwnerReferences[0].Name = "DaemonSet", owner
		}))
	}
	gateway := func(answer *admissionv1.AdmissionResponse) string {
		_, rest, _ := strings.Cut(string(answer.Patch), `"hostPort":`)
		number, _, _ := strings.Cut(rest, ",")
		return number
	}
	dry := host("a")
	dry.DryRun = new(true)
	if got := gateway(h.ask(dry)); got != "18100" {
		t.Errorf("dry: %s", got)
	}
	for _, tt := range []struct{ owner, want string }{{"b", "18100"}, {"c", "18102"}, {"b", "18100"}, {"c", "18102"}} {
		if got := gateway(h.ask(host(tt.owner))); got != tt.want {
			t.Errorf("%s has %s, want %s", tt.owner, got, tt.want)
		}
	}
	answer := h.ask(host("d"))
	if answer.Patch != nil || len(answer.Warnings) != 1 || answer.AuditAnnotations["decision"] != string(inject.NeedsPorts) {
		t.Errorf("with all ports taken: %+v", answer)
	}
	m, err := h.client.CoreV1().ConfigMaps(own).Get(t.Context(), "ports", metav1.GetOptions{})
	if err != nil || len(m.Data) != 2 || m.Data["media.DaemonSet.b"] != "18100" {
		t.Errorf("%v %v", m.Data, err)
	}
}

// Without the API server a pod is injected all the same: only its namespace's labels do not count.
func TestNamespaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		asked := 0
		var trouble error
		h.client.PrependReactor("get", "namespaces", func(clienttesting.Action) (bool, runtime.Object, error) {
			asked++
			return trouble != nil, nil, trouble
		})
		excluded := func() bool {
			answer := h.ask(request(t, pod(nil)))
			if answer.Patch == nil {
				t.Fatalf("%+v", answer)
			}
			return strings.Contains(string(answer.Patch), "excludeInboundPorts")
		}
		trouble = errors.New("nobody there")
		if excluded() {
			t.Error("labels are known although nobody told them")
		}
		trouble = nil
		for range 3 {
			if !excluded() {
				t.Error("labels are not known")
			}
		}
		if asked != 2 {
			t.Errorf("asked %d times", asked)
		}
		time.Sleep(remembered)
		trouble = errors.New("nobody there")
		if !excluded() {
			t.Error("what was known is forgotten")
		}
		for i := range 2 * maxNamespaces {
			r := request(t, pod(nil))
			r.Namespace = fmt.Sprint("n", i)
			trouble = nil
			h.ask(r)
		}
		if n := len(h.webhook.namespaces.known); n > maxNamespaces {
			t.Errorf("%d are remembered", n)
		}
	})
}

func TestNoReviews(t *testing.T) {
	h := newHarness(t)
	for name, tt := range map[string]struct {
		method, path, kind, body string
		status                   int
	}{
		"path":      {"POST", "/", "application/json", "{}", 404},
		"method":    {"GET", webhookPath, "", "", 405},
		"kind":      {"POST", webhookPath, "text/plain", "{}", 415},
		"garbage":   {"POST", webhookPath, "application/json", "x", 400},
		"empty":     {"POST", webhookPath, "application/json; charset=utf-8", "{}", 400},
		"version":   {"POST", webhookPath, "application/json", `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","request":{}}`, 400},
		"too large": {"POST", webhookPath, "application/json", strings.Repeat(" ", maxReview+1), 413},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), tt.method, tt.path, strings.NewReader(tt.body))
			r.Header.Set("Content-Type", tt.kind)
			w := httptest.NewRecorder()
			h.webhook.ServeHTTP(w, r)
			if w.Code != tt.status {
				t.Errorf("%d %s, want %d", w.Code, w.Body, tt.status)
			}
		})
	}
}

// Pods that ask for a sidecar and have none are counted, and told of once each.
func TestMissed(t *testing.T) {
	make := func(name string, change func(*corev1.Pod)) *corev1.Pod {
		return pod(func(p *corev1.Pod) {
			p.Namespace, p.Name, p.GenerateName, p.UID = "media", name, "", "uid-1"
			if change != nil {
				change(p)
			}
		})
	}
	injected, decision := inject.Mutate(make("good", nil), nil, newHarness(t).webhook.options)
	if decision.Reason != inject.Injected {
		t.Fatal(decision)
	}
	h := newHarness(
		t, injected, make("missed", nil),
		make("done", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		make("going", func(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.Now()) }),
		make("never asked", func(p *corev1.Pod) { p.Labels = nil }),
	)
	m := newMissed(h.client.CoreV1(), h.events, h.webhook.ports, h.registry, slog.New(slog.DiscardHandler))
	for range 2 {
		if err := m.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := testutil.ToFloat64(m.found); n != 1 {
			t.Errorf("%v pods", n)
		}
	}
	if events := h.written(); len(events) != 1 || events[0].InvolvedObject.Name != "missed" || events[0].InvolvedObject.Kind != "Pod" {
		t.Errorf("%+v", events)
	}
	for _, name := range []string{"missed", "good"} { // nothing is done to them
		if _, err := h.client.CoreV1().Pods("media").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
	h.client.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("nobody there")
	})
	if m.look(t.Context()) == nil {
		t.Error("no error")
	}
	if n := testutil.ToFloat64(m.found); n != 1 {
		t.Errorf("what cannot be counted is %v", n)
	}
}

// Events do not keep the webhook waiting, however many there are.
func TestManyEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // to write them takes as long as it takes
		h := newHarness(t)
		for i := range 3 * maxEvents {
			h.events.report(&corev1.ObjectReference{Namespace: "media", Name: "x", UID: "u"}, "Warning", "Test", fmt.Sprint(i))
		}
		if n := len(h.written()); n != maxEvents {
			t.Errorf("%d events", n)
		}
	})
}

// BenchmarkReview is what one pod costs.
func BenchmarkReview(b *testing.B) {
	sidecar := config.Default()
	sidecar.Cluster = "germany"
	p := pod(nil)
	o := inject.Options{
		Image: "sidestream:1", Revision: "default", Native: true, Sidecar: sidecar, Ports: inject.Ports{Gateway: 18080, Peer: 18443, Admin: 18090},
	}
	for b.Loop() {
		after, _ := inject.Mutate(p, nil, o)
		if _, err := inject.Patch(p, after); err != nil {
			b.Fatal(err)
		}
	}
}
