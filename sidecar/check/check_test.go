package check

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/sidestream-dev/sidestream/injector/inject"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// installation is a cluster in which all is well, before a test changes it.
type installation struct {
	client  kubernetes.Interface
	tb      testing.TB
	objects []runtime.Object
	version string
	clock   Clock
	// denied are the resources that may not be seen, and users those that may nothing.
	denied, users []string
	admitted      func(*corev1.Pod) (*corev1.Pod, []string, error)
	answers       map[string]Answer // by path; of every pod
	unreachable   error             // pods are not reached
	away          string            // the one pod that is not
}

func (in *installation) see(resource string) error {
	if slices.Contains(in.denied, resource) {
		return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", errors.New("RBAC"))
	}
	return nil
}

func (in *installation) Version(context.Context) (string, Clock, error) {
	return in.version, in.clock, in.see("version")
}

func items[L any, T any](in *installation, resource string, list L, err error, of func(L) []T) ([]T, error) {
	if err := in.see(resource); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	return of(list), nil
}

func (in *installation) Webhooks(ctx context.Context) ([]admissionregistrationv1.MutatingWebhookConfiguration, error) {
	l, err := in.client.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	return items(in, "webhooks", l, err, func(l *admissionregistrationv1.MutatingWebhookConfigurationList) []admissionregistrationv1.MutatingWebhookConfiguration {
		return l.Items
	})
}

func (in *installation) Namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	return in.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
}

func (in *installation) Pods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	l, err := in.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	return items(in, "pods", l, err, func(l *corev1.PodList) []corev1.Pod { return l.Items })
}

func (in *installation) Services(ctx context.Context, namespace string) ([]corev1.Service, error) {
	l, err := in.client.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	return items(in, "services", l, err, func(l *corev1.ServiceList) []corev1.Service { return l.Items })
}

func (in *installation) Slices(ctx context.Context, namespace, selector string) ([]discoveryv1.EndpointSlice, error) {
	l, err := in.client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	return items(in, "slices", l, err, func(l *discoveryv1.EndpointSliceList) []discoveryv1.EndpointSlice { return l.Items })
}

func (in *installation) Policies(ctx context.Context, namespace string) ([]networkingv1.NetworkPolicy, error) {
	l, err := in.client.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
	return items(in, "policies", l, err, func(l *networkingv1.NetworkPolicyList) []networkingv1.NetworkPolicy { return l.Items })
}

func (in *installation) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	if err := in.see("secrets"); err != nil {
		return nil, err
	}
	return in.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (in *installation) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	if err := in.see("configmaps"); err != nil {
		return nil, err
	}
	return in.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (in *installation) TryPod(_ context.Context, pod *corev1.Pod) (*corev1.Pod, []string, error) {
	return in.admitted(pod)
}

func (in *installation) Allowed(_ context.Context, user string, what authorizationv1.ResourceAttributes) (bool, error) {
	if user == "" {
		return !slices.Contains(in.denied, what.Resource), nil
	}
	return !slices.Contains(in.users, user), in.see("reviews")
}

func (in *installation) Ask(_ context.Context, _, pod string, port int32, path string) (Answer, error) {
	if pod == in.away {
		return Answer{}, apierrors.NewServiceUnavailable("connection refused")
	}
	if port != 18090 {
		in.tb.Errorf("asked at port %d", port)
	}
	return in.answers[path], in.unreachable
}

func options(tb testing.TB) inject.Options {
	tb.Helper()
	sidecar := config.Default()
	sidecar.Cluster, sidecar.Peer.Service = "germany", "sidestream-peers"
	o, err := inject.Options{
		Image: "example.invalid/sidestream:1", Revision: "default", Native: true, PeerSecret: "sidestream-peer-tls",
	}.With(sidecar)
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

// pod is one that asks for a sidecar.
func pod(name string) *corev1.Pod {
	p := trial("media")
	p.Name, p.UID = name, "uid"
	p.Labels["app"], p.Labels["pod-template-hash"] = "sfu", "abc"
	p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "sfu-abc", Controller: new(true)}}
	p.Status.Phase = corev1.PodRunning
	return p
}

// injected is one that has it.
func injected(tb testing.TB, name string, change func(*corev1.Pod), o inject.Options) *corev1.Pod {
	tb.Helper()
	p := pod(name)
	if change != nil {
		change(p)
	}
	p, decision := inject.Mutate(p, nil, o)
	if decision.Reason != inject.Injected {
		tb.Fatal(decision)
	}
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: inject.ContainerName, Ready: true}}
	return p
}

// authority is a certificate that signs itself.
func authority(tb testing.TB, until time.Time) []byte {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: until,
		DNSNames: []string{"injector.sidestream.svc"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func slice(name, cluster string, labels map[string]string, addresses ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "media", Labels: map[string]string{}}}
	maps.Copy(s.Labels, labels)
	if cluster != "" {
		s.Labels[sourceCluster] = cluster
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

const (
	healthy = `{"cluster":"germany","version":"v1","peers":[{"cluster":"singapore","connected":true,"version":"v1"}],"relays":[{"stream":"show","state":"live"}]}`
	media   = "media"
)

func newInstallation(tb testing.TB) *installation {
	tb.Helper()
	bundle := authority(tb, now.AddDate(0, 2, 0))
	peers := map[string]string{discoveryv1.LabelServiceName: "sidestream-peers"}
	of := slice("injector", "", map[string]string{discoveryv1.LabelServiceName: "injector"}, "10.0.0.1", "10.0.0.2")
	of.Namespace = "sidestream"
	in := &installation{
		tb: tb, version: "v1.34.1", clock: Clock{now, now, now},
		answers: map[string]Answer{
			"/readyz":     {Status: 200, Body: []byte("ok"), Clock: Clock{now, now, now}},
			"/api/status": {Status: 200, Body: []byte(healthy)},
		},
		admitted: func(p *corev1.Pod) (*corev1.Pod, []string, error) {
			after, _ := inject.Mutate(p, nil, options(tb))
			return after, nil, nil
		},
	}
	in.objects = []runtime.Object{
		&admissionregistrationv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "sidestream-injector"},
			Webhooks: []admissionregistrationv1.MutatingWebhook{{
				ClientConfig: admissionregistrationv1.WebhookClientConfig{
					CABundle: bundle, Service: &admissionregistrationv1.ServiceReference{Namespace: "sidestream", Name: "injector"},
				},
				Rules: []admissionregistrationv1.RuleWithOperations{{
					Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
					Rule:       admissionregistrationv1.Rule{Resources: []string{"pods"}},
				}},
				ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{inject.Label: "true"}},
				NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
					Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"kube-system"},
				}}},
			}},
		},
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "sidestream", Name: injectorSecret}, Data: map[string][]byte{"tls.crt": bundle},
		},
		of,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: media, Labels: map[string]string{corev1.LabelMetadataName: media}}},
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "cilium-config"},
			Data:       map[string]string{"clustermesh-enable-endpoint-sync": "true"},
		},
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: media, Name: "sidestream-peers", Annotations: map[string]string{globalService: "true"}},
			Spec: corev1.ServiceSpec{
				ClusterIP: corev1.ClusterIPNone, PublishNotReadyAddresses: true,
				Selector: map[string]string{inject.InjectedLabel: "true"},
				Ports:    []corev1.ServicePort{{Name: inject.PeerPortName, Port: 18443}},
			},
		},
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: media, Name: "sfu"},
			Spec: corev1.ServiceSpec{
				ClusterIP: "10.96.0.7", Selector: map[string]string{"app": "sfu"},
				Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}},
			},
		},
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: media, Name: "sidestream-peer-tls"},
			Data:       map[string][]byte{"tls.crt": bundle, "ca.crt": bundle},
		},
		slice("own", "", peers, "10.1.0.1", "10.1.0.2"),
		slice("far", "singapore", peers, "10.2.0.1"),
		injected(tb, "sfu-1", nil, options(tb)),
		injected(tb, "sfu-2", nil, options(tb)),
	}
	return in
}

// change changes the object of a name.
func change[T interface {
	runtime.Object
	metav1.Object
}](in *installation, name string, f func(T)) {
	for _, o := range in.objects {
		if one, ok := o.(T); ok && one.GetName() == name {
			f(one)
			return
		}
	}
	in.tb.Fatalf("there is no %s", name)
}

func (in *installation) remove(name string) {
	in.objects = slices.DeleteFunc(in.objects, func(o runtime.Object) bool { return o.(metav1.Object).GetName() == name })
}

func (in *installation) check() []Result {
	in.tb.Helper()
	in.client = fake.NewClientset(in.objects...)
	results, err := Run(in.tb.Context(), in, Options{
		Namespace: media, Clusters: []string{"germany", "singapore"}, Now: func() time.Time { return now },
	})
	if err != nil {
		in.tb.Fatal(err)
	}
	return results
}

// odd are the statuses of the checks that are not well.
func odd(results []Result) map[string]Status {
	found := map[string]Status{}
	for _, r := range results {
		if r.Status != OK {
			found[r.ID] = r.Status
		}
	}
	return found
}

type odds = map[string]Status

// Each row breaks one thing, and the checks that look at it say so: no others do.
func TestChecks(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(in *installation)
		want   odds
		word   string // somewhere in what the first of them says
	}{
		"all is well": {func(*installation) {}, odds{}, ""},
		"old Kubernetes": {
			func(in *installation) { in.version = "v1.27.3-gke.1" }, odds{"api-version": Warn}, "v1.27.3",
		},
		"few rights": {func(in *installation) {
			in.denied = []string{"secrets", "mutatingwebhookconfigurations"}
		}, odds{"rights": Warn, "webhook-certificate": Skip, "peer-secret": Skip}, "get secrets in namespace media"},
		"no rights for webhooks": {func(in *installation) { in.denied = []string{"webhooks"} }, odds{
			"webhook": Skip, "webhook-namespace": Skip, "webhook-authority": Skip, "webhook-certificate": Skip, "injector-ready": Skip,
			"injection": Skip,
		}, "you may not see that"},
		"clock of a pod": {func(in *installation) {
			a := in.answers["/readyz"]
			a.Clock.Shown = now.Add(-time.Minute)
			in.answers["/readyz"] = a
		}, odds{"clocks": Warn}, "media/sfu-1: -59s off"},
		"no webhook": {func(in *installation) { in.remove("sidestream-injector") }, odds{
			"webhook": Fail, "webhook-namespace": Skip, "webhook-authority": Skip, "webhook-certificate": Skip, "injector-ready": Skip,
			"injection": Skip,
		}, inject.Label},
		"closed failure policy": {func(in *installation) {
			change(in, "sidestream-injector", func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
				c.Webhooks[0].FailurePolicy = new(admissionregistrationv1.Fail)
			})
		}, odds{"webhook": Warn}, "while the injector is away"},
		"namespace left out": {func(in *installation) {
			change(in, "sidestream-injector", func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
				c.Webhooks[0].NamespaceSelector.MatchExpressions[0].Values = []string{media}
			})
		}, odds{"webhook-namespace": Fail}, media},
		"no namespace": {func(in *installation) {
			in.objects = slices.DeleteFunc(in.objects, func(o runtime.Object) bool { _, is := o.(*corev1.Namespace); return is })
		}, odds{"webhook-namespace": Fail, "namespace-global": Skip}, "no namespace media"},
		"no bundle": {func(in *installation) {
			change(in, "sidestream-injector", func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
				c.Webhooks[0].ClientConfig.CABundle = nil
			})
		}, odds{"webhook-authority": Fail, "webhook-certificate": Fail}, "cannot trust"},
		"other bundle": {func(in *installation) {
			change(in, "sidestream-injector", func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
				c.Webhooks[0].ClientConfig.CABundle = authority(in.tb, now.AddDate(1, 0, 0))
			})
		}, odds{"webhook-certificate": Fail}, "does not trust"},
		"certificates of some days": {func(in *installation) {
			soon := authority(in.tb, now.AddDate(0, 0, 3))
			change(in, "sidestream-injector", func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
				c.Webhooks[0].ClientConfig.CABundle = soon
			})
			change(in, injectorSecret, func(s *corev1.Secret) { s.Data["tls.crt"] = soon })
			change(in, "sidestream-peer-tls", func(s *corev1.Secret) { s.Data["tls.crt"] = authority(in.tb, now.AddDate(0, 0, -3)) })
		}, odds{"webhook-authority": Warn, "webhook-certificate": Warn, "peer-secret": Fail}, "in 3 days"},
		"injector away": {func(in *installation) {
			change(in, "injector", func(s *discoveryv1.EndpointSlice) {
				s.Endpoints[0].Conditions.Ready, s.Endpoints[1].Conditions.Ready = new(false), new(false)
			})
			in.admitted = func(p *corev1.Pod) (*corev1.Pod, []string, error) { return p, nil, nil }
		}, odds{"injector-ready": Fail, "injection": Fail}, "no replica"},
		"injector alone": {func(in *installation) {
			change(in, "injector", func(s *discoveryv1.EndpointSlice) { s.Endpoints = s.Endpoints[:1] })
		}, odds{"injector-ready": Warn}, "one replica"},
		"injector at a URL": {func(in *installation) {
			change(in, "sidestream-injector", func(c *admissionregistrationv1.MutatingWebhookConfiguration) {
				c.Webhooks[0].ClientConfig.Service = nil
			})
		}, odds{"webhook-certificate": Skip, "injector-ready": Skip}, "URL"},
		"webhook that fails": {func(in *installation) {
			in.admitted = func(*corev1.Pod) (*corev1.Pod, []string, error) {
				return nil, nil, apierrors.NewInternalError(errors.New("failed calling webhook"))
			}
		}, odds{"injection": Fail}, "failed calling webhook"},
		"policy against the tried pod": {func(in *installation) {
			in.admitted = func(*corev1.Pod) (*corev1.Pod, []string, error) {
				return nil, nil, apierrors.NewBadRequest("image not allowed")
			}
		}, odds{"injection": Skip}, "image not allowed"},
		"no Service": {
			func(in *installation) { in.remove("sidestream-peers") },
			odds{"peer-service": Fail, "peer-service-global": Skip},
			"no Service sidestream-peers",
		},
		"Service with an address": {func(in *installation) {
			change(in, "sidestream-peers", func(s *corev1.Service) {
				s.Spec.ClusterIP, s.Spec.PublishNotReadyAddresses = "10.96.0.9", false
			})
		}, odds{"peer-service": Fail}, "clusterIP: None"},
		"Service not global": {func(in *installation) {
			change(in, "sidestream-peers", func(s *corev1.Service) { s.Annotations = nil })
		}, odds{"peer-service-global": Fail}, globalService},
		"no Cilium": {
			func(in *installation) { in.remove("cilium-config") },
			odds{"slice-sync": Skip, "namespace-global": Skip},
			"there is none",
		},
		"Cilium without slices": {func(in *installation) {
			change(in, "cilium-config", func(m *corev1.ConfigMap) {
				m.Data = map[string]string{"clustermesh-default-global-namespace": "false"}
			})
		}, odds{"slice-sync": Fail, "namespace-global": Fail}, "other clusters"},
		"missing cluster": {
			func(in *installation) { in.remove("far") },
			odds{"slices": Fail},
			"cluster singapore",
		},
		"no rights for pods": {
			func(in *installation) { in.users = []string{"system:serviceaccount:media:default"} },
			odds{"slice-rights": Fail},
			"get, list, watch",
		},
		"no Secret of peers": {
			func(in *installation) { in.remove("sidestream-peer-tls") },
			odds{"peer-secret": Fail},
			"sidestream-peer-tls",
		},
		"shared key": {func(in *installation) {
			change(in, "sidestream-peer-tls", func(s *corev1.Secret) { s.Data = map[string][]byte{"key": []byte("k")} })
		}, odds{}, ""},
		"pods not reached": {func(in *installation) {
			in.unreachable = apierrors.NewServiceUnavailable("dial tcp: timeout")
		}, odds{"peers": Skip, "relays": Skip, "media-servers": Skip, "udp": Skip}, "dial tcp: timeout"},
		"one pod not reached": {
			func(in *installation) { in.away = "sfu-2" },
			odds{"media-servers": Fail},
			"media/sfu-2: its sidecar does not answer: connection refused",
		},
		"plain traffic": {func(in *installation) {
			for _, name := range []string{"sfu-1", "sfu-2"} {
				change(in, name, func(p *corev1.Pod) {
					c := &p.Spec.InitContainers[0]
					c.Env = append(c.Env, corev1.EnvVar{Name: "SIDESTREAM_PEER_SECURITY", Value: "plaintext"})
				})
			}
		}, odds{"peer-secret": Warn}, "trust whoever comes"},
		"peers by DNS": {func(in *installation) {
			in.remove("sidestream-peers")
			for _, name := range []string{"sfu-1", "sfu-2"} {
				change(in, name, func(p *corev1.Pod) {
					c := &p.Spec.InitContainers[0]
					c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "SIDESTREAM_PEER_SERVICE" })
				})
			}
		}, odds{"peer-service": Skip, "peer-service-global": Skip, "slices": Skip, "slice-rights": Skip}, "otherwise than by a Service"},
		"peer away": {func(in *installation) {
			in.answers["/api/status"] = Answer{Status: 200, Body: []byte(`{"cluster":"germany","version":"v1","peers":[
				{"cluster":"singapore","address":"10.2.0.1:18443","error":"refused","conditions":["unreachable"]}]}`)}
		}, odds{"peers": Fail, "udp": Skip, "relays": Skip}, "singapore 10.2.0.1:18443: unreachable: refused"},
		"UDP does not pass": {func(in *installation) {
			in.answers["/api/status"] = Answer{Status: 200, Body: []byte(`{"cluster":"germany","version":"v1","peers":[
				{"cluster":"singapore","address":"10.2.0.1:18443","connected":true,"version":"v1","conditions":["datagrams-lost"]}]}`)}
		}, odds{"udp": Fail, "relays": Skip}, "singapore 10.2.0.1:18443: packets of 1,300 bytes by UDP are not answered"},
		"media that does not pass": {func(in *installation) {
			in.answers["/api/status"] = Answer{Status: 200, Body: []byte(strings.Replace(healthy, `"state":"live"`, `"state":"retrying","lastError":"connect: timeout"`, 1))}
		}, odds{"relays": Fail}, "stream show: connect: timeout"},
		"media server away": {func(in *installation) {
			in.answers["/readyz"] = Answer{Status: 503, Body: []byte("not ready: refused")}
		}, odds{"media-servers": Fail}, "media/sfu-1: not ready: refused"},
		"other version": {func(in *installation) {
			in.answers["/api/status"] = Answer{Status: 200, Body: []byte(strings.Replace(healthy, `"version":"v1"`, `"version":"v2"`, 1))}
		}, odds{"versions": Warn}, "version v2"},
		"missed pod": {
			func(in *installation) { in.objects = append(in.objects, pod("sfu-3")) },
			odds{"pods": Fail},
			"media/sfu-3",
		},
		"missed pod that is done": {func(in *installation) {
			done := pod("sfu-3")
			done.Status.Phase = corev1.PodSucceeded
			in.objects = append(in.objects, done)
		}, odds{}, ""},
		"sidecar that waits": {func(in *installation) {
			change(in, "sfu-2", func(p *corev1.Pod) {
				p.Status.InitContainerStatuses[0] = corev1.ContainerStatus{
					Name: inject.ContainerName, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}},
				}
			})
		}, odds{"sidecars-ready": Fail}, "ImagePullBackOff"},
		"hook of its own": {func(in *installation) {
			in.objects = append(in.objects, injected(in.tb, "sfu-3", func(p *corev1.Pod) {
				p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 3}}}
			}, options(in.tb)))
		}, odds{"prestop": Warn}, "media/sfu-3"},
		"headless Service": {func(in *installation) {
			in.objects = append(in.objects, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Namespace: media, Name: "governing"},
				Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "sfu"}},
			})
		}, odds{"headless-services": Warn}, "Service governing"},
		"Service by number": {func(in *installation) {
			change(in, "sfu", func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromInt32(8889) })
		}, odds{"services": Warn}, "Service sfu, port 80: set targetPort: http"},
		"no Service of viewers": {
			func(in *installation) { in.remove("sfu") },
			odds{"services": Warn},
			"no Service leads to a gateway",
		},
		"policy by name": {func(in *installation) {
			in.objects = append(in.objects, &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: media, Name: "web"},
				Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
					Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("http"))}},
				}}},
			})
		}, odds{"policy-ports": Fail}, "NetworkPolicy web"},
		"policy by name, ordinary containers": {func(in *installation) {
			o := options(in.tb)
			o.Native = false
			for _, name := range []string{"sfu-1", "sfu-2"} {
				in.remove(name)
				p := injected(in.tb, name, nil, o)
				p.Status.ContainerStatuses, p.Status.InitContainerStatuses = p.Status.InitContainerStatuses, nil
				in.objects = append(in.objects, p)
			}
			in.objects = append(in.objects, &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: media, Name: "web"},
				Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
					Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("http"))}},
				}}},
			})
		}, odds{}, ""},
		"permissions by address": {func(in *installation) {
			in.objects = append(in.objects, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Namespace: media, Name: "mediamtx"},
				Data:       map[string]string{"mediamtx.yml": "authInternalUsers:\n- user: any\n  ips: ['127.0.0.1', '::1']\n"},
			}, injected(in.tb, "sfu-3", func(p *corev1.Pod) {
				p.Spec.Volumes = []corev1.Volume{{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
					LocalObjectReference: corev1.LocalObjectReference{Name: "mediamtx"},
				}}}}
				p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "c", MountPath: "/c"}}
			}, options(in.tb)))
		}, odds{"address-permissions": Warn}, "ips in ConfigMap mediamtx, key mediamtx.yml"},
		"no pods": {func(in *installation) {
			in.objects = slices.DeleteFunc(in.objects, func(o runtime.Object) bool { _, is := o.(*corev1.Pod); return is })
		}, odds{
			"slice-rights": Skip, "peer-secret": Skip, "peers": Skip, "udp": Skip, "relays": Skip, "pods": Warn, "sidecars-ready": Skip, "versions": Skip,
			"media-servers": Skip, "prestop": Skip, "headless-services": Skip, "services": Skip, "policy-ports": Skip, "address-permissions": Skip,
		}, inject.Label},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInstallation(t)
			tt.change(in)
			results := in.check()
			var text bytes.Buffer
			if err := WriteText(&text, results); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, odd(results)); diff != "" {
				t.Errorf("%s\n%s", diff, &text)
			}
			if !strings.Contains(text.String(), tt.word) {
				t.Errorf("%q is missing in\n%s", tt.word, &text)
			}
			for _, r := range results {
				if (r.Status == Warn || r.Status == Fail) && r.Hint == "" || (r.Status == OK || r.Status == Skip) && r.Hint != "" {
					t.Errorf("%+v", r)
				}
			}
			if Failed(results) != slices.Contains(slices.Collect(maps.Values(tt.want)), Fail) {
				t.Error("the verdict is another")
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	in := newInstallation(t)
	in.client = fake.NewClientset()
	in.denied = []string{"version"}
	if _, err := Run(t.Context(), in, Options{Namespace: media}); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
}

func TestNoTime(t *testing.T) {
	in := newInstallation(t)
	in.client = fake.NewClientset(in.objects...)
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	if results, err := Run(ctx, in, Options{Namespace: media}); err != nil || len(results) != len(checks) {
		t.Errorf("past the deadline: %d results, %v", len(results), err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, in, Options{Namespace: media}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Names stay, for scripts know them: one that is taken off here breaks those.
func TestNames(t *testing.T) {
	var got []string
	for _, c := range checks {
		got = append(got, c.id)
	}
	want := strings.Fields(`api-version rights clocks webhook webhook-namespace webhook-authority webhook-certificate injector-ready
		injection peer-service peer-service-global slice-sync namespace-global slices slice-rights peer-secret peers udp relays pods
		sidecars-ready versions media-servers prestop headless-services services policy-ports address-permissions`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestUninstall(t *testing.T) {
	in := newInstallation(t)
	bare := injected(t, "alone", func(p *corev1.Pod) { p.OwnerReferences = nil }, options(t))
	delete(bare.Labels, inject.Label) // taken off after it was created
	in.client = fake.NewClientset(append(in.objects, bare, pod("missed"))...)
	got, err := Uninstall(t.Context(), in, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []Workload{
		{"Deployment", media, "sfu", 2, "kubectl -n media rollout restart deployment/sfu"},
		{"Pod", media, "alone", 1, "kubectl -n media delete pod/alone # and create it again"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var text bytes.Buffer
	if err := WriteUninstall(&text, got); err != nil || !strings.Contains(text.String(), want[0].Command+" # 2 pods\n") {
		t.Errorf("%v\n%s", err, &text)
	}
}

func TestJSON(t *testing.T) {
	in := newInstallation(t)
	in.remove("far")
	var text bytes.Buffer
	if err := WriteJSON(&text, in.check()); err != nil {
		t.Fatal(err)
	}
	var got []Result
	if err := json.Unmarshal(text.Bytes(), &got); err != nil || len(got) != len(checks) {
		t.Errorf("%v\n%s", err, &text)
	}
}

func TestByAddress(t *testing.T) {
	for text, want := range map[string]string{
		"authInternalUsers:\n- user: any\n  ips: ['127.0.0.1']\n": "ips",
		"- ips:\n  - 10.0.0.0/8\n":                                "ips",
		"ips:\n  - '::1'":                                         "ips",
		"{\n  \"ips\": [\"::1\"]\n}":                              "ips",
		"general: {\n\tadmin_acl = \"127.,192.168.0.\"\n}":        "admin_acl",
		"\tacl = \"127.\"":                                        "acl",
		"ips: []\n":                                               "",
		"ips: [ ]\nother: [1]\n":                                  "",
		"# ips: ['127.0.0.1']\n":                                  "",
		"#acl = \"127.\"\n":                                       "",
		"ips:\n- action: publish\n":                               "",
		"ships: ['127.0.0.1']\n":                                  "",
	} {
		got := ""
		if m := byAddress.FindStringSubmatch(text); m != nil {
			got = m[1]
		}
		if got != want {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}

func TestClock(t *testing.T) {
	for _, tt := range []struct {
		asked, answered, shown, want time.Duration
	}{
		{0, 100, 0, 0},
		{900 * time.Millisecond, 950 * time.Millisecond, 0, 0}, // it shows whole seconds
		{0, time.Second, 10 * time.Second, 9 * time.Second},
		{10 * time.Second, 11 * time.Second, 0, -9 * time.Second},
	} {
		if got := (Clock{now.Add(tt.asked), now.Add(tt.answered), now.Add(tt.shown)}).Off(); got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}
