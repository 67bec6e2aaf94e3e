package gateway

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// target is a media server that answers everything, and looks at what the gateway sends it.
type target struct {
	t    *testing.T
	host string
}

func (s target) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != s.host || r.URL.Scheme != "http" {
		s.t.Errorf("a request goes to %s", r.URL)
	}
	for name, values := range r.Header {
		if http.CanonicalHeaderKey(name) == PullTokenHeader {
			s.t.Errorf("the server is shown %s: %q", name, values)
		}
	}
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	return &http.Response{
		StatusCode: http.StatusCreated, Header: http.Header{"Location": {r.URL.EscapedPath() + "/1"}, "Content-Type": {"application/sdp"}},
		Body: io.NopCloser(strings.NewReader("v=0\r\n")), Request: r, ProtoMajor: 1, ProtoMinor: 1,
	}, nil
}

// FuzzRequest gives both doors of a gateway a request as it comes from the network.
func FuzzRequest(f *testing.F) {
	for _, text := range []string{
		"POST /live/a/whep HTTP/1.1\r\nHost: x\r\nContent-Type: application/sdp\r\nContent-Length: 5\r\n\r\nv=0\r\n",
		"POST /live/a/whip HTTP/1.1\r\nHost: x\r\nContent-Type: application/sdp\r\nAuthorization: Bearer x\r\nContent-Length: 5\r\n\r\nv=0\r\n",
		"PATCH /_sidestream/node-1/live/a/whep/1 HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1.1.1.1, a\r\nIf-Match: *\r\nContent-Length: 1\r\n\r\nx",
		"POST /whep/a HTTP/1.1\r\nHost: x\r\nSidestream-Pull-Token: x\r\nContent-Type: application/sdp\r\nContent-Length: 5\r\n\r\nv=0\r\n",
		"DELETE /_sidestream/pull/node-1/YQ/live/a/whep/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS /live/a/whep HTTP/1.1\r\nHost: x\r\nOrigin: https://a\r\nAccess-Control-Request-Method: POST\r\n\r\n",
		"GET /.well-known/sidestream/health?stream=a HTTP/1.1\r\nHost: x\r\n\r\n", "GET //evil.example/../ HTTP/1.1\r\nHost: y\r\n\r\n",
		"GET http://evil.example/live/a/whep HTTP/1.1\r\nHost: y\r\n\r\n", "POST /live/%2e%2e/whep HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		f.Add([]byte(text))
	}
	base := &url.URL{Scheme: "http", Host: "10.0.0.7:8889"}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, door := range []string{"viewers", "peers"} {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
			if err != nil {
				return
			}
			if r.Method == http.MethodConnect || strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
				return // wants a connection
			}
			r = r.WithContext(t.Context())
			r.RemoteAddr = "192.0.2.1:7"
			g := New(Options{
				Adapter: adapter{base: base}, Target: base, NodeID: "node-1", Transport: target{t, base.Host}, Tokens: NewTokens(nil),
				TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Rates: Rates{PerAddress: 1, PerStream: 1},
			})
			handler := http.Handler(g)
			if door == "peers" {
				handler = g.PeerHandler()
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if door == "peers" && r.Method == http.MethodPost && strings.HasPrefix(r.URL.EscapedPath(), pullPath) && w.Code < 400 {
				t.Errorf("a pull without a token is answered with %d", w.Code)
			}
		}
	})
}
