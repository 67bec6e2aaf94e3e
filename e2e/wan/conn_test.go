package wan

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// pipe returns both ends of a connection without a kernel; the near one goes over the link.
func pipe(n *Network, link Link) (near, far net.Conn) {
	a, b := net.Pipe()
	return n.Conn(a, link), b
}

func write(t *testing.T, c net.Conn, data string) {
	t.Helper()
	if n, err := io.WriteString(c, data); err != nil || n != len(data) {
		t.Errorf("wrote %d of %q: %v", n, data, err)
	}
}

func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Errorf("read %q, %v; want %q", b, err, want)
	}
}

func TestConnDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		near, far := pipe(n, Link{
			Out: NewDirection(1, Params{Delay: 30 * time.Millisecond, Loss: 1}), // loss is no matter of streams
			In:  NewDirection(1, Params{Delay: 50 * time.Millisecond}),
		})
		defer far.Close()
		defer near.Close()
		start := time.Now()
		at := func(what string, want time.Duration) {
			t.Helper()
			if got := time.Since(start); got != want {
				t.Errorf("%s after %v, want %v", what, got, want)
			}
		}
		write(t, near, "request")
		at("written", 0)
		expect(t, far, "request")
		at("request", 30*time.Millisecond)
		write(t, far, "response")
		expect(t, near, "response")
		at("response", 80*time.Millisecond)

		// What follows does not wait for what goes before: a link is not a queue of one.
		go func() {
			for range 10 {
				write(t, near, "x")
				time.Sleep(time.Millisecond)
			}
		}()
		expect(t, far, "xxxxxxxxxx")
		at("ten writes", (80+9+30)*time.Millisecond)
	})
}

// Much data arrives whole and in order, also with jitter, at the rate of the link.
func TestConnRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		const rate, size = 8_000_000, 3 << 20
		link := NewLink(1, Params{Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond, Rate: rate})
		data := make([]byte, size)
		random := rand.NewPCG(1, 1)
		for i := range data {
			data[i] = byte(random.Uint64())
		}
		for _, direction := range []string{"out", "in"} {
			near, far := pipe(n, link)
			from, to := near, far
			counters := link.Out
			if direction == "in" {
				from, to, counters = far, near, link.In
			}
			start := time.Now()
			go func() {
				if _, err := from.Write(data); err != nil {
					t.Error(err)
				}
				_ = from.Close()
			}()
			got, err := io.ReadAll(to)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes, %v; they are not those that were sent", direction, len(got), err)
			}
			took := time.Since(start)
			if speed := size * 8 / took.Seconds(); math.Abs(speed/rate-1) > 0.03 {
				t.Errorf("%s: %.0f bit/s, want %d", direction, speed, rate)
			}
			if c := counters.Counters(); c.StreamBytes != size || c.Packets != 0 {
				t.Errorf("%s: counters %+v", direction, c)
			}
			_ = to.Close()
		}
	})
}

// A stream takes its share of a link; it does not fill the queue for ever and so drop all packets beside it.
func TestConnLeavesRoomForPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		link := NewLink(1, Params{Rate: 1_000_000, Queue: 50_000})
		near, far := pipe(n, link)
		defer far.Close()
		defer near.Close()
		go func() { _, _ = near.Write(make([]byte, 500_000)) }()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		passed := 0
		for range 200 {
			time.Sleep(10 * time.Millisecond)
			if arrival, ok := link.Out.Admit(time.Now(), 200); ok {
				passed++
				if wait := time.Until(arrival); wait > 500*time.Millisecond {
					t.Errorf("a packet waits %v", wait)
				}
			}
		}
		if passed < 20 {
			t.Errorf("%d of 200 packets passed", passed)
		}
	})
}

func TestConnCloseDeliversWhatWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		near, far := pipe(n, NewLink(1, Params{Delay: 100 * time.Millisecond}))
		start := time.Now()
		write(t, near, "goodbye")
		if err := near.Close(); err != nil {
			t.Error(err)
		}
		if err := near.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed twice: %v", err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
		if time.Since(start) != 0 {
			t.Errorf("Close took %v", time.Since(start))
		}
		all, err := io.ReadAll(far)
		if string(all) != "goodbye" || err != nil || time.Since(start) != 100*time.Millisecond {
			t.Errorf("%q, %v after %v", all, err, time.Since(start))
		}

		// The other end's end takes its time too.
		near, far = pipe(n, NewLink(1, Params{Delay: 100 * time.Millisecond}))
		defer near.Close()
		start = time.Now()
		_ = far.Close()
		if all, err := io.ReadAll(near); len(all) != 0 || err != nil || time.Since(start) != 100*time.Millisecond {
			t.Errorf("%q, %v after %v", all, err, time.Since(start))
		}
	})
}

func TestConnDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		near, far := pipe(n, NewLink(1, Params{Delay: 100 * time.Millisecond}))
		defer far.Close()
		defer near.Close()
		start := time.Now()
		timeout := func(what string, err error, want time.Duration) {
			t.Helper()
			var timeouts net.Error
			if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeouts) || !timeouts.Timeout() || time.Since(start) != want {
				t.Errorf("%s: %v after %v, want a timeout after %v", what, err, time.Since(start), want)
			}
			start = time.Now()
		}
		go func() { _, _ = far.Write([]byte("late")) }()
		_ = near.SetReadDeadline(time.Now().Add(40 * time.Millisecond))
		timeout("before it arrives", second(near.Read(make([]byte, 4))), 40*time.Millisecond)
		timeout("still", second(near.Read(make([]byte, 4))), 0)
		_ = near.SetReadDeadline(time.Time{})
		expect(t, near, "late")

		start = time.Now()
		go func() {
			time.Sleep(time.Second)
			_ = near.SetDeadline(time.Unix(1, 0)) // as net/http does it
		}()
		timeout("while waiting", second(near.Read(make([]byte, 4))), time.Second)
		_ = near.SetDeadline(time.Time{})

		// Nobody reads at the far end: in the end a write has to wait.
		_ = near.SetWriteDeadline(time.Now().Add(time.Minute))
		var err error
		written := 0
		for err == nil {
			var n int
			n, err = near.Write(make([]byte, 100_000))
			written += n
		}
		timeout("full", err, time.Minute)
		if written < window || written > window+2*piece {
			t.Errorf("%d bytes were taken by a stream that holds %d", written, window)
		}
		_ = near.SetWriteDeadline(time.Now().Add(-time.Second))
		timeout("past", second(near.Write([]byte("x"))), 0)
	})
}

func TestConnCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		link := NewLink(1, Params{Delay: 10 * time.Millisecond})
		near, far := pipe(n, link)
		defer far.Close()
		start := time.Now()
		write(t, near, "under way ")
		link.Set(Params{Cut: true})
		write(t, near, "held back")
		go func() {
			time.Sleep(time.Minute)
			link.Set(Params{Delay: 30 * time.Millisecond})
		}()
		expect(t, far, "under way ")
		if took := time.Since(start); took != 10*time.Millisecond {
			t.Errorf("what was under way took %v", took)
		}
		expect(t, far, "held back")
		if took := time.Since(start); took != time.Minute+30*time.Millisecond {
			t.Errorf("what was held back took %v", took)
		}

		// A connection that is closed over a cut link is given up at last.
		link.Set(Params{Cut: true})
		write(t, near, "never")
		start = time.Now()
		_ = near.Close()
		if all, err := io.ReadAll(far); len(all) != 0 || err != nil {
			t.Errorf("%q, %v", all, err)
		}
		if took := time.Since(start); took != closing {
			t.Errorf("given up after %v, want %v", took, closing)
		}
	})
}

func TestDialer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := running(t)
		link := NewLink(1, Params{Delay: 35 * time.Millisecond})
		dial := n.Dialer(func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			t.Cleanup(func() { _ = far.Close() })
			return near, nil
		}, func(address string) Link {
			if address == "far:1" {
				return link
			}
			return Link{}
		})
		for address, want := range map[string]time.Duration{"far:1": 70 * time.Millisecond, "here:1": 0} {
			start := time.Now()
			c, err := dial(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if took := time.Since(start); took != want {
				t.Errorf("dialling %s took %v, want %v", address, took, want)
			}
		}

		link.Set(Params{Cut: true})
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := dial(ctx, "tcp", "far:1"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("dialling over a cut link: %v after %v", err, time.Since(start))
		}
		go func() {
			time.Sleep(time.Second)
			link.Set(Params{})
		}()
		start = time.Now()
		c, err := dial(t.Context(), "tcp", "far:1")
		if err != nil || time.Since(start) != time.Second {
			t.Fatalf("dialling over a link that heals: %v after %v", err, time.Since(start))
		}
		_ = c.Close()
	})
}

// HTTP over real sockets: a request on a new connection takes two round trips, on an open one a single one.
func TestListenerWithHTTP(t *testing.T) {
	n := running(t)
	link := NewLink(1, Params{Delay: 25 * time.Millisecond})
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	}))
	_ = ts.Listener.Close()
	ts.Listener = n.Listener(tcp, func(net.Addr) Link { return link })
	ts.Start()
	defer ts.Close()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	body := bytes.Repeat([]byte("0123456789abcdef"), 8192)
	fastest := time.Hour
	for i := range 6 {
		start := time.Now()
		res, err := client.Post(ts.URL, "text/plain", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes, %v; they are not those that were sent", len(got), err)
		}
		took := time.Since(start)
		if i == 0 && took < 100*time.Millisecond {
			t.Errorf("the first request took %v, want 100ms at least", took)
		}
		fastest = min(fastest, took)
	}
	if fastest < 50*time.Millisecond || fastest > 90*time.Millisecond {
		t.Errorf("the fastest request took %v, want 50ms", fastest)
	}
}

func TestConnCloseWrite(t *testing.T) {
	n := running(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() { // answers when it has read everything
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		all, err := io.ReadAll(c)
		if err == nil {
			_, err = c.Write(append([]byte("got "), all...))
		}
		served <- errors.Join(err, c.Close())
	}()
	link := NewLink(1, Params{Delay: 5 * time.Millisecond})
	c, err := n.Dialer(nil, func(string) Link { return link })(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	write(t, c, "all")
	if err := c.(*Conn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if all, err := io.ReadAll(c); string(all) != "got all" || err != nil {
		t.Errorf("%q, %v", all, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("wrote after CloseWrite")
	}
}
