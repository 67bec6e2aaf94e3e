package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"
)

// DNS is a Source of the addresses to which names resolve, of IPv4 and IPv6, such as those of a headless Service under
// cluster.local or clusterset.local. Names are looked up again every few seconds; one that cannot be resolved keeps the
// addresses that it had.
type DNS struct{ list *list }

// NewDNS takes names: host:port, whose address records are looked up; _service._tcp.NAME, whose SRV records are (RFC 2782);
// or NAME alone, which stands for _PORTNAME._tcp.NAME, as Kubernetes has it for a Service's port of that name. A nil logger
// is silent.
func NewDNS(names []string, portName string, logger *slog.Logger) (*DNS, error) {
	l := newList(logger)
	var errs []error
	for _, n := range names {
		errs = append(errs, l.addName(n, portName))
	}
	return &DNS{l}, errors.Join(errs...)
}

func (l *list) addName(given, portName string) error {
	host, _, err := net.SplitHostPort(given)
	if err != nil {
		host = given
	}
	if _, ip := netip.ParseAddr(strings.Trim(host, "[]")); ip == nil {
		return fmt.Errorf("peer name %q is an address: list it among the static peers", given)
	}
	switch {
	case err == nil:
		return l.add(given)
	case given == "" || strings.ContainsAny(given, ":/ "):
		return fmt.Errorf("peer name %q: want host:port, or a name with SRV records", given)
	case !strings.HasPrefix(given, "_"):
		given = "_" + portName + "._tcp." + given
	}
	l.names = append(l.names, name{host: given})
	return l.bound()
}

// Run reports what the names resolve to, as Source says.
func (d *DNS) Run(ctx context.Context, report func([]Peer)) error { return d.list.Run(ctx, report) }

// Trouble tells names that cannot be resolved, as Troubled says.
func (d *DNS) Trouble() (since time.Time, err error) { return d.list.trouble.Trouble() }
