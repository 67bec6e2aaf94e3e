package bed

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Binaries is the folder of the programs that a bed runs. [Find] and [Build] return it.
type Binaries string

func (b Binaries) path(name string) string { return filepath.Join(string(b), name) }

// ErrNotBuilt is returned by [Find] where the cache lacks the binaries.
var ErrNotBuilt = errors.New("the control planes are not built")

// program is a binary and where it comes from.
type program struct {
	name string
	pkg  string
	// cost is the processor time of a build from nothing, after those before it in the list, with what it shares with them.
	cost time.Duration
}

var programs = []program{
	{"etcd", "go.etcd.io/etcd/server/v3", 120 * time.Second},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", 450 * time.Second},
	{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", 115 * time.Second},
	{"clustermesh-apiserver", "github.com/cilium/cilium/clustermesh-apiserver", 120 * time.Second},
	{"meshsync", "./meshsync", 10 * time.Second},
}

// resources are the custom resources without which Cilium's processes do not start, as files of Cilium's module.
var resources = []string{"ciliumnodes", "ciliumidentities", "ciliumendpoints"}

const resourceFolder = "pkg/k8s/apis/cilium.io/client/crds/v2"

// Estimate is how long a build from cold caches takes on this machine when it has nothing else to do.
func Estimate() time.Duration {
	var cost time.Duration
	for _, p := range programs {
		cost += p.cost
	}
	return max(time.Minute, (cost / time.Duration(runtime.NumCPU())).Round(time.Minute))
}

// source is the nested module that pins the versions.
type source struct {
	dir     string
	key     string // of the folder in the cache: versions, and a hash of everything that decides what is built
	version string // of Kubernetes
}

// findSource looks for the module from the working directory upwards, as tests run in their package's folder.
func findSource() (source, error) {
	dir, err := os.Getwd()
	if err != nil {
		return source{}, fmt.Errorf("find e2e/tools: %w", err)
	}
	for {
		tools := filepath.Join(dir, "e2e", "tools")
		if _, err := os.Stat(filepath.Join(tools, "go.mod")); err == nil {
			return readSource(tools)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return source{}, errors.New("find e2e/tools: not in this folder or above it")
		}
		dir = parent
	}
}

func readSource(dir string) (source, error) {
	hash := sha256.New()
	var mod []byte
	for _, name := range []string{"go.mod", "go.sum", "meshsync/main.go"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return source{}, fmt.Errorf("read e2e/tools: %w", err)
		}
		if name == "go.mod" {
			mod = content
		}
		fmt.Fprintf(hash, "%s %d\n", name, len(content))
		hash.Write(content)
	}
	// Neither the compiler's version nor its flags are in the key: they change nothing that a test could see.
	fmt.Fprintln(hash, runtime.GOOS, runtime.GOARCH, resources)
	for _, p := range programs {
		fmt.Fprintln(hash, p.name, p.pkg)
	}

	s := source{dir: dir}
	for _, m := range []struct{ short, module string }{
		{"kubernetes", "k8s.io/kubernetes"}, {"etcd", "go.etcd.io/etcd/server/v3"}, {"cilium", "github.com/cilium/cilium"},
	} {
		version := regexp.MustCompile(`(?m)^\s*(?:require )?` + regexp.QuoteMeta(m.module) + ` (v\S+)`).FindSubmatch(mod)
		if version == nil {
			return source{}, fmt.Errorf("read e2e/tools: go.mod does not require %s", m.module)
		}
		if m.short == "kubernetes" {
			s.version = string(version[1])
		}
		s.key += m.short + "-" + string(version[1]) + "_"
	}
	s.key += hex.EncodeToString(hash.Sum(nil))[:12]
	return s, nil
}

// cache is the folder that holds one folder of binaries per key: E2E_CACHE, else one in the user's cache. It may be
// deleted at any time.
func cache() (string, error) {
	if dir := os.Getenv("E2E_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache (E2E_CACHE names one): %w", err)
	}
	return filepath.Join(dir, "sidestream", "bed"), nil
}

// Find returns the binaries from the cache, or [ErrNotBuilt].
func Find() (Binaries, error) {
	src, err := findSource()
	if err != nil {
		return "", err
	}
	root, err := cache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, src.key)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return "", ErrNotBuilt
	} else if err != nil {
		return "", fmt.Errorf("find binaries: %w", err)
	}
	return Binaries(dir), nil
}

// Build returns the binaries, from the cache or built into it, which takes [Estimate] or, with Go's own cache warm, much
// less. Of several at a time one builds, the others wait for it. What it is at goes to progress, with a sign of life
// every half minute. An interrupted build goes on where it was.
func Build(ctx context.Context, progress io.Writer) (Binaries, error) {
	if found, err := Find(); !errors.Is(err, ErrNotBuilt) {
		return found, err
	}
	src, err := findSource()
	if err != nil {
		return "", err
	}
	root, err := cache()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", fmt.Errorf("make the cache: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(root, "lock"), progress)
	if err != nil {
		return "", fmt.Errorf("lock the cache: %w", err)
	}
	defer unlock()
	if found, err := Find(); !errors.Is(err, ErrNotBuilt) {
		return found, err // somebody else built them meanwhile
	}
	dir := filepath.Join(root, src.key)
	began := time.Now()
	fmt.Fprintf(progress, "bed: building control planes into %s: up to %.0f minutes on %d idle cores, once\n",
		dir, Estimate().Minutes(), runtime.NumCPU())
	if err := src.build(ctx, dir+".partial", progress); err != nil {
		return "", err
	}
	if err := os.Rename(dir+".partial", dir); err != nil {
		return "", fmt.Errorf("finish build: %w", err)
	}
	fmt.Fprintf(progress, "bed: built in %v\n", time.Since(began).Round(time.Second))
	return Binaries(dir), nil
}

// lock takes a lock that ends with the process, however it ends.
func lock(ctx context.Context, name string, progress io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	said := false
	poll := time.NewTicker(200 * time.Millisecond)
	defer poll.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(err, f.Close())
		}
		if !said {
			said = true
			fmt.Fprintln(progress, "bed: somebody else is building the control planes; waiting for them")
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-poll.C:
		}
	}
}

func (s source) build(ctx context.Context, dir string, progress io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("build control planes: %w", err)
	}
	for i, p := range programs {
		step := fmt.Sprintf("bed: %s (%d of %d)", p.name, i+1, len(programs))
		target := filepath.Join(dir, p.name)
		if _, err := os.Stat(target); err == nil {
			fmt.Fprintln(progress, step, "is there")
			continue
		}
		fmt.Fprintf(progress, "%s: up to %v\n", step, (p.cost / time.Duration(runtime.NumCPU())).Round(time.Second))
		began := time.Now()
		var err error
		alive(progress, step, func() { err = s.compile(ctx, p.pkg, target) })
		if err != nil {
			return fmt.Errorf("build %s: %w", p.name, err)
		}
		fmt.Fprintf(progress, "%s took %v\n", step, time.Since(began).Round(time.Second))
	}
	out, err := s.command(ctx, "list", "-m", "-f", "{{.Dir}}", "github.com/cilium/cilium").Output()
	if err != nil {
		return fmt.Errorf("find Cilium's module: %w", err)
	}
	for _, name := range resources {
		from := filepath.Join(strings.TrimSpace(string(out)), filepath.FromSlash(resourceFolder), name+".yaml")
		content, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("copy custom resource: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), content, 0o644); err != nil {
			return fmt.Errorf("copy custom resource: %w", err)
		}
	}
	return nil
}

// compile builds one program. The target appears when it is whole.
func (s source) compile(ctx context.Context, pkg, target string) error {
	major, minor, _ := strings.Cut(strings.TrimPrefix(s.version, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	// Kubernetes' clients and Cilium read the version and behave accordingly; without these it would be v0.0.0.
	const pkgVersion = " -X k8s.io/component-base/version."
	flags := "-s -w" + pkgVersion + "gitVersion=" + s.version +
		pkgVersion + "gitMajor=" + major + pkgVersion + "gitMinor=" + minor
	cmd := s.command(ctx, "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", target+".new", pkg)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return os.Rename(target+".new", target)
}

// command runs go in the nested module. All builds have one setting of cgo, for two would share nothing; without it no C
// compiler is needed.
func (s source) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // has its compilers ended too
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// alive does the work, and says every half minute that it goes on.
func alive(progress io.Writer, step string, work func()) {
	done := make(chan struct{})
	var teller sync.WaitGroup
	teller.Go(func() {
		began := time.Now()
		tick := time.NewTicker(30 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				fmt.Fprintf(progress, "%s: %v so far\n", step, time.Since(began).Round(time.Second))
			}
		}
	})
	defer teller.Wait()
	defer close(done)
	work()
}
