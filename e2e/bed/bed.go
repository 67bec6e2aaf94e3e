// Package bed starts Kubernetes control planes on this machine and joins them by Cilium's Cluster Mesh, for tests that want
// the real API server and the slices that Cilium really writes, without containers, root or a kubelet.
//
// `make bed` builds the binaries, once per version, into a cache (E2E_CACHE, else the user's): some ten minutes. Tests are
// skipped where that lacks them, unless E2E=1 has them built then and there.
//
// A test takes a bed for itself:
//
//	b := bed.New(t, "east", "west")
//	namespace := b.Namespace(t)
//	east := b.Cluster("east")
//	east.Client().CoreV1().Services(namespace).Create(ctx, bed.GlobalService(namespace, "sfu", ports...), ...)
//	pod, err := east.RunPod(ctx, &corev1.Pod{...}, netip.MustParseAddr("10.0.0.1"))
//	slices, err := b.Cluster("west").AwaitSlices(ctx, namespace, func(s []discoveryv1.EndpointSlice) bool { ... })
//
// Starting two joined clusters takes ten seconds on two cores, half a minute where ten others want them too, and each 600
// MiB: the tests of a package share one bed, see [Shared]. Each has a namespace of its own, which is enough to keep them
// apart as long as they do not cut the mesh or stop processes; those that do put it right again and do not run in parallel.
//
// Where things stand in for what is missing: a pod is ready, unready, terminating or gone because the test says so
// ([Cluster.RunPod], [Cluster.ReportPod], [Cluster.TerminatePod], [Cluster.RemovePod]); its address may be one of this
// machine's, at which something listens ([PodIPs]). A webhook is registered by URL. Nothing is scheduled; Deployments and
// the like create pods that wait for [Cluster.ReportPod].
//
// What a test can do to a cluster: stop its API server, or all of it, and start it again ([Cluster.Stop]), cut it off from
// another ([Bed.Cut]), or make the way there bad ([Bed.Link]), lose its EndpointSlices ([Cluster.LoseSlices]). A client with
// few rights comes from [Cluster.AddAccount], a kubeconfig file for a program from [Cluster.KubeconfigFor].
//
// Logs are kept when a test fails, which says where. Everything ends with the test, on Linux also when that is killed: then
// half a gigabyte of state stays until the next bed starts, and the logs, in a folder bed-* of the system's for such.
package bed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// Config is what a bed is to be.
type Config struct {
	// Clusters are the names. Two or more are joined, each with each.
	Clusters []string
	Binaries Binaries
	Dir      string // of the clusters' state; it should be empty
	Logs     string // a folder per cluster, a file per process; "" is Dir

	// SyncTimeout is for how long a restarted sync believes in the slices of a cluster that it cannot reach before it
	// deletes them; 0 is Cilium's default, a minute.
	SyncTimeout time.Duration
	// StartTimeout bounds the start; 0 means three minutes, for machines that do much else.
	StartTimeout time.Duration
	Progress     io.Writer // may be nil
}

func (c Config) syncTimeout() time.Duration {
	if c.SyncTimeout > 0 {
		return c.SyncTimeout
	}
	return defaultSyncTimeout
}

// names are what Cilium allows as a cluster's.
var names = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// complete fills in what is left out, and names what makes no sense.
func (c *Config) complete() error {
	var errs []error
	if len(c.Clusters) == 0 || len(c.Clusters) > 100 {
		errs = append(errs, fmt.Errorf("%d clusters; 1 to 100 are possible", len(c.Clusters)))
	}
	seen := make(map[string]bool)
	for _, name := range c.Clusters {
		if !names.MatchString(name) || seen[name] {
			errs = append(errs, fmt.Errorf("cluster name %q is not a DNS label of at most 32 letters, or taken", name))
		}
		seen[name] = true
	}
	if c.Binaries == "" || c.Dir == "" {
		errs = append(errs, errors.New("binaries and a folder are needed"))
	}
	if c.Logs == "" {
		c.Logs = c.Dir
	}
	if c.StartTimeout <= 0 {
		c.StartTimeout = 3 * time.Minute
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	return errors.Join(errs...)
}

// Bed is a set of running clusters.
type Bed struct {
	Clusters []*Cluster

	network *wan.Network
	links   map[[2]string]wan.Link
	roads   []*road
}

// Cluster returns a cluster by its name. It panics where there is none.
func (b *Bed) Cluster(name string) *Cluster {
	for _, c := range b.Clusters {
		if c.Name == name {
			return c
		}
	}
	panic(fmt.Sprintf("bed: there is no cluster %q", name))
}

// Run starts the clusters, calls use when they can be used, and returns when use has and all processes are gone. The
// context that use gets ends when something of the bed breaks. Tests call [New], or have a [Shared].
func Run(ctx context.Context, config Config, use func(context.Context, *Bed) error) error {
	if err := config.complete(); err != nil {
		return fmt.Errorf("configure bed: %w", err)
	}
	b := &Bed{network: wan.NewNetwork(), links: make(map[[2]string]wan.Link)}
	var taken ports
	defer taken.release()
	defer func() {
		for _, r := range b.roads {
			_ = r.listener.Close()
		}
	}()
	for i, name := range config.Clusters {
		c, err := newCluster(name, i+1, config.Dir, config, &taken)
		if err != nil {
			return err
		}
		for j, other := range b.Clusters {
			if err := b.join(other, c, uint64(i<<8|j)); err != nil {
				return err
			}
		}
		b.Clusters = append(b.Clusters, c)
	}

	ctx, end := context.WithCancel(ctx)
	defer end()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := b.network.Run(ctx); ctx.Err() == nil {
			return fmt.Errorf("run the mesh's links: %w", err)
		}
		return nil
	})
	for _, r := range b.roads {
		group.Go(func() error { return r.run(ctx) })
	}
	for _, c := range b.Clusters {
		for _, p := range c.processes {
			group.Go(func() error { return p.run(ctx) })
		}
	}
	group.Go(func() error {
		defer end()
		if err := b.up(ctx, config); err != nil {
			return fmt.Errorf("start bed: %w", err)
		}
		return use(ctx, b)
	})
	return group.Wait()
}

// up starts everything, all clusters at once.
func (b *Bed) up(ctx context.Context, config Config) error {
	ctx, cancel := context.WithTimeout(ctx, config.StartTimeout)
	defer cancel()
	began := time.Now()
	each := func(do func(*Cluster, context.Context) error) error {
		group, ctx := errgroup.WithContext(ctx)
		for _, c := range b.Clusters {
			group.Go(func() error { return do(c, ctx) })
		}
		return group.Wait()
	}
	said := func(what string) {
		fmt.Fprintf(config.Progress, "bed: %s after %v\n", what, time.Since(began).Round(100*time.Millisecond))
	}
	if err := each((*Cluster).up); err != nil {
		return err
	}
	said("control planes work")
	if len(b.Clusters) < 2 {
		return nil
	}
	// A sync that meets a remote cluster before that has said anything of itself tries again only much later: all clusters
	// speak first.
	if err := each((*Cluster).upMesh); err != nil {
		return err
	}
	if err := each(func(c *Cluster, ctx context.Context) error { return c.Start(ctx, MeshSync) }); err != nil {
		return err
	}
	if err := b.synced(ctx); err != nil {
		return err
	}
	said("clusters see each other")
	return nil
}
