package charts

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// manual is all pages and examples that have commands for a cluster.
func manual(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("sidestream/examples/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, file := range append(files, more...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[file] = strings.ReplaceAll(string(text), "\\\n", " ")
	}
	return all
}

var (
	install  = regexp.MustCompile(`(?m)^ *helm [^\n]*\b(?:install|upgrade)\b[^\n]* charts/sidestream\b[^\n]*`)
	argument = regexp.MustCompile(`(--set|-f) ('[^']*'|\S+)`)
	heredoc  = regexp.MustCompile(`(?s)kubectl[^\n]*<<END\n(.*?)\n *END\n`)
)

// What the manual's commands give the chart, it takes.
func TestManualsCommandsForHelm(t *testing.T) {
	seen := 0
	for page, text := range manual(t) {
		for _, command := range install.FindAllString(text, -1) {
			seen++
			values := map[string]any{}
			for _, m := range argument.FindAllStringSubmatch(command, -1) {
				value := strings.Trim(m[2], "'")
				if m[1] == "--set" {
					if err := strvals.ParseInto(value, values); err != nil {
						t.Errorf("%s: %s: %v", page, value, err)
					}
					continue
				}
				name := strings.TrimSuffix(strings.TrimPrefix(strings.ReplaceAll(value, "$cluster", "germany"), "charts/sidestream/examples/"), ".yaml")
				for key, v := range example(t, name) {
					values[key] = v
				}
			}
			if _, ok := values["cluster"]; !ok && strings.Contains(command, "reuse-values") {
				values["cluster"] = "germany"
			}
			if _, err := render(t, values); err != nil {
				t.Errorf("%s: %s\n%v", page, command, err)
			}
		}
	}
	if seen < 8 {
		t.Errorf("%d commands", seen)
	}
}

// The objects in the manual's commands are ones that Kubernetes knows.
func TestManualsObjects(t *testing.T) {
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	seen := 0
	for page, text := range manual(t) {
		for _, m := range heredoc.FindAllStringSubmatch(text, -1) {
			indent := len(m[1]) - len(strings.TrimLeft(m[1], " "))
			var lines strings.Builder
			for line := range strings.Lines(m[1]) {
				lines.WriteString(line[min(indent, len(line)-1):])
			}
			for _, document := range strings.Split(lines.String(), "\n---\n") {
				seen++
				var kind struct{ APIVersion, Kind string }
				if err := yaml.Unmarshal([]byte(document), &kind); err != nil || kind.Kind == "" {
					t.Errorf("%s: %v\n%s", page, err, document)
					continue
				}
				if group, _, _ := strings.Cut(kind.APIVersion, "/"); strings.Contains(group, ".") {
					continue // not Kubernetes' own
				}
				if _, _, err := strict.Decode([]byte(document), nil, nil); err != nil {
					t.Errorf("%s: %v\n%s", page, err, document)
				}
			}
		}
	}
	if seen < 4 {
		t.Errorf("%d objects", seen)
	}
}

// What the examples for GitOps give the chart, it takes.
func TestGitOpsExamples(t *testing.T) {
	page, err := os.ReadFile("../docs/gitops.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, b := range strings.Split(string(page), "```yaml\n")[1:] {
		block, _, _ := strings.Cut(b, "```")
		for _, document := range strings.Split(block, "\n---\n") {
			var object struct {
				Kind string
				Spec struct {
					Values map[string]any
					Source struct {
						Path string
						Helm struct{ ValuesObject map[string]any }
					}
				}
			}
			if err := yaml.Unmarshal([]byte(document), &object); err != nil || object.Kind == "" {
				t.Errorf("%v\n%s", err, document)
				continue
			}
			values := object.Spec.Values
			if values == nil {
				values = object.Spec.Source.Helm.ValuesObject
			}
			if values == nil {
				continue
			}
			seen++
			if _, err := render(t, values); err != nil {
				t.Error(err)
			}
		}
	}
	if seen != 2 {
		t.Errorf("%d examples with values", seen)
	}
}
