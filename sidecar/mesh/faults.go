package mesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// Why TLS did not come about: the label of a metric.
const (
	faultExpired   = "expired"
	faultAuthority = "authority"
	faultName      = "name"
	faultPlaintext = "plaintext"
	faultOther     = "other"
)

// fault is why TLS between two peers did not come about, in words that say what to do.
type fault struct {
	reason string
	text   string
	err    error
}

func (f *fault) Error() string { return f.text }
func (f *fault) Unwrap() error { return f.err }

const sameSecurity = "SIDESTREAM_PEER_SECURITY must be the same at all nodes"

var errSpeaksTLS = &fault{reason: faultPlaintext, text: "the peer speaks TLS and this node is plaintext: " + sameSecurity}

// Alerts by which a peer tells what it has against a certificate (RFC 8446 section 6.2).
const (
	alertExpired   tls.AlertError = 45
	alertUnknownCA tls.AlertError = 48
)

// faultOf finds what a failed handshake means; nil where it is not TLS that is at fault, but the connection.
func faultOf(err error) *fault {
	var known *fault
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var header tls.RecordHeaderError
	var remote *net.OpError
	var network net.Error
	f := &fault{err: err, reason: faultOther}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		f.reason = faultExpired
		f.text = "the peer's certificate expired at " + moment(invalid.Cert.NotAfter) + ": renew it, or set this node's clock right"
		if strings.Contains(invalid.Detail, "is before") {
			f.text = "the peer's certificate is not valid before " + moment(invalid.Cert.NotBefore) + ": one of the two clocks is wrong"
		}
	case errors.As(err, &unknown):
		f.reason = faultAuthority
		f.text = "the peer's certificate is of another authority than this node's: all nodes need one ca.crt, or one shared key (" +
			unknown.Error() + ")"
	case errors.As(err, &name):
		f.reason = faultName
		f.text = fmt.Sprintf("the peer's certificate is for %s and not for %s: it needs that DNS name",
			listed(name.Certificate.DNSNames), PeerName)
		if strings.HasSuffix(name.Host, keySuffix) {
			f.reason = faultAuthority
			f.text = "the peer does not have this node's shared key, or not yet"
		}
	case errors.As(err, &header):
		f.reason = faultPlaintext
		f.text = "the peer does not speak TLS: " + sameSecurity
		if speaksHTTP(header.RecordHeader[:]) {
			f.text = "the peer speaks HTTP without TLS: " + sameSecurity
		}
	case errors.As(err, &remote) && remote.Op == "remote error": // as crypto/tls says it of an alert
		f.text = "the peer refuses this node's certificate, or the way it speaks TLS (" + remote.Err.Error() + "); its log says why"
		switch remote.Err.Error() {
		case alertExpired.Error():
			f.reason = faultExpired
			f.text = "the peer refuses this node's certificate as expired or not yet valid: renew it, or set the clocks right"
		case alertUnknownCA.Error():
			f.reason = faultAuthority
			f.text = "the peer refuses this node's certificate as one of another authority: all nodes need one ca.crt, or one shared key"
		}
	case errors.As(err, &network), errors.Is(err, net.ErrClosed), errors.Is(err, context.Canceled),
		errors.Is(err, context.DeadlineExceeded):
		return nil
	case strings.HasPrefix(err.Error(), "tls: "), strings.Contains(err.Error(), "certificate"):
		f.text = err.Error()
	default:
		return nil
	}
	return f
}

func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func listed(names []string) string {
	if len(names) == 0 {
		return "no DNS name"
	}
	return strings.Join(names[:min(len(names), 4)], ", ")
}

// speaksHTTP knows the beginning of an HTTP message.
func speaksHTTP(head []byte) bool {
	for _, begin := range []string{"HTTP/", "GET /", "POST ", "PUT /", "HEAD ", "PRI *", "OPTIO", "DELET", "PATCH"} {
		if bytes.HasPrefix(head, []byte(begin)) {
			return true
		}
	}
	return false
}

// speaksTLS knows the first record of a TLS client or server, and an alert (RFC 8446 section 5.1).
func speaksTLS(head []byte) bool {
	return len(head) >= 2 && (head[0] == 0x16 || head[0] == 0x15) && head[1] == 3
}

// trouble is the first thing that TLS has against a connection that is being dialled.
type trouble struct {
	mu    sync.Mutex
	first *fault
}

func (t *trouble) note(f *fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.first == nil {
		t.first = f
	}
}

func (t *trouble) fault() *fault {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.first
}

// dialling are credentials that note why a handshake failed. In TLS 1.3 a dialler learns only from the first thing that it
// reads what the other side has against its certificate.
type dialling struct {
	credentials.TransportCredentials
	trouble *trouble
}

func (d dialling) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := d.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		if f := faultOf(err); f != nil {
			d.trouble.note(f)
		}
		return nil, nil, err
	}
	return &firstRead{Conn: conn, trouble: d.trouble}, info, nil
}

func (d dialling) Clone() credentials.TransportCredentials {
	return dialling{d.TransportCredentials.Clone(), d.trouble}
}

// firstRead looks at the first thing that is read. It is read by one goroutine.
type firstRead struct {
	net.Conn
	trouble *trouble
	done    bool
}

func (c *firstRead) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.done || n == 0 && err == nil {
		return n, err
	}
	c.done = true
	switch {
	case err != nil && n == 0:
		if f := faultOf(err); f != nil {
			c.trouble.note(f)
		}
	case speaksTLS(b[:n]):
		c.trouble.note(errSpeaksTLS)
	case bytes.HasPrefix(b[:n], []byte("HTTP/")):
		c.trouble.note(&fault{reason: faultPlaintext, text: "the peer does not take this node's way to speak: " + sameSecurity})
	}
	return n, err
}
