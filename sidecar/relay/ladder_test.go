package relay

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/sidecar/relay/relaytest"
)

var threeLayers = []whip.Layer{whip.NewLayer("h", 2_000_000), whip.NewLayer("l", 150_000), whip.NewLayer("m", 500_000)}

// seconds runs a ladder through seconds that are all alike, and lists what it asks for.
func (l *ladder) seconds(now *time.Time, n int, layers []whip.Layer, lost float64, room int64) (asked []string) {
	for range n {
		*now = now.Add(time.Second)
		if rid, ask := l.step(*now, layers, lost, room); ask {
			asked = append(asked, rid)
		}
	}
	return asked
}

func TestLadder(t *testing.T) {
	type phase struct {
		seconds int
		layers  []whip.Layer
		lost    float64
		room    int64
		want    []string
	}
	one := threeLayers[:1]
	silent := []whip.Layer{threeLayers[0], whip.NewLayer("l", 0), threeLayers[2]}
	for name, phases := range map[string][]phase{
		"calm":                     {{100, threeLayers, 0.01, 0, nil}},
		"a bad second":             {{1, threeLayers, 0.5, 0, nil}, {5, threeLayers, 0, 0, nil}, {1, threeLayers, 0.5, 0, nil}},
		"down and down":            {{20, threeLayers, 0.3, 0, []string{"m", "l"}}},
		"one layer":                {{20, one, 0.3, 0, nil}},
		"no layers":                {{20, nil, 0.3, 0, nil}},
		"what does not flow":       {{20, silent, 0.3, 0, []string{"m"}}},
		"down, and up when calm":   {{2, threeLayers, 0.3, 0, []string{"m"}}, {9, threeLayers, 0, 0, nil}, {1, threeLayers, 0, 0, []string{""}}},
		"no calm, no way up":       {{2, threeLayers, 0.3, 0, []string{"m"}}, {60, threeLayers, 0.05, 0, nil}},
		"no room":                  {{2, threeLayers, 0, 1_000_000, []string{"m"}}, {60, threeLayers, 0, 1_000_000, nil}},
		"room for one more":        {{4, threeLayers, 0.3, 0, []string{"m", "l"}}, {60, threeLayers, 0, 1_000_000, []string{"m"}}},
		"a failed step is dearer":  {{2, threeLayers, 0.3, 0, []string{"m"}}, {10, threeLayers, 0, 0, []string{""}}, {2, threeLayers, 0.3, 0, []string{"m"}}, {19, threeLayers, 0, 0, nil}, {1, threeLayers, 0, 0, []string{""}}},
		"a step long ago has held": {{2, threeLayers, 0.3, 0, []string{"m"}}, {70, threeLayers, 0, 0, []string{""}}, {2, threeLayers, 0.3, 0, []string{"m"}}, {10, threeLayers, 0, 0, []string{""}}},
	} {
		t.Run(name, func(t *testing.T) {
			l, now := &ladder{}, time.Unix(1_800_000_000, 0)
			for i, p := range phases {
				got := l.seconds(&now, p.seconds, p.layers, p.lost, p.room)
				if len(got) != len(p.want) {
					t.Fatalf("phase %d: asked for %q; want %q", i, got, p.want)
				}
				for j := range got {
					if got[j] != p.want[j] {
						t.Fatalf("phase %d: asked for %q; want %q", i, got, p.want)
					}
				}
			}
		})
	}
}

// A relay whose hop drowns asks its parent for the layer below.
func TestLayerStepsDown(t *testing.T) {
	t.Parallel()
	var lossy atomic.Bool
	n := newNetwork(t, 5*time.Millisecond, func(n int) bool { return lossy.Load() && n%4 == 0 })
	wishes := make(chan whip.Selection, 10)
	h := newHop(t, hopOptions{
		network: n, shape: relaytest.Shape{Video: webrtc.MimeTypeVP8},
		source: func(s *relaytest.Source) {
			s.Extend(&relaytest.Extensions{
				Layers:   whip.Layers{"0": threeLayers, "1": threeLayers},
				Selected: func(wish whip.Selection) { wishes <- wish },
			})
		},
	})
	h.awaitLive()
	lossy.Store(true)
	for _, want := range []string{"m", "l"} {
		select {
		case wish := <-wishes:
			if wish.Name() != want || wish.MediaID == "" {
				t.Fatalf("asked for %+v; want %s", wish, want)
			}
		case <-bound(t).Done():
			t.Fatalf("the parent was not asked for %s: %+v", want, h.session.Status())
		}
	}
	before := h.sink.Received("demo").Frames
	lossy.Store(false)
	h.awaitReception(func(r relaytest.Reception) bool { return r.Frames >= before+30 })
	if status := h.session.Status(); status.Layer != "l" {
		t.Errorf("status says %q", status.Layer)
	}
	h.cancel()
	_ = h.end()
	h.awaitFreed(1, 1)
}
