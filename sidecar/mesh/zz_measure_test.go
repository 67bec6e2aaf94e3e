package mesh
import ("testing";"runtime";"time";"fmt";"syscall";"context";"io";"log/slog";"sync"
"github.com/sidestream-dev/sidestream/sidecar/catalogue";"github.com/sidestream-dev/sidestream/adapters";"os")
func cpu() time.Duration { var r syscall.Rusage; syscall.Getrusage(0,&r); return time.Duration(r.Utime.Nano()+r.Stime.Nano()) }
func TestMeasure(t *testing.T) {
	if os.Getenv("MEASURE")=="" { t.Skip() }
	const nodes, streams = 50, 2000
	dir := certificates(t)
	mem := func() float64 { runtime.GC(); var s runtime.MemStats; runtime.ReadMemStats(&s); return float64(s.HeapInuse+s.StackInuse)/1e6 }
	base := mem()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var ms []*Mesh; var cats []*catalogue.Catalogue; var addrs []string
	log := slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelWarn}))
	for i := range nodes {
		l := listenLoopback(t,"127.0.0.1:0")
		sec := load(t, dir)
		p := NewPort(PortOptions{Listener:l,Security:sec,Logger:log})
		c := catalogue.New(catalogue.Node{ID: catalogue.NodeID(fmt.Sprintf("n%02d",i)), Incarnation:1, Cluster: fmt.Sprintf("c%d", i%5)})
		m := New(Options{Catalogue:c,Security:sec,Listener:p.GRPC(),Address:l.Addr().String(),Logger:log})
		wg.Go(func(){p.Run(ctx)}); wg.Go(func(){m.Run(ctx)})
		ms = append(ms,m); cats=append(cats,c); addrs=append(addrs,l.Addr().String())
		c.SetLocal(nil)
	}
	t0, c0 := time.Now(), cpu()
	for _, m := range ms { m.SetPeers(at(addrs...)) }
	for { ok := true; for _, m := range ms { n:=0; for _, s := range m.Peers() { if s.Connected {n++} }; if n != nodes-1 { ok=false } }; if ok {break}; time.Sleep(20*time.Millisecond) }
	t.Logf("connected after %v, cpu %v", time.Since(t0), cpu()-c0)
	time.Sleep(8*time.Second)
	fmt.Printf("links: %.1f MB for all, %.0f kB per link end\n", mem()-base, (mem()-base)*1000/(nodes*(nodes-1)))
	t1 := time.Now()
	for i, c := range cats { var ss []adapters.Stream; for j := range streams/nodes { ss = append(ss, adapters.Stream{ID: adapters.StreamID(fmt.Sprintf("room-%d/cam-%d", i, j)), Session: "x", Tracks: []adapters.Track{{Kind:"video",MIME:"video/H264"},{Kind:"audio",MIME:"audio/opus"}}}) }; c.SetLocal(ss) }
	for { ok := true; for _, c := range cats { st,_ := c.Snapshot(); if len(st.Streams()) != streams {ok=false; break} }; if ok {break}; time.Sleep(10*time.Millisecond) }
	fmt.Printf("2000 streams known everywhere after %v; connected took %v\n", time.Since(t1), t1.Sub(t0))
	time.Sleep(3*time.Second)
	fmt.Printf("with streams: %.1f MB for all = %.2f MB per node\n", mem()-base, (mem()-base)/nodes)
	c1 := cpu(); time.Sleep(20*time.Second)
	fmt.Printf("at rest: %.2f %% of a core per node\n", (cpu()-c1).Seconds()/20*100/nodes)
	cancel(); wg.Wait()
}
