package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/e2e/metricsdoc"
	"github.com/sidestream-dev/sidestream/sidecar/admin"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

var update = flag.Bool("update", false, "write the generated part of docs/metrics.md anew")

// everything is a node with all that has metrics.
func everything(t testing.TB) *node {
	t.Helper()
	settings, err := config.Decode([]string{
		"SIDESTREAM_CLUSTER=germany", "SIDESTREAM_STATE_DIR=" + t.TempDir(), "SIDESTREAM_PEER_SECURITY=plaintext",
		"SIDESTREAM_GATEWAY_LISTEN=127.0.0.1:0", "SIDESTREAM_PEER_LISTEN=127.0.0.1:0", "SIDESTREAM_ADMIN_LISTEN=127.0.0.1:0",
		"SIDESTREAM_SFU_LISTEN=127.0.0.1:0", "SIDESTREAM_SFU_MEDIA_LISTEN=127.0.0.1:0", "SIDESTREAM_PEER_SERVICE=sidestream-peers",
		"SIDESTREAM_TURN_URLS=turn:turn.example.org:3478", "SIDESTREAM_TURN_USERNAME=a", "SIDESTREAM_TURN_CREDENTIAL=b",
	})
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(settings, surroundings{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	if err := n.openDiscovery(); err != nil {
		t.Fatal(err)
	}
	return n
}

// The manual's table is that of the code, and no metric can have a stream's name.
func TestMetricsAreDocumented(t *testing.T) {
	all, err := metricsdoc.Of(everything(t).registry, "sidestream_")
	if err != nil {
		t.Fatal(err)
	}
	bounded := []string{
		"adapter", "answer", "class", "codec", "condition", "direction", "go_version", "how", "kind", "layer", "origin", "outcome", "path",
		"peer_cluster", "reason", "result", "role", "side", "source", "state", "step", "version", "why",
	}
	for _, m := range all {
		for _, label := range m.Labels {
			if !slices.Contains(bounded, label) {
				t.Errorf("%s has the label %s: add it here if its values are bounded", m.Name, label)
			}
		}
		if !strings.HasSuffix(m.Help, ".") {
			t.Errorf("the help of %s is no sentence", m.Name)
		}
	}
	if err := metricsdoc.Fresh("../docs/metrics.md", "sidecar", metricsdoc.Table(all), *update); err != nil {
		t.Error(err)
	}
}

func TestMetricsAreNamedAsUsual(t *testing.T) {
	problems, err := testutil.GatherAndLint(everything(t).registry)
	if err != nil {
		t.Fatal(err)
	}
	problems = slices.DeleteFunc(problems, func(p promlint.Problem) bool { return !strings.HasPrefix(p.Metric, "sidestream_") })
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestCatalogueMetrics(t *testing.T) {
	n := everything(t)
	n.report([]adapters.Stream{{ID: "own", Session: "1", Readers: 3}, {ID: "both", Session: "2", Readers: 1}})
	hold := func(id adapters.StreamID, path ...catalogue.NodeID) catalogue.Hold {
		return catalogue.Hold{Stream: id, Epoch: 1, Path: path}
	}
	if err := n.known.SetPeer(catalogue.Node{ID: "p", Incarnation: 1, Cluster: "singapore"}, []catalogue.Hold{
		hold("both", "p"), hold("far", "p"),
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.known.SetPeer(catalogue.Node{ID: "q", Incarnation: 1, Cluster: "us-west"}, []catalogue.Hold{hold("far", "p", "q")}); err != nil {
		t.Fatal(err)
	}
	want := `
# HELP sidestream_adapter_readers Readers that the media server reported last, of all streams, relays of other nodes among them; none where it does not count them.
# TYPE sidestream_adapter_readers gauge
sidestream_adapter_readers 4
# HELP sidestream_adapter_streams Streams that the media server reported last.
# TYPE sidestream_adapter_streams gauge
sidestream_adapter_streams 2
# HELP sidestream_catalogue_conflicts Names under which more than one publication is known here; all nodes show the same one.
# TYPE sidestream_catalogue_conflicts gauge
sidestream_catalogue_conflicts 1
# HELP sidestream_catalogue_holds Nodes that have a stream, for all streams that are known here: as its origin, or by a relay.
# TYPE sidestream_catalogue_holds gauge
sidestream_catalogue_holds{role="origin"} 4
sidestream_catalogue_holds{role="relay"} 1
# HELP sidestream_catalogue_streams Names of streams that are known here: published at this node (local), or elsewhere only (remote).
# TYPE sidestream_catalogue_streams gauge
sidestream_catalogue_streams{origin="local"} 2
sidestream_catalogue_streams{origin="remote"} 1
`
	if err := testutil.GatherAndCompare(n.registry, strings.NewReader(want), "sidestream_catalogue_streams", "sidestream_catalogue_holds",
		"sidestream_catalogue_conflicts", "sidestream_adapter_streams", "sidestream_adapter_readers"); err != nil {
		t.Error(err)
	}
}

// confirming is a server that is asked, and answered last at a time.
type confirming struct {
	watched
	at time.Time
}

func (c *confirming) Confirmed() time.Time { return c.at }

func TestInventoryAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type seen struct {
			age time.Duration
			up  float64
		}
		push, poll := &watched{}, &confirming{}
		n, asked := &node{adapter: push, lost: time.Now()}, &node{adapter: poll, lost: time.Now()}
		check := func(what string, n *node, want seen) {
			t.Helper()
			age, up := n.inventoryAge(time.Now())
			if d := cmp.Diff(want, seen{age, up}, cmp.AllowUnexported(seen{})); d != "" {
				t.Errorf("%s: %s", what, d)
			}
		}
		time.Sleep(time.Second)
		check("nothing was ever told", n, seen{time.Second, 0})
		check("nothing was ever told to one that asks", asked, seen{time.Second, 0})
		n.setFailed(nil)
		asked.setFailed(nil)
		poll.at = time.Now()
		time.Sleep(time.Minute)
		check("one that pushes is quiet", n, seen{0, 1})
		check("one that is asked does not answer", asked, seen{time.Minute, 1})
		n.setFailed(errors.New("gone"))
		time.Sleep(time.Second)
		n.setFailed(errors.New("still gone"))
		time.Sleep(time.Second)
		check("one that pushes is lost", n, seen{2 * time.Second, 0})
		if n.losses != 2 {
			t.Errorf("%d losses", n.losses)
		}
	})
}

// BenchmarkScrape is one scrape of a node that knows of 1,000 streams.
func BenchmarkScrape(b *testing.B) {
	n := everything(b)
	crowd(b, n)
	server := httptest.NewServer(admin.New(admin.Options{Metrics: n.registry}))
	defer server.Close()
	b.ResetTimer()
	for b.Loop() {
		scrape(b, server.URL)
	}
	b.ReportMetric(float64(series(b, n.registry)), "series")
}

// A node in a large mesh shows a bounded number of series.
func TestSeriesAreBounded(t *testing.T) {
	n := everything(t)
	crowd(t, n)
	if got := series(t, n.registry); got > 2000 {
		t.Errorf("%d series", got)
	}
}

// crowd lets a node know 40 clusters of 5 nodes, with 1,000 streams.
func crowd(t testing.TB, n *node) {
	t.Helper()
	for i := range 200 {
		id := catalogue.NodeID("peer-" + string(rune('a'+i%26)) + string(rune('a'+i/26)))
		var holds []catalogue.Hold
		for j := range 5 {
			holds = append(holds, catalogue.Hold{
				Stream: adapters.StreamID(string(id) + "/" + string(rune('a'+j))), Epoch: 1, Path: []catalogue.NodeID{id},
			})
		}
		cluster := "cluster-" + string(rune('a'+i/5%26)) + string(rune('a'+i/130))
		if err := n.known.SetPeer(catalogue.Node{ID: id, Incarnation: 1, Cluster: cluster}, holds); err != nil {
			t.Fatal(err)
		}
	}
}

func scrape(t testing.TB, url string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK || n == 0 {
		t.Fatalf("%d bytes, %s, %v", n, resp.Status, err)
	}
}

// series are the lines that a scrape has.
func series(t testing.TB, g prometheus.Gatherer) (n int) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			n++
			if h := m.GetHistogram(); h != nil {
				n += len(h.GetBucket()) + 2
			}
		}
	}
	return n
}
