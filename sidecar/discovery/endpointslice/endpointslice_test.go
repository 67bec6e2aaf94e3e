package endpointslice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/sidestream-dev/sidestream/sidecar/discovery"
)

func TestMain(m *testing.M) {
	utilruntime.ErrorHandlers = nil // one of them sleeps until a millisecond after the last error: in a bubble, for decades
	goleak.VerifyTestMain(m)
}

// server is an API server of one namespace: it honours label selectors, and can be down.
type server struct {
	mu       sync.Mutex
	down     error // what every request is answered with; nil: it works
	silent   bool  // no request is answered
	version  int
	slices   map[string]*discoveryv1.EndpointSlice
	watchers map[*watcher]bool
	lists    int
}

type watcher struct {
	*watch.FakeWatcher
	selector labels.Selector
}

func newServer() *server {
	return &server{slices: map[string]*discoveryv1.EndpointSlice{}, watchers: map[*watcher]bool{}}
}

func (s *server) put(all ...*discoveryv1.EndpointSlice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slice := range all {
		s.version++
		slice.ResourceVersion = fmt.Sprint(s.version)
		_, known := s.slices[slice.Name]
		s.slices[slice.Name] = slice
		for w := range s.watchers {
			if w.selector.Matches(labels.Set(slice.Labels)) {
				if known {
					w.Modify(slice)
				} else {
					w.Add(slice)
				}
			}
		}
	}
}

func (s *server) delete(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	gone := s.slices[name].DeepCopy()
	gone.ResourceVersion = fmt.Sprint(s.version)
	delete(s.slices, name)
	for w := range s.watchers {
		if w.selector.Matches(labels.Set(gone.Labels)) {
			w.Delete(gone)
		}
	}
}

// set has all requests fail with an error, nil: work again. Watches end.
func (s *server) set(down error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	if down != nil {
		for w := range s.watchers {
			w.Stop()
		}
		s.watchers = map[*watcher]bool{}
	}
}

func (s *server) connect(string, string) (lister, func(), error) {
	return func(selector string) cache.ListerWatcher {
		parsed, err := labels.Parse(selector)
		if err != nil {
			panic(err)
		}
		return &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
				return s.list(ctx, parsed)
			},
			WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) { return s.watch(parsed) },
		}
	}, func() {}, nil
}

func (s *server) list(ctx context.Context, selector labels.Selector) (runtime.Object, error) {
	s.mu.Lock()
	silent := s.silent
	s.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	if s.down != nil {
		return nil, s.down
	}
	list := &discoveryv1.EndpointSliceList{ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(s.version)}}
	for _, name := range slices.Sorted(maps.Keys(s.slices)) {
		if selector.Matches(labels.Set(s.slices[name].Labels)) {
			list.Items = append(list.Items, *s.slices[name])
		}
	}
	return list, nil
}

func (s *server) watch(selector labels.Selector) (watch.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		return nil, s.down
	}
	w := &watcher{watch.NewFakeWithChanSize(100, false), selector}
	s.watchers[w] = true
	return w, nil
}

// harness runs a source against a server, in a bubble.
type harness struct {
	*testing.T
	*server
	source   *Source
	registry *prometheus.Registry
	log      bytes.Buffer
	end      func()

	mu      sync.Mutex
	reports [][]discovery.Peer
}

func start(t *testing.T, s *server) *harness {
	t.Helper()
	h := &harness{T: t, server: s, registry: prometheus.NewRegistry()}
	h.source = New(Options{
		Service: "peers", Namespace: "media", PortName: "peer", Registerer: h.registry,
		Logger: slog.New(slog.NewTextHandler(&h.log, nil)),
	})
	h.source.connect = s.connect
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- h.source.Run(ctx, func(peers []discovery.Peer) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.reports = append(h.reports, peers)
		})
	}()
	h.end = sync.OnceFunc(func() {
		began := time.Now()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("Run returned after %v", took)
		}
	})
	t.Cleanup(h.end)
	return h
}

// check waits until all is still, and compares the last report and the trouble.
func (h *harness) check(reports int, want []discovery.Peer, trouble string) {
	h.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.reports) != reports {
		h.Fatalf("%d reports, want %d: %v", len(h.reports), reports, h.reports)
	}
	if reports > 0 {
		if d := cmp.Diff(want, h.reports[reports-1], cmpAddr); d != "" {
			h.Fatalf("(-want +got)\n%s", d)
		}
	}
	_, err := h.source.Trouble()
	if got := fmt.Sprint(err); trouble != "" && !strings.Contains(got, trouble) || trouble == "" && err != nil {
		h.Errorf("trouble %q, want %q", got, trouble)
	}
}

// value is that of a counter or gauge.
func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

// said checks how many lines of a level were logged so far.
func (h *harness) said(level slog.Level, times int) {
	h.Helper()
	if n := strings.Count(h.log.String(), "level="+level.String()); n != times {
		h.Errorf("%d lines of level %s, want %d:\n%s", n, level, times, h.log.String())
	}
}

// multicluster is a slice of the Multi-Cluster Services API without Kubernetes' own label.
func multicluster(name, cluster string, addresses ...string) *discoveryv1.EndpointSlice {
	s := slice(name, addresses...)
	s.Labels = map[string]string{multiclusterLabel: "peers", clusterLabel: cluster}
	return s
}

func TestFollowsBothLabels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		both := multicluster("both", "west", "10.2.0.2")
		both.Labels[serviceLabel] = "peers"
		other := slice("other", "10.9.9.9")
		other.Labels[serviceLabel] = "web"
		s.put(slice("own", "10.1.0.1"), multicluster("far", "west", "10.2.0.1"), both, other)
		h := start(t, s)
		h.check(1, peers("10.1.0.1:7 .", "10.2.0.1:7 west", "10.2.0.2:7 west"), "")
		if h.lists != 2 {
			t.Errorf("%d lists, want one for each label", h.lists)
		}

		s.put(slice("own", "10.1.0.1", "10.1.0.2"))
		h.check(2, peers("10.1.0.1:7 .", "10.1.0.2:7 .", "10.2.0.1:7 west", "10.2.0.2:7 west"), "")
		s.delete("far")
		h.check(3, peers("10.1.0.1:7 .", "10.1.0.2:7 .", "10.2.0.2:7 west"), "")
		s.put(multicluster("far-2", "west", "10.2.0.2")) // nothing new
		h.check(3, peers("10.1.0.1:7 .", "10.1.0.2:7 .", "10.2.0.2:7 west"), "")
		h.said(slog.LevelWarn, 0)
	})
}

func TestKeepsWhatItKnewWhileTheServerIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.put(slice("own", "10.1.0.1"))
		h := start(t, s)
		h.check(1, peers("10.1.0.1:7 ."), "")
		well, _ := h.source.Trouble()

		s.set(errors.New("connection refused"))
		time.Sleep(10 * time.Minute)
		h.check(1, peers("10.1.0.1:7 ."), "connection refused")
		h.said(slog.LevelWarn, 1)
		since, _ := h.source.Trouble()
		if !since.After(well) || time.Since(since) < 9*time.Minute {
			t.Errorf("in trouble since %v, well since %v", since, well)
		}
		if n := value(t, h.source.watchFailures); n < 50 || n > 300 {
			t.Errorf("%v attempts in ten minutes", n)
		}

		s.put(slice("new", "10.1.0.2"))
		s.set(nil)
		time.Sleep(2 * longestPause)
		h.check(2, peers("10.1.0.1:7 .", "10.1.0.2:7 ."), "")
		h.said(slog.LevelWarn, 1)
	})
}

func TestReportsWithoutAServer(t *testing.T) {
	for name, tt := range map[string]struct {
		broken  func(*server)
		trouble string
		level   slog.Level
	}{
		"gone":   {func(s *server) { s.down = errors.New("no route to host") }, "no route to host", slog.LevelWarn},
		"silent": {func(s *server) { s.silent = true }, "does not answer", slog.LevelWarn},
		"forbidden": {
			func(s *server) {
				s.down = apierrors.NewForbidden(discoveryv1.Resource("endpointslices"), "", errors.New("no"))
			}, "lacks a Role", slog.LevelError,
		},
		"unauthorised": {func(s *server) { s.down = apierrors.NewUnauthorized("expired") }, "credentials", slog.LevelError},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer()
				s.put(slice("own", "10.1.0.1"))
				tt.broken(s)
				h := start(t, s)
				if s.silent {
					h.check(0, nil, "")
				} else {
					h.check(0, nil, tt.trouble)
				}
				time.Sleep(patience)
				h.check(1, peers(), tt.trouble)
				time.Sleep(time.Hour)
				h.check(1, peers(), tt.trouble)
				h.said(tt.level, 1)
				if tt.level == slog.LevelWarn {
					h.said(slog.LevelError, 0)
				}
				if name == "silent" {
					return // it goes on when the connection breaks
				}
				s.set(nil)
				time.Sleep(2 * longestPause)
				h.check(2, peers("10.1.0.1:7 ."), "")
			})
		})
	}
}

// An API server that has just started may refuse everybody for a moment.
func TestRefusedForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.put(slice("own", "10.1.0.1"))
		h := start(t, s)
		h.check(1, peers("10.1.0.1:7 ."), "")
		s.set(apierrors.NewForbidden(discoveryv1.Resource("endpointslices"), "", errors.New("no")))
		time.Sleep(1500 * time.Millisecond) // within the second pause
		h.check(1, peers("10.1.0.1:7 ."), "lacks a Role")
		s.set(nil)
		time.Sleep(time.Minute)
		h.check(1, peers("10.1.0.1:7 ."), "")
		if h.log.Len() > 0 {
			t.Errorf("it logs %s", h.log.String())
		}
	})
}

// A server that serves the one set of slices and not the other is no reason to know nothing.
func TestReportsWhatItHasOfTwoSets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.put(slice("own", "10.1.0.1"))
		whole := s.connect
		src := New(Options{Service: "peers", Namespace: "media", PortName: "peer"})
		src.connect = func(a, b string) (lister, func(), error) {
			lists, idle, err := whole(a, b)
			return func(selector string) cache.ListerWatcher {
				if strings.HasPrefix(selector, multiclusterLabel) {
					return &cache.ListWatch{
						ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
							return nil, errors.New("not this one")
						},
						WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) {
							return nil, errors.New("not this one")
						},
					}
				}
				return lists(selector)
			}, idle, err
		}
		var got [][]discovery.Peer
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_ = src.Run(ctx, func(p []discovery.Peer) { got = append(got, p) })
		if d := cmp.Diff([][]discovery.Peer{peers("10.1.0.1:7 .")}, got, cmpAddr); d != "" {
			t.Error(d)
		}
		if _, err := src.Trouble(); err == nil {
			t.Error("all is well, it says")
		}
	})
}

func TestSaysOnceWhatItIgnores(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		unnamed := slice("own", "10.1.0.1")
		unnamed.Ports = nil
		hosts := slice("hosts", "sfu.example.org")
		hosts.AddressType = discoveryv1.AddressTypeFQDN
		s.put(unnamed, hosts)
		h := start(t, s)
		h.check(1, peers(), "SIDESTREAM_PEER_PORT_NAME")
		h.said(slog.LevelWarn, 1)
		h.said(slog.LevelError, 1)
		for range 3 {
			hosts = hosts.DeepCopy()
			s.put(hosts)
			synctest.Wait()
		}
		h.check(1, peers(), "SIDESTREAM_PEER_PORT_NAME")
		h.said(slog.LevelWarn, 1) // not for each change
		h.said(slog.LevelError, 1)
		if n := value(t, h.source.leftOut.WithLabelValues(leftFQDN)); n != 1 {
			t.Errorf("%v slices with host names are counted", n)
		}
		s.put(slice("own", "10.1.0.1"))
		h.check(2, peers("10.1.0.1:7 ."), "")
		h.said(slog.LevelWarn, 2) // other reasons
		s.delete("hosts")
		h.check(2, peers("10.1.0.1:7 ."), "")
		h.said(slog.LevelWarn, 2)
		if n := value(t, h.source.leftOut.WithLabelValues(leftFQDN)); n != 0 {
			t.Errorf("%v slices with host names are counted", n)
		}
	})
}

func TestSlicesWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.put(many(maxSlices+500, 1)...)
		h := start(t, s)
		synctest.Wait()
		h.mu.Lock()
		got := h.reports[len(h.reports)-1]
		h.mu.Unlock()
		if len(got) != discovery.MaxPeers {
			t.Errorf("%d peers are believed", len(got))
		}
		h.source.mu.Lock()
		kept := len(h.source.shelves[0].said)
		h.source.mu.Unlock()
		if kept > maxSlices+1 {
			t.Errorf("%d slices are kept", kept)
		}
		h.said(slog.LevelWarn, 1)
	})
}

func TestNothingToConnectBy(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("clusters: {"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for kubeconfig, want := range map[string]string{
		"":                         "SIDESTREAM_PEER_KUBECONFIG",
		bad:                        bad,
		filepath.Join(dir, "none"): "no such file",
	} {
		s := New(Options{Service: "peers", Namespace: "media", PortName: "peer", Kubeconfig: kubeconfig})
		if err := s.Run(t.Context(), func([]discovery.Peer) { t.Error("it reports") }); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %q it says %v, want %q", kubeconfig, err, want)
		}
	}
}

// Over HTTP, what the API server says of a service account without rights becomes words that help.
func TestForbiddenOverHTTP(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path+" "+r.URL.Query().Get("labelSelector"))
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","message":"endpointslices is forbidden: ` +
			`User \"nobody\" cannot list","reason":"Forbidden","code":403}`))
	}))
	defer api.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion":"v1","kind":"Config","current-context":"x",
		"clusters":[{"name":"x","cluster":{"server":"`+api.URL+`"}}],"contexts":[{"name":"x","context":{"cluster":"x"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(Options{Service: "peers", Namespace: "media", PortName: "peer", Kubeconfig: kubeconfig})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := s.Run(ctx, func(got []discovery.Peer) {
		if len(got) != 0 {
			t.Errorf("it reports %v", got)
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	_, err = s.Trouble()
	for _, want := range []string{"get, list and watch on endpointslices", "namespace media", "discovery.k8s.io", `User "nobody"`} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("trouble %v does not say %q", err, want)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, label := range []string{serviceLabel, multiclusterLabel} {
		if want := "/apis/discovery.k8s.io/v1/namespaces/media/endpointslices " + label + "=peers"; !slices.Contains(asked, want) {
			t.Errorf("of %q none is %q", asked, want)
		}
	}
}

// What client-go takes for an alarm is debugging for us.
func TestQuiet(t *testing.T) {
	for level, lines := range map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 1} {
		var b bytes.Buffer
		_, l := withLogger(t.Context(), slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level})))
		l.Error(errors.New("boom"), "alarm", "a", 1)
		if got := b.String(); strings.Count(got, "level=DEBUG msg=alarm library=client-go") != lines || strings.Count(got, "\n") != lines {
			t.Errorf("at level %s it logs %q", level, got)
		}
	}
}
