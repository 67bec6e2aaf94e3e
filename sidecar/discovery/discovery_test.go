package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ready(addrs ...string) []Peer {
	peers := []Peer{}
	for _, a := range addrs {
		peers = append(peers, Peer{Addr: netip.MustParseAddrPort(a), Ready: true})
	}
	return peers
}

// names is a resolver whose answers a test changes. A name without an answer does not exist.
type names struct {
	mu  sync.Mutex
	to  map[string][]string
	srv map[string][]*net.SRV
}

func newNames() *names { return &names{to: map[string][]string{}, srv: map[string][]*net.SRV{}} }

func (n *names) set(host string, ips ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.to[host] = ips
}

func (n *names) setSRV(name string, records ...*net.SRV) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.srv[name] = records
}

func (n *names) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if service != "" || proto != "" {
		return "", nil, errors.New("want the whole name")
	}
	if n.srv[name] == nil {
		return "", nil, errors.New("no such service")
	}
	return name, n.srv[name], nil
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ips, ok := n.to[host]
	if !ok || ips == nil {
		return nil, errors.New("no such host")
	}
	var addrs []netip.Addr
	for _, ip := range ips {
		addrs = append(addrs, netip.MustParseAddr(ip))
	}
	return addrs, nil
}

// watch runs a source in the bubble and returns its reports, oldest first.
func watch(t *testing.T, s Source) func() [][]Peer {
	t.Helper()
	var mu sync.Mutex
	var reports [][]Peer
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- s.Run(ctx, func(peers []Peer) {
			mu.Lock()
			defer mu.Unlock()
			reports = append(reports, peers)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	return func() [][]Peer {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return reports
	}
}

func TestNewStatic(t *testing.T) {
	for _, tt := range []struct {
		address string
		ok      bool
	}{
		{"10.0.0.1:18443", true},
		{"[2001:db8::1]:18443", true},
		{"peer.example:18443", true},
		{"10.0.0.1", false},
		{":18443", false},
		{"10.0.0.1:0", false},
		{"10.0.0.1:70000", false},
		{"0.0.0.0:18443", false},
		{"[ff02::1]:18443", false},
		{"", false},
	} {
		if _, err := NewStatic([]string{tt.address}, nil); (err == nil) != tt.ok {
			t.Errorf("%q: error %v, want ok %v", tt.address, err, tt.ok)
		}
	}
	if _, err := NewStatic(slices.Repeat([]string{"10.0.0.1:1"}, MaxPeers+1), nil); err == nil {
		t.Error("a list without end is taken")
	}
}

func TestNewDNS(t *testing.T) {
	for _, tt := range []struct {
		name string
		want name // the zero one: refused
	}{
		{"peers.media.svc.cluster.local:18443", name{"peers.media.svc.cluster.local", 18443}},
		{"peers.media.svc.clusterset.local", name{"_sidestream-peer._tcp.peers.media.svc.clusterset.local", 0}},
		{"_other._tcp.peers.example", name{"_other._tcp.peers.example", 0}},
		{"10.0.0.1:18443", name{}},
		{"10.0.0.1", name{}},
		{"[2001:db8::1]:18443", name{}},
		{"2001:db8::1", name{}},
		{"peers.example:", name{}},
		{"peers.example:x", name{}},
		{"https://peers.example", name{}},
		{"", name{}},
	} {
		d, err := NewDNS([]string{tt.name}, "sidestream-peer", nil)
		if (err == nil) != (tt.want != name{}) {
			t.Errorf("%q: error %v", tt.name, err)
		} else if err == nil && d.list.names[0] != tt.want {
			t.Errorf("%q is looked up as %v, want %v", tt.name, d.list.names[0], tt.want)
		}
	}
}

func TestStaticReportsAddressesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewStatic([]string{"10.0.0.2:1", "10.0.0.1:1", "[::ffff:10.0.0.2]:1"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		reports := watch(t, s)
		time.Sleep(time.Hour)
		if d := cmp.Diff([][]Peer{ready("10.0.0.1:1", "10.0.0.2:1")}, reports(), cmpAddr); d != "" {
			t.Error(d)
		}
	})
}

// trouble is what a source is in trouble with, "" where it is not.
func trouble(s Troubled) string {
	if _, err := s.Trouble(); err != nil {
		return err.Error()
	}
	return ""
}

func TestStaticFollowsNamesAndKeepsWhatItKnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewStatic([]string{"a.example:7", "10.0.0.9:7"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		dns := newNames()
		s.list.resolver = dns
		reports := watch(t, s)
		steps := [][]Peer{ready("10.0.0.9:7")}
		check := func(troubled bool) {
			t.Helper()
			if d := cmp.Diff(steps, reports(), cmpAddr); d != "" {
				t.Fatal(d)
			}
			if got := trouble(s); (got != "") != troubled {
				t.Errorf("trouble %q, want any: %t", got, troubled)
			}
		}
		check(true)
		dns.set("a.example", "10.0.0.1", "10.0.0.2")
		time.Sleep(2 * resolveEvery)
		steps = append(steps, ready("10.0.0.1:7", "10.0.0.2:7", "10.0.0.9:7"))
		check(false)
		dns.set("a.example") // fails
		time.Sleep(2 * resolveEvery)
		check(true)
		dns.set("a.example", "10.0.0.3")
		time.Sleep(2 * resolveEvery)
		steps = append(steps, ready("10.0.0.3:7", "10.0.0.9:7"))
		check(false)
	})
}

func TestDNSFollowsServiceRecordsOfBothFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := NewDNS([]string{"peers.example", "b.example:9"}, "sidestream-peer", nil)
		if err != nil {
			t.Fatal(err)
		}
		dns := newNames()
		d.list.resolver = dns
		const service = "_sidestream-peer._tcp.peers.example"
		dns.setSRV(service, &net.SRV{Target: "1.peers.example.", Port: 7}, &net.SRV{Target: "2.peers.example.", Port: 8})
		dns.set("1.peers.example.", "10.0.0.1", "2001:db8::1")
		dns.set("2.peers.example.", "10.0.0.2")
		reports := watch(t, d)
		check := func(want []Peer, wantTrouble string) {
			t.Helper()
			got := reports()
			if d := cmp.Diff(want, got[len(got)-1], cmpAddr); d != "" {
				t.Fatal(d)
			}
			if got := trouble(d); !strings.Contains(got, wantTrouble) || (got == "") != (wantTrouble == "") {
				t.Errorf("trouble %q, want %q", got, wantTrouble)
			}
		}
		check(ready("10.0.0.1:7", "10.0.0.2:8", "[2001:db8::1]:7"), "b.example")

		dns.set("b.example", "10.0.0.9")
		dns.setSRV(service, &net.SRV{Target: "2.peers.example.", Port: 8}, &net.SRV{Target: "3.peers.example.", Port: 8})
		time.Sleep(2 * resolveEvery) // of two targets one is not there: what was known stays
		check(ready("10.0.0.1:7", "10.0.0.2:8", "10.0.0.9:9", "[2001:db8::1]:7"), "no such host")

		dns.set("3.peers.example.", "10.0.0.3")
		time.Sleep(2 * resolveEvery)
		check(ready("10.0.0.2:8", "10.0.0.3:8", "10.0.0.9:9"), "")

		dns.setSRV(service, &net.SRV{Target: "."}) // RFC 2782: not there
		time.Sleep(2 * resolveEvery)
		check(ready("10.0.0.9:9"), "")

		dns.setSRV(service)
		dns.set("b.example")
		time.Sleep(2 * resolveEvery)
		check(ready("10.0.0.9:9"), "1 more")
	})
}

func TestDNSIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := NewDNS([]string{"peers.example", "more.example:1"}, "peer", nil)
		if err != nil {
			t.Fatal(err)
		}
		dns := newNames()
		d.list.resolver = dns
		var records []*net.SRV
		var ips []string
		for i := range 2 * MaxPeers {
			target := fmt.Sprintf("%d.peers.example.", i)
			ip := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String()
			records, ips = append(records, &net.SRV{Target: target, Port: 1}), append(ips, ip)
			dns.set(target, ip)
		}
		dns.setSRV("_peer._tcp.peers.example", records...)
		dns.set("more.example", ips...)
		reports := watch(t, d)
		for _, peers := range reports() {
			if len(peers) > MaxPeers {
				t.Fatalf("%d peers are believed", len(peers))
			}
		}
	})
}

func TestFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// As a mounted ConfigMap is: the file is a symbolic link into a folder that is a symbolic link itself.
		dir := t.TempDir()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(dir, "peers")
		must(os.Symlink(filepath.Join("..data", "peers"), path))
		version := 0
		write := func(content string) {
			t.Helper()
			version++
			folder := fmt.Sprint("..", version)
			must(os.Mkdir(filepath.Join(dir, folder), 0o755))
			must(os.WriteFile(filepath.Join(dir, folder, "peers"), []byte(content), 0o644))
			must(os.Symlink(folder, filepath.Join(dir, "..next")))
			must(os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, "..data")))
			time.Sleep(2 * readEvery)
		}
		dns := newNames()
		dns.set("a.example", "10.0.0.7")
		var log bytes.Buffer
		f := NewFile(path, slog.New(slog.NewTextHandler(&log, nil)))
		f.resolver = dns
		reports := watch(t, f)
		check := func(n int, want []Peer, wantTrouble string) {
			t.Helper()
			got := reports()
			if len(got) != n {
				t.Fatalf("%d reports, want %d: %v", len(got), n, got)
			}
			if n > 0 {
				if d := cmp.Diff(want, got[n-1], cmpAddr); d != "" {
					t.Fatal(d)
				}
			}
			if got := trouble(f); !strings.Contains(got, wantTrouble) || (got == "") != (wantTrouble == "") {
				t.Errorf("trouble %q, want %q", got, wantTrouble)
			}
		}
		time.Sleep(time.Minute)
		check(0, nil, "no such file")
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("said %d times: %s", n, log.String())
		}

		write("# our peers\n10.0.0.1:1 # the first\r\n\n  [2001:db8::1]:2\n")
		check(1, ready("10.0.0.1:1", "[2001:db8::1]:2"), "")

		write("10.0.0.2:1\n10.0.0.3\n\n:4\n")
		check(1, ready("10.0.0.1:1", "[2001:db8::1]:2"), "line 2")
		if got := trouble(f); !strings.Contains(got, "line 4") {
			t.Errorf("trouble %q names not all lines", got)
		}

		write("10.0.0.2:1\na.example:5\n")
		check(3, ready("10.0.0.2:1", "10.0.0.7:5"), "") // the second report came before the name was resolved

		dns.set("a.example") // fails, and the file changes: what is known of the name stays
		write("10.0.0.4:1\na.example:5")
		check(4, ready("10.0.0.4:1", "10.0.0.7:5"), "a.example")

		write(strings.Repeat("#", maxFile) + "\n10.0.0.5:1")
		check(4, last(reports()), "bytes")

		write(strings.Repeat("10.0.0.5:1\n", MaxPeers+1))
		check(4, last(reports()), "more than")

		must(os.Remove(path))
		time.Sleep(time.Minute)
		check(4, last(reports()), "no such file")

		must(os.Symlink(filepath.Join("..data", "peers"), path))
		write("")
		check(5, []Peer{}, "")
	})
}

// last is the last report.
func last(reports [][]Peer) []Peer { return reports[len(reports)-1] }

// sourceFunc is a Source made of its Run.
type sourceFunc func(ctx context.Context, report func([]Peer)) error

func (f sourceFunc) Run(ctx context.Context, report func([]Peer)) error { return f(ctx, report) }

func TestMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		flaky := sourceFunc(func(ctx context.Context, report func([]Peer)) error {
			runs++
			if runs == 2 {
				return errors.New("still broken") // without a word: what it said before stays
			}
			peers := ready("10.0.0.1:1")
			if runs > 2 {
				peers = ready("10.0.0.2:1")
			}
			report(peers)
			if runs == 1 {
				return errors.New("broken")
			}
			<-ctx.Done()
			return ctx.Err()
		})
		steady := sourceFunc(func(ctx context.Context, report func([]Peer)) error {
			report([]Peer{{Addr: netip.MustParseAddrPort("10.0.0.1:1"), Cluster: "east"}})
			<-ctx.Done()
			return ctx.Err()
		})
		m := Merge(MergeOptions{}, Named{"flaky", flaky}, Named{"steady", steady})
		reports := watch(t, m)
		east := func(r bool) Peer {
			return Peer{Addr: netip.MustParseAddrPort("10.0.0.1:1"), Cluster: "east", Ready: r}
		}
		got := reports()
		if d := cmp.Diff([]Peer{east(true)}, got[len(got)-1], cmpAddr); d != "" {
			t.Fatal(d)
		}
		began := time.Now()
		want := []Status{{Source: "flaky", Peers: 1, Since: began, Error: "broken"}, {Source: "steady", Peers: 1, Since: began}}
		if d := cmp.Diff(want, m.Status()); d != "" {
			t.Error(d)
		}
		time.Sleep(time.Minute)
		got = reports()
		if d := cmp.Diff(append([]Peer{east(false)}, ready("10.0.0.2:1")...), got[len(got)-1], cmpAddr); d != "" {
			t.Fatal(d)
		}
		if runs != 3 {
			t.Errorf("the source that broke ran %d times, want 3", runs)
		}
		if s := m.Status()[0]; s.Error != "" || !s.Since.After(began) {
			t.Errorf("the source that runs again is said to be %+v", s)
		}
	})
}

func TestMergeOfNothingReportsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := Merge(MergeOptions{})
		if d := cmp.Diff([][]Peer{{}}, watch(t, m)(), cmpAddr); d != "" {
			t.Error(d)
		}
		if s := m.Status(); s == nil || len(s) != 0 {
			t.Errorf("status %v", s)
		}
	})
}

// A source in trouble goes on, and its state is seen from outside.
func TestStatusAndMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewStatic([]string{"a.example:7"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		dns := newNames()
		s.list.resolver = dns
		silent := sourceFunc(func(ctx context.Context, _ func([]Peer)) error {
			<-ctx.Done()
			return ctx.Err()
		})
		registry := prometheus.NewRegistry()
		m := Merge(MergeOptions{Registerer: registry}, Named{"static", s}, Named{"silent", silent})
		check := func(want []Status, up, peers float64) {
			t.Helper()
			if d := cmp.Diff(want, m.Status()); d != "" {
				t.Error(d)
			}
			got := map[string]float64{}
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					got[f.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
				}
			}
			if d := cmp.Diff(map[string]float64{
				"sidestream_discovery_up static": up, "sidestream_discovery_up silent": 0,
				"sidestream_discovery_peers static": peers, "sidestream_discovery_peers silent": 0,
			}, got); d != "" {
				t.Error(d)
			}
		}
		const unreported = "it has not reported yet"
		check([]Status{{Source: "static", Error: unreported}, {Source: "silent", Error: unreported}}, 0, 0)
		began := time.Now()
		watch(t, m)()
		const unresolved = "resolve a.example: no such host"
		quiet := Status{Source: "silent", Since: began, Error: unreported}
		check([]Status{{Source: "static", Since: began, Error: unresolved}, quiet}, 0, 0)

		dns.set("a.example", "10.0.0.1")
		time.Sleep(2 * resolveEvery)
		synctest.Wait()
		mended := m.Status()[0].Since
		check([]Status{{Source: "static", Peers: 1, Since: mended}, quiet}, 1, 1)
		if since := mended.Sub(began); since <= 0 || since > 2*resolveEvery {
			t.Errorf("well since %v after the start", since)
		}
		dns.set("a.example")
		time.Sleep(4 * resolveEvery)
		synctest.Wait()
		failed := m.Status()[0].Since
		check([]Status{{Source: "static", Peers: 1, Since: failed, Error: unresolved}, quiet}, 0, 1)
		if since := failed.Sub(mended); since <= 0 || since > 4*resolveEvery {
			t.Errorf("in trouble %v after it was well", since)
		}
	})
}

func FuzzFile(f *testing.F) {
	f.Add([]byte("# our peers\n10.0.0.1:1\n[2001:db8::1%eth0]:2 # two\r\na.example:3"))
	f.Add([]byte("10.0.0.1\n:1\n\x00:1\n0.0.0.0:1"))
	f.Fuzz(func(t *testing.T, content []byte) {
		l, err := NewFile("", nil).parse(content)
		if err != nil {
			return
		}
		if len(l.fixed)+len(l.names) > MaxPeers {
			t.Errorf("%d addresses and %d names are believed", len(l.fixed), len(l.names))
		}
		for _, a := range l.fixed {
			if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() {
				t.Errorf("%v cannot be dialled", a)
			}
		}
		for _, n := range l.names {
			if n.host == "" || n.port == 0 {
				t.Errorf("%v cannot be looked up", n)
			}
		}
	})
}

var cmpAddr = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
