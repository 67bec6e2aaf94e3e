package bed

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a killed process leaves is cleared away but for the logs; what one that lives has is not.
func TestSessionsOfTheDead(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var dead, living, next session
	for _, s := range []*session{&dead, &living} {
		if err := s.makeDir(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{stateName, "logs"} {
			if err := os.Mkdir(filepath.Join(s.dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = dead.alive.Close()
	defer living.alive.Close()
	if err := next.makeDir(); err != nil {
		t.Fatal(err)
	}
	defer next.alive.Close()
	for name, want := range map[string]bool{
		filepath.Join(dead.dir, stateName): false, filepath.Join(dead.dir, "logs"): true,
		filepath.Join(living.dir, stateName): true, filepath.Join(living.dir, "logs"): true,
	} {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) == want {
			t.Errorf("%s: %v; there it should be: %t", name, err, want)
		}
	}
}

// passing is a package whose tests pass.
type passing struct{}

func (passing) Run() int { return 0 }

func TestSharedBedThatBreaks(t *testing.T) {
	s := Shared{Tests: passing{}}
	s.session.cancel, s.session.done, s.session.dir = func() {}, make(chan error, 1), t.TempDir()
	s.session.done <- errors.New("no luck")
	if code := s.Run(); code == 0 {
		t.Error("the tests pass though their bed broke")
	}
	s.session.done <- nil
	if code := s.Run(); code != 0 {
		t.Errorf("they end with %d", code)
	}
	if _, err := s.session.start(Config{Binaries: "none"}); err == nil || !strings.Contains(err.Error(), "0 clusters") {
		t.Errorf("a bed of nothing: %v", err)
	}
	if err := s.session.end(false, t.Logf); err != nil {
		t.Error(err)
	}
}
