package endpointslice

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cmp "github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/sidestream-dev/sidestream/sidecar/discovery"
)

var cmpAddr = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// fixture reads slices from testdata: those of Cilium it really wrote, recorded; the others are written by hand, after the
// code and documents of their makers.
func fixture(t testing.TB, name string) []*discoveryv1.EndpointSlice {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var list discoveryv1.EndpointSliceList
	if err := yaml.UnmarshalStrict(content, &list); err != nil {
		t.Fatal(err)
	}
	var all []*discoveryv1.EndpointSlice
	for i := range list.Items {
		all = append(all, &list.Items[i])
	}
	return all
}

// peers are written as address, cluster ("." where none is told) and "-" where it is not ready.
func peers(lines ...string) []discovery.Peer {
	all := []discovery.Peer{}
	for _, line := range lines {
		fields := strings.Fields(line)
		p := discovery.Peer{Addr: netip.MustParseAddrPort(fields[0]), Ready: len(fields) < 3}
		if fields[1] != "." {
			p.Cluster = fields[1]
		}
		all = append(all, p)
	}
	return all
}

func TestFixtures(t *testing.T) {
	sfu := wanted{namespace: "media", service: "sfu", port: "http"}
	ours := wanted{namespace: "media", service: "sidestream-peers", port: "sidestream-peer"}
	for _, tt := range []struct {
		file string
		want wanted
		said []discovery.Peer
		left left
	}{
		// Cilium. East sees west's endpoints as ready, whatever they are.
		{"both-ready-east", sfu, peers("10.10.1.10:8080 .", "10.10.2.11:8080 .", "10.20.1.10:8080 west", "10.20.2.11:8080 west"), nil},
		{"notready-west-local", sfu, peers("10.20.1.10:8080 .", "10.20.2.11:8080 . -", "10.20.3.12:8080 .", "10.20.3.13:8080 .",
			"10.20.3.14:8080 ."), nil},
		{"notready-east", sfu, peers("10.20.1.10:8080 west", "10.20.3.12:8080 west", "10.20.3.13:8080 west", "10.20.3.14:8080 west"), nil},
		{"terminating-west-local", sfu, peers("10.20.1.10:8080 .", "10.20.2.11:8080 .", "10.20.3.12:8080 . -", "10.20.3.13:8080 .",
			"10.20.3.14:8080 ."), nil},
		{"terminating-east", sfu, peers("10.20.1.10:8080 west", "10.20.2.11:8080 west", "10.20.3.12:8080 west", "10.20.3.13:8080 west",
			"10.20.3.14:8080 west"), nil},
		{"terminating-notready-west-local", sfu, peers("10.20.1.10:8080 .", "10.20.2.11:8080 .", "10.20.3.12:8080 . -",
			"10.20.3.13:8080 .", "10.20.3.14:8080 ."), nil},
		{"deleted-east", sfu, peers("10.20.1.10:8080 west", "10.20.2.11:8080 west", "10.20.3.13:8080 west", "10.20.3.14:8080 west"), nil},
		{"cut-30s-east", sfu, peers("10.10.1.10:8080 .", "10.10.2.11:8080 .", "10.10.9.11:8080 .", "10.10.9.12:8080 .",
			"10.10.9.13:8080 .", "10.10.9.14:8080 .", "10.10.9.15:8080 .", "10.20.1.10:8080 west", "10.20.2.11:8080 west",
			"10.20.3.13:8080 west", "10.20.3.14:8080 west"), nil},
		{"cut-operator-restarted-east", sfu, peers("10.10.1.10:8080 .", "10.10.2.11:8080 ."), nil},
		{"healed-east", sfu, peers("10.10.1.10:8080 .", "10.10.2.11:8080 .", "10.20.1.10:8080 west", "10.20.2.11:8080 west",
			"10.20.3.14:8080 west"), nil},
		{"both-ready-east", wanted{"media", "sfu", "media"}, peers(), left{leftPort: 2}}, // UDP
		{"both-ready-east", wanted{"media", "sfu", "none"}, peers(), left{leftUnnamed: 2}},
		{"both-ready-east", wanted{"media", "other", "http"}, peers(), left{leftForeigner: 2}},
		{"both-ready-east", wanted{"other", "sfu", "http"}, peers(), left{leftForeigner: 2}},

		{"cilium-mcs", ours, peers("10.10.1.10:18443 east", "10.10.2.11:18443 east -", "10.20.1.10:18443 west"), nil},
		{"mcs-api", ours, peers("10.20.1.10:18443 west", "10.30.1.10:18443 south -"), nil},
		{"submariner", ours, peers("242.254.1.10:18443 east", "242.254.1.11:18443 east -"), nil},
		{"karmada", ours, peers("10.10.1.10:18443 .", "10.20.1.10:18443 member2"), nil},
		{"plain", ours, peers("10.10.1.10:18443 .", "10.10.1.11:18443 .", "10.10.1.12:18443 . -", "10.10.1.13:18443 . -",
			"10.10.2.10:28443 ."), nil},
		{"dual-stack", ours, peers("10.10.1.10:18443 .", "10.20.1.10:18443 west", "[2001:db8:1::a]:18443 .",
			"[2001:db8:2::a]:18443 west"), nil},
		{
			"odd", ours, peers("10.10.1.10:18443 .", "10.10.1.10:18444 .", "10.10.1.14:18443 .", "10.10.1.14:18444 ."),
			left{leftFQDN: 1, leftAddress: 5, leftPort: 4, leftUnnamed: 2},
		},
	} {
		t.Run(tt.file, func(t *testing.T) {
			all := fixture(t, tt.file)
			if tt.left == nil {
				tt.left = left{}
			}
			for range 2 {
				got, missing := peersOf(tt.want, all...)
				if d := cmp.Diff(tt.said, got, cmpAddr); d != "" {
					t.Errorf("(-want +got)\n%s", d)
				}
				if d := cmp.Diff(tt.left, missing); d != "" {
					t.Errorf("left out (-want +got)\n%s", d)
				}
				slices.Reverse(all)
			}
		})
	}
}

// many makes slices with so many endpoints each.
func many(count, endpoints int) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	for i := range count {
		s := slice(fmt.Sprintf("peers-%04d", i))
		for j := range endpoints {
			ip := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(j)})
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip.String()}})
		}
		all = append(all, s)
	}
	return all
}

// slice has the port that is wanted and these addresses.
func slice(name string, addresses ...string) *discoveryv1.EndpointSlice {
	port, number := "peer", int32(7)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "media", Name: name, Labels: map[string]string{serviceLabel: "peers"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &port, Port: &number}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

var peersService = wanted{namespace: "media", service: "peers", port: "peer"}

func TestBounds(t *testing.T) {
	for _, tt := range []struct {
		slices, endpoints int
		peers, missing    int
	}{
		{10, 100, 1000, 0},
		{11, 100, 1000, 100},
		{maxSlices + 2, 1, 1000, 2},
	} {
		all := many(tt.slices, tt.endpoints)
		got, missing := peersOf(peersService, all...)
		if len(got) != tt.peers || missing[leftTooMany] != tt.missing {
			t.Errorf("of %d slices with %d endpoints each %d peers are believed and %d are too many, want %d and %d",
				tt.slices, tt.endpoints, len(got), missing[leftTooMany], tt.peers, tt.missing)
		}
		slices.Reverse(all)
		if again, _ := peersOf(peersService, all...); !slices.Equal(got, again) {
			t.Error("in another order others are believed")
		}
	}
	one := slice("peers-a")
	one.Endpoints = make([]discoveryv1.Endpoint, discovery.MaxPeers+1)
	for i := range one.Endpoints {
		one.Endpoints[i].Addresses = []string{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String()}
	}
	if got, missing := peersOf(peersService, one); len(got) != discovery.MaxPeers || missing[leftTooMany] != 1 {
		t.Errorf("of one slice %d peers are believed and %d are too many", len(got), missing[leftTooMany])
	}
}

// Whatever slices say, what is believed can be dialled, is sorted, bounded, and does not depend on their order.
func FuzzPeers(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no fixtures", err)
	}
	for _, file := range files {
		var list discoveryv1.EndpointSliceList
		for _, s := range fixture(f, strings.TrimSuffix(filepath.Base(file), ".yaml")) {
			list.Items = append(list.Items, *s)
		}
		content, err := list.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content, "media", "sidestream-peers", "sidestream-peer")
		f.Add(content, "media", "sfu", "http")
	}
	f.Fuzz(func(t *testing.T, content []byte, namespace, service, port string) {
		var list discoveryv1.EndpointSliceList
		if list.Unmarshal(content) != nil {
			return
		}
		seen := map[string]bool{}
		var all []*discoveryv1.EndpointSlice
		for i := range list.Items {
			if s := &list.Items[i]; !seen[s.Namespace+"/"+s.Name] { // as the API server sees to
				seen[s.Namespace+"/"+s.Name] = true
				all = append(all, s)
			}
		}
		want := wanted{namespace: namespace, service: service, port: port}
		got, missing := peersOf(want, all...)
		if len(got) > discovery.MaxPeers {
			t.Errorf("%d peers are believed", len(got))
		}
		for i := 1; i < len(got); i++ {
			if got[i-1].Addr.Compare(got[i].Addr) >= 0 {
				t.Errorf("%v comes before %v", got[i-1], got[i])
			}
		}
		for _, p := range got {
			ip := p.Addr.Addr()
			if !ip.IsValid() || ip.Is4In6() || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() || p.Addr.Port() == 0 {
				t.Errorf("%v cannot be dialled", p.Addr)
			}
			if len(p.Cluster) > maxCluster {
				t.Errorf("a cluster's name has %d letters", len(p.Cluster))
			}
		}
		for reason, n := range missing {
			if n <= 0 {
				t.Errorf("%d are left out because of %s", n, reason)
			}
		}
		slices.Reverse(all)
		if again, _ := peersOf(want, all...); !slices.Equal(got, again) {
			t.Errorf("in another order they say %v instead of %v", again, got)
		}
	})
}

func TestReady(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		ready, terminating *bool
		want               bool
	}{
		{nil, nil, true}, {&yes, nil, true}, {&no, nil, false}, {&yes, &no, true}, {nil, &yes, false}, {&yes, &yes, false}, {&no, &yes, false},
	} {
		c := discoveryv1.EndpointConditions{Ready: tt.ready, Terminating: tt.terminating}
		if got := ready(c); got != tt.want {
			t.Errorf("%v is ready: %t", c, got)
		}
	}
}
