// Package endpointslice finds peers in the EndpointSlices of a Service that the clusters share: the cluster's own slices,
// and those that Cilium Cluster Mesh, an implementation of the Multi-Cluster Services API, Submariner or Karmada put beside
// them. It needs get, list and watch on endpointslices in one namespace, and nothing else of the API.
package endpointslice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/sidestream-dev/sidestream/sidecar/discovery"
)

// patience is how long the first report waits for an API server that does not answer.
const patience = 3 * time.Second

// longestPause is about the longest time between attempts to reach the API server; it may be twice as long.
const longestPause = 10 * time.Second

// Options are settings of a Source; Service and PortName are required.
type Options struct {
	Service    string // its name, the same in all clusters
	Namespace  string // "": the pod's own
	PortName   string // of the Service's port for peers
	Kubeconfig string // path of a file; "": the pod's service account
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Source is a discovery.Source of the endpoints of one Service. While the API server cannot be reached it goes on with what
// it knew, tries again and says so by Trouble.
type Source struct {
	options Options
	log     *slog.Logger
	connect func(kubeconfig, namespace string) (lister, func(), error)

	watchFailures prometheus.Counter
	leftOut       *prometheus.GaugeVec

	trouble discovery.Condition

	mu       sync.Mutex // guards what follows; of the present Run
	shelves  []*shelf
	overdue  bool   // an answer was to be there by now
	namedNot error  // no slice has the port
	said     string // the kind of trouble that is logged
	ignored  string // the reasons that are logged
}

// New makes a source. It connects to nothing yet.
func New(o Options) *Source {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	f := promauto.With(o.Registerer)
	return &Source{
		options: o, log: o.Logger.With("service", o.Service), connect: connect,
		watchFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "sidestream_discovery_watch_failures_total",
			Help: "Attempts to list or watch EndpointSlices that failed.",
		}),
		leftOut: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sidestream_discovery_ignored",
			Help: "Parts of EndpointSlices that are not believed now, by reason.",
		}, []string{"reason"}),
	}
}

// Trouble tells why the slices cannot be read now, or that none of them has the port, as discovery.Troubled says.
func (s *Source) Trouble() (since time.Time, err error) { return s.trouble.Trouble() }

// Run reports the peers, as discovery.Source says: for the first time when both sets of slices have been listed, or after
// some seconds without an answer what is known then. It breaks only where there is nothing to connect by.
func (s *Source) Run(ctx context.Context, report func([]discovery.Peer)) (err error) {
	namespace := s.options.Namespace
	if namespace == "" {
		if namespace, err = ownNamespace(); err != nil {
			return err
		}
	}
	lists, closeIdle, err := s.connect(s.options.Kubeconfig, namespace)
	if err != nil {
		return err
	}
	defer closeIdle()

	want := wanted{namespace: namespace, service: s.options.Service, port: s.options.PortName}
	changed := make(chan struct{}, 1)
	var shelves []*shelf
	for _, label := range []string{serviceLabel, multiclusterLabel} { // one selector cannot say "or"
		shelves = append(shelves, &shelf{
			source: s, want: want, changed: changed, said: map[string]found{},
			lists: cache.ToListerWatcherWithContext(lists(label + "=" + want.service)),
		})
	}
	s.mu.Lock()
	s.shelves, s.overdue, s.namedNot = shelves, false, nil
	s.mu.Unlock()

	ctx, logger := withLogger(ctx, s.log)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for _, shelf := range shelves {
		reflector := cache.NewReflectorWithOptions(shelf, &discoveryv1.EndpointSlice{}, shelf, cache.ReflectorOptions{
			Name: "peers", Logger: &logger,
			Backoff: &wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 5, Cap: longestPause},
		})
		tasks.Go(func() { reflector.RunWithContext(ctx) })
	}

	report = discovery.OnChange(report)
	waited := time.NewTimer(patience)
	defer waited.Stop()
	enough := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-waited.C:
			enough = true
			s.expire()
		case <-changed:
		}
		peers, missing, listed := s.gather()
		if listed || enough {
			s.tellLeft(peers, missing)
			report(peers)
		}
	}
}

// expire says that the API server has had its time.
func (s *Source) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overdue = true
	s.settle()
}

// gather is what all slices say, and whether all have been listed.
func (s *Source) gather() (peers []discovery.Peer, missing left, listed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	said := map[string]found{} // a slice with both labels counts once
	listed = true
	for _, shelf := range s.shelves {
		maps.Copy(said, shelf.said)
		listed = listed && shelf.listed
	}
	peers, missing = unite(said)
	return peers, missing, listed
}

// tellLeft says what was left out, if there are other reasons than the last time.
func (s *Source) tellLeft(peers []discovery.Peer, missing left) {
	var reasons []any
	for _, reason := range []string{leftFQDN, leftAddress, leftPort, leftUnnamed, leftTooMany, leftForeigner} {
		s.leftOut.WithLabelValues(reason).Set(float64(missing[reason]))
		if n := missing[reason]; n > 0 {
			reasons = append(reasons, slog.Int(reason, n))
		}
	}
	key := fmt.Sprint(slices.Sorted(maps.Keys(missing)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if key != s.ignored && len(reasons) > 0 {
		s.log.Warn("parts of EndpointSlices are ignored", slog.Group("ignored", reasons...))
	}
	s.ignored = key
	s.namedNot = nil
	if len(peers) == 0 && missing[leftUnnamed] > 0 {
		s.namedNot = fmt.Errorf("EndpointSlices of Service %s have no port named %s: give the Service's port for peers that "+
			"name, or set SIDESTREAM_PEER_PORT_NAME", s.options.Service, s.options.PortName)
	}
	s.settle()
}

// settle puts together what is wrong, and says it once. The caller holds mu.
func (s *Source) settle() {
	var failed *failure
	for _, shelf := range s.shelves {
		if s.overdue && !shelf.listed {
			failed = errSilent
		}
		if shelf.failed != nil {
			failed = shelf.failed
			break
		}
	}
	was := s.said
	switch {
	case failed != nil:
		s.trouble.Set(failed)
		if failed.kind == kindUnsaid {
			return
		}
		if s.said = failed.kind; s.said != was {
			level := slog.LevelWarn
			if failed.kind == kindForbidden || failed.kind == kindUnauthorised {
				level = slog.LevelError // nobody but a person can help
			}
			s.log.Log(context.Background(), level, "EndpointSlices cannot be read; going on with what is known", "error", failed)
		}
	case s.namedNot != nil:
		s.trouble.Set(s.namedNot)
		if s.said = kindPort; s.said != was {
			s.log.Error("peers cannot be found in EndpointSlices", "error", s.namedNot)
		}
	default:
		s.trouble.Set(nil)
		if s.said = ""; s.said != was {
			s.log.Info("discovery by EndpointSlices is well again")
		}
	}
}

// The kinds of trouble, each of which is said once.
const (
	kindUnsaid       = "unsaid"
	kindForbidden    = "forbidden"
	kindUnauthorised = "unauthorised"
	kindOther        = "other"
	kindSilent       = "silent"
	kindPort         = "port"
)

var errSilent = &failure{kindSilent, errors.New("list EndpointSlices: the API server does not answer")}

// failure is why slices cannot be listed or watched.
type failure struct {
	kind string
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func newFailure(verb string, w wanted, err error) *failure {
	did := fmt.Sprintf("%s EndpointSlices of Service %s in namespace %s", verb, w.service, w.namespace)
	switch {
	case apierrors.IsForbidden(err):
		return &failure{kindForbidden, fmt.Errorf("%s: the pod's service account lacks a Role: bind one in that namespace with "+
			"the verbs get, list and watch on endpointslices of the API group discovery.k8s.io: %w", did, err)}
	case apierrors.IsUnauthorized(err):
		return &failure{kindUnauthorised, fmt.Errorf("%s: the API server does not accept the credentials: check the pod's "+
			"service account token, or the file of SIDESTREAM_PEER_KUBECONFIG: %w", did, err)}
	default:
		return &failure{kindOther, fmt.Errorf("%s: %w", did, err)}
	}
}

// shelf holds what the slices with one label say. It is the store of a reflector, and its way to the API server too, so
// that it sees what fails there.
type shelf struct {
	source  *Source
	want    wanted
	lists   cache.ListerWatcherWithContext
	changed chan<- struct{} // capacity 1

	// Guarded by the source's mu.
	said    map[string]found // by slice: no more than what is needed of it
	listed  bool
	failed  *failure // nil: it is being watched
	refused int      // how often in a row the API server knew no rights for us
}

// refusals is how often it must happen in a row before it is said: an API server that has just started refuses everybody
// until it has read the roles.
const refusals = 3

// ListWithContext is for the reflector.
func (s *shelf) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	list, err := s.lists.ListWithContext(ctx, options)
	if err != nil {
		s.note(ctx, "list", err)
	}
	return list, err
}

// WatchWithContext is for the reflector.
func (s *shelf) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	w, err := s.lists.WatchWithContext(ctx, options)
	s.note(ctx, "watch", err)
	return w, err
}

// List is not used: the reflector finds ListWithContext.
func (s *shelf) List(options metav1.ListOptions) (runtime.Object, error) {
	return s.ListWithContext(context.Background(), options)
}

// Watch is not used: the reflector finds WatchWithContext.
func (s *shelf) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return s.WatchWithContext(context.Background(), options)
}

// IsWatchListSemanticsUnSupported keeps the reflector from listing by a watch: slices of one Service are few, and there it
// would sleep between attempts without an eye on its context.
func (s *shelf) IsWatchListSemanticsUnSupported() bool { return true }

// note takes the outcome of an attempt. That a list succeeded says little as long as the watch after it fails.
func (s *shelf) note(ctx context.Context, verb string, err error) {
	if ctx.Err() != nil {
		return // it was told to end
	}
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	defer s.source.settle()
	if err == nil {
		s.failed, s.refused = nil, 0
		return
	}
	s.source.watchFailures.Inc()
	s.failed = newFailure(verb, s.want, err)
	if s.failed.kind != kindForbidden && s.failed.kind != kindUnauthorised {
		s.refused = 0
	} else if s.refused++; s.refused < refusals {
		s.failed.kind = kindUnsaid
	}
}

// Add is for the reflector, as are those below.
func (s *shelf) Add(object any) error { return s.Update(object) }

func (s *shelf) Update(object any) error {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return errNoSlice
	}
	said := s.want.read(slice)
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	if _, known := s.said[slice.Name]; known || len(s.said) <= maxSlices { // one more than is believed, so that it is said
		s.said[slice.Name] = said
		s.raise()
	}
	return nil
}

func (s *shelf) Delete(object any) error {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return errNoSlice
	}
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	delete(s.said, slice.Name)
	s.raise()
	return nil
}

func (s *shelf) Replace(objects []any, _ string) error {
	said := make(map[string]found, min(len(objects), maxSlices))
	for _, object := range objects {
		slice, ok := object.(*discoveryv1.EndpointSlice)
		if !ok {
			return errNoSlice
		}
		if len(said) <= maxSlices {
			said[slice.Name] = s.want.read(slice)
		}
	}
	s.source.mu.Lock()
	defer s.source.mu.Unlock()
	s.said, s.listed = said, true
	s.raise()
	return nil
}

func (s *shelf) Resync() error { return nil }

// raise says that there is something new. The caller holds the source's mu.
func (s *shelf) raise() {
	select {
	case s.changed <- struct{}{}:
	default: // it is said already
	}
}

var errNoSlice = errors.New("the API server sent something that is no EndpointSlice")
