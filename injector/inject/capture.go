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
// the kernel sends what comes for the number of the server's port to the gateway; or the Services stay as they are, and streams
// are carried by pins.
const (
	PortName way = "port-name"
	Redirect way = "redirect"
	None     way = "none"
)

// redirectName is what the container is called that sets the redirection up.
const redirectName = "sidestream-redirect"

// securityLabel says on a namespace what pods may do there (Pod Security admission).
const securityLabel = "pod-security.kubernetes.io/enforce"

// capture is the way that was chosen, and why.
type capture struct {
	way way
	why string
}

// chooseCapture takes the annotation's way, else port-name where the server's port has a name that leads to it alone. It never
// chooses redirect by itself: that takes a container with rights.
func (m *mutation) chooseCapture() *refusal {
	obstacle := m.nameless()
	switch {
	case m.wishes.capture == None:
		m.capture = capture{None, "the annotation says so"}
	case m.wishes.capture == Redirect:
		if err := m.redirectable(); err != nil {
			return err
		}
		m.capture = capture{Redirect, "the annotation says so"}
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

// redirectable refuses a redirection where Kubernetes would not create the pod with it, or something else is in its way.
func (m *mutation) redirectable() *refusal {
	if m.pod.Spec.HostNetwork {
		return refuse(NotPossible, "%scapture is %s, and the pod is on the host's network, where it would be everybody's: take it away",
			Domain, Redirect)
	}
	if !m.known {
		return refuse(NotPossible, "%scapture is %s, and what the pod's namespace allows could not be read: try again", Domain, Redirect)
	}
	if level := m.namespace.Labels[securityLabel]; level != "" && level != "privileged" {
		return refuse(NotPossible, "%scapture is %s, which takes NET_ADMIN, and the namespace's %s is %s: have the Service name its "+
			"targetPort instead, or label the namespace privileged", Domain, Redirect, securityLabel, level)
	}
	for _, mesh := range meshes {
		if m.meshed(mesh) {
			return refuse(NotPossible, "%scapture is %s, and %s takes the pod's traffic to itself: have the Service name its targetPort instead",
				Domain, Redirect, mesh.name)
		}
	}
	switch number := m.number(); {
	case number < 1 || number > 65535:
		return refuse(BadAnnotation, "%sport is %q: write a port's number, or the name of one that the container declares",
			Domain, m.wishes.port)
	case number == m.ports.Gateway:
		return refuse(PortTaken, "port %d is the media server's, and would be the sidecar's: choose another for the sidecar by the annotation "+
			"%sgateway-port", number, Domain)
	}
	if m.probed() {
		m.warn("the kubelet's probes of the media server's port %d reach it through the sidecar: while that is not there they fail", m.number())
	}
	return nil
}

// number is that of the server's port.
func (m *mutation) number() int32 {
	if m.port != nil {
		return m.port.ContainerPort
	}
	return m.wantedPort().IntVal
}

// probed says that the kubelet asks at the server's port whether it is well.
func (m *mutation) probed() bool {
	leads := func(p intstr.IntOrString) bool {
		return p == intstr.FromInt32(m.number()) || p.Type == intstr.String && m.port != nil && p.StrVal == m.port.Name
	}
	for _, probe := range []*corev1.Probe{m.sfu.LivenessProbe, m.sfu.ReadinessProbe, m.sfu.StartupProbe} {
		if probe != nil && (probe.HTTPGet != nil && leads(probe.HTTPGet.Port) || probe.TCPSocket != nil && leads(probe.TCPSocket.Port)) {
			return true
		}
	}
	return false
}

// redirect is the container that sets the redirection up and ends; it is the only one of ours with rights.
func (m *mutation) redirect() corev1.Container {
	return corev1.Container{
		Name:            redirectName,
		Image:           m.options.Image,
		ImagePullPolicy: m.options.PullPolicy,
		Args:            []string{"redirect", strconv.Itoa(int(m.number())), strconv.Itoa(int(m.ports.Gateway))},
		Resources:       m.resources(), // those of the sidecar, so that the pod wants no more than it does
		SecurityContext: &corev1.SecurityContext{
			// Capabilities that are added are effective for user 0 alone.
			RunAsNonRoot: new(false), RunAsUser: new(int64(0)), RunAsGroup: new(int64(0)),
			AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), Privileged: new(false),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
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

// serviceMesh is one whose proxies take a pod's TCP to themselves, except for what annotations list.
type serviceMesh struct {
	name, proxy, setup string            // the containers'
	asked              map[string]string // labels or annotations by which pods or namespaces ask for the proxy; "": any value
	inbound, outbound  string
}

// meshes are those that are known.
var meshes = []serviceMesh{
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
		if !m.meshed(mesh) {
			continue
		}
		late := m.exclude(mesh.inbound, m.ports.Peer, m.ports.Admin)
		late = m.exclude(mesh.outbound, m.ports.Peer) || late
		if late && m.has(mesh.setup) { // which read the annotations before we came
			m.warn("%s has set up the pod's network already: put %s: \"%d,%d\" and %s: \"%d\" into the pod's template",
				mesh.name, mesh.inbound, m.ports.Peer, m.ports.Admin, mesh.outbound, m.ports.Peer)
		}
	}
}

// meshed says that a service mesh has its proxy in the pod, or will.
func (m *mutation) meshed(mesh serviceMesh) bool {
	for name, value := range mesh.asked {
		if m.says(name, value) {
			return true
		}
	}
	return m.has(mesh.proxy)
}

// has says that the pod has a container of a name.
func (m *mutation) has(name string) bool {
	named := func(c corev1.Container) bool { return c.Name == name }
	return slices.ContainsFunc(m.pod.Spec.InitContainers, named) || slices.ContainsFunc(m.pod.Spec.Containers, named)
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
