package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	podPage  = 500
	listTime = 30 * time.Second
)

// missed looks for pods that ask for a sidecar and have none: the webhook was away when they were created, or could do nothing
// with them. It reports them and leaves them as they are, for they may carry live streams.
type missed struct {
	pods   typedcorev1.PodsGetter
	events *events
	ports  *hostPorts // hears which workloads have pods
	logger *slog.Logger

	found  prometheus.Gauge
	failed prometheus.Counter
	last   int
}

func newMissed(
	pods typedcorev1.PodsGetter, e *events, ports *hostPorts, r prometheus.Registerer, logger *slog.Logger,
) *missed {
	m := &missed{
		pods: pods, events: e, ports: ports, logger: logger,
		found: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sidestream_injector_missed_pods", Help: "Pods that ask for a sidecar and have none.",
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_injector_missed_lookups_failed_total", Help: "Times that pods could not be looked for.",
		}),
	}
	r.MustRegister(m.found, m.failed)
	return m
}

// run looks again and again until ctx ends.
func (m *missed) run(ctx context.Context, every time.Duration) error {
	for {
		if err := m.look(ctx); err != nil && ctx.Err() == nil {
			m.failed.Inc()
			m.logger.Warn("pods without a sidecar cannot be looked for; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// look counts and reports them once.
func (m *missed) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	options := metav1.ListOptions{LabelSelector: inject.Label + "=true", Limit: podPage}
	n := 0
	workloads := map[string]bool{}
	for {
		page, err := m.pods.Pods(metav1.NamespaceAll).List(ctx, options)
		if err != nil {
			return err
		}
		for i := range page.Items {
			pod := &page.Items[i]
			done := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || pod.DeletionTimestamp != nil
			if pod.Spec.HostNetwork {
				workloads[workload(pod.Namespace, pod)] = true
			}
			if done || !inject.Missed(pod) {
				continue
			}
			n++
			m.events.report(&corev1.ObjectReference{
				APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
			}, corev1.EventTypeWarning, "NotInjected", "The pod asks for a sidecar and has none: the injector was not asked when it was created, "+
				"or its owner has an event that says why not. Create it anew when it carries no streams, such as by kubectl rollout restart")
		}
		if options.Continue = page.Continue; options.Continue == "" {
			break
		}
	}
	m.found.Set(float64(n))
	m.ports.seen(workloads, time.Now())
	if n != m.last {
		m.logger.Info("pods that ask for a sidecar and have none", "pods", n)
		m.last = n
	}
	return nil
}
