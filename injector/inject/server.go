package inject

import (
	"maps"
	"net/url"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// server is what is known of a make of media server.
type server struct {
	port int32  // of its WHIP and WHEP, unless it is told otherwise; 0: there is no usual one
	path string // below which it has them
	// told says that the sidecar must be told where the server is, though it be at the usual port.
	told bool
}

// servers are the makes by the names of their adapters.
var servers = map[string]server{
	config.PionSFU:     {port: 8800, told: true},
	"mediamtx":         {port: 8889},
	"broadcastbox":     {port: 8080},
	config.JanusName:   {port: 8088, path: "/janus"},
	config.Generically: {told: true},
}

func adapters() []string { return slices.Sorted(maps.Keys(servers)) }

// findServer finds the media server's container among the pod's, and where that declares its HTTP port.
func (m *mutation) findServer() *refusal {
	containers := m.pod.Spec.Containers
	name, wanted := m.wishes.container, m.wantedPort()
	if wanted == intstr.FromInt32(0) {
		return refuse(NoServer, "the annotation %sport is missing: a %s server has no usual port; write the number, or the name, of the one "+
			"where it speaks HTTP", Domain, m.wishes.adapter)
	}
	var candidates []int
	for i, c := range containers {
		if c.Name == name || !isProxy(c) {
			candidates = append(candidates, i)
		}
	}
	if name != "" {
		candidates = slices.DeleteFunc(candidates, func(i int) bool { return containers[i].Name != name })
		if len(candidates) == 0 {
			return refuse(NoServer, "%scontainer is %q, and the pod has no such container", Domain, name)
		}
	}
	if len(candidates) > 1 { // the one that declares the port
		candidates = slices.DeleteFunc(candidates, func(i int) bool { return portOf(&containers[i], wanted) == nil })
	}
	if len(candidates) != 1 {
		return refuse(NoServer, "which of the pod's containers is the media server is not to be told: %d declare its port %s; "+
			"name it by the annotation %scontainer", len(candidates), wanted.String(), Domain)
	}
	m.sfu = &m.pod.Spec.Containers[candidates[0]]
	m.port = portOf(m.sfu, wanted)
	if m.port == nil && wanted.Type == intstr.String {
		return refuse(NoServer, "container %s declares no port %s: write the number of the media server's HTTP port in the annotation %sport",
			m.sfu.Name, wanted.String(), Domain)
	}
	return nil
}

// isProxy knows the containers of service meshes.
func isProxy(c corev1.Container) bool {
	for _, mesh := range meshes {
		if c.Name == mesh.proxy {
			return true
		}
	}
	return false
}

// wantedPort is the number or name of the media server's HTTP port.
func (m *mutation) wantedPort() intstr.IntOrString {
	if m.wishes.port != "" {
		return intstr.Parse(m.wishes.port)
	}
	if u, err := url.Parse(m.wishes.values[config.Prefix+"ADAPTER_URL"]); err == nil {
		if n, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
			return intstr.FromInt32(int32(n))
		}
	}
	return intstr.FromInt32(servers[m.wishes.adapter].port)
}

func portOf(c *corev1.Container, wanted intstr.IntOrString) *corev1.ContainerPort {
	for i, p := range c.Ports {
		if (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) &&
			(wanted.Type == intstr.Int && p.ContainerPort == wanted.IntVal || wanted.Type == intstr.String && p.Name == wanted.StrVal) {
			return &c.Ports[i]
		}
	}
	return nil
}

// addressServer tells the sidecar at which port of the pod the server is, where it would not know.
func (m *mutation) addressServer(c *config.Config) *refusal {
	if m.wishes.values[config.Prefix+"ADAPTER_URL"] != "" {
		if m.wishes.port != "" {
			return refuse(BadAnnotation, "%sport and %sadapter-url are both set: leave one away", Domain, Domain)
		}
		return nil
	}
	known, port := servers[m.wishes.adapter], m.wantedPort().IntVal
	if m.port != nil {
		port = m.port.ContainerPort
	}
	if port < 1 || port > 65535 {
		return refuse(BadAnnotation, "%sport is %q: write a port's number, or the name of one that the container declares",
			Domain, m.wishes.port)
	}
	if known.told || port != known.port {
		c.Adapter.URL = &url.URL{Scheme: "http", Host: listen(port), Path: known.path}
	}
	return nil
}
