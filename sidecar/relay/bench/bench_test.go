package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is the relay process too: the bench runs its own program again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-role" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestRun(t *testing.T) {
	var out strings.Builder
	err := run(t.Context(), []string{"-streams", "2", "-duration", "2s", "-starts", "1", "-json"}, nil, &out)
	if err != nil {
		t.Fatal(err)
	}
	var result Result
	if err := json.Unmarshal([]byte(out.String()), &result); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if len(result.Rows) != 2 {
		t.Fatalf("%d rows, want one of each relay", len(result.Rows))
	}
	for _, row := range result.Rows {
		if row.Mbits < 2 || row.CPUPerGigabit <= 0 || row.Delivered < .9 || row.Latency.P50 <= 0 {
			t.Errorf("%s: %+v", row.Relay, row)
		}
	}
	if result.Floor <= 0 || result.Ratio <= 0 || result.RatioStreams != 2 || result.Cold.Median <= 0 || result.Warm.Median <= 0 {
		t.Errorf("%+v", result)
	}
	text := strings.TrimSpace(result.String())
	if last := text[strings.LastIndex(text, "\n")+1:]; !strings.HasPrefix(last, "relay/loop CPU ratio ") {
		t.Errorf("the last line is not the ratio:\n%s", text)
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{{"-streams", "ten"}, {"-streams", "0"}, {"-streams", ""}, {"-nonsense"}} {
		if err := run(t.Context(), args, nil, &strings.Builder{}); err == nil {
			t.Errorf("run %v: no error", args)
		}
	}
}
