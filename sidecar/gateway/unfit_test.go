package gateway

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sidestream-dev/sidestream/adapters"
)

var vp8 = &adapters.CodecError{MIME: "video/VP8", Takes: []string{"video/H264"}}

// A viewer of what the server does not take is told so at once, by words and without an invitation to come again: after the
// server was asked, and at a server that would let him wait for ever, before.
func TestUnfit(t *testing.T) {
	for name, waits := range map[string]bool{"server says that there is none": false, "server would wait": true} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.waits = waits
			r := newRelays(func(context.Context, adapters.StreamID) error { return fmt.Errorf("acquire demo: %w", vp8) })
			n := newNode(t, s, func(o *Options) {
				a := o.Adapter.(adapter)
				a.traits.AcceptsAndWaits = waits
				o.Adapter, o.Relays, o.Unfit = a, r, func(id adapters.StreamID) error {
					if id == "other" {
						return nil
					}
					return vp8
				}
			})
			got := do(t, "POST", n.public.URL+"/live/demo/whep", offer, "Authorization", bearer)
			got.problem(t, http.StatusUnsupportedMediaType)
			if !strings.Contains(got.Body, "video/VP8") || !strings.Contains(got.Body, "video/H264") || got.Header.Get("Retry-After") != "" {
				t.Errorf("%v %s", got.Header, got.Body)
			}
			if asked := len(s.requests()); waits != (asked == 0) {
				t.Errorf("the server was asked %d times", asked)
			}
			if n := n.metric(t, "sidestream_gateway_refusals_total", "codec"); n != 1 {
				t.Errorf("%v refusals counted", n)
			}
			if waits {
				if got := do(t, "POST", n.public.URL+"/live/other/whep", offer, "Authorization", bearer); got.Status != http.StatusCreated {
					t.Errorf("another stream: %+v", got)
				}
			}
		})
	}
}

// A server that has the stream itself is not asked what it takes.
func TestUnfitElsewhere(t *testing.T) {
	s := newServer(t, "demo")
	r := newRelays(func(context.Context, adapters.StreamID) error { return vp8 })
	n := newNode(t, s, func(o *Options) { o.Relays = r })
	if got := do(t, "POST", n.public.URL+"/live/demo/whep", offer); got.Status != http.StatusCreated {
		t.Errorf("%+v", got)
	}
}
