package cascade

import (
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// three are an origin in singapore, and two nodes of germany, of which g1 carries its stream "show" for two viewers and g2 wants it.
func three() *Cascade {
	peers := func(ids ...string) (all []Peer) {
		for _, id := range ids {
			all = append(all, Peer{Node: id, Cluster: map[byte]string{'s': "singapore", 'g': "germany"}[id[0]], Address: id + ":18443", Connected: true, RTTMs: 160})
		}
		return all
	}
	report := func(id, cluster string, others ...string) *Report {
		return &Report{
			Node: id, Cluster: cluster, Adapter: "mediamtx", Ready: true, Peers: peers(others...), Sources: []Source{{Name: "endpointslice", Peers: 2}},
			Stream: &Stream{Name: "show", Origin: "s1", Holders: 2, Epoch: 3, Export: true, Import: true},
		}
	}
	c := &Cascade{At: noon, Here: "g1", Nodes: []Node{
		{Node: "g1", Cluster: "germany", Connected: true, Report: report("g1", "germany", "s1", "g2")},
		{Node: "g2", Cluster: "germany", Connected: true, Report: report("g2", "germany", "s1", "g1")},
		{Node: "s1", Cluster: "singapore", Connected: true, Report: report("s1", "singapore", "g1", "g2")},
	}}
	c.Nodes[2].Report.Published = []Publication{{Stream: "show", Epoch: 3, Counts: true, Viewers: 1}}
	for _, n := range c.Nodes[:2] {
		n.Report.Stream.Viewers, n.Report.Stream.Demand = 2, true
		n.Report.Relays = []Relay{{
			Stream: "show", State: "live", Why: "this node pulls it for the cluster", Parent: "s1", Path: []string{"s1", n.Node}, Viewers: 2,
			Steps: []Step{
				{"play", 0},
				{"play answered", 330},
				{"parent connected", 700},
				{"first packet", 710},
				{"first key frame", 900},
				{"publish", 901},
				{"publish answered", 905},
				{"server connected", 920},
				{"live", 921},
			},
		}}
	}
	return c
}

// failing makes g2's last attempt one that failed.
func failing(side, step string, code int) func(*Cascade) {
	return func(c *Cascade) {
		r := c.Nodes[1].Report
		r.Relays[0] = Relay{Stream: "show", State: "retrying", Parent: "s1", LastError: "x"}
		r.Stream.Failure = &Failure{Side: side, Step: step, Code: code, Text: side + ": " + step}
		r.Stream.NextRetry = noon.Add(2 * time.Second)
	}
}

// g2 changes the report of that node.
func g2(change func(*Report)) func(*Cascade) { return func(c *Cascade) { change(c.Nodes[1].Report) } }

// unheard has a node not know the stream.
func unheard(r *Report) {
	r.Stream.Origin, r.Stream.Holders, r.Stream.Viewers, r.Relays = "", 0, 0, nil
}

func unconnected(condition, text string) func(*Cascade) {
	return g2(func(r *Report) {
		unheard(r)
		r.Peers[0] = Peer{Node: "s1", Cluster: "singapore", Address: "s1:18443", Error: text, Conditions: []string{condition}}
	})
}

// Each fault is named by its stage, with words that say what to do.
func TestFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Cascade)
		state  State
		stage  string
		words  string // of the text or the hint
	}{
		"all is well":      {func(*Cascade) {}, OK, StageViewers, "2 viewers here"},
		"server down":      {g2(func(r *Report) { r.ServerError = "connection refused" }), Failed, StageServer, "SIDESTREAM_ADAPTER_URL"},
		"node leaves":      {g2(func(r *Report) { r.Draining = true }), Failed, StageServer, "about to leave"},
		"not ready":        {g2(func(r *Report) { r.Ready = false }), Failed, StageServer, "/readyz"},
		"node unreachable": {func(c *Cascade) { c.Nodes[1] = Node{Node: "g2", Cluster: "germany", Error: "no route to host"} }, Failed, StageHandshake, "no route"},
		"old version":      {func(c *Cascade) { c.Nodes[1].Report, c.Nodes[1].Error = nil, "its version is too old for that" }, Failed, StageHandshake, "Upgrade"},
		"nobody publishes": {func(c *Cascade) {
			c.Nodes[2].Report.Published = nil
			for _, n := range c.Nodes {
				n.Report.Stream.Origin, n.Report.Relays = "", nil
			}
		}, Failed, StagePublication, "look at the name"},
		"another publication counts": {g2(func(r *Report) { r.Published = []Publication{{Stream: "show", Epoch: 2}} }), Failed, StagePublication, "SIDESTREAM_PUBLISH_CONFLICT"},
		"source fails": {g2(func(r *Report) {
			unheard(r)
			r.Peers, r.Sources = nil, []Source{{Name: "endpointslice", Error: "forbidden"}}
		}), Failed, StageDiscovery, "EndpointSlices"},
		"no peers":         {g2(func(r *Report) { unheard(r); r.Peers, r.Sources = nil, nil }), Failed, StageDiscovery, "global"},
		"origin not found": {g2(func(r *Report) { unheard(r); r.Peers = r.Peers[1:] }), Failed, StageDiscovery, "singapore/s1"},
		"wrong authority":  {unconnected("certificate-authority", "unknown authority"), Failed, StageHandshake, "same CA"},
		"expired":          {unconnected("certificate-expired", "expired"), Failed, StageHandshake, "renew"},
		"clock behind":     {unconnected("certificate-expired", "the peer's certificate is not valid before 2026-01-02T13:00:00Z"), Failed, StageHandshake, "NTP"},
		"clock ahead":      {unconnected("certificate-expired", "the peer refuses this node's certificate as expired or not yet valid: renew it, or set the clocks right"), Failed, StageHandshake, "a clock is wrong"},
		"no more viewers":  {g2(func(r *Report) { r.Stream.Full = "SIDESTREAM_GATEWAY_MAX_PLAYS" }), Failed, StageViewers, "SIDESTREAM_GATEWAY_PLACEMENT"},
		"plaintext":        {unconnected("plaintext", "no TLS"), Failed, StageHandshake, "SIDESTREAM_PEER_SECURITY"},
		"refused":          {unconnected("refused-identity", "another namespace"), Failed, StageHandshake, "namespace"},
		"unreachable":      {unconnected("unreachable", "i/o timeout"), Failed, StageHandshake, "18443"},
		"may not leave":    {func(c *Cascade) { g2(unheard)(c); c.Nodes[2].Report.Stream.Export = false }, Failed, StagePolicy, "SIDESTREAM_RELAY_EXPORT at singapore"},
		"may not enter":    {g2(func(r *Report) { unheard(r); r.Stream.Import = false }), Failed, StagePolicy, "SIDESTREAM_RELAY_IMPORT at germany"},
		"not heard of":     {g2(unheard), Failed, StageAnnouncement, "holds-not-believed"},
		"codec known":      {g2(func(r *Report) { r.Stream.Refused = "no VP9" }), Failed, StageCodec, "docs/adapters.md"},
		"nobody wants it":  {g2(func(r *Report) { r.Relays, r.Stream.Demand = nil, false }), Waiting, StageDemand, "SIDESTREAM_RELAY_PINS"},
		"asks":             {g2(func(r *Report) { r.Relays[0].State, r.Stream.Owner = "asking", "g1" }), Waiting, StageElection, "germany/g1"},
		"waits": {g2(func(r *Report) {
			r.Relays[0] = Relay{Stream: "show", State: "waiting", Why: "the pull was granted to another"}
		}), Waiting, StageElection, "granted"},
		"pull refused":         {failing("parent", "grant", 0), Failed, StageAuthority, "may not leave"},
		"play unauthorised":    {failing("parent", "play", 401), Failed, StageAuthority, "SIDESTREAM_ADAPTER_PLAY_TOKEN"},
		"stream gone":          {failing("parent", "play", 404), Failed, StagePull, "no such stream"},
		"no codec at parent":   {failing("parent", "play", 406), Failed, StageCodec, "offers"},
		"parent full":          {failing("parent", "play", 503), Failed, StagePull, "no room"},
		"TCP barred":           {failing("parent", "play", 0), Failed, StagePull, "TCP between the clusters"},
		"UDP barred":           {failing("parent", "connect", 0), Failed, StageICE, "UDP"},
		"no packet":            {failing("parent", "wait for media", 0), Failed, StagePacket, "sends nothing"},
		"no key frame":         {failing("parent", "wait for a key frame", 0), Failed, StageKeyFrame, "key frame"},
		"publish unauthorised": {failing("local server", "publish", 401), Failed, StageRepublish, "SIDESTREAM_ADAPTER_TOKEN"},
		"name taken":           {failing("local server", "publish", 409), Failed, StageRepublish, "two publishers"},
		"codec refused":        {failing("local server", "publish", 415), Failed, StageCodec, "codecs"},
		"server's media port":  {failing("local server", "connect", 0), Failed, StageICE, "media port"},
		"connecting": {g2(func(r *Report) {
			r.Relays[0].State, r.Relays[0].Steps = "connecting", r.Relays[0].Steps[:2]
		}), Waiting, StageICE, "connecting"},
	} {
		t.Run(name, func(t *testing.T) {
			c := three()
			tt.change(c)
			e := Explain(*c, "show", "germany")
			i := slices.IndexFunc(e.Accounts, func(a Account) bool { return a.Node == "g2" })
			if i < 0 || len(e.Accounts) != 2 {
				t.Fatalf("%+v", e)
			}
			a := e.Accounts[i]
			last := a.Stages[len(a.Stages)-1]
			if a.State != tt.state || a.Stage != tt.stage || !strings.Contains(last.Text+" "+last.Hint, tt.words) {
				t.Errorf("%s at %s: %s (%s)", a.State, a.Stage, last.Text, last.Hint)
			}
			for _, s := range a.Stages[:len(a.Stages)-1] {
				if s.State != OK {
					t.Errorf("it goes on after %+v", s)
				}
			}
			if last.State == Failed && last.Hint == "" {
				t.Errorf("no hint for %+v", last)
			}
			if other := e.Accounts[1-i]; name != "nobody publishes" && other.State != OK {
				t.Errorf("the other node of the cluster: %+v", other)
			}
		})
	}
}

// The origin's account is short, and each cluster's is there when none is asked for.
func TestExplainAll(t *testing.T) {
	e := Explain(*three(), "show", "")
	if len(e.Accounts) != 3 || e.Accounts[2].Node != "s1" || e.Accounts[2].Stage != StageViewers || len(e.Accounts[2].Stages) != 3 {
		t.Errorf("%+v", e)
	}
	way := e.Accounts[0].Stages[slices.IndexFunc(e.Accounts[0].Stages, func(s Stage) bool { return s.Name == StagePull })]
	if way.Text != "fetched by the way singapore/s1 → germany/g1" || way.TookMs != 330 {
		t.Errorf("%+v", way)
	}
}

// Whatever nodes say, an account comes of it.
func FuzzExplain(f *testing.F) {
	f.Add("show", "live", "s1", "parent", "play", 404, uint8(0))
	f.Add("", "waiting", "", "", "", 0, uint8(255))
	f.Fuzz(func(t *testing.T, stream, state, parent, side, step string, code int, bits uint8) {
		c := three()
		r := c.Nodes[1].Report
		r.Relays[0].Stream, r.Relays[0].State, r.Relays[0].Parent = stream, state, parent
		r.Stream.Failure = &Failure{Side: side, Step: step, Code: code}
		if bits&1 > 0 {
			r.Relays[0].Steps = nil
		}
		if bits&2 > 0 {
			r.Peers = nil
		}
		if bits&4 > 0 {
			c.Nodes[2].Report = nil
		}
		if bits&8 > 0 {
			r.Stream.Origin = parent
		}
		if bits&16 > 0 {
			c.Nodes[0].Report.Stream = nil
		}
		for _, a := range Explain(*c, stream, "").Accounts {
			if len(a.Stages) == 0 || a.Stage == "" {
				t.Fatalf("%+v", a)
			}
		}
	})
}
