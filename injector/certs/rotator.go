package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applyadmission "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
)

const (
	// FieldManager owns the authorities in the webhook configuration, and nothing else there.
	FieldManager = "sidestream-injector-certs"

	// pace is how often the Secret and the webhook configuration are looked at; impatient is that until the webhook is ready.
	pace      = 5 * time.Second
	impatient = 500 * time.Millisecond
	// requestTime bounds one look.
	requestTime = 10 * time.Second
	// conflicts is how often in a row others may be faster.
	conflicts = 5

	defaultLife   = 90 * 24 * time.Hour
	defaultSettle = time.Minute
)

// secrets and webhooks are what is used of Kubernetes' clients.
type (
	secrets interface {
		Get(ctx context.Context, name string, o metav1.GetOptions) (*corev1.Secret, error)
		Update(ctx context.Context, s *corev1.Secret, o metav1.UpdateOptions) (*corev1.Secret, error)
	}
	webhooks interface {
		Get(ctx context.Context, name string, o metav1.GetOptions) (*admissionregistrationv1.MutatingWebhookConfiguration, error)
		Apply(ctx context.Context, c *applyadmission.MutatingWebhookConfigurationApplyConfiguration, o metav1.ApplyOptions) (
			*admissionregistrationv1.MutatingWebhookConfiguration, error)
	}
)

// Options say where everything is.
type Options struct {
	// Secrets are those of the namespace where Secret is: it must exist, and may be empty.
	Secrets secrets
	Secret  string
	// Webhooks has the configuration Webhook, which must exist. All webhooks in it are this one.
	Webhooks webhooks
	Webhook  string
	// Hosts are the names and addresses at which the API server finds the webhook.
	Hosts []string
	// Life is a certificate's, 0 is 90 days. At two thirds of it a new one is made.
	Life time.Duration
	// Settle is for how long the API servers are given to hear of a new authority, 0 is a minute.
	Settle time.Duration

	Registerer prometheus.Registerer // nil: no metrics
	Logger     *slog.Logger          // nil: discard
}

// Rotator keeps one replica's certificate.
type Rotator struct {
	options Options
	logger  *slog.Logger
	made    prometheus.Counter

	mu      sync.Mutex
	served  *pair
	next    *pair     // of the Secret, as long as that is another
	since   time.Time // next's authority is in the webhook configuration; zero: it is not
	trouble error     // why the webhook is not ready
}

// New makes a Rotator. Nothing happens before Run.
func New(o Options) *Rotator {
	if o.Life == 0 {
		o.Life = defaultLife
	}
	if o.Settle == 0 {
		o.Settle = defaultSettle
	}
	r := &Rotator{
		options: o, logger: o.Logger, trouble: errors.New("there is no certificate yet"),
		made: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_injector_certificates_made_total", Help: "Certificates that this replica has made for all.",
		}),
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(r.made,
			expiry(r.GetCertificate),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "sidestream_injector_ca_bundle_in_place", Help: "1: the webhook configuration has the authority of what is served.",
			}, func() float64 {
				if r.Ready() != nil {
					return 0
				}
				return 1
			}))
	}
	return r
}

// GetCertificate is for tls.Config. Before there is a certificate that the API server believes, it is an error.
func (r *Rotator) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.served == nil {
		return nil, fmt.Errorf("serve: %w", r.trouble)
	}
	return r.served.certificate, nil
}

// Ready says why the API server would not believe this webhook; nil: it does. While the API server cannot be asked, what was
// known last counts.
func (r *Rotator) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.served != nil && time.Now().After(r.served.leaf().NotAfter) {
		return fmt.Errorf("the certificate expired on %s", r.served.leaf().NotAfter.Format(time.DateOnly))
	}
	return r.trouble
}

// Run keeps everything as it should be until ctx ends. What goes wrong is logged and tried again.
func (r *Rotator) Run(ctx context.Context) error {
	failed := ""
	for {
		err := r.look(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && err.Error() != failed {
			r.logger.Warn("the webhook's certificate cannot be looked after; trying again", "error", err)
		}
		failed = ""
		if err != nil {
			failed = err.Error()
		}
		wait := pace
		if r.Ready() != nil {
			wait = impatient
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// look brings the Secret, the webhook configuration and what is served one step nearer to how they should be.
func (r *Rotator) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	stored, authorities, err := r.secret(ctx)
	if err != nil {
		return err
	}
	believed, err := r.webhook(ctx, authorities)
	if err != nil {
		return err
	}
	r.choose(stored, believed, time.Now())
	return nil
}

// secret is what the Secret holds, after it was made anew where that was due: replicas that do so at once learn from the
// resource version who was first.
func (r *Rotator) secret(ctx context.Context) (*pair, []*x509.Certificate, error) {
	for range conflicts {
		s, err := r.options.Secrets.Get(ctx, r.options.Secret, metav1.GetOptions{})
		if err != nil {
			return nil, nil, fmt.Errorf("read Secret %s: %w", r.options.Secret, err)
		}
		now := time.Now()
		stored, authorities, unusable := read(s.Data, r.options.Hosts, now)
		if unusable == nil && now.Before(stored.due()) {
			return stored, authorities, nil
		}
		made, err := newPair(r.options.Hosts, r.options.Life, now)
		if err != nil {
			return nil, nil, err
		}
		s = s.DeepCopy()
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		for key, value := range made.data(union(now, authorities)) {
			s.Data[key] = value
		}
		if _, err = r.options.Secrets.Update(ctx, s, metav1.UpdateOptions{}); apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("write Secret %s: %w", r.options.Secret, err)
		}
		r.made.Inc()
		r.logger.Info("made a certificate", "until", made.leaf().NotAfter, "because", because(unusable))
		return made, parse(s.Data[authoritiesKey]), nil
	}
	return nil, nil, fmt.Errorf("write Secret %s: others write it again and again", r.options.Secret)
}

func because(unusable error) string {
	if unusable == nil {
		return "two thirds of the last one's life are over"
	}
	return unusable.Error()
}

// webhook sees to it that the webhook configuration has these authorities, and returns those that all webhooks in it have.
// What is there already stays until it has expired: another replica may serve a leaf of it.
func (r *Rotator) webhook(ctx context.Context, authorities []*x509.Certificate) ([]*x509.Certificate, error) {
	c, err := r.options.Webhooks.Get(ctx, r.options.Webhook, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read webhook configuration %s: %w", r.options.Webhook, err)
	}
	if len(c.Webhooks) == 0 {
		return nil, fmt.Errorf("webhook configuration %s has no webhook", r.options.Webhook)
	}
	now := time.Now()
	wanted := applyadmission.MutatingWebhookConfiguration(r.options.Webhook)
	var believed []*x509.Certificate
	change := false
	for i, w := range c.Webhooks {
		there := parse(w.ClientConfig.CABundle)
		all := union(now, authorities, there)
		if i == 0 {
			believed = all
		} else {
			believed = slices.DeleteFunc(slices.Clone(believed), func(c *x509.Certificate) bool { return !contains(all, c) })
		}
		text := bundle(all)
		change = change || !bytes.Equal(text, w.ClientConfig.CABundle) && !equal(there, all)
		wanted.WithWebhooks(applyadmission.MutatingWebhook().WithName(w.Name).
			WithClientConfig(applyadmission.WebhookClientConfig().WithCABundle(text...)))
	}
	if !change {
		return believed, nil
	}
	// By force: whoever else wrote a bundle did not write one that the webhook can be believed by.
	_, err = r.options.Webhooks.Apply(ctx, wanted, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
	if err != nil {
		return nil, fmt.Errorf("write webhook configuration %s: %w", r.options.Webhook, err)
	}
	r.logger.Info("wrote the authorities into the webhook configuration", "webhook", r.options.Webhook, "authorities", len(believed))
	return believed, nil
}

// equal says that two lists have the same certificates, in any order.
func equal(a, b []*x509.Certificate) bool {
	for _, c := range a {
		if !contains(b, c) {
			return false
		}
	}
	return len(a) == len(b)
}

// choose decides which certificate is served: the Secret's, as soon as its authority has been believed for long enough that
// all API servers have heard. Where nothing better is at hand, at once.
func (r *Rotator) choose(stored *pair, believed []*x509.Certificate, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := contains(believed, stored.authority)
	switch {
	case stored.same(r.served):
		r.next = nil
	case !stored.same(r.next):
		r.next, r.since = stored, time.Time{}
	}
	if !known {
		r.since = time.Time{}
	}
	if r.next != nil && known {
		if r.since.IsZero() {
			r.since = now
		}
		usable := r.served != nil && now.Before(r.served.leaf().NotAfter) && contains(believed, r.served.authority)
		if !usable || now.Sub(r.since) >= r.options.Settle {
			r.served, r.next = r.next, nil
			r.logger.Info("serving a new certificate", "until", r.served.leaf().NotAfter)
		}
	}
	r.trouble = nil
	if r.served == nil || !contains(believed, r.served.authority) {
		r.trouble = fmt.Errorf("the webhook configuration %s has not got the authority of the certificate", r.options.Webhook)
	}
}
