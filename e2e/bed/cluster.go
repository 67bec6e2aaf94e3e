package bed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// The names of a cluster's processes, for [Cluster.Process]. The last three run where clusters are joined.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	MeshEtcd          = "mesh-etcd"             // what the cluster tells the others
	MeshAPIServer     = "clustermesh-apiserver" // fills it
	MeshSync          = "meshsync"              // reads the others' and writes EndpointSlices
)

// controllers are those that a test may need the work of. Left out are above all those that look after nodes, which would
// take our nodes for dead and evict their pods: they send no heartbeats.
var controllers = []string{
	"endpointslice-controller", "endpointslice-mirroring-controller",
	"serviceaccount-controller", "serviceaccount-token-controller", "root-ca-certificate-publisher-controller",
	"namespace-controller", "garbage-collector-controller", "clusterrole-aggregation-controller",
	"deployment-controller", "replicaset-controller", "statefulset-controller", "daemonset-controller", "job-controller",
	"disruption-controller",
}

// Cluster is a control plane, with a mesh of its own to the others. There is no scheduler and no kubelet: pods become
// ready, unready and gone as the test says ([Cluster.RunPod] and those after it).
type Cluster struct {
	Name string

	id        int // of the mesh, from 1
	dir       string
	authority *authority
	config    *rest.Config
	client    *kubernetes.Clientset
	mesh      string // address of the mesh's etcd
	binaries  Binaries
	processes map[string]*Process
}

// Config is an administrator's. Change a copy ([rest.CopyConfig]).
func (c *Cluster) Config() *rest.Config { return c.config }

// Client is an administrator's.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Process is one of the cluster's processes by name. It panics where the cluster has none of that name, as one that is not
// joined has none of the mesh's.
func (c *Cluster) Process(name string) *Process {
	p, ok := c.processes[name]
	if !ok {
		panic(fmt.Sprintf("bed: cluster %s has no process %q", c.Name, name))
	}
	return p
}

// inOrder are those of a cluster's processes that have the names, all where there are none, in the order of a start.
func (c *Cluster) inOrder(names []string) (processes []*Process) {
	for _, name := range names {
		c.Process(name) // must be there
	}
	for _, name := range []string{Etcd, APIServer, ControllerManager, MeshEtcd, MeshAPIServer, MeshSync} {
		if p, ok := c.processes[name]; ok && (len(names) == 0 || slices.Contains(names, name)) {
			processes = append(processes, p)
		}
	}
	return processes
}

// Stop kills the processes of these names, or all, as the death of their machine would, and returns when they have gone:
// Stop(ctx, bed.APIServer) takes away the API server alone, Stop(ctx) the whole cluster. They stay down until [Cluster.Start].
// What depends on them runs on, and has its own idea of how long to wait before it tries again.
func (c *Cluster) Stop(ctx context.Context, names ...string) error {
	processes := c.inOrder(names)
	slices.Reverse(processes)
	for _, p := range processes {
		if err := p.Stop(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the processes of these names, or all, and returns when they work; those that run stay. State is what it was.
//
// What has been without the API server notices later, for it waits longer and longer between attempts: when that had been
// away alone for a minute, EndpointSlices were right again 40 s after its start, those of other clusters after 75 s; when
// the whole cluster had been, after 9 s. A test that cannot wait stops and starts all.
func (c *Cluster) Start(ctx context.Context, names ...string) error {
	for _, p := range c.inOrder(names) {
		if err := p.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Memory is what the cluster's processes have resident, in bytes; 0 where the system does not tell.
func (c *Cluster) Memory() int64 {
	var sum int64
	for _, p := range c.processes {
		sum += p.Memory()
	}
	return sum
}

// node and zone are of the node that each cluster has from the start.
func (c *Cluster) node() string { return c.Name + "-node" }
func (c *Cluster) zone() string { return c.Name + "-zone" }

// newCluster lays out a cluster in a folder. Nothing runs yet.
func newCluster(name string, id int, dir string, config Config, taken *ports) (*Cluster, error) {
	c := &Cluster{
		Name: name, id: id, dir: filepath.Join(dir, name), binaries: config.Binaries, processes: make(map[string]*Process),
	}
	logs := filepath.Join(config.Logs, name)
	for _, folder := range []string{c.dir, logs, c.meshConfig()} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, fmt.Errorf("lay out %s: %w", name, err)
		}
	}
	addresses := make(map[string]string)
	for _, use := range []string{"etcd", "etcd peer", "api", "manager", "mesh", "mesh peer", "mesh api health"} {
		address, err := taken.take()
		if err != nil {
			return nil, fmt.Errorf("lay out %s: %w", name, err)
		}
		addresses[use] = address
	}
	port := func(use string) string { _, port, _ := net.SplitHostPort(addresses[use]); return port }
	c.mesh = addresses["mesh"]

	if err := c.credentials("https://" + addresses["api"]); err != nil {
		return nil, fmt.Errorf("make credentials of %s: %w", name, err)
	}
	if err := os.WriteFile(c.file("mesh-etcd.yaml"), etcdConfig(c.mesh), 0o644); err != nil {
		return nil, fmt.Errorf("lay out %s: %w", name, err)
	}

	// A process gets a name, a binary, how it says that it is ready, and its arguments.
	add := func(name, binary string, ready func(context.Context) error, args ...string) {
		c.processes[name] = &Process{
			name: c.Name + "/" + name, path: config.Binaries.path(binary), args: args, ready: ready,
			dir: c.file(name), log: filepath.Join(logs, name+".log"), changed: make(chan struct{}),
		}
	}
	etcd := func(name, client, peer string) {
		add(name, "etcd", answers(http.DefaultClient, "http://"+client+"/health"),
			"--name="+name, "--data-dir="+c.file(name),
			"--listen-client-urls=http://"+client, "--advertise-client-urls=http://"+client,
			"--listen-peer-urls=http://"+peer, "--initial-advertise-peer-urls=http://"+peer, "--initial-cluster="+name+"=http://"+peer,
			"--unsafe-no-fsync", // a machine that dies takes the test with it anyway
			"--log-level=warn")
	}
	secure := c.httpClient()
	etcd(Etcd, addresses["etcd"], addresses["etcd peer"])
	add(APIServer, "kube-apiserver", answers(secure, "https://"+addresses["api"]+"/readyz"),
		"--etcd-servers=http://"+addresses["etcd"],
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+port("api"),
		"--endpoint-reconciler-type=none", // else loopback as an endpoint is refused
		"--service-cluster-ip-range="+fmt.Sprintf("10.%d.0.0/16", 96+id),
		"--tls-cert-file="+c.file("server.crt"), "--tls-private-key-file="+c.file("server.key"), "--client-ca-file="+c.file("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+c.file("accounts.key"), "--service-account-signing-key-file="+c.file("accounts.key"),
		"--authorization-mode=RBAC", "--allow-privileged", "--profiling=false", "--v=1")
	add(ControllerManager, "kube-controller-manager", answers(secure, "https://"+addresses["manager"]+"/healthz"),
		"--kubeconfig="+c.Kubeconfig(), "--authentication-kubeconfig="+c.Kubeconfig(), "--authorization-kubeconfig="+c.Kubeconfig(),
		"--bind-address=127.0.0.1", "--secure-port="+port("manager"),
		"--tls-cert-file="+c.file("server.crt"), "--tls-private-key-file="+c.file("server.key"),
		"--service-account-private-key-file="+c.file("accounts.key"), "--root-ca-file="+c.file("ca.crt"),
		"--cluster-name="+name, "--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=1000", "--profiling=false",
		"--controllers="+strings.Join(controllers, ","))
	if len(config.Clusters) < 2 {
		return c, nil
	}
	etcd(MeshEtcd, addresses["mesh"], addresses["mesh peer"])
	of := []string{"--cluster-name=" + name, fmt.Sprintf("--cluster-id=%d", id), "--k8s-kubeconfig-path=" + c.Kubeconfig()}
	add(MeshAPIServer, "clustermesh-apiserver", answers(http.DefaultClient, "http://"+addresses["mesh api health"]+"/readyz"),
		append([]string{
			"clustermesh", "--kvstore-opt=etcd.config=" + c.file("mesh-etcd.yaml"), "--health-port=" + port("mesh api health"),
			"--enable-gops=false", "--shell-sock-path=" + c.file("mesh.sock"),
		}, of...)...)
	add(MeshSync, "meshsync", nil,
		append([]string{
			"--clustermesh-enable-endpoint-sync", "--clustermesh-config=" + c.meshConfig(),
			"--clustermesh-sync-timeout=" + config.syncTimeout().String(),
		}, of...)...)
	return c, nil
}

func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

// meshConfig is a folder with a file for each remote cluster, named after it.
func (c *Cluster) meshConfig() string { return c.file("remotes") }

func etcdConfig(address string) []byte { return []byte("endpoints:\n- http://" + address + "\n") }

// credentials writes the files by which the processes know each other, and makes the administrator's clients.
func (c *Cluster) credentials(server string) error {
	var err error
	if c.authority, err = newAuthority(c.Name + "-ca"); err != nil {
		return err
	}
	serving, err := c.authority.server(
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}, net.IPv4(127, 0, 0, 1))
	if err != nil {
		return err
	}
	_, accounts, err := newKey()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"ca.crt": c.authority.pem, "server.crt": serving.certificate, "server.key": serving.key, "accounts.key": accounts,
	} {
		if err := os.WriteFile(c.file(name), content, 0o600); err != nil {
			return err
		}
	}
	admin, err := c.authority.user("admin", "system:masters")
	if err != nil {
		return err
	}
	c.config = &rest.Config{
		Host:            server,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.authority.pem, CertData: admin.certificate, KeyData: admin.key},
		QPS:             -1, // tests do not wait for themselves
	}
	if c.client, err = kubernetes.NewForConfig(c.config); err != nil {
		return err
	}
	return c.writeKubeconfig(c.Kubeconfig(), c.config, "")
}

func (c *Cluster) httpClient() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(c.authority.certificate)
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
	}}
}

// answers asks for a 200.
func answers(client *http.Client, url string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		request.Close = true
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s: %s", url, response.Status, body)
		}
		return nil
	}
}

// up starts the control plane, and returns when it works.
func (c *Cluster) up(ctx context.Context) error {
	if err := c.Start(ctx, Etcd, APIServer); err != nil {
		return err
	}
	if err := c.AddNode(ctx, c.node(), c.zone()); err != nil {
		return err
	}
	if err := c.Start(ctx, ControllerManager); err != nil {
		return err
	}
	return c.account(ctx, metav1.NamespaceDefault)
}

// upMesh starts what tells the other clusters of this one.
func (c *Cluster) upMesh(ctx context.Context) error {
	for _, name := range resources {
		if err := c.addResource(ctx, name); err != nil {
			return fmt.Errorf("add custom resource %s to %s: %w", name, c.Name, err)
		}
	}
	return c.Start(ctx, MeshEtcd, MeshAPIServer)
}

// addResource adds a custom resource of Cilium's and waits until it is served.
func (c *Cluster) addResource(ctx context.Context, name string) error {
	content, err := os.ReadFile(c.binaries.path(name + ".yaml"))
	if err != nil {
		return err
	}
	const path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	raw := c.client.Discovery().RESTClient()
	err = raw.Post().AbsPath(path).SetHeader("Content-Type", "application/yaml").Body(content).Do(ctx).Error()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	return poll(ctx, func() error {
		return raw.Get().AbsPath("/apis/cilium.io/v2", name).Do(ctx).Error()
	})
}

// account waits until a namespace has the service account that its pods need.
func (c *Cluster) account(ctx context.Context, namespace string) error {
	err := poll(ctx, func() error {
		_, err := c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for the service account of %s/%s: %w", c.Name, namespace, err)
	}
	return nil
}

// poll tries until there is no error or ctx ends.
func poll(ctx context.Context, try func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(err, ctx.Err()) {
				return err
			}
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}
