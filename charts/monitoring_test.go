package charts

import (
	"encoding/json"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/sidestream-dev/sidestream/injector/inject"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// metric is a row of docs/metrics.md, which its own test keeps as the code is.
type metric struct {
	kind   string
	labels []string
}

func metrics(t *testing.T) map[string]metric {
	t.Helper()
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]metric{
		// Of every Go program.
		"process_cpu_seconds_total":     {kind: "counter"},
		"process_resident_memory_bytes": {kind: "gauge"},
	}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, " | ")
		if name, ok := strings.CutPrefix(cells[0], "| `"); ok && len(cells) >= 4 {
			row := metric{kind: cells[1]}
			for _, label := range strings.Split(cells[2], ", ") {
				row.labels = append(row.labels, strings.Trim(label, "` "))
			}
			rows[strings.Trim(name, "`")] = row
		}
	}
	if len(rows) < 80 {
		t.Fatalf("%d metrics in docs/metrics.md", len(rows))
	}
	return rows
}

// targetLabels are those that Prometheus adds.
var targetLabels = []string{"cluster", "namespace", "pod", "container", "job", "instance"}

type reporter interface {
	Errorf(format string, args ...any)
}

// counted counts reports.
type counted int

func (c *counted) Errorf(string, ...any) { *c++ }

// check says whether a query is one, of metrics that exist with labels that they have, and counters by rates only.
func check(t reporter, all map[string]metric, query string) {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		t.Errorf("%s: %v", query, err)
		return
	}
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			name, m, ok := find(all, n.Name)
			if !ok {
				t.Errorf("%s: there is no metric %s", query, n.Name)
				return nil
			}
			ranged := slices.ContainsFunc(path, func(p parser.Node) bool { _, ok := p.(*parser.MatrixSelector); return ok })
			if counts := m.kind == "counter" || m.kind == "histogram"; counts != ranged {
				t.Errorf("%s: %s is a %s", query, name, m.kind)
			}
			for _, matcher := range n.LabelMatchers {
				if matcher.Name != labels.MetricName && !slices.Contains(m.labels, matcher.Name) && !slices.Contains(targetLabels, matcher.Name) {
					t.Errorf("%s: %s has no label %s", query, name, matcher.Name)
				}
			}
		case *parser.AggregateExpr:
			for _, label := range n.Grouping {
				if label == "le" || slices.Contains(targetLabels, label) {
					continue
				}
				parser.Inspect(n.Expr, func(inner parser.Node, _ []parser.Node) error {
					v, ok := inner.(*parser.VectorSelector)
					if !ok {
						return nil
					}
					if name, m, ok := find(all, v.Name); ok && !slices.Contains(m.labels, label) {
						t.Errorf("%s: %s has no label %s", query, name, label)
					}
					return nil
				})
			}
		}
		return nil
	})
}

// find knows a histogram by its series, too.
func find(all map[string]metric, series string) (string, metric, bool) {
	if m, ok := all[series]; ok {
		return series, m, m.kind != "histogram"
	}
	for _, suffix := range []string{"_bucket", "_count", "_sum"} {
		if name, ok := strings.CutSuffix(series, suffix); ok && all[name].kind == "histogram" {
			return name, all[name], true
		}
	}
	return series, metric{}, false
}

func monitored(t *testing.T) map[string]string {
	t.Helper()
	on := map[string]any{"enabled": true}
	files, err := render(t, map[string]any{
		"cluster": "germany", "namespaces": []any{"media"}, "monitoring": map[string]any{"podMonitor": on, "rules": on, "dashboard": on},
	})
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]string{}
	for _, document := range strings.Split(files["sidestream/templates/monitoring.yaml"], "\n---\n") {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		objects[kind.Kind] = document
	}
	return objects
}

// Prometheus takes the rules, they are about metrics that exist, and each alert has a runbook.
func TestRules(t *testing.T) {
	all := metrics(t)
	var object struct{ Spec map[string]any }
	if err := yaml.Unmarshal([]byte(monitored(t)["PrometheusRule"]), &object); err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(object.Spec)
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(text, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	runbooks, err := os.ReadFile("../docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^## (Sidestream\S+)$`).FindAllStringSubmatch(string(runbooks), -1) {
		sections[heading[1]] = true
	}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			check(t, all, r.Expr)
			if !sections[r.Alert] {
				t.Errorf("docs/runbooks.md has no section %s", r.Alert)
			}
			delete(sections, r.Alert)
			if r.Annotations["summary"] == "" || !strings.HasSuffix(r.Annotations["runbook_url"], "/docs/runbooks.md#"+strings.ToLower(r.Alert)) {
				t.Errorf("%s: %v", r.Alert, r.Annotations)
			}
			if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
				t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
			}
		}
	}
	for name := range sections {
		t.Errorf("docs/runbooks.md has %s, which is no alert", name)
	}
}

// Grafana's variables, as they might be.
var variables = strings.NewReplacer("$__rate_interval", "2m", "$cluster", ".*", "$namespace", ".*", "$pod", ".*")

// The dashboard asks for metrics that exist, and shows all that the sidecar's users look for.
func TestDashboard(t *testing.T) {
	all := metrics(t)
	var object struct{ Data map[string]string }
	if err := yaml.Unmarshal([]byte(monitored(t)["ConfigMap"]), &object); err != nil {
		t.Fatal(err)
	}
	type place struct{ H, W, X, Y int }
	var board struct {
		Panels []struct {
			ID      int
			Title   string
			Type    string
			GridPos place
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(object.Data["sidestream.json"]), &board); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	used := map[place]string{}
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		if p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%s is too wide", p.Title)
		}
		for other, title := range used {
			if a, b := p.GridPos, other; a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s covers %s", p.Title, title)
			}
		}
		used[p.GridPos] = p.Title
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			check(t, all, variables.Replace(target.Expr))
		}
	}
	if len(board.Panels) < 30 {
		t.Errorf("%d panels", len(board.Panels))
	}
}

// A query of what is not there is found out.
func TestCheckFinds(t *testing.T) {
	all := metrics(t)
	for _, query := range []string{
		"sum(", "sidestream_no_such", `sidestream_relays{stream="x"}`, "sidestream_relay_starts_total", "rate(sidestream_relays[5m])",
		"sum by (stream) (sidestream_relays)", "sidestream_relay_freeze_seconds", "sidestream_relay_freeze_seconds_bucket",
	} {
		var found counted
		if check(&found, all, query); found == 0 {
			t.Errorf("%s passes", query)
		}
	}
}

// The PodMonitors name ports that the pods have.
func TestPodMonitorPorts(t *testing.T) {
	sidecar := config.Default()
	sidecar.Cluster = "germany"
	pod, decision := inject.Mutate(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Labels: map[string]string{inject.Label: "true"}, Annotations: map[string]string{"sidestream.dev/adapter": "mediamtx"},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "mtx", Image: "mediamtx:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8889}},
		}}},
	}, nil, inject.Options{
		Image: "sidestream:1", Revision: "default", Native: true, Sidecar: sidecar,
		Ports: inject.Ports{Gateway: 18080, Peer: 18443, Admin: 18090},
	})
	if decision.Reason != inject.Injected {
		t.Fatal(decision)
	}
	var ports []string
	for _, c := range pod.Spec.InitContainers {
		for _, p := range c.Ports {
			ports = append(ports, p.Name)
		}
	}
	var monitors []string
	on := map[string]any{"enabled": true}
	files, err := render(t, map[string]any{"cluster": "germany", "monitoring": map[string]any{"podMonitor": on}})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`- port: (\S+)`).FindAllStringSubmatch(files["sidestream/templates/monitoring.yaml"], -1) {
		monitors = append(monitors, m[1])
	}
	if len(monitors) != 2 || !slices.Contains(ports, monitors[0]) || pod.Labels["sidestream.dev/injected"] != "true" {
		t.Errorf("sidecars have the ports %v and the labels %v; monitors look at %v", ports, pod.Labels, monitors)
	}
	if !strings.Contains(files["sidestream/templates/deployment.yaml"], "{name: "+monitors[1]+",") {
		t.Errorf("the injector has no port %s", monitors[1])
	}
}
