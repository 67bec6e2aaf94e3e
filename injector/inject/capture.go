package inject

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// way is how traffic reaches the gateway.
type way string

// The ways: the sidecar has the name of the server's port, so that a Service which names its targetPort leads to the gateway;
// or the Services stay as they are, and streams are carried by pins.
const (
	PortName way = "port-name"
	None     way = "none"
)

// capture is the way that was chosen, and why.
type capture struct {
	way way
	why string
}

// chooseCapture takes the annotation's way, else port-name where the server's port has a name that leads to it alone.
func (m *mutation) chooseCapture() *refusal {
	obstacle := m.nameless()
	switch {
	case m.wishes.capture == None:
		m.capture = capture{None, "the annotation says so"}
	case m.wishes.capture == PortName && obstacle != "":
		return refuse(NoServer, "%scapture is %s, but %s", Domain, PortName, obstacle)
	case m.wishes.capture == PortName:
		m.capture = capture{PortName, "the annotation says so"}
	case obstacle != "":
		m.capture = capture{None, obstacle}
		m.warn("no traffic reaches the sidecar: %s; have the Service's targetPort be %d, or name the port there and in the container",
			obstacle, m.ports.Gateway)
	default:
		m.capture = capture{PortName, fmt.Sprintf("the port of the media server has the name %s", m.port.Name)}
	}
	if m.capture.way == PortName && m.port.HostPort != 0 && !m.pod.Spec.HostNetwork {
		m.warn("who comes by the node's port %d goes past the sidecar", m.port.HostPort)
	}
	return nil
}

// nameless says why the name of the server's port cannot be given to the sidecar; "": it can.
func (m *mutation) nameless() string {
	if m.port == nil {
		return fmt.Sprintf("container %s does not declare port %s", m.sfu.Name, new(m.wantedPort()).String())
	}
	if m.port.Name == "" {
		return fmt.Sprintf("port %d of container %s has no name", m.port.ContainerPort, m.sfu.Name)
	}
	for _, c := range slices.Concat(m.pod.Spec.InitContainers, m.pod.Spec.Containers) {
		for _, p := range c.Ports {
			if p.Name == m.port.Name && (c.Name != m.sfu.Name || p.ContainerPort != m.port.ContainerPort) {
				return fmt.Sprintf("container %s has a port of the name %s too", c.Name, p.Name)
			}
		}
	}
	return ""
}

// giveName gives the name of the server's port to the sidecar's gateway. The server keeps its number, under another name; its
// probes and hooks, whose names are looked up in its own container, get the number.
func (m *mutation) giveName(sidecar *corev1.Container) {
	if m.capture.way != PortName {
		return
	}
	name, number := m.port.Name, intstr.FromInt32(m.port.ContainerPort)
	m.port.Name = serverName
	for i := range sidecar.Ports {
		if sidecar.Ports[i].ContainerPort == m.ports.Gateway {
			sidecar.Ports[i].Name = name
		}
	}
	replace := func(p *intstr.IntOrString) {
		if p.Type == intstr.String && p.StrVal == name {
			*p = number
		}
	}
	for _, probe := range []*corev1.Probe{m.sfu.LivenessProbe, m.sfu.ReadinessProbe, m.sfu.StartupProbe} {
		if probe != nil && probe.HTTPGet != nil {
			replace(&probe.HTTPGet.Port)
		}
		if probe != nil && probe.TCPSocket != nil {
			replace(&probe.TCPSocket.Port)
		}
	}
	if m.sfu.Lifecycle == nil {
		return
	}
	for _, hook := range []*corev1.LifecycleHandler{m.sfu.Lifecycle.PostStart, m.sfu.Lifecycle.PreStop} {
		if hook != nil && hook.HTTPGet != nil {
			replace(&hook.HTTPGet.Port)
		}
		if hook != nil && hook.TCPSocket != nil {
			replace(&hook.TCPSocket.Port)
		}
	}
}

// meshes are the service meshes whose proxies take a pod's TCP to themselves, except for what annotations list.
var meshes = []struct {
	name, proxy, setup string            // the containers'
	asked              map[string]string // labels or annotations by which pods or namespaces ask for the proxy; "": any value
	inbound, outbound  string
}{
	{
		"Istio", "istio-proxy", "istio-init",
		map[string]string{"sidecar.istio.io/inject": "true", "istio-injection": "enabled", "istio.io/rev": ""},
		"traffic.sidecar.istio.io/excludeInboundPorts", "traffic.sidecar.istio.io/excludeOutboundPorts",
	},
	{
		"Linkerd", "linkerd-proxy", "linkerd-init",
		map[string]string{"linkerd.io/inject": "enabled"},
		"config.linkerd.io/skip-inbound-ports", "config.linkerd.io/skip-outbound-ports",
	},
}

// excludeFromMeshes has the proxies of service meshes leave the port of the peers alone, which is encrypted already and whose
// peers have no such proxy, and that of administration. Media is UDP, which they do not touch.
func (m *mutation) excludeFromMeshes() {
	for _, mesh := range meshes {
		has := func(name string) bool {
			named := func(c corev1.Container) bool { return c.Name == name }
			return slices.ContainsFunc(m.pod.Spec.InitContainers, named) || slices.ContainsFunc(m.pod.Spec.Containers, named)
		}
		present := has(mesh.proxy)
		for name, value := range mesh.asked {
			present = present || m.says(name, value)
		}
		if !present {
			continue
		}
		late := m.exclude(mesh.inbound, m.ports.Peer, m.ports.Admin)
		late = m.exclude(mesh.outbound, m.ports.Peer) || late
		if late && has(mesh.setup) { // which read the annotations before we came
			m.warn("%s has set up the pod's network already: put %s: \"%d,%d\" and %s: \"%d\" into the pod's template",
				mesh.name, mesh.inbound, m.ports.Peer, m.ports.Admin, mesh.outbound, m.ports.Peer)
		}
	}
}

// says tells whether a label or annotation of the pod or its namespace has a value, or with "" any.
func (m *mutation) says(name, value string) bool {
	for _, from := range []map[string]string{m.pod.Labels, m.pod.Annotations, m.namespace.Labels, m.namespace.Annotations} {
		if v, ok := from[name]; ok { // the pod's own word counts before the namespace's
			return v == value || value == "" && v != ""
		}
	}
	return false
}

// exclude adds ports to a list in an annotation, and says whether any was missing.
func (m *mutation) exclude(annotation string, ports ...int32) (added bool) {
	var list []string
	if given := m.pod.Annotations[annotation]; given != "" {
		list = strings.Split(given, ",")
	}
	for _, port := range ports {
		number := strconv.Itoa(int(port))
		if !slices.ContainsFunc(list, func(s string) bool { return s == "*" || strings.TrimSpace(s) == number }) {
			list, added = append(list, number), true
		}
	}
	if added {
		m.annotate(annotation, strings.Join(list, ","))
	}
	return added
}
