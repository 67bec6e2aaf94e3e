package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	// checkPatience is how long a check waits for what comes by itself after an installation.
	checkPatience = time.Minute
	checkEvery    = 2 * time.Second
	checkTimeout  = 5 * time.Second
	maxAnswer     = 1 << 20
)

// checker asks, in the API server's place, whether a pod would get a sidecar.
type checker struct {
	webhooks interface {
		Get(ctx context.Context, name string, o metav1.GetOptions) (*admissionregistrationv1.MutatingWebhookConfiguration, error)
	}
	name string // of the webhook configuration
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	out  io.Writer
}

// newChecker reads what it needs of the environment; the injector's other settings are not wanted.
func newChecker(environ []string, out io.Writer) (*checker, error) {
	variables := map[string]string{}
	for _, pair := range environ {
		if name, value, ok := strings.Cut(pair, "="); ok {
			variables[name] = value
		}
	}
	c := &checker{name: variables[prefix+"WEBHOOK"], dial: (&net.Dialer{}).DialContext, out: out}
	if c.name == "" {
		return nil, errors.New("INJECTOR_WEBHOOK: name the webhook configuration to check")
	}
	client, err := connect(variables[prefix+"KUBECONFIG"])
	if err != nil {
		return nil, err
	}
	c.webhooks = client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	return c, nil
}

// run checks until all is well, and at most for checkPatience; its error says what is wrong then.
func (c *checker) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	var last error
	for {
		found, err := c.once(ctx)
		if err == nil {
			_, err := io.WriteString(c.out, found)
			return err
		}
		if last == nil || ctx.Err() == nil { // else it says no more than that the time is over
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(checkEvery):
		}
	}
}

// once checks, and says in lines what it found.
func (c *checker) once(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var found strings.Builder
	configuration, err := c.webhooks.Get(ctx, c.name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("webhook: read %s: %w", c.name, err)
	}
	if len(configuration.Webhooks) != 1 || configuration.Webhooks[0].ClientConfig.Service == nil {
		return "", fmt.Errorf("webhook: %s has %d webhooks, want one that is a Service", c.name, len(configuration.Webhooks))
	}
	config := configuration.Webhooks[0].ClientConfig
	fmt.Fprintf(&found, "ok  webhook             %s\n", c.name)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(config.CABundle) {
		return "", fmt.Errorf("webhook-authority: %s has no caBundle: what the injector's log says of its certificate is why", c.name)
	}
	fmt.Fprintln(&found, "ok  webhook-authority   the caBundle is in place")

	host := config.Service.Name + "." + config.Service.Namespace + ".svc"
	port := "443"
	if config.Service.Port != nil {
		port = strconv.Itoa(int(*config.Service.Port))
	}
	to := url.URL{Scheme: "https", Host: net.JoinHostPort(host, port), Path: "/"}
	if config.Service.Path != nil {
		to.Path = *config.Service.Path
	}
	answer, certificate, err := c.ask(ctx, to.String(), roots)
	if err != nil {
		return "", fmt.Errorf("webhook-reachable: %w", err)
	}
	fmt.Fprintf(&found, "ok  webhook-reachable   %s, certificate good until %s\n", to.Host, certificate.NotAfter.UTC().Format(time.RFC3339))
	switch {
	case !answer.Allowed:
		return "", fmt.Errorf("webhook-injects: the pod is refused: %s", answer.Result)
	case len(answer.Patch) == 0:
		return "", fmt.Errorf("webhook-injects: the pod gets no sidecar: %s", strings.Join(answer.Warnings, "; "))
	case !bytes.Contains(answer.Patch, []byte(inject.StatusAnnotation[len(inject.Domain):])):
		return "", errors.New("webhook-injects: the answer is of another webhook")
	}
	fmt.Fprintln(&found, "ok  webhook-injects     a pod that asks for a sidecar gets one")
	return found.String(), nil
}

// ask posts a review of a pod that asks for a sidecar, as a dry run, by which nothing changes.
func (c *checker) ask(ctx context.Context, to string, roots *x509.CertPool) (*admissionv1.AdmissionResponse, *x509.Certificate, error) {
	pod, err := json.Marshal(corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: "check", Labels: map[string]string{inject.Label: "true"},
			Annotations: map[string]string{inject.Domain + "adapter": "mediamtx"},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "mediamtx", Image: "mediamtx", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8889}},
		}}},
	})
	if err != nil {
		return nil, nil, err
	}
	review, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "check", Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Namespace: "default", Name: "check",
			Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: pod}, DryRun: new(true),
		},
	})
	if err != nil {
		return nil, nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(review))
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{DialContext: c.dial, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, nil, fmt.Errorf("post a review to %s: %w", to, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, nil, fmt.Errorf("post a review to %s: read answer: %w", to, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("post a review to %s: %s: %.200s", to, response.Status, body)
	}
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &answer); err != nil || answer.Response == nil {
		return nil, nil, fmt.Errorf("post a review to %s: %.200q is no answer", to, body)
	}
	return answer.Response, response.TLS.PeerCertificates[0], nil
}
