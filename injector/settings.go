package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	apimachineryversion "k8s.io/apimachinery/pkg/version"

	"github.com/sidestream-dev/sidestream/injector/inject"
	"github.com/sidestream-dev/sidestream/sidecar/config"
)

type apiVersion = apimachineryversion.Info

// prefix starts the name of every variable of the injector's own. Those of config.Prefix are for the sidecars.
const prefix = "INJECTOR_"

// settings are all that the injector is told from outside, besides what all sidecars are told.
type settings struct {
	// Listen is for the API server, AdminListen for probes and metrics.
	Listen      string `env:"LISTEN" envDefault:":8443"`
	AdminListen string `env:"ADMIN_LISTEN" envDefault:":8081"`
	// Namespace is the injector's own.
	Namespace string `env:"NAMESPACE"`
	// Kubeconfig is a file by which the API server is reached. Empty: by the pod's service account.
	Kubeconfig string `env:"KUBECONFIG"`
	// Revision is the name by which pods choose this injector where there are several.
	Revision string     `env:"REVISION" envDefault:"default"`
	LogLevel slog.Level `env:"LOG_LEVEL" envDefault:"info"`

	// Image is the sidecar's.
	Image       string            `env:"IMAGE"`
	PullPolicy  corev1.PullPolicy `env:"PULL_POLICY"`
	PullSecrets []string          `env:"PULL_SECRETS"`
	// Native says whether sidecars are init containers: true, false, or auto for what the API server's version can do.
	Native string `env:"NATIVE" envDefault:"auto"`
	// PeerSecret is what peers prove themselves by, in each of the pods' namespaces.
	PeerSecret    string            `env:"PEER_SECRET" envDefault:"sidestream-peer-tls"`
	CPURequest    resource.Quantity `env:"CPU_REQUEST" envDefault:"100m"`
	CPULimit      resource.Quantity `env:"CPU_LIMIT" envDefault:"0"`
	MemoryRequest resource.Quantity `env:"MEMORY_REQUEST" envDefault:"64Mi"`
	MemoryLimit   resource.Quantity `env:"MEMORY_LIMIT" envDefault:"512Mi"`
	// HostPorts are for the sidecars of pods on the host's network, two a workload; HostPortsConfigMap remembers whose they are.
	HostPorts          portRange `env:"HOST_PORTS" envDefault:"18100-18999"`
	HostPortsConfigMap string    `env:"HOST_PORTS_CONFIG_MAP" envDefault:"sidestream-host-ports"`

	// Webhook is the configuration by which the API server knows the injector, CertSecret has the certificate for it, and
	// CertHosts are its names there.
	Webhook    string        `env:"WEBHOOK" envDefault:"sidestream-injector"`
	CertSecret string        `env:"CERT_SECRET" envDefault:"sidestream-injector-certs"`
	CertHosts  []string      `env:"CERT_HOSTS"`
	CertLife   time.Duration `env:"CERT_LIFE" envDefault:"2160h"`
	CertSettle time.Duration `env:"CERT_SETTLE" envDefault:"1m"`
	// CertDir has a certificate that somebody else keeps, and tells the API server of. Empty: the injector does that.
	CertDir string `env:"CERT_DIR"`

	// ReportEvery is how often pods are looked for that ask for a sidecar and have none.
	ReportEvery time.Duration `env:"REPORT_EVERY" envDefault:"1m"`
	// ShutdownDelay is how long the webhook goes on when it is told to end.
	ShutdownDelay time.Duration `env:"SHUTDOWN_DELAY" envDefault:"5s"`

	tracing map[string]string // what all sidecars are told of traces
}

// portRange is from a first port to a last one.
type portRange struct{ First, Last int32 }

// UnmarshalText reads 18100-18999.
func (r *portRange) UnmarshalText(text []byte) error {
	first, last, ok := strings.Cut(string(text), "-")
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if !ok || errA != nil || errB != nil || a < 1024 || b <= a {
		return errors.New("write the first and the last port, such as 18100-18999")
	}
	r.First, r.Last = int32(a), int32(b)
	return nil
}

// MarshalText is the opposite.
func (r portRange) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%d-%d", r.First, r.Last), nil
}

// decode reads the injector's settings, and those of all sidecars, from variables as os.Environ gives them. All faults are
// reported at once.
func decode(environ []string) (settings, config.Config, error) {
	given := map[string]string{}
	for _, pair := range environ {
		if name, value, ok := strings.Cut(pair, "="); ok && strings.HasPrefix(name, prefix) {
			given[name] = value
		}
	}
	var s settings
	var faults []error
	known := names()
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(known, name) {
			hint := "remove it"
			if near := config.Nearest(name, known); near != "" {
				hint = "did you mean " + near + "?"
			}
			faults = append(faults, fmt.Errorf("%s is not a setting: %s", name, hint))
		}
	}
	options := func(only map[string]string) env.Options {
		return env.Options{Prefix: prefix, Environment: only, FuncMap: map[reflect.Type]env.ParserFunc{
			reflect.TypeFor[resource.Quantity](): func(v string) (any, error) { return resource.ParseQuantity(v) },
		}}
	}
	for _, name := range known { // one by one, for the library names fields and not variables
		value, ok := given[name]
		var alone settings
		if err := env.ParseWithOptions(&alone, options(map[string]string{name: value})); ok && err != nil {
			if parse, ok := errors.AsType[env.ParseError](err); ok {
				err = parse.Err
			}
			faults = append(faults, fmt.Errorf("%s is %q: %w", name, value, err))
			delete(given, name)
		}
	}
	if err := env.ParseWithOptions(&s, options(given)); err != nil {
		faults = append(faults, err)
	}
	sidecar, err := config.Decode(environ)
	faults = append(faults, err, s.validate())
	s.tracing, err = inject.Tracing(environ)
	faults = append(faults, err)
	return s, sidecar, errors.Join(faults...)
}

// names are all variables.
func names() (all []string) {
	t := reflect.TypeFor[settings]()
	for i := range t.NumField() {
		if f := t.Field(i); f.IsExported() {
			all = append(all, prefix+f.Tag.Get("env"))
		}
	}
	return all
}

func (s settings) validate() error {
	var faults []error
	add := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	name := func(variable, value string) {
		if len(validation.IsDNS1123Subdomain(value)) > 0 {
			add("%s%s is %q: write the name of a Kubernetes object", prefix, variable, value)
		}
	}
	for variable, address := range map[string]string{"LISTEN": s.Listen, "ADMIN_LISTEN": s.AdminListen} {
		if _, _, err := net.SplitHostPort(address); err != nil {
			add("%s%s is %q: write an address to listen at, such as :8443", prefix, variable, address)
		}
	}
	if s.Image == "" {
		add("%sIMAGE is not set: name the sidecar's image", prefix)
	}
	if len(validation.IsDNS1123Label(s.Namespace)) > 0 {
		add("%sNAMESPACE is %q: give the injector's own namespace (fieldRef metadata.namespace)", prefix, s.Namespace)
	}
	name("REVISION", s.Revision)
	name("PEER_SECRET", s.PeerSecret)
	name("HOST_PORTS_CONFIG_MAP", s.HostPortsConfigMap)
	if _, err := strconv.ParseBool(s.Native); err != nil && s.Native != "auto" {
		add("%sNATIVE is %q: write auto, true or false", prefix, s.Native)
	}
	switch s.PullPolicy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		add("%sPULL_POLICY is %q: write Always, IfNotPresent or Never", prefix, s.PullPolicy)
	}
	if s.CertDir == "" {
		name("WEBHOOK", s.Webhook)
		name("CERT_SECRET", s.CertSecret)
		if len(s.CertHosts) == 0 {
			add("%sCERT_HOSTS is not set: give the name at which the API server finds the webhook, such as sidestream-injector.%s.svc",
				prefix, s.Namespace)
		}
		if s.CertLife < 10*time.Minute || s.CertSettle < time.Second || s.CertSettle > s.CertLife/6 {
			add("%sCERT_LIFE is %s and %sCERT_SETTLE %s: set ten minutes at least, and a sixth of it at most", prefix, s.CertLife,
				prefix, s.CertSettle)
		}
	}
	if s.ReportEvery < time.Second {
		add("%sREPORT_EVERY is %s: set a second at least", prefix, s.ReportEvery)
	}
	if s.ShutdownDelay < 0 || s.ShutdownDelay > time.Minute {
		add("%sSHUTDOWN_DELAY is %s: set a minute at most", prefix, s.ShutdownDelay)
	}
	return errors.Join(faults...)
}

// options are what pods are injected with, all but how native they are. What is wrong for every pod is said now.
func (s settings) options(sidecar config.Config) (inject.Options, error) {
	list := func(cpu, memory resource.Quantity) corev1.ResourceList {
		l := corev1.ResourceList{}
		if !cpu.IsZero() {
			l[corev1.ResourceCPU] = cpu
		}
		if !memory.IsZero() {
			l[corev1.ResourceMemory] = memory
		}
		return l
	}
	return inject.Options{
		Image: s.Image, PullPolicy: s.PullPolicy, PullSecrets: s.PullSecrets, Revision: s.Revision, PeerSecret: s.PeerSecret,
		Tracing: s.tracing,
		Resources: corev1.ResourceRequirements{
			Requests: list(s.CPURequest, s.MemoryRequest), Limits: list(s.CPULimit, s.MemoryLimit),
		},
	}.With(sidecar)
}

// LogValue shows every setting under its variable's name; none is a secret.
func (s settings) LogValue() slog.Value {
	var attrs []slog.Attr
	v := reflect.ValueOf(s)
	for i, name := range names() {
		value := v.Field(i).Interface()
		if q, ok := value.(resource.Quantity); ok {
			value = q.String()
		}
		attrs = append(attrs, slog.String(strings.TrimPrefix(name, prefix), fmt.Sprint(value)))
	}
	return slog.GroupValue(attrs...)
}
