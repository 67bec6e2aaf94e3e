// Command fuzz runs the fuzz targets of this repository one after another, each for a while, and says how many inputs each has seen.
// What one finds is in its package's testdata/fuzz: commit that with the fix, and it is tried by every test run from then on.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

// target is one func of a package.
type target struct{ dir, name string }

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("fuzz", flag.ContinueOnError)
	each := flags.Duration("time", time.Minute, "how long each target runs")
	only := flags.String("only", "", "a regular expression: the targets by package and name, such as gateway.FuzzRequest; none: all")
	parallel := flags.Int("parallel", 1, "how many inputs are tried at once")
	list := flags.Bool("list", false, "only name the targets")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	targets, err := find(".")
	if err != nil {
		return err
	}
	var failed []string
	for _, t := range targets {
		name := filepath.Base(t.dir) + "." + t.name
		if !wanted.MatchString(name) {
			continue
		}
		if *list {
			fmt.Fprintln(stdout, name)
			continue
		}
		//nolint:gosec // the names are of files here
		cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$", "-fuzztime", each.String(), "-fuzzminimizetime", "5s",
			"-parallel", fmt.Sprint(*parallel), "./"+filepath.ToSlash(t.dir))
		out, err := cmd.CombinedOutput()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			failed = append(failed, name)
			fmt.Fprintf(stdout, "%s fails:\n%s\n", name, bytes.TrimSpace(out))
			continue
		}
		fmt.Fprintf(stdout, "%-32s %s\n", name, seen(string(out)))
	}
	if len(failed) > 0 {
		return fmt.Errorf("found something: %s", strings.Join(failed, ", "))
	}
	return nil
}

var declared = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(\w+ \*testing\.F\)`)

// find are the targets below a folder.
func find(root string) (targets []target, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path) //nolint:gosec // of this repository
		if err != nil {
			return err
		}
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			targets = append(targets, target{filepath.Dir(path), m[1]})
		}
		return nil
	})
	return targets, err
}

// seen is how many inputs were tried, by the last line that says so.
func seen(out string) string {
	all := regexp.MustCompile(`execs: (\d+)`).FindAllStringSubmatch(out, -1)
	if len(all) == 0 {
		return "no count"
	}
	return all[len(all)-1][1] + " inputs"
}
