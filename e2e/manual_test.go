package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// block is a piece of a page between fences.
type block struct{ info, text string }

var fenced = regexp.MustCompile("(?m)^( *)```([^\n`]*)\n((?s:.*?))^ *```$")

// pages are those of the manual, with their blocks.
func pages(t *testing.T) map[string][]block {
	t.Helper()
	files, err := filepath.Glob("../docs/*.md")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d pages, %v", len(files), err)
	}
	all := map[string][]block{}
	for _, file := range append(files, "../README.md", "../CONTRIBUTING.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[file] = nil
		for _, m := range fenced.FindAllStringSubmatch(string(text), -1) {
			var lines strings.Builder
			for line := range strings.Lines(m[3]) {
				lines.WriteString(strings.TrimPrefix(line, m[1]))
			}
			all[file] = append(all[file], block{m[2], lines.String()})
		}
	}
	return all
}

// The manual's commands work as they stand, one page's after one another in one place; of those that want a cluster a shell is asked
// whether it understands them, and the tests of the chart look at their values and objects.
func TestCommands(t *testing.T) {
	for _, tool := range []string{"bash", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s here", tool)
		}
	}
	unmarked := regexp.MustCompile(`(?m)^(kubectl|helm|sidestream|openssl|curl|cilium|az|aws|gcloud|eksctl|subctl) `)
	run, understood := 0, 0
	for page, blocks := range pages(t) {
		t.Run(filepath.Base(page), func(t *testing.T) {
			dir := t.TempDir()
			for _, b := range blocks {
				args := []string{"-euo", "pipefail", "-c", b.text}
				switch {
				case b.info == "sh":
					run++
				case b.info == "sh cluster":
					understood++
					args = append([]string{"-n"}, args...)
				case b.info == "" && page != "../README.md" && unmarked.MatchString(b.text):
					t.Errorf("say whether these commands want a cluster, by sh or sh cluster:\n%s", b.text)
					continue
				default:
					continue
				}
				cmd := exec.CommandContext(t.Context(), "bash", args...)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary)+string(filepath.ListSeparator)+os.Getenv("PATH"))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v\n%s\n%s", err, b.text, out)
				}
			}
		})
	}
	if run < 3 || understood < 15 {
		t.Errorf("%d blocks were run, and %d read", run, understood)
	}
}

// Links of the manual lead to pages and sections that are there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.+)$`)
	sections := func(page string) (ids []string) {
		text, err := os.ReadFile(page)
		if err != nil {
			return nil
		}
		for _, m := range heading.FindAllStringSubmatch(string(text), -1) {
			id := strings.ToLower(regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(m[1], "$1"))
			id = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(id, "")
			ids = append(ids, strings.ReplaceAll(id, " ", "-"))
		}
		return ids
	}
	files := []string{}
	for page := range pages(t) {
		files = append(files, page)
	}
	more, _ := filepath.Glob("../charts/sidestream/examples/*/README.md")
	for _, page := range append(files, more...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(fenced.ReplaceAllString(string(text), ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			path, section, _ := strings.Cut(m[1], "#")
			to := page
			if path != "" {
				to = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[1])
				continue
			}
			if section != "" && !slices.Contains(sections(to), section) {
				t.Errorf("%s: %s has no section %s", page, to, section)
			}
		}
	}
}

// The index leads to every page.
func TestIndex(t *testing.T) {
	index, err := os.ReadFile("../docs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob("../docs/*.md")
	for _, file := range files {
		if name := filepath.Base(file); name != "README.md" && !strings.Contains(string(index), "]("+name) {
			t.Errorf("docs/README.md does not lead to %s", name)
		}
	}
}

// The tests that docs/security.md names are there.
func TestNamedTests(t *testing.T) {
	page, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	err = filepath.WalkDir("..", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)`).FindAllStringSubmatch(string(text), -1) {
			declared[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(string(page), -1)
	if len(named) < 60 {
		t.Errorf("%d tests are named", len(named))
	}
	for _, m := range named {
		if !declared[m[1]] {
			t.Errorf("docs/security.md names %s, which is no test", m[1])
		}
	}
}
