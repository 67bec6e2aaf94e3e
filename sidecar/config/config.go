// Package config holds the settings of one sidecar: decoded from environment variables by the sidecar, rendered to
// them by the injector and by demo and tests, from the same struct, so that the two ends cannot drift. It knows what a
// setting may look like, and nothing of the parts that use it.
package config

import (
	"encoding"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caarlos0/env/v11"
)

// Prefix starts the name of every variable of ours.
const Prefix = "SIDESTREAM_"

// PionSFU is the adapter of the built-in SFU, and Generically that of servers which settings describe.
const (
	PionSFU     = "pionsfu"
	Generically = "generic"
)

// JanusName is the adapter that has settings of its own.
const JanusName = "janus"

// Config is all that a sidecar is told from outside.
type Config struct {
	// NodeID names the pod, for Kubernetes its UID. Empty: a random one, kept in the state directory.
	NodeID string `env:"NODE_ID"`
	// Cluster is what the viewers of this node are near to: a region's name, the same for all nodes of one cluster.
	Cluster string `env:"CLUSTER"`
	// ClusterCAFile holds the cluster's own authority, as Kubernetes mounts it: by its hash nodes see when two clusters have
	// one name. Where there is no such file they do not see it.
	ClusterCAFile string `env:"CLUSTER_CA_FILE" envDefault:"/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"`
	// Namespace is that of the pod, for Kubernetes from the downward API. Nodes of different namespaces do not join, a
	// certificate may demand one, and the Service of the peers is in it. Unset: the Service's is read where a pod finds its own.
	Namespace string `env:"NAMESPACE"`
	// PodIP is the address at which this pod's containers reach each other and its peers reach its media. Unset: only
	// loopback is known, which suits one machine.
	PodIP netip.Addr `env:"POD_IP"`
	// StateDir keeps what survives a restart of the sidecar: node id, clock, epochs, sessions left behind.
	StateDir string `env:"STATE_DIR" envDefault:"/var/lib/sidestream"`

	// TestStreams are names under which an endless test picture with sound is published at the media server.
	TestStreams []string `env:"TEST_STREAMS"`

	Adapter Adapter `envPrefix:"ADAPTER_"`
	Gateway Gateway `envPrefix:"GATEWAY_"`
	JWT     JWT     `envPrefix:"JWT_"`
	TURN    TURN    `envPrefix:"TURN_"`
	Peer    Peer    `envPrefix:"PEER_"`
	Relay   Relay   `envPrefix:"RELAY_"`
	Publish Publish `envPrefix:"PUBLISH_"`
	Admin   Admin   `envPrefix:"ADMIN_"`
	Console Console `envPrefix:"CONSOLE_"`
	SFU     SFU     `envPrefix:"SFU_"`
	Log     Log     `envPrefix:"LOG_"`
}

// Adapter says which media server stands beside the sidecar.
type Adapter struct {
	Name string `env:"NAME" envDefault:"pionsfu"`
	// URL is the server's base URL; without a host, as in http://:8889, it is at the pod's IP. Unset: the adapter's usual port
	// there; with pionsfu, the built-in SFU runs in the sidecar's own process.
	URL *url.URL `env:"URL"`
	// Token is what the sidecar shows to the server, as a bearer token; to Janus, its api_secret.
	Token Secret `env:"TOKEN"`
	// User and Password are shown instead of a token to servers that want those (MediaMTX).
	User     string `env:"USER"`
	Password Secret `env:"PASSWORD"`
	// Publish, Play and API are shown instead of those above where the server wants others for WHIP, for WHEP, or at its own
	// API.
	Publish Credentials `envPrefix:"PUBLISH_"`
	Play    Credentials `envPrefix:"PLAY_"`
	// APIURL is where the server's own API is, unless that is at the adapter's usual place; without a host at the pod's IP.
	APIURL *url.URL    `env:"API_URL"`
	API    Credentials `envPrefix:"API_"`
	// Generic describes a server that has no adapter of its own.
	Generic Generic `envPrefix:"GENERIC_"`
	// Janus is for the adapter of that name.
	Janus Janus `envPrefix:"JANUS_"`
}

// At fills in the pod's address where a URL has no host; loopback where that is not known.
func (a Adapter) At(pod netip.Addr) Adapter {
	if !pod.IsValid() {
		pod = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	for _, u := range []**url.URL{&a.URL, &a.APIURL, &a.Janus.AdminURL} {
		if *u == nil || (*u).Hostname() != "" {
			continue
		}
		there := **u
		there.Host = pod.String()
		if port := (*u).Port(); port != "" {
			there.Host = net.JoinHostPort(pod.String(), port)
		} else if pod.Is6() {
			there.Host = "[" + pod.String() + "]"
		}
		*u = &there
	}
	return a
}

// Credentials are a bearer token, or a user and password.
type Credentials struct {
	User     string `env:"USER"`
	Password Secret `env:"PASSWORD"`
	Token    Secret `env:"TOKEN"`
}

// Generic describes a server to the adapter of that name.
type Generic struct {
	// Publish and Play are the paths to which WHIP and WHEP offers go, {stream} in place of the stream's name: /whip/{stream}.
	// Empty: the server cannot do that.
	Publish string `env:"PUBLISH_PATH"`
	Play    string `env:"PLAY_PATH"`
	// Header are further header fields for all requests, "Name: value", one a line.
	Header Secret `env:"HEADER"`
	// MissingStatus are the statuses by which the server says that nobody publishes what is to be played; where MissingBody is
	// set, its answer holds that, too.
	MissingStatus []int  `env:"MISSING_STATUS" envDefault:"404"`
	MissingBody   string `env:"MISSING_BODY"`
	// Inventory is the path or URL of a JSON document about the server's streams, and Query an expression of jq that makes
	// {name, session, since, readers, tracks} of it. Empty: streams that are published at the server stay unknown, so that it
	// serves as an edge only.
	Inventory string `env:"INVENTORY_URL"`
	Query     string `env:"INVENTORY_QUERY"`
	// Seen takes publications that pass the gateway for the server's streams, where there is no inventory.
	Seen bool `env:"SEEN"`
	// Codecs are the MIME types that the server takes; empty: all.
	Codecs []string `env:"CODECS"`
	// InOrder, FillAudio, DropsReaders, Waits and IgnoresPLI are set where packets must reach the server in order, it counts
	// audio packets to make their times, it closes readers when the publisher changes, it accepts a play of what nobody
	// publishes, and its publishers do not hear of its readers' key frame requests. MaxHold is how long it waits for a packet.
	InOrder      bool          `env:"IN_ORDER"`
	MaxHold      time.Duration `env:"MAX_HOLD"`
	FillAudio    bool          `env:"FILL_AUDIO"`
	DropsReaders bool          `env:"DROPS_READERS"`
	Waits        bool          `env:"WAITS"`
	IgnoresPLI   bool          `env:"IGNORES_PLI"`
}

// Janus is what the adapter for a Janus is told besides: for that server the sidecar is the WHIP and WHEP endpoint itself.
type Janus struct {
	// AuthToken is one of Janus' own tokens, where it has token_auth.
	AuthToken Secret `env:"AUTH_TOKEN"`
	// AdminKey is the VideoRoom plugin's admin_key: rooms are made with it, and private ones seen.
	AdminKey Secret `env:"ADMIN_KEY"`
	// RoomSecret and RoomPIN are those of the rooms, also of those that the sidecar makes.
	RoomSecret Secret `env:"ROOM_SECRET"`
	RoomPIN    Secret `env:"ROOM_PIN"`
	// AdminURL and AdminSecret are of Janus' API for administration. With it viewers are counted that did not come by WHEP. A URL
	// without a host is at the pod's IP.
	AdminURL    *url.URL `env:"ADMIN_URL"`
	AdminSecret Secret   `env:"ADMIN_SECRET"`
	// PublishToken and PlayToken are what publishers and viewers of the gateway must show. Unset: nothing, where Janus has
	// no secret or token either; where it has, nobody may.
	PublishToken Secret `env:"PUBLISH_TOKEN"`
	PlayToken    Secret `env:"PLAY_TOKEN"`
}

// Gateway is the HTTP front door of the pod.
type Gateway struct {
	Listen string `env:"LISTEN" envDefault:":18080"`
	// PublicURL is how the cluster's viewers reach the gateway; session URLs are absolute on it. Unset: they are relative
	// to what the viewer asked.
	PublicURL *url.URL `env:"PUBLIC_URL"`
	// TrustedProxies are the addresses of proxies in front of the gateway, whose X-Forwarded fields are believed.
	TrustedProxies []netip.Prefix `env:"TRUSTED_PROXIES"`
	// Hold bounds how long a viewer's POST waits for a stream to be pulled.
	Hold time.Duration `env:"HOLD" envDefault:"10s"`
	// SessionAge bounds how long a viewer's session counts as demand where the server does not count its readers.
	SessionAge time.Duration `env:"SESSION_AGE" envDefault:"6h"`
	// Origins are the web origins whose pages may publish and play, where the server does not say: https://example.org, or *.
	Origins []string `env:"ORIGINS" envDefault:"*"`
	// MaxPlays and MaxPublications bound the sessions that are opened through this gateway, MaxPerAddress those of one address,
	// MaxPerStream the plays of one stream. 0: no bound.
	MaxPlays        int `env:"MAX_PLAYS"`
	MaxPublications int `env:"MAX_PUBLICATIONS"`
	MaxPerAddress   int `env:"MAX_PER_ADDRESS"`
	MaxPerStream    int `env:"MAX_PER_STREAM"`
	// RatePerAddress bounds the sessions that one address may ask for in a minute, RatePerStream the plays of one stream, and
	// likewise pulls; as many may come at once. 0: no bound.
	RatePerAddress int `env:"RATE_PER_ADDRESS"`
	RatePerStream  int `env:"RATE_PER_STREAM"`
	// Placement says what becomes of a new session that another node of the cluster had better have.
	Placement Placement `env:"PLACEMENT" envDefault:"off"`
	// NodeURL is how viewers reach this very node, for redirects to it. Unset: they are sent to PublicURL, and any node there
	// passes them on.
	NodeURL *url.URL `env:"NODE_URL"`
	// AccessLog writes a line for each WHIP and WHEP request.
	AccessLog Switch `env:"ACCESS_LOG" envDefault:"on"`
}

// JWT says which tokens publishers and viewers must show to the gateway, or to the built-in SFU where that runs alone. Without
// keys the server alone decides.
type JWT struct {
	// KeyFile holds public keys (PEM or JWKS), or a secret for HS256; JWKSURL is where a JWKS document is. One of the two.
	KeyFile string   `env:"KEY_FILE"`
	JWKSURL *url.URL `env:"JWKS_URL"`
	// Issuer and Audience are what tokens must say. Empty: anything.
	Issuer   string `env:"ISSUER"`
	Audience string `env:"AUDIENCE"`
	// WebhookURL is asked instead of keys, by a POST for each token.
	WebhookURL *url.URL `env:"WEBHOOK_URL"`
	// OpenPaths are the server's other paths that anybody may ask for, such as pages: names, or patterns as of path.Match.
	OpenPaths []string `env:"OPEN_PATHS"`
}

// Closed says that not everybody may publish and play.
func (j JWT) Closed() bool { return j.KeyFile != "" || j.JWKSURL != nil || j.WebhookURL != nil }

// Console is the web pages that the gateway serves below /sidestream/.
type Console struct {
	Enabled bool `env:"ENABLED"`
	// Regions are the pages of all regions, as name=URL, in the order in which they are shown.
	Regions []Page `env:"REGIONS"`
	// Places are where clusters are on the map, as name=latitude/longitude, where their names do not tell it.
	Places []Place `env:"PLACES"`
	// Token lets operators see the cascade there, as does a header that a proxy sets: one of TrustedProxies. With neither it is
	// to be seen at the port for administration alone.
	Token       Secret `env:"TOKEN"`
	ProxyHeader string `env:"PROXY_HEADER"`
}

// Page is a region and the URL of its pages.
type Page struct {
	Name string
	URL  *url.URL
}

// UnmarshalText reads name=URL.
func (p *Page) UnmarshalText(text []byte) (err error) {
	name, address, ok := strings.Cut(string(text), "=")
	if !ok {
		return fmt.Errorf("%q: write name=URL, such as germany=https://de.example.org/sidestream/", text)
	}
	p.Name = strings.TrimSpace(name)
	p.URL, err = url.Parse(strings.TrimSpace(address))
	return err
}

// MarshalText is the inverse of UnmarshalText.
func (p Page) MarshalText() ([]byte, error) { return []byte(p.Name + "=" + p.URL.String()), nil }

// Place is where a cluster is, in degrees north and east.
type Place struct {
	Name                string
	Latitude, Longitude float64
}

// UnmarshalText reads name=latitude/longitude.
func (p *Place) UnmarshalText(text []byte) error {
	name, where, ok := strings.Cut(string(text), "=")
	latitude, longitude, both := strings.Cut(where, "/")
	var errs [2]error
	p.Name = strings.TrimSpace(name)
	p.Latitude, errs[0] = strconv.ParseFloat(strings.TrimSpace(latitude), 64)
	p.Longitude, errs[1] = strconv.ParseFloat(strings.TrimSpace(longitude), 64)
	if !ok || !both || errors.Join(errs[:]...) != nil {
		return fmt.Errorf("%q: write name=latitude/longitude, such as germany=50.1/8.7", text)
	}
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (p Place) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s=%g/%g", p.Name, p.Latitude, p.Longitude), nil
}

// TURN are the servers that go with answers of a media server that names none.
type TURN struct {
	// URLs are like turn:turn.example.org:3478?transport=udp.
	URLs []string `env:"URLS"`
	// Username and Credential are for all sessions; SecretFile is shared with the TURN server, and makes some for each.
	Username   string `env:"USERNAME"`
	Credential Secret `env:"CREDENTIAL"`
	SecretFile string `env:"SECRET_FILE"`
	// AuthURL is that of STUNner's authentication service, such as http://stunner-auth.stunner-system:8088/ice?service=turn.
	AuthURL *url.URL `env:"AUTH_URL"`
	// TTL is how long credentials are good: longer than any session.
	TTL time.Duration `env:"TTL" envDefault:"24h"`
}

// Switch is what is on by default.
type Switch string

// It is on or off.
const (
	On  Switch = "on"
	Off Switch = "off"
)

// UnmarshalText accepts one of the constants.
func (s *Switch) UnmarshalText(text []byte) error { return oneOf(s, text, On, Off) }

// Placement is a policy for new sessions.
type Placement string

// A session stays where it came; its offer is forwarded to the node with the fewest; or its client is sent there.
const (
	PlaceOff      Placement = "off"
	PlaceForward  Placement = "forward"
	PlaceRedirect Placement = "redirect"
)

// UnmarshalText accepts one of the constants.
func (p *Placement) UnmarshalText(text []byte) error {
	return oneOf(p, text, PlaceOff, PlaceForward, PlaceRedirect)
}

// Peer is the port for other sidecars, and how they are found.
type Peer struct {
	Listen string `env:"LISTEN" envDefault:":18443"`
	// AdvertisedHost is the address or name at which peers reach this port. Empty: the pod's IP.
	AdvertisedHost string `env:"ADVERTISED_HOST"`
	// Service is the Kubernetes Service of that name in all clusters whose EndpointSlices tell the peers. Empty: Kubernetes
	// is not asked.
	Service string `env:"SERVICE"`
	// PortName is the name of the Service's port for peers.
	PortName string `env:"PORT_NAME" envDefault:"sidestream-peer"`
	// Kubeconfig is a file by which the API server is reached. Empty: by the pod's service account.
	Kubeconfig string `env:"KUBECONFIG"`
	// DNS lists names that resolve to peers: host:port, or a name alone whose SRV records for PortName tell the ports.
	DNS []string `env:"DNS"`
	// File lists peers, a host:port on each line; it is read again when it changes.
	File string `env:"FILE"`
	// Static lists peers, host:port, for use without Kubernetes. Names are looked up again from time to time. The own
	// address may be among them.
	Static   []string `env:"STATIC"`
	Security Security `env:"SECURITY" envDefault:"tls"`
	// TLSDir holds tls.crt, tls.key and ca.crt, as a mounted Secret does.
	TLSDir string `env:"TLS_DIR" envDefault:"/etc/sidestream/peer-tls"`
	// Key is what the nodes of a mesh share with shared-key: at least 32 random characters.
	Key Secret `env:"KEY"`
	// KeyFile holds such keys instead, one a line: the first one is used to dial, all are accepted. It is read again when it
	// changes.
	KeyFile string `env:"KEY_FILE"`
}

// Relay says when streams are carried here, and how they spread from here.
type Relay struct {
	// Pins are stream names, or patterns as of path.Match, that are carried without a viewer. In this list and the next three
	// the first entry that matches a name decides, against it where the entry begins with "!".
	Pins []string `env:"PINS"`
	// Standby lists streams of which a relay here keeps a second copy, by a path that shares nothing with the first's but the
	// origin: another copy over the network for each node that has viewers.
	Standby []string `env:"STANDBY"`
	// Export lists what may leave the cluster, Import what of other clusters is taken notice of; empty: everything. They are
	// the same at all nodes of a cluster.
	Export []string `env:"EXPORT"`
	Import []string `env:"IMPORT"`
	// Linger is how long a relay goes on after its last viewer.
	Linger time.Duration `env:"LINGER" envDefault:"15s"`
	// FanOut bounds how many children pull one stream from this node.
	FanOut int `env:"FAN_OUT" envDefault:"8"`
	// Drain bounds how long /drain waits for the children to find other parents. It has to end before the pod is killed:
	// its termination grace period less five seconds is right.
	Drain time.Duration `env:"DRAIN" envDefault:"20s"`
}

// Publish says what becomes of two publications of one name, of which every node shows the same one.
type Publish struct {
	// Conflict says how a publication here stands against others of its name. It goes with the publication, so that all
	// nodes agree.
	Conflict Conflict `env:"CONFLICT" envDefault:"newest"`
	// Priority is for the policy "priority": the higher wins. Publications of other policies have 0.
	Priority int32 `env:"PRIORITY"`
	// OnSupersede says what happens to a publication here that another elsewhere beats.
	OnSupersede Supersede `env:"ON_SUPERSEDE" envDefault:"keep"`
}

// Admin is the port for probes, metrics and status.
type Admin struct {
	Listen string `env:"LISTEN" envDefault:":18090"`
	// Profile adds /debug/pprof.
	Profile bool `env:"PROFILE"`
}

// SFU is the built-in media server, whether it runs in the sidecar or as a container of its own.
type SFU struct {
	Listen string `env:"LISTEN" envDefault:":8800"`
	// MediaListen is the one UDP port for all media; TCPListen one more, over TCP, for clients that have no UDP. Empty: none.
	MediaListen string `env:"MEDIA_LISTEN" envDefault:":8801"`
	TCPListen   string `env:"TCP_LISTEN"`
	// AdvertisedIPs come before the machine's own addresses in ICE candidates. STUNServer is asked for further ones, as host:port.
	AdvertisedIPs []netip.Addr `env:"ADVERTISED_IPS"`
	STUNServer    string       `env:"STUN_SERVER"`
	// ICELite leaves it to clients to check connectivity: for servers that all of them reach directly.
	ICELite bool `env:"ICE_LITE"`
	// PublicURL is put before session addresses. Unset: they are relative.
	PublicURL *url.URL `env:"PUBLIC_URL"`
	// OverflowURL is that of another server, to which clients are sent while this one is full or about to leave.
	OverflowURL *url.URL `env:"OVERFLOW_URL"`
	// PublishToken, PlayToken and APIToken are the bearer tokens that publishers, viewers and readers of the status API must show;
	// empty: none, and for the API one of the others.
	PublishToken Secret `env:"PUBLISH_TOKEN"`
	PlayToken    Secret `env:"PLAY_TOKEN"`
	APIToken     Secret `env:"API_TOKEN"`
	// AllowOrigin is the web origin whose pages may publish and play; * is all.
	AllowOrigin string `env:"ALLOW_ORIGIN" envDefault:"*"`
	// LaxETags takes PATCHes of clients that do not send the right If-Match.
	LaxETags bool `env:"LAX_ETAGS"`
	// MaxSessions bounds publishers and viewers, MaxHalfOpen those of them that have not connected yet, for which ConnectTimeout is
	// the time.
	MaxSessions    int           `env:"MAX_SESSIONS" envDefault:"4096"`
	MaxHalfOpen    int           `env:"MAX_HALF_OPEN" envDefault:"256"`
	ConnectTimeout time.Duration `env:"CONNECT_TIMEOUT" envDefault:"12s"`
	// RatePerAddress bounds the POSTs, PATCHes and DELETEs of one address in a minute, where proxies are TrustedProxies; 0: no bound.
	RatePerAddress int            `env:"RATE_PER_ADDRESS"`
	TrustedProxies []netip.Prefix `env:"TRUSTED_PROXIES"`
	// Drain bounds how long the server, alone, waits for viewers to go that it has told to.
	Drain time.Duration `env:"DRAIN" envDefault:"5s"`
	// Loopback offers loopback candidates too, for use on one machine.
	Loopback bool `env:"LOOPBACK"`
	// PublisherGrace is how long a publication whose publisher is lost waits for one to come back; 0: not at all.
	PublisherGrace time.Duration `env:"PUBLISHER_GRACE" envDefault:"5s"`
	// SimulatedLoss lets viewers have a part of the packets to them thrown away.
	SimulatedLoss bool `env:"SIMULATED_LOSS"`
}

// Log says how much is logged, and how.
type Log struct {
	Level  slog.Level `env:"LEVEL" envDefault:"info"`
	Format Format     `env:"FORMAT" envDefault:"json"`
}

// Security is how peers prove themselves to each other.
type Security string

// The ways: mutual TLS with mounted certificates, or with some that a shared key yields; or nothing at all, for one machine
// and tests.
const (
	TLS       Security = "tls"
	SharedKey Security = "shared-key"
	Plaintext Security = "plaintext"
)

// UnmarshalText accepts one of the constants.
func (s *Security) UnmarshalText(text []byte) error { return oneOf(s, text, TLS, SharedKey, Plaintext) }

// Conflict is a policy for publications of one name.
type Conflict string

// The policies: the publication that began last, or first, or that of the highest priority.
const (
	Newest   Conflict = "newest"
	Oldest   Conflict = "oldest"
	Priority Conflict = "priority"
)

// UnmarshalText accepts one of the constants.
func (c *Conflict) UnmarshalText(text []byte) error { return oneOf(c, text, Newest, Oldest, Priority) }

// Supersede is what happens to a publication that another beats.
type Supersede string

// It goes on for the viewers of its own node, or is ended where the adapter can.
const (
	Keep Supersede = "keep"
	End  Supersede = "end"
)

// UnmarshalText accepts one of the constants.
func (o *Supersede) UnmarshalText(text []byte) error { return oneOf(o, text, Keep, End) }

// Format is the look of log lines.
type Format string

// The looks.
const (
	JSON Format = "json"
	Text Format = "text"
)

// UnmarshalText accepts one of the constants.
func (f *Format) UnmarshalText(text []byte) error { return oneOf(f, text, JSON, Text) }

func oneOf[T ~string](to *T, text []byte, allowed ...T) error {
	if !slices.Contains(allowed, T(text)) {
		return fmt.Errorf("not one of %q", allowed)
	}
	*to = T(text)
	return nil
}

// Secret is a value that printing and logging hide; convert it to string to use it.
type Secret string

const mask = "[hidden]"

// String tells only whether there is a secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue is String, for log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Decode reads a configuration from variables of the form NAME=value, as os.Environ gives them. What is not set has its
// default. Around the commas of a list blanks do not count. Everything wrong is reported at once, with the variable's name; a
// variable of our prefix that does not exist is an error, because it is a misspelt one. Whether the settings make sense
// together, Validate tells.
func Decode(environ []string) (Config, error) {
	given := make(map[string]string)
	for _, pair := range environ {
		if name, value, ok := strings.Cut(pair, "="); ok && strings.HasPrefix(name, Prefix) {
			given[name] = value
		}
	}

	var c Config
	known := fields(reflect.ValueOf(&c).Elem(), Prefix)
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.ContainsFunc(known, func(f field) bool { return f.name == name }) {
			if !serviceLink(name) {
				faults = append(faults, fmt.Errorf("%s is not a setting: %s", name, suggest(name, known)))
			}
			delete(given, name)
		}
	}
	for _, f := range known {
		if value, ok := given[f.name]; ok && f.value.Kind() == reflect.Slice {
			parts := strings.Split(value, ",")
			for i, part := range parts {
				parts[i] = strings.TrimSpace(part)
			}
			given[f.name] = strings.Join(parts, ",")
		}
	}
	if err := env.ParseWithOptions(&c, options(given)); err != nil {
		faults = append(faults, explain(given, known, err))
	}
	if err := errors.Join(faults...); err != nil {
		return Config{}, err
	}
	return c, nil
}

func options(given map[string]string) env.Options {
	return env.Options{Prefix: Prefix, Environment: given}
}

// explain names the variables behind a parse error, which knows the Go field only: each is tried alone.
func explain(given map[string]string, known []field, err error) error {
	var faults []error
	for _, f := range known {
		value, ok := given[f.name]
		if !ok {
			continue
		}
		var alone Config
		one := env.ParseWithOptions(&alone, options(map[string]string{f.name: value}))
		if one == nil {
			continue
		}
		if parse, ok := errors.AsType[env.ParseError](one); ok {
			one = parse.Err
		}
		faults = append(faults, fmt.Errorf("%s is %q: write %s (%w)", f.name, value, f.hint(), one))
	}
	if len(faults) == 0 {
		return err
	}
	return errors.Join(faults...)
}

// Default is the configuration of an empty environment.
func Default() Config {
	c, err := Decode(nil)
	if err != nil { // the defaults are constants; the tests decode them
		panic(err)
	}
	return c
}

// Var is one environment variable.
type Var struct {
	Name, Value string
	Secret      bool // belongs in a Secret, not in a pod's specification
}

// String is the form that Decode and os/exec take.
func (v Var) String() string { return v.Name + "=" + v.Value }

// Env renders the settings that differ from their defaults, in the order of the struct: Decode of them yields an equal
// Config, if Validate finds no fault with it.
func (c Config) Env() []Var {
	var vars []Var
	defaults := defaultTexts()
	for i, f := range fields(reflect.ValueOf(&c).Elem(), Prefix) {
		if value := f.text(); value != defaults[i] {
			vars = append(vars, Var{Name: f.name, Value: value, Secret: f.secret()})
		}
	}
	return vars
}

// defaultTexts are the defaults as they are rendered: the injector does so for every pod.
var defaultTexts = sync.OnceValue(func() []string {
	var texts []string
	plain := Default()
	for _, f := range fields(reflect.ValueOf(&plain).Elem(), Prefix) {
		texts = append(texts, f.text())
	}
	return texts
})

// Settings are all variables with their defaults, in the order of the struct.
func Settings() []Var {
	plain := Default()
	var vars []Var
	for _, f := range fields(reflect.ValueOf(&plain).Elem(), Prefix) {
		vars = append(vars, Var{Name: f.name, Value: f.text(), Secret: f.secret()})
	}
	return vars
}

// Environ is Env in the form of os.Environ.
func (c Config) Environ() []string {
	var out []string
	for _, v := range c.Env() {
		out = append(out, v.String())
	}
	return out
}

// LogValue shows every setting under its variable's name, secrets hidden.
func (c Config) LogValue() slog.Value {
	var attrs []slog.Attr
	for _, f := range fields(reflect.ValueOf(&c).Elem(), Prefix) {
		attrs = append(attrs, slog.String(strings.TrimPrefix(f.name, Prefix), f.public()))
	}
	return slog.GroupValue(attrs...)
}

// field is one setting: a leaf of the struct.
type field struct {
	name  string
	value reflect.Value
}

// fields lists the settings of a struct in order.
func fields(v reflect.Value, prefix string) []field {
	var out []field
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		if group, ok := sf.Tag.Lookup("envPrefix"); ok {
			out = append(out, fields(v.Field(i), prefix+group)...)
			continue
		}
		out = append(out, field{name: prefix + sf.Tag.Get("env"), value: v.Field(i)})
	}
	return out
}

func (f field) secret() bool { return f.value.Type() == reflect.TypeFor[Secret]() }

// text renders the value as Decode reads it.
func (f field) text() string { return render(f.value) }

// public is text without secrets.
func (f field) public() string {
	if f.secret() {
		return Secret(f.value.String()).String()
	}
	if u, ok := f.value.Interface().(*url.URL); ok && u != nil {
		return u.Redacted()
	}
	return f.text()
}

// hint says what a value of the setting looks like.
func (f field) hint() string {
	switch f.value.Interface().(type) {
	case time.Duration:
		return "a time such as 10s or 1m30s"
	case bool:
		return "true or false"
	case int, int32:
		return "a whole number"
	case netip.Addr:
		return "an IP address such as 10.0.0.7"
	case []int:
		return "whole numbers with commas between them"
	case []netip.Addr:
		return "IP addresses with commas between them"
	case []netip.Prefix:
		return "address ranges such as 10.0.0.0/8, commas between them"
	case *url.URL:
		return "a URL such as http://10.0.0.7:8889"
	case slog.Level:
		return "debug, info, warn or error"
	case Security:
		return "tls, shared-key or plaintext"
	case Conflict:
		return "newest, oldest or priority"
	case Supersede:
		return "keep or end"
	case Format:
		return "json or text"
	default:
		return "another value"
	}
}

func render(v reflect.Value) string {
	switch value := v.Interface().(type) {
	case encoding.TextMarshaler:
		text, err := value.MarshalText()
		if err != nil { // of addresses and levels, which always marshal
			panic(err)
		}
		return string(text)
	case time.Duration:
		return value.String()
	case *url.URL:
		if value == nil {
			return ""
		}
		return value.String()
	}
	switch v.Kind() {
	case reflect.Slice:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = render(v.Index(i))
		}
		return strings.Join(parts, ",")
	case reflect.String:
		return v.String() // not fmt: a Secret's own words would be the mask
	case reflect.Bool:
		if !v.Bool() {
			return "" // the default of every switch, and what an unset variable means
		}
	}
	return fmt.Sprint(v.Interface())
}

// links are the variables that Kubernetes makes for the Services of a pod's namespace: a Service named sidestream-peers
// yields some that begin like ours.
var links = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$`)

func serviceLink(name string) bool { return links.MatchString(name) }

// suggest names the setting that was probably meant.
func suggest(name string, known []field) string {
	names := make([]string, len(known))
	for i, f := range known {
		names[i] = f.name
	}
	if best := Nearest(name, names); best != "" {
		return "did you mean " + best + "?"
	}
	return "remove it"
}

// Nearest is the name that was probably meant, "" where none is near.
func Nearest(name string, names []string) string {
	best, distance := "", len(name)/3+1
	for _, n := range names {
		if d := editDistance(name, n); d < distance {
			best, distance = n, d
		}
	}
	return best
}

// editDistance counts the letters to insert, delete or replace between a and b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
