// Package thirdparty knows what others' code is in our programs, and under which licences: for the page that lists them, the texts in
// the images, and the bills of materials.
package thirdparty

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Module is one of others, or Go's standard library, whose path is "std".
type Module struct {
	Path, Version string
	Licence       string // by SPDX, with OR and AND
	Texts         []Text
}

// Text is a file with a licence, or with what must go along with it.
type Text struct {
	Name    string
	Content []byte
}

// Of lists the modules that packages are built of, for linux and an architecture, by path. A licence that is not known is an error.
func Of(ctx context.Context, arch string, packages ...string) ([]Module, error) {
	//nolint:gosec // the packages are our own
	list := exec.CommandContext(ctx, "go", append([]string{"list", "-deps", "-json=Module"}, packages...)...)
	list.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w: %s", err, stderr.Bytes())
	}
	modules := map[string]Module{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var one struct {
			Module *struct {
				Path, Version, Dir string
				Main               bool
				Replace            *struct{ Path, Version, Dir string }
			}
		}
		if err := decoder.Decode(&one); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("list packages: %w", err)
		}
		m := one.Module
		if m == nil || m.Main {
			continue
		}
		if _, known := modules[m.Path]; known {
			continue
		}
		dir := m.Dir
		if m.Replace != nil {
			dir = m.Replace.Dir
		}
		if modules[m.Path], err = read(m.Path, m.Version, dir); err != nil {
			return nil, err
		}
	}
	environment, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		return nil, fmt.Errorf("find Go: %w", err)
	}
	root, version, _ := strings.Cut(strings.TrimSpace(string(environment)), "\n")
	if modules["std"], err = read("std", version, root); err != nil {
		return nil, err
	}
	all := make([]Module, 0, len(modules))
	for _, m := range modules {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Module) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

func read(path, version, dir string) (Module, error) {
	m := Module{Path: path, Version: version}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return m, fmt.Errorf("read %s: %w", path, err)
	}
	var licences []string
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		licence := strings.HasPrefix(name, "LICEN") || strings.HasPrefix(name, "COPYING")
		if e.IsDir() || !licence && !strings.HasPrefix(name, "NOTICE") && name != "PATENTS" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name())) //nolint:gosec // of the module cache
		if err != nil {
			return m, fmt.Errorf("read the licence of %s: %w", path, err)
		}
		m.Texts = append(m.Texts, Text{e.Name(), content})
		if !licence {
			continue
		}
		ids := identify(string(content))
		if len(ids) == 0 {
			return m, fmt.Errorf("%s of %s is no licence that is known here: read it, and add it to identify", e.Name(), path)
		}
		for _, id := range ids {
			if !slices.Contains(licences, id) {
				licences = append(licences, id)
			}
		}
	}
	if len(licences) == 0 {
		return m, fmt.Errorf("%s has no licence", path)
	}
	m.Licence = strings.Join(licences, " AND ")
	return m, nil
}

// phrases stand in one licence and no other's text.
var phrases = []struct{ id, phrase string }{
	{"Apache-2.0", "apache license version 2.0"},
	{"MPL-2.0", "mozilla public license version 2.0"},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"ISC", "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"},
	{"BSD-3-Clause", "neither the name of"},
	{"BSD-3-Clause", "names of its contributors may not be used to endorse"},
}

// identify tells the licences in a text by SPDX.
func identify(text string) (ids []string) {
	text = strings.Join(strings.Fields(strings.ToLower(strings.NewReplacer("*", " ", "#", " ", "//", " ", ",", ", ").Replace(text))), " ")
	text = strings.ReplaceAll(text, "license, version", "license version")
	for _, p := range phrases {
		if strings.Contains(text, p.phrase) && !slices.Contains(ids, p.id) {
			ids = append(ids, p.id)
		}
	}
	if len(ids) == 0 && strings.Contains(text, "redistribution and use in source and binary forms") {
		ids = []string{"BSD-2-Clause"}
	}
	return ids
}

// Table is the modules in Markdown.
func Table(all []Module) string {
	var b strings.Builder
	b.WriteString("| module | version | licence |\n| --- | --- | --- |\n")
	for _, m := range all {
		version := m.Version
		if m.Path == "std" {
			version = "" // that of whoever builds
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", m.Path, version, m.Licence)
	}
	return b.String()
}

// Notices are the texts that must go along with a binary, in one.
func Notices(all []Module) []byte {
	var b bytes.Buffer
	for _, m := range all {
		for _, t := range m.Texts {
			fmt.Fprintf(&b, "=== %s %s: %s\n\n%s\n\n", m.Path, m.Version, t.Name, bytes.TrimSpace(t.Content))
		}
	}
	return b.Bytes()
}

type component struct {
	Type     string    `json:"type"`
	Ref      string    `json:"bom-ref"`
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	PURL     string    `json:"purl"`
	Licences []licence `json:"licenses,omitempty"`
}

type licence struct {
	Expression string `json:"expression"`
}

// Bill is a program's bill of materials in CycloneDX 1.6. No time enters, so equal sources make equal bills.
func Bill(name, path, version string, all []Module) ([]byte, error) {
	of := func(kind, name, path, version, expression string) component {
		purl := "pkg:golang/" + path + "@" + version
		return component{kind, purl, name, version, purl, []licence{{expression}}}
	}
	type dependency struct {
		Ref string   `json:"ref"`
		On  []string `json:"dependsOn"`
	}
	type metadata struct {
		Component component `json:"component"`
	}
	bill := struct {
		Format     string       `json:"bomFormat"`
		Spec       string       `json:"specVersion"`
		Version    int          `json:"version"`
		Metadata   metadata     `json:"metadata"`
		Components []component  `json:"components"`
		Depends    []dependency `json:"dependencies"`
	}{Format: "CycloneDX", Spec: "1.6", Version: 1, Metadata: metadata{of("application", name, path, version, "Apache-2.0")}}
	on := dependency{Ref: bill.Metadata.Component.Ref}
	for _, m := range all {
		c := of("library", m.Path, m.Path, m.Version, m.Licence)
		bill.Components = append(bill.Components, c)
		on.On = append(on.On, c.Ref)
	}
	bill.Depends = []dependency{on}
	text, err := json.MarshalIndent(bill, "", " ")
	return append(text, '\n'), err
}
