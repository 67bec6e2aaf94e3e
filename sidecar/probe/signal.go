package probe

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/sidestream-dev/sidestream/adapters/whip"
)

const (
	maxAnswer   = 64 << 10
	contentSDP  = whip.ContentTypeSDP
	contentFrag = whip.ContentTypeFragment
)

// exchange is a request and its answer, as they passed.
type exchange struct {
	method string
	url    *url.URL
	status int
	header http.Header
}

func (e exchange) redirects() bool { return e.status/100 == 3 && e.header.Get("Location") != "" }

// recorder remembers what a client's requests were answered with: whip.Client keeps most of it to itself.
type recorder struct {
	next http.RoundTripper

	mu   sync.Mutex
	seen []exchange
}

// RoundTrip implements http.RoundTripper.
func (r *recorder) RoundTrip(q *http.Request) (*http.Response, error) {
	a, err := r.next.RoundTrip(q)
	if err == nil {
		r.mu.Lock()
		r.seen = append(r.seen, exchange{q.Method, q.URL, a.StatusCode, a.Header.Clone()})
		r.mu.Unlock()
	}
	return a, err
}

// last is the last exchange of a method; false where there was none.
func (r *recorder) last(method string) (exchange, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.seen) - 1; i >= 0; i-- {
		if r.seen[i].method == method {
			return r.seen[i], true
		}
	}
	return exchange{}, false
}

// first is the first exchange that is as wanted.
func (r *recorder) first(wanted func(exchange) bool) (exchange, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.seen {
		if wanted(e) {
			return e, true
		}
	}
	return exchange{}, false
}

// answer is what a bare request came to.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) ok() bool { return a.status/100 == 2 }

func (a answer) contentType() string {
	kind, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return kind
}

// String is the status for a line of the report.
func (a answer) String() string {
	if text := http.StatusText(a.status); text != "" {
		return fmt.Sprintf("%d %s", a.status, text)
	}
	return fmt.Sprint(a.status)
}

// ask sends one request as it is, follows nothing, and reads the answer.
func (p *Probe) ask(ctx context.Context, method string, at *url.URL, header http.Header, body string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, p.bounds.request)
	defer cancel()
	var payload io.Reader = http.NoBody
	if body != "" {
		payload = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, at.String(), payload)
	if err != nil {
		return answer{}, err
	}
	r.Header = header.Clone()
	if r.Header == nil {
		r.Header = http.Header{}
	}
	r.Header.Set("User-Agent", "sidestream-probe")
	a, err := p.bare.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer a.Body.Close()
	read, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer))
	if err != nil && len(read) == 0 {
		return answer{}, err
	}
	return answer{a.StatusCode, a.Header, bytes.ToValidUTF8(read, nil)}, nil
}

// with adds fields, given as name and value in turn, to a copy of a header.
func with(h http.Header, fields ...string) http.Header {
	h = h.Clone()
	if h == nil {
		h = http.Header{}
	}
	for i := 0; i+1 < len(fields); i += 2 {
		h.Set(fields[i], fields[i+1])
	}
	return h
}

// excerpt is the beginning of a foreign text, fit for a line.
func excerpt(s string) string {
	const most = 100
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
