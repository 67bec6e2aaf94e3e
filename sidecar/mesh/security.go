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

// DialFunc opens a TCP connection, or what stands for one, to host:port.
type DialFunc func(ctx context.Context, addr string) (net.Conn, error)

// Security is how the peers of a mesh know each other: certificates of one authority, or nothing at all where
// plaintext was asked for by name. It may be used concurrently, and by a Port, a Mesh and HTTP clients at once.
type Security struct {
	dir string // empty in plaintext
	log *slog.Logger

	mu      sync.Mutex
	current *material
	stamp   stamp // of the files behind current
	failed  stamp // of the last files that could not be used, so that each is reported once
}

// material is one consistent reading of the three files.
type material struct {
	certificate tls.Certificate
	authority   *x509.CertPool
}

type stamp [3]struct {
	modified time.Time
	size     int64
}

// LoadSecurity reads tls.crt, tls.key and ca.crt from a directory, as a mounted Secret has them. The files are read
// again when they have changed, at the next connection; while new ones cannot be used the old ones stay in force.
func LoadSecurity(dir string, logger *slog.Logger) (*Security, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Security{dir: dir, log: logger.With("dir", dir)}
	stamp, err := stampOf(dir)
	if err != nil {
		return nil, fmt.Errorf("load certificates %s: %w", dir, err)
	}
	if s.current, err = read(dir); err != nil {
		return nil, fmt.Errorf("load certificates %s: %w", dir, err)
	}
	s.stamp = stamp
	return s, nil
}

// Plaintext lets everybody in and encrypts nothing. It is for a network that does both by itself.
func Plaintext() *Security { return &Security{log: slog.New(slog.DiscardHandler)} }

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
				return nil, err
			}
			return conn, nil
		},
		MaxIdleConns:        64,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     90 * time.Second,
	}}
}

func (s *Security) plaintext() bool { return s.dir == "" }

// material returns what is in force: what the files hold now, or the last of it that could be used.
func (s *Security) material() *material {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := stampOf(s.dir)
	if err == nil && now == s.stamp {
		return s.current
	}
	var fresh *material
	if err == nil {
		fresh, err = read(s.dir)
	}
	if err != nil {
		// A Secret is swapped under us file by file; the next connection tries again.
		if now != s.failed {
			s.failed = now
			s.log.Warn("certificates have changed and cannot be used; the old ones stay in force", "error", err)
		}
		return s.current
	}
	s.current, s.stamp, s.failed = fresh, now, stamp{}
	s.log.Info("certificates read again", "expires", fresh.certificate.Leaf.NotAfter)
	return s.current
}

// serverConfig is for the listening side. Every handshake uses the files as they are at that moment.
func (s *Security) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := s.material()
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				NextProtos:   []string{alpnGRPC, alpnHTTP},
				Certificates: []tls.Certificate{m.certificate},
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
		MinVersion: tls.VersionTLS13,
		ServerName: PeerName,
		NextProtos: []string{protocol},
		RootCAs:    m.authority,
		// Given whatever authorities the server names: so a certificate of the wrong one is refused for what it is, and not
		// as if there were none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &m.certificate, nil
		},
	}
}

// dialCredentials are grpc-go's for one connection.
func (s *Security) dialCredentials() credentials.TransportCredentials {
	if s.plaintext() {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(s.clientConfig(alpnGRPC))
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

func read(dir string) (*material, error) {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(dir, certificateFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	if err := certificate.Leaf.VerifyHostname(PeerName); err != nil {
		return nil, fmt.Errorf("%s is not a peer's certificate: %w", certificateFile, err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, authorityFile))
	if err != nil {
		return nil, err
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", authorityFile)
	}
	return &material{certificate: certificate, authority: authority}, nil
}

func stampOf(dir string) (stamp, error) {
	var s stamp
	for i, name := range []string{certificateFile, keyFile, authorityFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return s, err
		}
		s[i].modified, s[i].size = info.ModTime(), info.Size()
	}
	return s, nil
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
