package certs

import (
	"crypto/tls"

	"github.com/prometheus/client_golang/prometheus"
)

// expiry is the metric of when what is served expires.
func expiry(served func(*tls.ClientHelloInfo) (*tls.Certificate, error)) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sidestream_injector_certificate_expiry_timestamp_seconds", Help: "When the certificate that is served expires; 0: there is none.",
	}, func() float64 {
		c, err := served(nil)
		if err != nil || c.Leaf == nil {
			return 0
		}
		return float64(c.Leaf.NotAfter.Unix())
	})
}
