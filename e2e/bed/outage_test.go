package bed

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// patience is for what waits for controllers that have been without an API server: they try again after up to half a minute.
const patience = 2 * time.Minute

// The API server is away for a while; what depends on it runs on, and goes on with its work afterwards.
func TestAPIServerAway(t *testing.T) {
	m := newMedia(t)
	m.run("east", "sfu-0", "10.10.1.10")
	m.run("west", "sfu-0", "10.20.1.10")
	m.await("east", "west", long, "10.20.1.10")
	west := m.cluster("west")
	before := pids(west)

	m.must(west.Stop(t.Context(), APIServer))
	if _, err := west.Client().CoreV1().Namespaces().Get(t.Context(), m.namespace, metav1.GetOptions{}); err == nil {
		t.Error("an API server that is stopped answers")
	}
	m.stay("east", "west", 2*time.Second, m.await("east", "west", long, "10.20.1.10"))
	m.must(west.Start(t.Context(), APIServer))
	for name, pid := range pids(west) {
		if restarted := pid != before[name]; restarted != (name == APIServer) {
			t.Errorf("%s was process %d and is %d", name, before[name], pid)
		}
	}

	m.run("west", "sfu-1", "10.20.2.11")
	m.await("east", "west", patience, "10.20.1.10", "10.20.2.11")
	m.run("east", "sfu-1", "10.10.2.11")
	m.await("west", "east", patience, "10.10.1.10", "10.10.2.11")
}

// A whole cluster is away; the other one believes what it last heard, and both go on afterwards.
func TestClusterAway(t *testing.T) {
	m := newMedia(t)
	m.run("east", "sfu-0", "10.10.1.10")
	gone := m.run("west", "sfu-0", "10.20.1.10")
	m.await("west", "east", long, "10.10.1.10")
	before := m.await("east", "west", long, "10.20.1.10")
	west := m.cluster("west")

	m.must(west.Stop(t.Context()))
	for name, pid := range pids(west) {
		if pid != 0 {
			t.Errorf("%s of a cluster that is stopped runs, as process %d", name, pid)
		}
	}
	m.stay("east", "west", 2*time.Second, before)
	began := time.Now()
	m.must(west.Start(t.Context()))
	t.Logf("up again after %v", time.Since(began).Round(time.Millisecond))
	m.run("west", "sfu-1", "10.20.2.11")
	m.must(west.RemovePod(t.Context(), gone))
	m.await("east", "west", patience, "10.20.2.11")
	m.run("east", "sfu-1", "10.10.2.11")
	m.await("west", "east", patience, "10.10.1.10", "10.10.2.11")
	t.Logf("the other cluster knows it all after %v", time.Since(began).Round(time.Millisecond))
}

func pids(c *Cluster) map[string]int {
	found := make(map[string]int)
	for name, p := range c.processes {
		found[name] = p.PID()
	}
	return found
}

// Slices that somebody deletes come back at once, unless those who write them are away.
func TestLoseSlices(t *testing.T) {
	m := newMedia(t)
	m.run("east", "sfu-0", "10.10.1.10")
	m.run("west", "sfu-0", "10.20.1.10")
	m.await("east", "west", long, "10.20.1.10")
	m.await("east", "", long, "10.10.1.10")
	east := m.cluster("east")

	m.must(east.LoseSlices(t.Context(), m.namespace, "sfu"))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := east.AwaitSlices(ctx, m.namespace, func(s []discoveryv1.EndpointSlice) bool { return len(s) > 0 })
	if err == nil {
		t.Error("the slices came back though nobody was there to write them")
	}
	m.must(east.Start(t.Context()))
	m.await("east", "", long, "10.10.1.10")
	m.await("east", "west", long, "10.20.1.10")

	slices := east.Client().DiscoveryV1().EndpointSlices(m.namespace)
	m.must(slices.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	began := time.Now()
	m.await("east", "", long, "10.10.1.10")
	m.await("east", "west", long, "10.20.1.10")
	t.Logf("deleted alone they are back after %v", time.Since(began).Round(time.Millisecond))
}

// A test's namespace goes, with pods for whose end no kubelet works.
func TestNamespaceGoes(t *testing.T) {
	b := shared.Bed(t)
	var namespace string
	t.Run("test", func(t *testing.T) {
		m := newMedia(t)
		namespace = m.namespace
		m.must(m.cluster("east").TerminatePod(t.Context(), m.run("east", "sfu-0", "10.10.1.10")))
		m.run("west", "sfu-0", "10.20.1.10")
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	for _, c := range b.Clusters {
		var left *corev1.Namespace
		err := poll(ctx, func() (err error) {
			left, err = c.Client().CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errNotYet
		})
		if err != nil {
			t.Errorf("in %s the namespace stays: %v, %v", c.Name, err, left.Status)
		}
	}
	t.Logf("gone after %v", time.Since(began).Round(time.Millisecond))
}
