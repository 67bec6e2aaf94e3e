//go:build linux

package world

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/e2e/inside"
	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// turnSecret is coturn's and the authentication service's.
const turnSecret = "shared-by-turn-and-auth-service"

// Viewers whose network lets them reach the web and a TURN server alone see all frames: the gateway names the TURN server, with
// credentials that an authentication service makes.
func TestTURN(t *testing.T) {
	program, err := exec.LookPath("turnserver")
	if err != nil {
		t.Skip("no turnserver: install coturn")
	}
	w := newWorld(t)
	g := w.regions[germany]
	relay, ingress, office := g.host("turn"), g.host("ingress"), g.host("office")
	coturn(w, g, program, relay)
	var given atomic.Int64
	auth := authService(w, relay, &given)

	annotations := map[string]string{"turn-auth-url": auth}
	pods := []*pod{
		w.regions[singapore].runSpec(podSpec(w.namespace, "sfu-0", annotations)), g.runSpec(podSpec(w.namespace, "sfu-0", annotations)),
	}
	w.connected(pods...)
	w.regions[singapore].publish()
	w.holder(pods)
	edge := pods[1]

	// The office's network: packets to pods are lost; the web goes by the ingress.
	office.Join(edge.host, wan.NewLink(1, wan.Params{Cut: true}))
	office.Join(pods[0].host, wan.NewLink(2, wan.Params{Cut: true}))
	door := forward(w, ingress, edge.door())

	direct, err := inside.NewViewer(office, func(int) string { return whep(door) })
	w.must(err)
	plain := direct.Client.NewPeerConnection
	direct.Client.NewPeerConnection = func(c webrtc.Configuration) (*webrtc.PeerConnection, error) {
		c.ICEServers = nil
		return plain(c)
	}
	leave := w.background(direct.Run)
	viewer, err := inside.NewViewer(office, func(int) string { return whep(door) })
	w.must(err)
	viewer.Client.AskICEServers = true
	end := w.background(viewer.Run)
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	w.must(viewer.Wait(ctx, 150))
	s := viewer.Seen()
	t.Logf("%d frames by TURN, %d missing, %v old; %d credentials were made", s.Frames, s.Missing, s.Age.Round(time.Millisecond), given.Load())
	if s.Missing > 0 || s.Sessions != 1 {
		t.Errorf("%+v", s)
	}
	if n := direct.Seen().Frames; n > 0 {
		t.Errorf("%d frames came without TURN: this proves nothing", n)
	}
	if given.Load() == 0 {
		t.Error("nobody asked the authentication service")
	}
	leave()
	end()
	w.rest("all have left", pods[0], nil, pods...)
}

// coturn runs in a host until the test ends.
func coturn(w *world, r *region, program string, h *wan.Host) {
	w.Helper()
	ip := h.IPv4.String()
	cmd := exec.Command(program, "-n", "--log-file=stdout", "--no-cli", "--no-tls", "--no-dtls", "--realm=example.org", "--use-auth-secret",
		"--static-auth-secret="+turnSecret, "--listening-ip="+ip, "--relay-ip="+ip, "--listening-port=3478",
		"--min-port=40000", "--max-port=40100", "--pidfile="+w.TempDir()+"/pid", "--userdb="+w.TempDir()+"/db")
	log := r.log("coturn")
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, w.TempDir()
	w.must(h.Start(cmd))
	w.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// authService answers as STUNner's does: an RTCConfiguration with credentials that are good for a while.
func authService(w *world, turn *wan.Host, given *atomic.Int64) (address string) {
	w.Helper()
	l, err := inside.Listen(turn, turn.IPv4.String()+":8088")
	w.must(err)
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ice" || r.URL.Query().Get("service") != "turn" {
			http.Error(rw, "not found", http.StatusNotFound)
			return
		}
		given.Add(1)
		user := fmt.Sprintf("%d:%s", time.Now().Add(time.Hour).Unix(), r.URL.Query().Get("username"))
		sum := hmac.New(sha1.New, []byte(turnSecret)) // the REST API of TURN servers
		sum.Write([]byte(user))
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(map[string]any{
			"iceServers": []map[string]any{{
				"urls": []string{fmt.Sprintf("turn:%s:3478?transport=udp", turn.IPv4)}, "username": user,
				"credential": base64.StdEncoding.EncodeToString(sum.Sum(nil)),
			}},
			"iceTransportPolicy": "all",
		})
	})}
	serve(w, server, l)
	return "http://" + l.Addr().String() + "/ice?service=turn"
}

// serve serves until the test ends.
func serve(w *world, server *http.Server, l net.Listener) {
	server.ReadHeaderTimeout = 5 * time.Second
	w.background(func(ctx context.Context) {
		stop := context.AfterFunc(ctx, func() { _ = server.Close() })
		defer stop()
		_ = server.Serve(l)
	})
}

// forward is an ingress: what comes to the host's port 80 goes to a gateway.
func forward(w *world, ingress *wan.Host, door string) string {
	w.Helper()
	l, err := inside.Listen(ingress, ingress.IPv4.String()+":80")
	w.must(err)
	relayTo(w, l, func(ctx context.Context) (net.Conn, error) { return inside.Dial(ingress)(ctx, "tcp", door) })
	return l.Addr().String()
}
