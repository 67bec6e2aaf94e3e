package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

const (
	// resolveEvery is how often names are looked up again; each time a little off, so that nodes do not ask together.
	resolveEvery = 10 * time.Second
	// resolveTimeout bounds one look-up.
	resolveTimeout = 5 * time.Second
)

// resolver is *net.Resolver.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Static is a Source of a fixed list of addresses. Names in it are looked up again every few seconds; one that cannot be
// resolved keeps the addresses that it had.
type Static struct {
	fixed    []netip.AddrPort
	names    []name
	resolver resolver
	log      *slog.Logger
}

type name struct {
	host string
	port uint16
}

// NewStatic takes a list of host:port, where host is an IP address or a name. A nil logger is silent.
func NewStatic(addresses []string, logger *slog.Logger) (*Static, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Static{resolver: net.DefaultResolver, log: logger}
	var errs []error
	for _, a := range addresses {
		host, digits, err := net.SplitHostPort(a)
		if err != nil {
			errs = append(errs, fmt.Errorf("peer address %q: %w", a, err))
			continue
		}
		port, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || port == 0 || host == "" {
			errs = append(errs, fmt.Errorf("peer address %q: want host:port", a))
			continue
		}
		if ip, err := netip.ParseAddr(host); err == nil {
			s.fixed = append(s.fixed, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
			continue
		}
		s.names = append(s.names, name{host: host, port: uint16(port)})
	}
	return s, errors.Join(errs...)
}

// Run reports the list, as Source says.
func (s *Static) Run(ctx context.Context, report func([]Peer)) error {
	known := make([][]netip.AddrPort, len(s.names))
	failing := make([]bool, len(s.names))
	var last []Peer
	tell := func() {
		peers := peersAt(append([][]netip.AddrPort{s.fixed}, known...)...)
		if last == nil || !slices.Equal(peers, last) {
			last = peers
			report(slices.Clone(peers))
		}
	}
	if len(s.names) == 0 {
		tell()
		<-ctx.Done()
		return ctx.Err()
	}
	if len(s.fixed) > 0 {
		tell() // what is known without asking does not wait for an answer
	}
	for {
		for i, n := range s.names {
			addrs, err := s.lookUp(ctx, n)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				if !failing[i] {
					s.log.Warn("peer name not resolved", "name", n.host, "error", err)
				}
				failing[i] = true
				continue
			}
			known[i], failing[i] = addrs, false
		}
		tell()
		timer := time.NewTimer(resolveEvery*3/4 + rand.N(resolveEvery/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

func (s *Static) lookUp(ctx context.Context, n name) ([]netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	ips, err := s.resolver.LookupNetIP(ctx, "ip", n.host)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.AddrPort, len(ips))
	for i, ip := range ips {
		addrs[i] = netip.AddrPortFrom(ip.Unmap(), n.port)
	}
	return addrs, nil
}

// peersAt is the sorted set of peers at these addresses. It is never nil.
func peersAt(lists ...[]netip.AddrPort) []Peer {
	addrs := slices.Concat(lists...)
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	addrs = slices.Compact(addrs)
	peers := make([]Peer, len(addrs))
	for i, a := range addrs {
		peers[i] = Peer{Addr: a, Ready: true}
	}
	return peers
}
