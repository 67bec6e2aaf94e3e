// Package certs keeps the webhook's certificate: an authority and a leaf of it in a Secret that all replicas share, made anew
// before they expire, and the authority in the webhook configuration, by which the API server knows the webhook. The API server
// never meets a leaf whose authority it has not been told of.
package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

const (
	// authorityName is by whom our certificates are: those of others in a bundle are not ours to keep.
	authorityName = "sidestream-injector"
	// backdated is how far clocks may be apart.
	backdated = time.Hour
	// maxAuthorities bounds a bundle.
	maxAuthorities = 8
)

// pair is a leaf with its key, and the authority that issued it.
type pair struct {
	certificate *tls.Certificate
	authority   *x509.Certificate
	key         []byte // of the leaf, PEM
}

// leaf is the certificate itself.
func (p *pair) leaf() *x509.Certificate { return p.certificate.Leaf }

// due is when a new pair is to be made: at two thirds of this one's life.
func (p *pair) due() time.Time {
	made, until := p.leaf().NotBefore.Add(backdated), p.leaf().NotAfter
	return until.Add(-until.Sub(made) / 3)
}

func (p *pair) same(other *pair) bool {
	return p != nil && other != nil && bytes.Equal(p.leaf().Raw, other.leaf().Raw)
}

// newPair makes an authority and the one leaf that it ever issues: its key is forgotten here, so that nobody can steal it.
func newPair(hosts []string, life time.Duration, now time.Time) (*pair, error) {
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	template := certificate(life, now)
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, authorityKey.Public(), authorityKey)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	authority, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	template = certificate(life, now)
	template.Subject = pkix.Name{CommonName: "sidestream-injector webhook"}
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, authority, key.Public(), authorityKey); err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &pair{
		certificate: &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, authority: authority,
		key: encode("PRIVATE KEY", private),
	}, nil
}

func certificate(life time.Duration, now time.Time) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil { // crypto/rand does not fail
		panic(err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: authorityName},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(life),
	}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// The keys of the Secret, those of type kubernetes.io/tls.
const (
	certificateKey = "tls.crt"
	privateKey     = "tls.key"
	authoritiesKey = "ca.crt"
)

// data is what a Secret holds of a pair, with the authorities that are to be believed besides.
func (p *pair) data(others []*x509.Certificate) map[string][]byte {
	return map[string][]byte{
		certificateKey: encode("CERTIFICATE", p.leaf().Raw),
		privateKey:     p.key,
		authoritiesKey: bundle(append([]*x509.Certificate{p.authority}, others...)),
	}
}

// read reads what data wrote, and the authorities as far as they can be read. The error says why there is no pair that can
// be used for these hosts.
func read(data map[string][]byte, hosts []string, now time.Time) (*pair, []*x509.Certificate, error) {
	authorities := parse(data[authoritiesKey])
	if len(data[certificateKey]) == 0 && len(data[privateKey]) == 0 {
		return nil, authorities, errors.New("there is none yet")
	}
	loaded, err := tls.X509KeyPair(data[certificateKey], data[privateKey])
	if err != nil {
		return nil, authorities, err
	}
	p := &pair{certificate: &loaded, key: data[privateKey]}
	for _, a := range authorities {
		if p.leaf().CheckSignatureFrom(a) == nil {
			p.authority = a
		}
	}
	if p.authority == nil {
		return nil, authorities, errors.New("its authority is not there")
	}
	for _, h := range hosts {
		if err := p.leaf().VerifyHostname(h); err != nil {
			return nil, authorities, err
		}
	}
	if now.Before(p.leaf().NotBefore) || now.After(p.leaf().NotAfter) {
		return nil, authorities, fmt.Errorf("it is valid from %s to %s", p.leaf().NotBefore, p.leaf().NotAfter)
	}
	return p, authorities, nil
}

// parse reads the certificates of a bundle, and leaves out what is none.
func parse(text []byte) (all []*x509.Certificate) {
	for len(all) < 10*maxAuthorities {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, c)
		}
	}
	return all
}

// union are the authorities of ours that are still valid, those of the first list first, each once.
func union(now time.Time, lists ...[]*x509.Certificate) (all []*x509.Certificate) {
	for _, c := range slices.Concat(lists...) {
		if c.Subject.CommonName == authorityName && c.IsCA && now.Before(c.NotAfter) && !contains(all, c) && len(all) < maxAuthorities {
			all = append(all, c)
		}
	}
	return all
}

func contains(all []*x509.Certificate, c *x509.Certificate) bool {
	return slices.ContainsFunc(all, c.Equal)
}

func bundle(all []*x509.Certificate) []byte {
	var text []byte
	for _, c := range all {
		text = append(text, encode("CERTIFICATE", c.Raw)...)
	}
	return text
}
