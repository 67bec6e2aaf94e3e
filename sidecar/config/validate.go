package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// names of nodes and clusters stand in URLs, labels and metrics.
var plainName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$`)

// PlainName says whether a text can be a node's id or a cluster's name.
func PlainName(s string) bool { return plainName.MatchString(s) }

// minKey is the least length of a key that nodes share.
const minKey = 32

// Validate reports everything that keeps a sidecar from running with these settings, and what to do about each.
func (c Config) Validate() error {
	var f faults
	if c.NodeID != "" && !plainName.MatchString(c.NodeID) {
		f.add("SIDESTREAM_NODE_ID is %q: use the pod's UID, or up to 128 letters, digits, dots and dashes, or leave it unset",
			c.NodeID)
	}
	switch {
	case c.Cluster == "":
		f.add("SIDESTREAM_CLUSTER is not set: give each cluster a name of its own, such as germany")
	case !plainName.MatchString(c.Cluster):
		f.add("SIDESTREAM_CLUSTER is %q: use up to 128 letters, digits, dots and dashes", c.Cluster)
	}
	if c.Namespace != "" && !kubernetesName.MatchString(c.Namespace) {
		f.add("SIDESTREAM_NAMESPACE is %q: give the pod's namespace (fieldRef metadata.namespace), or leave it unset", c.Namespace)
	}
	if c.ClusterCAFile != "" && !path.IsAbs(c.ClusterCAFile) {
		f.add("SIDESTREAM_CLUSTER_CA_FILE is %q: give the absolute path of the file with the cluster's authority, or leave it unset",
			c.ClusterCAFile)
	}
	if c.PodIP.IsValid() && (c.PodIP.IsUnspecified() || c.PodIP.IsMulticast() || c.PodIP.Zone() != "") {
		f.add("SIDESTREAM_POD_IP is %s, which nobody can dial: set the address of the pod (fieldRef status.podIP)", c.PodIP)
	}
	if !path.IsAbs(c.StateDir) {
		f.add("SIDESTREAM_STATE_DIR is %q: give the absolute path of a directory that outlives the container (an emptyDir)",
			c.StateDir)
	}

	f.testStreams(c.TestStreams)
	if !plainName.MatchString(c.Adapter.Name) {
		f.add("SIDESTREAM_ADAPTER_NAME is %q: name the media server, such as pionsfu or mediamtx", c.Adapter.Name)
	}
	a := c.Adapter.At(c.PodIP)
	f.url("SIDESTREAM_ADAPTER_URL", a.URL, "the server's base URL, such as http://10.0.0.7:8889, or http://:8889 for the pod's own")
	f.credentials("SIDESTREAM_ADAPTER", Credentials{User: a.User, Password: a.Password, Token: a.Token})
	f.credentials("SIDESTREAM_ADAPTER_PUBLISH", a.Publish)
	f.credentials("SIDESTREAM_ADAPTER_PLAY", a.Play)
	f.credentials("SIDESTREAM_ADAPTER_API", a.API)
	f.url("SIDESTREAM_ADAPTER_API_URL", a.APIURL, "the URL of the server's API, such as http://10.0.0.7:9997")
	f.generic(a)
	f.janus(a)

	f.listen("SIDESTREAM_GATEWAY_LISTEN", c.Gateway.Listen)
	f.url("SIDESTREAM_GATEWAY_PUBLIC_URL", c.Gateway.PublicURL, "the URL by which viewers reach the gateway")
	if u := c.Gateway.PublicURL; u != nil && (u.RawQuery != "" || u.Fragment != "") {
		f.add("SIDESTREAM_GATEWAY_PUBLIC_URL has a query or fragment: session URLs are made from it, leave them away")
	}
	f.duration("SIDESTREAM_GATEWAY_HOLD", c.Gateway.Hold, 100*time.Millisecond, time.Minute)
	f.duration("SIDESTREAM_GATEWAY_SESSION_AGE", c.Gateway.SessionAge, time.Minute, 7*24*time.Hour)

	f.gateway(c.Gateway)
	f.jwt(c.JWT)
	f.turn(c.TURN)

	f.console(c.Console, c.Gateway)

	f.listen("SIDESTREAM_PEER_LISTEN", c.Peer.Listen)
	if h := c.Peer.AdvertisedHost; h != "" && !hostName(h) {
		f.add("SIDESTREAM_PEER_ADVERTISED_HOST is %q: give an IP address or a host name, without port", h)
	}
	f.kubernetesName("SIDESTREAM_PEER_SERVICE", c.Peer.Service, "name the Service of the peers, such as sidestream-peers, "+
		"without its namespace, or leave it unset to find peers without Kubernetes")
	if !kubernetesName.MatchString(c.Peer.PortName) {
		f.add("SIDESTREAM_PEER_PORT_NAME is %q: give the name, not the number, of the Service's port for peers, such as sidestream-peer",
			c.Peer.PortName)
	}
	f.file("SIDESTREAM_PEER_KUBECONFIG", c.Peer.Kubeconfig, "a kubeconfig file, or leave it unset in a pod")
	f.file("SIDESTREAM_PEER_FILE", c.Peer.File, "a file with the host:port of a peer on each line")
	for _, n := range c.Peer.DNS {
		host, port, err := net.SplitHostPort(n)
		number, portErr := strconv.ParseUint(port, 10, 16)
		switch {
		case net.ParseIP(cmp.Or(host, n)) != nil:
			f.add("SIDESTREAM_PEER_DNS holds the address %q: list it in SIDESTREAM_PEER_STATIC", n)
		case err != nil && serviceName(n), err == nil && hostName(host) && portErr == nil && number != 0:
		default:
			f.add("SIDESTREAM_PEER_DNS holds %q: give a name and port, such as peers.example:18443, or a name with SRV records, "+
				"such as sidestream-peers.media.svc.clusterset.local", n)
		}
	}
	if n := len(c.Peer.DNS); n > maxNames {
		f.add("SIDESTREAM_PEER_DNS holds %d names: list at most %d; one name may have many addresses", n, maxNames)
	}
	for _, a := range c.Peer.Static {
		host, port, err := net.SplitHostPort(a)
		number, portErr := strconv.ParseUint(port, 10, 16)
		if ip := net.ParseIP(host); err != nil || portErr != nil || number == 0 || !hostName(host) || ip != nil && ip.IsUnspecified() {
			f.add("SIDESTREAM_PEER_STATIC holds %q, which nobody can dial: give host and port of a peer, such as 10.0.0.7:18443", a)
		}
	}
	switch c.Peer.Security {
	case Plaintext:
	case TLS:
		if !path.IsAbs(c.Peer.TLSDir) {
			f.add("SIDESTREAM_PEER_TLS_DIR is %q: give the absolute path of the directory with tls.crt, tls.key and ca.crt, "+
				"or set SIDESTREAM_PEER_SECURITY to plaintext on a network that you trust", c.Peer.TLSDir)
		}
	case SharedKey:
		f.sharedKey(c.Peer)
	default:
		f.add("SIDESTREAM_PEER_SECURITY is %q: write tls, shared-key or plaintext", c.Peer.Security)
	}
	if c.Peer.Security != SharedKey && (c.Peer.Key != "" || c.Peer.KeyFile != "") {
		f.add("SIDESTREAM_PEER_KEY or SIDESTREAM_PEER_KEY_FILE is set and not used: set SIDESTREAM_PEER_SECURITY to shared-key, " +
			"or leave the key away")
	}

	f.names("SIDESTREAM_RELAY_PINS", c.Relay.Pins)
	f.names("SIDESTREAM_RELAY_STANDBY", c.Relay.Standby)
	f.names("SIDESTREAM_RELAY_EXPORT", c.Relay.Export)
	f.names("SIDESTREAM_RELAY_IMPORT", c.Relay.Import)
	f.duration("SIDESTREAM_RELAY_LINGER", c.Relay.Linger, 100*time.Millisecond, time.Hour)
	f.duration("SIDESTREAM_RELAY_DRAIN", c.Relay.Drain, time.Second, time.Hour)
	if c.Relay.FanOut < 1 || c.Relay.FanOut > 1000 {
		f.add("SIDESTREAM_RELAY_FAN_OUT is %d: allow between 1 and 1000 children per stream", c.Relay.FanOut)
	}

	if oneOf(new(Conflict), []byte(c.Publish.Conflict), Newest, Oldest, Priority) != nil {
		f.add("SIDESTREAM_PUBLISH_CONFLICT is %q: write newest, oldest or priority", c.Publish.Conflict)
	}
	if c.Publish.Priority != 0 && c.Publish.Conflict != Priority {
		f.add("SIDESTREAM_PUBLISH_PRIORITY is %d, which counts only with SIDESTREAM_PUBLISH_CONFLICT=priority: set that too, or unset it",
			c.Publish.Priority)
	}
	if oneOf(new(Supersede), []byte(c.Publish.OnSupersede), Keep, End) != nil {
		f.add("SIDESTREAM_PUBLISH_ON_SUPERSEDE is %q: write keep or end", c.Publish.OnSupersede)
	}

	f.listen("SIDESTREAM_ADMIN_LISTEN", c.Admin.Listen)
	if c.Log.Format != JSON && c.Log.Format != Text {
		f.add("SIDESTREAM_LOG_FORMAT is %q: write json or text", c.Log.Format)
	}

	ports := []listener{
		{"SIDESTREAM_GATEWAY_LISTEN", c.Gateway.Listen},
		{"SIDESTREAM_PEER_LISTEN", c.Peer.Listen},
		{"SIDESTREAM_ADMIN_LISTEN", c.Admin.Listen},
	}
	if c.Adapter.Name == PionSFU && c.Adapter.URL == nil { // it runs in this process
		f.sfu(c.SFU)
		ports = append(ports, listener{"SIDESTREAM_SFU_LISTEN", c.SFU.Listen})
	}
	f.distinct(ports)
	return errors.Join(f...)
}

// ValidateSFU reports what keeps the built-in SFU from running alone with these settings.
func (c Config) ValidateSFU() error {
	var f faults
	f.sfu(c.SFU)
	f.jwt(c.JWT)
	f.turn(c.TURN)
	f.testStreams(c.TestStreams)
	return errors.Join(f...)
}

func (f *faults) testStreams(names []string) {
	for _, name := range names {
		if name == "" || strings.ContainsAny(name, "*?[") {
			f.add("SIDESTREAM_TEST_STREAMS holds %q: write names of streams, commas between them", name)
		}
	}
	if n := len(names); n > 16 {
		f.add("SIDESTREAM_TEST_STREAMS holds %d names: list at most 16", n)
	}
}

// faults gathers what is wrong.
type faults []error

func (f *faults) add(format string, args ...any) { *f = append(*f, fmt.Errorf(format, args...)) }

func (f *faults) sfu(s SFU) {
	f.listen("SIDESTREAM_SFU_LISTEN", s.Listen)
	f.listen("SIDESTREAM_SFU_MEDIA_LISTEN", s.MediaListen)
	for _, a := range s.AdvertisedIPs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			f.add("SIDESTREAM_SFU_ADVERTISED_IPS holds %s: give addresses at which viewers reach the media port", a)
		}
	}
	if s.TCPListen != "" {
		f.listen("SIDESTREAM_SFU_TCP_LISTEN", s.TCPListen)
	}
	if host, port, err := net.SplitHostPort(s.STUNServer); s.STUNServer != "" && (err != nil || !hostName(host) || port == "") {
		f.add("SIDESTREAM_SFU_STUN_SERVER is %q: write host and port, such as stun.example.org:3478", s.STUNServer)
	}
	for _, u := range []struct {
		name string
		*url.URL
	}{{"PUBLIC_URL", s.PublicURL}, {"OVERFLOW_URL", s.OverflowURL}} {
		f.url("SIDESTREAM_SFU_"+u.name, u.URL, "a URL by which clients reach a server, such as https://west.example.org")
		if u.URL != nil && (u.RawQuery != "" || u.Fragment != "") {
			f.add("SIDESTREAM_SFU_%s has a query or fragment: paths are put behind it, leave them away", u.name)
		}
	}
	f.origin("SIDESTREAM_SFU_ALLOW_ORIGIN", s.AllowOrigin, s.AllowOrigin == "*")
	if s.MaxSessions < 1 || s.MaxSessions > 1<<20 || s.MaxHalfOpen < 1 || s.MaxHalfOpen > s.MaxSessions {
		f.add("SIDESTREAM_SFU_MAX_SESSIONS and _MAX_HALF_OPEN are %d and %d: allow at least one of each, and no more half open than there "+
			"may be", s.MaxSessions, s.MaxHalfOpen)
	}
	f.duration("SIDESTREAM_SFU_CONNECT_TIMEOUT", s.ConnectTimeout, time.Second, time.Minute)
	f.duration("SIDESTREAM_SFU_DRAIN", s.Drain, 0, time.Hour)
	if s.RatePerAddress < 0 {
		f.add("SIDESTREAM_SFU_RATE_PER_ADDRESS is %d: allow some requests in a minute, or 0 for no bound", s.RatePerAddress)
	}
	f.token("SIDESTREAM_SFU_API_TOKEN", s.APIToken)
	if s.PublisherGrace < 0 {
		f.add("SIDESTREAM_SFU_PUBLISHER_GRACE is %s: give a time such as 5s, or 0", s.PublisherGrace)
	}
	f.token("SIDESTREAM_SFU_PUBLISH_TOKEN", s.PublishToken)
	f.token("SIDESTREAM_SFU_PLAY_TOKEN", s.PlayToken)
}

func (f *faults) janus(a Adapter) {
	j := a.Janus
	if a.Name != JanusName {
		if j != (Janus{}) {
			f.add("settings for a Janus are given and not used: set SIDESTREAM_ADAPTER_NAME to %s, or leave them away", JanusName)
		}
		return
	}
	f.url("SIDESTREAM_ADAPTER_JANUS_ADMIN_URL", j.AdminURL, "the URL of Janus' administration API, such as http://10.0.0.7:7088/admin")
	if (j.AdminURL == nil) != (j.AdminSecret == "") {
		f.add("SIDESTREAM_ADAPTER_JANUS_ADMIN_URL and SIDESTREAM_ADAPTER_JANUS_ADMIN_SECRET go together: set both or neither")
	}
	f.token("SIDESTREAM_ADAPTER_JANUS_PUBLISH_TOKEN", j.PublishToken)
	f.token("SIDESTREAM_ADAPTER_JANUS_PLAY_TOKEN", j.PlayToken)
}

// credentials refuses what a server would misunderstand: both kinds at once, and a user that a colon would end.
func (f *faults) credentials(name string, c Credentials) {
	f.token(name+"_TOKEN", c.Token)
	if c.Token != "" && (c.User != "" || c.Password != "") {
		f.add("%s_TOKEN and %s_USER or _PASSWORD are set: a server is shown one or the other", name, name)
	}
	if strings.Contains(c.User, ":") {
		f.add("%s_USER holds a colon, which ends a user's name in what is sent: take another user", name)
	}
	if strings.ContainsFunc(c.User+string(c.Password), func(r rune) bool { return r < ' ' || r == 0x7f }) {
		f.add("%s_USER or _PASSWORD holds a control character: check how the secret was made (a trailing newline?)", name)
	}
}

func (f *faults) generic(a Adapter) {
	g := a.Generic
	if a.Name != Generically {
		if !reflect.DeepEqual(g, Default().Adapter.Generic) {
			f.add("settings that describe a generic server count only with SIDESTREAM_ADAPTER_NAME=%s: set that too, or unset them",
				Generically)
		}
		return
	}
	if a.URL == nil {
		f.add("SIDESTREAM_ADAPTER_URL is not set: a generic server is at the address that you say, such as http://10.0.0.7:8080")
	}
	for _, s := range g.MissingStatus {
		if s < 400 || s > 599 {
			f.add("SIDESTREAM_ADAPTER_GENERIC_MISSING_STATUS holds %d: give statuses from 400 to 599, such as 404,409", s)
		}
	}
	if g.Seen && g.Inventory != "" {
		f.add("SIDESTREAM_ADAPTER_GENERIC_SEEN and SIDESTREAM_ADAPTER_GENERIC_INVENTORY_URL are set: the inventory tells more, leave " +
			"the other away")
	}
	if (g.Inventory == "") != (g.Query == "") {
		f.add("SIDESTREAM_ADAPTER_GENERIC_INVENTORY_URL and SIDESTREAM_ADAPTER_GENERIC_INVENTORY_QUERY go together: set both or none")
	}
	f.duration("SIDESTREAM_ADAPTER_GENERIC_MAX_HOLD", g.MaxHold, 0, 10*time.Second)
	if _, err := g.HeaderFields(); err != nil {
		f.add("SIDESTREAM_ADAPTER_GENERIC_HEADER: %w", err)
	}
}

func (f *faults) gateway(g Gateway) {
	for _, o := range g.Origins {
		f.origin("SIDESTREAM_GATEWAY_ORIGINS", o, o == "*" || o == "none")
	}
	for _, limit := range []struct {
		name string
		n    int
	}{
		{"MAX_PLAYS", g.MaxPlays},
		{"MAX_PUBLICATIONS", g.MaxPublications},
		{"MAX_PER_ADDRESS", g.MaxPerAddress},
		{"MAX_PER_STREAM", g.MaxPerStream},
		{"RATE_PER_ADDRESS", g.RatePerAddress},
		{"RATE_PER_STREAM", g.RatePerStream},
	} {
		if limit.n < 0 || limit.n > maxSessions {
			f.add("SIDESTREAM_GATEWAY_%s is %d: allow from 1 to %d, or 0 for no bound", limit.name, limit.n, maxSessions)
		}
	}
	if oneOf(new(Placement), []byte(g.Placement), PlaceOff, PlaceForward, PlaceRedirect) != nil {
		f.add("SIDESTREAM_GATEWAY_PLACEMENT is %q: write off, forward or redirect", g.Placement)
	}
	if oneOf(new(Switch), []byte(g.AccessLog), On, Off) != nil {
		f.add("SIDESTREAM_GATEWAY_ACCESS_LOG is %q: write on or off", g.AccessLog)
	}
	f.url("SIDESTREAM_GATEWAY_NODE_URL", g.NodeURL, "the URL by which viewers reach this very node")
	if u := g.NodeURL; u != nil && (u.RawQuery != "" || u.Fragment != "" || len(u.String()) > 500) {
		f.add("SIDESTREAM_GATEWAY_NODE_URL has a query or fragment, or is very long: paths are put behind it, leave them away")
	}
}

// origin checks a web origin that is not special.
func (f *faults) origin(name, o string, special bool) {
	u, err := url.Parse(o)
	if !special && (err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil) {
		f.add("%s holds %q: write origins such as https://example.org, or *", name, o)
	}
}

// maxSessions is how many sessions a gateway knows at most.
const maxSessions = 20000

func (f *faults) console(c Console, g Gateway) {
	for _, p := range c.Regions {
		if p.Name == "" {
			f.add("SIDESTREAM_CONSOLE_REGIONS has a region without a name: write name=URL, such as germany=https://de.example.org/sidestream/")
		}
		f.url("SIDESTREAM_CONSOLE_REGIONS", p.URL, "the URL of each region's pages, such as germany=https://de.example.org/sidestream/")
	}
	for _, p := range c.Places {
		if p.Name == "" || !(p.Latitude >= -90 && p.Latitude <= 90 && p.Longitude >= -180 && p.Longitude <= 180) {
			f.add("SIDESTREAM_CONSOLE_PLACES has %q=%g/%g: write name=latitude/longitude in degrees, such as germany=50.1/8.7", p.Name, p.Latitude, p.Longitude)
		}
	}
	f.token("SIDESTREAM_CONSOLE_TOKEN", c.Token)
	if c.ProxyHeader != "" && len(g.TrustedProxies) == 0 {
		f.add("SIDESTREAM_CONSOLE_PROXY_HEADER is %q, and nobody may set it: list the proxy in SIDESTREAM_GATEWAY_TRUSTED_PROXIES", c.ProxyHeader)
	}
}

func (f *faults) jwt(j JWT) {
	f.file("SIDESTREAM_JWT_KEY_FILE", j.KeyFile, "a file with public keys or a secret")
	f.url("SIDESTREAM_JWT_JWKS_URL", j.JWKSURL, "the URL of a JWKS document, such as https://issuer.example.org/jwks.json")
	f.url("SIDESTREAM_JWT_WEBHOOK_URL", j.WebhookURL, "the URL of what judges tokens, such as http://auth.media:8000/sidestream")
	switch {
	case j.KeyFile != "" && j.JWKSURL != nil:
		f.add("SIDESTREAM_JWT_KEY_FILE and SIDESTREAM_JWT_JWKS_URL are both set: give the keys in one place")
	case j.WebhookURL != nil && (j.KeyFile != "" || j.JWKSURL != nil || j.Issuer != "" || j.Audience != ""):
		f.add("SIDESTREAM_JWT_WEBHOOK_URL is set together with keys, an issuer or an audience: let one of them judge tokens")
	case !j.Closed() && (j.Issuer != "" || j.Audience != "" || len(j.OpenPaths) > 0):
		f.add("SIDESTREAM_JWT_ISSUER, _AUDIENCE or _OPEN_PATHS is set and no token is checked: set SIDESTREAM_JWT_KEY_FILE or " +
			"SIDESTREAM_JWT_JWKS_URL too")
	}
	for _, p := range j.OpenPaths {
		if _, err := path.Match(p, ""); err != nil || !strings.HasPrefix(p, "/") {
			f.add("SIDESTREAM_JWT_OPEN_PATHS holds %q: write paths such as / or /assets/*, commas between them", p)
		}
	}
}

func (f *faults) turn(t TURN) {
	for _, u := range t.URLs {
		if scheme, rest, _ := strings.Cut(u, ":"); rest == "" || !slices.Contains([]string{"stun", "stuns", "turn", "turns"}, scheme) {
			f.add("SIDESTREAM_TURN_URLS holds %q: write turn:HOST:PORT?transport=udp, commas between them", u)
		}
	}
	f.file("SIDESTREAM_TURN_SECRET_FILE", t.SecretFile, "a file with the secret that the TURN server has")
	f.url("SIDESTREAM_TURN_AUTH_URL", t.AuthURL, "the URL of STUNner's service, such as http://stunner-auth.stunner-system:8088/ice?service=turn")
	if t.SecretFile != "" && (t.Username != "" || t.Credential != "") {
		f.add("SIDESTREAM_TURN_SECRET_FILE and SIDESTREAM_TURN_USERNAME or _CREDENTIAL are set: give a secret, or what it would make")
	}
	if (t.Username == "") != (t.Credential == "") {
		f.add("SIDESTREAM_TURN_USERNAME and SIDESTREAM_TURN_CREDENTIAL go together: set both or neither")
	}
	if len(t.URLs) == 0 && (t.SecretFile != "" || t.Username != "") {
		f.add("SIDESTREAM_TURN_URLS is not set: say for which servers the credentials are")
	}
	if strings.ContainsFunc(t.Username+string(t.Credential), func(r rune) bool { return r < ' ' || r > '~' }) {
		f.add("SIDESTREAM_TURN_USERNAME or _CREDENTIAL holds a line end or a letter outside ASCII, which a header cannot carry")
	}
	f.duration("SIDESTREAM_TURN_TTL", t.TTL, time.Minute, 30*24*time.Hour)
}

func (f *faults) sharedKey(p Peer) {
	switch {
	case p.Key != "" && p.KeyFile != "":
		f.add("SIDESTREAM_PEER_KEY and SIDESTREAM_PEER_KEY_FILE are both set: give one of them (the file may hold several keys)")
	case p.KeyFile != "":
		if !path.IsAbs(p.KeyFile) {
			f.add("SIDESTREAM_PEER_KEY_FILE is %q: give the absolute path of a file with one key a line", p.KeyFile)
		}
	case len(p.Key) < minKey:
		f.add("SIDESTREAM_PEER_KEY has %d characters: share one of at least %d among all nodes, such as openssl rand -base64 32 makes",
			len(p.Key), minKey)
	}
	f.token("SIDESTREAM_PEER_KEY", p.Key)
}

func (f *faults) listen(name, address string) {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		f.add("%s is %q: write an address to listen at, such as :18080 or 127.0.0.1:18080 (%w)", name, address, err)
	}
}

func (f *faults) url(name string, u *url.URL, what string) {
	switch {
	case u == nil:
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.Opaque != "":
		f.add("%s is %q: give %s, with http or https and a host", name, u.Redacted(), what)
	case u.User != nil:
		f.add("%s holds a user or password, which logs and pages would show: take it out and use a token", name)
	}
}

// token refuses what a header field cannot carry (RFC 6750 section 2.1 is narrower; servers are not).
func (f *faults) token(name string, s Secret) {
	if strings.ContainsFunc(string(s), func(r rune) bool { return r <= ' ' || r > '~' }) {
		f.add("%s holds a blank, a line end or a letter outside ASCII: check how the secret was made (a trailing newline?)", name)
	}
}

// kubernetesName is of a Service, a port or a namespace: a DNS label (RFC 1123).
var kubernetesName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (f *faults) kubernetesName(name, value, what string) {
	if value != "" && !kubernetesName.MatchString(value) {
		f.add("%s is %q: %s", name, value, what)
	}
}

func (f *faults) file(name, value, what string) {
	if value != "" && !path.IsAbs(value) {
		f.add("%s is %q: give the absolute path of %s", name, value, what)
	}
}

// names checks a list of stream names and patterns.
func (f *faults) names(setting string, list []string) {
	for _, entry := range list {
		pattern := strings.TrimPrefix(entry, "!")
		if _, err := path.Match(pattern, ""); pattern == "" || strings.Contains(pattern, ",") || err != nil {
			f.add("%s holds %q: write stream names or patterns such as studio/*, a leading ! where it says no, commas between them",
				setting, entry)
		}
	}
}

func (f *faults) duration(name string, d, least, most time.Duration) {
	if d < least || d > most {
		f.add("%s is %s: set a time from %s to %s", name, d, least, most)
	}
}

type listener struct{ name, address string }

// distinct refuses one port for two: the second would fail at start, with less helpful words.
func (f *faults) distinct(all []listener) {
	for i, a := range all {
		_, port, _ := net.SplitHostPort(a.address)
		if port == "" || strings.Trim(port, "0") == "" { // port 0: the system chooses
			continue
		}
		if j := slices.IndexFunc(all[:i], func(b listener) bool {
			_, other, _ := net.SplitHostPort(b.address)
			return other == port && overlap(a.address, b.address)
		}); j >= 0 {
			f.add("%s and %s are both port %s: move one of them", all[j].name, a.name, port)
		}
	}
}

// overlap says whether two listeners of one port collide: the same host, or one at all of them.
func overlap(a, b string) bool {
	x, _, _ := net.SplitHostPort(a)
	y, _, _ := net.SplitHostPort(b)
	anywhere := []string{"", "0.0.0.0", "::"}
	return x == y || slices.Contains(anywhere, x) || slices.Contains(anywhere, y)
}

// maxNames bounds the names that every node looks up every few seconds.
const maxNames = 64

// serviceName says whether SRV records can be looked up: of a host name, or below labels that begin with an underscore.
func serviceName(n string) bool {
	for strings.HasPrefix(n, "_") {
		label, rest, ok := strings.Cut(n[1:], ".")
		if !ok || !kubernetesName.MatchString(strings.ToLower(label)) {
			return false
		}
		n = rest
	}
	return hostName(strings.TrimSuffix(n, "."))
}

func hostName(h string) bool {
	if net.ParseIP(h) != nil {
		return true
	}
	return len(h) <= 253 && regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`).MatchString(h)
}

// HeaderFields reads Header.
func (g Generic) HeaderFields() (http.Header, error) {
	h := make(http.Header)
	for line := range strings.Lines(string(g.Header)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !headerName.MatchString(name) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, errors.New("write each field as Name: value, one a line") // not the line: it may be a secret
		}
		h.Add(textproto.CanonicalMIMEHeaderKey(name), strings.TrimSpace(value))
	}
	return h, nil
}

var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
