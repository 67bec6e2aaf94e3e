package mesh

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// PeerName is the DNS name in every sidecar's certificate. It is the same for all of them: a certificate proves that
// its owner belongs to the mesh, and the handshake above it says which node it is.
const PeerName = "sidestream-peer"

// The files of a mounted Secret of type kubernetes.io/tls.
const (
	certificateFile = "tls.crt"
	keyFile         = "tls.key"
	authorityFile   = "ca.crt"
)

const (
	alpnGRPC = "h2"
	alpnHTTP = "http/1.1"
)

// errNoSecurity keeps a forgotten setting from opening the port to everybody.
var errNoSecurity = errors.New("neither certificates nor plaintext was chosen")

// watchEvery is how often a Port looks after the certificates when nobody connects.
const watchEvery = time.Hour

// DialFunc opens a TCP connection, or what stands for one, to host:port.
type DialFunc func(ctx context.Context, addr string) (net.Conn, error)

// Security is how the peers of a mesh know each other: certificates of one authority, a key that all of them have, or
// nothing at all where plaintext was asked for by name. It may be used concurrently, and by a Port, a Mesh and HTTP clients
// at once.
type Security struct {
	source source // nil in plaintext
	self   identity
	log    *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	current *material
	stamp   string    // of the source behind current
	failed  string    // the last that could not be used, and why, so that each is reported once
	warned  time.Time // when the end of the certificate was announced last
}

// SecurityOptions say for which node it is.
type SecurityOptions struct {
	// Namespace and Cluster are the node's. Its own certificate has to allow them, where it names any.
	Namespace, Cluster string
	Logger             *slog.Logger // nil: no logs
}

// source is where certificates come from.
type source interface {
	// stamp changes when there is something new to read.
	stamp(now time.Time) (string, error)
	read(now time.Time) (*material, error)
}

// material is one consistent reading of a source.
type material struct {
	certificates []tls.Certificate // the first is for dialling; a listener shows the one that the dialler asks for
	authority    *x509.CertPool
	serverName   string // for which a dialler asks
	// When the first certificate begins and ceases to be good, with the authority above it.
	from, until time.Time
}

// LoadSecurity reads tls.crt, tls.key and ca.crt from a directory, as a mounted Secret has them. The files are read
// again when they have changed, at the next connection or within an hour; while new ones cannot be used the old ones stay
// in force. Certificates that have expired are no error, because the node's own viewers need none: they are logged, peers
// refuse them, and new ones are found.
func LoadSecurity(dir string, o SecurityOptions) (*Security, error) {
	s := newSecurity(o)
	s.source, s.log = files{dir, s.self}, s.log.With("dir", dir)
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("load certificates %s: %w", dir, err)
	}
	return s, nil
}

// Plaintext lets everybody in and encrypts nothing. It is for a network that does both by itself.
func Plaintext() *Security { return newSecurity(SecurityOptions{}) }

func newSecurity(o SecurityOptions) *Security {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Security{self: identity{o.Namespace, o.Cluster}, log: o.Logger, now: time.Now}
}

func (s *Security) load() (err error) {
	now := s.now()
	if s.stamp, err = s.source.stamp(now); err != nil {
		return err
	}
	s.current, err = s.source.read(now)
	return err
}

// Scheme is that of URLs at the peer port: https, or http in plaintext.
func (s *Security) Scheme() string {
	if s.plaintext() {
		return "http"
	}
	return "https"
}

// HTTPClient speaks HTTP/1.1 to the peer ports of other nodes, as one of them. A nil dial uses the machine's network.
// The client has no timeout of its own: every request is bounded by its context.
func (s *Security) HTTPClient(dial DialFunc) *http.Client {
	dial = dialOr(dial)
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) },
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if s.plaintext() {
				return nil, fmt.Errorf("dial %s: https asked for, but this mesh is plaintext", addr)
			}
			raw, err := dial(ctx, addr)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, s.clientConfig(alpnHTTP))
			if err := conn.HandshakeContext(ctx); err != nil {
				_ = raw.Close()
				if f := faultOf(err); f != nil {
					err = f
				}
				return nil, err
			}
			return conn, nil
		},
		MaxIdleConns:        64,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     90 * time.Second,
	}}
}

func (s *Security) plaintext() bool { return s.source == nil }

// material returns what is in force: what the source holds now, or the last of it that could be used.
func (s *Security) material() *material {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	stamp, err := s.source.stamp(now)
	if err == nil && stamp == s.stamp {
		return s.current
	}
	var fresh *material
	if err == nil {
		fresh, err = s.source.read(now)
	}
	if err == nil && !now.Before(fresh.until) && now.Before(s.current.until) {
		err = fmt.Errorf("the new certificate expired at %s", fresh.until.UTC().Format(time.RFC3339))
	}
	if err != nil {
		// A Secret is swapped under us file by file; the next connection tries again.
		if failed := stamp + err.Error(); failed != s.failed {
			s.failed = failed
			s.log.Warn("certificates have changed and cannot be used; the old ones stay in force", "error", err)
		}
		return s.current
	}
	s.current, s.stamp, s.failed, s.warned = fresh, stamp, "", time.Time{}
	s.log.Info("certificates read again", "expires", fresh.until)
	return s.current
}

// expiry is when the own certificate ceases to be good; zero in plaintext.
func (s *Security) expiry() time.Time {
	if s.plaintext() {
		return time.Time{}
	}
	return s.material().until
}

// watch looks after the certificates until ctx ends: new ones are found although nobody connects, and those that end soon
// are announced.
func (s *Security) watch(ctx context.Context) {
	if s.plaintext() {
		return
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		s.announceEnd()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// announceEnd logs once a day that the own certificate is not good, or will not be for much longer.
func (s *Security) announceEnd() {
	m, now := s.material(), s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.warned) < 24*time.Hour {
		return
	}
	const what = "renew the Secret with tls.crt, tls.key and ca.crt; no restart is needed"
	switch left := m.until.Sub(now); {
	case left <= 0:
		s.log.Error("own certificate has expired; peers refuse new connections", "expired", m.until, "remedy", what)
	case now.Before(m.from):
		s.log.Error("own certificate is not valid yet, or this machine's clock is wrong; peers may refuse it", "from", m.from)
	case left < min(m.until.Sub(m.from)/5, 7*24*time.Hour):
		s.log.Warn("own certificate expires soon", "expires", m.until, "remedy", what)
	default:
		return
	}
	s.warned = now
}

// serverConfig is for the listening side. Every handshake uses the files as they are at that moment.
func (s *Security) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := s.material()
			return &tls.Config{
				Time:         s.now,
				MinVersion:   tls.VersionTLS13,
				NextProtos:   []string{alpnGRPC, alpnHTTP},
				Certificates: m.certificates,
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    m.authority,
				// A client proves itself by the same name as a server; otherwise any certificate that the authority ever
				// gave to somebody would open this port.
				VerifyConnection: func(state tls.ConnectionState) error {
					return state.PeerCertificates[0].VerifyHostname(PeerName)
				},
				// A resumed session would outlive the authority that vouched for it.
				SessionTicketsDisabled: true,
			}, nil
		},
	}
}

// clientConfig is for the dialling side, made anew for each connection.
func (s *Security) clientConfig(protocol string) *tls.Config {
	m := s.material()
	return &tls.Config{
		Time:       s.now,
		MinVersion: tls.VersionTLS13,
		ServerName: m.serverName,
		NextProtos: []string{protocol},
		RootCAs:    m.authority,
		// Given whatever authorities the server names: so a certificate of the wrong one is refused for what it is, and not
		// as if there were none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &m.certificates[0], nil
		},
	}
}

// dialCredentials are grpc-go's for one connection. What TLS has against it is noted, because grpc-go hands on only text.
func (s *Security) dialCredentials(trouble *trouble) credentials.TransportCredentials {
	if s.plaintext() {
		return dialling{insecure.NewCredentials(), trouble}
	}
	return dialling{credentials.NewTLS(s.clientConfig(alpnGRPC)), trouble}
}

// acceptCredentials tell grpc-go of the handshake that the Port has made.
func (s *Security) acceptCredentials() credentials.TransportCredentials {
	if s.plaintext() {
		return insecure.NewCredentials()
	}
	return handshaken{}
}

// handshaken are the credentials of connections that come out of a Port.
type handshaken struct{}

func (handshaken) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, ok := raw.(*tls.Conn)
	if !ok {
		return nil, nil, fmt.Errorf("accept %s: the listener gave a connection without TLS", raw.RemoteAddr())
	}
	return conn, credentials.TLSInfo{
		State:          conn.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (handshaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for accepted connections only")
}

func (handshaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (h handshaken) Clone() credentials.TransportCredentials { return h }

func (handshaken) OverrideServerName(string) error { return nil }

// files are a mounted Secret.
type files struct {
	dir  string
	self identity
}

func (f files) stamp(time.Time) (string, error) {
	return stampOf(filepath.Join(f.dir, certificateFile), filepath.Join(f.dir, keyFile), filepath.Join(f.dir, authorityFile))
}

func stampOf(names ...string) (string, error) {
	var stamp strings.Builder
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&stamp, "%d %d ", info.ModTime().UnixNano(), info.Size())
	}
	return stamp.String(), nil
}

func (f files) read(now time.Time) (*material, error) {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(f.dir, certificateFile), filepath.Join(f.dir, keyFile))
	if err != nil {
		return nil, err
	}
	leaf := certificate.Leaf
	if err := leaf.VerifyHostname(PeerName); err != nil {
		return nil, fmt.Errorf("%s is not a peer's certificate: %w", certificateFile, err)
	}
	if err := f.self.allowedBy(leaf); err != nil {
		return nil, fmt.Errorf("%s is not for this node: %w", certificateFile, err)
	}
	pem, err := os.ReadFile(filepath.Join(f.dir, authorityFile))
	if err != nil {
		return nil, err
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", authorityFile)
	}
	m := &material{certificates: []tls.Certificate{certificate}, authority: authority, serverName: PeerName}
	return m, m.verify(now)
}

// verify looks at the first certificate as a peer with the same authority will, its time aside, and says from when until
// when such a peer lets it in.
func (m *material) verify(now time.Time) error {
	leaf := m.certificates[0].Leaf
	between := x509.NewCertPool()
	for _, der := range m.certificates[0].Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("%s: %w", certificateFile, err)
		}
		between.AddCert(c)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		var chains [][]*x509.Certificate
		var err error
		// An authority may be younger than its leaves, or older: any moment at which both are good will do.
		for _, at := range []time.Time{now, leaf.NotBefore, leaf.NotAfter} {
			o := x509.VerifyOptions{
				Roots: m.authority, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
			}
			if chains, err = leaf.Verify(o); err == nil {
				break
			}
		}
		var invalid x509.CertificateInvalidError
		switch {
		case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
			return fmt.Errorf("%s must be good for server and for client use: %w", certificateFile, err)
		case err != nil:
			return fmt.Errorf("%s is not of an authority in %s: %w", certificateFile, authorityFile, err)
		}
		m.until = time.Time{}
		for _, chain := range chains {
			from, until := leaf.NotBefore, leaf.NotAfter
			for _, c := range chain[1:] {
				if c.NotBefore.After(from) {
					from = c.NotBefore
				}
				until = earlier(until, c.NotAfter)
			}
			if until.After(m.until) {
				m.from, m.until = from, until
			}
		}
	}
	return nil
}

func dialOr(dial DialFunc) DialFunc {
	if dial != nil {
		return dial
	}
	return func(ctx context.Context, addr string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}
