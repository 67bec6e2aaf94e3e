package wan

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The test binary plays other programs too, which run inside hosts or die with some.
func init() {
	roles = map[string]func() error{"crash": crash, "stay": stay, "traffic": traffic, "isolated": isolated}
}

// hosts returns running hosts, or skips the test where there can be none.
func hosts(t testing.TB, names ...string) []*Host {
	t.Helper()
	n := running(t)
	var all []*Host
	for _, name := range names {
		h, err := n.Host(name)
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		all = append(all, h)
	}
	return all
}

// listen returns a UDP socket in a host.
func (h *Host) listen(t testing.TB, address netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	if err := h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetReadBuffer(4 << 20)
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func addressOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// sendNumbered sends packets with the numbers from first on.
func sendNumbered(t testing.TB, from *net.UDPConn, to netip.AddrPort, first, count, size int) {
	t.Helper()
	b := make([]byte, size)
	for i := range count {
		binary.BigEndian.PutUint32(b, uint32(first+i))
		if _, err := from.WriteToUDPAddrPort(b, to); err != nil {
			t.Fatal(err)
		}
	}
}

func receiveNumber(t testing.TB, c *net.UDPConn) int {
	t.Helper()
	b := make([]byte, 1500)
	if _, _, err := c.ReadFromUDPAddrPort(b); err != nil {
		t.Fatal(err)
	}
	return int(binary.BigEndian.Uint32(b))
}

func TestHostDelay(t *testing.T) {
	h := hosts(t, "germany", "singapore")
	there, back := 30*time.Millisecond, 60*time.Millisecond
	link := h[0].Link(h[1])
	link.Out.Set(Params{Delay: there})
	link.In.Set(Params{Delay: back})
	for _, family := range [][2]netip.Addr{{h[0].IPv4, h[1].IPv4}, {h[0].IPv6, h[1].IPv6}} {
		a, b := h[0].listen(t, family[0]), h[1].listen(t, family[1])
		for _, way := range []struct {
			from, to *net.UDPConn
			want     time.Duration
		}{{a, b, there}, {b, a, back}} {
			best := time.Hour
			for i := range 20 {
				start := time.Now()
				sendNumbered(t, way.from, addressOf(way.to), i, 1, 100)
				if got := receiveNumber(t, way.to); got != i {
					t.Fatalf("packet %d arrived as %d", i, got)
				}
				best = min(best, time.Since(start))
			}
			if best < way.want || best > way.want+10*time.Millisecond {
				t.Errorf("%v to %v: the fastest packet took %v, want %v", way.from.LocalAddr(), way.to.LocalAddr(), best, way.want)
			}
			t.Logf("%v to %v: the fastest of 20 took %v, want %v", way.from.LocalAddr(), way.to.LocalAddr(), best, way.want)
		}
	}
	want := Counters{Packets: 40, Bytes: 20*(100+28) + 20*(100+48)}
	if diff := cmp.Diff(want, link.Out.Counters()); diff != "" {
		t.Errorf("out: counters (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, h[1].Link(h[0]).Out.Counters()); diff != "" {
		t.Errorf("back: counters (-want +got):\n%s", diff)
	}
}

// Through the kernel exactly those packets pass, and in that order, that a direction with the same seed lets pass.
func TestHostAccidents(t *testing.T) {
	const count, size, headers = 3000, 200, 28
	for name, p := range map[string]Params{
		"loss":    {Loss: 0.1},
		"burst":   {BurstLoss: 0.1, BurstLength: 8},
		"both":    {Delay: 5 * time.Millisecond, Loss: 0.05, BurstLoss: 0.05, BurstLength: 3},
		"reorder": {Delay: 5 * time.Millisecond, Reorder: 0.02, ReorderBy: 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			h := hosts(t, "a", "b")
			h[0].Join(h[1], NewLink(42, p))
			a, b := h[0].listen(t, h[0].IPv4), h[1].listen(t, h[1].IPv4)

			model := NewLink(42, p).Out
			passing := make(map[int]bool) // to whether it is held back
			for i := range count {
				if arrival, ok := model.Admit(epoch, size+headers); ok {
					passing[i] = arrival.Sub(epoch) > p.Delay
				}
			}
			for sent := 0; sent < count; sent += 500 { // what a host has no room for would be lost too
				sendNumbered(t, a, addressOf(b), sent, 500, size)
				late := 0
				latest := -1
				for i := sent; i < sent+500; i++ {
					if _, passes := passing[i]; !passes {
						continue
					}
					got := receiveNumber(t, b)
					held, passes := passing[got]
					if !passes {
						t.Fatalf("packet %d arrived, which should be lost", got)
					}
					if got < latest {
						late++
						if !held {
							t.Errorf("packet %d was overtaken", got)
						}
					}
					latest = max(latest, got)
				}
				if p.Reorder > 0 && late == 0 {
					t.Errorf("of packets from %d on none was overtaken", sent)
				}
			}
			if diff := cmp.Diff(model.Counters(), h[0].Link(h[1]).Out.Counters()); diff != "" {
				t.Errorf("counters (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostRate(t *testing.T) {
	h := hosts(t, "a", "b")
	a, b := h[0].listen(t, h[0].IPv4), h[1].listen(t, h[1].IPv4)
	const size, rate = 972, 800_000 // 10 ms a packet
	h[0].Link(h[1]).Out.Set(Params{Rate: rate, Queue: 20_000})
	start := time.Now()
	sendNumbered(t, a, addressOf(b), 0, 200, size)
	sendNumbered(t, a, addressOf(h[0].listen(t, h[0].IPv4)), 0, 1, size) // within a host there is no link
	var last time.Duration
	for i := range 20 {
		if got := receiveNumber(t, b); i == 0 && got != 0 {
			t.Errorf("packet %d came first", got)
		}
		last = time.Since(start)
	}
	if want := 200 * time.Millisecond; last < want {
		t.Errorf("20 packets of 10ms each took %v", last)
	}
	if c := h[0].Link(h[1]).Out.Counters(); c.Packets+c.Overflow != 200 || c.Packets < 20 || c.Bytes != c.Packets*1000 {
		t.Errorf("counters %+v", c)
	}
	t.Logf("20 packets at 10ms each took %v", last)
}

// A cut between two hosts, and a change of the delay, under traffic. Whatever a host has sent before a probe that arrives
// elsewhere has reached its link.
func TestHostChanges(t *testing.T) {
	h := hosts(t, "a", "b", "c")
	a, b, c := h[0].listen(t, h[0].IPv4), h[1].listen(t, h[1].IPv4), h[2].listen(t, h[2].IPv4)
	link := h[1].Link(h[0])
	link.Set(Params{Delay: 10 * time.Millisecond})
	send := func(first int) {
		sendNumbered(t, a, addressOf(b), first, 10, 100)
		sendNumbered(t, a, addressOf(c), first, 1, 100)
		if got := receiveNumber(t, c); got != first {
			t.Errorf("probe %d arrived as %d", first, got)
		}
	}
	receive := func(first int) {
		for i := range 10 {
			if got := receiveNumber(t, b); got != first+i {
				t.Errorf("packet %d arrived as %d", first+i, got)
			}
		}
	}
	send(0)
	link.In.Set(Params{Cut: true}) // what is under way arrives
	send(10)
	receive(0)
	link.Set(Params{Delay: 50 * time.Millisecond})
	start := time.Now()
	send(20)
	receive(20)
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("after the change packets took %v", took)
	}
	want := Counters{Packets: 20, Bytes: 20 * 128, CutOff: 10}
	if diff := cmp.Diff(want, link.In.Counters()); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	if err := h[2].Close(); err != nil {
		t.Error(err)
	}
	sendNumbered(t, a, addressOf(c), 30, 1, 100) // to nobody
	if h[0].Link(h[2]) != (Link{}) {
		t.Error("there is a link to a host that is closed")
	}
}

// The kernel's own TCP repairs what the link does to it.
func TestHostTCP(t *testing.T) {
	h := hosts(t, "server", "client")
	link := NewLink(3, Params{Delay: 10 * time.Millisecond, Loss: 0.02, Reorder: 0.01, ReorderBy: 2 * time.Millisecond, Rate: 50_000_000})
	h[1].Join(h[0], link)
	data := make([]byte, 1<<20)
	random := rand.NewPCG(1, 1)
	for i := range data {
		data[i] = byte(random.Uint64())
	}
	for _, address := range []netip.Addr{h[0].IPv4, h[0].IPv6} {
		var listener net.Listener
		if err := h[0].Do(func() (err error) {
			listener, err = net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() {
			defer listener.Close()
			c, err := listener.Accept()
			if err != nil {
				sent <- err
				return
			}
			_, err = c.Write(data)
			sent <- errors.Join(err, c.Close())
		}()
		var conn net.Conn
		start := time.Now()
		if err := h[1].Do(func() (err error) {
			conn, err = net.Dial("tcp", listener.Addr().String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 20*time.Millisecond {
			t.Errorf("the handshake took %v, less than a round trip", took)
		}
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%v: %d bytes, %v; they are not those that were sent", address, len(got), err)
		}
		if err := errors.Join(<-sent, conn.Close()); err != nil {
			t.Error(err)
		}
	}
	if c := link.In.Counters(); c.Lost == 0 || c.Bytes < 2*uint64(len(data)) {
		t.Errorf("counters %+v", c)
	}
}

func TestHostDo(t *testing.T) {
	h := hosts(t, "a")[0]
	here := func() string {
		name, err := os.Readlink(threadNamespace)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	outside := here()
	var inside, deeper string
	failure := errors.New("no luck")
	if err := h.Do(func() error {
		inside = here()
		return h.Do(func() error { deeper = here(); return failure })
	}); !errors.Is(err, failure) {
		t.Errorf("%v, want what the function said", err)
	}
	if inside == outside || deeper != inside || here() != outside {
		t.Errorf("outside %s, inside %s, deeper %s, then %s", outside, inside, deeper, here())
	}
	func() {
		defer func() { _ = recover() }()
		_ = h.Do(func() error { panic("out") })
	}()
	if here() != outside {
		t.Errorf("after a panic in %s, want %s", here(), outside)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if err := h.Do(func() error { t.Error("did"); return nil }); !errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "enter host a") {
		t.Errorf("in a closed host: %v", err)
	}
}

// A host leaves nothing behind: no name, no open file, no thread.
func TestHostClose(t *testing.T) {
	h := hosts(t, "a")[0]
	var inside string
	if err := h.Do(func() (err error) {
		inside, err = os.Readlink(threadNamespace)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(namesDir, h.Namespace)); err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(namesDir, h.Namespace)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its name is there: %v", err)
	}
	for _, pattern := range []string{"/proc/self/fd/*", "/proc/self/task/*/ns/net"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			if target, _ := os.Readlink(name); target == inside {
				t.Errorf("%s holds the namespace", name)
			}
		}
	}
	if !errors.Is(syscall.Access(filepath.Join(namesDir, h.Namespace), 0), fs.ErrNotExist) {
		t.Error("its namespace is there")
	}
}

// The end of the network removes its hosts, and it takes no more.
func TestHostNetworkEnds(t *testing.T) {
	n := NewNetwork()
	early, err := n.Host("early") // before it runs
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := early.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the host outlived its network: %v", err)
	}
	if _, err := n.Host("late"); err == nil || !strings.Contains(err.Error(), "late") {
		t.Errorf("a host in a network that has ended: %v", err)
	}
	if names, _ := filepath.Glob(filepath.Join(namesDir, "*-"+strconv.Itoa(os.Getpid())+"*")); names != nil {
		t.Errorf("left: %q", names)
	}
}

func TestHostNames(t *testing.T) {
	for _, name := range []string{"", "a b", "a/b", "ü", "../x"} {
		if _, err := NewNetwork().Host(name); err == nil || !strings.Contains(err.Error(), strconv.Quote(name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
	h := hosts(t, "twin", "twin")
	if h[0].Namespace == h[1].Namespace {
		t.Errorf("both are %s", h[0].Namespace)
	}
}

func TestDestination(t *testing.T) {
	v4 := make([]byte, 20)
	v4[0], v4[16], v4[19] = 0x45, 10, 7
	v6 := make([]byte, 40)
	v6[0], v6[24], v6[39] = 0x60, 0xfd, 9
	tests := []struct {
		data []byte
		want netip.Addr
	}{
		{v4, netip.MustParseAddr("10.0.0.7")},
		{v6, netip.MustParseAddr("fd00::9")},
		{v4[:19], netip.Addr{}},
		{v6[:39], netip.Addr{}},
		{nil, netip.Addr{}},
		{make([]byte, 60), netip.Addr{}},
	}
	for _, tt := range tests {
		if got := destination(tt.data); got != tt.want {
			t.Errorf("%x: %v, want %v", tt.data, got, tt.want)
		}
	}
}

func TestHostAddresses(t *testing.T) {
	for number, want := range map[int]string{1: "10.199.0.1 fd00:199::1", 258: "10.199.1.2 fd00:199::102"} {
		v4, v6 := hostAddresses(number)
		if got := fmt.Sprint(v4, " ", v6); got != want {
			t.Errorf("%d: %s, want %s", number, got, want)
		}
	}
}

// self is this test binary in another role.
func self(t testing.TB, role string, arguments ...string) *exec.Cmd {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, arguments...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// A process that is ahead of others is so as a whole; what it starts is not.
func TestRealtime(t *testing.T) {
	h := hosts(t, "a")[0]
	if err := Realtime(true); errors.Is(err, fs.ErrPermission) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	policies := func(process int) []int {
		seen := make(map[int]bool)
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", process))
		for _, thread := range threads {
			id, _ := strconv.Atoi(filepath.Base(thread))
			seen[scheduling(id)] = true
		}
		return slices.Sorted(maps.Keys(seen))
	}
	if got := policies(os.Getpid()); !slices.Equal(got, []int{schedRoundRobin}) {
		t.Errorf("policies %v", got)
	}
	cmd := self(t, "stay")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if lines := bufio.NewScanner(out); !lines.Scan() || lines.Text() != "inside" {
		t.Errorf("it said %q", lines.Text())
	}
	if got := policies(cmd.Process.Pid); !slices.Equal(got, []int{schedOther}) {
		t.Errorf("a program in a host: policies %v", got)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := Realtime(false); err != nil {
		t.Error(err)
	}
	if got := policies(os.Getpid()); !slices.Equal(got, []int{schedOther}) {
		t.Errorf("afterwards: policies %v", got)
	}
}

// When a process dies, so do its hosts and what runs in them; their names go when the next host is made.
func TestHostCrash(t *testing.T) {
	hosts(t, "probe")
	cmd := self(t, "crash")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("it did not say its name")
	}
	name := filepath.Join(namesDir, lines.Text())
	if lines.Scan(); lines.Text() != "inside" {
		t.Errorf("its child said %q", lines.Text())
	}
	if _, err := os.Stat(name); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if lines.Scan() { // to its end: the child, too, has let go of it
		t.Errorf("it said %q", lines.Text())
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it survived")
	}
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the namespace has survived: %v", err)
	}
	hosts(t, "next")
	if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its name has survived: %v", err)
	}
}

// crash makes a host with a program inside, and waits to be killed.
func crash() error {
	h, err := NewNetwork().Host("crash")
	if err != nil {
		return err
	}
	fmt.Println(h.Namespace)
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), roleVariable+"=stay")
	child.Stdout = os.Stdout
	if err := h.Start(child); err != nil {
		return err
	}
	return child.Wait()
}

// stay says where it is and stays there.
func stay() error {
	where := "inside"
	if _, err := net.InterfaceByName(tunName); err != nil {
		where = err.Error()
	}
	fmt.Println(where)
	for {
		time.Sleep(time.Hour)
	}
}

// task is what a traffic process is to do, report what it has seen.
type (
	task struct {
		Local, Remote netip.AddrPort
		Start         time.Time
		Count, Rate   int
		Delay         time.Duration
	}
	report struct {
		Received           int
		P50, P99, P999     time.Duration // lateness as the host's kernel has stamped the packets
		Earliest, Farthest time.Duration
	}
)

// BenchmarkHosts has a program in each of two hosts send so many packets a second to the other over 50 ms, and reports
// how late the kernels there got them, beyond the 50 ms, and how much of a processor this process used; scheduled as any
// other process is, and ahead of them. Five seconds each, with -benchtime: 5000x for the first rate, 100000x for the other.
func BenchmarkHosts(b *testing.B) {
	for _, rate := range []int{1000, 20_000} {
		b.Run(fmt.Sprint("ordinary/", rate), func(b *testing.B) { benchmarkHosts(b, rate) })
		b.Run(fmt.Sprint("realtime/", rate), func(b *testing.B) {
			if err := Realtime(true); err != nil {
				b.Skip(err)
			}
			defer Realtime(false) //nolint:errcheck // the end
			benchmarkHosts(b, rate)
		})
	}
}

func benchmarkHosts(b *testing.B, rate int) {
	const delay = 50 * time.Millisecond
	h := hosts(b, "a", "b")
	h[0].Link(h[1]).Set(Params{Delay: delay})
	port := uint16(5000)
	tasks := []task{
		{Local: netip.AddrPortFrom(h[0].IPv4, port), Remote: netip.AddrPortFrom(h[1].IPv4, port)},
		{Local: netip.AddrPortFrom(h[1].IPv4, port), Remote: netip.AddrPortFrom(h[0].IPv4, port)},
	}
	var outs []io.Reader
	var commands []*exec.Cmd
	start := time.Now().Add(500 * time.Millisecond)
	for i, job := range tasks {
		job.Start, job.Count, job.Rate, job.Delay = start, b.N, rate, delay
		input, err := json.Marshal(job)
		if err != nil {
			b.Fatal(err)
		}
		cmd := self(b, "traffic")
		cmd.Stdin = bytes.NewReader(input)
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := h[i].Start(cmd); err != nil {
			b.Fatal(err)
		}
		outs, commands = append(outs, out), append(commands, cmd)
	}
	before := usage()
	b.ResetTimer()
	for i, cmd := range commands {
		var r report
		if err := json.NewDecoder(outs[i]).Decode(&r); err != nil {
			b.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
		way := [...]string{"back", "out"}[i]
		b.ReportMetric(float64(r.P50.Microseconds()), way+"-p50-µs")
		b.ReportMetric(float64(r.P99.Microseconds()), way+"-p99-µs")
		b.ReportMetric(float64(r.P999.Microseconds()), way+"-p99.9-µs")
		b.ReportMetric(float64(b.N-r.Received), way+"-lost")
		b.Logf("%d packets: %+v", b.N, r)
	}
	lasted := time.Duration(b.N) * time.Second / time.Duration(rate)
	b.ReportMetric(100*(usage()-before).Seconds()/lasted.Seconds(), "cpu-%")
}

// usage is the processor time that this process has used.
func usage() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// traffic sends and receives as the task on its standard input says, and reports on its standard output.
func traffic() error {
	var job task
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return err
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(job.Local))
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) {
		err = errors.Join(
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TIMESTAMPNS, 1),
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 16<<20))
	}); err != nil {
		return err
	}
	lasts := time.Duration(job.Count) * time.Second / time.Duration(job.Rate)
	if err := c.SetReadDeadline(job.Start.Add(lasts + job.Delay + 2*time.Second)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		packet := make([]byte, 1200)
		for i := range job.Count {
			if wait := time.Until(job.Start.Add(time.Duration(i) * time.Second / time.Duration(job.Rate))); wait > 300*time.Microsecond {
				time.Sleep(wait)
			}
			binary.BigEndian.PutUint64(packet, uint64(time.Now().UnixNano()))
			if _, err := c.WriteToUDPAddrPort(packet, job.Remote); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	late := make([]time.Duration, 0, job.Count)
	data, control := make([]byte, 1500), make([]byte, 100)
	for len(late) < job.Count {
		_, n, _, _, err := c.ReadMsgUDPAddrPort(data, control)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
		arrived, err := stamp(control[:n])
		if err != nil {
			return err
		}
		late = append(late, time.Duration(arrived-int64(binary.BigEndian.Uint64(data)))-job.Delay)
	}
	if len(late) == 0 {
		return errors.New("nothing arrived")
	}
	slices.Sort(late)
	at := func(share float64) time.Duration { return late[int(share*float64(len(late)-1))] }
	return errors.Join(<-sent, json.NewEncoder(os.Stdout).Encode(report{
		Received: len(late), P50: at(0.5), P99: at(0.99), P999: at(0.999), Earliest: at(0), Farthest: at(1),
	}))
}

// stamp reads when the kernel got a packet, in nanoseconds.
func stamp(control []byte) (int64, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if m.Header.Level == syscall.SOL_SOCKET && m.Header.Type == syscall.SCM_TIMESTAMPNS {
			seconds, rest := binary.NativeEndian.Uint64(m.Data), binary.NativeEndian.Uint64(m.Data[8:])
			return int64(seconds)*1e9 + int64(rest), nil
		}
	}
	return 0, errors.New("a packet without a time stamp")
}
