package pionsfu

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Those who send a large body slowly hold no more than a few places, and nobody else up; what is too large is not read.
func TestSlowBodies(t *testing.T) {
	s := run(t, Config{})
	address := strings.TrimPrefix(s.url, "http://")
	var slow []net.Conn
	defer func() {
		for _, c := range slow {
			_ = c.Close()
		}
	}()
	part := strings.Repeat("a", smallBody+1)
	for range 4 * largeBodies {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		slow = append(slow, c)
		if _, err := fmt.Fprintf(c, "POST /whip/slow HTTP/1.1\r\nHost: a\r\nContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s",
			maxBody, part); err != nil {
			t.Fatal(err)
		}
	}
	const most = 3 * largeBodies // the others are being waited for
	busy := s.refused.WithLabelValues("busy")
	for deadline := time.Now().Add(bodyTimeout / 2); testutil.ToFloat64(busy) < most && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if n := testutil.ToFloat64(busy); n != most {
		t.Errorf("%v of %d were refused", n, len(slow))
	}
	s.publish(t, "honest") // an ordinary offer needs none of these places
	s.post(t, "/whip/large", strings.Repeat("a", 2*smallBody)).want(t, http.StatusServiceUnavailable)
	told := 0
	for _, c := range slow {
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if line, err := bufio.NewReader(c).ReadString('\n'); err == nil && strings.Contains(line, " 503 ") {
			told++
		}
	}
	if told != most {
		t.Errorf("%d were told so", told)
	}
	for _, c := range slow {
		_ = c.Close()
	}
	slow = nil
	for deadline := time.Now().Add(patience); ; {
		if a := s.post(t, "/whip/large", strings.Repeat("a", maxBody+1)); a.StatusCode == http.StatusRequestEntityTooLarge {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the places are not free again: %s", a.Status)
		}
	}
	if n := testutil.ToFloat64(s.refused.WithLabelValues("too_large")); n < 1 {
		t.Errorf("%v are counted", n)
	}
}

// A body that never ends is given up, be it ever so small.
func TestBodyTimesOut(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	t.Parallel()
	s := run(t, Config{})
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /whip/slow HTTP/1.1\r\nHost: a\r\nContent-Type: application/sdp\r\nContent-Length: 10\r\n\r\nv"); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(bodyTimeout + patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, " 400 ") {
		t.Errorf("answered %q: %v", line, err)
	}
}

// Ten thousand who never connect: what they hold is bounded, all are counted, those who watch see nothing of it, and afterwards
// everything is free.
func TestTenThousandNeverConnect(t *testing.T) {
	t.Parallel()
	const all, bound = 10000, 64
	s := run(t, Config{MaxHalfOpen: bound, ConnectTimeout: 2 * time.Second})
	publisher := s.publishRaw(t, "watched", video(webrtc.MimeTypeVP8, ""))
	defer publisher.keepSending(t, keyFrames[webrtc.MimeTypeVP8])()
	player := s.playRaw(t, "watched", webrtc.RTPCodecTypeVideo)
	player.next(t)
	offer := publishOffer(t)
	before := runtime.NumGoroutine()
	var mu sync.Mutex
	answers := make(map[int]int)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			client := http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for n := range all / 8 {
				r, err := http.NewRequest(http.MethodPost, fmt.Sprintf("%s/whip/never-%d-%d", s.url, i, n), strings.NewReader(offer))
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("Content-Type", contentSDP)
				a, err := client.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, a.Body)
				_ = a.Body.Close()
				mu.Lock()
				answers[a.StatusCode]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	s.registry.mu.Lock()
	half := s.registry.halfOpen
	s.registry.mu.Unlock()
	if half > bound {
		t.Errorf("%d are half open", half)
	}
	created, refused := answers[http.StatusCreated], answers[http.StatusServiceUnavailable]
	if created < bound || created+refused != all {
		t.Errorf("answers: %v", answers)
	}
	if n := testutil.ToFloat64(s.refused.WithLabelValues("half_open")); n != float64(refused) {
		t.Errorf("%v refusals are counted; there were %d", n, refused)
	}
	if n := runtime.NumGoroutine() - before; n > 40*bound {
		t.Errorf("%d goroutines more", n)
	}
	unharmed(t, player, 100)
	s.wait(t, "all of them to be gone", func(r *registry) bool { return r.halfOpen == 0 && len(r.sessions) == 2 })
	if n := testutil.ToFloat64(s.refused.WithLabelValues("never_connected")); n != float64(created) {
		t.Errorf("%v are counted as never connected; there were %d", n, created)
	}
	s.publish(t, "afterwards")
}
