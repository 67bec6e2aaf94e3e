//go:build linux

package world

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidestream-dev/sidestream/e2e/bed"
	"github.com/sidestream-dev/sidestream/e2e/inside"
)

// failures is a world in which things fail, and what those who watch saw of each.
type failures struct {
	*world
	source  *inside.Publisher
	pods    []*pod
	viewers []*viewer
	fresh   int // pods that were run since
	table   strings.Builder
}

// failure is one row.
type failure struct {
	what string
	// do lets it fail, and puts right what does not come right by itself. It returns the pods that were hit: those who watch
	// at them see more than the others.
	do func(*failures) []*pod
	// elsewhere is for how long a picture may stand still for those who watch at other pods; there, at pods that were hit.
	elsewhere, there time.Duration
}

const (
	// seen is what a machine that does much else adds to anything.
	seen = time.Second
	// outage is for how long control planes are away.
	outage = time.Minute
)

// What fails is over in time for those who watch, and leaves nothing behind.
func TestFailures(t *testing.T) {
	w := newWorld(t)
	for _, link := range w.links { // what is seen is of the failures
		p := link.Out.Params()
		p.Loss = 0
		link.Set(p)
	}
	f := &failures{world: w, pods: w.pods()}
	f.source, _ = w.regions[singapore].publish()
	w.holder(f.pods)
	for _, name := range []string{germany, usWest, singapore} {
		for i := range 2 {
			f.viewers = append(f.viewers, w.regions[name].watch(i))
		}
	}
	for _, v := range f.viewers {
		v.frames(60)
	}
	f.rest("before", w.holder(f.pods), f.viewers, f.pods...)
	table := tabwriter.NewWriter(&f.table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "what fails\tviewers\tfroze\tp50\tmax\tsessions anew\tframes missing\tat rest after")
	for _, one := range []failure{
		{"API servers away for a minute", (*failures).withoutAPIServers, seen, 0},
		{"Cilium's sync stopped, slices deleted", (*failures).withoutSlices, seen, 0},
		{"sync restarted while clusters are cut", (*failures).syncRestarted, seen, 0},
		{"certificates of a new authority", (*failures).rotated, seen, 0},
		{"sidecar killed at a relay", (*failures).sidecarKilled, 4 * time.Second, 12 * time.Second},
		{"media server killed at a relay", (*failures).serverKilled, 4 * time.Second, 20 * time.Second},
		{"relay's pod gone", (*failures).relayGone, 5 * time.Second, 20 * time.Second},
		{"relay's pod stalled for 10 s", (*failures).stalled, 6 * time.Second, 25 * time.Second},
		{"origin's pod gone", (*failures).originGone, 25 * time.Second, 25 * time.Second},
		{"rolling upgrade of all pods", (*failures).upgraded, 12 * time.Second, 12 * time.Second},
		{"partition, a publisher on both sides", (*failures).partitioned, 15 * time.Second, 0},
	} {
		if !t.Run(strings.ReplaceAll(one.what, " ", "_"), func(t *testing.T) {
			f.fail(t, table, one)
		}) {
			break
		}
	}
	_ = table.Flush()
	t.Logf("what viewers saw:\n%s", f.table.String())

	for _, v := range f.viewers {
		v.leave()
	}
	f.rest("all have left", w.holder(f.pods), nil, f.pods...)
}

// fail does one, and looks at what it was like.
func (f *failures) fail(t *testing.T, table *tabwriter.Writer, one failure) {
	before := make([]inside.Seen, len(f.viewers))
	for i, v := range f.viewers {
		v.Forget()
		before[i] = v.Seen()
	}
	late := f.lateness()
	hit := one.do(f)
	began := time.Now()
	if err := f.flows(t.Context()); err != nil {
		t.Error(err)
	}
	origin := f.holder(f.pods)
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	if err := retry(ctx, func(ctx context.Context) error { return unrest(ctx, origin, f.viewers, f.pods) }); err != nil {
		t.Errorf("something is left: %v", err)
	}
	rested := time.Since(began)
	stalled := late()
	if stalled > seen/4 {
		t.Logf("the machine itself stood still for %v", stalled)
	}
	for _, there := range []bool{true, false} {
		bound, at := one.elsewhere, "elsewhere"
		if there {
			bound, at = one.there, "there"
		}
		bound += 3 * stalled // each of the programs on the way may have had as little time
		var viewers, frozen, sessions, missing int
		var freezes []time.Duration
		for i, v := range f.viewers {
			if slices.ContainsFunc(hit, func(p *pod) bool { return p.door() == before[i].At }) != there {
				continue
			}
			s := v.Seen()
			viewers++
			sessions += s.Sessions - before[i].Sessions
			missing += s.Missing - before[i].Missing
			longest := time.Duration(0)
			for _, d := range s.Freezes {
				longest = max(longest, d)
			}
			freezes = append(freezes, longest)
			if longest > 0 {
				frozen++
			}
			if longest > bound {
				t.Errorf("for a viewer in %s, %s, the picture stood still for %v; %v is the most", v.Name, at, longest, bound)
			}
		}
		if viewers == 0 {
			continue
		}
		slices.Sort(freezes)
		fmt.Fprintf(table, "%s\t%d %s\t%d\t%.1f s\t%.1f s\t%d\t%d\t%.1f s\n", one.what, viewers, at, frozen,
			freezes[len(freezes)/2].Seconds(), freezes[len(freezes)-1].Seconds(), sessions, missing, rested.Seconds())
		t.Logf("%s: of %d viewers %s %d froze, p50 %.1f s, max %.1f s; %d sessions anew, %d frames missing; at rest after %.1f s", one.what, viewers, at,
			frozen, freezes[len(freezes)/2].Seconds(), freezes[len(freezes)-1].Seconds(), sessions, missing, rested.Seconds())
	}
}

// lateness begins to measure by how much this program comes too late when it wants to run; what is returned says how much that
// was at most.
func (f *failures) lateness() (most func() time.Duration) {
	const every = 20 * time.Millisecond
	var longest time.Duration
	end := f.background(func(ctx context.Context) {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				longest = max(longest, time.Since(last)-every)
				last = time.Now()
			}
		}
	})
	return func() time.Duration {
		end()
		return longest
	}
}

// flows waits until all who watch have seen two more seconds.
func (f *failures) flows(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	wanted := make([]int, len(f.viewers))
	for i, v := range f.viewers {
		wanted[i] = v.Seen().Frames + 60
	}
	for i, v := range f.viewers {
		if err := v.Wait(ctx, wanted[i]); err != nil {
			return fmt.Errorf("a viewer in %s: %w", v.Name, err)
		}
	}
	return nil
}

// pause is a time in which those who watch may see something.
func (f *failures) pause(d time.Duration) {
	f.Helper()
	select {
	case <-f.Context().Done():
		f.Fatal(f.Context().Err())
	case <-time.After(d):
	}
}

// puller is the pod of a region that has the stream from another region.
func (f *failures) puller(region string) (found *pod) {
	f.Helper()
	f.poll("somebody pulls for "+region, func(ctx context.Context) error {
		for _, p := range f.pods {
			if p.Name != region {
				continue
			}
			st, err := p.node(ctx)
			if err != nil {
				return err
			}
			for _, r := range st.Relays {
				if r.State == "live" && !slices.ContainsFunc(f.pods, func(o *pod) bool { return o.region == p.region && string(o.object.UID) == r.Parent }) {
					found = p
					return nil
				}
			}
		}
		return errors.New("nobody does")
	})
	return found
}

// replace is what a Deployment does when a pod has gone.
func (f *failures) replace(old *pod) {
	f.Helper()
	f.fresh++
	next := old.region.run(fmt.Sprintf("sfu-new-%d", f.fresh))
	f.pods[slices.Index(f.pods, old)] = next
	f.connected(f.pods...)
}

func (f *failures) withoutAPIServers() []*pod {
	for _, c := range f.bed.Clusters {
		f.must(c.Stop(f.Context(), bed.APIServer))
	}
	f.pause(outage)
	for _, c := range f.bed.Clusters {
		f.must(c.Start(f.Context()))
	}
	return nil
}

func (f *failures) withoutSlices() []*pod {
	for _, c := range f.bed.Clusters {
		f.must(c.LoseSlices(f.Context(), f.namespace, peerService))
	}
	f.pause(15 * time.Second)
	f.connected(f.pods...)
	for _, c := range f.bed.Clusters {
		f.must(c.Start(f.Context()))
	}
	return nil
}

// syncRestarted has a sync come up that cannot reach the others: it deletes their slices in the end.
func (f *failures) syncRestarted() []*pod {
	region := f.regions[germany]
	for _, c := range f.bed.Clusters {
		if c != region.Cluster {
			f.bed.Cut(germany, c.Name)
		}
	}
	f.must(region.Process(bed.MeshSync).Restart(f.Context()))
	f.poll("the others' slices are deleted", func(ctx context.Context) error {
		list, err := region.Client().DiscoveryV1().EndpointSlices(f.namespace).List(ctx, metav1.ListOptions{})
		if err == nil && len(bed.Addresses(bed.From(list.Items, singapore))) > 0 {
			err = errors.New("they are there")
		}
		return err
	})
	f.pause(5 * time.Second)
	f.connected(f.pods...)
	for _, c := range f.bed.Clusters {
		if c != region.Cluster {
			f.bed.Heal(germany, c.Name)
		}
	}
	f.poll("the others' slices are back", func(ctx context.Context) error {
		list, err := region.Client().DiscoveryV1().EndpointSlices(f.namespace).List(ctx, metav1.ListOptions{})
		if err == nil && len(bed.Addresses(bed.From(list.Items, singapore))) == 0 {
			err = errors.New("they are not")
		}
		return err
	})
	return nil
}

// rotated goes to another authority as the manual says: both are believed, then certificates are of the new one, then the old
// one is forgotten. A pod that knows only the new one joins.
func (f *failures) rotated() []*pod {
	old, next := f.authority, newAuthority(f.T)
	for _, files := range []func() map[string][]byte{
		func() map[string][]byte { return old.issue(f.T, next) },
		func() map[string][]byte { return next.issue(f.T, old) },
		func() map[string][]byte { return next.issue(f.T) },
	} {
		for _, r := range f.regions {
			_, err := r.Client().CoreV1().Secrets(f.namespace).Update(f.Context(), &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: peerSecret}, Type: corev1.SecretTypeTLS, Data: files(),
			}, metav1.UpdateOptions{})
			f.must(err)
		}
		for _, p := range f.pods {
			p.refresh()
		}
		f.pause(3 * time.Second)
		f.connected(f.pods...)
	}
	f.authority = next
	f.fresh++
	more := f.regions[usWest].run(fmt.Sprintf("sfu-new-%d", f.fresh))
	f.connected(append(slices.Clone(f.pods), more)...)
	more.evict()
	return nil
}

func (f *failures) sidecarKilled() []*pod {
	p := f.puller(germany)
	p.sidecar.signal(syscall.SIGKILL)
	f.pause(8 * time.Second)
	f.connected(f.pods...)
	return []*pod{p}
}

func (f *failures) serverKilled() []*pod {
	p := f.puller(germany)
	p.server.signal(syscall.SIGKILL)
	f.pause(8 * time.Second)
	return []*pod{p}
}

func (f *failures) relayGone() []*pod {
	p := f.puller(germany)
	p.gone()
	f.replace(p)
	return []*pod{p}
}

func (f *failures) stalled() []*pod {
	p := f.puller(germany)
	for _, c := range []*container{p.server, p.sidecar} {
		c.signal(syscall.SIGSTOP)
	}
	f.pause(10 * time.Second)
	for _, c := range []*container{p.server, p.sidecar} {
		c.signal(syscall.SIGCONT)
	}
	f.connected(f.pods...)
	return []*pod{p}
}

func (f *failures) originGone() []*pod {
	p := f.holder(f.pods)
	p.gone()
	f.replace(p)
	return []*pod{p}
}

// upgraded replaces one pod after the other: a new one comes, then the old one leaves in order.
func (f *failures) upgraded() []*pod {
	old := slices.Clone(f.pods)
	for i, p := range old {
		f.fresh++
		next := p.region.run(fmt.Sprintf("sfu-new-%d", f.fresh))
		f.connected(append(slices.Clone(f.pods), next)...)
		p.evict()
		f.pods[i] = next
	}
	f.connected(f.pods...)
	return old
}

// partitioned cuts Germany off, where somebody publishes the same name; when it is healed all see the same, and when that
// publisher goes, the other.
func (f *failures) partitioned() []*pod {
	f.cut(germany, true)
	_, leave := f.regions[germany].publish()
	f.pause(10 * time.Second)
	f.must(f.flows(f.Context()))
	f.cut(germany, false)
	f.connected(f.pods...)
	f.poll("all have the same publication", func(ctx context.Context) error {
		origins := map[string]bool{}
		for _, p := range f.pods {
			st, err := p.node(ctx)
			if err != nil {
				return err
			}
			for _, s := range st.Streams {
				origins[s.Origin] = true
			}
		}
		if len(origins) != 1 {
			return fmt.Errorf("origins %v", origins)
		}
		return nil
	})
	f.must(f.flows(f.Context()))
	leave()
	return nil
}
