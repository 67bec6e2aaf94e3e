package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Files is a certificate that somebody else keeps, such as cert-manager, in a folder where tls.crt and tls.key are. They also
// tell the API server of its authority.
type Files struct {
	dir    string
	logger *slog.Logger

	mu     sync.Mutex
	served *tls.Certificate
}

// NewFiles makes Files. Nothing is read before Run. Without a Registerer there are no metrics.
func NewFiles(dir string, r prometheus.Registerer, logger *slog.Logger) *Files {
	f := &Files{dir: dir, logger: logger}
	if r != nil {
		r.MustRegister(expiry(f.GetCertificate))
	}
	return f
}

// GetCertificate is for tls.Config.
func (f *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.served == nil {
		return nil, errors.New("there is no certificate yet")
	}
	return f.served, nil
}

// Ready says why there is no certificate that can be served.
func (f *Files) Ready() error {
	c, err := f.GetCertificate(nil)
	if err == nil && time.Now().After(c.Leaf.NotAfter) {
		err = fmt.Errorf("the certificate expired on %s", c.Leaf.NotAfter.Format(time.DateOnly))
	}
	return err
}

// Run reads the files again and again until ctx ends. While they cannot be used the last ones are served.
func (f *Files) Run(ctx context.Context) error {
	failed := ""
	for {
		err := f.read()
		switch {
		case err == nil:
			failed = ""
		case err.Error() != failed:
			failed = err.Error()
			f.logger.Warn("the webhook's certificate cannot be read; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pace):
		}
	}
}

func (f *Files) read() error {
	c, err := tls.LoadX509KeyPair(filepath.Join(f.dir, certificateKey), filepath.Join(f.dir, privateKey))
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.served = &c
	return nil
}
