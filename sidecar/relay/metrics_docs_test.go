package relay

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// described keeps what is registered.
type described struct {
	prometheus.Registerer
	names []string
}

var fqName = regexp.MustCompile(`fqName: "([a-z_]+)"`)

func (d *described) MustRegister(collectors ...prometheus.Collector) {
	for _, c := range collectors {
		descriptions := make(chan *prometheus.Desc, 100)
		c.Describe(descriptions)
		close(descriptions)
		for description := range descriptions {
			d.names = append(d.names, fqName.FindStringSubmatch(description.String())[1])
		}
	}
}

// The manual names every metric of relays, and none that is not there.
func TestMetricsAreDocumented(t *testing.T) {
	manual, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for line := range strings.Lines(string(manual)) {
		if cells := strings.Split(line, "|"); len(cells) > 3 {
			for _, name := range regexp.MustCompile("`(sidestream_relay[a-z_]*)[{`]").FindAllStringSubmatch(cells[1], -1) {
				rows[name[1]] = true
			}
		}
	}
	var registered described
	NewSessionMetrics(&registered)
	newManagerMetrics(&registered)
	for _, name := range registered.names {
		if !strings.HasPrefix(name, "sidestream_relay") {
			continue // of claims and plays
		}
		if !rows[name] {
			t.Errorf("docs/operations.md does not have %s", name)
		}
	}
	for name := range rows {
		if !slices.Contains(registered.names, name) {
			t.Errorf("docs/operations.md has %s, which is no metric", name)
		}
	}
}
