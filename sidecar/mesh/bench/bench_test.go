package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRun(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the bench reads Linux's /proc")
	}
	defer http.DefaultClient.CloseIdleConnections()
	var out strings.Builder
	err := run(t.Context(), []string{
		"-nodes", "6", "-streams", "60", "-rest", "1s", "-churn", "1s", "-crashes", "1", "-distance", "1ms", "-watchers", "3", "-json",
	}, &out)
	if err != nil {
		t.Fatal(err)
	}
	var results []Result
	if err := json.Unmarshal([]byte(out.String()), &results); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if len(results) != 1 || len(results[0].Costs) != 4 || len(results[0].News) != 9 {
		t.Fatalf("want one size with 4 rows of costs and 9 of news: %+v", results)
	}
	for _, c := range results[0].Costs {
		if c.Resident < 5 || c.Anonymous <= 0 || c.Heap <= 0 || c.Goroutines <= 0 || c.Phase == "churn" && (c.In <= 0 || c.FramesIn <= 0) {
			t.Errorf("%+v", c)
		}
	}
	for _, n := range results[0].News {
		if n.Seen == 0 || n.Missed > 0 || n.Max <= 0 {
			t.Errorf("%+v", n)
		}
	}
	if text := results[0].String(); strings.Contains(text, "%!") {
		t.Errorf("the table is not well made:\n%s", text)
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{
		{"-nodes", "ten"}, {"-nodes", "5"}, {"-nodes", ""}, {"-streams", "0"}, {"-rest", "0s"}, {"-crashes", "-1"}, {"-nonsense"},
	} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("run %v: no error", args)
		}
	}
}

func TestParseStat(t *testing.T) {
	for stat, want := range map[string]time.Duration{
		"7 (a) S 1 7 7 0 -1 4 9 9 9 9 150 50 0 0 20 0 8 0 1":        2 * time.Second,
		"7 (a ) (b) R 1 7 7 0 -1 4 9 9 9 9 1 0 0 0 20 0 8 0 1\n":    10 * time.Millisecond,
		"7 (a) S 1 7 7 0 -1 4 9 9 9 9 1":                            -1,
		"7 (a) S 1 7 7 0 -1 4 9 9 9 9 many 50 0 0 20 0 8 0 1 2 3 4": -1,
		"": -1,
	} {
		got, err := parseStat([]byte(stat))
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q: %v, %v; want %v", stat, got, err, want)
		}
	}
}

func TestSum(t *testing.T) {
	values := parseMetrics([]byte(`# HELP frames Frames.
frames{direction="in",kind="a"} 3
frames{direction="in",kind="b"} 1e+01
frames{direction="out",kind="a"} 100
frames_total 1000
heap 5

`))
	for name, want := range map[string]float64{`frames{direction="in"`: 13, "frames": 113, "heap": 5, "hea": 0} {
		if got := sum(values, name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// A node that dies says nothing more and closes nothing, and nobody who reads there hangs.
func TestDeath(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	var d death
	s := &subject{}
	w := &wire{Conn: near, death: &d, subject: s}
	go func() { _, _ = far.Write([]byte("hello")) }()
	if n, err := w.Read(make([]byte, 8)); n != 5 || err != nil || s.out.Load() != 5 {
		t.Fatalf("read %d, %v; counted %d", n, err, s.out.Load())
	}
	d.silent.Store(true)
	if n, err := w.Write([]byte("anyone?")); n != 7 || err != nil || s.in.Load() != 0 {
		t.Fatalf("write %d, %v; counted %d", n, err, s.in.Load())
	}
	read := make(chan error)
	go func() {
		_, err := w.Read(make([]byte, 8))
		read <- err
	}()
	if _, err := far.Write([]byte("are you there?")); err != nil {
		t.Fatalf("the other end sees it: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err == nil {
		t.Error("a dead node has read something")
	}
	_ = far.SetReadDeadline(time.Unix(1, 0))
	if _, err := far.Read(make([]byte, 8)); !os.IsTimeout(err) {
		t.Errorf("the other end reads: %v", err)
	}
	_ = far.SetReadDeadline(time.Time{})
	d.bury()
	if _, err := far.Read(make([]byte, 8)); err != io.EOF {
		t.Errorf("at the end the other end reads: %v", err)
	}
}

func TestGeography(t *testing.T) {
	g := newGeography(5, 10*time.Millisecond)
	for _, tt := range []struct {
		a, b int
		want time.Duration
	}{{0, 0, 0}, {0, 1, 10}, {1, 0, 10}, {0, 2, 20}, {0, 3, 20}, {0, 4, 10}} {
		if got := g.oneWay(tt.a, tt.b); got != tt.want*time.Millisecond {
			t.Errorf("%d to %d: %v", tt.a, tt.b, got)
		}
		if l := g.link(tt.a, tt.b); l.Out.Params().Delay != tt.want*time.Millisecond || l.In.Params().Delay != tt.want*time.Millisecond {
			t.Errorf("%d to %d: %+v", tt.a, tt.b, l.Out.Params())
		}
	}
}
