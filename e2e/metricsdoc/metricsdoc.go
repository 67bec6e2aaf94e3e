// Package metricsdoc writes the table of a program's metrics, and keeps it fresh in a page. Tests call it.
package metricsdoc

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Metric is one row.
type Metric struct {
	Name, Type, Help string
	Labels           []string
}

// A Desc has no other way to tell what it holds.
var description = regexp.MustCompile(`^Desc\{fqName: "([^"]+)", help: ("(?:[^"\\]|\\.)*"), (?:unit: "[^"]*", )?constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}\}$`)

// Of reads what a registry has, also metrics without a value yet. The types of those are told by their names, by the rules that
// the names follow: counters end in _total, histograms in a unit.
func Of(r *prometheus.Registry, prefix string) ([]Metric, error) {
	families, err := r.Gather()
	if err != nil {
		return nil, err
	}
	types := map[string]string{}
	for _, f := range families {
		types[f.GetName()] = strings.ToLower(dto.MetricType_name[int32(f.GetType())])
	}
	descriptions := make(chan *prometheus.Desc)
	go func() { defer close(descriptions); r.Describe(descriptions) }()
	rows := map[string]Metric{}
	for d := range descriptions {
		m := description.FindStringSubmatch(d.String())
		if m == nil {
			err = errors.Join(err, fmt.Errorf("%s is not understood", d))
			continue
		}
		name := m[1]
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		row := Metric{Name: name, Type: types[name], Help: strings.ReplaceAll(strings.Trim(m[2], `"`), `\"`, `"`)}
		for _, constant := range strings.Split(m[3], ",") {
			if label, _, ok := strings.Cut(constant, "="); ok {
				row.Labels = append(row.Labels, label)
			}
		}
		for _, label := range strings.Split(m[4], ",") {
			if label != "" {
				row.Labels = append(row.Labels, label)
			}
		}
		if row.Type == "" {
			switch {
			case strings.HasSuffix(name, "_total"):
				row.Type = "counter"
			case strings.HasSuffix(name, "_seconds") && !strings.HasSuffix(name, "_timestamp_seconds"):
				row.Type = "histogram"
			default:
				row.Type = "gauge"
			}
		}
		rows[name] = row
	}
	all := make([]Metric, 0, len(rows))
	for _, row := range rows {
		all = append(all, row)
	}
	slices.SortFunc(all, func(a, b Metric) int { return strings.Compare(a.Name, b.Name) })
	return all, err
}

// Table is the rows in Markdown.
func Table(all []Metric) string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, m := range all {
		labels := ""
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, labels, strings.ReplaceAll(m.Help, "|", "\\|"))
	}
	return b.String()
}

// Fresh says whether a page holds a text between the marks of a section; with update it writes the text there.
func Fresh(page, section, text string, update bool) error {
	begin, end := "<!-- "+section+" -->\n", "<!-- /"+section+" -->"
	was, err := os.ReadFile(page) //nolint:gosec // a page of ours
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(was), begin)
	old, after, ok2 := strings.Cut(rest, end)
	switch {
	case !ok || !ok2:
		return fmt.Errorf("%s has no %s", page, begin)
	case old == text:
		return nil
	case update:
		return os.WriteFile(page, []byte(before+begin+text+end+after), 0o644) //nolint:gosec // a page of ours
	}
	return fmt.Errorf("%s is not fresh between the marks of %q: run this test with -update", page, section)
}
