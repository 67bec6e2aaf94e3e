package bed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sidestream-dev/sidestream/e2e/wan"
)

// road is the way on which one cluster's sync reads another cluster's etcd.
type road struct {
	listener net.Listener
	to       string
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
}

// run takes connections until ctx ends. A connection stands while the link is cut, as one does whose packets are lost.
func (r *road) run(ctx context.Context) error {
	var carriers sync.WaitGroup
	defer carriers.Wait()
	stop := context.AfterFunc(ctx, func() { _ = r.listener.Close() })
	defer stop()
	for {
		near, err := r.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("carry the mesh to %s: %w", r.to, err)
		}
		carriers.Go(func() { r.carry(ctx, near) })
	}
}

func (r *road) carry(ctx context.Context, near net.Conn) {
	Carry(ctx, near, func(ctx context.Context) (net.Conn, error) { return r.dial(ctx, "tcp", r.to) })
}

// Carry carries bytes between a connection and one that it dials, until either ends or ctx does; both are closed then. Where the
// other cannot be dialled, that is the end.
func Carry(ctx context.Context, near net.Conn, dial func(context.Context) (net.Conn, error)) {
	defer near.Close()
	far, err := dial(ctx)
	if err != nil {
		return
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
	defer stop()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(near, far)
		_ = near.Close()
	})
	_, _ = io.Copy(far, near)
	_ = far.Close()
	back.Wait()
}

// join lays a link between two clusters and has each know the other.
func (b *Bed) join(east, west *Cluster, seed uint64) error {
	link := wan.NewLink(seed, wan.Params{})
	b.links[[2]string{east.Name, west.Name}] = link
	b.links[[2]string{west.Name, east.Name}] = link.Reversed()
	for _, way := range [][2]*Cluster{{east, west}, {west, east}} {
		from, to := way[0], way[1]
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("join %s and %s: %w", east.Name, west.Name, err)
		}
		seen := b.Link(from.Name, to.Name)
		b.roads = append(b.roads, &road{
			listener: listener, to: to.mesh, dial: b.network.Dialer(nil, func(string) wan.Link { return seen }),
		})
		file := filepath.Join(from.meshConfig(), to.Name)
		if err := os.WriteFile(file, etcdConfig(listener.Addr().String()), 0o644); err != nil {
			return fmt.Errorf("join %s and %s: %w", east.Name, west.Name, err)
		}
	}
	return nil
}

// Link is the link between two clusters as the first sees it, on which each's sync reads the other. It is perfect until a
// test sets it; wrap sockets in it too where media should suffer with the mesh. Set replaces all parameters: Cut and Heal
// are for a perfect link.
func (b *Bed) Link(from, to string) wan.Link {
	link, ok := b.links[[2]string{from, to}]
	if !ok {
		panic(fmt.Sprintf("bed: no link joins %q and %q", from, to))
	}
	return link
}

// Cut loses everything between two clusters' control planes, both ways, until Heal. Connections stand still and go on when
// it is healed, as over a route that comes back; Cilium's client gives up those that stood for long, and dials anew.
func (b *Bed) Cut(one, other string) { b.Link(one, other).Set(wan.Params{Cut: true}) }

// Heal makes the link between two clusters perfect again.
func (b *Bed) Heal(one, other string) { b.Link(one, other).Set(wan.Params{}) }

// GlobalService is a headless Service, selecting the pods with the label app=name, whose endpoints Cilium shows to all
// clusters that have a Service of that name in that namespace.
func GlobalService(namespace, name string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: namespace, Labels: map[string]string{"app": name},
			Annotations: map[string]string{"service.cilium.io/global": "true"},
		},
		Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": name}, Ports: ports},
	}
}

// synced waits until each cluster sees an endpoint of each other one: only then do the syncs pass on within half a second.
func (b *Bed) synced(ctx context.Context) error {
	const name = "bed-probe"
	for i, c := range b.Clusters {
		if err := c.AddNamespace(ctx, name, nil); err != nil {
			return err
		}
		service := GlobalService(name, name, corev1.ServicePort{Name: "probe", Port: 9, TargetPort: intstr.FromInt32(9)})
		if _, err := c.client.CoreV1().Services(name).Create(ctx, service, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("probe the mesh from %s: %w", c.Name, err)
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: name, Labels: service.Labels}}
		if _, err := c.RunPod(ctx, pod, netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})); err != nil { // RFC 5737: TEST-NET-1
			return err
		}
	}
	var errs []error
	for _, c := range b.Clusters {
		_, err := c.AwaitSlices(ctx, name, func(slices []discoveryv1.EndpointSlice) bool {
			for _, other := range b.Clusters {
				if other != c && len(Addresses(From(slices, other.Name))) == 0 {
					return false
				}
			}
			return true
		})
		errs = append(errs, err)
	}
	for _, c := range b.Clusters {
		errs = append(errs, c.removeNamespace(ctx, name))
	}
	return errors.Join(errs...)
}

// defaultSyncTimeout is Cilium's own.
const defaultSyncTimeout = time.Minute
