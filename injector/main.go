// Command sidestream-injector is the mutating webhook that puts sidecars into pods which ask for one by a label. What it does
// to a pod is in package inject.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sidestream-dev/sidestream/injector/certs"
	"github.com/sidestream-dev/sidestream/injector/inject"
	"github.com/sidestream-dev/sidestream/sidecar/admin"
)

// version is set by the linker.
var version = "dev"

// gcPercent is the injector's GOGC where its environment has none: a review takes a millisecond, and megabytes count.
const gcPercent = 25

func main() {
	// The first signal ends things in order; the second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sidestream-injector:", err)
		os.Exit(1)
	}
}

// run is the program, without the process around it. It blocks until ctx ends, which is no error.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	if len(args) == 1 && args[0] == "version" {
		_, err := fmt.Fprintf(stdout, "sidestream-injector %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}
	if len(args) == 1 && args[0] == "check" {
		c, err := newChecker(environ, stdout)
		if err != nil {
			return err
		}
		return c.run(ctx)
	}
	if len(args) > 0 {
		return fmt.Errorf("%q is not understood: all settings are environment variables, and the only commands are check and version", args)
	}
	if !slices.ContainsFunc(environ, func(v string) bool { return strings.HasPrefix(v, "GOGC=") }) {
		debug.SetGCPercent(gcPercent)
	}
	settings, sidecar, err := decode(environ)
	if err != nil {
		return fmt.Errorf("read settings:\n%w", err)
	}
	logger := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: settings.LogLevel}))
	logger.Info("starting", "version", version, "settings", settings, "sidecars", sidecar)
	client, err := connect(settings.Kubeconfig)
	if err != nil {
		return err
	}
	options, err := settings.options(sidecar)
	if err != nil {
		return fmt.Errorf("read settings:\n%w", err)
	}
	if options.Native, err = settings.native(client.Discovery()); err != nil {
		return err
	}
	p, err := newProgram(settings, options, client, logger)
	if err != nil {
		return err
	}
	if err := p.run(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

func connect(kubeconfig string) (kubernetes.Interface, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("find the API server (INJECTOR_KUBECONFIG, or the pod's service account): %w", err)
	}
	config.UserAgent = "sidestream-injector/" + version
	config.QPS, config.Burst = 100, 200 // of events and namespaces, while many pods are created
	config.Timeout = 10 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	return client, nil
}

// versions is what tells the API server's version.
type versions interface {
	ServerVersion() (*apiVersion, error)
}

// native says whether sidecars are init containers: named ports of those are found from Kubernetes 1.33 on.
func (s settings) native(from versions) (bool, error) {
	if s.Native != "auto" {
		return strconv.ParseBool(s.Native)
	}
	v, err := from.ServerVersion()
	if err != nil {
		return false, fmt.Errorf("ask the API server for its version (INJECTOR_NATIVE, if set to true or false, saves that): %w", err)
	}
	major, errMajor := strconv.Atoi(v.Major)
	minor, errMinor := strconv.Atoi(strings.TrimRight(v.Minor, "+")) // as some clouds write it
	if err := errors.Join(errMajor, errMinor); err != nil {
		return false, fmt.Errorf("the API server's version is %q.%q: set INJECTOR_NATIVE to true or false", v.Major, v.Minor)
	}
	return major > 1 || major == 1 && minor >= 33, nil
}

// certificates keep what the webhook serves.
type certificates interface {
	Run(ctx context.Context) error
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Ready() error
}

// program is all parts, put together.
type program struct {
	settings     settings
	logger       *slog.Logger
	registry     *prometheus.Registry
	certificates certificates
	webhook      *webhook
	events       *events
	missed       *missed
	leaving      atomic.Bool

	listeners struct{ webhook, admin net.Listener }
}

func newProgram(s settings, o inject.Options, client kubernetes.Interface, logger *slog.Logger) (_ *program, err error) {
	p := &program{settings: s, logger: logger, registry: prometheus.NewRegistry()}
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if p.listeners.webhook, err = net.Listen("tcp", s.Listen); err != nil {
		return nil, fmt.Errorf("open the port for the API server (INJECTOR_LISTEN): %w", err)
	}
	if p.listeners.admin, err = net.Listen("tcp", s.AdminListen); err != nil {
		_ = p.listeners.webhook.Close()
		return nil, fmt.Errorf("open the port for administration (INJECTOR_ADMIN_LISTEN): %w", err)
	}
	if s.CertDir != "" {
		p.certificates = certs.NewFiles(s.CertDir, p.registry, logger)
	} else {
		p.certificates = certs.New(certs.Options{
			Secrets: client.CoreV1().Secrets(s.Namespace), Secret: s.CertSecret,
			Webhooks: client.AdmissionregistrationV1().MutatingWebhookConfigurations(), Webhook: s.Webhook,
			Hosts: s.CertHosts, Life: s.CertLife, Settle: s.CertSettle, Registerer: p.registry, Logger: logger,
		})
	}
	p.events = newEvents(client.CoreV1(), logger)
	ports := &hostPorts{
		maps: client.CoreV1().ConfigMaps(s.Namespace), name: s.HostPortsConfigMap, first: s.HostPorts.First, last: s.HostPorts.Last,
		logger: logger,
	}
	p.webhook = &webhook{
		options: o, namespaces: newNamespaces(client.CoreV1()), policies: newPolicies(client.NetworkingV1()), ports: ports,
		events: p.events, metrics: newMetrics(p.registry), logger: logger,
	}
	p.missed = newMissed(client.CoreV1(), p.events, ports, p.registry, logger)
	return p, nil
}

// run runs all parts until ctx ends or one fails. When it ends, the webhook goes on for a moment: the API server sends it
// requests until it has heard.
func (p *program) run(ctx context.Context) error {
	beneath, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, alive := errgroup.WithContext(beneath)
	group.Go(func() error { return p.certificates.Run(alive) })
	group.Go(func() error { return p.events.run(alive) })
	group.Go(func() error {
		return serve(alive, p.listeners.admin, admin.New(admin.Options{
			Ready: p.ready, Metrics: p.registry, Logger: p.logger,
		}), nil)
	})
	group.Go(func() error {
		return serve(alive, p.listeners.webhook, p.webhook, &tls.Config{
			GetCertificate: p.certificates.GetCertificate, MinVersion: tls.VersionTLS12,
		})
	})
	group.Go(func() error {
		reports, stop := context.WithCancel(alive)
		defer stop()
		defer context.AfterFunc(ctx, stop)()
		if err := p.missed.run(reports, p.settings.ReportEvery); reports.Err() == nil {
			return err
		}
		return nil
	})
	p.logger.Info("running", "webhook", p.listeners.webhook.Addr().String(), "admin", p.listeners.admin.Addr().String())
	select {
	case <-alive.Done():
	case <-ctx.Done():
		p.leaving.Store(true)
		p.logger.Info("leaving", "within", p.settings.ShutdownDelay)
		select {
		case <-alive.Done():
		case <-time.After(p.settings.ShutdownDelay):
		}
	}
	end()
	return group.Wait()
}

func (p *program) ready(context.Context) error {
	if p.leaving.Load() {
		return errors.New("it is about to end")
	}
	return p.certificates.Ready()
}

// serve serves until ctx ends; requests under way then get a moment to finish.
func serve(ctx context.Context, l net.Listener, h http.Handler, secure *tls.Config) error {
	server := &http.Server{
		Handler: h, TLSConfig: secure, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // of handshakes that scanners begin
	}
	served := make(chan error, 1)
	go func() {
		if secure != nil {
			served <- server.ServeTLS(l, "", "")
			return
		}
		served <- server.Serve(l)
	}()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if server.Shutdown(bound) != nil {
		_ = server.Close()
	}
	<-served
	return ctx.Err()
}
