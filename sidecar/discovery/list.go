package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// resolveEvery is how often names are looked up again; each time a little off, so that nodes do not ask together.
	resolveEvery = 5 * time.Second
	// resolveTimeout bounds the look-up of one name, with all that it points to.
	resolveTimeout = 5 * time.Second
	// lookUps bounds how many names, and how many that one points to, are looked up at a time.
	lookUps = 8
)

// resolver is *net.Resolver.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// list is fixed addresses, and names that are looked up again every few seconds. A name that cannot be resolved keeps the
// addresses that it had.
type list struct {
	fixed    []netip.AddrPort
	names    []name
	known    map[name][]netip.AddrPort // what names resolved to last; Run's
	resolver resolver
	trouble  *Condition
	log      *slog.Logger
}

// name is what is looked up: the addresses of a host, or with port 0 its SRV records, which tell the ports too.
type name struct {
	host string
	port uint16
}

func newList(logger *slog.Logger) *list {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &list{known: map[name][]netip.AddrPort{}, resolver: net.DefaultResolver, trouble: &Condition{}, log: logger}
}

// add takes a peer as host:port.
func (l *list) add(address string) error {
	host, digits, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("peer address %q: %w", address, err)
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 || host == "" {
		return fmt.Errorf("peer address %q: want host:port", address)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return fmt.Errorf("peer address %q: nobody can dial %s", address, ip)
		}
		l.fixed = append(l.fixed, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	} else {
		l.names = append(l.names, name{host: host, port: uint16(port)})
	}
	return l.bound()
}

// bound refuses a list that is too long.
func (l *list) bound() error {
	if n := len(l.fixed) + len(l.names); n > MaxPeers {
		return fmt.Errorf("list peers: %d are more than the %d that are believed", n, MaxPeers)
	}
	return nil
}

// Run reports the list, as Source says.
func (l *list) Run(ctx context.Context, report func([]Peer)) error {
	report = OnChange(report)
	tell := func() {
		report(peersAt(slices.Concat(l.fixed, slices.Concat(slices.Collect(maps.Values(l.known))...))))
	}
	if len(l.names) == 0 || len(l.fixed) > 0 || len(l.known) > 0 {
		tell() // what is known without asking does not wait for an answer
	}
	if len(l.names) == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	failing := map[name]error{}
	for {
		var mu sync.Mutex
		var tasks errgroup.Group
		tasks.SetLimit(lookUps)
		for _, n := range l.names {
			tasks.Go(func() error {
				addrs, err := l.lookUp(ctx, n)
				mu.Lock()
				defer mu.Unlock()
				if ctx.Err() != nil {
					return nil
				}
				if err != nil {
					if failing[n] == nil {
						l.log.Warn("peer name not resolved", "name", n.host, "error", err)
					}
					failing[n] = err
					addrs = append(addrs, l.known[n]...)
				} else {
					delete(failing, n)
				}
				if len(addrs) > 0 || err == nil {
					l.known[n] = bounded(addrs)
					tell()
				}
				return nil
			})
		}
		_ = tasks.Wait() // the tasks return no errors
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.trouble.Set(troubleOf(failing))
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

// troubleOf makes one error of those of several names, of which it quotes one.
func troubleOf(failing map[name]error) error {
	if len(failing) == 0 {
		return nil
	}
	first := slices.MinFunc(slices.Collect(maps.Keys(failing)), func(a, b name) int { return strings.Compare(a.host, b.host) })
	err := fmt.Errorf("resolve %s: %w", first.host, failing[first])
	if len(failing) > 1 {
		err = fmt.Errorf("%w; so it is with %d more names", err, len(failing)-1)
	}
	return err
}

// lookUp resolves one name. With an error it may return the part of the addresses that could be had.
func (l *list) lookUp(ctx context.Context, n name) ([]netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	if n.port != 0 {
		return l.addresses(ctx, n.host, n.port)
	}
	// The resolver leaves out records with names that are none, and returns the others beside its error.
	_, records, err := l.resolver.LookupSRV(ctx, "", "", n.host)
	targets := map[name]bool{}
	for _, r := range records {
		// RFC 2782: a target of "." says that the service is decidedly not there.
		if r.Target != "." && r.Port != 0 && len(targets) < MaxPeers {
			targets[name{host: r.Target, port: r.Port}] = true
		}
	}
	var mu sync.Mutex
	var addrs []netip.AddrPort
	errs := []error{err}
	var tasks errgroup.Group
	tasks.SetLimit(lookUps)
	for target := range targets {
		tasks.Go(func() error {
			found, err := l.addresses(ctx, target.host, target.port)
			mu.Lock()
			defer mu.Unlock()
			addrs = append(addrs, found...)
			if err != nil && len(errs) < 3 { // enough to see what is wrong
				errs = append(errs, err)
			}
			return nil
		})
	}
	_ = tasks.Wait() // the tasks return no errors
	return addrs, errors.Join(errs...)
}

// addresses are those of a host, of both families.
func (l *list) addresses(ctx context.Context, host string, port uint16) ([]netip.AddrPort, error) {
	ips, err := l.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.AddrPort, len(ips))
	for i, ip := range ips {
		addrs[i] = netip.AddrPortFrom(ip.Unmap(), port)
	}
	return addrs, nil
}

// bounded is the sorted set of these addresses, cut where it is too long.
func bounded(addrs []netip.AddrPort) []netip.AddrPort {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	addrs = slices.Compact(addrs)
	return addrs[:min(len(addrs), MaxPeers)]
}

// peersAt are the peers at these addresses, as a sorted set. It is never nil.
func peersAt(addrs []netip.AddrPort) []Peer {
	addrs = bounded(addrs)
	peers := make([]Peer, len(addrs))
	for i, a := range addrs {
		peers[i] = Peer{Addr: a, Ready: true}
	}
	return peers
}
