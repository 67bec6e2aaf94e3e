package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidestream-dev/sidestream/adapters/pionsfu"
)

// A wrong call of the probe is told from a server that cannot cascade.
func TestProbeExitCodes(t *testing.T) {
	nothing := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(nothing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args string
		code int
		want string
	}{
		"no URL":       {"", exitUsage, "address"},
		"three URLs":   {"a b c", exitUsage, "3 URLs"},
		"both ways":    {"http://a -whip http://a/{stream}", exitUsage, "not both"},
		"one template": {"http://a/{stream}/whip", exitUsage, "both URLs"},
		"bad URL":      {"a/{stream} b/{stream}", exitUsage, "http://"},
		"bad header":   {"http://a -header x", exitUsage, "Name: value"},
		"bad flag":     {"http://a -nothing", exitUsage, "nothing"},
		"bad time":     {"http://a -timeout=-1s", exitUsage, "-1s"},
		"no CA":        {"http://a -ca " + nothing + "-none", exitUsage, "-ca"},
		"empty CA":     {"http://a -ca " + nothing, exitUsage, "no certificate"},
		"nobody there": {"http://127.0.0.1:1", exitCannot, "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			err := run(t.Context(), append([]string{"probe"}, strings.Fields(tt.args)...), nil, &stdout, &stderr)
			if err == nil || exitCode(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("exit code %d, %v; want %d and %q", exitCode(err), err, tt.code, tt.want)
			}
			if tt.code == exitUsage && stdout.Len() > 0 {
				t.Errorf("a report without a probe:\n%s", &stdout)
			}
		})
	}
}

func TestProbeJSON(t *testing.T) {
	server, err := pionsfu.New(pionsfu.Config{UDPAddr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	web := httptest.NewServer(server)
	defer func() { web.Close(); cancel(); <-ended }()
	var stdout, stderr bytes.Buffer
	args := []string{"probe", "-json", "-timeout", "3m", "-whip", web.URL + "/whip/{stream}", "-whep", web.URL + "/whep/{stream}"}
	if err := run(t.Context(), args, nil, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, &stdout)
	}
	var report struct {
		CanCascade bool `json:"canCascade"`
		Checks     []struct {
			ID, Verdict, Text string
		} `json:"checks"`
		Settings []string `json:"settings"`
		Traits   struct {
			Codecs []string `json:"codecs"`
		} `json:"traits"`
	}
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	if !report.CanCascade || len(report.Checks) < 50 || len(report.Settings) < 2 || len(report.Traits.Codecs) < 5 {
		t.Errorf("report %+v", report)
	}
	if !strings.Contains(stderr.String(), "publishing the test clip") {
		t.Errorf("progress %q", &stderr)
	}
}
