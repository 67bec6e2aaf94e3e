// Command image builds the container images of the sidecar and of the injector as tarballs, from source and without a container
// engine or a registry: a static binary on an empty base, and the licences of what is in it. `docker load`, `podman load` and
// `kind load image-archive` take them. Beside each lies its bill of materials, in CycloneDX.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/sidestream-dev/sidestream/e2e/thirdparty"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.SetOutput(stderr)
	registry := flags.String("registry", "ghcr.io/sidestream-dev", "what the images' names begin with")
	version := flags.String("version", "dev", "their tag, and what the binaries say of themselves")
	arch := flags.String("arch", runtime.GOARCH, "processor that they run on")
	dir := flags.String("o", "bin", "folder to write to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := os.MkdirAll(*dir, 0o755); err != nil {
		return err
	}
	for _, p := range programs {
		if err := p.write(ctx, *registry, *version, *arch, *dir, stdout, stderr); err != nil {
			return err
		}
	}
	return nil
}

// program is what an image holds.
type program struct {
	name, pkg string
	args      []string // when nobody says others
}

var programs = []program{
	{"sidestream", "./sidecar", []string{"run"}},
	{"sidestream-injector", "./injector", nil},
}

// write builds the image of one program, and says which file it is.
func (p program) write(ctx context.Context, registry, version, arch, dir string, stdout, stderr io.Writer) error {
	tag, err := name.NewTag(registry + "/" + p.name + ":" + version)
	if err != nil {
		return fmt.Errorf("name the image: %w", err)
	}
	modules, err := thirdparty.Of(ctx, arch, p.pkg)
	if err != nil {
		return err
	}
	bill, err := thirdparty.Bill(p.name, "github.com/sidestream-dev/sidestream", version, modules)
	if err != nil {
		return fmt.Errorf("write the bill of materials: %w", err)
	}
	if err = os.WriteFile(filepath.Join(dir, p.name+"-"+arch+".cdx.json"), bill, 0o644); err != nil { //nolint:gosec // not secret
		return err
	}
	layer, err := p.layer(ctx, version, arch, thirdparty.Notices(modules), stderr)
	if err != nil {
		return err
	}
	image, err := p.assemble(layer, arch)
	if err != nil {
		return fmt.Errorf("assemble image: %w", err)
	}
	out := filepath.Join(dir, p.name+"-image-"+arch+".tar")
	if err = tarball.WriteToFile(out, tag, image); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	size, err := layer.Size()
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s  %s  %s  %.1f MB\n", out, tag, digest, float64(size)/1e6)
	return nil
}

// assemble puts the layer on an empty image. No time enters, so equal sources make equal digests.
func (p program) assemble(layer v1.Layer, arch string) (v1.Image, error) {
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config = v1.Config{
		Entrypoint: []string{"/" + p.name},
		Cmd:        p.args,
		User:       "65532:65532",
		Labels:     map[string]string{"org.opencontainers.image.licenses": "Apache-2.0"},
	}
	return mutate.ConfigFile(image, config)
}

// layer holds the binary and the licences.
func (p program) layer(ctx context.Context, version, arch string, licences []byte, stderr io.Writer) (v1.Layer, error) {
	dir, err := os.MkdirTemp("", "sidestream-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, p.name)
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X main.version="+version, "-o", binary, p.pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	build.Stdout, build.Stderr = stderr, stderr
	if err = build.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(build.Args, " "), err)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, f := range []struct {
		name    string
		mode    int64
		content []byte
	}{{p.name, 0o555, content}, {"licences.txt", 0o444, licences}} {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), ModTime: time.Unix(0, 0).UTC()}
		if err = w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err = w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err = w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive.Bytes())), nil
	})
}
