package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/logging"
	"github.com/spf13/cobra"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/media"
	"github.com/sidestream-dev/sidestream/adapters/whip"
	"github.com/sidestream-dev/sidestream/e2e/wan"
	"github.com/sidestream-dev/sidestream/sidecar/catalogue"
	"github.com/sidestream-dev/sidestream/sidecar/config"
	"github.com/sidestream-dev/sidestream/sidecar/console"
	"github.com/sidestream-dev/sidestream/sidecar/mesh"
	"github.com/sidestream-dev/sidestream/sidecar/testsource"
)

// The world of the demo: its viewer sits in Germany, its publisher in Singapore.
var (
	demoRegions = []demoRegion{
		{Name: "germany", Viewer: 40 * time.Millisecond},
		{Name: "singapore", Viewer: 200 * time.Millisecond},
		{Name: "us-west", Viewer: 160 * time.Millisecond},
	}
	demoBetween = map[[2]string]time.Duration{
		{"germany", "singapore"}: 160 * time.Millisecond,
		{"germany", "us-west"}:   140 * time.Millisecond,
		{"singapore", "us-west"}: 170 * time.Millisecond,
	}
)

const demoPublisher = "singapore"

type demoRegion struct {
	Name   string
	Viewer time.Duration // round trip to the demo's viewer
}

// demoOptions are the flags of the command.
type demoOptions struct {
	duration    time.Duration
	noPublisher bool
	noDistance  bool
	loss        float64 // per cent, on the way to the viewer
	coreLoss    float64 // per cent, between regions
	port        int
	stream      string
	codec       string
	json        bool
	verbose     bool
}

func demoCommand(environ []string, stdout, stderr io.Writer) *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Three regions on this machine, with the distance between them: publish in one, watch in another",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runDemo(cmd.Context(), o, environ, stdout, stderr) },
	}
	flags := cmd.Flags()
	flags.DurationVar(&o.duration, "duration", 0, "end after this time (0: at Ctrl-C)")
	flags.BoolVar(&o.noPublisher, "no-publisher", false, "do not publish the test clip")
	flags.BoolVar(&o.noDistance, "no-distance", false, "do not emulate distance")
	flags.Float64Var(&o.loss, "loss", 0, "per cent of packets lost between a region and its viewers, each way")
	flags.Float64Var(&o.coreLoss, "core-loss", 0, "per cent of packets lost between regions, each way")
	flags.IntVar(&o.port, "port", 8081, "port of the first region's page; the others follow (0: any free ones)")
	flags.StringVar(&o.stream, "stream", "demo", "name under which the test clip is published")
	flags.StringVar(&o.codec, "codec", "h264", "of the test clip: h264 or vp8")
	flags.BoolVar(&o.json, "json", false, "print events as JSON, one a line")
	flags.BoolVar(&o.verbose, "verbose", false, "log what the nodes do")
	return cmd
}

func (o demoOptions) validate() error {
	var faults []error
	for name, percent := range map[string]float64{"loss": o.loss, "core-loss": o.coreLoss} {
		if percent < 0 || percent > 100 {
			faults = append(faults, fmt.Errorf("--%s is %g: give per cent, from 0 to 100", name, percent))
		}
	}
	if o.port < 0 || o.port > 65535-len(demoRegions)+1 {
		faults = append(faults, fmt.Errorf("--port is %d: give a port below %d", o.port, 65535-len(demoRegions)+2))
	}
	if o.duration < 0 {
		faults = append(faults, fmt.Errorf("--duration is %s: give a positive time such as 30s", o.duration))
	}
	if err := adapters.StreamID(o.stream).Validate(); err != nil {
		faults = append(faults, fmt.Errorf("--stream: %w", err))
	}
	if o.codec != "h264" && o.codec != "vp8" {
		faults = append(faults, fmt.Errorf("--codec is %q: give h264 or vp8", o.codec))
	}
	return errors.Join(faults...)
}

// demo is three nodes and the distances between them.
type demo struct {
	demoOptions
	settings config.Config // of every node, before what the demo sets
	logger   *slog.Logger
	out      *demoPrinter
	network  *wan.Network
	places   []*demoPlace

	mu        sync.Mutex
	relayOf   map[uint16]*demoPlace // whose relays send from a UDP port
	peerOf    map[uint16]*demoPlace // whose peer port it is
	publisher uint16                // UDP port of the test publisher
	muxes     []ice.UDPMux
}

// demoPlace is a region with its node.
type demoPlace struct {
	demoRegion
	node   *node
	viewer wan.Link                // from the node to its viewers
	core   map[*demoPlace]wan.Link // from the node to those of other regions
	url    string
}

func runDemo(ctx context.Context, o demoOptions, environ []string, stdout, stderr io.Writer) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	settings, err := config.Decode(environ)
	if err != nil {
		return fmt.Errorf("read settings:\n%w", err)
	}
	dir, err := os.MkdirTemp("", "sidestream-demo-")
	if err != nil {
		return fmt.Errorf("make a folder for the demo's certificates: %w", err)
	}
	defer os.RemoveAll(dir)
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelInfo
	}
	format := config.Text
	if o.json {
		format = config.JSON
	}
	d := &demo{
		demoOptions: o, settings: settings, network: wan.NewNetwork(), out: &demoPrinter{to: stdout, json: o.json},
		logger:  newLogger(config.Log{Level: level, Format: format}, stderr),
		relayOf: map[uint16]*demoPlace{}, peerOf: map[uint16]*demoPlace{},
	}
	defer d.close()
	if err := d.build(dir); err != nil {
		return err
	}
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}

	var nodes []part
	for _, p := range d.places {
		nodes = append(nodes, p.node.run)
	}
	visible := []part{d.narrate}
	if !o.noPublisher {
		publish, err := d.publish()
		if err != nil {
			return err
		}
		visible = append(visible, publish)
	}
	d.welcome()
	err = runStages(ctx, []part{d.network.Run}, nodes, visible)
	if ctx.Err() == nil {
		return err
	}
	d.farewell()
	return nil
}

// build puts the regions and their distances together.
func (d *demo) build(dir string) error {
	certificates := filepath.Join(dir, "tls")
	if err := os.Mkdir(certificates, 0o700); err != nil {
		return err
	}
	if err := mesh.WriteEphemeralCertificates(certificates); err != nil {
		return err
	}
	for i, r := range demoRegions {
		p := &demoPlace{demoRegion: r, core: map[*demoPlace]wan.Link{}}
		p.viewer = wan.NewLink(uint64(i+1), d.distance(r.Viewer, d.loss))
		for j, other := range d.places {
			rtt := demoBetween[[2]string{other.Name, r.Name}]
			other.core[p] = wan.NewLink(uint64(100+10*i+j), d.distance(rtt, d.coreLoss))
			p.core[other] = other.core[p].Reversed()
		}
		d.places = append(d.places, p)
	}
	var addresses []string
	for i, p := range d.places {
		port := 0
		if d.port != 0 {
			port = d.port + i
		}
		if err := d.open(p, port, filepath.Join(dir, p.Name), certificates); err != nil {
			return err
		}
		address := p.node.listeners.peer.Addr().(*net.TCPAddr).AddrPort()
		addresses = append(addresses, address.String())
		d.peerOf[address.Port()] = p
	}
	for _, p := range d.places {
		p.node.settings.Peer.Static = addresses
	}
	return nil
}

func (d *demo) distance(rtt time.Duration, loss float64) wan.Params {
	if d.noDistance {
		rtt = 0
	}
	return wan.Params{Delay: rtt / 2, Loss: loss / 100}
}

// open makes the node of a region.
func (d *demo) open(p *demoPlace, port int, state, certificates string) error {
	settings := d.settings
	settings.Cluster, settings.StateDir = p.Name, state
	settings.Gateway.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for _, listen := range []*string{&settings.Peer.Listen, &settings.Admin.Listen, &settings.SFU.Listen} {
		*listen = "127.0.0.1:0"
	}
	settings.Peer.TLSDir = certificates
	settings.SFU.SimulatedLoss = true // who watches may play with it

	relays, ports, err := d.mux([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil)
	if err != nil {
		return fmt.Errorf("open a UDP port for the relays of %s: %w", p.Name, err)
	}
	d.relayOf[ports[0]] = p
	server, _, err := d.mux(localAddresses(), p)
	if err != nil {
		return fmt.Errorf("open UDP ports for the media server of %s: %w", p.Name, err)
	}
	p.node, err = newNode(settings, surroundings{
		dial: d.dialer(p),
		viewers: func(l net.Listener) net.Listener {
			return d.network.Listener(l, func(net.Addr) wan.Link { return p.viewer })
		},
		front: d.page(p),
		sfu:   media.Transport{UDPMux: server, Loopback: true},
		relay: media.Transport{UDPMux: relays, Loopback: true},
	}, d.logger.With("region", p.Name))
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("port %d for %s is taken: end what listens there, or choose others with --port: %w", port, p.Name, err)
	}
	if err != nil {
		return fmt.Errorf("make the node of %s: %w", p.Name, err)
	}
	p.url = "http://localhost:" + strconv.Itoa(p.node.listeners.gateway.Addr().(*net.TCPAddr).Port)
	return nil
}

// mux opens UDP ports. Those of a place's media server have its distances to whom they talk to.
func (d *demo) mux(addrs []netip.Addr, server *demoPlace) (ice.UDPMux, []uint16, error) {
	silent := (&logging.DefaultLoggerFactory{Writer: io.Discard}).NewLogger("ice")
	var muxes []ice.UDPMux
	var ports []uint16
	for _, addr := range addrs {
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		if err != nil {
			if addr.Is6() {
				continue // IPv6 may be there in name only
			}
			return nil, nil, err
		}
		_ = socket.SetReadBuffer(4 << 20)
		_ = socket.SetWriteBuffer(4 << 20)
		ports = append(ports, socket.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		var conn net.PacketConn = socket
		if server != nil {
			conn = d.network.PacketConn(socket, func(remote netip.AddrPort) wan.Link { return d.linkTo(server, remote.Port()) })
		}
		muxes = append(muxes, ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: conn, Logger: silent}))
	}
	mux := ice.UDPMux(ice.NewMultiUDPMuxDefault(muxes...))
	d.muxes = append(d.muxes, mux)
	return mux, ports, nil
}

// linkTo is the way from a region's media server to the owner of a UDP port.
func (d *demo) linkTo(from *demoPlace, port uint16) wan.Link {
	d.mu.Lock()
	defer d.mu.Unlock()
	to, relay := d.relayOf[port]
	switch {
	case relay && to == from, port == d.publisher:
		return wan.Link{}
	case relay:
		return from.core[to]
	default:
		return from.viewer
	}
}

// dialer goes the distance to the region that it dials.
func (d *demo) dialer(from *demoPlace) mesh.DialFunc {
	dial := d.network.Dialer(nil, func(address string) wan.Link {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return wan.Link{}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		return from.core[d.peerOf[at.Port()]] // nothing at all, to itself
	})
	return func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }
}

// page puts the region's pages in front of its gateway; its first address leads to them.
func (d *demo) page(p *demoPlace) func(http.Handler) http.Handler {
	return func(gateway http.Handler) http.Handler {
		pages := below(console.Path, console.Handler(d.pageOptions(p)), gateway)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && r.URL.Path == "/" {
				to := url.URL{Path: console.Path, RawQuery: r.URL.RawQuery}
				http.Redirect(w, r, to.String(), http.StatusTemporaryRedirect)
				return
			}
			pages.ServeHTTP(w, r)
		})
	}
}

func (d *demo) pageOptions(here *demoPlace) console.Options {
	o := console.Options{Region: here.Name, Stream: d.stream, Streams: here.node.list, Cascade: here.node.cascade}
	for _, p := range d.places {
		o.Regions = append(o.Regions, console.Region{Name: p.Name, URL: p.url + console.Path})
	}
	return o
}

// publish sends the test clip into its region, for as long as the demo runs.
func (d *demo) publish() (part, error) {
	mux, ports, err := d.mux([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil)
	if err != nil {
		return nil, fmt.Errorf("open a UDP port for the test publisher: %w", err)
	}
	d.mu.Lock()
	d.publisher = ports[0]
	d.mu.Unlock()
	source, err := testsource.New(testsource.Options{Codec: d.codec, Logger: d.logger})
	if err != nil {
		return nil, err
	}
	transport := media.Transport{UDPMux: mux, Loopback: true}
	client := &whip.Client{NewPeerConnection: transport.NewPeerConnection, Logger: d.logger}
	target := &url.URL{
		Scheme: "http", Host: d.place(demoPublisher).node.listeners.gateway.Addr().String(), Path: "/whip/" + d.stream,
	}
	return republish(source, client, adapters.Endpoint{URL: target}, d.logger), nil
}

func (d *demo) place(name string) *demoPlace {
	for _, p := range d.places {
		if p.Name == name {
			return p
		}
	}
	return nil
}

func (d *demo) close() {
	for _, p := range d.places {
		if p.node != nil {
			p.node.close()
		}
	}
	for _, m := range d.muxes {
		_ = m.Close()
	}
}

// localAddresses are the machine's, loopback first.
func localAddresses() []netip.Addr {
	addrs := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	found, err := net.InterfaceAddrs()
	if err != nil {
		return addrs
	}
	for _, a := range found {
		prefix, err := netip.ParsePrefix(a.String())
		if addr := prefix.Addr(); err == nil && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// welcome says where things are and what to try.
func (d *demo) welcome() {
	type region struct {
		Name   string  `json:"name"`
		URL    string  `json:"url"`
		WHIP   string  `json:"whip"`
		WHEP   string  `json:"whep"`
		Admin  string  `json:"admin"`
		Viewer float64 `json:"viewerRoundTripMs"`
	}
	var regions []region
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	for _, p := range d.places {
		rtt := d.distance(p.Viewer, 0).Delay * 2
		admin := "http://" + p.node.listeners.admin.Addr().String()
		regions = append(regions, region{
			Name: p.Name, URL: p.url, WHIP: p.url + "/whip/" + d.stream, WHEP: p.url + "/whep/" + d.stream,
			Admin: admin, Viewer: float64(rtt.Milliseconds()),
		})
		fmt.Fprintf(w, "  %s\t%s\tyou are %s away\tstatus %s/api/status\n", p.Name, p.url, rtt, admin)
	}
	_ = w.Flush()
	first := "The test clip is published into " + demoPublisher + " as \"" + d.stream + "\"."
	if d.noPublisher {
		first = "Nobody publishes yet: use the Publish tab of any page, or any WHIP client."
	}
	d.out.event("ready", map[string]any{"stream": d.stream, "publisher": !d.noPublisher, "regions": regions}, fmt.Sprintf(`Sidestream: three regions on this machine

%s
%s
Try this:
  1. Open %s: the stream is pulled from %s once, however many watch.
  2. There, Measurements and Compare: far against near, with 1 %% loss on both last miles.
  3. There, Cascade: what crosses between the regions, and what need not.
  4. Publish yourself: the Publish page, or OBS, GStreamer, ffmpeg 8 by WHIP to %s/whip/NAME.
  5. Close the pages: 15 seconds later nothing crosses any more.
Ctrl-C ends it.
`, table.String(), first, d.places[0].url, demoPublisher, d.places[2].url))
}

// narrate tells of streams that come and go in the regions, until ctx ends.
func (d *demo) narrate(ctx context.Context) error {
	var watchers sync.WaitGroup
	for _, p := range d.places {
		watchers.Go(func() { d.watch(ctx, p) })
	}
	watchers.Wait()
	return ctx.Err()
}

func (d *demo) watch(ctx context.Context, p *demoPlace) {
	names := map[catalogue.NodeID]string{}
	for _, other := range d.places {
		names[other.node.state.Node] = other.Name
	}
	before := map[adapters.StreamID]catalogue.Hold{}
	for {
		state, changed := p.node.known.Snapshot()
		now := map[adapters.StreamID]catalogue.Hold{}
		for _, id := range state.Streams() {
			if own, ok := state.Own(id); ok {
				now[id] = own
			}
		}
		for id, hold := range now {
			if old, ok := before[id]; ok && old.Epoch == hold.Epoch && len(old.Path) == len(hold.Path) {
				continue
			}
			fields := map[string]any{"region": p.Name, "stream": id, "epoch": hold.Epoch}
			if len(hold.Path) == 1 {
				d.out.event("published", fields, fmt.Sprintf("%s  %s: %q is published here\n", clock(), p.Name, id))
				continue
			}
			parent := names[hold.Path[len(hold.Path)-2]]
			fields["parent"] = parent
			d.out.event("relayed", fields, fmt.Sprintf("%s  %s: %q is carried here from %s\n", clock(), p.Name, id, parent))
		}
		for id := range before {
			if _, ok := now[id]; !ok {
				d.out.event("ended", map[string]any{"region": p.Name, "stream": id},
					fmt.Sprintf("%s  %s: %q is here no longer\n", clock(), p.Name, id))
			}
		}
		before = now
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func clock() string { return time.Now().Format(time.TimeOnly) }

// farewell says what crossed between the regions.
func (d *demo) farewell() {
	type crossing struct {
		From  string `json:"from"`
		To    string `json:"to"`
		Bytes uint64 `json:"mediaBytes"`
		Lost  uint64 `json:"packetsLost"`
	}
	var crossings []crossing
	var words strings.Builder
	for _, from := range d.places {
		for _, to := range d.places {
			link, ok := from.core[to]
			if !ok {
				continue
			}
			c := link.Out.Counters()
			crossings = append(crossings, crossing{From: from.Name, To: to.Name, Bytes: c.Bytes, Lost: c.Lost})
			if c.Bytes > 100_000 { // less is signalling and feedback
				fmt.Fprintf(&words, "  %s to %s: %.1f MB of media\n", from.Name, to.Name, float64(c.Bytes)/1e6)
			}
		}
	}
	text := "\nEnded. Nothing crossed between regions.\n"
	if words.Len() > 0 {
		text = "\nEnded. Between regions crossed:\n" + words.String()
	}
	d.out.event("ended demo", map[string]any{"crossings": crossings}, text)
}

// demoPrinter writes what the demo has to say, for people or for scripts.
type demoPrinter struct {
	to   io.Writer
	json bool
	mu   sync.Mutex
}

func (p *demoPrinter) event(name string, fields map[string]any, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.json {
		_, _ = io.WriteString(p.to, text)
		return
	}
	fields["event"], fields["time"] = name, time.Now().UTC().Format(time.RFC3339Nano)
	line, err := json.Marshal(fields)
	if err != nil { // strings and numbers always marshal
		panic(err)
	}
	_, _ = p.to.Write(append(line, '\n'))
}
