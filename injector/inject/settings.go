package inject

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/sidestream-dev/sidestream/sidecar/config"
)

// wishes are what a pod's annotations say.
type wishes struct {
	adapter, container, port string
	capture                  way
	native                   *bool
	gatewayPort, adminPort   int32
	resources                map[string]resource.Quantity // by annotation
	values                   map[string]string            // by variable
	refs                     map[string]corev1.SecretKeySelector
}

// resourceAnnotations say what of the sidecar's resources they set.
var resourceAnnotations = map[string]struct {
	limit bool
	of    corev1.ResourceName
}{
	"cpu-request":    {false, corev1.ResourceCPU},
	"cpu-limit":      {true, corev1.ResourceCPU},
	"memory-request": {false, corev1.ResourceMemory},
	"memory-limit":   {true, corev1.ResourceMemory},
}

// ownAnnotations are those that are no setting of the sidecar's.
var ownAnnotations = slices.Concat(
	[]string{"adapter", "container", "port", "capture", "native", "gateway-port", "admin-port", "revision", "status"},
	slices.Sorted(maps.Keys(resourceAnnotations)))

// settable are the sidecar's settings that a pod may choose, as variables by annotation: SIDESTREAM_RELAY_PINS is relay-pins.
// What is missing here belongs to the cluster, comes of the pod itself, or is a file that the sidecar would not have.
var settable = func() map[string]config.Var {
	found := map[string]config.Var{}
	for _, v := range config.Settings() {
		name := strings.TrimPrefix(v.Name, config.Prefix)
		group, _, _ := strings.Cut(name, "_")
		if !slices.Contains([]string{"ADAPTER", "GATEWAY", "JWT", "TURN", "RELAY", "PUBLISH", "ADMIN", "CONSOLE", "LOG", "TEST"}, group) ||
			strings.HasSuffix(name, "_LISTEN") || strings.HasSuffix(name, "_FILE") || name == "ADAPTER_NAME" {
			continue
		}
		found[annotationOf(v.Name)] = v
	}
	for name, secret := range tracing {
		found[annotationOf(name)] = config.Var{Name: name, Secret: secret}
	}
	return found
}()

// defaults are the sidecar's.
var defaults = config.Default()

func annotationOf(variable string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, config.Prefix), "_", "-"))
}

// Annotations are the names of all that a pod may say, without Domain, sorted.
func Annotations() []string {
	return slices.Sorted(slices.Values(slices.Concat(ownAnnotations, slices.Collect(maps.Keys(settable)))))
}

func (m *mutation) readAnnotations() *refusal {
	w := &m.wishes
	w.values, w.refs, w.resources = map[string]string{}, map[string]corev1.SecretKeySelector{}, map[string]resource.Quantity{}
	for _, full := range slices.Sorted(maps.Keys(m.pod.Annotations)) {
		name, ok := strings.CutPrefix(full, Domain)
		if !ok {
			continue
		}
		if err := w.read(name, strings.TrimSpace(m.pod.Annotations[full])); err != nil {
			return err
		}
	}
	if w.adapter == "" {
		return refuse(BadAnnotation, "the annotation %sadapter is missing: say which media server the pod has, one of %s",
			Domain, quoted(adapters()))
	}
	if _, ok := servers[w.adapter]; !ok {
		return refuse(BadAnnotation, "%sadapter is %q: it is one of %s", Domain, w.adapter, quoted(adapters()))
	}
	return nil
}

func (w *wishes) read(name, value string) *refusal {
	switch name {
	case "adapter":
		w.adapter = value
		return nil
	case "container":
		w.container = value
		return nil
	case "port":
		w.port = value
		return nil
	case "revision", "status":
		return nil
	case "capture":
		if w.capture = way(value); w.capture != PortName && w.capture != Redirect && w.capture != None {
			return refuse(BadAnnotation, "%scapture is %q: write %s, %s or %s", Domain, value, PortName, Redirect, None)
		}
		return nil
	case "native":
		yes, err := strconv.ParseBool(value)
		if err != nil {
			return refuse(BadAnnotation, "%snative is %q: write true or false", Domain, value)
		}
		w.native = &yes
		return nil
	case "gateway-port":
		return readPort(name, value, &w.gatewayPort)
	case "admin-port":
		return readPort(name, value, &w.adminPort)
	}
	if _, ok := resourceAnnotations[name]; ok {
		q, err := resource.ParseQuantity(value)
		if err != nil || q.Sign() <= 0 {
			return refuse(BadAnnotation, "%s%s is %q: write an amount such as 100m or 64Mi", Domain, name, value)
		}
		w.resources[name] = q
		return nil
	}
	v, ok := settable[name]
	if !ok {
		if near := config.Nearest(name, Annotations()); near != "" {
			return refuse(BadAnnotation, "%s%s is not known: did you mean %s%s?", Domain, name, Domain, near)
		}
		return refuse(BadAnnotation, "%s%s is not known: remove it", Domain, name)
	}
	if !v.Secret {
		w.values[v.Name] = value
		return nil
	}
	secret, key, ok := strings.Cut(value, "/")
	if !ok || len(validation.IsDNS1123Subdomain(secret)) > 0 || len(validation.IsConfigMapKey(key)) > 0 {
		// Not the value: it may be what belongs into a Secret.
		return refuse(BadAnnotation, "%s%s names no Secret: write NAME/KEY of one in the pod's namespace, never what is secret itself",
			Domain, name)
	}
	w.refs[v.Name] = corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: key}
	return nil
}

func readPort(name, value string, to *int32) *refusal {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n < 1024 { // the sidecar has no right to those below
		return refuse(BadAnnotation, "%s%s is %q: write a number from 1024 to 65535", Domain, name, value)
	}
	*to = int32(n)
	return nil
}

// placeholder stands for secrets while the settings are checked: it is long enough for any.
var placeholder = strings.Repeat("x", 64)

// variables finds the names of settings in words about them.
var variables = regexp.MustCompile(config.Prefix + `[A-Z0-9_]*[A-Z0-9]`)

// configure renders what the sidecar is told, checked by its own rules.
func (m *mutation) configure() *refusal {
	environ := m.options.Sidecar.Environ()
	for name, value := range m.wishes.values {
		environ = append(environ, name+"="+value)
	}
	for name := range m.wishes.refs {
		environ = append(environ, name+"="+placeholder)
	}
	c, err := config.Decode(environ)
	if err == nil {
		c.Adapter.Name = m.wishes.adapter
		if err := m.addressServer(&c); err != nil {
			return err
		}
		c.Gateway.Listen = listen(m.ports.Gateway)
		c.Peer.Listen = listen(m.ports.Peer)
		c.Admin.Listen = listen(m.ports.Admin)
		if c.Relay.Drain == defaults.Relay.Drain && m.wishes.values["SIDESTREAM_RELAY_DRAIN"] == "" {
			c.Relay.Drain = m.drainTime()
		}
		if c.Peer.Security == config.SharedKey {
			c.Peer.KeyFile = peerDir + "/" + peerKey
		}
		err = c.Validate()
	}
	if err != nil {
		words := variables.ReplaceAllStringFunc(err.Error(), func(name string) string {
			if name == config.Prefix+"ADAPTER_NAME" {
				return Domain + "adapter"
			}
			return Domain + annotationOf(name)
		})
		return refuse(BadAnnotation, "%s", strings.ReplaceAll(words, "\n", "; "))
	}
	for _, v := range c.Env() {
		env := corev1.EnvVar{Name: v.Name, Value: escape(v.Value)}
		if v.Secret {
			ref, ok := m.wishes.refs[v.Name]
			if !ok {
				return refuse(NotPossible, "the injector's settings hold a secret (%s): name a Secret of the pods' namespaces instead", v.Name)
			}
			env.Value, env.ValueFrom = "", &corev1.EnvVarSource{SecretKeyRef: &ref}
		}
		m.settings = append(m.settings, env)
	}
	m.traces()
	return nil
}

// escape keeps Kubernetes from reading references to other variables in a value.
func escape(value string) string { return strings.ReplaceAll(value, "$", "$$") }

func listen(port int32) string { return ":" + strconv.Itoa(int(port)) }
