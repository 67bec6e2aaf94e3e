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

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{{"-viewers", "ten"}, {"-viewers", "0"}, {"-sessions", "-1"}, {"-nonsense"}} {
		if err := run(t.Context(), args, nil, &strings.Builder{}); err == nil {
			t.Errorf("run %v: no error", args)
		}
	}
}
