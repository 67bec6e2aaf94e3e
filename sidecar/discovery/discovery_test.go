package discovery

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
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

// names is a resolver whose answers a test changes.
type names struct {
	mu sync.Mutex
	to map[string][]string
}

func (n *names) set(host string, ips ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.to[host] = ips
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
		{"", false},
	} {
		if _, err := NewStatic([]string{tt.address}, nil); (err == nil) != tt.ok {
			t.Errorf("%q: error %v, want ok %v", tt.address, err, tt.ok)
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

func TestStaticFollowsNamesAndKeepsWhatItKnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := NewStatic([]string{"a.example:7", "10.0.0.9:7"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		dns := &names{to: map[string][]string{}}
		s.resolver = dns
		reports := watch(t, s)
		steps := [][]Peer{ready("10.0.0.9:7")}
		check := func() {
			t.Helper()
			if d := cmp.Diff(steps, reports(), cmpAddr); d != "" {
				t.Fatal(d)
			}
		}
		check()
		dns.set("a.example", "10.0.0.1", "10.0.0.2")
		time.Sleep(2 * resolveEvery)
		steps = append(steps, ready("10.0.0.1:7", "10.0.0.2:7", "10.0.0.9:7"))
		check()
		dns.set("a.example") // fails
		time.Sleep(2 * resolveEvery)
		check()
		dns.set("a.example", "10.0.0.3")
		time.Sleep(2 * resolveEvery)
		steps = append(steps, ready("10.0.0.3:7", "10.0.0.9:7"))
		check()
	})
}

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
		reports := watch(t, Merge(nil, flaky, steady))
		east := func(r bool) Peer {
			return Peer{Addr: netip.MustParseAddrPort("10.0.0.1:1"), Cluster: "east", Ready: r}
		}
		got := reports()
		if d := cmp.Diff([]Peer{east(true)}, got[len(got)-1], cmpAddr); d != "" {
			t.Fatal(d)
		}
		time.Sleep(time.Minute)
		got = reports()
		if d := cmp.Diff(append([]Peer{east(false)}, ready("10.0.0.2:1")...), got[len(got)-1], cmpAddr); d != "" {
			t.Fatal(d)
		}
		if runs != 3 {
			t.Errorf("the source that broke ran %d times, want 3", runs)
		}
	})
}

var cmpAddr = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
