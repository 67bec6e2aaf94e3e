package gateway

import (
	"net/http"
	"strconv"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/pace"
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

// paces are those of one kind of session.
type paces struct{ address, stream *pace.Pace }

func newPaces(r Rates) paces { return paces{pace.New(r.PerAddress), pace.New(r.PerStream)} }

// tooSoon answers with 429 (RFC 6585, section 4) who asks too often, and says so. The stream "" is not counted.
func (g *Gateway) tooSoon(w *recorder, r *http.Request, of paces, stream adapters.StreamID) bool {
	now, from := time.Now(), ""
	if a := pace.Key(g.client(w, r)); a.IsValid() {
		from = a.String()
	}
	reason, wait := rateAddress, of.address.Take(from, now)
	if wait == 0 {
		reason, wait = rateStream, of.stream.Take(string(stream), now)
	}
	if wait == 0 {
		return false
	}
	g.metrics.refused(reason)
	w.Header().Set("Retry-After", strconv.Itoa(pace.Seconds(wait)))
	what := "Too many sessions come from this address"
	if reason == rateStream {
		what = "Too many ask for this stream"
	}
	g.refuse(w, r, http.StatusTooManyRequests, "Too many requests", what+"; try again after the seconds in Retry-After.")
	return true
}
