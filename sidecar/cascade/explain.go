package cascade

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The stages on a stream's way to a viewer, in their order. They are the names of troubleshooting's sections.
const (
	StageServer       = "media server"
	StagePublication  = "publication"
	StageDiscovery    = "discovery"
	StageHandshake    = "handshake"
	StageAnnouncement = "announcement"
	StagePolicy       = "policy"
	StageCodec        = "codec"
	StageDemand       = "demand"
	StageElection     = "election"
	StageAuthority    = "authorisation"
	StagePull         = "pull"
	StageICE          = "ICE"
	StagePacket       = "first packet"
	StageKeyFrame     = "first key frame"
	StageRepublish    = "republish"
	StageViewers      = "viewers"
)

// State is how a stage stands.
type State string

// The states. A stage that waits is not wrong: it needs time, or somebody who wants the stream.
const (
	OK      State = "ok"
	Waiting State = "waiting"
	Failed  State = "failed"
)

// Stage is one on a stream's way to one node.
type Stage struct {
	Name   string  `json:"name"`
	State  State   `json:"state"`
	Who    string  `json:"who,omitempty"` // the node that it is about, where that is another
	TookMs float64 `json:"tookMs,omitempty"`
	Text   string  `json:"text"`
	Hint   string  `json:"hint,omitempty"` // what to do
}

// Account is how a stream stands at one node: its stages up to the one that fails or waits, or to the viewers.
type Account struct {
	Node    string  `json:"node"`
	Cluster string  `json:"cluster"`
	State   State   `json:"state"`
	Stage   string  `json:"stage"` // the last one
	Stages  []Stage `json:"stages"`
}

// Explanation says for each node where a stream is on its way, and why it goes no further.
type Explanation struct {
	Stream   string    `json:"stream"`
	At       time.Time `json:"at"`
	Accounts []Account `json:"accounts"`
}

// Explain accounts for a stream at all nodes of a cluster, or with "" of all clusters, from reports in which it was asked about.
func Explain(c Cascade, stream, cluster string) Explanation {
	e := Explanation{Stream: stream, At: c.At, Accounts: []Account{}}
	w := world{Cascade: c, stream: stream}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if n.Report != nil && n.Report.Stream != nil && slices.ContainsFunc(n.Report.Published, w.counts) {
			w.origin = n
		}
	}
	for i := range c.Nodes {
		if n := &c.Nodes[i]; cluster == "" || n.Cluster == cluster {
			e.Accounts = append(e.Accounts, w.account(n))
		}
	}
	slices.SortFunc(e.Accounts, func(a, b Account) int { return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Node, b.Node)) })
	return e
}

// world is what accounts are made from.
type world struct {
	Cascade
	stream string
	origin *Node // where the stream is published; nil: not known
}

func (w *world) counts(p Publication) bool { return p.Stream == w.stream && p.Counts }

func (w *world) node(id string) *Node {
	i := slices.IndexFunc(w.Nodes, func(n Node) bool { return n.Node == id })
	if i < 0 {
		return nil
	}
	return &w.Nodes[i]
}

// called is a node for people: its cluster and id.
func (w *world) called(id string) string {
	if n := w.node(id); n != nil && n.Cluster != "" {
		return n.Cluster + "/" + id
	}
	return id
}

// account goes from stage to stage until one ends it.
func (w *world) account(n *Node) Account {
	a := Account{Node: n.Node, Cluster: n.Cluster}
	if n.Report == nil || n.Report.Stream == nil {
		text := cmp.Or(n.Error, "it is not connected to the node that asks")
		a.Stages = []Stage{{
			Name: StageHandshake, State: Failed, Text: "This node cannot be asked: " + text, Hint: hintOfConnection(nil, text),
		}}
	} else {
		for _, stage := range []func(*Node) []Stage{
			w.server, w.publication, w.found, w.announced, w.wanted, w.elected, w.attempted, w.carried,
		} {
			more := stage(n)
			a.Stages = append(a.Stages, more...)
			if len(more) > 0 && (more[len(more)-1].State != OK || more[len(more)-1].Name == StageViewers) {
				break
			}
		}
	}
	last := a.Stages[len(a.Stages)-1]
	a.State, a.Stage = last.State, last.Name
	return a
}

func one(name string, state State, text, hint string) []Stage {
	return []Stage{{Name: name, State: state, Text: text, Hint: hint}}
}

func (w *world) server(n *Node) []Stage {
	switch r := n.Report; {
	case r.ServerError != "":
		return one(StageServer, Failed, r.Adapter+" cannot be asked for its streams: "+r.ServerError,
			"See that the media server runs, and that SIDESTREAM_ADAPTER_URL and its credentials are right; sidestream probe tries it.")
	case r.Draining:
		return one(StageServer, Failed, "This node is about to leave, and takes nothing new.", "Wait for the pod that replaces it.")
	case !r.Ready:
		return one(StageServer, Failed, "This node is not ready.", "Its /readyz says why.")
	default:
		return one(StageServer, OK, r.Adapter+" answers", "")
	}
}

// publication ends the account of the origin, and of all where nobody publishes.
func (w *world) publication(n *Node) []Stage {
	if i := slices.IndexFunc(n.Report.Published, func(p Publication) bool { return p.Stream == w.stream }); i >= 0 {
		p, s := n.Report.Published[i], n.Report.Stream
		switch {
		case !p.Counts:
			return one(StagePublication, Failed, fmt.Sprintf("It is published here too (epoch %d), and that of %s counts.", p.Epoch, w.called(s.Origin)),
				"Two publish under one name: stop one of them, or decide by SIDESTREAM_PUBLISH_CONFLICT.")
		case s.Lacks != "":
			return append(one(StagePublication, OK, "published here, but plays do not give all of it: "+s.Lacks, ""), w.viewers(n, p.Viewers)...)
		}
		return append(one(StagePublication, OK, fmt.Sprintf("published here, epoch %d", p.Epoch), ""), w.viewers(n, p.Viewers)...)
	}
	switch {
	case w.origin != nil:
		return one(StagePublication, OK, "published at "+w.called(w.origin.Node), "")
	case n.Report.Stream.Origin != "":
		return one(StagePublication, OK, "published at "+w.called(n.Report.Stream.Origin)+", which cannot be asked", "")
	default:
		hint := "Publish it, and look at the name: it is the last part of the WHIP address, with case and slashes."
		for _, o := range w.Nodes {
			if o.Report == nil {
				hint += fmt.Sprintf(" %s/%s could not be asked.", o.Cluster, o.Node)
			}
		}
		return one(StagePublication, Failed, "Nobody is known to publish it.", hint)
	}
}

// found is whether the node knows where the origin is, and talks to it.
func (w *world) found(n *Node) []Stage {
	r := n.Report
	var stages []Stage
	for _, s := range r.Sources {
		if s.Error != "" && s.Peers == 0 {
			return one(StageDiscovery, Failed, fmt.Sprintf("Peers cannot be found by %s: %s", s.Name, s.Error), hintOfSource(s.Name))
		}
	}
	if len(r.Peers) == 0 {
		return one(StageDiscovery, Failed, "No peer is found at all.", hintOfSource(""))
	}
	if w.origin == nil {
		return nil // what the node knows is all there is
	}
	i := slices.IndexFunc(r.Peers, func(p Peer) bool { return p.Node == w.origin.Node && p.Connected })
	if i < 0 {
		i = slices.IndexFunc(r.Peers, func(p Peer) bool { return p.Node == w.origin.Node })
	}
	if i < 0 {
		// Whoever has not answered may be it.
		i = slices.IndexFunc(r.Peers, func(p Peer) bool {
			return p.Node == "" && !p.Connected && (p.Cluster == "" || p.Cluster == w.origin.Cluster)
		})
		if i < 0 {
			return one(StageDiscovery, Failed, "It does not find "+w.called(w.origin.Node)+".", hintOfSource(""))
		}
	}
	stages = append(stages, Stage{Name: StageDiscovery, State: OK, Text: fmt.Sprintf("%d peers are found", len(r.Peers))})
	p := r.Peers[i]
	if !p.Connected {
		text := cmp.Or(p.Error, "it does not answer")
		return append(stages, Stage{
			Name: StageHandshake, State: Failed, Who: w.origin.Node, Text: fmt.Sprintf("%s at %s is not connected: %s", w.called(w.origin.Node), p.Address, text),
			Hint: hintOfConnection(p.Conditions, text),
		})
	}
	return append(stages, Stage{
		Name: StageHandshake, State: OK, Who: w.origin.Node, Text: fmt.Sprintf("connected to %s, %.0f ms away", w.called(w.origin.Node), p.RTTMs),
	})
}

// announced is whether the node has heard of the stream and may have it.
func (w *world) announced(n *Node) []Stage {
	s := n.Report.Stream
	switch {
	case s.Refused != "":
		return one(StageCodec, Failed, "The media server here does not take it: "+s.Refused,
			"Publish another codec, or run a media server here that takes this one: docs/adapters.md has the table.")
	case s.Origin != "":
		return one(StageAnnouncement, OK, fmt.Sprintf("%d nodes are known to have it, epoch %d", s.Holders, s.Epoch), "")
	case w.origin != nil && w.origin.Cluster != n.Cluster && !w.origin.Report.Stream.Export:
		return []Stage{{
			Name: StagePolicy, State: Failed, Who: w.origin.Node, Text: "It may not leave " + w.origin.Cluster + ".",
			Hint: "SIDESTREAM_RELAY_EXPORT at " + w.origin.Cluster + " bars this name.",
		}}
	case w.origin != nil && w.origin.Cluster != n.Cluster && !s.Import:
		return one(StagePolicy, Failed, "Streams of other clusters with this name are not taken here.", "SIDESTREAM_RELAY_IMPORT at "+n.Cluster+" bars this name.")
	default:
		return one(StageAnnouncement, Failed, "It is published, and this node has not heard of it.",
			"If this lasts for more than a second, look for holds-not-believed or flooding in sidestream peers.")
	}
}

func (w *world) wanted(n *Node) []Stage {
	s := n.Report.Stream
	if w.relay(n) == nil && !s.Demand {
		return one(StageDemand, Waiting, "Nobody wants it here, so it is not fetched.", "Play it at this cluster's gateway, or pin it by SIDESTREAM_RELAY_PINS.")
	}
	return one(StageDemand, OK, fmt.Sprintf("%s here", plural(s.Viewers, "viewer")), "")
}

func (w *world) relay(n *Node) *Relay {
	i := slices.IndexFunc(n.Report.Relays, func(r Relay) bool {
		return r.Stream == w.stream && r.Parent != "" && r.State != "waiting" && r.State != "asking"
	})
	if i < 0 {
		return nil
	}
	return &n.Report.Relays[i]
}

// elected is whether it is this node's turn to fetch the stream.
func (w *world) elected(n *Node) []Stage {
	s := n.Report.Stream
	i := slices.IndexFunc(n.Report.Relays, func(r Relay) bool { return r.Stream == w.stream })
	if i < 0 {
		return one(StageElection, Waiting, "It was just asked for.", "")
	}
	switch r := n.Report.Relays[i]; r.State {
	case "asking":
		return []Stage{{Name: StageElection, State: Waiting, Who: s.Owner, Text: "It asks " + w.called(s.Owner) + " who fetches it for the cluster.", Hint: r.Why}}
	case "waiting":
		if s.Failure == nil {
			return []Stage{{Name: StageElection, State: Waiting, Who: r.Parent, Text: "It waits: " + r.Why + "."}}
		}
	}
	return one(StageElection, OK, cmp.Or(n.Report.Relays[i].Why, "it is this node's turn"), "")
}

// attempted is where the last attempt ended, if none is better since.
func (w *world) attempted(n *Node) []Stage {
	s := n.Report.Stream
	if r := w.relay(n); r != nil && r.State != "retrying" || s.Failure == nil {
		return nil
	}
	f := s.Failure
	stage, hint := placeOf(*f)
	text := f.Text
	if !s.NextRetry.IsZero() && s.NextRetry.After(w.At) {
		text += fmt.Sprintf(" (again in %s)", s.NextRetry.Sub(w.At).Round(100*time.Millisecond))
	}
	return []Stage{{Name: stage, State: Failed, Text: text, Hint: hint}}
}

// placeOf names the stage of a failure, and what to do about it.
func placeOf(f Failure) (stage, hint string) {
	local := f.Side == "local server"
	switch {
	case f.Step == "grant":
		return StageAuthority, "The parent says why it does not let this node pull: a stream that may not leave, or one that it has no more."
	case local && (f.Code == 401 || f.Code == 403):
		return StageRepublish, "The media server wants credentials for publishing: set SIDESTREAM_ADAPTER_TOKEN, or _USER and _PASSWORD."
	case local && f.Code == 409:
		return StageRepublish, "Somebody publishes under this name at the media server here: two publishers have one name."
	case local && (f.Code == 406 || f.Code == 415 || f.Code == 422 || f.Code == 400 || strings.Contains(f.Text, "codec")):
		return StageCodec, "The media server here does not take what is offered: look at the codecs that it is configured for."
	case local && f.Step == "connect":
		return StageICE, "The sidecar reaches the media server's HTTP and not its media port: look at the addresses and UDP ports that it offers."
	case local:
		return StageRepublish, "See that the media server runs, and what its log says of the publication."
	case f.Code == 401 || f.Code == 403:
		return StageAuthority, "The parent's media server, or its sidecar, does not take the pull's credentials: see SIDESTREAM_ADAPTER_PLAY_TOKEN there."
	case f.Code == 404:
		return StagePull, "The parent's media server has no such stream any more."
	case f.Code == 406 || f.Code == 415 || f.Code == 422:
		return StageCodec, "The parent's media server does not give the stream in a codec that this node offers."
	case f.Code == 503 || f.Code == 429:
		return StagePull, "The parent has no room: see its limits, or add nodes there."
	case f.Step == "play":
		return StagePull, "The parent's peer port (18443) does not answer the pull: look at NetworkPolicies and firewalls for TCP between the clusters."
	case f.Step == "connect":
		return StageICE, "No UDP gets through between the sidecar and the parent's media server: look at NetworkPolicies and firewalls for UDP, at the " +
			"addresses that the server offers (SIDESTREAM_POD_IP there), and at the path's MTU."
	case f.Step == "wait for media":
		return StagePacket, "The parent accepted, and sends nothing: its publisher may have stopped, or its server wants another permission."
	case f.Step == "wait for a key frame":
		return StageKeyFrame, "Packets come, and no key frame: the publisher makes too few, or the parent's server does not pass requests on (docs/adapters.md)."
	default:
		return StagePull, "It flowed, and stopped: see the parent's account."
	}
}

// carried are the steps of the relay that runs.
func (w *world) carried(n *Node) []Stage {
	r := w.relay(n)
	if r == nil {
		return one(StagePull, Waiting, "It is about to be fetched.", "")
	}
	path := make([]string, len(r.Path))
	for i, id := range r.Path {
		path[i] = w.called(id)
	}
	took := map[string]float64{}
	for i, s := range r.Steps {
		if i > 0 {
			took[s.Name] = s.Ms - r.Steps[i-1].Ms
		}
	}
	var stages []Stage
	for _, s := range []struct{ step, stage, text, missing string }{
		{"play answered", StagePull, "the parent answered", "The parent has not answered yet."},
		{"parent connected", StageICE, "connected to the parent's media server", "It is connecting to the parent's media server."},
		{"first packet", StagePacket, "the first packet came", "No packet has come yet."},
		{"first key frame", StageKeyFrame, "the first key frame came", ""},
		{"live", StageRepublish, "it flows into the media server here", "It is not published into the media server here yet."},
	} {
		ms, ok := took[s.step]
		if !ok && s.missing == "" {
			continue // sound alone has none
		}
		if !ok && r.State != "live" {
			return append(stages, Stage{Name: s.stage, State: Waiting, Who: r.Parent, Text: s.missing})
		}
		stages = append(stages, Stage{Name: s.stage, State: OK, Who: r.Parent, TookMs: ms, Text: s.text})
	}
	stages[0].Text = "fetched by the way " + strings.Join(path, " → ")
	if r.State != "live" {
		return append(stages, Stage{Name: StageRepublish, State: Waiting, Text: "It is " + r.State + "."})
	}
	return append(stages, w.viewers(n, r.Viewers)...)
}

// viewers ends an account: who plays, and whether another may.
func (w *world) viewers(at *Node, n int) []Stage {
	if bound := at.Report.Stream.Full; bound != "" {
		return one(StageViewers, Failed, "It is here, and another viewer is turned away: "+bound+" is reached.",
			"Raise "+bound+" there, add nodes to the cluster, or have SIDESTREAM_GATEWAY_PLACEMENT spread viewers over them.")
	}
	if n < 0 {
		return one(StageViewers, OK, "the media server does not count its viewers", "")
	}
	return one(StageViewers, OK, plural(n, "viewer")+" here", "")
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func hintOfSource(name string) string {
	switch name {
	case "endpointslice":
		return "See that the sidecar's account may list and watch EndpointSlices, and that the peers' Service is there: sidestream check."
	case "dns":
		return "See that the name resolves in the pod (SIDESTREAM_PEER_DNS)."
	case "file":
		return "See that the file is there and lists addresses with ports (SIDESTREAM_PEER_FILE)."
	default:
		return "See that the peers' Service is global (service.cilium.io/global) and that slices of the other cluster are here, or that the peer is " +
			"listed: sidestream check."
	}
}

// hintOfConnection says what to do about a peer that is not connected, by the mesh's conditions.
func hintOfConnection(conditions []string, text string) string {
	hints := []struct{ condition, hint string }{
		{"certificate-expired", "A certificate has expired, or a clock is wrong: renew the Secret of the peers."},
		{"certificate-authority", "The two have certificates of different authorities: give both clusters the same CA."},
		{"certificate-name", "The certificate is not one of a peer: it needs the name that docs/security.md says."},
		{"plaintext", "One of the two speaks plaintext: SIDESTREAM_PEER_SECURITY must be the same everywhere."},
		{"tls-failed", "TLS fails: look whether something between the two answers in the peer's place."},
		{"cluster-name-shared", "Two clusters have one name: give each its own SIDESTREAM_CLUSTER."},
		{"refused-identity", "It is refused for what it says of itself: namespace, cluster or certificate."},
		{"refused-by-peer", "The other side refuses this node: see sidestream peers there."},
		{"refused", "The peer is refused, for the reason given: see sidestream peers at both."},
		{"heartbeat-lost", "It was connected, and is silent: it ended, or the network between the two is down."},
		{"unreachable", "Nothing answers there: look at NetworkPolicies and firewalls for TCP 18443, and whether pod addresses are routed between the clusters."},
	}
	if strings.Contains(text, "not valid before") { // the certificate is fine where its issuer's clock is
		return "A clock is wrong at one of the two, or at whoever issued the certificate: compare date -u on both nodes, and have them follow NTP."
	}
	for _, h := range hints {
		for _, c := range conditions {
			if strings.HasPrefix(c, h.condition) {
				return h.hint
			}
		}
	}
	if strings.Contains(text, "too old") {
		return "Upgrade its sidecar: this version tells others how its streams stand."
	}
	return "See sidestream peers at both nodes."
}
