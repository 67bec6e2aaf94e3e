package mesh

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	// minKey is the least length of a shared key, in bytes.
	minKey = 32
	// maxKeys and maxKeyFile bound what a file of keys may hold.
	maxKeys    = 8
	maxKeyFile = 64 << 10
	// keySuffix ends the name by which a dialler says which of several keys it knows.
	keySuffix = ".sidestream-key"
	// mintedEvery is how often a node makes itself a new certificate, mintedLife how long it is good before and after: the
	// clocks of two nodes may be weeks apart.
	mintedEvery = 24 * time.Hour
	mintedLife  = 30 * 24 * time.Hour
)

// SharedKey makes the security of a mesh whose nodes all have one key, of at least 32 random bytes or characters. Everything
// above is as with certificates: the key stands for the authority's, and each node makes itself a certificate of it, in
// memory. Whoever has the key can be any node.
func SharedKey(key string, o SecurityOptions) (*Security, error) {
	s := newSecurity(o)
	s.source = sharedKeys{self: s.self, key: key}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("shared key: %w", err)
	}
	return s, nil
}

// SharedKeyFile reads the keys from a file, one a line, and again when it has changed. The first one is used to dial, all of
// them are accepted: to change the key without an outage, add the new one as the second line everywhere, then make it the
// first, then take the old one out.
func SharedKeyFile(name string, o SecurityOptions) (*Security, error) {
	s := newSecurity(o)
	s.source, s.log = sharedKeys{self: s.self, file: name}, s.log.With("file", name)
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("shared key %s: %w", name, err)
	}
	return s, nil
}

// sharedKeys make certificates of keys.
type sharedKeys struct {
	self identity
	key  string
	file string // where there is no key
}

func (k sharedKeys) stamp(now time.Time) (string, error) {
	minted := now.Truncate(mintedEvery).Format(time.RFC3339)
	if k.file == "" {
		return minted, nil
	}
	stamp, err := stampOf(k.file)
	return minted + " " + stamp, err
}

func (k sharedKeys) read(now time.Time) (*material, error) {
	keys := []string{k.key}
	if k.file != "" {
		var err error
		if keys, err = readKeys(k.file); err != nil {
			return nil, err
		}
	}
	// One key pair for all its certificates: what tells them apart is who vouches for it.
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	m := &material{
		authority: x509.NewCertPool(), from: now.Add(-mintedLife), until: now.Add(mintedLife),
	}
	for i, key := range keys {
		if err := checkKey(key); err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		authority, signer, name, err := authorityOf(key)
		if err != nil {
			return nil, err
		}
		leaf, err := k.mint(m, authority, signer, own, name)
		if err != nil {
			return nil, err
		}
		m.authority.AddCert(authority)
		m.certificates = append(m.certificates, *leaf)
		if i == 0 {
			m.serverName = name
		}
	}
	return m, nil
}

func readKeys(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, err
	}
	var keys []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			keys = append(keys, line)
		}
	}
	switch {
	case len(keys) == 0:
		return nil, errors.New("it holds no key")
	case len(keys) > maxKeys:
		return nil, fmt.Errorf("it holds %d keys; at most %d are allowed", len(keys), maxKeys)
	}
	return keys, nil
}

// checkKey refuses what nobody made at random: whoever connects can try keys at home afterwards.
func checkKey(key string) error {
	const remedy = "; make one with: openssl rand -base64 32"
	if len(key) < minKey {
		return fmt.Errorf("it is %d bytes long and must have at least %d%s", len(key), minKey, remedy)
	}
	distinct := []byte(key)
	slices.Sort(distinct)
	if len(slices.Compact(distinct)) < 8 {
		return errors.New("it repeats the same few characters" + remedy)
	}
	return nil
}

// authorityOf is the authority that a key stands for, the same at all nodes, and the name by which a dialler asks for a
// certificate of it.
func authorityOf(key string) (authority *x509.Certificate, signer ed25519.PrivateKey, name string, err error) {
	seed, err := hkdf.Key(sha256.New, []byte(key), nil, "sidestream shared key 1: authority", ed25519.SeedSize)
	if err != nil {
		return nil, nil, "", err
	}
	label, err := hkdf.Key(sha256.New, []byte(key), nil, "sidestream shared key 1: name", 8)
	if err != nil {
		return nil, nil, "", err
	}
	name = hex.EncodeToString(label) + keySuffix
	signer = ed25519.NewKeyFromSeed(seed)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "sidestream shared key " + name},
		NotBefore:             time.Unix(0, 0),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 section 4.1.2.5: no end
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, nil, "", err
	}
	authority, err = x509.ParseCertificate(der)
	return authority, signer, name, err
}

// mint makes the node's certificate of one authority.
func (k sharedKeys) mint(
	m *material, authority *x509.Certificate, signer ed25519.PrivateKey, own *ecdsa.PrivateKey, name string,
) (*tls.Certificate, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: PeerName},
		DNSNames:    []string{PeerName, name},
		NotBefore:   m.from,
		NotAfter:    m.until,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if k.self.namespace != "" {
		template.DNSNames = append(template.DNSNames, k.self.dnsName())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority, own.Public(), signer)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own, Leaf: leaf}, nil
}
