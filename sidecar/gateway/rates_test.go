package gateway

import (
	"net/netip"
	"strings"
	"testing"
)

func TestRates(t *testing.T) {
	for name, tt := range map[string]struct {
		rates  Rates
		first  []string // "ADDRESS path"
		next   string
		reason string
	}{
		"address":                {Rates{PerAddress: 2}, []string{"1.1.1.1 a/whep", "1.1.1.1 b/whip"}, "1.1.1.1 c/whep", rateAddress},
		"another address":        {Rates{PerAddress: 1}, []string{"1.1.1.1 a/whep"}, "1.1.1.2 a/whep", ""},
		"IPv6 of one subscriber": {Rates{PerAddress: 1}, []string{"2001:db8::1 a/whep"}, "2001:db8::2 a/whep", rateAddress},
		"stream":                 {Rates{PerStream: 1}, []string{"1.1.1.1 a/whep"}, "2.2.2.2 a/whep", rateStream},
		"another stream":         {Rates{PerStream: 1}, []string{"1.1.1.1 a/whep"}, "1.1.1.1 b/whep", ""},
		"publishers":             {Rates{PerStream: 1}, []string{"1.1.1.1 a/whip"}, "1.1.1.1 a/whip", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "a", "b", "c")
			n := newNode(t, s, func(o *Options) {
				o.Rates, o.TrustedProxies = tt.rates, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			})
			post := func(from string) answer {
				addr, path, _ := strings.Cut(from, " ")
				return do(t, "POST", n.public.URL+"/live/"+path, offer, "X-Forwarded-For", addr)
			}
			for _, from := range tt.first {
				if got := post(from); got.Status != 201 {
					t.Fatalf("%s: %+v", from, got)
				}
			}
			s.requests()
			got := post(tt.next)
			if tt.reason == "" {
				if got.Status != 201 {
					t.Errorf("%+v", got)
				}
				return
			}
			got.problem(t, 429)
			if got.Header.Get("Retry-After") == "" || len(s.requests()) != 0 {
				t.Errorf("%+v", got)
			}
			if n.metric(t, "sidestream_gateway_refusals_total", tt.reason) != 1 {
				t.Error("not counted")
			}
		})
	}
}

// Pulls are counted apart from plays, and leave their audit line when they come too often.
func TestPullRates(t *testing.T) {
	s := newServer(t, "demo")
	tokens := NewTokens(nil)
	n := newNode(t, s, func(o *Options) { o.Tokens, o.Rates = tokens, Rates{PerAddress: 10, PerStream: 1} })
	if got := do(t, "POST", n.public.URL+"/live/demo/whep", offer); got.Status != 201 {
		t.Fatalf("%+v", got)
	}
	pull := func() answer {
		return do(t, "POST", n.peer.URL+"/whep/demo", offer, PullTokenHeader, tokens.Issue("child", "demo"))
	}
	if got := pull(); got.Status != 201 {
		t.Fatalf("%+v", got)
	}
	got := pull()
	got.problem(t, 429)
	if n.metric(t, "sidestream_gateway_pulls_total", "rate") != 1 || !strings.Contains(n.log.String(), "outcome=rate") {
		t.Errorf("%+v: %s", got, n.log)
	}
}
