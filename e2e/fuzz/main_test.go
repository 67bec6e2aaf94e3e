package main

import (
	"os"
	"strings"
	"testing"
)

// Whatever reads foreign bytes has a target, and docs/security.md lists it.
func TestTargetsAreListed(t *testing.T) {
	targets, err := find("../..")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(targets) < 35 {
		t.Errorf("%d targets are found", len(targets))
	}
	for _, target := range targets {
		if !strings.Contains(string(page), "`"+target.name+"`") {
			t.Errorf("docs/security.md does not have %s of %s", target.name, target.dir)
		}
	}
}

func TestRun(t *testing.T) {
	t.Chdir("../..")
	var out strings.Builder
	if err := run(t.Context(), []string{"-list", "-only", `^gateway\.FuzzRe`}, &out); err != nil || out.String() != "gateway.FuzzRequest\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := run(t.Context(), []string{"-only", "("}, &out); err == nil {
		t.Error("no error")
	}
}
