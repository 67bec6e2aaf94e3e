package e2e

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The demo as a script runs it: a stream published in one region is watched in the others, crosses once however many
// watch, and crosses no longer when they have gone.
func TestDemo(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	p := start(t, []string{"SIDESTREAM_RELAY_LINGER=1s"}, "demo", "-json", "-port", "0", "-no-distance", "-verbose")
	ready := p.await(ctx, t, "ready", func(e event) bool { return e.Event == "ready" })
	p.await(ctx, t, "the clip is published", func(e event) bool { return e.Event == "published" && e.Region == "singapore" })

	whep, admin := map[string]string{}, map[string]string{}
	for _, r := range ready.Regions {
		whep[r.Name], admin[r.Name] = r.WHEP, r.Admin
	}
	var germans []*viewer
	for range 3 {
		germans = append(germans, watch(ctx, t, whep["germany"]))
	}
	american := watch(ctx, t, whep["us-west"])
	origin := watch(ctx, t, whep["singapore"])
	relayed := p.await(ctx, t, "germany relays", func(e event) bool { return e.Event == "relayed" && e.Region == "germany" })
	if relayed.Parent != "singapore" && relayed.Parent != "us-west" {
		t.Errorf("germany pulls from %q", relayed.Parent)
	}
	for i, v := range append(germans, american, origin) {
		r := v.frames(ctx, t, 90)
		t.Logf("viewer %d: %+v", i, r)
		if r.Missing > 0 || r.Repeated > 0 {
			t.Errorf("viewer %d: %d frames missing, %d repeated, of %d", i, r.Missing, r.Repeated, r.Stamped)
		}
		if r.KeyFrames == 0 {
			t.Errorf("viewer %d: no key frame", i)
		}
	}

	// The metrics tell that it crosses once, and what the other two viewers would have cost.
	metrics := series(ctx, t, admin["germany"])
	carried, saved := metrics["sidestream_intercluster_bytes_total"], metrics["sidestream_intercluster_saved_bytes_total"]
	if carried == 0 || saved < carried/2 || saved > 2*carried {
		t.Errorf("%.0f bytes carried, %.0f saved", carried, saved)
	}
	for name, want := range map[string]float64{
		`sidestream_relays{state="live"}`: 1, `sidestream_catalogue_streams{origin="remote"}`: 1, "sidestream_adapter_up": 1,
		`sidestream_mesh_peers{peer_cluster="singapore",state="ready"}`: 1, `sidestream_gateway_hold_seconds_count{outcome="served"}`: 3,
	} {
		if got := metrics[name]; got != want {
			t.Errorf("%s is %v; want %v", name, got, want)
		}
	}

	var seen uint64 // by one viewer
	for _, v := range germans {
		seen = max(seen, uint64(v.Report().Frames))
		if err := v.stop(); ctx.Err() != nil {
			t.Errorf("viewer: %v", err)
		}
	}
	p.await(ctx, t, "germany's relay ends", func(e event) bool { return e.Event == "ended" && e.Region == "germany" })

	p.interrupt(t)
	end := p.await(ctx, t, "the last words", func(e event) bool { return e.Event == "ended demo" })
	var into uint64
	for _, c := range end.Crossings {
		if c.To == "germany" {
			into += c.MediaBytes
		}
	}
	// The clip has 90 kB a second with sound and headers; three copies would be three times that.
	if most := seen * 90_000 / 30 * 2; into == 0 || into > most {
		t.Errorf("%d bytes of media crossed into germany for %d frames seen by each of three viewers; one copy has at most %d", into, seen, most)
	}
}

func TestDemoSaysWhichPortIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if port > 65533 {
		t.Skipf("port %d leaves no room for three", port)
	}
	out, err := exec.CommandContext(t.Context(), binary, "demo", "-duration", "1s", "-port", strconv.Itoa(port)).CombinedOutput()
	if err == nil {
		t.Fatalf("the demo ran on a taken port:\n%s", out)
	}
	if want := "port " + strconv.Itoa(port) + " for germany is taken"; !bytes.Contains(out, []byte(want)) {
		t.Errorf("%q is not in:\n%s", want, out)
	}
}

func TestBadFlagsAndSettings(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  string
		args []string
		want string
	}{
		{"loss", "", []string{"demo", "-loss", "200"}, "--loss is 200: give per cent"},
		{"codec", "", []string{"demo", "-codec", "theora"}, "give h264 or vp8"},
		{"misspelt", "SIDESTREAM_CLUSTR=x", []string{"run"}, "did you mean SIDESTREAM_CLUSTER?"},
		{"no cluster", "", []string{"run"}, "SIDESTREAM_CLUSTER is not set"},
		{"unknown command", "", []string{"fly"}, `unknown command "fly"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), binary, tt.args...)
			cmd.Env = []string{tt.env}
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v; %q is not in:\n%s", err, tt.want, out)
			}
		})
	}
}

// series are the values that a node's metrics have now.
func series(ctx context.Context, t *testing.T, admin string) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	for line := range strings.Lines(string(getBody(ctx, t, admin+"/metrics"))) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	return values
}
