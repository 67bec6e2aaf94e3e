package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	applyadmission "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const host = "sidestream-injector.sidestream.svc"

// api is what the rotators see of a cluster: one Secret and one webhook configuration, written with optimistic concurrency.
type api struct {
	mu      sync.Mutex
	version int
	secret  corev1.Secret
	hook    admissionregistrationv1.MutatingWebhookConfiguration
	down    error
	writes  int
	before  func() // is called before an update, without the lock
}

func newAPI() *api {
	a := &api{version: 1}
	a.secret.Name, a.hook.Name = "certs", "injector"
	a.hook.Webhooks = []admissionregistrationv1.MutatingWebhook{{Name: "pods.sidestream.dev"}, {Name: "other.sidestream.dev"}}
	a.secret.ResourceVersion = "1"
	return a
}

type secretAPI struct{ *api }

func (a secretAPI) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.Secret, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != nil {
		return nil, a.down
	}
	if name != a.secret.Name {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
	}
	return a.secret.DeepCopy(), nil
}

func (a secretAPI) Update(_ context.Context, s *corev1.Secret, _ metav1.UpdateOptions) (*corev1.Secret, error) {
	if a.before != nil {
		a.before()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != nil {
		return nil, a.down
	}
	if s.ResourceVersion != a.secret.ResourceVersion {
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, s.Name, errors.New("it has changed"))
	}
	a.version++
	a.writes++
	a.secret = *s.DeepCopy()
	a.secret.ResourceVersion = strconv.Itoa(a.version)
	return s, nil
}

type webhookAPI struct{ *api }

func (a webhookAPI) Get(context.Context, string, metav1.GetOptions) (*admissionregistrationv1.MutatingWebhookConfiguration, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != nil {
		return nil, a.down
	}
	return a.hook.DeepCopy(), nil
}

func (a webhookAPI) Apply(
	_ context.Context, c *applyadmission.MutatingWebhookConfigurationApplyConfiguration, o metav1.ApplyOptions,
) (*admissionregistrationv1.MutatingWebhookConfiguration, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.down != nil {
		return nil, a.down
	}
	if o.FieldManager != FieldManager {
		return nil, fmt.Errorf("applied by %q", o.FieldManager)
	}
	for _, w := range c.Webhooks {
		for i := range a.hook.Webhooks {
			if a.hook.Webhooks[i].Name == *w.Name {
				a.hook.Webhooks[i].ClientConfig.CABundle = w.ClientConfig.CABundle
			}
		}
	}
	return a.hook.DeepCopy(), nil
}

func (a *api) bundle(i int) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return bytes.Clone(a.hook.Webhooks[i].ClientConfig.CABundle)
}

func (a *api) rotator(o Options) *Rotator {
	o.Secrets, o.Secret, o.Webhooks, o.Webhook, o.Hosts = secretAPI{a}, "certs", webhookAPI{a}, "injector", []string{host}
	return New(o)
}

// running runs a rotator in a synctest bubble until stop is called.
func running(t *testing.T, r *Rotator) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
}

// believes says whether an API server with this bundle would speak to the replica now.
func believes(bundle []byte, r *Rotator) error {
	c, err := r.GetCertificate(nil)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err = c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, CurrentTime: time.Now()})
	return err
}

// Replicas that begin at once with an empty Secret serve one certificate, that the API server believes.
func TestBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		registry := prometheus.NewRegistry()
		one, two := a.rotator(Options{Registerer: registry}), a.rotator(Options{})
		if one.Ready() == nil {
			t.Error("ready before it ran")
		}
		if _, err := one.GetCertificate(nil); err == nil {
			t.Error("a certificate before it ran")
		}
		defer running(t, one)()
		defer running(t, two)()
		time.Sleep(time.Second)
		synctest.Wait()
		if a.writes != 1 {
			t.Errorf("the Secret was written %d times", a.writes)
		}
		for i, r := range []*Rotator{one, two} {
			if err := r.Ready(); err != nil {
				t.Errorf("%d: %v", i, err)
			}
			for hook := range a.hook.Webhooks {
				if err := believes(a.bundle(hook), r); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			}
		}
		x, _ := one.GetCertificate(nil)
		y, _ := two.GetCertificate(nil)
		if !x.Leaf.Equal(y.Leaf) {
			t.Error("replicas serve different certificates")
		}
		if n, err := testutil.GatherAndCount(registry); err != nil || n != 3 {
			t.Errorf("%d metrics, %v", n, err)
		}
		if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
			t.Errorf("%v %v", problems, err)
		}
	})
}

// Through several rotations every replica is believed at every moment, also by an API server that hears of a change half a
// minute late; also when replicas come and go.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life, late, step = 30 * time.Minute, 30 * time.Second, 2 * time.Second
		a := newAPI()
		replicas := []*Rotator{a.rotator(Options{Life: life}), a.rotator(Options{Life: life})}
		stops := []func(){running(t, replicas[0]), running(t, replicas[1])}
		time.Sleep(time.Minute)
		began, most := time.Now(), 0
		served := map[string]bool{}
		var heard [][]byte // the last half minute
		for n := 1; time.Since(began) < 2*time.Hour; n++ {
			time.Sleep(step)
			heard = append(heard, a.bundle(0))
			heard = heard[max(0, len(heard)-int(late/step)):]
			for i, r := range replicas {
				for _, bundle := range [][]byte{heard[0], heard[len(heard)-1]} {
					if err := believes(bundle, r); err != nil {
						t.Fatalf("after %s replica %d is not believed: %v", time.Since(began), i, err)
					}
				}
				if err := r.Ready(); err != nil {
					t.Fatalf("after %s: %v", time.Since(began), err)
				}
				c, _ := r.GetCertificate(nil)
				served[c.Leaf.SerialNumber.String()] = true
			}
			if n%600 == 0 { // one is restarted, and asked again when it is ready
				i := n / 600 % 2
				stops[i]()
				replicas[i] = a.rotator(Options{Life: life})
				stops[i] = running(t, replicas[i])
				time.Sleep(time.Second)
				synctest.Wait()
			}
			most = max(most, len(parse(a.bundle(0))))
		}
		for _, stop := range stops {
			stop()
		}
		if most != 2 {
			t.Errorf("the bundle had up to %d authorities", most)
		}
		if len(served) < 5 || a.writes > len(served)+1 { // the last one may not be served yet
			t.Errorf("%d certificates were served, the Secret written %d times", len(served), a.writes)
		}
	})
}

// What the Secret holds is made anew where it cannot be used, and left alone where it can.
func TestSecrets(t *testing.T) {
	good, err := newPair([]string{host}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := newPair([]string{"other.svc"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	old, err := newPair([]string{host}, time.Hour, time.Now().Add(-2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	torn := good.data(nil)
	torn[authoritiesKey] = elsewhere.data(nil)[authoritiesKey]
	for name, tt := range map[string]struct {
		data map[string][]byte
		made bool
		keep *x509.Certificate
	}{
		"good":          {good.data(nil), false, good.authority},
		"empty":         {nil, true, nil},
		"other keys":    {map[string][]byte{"note": []byte("mine")}, true, nil},
		"garbage":       {map[string][]byte{certificateKey: []byte("x"), privateKey: []byte("y"), authoritiesKey: []byte("z")}, true, nil},
		"other host":    {elsewhere.data(nil), true, elsewhere.authority},
		"expired":       {old.data(nil), true, nil},
		"torn":          {torn, true, elsewhere.authority},
		"no authority":  {map[string][]byte{certificateKey: torn[certificateKey], privateKey: torn[privateKey]}, true, nil},
		"two addresses": {good.data([]*x509.Certificate{elsewhere.authority}), false, elsewhere.authority},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI()
			a.secret.Data = tt.data
			r := a.rotator(Options{})
			if err := r.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			if made := a.writes == 1; made != tt.made {
				t.Errorf("made anew: %v", made)
			}
			if err := r.Ready(); err != nil {
				t.Error(err)
			}
			if err := believes(a.bundle(0), r); err != nil {
				t.Error(err)
			}
			if tt.keep != nil && !contains(parse(a.bundle(0)), tt.keep) {
				t.Error("an authority that was there is lost")
			}
			if string(tt.data["note"]) != string(a.secret.Data["note"]) {
				t.Error("what is somebody else's is lost")
			}
		})
	}
}

// A bundle that somebody takes away or replaces is put back, and the webhook is not ready meanwhile.
func TestBundleIsPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		r := a.rotator(Options{})
		defer running(t, r)()
		time.Sleep(time.Second)
		for _, instead := range [][]byte{nil, []byte("garbage"), bundle(parse([]byte{})), foreign(t)} {
			a.mu.Lock()
			a.hook.Webhooks[1].ClientConfig.CABundle = instead
			a.mu.Unlock()
			time.Sleep(pace + time.Second)
			synctest.Wait()
			if err := believes(a.bundle(1), r); err != nil {
				t.Errorf("with %.20q: %v", instead, err)
			}
			if n := len(parse(a.bundle(1))); n != 1 {
				t.Errorf("there are %d authorities", n)
			}
		}
	})
}

func foreign(t *testing.T) []byte {
	p, err := newPair([]string{host}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return encode("CERTIFICATE", p.leaf().Raw) // of another name than the authorities
}

// Without the API server what was known counts, until it has expired.
func TestAPIServerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		var log bytes.Buffer
		r := a.rotator(Options{Life: time.Hour, Logger: logTo(&log)})
		defer running(t, r)()
		time.Sleep(time.Second)
		a.mu.Lock()
		a.down = errors.New("nobody there")
		a.mu.Unlock()
		time.Sleep(30 * time.Minute)
		if err := r.Ready(); err != nil {
			t.Errorf("%v", err)
		}
		if n := strings.Count(log.String(), "nobody there"); n != 1 {
			t.Errorf("it is said %d times", n)
		}
		time.Sleep(31 * time.Minute)
		if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("ready with an expired certificate: %v", err)
		}
		a.mu.Lock()
		a.down = nil
		a.mu.Unlock()
		time.Sleep(pace)
		synctest.Wait()
		if err := errors.Join(r.Ready(), believes(a.bundle(0), r)); err != nil {
			t.Error(err)
		}
	})
}

func TestTroubles(t *testing.T) {
	a := newAPI()
	r := a.rotator(Options{})
	r.options.Secret = "another"
	if err := r.look(t.Context()); err == nil || !strings.Contains(err.Error(), "read Secret another") {
		t.Errorf("%v", err)
	}
	r.options.Secret = "certs"
	a.before = func() { // somebody is always faster
		a.mu.Lock()
		defer a.mu.Unlock()
		a.version++
		a.secret.ResourceVersion = strconv.Itoa(a.version)
	}
	if err := r.look(t.Context()); err == nil || !strings.Contains(err.Error(), "again and again") {
		t.Errorf("%v", err)
	}
	a.before = nil
	a.hook.Webhooks = nil
	if err := r.look(t.Context()); err == nil || !strings.Contains(err.Error(), "no webhook") {
		t.Errorf("%v", err)
	}
	if r.Ready() == nil {
		t.Error("ready")
	}
}

func TestCertificateIsGoodForTLS(t *testing.T) {
	p, err := newPair([]string{host, "127.0.0.1"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	server, client := &tls.Config{Certificates: []tls.Certificate{*p.certificate}}, &tls.Config{ServerName: "127.0.0.1", RootCAs: x509.NewCertPool()}
	client.RootCAs.AddCert(p.authority)
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.(*tls.Conn).HandshakeContext(t.Context())
			_ = c.Close()
		}
		done <- err
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
