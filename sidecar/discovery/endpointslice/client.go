package endpointslice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// namespaceFile is where a pod finds its own namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// ownNamespace is the pod's.
func ownNamespace() (string, error) {
	content, err := os.ReadFile(namespaceFile)
	if err != nil {
		return "", fmt.Errorf("find the namespace: set SIDESTREAM_NAMESPACE outside a pod: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

// lister makes what lists and watches the slices with a label.
type lister func(selector string) cache.ListerWatcher

// connect makes a client for slices alone: a whole clientset would know sixty groups of the API and cost their memory.
func connect(kubeconfig, namespace string) (_ lister, closeIdle func(), err error) {
	var config *rest.Config
	if kubeconfig == "" {
		config, err = rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) || errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("find the API server: this needs a pod with a mounted service account token "+
				"(automountServiceAccountToken), or SIDESTREAM_PEER_KUBECONFIG: %w", err)
		}
	} else {
		var content []byte
		if content, err = os.ReadFile(kubeconfig); err == nil {
			config, err = clientcmd.RESTConfigFromKubeConfig(content)
		}
		if err != nil {
			err = fmt.Errorf("read %s (SIDESTREAM_PEER_KUBECONFIG): %w", kubeconfig, err)
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find the API server: %w", err)
	}

	scheme := runtime.NewScheme()
	utilruntime.Must(discoveryv1.AddToScheme(scheme))
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"}) // the server's words about what went wrong
	config.APIPath = "/apis"
	config.GroupVersion = &discoveryv1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.UserAgent = "sidestream"
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	client, err := rest.RESTClientForConfigAndClient(config, httpClient)
	if err != nil {
		return nil, nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	return func(selector string) cache.ListerWatcher {
		return cache.NewFilteredListWatchFromClient(client, "endpointslices", namespace, func(options *metav1.ListOptions) {
			options.LabelSelector = selector
		})
	}, httpClient.CloseIdleConnections, nil
}

// withLogger has client-go's words under ctx go to our log, as debugging: what a person must know the source says itself,
// once. Some of client-go's code logs by a global logger, which has to be set too, before it is used.
func withLogger(ctx context.Context, logger *slog.Logger) (context.Context, klog.Logger) {
	handler := quiet{logger.With("library", "client-go").Handler()}
	setGlobal.Do(func() { klog.SetSlogLogger(slog.New(handler)) })
	l := logr.FromSlogHandler(handler)
	return klog.NewContext(ctx, l), l
}

var setGlobal sync.Once

// quiet is a handler that takes every record as debugging.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return q.Handler.Enabled(ctx, min(level, slog.LevelDebug))
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if !q.Enabled(ctx, r.Level) {
		return nil // errors come without having been asked for
	}
	r.Level = min(r.Level, slog.LevelDebug)
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }
