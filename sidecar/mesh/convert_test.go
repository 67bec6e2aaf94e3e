package mesh

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

// TestFrames: what the frames carry comes back as it was.
func TestFrames(t *testing.T) {
	h := catalogue.Hold{
		Stream: "x", Epoch: 1, Path: []catalogue.NodeID{"b1", "a1"}, Delay: 1000, Priority: -3, Oldest: true,
		Tracks: []adapters.Track{{Kind: "video", MIME: "video/H264", RID: "h"}},
	}
	if d := cmp.Diff(h, holdFrom(holdFrame(h))); d != "" {
		t.Error(d)
	}
	g := Grant{Token: "t", Path: h.Path, Epoch: 1, Priority: -3, Oldest: true, Sequence: 1<<32 + 5}
	if d := cmp.Diff(g, grantFrom(grantFrame(g))); d != "" {
		t.Error(d)
	}
}

// BenchmarkHoldMemory reports what a hold takes that a peer announced, in a mesh of 50 nodes and 10,000 holds.
func BenchmarkHoldMemory(b *testing.B) {
	frame, err := proto.Marshal(holdFrame(catalogue.Hold{
		Stream: "studio/camera-00001", Epoch: 1,
		Path:   []catalogue.NodeID{"7d444840-9dc0-11d1-b245-5ffdce74f001", "7d444840-9dc0-11d1-b245-5ffdce74f002"},
		Tracks: []adapters.Track{{Kind: "video", MIME: "video/H264"}, {Kind: "audio", MIME: "audio/opus"}},
	}))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		sets := make([]map[adapters.StreamID]catalogue.Hold, 50)
		for n := range sets {
			sets[n] = map[adapters.StreamID]catalogue.Hold{}
			for i := range 200 {
				var p pb.Hold
				if err := proto.Unmarshal(frame, &p); err != nil {
					b.Fatal(err)
				}
				p.Stream = fmt.Sprint("studio/camera-", 100+i)
				h := holdFrom(&p)
				sets[n][h.Stream] = h
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/10_000, "B/hold")
		runtime.KeepAlive(sets)
	}
}

func TestPlainErrors(t *testing.T) {
	for given, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`: "dial tcp 127.0.0.1:1: connect: connection refused",
		`connection error: desc = "error reading server preface: EOF"`:                                                 "error reading server preface: EOF",
		`connection error: desc = "unfinished`:                                                                         `connection error: desc = "unfinished`,
		"the node said goodbye":                                                                                        "the node said goodbye",
	} {
		if got := plain(status.Error(codes.Unavailable, given)).Error(); got != want {
			t.Errorf("%s: %s, want %s", given, got, want)
		}
	}
}
