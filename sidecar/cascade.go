package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/cascade"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/console"
	"github.com/sidestream-dev/sidestream/sidecar/relay"
)

const (
	// reportPath is where peers, and only they, ask a node what it says of itself.
	reportPath = "/.well-known/sidestream/report"
	// reportTime bounds how long other nodes are waited for, maxReport how much one may say, askers how many are asked at once.
	reportTime = 1500 * time.Millisecond // so that who asks has all answers within two seconds
	maxReport  = 4 << 20
	askers     = 16
	// reportedStreams bounds the streams that a node tells of.
	reportedStreams = 500
)

// console serves the pages in front of the gateway, where the settings want them.
func (n *node) console(gateway http.Handler) http.Handler {
	s := n.settings.Console
	if !s.Enabled {
		return gateway
	}
	o := console.Options{Region: n.settings.Cluster, Places: n.places(), Streams: n.list, StreamsClosed: n.settings.JWT.Closed()}
	for _, r := range s.Regions {
		o.Regions = append(o.Regions, console.Region{Name: r.Name, URL: r.URL.String()})
	}
	guard := console.Guard{Token: string(s.Token), Header: s.ProxyHeader, From: n.settings.Gateway.TrustedProxies}
	o.Allow = guard.Allow
	if s.Token != "" || s.ProxyHeader != "" {
		o.Cascade = n.cascade
	}
	return below(console.Path, console.Handler(o), gateway)
}

// consoleForAdmin serves the cascade at the port for administration, where whoever comes may see the status anyway.
func (n *node) consoleForAdmin(admin http.Handler) http.Handler {
	return below(console.Path, console.Handler(console.Options{
		Region: n.settings.Cluster, Places: n.places(), Base: "none", Cascade: n.cascade,
	}), admin)
}

func (n *node) places() map[string][2]float64 {
	all := map[string][2]float64{}
	for _, p := range n.settings.Console.Places {
		all[p.Name] = [2]float64{p.Latitude, p.Longitude}
	}
	return all
}

// below serves what is under a path, and all else by rest, whose paths stay as they came: a ServeMux would tidy them.
func below(path string, h, rest http.Handler) http.Handler {
	stripped := http.StripPrefix(path[:len(path)-1], h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == path[:len(path)-1] && r.Method == http.MethodGet:
			to := *r.URL
			to.Scheme, to.Host, to.Path, to.RawPath = "", "", path, ""
			http.Redirect(w, r, to.String(), http.StatusTemporaryRedirect)
		case len(r.URL.Path) >= len(path) && r.URL.Path[:len(path)] == path:
			stripped.ServeHTTP(w, r)
		default:
			rest.ServeHTTP(w, r)
		}
	})
}

// peerDoor answers peers who ask for this node's report, and leaves all else to the gateway.
func (n *node) peerDoor(gateway http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != reportPath || r.Method != http.MethodGet {
			gateway.ServeHTTP(w, r)
			return
		}
		text, err := json.Marshal(n.ownReport(adapters.StreamID(r.URL.Query().Get("stream"))))
		if err != nil { // ours to mend
			n.logger.Error("report cannot be written", "error", err)
			http.Error(w, "report cannot be written", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(text)
	})
}

// list is what viewers can play, with the way to each region: the shortest of its nodes'.
func (n *node) list() []console.Stream {
	known, _ := n.known.Snapshot()
	cluster := func(id catalogue.NodeID) string {
		if id == n.state.Node {
			return n.settings.Cluster
		}
		at, ok := known.Node(id)
		if !ok || at.Cluster == "" {
			return "elsewhere"
		}
		return at.Cluster
	}
	var all []console.Stream
	for _, id := range known.Streams() {
		winner, ok := known.Winner(id)
		if !ok {
			continue
		}
		if n.relays.Unfit(id) != nil {
			continue // the server here does not take it
		}
		s := console.Stream{Name: string(id), Origin: cluster(winner.Origin)}
		best := map[string]catalogue.Hold{}
		for _, h := range known.Holders(id) {
			at := cluster(h.Holder())
			if old, ok := best[at]; !ok || len(h.Path) < len(old.Path) || len(h.Path) == len(old.Path) && h.Delay < old.Delay {
				best[at] = h
			}
		}
		for _, h := range best {
			w := console.Way{RTTMs: milliseconds(h.Delay)}
			for _, hop := range h.Path {
				if at := cluster(hop); len(w.Path) == 0 || w.Path[len(w.Path)-1] != at {
					w.Path = append(w.Path, at)
				}
			}
			s.Ways = append(s.Ways, w)
		}
		slices.SortFunc(s.Ways, func(a, b console.Way) int { return slices.Compare(a.Path, b.Path) })
		all = append(all, s)
	}
	return all
}

// ownReport is what this node says of itself, and with a stream's name of that.
func (n *node) ownReport(about adapters.StreamID) cascade.Report {
	known, _ := n.known.Snapshot()
	r := cascade.Report{
		Node: string(n.state.Node), Cluster: n.settings.Cluster, Version: version, Adapter: n.adapter.Name(),
		Ready: n.gateway.Ready(context.Background()) == nil, Draining: n.draining.Load(), ServerError: n.serverError(),
		Published: []cascade.Publication{}, Relays: []cascade.Relay{},
	}
	r.Carried, r.Saved = n.carriage.Intercluster()
	for _, s := range n.relays.Status() {
		if len(r.Relays) == reportedStreams {
			r.Omitted++
			continue
		}
		r.Relays = append(r.Relays, n.reportRelay(s))
	}
	n.mu.Lock()
	reported := make([]adapters.Stream, 0, len(n.reported))
	for _, s := range n.reported {
		reported = append(reported, s)
	}
	n.mu.Unlock()
	slices.SortFunc(reported, func(a, b adapters.Stream) int { return cmp.Compare(a.ID, b.ID) })
	for _, s := range reported {
		own, here := known.Own(s.ID)
		if s.Relayed || s.Waiting || !here || len(own.Path) != 1 {
			continue
		}
		if len(r.Published) == reportedStreams {
			r.Omitted++
			continue
		}
		winner, _ := known.Winner(s.ID)
		p := cascade.Publication{
			Stream: string(s.ID), Epoch: own.Epoch, Since: s.Since, Viewers: s.Readers, Counts: winner.Origin == n.state.Node, Tracks: []string{},
		}
		if p.Viewers > 0 {
			p.Viewers = max(p.Viewers-len(known.Children(s.ID, n.state.Node)), 0)
		}
		for _, t := range s.Tracks {
			p.Tracks = append(p.Tracks, t.MIME)
		}
		slices.Sort(p.Tracks)
		p.Tracks = slices.Compact(p.Tracks) // layers of one picture
		r.Published = append(r.Published, p)
	}
	if about.Validate() == nil {
		n.addStream(&r, known, about)
	}
	return r
}

// addStream adds how one stream stands here, and what may stand in its way.
func (n *node) addStream(r *cascade.Report, known *catalogue.State, id adapters.StreamID) {
	for _, s := range n.sources.Status() {
		r.Sources = append(r.Sources, cascade.Source{Name: s.Source, Peers: s.Peers, Error: s.Error})
	}
	for _, p := range n.mesh.Peers() {
		if p.ID == n.state.Node {
			continue
		}
		r.Peers = append(r.Peers, cascade.Peer{
			Node: string(p.ID), Cluster: p.Cluster, Address: p.Address, Connected: p.Connected, RTTMs: milliseconds(p.RTT), Error: p.Error,
			Conditions: p.Conditions,
		})
	}
	s := cascade.Stream{
		Name: string(id), Export: known.Exports(id), Import: policyOf(n.settings).Import.Allows(id), Holders: len(known.Holders(id)),
	}
	s.Full = n.gateway.Bound(id)
	if winner, ok := known.Winner(id); ok {
		s.Origin, s.Epoch = string(winner.Origin), winner.Epoch
	}
	if err := n.relays.Unfit(id); err != nil {
		s.Refused = err.Error()
	}
	if here, ok := n.streamOf(id); ok {
		s.Lacks = here.Lacks
	}
	for _, status := range n.relays.Status() {
		if status.Stream != id {
			continue
		}
		s.Viewers, s.Demand = status.Demand.Viewers, status.Demand.Any()
		s.Owner, s.NextRetry = string(status.Owner), status.NextRetry
		if f := status.Failure; f != nil {
			s.Failure = &cascade.Failure{Side: string(f.Side), Step: f.Step, Code: f.Code, Text: status.LastError}
		}
	}
	r.Stream = &s
}

func (n *node) reportRelay(s relay.Status) cascade.Relay {
	r := cascade.Relay{
		Stream: string(s.Stream), State: s.State, Why: string(s.Why), Epoch: s.Epoch, Parent: string(s.Parent),
		Viewers: s.Demand.Viewers, LiveSince: s.LiveSince, LastError: s.LastError, Tracks: []string{}, Steps: []cascade.Step{},
	}
	for _, id := range s.Path {
		r.Path = append(r.Path, string(id))
	}
	if s.Standby != nil {
		r.Standby = string(s.Standby.Parent)
	}
	if s.Session == nil {
		return r
	}
	r.Changes = len(s.Session.Changes)
	for _, t := range s.Session.Tracks {
		r.Bytes += t.Bytes
		r.Packets += t.Packets
		r.Lost += t.Lost
		r.Repaired += t.Repaired
		r.NACKs += t.NACKs
		r.KeyRequests += t.KeyFrameRequestsSent
		r.RTTMs = max(r.RTTMs, milliseconds(t.RTT))
		r.AddedMs = max(r.AddedMs, milliseconds(t.Added))
		r.Tracks = append(r.Tracks, t.Codec)
	}
	for _, step := range s.Session.Steps {
		r.Steps = append(r.Steps, cascade.Step{Name: step.Name, Ms: milliseconds(step.At.Sub(s.Session.Steps[0].At))})
	}
	return r
}

// cascade is what all nodes say of themselves.
func (n *node) cascade() cascade.Cascade { return n.askAll("") }

// explain accounts for a stream at the nodes of a cluster, or with "" at all.
func (n *node) explain(stream, cluster string) (any, error) {
	if err := adapters.StreamID(stream).Validate(); err != nil {
		return nil, fmt.Errorf("ask by ?stream=NAME: %w", err)
	}
	return cascade.Explain(n.askAll(adapters.StreamID(stream)), stream, cluster), nil
}

// askAll asks all nodes that are connected what they say of themselves, and of a stream. It takes at most reportTime.
func (n *node) askAll(about adapters.StreamID) cascade.Cascade {
	ctx, cancel := context.WithTimeout(context.Background(), reportTime)
	defer cancel()
	own := n.ownReport(about)
	c := cascade.Cascade{At: time.Now(), Here: own.Node, Nodes: []cascade.Node{{
		Node: own.Node, Cluster: own.Cluster, Version: own.Version, Connected: true, Report: &own,
	}}}
	for _, p := range n.mesh.Peers() {
		if p.ID == "" || p.ID == n.state.Node {
			continue
		}
		c.Nodes = append(c.Nodes, cascade.Node{
			Node: string(p.ID), Cluster: p.Cluster, Version: p.Version, Connected: p.Connected, RTTMs: milliseconds(p.RTT), Error: p.Error,
		})
	}
	var group sync.WaitGroup
	slots := make(chan struct{}, askers)
	for i := range c.Nodes[1:] {
		other := &c.Nodes[i+1]
		if !other.Connected {
			continue
		}
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			var err error
			if other.Report, err = n.ask(ctx, catalogue.NodeID(other.Node), about); err != nil && other.Error == "" {
				other.Error = err.Error()
			}
		})
	}
	group.Wait()
	return c
}

// ask asks another node for its report.
func (n *node) ask(ctx context.Context, id catalogue.NodeID, about adapters.StreamID) (*cascade.Report, error) {
	base, transport, ok := n.forward(string(id))
	if !ok {
		return nil, errors.New("its address is not known")
	}
	base.Path = reportPath
	if about != "" {
		base.RawQuery = url.Values{"stream": {string(about)}}.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base.String(), nil)
	if err != nil {
		return nil, err
	}
	res, err := transport.RoundTrip(r)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("it is connected, and does not answer within %s", reportTime)
	}
	if err != nil {
		return nil, fmt.Errorf("ask for its report: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNotFound {
		return nil, errors.New("it tells nothing of itself: its version is too old for that")
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask for its report: it answers %s", res.Status)
	}
	var report cascade.Report
	if err := json.NewDecoder(io.LimitReader(res.Body, maxReport)).Decode(&report); err != nil {
		return nil, fmt.Errorf("read its report: %w", err)
	}
	if report.Node != string(id) {
		return nil, fmt.Errorf("another node answers at its address: %q", report.Node)
	}
	return &report, nil
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}
