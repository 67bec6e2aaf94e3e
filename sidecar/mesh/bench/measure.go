package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
)

const (
	fullMesh     = 64 // nodes up to which all peers know each other
	fewWatchers  = 12
	stagger      = 20 * time.Millisecond // between the first dials of two peers
	settle       = 5 * time.Second       // at most, before the first window
	relateTime   = 2 * time.Second       // in which heartbeats find their new period
	convergeTime = 2 * time.Minute
	newsTime     = 10 * time.Second // for which news is waited for
	deathTime    = 30 * time.Second // likewise, of deaths
	scrapePause  = 50 * time.Millisecond
	drainPause   = time.Millisecond
	drainWitness = 8 // watchers that are asked who drains: it makes no change in their catalogues
)

// measure makes a mesh of n nodes and measures in it.
func measure(ctx context.Context, n int, o options) (r Result, err error) {
	w, err := newWorld(n, o)
	if err != nil {
		return r, err
	}
	// The network carries the last words too.
	under, endNetwork := context.WithCancel(context.WithoutCancel(ctx))
	var network, parts sync.WaitGroup
	network.Go(func() { _ = w.earth.network.Run(under) })
	defer network.Wait()
	defer endNetwork()
	ctx, cancel := context.WithCancel(ctx)
	defer parts.Wait()
	defer cancel()

	began := time.Now()
	if err := w.start(ctx, &parts); err != nil {
		return r, err
	}
	if err := w.converge(ctx); err != nil {
		return r, err
	}
	r = Result{
		Nodes: n, Clusters: w.earth.clusters, Streams: o.streams, Watchers: len(w.watchers), Converged: time.Since(began),
		Starting: map[string]time.Duration{},
	}
	for _, s := range w.subjects {
		var now reading
		if err := s.read(&now); err != nil {
			return r, err
		}
		r.Starting[s.name] = now.cpu
	}
	if err := pause(ctx, min(settle, o.rest)); err != nil {
		return r, err
	}
	for _, phase := range []struct {
		name string
		time time.Duration
		do   func(context.Context) ([]News, error)
	}{
		{"rest", o.rest, nil},
		{"churn", o.churn, w.churn},
	} {
		costs, news, err := w.window(ctx, phase.name, phase.time, phase.do)
		if err != nil {
			return r, err
		}
		r.Costs, r.News = append(r.Costs, costs...), append(r.News, news...)
	}
	if err := w.compare(ctx); err != nil {
		return r, err
	}
	if o.crashes > 0 {
		news, err := w.farewells(ctx)
		if err != nil {
			return r, err
		}
		r.News = append(r.News, news...)
	}
	load, err := os.ReadFile("/proc/loadavg")
	r.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	return r, err
}

// newWorld makes everyone, and nobody runs.
func newWorld(n int, o options) (*world, error) {
	certificates := filepath.Join(o.dir, fmt.Sprintf("tls-%d", n))
	if err := os.MkdirAll(certificates, 0o700); err != nil {
		return nil, err
	}
	if err := mesh.WriteEphemeralCertificates(certificates); err != nil {
		return nil, err
	}
	security, err := mesh.LoadSecurity(certificates, mesh.SecurityOptions{})
	if err != nil {
		return nil, err
	}
	clusters, watchers := 5, n-1
	if n > 50 {
		clusters = 10
	}
	if n > fullMesh {
		watchers = fewWatchers
	}
	if o.watchers > 0 {
		watchers = min(o.watchers, n-1)
	}
	w := &world{
		o: o, certificates: certificates, security: security, earth: newGeography(clusters, o.distance),
		board: newBoard(), byAddress: map[string]int{},
	}
	random := rand.New(rand.NewPCG(uint64(n), 0))
	for i, host := range []string{hostBuiltIn, hostExternal} {
		s := &subject{name: "built-in", host: host, node: catalogue.Node{ID: randomUID(random), Cluster: clusterName(i)}}
		s.place = place{node: s.node.ID, cluster: i}
		if host == hostExternal {
			s.name, s.server = "external", newMediaServer()
			s.place.to = s.server
		}
		w.subjects = append(w.subjects, s)
	}
	for i := range n - 1 {
		p, err := w.newPeer(randomUID(random), i%clusters, i < watchers)
		if err != nil {
			w.shut()
			return nil, err
		}
		w.peers = append(w.peers, p)
		if p.watcher {
			w.watchers = append(w.watchers, p)
		}
	}
	for i, p := range w.peers {
		if err := p.publish(share("stream", o.streams, i, len(w.peers))...); err != nil {
			w.shut()
			return nil, err
		}
	}
	return w, nil
}

// share are the names that one of several nodes publishes.
func share(prefix string, streams, i, of int) []adapters.StreamID {
	var ids []adapters.StreamID
	for ; i < streams; i += of {
		ids = append(ids, adapters.StreamID(fmt.Sprintf("live/%s-%04d", prefix, i)))
	}
	return ids
}

// start runs everyone until ctx ends, first the sidecars, then the peers one after the other.
func (w *world) start(ctx context.Context, parts *sync.WaitGroup) error {
	started := 0
	defer func() { // what does not run is not closed by its run
		for _, p := range w.peers[started:] {
			p.doors.shut()
		}
	}()
	for _, s := range w.subjects {
		var mediaURL string
		if s.server != nil {
			l, err := net.Listen("tcp", net.JoinHostPort(s.host, "0"))
			if err != nil {
				return err
			}
			mediaURL = "http://" + l.Addr().String()
			front := &http.Server{Handler: s.server, ReadHeaderTimeout: 5 * time.Second}
			parts.Go(func() { _ = front.Serve(l) })
			context.AfterFunc(ctx, func() { _ = front.Close() })
		}
		var addresses []string
		for _, p := range w.peers {
			addresses = append(addresses, p.doors.at(s.host))
		}
		wait, err := s.start(ctx, w.o, w.certificates, mediaURL, addresses)
		if err != nil {
			return err
		}
		parts.Go(wait)
	}
	for _, p := range w.peers {
		w.open(p)
		parts.Go(func() { w.run(ctx, p) })
		started++
	}
	for _, p := range w.peers {
		p.mesh.SetPeers(w.neighbours(p))
		if err := pause(ctx, stagger); err != nil {
			return err
		}
	}
	return nil
}

// converge waits until everyone knows everything that it is to know.
func (w *world) converge(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, convergeTime, errors.New("the mesh does not come together"))
	defer cancel()
	places := make([]*place, 0, len(w.peers)+len(w.subjects))
	for _, p := range w.peers {
		places = append(places, &p.place)
	}
	for _, s := range w.subjects {
		if s.server != nil {
			if err := s.place.publish(share("own", max(w.o.streams/len(w.peers), 1), 0, 1)...); err != nil {
				return err
			}
		}
		places = append(places, &s.place)
	}
	all := w.board.expect(w.watchers, 0, func(state *catalogue.State) bool {
		for _, p := range places {
			if _, ok := state.Node(p.node); !ok {
				return false
			}
			if len(p.streams) > 0 {
				if _, ok := state.Hold(p.node, p.streams[len(p.streams)-1].ID); !ok {
					return false
				}
			}
		}
		return true
	})
	defer w.board.forget(all)
	all.wait(ctx)
	if _, missed := all.sights(); missed > 0 {
		return fmt.Errorf("%w: %d of %d watchers do not know everything", context.Cause(ctx), missed, len(w.watchers))
	}
	for _, s := range w.subjects {
		for {
			complete, err := s.complete(ctx, len(w.peers))
			switch {
			case ctx.Err() != nil:
				return fmt.Errorf("%w: sidecar %s does not know everything:\n%s", context.Cause(ctx), s.name, s.log())
			case err != nil:
				return err
			}
			if complete {
				break
			}
			_ = pause(ctx, 4*scrapePause)
		}
	}
	return nil
}

// compare says where a sidecar does not know what it should, now that the last publication has come and gone.
func (w *world) compare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, newsTime)
	defer cancel()
	for _, s := range w.subjects {
		want := w.o.streams + len(s.place.streams)
		for {
			known, err := s.streams(ctx)
			if err == nil && known == want {
				break
			}
			if pause(ctx, 4*scrapePause) != nil {
				return fmt.Errorf("sidecar %s knows %d streams, want %d (%w)", s.name, known, want, err)
			}
		}
	}
	return nil
}

// window measures what the sidecars need while something is done, or nothing.
func (w *world) window(
	ctx context.Context, phase string, length time.Duration, do func(context.Context) ([]News, error),
) (costs []Cost, news []News, err error) {
	var before []reading
	for _, s := range w.subjects {
		r, err := s.begin(ctx)
		if err != nil {
			return nil, nil, err
		}
		before = append(before, r)
	}
	over, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	var profiles sync.WaitGroup
	defer profiles.Wait()
	prefix := fmt.Sprintf("%d-%s", len(w.peers)+1, phase)
	if w.o.profiles != "" {
		for _, s := range w.subjects {
			profiles.Go(func() { _ = s.profile(ctx, w.o.profiles, prefix, max(int(length.Seconds()), 1)) })
		}
	}
	if do != nil {
		news, err = do(over)
	}
	<-over.Done()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, nil, err
	}
	profiles.Wait()
	for i, s := range w.subjects {
		c, err := s.end(ctx, phase, before[i])
		if err != nil {
			return nil, nil, err
		}
		costs = append(costs, c)
	}
	if w.o.profiles != "" {
		for _, s := range w.subjects {
			if err := s.profile(ctx, w.o.profiles, prefix, 0); err != nil {
				return nil, nil, err
			}
		}
	}
	return costs, news, nil
}

// churn has publications come and go until ctx ends. Each lives for a second; every fifth is at the sidecar's media server.
func (w *world) churn(ctx context.Context) ([]News, error) {
	type publication struct {
		at    *place
		id    adapters.StreamID
		event *event
	}
	var all []publication
	external := &w.subjects[len(w.subjects)-1].place
	tick := time.NewTicker(time.Second / time.Duration(w.o.rate))
	defer tick.Stop()
	ended := 0
	end := func() error {
		p := all[ended]
		ended++
		return p.at.unpublish(p.id)
	}
	for ctx.Err() == nil {
		i := len(all)
		p := publication{at: &w.peers[i%len(w.peers)].place, id: adapters.StreamID(fmt.Sprintf("live/short-%04d", i))}
		if i%5 == 4 {
			p.at = external
		}
		others := slices.DeleteFunc(w.present(), func(other *peer) bool { return other.node == p.at.node })
		p.event = w.board.expect(others, p.at.cluster, func(s *catalogue.State) bool {
			_, ok := s.Hold(p.at.node, p.id)
			return ok
		})
		if err := p.at.publish(p.id); err != nil {
			return nil, err
		}
		all = append(all, p)
		if len(all)-ended > w.o.rate {
			if err := end(); err != nil {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), newsTime)
	defer cancel()
	var atPeers, atSidecar []*event
	for _, p := range all {
		p.event.wait(wait)
		if p.at == external {
			atSidecar = append(atSidecar, p.event)
		} else {
			atPeers = append(atPeers, p.event)
		}
	}
	for ended < len(all) {
		if err := end(); err != nil {
			return nil, err
		}
	}
	return []News{
		w.news("publish at a peer, beyond one way", atPeers, true, nil),
		w.news("publish at a sidecar's server, beyond one way", atSidecar, true, nil),
	}, nil
}

// news sums up what was seen of events, by all or by some.
func (w *world) news(what string, events []*event, beyondOneWay bool, by func(*event, *peer) bool) News {
	var took []time.Duration
	missing := 0
	for _, e := range events {
		sights, missed := e.sights()
		missing += missed
		for _, s := range sights {
			if by != nil && !by(e, s.by) {
				continue
			}
			if beyondOneWay {
				s.took -= w.earth.oneWay(e.from, s.by.cluster)
			}
			took = append(took, s.took)
		}
	}
	w.board.forget(events...)
	return newsOf(what, len(events), missing, took)
}

// present are the watchers that are alive.
func (w *world) present() []*peer {
	return slices.DeleteFunc(slices.Clone(w.watchers), func(p *peer) bool { return p.left || p.death.silent.Load() })
}

// farewells has nodes crash, with children and without, and others drain and leave.
func (w *world) farewells(ctx context.Context) ([]News, error) {
	rest := w.peers
	take := func() []*peer {
		cut := len(rest) - w.o.crashes
		some := rest[cut:]
		rest = rest[:cut]
		return some
	}
	var news []News
	victims := take()
	children := map[*event]*peer{}
	for i, v := range victims {
		related := []catalogue.NodeID{w.watchers[i].node}
		for _, s := range w.subjects {
			related = append(related, s.node.ID)
		}
		v.mesh.SetRelated(related)
	}
	if err := pause(ctx, relateTime); err != nil {
		return nil, err
	}
	events, atSidecars, err := w.crash(ctx, victims)
	if err != nil {
		return nil, err
	}
	for i, e := range events {
		children[e] = w.watchers[i]
	}
	isChild := func(e *event, p *peer) bool { return children[e] == p }
	news = append(news,
		w.news("crash with children, known to a child", events, false, isChild),
		newsOf("crash with children, known to a child sidecar", len(victims), len(victims)*len(w.subjects)-len(atSidecars), atSidecars),
		w.news("crash with children, known to all", events, false, nil),
	)
	victims = take()
	if events, atSidecars, err = w.crash(ctx, victims); err != nil {
		return nil, err
	}
	news = append(news,
		w.news("crash without, known to all", events, false, nil),
		newsOf("crash without, known to a sidecar", len(victims), len(victims)*len(w.subjects)-len(atSidecars), atSidecars),
	)

	// Of those that stay, the last ones go politely.
	leaving := rest[len(rest)-min(w.o.crashes, len(rest)/2):]
	drained, err := w.drain(ctx, leaving)
	if err != nil {
		return nil, err
	}
	return append(news, drained, w.depart(ctx, leaving)), ctx.Err()
}

// crash lets nodes fall silent, and says when the sidecars had given them up, one time for each node and sidecar.
func (w *world) crash(ctx context.Context, victims []*peer) (events []*event, atSidecars []time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, deathTime)
	defer cancel()
	witnesses := slices.DeleteFunc(w.present(), func(p *peer) bool { return slices.Contains(victims, p) })
	before := make([]int, len(w.subjects))
	for i, s := range w.subjects {
		if before[i], err = s.connected(ctx); err != nil {
			return nil, nil, err
		}
	}
	began := time.Now()
	for _, v := range victims {
		events = append(events, w.board.expect(witnesses, v.cluster, without(v.node)))
		v.death.silent.Store(true)
		v.left = true
		close(v.leave)
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for i, s := range w.subjects {
		asking.Go(func() {
			for lost := 0; lost < len(victims); {
				now, err := s.connected(ctx)
				if err == nil && before[i]-now > lost {
					mu.Lock()
					atSidecars = append(atSidecars, slices.Repeat([]time.Duration{time.Since(began)}, before[i]-now-lost)...)
					mu.Unlock()
					lost = before[i] - now
				}
				if pause(ctx, scrapePause) != nil {
					return
				}
			}
		})
	}
	for _, e := range events {
		e.wait(ctx)
	}
	asking.Wait()
	return events, atSidecars, nil
}

func without(id catalogue.NodeID) func(*catalogue.State) bool {
	return func(s *catalogue.State) bool {
		_, ok := s.Node(id)
		return !ok
	}
}

// drain has nodes say, one after the other, that they are about to leave.
func (w *world) drain(ctx context.Context, nodes []*peer) (News, error) {
	ctx, cancel := context.WithTimeout(ctx, newsTime)
	defer cancel()
	var took []time.Duration
	asked := 0
	for _, p := range nodes {
		witnesses := slices.DeleteFunc(w.present(), func(other *peer) bool { return slices.Contains(nodes, other) })
		witnesses = witnesses[:min(len(witnesses), drainWitness)]
		asked += len(witnesses)
		began := time.Now()
		p.mesh.SetDraining(true)
		for len(witnesses) > 0 {
			witnesses = slices.DeleteFunc(witnesses, func(by *peer) bool {
				draining := slices.ContainsFunc(by.mesh.Peers(), func(s mesh.PeerStatus) bool { return s.ID == p.node && s.Draining })
				if draining {
					took = append(took, time.Since(began)-w.earth.oneWay(p.cluster, by.cluster))
				}
				return draining
			})
			if pause(ctx, drainPause) != nil {
				break
			}
		}
	}
	return newsOf("drain, beyond one way", len(nodes), asked-len(took), took), nil
}

// depart has nodes end, one after the other, as a sidecar does that is told to.
func (w *world) depart(ctx context.Context, nodes []*peer) News {
	ctx, cancel := context.WithTimeout(ctx, newsTime)
	defer cancel()
	var events []*event
	witnesses := slices.DeleteFunc(w.present(), func(p *peer) bool { return slices.Contains(nodes, p) })
	for _, p := range nodes {
		e := w.board.expect(witnesses, p.cluster, without(p.node))
		p.left = true
		close(p.leave)
		e.wait(ctx)
		events = append(events, e)
	}
	return w.news("departure, beyond one way", events, true, nil)
}

// pause returns after d, or when ctx ends, with its error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
