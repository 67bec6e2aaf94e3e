package certs

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func logTo(to *bytes.Buffer) *slog.Logger { return slog.New(slog.NewTextHandler(to, nil)) }

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	f := NewFiles(dir, nil, logTo(&log))
	if f.read() == nil || f.Ready() == nil {
		t.Error("ready without files")
	}
	write := func(p *pair) {
		for name, content := range p.data(nil) {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	var last *pair
	for range 2 {
		p, err := newPair([]string{host}, time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		last = p
		write(p)
		if err := f.read(); err != nil {
			t.Fatal(err)
		}
		c, err := f.GetCertificate(nil)
		if err != nil || !c.Leaf.Equal(p.leaf()) {
			t.Errorf("another certificate is served: %v", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, privateKey), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f.read() == nil {
		t.Error("a torn file is read")
	}
	if c, err := f.GetCertificate(nil); err != nil || !c.Leaf.Equal(last.leaf()) || f.Ready() != nil {
		t.Errorf("after that: %v %v", err, f.Ready())
	}
	old, err := newPair([]string{host}, time.Hour, time.Now().Add(-2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	write(old)
	if err := f.read(); err != nil {
		t.Fatal(err)
	}
	if err := f.Ready(); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("%v", err)
	}
}
