package mesh

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The manual's commands for an authority of all clusters make certificates with which two clusters join.
func TestManualForAnAuthority(t *testing.T) {
	for _, tool := range []string{"sh", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s here", tool)
		}
	}
	manual, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, block := range strings.Split(string(manual), "\n```sh\n")[1:] {
		commands, _, _ := strings.Cut(block, "\n```\n")
		steps = append(steps, commands)
	}
	if len(steps) != 2 {
		t.Fatalf("%d blocks of commands in the manual, want that of the authority and that of a certificate", len(steps))
	}
	authority := t.TempDir()
	shell(t, authority, steps[0])
	join := func(cluster string) *Security {
		dir := t.TempDir()
		for _, name := range []string{"ca.crt", "ca.key"} {
			content, err := os.ReadFile(filepath.Join(authority, name))
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, name, string(content))
		}
		commands := strings.Replace(steps[1], "cluster=germany", "cluster="+cluster, 1)
		if out := shell(t, dir, commands); !strings.Contains(out, "tls.crt: OK") {
			t.Errorf("openssl does not verify it:\n%s", out)
		}
		if _, err := LoadSecurity(dir, SecurityOptions{Namespace: "other", Cluster: cluster}); err == nil {
			t.Error("the certificate is good for any namespace")
		}
		return loadAs(t, dir, "media", cluster)
	}
	germany, usWest := join("germany"), join("us-west")
	a := start(t, config{id: "a", cluster: "germany", security: germany, listener: listenLoopback(t, "127.0.0.1:0")})
	b := start(t, config{id: "b", cluster: "us-west", security: usWest, listener: listenLoopback(t, "127.0.0.1:0")})
	b.book.publish(1, "demo")
	a.SetPeers(at(b.addr))
	a.book.hears(t, "b", 1, "demo")
}

// shell runs commands in a directory, as somebody would who copies them, and returns what they say.
func shell(t *testing.T, dir, commands string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-ec", commands)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, commands, out)
	}
	return string(out)
}
