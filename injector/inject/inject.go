// Package inject puts a sidecar into a pod: Mutate is a function of the pod, its namespace and the operator's options, and says
// why where it leaves the pod alone. The webhook calls it for pods that are created, the command line for files. It asks
// nobody, and knows no admission review.
package inject

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// What stands on pods. A pod asks for a sidecar by the label Label alone: an annotation or a namespace would not keep the API
// server from asking the webhook about every other pod too.
const (
	Domain        = "sidestream.dev/"
	Label         = Domain + "inject"
	InjectedLabel = Domain + "injected"

	// StatusAnnotation tells what was done, as a Status in JSON.
	StatusAnnotation = Domain + "status"
)

// ContainerName is what the sidecar's container is called.
const ContainerName = "sidestream"

// Names of the ports that the sidecar declares, besides the one that it takes over.
const (
	PeerPortName  = "sidestream-peer"
	adminPortName = "sidestream-adm"
	serverName    = "sidestream-sfu" // what the media server's HTTP port is called when its name is given away
)

// Names of the volumes.
const (
	stateVolume = "sidestream-state"
	tokenVolume = "sidestream-token"
	peerVolume  = "sidestream-peer"
)

// Options are what the operator decides for all pods.
type Options struct {
	// Image is the sidecar's; PullPolicy and PullSecrets (of the pod's namespace) go with it.
	Image       string
	PullPolicy  corev1.PullPolicy
	PullSecrets []string
	// Revision names this injector. Pods that name another one by annotation are left to that.
	Revision string
	// Native has the sidecar run as an init container that is restarted always. Named ports of such containers are found
	// from Kubernetes 1.33 on.
	Native bool
	// PolicyPorts are names of ports by which NetworkPolicies let traffic into the pod (PortNames). They are looked up in
	// ordinary containers alone, so that a sidecar which would take over such a name is one.
	PolicyPorts []string
	// Sidecar is what all sidecars are told, but for secrets; annotations add to it.
	Sidecar config.Config
	// Tracing are the variables of OpenTelemetry for all sidecars, as Tracing picks them; annotations add to them.
	Tracing map[string]string
	// Ports are those of sidecars. The peers' is the same in all pods of a cluster, whatever their network: where another
	// cluster's endpoints are mirrored, the numbers of single pods are lost.
	Ports Ports
	// HostPorts take the place of Ports.Gateway and Ports.Admin in pods on the host's network; zero: none are known yet.
	HostPorts HostPorts
	// PeerSecret is the Secret of the pod's namespace with what peers prove themselves by: tls.crt, tls.key and ca.crt, or
	// with a shared key: key.
	PeerSecret string
	// Resources are the sidecar's, unless annotations say others.
	Resources corev1.ResourceRequirements
}

// Ports of a sidecar.
type Ports struct{ Gateway, Peer, Admin int32 }

// HostPorts are those of one workload on its nodes.
type HostPorts struct{ Gateway, Admin int32 }

// Reason is why a pod has a sidecar or none, for metrics and programs.
type Reason string

// The reasons. With those from BadAnnotation on somebody wanted a sidecar and gets none.
const (
	Injected      Reason = "injected"
	Already       Reason = "already_injected"
	NotAsked      Reason = "not_asked"
	OtherRevision Reason = "other_revision"

	BadAnnotation Reason = "bad_annotation"
	NoServer      Reason = "no_server"     // which container is the media server, or its port, is not to be told
	NameTaken     Reason = "name_taken"    // of a container, port or volume
	PortTaken     Reason = "port_taken"    // the number
	NeedsPorts    Reason = "no_host_ports" // on the host's network, and Options.HostPorts are zero
	NotPossible   Reason = "not_possible"
)

// Reasons are all of them.
func Reasons() []Reason {
	return []Reason{
		Injected, Already, NotAsked, OtherRevision, BadAnnotation, NoServer, NameTaken, PortTaken, NeedsPorts, NotPossible,
	}
}

// Decision says what was done and why.
type Decision struct {
	Reason Reason
	// Message says it in words, and what to do.
	Message string
	// Warnings are what is not as it should be although the pod was injected.
	Warnings []string
}

// Refused says that somebody wanted a sidecar and gets none.
func (d Decision) Refused() bool {
	switch d.Reason {
	case Injected, Already, NotAsked, OtherRevision:
		return false
	}
	return true
}

// Status is what the annotation StatusAnnotation holds.
type Status struct {
	Revision  string `json:"revision"`
	Image     string `json:"image"`
	Container string `json:"container"` // the media server's
	// Capture is how traffic reaches the gateway: port-name, redirect or none, and Why somebody or something chose that.
	Capture string `json:"capture"`
	Why     string `json:"why"`
	// Gateway, Peer and Admin are the sidecar's ports.
	Gateway int32 `json:"gateway"`
	Peer    int32 `json:"peer"`
	Admin   int32 `json:"admin"`
}

// StatusOf reads what was done to a pod; false where it has no sidecar of ours.
func StatusOf(pod *corev1.Pod) (Status, bool) {
	var s Status
	if pod.Labels[InjectedLabel] != "true" || !hasSidecar(pod) {
		return s, false
	}
	err := json.Unmarshal([]byte(pod.Annotations[StatusAnnotation]), &s)
	return s, err == nil
}

// Missed says that a pod asks for a sidecar and has none, whoever is to blame.
func Missed(pod *corev1.Pod) bool {
	_, ok := StatusOf(pod)
	return pod.Labels[Label] == "true" && !ok
}

func hasSidecar(pod *corev1.Pod) bool {
	ours := func(c corev1.Container) bool { return c.Name == ContainerName }
	return slices.ContainsFunc(pod.Spec.InitContainers, ours) || slices.ContainsFunc(pod.Spec.Containers, ours)
}

// Mutate returns the pod with a sidecar, and the reason Injected; or the pod itself, and the reason why. The pod that it is
// given stays as it is. The pod need not have a name or namespace yet. Of the namespace the labels and annotations count; nil
// is one of which nothing is known.
//
// What is the user's stays where it is: containers, ports and volumes are appended to, and fields are set that were not. Two
// are changed: the name of the media server's port that the sidecar takes over, and where the server's own probes and hooks
// name that port.
func Mutate(pod *corev1.Pod, namespace *corev1.Namespace, o Options) (*corev1.Pod, Decision) {
	if pod.Labels[Label] != "true" {
		return pod, Decision{Reason: NotAsked, Message: fmt.Sprintf("the pod has no label %s: %q", Label, "true")}
	}
	if revision := pod.Annotations[Domain+"revision"]; revision != "" && revision != o.Revision {
		return pod, Decision{
			Reason: OtherRevision, Message: fmt.Sprintf("the pod is for revision %q, and this is %q", revision, o.Revision),
		}
	}
	if _, ok := StatusOf(pod); ok {
		return pod, Decision{Reason: Already, Message: "the pod has a sidecar"}
	}
	m := mutation{pod: pod.DeepCopy(), namespace: namespace, known: namespace != nil, options: o}
	if !m.known {
		m.namespace = &corev1.Namespace{}
	}
	if err := m.run(); err != nil {
		return pod, Decision{Reason: err.reason, Message: err.message}
	}
	return m.pod, Decision{Reason: Injected, Message: "the pod gets a sidecar", Warnings: m.warnings}
}

// refusal is why a pod cannot be injected.
type refusal struct {
	reason  Reason
	message string
}

func refuse(reason Reason, format string, args ...any) *refusal {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}

// mutation is one pod on its way.
type mutation struct {
	pod       *corev1.Pod
	namespace *corev1.Namespace
	known     bool // what the namespace says
	options   Options

	wishes   wishes
	sfu      *corev1.Container
	port     *corev1.ContainerPort // where the server's HTTP is declared; nil: nowhere
	native   bool
	ports    Ports
	settings []corev1.EnvVar
	capture  capture
	warnings []string
}

func (m *mutation) warn(format string, args ...any) {
	m.warnings = append(m.warnings, fmt.Sprintf(format, args...))
}

// run decides everything before it changes anything.
func (m *mutation) run() *refusal {
	for _, step := range []func() *refusal{
		m.readAnnotations, m.findServer, m.checkPod, m.choosePorts, m.chooseCapture, m.obeyPolicies, m.configure,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	sidecar := m.sidecar()
	m.giveName(&sidecar)
	m.drainFirst()
	m.addVolumes()
	if m.capture.way == Redirect {
		m.pod.Spec.InitContainers = append(m.pod.Spec.InitContainers, m.redirect())
	}
	if m.native {
		m.pod.Spec.InitContainers = append(m.pod.Spec.InitContainers, sidecar)
	} else {
		m.pod.Spec.Containers = append(m.pod.Spec.Containers, sidecar)
	}
	m.addPullSecrets()
	m.excludeFromMeshes()
	m.sign()
	return nil
}

// checkPod refuses what no sidecar can be put into.
func (m *mutation) checkPod() *refusal {
	spec := m.pod.Spec
	m.native = m.options.Native
	if m.wishes.native != nil {
		m.native = *m.wishes.native
	}
	if spec.OS != nil && spec.OS.Name != corev1.Linux {
		return refuse(NotPossible, "the sidecar runs on Linux, and the pod is for %s", spec.OS.Name)
	}
	if !m.native && spec.RestartPolicy != "" && spec.RestartPolicy != corev1.RestartPolicyAlways {
		return refuse(NotPossible, "the pod's restart policy is %s: beside an ordinary container that goes on it would never be done; "+
			"a sidecar as init container needs Kubernetes 1.33, or the annotation %snative: %q", spec.RestartPolicy, Domain, "true")
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if c.Name == ContainerName || c.Name == redirectName {
			return refuse(NameTaken, "the pod has a container of the name %s, which the sidecar's has: give it another", c.Name)
		}
		for _, p := range c.Ports {
			if p.Name == PeerPortName || p.Name == adminPortName || p.Name == serverName {
				return refuse(NameTaken, "container %s has a port of the name %s, which is the sidecar's: give it another", c.Name, p.Name)
			}
		}
	}
	for _, v := range spec.Volumes {
		if v.Name == stateVolume || v.Name == tokenVolume || v.Name == peerVolume {
			return refuse(NameTaken, "the pod has a volume of the name %s, which is the sidecar's: give it another", v.Name)
		}
	}
	return nil
}

// choosePorts takes those of the cluster, the workload or the annotations, and none that a container declares.
func (m *mutation) choosePorts() *refusal {
	m.ports = m.options.Ports
	host := m.pod.Spec.HostNetwork
	if host {
		m.ports.Gateway, m.ports.Admin = m.options.HostPorts.Gateway, m.options.HostPorts.Admin
	}
	if m.wishes.gatewayPort != 0 {
		m.ports.Gateway = m.wishes.gatewayPort
	}
	if m.wishes.adminPort != 0 {
		m.ports.Admin = m.wishes.adminPort
	}
	if host && (m.ports.Gateway == 0 || m.ports.Admin == 0) {
		return refuse(NeedsPorts, "the pod is on the host's network and no ports are set aside for it: choose two that are free on its "+
			"nodes by the annotations %sgateway-port and %sadmin-port", Domain, Domain)
	}
	mine := []struct {
		port int32
		what string
	}{
		{m.ports.Gateway, "gateway-port"},
		{m.ports.Admin, "admin-port"},
		{m.ports.Peer, ""},
	}
	for i, one := range mine {
		for _, other := range mine[:i] {
			if one.port == other.port {
				return refuse(PortTaken, "port %d would be the sidecar's twice: choose others by the annotations %sgateway-port and %sadmin-port",
					one.port, Domain, Domain)
			}
		}
	}
	for _, c := range slices.Concat(m.pod.Spec.InitContainers, m.pod.Spec.Containers) {
		for _, p := range c.Ports {
			for _, one := range mine {
				if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP || p.ContainerPort != one.port && (!host || p.HostPort != one.port) {
					continue
				}
				if one.what == "" {
					return refuse(PortTaken, "container %s declares port %d, at which all sidecars of the cluster meet their peers: move the "+
						"container's, or the sidecars' by the injector's settings, in all pods at once", c.Name, one.port)
				}
				return refuse(PortTaken, "container %s declares port %d, which is the sidecar's: choose another for the sidecar by the "+
					"annotation %s%s", c.Name, one.port, Domain, one.what)
			}
		}
	}
	return nil
}

// sign writes on the pod what was done.
func (m *mutation) sign() {
	status, err := json.Marshal(Status{
		Revision: m.options.Revision, Image: m.options.Image, Container: m.sfu.Name, Capture: string(m.capture.way), Why: m.capture.why,
		Gateway: m.ports.Gateway, Peer: m.ports.Peer, Admin: m.ports.Admin,
	})
	if err != nil { // strings and numbers
		panic(err)
	}
	m.annotate(StatusAnnotation, string(status))
	m.pod.Labels[InjectedLabel] = "true" // there are labels: one asked for this
}

func (m *mutation) annotate(name, value string) {
	if m.pod.Annotations == nil {
		m.pod.Annotations = map[string]string{}
	}
	m.pod.Annotations[name] = value
}

func (m *mutation) addPullSecrets() {
	for _, name := range m.options.PullSecrets {
		ref := corev1.LocalObjectReference{Name: name}
		if !slices.Contains(m.pod.Spec.ImagePullSecrets, ref) {
			m.pod.Spec.ImagePullSecrets = append(m.pod.Spec.ImagePullSecrets, ref)
		}
	}
}

// quoted lists names for people.
func quoted(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(q, ", ")
}
