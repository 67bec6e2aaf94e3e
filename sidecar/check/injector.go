package check

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

const (
	// injectorSecret is where the injector keeps its certificate unless it is told otherwise.
	injectorSecret = "sidestream-injector-certs"
	// enoughDays is how long a certificate should still be valid. The injector's live for 90 days, and are renewed after 60.
	enoughDays = 14
	// maxSkew is how far clocks may be apart: tokens of pulls are for a minute.
	maxSkew = 5 * time.Second
)

func checkAPI(_ context.Context, v *view) finding {
	var major, minor int
	if _, err := fmt.Sscanf(v.version, "v%d.%d", &major, &minor); err != nil {
		return warn("the API server answers, and its version is %q", v.version)
	}
	switch {
	case major == 1 && minor < 29:
		return warn("Kubernetes %s has no native sidecars: they are ordinary containers, which end with the media server", v.version)
	case major == 1 && minor < 33:
		return ok("Kubernetes %s; sidecars are ordinary containers before 1.33", v.version)
	}
	return ok("Kubernetes %s", v.version)
}

// rights are what these checks need.
var rights = []authorizationv1.ResourceAttributes{
	{Group: "admissionregistration.k8s.io", Resource: "mutatingwebhookconfigurations", Verb: "list"},
	{Resource: "pods", Verb: "list", Namespace: "."},
	{Resource: "pods", Verb: "create", Namespace: "."},
	{Resource: "pods", Subresource: "proxy", Verb: "get", Namespace: "."},
	{Resource: "services", Verb: "list", Namespace: "."},
	{Resource: "secrets", Verb: "get", Namespace: "."},
	{Group: discoveryv1.GroupName, Resource: "endpointslices", Verb: "list", Namespace: "."},
	{Group: "networking.k8s.io", Resource: "networkpolicies", Verb: "list", Namespace: "."},
}

func checkRights(ctx context.Context, v *view) finding {
	var missing []string
	for _, what := range rights {
		if what.Namespace != "" {
			what.Namespace = v.Namespace
		}
		allowed, err := v.cluster.Allowed(ctx, "", what)
		if err != nil {
			return unseen("your rights", err)
		}
		if !allowed {
			missing = append(missing, right(what))
		}
	}
	return unless(missing, warn("you may not do all that these checks need"), ok("you may do all that these checks need"))
}

func right(what authorizationv1.ResourceAttributes) string {
	name := what.Resource
	if what.Subresource != "" {
		name += "/" + what.Subresource
	}
	if what.Namespace != "" {
		return fmt.Sprintf("%s %s in namespace %s", what.Verb, name, what.Namespace)
	}
	return what.Verb + " " + name
}

func checkClocks(_ context.Context, v *view) finding {
	var wrong []string
	say := func(who string, c Clock) {
		if off := c.Off(); off.Abs() > maxSkew {
			wrong = append(wrong, fmt.Sprintf("%s: %s off this machine's", who, off.Round(time.Second)))
		}
	}
	say("API server", v.clock)
	n := 1
	for _, s := range v.injected {
		if s.asked && s.err == nil {
			n++
			say(s.name(), s.ready.Clock)
		}
	}
	return unless(wrong, warn("clocks are more than %s apart", maxSkew), ok("%d clocks are less than %s off this machine's", n, maxSkew))
}

// noHooks says why there is no webhook to look at.
func (v *view) noHooks() *finding {
	var f finding
	switch {
	case v.hooksErr != nil:
		f = unseen("webhook configurations", v.hooksErr)
	case len(v.hooks) == 0:
		f = skip("no webhook is there")
	default:
		return nil
	}
	return &f
}

func checkWebhook(_ context.Context, v *view) finding {
	if v.hooksErr != nil {
		return unseen("webhook configurations", v.hooksErr)
	}
	if len(v.hooks) == 0 {
		return fail("no webhook asks about pods with the label %s", inject.Label)
	}
	var names, wrong []string
	for _, h := range v.hooks {
		names = append(names, h.configuration)
		if !createsPods(h.Rules) {
			wrong = append(wrong, h.configuration+" is not asked when pods are created")
		}
		if h.FailurePolicy != nil && *h.FailurePolicy == admissionregistrationv1.Fail {
			wrong = append(wrong, h.configuration+" has failurePolicy Fail: labelled pods cannot be created while the injector is away")
		}
	}
	return unless(wrong, warn("webhook configuration %s", strings.Join(unique(names), ", ")),
		ok("webhook configuration %s", strings.Join(unique(names), ", ")))
}

func createsPods(rules []admissionregistrationv1.RuleWithOperations) bool {
	has := func(all []string, wanted string) bool {
		return strings.Contains(" "+strings.Join(all, " ")+" ", " "+wanted+" ") || strings.Contains(" "+strings.Join(all, " ")+" ", " * ")
	}
	for _, r := range rules {
		for _, o := range r.Operations {
			if (o == admissionregistrationv1.Create || o == admissionregistrationv1.OperationAll) && has(r.Resources, "pods") {
				return true
			}
		}
	}
	return false
}

func checkWebhookNamespace(_ context.Context, v *view) finding {
	if f := v.noHooks(); f != nil {
		return *f
	}
	if apierrors.IsNotFound(v.spaceErr) {
		f := fail("there is no namespace %s", v.Namespace)
		f.hint = "name that of the media servers by -n"
		return f
	}
	if v.spaceErr != nil {
		return unseen("namespace "+v.Namespace, v.spaceErr)
	}
	for _, h := range v.hooks {
		selector, err := metav1.LabelSelectorAsSelector(h.NamespaceSelector)
		if h.NamespaceSelector == nil {
			selector, err = labels.Everything(), nil
		}
		if err == nil && selector.Matches(labels.Set(v.space.Labels)) {
			return ok("the injector is asked about pods of namespace %s", v.Namespace)
		}
	}
	return fail("no webhook is asked about pods of namespace %s", v.Namespace)
}

// checkBundle looks at the authorities by which the API server knows the webhook.
func checkBundle(_ context.Context, v *view) finding {
	if f := v.noHooks(); f != nil {
		return *f
	}
	var until time.Time
	for _, h := range v.hooks {
		if len(h.ClientConfig.CABundle) == 0 {
			return fail("%s has no caBundle: the API server cannot trust the injector", h.configuration)
		}
		all, err := parse(h.ClientConfig.CABundle)
		if err != nil {
			return fail("%s has a caBundle that cannot be read: %v", h.configuration, err)
		}
		last := all[0].NotAfter
		for _, c := range all {
			if c.NotAfter.After(last) {
				last = c.NotAfter
			}
		}
		if until.IsZero() || last.Before(until) {
			until = last
		}
	}
	return v.days(until, "the caBundle's last authority")
}

// days is a finding about a certificate's end.
func (v *view) days(until time.Time, what string) finding {
	left := until.Sub(v.Now())
	days := int(left.Hours() / 24)
	switch {
	case left <= 0:
		return fail("%s expired on %s", what, until.UTC().Format(time.DateOnly))
	case days < enoughDays:
		return warn("%s expires in %d days", what, days)
	}
	return ok("%s is valid for %d more days", what, days)
}

// parse reads a bundle of certificates, at least one.
func parse(text []byte) (all []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("it holds no certificate in PEM")
	}
	return all, nil
}

// checkLeaf looks at what the injector serves.
func checkLeaf(ctx context.Context, v *view) finding {
	if f := v.noHooks(); f != nil {
		return *f
	}
	h := v.hooks[0]
	at := h.ClientConfig.Service
	if at == nil {
		return skip("the webhook is outside the cluster, at a URL")
	}
	secret, err := v.cluster.Secret(ctx, at.Namespace, injectorSecret)
	if err != nil {
		return unseen(fmt.Sprintf("Secret %s/%s", at.Namespace, injectorSecret), err)
	}
	all, err := parse(secret.Data[corev1.TLSCertKey])
	if err != nil {
		return fail("the certificate in Secret %s/%s cannot be read: %v", at.Namespace, injectorSecret, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(h.ClientConfig.CABundle)
	_, err = all[0].Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: v.Now(), DNSName: at.Name + "." + at.Namespace + ".svc",
	})
	if err != nil && v.Now().Before(all[0].NotAfter) {
		return fail("the API server does not trust the injector's certificate: %v", err)
	}
	return v.days(all[0].NotAfter, "the injector's certificate")
}

// checkInjector looks for replicas that are ready.
func checkInjector(ctx context.Context, v *view) finding {
	if f := v.noHooks(); f != nil {
		return *f
	}
	at := v.hooks[0].ClientConfig.Service
	if at == nil {
		return skip("the webhook is outside the cluster, at a URL")
	}
	slices, err := v.cluster.Slices(ctx, at.Namespace, discoveryv1.LabelServiceName+"="+at.Name)
	if err != nil {
		return unseen("endpoints of the injector", err)
	}
	ready := 0
	for _, s := range slices {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				ready++
			}
		}
	}
	switch ready {
	case 0:
		return fail("no replica of the injector is ready in namespace %s", at.Namespace)
	case 1:
		return warn("one replica of the injector is ready: pods that are created while it restarts get no sidecar")
	}
	return ok("%d replicas of the injector are ready", ready)
}

// checkInjection has a pod admitted that is never created.
func checkInjection(ctx context.Context, v *view) finding {
	if f := v.noHooks(); f != nil {
		return *f
	}
	after, warnings, err := v.cluster.TryPod(ctx, trial(v.Namespace))
	switch {
	case apierrors.IsInternalError(err):
		return fail("the API server cannot ask the injector: %v", err)
	case err != nil:
		return unseen("a pod that was tried in namespace "+v.Namespace, err)
	}
	if s, ok := inject.StatusOf(after); ok {
		return finding{status: OK, message: fmt.Sprintf("a labelled pod gets a sidecar of image %s", s.Image)}
	}
	return unless(warnings, fail("a labelled pod gets no sidecar, and the webhook says why"),
		fail("a labelled pod gets no sidecar: the API server does not reach the injector, or it is not asked about namespace %s", v.Namespace))
}

// trial is a pod that passes Pod Security "restricted" and asks for a sidecar.
func trial(namespace string) *corev1.Pod {
	little := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi")}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: "sidestream-check",
			Labels:      map[string]string{inject.Label: "true"},
			Annotations: map[string]string{inject.Domain + "adapter": "mediamtx"},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "sfu", Image: "example.invalid/sfu:1",
			Ports:     []corev1.ContainerPort{{Name: "http", ContainerPort: 8889}},
			Resources: corev1.ResourceRequirements{Requests: little, Limits: little},
			SecurityContext: &corev1.SecurityContext{
				RunAsNonRoot: new(true), RunAsUser: new(int64(65532)), AllowPrivilegeEscalation: new(false),
				Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
		}}},
	}
}

// checkPeerSecret looks at what the peers prove themselves by.
func checkPeerSecret(ctx context.Context, v *view) finding {
	if f := v.noPods(); f != nil {
		return *f
	}
	var names []string
	for _, s := range v.injected {
		if s.env("SIDESTREAM_PEER_SECURITY") == "plaintext" {
			f := warn("the peers trust whoever comes: their traffic is plain, as SIDESTREAM_PEER_SECURITY says")
			f.hint = "plain traffic is for tests, or for networks that encrypt it themselves"
			return f
		}
		for _, volume := range s.pod.Spec.Volumes {
			if volume.Name == "sidestream-peer" && volume.Secret != nil {
				names = append(names, volume.Secret.SecretName)
			}
		}
	}
	if names = unique(names); len(names) == 0 {
		return skip("no injected pod mounts a Secret for its peers")
	}
	worst := ok("the peers' Secret %s holds a key", strings.Join(names, ", "))
	for _, name := range names {
		secret, err := v.cluster.Secret(ctx, v.Namespace, name)
		if apierrors.IsNotFound(err) {
			return fail("there is no Secret %s, by which peers prove themselves", name)
		}
		if err != nil {
			return unseen("Secret "+name, err)
		}
		if len(bytes.TrimSpace(secret.Data["key"])) > 0 && len(secret.Data[corev1.TLSCertKey]) == 0 {
			continue
		}
		for _, key := range []string{corev1.TLSCertKey, "ca.crt"} {
			all, err := parse(secret.Data[key])
			if err != nil {
				return fail("%s of Secret %s cannot be read: %v", key, name, err)
			}
			f := v.days(all[0].NotAfter, key+" of Secret "+name)
			if worst.status == OK || f.status == Fail {
				worst = f
			}
		}
	}
	return worst
}
