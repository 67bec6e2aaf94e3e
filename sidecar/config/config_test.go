package config

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var compare = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func TestDefaults(t *testing.T) {
	want := Config{
		ClusterCAFile: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
		StateDir:      "/var/lib/sidestream",
		Adapter:       Adapter{Name: "pionsfu", Generic: Generic{MissingStatus: []int{404}}},
		Gateway: Gateway{
			Listen: ":18080", Hold: 10 * time.Second, SessionAge: 6 * time.Hour, Origins: []string{"*"}, Placement: PlaceOff, AccessLog: On,
		},
		TURN:    TURN{TTL: 24 * time.Hour},
		Peer:    Peer{Listen: ":18443", PortName: "sidestream-peer", Security: TLS, TLSDir: "/etc/sidestream/peer-tls"},
		Relay:   Relay{Linger: 15 * time.Second, FanOut: 8, Drain: 20 * time.Second},
		Publish: Publish{Conflict: Newest, OnSupersede: Keep},
		Admin:   Admin{Listen: ":18090"},
		SFU: SFU{
			Listen: ":8800", MediaListen: ":8801", PublisherGrace: 5 * time.Second, AllowOrigin: "*", MaxSessions: 4096, MaxHalfOpen: 256,
			ConnectTimeout: 12 * time.Second, Drain: 5 * time.Second,
		},
		Log: Log{Level: slog.LevelInfo, Format: JSON},
	}
	if diff := cmp.Diff(want, Default(), compare); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if vars := Default().Env(); len(vars) != 0 {
		t.Errorf("defaults are rendered: %v", vars)
	}
	c := Default()
	c.Cluster = "germany"
	if err := c.Validate(); err != nil {
		t.Errorf("defaults with a cluster: %v", err)
	}
}

// full has a value of its own in every field.
func full(t *testing.T) Config {
	t.Helper()
	parse := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	return Config{
		NodeID: "7b0c", Cluster: "us-west", ClusterCAFile: "/ca.crt", Namespace: "media", PodIP: netip.MustParseAddr("fd00::7"), StateDir: "/state",
		TestStreams: []string{"demo", "studio/test"},
		Adapter: Adapter{
			Name: "generic", URL: parse("http://10.0.0.7:8889/base"), Token: "a=b,c", User: "u", Password: "p q",
			Publish: Credentials{User: "v", Password: "r", Token: "t"}, Play: Credentials{User: "w", Password: "s", Token: "o"},
			APIURL: parse("http://10.0.0.7:9997"), API: Credentials{User: "x", Password: "é", Token: "n"},
			Generic: Generic{
				Publish: "/whip/{stream}", Play: "/whep/{stream}", Header: "A: b\nC: d", MissingStatus: []int{404, 409}, MissingBody: "none",
				Inventory: "/api", Query: ".[]|{name}", Seen: true, Codecs: []string{"video/H264", "audio/opus"},
				InOrder: true, MaxHold: time.Second, FillAudio: true, DropsReaders: true, Waits: true, IgnoresPLI: true,
			},
			Janus: Janus{
				AuthToken: "t", AdminKey: "k", RoomSecret: "s", RoomPIN: "1234", AdminURL: parse("http://10.0.0.7:7088/admin"),
				AdminSecret: "as", PublishToken: "jp", PlayToken: "jq",
			},
		},
		Gateway: Gateway{
			Listen: "127.0.0.1:0", PublicURL: parse("https://live.example.org/x%2Fy"),
			TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
			Hold:           time.Second, SessionAge: time.Hour, Origins: []string{"https://a.example", "https://b.example"},
			MaxPlays: 1, MaxPublications: 2, MaxPerAddress: 3, MaxPerStream: 4, RatePerAddress: 60, RatePerStream: 600, Placement: PlaceRedirect,
			NodeURL: parse("https://node.example.org"), AccessLog: Off,
		},
		JWT: JWT{
			KeyFile: "/jwt", JWKSURL: parse("https://issuer.example/jwks"), Issuer: "us", Audience: "media", OpenPaths: []string{"/", "/a/*"},
			WebhookURL: parse("http://auth.example/hook"),
		},
		TURN: TURN{
			URLs: []string{"turn:a:3478?transport=udp", "turns:b:443"}, Username: "tu", Credential: "tc", SecretFile: "/turn",
			AuthURL: parse("http://auth/ice?service=turn"), TTL: time.Hour,
		},
		Peer: Peer{
			Listen: ":1", AdvertisedHost: "peer.example.org",
			Service: "sidestream-peers", PortName: "peer", Kubeconfig: "/kubeconfig",
			DNS:      []string{"peers.example:18443", "peers.media.svc.clusterset.local", "_peer._tcp.peers.example."},
			File:     "/peers",
			Static:   []string{"10.1.1.1:18443", "[fd00::1]:18443", "peer.example:18443"},
			Security: SharedKey, TLSDir: "/tls", Key: "0123456789abcdef0123456789abcdef", KeyFile: "/keys",
		},
		Relay:   Relay{Pins: []string{"demo", "studio/*"}, Standby: []string{"studio/*"}, Export: []string{"!private/*"}, Import: []string{"news/*"}, Linger: time.Minute, FanOut: 3, Drain: 55 * time.Second},
		Publish: Publish{Conflict: Priority, Priority: -3, OnSupersede: End},
		Admin:   Admin{Listen: ":2", Profile: true},
		Console: Console{
			Enabled: true, Regions: []Page{{"germany", parse("https://de.example.org/sidestream/")}, {"us-west", parse("https://us.example.org")}},
			Places: []Place{{"germany", 50.1, -8.5}}, Token: "ct", ProxyHeader: "X-User",
		},
		SFU: SFU{
			Listen: ":3", MediaListen: ":4", AdvertisedIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			TCPListen: ":5", STUNServer: "stun.example:3478", ICELite: true, PublicURL: parse("https://sfu.example"),
			OverflowURL: parse("https://west.example/a"), APIToken: "r", AllowOrigin: "https://a.example", LaxETags: true, MaxSessions: 10,
			MaxHalfOpen: 5, ConnectTimeout: 2 * time.Second, RatePerAddress: 60,
			TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Drain: time.Minute,
			PublishToken: "p", PlayToken: "q", Loopback: true, SimulatedLoss: true, PublisherGrace: time.Second,
		},
		Log: Log{Level: slog.LevelWarn, Format: Text},
	}
}

func TestRoundTrip(t *testing.T) {
	c := full(t)
	valid := c
	valid.Peer.KeyFile = ""    // of the two, one
	valid.JWT.WebhookURL = nil // likewise
	valid.JWT.KeyFile, valid.TURN.SecretFile, valid.Adapter.Generic.Seen = "", "", false
	valid.Adapter.Janus = Janus{} // of the makes, one
	valid.Adapter.User, valid.Adapter.Password = "", ""
	valid.Adapter.Publish.Token, valid.Adapter.Play.Token, valid.Adapter.API.Token = "", "", ""
	if err := valid.Validate(); err != nil {
		t.Fatal(err)
	}
	all := fields(reflect.ValueOf(&c).Elem(), Prefix)
	if got := len(c.Env()); got != len(all) {
		t.Errorf("%d of %d settings are rendered: give full() a value of its own for each", got, len(all))
	}
	got, err := Decode(append(c.Environ(), "PATH=/bin", "HOME"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, got, compare); diff != "" {
		t.Errorf("(-rendered +decoded)\n%s", diff)
	}
}

// TestRoundTripAlone renders each setting by itself, so that no two share a variable.
func TestRoundTripAlone(t *testing.T) {
	source := full(t)
	from := fields(reflect.ValueOf(&source).Elem(), Prefix)
	seen := map[string]bool{}
	for i, f := range from {
		if seen[f.name] || serviceLink(f.name) {
			t.Errorf("%s is taken, by another setting or by Kubernetes' service links", f.name)
		}
		seen[f.name] = true
		want := Default()
		fields(reflect.ValueOf(&want).Elem(), Prefix)[i].value.Set(f.value)
		vars := want.Env()
		if len(vars) != 1 || vars[0].Name != f.name || vars[0].Secret != f.secret() {
			t.Errorf("%s renders as %v", f.name, vars)
			continue
		}
		got, err := Decode(want.Environ())
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
			continue
		}
		if diff := cmp.Diff(want, got, compare); diff != "" {
			t.Errorf("%s (-rendered +decoded)\n%s", f.name, diff)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	_, err := Decode([]string{
		"SIDESTREAM_CLUSTR=germany",
		"SIDESTREAM_NOTHING_LIKE_IT_AT_ALL=1",
		"SIDESTREAM_GATEWAY_HOLD=10",
		"SIDESTREAM_POD_IP=localhost",
		"SIDESTREAM_ADMIN_PROFILE=maybe",
		"SIDESTREAM_RELAY_FAN_OUT=many",
		"SIDESTREAM_PEER_SECURITY=none",
		"SIDESTREAM_GATEWAY_TRUSTED_PROXIES=10.0.0.0",
		"SIDESTREAM_SFU_ADVERTISED_IPS=a,b",
		"SIDESTREAM_ADAPTER_URL=http://[",
		"SIDESTREAM_LOG_LEVEL=loud",
		"SIDESTREAM_LOG_FORMAT=xml",
		// what Kubernetes sets for Services called sidestream-peers and sidestream
		"SIDESTREAM_PEERS_SERVICE_HOST=10.96.0.1", "SIDESTREAM_PEERS_PORT=tcp://10.96.0.1:18443",
		"SIDESTREAM_PEERS_PORT_18443_TCP_ADDR=10.96.0.1", "SIDESTREAM_PEERS_SERVICE_PORT_SIDESTREAM_PEER=18443",
		"SIDESTREAM_PORT=tcp://10.96.0.1:1", "SIDESTREAM_PEERS_PORT_18443_TCP=tcp://10.96.0.1:18443",
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"SIDESTREAM_CLUSTR is not a setting: did you mean SIDESTREAM_CLUSTER?",
		"SIDESTREAM_NOTHING_LIKE_IT_AT_ALL is not a setting: remove it",
		`SIDESTREAM_GATEWAY_HOLD is "10": write a time such as 10s`,
		`SIDESTREAM_POD_IP is "localhost": write an IP address`,
		`SIDESTREAM_ADMIN_PROFILE is "maybe": write true or false`,
		`SIDESTREAM_RELAY_FAN_OUT is "many": write a whole number`,
		`SIDESTREAM_PEER_SECURITY is "none": write tls, shared-key or plaintext`,
		`SIDESTREAM_GATEWAY_TRUSTED_PROXIES is "10.0.0.0": write address ranges`,
		`SIDESTREAM_SFU_ADVERTISED_IPS is "a,b": write IP addresses`,
		`SIDESTREAM_ADAPTER_URL is "http://[": write a URL`,
		`SIDESTREAM_LOG_LEVEL is "loud": write debug, info, warn or error`,
		`SIDESTREAM_LOG_FORMAT is "xml": write json or text`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s", want)
		}
	}
	if got := strings.Count(err.Error(), "\n") + 1; got != 12 {
		t.Errorf("%d faults, want 12:\n%v", got, err)
	}
}

func TestValidate(t *testing.T) {
	known := Default()
	names := map[string]bool{}
	for _, f := range fields(reflect.ValueOf(&known).Elem(), Prefix) {
		names[f.name] = true
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string // one word of each fault
	}{
		"good":           {func(*Config) {}, nil},
		"no cluster":     {func(c *Config) { c.Cluster = "" }, []string{"SIDESTREAM_CLUSTER"}},
		"bad cluster":    {func(c *Config) { c.Cluster = "a b" }, []string{"SIDESTREAM_CLUSTER"}},
		"node in path":   {func(c *Config) { c.NodeID = ".." }, []string{"SIDESTREAM_NODE_ID"}},
		"any address":    {func(c *Config) { c.PodIP = netip.IPv4Unspecified() }, []string{"SIDESTREAM_POD_IP"}},
		"relative state": {func(c *Config) { c.StateDir = "state" }, []string{"SIDESTREAM_STATE_DIR"}},
		"adapter":        {func(c *Config) { c.Adapter.Name = "" }, []string{"SIDESTREAM_ADAPTER_NAME"}},
		"urls": {
			func(c *Config) {
				c.Adapter.URL = &url.URL{Scheme: "rtsp", Host: "a"}
				c.Gateway.PublicURL = &url.URL{Scheme: "https", Host: "a", User: url.User("u"), RawQuery: "q"}
			}, []string{"SIDESTREAM_ADAPTER_URL", "holds a user", "has a query"},
		},
		"token": {func(c *Config) { c.Adapter.Token = "x\n" }, []string{"SIDESTREAM_ADAPTER_TOKEN"}},
		"janus": {
			func(c *Config) {
				c.Adapter.Name = "janus"
				c.Adapter.Janus = Janus{PublishToken: "a b", AdminURL: &url.URL{Scheme: "ftp", Host: "a"}}
			},
			[]string{"JANUS_ADMIN_URL is", "JANUS_ADMIN_SECRET go together", "JANUS_PUBLISH_TOKEN"},
		},
		"janus unused": {func(c *Config) { c.Adapter.Janus.AdminKey = "k" }, []string{"settings for a Janus"}},
		"user and token": {
			func(c *Config) { c.Adapter.Token, c.Adapter.User = "t", "u" }, []string{"SIDESTREAM_ADAPTER_TOKEN and"},
		},
		"user":     {func(c *Config) { c.Adapter.Play.User = "a:b" }, []string{"SIDESTREAM_ADAPTER_PLAY_USER"}},
		"password": {func(c *Config) { c.Adapter.API.User, c.Adapter.API.Password = "a", "b\n" }, []string{"SIDESTREAM_ADAPTER_API_USER"}},
		"generic settings of another": {
			func(c *Config) { c.Adapter.Generic.Publish = "/whip/{stream}" }, []string{"SIDESTREAM_ADAPTER_NAME=generic"},
		},
		"generic": {
			func(c *Config) {
				c.Adapter.Name = "generic"
				c.Adapter.Generic = Generic{
					MissingStatus: []int{200}, Inventory: "/x", MaxHold: time.Hour, Header: "topsecret",
				}
			}, []string{
				"SIDESTREAM_ADAPTER_URL", "GENERIC_MISSING_STATUS", "GENERIC_INVENTORY_QUERY", "GENERIC_MAX_HOLD", "GENERIC_HEADER",
			},
		},
		"listeners": {
			func(c *Config) { c.Gateway.Listen, c.Peer.Listen, c.Admin.Listen = "", "1.2.3.4", ":99999" },
			[]string{"SIDESTREAM_GATEWAY_LISTEN", "SIDESTREAM_PEER_LISTEN", "SIDESTREAM_ADMIN_LISTEN"},
		},
		"one port for two": {func(c *Config) { c.Admin.Listen = "127.0.0.1:18080" }, []string{"are both port 18080"}},
		"two hosts":        {func(c *Config) { c.Admin.Listen, c.Gateway.Listen = "127.0.0.1:1", "127.0.0.2:1" }, nil},
		"any port":         {func(c *Config) { c.Admin.Listen, c.Gateway.Listen = ":0", ":0" }, nil},
		"SFU in here":      {func(c *Config) { c.SFU.Listen = ":18080" }, []string{"are both port 18080"}},
		"SFU elsewhere":    {func(c *Config) { c.SFU.Listen = ":18080"; c.Adapter.URL = &url.URL{Scheme: "http", Host: "a"} }, nil},
		"console":          {func(c *Config) { c.Console.Regions = []Page{{"", &url.URL{Scheme: "ftp", Host: "a"}}} }, []string{"a region without a name", "SIDESTREAM_CONSOLE_REGIONS"}},
		"console, places":  {func(c *Config) { c.Console.Places = []Place{{"a", 91, 0}} }, []string{"SIDESTREAM_CONSOLE_PLACES"}},
		"console, proxy":   {func(c *Config) { c.Console.ProxyHeader = "X-User" }, []string{"SIDESTREAM_GATEWAY_TRUSTED_PROXIES"}},
		"SFU grace":        {func(c *Config) { c.SFU.PublisherGrace = -1 }, []string{"SIDESTREAM_SFU_PUBLISHER_GRACE"}},
		"SFU": {
			func(c *Config) {
				c.SFU.TCPListen, c.SFU.STUNServer, c.SFU.AllowOrigin, c.SFU.MaxHalfOpen = "x", "stun", "example.org", 5000
				c.SFU.PublicURL, c.SFU.OverflowURL = &url.URL{Host: "a"}, &url.URL{Scheme: "https", Host: "a", RawQuery: "q"}
				c.SFU.ConnectTimeout, c.SFU.RatePerAddress, c.SFU.APIToken, c.SFU.Drain = 0, -1, "a b", -1
			},
			[]string{
				"SFU_TCP_LISTEN", "SFU_STUN_SERVER", "SFU_PUBLIC_URL", "SFU_OVERFLOW_URL", "SFU_ALLOW_ORIGIN", "SFU_MAX_SESSIONS",
				"SFU_CONNECT_TIMEOUT", "SFU_DRAIN", "SFU_RATE_PER_ADDRESS", "SFU_API_TOKEN",
			},
		},
		"test streams":     {func(c *Config) { c.TestStreams = []string{"a*"} }, []string{"SIDESTREAM_TEST_STREAMS"}},
		"webhook and keys": {func(c *Config) { c.JWT.WebhookURL, c.JWT.KeyFile = &url.URL{Scheme: "http", Host: "a"}, "/k" }, []string{"together with keys"}},
		"SFU addresses":    {func(c *Config) { c.SFU.AdvertisedIPs = []netip.Addr{{}} }, []string{"SIDESTREAM_SFU_ADVERTISED_IPS"}},
		"gateway": {
			func(c *Config) {
				c.Gateway.Origins, c.Gateway.MaxPlays, c.Gateway.MaxPerStream = []string{"example.org", "https://a/b"}, -1, 1e6
				c.Gateway.Placement, c.Gateway.AccessLog, c.Gateway.NodeURL = "x", "x", &url.URL{Scheme: "https", Host: "a", RawQuery: "q"}
			}, []string{`"example.org"`, `"https://a/b"`, "MAX_PLAYS is -1", "MAX_PER_STREAM", "PLACEMENT", "ACCESS_LOG", "NODE_URL"},
		},
		"tokens": {
			func(c *Config) {
				c.JWT = JWT{KeyFile: "keys", JWKSURL: &url.URL{Scheme: "ftp", Host: "a"}, OpenPaths: []string{"a", "/["}}
			}, []string{"JWT_KEY_FILE is", "JWT_JWKS_URL is", "both set", `"a"`, `"/["`},
		},
		"tokens without keys": {func(c *Config) { c.JWT.Issuer = "us" }, []string{"no token is checked"}},
		"turn": {
			func(c *Config) {
				c.TURN = TURN{URLs: []string{"http://a"}, Username: "ü", SecretFile: "x", AuthURL: &url.URL{Host: "a"}}
			},
			[]string{"TURN_URLS", "TURN_SECRET_FILE is", "TURN_AUTH_URL", "give a secret", "go together", "line end", "TURN_TTL"},
		},
		"turn without servers": {func(c *Config) { c.TURN.SecretFile = "/x" }, []string{"TURN_URLS is not set"}},
		"seen and inventory": {
			func(c *Config) {
				c.Adapter.Name, c.Adapter.URL = "generic", &url.URL{Scheme: "http", Host: "a"}
				c.Adapter.Generic.Seen, c.Adapter.Generic.Inventory, c.Adapter.Generic.Query = true, "/x", "."
			}, []string{"GENERIC_SEEN"},
		},
		"times":             {func(c *Config) { c.Gateway.Hold, c.Relay.Linger, c.Relay.Drain = 0, 0, 0 }, []string{"GATEWAY_HOLD", "RELAY_LINGER", "RELAY_DRAIN"}},
		"host with port":    {func(c *Config) { c.Peer.AdvertisedHost = "a:1" }, []string{"SIDESTREAM_PEER_ADVERTISED_HOST"}},
		"peer without port": {func(c *Config) { c.Peer.Static = []string{"10.0.0.7"} }, []string{"SIDESTREAM_PEER_STATIC"}},
		"service": {
			func(c *Config) { c.Peer.Service, c.Namespace = "media/sidestream-peers", "Media" },
			[]string{"SIDESTREAM_NAMESPACE", "SIDESTREAM_PEER_SERVICE"},
		},
		"port number": {func(c *Config) { c.Peer.PortName = "18443/tcp" }, []string{"SIDESTREAM_PEER_PORT_NAME"}},
		"relative files": {
			func(c *Config) { c.Peer.Kubeconfig, c.Peer.File = "kubeconfig", "peers" },
			[]string{"SIDESTREAM_PEER_KUBECONFIG", "SIDESTREAM_PEER_FILE"},
		},
		"address as name":   {func(c *Config) { c.Peer.DNS = []string{"10.0.0.7:18443"} }, []string{"SIDESTREAM_PEER_STATIC"}},
		"IPv6 as name":      {func(c *Config) { c.Peer.DNS = []string{"2001:db8::7"} }, []string{"SIDESTREAM_PEER_STATIC"}},
		"URL as name":       {func(c *Config) { c.Peer.DNS = []string{"https://peers"} }, []string{"SIDESTREAM_PEER_DNS"}},
		"name with port 0":  {func(c *Config) { c.Peer.DNS = []string{"peers:0"} }, []string{"SIDESTREAM_PEER_DNS"}},
		"half an SRV name":  {func(c *Config) { c.Peer.DNS = []string{"_peer"} }, []string{"SIDESTREAM_PEER_DNS"}},
		"many names":        {func(c *Config) { c.Peer.DNS = slices.Repeat([]string{"peers"}, 65) }, []string{"at most 64"}},
		"no TLS directory":  {func(c *Config) { c.Peer.TLSDir = "" }, []string{"SIDESTREAM_PEER_TLS_DIR"}},
		"plaintext":         {func(c *Config) { c.Peer.TLSDir, c.Peer.Security = "", Plaintext }, nil},
		"security":          {func(c *Config) { c.Peer.Security = "x" }, []string{"SIDESTREAM_PEER_SECURITY"}},
		"pins":              {func(c *Config) { c.Relay.Pins = []string{"[", "a,b"} }, []string{`"["`, `"a,b"`}},
		"export":            {func(c *Config) { c.Relay.Export = []string{"x", "!"} }, []string{`SIDESTREAM_RELAY_EXPORT holds "!"`}},
		"import":            {func(c *Config) { c.Relay.Import = []string{"![a"} }, []string{`SIDESTREAM_RELAY_IMPORT holds "![a"`}},
		"conflict":          {func(c *Config) { c.Publish.Conflict = "best" }, []string{`SIDESTREAM_PUBLISH_CONFLICT is "best"`}},
		"priority":          {func(c *Config) { c.Publish.Priority = 1 }, []string{"SIDESTREAM_PUBLISH_PRIORITY is 1"}},
		"on supersede":      {func(c *Config) { c.Publish.OnSupersede = "" }, []string{`SIDESTREAM_PUBLISH_ON_SUPERSEDE is ""`}},
		"fan-out":           {func(c *Config) { c.Relay.FanOut = 0 }, []string{"SIDESTREAM_RELAY_FAN_OUT"}},
		"log":               {func(c *Config) { c.Log.Format = "" }, []string{"SIDESTREAM_LOG_FORMAT"}},
		"shared key":        {func(c *Config) { c.Peer.Security, c.Peer.Key = SharedKey, Secret(strings.Repeat("0123abcd", 4)) }, nil},
		"shared key file":   {func(c *Config) { c.Peer.Security, c.Peer.KeyFile = SharedKey, "/keys" }, nil},
		"no shared key":     {func(c *Config) { c.Peer.Security = SharedKey }, []string{"SIDESTREAM_PEER_KEY has 0"}},
		"short shared key":  {func(c *Config) { c.Peer.Security, c.Peer.Key = SharedKey, "secret" }, []string{"SIDESTREAM_PEER_KEY has 6"}},
		"two shared keys":   {func(c *Config) { c.Peer.Security, c.Peer.Key, c.Peer.KeyFile = SharedKey, "k", "/keys" }, []string{"both set"}},
		"relative key file": {func(c *Config) { c.Peer.Security, c.Peer.KeyFile = SharedKey, "keys" }, []string{"SIDESTREAM_PEER_KEY_FILE"}},
		"unused key":        {func(c *Config) { c.Peer.Key = Secret(strings.Repeat("0123abcd", 4)) }, []string{"not used"}},
		"namespace":         {func(c *Config) { c.Namespace = "Media.x" }, []string{"SIDESTREAM_NAMESPACE"}},
		"cluster's file":    {func(c *Config) { c.ClusterCAFile = "ca.crt" }, []string{"SIDESTREAM_CLUSTER_CA_FILE"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			c.Cluster = "germany"
			tt.change(&c)
			err := c.Validate()
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) != len(tt.want) {
				t.Fatalf("%d faults, want %d: %v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				if !strings.Contains(lines[i], want) {
					t.Errorf("fault %q, want one of %s", lines[i], want)
				}
			}
			for _, line := range lines {
				for _, word := range regexp.MustCompile(`SIDESTREAM_[A-Z_]+`).FindAllString(line, -1) {
					if !names[word] {
						t.Errorf("%s is not a setting", word)
					}
				}
			}
		})
	}
}

func TestSecretsStayHidden(t *testing.T) {
	c := full(t)
	c.Adapter.Token, c.SFU.PublishToken, c.SFU.PlayToken, c.Peer.Key = "topsecret", "topsecret", "topsecret", "topsecret"
	c.Adapter.URL.User = url.UserPassword("u", "topsecret")
	c.Adapter.Password, c.Adapter.Generic.Header = "topsecret", "X: topsecret"
	c.Adapter.Publish = Credentials{Password: "topsecret", Token: "topsecret"}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("configuration", "config", c, "token", c.Adapter.Token)
	fmt.Fprintf(&out, "%v %+v %#v %s", c.Adapter.Token, c.SFU, c.SFU, c.Adapter.Token)
	fmt.Fprintf(&out, "%v %+v %#v", c.Adapter.Publish, c.Adapter.Generic, c.Adapter.Generic)
	if strings.Contains(out.String(), "topsecret") {
		t.Errorf("a secret shows: %s", out.String())
	}
	for _, want := range []string{"config.CLUSTER=us-west", "config.ADAPTER_TOKEN=[hidden]", "config.RELAY_FAN_OUT=3"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in %s", want, out.String())
		}
	}
}

func TestBlanksInLists(t *testing.T) {
	c, err := Decode([]string{"SIDESTREAM_RELAY_PINS= news , studio/*", "SIDESTREAM_ADAPTER_GENERIC_MISSING_STATUS=404, 409"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"news", "studio/*"}; !slices.Equal(c.Relay.Pins, want) {
		t.Errorf("%q, want %q", c.Relay.Pins, want)
	}
	if want := []int{404, 409}; !slices.Equal(c.Adapter.Generic.MissingStatus, want) {
		t.Errorf("%v, want %v", c.Adapter.Generic.MissingStatus, want)
	}
}

// A URL without a host is at the pod's IP.
func TestAt(t *testing.T) {
	for _, tt := range []struct{ url, pod, want string }{
		{"http://:8889", "10.0.0.7", "http://10.0.0.7:8889"},
		{"https://:8088/janus", "fd00::7", "https://[fd00::7]:8088/janus"},
		{"http:///x", "fd00::7", "http://[fd00::7]/x"},
		{"http://:1", "", "http://127.0.0.1:1"},
		{"http://sfu:1", "10.0.0.7", "http://sfu:1"},
	} {
		u, err := url.Parse(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		var pod netip.Addr
		if tt.pod != "" {
			pod = netip.MustParseAddr(tt.pod)
		}
		c := Default()
		c.Cluster, c.PodIP, c.Adapter.URL = "germany", pod, u
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", tt.url, err)
		}
		a := Adapter{URL: u, APIURL: u, Janus: Janus{AdminURL: u}}.At(pod)
		for _, got := range []*url.URL{a.URL, a.APIURL, a.Janus.AdminURL} {
			if got.String() != tt.want {
				t.Errorf("%s at %s is %s, want %s", tt.url, tt.pod, got, tt.want)
			}
		}
		if u.String() != tt.url {
			t.Errorf("%s has become %s", tt.url, u)
		}
	}
}
