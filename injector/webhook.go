package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	typednetworkingv1 "k8s.io/client-go/kubernetes/typed/networking/v1"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	// webhookPath is where the API server posts reviews.
	webhookPath = "/mutate"
	// maxReview bounds a review: the API server takes objects of up to 3 MiB, and sends at most one.
	maxReview = 7 << 20
	// patience bounds what a review may ask the API server: that itself waits for three seconds.
	patience = 2 * time.Second
	// maxWarning is what the API server shows of a warning.
	maxWarning = 256
)

// Reasons that package inject does not know.
const (
	undecodable inject.Reason = "undecodable"
	notAPod     inject.Reason = "not_a_pod"
)

// metrics count reviews.
type metrics struct {
	reviews  *prometheus.CounterVec
	warnings prometheus.Counter
	took     prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidestream_injector_reviews_total", Help: "Pods that the API server asked about, by what was decided.",
		}, []string{"reason"}),
		warnings: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_injector_warnings_total", Help: "Warnings about pods that were injected.",
		}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sidestream_injector_review_seconds", Help: "How long a review took.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .5, 1, 3},
		}),
	}
	for _, reason := range append(inject.Reasons(), undecodable, notAPod) {
		m.reviews.WithLabelValues(string(reason))
	}
	r.MustRegister(m.reviews, m.warnings, m.took)
	return m
}

// webhook answers the API server's reviews. It refuses no pod: one that it cannot inject is created as it is, and a warning
// says why.
type webhook struct {
	options    inject.Options
	namespaces *recent[*corev1.Namespace]
	policies   *recent[[]networkingv1.NetworkPolicy]
	ports      *hostPorts
	events     *events
	metrics    *metrics
	logger     *slog.Logger
}

// ServeHTTP implements http.Handler.
func (w *webhook) ServeHTTP(to http.ResponseWriter, r *http.Request) {
	if r.URL.Path != webhookPath {
		http.NotFound(to, r)
		return
	}
	if r.Method != http.MethodPost {
		to.Header().Set("Allow", http.MethodPost)
		http.Error(to, "post a review", http.StatusMethodNotAllowed)
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		http.Error(to, "a review is application/json", http.StatusUnsupportedMediaType)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(to, r.Body, maxReview))
	if err != nil {
		http.Error(to, "read review: "+err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil || review.Request == nil ||
		review.GroupVersionKind() != admissionv1.SchemeGroupVersion.WithKind("AdmissionReview") {
		http.Error(to, "this is no review of admission.k8s.io/v1 with a request", http.StatusBadRequest)
		return
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	review.Response = w.review(ctx, review.Request)
	w.metrics.took.Observe(time.Since(began).Seconds())
	review.Request = nil
	answer, err := json.Marshal(review)
	if err != nil { // ours to mend
		w.logger.Error("an answer cannot be written", "error", err)
		http.Error(to, err.Error(), http.StatusInternalServerError)
		return
	}
	to.Header().Set("Content-Type", "application/json")
	_, _ = to.Write(answer)
}

// review decides about one request.
func (w *webhook) review(ctx context.Context, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	response := &admissionv1.AdmissionResponse{UID: request.UID, Allowed: true}
	logger := w.logger.With("namespace", request.Namespace, "name", request.Name)
	var pod corev1.Pod
	var patch []byte
	decision := inject.Decision{Reason: notAPod, Message: "it is not about a pod that is created"}
	if request.Resource == (metav1.GroupVersionResource{Version: "v1", Resource: "pods"}) && request.SubResource == "" &&
		request.Operation == admissionv1.Create {
		if err := json.Unmarshal(request.Object.Raw, &pod); err != nil {
			decision = inject.Decision{Reason: undecodable, Message: "the pod cannot be read: " + err.Error()}
		} else {
			patch, decision = w.decide(ctx, request, &pod)
		}
	}

	w.metrics.reviews.WithLabelValues(string(decision.Reason)).Inc()
	response.AuditAnnotations = map[string]string{"decision": string(decision.Reason)}
	dry := request.DryRun != nil && *request.DryRun
	owner := metav1.GetControllerOf(&pod)
	if decision.Refused() {
		logger.Warn("pod is not injected", "generateName", pod.GenerateName, "reason", decision.Reason, "message", decision.Message)
		response.Warnings = warnings("not injected: " + decision.Message)
		if !dry {
			w.events.report(ownerReference(request.Namespace, owner), corev1.EventTypeWarning, "NotInjected",
				"A pod gets no sidecar: "+decision.Message)
		}
		return response
	}
	logger.Debug("reviewed", "generateName", pod.GenerateName, "reason", decision.Reason, "message", decision.Message)
	if patch != nil {
		response.Patch, response.PatchType = patch, new(admissionv1.PatchTypeJSONPatch)
	}
	if len(decision.Warnings) > 0 {
		w.metrics.warnings.Add(float64(len(decision.Warnings)))
		response.Warnings = warnings(decision.Warnings...)
		for _, warning := range decision.Warnings {
			logger.Warn("pod is injected, but", "generateName", pod.GenerateName, "warning", warning)
			if !dry {
				w.events.report(ownerReference(request.Namespace, owner), corev1.EventTypeWarning, "InjectedWithWarning", warning)
			}
		}
	}
	return response
}

// decide asks package inject, with what that wants to know of the cluster.
func (w *webhook) decide(ctx context.Context, request *admissionv1.AdmissionRequest, pod *corev1.Pod) ([]byte, inject.Decision) {
	if pod.Labels[inject.Label] != "true" { // before anything is asked for it
		_, decision := inject.Mutate(pod, nil, w.options)
		return nil, decision
	}
	namespace, err := w.namespaces.get(ctx, request.Namespace)
	if err != nil { // of which only the labels of service meshes are wanted
		w.logger.Warn("namespace cannot be read; its labels do not count", "namespace", request.Namespace, "error", err)
	}
	options := w.options
	if options.Native {
		policies, err := w.policies.get(ctx, request.Namespace)
		if err != nil {
			w.logger.Warn("NetworkPolicies cannot be read; the ports that they name do not count", "namespace", request.Namespace, "error", err)
		}
		options.PolicyPorts = inject.PortNames(policies, pod.Labels)
	}
	after, decision := inject.Mutate(pod, namespace, options)
	if decision.Reason == inject.NeedsPorts {
		dry := request.DryRun != nil && *request.DryRun
		options.HostPorts, err = w.ports.of(ctx, workload(request.Namespace, pod), dry)
		if err != nil {
			decision.Message = fmt.Sprintf("%s (%v)", decision.Message, err)
			return nil, decision
		}
		after, decision = inject.Mutate(pod, namespace, options)
	}
	if decision.Reason != inject.Injected {
		return nil, decision
	}
	patch, err := inject.Patch(pod, after)
	if err != nil { // ours to mend
		return nil, inject.Decision{Reason: inject.NotPossible, Message: err.Error()}
	}
	return patch, decision
}

// warnings are as the API server shows them.
func warnings(all ...string) []string {
	out := make([]string, len(all))
	for i, w := range all {
		w = "sidestream: " + w
		if len(w) > maxWarning {
			w = w[:maxWarning-3] + "..."
		}
		out[i] = w
	}
	return out
}

// recent remembers something of each namespace for a moment: a workload's pods come many at a time.
type recent[T any] struct {
	ask func(ctx context.Context, namespace string) (T, error)

	mu    sync.Mutex
	known map[string]answer[T]
}

type answer[T any] struct {
	value T
	asked time.Time
}

const (
	remembered    = 10 * time.Second
	maxNamespaces = 1000
)

func newRecent[T any](ask func(ctx context.Context, namespace string) (T, error)) *recent[T] {
	return &recent[T]{ask: ask, known: map[string]answer[T]{}}
}

// get returns it as it was a moment ago. With an error comes what it was before, if that is remembered.
func (r *recent[T]) get(ctx context.Context, namespace string) (T, error) {
	r.mu.Lock()
	old, ok := r.known[namespace]
	r.mu.Unlock()
	if ok && time.Since(old.asked) < remembered {
		return old.value, nil
	}
	value, err := r.ask(ctx, namespace)
	if err != nil {
		return old.value, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= maxNamespaces {
		clear(r.known)
	}
	r.known[namespace] = answer[T]{value, time.Now()}
	return value, nil
}

// newNamespaces asks for namespaces, of which the labels and annotations are kept; nil is one that is not there.
func newNamespaces(from typedcorev1.NamespacesGetter) *recent[*corev1.Namespace] {
	return newRecent(func(ctx context.Context, name string) (*corev1.Namespace, error) {
		namespace, err := from.Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: namespace.Name, Labels: namespace.Labels, Annotations: namespace.Annotations,
		}}, nil
	})
}

// newPolicies asks for the NetworkPolicies of namespaces.
func newPolicies(from typednetworkingv1.NetworkPoliciesGetter) *recent[[]networkingv1.NetworkPolicy] {
	return newRecent(func(ctx context.Context, namespace string) ([]networkingv1.NetworkPolicy, error) {
		list, err := from.NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	})
}
