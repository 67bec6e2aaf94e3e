//go:build linux

// Package world proves the promise: three clusters on three continents, real control planes that Cilium's sync joins, each pod
// a network namespace with a media server and the sidecar that the real injector put into it, distance and loss between them,
// and viewers that count frames.
//
// The API servers admit the pods; a kubelet of the test's own runs their containers: each in a root of its own, as the user, with
// the environment, arguments, volumes, hooks and probes that the admitted pod says. Addresses go to the pods' status, from where the
// real EndpointSlice controllers and Cilium's sync bring them to the sidecars.
package world

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/e2e/bed"
)

var (
	shared   = bed.Shared{Config: bed.Config{Clusters: []string{germany, singapore, usWest}, SyncTimeout: 10 * time.Second}}
	binaries string // a folder with what is built: sidestream, and the injector
)

// The clusters.
const (
	germany   = "germany"
	singapore = "singapore"
	usWest    = "us-west"
)

func TestMain(m *testing.M) {
	shared.Tests = m
	os.Exit(func() int {
		if os.Getenv("E2E") == "" {
			return m.Run() // to skip
		}
		var err error
		if binaries, err = os.MkdirTemp("", "sidestream-world-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(binaries)
		if err := os.Chmod(binaries, 0o755); err != nil { // sidecars do not run as root
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for name, path := range map[string]string{"sidestream": "../../sidecar", "sidestream-injector": "../../injector"} {
			build := exec.Command("go", "build", "-o", filepath.Join(binaries, name), path)
			build.Env = append(os.Environ(), "CGO_ENABLED=0") // its root has nothing else in it
			build.Stdout, build.Stderr = os.Stderr, os.Stderr
			if err := build.Run(); err != nil {
				fmt.Fprintln(os.Stderr, "build the program under test:", err)
				return 1
			}
		}
		return shared.Run()
	}())
}
