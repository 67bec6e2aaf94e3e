package gateway

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
)

// Rates bound how many sessions may be asked for in a minute; as many may come at once. Plays and publications are counted
// apart from pulls, which are counted by the child's address. 0: no bound.
type Rates struct {
	PerAddress int // from one IPv4 address or one IPv6 /64
	PerStream  int // plays, or pulls, of one stream
}

// Why a session is not let in: the reasons in metrics.
const (
	rateAddress = "rate_address"
	rateStream  = "rate_stream"
)

// maxPaced bounds the table of those who are counted. Where there are more, some begin anew: what tries from so many addresses is
// not to be stopped by address.
const maxPaced = 1 << 16

// pace is a token bucket for each key. What is kept of one is the moment at which its bucket is full again (the generic cell rate
// algorithm): a key whose moment has passed needs no place in the table. A nil pace lets everything pass.
type pace struct {
	every time.Duration // for one
	room  time.Duration // for as many at once
	most  int           // keys

	mu   sync.Mutex
	full map[string]time.Time
}

// newPace allows so many in a minute; nil where that is 0.
func newPace(perMinute int) *pace {
	if perMinute <= 0 {
		return nil
	}
	return &pace{every: time.Minute / time.Duration(perMinute), room: time.Minute, most: maxPaced, full: map[string]time.Time{}}
}

// take counts one, or says how long it has to wait.
func (p *pace) take(key string, now time.Time) (wait time.Duration) {
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
func (p *pace) forget(now time.Time) {
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

// paces are those of one kind of session.
type paces struct{ address, stream *pace }

func newPaces(r Rates) paces { return paces{newPace(r.PerAddress), newPace(r.PerStream)} }

// tooSoon answers with 429 (RFC 6585, section 4) who asks too often, and says so. The stream "" is not counted.
func (g *Gateway) tooSoon(w *recorder, r *http.Request, of paces, stream adapters.StreamID) bool {
	now, from := time.Now(), ""
	if a := addressOf(g.client(w, r)); a.IsValid() {
		from = a.String()
	}
	reason, wait := rateAddress, of.address.take(from, now)
	if wait == 0 {
		reason, wait = rateStream, of.stream.take(string(stream), now)
	}
	if wait == 0 {
		return false
	}
	g.metrics.refused(reason)
	seconds := int((wait + time.Second - 1) / time.Second)
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
	what := "Too many sessions come from this address"
	if reason == rateStream {
		what = "Too many ask for this stream"
	}
	g.refuse(w, r, http.StatusTooManyRequests, "Too many requests", what+"; try again after the seconds in Retry-After.")
	return true
}
