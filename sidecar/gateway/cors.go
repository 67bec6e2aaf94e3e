package gateway

import (
	"net/http"
	"slices"
	"strings"
)

// exposed are the fields of answers that WHIP and WHEP clients read, which pages do not see unless they are named.
var exposed = []string{"Location", "Link", "ETag", "Retry-After", "Accept-Patch", "WWW-Authenticate"}

// The methods of endpoints and of session URLs, of which preflights ask.
const (
	endpointMethods = "OPTIONS, GET, HEAD, POST"
	sessionMethods  = "OPTIONS, GET, HEAD, POST, PATCH, DELETE"
)

// cors lets pages of other origins publish and play (Fetch standard, section 3.2), where the server does not say who may.
type cors struct {
	every   bool
	origins []string
}

func newCORS(origins []string) *cors {
	return &cors{every: origins == nil || slices.Contains(origins, "*"), origins: origins}
}

// allowed is what Access-Control-Allow-Origin says to a page; "" where it may not read anything.
func (c *cors) allowed(origin string) string {
	switch {
	case c.every:
		return "*"
	case slices.Contains(c.origins, origin):
		return origin
	}
	return ""
}

// answer adds to an answer's header what it lacks. What the server says about origins stays as it is; only the fields that
// a client needs are named besides, since some of them are the gateway's own.
func (c *cors) answer(h http.Header, origin string) {
	if len(h.Values("Access-Control-Allow-Origin")) == 0 {
		allowed := c.allowed(origin)
		if !c.every {
			h.Add("Vary", "Origin")
		}
		if allowed == "" {
			return
		}
		h.Set("Access-Control-Allow-Origin", allowed)
	}
	named := strings.Join(h.Values("Access-Control-Expose-Headers"), ", ")
	missing := slices.DeleteFunc(slices.Clone(exposed), func(field string) bool {
		return slices.ContainsFunc(strings.Split(named, ","), func(n string) bool {
			n = strings.TrimSpace(n)
			return strings.EqualFold(n, field) || n == "*" && h.Get("Access-Control-Allow-Credentials") != "true"
		})
	})
	if len(missing) > 0 {
		if named != "" {
			missing = append([]string{named}, missing...)
		}
		h.Set("Access-Control-Expose-Headers", strings.Join(missing, ", "))
	}
}

// preflight answers one in the server's place.
func (c *cors) preflight(h http.Header, r *http.Request, methods string) {
	c.answer(h, r.Header.Get("Origin"))
	h.Del("Access-Control-Expose-Headers") // means nothing here
	if h.Get("Access-Control-Allow-Origin") == "" {
		return
	}
	h.Set("Access-Control-Allow-Methods", methods)
	fields := r.Header.Get("Access-Control-Request-Headers")
	if fields == "" || len(fields) > 1024 {
		fields = "Authorization, Content-Type, If-Match"
	}
	h.Set("Access-Control-Allow-Headers", fields)
	h.Set("Access-Control-Max-Age", "3600")
}

// preflight answers a page's question whether it may publish or play, unless the server does; false where it is none.
func (g *Gateway) preflight(w *recorder, r *http.Request) bool {
	method := r.Header.Get("Access-Control-Request-Method")
	if w.origin == "" || method == "" {
		return false
	}
	asked := r.WithContext(r.Context())
	asked.Method = http.MethodPost
	session := reserved(r.URL.Path)
	if _, endpoint := g.o.Adapter.Match(asked); !endpoint && !session {
		return false
	}
	if session || g.seal != nil { // what is not open to everybody does not reach the server
		w.kind = kindPreflight
		g.cors.preflight(w.Header(), r, sessionMethods)
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	w.kind = kindPreflight
	p := g.passage(w, r, g.o.Target)
	p.answer = func(resp *http.Response) error {
		if resp.Header.Get("Access-Control-Allow-Origin") != "" {
			return nil
		}
		if resp.StatusCode/100 != 2 { // the server knows nothing of pages, or asks them for what preflights never carry
			_ = resp.Body.Close()
			resp.StatusCode, resp.Status = http.StatusNoContent, ""
			resp.Body, resp.ContentLength = http.NoBody, 0
			for _, field := range []string{"Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "WWW-Authenticate"} {
				resp.Header.Del(field)
			}
		}
		g.cors.preflight(resp.Header, r, endpointMethods)
		return nil
	}
	p.serve(w, r)
	return true
}
