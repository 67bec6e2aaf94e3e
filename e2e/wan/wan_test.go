package wan

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// roles are what the test binary does in place of tests where roleVariable names one.
var roles map[string]func() error

const roleVariable = "WAN_TEST_ROLE"

func TestMain(m *testing.M) {
	if role, ok := roles[os.Getenv(roleVariable)]; ok {
		if err := role(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

var epoch = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// fate is what became of a packet.
type fate struct {
	Arrived bool
	After   time.Duration
}

// offer sends packets at even distances and returns their fates.
func offer(d *Direction, count, size int, every time.Duration) []fate {
	fates := make([]fate, count)
	for i := range fates {
		now := epoch.Add(time.Duration(i) * every)
		arrival, ok := d.Admit(now, size)
		fates[i] = fate{Arrived: ok}
		if ok {
			fates[i].After = arrival.Sub(now)
		}
	}
	return fates
}

func lost(fates []fate) (pattern []bool) {
	for _, f := range fates {
		pattern = append(pattern, !f.Arrived)
	}
	return pattern
}

func TestPerfect(t *testing.T) {
	for name, d := range map[string]*Direction{"nil": nil, "zero": NewDirection(1, Params{})} {
		for i, f := range offer(d, 1000, 1200, time.Millisecond) {
			if f != (fate{Arrived: true}) {
				t.Fatalf("%s: packet %d: %+v", name, i, f)
			}
		}
	}
}

func TestDelayAndJitter(t *testing.T) {
	d := NewDirection(1, Params{Delay: 80 * time.Millisecond, Jitter: 10 * time.Millisecond})
	// Far enough apart that no packet waits for the one before it.
	var sum time.Duration
	const count = 20_000
	for i, f := range offer(d, count, 1200, 20*time.Millisecond) {
		if f.After < 80*time.Millisecond || f.After > 90*time.Millisecond {
			t.Fatalf("packet %d took %v", i, f.After)
		}
		sum += f.After
	}
	if mean := sum / count; (mean - 85*time.Millisecond).Abs() > 100*time.Microsecond {
		t.Errorf("packets took %v on average, want 85ms", mean)
	}
}

func TestJitterKeepsOrder(t *testing.T) {
	d := NewDirection(1, Params{Delay: 20 * time.Millisecond, Jitter: 50 * time.Millisecond})
	last := time.Duration(0)
	for i, f := range offer(d, 5000, 1200, time.Millisecond) {
		arrival := time.Duration(i)*time.Millisecond + f.After
		if arrival < last || f.After > 70*time.Millisecond {
			t.Fatalf("packet %d arrived at %v after %v, the one before at %v", i, arrival, f.After, last)
		}
		last = arrival
	}
}

func TestLoss(t *testing.T) {
	const count = 200_000
	for _, share := range []float64{0.001, 0.01, 0.1, 1} {
		d := NewDirection(7, Params{Loss: share})
		n := 0
		for _, l := range lost(offer(d, count, 100, time.Millisecond)) {
			if l {
				n++
			}
		}
		// Four standard deviations.
		if off := math.Abs(float64(n) - share*count); off > 4*math.Sqrt(share*(1-share)*count) {
			t.Errorf("loss %v: %d of %d lost", share, n, count)
		}
		want := Counters{Lost: uint64(n), Packets: uint64(count - n), Bytes: uint64(100 * (count - n))}
		if diff := cmp.Diff(want, d.Counters()); diff != "" {
			t.Errorf("loss %v: counters (-want +got):\n%s", share, diff)
		}
	}
}

func TestBurstLoss(t *testing.T) {
	const count = 500_000
	for _, p := range []Params{
		{BurstLoss: 0.01, BurstLength: 5},
		{BurstLoss: 0.05, BurstLength: 20},
		{BurstLoss: 0.02, BurstLength: 1},
		{BurstLoss: 0.8}, // four packets and more
	} {
		d := NewDirection(3, p)
		n, bursts := 0, 0
		before := false
		for _, l := range lost(offer(d, count, 100, time.Millisecond)) {
			if l {
				n++
				if !before {
					bursts++
				}
			}
			before = l
		}
		if share := float64(n) / count; math.Abs(share/p.BurstLoss-1) > 0.1 {
			t.Errorf("%+v: %v of the packets lost", p, share)
		}
		if length, want := float64(n)/float64(bursts), d.Params().BurstLength; math.Abs(length/want-1) > 0.1 {
			t.Errorf("%+v: a burst takes %v packets, want %v", p, length, want)
		}
		if c := d.Counters(); c.BurstLost != uint64(n) || c.Lost != 0 {
			t.Errorf("%+v: counters %+v", p, c)
		}
	}
}

func TestSeed(t *testing.T) {
	p := Params{Delay: time.Millisecond, Loss: 0.05, BurstLoss: 0.01, BurstLength: 3}
	one := offer(NewDirection(1, p), 5000, 1200, time.Millisecond)
	if diff := cmp.Diff(one, offer(NewDirection(1, p), 5000, 1200, time.Millisecond)); diff != "" {
		t.Errorf("the same seed gave other fates:\n%s", diff)
	}
	if cmp.Equal(lost(one), lost(offer(NewDirection(2, p), 5000, 1200, time.Millisecond))) {
		t.Error("another seed gave the same fates")
	}
	p.Jitter, p.Reorder, p.ReorderBy = 30*time.Millisecond, 0.1, time.Millisecond
	if !cmp.Equal(lost(one), lost(offer(NewDirection(1, p), 5000, 1200, time.Millisecond))) {
		t.Error("with jitter and reordering other packets are lost")
	}
	link := NewLink(1, p)
	if cmp.Equal(lost(offer(link.Out, 5000, 1200, time.Millisecond)), lost(offer(link.In, 5000, 1200, time.Millisecond))) {
		t.Error("both directions of a link lose the same packets")
	}
}

func TestRate(t *testing.T) {
	const rate, size, queue = 1_000_000, 1250, 25_000 // 10 ms a packet, 200 ms of queue
	delay := 30 * time.Millisecond
	d := NewDirection(1, Params{Delay: delay, Rate: rate, Queue: queue})
	// Below the rate each packet only takes its own time on the line.
	for i, f := range offer(d, 100, size, 20*time.Millisecond) {
		if f.After != delay+10*time.Millisecond {
			t.Fatalf("unloaded, packet %d took %v", i, f.After)
		}
	}
	// At twice the rate half of them pass, after the whole queue.
	d = NewDirection(1, Params{Delay: delay, Rate: rate, Queue: queue})
	const count = 2000
	fates := offer(d, count, size, 5*time.Millisecond)
	passed, slowest := 0, time.Duration(0)
	for _, f := range fates {
		if f.Arrived {
			passed++
			slowest = max(slowest, f.After)
		}
	}
	took := count * 5 * time.Millisecond
	got := float64(passed*size*8) / took.Seconds()
	if math.Abs(got-rate) > 0.03*rate { // the full queue is 2 % of ten seconds
		t.Errorf("%.0f bit/s passed, want %d", got, rate)
	}
	if want := delay + 200*time.Millisecond; slowest > want || slowest < want-11*time.Millisecond {
		t.Errorf("behind a full queue a packet took %v, want %v", slowest, want)
	}
	if c := d.Counters(); c.Overflow != uint64(count-passed) || c.Packets != uint64(passed) {
		t.Errorf("counters %+v, %d passed", c, passed)
	}
}

func TestReorder(t *testing.T) {
	d := NewDirection(5, Params{Delay: 10 * time.Millisecond, Reorder: 0.02, ReorderBy: 7 * time.Millisecond})
	const count = 50_000
	held, overtaken := 0, 0
	latest := time.Duration(-1)
	for i, f := range offer(d, count, 1200, 2*time.Millisecond) {
		switch f.After {
		case 10 * time.Millisecond:
		case 17 * time.Millisecond:
			held++
		default:
			t.Fatalf("packet %d took %v", i, f.After)
		}
		arrival := time.Duration(i)*2*time.Millisecond + f.After
		if arrival < latest {
			overtaken++
		}
		latest = max(latest, arrival)
	}
	if math.Abs(float64(held)/count-0.02) > 0.003 {
		t.Errorf("%d of %d held back", held, count)
	}
	if overtaken < held*2 { // each is overtaken by three, unless those are held back too
		t.Errorf("%d packets arrived before an older one, with %d held back", overtaken, held)
	}
	if c := d.Counters(); c.Reordered != uint64(held) || c.Packets != count {
		t.Errorf("counters %+v", c)
	}
}

func TestSetWhileRunning(t *testing.T) {
	d := NewDirection(1, Params{Delay: 100 * time.Millisecond})
	steps := []struct {
		params Params
		want   fate
	}{
		{Params{Delay: 20 * time.Millisecond}, fate{true, 20 * time.Millisecond}},
		{Params{Delay: 20 * time.Millisecond, Cut: true}, fate{}},
		{Params{Delay: 50 * time.Millisecond}, fate{true, 50 * time.Millisecond}},
		{Params{}, fate{true, 0}},
		{Params{Delay: -time.Second, Loss: math.NaN(), Rate: -1}, fate{true, 0}}, // the nearest that makes sense
		{Params{Loss: 17}, fate{}},
	}
	if got := offer(d, 1, 100, 0)[0]; got != (fate{true, 100 * time.Millisecond}) {
		t.Errorf("at first: %+v", got)
	}
	for i, s := range steps {
		d.Set(s.params)
		if got := offer(d, 1, 100, 0)[0]; got != s.want {
			t.Errorf("step %d: %+v, want %+v", i, got, s.want)
		}
	}
	want := Counters{Packets: 5, Bytes: 500, CutOff: 1, Lost: 1}
	if diff := cmp.Diff(want, d.Counters()); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		params Params
		want   []string // parts of the error
	}{
		{Params{}, nil},
		{Params{Delay: 1, Jitter: 1, Loss: 1, BurstLoss: 0.5, BurstLength: 4, Rate: 1, Queue: 1, Reorder: 0.1, ReorderBy: 1}, nil},
		{Params{Loss: 5, BurstLoss: -1, Reorder: math.NaN()}, []string{"loss is 5", "burst loss is -1", "reorder is NaN"}},
		{Params{Delay: -1, Jitter: -1, ReorderBy: -1}, []string{"delay is -1ns", "jitter", "reorder by"}},
		{Params{Reorder: 0.1}, []string{"reorder by is not"}},
		{Params{Rate: -1}, []string{"rate is -1"}},
		{Params{BurstLength: -1}, []string{"burst length is -1"}},
		{Params{BurstLoss: 0.8}, []string{"burst loss is 0.8", "4 packets or more"}},
		{Params{BurstLoss: 0.8, BurstLength: 4}, nil},
		{Params{BurstLoss: 1}, nil},
	}
	for _, tt := range tests {
		err := tt.params.Validate()
		if (err == nil) != (tt.want == nil) {
			t.Errorf("%+v: %v", tt.params, err)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%+v: %q is missing in: %v", tt.params, w, err)
			}
		}
	}
}
