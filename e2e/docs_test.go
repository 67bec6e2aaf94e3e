package e2e

import (
	"cmp"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sidestream-dev/sidestream/adapters/adaptertest"
	"github.com/sidestream-dev/sidestream/adapters/generic"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// Every setting has a row in the manual, with the default that it has.
func TestSettingsAreDocumented(t *testing.T) {
	manual, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(manual)) {
		if cells := strings.Split(line, "|"); len(cells) > 3 && strings.Contains(cells[1], "`SIDESTREAM_") {
			rows[strings.Trim(cells[1], " `")] = strings.Trim(cells[2], " `")
		}
	}
	settings := config.Settings()
	for _, s := range settings {
		documented, ok := rows[s.Name]
		if !ok {
			t.Errorf("%s has no row in docs/operations.md", s.Name)
			continue
		}
		if s.Value != "" && !same(documented, s.Value) {
			t.Errorf("docs/operations.md says that %s is %q by default; it is %q", s.Name, documented, s.Value)
		}
		delete(rows, s.Name)
	}
	for name := range rows {
		t.Errorf("docs/operations.md has a row for %s, which is no setting", name)
	}
}

// same says whether two texts mean the same default: 6h and 6h0m0s do.
func same(a, b string) bool {
	x, errX := time.ParseDuration(a)
	y, errY := time.ParseDuration(b)
	return strings.EqualFold(a, b) || errX == nil && errY == nil && x == y
}

var update = flag.Bool("update", false, "write the generated parts of the docs anew")

// The table of what servers can do is what the suite found.
func TestResults(t *testing.T) {
	const begin, end = "<!-- results -->\n", "<!-- /results -->"
	files, err := filepath.Glob("../docs/results/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no results: %v", err)
	}
	var all []adaptertest.Results
	var rows []string
	cells := map[string]string{}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var r adaptertest.Results
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, r)
		for _, f := range r.Found {
			if !slices.Contains(rows, f.What) {
				rows = append(rows, f.What)
			}
			cells[r.Adapter+"\x00"+f.What] = f.Found
		}
	}
	var table strings.Builder
	line := func(first string, cell func(adaptertest.Results) string) {
		table.WriteString("| " + first + " |")
		for _, r := range all {
			table.WriteString(" " + cell(r) + " |")
		}
		table.WriteString("\n")
	}
	line("", func(r adaptertest.Results) string { return "`" + r.Adapter + "`" })
	line("---", func(adaptertest.Results) string { return "---" })
	line("server, date", func(r adaptertest.Results) string { return r.Server + ", " + r.Date })
	for _, what := range rows {
		line(what, func(r adaptertest.Results) string { return cmp.Or(cells[r.Adapter+"\x00"+what], "not tried") })
	}
	const page = "../docs/adapters.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	was, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %s", page, begin)
	}
	if *update {
		if err := os.WriteFile(page, []byte(before+begin+table.String()+end+after), 0o644); err != nil { //nolint:gosec // a page
			t.Fatal(err)
		}
		return
	}
	if was != table.String() {
		t.Errorf("%s is not what docs/results holds: go test ./e2e -run TestResults -update", page)
	}
}

// The servers that docs/adapters.md describes by settings can be described so.
func TestDescribedServers(t *testing.T) {
	page, err := os.ReadFile("../docs/adapters.md")
	if err != nil {
		t.Fatal(err)
	}
	var described int
	for i, block := range strings.Split(string(page), "```") {
		if i%2 == 0 || !strings.Contains(block, "SIDESTREAM_ADAPTER_GENERIC_") {
			continue
		}
		described++
		environ := []string{"SIDESTREAM_ADAPTER_NAME=generic", "SIDESTREAM_CLUSTER=germany"}
		for line := range strings.Lines(strings.TrimSpace(block)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			environ = append(environ, name+"="+strings.Trim(value, "'"))
		}
		c, err := config.Decode(environ)
		if err == nil {
			err = c.Validate()
		}
		if err != nil {
			t.Errorf("%s\n%v", block, err)
			continue
		}
		g := c.Adapter.Generic
		a, err := generic.New(generic.Config{
			BaseURL: c.Adapter.URL.String(), Publish: g.Publish, Play: g.Play, Inventory: g.Inventory, Query: g.Query,
		})
		if err != nil {
			t.Errorf("%s\n%v", block, err)
			continue
		}
		a.CloseIdleConnections()
	}
	if described < 6 {
		t.Errorf("%d servers are described", described)
	}
}
