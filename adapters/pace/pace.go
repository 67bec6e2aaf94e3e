// Package pace bounds how often somebody may ask: what stands before publishers and viewers counts them by it.
package pace

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// most bounds the table of those who are counted. Where there are more, some begin anew: what tries from so many addresses is
// not to be stopped by address.
const most = 1 << 16

// Pace is a token bucket for each key. What is kept of one is the moment at which its bucket is full again (the generic cell rate
// algorithm): a key whose moment has passed needs no place in the table. A nil Pace lets everything pass.
type Pace struct {
	every time.Duration // for one
	room  time.Duration // for as many at once
	most  int           // keys

	mu   sync.Mutex
	full map[string]time.Time
}

// New allows each key so many in a minute, and as many at once; nil where that is 0.
func New(perMinute int) *Pace {
	if perMinute <= 0 {
		return nil
	}
	return &Pace{every: time.Minute / time.Duration(perMinute), room: time.Minute, most: most, full: map[string]time.Time{}}
}

// Take counts one, or says how long it has to wait. The key "" is not counted.
func (p *Pace) Take(key string, now time.Time) (wait time.Duration) {
	if p == nil || key == "" {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	full, known := p.full[key]
	if full.Before(now) {
		full = now
	}
	full = full.Add(p.every)
	if wait := full.Sub(now) - p.room; wait > 0 {
		return wait
	}
	if !known && len(p.full) >= p.most {
		p.forget(now)
	}
	p.full[key] = full
	return 0
}

// forget makes room: at least one in eight places.
func (p *Pace) forget(now time.Time) {
	for key, full := range p.full {
		if !full.After(now) {
			delete(p.full, key)
		}
	}
	for key := range p.full {
		if len(p.full) <= p.most-p.most/8 {
			return
		}
		delete(p.full, key)
	}
}

// Seconds are those of a wait, as Retry-After has them.
func Seconds(wait time.Duration) int { return int((wait + time.Second - 1) / time.Second) }

// Client is the address that a request comes from: the nearest one that is not trusted to say for whom it asks. A request of
// which the caller knows that a peer passed it on is taken at its word in any case. The zero value where it cannot be told.
func Client(r *http.Request, peer bool, trusted func(netip.Addr) bool) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr := from.Addr().Unmap()
	if !peer && !trusted(addr) {
		return addr
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		a, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break // what stands before it may be anybody's word
		}
		if addr = a.Unmap(); !trusted(addr) {
			break
		}
	}
	return addr
}

// Key is by what one client is counted: an IPv4 address or an IPv6 /64; the zero value for the zero address.
func Key(a netip.Addr) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits) // the bits are right for the address
	return p
}
