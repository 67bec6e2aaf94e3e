//go:build linux

package world

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/e2e/bed"
	"github.com/sidestream-dev/sidestream/e2e/inside"
	"github.com/sidestream-dev/sidestream/e2e/player"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/discovery"
	"github.com/sidestream-dev/sidestream/sidecar/gateway"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
)

const peerPort = 18443

// Who has no certificate of ours cannot join, list or pull; pull tokens are good at the node that issued them, for one
// stream, for a minute, and never at the public port.
func TestStrangers(t *testing.T) {
	w := newWorld(t)
	origin, relay := w.regions[singapore].run("sfu-0"), w.regions[germany].run("sfu-0")
	w.connected(origin, relay)
	w.regions[singapore].publishAt(func(int) string { return ingest(origin.door()) })
	w.holder([]*pod{origin, relay})
	w.regions[germany].watchAt(func(int) string { return whep(relay.door()) }).frames(30)

	t.Run("pod", func(t *testing.T) { strangePod(t, w, origin, relay) })
	t.Run("port", func(t *testing.T) { strangePort(t, w.regions[germany].people, origin, newAuthority(t)) })
	t.Run("tokens", func(t *testing.T) { tokens(t, w, origin, relay) })
}

// strangePod is one as ours are, in our namespace and in all slices, but for its certificate.
func strangePod(t *testing.T, w *world, origin, relay *pod) {
	r := w.regions[usWest]
	stranger := r.runAs(podSpec(w.namespace, "stranger", nil), newAuthority(t))
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	if _, err := origin.AwaitSlices(ctx, w.namespace, func(s []discoveryv1.EndpointSlice) bool {
		for _, a := range bed.Addresses(bed.From(s, usWest)) {
			if a == stranger.host.IPv4.String() {
				return true
			}
		}
		return false
	}); err != nil {
		t.Fatal(err)
	}
	// Both sides try, and are refused; ten seconds are several attempts.
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		st, err := stranger.node(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range st.Peers {
			if p.Connected {
				t.Fatal("the stranger has joined")
			}
		}
		if len(st.Streams) > 0 {
			t.Fatalf("the stranger knows of %+v", st.Streams)
		}
		select {
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
	w.connected(origin, relay) // one peer each: not the stranger
	client, err := inside.Client(r.people)
	if err != nil {
		t.Fatal(err)
	}
	at, _ := url.Parse(whep(stranger.door()))
	err = player.New(client).Run(ctx, adapters.Endpoint{URL: at})
	if status, ok := errors.AsType[*whip.StatusError](err); !ok || status.Code != http.StatusConflict && status.Code != http.StatusNotFound {
		t.Errorf("a play at the stranger: %v", err)
	}
	t.Logf("the stranger says: %v", err)
	stranger.gone()
}

// strangePort asks a node's peer port without a certificate, and with one of another authority.
func strangePort(t *testing.T, h *wan.Host, origin *pod, other *authority) {
	files := other.issue(t)
	foreign, err := tls.X509KeyPair(files["tls.crt"], files["tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(origin.host.IPv4.String(), fmt.Sprint(peerPort))
	for who, certificates := range map[string][]tls.Certificate{"nobody": nil, "a foreigner": {foreign}} {
		for _, protocol := range []string{"h2", "http/1.1"} {
			config := &tls.Config{InsecureSkipVerify: true, Certificates: certificates, NextProtos: []string{protocol}, ServerName: peerName}
			answer, err := ask(t, h, address, config)
			if err == nil {
				t.Errorf("%s is answered by %s: %q", who, protocol, answer)
			}
		}
	}
	if answer, err := ask(t, h, address, nil); err == nil && !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
		t.Errorf("who does not encrypt is answered: %q", answer)
	}
}

// ask sends a play to the port, and returns what comes back.
func ask(t *testing.T, h *wan.Host, address string, config *tls.Config) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := inside.Dial(h)(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if config != nil {
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return "", err
		}
		conn = secure
	}
	if _, err := fmt.Fprintf(conn, "POST /whep/%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/sdp\r\nContent-Length: 3\r\n\r\nv=0", stream); err != nil {
		return "", err
	}
	answer := make([]byte, 200)
	n, err := io.ReadAtLeast(conn, answer, 1)
	return string(answer[:n]), err
}

// tokens pulls as a node of the mesh, by the mesh's own code, and then as it should not.
func tokens(t *testing.T, w *world, origin, relay *pod) {
	h := w.regions[usWest].people
	dir := t.TempDir()
	for name, content := range w.authority.issue(t) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	security, err := mesh.LoadSecurity(dir, mesh.SecurityOptions{Namespace: w.namespace, Cluster: "elsewhere"})
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return inside.Dial(h)(ctx, "tcp", address)
	}
	member := mesh.New(mesh.Options{
		Catalogue: catalogue.New(catalogue.Node{ID: "guest", Incarnation: 1, Cluster: "elsewhere"}),
		Security:  security, Namespace: w.namespace, Dial: dial,
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	running, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = member.Run(running)
	}()
	defer func() {
		end()
		<-done
	}()
	var peers []discovery.Peer
	for _, p := range []*pod{origin, relay} {
		peers = append(peers, discovery.Peer{Addr: netip.AddrPortFrom(p.host.IPv4, peerPort), Cluster: p.Name, Ready: true})
	}
	member.SetPeers(peers)
	var grant mesh.Grant
	pull := func(p *pod) {
		t.Helper()
		if err := retry(ctx, func(ctx context.Context) (err error) {
			grant, err = member.Pull(ctx, catalogue.NodeID(p.object.UID), stream)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	pull(origin)
	issued := time.Now()
	base, err := inside.Client(h)
	if err != nil {
		t.Fatal(err)
	}
	play := func(client *http.Client, address, token string) (player.Report, error) {
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		viewer := player.New(&whip.Client{HTTP: client, NewPeerConnection: base.NewPeerConnection})
		enough, stop := context.WithCancel(ctx)
		defer stop()
		waited := make(chan struct{})
		go func() {
			defer close(waited)
			_ = viewer.Wait(enough, func(r player.Report) bool { return r.Frames >= 30 })
			stop()
		}()
		err = viewer.Run(enough, adapters.Endpoint{URL: u, Header: http.Header{gateway.PullTokenHeader: {token}}})
		stop()
		<-waited
		return viewer.Report(), err
	}
	pulls := security.HTTPClient(dial)
	if r, err := play(pulls, grant.URL, grant.Token); r.Frames < 30 {
		t.Fatalf("a pull as it should be: %+v, %v", r, err)
	}
	at := func(p *pod, name string) string {
		return fmt.Sprintf("https://%s:%d/whep/%s", p.host.IPv4, peerPort, name)
	}
	for what, one := range map[string]struct {
		client         *http.Client
		address, token string
	}{
		"at another node":        {pulls, at(relay, stream), grant.Token},
		"for another stream":     {pulls, at(origin, "live/other"), grant.Token},
		"changed":                {pulls, grant.URL, grant.Token[:len(grant.Token)-2] + "xx"},
		"none":                   {pulls, grant.URL, ""},
		"at the public port":     {base.HTTP, whep(origin.door()), grant.Token},
		"at a public port there": {base.HTTP, whep(relay.door()), grant.Token},
	} {
		r, err := play(one.client, one.address, one.token)
		if status, ok := errors.AsType[*whip.StatusError](err); !ok || status.Code != http.StatusForbidden || r.Frames > 0 {
			t.Errorf("token %s: %d frames, %v", what, r.Frames, err)
		}
	}
	select {
	case <-time.After(time.Until(issued.Add(gateway.TokenLife + time.Second))):
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	r, err := play(pulls, grant.URL, grant.Token)
	if status, ok := errors.AsType[*whip.StatusError](err); !ok || status.Code != http.StatusForbidden || r.Frames > 0 {
		t.Errorf("token after a minute: %d frames, %v", r.Frames, err)
	}
	pull(origin)
	if r, err := play(pulls, grant.URL, grant.Token); r.Frames < 30 {
		t.Errorf("a new token: %+v, %v", r, err)
	}
}
