//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// threeHosts is a topology without hosts.
func threeHosts() topology {
	t := topology{names: []string{"a", "b", "c"}, ways: make(map[way]*wan.Direction)}
	for _, w := range t.all() {
		t.ways[w] = wan.NewDirection(1, wan.Params{})
	}
	return t
}

func TestCommands(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name     string
		commands []string
		want     map[way]wan.Params // of those that are not perfect
	}{
		{"nothing", []string{"", "  "}, nil},
		{
			"both ways",
			[]string{"set a b rtt=80ms loss=1%"},
			map[way]wan.Params{{"a", "b"}: {Delay: 40 * ms, Loss: 0.01}, {"b", "a"}: {Delay: 40 * ms, Loss: 0.01}},
		},
		{
			"one way",
			[]string{"set b to a delay=80ms jitter=5ms"},
			map[way]wan.Params{{"b", "a"}: {Delay: 80 * ms, Jitter: 5 * ms}},
		},
		{
			"what is not named stays",
			[]string{"set a to b delay=80ms loss=1%", "set a b loss=0"},
			map[way]wan.Params{{"a", "b"}: {Delay: 80 * ms}},
		},
		{
			"all of one",
			[]string{"set * c delay=1ms"},
			map[way]wan.Params{
				{"a", "c"}: {Delay: ms}, {"b", "c"}: {Delay: ms}, {"c", "a"}: {Delay: ms}, {"c", "b"}: {Delay: ms},
			},
		},
		{"all to one", []string{"set * to c delay=1ms"}, map[way]wan.Params{{"a", "c"}: {Delay: ms}, {"b", "c"}: {Delay: ms}}},
		{
			"cut",
			[]string{"set * * delay=1ms", "cut a b", "heal b to a", "set b to a delay=0", "set * c delay=0s"},
			map[way]wan.Params{{"a", "b"}: {Delay: ms, Cut: true}},
		},
		{
			"everything",
			[]string{"set a to b burst=2% length=8 rate=2.5M queue=50000 reorder=1% by=20ms"},
			map[way]wan.Params{{"a", "b"}: {
				BurstLoss: 0.02, BurstLength: 8, Rate: 2_500_000, Queue: 50_000, Reorder: 0.01, ReorderBy: 20 * ms,
			}},
		},
		{"in any order", []string{"set a to b queue=50000 rate=80k"}, map[way]wan.Params{{"a", "b"}: {Rate: 80_000, Queue: 50_000}}},
		{"a new rate, a new queue", []string{"set a to b rate=8G", "set a to b rate=80k"}, map[way]wan.Params{{"a", "b"}: {Rate: 80_000}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, want := threeHosts(), threeHosts()
			for _, c := range tt.commands {
				if err := got.do(c, io.Discard); err != nil {
					t.Error(err)
				}
			}
			for w, p := range tt.want {
				want.ways[w].Set(p)
			}
			for _, w := range want.all() {
				if diff := cmp.Diff(want.ways[w].Params(), got.ways[w].Params()); diff != "" {
					t.Errorf("%s to %s (-want +got):\n%s", w.from, w.to, diff)
				}
			}
		})
	}
}

// A command that makes no sense changes nothing and says why.
func TestCommandErrors(t *testing.T) {
	for command, want := range map[string]string{
		"sett a b":                     "no such command",
		"set a":                        "two hosts",
		"set a b":                      "wants keys",
		"set a to b":                   "wants keys",
		"cut a b delay=1ms":            "wants keys",
		"cut a a":                      "itself",
		"set a d delay=1ms":            "no host d",
		"set a b delay":                "delay: ",
		"set a b delay=5":              "delay=5: ",
		"set a b delay=1ms loss=1":     "percentage",
		"set a b delay=1ms loss=101%":  "loss is 1.01",
		"set a b delay=1ms reorder=1%": "no packet would be overtaken",
		"set a to b rtt=1ms":           "both ways",
		"set a b rate=1X":              "rate=1X",
		"set a b colour=blue":          "no such key",
	} {
		got := threeHosts()
		err := got.do(command, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), command+": ") {
			t.Errorf("%v, want %q with %q", err, command, want)
		}
		for w, d := range got.ways {
			if d.Params() != wan.NewDirection(1, wan.Params{}).Params() {
				t.Errorf("%s has changed %s to %s: %+v", command, w.from, w.to, d.Params())
			}
		}
	}
}

func TestTables(t *testing.T) {
	topology := topology{names: []string{"a", "b"}, ways: map[way]*wan.Direction{
		{"a", "b"}: wan.NewDirection(1, wan.Params{Delay: time.Millisecond, Loss: 0.015, Rate: 1_000_000}),
		{"b", "a"}: wan.NewDirection(1, wan.Params{Cut: true}),
	}}
	for _, d := range topology.ways {
		d.Admit(time.Now(), 100)
	}
	for command, want := range map[string]string{
		"links": `FROM  TO  DELAY  JITTER  LOSS  BURST  LENGTH  RATE     QUEUE  REORDER  BY  STATE
a     b   1ms    0s      1.5%  0%     1       1000000  25000  0%       0s  open
b     a   0s     0s      0%    0%     1       0        24000  0%       0s  cut
`,
		"counters": `FROM  TO  PASSED  BYTES  LOST  BURST  OVERFLOW  CUT OFF  REORDERED
a     b   1       100    0     0      0         0        0
b     a   0       0      0     0      0         1        0
`,
		"help": help,
	} {
		var out strings.Builder
		if err := topology.do(command, &out); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", command, diff)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{nil, {"one"}, {"-colour", "a", "b"}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// pipe is the kernel's: who writes does not wait for the reader.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

func TestEmulate(t *testing.T) {
	stdin, input := pipe(t)
	output, stdout := pipe(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	done := make(chan error, 1)
	go func() {
		err := emulate(ctx, []string{"east", "west"}, []string{"set east west rtt=80ms"}, 1, false, stdin, stdout)
		_ = stdout.Close()
		done <- err
	}()
	lines := bufio.NewScanner(output)
	await := func(part string) string {
		for lines.Scan() {
			if strings.Contains(lines.Text(), part) {
				return lines.Text()
			}
		}
		err := <-done
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		}
		t.Fatalf("it did not say %q and ended with: %v", part, err)
		return ""
	}
	east := strings.Fields(await("east  "))
	if len(east) != 8 {
		t.Fatalf("%q", east)
	}
	name := filepath.Join("/var/run/netns", east[6])
	if _, err := os.Stat(name); err != nil {
		t.Error(err)
	}
	await("Ready")
	say := func(command string) {
		if _, err := io.WriteString(input, command+"\n"); err != nil {
			t.Error(err)
		}
	}
	say("cut east to west")
	say("nonsense")
	await("nonsense: there is no such command")
	say("links")
	if said := await("east  west  40ms"); !strings.HasSuffix(said, "cut") {
		t.Errorf("after the cut: %s", said)
	}
	interrupt()
	for lines.Scan() { // to its end
		continue
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left its namespace: %v", err)
	}
}

func TestEmulateErrors(t *testing.T) {
	for want, args := range map[string][2][]string{
		"there are two": {{"x", "x"}, nil},
		"no host z":     {{"x", "y"}, {"set x z delay=1ms"}},
		`"no name"`:     {{"no name", "y"}, nil},
	} {
		stdin, _ := pipe(t)
		err := emulate(t.Context(), args[0], args[1], 1, false, stdin, io.Discard)
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if names, _ := filepath.Glob("/var/run/netns/wan-[xy]-*"); names != nil {
		t.Errorf("left: %q", names)
	}
}
