package bed

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
)

var (
	ownNetwork = netip.MustParsePrefix("10.0.0.0/8")
	ownPods    = binary.BigEndian.Uint32([]byte{10, 128, 0, 0}) // the first address of pods there
	ownGiven   atomic.Uint32                                    // how many have been given

	// errNotOwn is why the network is the machine's; nil in one of our own.
	errNotOwn = errors.New("TestMain does not call bed.OwnNetwork")
)

// OwnNetwork, called first in TestMain, gives a package's tests, and all that they start, a network of their own in which
// each address of 10.0.0.0/8 is this machine's: [PodIPs] has as many as a test wants, and ports are taken by nobody else.
// Nothing else can be reached from there; what has to be downloaded must be there before. The bed's binaries are built
// first, where E2E=1 asks for them.
//
// It starts the test binary anew (see [wan.Isolate]), and takes Linux and root. Where it cannot be had, OwnNetwork does
// nothing, and tests that need it are skipped by PodIPs.
func OwnNetwork() {
	if os.Getenv("E2E") == "1" {
		if _, err := Build(context.Background(), os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, "bed:", err)
		}
	}
	errNotOwn = isolate(ownNetwork)
}

// PodIPs returns n addresses for pods at which the test, or a program that it starts, can listen. They are this machine's
// and not of loopback, which EndpointSlices refuse. With [OwnNetwork] they are as many as wanted, and never given twice;
// without, those of the machine's interfaces, which are mostly one, and a test that wants more is skipped.
//
// Several pods may have one address and differ in their ports. Their own cluster's slices tell them apart by a named
// port; those that Cilium writes in other clusters do not, see TestPodsOfOneAddress.
func PodIPs(tb testing.TB, n int) []netip.Addr {
	tb.Helper()
	if errNotOwn == nil {
		ips := make([]netip.Addr, n)
		for i := range ips {
			ips[i] = netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, ownPods+ownGiven.Add(1))))
		}
		return ips
	}
	ips, err := machineIPs()
	if err != nil {
		tb.Fatal(err)
	}
	if len(ips) < n {
		tb.Skipf("this machine has %d of the %d addresses wanted for pods: %v", len(ips), n, errNotOwn)
	}
	return ips[:n]
}

// machineIPs are the IPv4 addresses of the machine that EndpointSlices take.
func machineIPs() ([]netip.Addr, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses of this machine: %w", err)
	}
	var ips []netip.Addr
	for _, a := range addresses {
		prefix, err := netip.ParsePrefix(a.String())
		if ip := prefix.Addr(); err == nil && ip.Is4() && ip.IsGlobalUnicast() && !slices.Contains(ips, ip) {
			ips = append(ips, ip)
		}
	}
	return ips, nil
}
