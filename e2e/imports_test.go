package e2e

import (
	"bufio"
	"bytes"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sidestream-dev/sidestream/"

// arrows says what each package may import: of ours by the path below the module, of others by the beginning of the
// path. What is not listed here may import nothing but the standard library. A row ending in "/..." holds for the
// packages below too.
var arrows = map[string][]string{
	"adapters":             nil,
	"adapters/media":       {"github.com/pion/", "golang.org/x/"},
	"adapters/whip":        {"adapters", "adapters/media", "github.com/pion/"},
	"adapters/pionsfu":     {"adapters", "adapters/media", "adapters/pace", "adapters/whip", "github.com/pion/", "github.com/prometheus/", "golang.org/x/"},
	"adapters/testframes":  {"github.com/pion/"},
	"adapters/adaptertest": {"adapters", "adapters/media", "adapters/testframes", "adapters/whip", "github.com/pion/", "github.com/google/go-cmp/"},
	"adapters/poll":        {"adapters"},
	"adapters/pace":        nil,
	"adapters/mediamtx":    {"adapters", "adapters/poll"},
	"adapters/generic":     {"adapters", "adapters/poll", "github.com/itchyny/"},

	"adapters/mediamtx/mediamtxtest": {"adapters", "adapters/mediamtx"},

	"adapters/broadcastbox":                  {"adapters", "adapters/poll"},
	"adapters/broadcastbox/broadcastboxtest": {"adapters/broadcastbox"},

	"adapters/janus":           {"adapters", "adapters/whip", "github.com/pion/"},
	"adapters/janus/janustest": {"e2e/wan"},

	"sidecar/config":     {"github.com/caarlos0/env/"},
	"sidecar/discovery":  {"golang.org/x/", "github.com/prometheus/"},
	"sidecar/catalogue":  {"adapters", "github.com/tidwall/"},
	"sidecar/planner":    {"adapters", "sidecar/catalogue", "github.com/cespare/xxhash/"},
	"sidecar/proto/...":  {"adapters", "google.golang.org/"},
	"sidecar/mesh":       {"adapters", "sidecar/catalogue", "sidecar/discovery", "sidecar/proto/...", "google.golang.org/", "github.com/grpc-ecosystem/", "github.com/prometheus/", "github.com/cenkalti/", "golang.org/x/", "sidecar/tracing", "go.opentelemetry.io/"},
	"sidecar/mesh/bench": {"adapters", "sidecar/catalogue", "sidecar/discovery", "sidecar/mesh", "e2e/wan"},
	"sidecar/relay":      {"adapters", "adapters/media", "adapters/whip", "sidecar/catalogue", "sidecar/planner", "sidecar/tracing", "github.com/pion/", "github.com/prometheus/", "github.com/cenkalti/", "go.opentelemetry.io/", "golang.org/x/"},
	"sidecar/relay/sim":  {"adapters", "sidecar/catalogue", "sidecar/planner", "sidecar/proto/...", "sidecar/relay", "google.golang.org/"},
	"sidecar/relay/...":  {"adapters/...", "sidecar/relay", "sidecar/relay/...", "github.com/pion/", "golang.org/x/"},
	"sidecar/gateway":    {"adapters", "adapters/pace", "sidecar/tracing", "github.com/prometheus/", "go.opentelemetry.io/", "golang.org/x/"},
	"sidecar/tracing":    {"go.opentelemetry.io/"},
	"sidecar/bearer":     {"adapters", "sidecar/catalogue", "github.com/golang-jwt/", "github.com/MicahParks/"},
	"sidecar/iceservers": {"adapters/whip", "github.com/pion/webrtc/", "github.com/prometheus/", "golang.org/x/"},
	"sidecar/admin":      {"github.com/prometheus/"},
	"sidecar/cascade":    nil,
	"sidecar/console":    {"sidecar/cascade"},
	"sidecar/redirect":   {"github.com/google/", "golang.org/x/sys/"},
	"sidecar/testsource": {"adapters", "adapters/media", "adapters/whip", "github.com/pion/"},
	"sidecar/probe":      {"adapters", "adapters/media", "adapters/testframes", "adapters/whip", "sidecar/testsource", "github.com/pion/", "golang.org/x/"},
	"sidecar/check":      {"injector/inject", "k8s.io/", "golang.org/x/"},
	// The only part that knows where traces go.
	"sidecar/tracing/otlp": {"sidecar/tracing", "go.opentelemetry.io/", "golang.org/x/"},

	"sidecar": {"adapters/...", "sidecar/...", "injector/inject", "injector/manifest", "e2e/wan", "github.com/", "golang.org/x/", "google.golang.org/", "k8s.io/", "sigs.k8s.io/"},

	// The only part of a running sidecar that knows Kubernetes.
	"sidecar/discovery/endpointslice": {"sidecar/discovery", "k8s.io/", "github.com/go-logr/", "github.com/prometheus/"},

	// The injector knows Kubernetes, but of the sidecar only its settings.
	"injector/inject":   {"sidecar/config", "k8s.io/", "gomodules.xyz/"},
	"injector/manifest": {"injector/inject", "k8s.io/", "sigs.k8s.io/", "github.com/pmezard/", "gopkg.in/"},
	"injector/certs":    {"k8s.io/", "github.com/prometheus/"},
	"injector":          {"injector/...", "sidecar/config", "sidecar/admin", "k8s.io/", "github.com/caarlos0/", "github.com/prometheus/", "golang.org/x/"},

	"e2e":             {"adapters/...", "sidecar/config", "sidecar/testsource", "e2e/bed", "e2e/player", "github.com/", "k8s.io/"},
	"e2e/bed":         {"e2e/wan", "k8s.io/", "golang.org/x/"},
	"e2e/bed/build":   {"e2e/bed"},
	"e2e/discovery":   {"e2e/bed", "sidecar/discovery", "sidecar/discovery/endpointslice", "k8s.io/"},
	"e2e/fuzz":        nil,
	"e2e/hop":         {"adapters", "adapters/media", "adapters/mediamtx", "adapters/pionsfu", "adapters/whip", "e2e/wan", "sidecar/relay", "sidecar/relay/relaytest", "sidecar/testsource", "github.com/pion/"},
	"e2e/inject":      nil, // tests only
	"e2e/experiment":  {"adapters", "e2e/inside", "e2e/player", "e2e/wan", "sidecar/testsource", "github.com/pion/", "github.com/chromedp/"},
	"e2e/inside":      {"adapters", "adapters/media", "adapters/whip", "e2e/player", "e2e/wan", "sidecar/testsource", "github.com/pion/"},
	"e2e/metricsdoc":  {"github.com/prometheus/"},
	"e2e/thirdparty":  nil,
	"e2e/image":       {"e2e/thirdparty", "github.com/google/go-containerregistry/"},
	"e2e/failover":    {"adapters", "adapters/media", "adapters/whip", "e2e/player", "e2e/wan", "sidecar/testsource"},
	"e2e/sfubench":    {"adapters", "adapters/media", "adapters/mediamtx", "adapters/pionsfu", "adapters/whip", "sidecar/relay/relaytest", "github.com/pion/", "golang.org/x/"},
	"e2e/soak":        {"adapters", "adapters/media", "adapters/whip", "e2e/player", "sidecar/testsource"},
	"e2e/player":      {"adapters", "adapters/whip", "sidecar/testsource", "github.com/pion/"},
	"e2e/wan":         nil,
	"e2e/wan/emulate": {"e2e/wan"},
	"e2e/world":       nil, // tests only
}

// TestImports keeps imports pointing one way.
func TestImports(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "../...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		pkg := strings.TrimPrefix(fields[0], module)
		row, ok := rowOf(pkg)
		if !ok {
			t.Errorf("%s has no row in arrows: say there what it may import", pkg)
			continue
		}
		for _, imported := range fields[1:] {
			ours := strings.HasPrefix(imported, module)
			if !ours && !strings.Contains(strings.SplitN(imported, "/", 2)[0], ".") {
				continue // standard library
			}
			if imported = strings.TrimPrefix(imported, module); !allowed(imported, row, ours) {
				t.Errorf("%s imports %s; arrows allows it %q", pkg, imported, row)
			}
		}
	}
}

func rowOf(pkg string) ([]string, bool) {
	if row, ok := arrows[pkg]; ok {
		return row, true
	}
	for _, key := range slices.Sorted(maps.Keys(arrows)) {
		if below(pkg, key) {
			return arrows[key], true
		}
	}
	return nil, false
}

func allowed(imported string, row []string, ours bool) bool {
	return slices.ContainsFunc(row, func(a string) bool {
		if ours {
			return a == imported || below(imported, a)
		}
		return strings.HasSuffix(a, "/") && strings.HasPrefix(imported, a)
	})
}

func below(pkg, pattern string) bool {
	prefix, ok := strings.CutSuffix(pattern, "...")
	return ok && strings.HasPrefix(pkg+"/", prefix)
}
