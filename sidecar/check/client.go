package check

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"
)

const (
	askTime = 10 * time.Second
	maxBody = 64 << 20
	page    = "500"
)

// client asks an API server over HTTP: a whole clientset would know sixty groups of the API, and cost the sidecar, which is
// the same program, their memory.
type client struct {
	base *url.URL
	http *http.Client
}

// Connect makes a Cluster of a configuration. It asks nothing yet.
func Connect(config *rest.Config) (Cluster, error) {
	config = rest.CopyConfig(config)
	config.Timeout = askTime
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	c, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	return &client{base: base, http: c}, nil
}

// do sends a request and returns the answer with its body.
func (c *client) do(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, []byte, Clock, error) {
	var clock Clock
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, nil, clock, err
		}
		content = bytes.NewReader(text)
	}
	to := c.base.JoinPath(path)
	to.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, to.String(), content)
	if err != nil {
		return nil, nil, clock, err
	}
	req.Header.Set("Accept", "application/json, */*")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	clock.Asked = time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, clock, err
	}
	clock.Answered = time.Now()
	clock.Shown, _ = http.ParseTime(resp.Header.Get("Date"))
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(text) > maxBody {
		err = fmt.Errorf("%s answers more than %d MiB", path, maxBody>>20)
	}
	return resp, text, clock, err
}

// failure is the API's own error; nil where the answer is none of those.
func failure(resp *http.Response, body []byte) error {
	if resp.StatusCode < 400 {
		return nil
	}
	var s metav1.Status
	if json.Unmarshal(body, &s) == nil && s.Kind == "Status" && s.Reason != "" {
		return &apierrors.StatusError{ErrStatus: s}
	}
	return nil
}

// call sends a request to the API and reads the answer.
func (c *client) call(ctx context.Context, method, path string, query url.Values, body, into any) (*http.Response, Clock, error) {
	resp, text, clock, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return nil, clock, err
	}
	if err := failure(resp, text); err != nil {
		return resp, clock, err
	}
	if resp.StatusCode >= 300 {
		return resp, clock, fmt.Errorf("%s answers %s", path, resp.Status)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return resp, clock, fmt.Errorf("%s answers what is no object of Kubernetes: %w", path, err)
	}
	return resp, clock, nil
}

func get[T any](ctx context.Context, c *client, path string) (*T, error) {
	into := new(T)
	_, _, err := c.call(ctx, http.MethodGet, path, nil, nil, into)
	if err != nil {
		return nil, err
	}
	return into, nil
}

// list reads all pages of a list.
func list[T any](ctx context.Context, c *client, path, selector string) ([]T, error) {
	var all []T
	query := url.Values{"limit": {page}}
	if selector != "" {
		query.Set("labelSelector", selector)
	}
	for {
		var l struct {
			Metadata metav1.ListMeta `json:"metadata"`
			Items    []T             `json:"items"`
		}
		if _, _, err := c.call(ctx, http.MethodGet, path, query, nil, &l); err != nil {
			return nil, err
		}
		all = append(all, l.Items...)
		if l.Metadata.Continue == "" {
			return all, nil
		}
		query.Set("continue", l.Metadata.Continue)
	}
}

// in is the path of a namespace's resource, or of all namespaces'.
func in(api, namespace, resource string) string {
	if namespace == "" {
		return api + "/" + resource
	}
	return api + "/namespaces/" + url.PathEscape(namespace) + "/" + resource
}

const (
	core      = "/api/v1"
	admission = "/apis/admissionregistration.k8s.io/v1"
	auth      = "/apis/authorization.k8s.io/v1"
)

func (c *client) Version(ctx context.Context) (string, Clock, error) {
	var v version.Info
	_, clock, err := c.call(ctx, http.MethodGet, "/version", nil, nil, &v)
	return v.GitVersion, clock, err
}

func (c *client) Webhooks(ctx context.Context) ([]admissionregistrationv1.MutatingWebhookConfiguration, error) {
	return list[admissionregistrationv1.MutatingWebhookConfiguration](ctx, c, admission+"/mutatingwebhookconfigurations", "")
}

func (c *client) Namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	return get[corev1.Namespace](ctx, c, core+"/namespaces/"+url.PathEscape(name))
}

func (c *client) Pods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	return list[corev1.Pod](ctx, c, in(core, namespace, "pods"), selector)
}

func (c *client) Services(ctx context.Context, namespace string) ([]corev1.Service, error) {
	return list[corev1.Service](ctx, c, in(core, namespace, "services"), "")
}

func (c *client) Slices(ctx context.Context, namespace, selector string) ([]discoveryv1.EndpointSlice, error) {
	return list[discoveryv1.EndpointSlice](ctx, c, in("/apis/discovery.k8s.io/v1", namespace, "endpointslices"), selector)
}

func (c *client) Policies(ctx context.Context, namespace string) ([]networkingv1.NetworkPolicy, error) {
	return list[networkingv1.NetworkPolicy](ctx, c, in("/apis/networking.k8s.io/v1", namespace, "networkpolicies"), "")
}

func (c *client) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return get[corev1.Secret](ctx, c, in(core, namespace, "secrets/"+url.PathEscape(name)))
}

func (c *client) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	return get[corev1.ConfigMap](ctx, c, in(core, namespace, "configmaps/"+url.PathEscape(name)))
}

func (c *client) TryPod(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, []string, error) {
	var after corev1.Pod
	sent := pod.DeepCopy()
	sent.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	resp, _, err := c.call(ctx, http.MethodPost, in(core, pod.Namespace, "pods"), url.Values{"dryRun": {metav1.DryRunAll}}, sent, &after)
	var warnings []string
	if resp != nil {
		parsed, _ := utilnet.ParseWarningHeaders(resp.Header.Values("Warning"))
		for _, w := range parsed {
			warnings = append(warnings, w.Text)
		}
	}
	return &after, warnings, err
}

func (c *client) Allowed(ctx context.Context, user string, what authorizationv1.ResourceAttributes) (bool, error) {
	if user == "" {
		review := authorizationv1.SelfSubjectAccessReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"},
			Spec:     authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &what},
		}
		_, _, err := c.call(ctx, http.MethodPost, auth+"/selfsubjectaccessreviews", nil, &review, &review)
		return review.Status.Allowed, err
	}
	review := authorizationv1.SubjectAccessReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SubjectAccessReview"},
		Spec:     authorizationv1.SubjectAccessReviewSpec{User: user, Groups: groups(user), ResourceAttributes: &what},
	}
	_, _, err := c.call(ctx, http.MethodPost, auth+"/subjectaccessreviews", nil, &review, &review)
	return review.Status.Allowed, err
}

func (c *client) Ask(ctx context.Context, namespace, pod string, port int32, path string) (Answer, error) {
	name := url.PathEscape(pod) + ":" + strconv.Itoa(int(port))
	resp, body, clock, err := c.do(ctx, http.MethodGet, in(core, namespace, "pods/"+name+"/proxy"+path), nil, nil)
	if err != nil {
		return Answer{}, err
	}
	if err := failure(resp, body); err != nil {
		return Answer{}, err // of the API server, about the pod
	}
	return Answer{Status: resp.StatusCode, Body: body, Clock: clock}, nil
}
