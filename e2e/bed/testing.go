package bed

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binariesFor skips the test where the binaries are not built and E2E does not ask for it.
func binariesFor(tb testing.TB) Binaries {
	tb.Helper()
	binaries, err := Find()
	if errors.Is(err, ErrNotBuilt) {
		if os.Getenv("E2E") != "1" {
			tb.Skipf("run by make e2e: %v, which takes up to %.0f minutes once", err, Estimate().Minutes())
		}
		binaries, err = Build(tb.Context(), os.Stderr)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return binaries
}

// artifacts is where the test keeps what it leaves, "" where it does not.
func artifacts(tb testing.TB) string {
	if keep := flag.Lookup("test.artifacts"); keep != nil && keep.Value.String() == "true" {
		return tb.ArtifactDir()
	}
	return ""
}

// New starts a bed that ends with the test. Logs go to the test's artifacts where these are kept (go test -artifacts), else
// to a folder that is kept, and named, if the test fails.
func New(tb testing.TB, clusters ...string) *Bed {
	tb.Helper()
	return NewWith(tb, Config{Clusters: clusters})
}

// NewWith is New for a bed with settings of its own. Binaries and folders are filled in.
func NewWith(tb testing.TB, config Config) *Bed {
	tb.Helper()
	config.Binaries = binariesFor(tb)
	config.Logs = artifacts(tb)
	s := &session{}
	tb.Cleanup(func() {
		if err := s.end(tb.Failed(), tb.Logf); err != nil {
			tb.Error(err)
		}
	})
	b, err := s.start(config)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// Shared is a bed for all tests of a package, started by the first that asks for it:
//
//	var shared = bed.Shared{Config: bed.Config{Clusters: []string{"east", "west"}}}
//
//	func TestMain(m *testing.M) {
//		bed.OwnNetwork() // where tests want PodIPs
//		shared.Tests = m
//		goleak.VerifyTestMain(&shared) // or os.Exit(shared.Run())
//	}
//
//	func TestSomething(t *testing.T) {
//		b := shared.Bed(t)
//
// Binaries and folders are filled in. Logs are kept if any test fails.
type Shared struct {
	Config
	Tests interface{ Run() int }

	once    sync.Once
	session session
	bed     *Bed
	err     error
}

// Run runs the tests, ends the bed and returns the tests' exit code; not 0 either where the bed broke under them.
func (s *Shared) Run() int {
	code := s.Tests.Run()
	logf := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	if err := s.session.end(code != 0, logf); err != nil {
		logf("%v", err)
		code = max(code, 1)
	}
	return code
}

// Bed starts the bed, once, and fails the test where it cannot.
func (s *Shared) Bed(tb testing.TB) *Bed {
	tb.Helper()
	binaries := binariesFor(tb)
	s.once.Do(func() {
		s.Binaries, s.Logs = binaries, artifacts(tb)
		s.bed, s.err = s.session.start(s.Config)
	})
	if s.err != nil {
		tb.Fatal(s.err)
	}
	return s.bed
}

// session is a bed that runs from one call to another.
type session struct {
	dir    string
	alive  *os.File // locked
	logs   string
	cancel context.CancelFunc
	done   chan error
}

func (s *session) start(config Config) (*Bed, error) {
	if err := s.makeDir(); err != nil {
		return nil, fmt.Errorf("start bed: %w", err)
	}
	config.Dir = filepath.Join(s.dir, stateName)
	if config.Logs == "" {
		config.Logs = filepath.Join(s.dir, "logs")
	}
	s.logs = config.Logs
	if config.Progress == nil {
		config.Progress = os.Stderr
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, make(chan error, 1)
	ready := make(chan *Bed, 1)
	go func() { // end waits for it
		s.done <- Run(ctx, config, func(ctx context.Context, b *Bed) error {
			ready <- b
			<-ctx.Done()
			return nil
		})
	}()
	select {
	case b := <-ready:
		return b, nil
	case err := <-s.done:
		s.done <- nil
		if err == nil {
			err = errors.New("start bed: it ended")
		}
		return nil, err
	}
}

// makeDir makes the session's folder, and clears away the states that killed processes left in theirs: each is half a
// gigabyte. Their logs stay.
func (s *session) makeDir() error {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), "bed-*", aliveName))
	for _, name := range left {
		if f, err := os.Open(name); err == nil {
			if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
				_ = os.RemoveAll(filepath.Join(filepath.Dir(name), stateName))
			}
			_ = f.Close()
		}
	}
	var err error
	if s.dir, err = os.MkdirTemp("", "bed-"); err != nil {
		return err
	}
	if s.alive, err = os.Create(filepath.Join(s.dir, aliveName)); err != nil {
		return err
	}
	return os.NewSyscallError("flock", syscall.Flock(int(s.alive.Fd()), syscall.LOCK_EX))
}

// What a session's folder holds beside the logs.
const (
	aliveName = "alive" // locked as long as the process lives
	stateName = "state"
)

// end ends the bed and tidies up, but for the logs of a failure. It returns why the bed broke, if it did.
func (s *session) end(failed bool, logf func(format string, args ...any)) error {
	defer s.alive.Close() //nolint:errcheck // nothing was written
	if s.cancel == nil {
		return nil
	}
	s.cancel()
	err := <-s.done
	if err != nil {
		err = fmt.Errorf("the bed broke: %w", err)
	}
	if failed || err != nil {
		logf("logs of the clusters are in %s", s.logs)
		_ = os.RemoveAll(filepath.Join(s.dir, stateName))
		return err
	}
	_ = os.RemoveAll(s.dir)
	return nil
}

// Namespace adds a namespace to every cluster, under one name that nobody else has. It is deleted with the test, and all
// that is in it a few seconds later.
func (b *Bed) Namespace(tb testing.TB) string {
	tb.Helper()
	name := namespaceOf(tb.Name())
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), 5*time.Second)
		defer cancel()
		for _, c := range b.Clusters {
			_ = c.removeNamespace(ctx, name) // it goes with the bed anyway
		}
	})
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	for _, c := range b.Clusters {
		if err := c.AddNamespace(ctx, name, nil); err != nil {
			tb.Fatal(err)
		}
	}
	return name
}

// namespaceOf makes a DNS label of a test's name, with a hash of it and of the time for those that run twice.
func namespaceOf(test string) string {
	label := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, test)
	hash := fnv.New32a()
	fmt.Fprint(hash, test, time.Now().UnixNano())
	return fmt.Sprintf("%.40s-%08x", label, hash.Sum32())
}
