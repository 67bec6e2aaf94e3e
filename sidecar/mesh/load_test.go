package mesh

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	pb "github.com/sidestream-dev/sidestream/sidecar/proto/sidestream/v1"
)

func TestLoadFrames(t *testing.T) {
	for _, l := range []Load{{}, {Plays: 1, Publications: 2, MaxPlays: 3, MaxPublications: 4, URL: "https://a.example/b"}} {
		if got := loadFrom(loadFrame(l)); got != l {
			t.Errorf("%+v comes back as %+v", l, got)
		}
	}
	if d := cmp.Diff(&pb.Load{Plays: 1<<31 - 1}, loadFrame(Load{Plays: 1 << 40, Publications: -1}), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	beat := func(l *pb.Load) error {
		return (&pb.Frame{Body: &pb.Frame_Heartbeat{Heartbeat: &pb.Heartbeat{Load: l}}}).Validate()
	}
	for _, bad := range []string{"https://a\n", "ü", strings.Repeat("a", 1000)} {
		if beat(&pb.Load{Url: bad}) == nil {
			t.Errorf("a load with %q is valid", bad)
		}
	}
	if err := beat(&pb.Load{Url: "https://a"}); err != nil {
		t.Error(err)
	}
	if err := beat(nil); err != nil {
		t.Error(err)
	}
}

// A node knows the load of the others of its cluster that take sessions; of the others it is told nothing.
func TestLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{Catalogue: newBook(catalogue.Node{ID: "a", Cluster: "x"}), Security: Plaintext()})
		link := func(id, cluster string, b *pb.Heartbeat) {
			l := m.newLink(nil, true, &pb.Hello{Node: id, Cluster: cluster, Ready: true}, "")
			p := &peer{node: l.node, links: []*link{l}, primary: l}
			m.peers[l.node.ID] = p
			l.hear(b, l.since)
		}
		load := &pb.Load{Plays: 7}
		link("b", "x", &pb.Heartbeat{Ready: true, Load: load})
		link("c", "x", &pb.Heartbeat{Ready: true})
		link("d", "x", &pb.Heartbeat{Load: load})
		link("e", "x", &pb.Heartbeat{Ready: true, Draining: true, Load: load})
		link("f", "y", &pb.Heartbeat{Ready: true, Load: load})
		got := m.Loads()
		if len(got) != 1 || got[0].Node != "b" || got[0].Plays != 7 || got[0].At.IsZero() {
			t.Errorf("%+v", got)
		}
	})
}
