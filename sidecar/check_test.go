package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/sidestream-dev/sidestream/injector/inject"
	"github.com/sidestream-dev/sidestream/sidecar/check"
	"github.com/sidestream-dev/sidestream/sidecar/discovery"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

// kubeconfig names a server in a file.
func kubeconfig(t *testing.T, server string) string {
	t.Helper()
	k := api.NewConfig()
	k.Clusters["c"] = &api.Cluster{Server: server}
	k.Contexts["c"] = &api.Context{Cluster: "c", Namespace: "media"}
	k.CurrentContext = "c"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*k, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// The check reads of a sidecar's status what the sidecar writes.
func TestCheckCommand(t *testing.T) {
	status, err := json.Marshal(status{
		Node: "n1", Cluster: "germany", Version: "v1",
		Peers: []mesh.PeerStatus{
			{Cluster: "singapore", Address: "10.2.0.1:18443", Connected: true, Version: "v2"},
			{Cluster: "us-west", Address: "10.3.0.1:18443", Error: "refused", Conditions: []string{"unreachable"}},
		},
		Relays:    []relay.Status{{Stream: "show", State: relay.StateRetrying, LastError: "connect: timeout"}},
		Discovery: []discovery.Status{{Source: "dns", Error: "no such host"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	pod := `{"metadata":{"namespace":"media","name":"sfu-1","labels":{"` + inject.Label + `":"true","` + inject.InjectedLabel + `":"true"},
		"annotations":{"` + inject.StatusAnnotation + `":"{\"admin\":18090}"}},
		"spec":{"initContainers":[{"name":"` + inject.ContainerName + `"}]},"status":{"phase":"Running"}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/version":
			_, _ = io.WriteString(w, `{"gitVersion":"v1.34.1"}`)
		case strings.HasSuffix(r.URL.Path, "/sfu-1:18090/proxy/readyz"):
			_, _ = io.WriteString(w, "ok")
		case strings.HasSuffix(r.URL.Path, "/sfu-1:18090/proxy/api/status"):
			_, _ = w.Write(status)
		case strings.HasSuffix(r.URL.Path, "/pods") && strings.HasPrefix(r.URL.Query().Get("labelSelector"), inject.Label+"="):
			_, _ = io.WriteString(w, `{"items":[`+pod+`]}`)
		default:
			_, _ = io.WriteString(w, `{}`)
		}
	}))
	defer server.Close()
	config := kubeconfig(t, server.URL)
	var out bytes.Buffer
	err = run(t.Context(), []string{"check", "-kubeconfig", config, "-clusters", "germany,hongkong", "-o", "json"}, nil, &out, &out)
	if exitCode(err) != 1 {
		t.Error(err)
	}
	var results []check.Result
	if err := json.Unmarshal(out.Bytes(), &results); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	details := map[string]string{}
	for _, r := range results {
		details[r.ID] = strings.Join(append(r.Details, r.Message), "\n")
	}
	for id, words := range map[string][]string{
		"peers": {
			"media/sfu-1, to us-west 10.3.0.1:18443: unreachable: refused", "discovery by dns: no such host", "no peer of cluster hongkong",
			"1 of 2 links",
		},
		"relays":        {"stream show: connect: timeout"},
		"versions":      {"version v1", "version v2"},
		"media-servers": {"1 media servers answer"},
	} {
		for _, word := range words {
			if !strings.Contains(details[id], word) {
				t.Errorf("%q is missing in what %s says:\n%s", word, id, details[id])
			}
		}
	}

	out.Reset()
	err = run(t.Context(), []string{"check", "-kubeconfig", config, "-uninstall"}, nil, &out, &out)
	if exitCode(err) != 1 || !strings.Contains(out.String(), "kubectl -n media delete pod/sfu-1") {
		t.Errorf("%v\n%s", err, &out)
	}
}

func TestCheckUsage(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for _, args := range [][]string{
		{"-o", "yaml"},
		{"-nonesuch"},
		{"-kubeconfig", filepath.Join(t.TempDir(), "none")},
		{"-kubeconfig", kubeconfig(t, closed.URL)},
		{"-kubeconfig", kubeconfig(t, closed.URL), "-context", "none"},
		{"-kubeconfig", kubeconfig(t, closed.URL), "-uninstall"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), append([]string{"check"}, args...), nil, &out, &out); exitCode(err) != 2 || err == nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: sfu}
spec:
  template:
    metadata:
      labels: {sidestream.dev/inject: "true"}
      annotations: {sidestream.dev/adapter: mediamtx}
    spec:
      containers: [{name: sfu, image: sfu, ports: [{name: http, containerPort: 8889}]}]
`

func TestInjectCommand(t *testing.T) {
	good, bad := filepath.Join(t.TempDir(), "good.yaml"), filepath.Join(t.TempDir(), "bad.yaml")
	host := filepath.Join(t.TempDir(), "host.yaml")
	for name, text := range map[string]string{
		good: deployment + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: other}\n",
		bad:  strings.Replace(deployment, "mediamtx", "nonesuch", 1),
		host: strings.Replace(deployment, "      containers:", "      hostNetwork: true\n      containers:", 1),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		args   []string
		code   int
		stdout string
		words  string // on stderr, or of the error
	}{
		"yaml": {
			[]string{"-f", good, "-n", "media", "-cluster", "germany", "-image", "example.invalid/s:1", "-set", "SIDESTREAM_GATEWAY_HOLD=7s", "-cpu-limit", "2"},
			0, "image: example.invalid/s:1", "Deployment media/sfu: injected\nPod media/other: not injected (not_asked)",
		},
		"diff":          {[]string{"-f", good, "-diff"}, 0, "+++ Deployment sfu with a sidecar", "the cluster has no name: CLUSTER"},
		"refused":       {[]string{"-f", good, "-f", bad}, 1, "nonesuch", "not injected (bad_annotation)"},
		"hosts":         {[]string{"-f", host}, 0, "hostPort: 18100", "injected"},
		"no file":       {nil, 2, "", "-f"},
		"missing file":  {[]string{"-f", "/nowhere"}, 1, "", "/nowhere"},
		"no setting":    {[]string{"-f", good, "-set", "SIDESTREAM_NONESUCH=1"}, 2, "", "SIDESTREAM_NONESUCH"},
		"no amount":     {[]string{"-f", good, "-memory-limit", "much"}, 2, "", "much"},
		"secret":        {[]string{"-f", good, "-set", "SIDESTREAM_ADAPTER_TOKEN=hunter2hunter2hunter2"}, 2, "", "Secret"},
		"no pull":       {[]string{"-f", good, "-pull-policy", "Sometimes"}, 2, "", "IfNotPresent"},
		"one host port": {[]string{"-f", good, "-host-ports", "18100"}, 2, "", "two ports"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			err := run(t.Context(), append([]string{"inject"}, tt.args...), nil, &stdout, &stderr)
			if err == nil {
				err = errors.New("")
				if tt.code != 0 {
					t.Error("no error")
				}
			} else if exitCode(err) != tt.code {
				t.Errorf("exit code %d: %v", exitCode(err), err)
			}
			said := stderr.String() + err.Error()
			if !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(said, tt.words) || strings.Contains(said, "hunter2") {
				t.Errorf("%s\n%s", said, &stdout)
			}
		})
	}
	var stdout, stderr bytes.Buffer
	cmd := injectCommand(strings.NewReader(deployment), &stdout, &stderr)
	cmd.SetArgs([]string{"-f", "-"})
	if err := cmd.Execute(); err != nil || !strings.Contains(stdout.String(), "name: sidestream\n") {
		t.Errorf("%v\n%s", err, &stdout)
	}
}
