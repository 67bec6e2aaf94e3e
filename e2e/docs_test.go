package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

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
