package mesh

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// ephemeralLife is how long certificates live that nobody renews.
const ephemeralLife = 30 * 24 * time.Hour

// WriteEphemeralCertificates makes an authority and one peer's certificate of it, and writes them to a directory as
// LoadSecurity reads them. The authority's key is thrown away, so all nodes of the mesh share that certificate: for
// a demo on one machine and for tests.
func WriteEphemeralCertificates(dir string) error {
	if err := writeEphemeralCertificates(dir, time.Now()); err != nil {
		return fmt.Errorf("write certificates %s: %w", dir, err)
	}
	return nil
}

func writeEphemeralCertificates(dir string, now time.Time) error {
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	authority := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "sidestream ephemeral authority"},
		NotBefore:             now.Add(-time.Hour), // clocks differ
		NotAfter:              now.Add(ephemeralLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		Subject:     pkix.Name{CommonName: PeerName},
		DNSNames:    []string{PeerName},
		NotBefore:   authority.NotBefore,
		NotAfter:    authority.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), authorityKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{
		{authorityFile, "CERTIFICATE", authorityDER},
		{certificateFile, "CERTIFICATE", leafDER},
		{keyFile, "PRIVATE KEY", keyDER},
	} {
		text := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})
		if err := replaceFile(filepath.Join(dir, f.name), text); err != nil {
			return err
		}
	}
	return nil
}

// replaceFile never shows a reader half a file.
func replaceFile(name string, content []byte) error {
	next := name + ".next"
	if err := os.WriteFile(next, content, 0o600); err != nil {
		return err
	}
	return os.Rename(next, name)
}
