package discovery

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Static is a Source of a fixed list of addresses. Names in it are looked up again every few seconds; one that cannot be
// resolved keeps the addresses that it had.
type Static struct{ list *list }

// NewStatic takes a list of host:port, where host is an IP address or a name. A nil logger is silent.
func NewStatic(addresses []string, logger *slog.Logger) (*Static, error) {
	l := newList(logger)
	var errs []error
	for _, a := range addresses {
		errs = append(errs, l.add(a))
	}
	return &Static{l}, errors.Join(errs...)
}

// Run reports the list, as Source says.
func (s *Static) Run(ctx context.Context, report func([]Peer)) error { return s.list.Run(ctx, report) }

// Trouble tells names that cannot be resolved, as Troubled says.
func (s *Static) Trouble() (since time.Time, err error) { return s.list.trouble.Trouble() }
