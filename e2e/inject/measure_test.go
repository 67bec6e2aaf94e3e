package inject

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applymeta "k8s.io/client-go/applyconfigurations/meta/v1"

	"github.com/sidestream-dev/sidestream/injector/inject"
)

type labelSelector = applymeta.LabelSelectorApplyConfiguration

// serves says whether a certificate is what somebody serves, and is believed by these authorities.
func serves(address string, authorities, certificate []byte) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authorities)
	c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
	if err != nil {
		return err
	}
	defer c.Close()
	block, _ := pem.Decode(certificate)
	if block == nil || !bytes.Equal(block.Bytes, c.ConnectionState().PeerCertificates[0].Raw) {
		return errors.New("it serves another")
	}
	return nil
}

// memory is what a process has resident, in bytes; 0 where the system does not tell.
func memory(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kib, _ := strconv.ParseInt(strings.TrimSpace(strings.SplitN(rest, "kB", 2)[0]), 10, 64)
	return kib << 10
}

// What an admission costs at 50 pods a second: with the webhook, and without, which is what the API server takes by itself.
// The numbers are logged; on a machine that does nothing else p99 is to be at most 20 ms more.
func TestAdmissionTime(t *testing.T) {
	c := newCluster(t, admissionregistrationv1.Fail)
	measure := func(label bool) []time.Duration {
		const pods, every = 500, 20 * time.Millisecond
		took := make([]time.Duration, pods)
		var group sync.WaitGroup
		pace := time.NewTicker(every)
		defer pace.Stop()
		for i := range pods {
			<-pace.C
			group.Go(func() {
				pod := c.pod(fmt.Sprint("pod-", i), nil)
				if !label {
					delete(pod.Labels, inject.Label)
				}
				began := time.Now()
				_, err := c.Client().CoreV1().Pods(c.namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
				if err != nil {
					t.Error(err)
				}
				took[i] = time.Since(began)
			})
		}
		group.Wait()
		slices.Sort(took)
		return took
	}
	measure(true) // the connections are there
	plain, injected := measure(false), measure(true)
	at := func(took []time.Duration, percent int) time.Duration {
		return took[len(took)*percent/100].Round(10 * time.Microsecond)
	}
	t.Logf("without: median %v, p99 %v; with: median %v, p99 %v", at(plain, 50), at(plain, 99), at(injected, 50), at(injected, 99))
	for _, r := range c.replicas {
		n, _ := r.metric("sidestream_injector_review_seconds_count")
		sum, _ := r.metric("sidestream_injector_review_seconds_sum")
		rss := memory(r.cmd.Process.Pid)
		t.Logf("a replica: %v reviews, %.2f ms each, %d MiB", n, sum/max(n, 1)*1000, rss>>20)
		if rss > 40<<20 {
			t.Errorf("%d MiB; 40 were promised", rss>>20)
		}
	}
}
