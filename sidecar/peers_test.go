package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/sidecar/discovery"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
)

func TestPrintPeers(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	s := status{
		Node: "n1", Cluster: "germany",
		Peers: []mesh.PeerStatus{
			{Cluster: "singapore", ID: "n2", Address: "10.2.0.1:18443", Connected: true, Ready: true, RTT: 160*time.Millisecond + 1, Holds: 12, LastSeen: now.Add(-2 * time.Second), Version: "v1"},
			{Cluster: "singapore", ID: "n3", Address: "10.2.0.2:18443", Connected: true, Ready: true, Draining: true, RTT: 1234 * time.Microsecond, LastSeen: now, Version: "v2", Conditions: []string{"cluster-mismatch"}},
			{Cluster: "us-west", Address: "10.3.0.1:18443", Error: "connection refused", Conditions: []string{"unreachable"}},
		},
		Discovery: []discovery.Status{
			{Source: "dns", Peers: 2},
			{Source: "endpointslice", Since: now.Add(-time.Minute), Error: "forbidden"},
		},
	}
	var out bytes.Buffer
	if err := printPeers(&out, s, now); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimLeft(`
CLUSTER    NODE  ADDRESS         STATE     RTT     HOLDS  HEARD   VERSION
singapore  n2    10.2.0.1:18443  ready     160ms   12     2s ago  v1
singapore  n3    10.2.0.2:18443  draining  1.23ms  0      0s ago  v2
us-west    -     10.3.0.1:18443  down      -       0      never   -
! 10.2.0.2:18443: cluster-mismatch
! 10.3.0.1:18443: unreachable: connection refused
! discovery by endpointslice: since 2030-01-02T03:03:05Z: forbidden
n1 of cluster germany: 2 of 3 peers connected
`, "\n")
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

func TestPeersCommand(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/status":
			_ = json.NewEncoder(w).Encode(status{Node: "n1", Cluster: "germany", Peers: []mesh.PeerStatus{{ID: "n2", Cluster: "x"}}})
		case "/page/api/status":
			_, _ = w.Write([]byte("<html>"))
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	for name, tt := range map[string]struct {
		args        []string
		environ     []string
		out, failed string
	}{
		"table":             {args: []string{"-admin", server.URL + "/"}, out: "0 of 1 peers connected"},
		"json":              {args: []string{"-admin", server.URL, "-json"}, out: `"id": "n2"`},
		"by the settings":   {environ: []string{"SIDESTREAM_ADMIN_LISTEN=" + server.Listener.Addr().String()}, out: "n1 of cluster germany"},
		"another server":    {args: []string{"-admin", server.URL + "/other"}, failed: "is this its administration port?"},
		"not a status":      {args: []string{"-admin", server.URL + "/page"}, failed: "read the answer"},
		"nobody is there":   {args: []string{"-admin", "http://127.0.0.1:1"}, failed: "is it running here?"},
		"not even a URL":    {args: []string{"-admin", "http://\x00"}, failed: "ask the sidecar"},
		"more than it asks": {args: []string{"everybody"}, failed: "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), append([]string{"peers"}, tt.args...), tt.environ, &out, &out)
			if tt.failed == "" && err != nil || tt.failed != "" && (err == nil || !strings.Contains(err.Error(), tt.failed)) {
				t.Errorf("error %v, want %q", err, tt.failed)
			}
			if !strings.Contains(out.String(), tt.out) {
				t.Errorf("printed %q, want %q", out.String(), tt.out)
			}
		})
	}
}
