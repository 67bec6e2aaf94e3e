package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

func TestStateSurvives(t *testing.T) {
	f := stateFile{name: filepath.Join(t.TempDir(), "deep", "state.json"), logger: slog.New(slog.DiscardHandler)}
	first := f.open("")
	if first.Node == "" || first.Incarnation != 1 {
		t.Fatalf("a new node is %+v", first)
	}
	known := catalogue.New(catalogue.Node{ID: first.Node, Incarnation: 1, Cluster: "germany"})
	for range 2 { // the first report's publications have no known age
		if err := known.SetLocal([]adapters.Stream{{ID: "demo", Session: "s1"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := known.SetLocal([]adapters.Stream{{ID: "demo", Session: "s2"}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = f.follow(ctx, first, known) // writes once and ends

	again := f.open("")
	if again.Node != first.Node || again.Incarnation != 2 {
		t.Errorf("after a restart the node is %+v", again)
	}
	if d := cmp.Diff(known.Record(), again.Record); d != "" {
		t.Errorf("record (-kept +read)\n%s", d)
	}
	if again.Record.Clock == 0 {
		t.Error("the clock was not kept")
	}
	if other := f.open("another"); other.Incarnation != 1 || other.Record.Clock != 0 {
		t.Errorf("another node took over the state: %+v", other)
	}
}

func TestStateOfAnotherKind(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "cut off": `{"node":"x"`, "another type": `[1]`} {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			f := stateFile{name: filepath.Join(t.TempDir(), "state.json"), logger: slog.New(slog.NewTextHandler(&log, nil))}
			if err := os.WriteFile(f.name, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if s := f.open("pod-1"); s.Node != "pod-1" || s.Incarnation != 1 {
				t.Errorf("state %+v", s)
			}
			if s := f.open("pod-1"); s.Incarnation != 2 {
				t.Errorf("at the next start %+v", s)
			}
			if !strings.Contains(log.String(), "going on without a memory") {
				t.Errorf("nothing was said: %q", log.String())
			}
		})
	}
}

// What others remember better is written down.
func TestStateThatWasOutgrown(t *testing.T) {
	dir := t.TempDir()
	f := stateFile{name: filepath.Join(dir, "state.json"), logger: slog.New(slog.DiscardHandler)}
	s := f.open("a")
	known := catalogue.New(catalogue.Node{ID: "a", Incarnation: s.Incarnation, Cluster: "a"})
	known.Outgrow(7)
	known.Outgrow(3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = f.follow(ctx, s, known)
	if s = f.open("a"); s.Incarnation != 9 {
		t.Errorf("after one that went on as the eighth comes %+v", s)
	}
}

func TestLongFlags(t *testing.T) {
	got := longFlags([]string{"demo", "-loss", "1", "--port", "-1", "-h", "-json", "-"})
	if d := cmp.Diff([]string{"demo", "--loss", "1", "--port", "-1", "-h", "--json", "-"}, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// Who cannot wait is not made to wait for the pause between two writes.
func TestStateIsRememberedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := stateFile{
			name: filepath.Join(t.TempDir(), "state.json"), logger: slog.New(slog.DiscardHandler), asked: make(chan chan<- struct{}),
		}
		s := file.open("a")
		known := catalogue.New(catalogue.Node{ID: "a", Incarnation: s.Incarnation, Cluster: "a"})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- file.follow(ctx, s, known) }()
		began := time.Now()
		for _, id := range []adapters.StreamID{"one", "two", "three"} {
			known.Carry(id)
			file.remember(t.Context())
			var got state
			content, err := os.ReadFile(file.name)
			if err == nil {
				err = json.Unmarshal(content, &got)
			}
			if err != nil || !slices.Contains(got.Record.Carried, catalogue.Carried{Stream: id}) {
				t.Errorf("%s is not remembered: %+v, %v", id, got, err)
			}
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("took %v", took)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		file.remember(ctx) // nobody follows any more
	})
}

// FuzzState reads a state file that something has damaged. The node that comes of it can run, and is the same after a restart.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"node":"a","incarnation":3,"record":{"clock":7}}`))
	f.Add([]byte(`{"node":"a","incarnation":18446744073709551615}`))
	f.Add([]byte(`{"node":"../a b","incarnation":1}`))
	f.Add([]byte(`{"record":{"clock":18446744073709551615}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		file := stateFile{name: filepath.Join(t.TempDir(), "state.json"), logger: slog.New(slog.DiscardHandler)}
		if err := os.WriteFile(file.name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s := file.open("")
		if !config.PlainName(string(s.Node)) || s.Incarnation == 0 {
			t.Fatalf("node %q, incarnation %d", s.Node, s.Incarnation)
		}
		known := catalogue.New(catalogue.Node{ID: s.Node, Incarnation: s.Incarnation, Cluster: "germany"})
		_ = known.Restore(s.Record)
		if err := known.SetLocal([]adapters.Stream{{ID: "demo", Session: "1"}}); err != nil {
			t.Skip() // a clock at its end
		}
		if again := file.open(""); again.Node != s.Node || again.Incarnation != s.Incarnation+1 {
			t.Errorf("%s %d becomes %s %d", s.Node, s.Incarnation, again.Node, again.Incarnation)
		}
	})
}
