package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is the servers' process too: the bench runs its own program again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-role" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestRun(t *testing.T) {
	t.Setenv("MEDIAMTX_BIN", "")
	var out strings.Builder
	err := run(t.Context(), []string{"-viewers", "3", "-duration", "2s", "-joins", "2", "-sessions", "4", "-json"}, nil, &out)
	if err != nil {
		t.Fatal(err)
	}
	var result Result
	if err := json.Unmarshal([]byte(out.String()), &result); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, row := range result.Rows {
		if row.Viewers != 3 || row.Mbits <= 0 || row.Cores <= 0 || row.Through <= 0 || row.Latency.P50 <= 0 {
			t.Errorf("%+v", row)
		}
	}
	if len(result.Rows) < 2 || result.Flood.Errors != 0 || result.Joins[0].Median <= 0 || result.Ratios["loop"] <= 0 {
		t.Errorf("%+v", result)
	}
}

// What is left at low tide may waver, and not grow.
func TestJudge(t *testing.T) {
	for name, test := range map[string]struct {
		tides          func(i int) tidemark
		viewers, empty int
		ok             bool
	}{
		"flat":         {func(i int) tidemark { return tidemark{memory(50e6 + i%3*1e6), 20} }, 100, 1, true},
		"it warms up":  {func(i int) tidemark { return tidemark{memory(50e6 * min(i+1, 3) / 3), 20} }, 100, 0, true},
		"memory grows": {func(i int) tidemark { return tidemark{memory(50e6 + i*1e6), 20} }, 100, 0, false},
		"files grow":   {func(i int) tidemark { return tidemark{50e6, 20 + i} }, 100, 0, false},
		"nothing came": {func(int) tidemark { return tidemark{50e6, 20} }, 100, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			var marks []tidemark
			for i := range 20 {
				marks = append(marks, test.tides(i))
			}
			if err := judge(marks, test.viewers, test.empty); (err == nil) != test.ok {
				t.Errorf("judged: %v", err)
			}
		})
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{{"-viewers", "ten"}, {"-viewers", "0"}, {"-sessions", "-1"}, {"-nonsense"}} {
		if err := run(t.Context(), args, nil, &strings.Builder{}); err == nil {
			t.Errorf("run %v: no error", args)
		}
	}
}
