package mesh

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
)

// authority issues the certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: rand.Text()},
		NotBefore: time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	return &authority{parsed(t, template, template, key.Public(), key), key}
}

func parsed(t *testing.T, template, parent *x509.Certificate, public any, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issue writes a Secret's files to a directory.
func (a *authority) issue(t *testing.T, dir string, edit func(*x509.Certificate)) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		DNSNames:  []string{PeerName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * 24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(template)
	}
	leaf := parsed(t, template, a.cert, key.Public(), a.key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		certificateFile: {Type: "CERTIFICATE", Bytes: leaf.Raw},
		authorityFile:   {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		keyFile:         {Type: "PRIVATE KEY", Bytes: der},
	} {
		write(t, dir, name, string(pem.EncodeToMemory(block)))
	}
	return dir
}

func named(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, names...) }
}

// diary keeps what is logged.
type diary struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (d *diary) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(b)
}

func (d *diary) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(d, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// count is in how many lines all these words are.
func (d *diary) count(words ...string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for line := range strings.Lines(d.text.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}

func TestIdentities(t *testing.T) {
	const ours = "media.eu-1.example.sidestream-peer"
	for _, tt := range []struct {
		name  string
		names []string
		self  identity
		want  string // in the error; "": allowed
	}{
		{"no identity", nil, identity{"media", "eu-1.example"}, ""},
		{"no identity and no namespace", []string{"other.example"}, identity{"", "x"}, ""},
		{"its own", []string{ours}, identity{"media", "eu-1.example"}, ""},
		{"another case", []string{"Media.EU-1.Example.Sidestream-Peer"}, identity{"mEdia", "eu-1.eXample"}, ""},
		{"one of several", []string{"a.b.sidestream-peer", ours}, identity{"media", "eu-1.example"}, ""},
		{"another cluster", []string{ours}, identity{"media", "eu-2"}, "media.eu-2.sidestream-peer"},
		{"another namespace", []string{ours}, identity{"video", "eu-1.example"}, "namespace video of cluster eu-1.example"},
		{"no namespace", []string{ours}, identity{"", "eu-1.example"}, "SIDESTREAM_NAMESPACE"},
		{"no namespace on either side", []string{".x.sidestream-peer"}, identity{"", "x"}, "SIDESTREAM_NAMESPACE"},
		{"a cluster that ends alike", []string{"media.a.b.sidestream-peer"}, identity{"media", "b"}, "the certificate is for media.a.b"},
		{"one label", []string{"media.sidestream-peer"}, identity{"media", ""}, ""},
		{"one label, and a cluster", []string{"media.sidestream-peer"}, identity{"media", "x"}, "the certificate is for"},
		{"no wildcards", []string{"*.x.sidestream-peer"}, identity{"media", "x"}, "the certificate is for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.self.allowedBy(&x509.Certificate{DNSNames: append([]string{PeerName}, tt.names...)})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// Who says that it is of another cluster or namespace than its certificate allows is refused, with words on both sides.
func TestIdentityIsHeldToTheCertificate(t *testing.T) {
	ca := newAuthority(t)
	for _, tt := range []struct {
		name               string
		names              []string
		namespace, cluster string
		own                string // the other node's namespace
		want               string // "": allowed
	}{
		{"membership only", nil, "", "usa", "", ""},
		{"membership only, of one namespace", nil, "media", "usa", "media", ""},
		{"namespace not known on one side", nil, "media", "usa", "", ""},
		{"its own", []string{"media.usa.sidestream-peer"}, "media", "usa", "media", ""},
		{"its own, in other letters", []string{"MEDIA.Usa.Sidestream-Peer"}, "media", "usa", "media", ""},
		{"another cluster", []string{"media.germany.sidestream-peer"}, "media", "usa", "media", "the certificate is for media.germany"},
		{"another namespace", []string{"video.usa.sidestream-peer"}, "media", "usa", "", "the certificate is for video.usa"},
		{"no namespace said", []string{"media.usa.sidestream-peer"}, "", "usa", "", "SIDESTREAM_NAMESPACE"},
		{"two meshes of one authority", nil, "video", "usa", "media", "one is of namespace media and the other of video"},
	} {
		for _, dials := range []bool{true, false} {
			if !dials && strings.HasPrefix(tt.name, "two meshes") {
				continue // the one that is dialled is honest, and the first to see it
			}
			t.Run(map[bool]string{true: "dials: ", false: "is dialled: "}[dials]+tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := newNetwork(time.Millisecond)
					s := carelessly(t, ca.issue(t, t.TempDir(), named(tt.names...)))
					liar := net.member(t, hostB, config{id: "b", cluster: tt.cluster, security: s, options: func(o *Options) {
						o.Namespace = tt.namespace
					}})
					var log diary
					a := net.member(t, hostA, config{id: "a", cluster: "germany", options: func(o *Options) {
						o.Namespace, o.Logger = tt.own, log.logger()
					}, security: load(t, ca.issue(t, t.TempDir(), nil))})
					from, to := a, addrB
					if dials {
						from, to = liar, addrA
					}
					from.SetPeers(at(to))
					time.Sleep(time.Minute)
					got := a.status("b")
					if tt.want == "" {
						if !got.Connected || got.Namespace != tt.namespace {
							t.Errorf("not connected: %+v", got)
						}
						return
					}
					if a.book.holds("b") != nil {
						t.Error("believed")
					}
					if n := a.counted(t, "sidestream_mesh_refused_total", "identity"); n < 1 || n > 20 {
						t.Errorf("%v refusals counted", n)
					}
					all := a.Peers()
					if len(all) != 1 || !strings.Contains(all[0].Error, tt.want) || !slices.Contains(all[0].Conditions, "refused-identity") {
						t.Errorf("status: %+v", all)
					}
					if n := log.count("level=WARN", tt.want); n < 1 || n > 2 {
						t.Errorf("%d warnings in a minute", n)
					}
					if dials {
						theirs := liar.Peers()
						if len(theirs) != 1 || !strings.Contains(theirs[0].Error, tt.want) || !slices.Contains(theirs[0].Conditions, refusedByPeer) {
							t.Errorf("the other side's status: %+v", theirs)
						}
					}
				})
			})
		}
	}
}

// carelessly loads whatever certificate there is.
func carelessly(t *testing.T, dir string) *Security {
	t.Helper()
	s := newSecurity(SecurityOptions{})
	s.source = unchecked{files{dir: dir}}
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	return s
}

// unchecked are files of a node that does not look at its own certificate.
type unchecked struct{ files }

func (u unchecked) read(time.Time) (*material, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(u.dir, certificateFile), filepath.Join(u.dir, keyFile))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(u.dir, authorityFile))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return &material{
		certificates: []tls.Certificate{pair}, authority: pool, serverName: PeerName,
		from: pair.Leaf.NotBefore, until: pair.Leaf.NotAfter,
	}, nil
}

func TestOwnCertificateMustAllowTheNode(t *testing.T) {
	ca := newAuthority(t)
	self := SecurityOptions{Namespace: "media", Cluster: "germany"}
	dir := ca.issue(t, t.TempDir(), named("media.usa.sidestream-peer"))
	if _, err := LoadSecurity(dir, self); err == nil || !strings.Contains(err.Error(), "give it a certificate with the DNS name media.germany.sidestream-peer") {
		t.Errorf("at start: %v", err)
	}
	var log diary
	self.Logger = log.logger()
	ca.issue(t, dir, named("media.germany.sidestream-peer"))
	s, err := LoadSecurity(dir, self)
	if err != nil {
		t.Fatal(err)
	}
	before := s.material()
	ca.issue(t, dir, named("media.usa.sidestream-peer"))
	for range 3 {
		if s.material() != before {
			t.Error("a certificate of another cluster is in force")
		}
	}
	if n := log.count("level=WARN", "old ones stay in force", "media.germany.sidestream-peer"); n != 1 {
		t.Errorf("%d warnings", n)
	}
	ca.issue(t, dir, named("media.germany.sidestream-peer"))
	if s.material() == before {
		t.Error("the right one is not read")
	}
	for name, edit := range map[string]func(*x509.Certificate){
		"must be good for server and for client use": func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] },
		"is not a peer's certificate":                func(c *x509.Certificate) { c.DNSNames = []string{"example.org"} },
	} {
		if _, err := LoadSecurity(ca.issue(t, t.TempDir(), edit), self); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %q", err, name)
		}
	}
	write(t, dir, authorityFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newAuthority(t).cert.Raw})))
	if _, err := LoadSecurity(dir, self); err == nil || !strings.Contains(err.Error(), "is not of an authority in ca.crt") {
		t.Errorf("another authority: %v", err)
	}
}

// What is wrong with a certificate is said in words at both ends, counted, retried, and repaired without a restart.
func TestFaultsOfTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	for _, tt := range []struct {
		name      string
		broken    func(t *testing.T, dir string) // the dialler's files
		reason    string
		condition string
		said      string // by the dialler
		heard     string // by the other side
	}{
		{
			"expired", func(t *testing.T, dir string) {
				ca.issue(t, dir, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = c.NotBefore.AddDate(0, -1, 0), c.NotBefore })
			}, faultExpired, certificateExpired, "as expired or not yet valid", "the peer's certificate expired at ",
		},
		{
			"not yet valid", func(t *testing.T, dir string) {
				ca.issue(t, dir, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })
			}, faultExpired, certificateExpired, "as expired or not yet valid", "not valid before ",
		},
		{
			"another authority", func(t *testing.T, dir string) {
				other.issue(t, dir, nil)
			}, faultAuthority, certificateAuthority, "of another authority", "the peer refuses this node's certificate",
		},
		{
			"an authority that the other side does not know", func(t *testing.T, dir string) {
				other.issue(t, dir, nil)
				write(t, dir, authorityFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
			}, faultAuthority, certificateAuthority, "refuses this node's certificate as one of another authority", "of another authority",
		},
		{
			"another name", func(t *testing.T, dir string) {
				ca.issue(t, dir, func(c *x509.Certificate) { c.DNSNames = []string{"shop.example"} })
			}, faultOther, tlsFailed, "its log says why", "is for shop.example and not for sidestream-peer",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(time.Millisecond)
				var log diary
				a := net.member(t, hostA, config{id: "a", security: load(t, ca.issue(t, t.TempDir(), nil))})
				net.member(t, hostB, config{id: "b", security: load(t, ca.issue(t, t.TempDir(), nil))})
				a.SetPeers(at(addrB))
				a.book.hears(t, "b", 0)
				since := a.status("b").Since

				// The port logs what it sees.
				listener := net.listen(t, addrC)
				dir := t.TempDir()
				tt.broken(t, dir)
				s := carelessly(t, dir)
				c := start(t, config{id: "c", security: s, listener: listener, dial: net.dialFrom(hostC), options: func(o *Options) {
					o.Logger = log.logger()
				}})
				c.SetPeers(at(addrA))
				time.Sleep(2 * time.Minute)
				got := c.Peers()
				if len(got) != 1 || !strings.Contains(got[0].Error, tt.said) || !slices.Contains(got[0].Conditions, tt.condition) {
					t.Errorf("status %+v, want %q and %q", got, tt.said, tt.condition)
				}
				if n := c.counted(t, "sidestream_mesh_tls_failures_total", tt.reason); n < 5 || n > 30 {
					t.Errorf("%v failures in two minutes at the dialler", n)
				}
				if n := log.count("level=WARN", "peer not connected", tt.said); n != 1 {
					t.Errorf("%d warnings of the same at the dialler", n)
				}
				reason := tt.reason
				switch tt.name {
				case "another authority": // the dialler is the one who does not trust
					reason = faultOther
				case "another name":
					reason = faultName
				}
				if n := a.counted(t, "sidestream_mesh_tls_failures_total", reason); n < 5 {
					t.Errorf("%v failures at the other side", n)
				}
				if s := a.status("b"); !s.Connected || s.Since != since {
					t.Errorf("a running link was touched: %+v", s)
				}
				// The other side dials, too, and sees it for itself.
				a.SetPeers(at(addrB, addrC))
				time.Sleep(time.Minute)
				if s := a.Peers(); len(s) != 2 || s[0].Connected || s[0].Error == "" {
					t.Errorf("status of the other side: %+v", s)
				}
				// Renewed, without a restart.
				ca.issue(t, dir, nil)
				time.Sleep(time.Minute)
				if s := c.status("a"); !s.Connected || len(s.Conditions) > 0 {
					t.Errorf("not connected after the renewal: %+v", s)
				}
			})
		})
	}
}

// One side speaks TLS and the other does not: each says so.
func TestPlaintextMeetsTLS(t *testing.T) {
	ca := newAuthority(t)
	for name, dialler := range map[string]func(t *testing.T) *Security{
		"plaintext dials TLS": func(*testing.T) *Security { return Plaintext() },
		"TLS dials plaintext": func(t *testing.T) *Security { return load(t, ca.issue(t, t.TempDir(), nil)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(time.Millisecond)
				other := Plaintext()
				if strings.HasPrefix(name, "plaintext") {
					other = load(t, ca.issue(t, t.TempDir(), nil))
				}
				a := net.member(t, hostA, config{id: "a", security: other})
				b := net.member(t, hostB, config{id: "b", security: dialler(t)})
				b.SetPeers(at(addrA))
				time.Sleep(time.Minute)
				got := b.Peers()
				if len(got) != 1 || !strings.Contains(got[0].Error, sameSecurity) || !slices.Contains(got[0].Conditions, plaintextMixed) {
					t.Errorf("status %+v", got)
				}
				for _, n := range []*node{a, b} {
					if got := n.counted(t, "sidestream_mesh_tls_failures_total", faultPlaintext); got < 3 || got > 20 {
						t.Errorf("%s counted %v in a minute", n.self.ID, got)
					}
				}
			})
		})
	}
}

func TestWordsOfFaults(t *testing.T) {
	for _, tt := range []struct {
		err    error
		reason string
		want   string
	}{
		{tls.RecordHeaderError{RecordHeader: [5]byte{'G', 'E', 'T', ' ', '/'}}, faultPlaintext, "speaks HTTP without TLS"},
		{tls.RecordHeaderError{RecordHeader: [5]byte{0, 1, 2}}, faultPlaintext, "does not speak TLS"},
		{errors.New("tls: client didn't provide a certificate"), faultOther, "didn't provide"},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: PeerName}, faultName, "is for no DNS name"},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "0123" + keySuffix}, faultAuthority, "shared key"},
		{io.EOF, "", ""},
		{context.DeadlineExceeded, "", ""},
		{nil, "", ""},
	} {
		f := faultOf(tt.err)
		if (f == nil) != (tt.reason == "") || f != nil && (f.reason != tt.reason || !strings.Contains(f.Error(), tt.want)) {
			t.Errorf("%v: %+v, want %s, %q", tt.err, f, tt.reason, tt.want)
		}
	}
}

// The end of a certificate is announced in time, once a day, shown by a metric, and touches no link.
func TestACertificateEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		began := time.Now()
		// The clock of this test shows a day for an hour: heartbeats are many.
		clock := func() time.Time { return began.Add(24 * time.Since(began)) }
		pass := func(d time.Duration) { time.Sleep(d / 24) }
		ca := newAuthority(t)
		ends := func(at time.Time) func(*x509.Certificate) {
			return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = began, at }
		}
		dir := ca.issue(t, t.TempDir(), ends(began.Add(20*day)))
		var log diary
		security := func(o SecurityOptions) *Security {
			s, err := LoadSecurity(dir, o)
			if err != nil {
				t.Fatal(err)
			}
			s.now = clock
			return s
		}
		net := newNetwork(time.Millisecond)
		a := net.member(t, hostA, config{id: "a", security: security(SecurityOptions{Logger: log.logger()})})
		b := net.member(t, hostB, config{id: "b", security: security(SecurityOptions{})})
		a.SetPeers(at(addrB))
		a.book.hears(t, "b", 0)
		since := a.status("b").Since
		const expiry = "sidestream_mesh_certificate_expiry_timestamp_seconds"
		if got, want := a.gauge(t, expiry, ""), began.Add(20*day).Unix(); got != float64(want) {
			t.Errorf("the metric says %v, want %v", got, want)
		}
		pass(15 * day)
		if n := log.count("level=WARN"); n != 0 {
			t.Errorf("%d warnings with a quarter of its life left", n)
		}
		pass(4*day + day/2)
		if n := log.count("level=WARN", "expires soon"); n < 3 || n > 4 { // a fifth of 20 days are 4
			t.Errorf("%d warnings in the last days", n)
		}
		pass(3 * day)
		if n := log.count("level=ERROR", "has expired"); n < 2 || n > 3 {
			t.Errorf("%d errors since it has expired", n)
		}
		if got := a.status("b"); !got.Connected || got.Since != since {
			t.Errorf("the link of before: %+v", got)
		}
		b.book.publish(4, "x")
		a.book.hears(t, "b", 4, "x")
		// New ones are refused.
		c := net.member(t, hostC, config{id: "c", security: security(SecurityOptions{})})
		c.SetPeers(at(addrA))
		time.Sleep(time.Minute)
		if got := c.Peers(); len(got) != 1 || !slices.Contains(got[0].Conditions, certificateExpired) {
			t.Errorf("a new link: %+v", got)
		}
		// A good one is found although nobody connects, and an expired one does not take its place.
		good := clock().Add(100 * day).Truncate(time.Second)
		ca.issue(t, dir, ends(good))
		time.Sleep(watchEvery)
		if got := a.gauge(t, expiry, ""); got != float64(good.Unix()) {
			t.Errorf("the new one is not read: %v", got)
		}
		ca.issue(t, dir, ends(clock().Add(-time.Minute)))
		time.Sleep(watchEvery)
		if got := a.gauge(t, expiry, ""); got != float64(good.Unix()) {
			t.Errorf("an expired one is in force: %v", got)
		}
		if n := log.count("cannot be used", "new certificate expired"); n != 1 {
			t.Errorf("%d warnings of it", n)
		}
	})
}

// Pulls have no hello: a certificate that is for other namespaces only is not let in.
func TestHTTPIsForTheNamespace(t *testing.T) {
	ca := newAuthority(t)
	a := start(t, config{
		id: "a", listener: listenLoopback(t, "127.0.0.1:0"), http: http.NotFoundHandler(),
		security: loadAs(t, ca.issue(t, t.TempDir(), nil), "media", "germany"),
	})
	for namespace, want := range map[string]bool{"media": true, "video": false} {
		s := loadAs(t, ca.issue(t, t.TempDir(), named(namespace+".usa.sidestream-peer")), namespace, "usa")
		client := s.HTTPClient(nil)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+a.addr+"/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err == nil {
			_ = response.Body.Close()
		}
		if (err == nil) != want {
			t.Errorf("%s: answered %v, want %v", namespace, err, want)
		}
		client.CloseIdleConnections()
	}
	if n := a.counted(t, "sidestream_mesh_tls_failures_total", faultName); n != 1 {
		t.Errorf("%v failures counted", n)
	}
}

func loadAs(t *testing.T, dir, namespace, cluster string) *Security {
	t.Helper()
	s, err := LoadSecurity(dir, SecurityOptions{Namespace: namespace, Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const (
	keyOne = "correct horse battery staple, the first"
	keyTwo = "9mV2xJtq0hWb7yKf3cRz8eLs5aUg1oNd"
)

// shared is the security of the node with this id, in the cluster that it usually has.
func sharing(t *testing.T, key string, id catalogue.NodeID) *Security {
	t.Helper()
	s, err := SharedKey(key, SecurityOptions{Namespace: "media", Cluster: "c-" + string(id)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSharedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		var ahead atomic.Int64
		key := func(key string, id catalogue.NodeID) *Security {
			s := sharing(t, key, id)
			s.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
			return s
		}
		a := net.member(t, hostA, config{id: "a", security: key(keyOne, "a")})
		b := net.member(t, hostB, config{id: "b", security: key(keyOne, "b")})
		c := net.member(t, hostC, config{id: "c", security: key(keyTwo, "c")})
		for _, n := range []*node{a, b, c} {
			n.SetPeers(at(addrA, addrB, addrC))
		}
		a.book.hears(t, "b", 0)
		b.book.hears(t, "a", 0)
		time.Sleep(time.Minute)
		for _, n := range []*node{a, b} {
			if s := n.status("c"); s.Connected || n.counted(t, "sidestream_mesh_tls_failures_total", faultAuthority) == 0 {
				t.Errorf("with another key: %+v", s)
			}
		}
		for _, s := range c.Peers() {
			if s.Connected || !slices.Contains(s.Conditions, certificateAuthority) {
				t.Errorf("with another key: %+v", s)
			}
		}
		since := a.status("b").Since
		// A certificate of its own making is renewed long before its end, and links that were made before go on.
		time.Sleep(time.Minute)
		ahead.Store(int64(100 * 24 * time.Hour))
		if left := a.security.expiry().Sub(a.security.now()); left < mintedLife-2*mintedEvery {
			t.Errorf("%v left", left)
		}
		if s := a.status("b"); !s.Connected || s.Since != since {
			t.Errorf("after months: %+v", s)
		}
		net.cut(hostB)
		time.Sleep(time.Minute)
		if s := a.status("b"); !s.Connected {
			t.Errorf("connected anew after months: %+v", s)
		}
	})
}

// The key is changed at one node after the other while connections break all the time; nobody is shut out for a moment.
func TestSharedKeysAreRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(time.Millisecond)
		nodes := map[string]*node{}
		files := map[string]string{}
		for host, id := range map[string]catalogue.NodeID{hostA: "a", hostB: "b"} {
			dir := t.TempDir()
			write(t, dir, "keys", keyOne+"\n")
			files[host] = filepath.Join(dir, "keys")
			s, err := SharedKeyFile(files[host], SecurityOptions{})
			if err != nil {
				t.Fatal(err)
			}
			nodes[host] = net.member(t, host, config{id: id, security: s})
			nodes[host].SetPeers(at(addrA, addrB))
		}
		connected := func(step string) {
			t.Helper()
			for _, host := range []string{hostA, hostB} {
				net.cut(host) // each dials the other anew
				time.Sleep(30 * time.Second)
				if !nodes[hostA].status("b").Connected || !nodes[hostB].status("a").Connected {
					t.Errorf("%s: not connected: %+v %+v", step, nodes[hostA].Peers(), nodes[hostB].Peers())
				}
			}
		}
		connected("old")
		for _, step := range []string{"\n" + keyOne + "\n " + keyTwo + "\r\n\n", keyTwo + "\n" + keyOne, keyTwo} {
			for _, host := range []string{hostA, hostB} {
				write(t, filepath.Dir(files[host]), "keys", step)
				connected(step + " at " + host)
			}
		}
		for host, n := range nodes {
			if got := n.counted(t, "sidestream_mesh_tls_failures_total", ""); got != 0 {
				t.Errorf("%s: %v failures", host, got)
			}
		}
		// A file that cannot be used changes nothing.
		write(t, filepath.Dir(files[hostA]), "keys", "short")
		connected("a bad file")
	})
}

func TestSharedKeysThatAreNone(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", "no key"},
		{"\n \n", "no key"},
		{"short", "at least 32"},
		{strings.Repeat("a", 64), "repeats"},
		{strings.Repeat("abcabd", 10), "repeats"},
		{strings.Repeat(keyOne+"\n", 9), "at most 8"},
		{keyOne + "\nsecond", "key 2"},
	} {
		dir := t.TempDir()
		write(t, dir, "keys", tt.text)
		_, err := SharedKeyFile(filepath.Join(dir, "keys"), SecurityOptions{})
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), keyOne) {
			t.Errorf("%q: error %v, want %q", tt.text, err, tt.want)
		}
	}
	if _, err := SharedKey("short", SecurityOptions{}); err == nil || !strings.Contains(err.Error(), "at least 32") {
		t.Errorf("error %v", err)
	}
	if _, err := SharedKeyFile(filepath.Join(t.TempDir(), "none"), SecurityOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// Names that nobody would give to a host are names of clusters all the same.
func TestSharedKeyNamesTheNode(t *testing.T) {
	s, err := SharedKey(keyOne, SecurityOptions{Namespace: "media", Cluster: "US_West.1-a"})
	if err != nil {
		t.Fatal(err)
	}
	leaf := s.material().certificates[0].Leaf
	if err := (identity{"media", "us_west.1-A"}).allowedBy(leaf); err != nil {
		t.Error(err)
	}
	if err := (identity{"media", "germany"}).allowedBy(leaf); err == nil {
		t.Error("it allows everything")
	}
	first, _, name, err := authorityOf(keyOne)
	if err != nil {
		t.Fatal(err)
	}
	second, _, again, err := authorityOf(keyOne)
	if err != nil || !first.Equal(second) || name != again {
		t.Error("a key is not the same authority twice")
	}
	if _, _, other, _ := authorityOf(keyTwo); other == name {
		t.Error("two keys have one name")
	}
}

// Clocks that differ by an hour: with a shared key, and with certificates that are older than that. What goes over the
// mesh holds no time of day.
func TestClocksAnHourApart(t *testing.T) {
	ca := newAuthority(t)
	for name, security := range map[string]func(t *testing.T, id catalogue.NodeID) *Security{
		"shared key": func(t *testing.T, id catalogue.NodeID) *Security { return sharing(t, keyOne, id) },
		"certificates": func(t *testing.T, _ catalogue.NodeID) *Security {
			return load(t, ca.issue(t, t.TempDir(), func(c *x509.Certificate) { c.NotBefore = time.Now().Add(-48 * time.Hour) }))
		},
	} {
		for _, skew := range []time.Duration{time.Hour, -time.Hour, 25 * time.Hour} {
			t.Run(name+" "+skew.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net := newNetwork(time.Millisecond)
					s := security(t, "a")
					s.now = func() time.Time { return time.Now().Add(skew) }
					a := net.member(t, hostA, config{id: "a", security: s})
					b := net.member(t, hostB, config{id: "b", security: security(t, "b")})
					a.SetPeers(at(addrB))
					b.SetPeers(at(addrA))
					a.book.publish(1, "x")
					b.book.hears(t, "a", 1, "x")
					a.book.hears(t, "b", 0)
					time.Sleep(2 * time.Hour)
					if len(a.book.forgotten())+len(b.book.forgotten()) > 0 {
						t.Error("lost on the way")
					}
					if rtt, ok := b.RTT("a"); !ok || rtt.Round(time.Millisecond) != 2*time.Millisecond {
						t.Errorf("measured %v", rtt)
					}
				})
			})
		}
	}
}
