package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The image holds the program and the licences, and nothing else that could be run: no shell, no user but one without rights.
func TestImage(t *testing.T) {
	if os.Getenv("E2E") == "" {
		t.Skip("builds the programs: make e2e")
	}
	t.Chdir("../..")
	dir := t.TempDir()
	if err := run(t.Context(), []string{"-o", dir, "-version", "1.2.3"}, io.Discard, os.Stderr); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		image, err := tarball.ImageFromPath(filepath.Join(dir, p.name+"-image-"+runtime.GOARCH+".tar"), nil)
		if err != nil {
			t.Fatal(err)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Config.User != "65532:65532" || !slices.Equal(config.Config.Entrypoint, []string{"/" + p.name}) {
			t.Errorf("%s: %+v", p.name, config.Config)
		}
		layers, err := image.Layers()
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]int64{}
		for _, l := range layers {
			content, err := l.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			for r := tar.NewReader(content); ; {
				h, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if h.Typeflag != tar.TypeReg || h.Uid != 0 || h.Mode&0o7222 != 0 {
					t.Errorf("%s: %+v", p.name, h)
				}
				files[h.Name] = h.Mode
			}
			_ = content.Close()
		}
		if len(files) != 2 || files[p.name] != 0o555 || files["licences.txt"] != 0o444 {
			t.Errorf("%s holds %v", p.name, files)
		}
		bill, err := os.ReadFile(filepath.Join(dir, p.name+"-"+runtime.GOARCH+".cdx.json"))
		if err != nil || !json.Valid(bill) || !strings.Contains(string(bill), `"version": "1.2.3"`) {
			t.Errorf("%s: no bill of materials: %v", p.name, err)
		}
	}
}
