package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// selfSigned is a certificate for a host, and itself as PEM.
func selfSigned(t *testing.T, host string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{host},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestCheck(t *testing.T) {
	h := newHarness(t)
	certificate, bundle := selfSigned(t, "injector.sidestream.svc")
	_, strange := selfSigned(t, "injector.sidestream.svc")
	answer := func(status int, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		})
	}
	for name, tt := range map[string]struct {
		bundle  []byte
		service string
		webhook http.Handler
		words   string // of the error; "": all is well
	}{
		"well":              {bundle, "injector", h.webhook, ""},
		"no authority yet":  {nil, "injector", h.webhook, "webhook-authority"},
		"another authority": {strange, "injector", h.webhook, "webhook-reachable"},
		"another service":   {bundle, "other", h.webhook, "webhook-reachable"},
		"another program":   {bundle, "injector", answer(404, "what?"), "404"},
		"no answer":         {bundle, "injector", answer(200, "{}"), "no answer"},
		"no sidecar": {
			bundle, "injector", answer(200, `{"response": {"allowed": true, "warnings": ["sidestream: not injected"]}}`), "not injected",
		},
		"refused":         {bundle, "injector", answer(200, `{"response": {"allowed": false}}`), "refused"},
		"another webhook": {bundle, "injector", answer(200, `{"response": {"allowed": true, "patch": "W10="}}`), "another webhook"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(tt.webhook)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
			server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are to fail
			server.StartTLS()
			defer server.Close()
			client := fake.NewClientset(&admissionregistrationv1.MutatingWebhookConfiguration{
				ObjectMeta: metav1.ObjectMeta{Name: "00-injector"},
				Webhooks: []admissionregistrationv1.MutatingWebhook{{ClientConfig: admissionregistrationv1.WebhookClientConfig{
					CABundle: tt.bundle,
					Service: &admissionregistrationv1.ServiceReference{
						Name: tt.service, Namespace: "sidestream", Path: new(webhookPath), Port: new(int32(443)),
					},
				}}},
			})
			var out bytes.Buffer
			var asked string
			c := &checker{
				webhooks: client.AdmissionregistrationV1().MutatingWebhookConfigurations(), name: "00-injector", out: &out,
				dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					asked = address
					return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
				},
			}
			if tt.words == "" {
				if err := c.run(t.Context()); err != nil || asked != "injector.sidestream.svc:443" || strings.Count(out.String(), "\n") != 4 {
					t.Errorf("%v, asked %s:\n%s", err, asked, out.String())
				}
				return
			}
			if found, err := c.once(t.Context()); err == nil || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("%q, %v; want %q", found, err, tt.words)
			}
		})
	}
	if events := h.written(); len(events) > 0 {
		t.Errorf("a check leaves events: %v", events)
	}
}

func TestCheckOfNothing(t *testing.T) {
	c := &checker{webhooks: fake.NewClientset().AdmissionregistrationV1().MutatingWebhookConfigurations(), name: "00-injector"}
	if _, err := c.once(t.Context()); err == nil || !strings.Contains(err.Error(), "webhook: read") {
		t.Error(err)
	}
	if err := run(t.Context(), []string{"check"}, nil, &bytes.Buffer{}, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "INJECTOR_WEBHOOK") {
		t.Error(err)
	}
}
