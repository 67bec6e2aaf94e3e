package gateway

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sidestream-dev/sidestream/adapters"
	"github.com/sidestream-dev/sidestream/adapters/pace"
)

const (
	// maxCandidates is far beyond what one offer or fragment of a real client holds; each costs the server a check.
	maxCandidates = 256
	// bodyTimeout bounds how slowly an offer may drip in.
	bodyTimeout = 10 * time.Second
)

// The media types of WHIP and WHEP.
const (
	typeSDP      = "application/sdp"
	typeFragment = "application/trickle-ice-sdpfrag"
)

// passage is the way of one request to a server behind the gateway, and of the answer back.
type passage struct {
	gateway   *Gateway
	to        *url.URL          // scheme and host are taken
	transport http.RoundTripper // to it
	trusted   bool              // the X-Forwarded fields that came are continued
	plain     bool              // the answer must not be compressed, because it is read
	opens     bool              // a 201 or 406 is the answer of a new session: its URLs are renamed
	inSession bool              // the request is on a session URL: the answer's URLs are renamed
	rename    func(*url.URL) string
	// header makes the last changes to the header that is sent; nil: none.
	header func(http.Header)
	// failed is asked what to do about a server that did not answer: true where it has seen to it. nil: nobody is.
	failed func(error) bool
	sent   *http.Request // what was sent, from rewrite to modify
	// answer sees the answer before its URLs are renamed; nil: nobody does.
	answer func(*http.Response) error
}

func (g *Gateway) passage(w *recorder, r *http.Request, to *url.URL) *passage {
	return &passage{gateway: g, to: to, transport: g.o.Transport, trusted: w.peer || g.trusts(r)}
}

// trusts says whether a request comes from a proxy whose X-Forwarded fields are believed.
func (g *Gateway) trusts(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && g.trusted(from.Addr())
}

func (g *Gateway) trusted(a netip.Addr) bool {
	a = a.Unmap()
	return slices.ContainsFunc(g.o.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// client is the address that a request comes from: the nearest one that is no proxy or peer of ours. The zero value where
// that cannot be told.
func (g *Gateway) client(w *recorder, r *http.Request) netip.Addr {
	return pace.Client(r, w.peer, g.trusted)
}

// bufferPool holds what bodies are copied through.
type bufferPool struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (b *bufferPool) Get() []byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p[:]
	}
	return make([]byte, bufferSize)
}

func (b *bufferPool) Put(p []byte) { b.pool.Put((*[bufferSize]byte)(p)) }

func (p *passage) serve(w http.ResponseWriter, r *http.Request) {
	proxy := httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		Transport:      p.transport,
		ModifyResponse: p.modify,
		ErrorHandler:   p.fail,
		ErrorLog:       p.gateway.proxyLog,
		BufferPool:     &p.gateway.proxyBufs,
	}
	proxy.ServeHTTP(w, r)
}

func (p *passage) rewrite(pr *httputil.ProxyRequest) {
	out, in := pr.Out, pr.In
	out.URL.Scheme, out.URL.Host = p.to.Scheme, p.to.Host
	out.URL.User, out.URL.Fragment = nil, ""
	out.URL.RawQuery = in.URL.RawQuery // as it came: which queries are well formed is the server's to say
	if p.trusted {
		out.Header["X-Forwarded-For"] = in.Header["X-Forwarded-For"]
	}
	pr.SetXForwarded()
	if p.trusted {
		for _, name := range []string{"X-Forwarded-Host", "X-Forwarded-Proto"} {
			if value := in.Header.Get(name); value != "" {
				out.Header.Set(name, value)
			}
		}
	}
	out.Header.Del(PullTokenHeader)
	if p.plain {
		out.Header.Set("Accept-Encoding", "identity")
	}
	if p.header != nil {
		p.header(out.Header)
	}
	p.sent = out
}

// modify is called with the answer.
func (p *passage) modify(resp *http.Response) error {
	resp.Request = p.sent
	sent := p.sent
	if p.answer != nil {
		if err := p.answer(resp); err != nil {
			return err
		}
	}
	p.gateway.sessionAnswered(sent.Method, sent.URL.EscapedPath(), resp.StatusCode)
	own := func(host string) bool {
		return strings.EqualFold(host, sent.URL.Host) || strings.EqualFold(host, sent.Host) ||
			strings.EqualFold(host, sent.Header.Get("X-Forwarded-Host"))
	}
	rename := p.rename
	if !p.inSession && (!p.opens || !sessionOpened(resp.StatusCode)) {
		// The server's own URLs stay; only an address that viewers cannot reach is taken out.
		own = func(host string) bool { return strings.EqualFold(host, sent.URL.Host) && host != sent.Host }
		rename = (*url.URL).RequestURI
	}
	relink(resp.Header, sent.URL, own, rename)
	return nil
}

// sessionOpened says whether a status is that of a new session: created, or a counter-offer to be answered.
func sessionOpened(status int) bool {
	return status == http.StatusCreated || status == http.StatusNotAcceptable
}

// fail answers for a server that did not.
func (p *passage) fail(w http.ResponseWriter, r *http.Request, err error) {
	g := p.gateway
	if p.failed != nil && p.failed(err) {
		return
	}
	if r.Context().Err() != nil { // the caller has gone; nobody reads this
		if rec, ok := w.(*recorder); ok {
			rec.status = statusGone
		}
		return
	}
	if hold, ok := errors.AsType[*holdError](err); ok {
		if hold.retryAfter != "" {
			w.Header().Set("Retry-After", hold.retryAfter)
		}
		g.refuse(w, r, cmp.Or(hold.status, http.StatusServiceUnavailable), hold.title, hold.detail)
		return
	}
	if answer, ok := errors.AsType[*answerError](err); ok {
		g.metrics.refused("answer")
		g.refuse(w, r, http.StatusBadGateway, "Media server's answer cannot be used", answer.Error())
		return
	}
	g.log.Warn("server did not answer", "server", p.to.Host, "method", r.Method, "error", err)
	status, detail := http.StatusBadGateway, "The server behind this gateway cannot be reached; try again in a moment."
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
		status, detail = http.StatusGatewayTimeout, "The server behind this gateway did not answer in time; try again in a moment."
	}
	w.Header().Set("Retry-After", "1")
	g.refuse(w, r, status, "", detail)
}

// refuse answers with a problem. Pages of other origins may read it, as they may read the server's answers.
func (g *Gateway) refuse(w http.ResponseWriter, _ *http.Request, status int, title, detail string) {
	if rec, ok := w.(*recorder); ok {
		rec.own = true
	}
	adapters.WriteProblem(w, status, title, detail)
}

// buffered reads a request's body, so that it is known to be small and can be sent again. When it cannot be had, the
// request is answered and the result is false.
func (g *Gateway) buffered(w http.ResponseWriter, r *http.Request) (*http.Request, bool) {
	if r.Body == nil || r.Body == http.NoBody {
		return r, true
	}
	deadline := http.NewResponseController(w)
	_ = deadline.SetReadDeadline(time.Now().Add(bodyTimeout)) // not all writers can; HTTP/1.1 servers do
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, g.o.MaxBody))
	_ = deadline.SetReadDeadline(time.Time{})
	var title, detail string
	status := http.StatusRequestEntityTooLarge
	switch _, large := errors.AsType[*http.MaxBytesError](err); {
	case large:
		title, detail = "Body too large", "Offers and fragments are a few kilobytes; send a smaller one."
	case errors.Is(err, os.ErrDeadlineExceeded):
		status, title, detail = http.StatusRequestTimeout, "Body too slow", "Send the whole body at once."
	case err != nil:
		status, title, detail = http.StatusBadRequest, "Body cannot be read", "Send the body as the header announces it."
	case isSDP(r.Header) && bytes.Count(body, []byte("a=candidate:")) > maxCandidates:
		title, detail = "Too many candidates", "Send only candidates of interfaces that lead here."
	default:
		return withBody(r, body), true
	}
	g.metrics.refused("body")
	w.Header().Set("Connection", "close") // what is left of the body is not worth reading
	g.refuse(w, r, status, title, detail)
	return nil, false
}

// withBody is the request with a body that is at hand.
func withBody(r *http.Request, body []byte) *http.Request {
	out := r.WithContext(r.Context())
	out.Header = r.Header.Clone()
	out.Header.Del("Expect")
	out.TransferEncoding = nil
	out.ContentLength = int64(len(body))
	out.GetBody = func() (io.ReadCloser, error) {
		if len(body) == 0 {
			return http.NoBody, nil // anything else would be sent as a body of unknown length
		}
		return io.NopCloser(bytes.NewReader(body)), nil
	}
	out.Body, _ = out.GetBody()
	return out
}

// isSDP says whether a body is a session description or a fragment of one.
func isSDP(h http.Header) bool {
	t := mediaType(h)
	return t == typeSDP || t == typeFragment
}

func mediaType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
		return ""
	}
	return t
}

// discard makes an answer's connection usable again, if little is left to read.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	_ = resp.Body.Close()
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
