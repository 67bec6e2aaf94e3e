package whip

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	maxBody       = 256 << 10
	maxRedirects  = 5
	maxText       = 512 // bytes kept of each text in a problem
	maxRetryAfter = 24 * time.Hour
)

// defaultHTTP serves clients without an http.Client of their own. Idle connections are kept for the PATCH and DELETE
// that follow, not for long.
var defaultHTTP = &http.Client{Transport: &http.Transport{
	Proxy:                  http.ProxyFromEnvironment,
	ForceAttemptHTTP2:      true,
	MaxIdleConnsPerHost:    4,
	MaxResponseHeaderBytes: 64 << 10,
	IdleConnTimeout:        20 * time.Second,
	TLSHandshakeTimeout:    10 * time.Second,
}}

// StatusError is a server's refusal. RFC 9725 has clients treat a code that they do not know as the first of its class,
// so look at Code/100 where the code itself says nothing.
type StatusError struct {
	Op      string // what was wanted: "publish", "play", "trickle", "answer", "delete"
	URL     string // without credentials and query
	Code    int
	Problem Problem
	// RetryAfter is when the server wants to be asked again, 0 where it does not say.
	RetryAfter time.Duration
}

// Problem is what a server says of its refusal (RFC 9457). Of an answer in plain text, Detail is the beginning; of one in JSON, its
// member "error".
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

func (e *StatusError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %d %s", e.Op, e.URL, e.Code, http.StatusText(e.Code))
	for _, text := range []string{e.Problem.Title, e.Problem.Detail} {
		if text != "" && text != http.StatusText(e.Code) {
			b.WriteString(": " + text)
		}
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, " (retry after %s)", e.RetryAfter)
	}
	return b.String()
}

// remote is the server's side of a conversation: where its requests go, and what goes along with each of them.
type remote struct {
	http   *http.Client
	header http.Header // of the endpoint
	// bare is set once a redirect or Location led from https to http. What the endpoint's header holds is secret, so
	// nothing of it is sent from there on.
	bare bool
}

func newRemote(client *http.Client, header http.Header) remote {
	if client == nil {
		client = defaultHTTP
	}
	own := *client
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return remote{http: &own, header: header}
}

type request struct {
	op     string
	method string
	url    *url.URL
	header http.Header
	body   []byte
}

type response struct {
	code   int
	header http.Header
	body   []byte
	url    *url.URL // that answered, after redirects
}

func (r *response) ok() bool { return r.code/100 == 2 }

func (r *response) contentType() string {
	kind, _, err := mime.ParseMediaType(r.header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return kind
}

// do sends a request, through redirects, and reads the answer to its end. When the header arrived and the body failed,
// it returns both a response and an error.
func (r *remote) do(ctx context.Context, q request) (*response, error) {
	for redirects := 0; ; redirects++ {
		res, err := r.once(ctx, q)
		if res == nil || err != nil || res.code/100 != 3 {
			return res, err
		}
		switch res.code {
		case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			refusal := res.refusal(q.op)
			refusal.Problem.Detail = "only the redirects 307 and 308 keep the request as it is (RFC 9725, section 4.5)"
			return nil, refusal
		}
		if redirects == maxRedirects {
			refusal := res.refusal(q.op)
			refusal.Problem.Detail = fmt.Sprintf("more than %d redirects", maxRedirects)
			return nil, refusal
		}
		next, err := resolve(res)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", q.op, plain(res.url), err)
		}
		r.bare = r.bare || downgrades(res.url, next)
		q.url = next
	}
}

func (r *remote) once(ctx context.Context, q request) (*response, error) {
	res, err := r.send(ctx, q)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return q.read(res)
}

// open sends a request whose answer has no end, and returns its body, which the caller closes. Redirects are not followed: the
// address was the server's own.
func (r *remote) open(ctx context.Context, q request) (io.ReadCloser, error) {
	res, err := r.send(ctx, q)
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 == 2 {
		return res.Body, nil
	}
	defer res.Body.Close()
	answer, err := q.read(res)
	if err != nil {
		return nil, err
	}
	return nil, answer.refusal(q.op)
}

func (q request) fail(err error) error {
	// net/http repeats method and URL, and in the URL whatever token the query holds.
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return fmt.Errorf("%s %s: %w", q.op, plain(q.url), err)
}

func (r *remote) send(ctx context.Context, q request) (*http.Response, error) {
	var body io.Reader
	if q.body != nil {
		body = bytes.NewReader(q.body)
	}
	req, err := http.NewRequestWithContext(ctx, q.method, q.url.String(), body)
	if err != nil {
		return nil, q.fail(err)
	}
	req.Header.Set("User-Agent", "sidestream")
	if !r.bare {
		for name, values := range r.header {
			for i, v := range values {
				if v == "" {
					continue
				}
				if i == 0 {
					req.Header.Del(name)
				}
				req.Header.Add(name, v)
			}
		}
	}
	for name, values := range q.header {
		req.Header[name] = values
	}
	res, err := r.http.Do(req)
	if err != nil {
		return nil, q.fail(err)
	}
	return res, nil
}

// read reads an answer to its end.
func (q request) read(res *http.Response) (answer *response, err error) {
	answer = &response{code: res.StatusCode, header: res.Header, url: q.url}
	answer.body, err = io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	switch {
	case !answer.ok() && answer.code != http.StatusNotAcceptable:
		// The code says it all; the body only has more words.
		answer.body = answer.body[:min(len(answer.body), maxBody)]
	case err != nil:
		return answer, q.fail(fmt.Errorf("read answer: %w", err))
	case len(answer.body) > maxBody:
		return answer, q.fail(fmt.Errorf("answer is larger than %d bytes", maxBody))
	}
	return answer, nil
}

// refusal makes an error of an answer that is not a success.
func (r *response) refusal(op string) *StatusError {
	e := &StatusError{Op: op, URL: plain(r.url), Code: r.code, RetryAfter: retryAfter(r.header, time.Now())}
	switch r.contentType() {
	case ContentTypeProblem:
		if json.Unmarshal(r.body, &e.Problem) != nil {
			e.Problem = Problem{}
		}
	case "application/json": // as MediaMTX has it
		var other struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(r.body, &other) == nil {
			e.Problem.Detail = other.Error
		}
	case "text/plain":
		e.Problem.Detail = string(r.body)
	}
	for _, text := range []*string{&e.Problem.Type, &e.Problem.Title, &e.Problem.Detail} {
		*text = legible(*text)
	}
	return e
}

// legible makes a foreign text fit for a log line.
func legible(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxText)], "")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
}

// retryAfter reads a number of seconds or a date (RFC 9110, section 10.2.3). A date is taken against the server's own
// clock where the answer tells it.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	var d time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 63); err == nil {
		d = time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		if date, err := http.ParseTime(h.Get("Date")); err == nil {
			now = date
		}
		d = at.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// resolve returns the answer's Location, taken relative to the URL that gave it (RFC 9110, section 10.2.2).
func resolve(r *response) (*url.URL, error) {
	location := r.header.Get("Location")
	if location == "" {
		return nil, fmt.Errorf("answer %d without Location", r.code)
	}
	u, err := r.url.Parse(location)
	if err != nil {
		return nil, errors.New("answer with a Location that is no URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("answer with a Location of scheme %q", u.Scheme)
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

func downgrades(from, to *url.URL) bool { return from.Scheme == "https" && to.Scheme != "https" }

// plain writes a URL without what may be secret in it.
func plain(u *url.URL) string {
	bare := *u
	bare.User, bare.RawQuery, bare.Fragment, bare.RawFragment = nil, "", "", ""
	return bare.String()
}

// allowsTrickle says whether an answer's header lets the session be PATCHed with candidates.
func allowsTrickle(h http.Header) bool {
	if accept := h.Values("Accept-Patch"); len(accept) > 0 {
		return listed(accept, ContentTypeFragment)
	}
	// Servers give an ETag where the session can be patched (RFC 9725, section 4.3.1).
	return h.Get("ETag") != "" ||
		listed(h.Values("Allow"), http.MethodPatch) ||
		listed(h.Values("Access-Control-Allow-Methods"), http.MethodPatch)
}

// listed says whether an item stands in a comma list, whatever parameters it has there.
func listed(values []string, item string) bool {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			name, _, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(name), item) {
				return true
			}
		}
	}
	return false
}
