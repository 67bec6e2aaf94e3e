package thirdparty

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/licences.md anew")

const head = `# Licences

Sidestream is under the Apache License 2.0. Its programs hold these modules of others, whose licences' texts are in the images at
` + "`/licences.txt`" + `. This page is written by ` + "`go test ./e2e/thirdparty -update`" + `.

`

// allowed go together with ours, and ask for nothing but their texts.
var allowed = []string{"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC"}

func modules(t *testing.T) []Module {
	t.Helper()
	all, err := Of(t.Context(), "amd64", "../../sidecar", "../../injector")
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestLicencesAreListed(t *testing.T) {
	const page = "../../docs/licences.md"
	all := modules(t)
	for _, m := range all {
		for _, id := range strings.Split(m.Licence, " AND ") {
			if !slices.Contains(allowed, id) {
				t.Errorf("%s is under %s", m.Path, id)
			}
		}
	}
	want := head + Table(all)
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(page); err != nil || string(got) != want {
		t.Errorf("%s is not fresh: go test ./e2e/thirdparty -update (%v)", page, err)
	}
}

func TestBill(t *testing.T) {
	all := modules(t)
	text, err := Bill("sidestream", "github.com/sidestream-dev/sidestream", "1.2.3", all)
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		BOMFormat, SpecVersion string
		Metadata               struct {
			Component struct{ Version, PURL string }
		}
		Components []struct {
			Name, Version, PURL string
			Licenses            []struct{ Expression string }
		}
		Dependencies []struct{ DependsOn []string }
	}
	if err := json.Unmarshal(text, &bill); err != nil {
		t.Fatal(err)
	}
	if bill.BOMFormat != "CycloneDX" || bill.Metadata.Component.Version != "1.2.3" || len(bill.Components) != len(all) ||
		len(bill.Dependencies) != 1 || len(bill.Dependencies[0].DependsOn) != len(all) {
		t.Errorf("%s", text)
	}
	for _, c := range bill.Components {
		if c.Version == "" || !strings.HasPrefix(c.PURL, "pkg:golang/"+c.Name+"@") || len(c.Licenses) != 1 || c.Licenses[0].Expression == "" {
			t.Errorf("%+v", c)
		}
	}
	notices := Notices(all)
	for _, m := range all {
		if len(m.Texts) == 0 || !bytes.Contains(notices, []byte("=== "+m.Path+" ")) {
			t.Errorf("%s has no text", m.Path)
		}
	}
}

func TestIdentify(t *testing.T) {
	for text, want := range map[string]string{
		"":                     "",
		"All rights reserved.": "",
		"Apache License\n  Version 2.0, January 2004":                                                                                       "Apache-2.0",
		"Permission is hereby granted, free of charge,\nto any person obtaining a copy of":                                                  "MIT",
		"Redistribution and use in source and binary forms, with or without":                                                                "BSD-2-Clause",
		"Redistribution and use in source and binary forms ... Neither the name of Google":                                                  "BSD-3-Clause",
		"Mozilla Public License, version 2.0":                                                                                               "MPL-2.0",
		"Apache License, Version 2.0 and MIT: Permission is hereby granted, free of charge, to any person obtaining a copy":                 "Apache-2.0 MIT",
		"Permission to use, copy, modify, and/or distribute this software for any\npurpose with or without fee is hereby granted, provided": "ISC",
	} {
		if got := strings.Join(identify(text), " "); got != want {
			t.Errorf("%q is %q; want %q", text, got, want)
		}
	}
}
