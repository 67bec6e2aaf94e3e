package check

import (
	"context"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Cluster is what is asked of a cluster. Its errors are the API's (k8s.io/apimachinery/pkg/api/errors) where the API server
// answered. An empty namespace means all, an empty selector all objects.
type Cluster interface {
	// Version asks the API server for its version, such as v1.34.1.
	Version(ctx context.Context) (version string, clock Clock, err error)
	Webhooks(ctx context.Context) ([]admissionregistrationv1.MutatingWebhookConfiguration, error)
	Namespace(ctx context.Context, name string) (*corev1.Namespace, error)
	Pods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error)
	Services(ctx context.Context, namespace string) ([]corev1.Service, error)
	Slices(ctx context.Context, namespace, selector string) ([]discoveryv1.EndpointSlice, error)
	Policies(ctx context.Context, namespace string) ([]networkingv1.NetworkPolicy, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	// TryPod has a pod admitted and not created, and returns it as it would be, with the API server's warnings.
	TryPod(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, []string, error)
	// Allowed says whether somebody may do something: the one who asks, or the user that is named.
	Allowed(ctx context.Context, user string, what authorizationv1.ResourceAttributes) (bool, error)
	// Ask sends GET to a port of a pod, by way of the API server. An answer of the pod is no error, whatever its status.
	Ask(ctx context.Context, namespace, pod string, port int32, path string) (Answer, error)
}

// Answer is a pod's.
type Answer struct {
	Status int
	Body   []byte
	Clock  Clock
}

// Clock is what another's clock showed between two moments of ours.
type Clock struct {
	Asked, Answered time.Time
	Shown           time.Time // in whole seconds; zero: not told
}

// Off is by how much the other's clock is wrong at least, if ours is right.
func (c Clock) Off() time.Duration {
	switch {
	case c.Shown.IsZero():
		return 0
	case c.Shown.After(c.Answered):
		return c.Shown.Sub(c.Answered)
	case c.Shown.Add(time.Second).Before(c.Asked):
		return c.Shown.Add(time.Second).Sub(c.Asked)
	}
	return 0
}
