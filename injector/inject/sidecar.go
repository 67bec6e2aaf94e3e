package inject

import (
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sidestream-dev/sidestream/sidecar/config"
)

const (
	// user is who the sidecar runs as.
	user = 65532

	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	peerDir    = "/etc/sidestream/peer-tls"
	peerKey    = "key" // of the Secret, with a shared key

	stateLimit = "64Mi"
	// reserve is how long before the pod's end a drain must be over.
	reserve = 5 * time.Second
	// usualGrace is a pod's termination grace period that says nothing of it.
	usualGrace = 30 * time.Second
)

// sidecar is the container. It declares its ports, of which giveName may rename one.
func (m *mutation) sidecar() corev1.Container {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: config.Prefix + name, ValueFrom: &corev1.EnvVarSource{
			FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path},
		}}
	}
	c := corev1.Container{
		Name:            ContainerName,
		Image:           m.options.Image,
		ImagePullPolicy: m.options.PullPolicy,
		Args:            []string{"run"},
		Env: append([]corev1.EnvVar{
			field("NODE_ID", "metadata.uid"), field("NAMESPACE", "metadata.namespace"), field("POD_IP", "status.podIP"),
		}, m.settings...),
		Resources: m.resources(),
		SecurityContext: &corev1.SecurityContext{ // what Pod Security "restricted" wants
			RunAsNonRoot: new(true), RunAsUser: new(int64(user)), RunAsGroup: new(int64(user)),
			AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), Privileged: new(false),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: []corev1.VolumeMount{
			{Name: stateVolume, MountPath: defaults.StateDir},
			// Kubernetes would mount its own there, unless the pod forbids it: this one is the sidecar's alone.
			{Name: tokenVolume, MountPath: accountDir, ReadOnly: true},
		},
		// No startup probe: the media server does not wait for the sidecar, and starts where that cannot.
		LivenessProbe:  &corev1.Probe{ProbeHandler: m.get("/livez"), PeriodSeconds: 10, TimeoutSeconds: 2, FailureThreshold: 6},
		ReadinessProbe: &corev1.Probe{ProbeHandler: m.get("/readyz"), PeriodSeconds: 2, TimeoutSeconds: 3, FailureThreshold: 3},
		// The children look for other parents from the first moment, whatever the server's own hook does. An ordinary container
		// would be told to end at that moment.
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: m.get("/drain").HTTPGet}},
	}
	if m.peerSecret() {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: peerVolume, MountPath: peerDir, ReadOnly: true})
	}
	for _, p := range []struct {
		name string
		port int32
	}{{"", m.ports.Gateway}, {PeerPortName, m.ports.Peer}, {adminPortName, m.ports.Admin}} {
		declared := corev1.ContainerPort{Name: p.name, ContainerPort: p.port, Protocol: corev1.ProtocolTCP}
		if m.pod.Spec.HostNetwork {
			declared.HostPort = p.port // the scheduler keeps two apart by it
		}
		c.Ports = append(c.Ports, declared)
	}
	if limit, ok := c.Resources.Limits[corev1.ResourceMemory]; ok {
		c.Env = append(c.Env, corev1.EnvVar{Name: "GOMEMLIMIT", Value: strconv.FormatInt(limit.Value()/10*9, 10)})
	}
	if m.native {
		c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	}
	return c
}

// get asks the sidecar's port of administration.
func (m *mutation) get(path string) corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
		Path: path, Port: intstr.FromInt32(m.ports.Admin), Scheme: corev1.URISchemeHTTP,
	}}
}

// resources are the options', changed by annotations. In a pod of guaranteed quality the sidecar's requests are its limits:
// any other would cost the media server its own cores.
func (m *mutation) resources() corev1.ResourceRequirements {
	r := *m.options.Resources.DeepCopy()
	set := func(list *corev1.ResourceList, of corev1.ResourceName, q resource.Quantity) {
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[of] = q
	}
	for name, q := range m.wishes.resources {
		a := resourceAnnotations[name]
		if a.limit {
			set(&r.Limits, a.of, q)
		} else {
			set(&r.Requests, a.of, q)
		}
	}
	for of, limit := range r.Limits { // the API server refuses a request above its limit
		if request, ok := r.Requests[of]; ok && request.Cmp(limit) > 0 {
			r.Requests[of] = limit
		}
	}
	if m.guaranteed() {
		for of, usual := range map[corev1.ResourceName]string{corev1.ResourceCPU: "1", corev1.ResourceMemory: "512Mi"} {
			if _, ok := r.Limits[of]; !ok {
				set(&r.Limits, of, resource.MustParse(usual))
			}
			set(&r.Requests, of, r.Limits[of])
		}
	}
	return r
}

// guaranteed says that the pod's quality of service is "Guaranteed" so far.
func (m *mutation) guaranteed() bool {
	for _, list := range [][]corev1.Container{m.pod.Spec.InitContainers, m.pod.Spec.Containers} {
		for _, c := range list {
			for _, of := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				limit, ok := c.Resources.Limits[of]
				if request, requested := c.Resources.Requests[of]; !ok || limit.IsZero() || requested && request.Cmp(limit) != 0 {
					return false
				}
			}
		}
	}
	return true
}

func (m *mutation) peerSecret() bool {
	return m.options.PeerSecret != "" && m.options.Sidecar.Peer.Security != config.Plaintext
}

func (m *mutation) addVolumes() {
	m.pod.Spec.Volumes = append(m.pod.Spec.Volumes,
		corev1.Volume{Name: stateVolume, VolumeSource: corev1.VolumeSource{
			EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: new(resource.MustParse(stateLimit))},
		}},
		corev1.Volume{Name: tokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			DefaultMode: new(int32(0o444)),
			Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: new(int64(3607))}},
				{ConfigMap: &corev1.ConfigMapProjection{
					LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"},
					Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
				}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
					Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
				}}}},
			},
		}}})
	if m.peerSecret() {
		m.pod.Spec.Volumes = append(m.pod.Spec.Volumes, corev1.Volume{Name: peerVolume, VolumeSource: corev1.VolumeSource{
			// Optional, for the media server must start where the Secret is missing: the sidecar says what it lacks, and tries again.
			Secret: &corev1.SecretVolumeSource{
				SecretName: m.options.PeerSecret, DefaultMode: new(int32(0o444)), Optional: new(true),
			},
		}})
	}
}

func (m *mutation) grace() time.Duration {
	if seconds := m.pod.Spec.TerminationGracePeriodSeconds; seconds != nil {
		return time.Duration(min(max(*seconds, 0), int64(24*time.Hour/time.Second))) * time.Second
	}
	return usualGrace
}

// drainTime is how long children are waited for at the pod's end.
func (m *mutation) drainTime() time.Duration {
	return min(max(m.grace()-reserve, time.Second), time.Hour)
}

// drainFirst has the media server's end wait for the children to find other parents: Kubernetes tells it to end before it
// tells the sidecar. A hook that is there is left alone.
func (m *mutation) drainFirst() {
	if m.sfu.Lifecycle != nil && m.sfu.Lifecycle.PreStop != nil {
		m.warn("container %s has a preStop hook of its own: relays elsewhere lose this parent unless that asks "+
			"http://localhost:%d/drain and waits for the answer", m.sfu.Name, m.ports.Admin)
		return
	}
	if m.grace() <= reserve {
		m.warn("the pod's termination grace period of %s is too short to hand streams over: give it 30 seconds", m.grace())
	}
	if m.sfu.Lifecycle == nil {
		m.sfu.Lifecycle = &corev1.Lifecycle{}
	}
	m.sfu.Lifecycle.PreStop = &corev1.LifecycleHandler{HTTPGet: m.get("/drain").HTTPGet}
}
