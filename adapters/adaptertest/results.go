package adaptertest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Results are what a run of the suite found of a server.
type Results struct {
	Adapter string   `json:"adapter"`
	Server  string   `json:"server"` // make and version
	Date    string   `json:"date"`
	Found   []Result `json:"found"` // in the order of the suite
}

// Result is one thing that differs from make to make.
type Result struct {
	What  string `json:"what"`
	Found string `json:"found"`
}

type results struct {
	mu    sync.Mutex
	found []Result
}

// result notes what was found.
func (h Harness) result(t testing.TB, what, format string, args ...any) {
	t.Helper()
	r := Result{what, fmt.Sprintf(format, args...)}
	t.Logf("result: %s: %s", r.What, r.Found)
	if h.results == nil { // not in a run of the suite
		return
	}
	h.results.mu.Lock()
	defer h.results.mu.Unlock()
	h.results.found = append(h.results.found, r)
}

func (h Harness) writeResults(t *testing.T) {
	dir := os.Getenv("ADAPTERTEST_RESULTS")
	if dir == "" || h.Server == "" || t.Failed() {
		return
	}
	h.results.mu.Lock()
	defer h.results.mu.Unlock()
	name := h.Adapter.Name()
	text, err := json.MarshalIndent(Results{
		Adapter: name, Server: h.Server, Date: time.Now().UTC().Format(time.DateOnly), Found: h.results.found,
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(text, '\n'), 0o644); err != nil { //nolint:gosec // for a page
		t.Error(err)
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
